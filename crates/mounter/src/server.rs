//! The agent's connection: frames in, frames out, one descriptor at most with each.

use std::os::fd::{AsFd, OwnedFd};
use std::rc::Rc;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{self, SocketFlags};
use seamount_mounter_protocol::{Fault, Reply};

use crate::closer::{self, Foreign};
use crate::error::{Context, Result, bail};
use crate::handover::LOCK;
use crate::log::{event, warn};
use crate::node::Node;
use crate::wire::{PATIENCE, receive, send};

/// How long an agent may go on to ask while a successor waits. One that is silent for so long is stopped, and
/// not waited for. All that is waited for here has to be over before the successor gives up.
const LEAVE: Duration = Duration::from_secs(2);
/// How often it is looked whether something was removed by hand that has to be there.
const TEND: Duration = Duration::from_secs(5);

/// Serves one agent at a time, until a successor has taken over.
pub fn serve(node: &mut Node) -> Result<()> {
    let (uid, own) = (node.config.agent_uid, rustix::process::geteuid().as_raw());
    let mut agent: Option<Foreign> = None;
    let mut tended = Instant::now();
    loop {
        if tended.elapsed() >= TEND {
            node.tend()?;
            tended = Instant::now();
        }
        if closer::waiting() > closer::MOST_FOREIGN {
            // A new process has none of them, and nothing lingers when a process ends.
            bail!(Exhausted, "descriptors that others made cannot be closed");
        }
        let [agents, successors] = &node.lock.doors;
        let mut ready = {
            let old = agent.as_ref().map_or(agents.as_fd(), AsFd::as_fd);
            [old, agents.as_fd(), successors.as_fd()].map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN))
        };
        let polled = poll(&mut ready, Timespec::try_from(TEND).ok().as_ref());
        if let Err(e) = polled
            && e != Errno::INTR
        {
            return Err(e).context("wait for the agent");
        }
        let [old, new, next] = ready.map(|fd| !fd.revents().is_empty());
        if next {
            if let Some(successor) = greet(successors, own, false) {
                match hand_over(&successor, agent.take(), node) {
                    Ok(()) => return Ok(()),
                    Err(e) => warn("the other mounter did not take over", &e),
                }
            }
            continue;
        }
        match &agent {
            // The old connection first: an agent that died makes room for its successor.
            Some(connection) if old => {
                if let Err(e) = exchange(connection, node) {
                    event("info", "agent gone", &[("reason", &e)]);
                    agent = None;
                }
            }
            Some(_) if new => {
                greet(agents, uid, true);
            }
            None if new => agent = greet(agents, uid, false),
            _ => {}
        }
    }
}

/// Lets the agent finish what it does, and leave; then everything goes to the successor.
pub fn hand_over(to: &Foreign, agent: Option<Foreign>, node: &mut Node) -> Result<(), Errno> {
    if let Some(agent) = agent {
        for side in [Timeout::Send, Timeout::Recv] {
            let _ = set_socket_timeout(&agent, side, Some(LEAVE));
        }
        let _ = send(&agent, &refusal(Fault::Superseded, "").encode(), &None);
        // Bounded: one that never ends to ask must not keep a roll-out from its end.
        let end = Instant::now() + LEAVE;
        while Instant::now() < end && exchange(&agent, node).is_ok() {}
    }
    for (slot, fd) in &node.lock.kept {
        send(to, slot.as_bytes(), &Some(Rc::clone(fd)))?;
    }
    send(to, LOCK.as_bytes(), &Some(Rc::clone(&node.lock.file)))
}

/// Takes a connection of the agent; refuses everybody else, and a second one.
fn greet(listener: &OwnedFd, uid: u32, busy: bool) -> Option<Foreign> {
    let connection = Foreign::from(net::accept_with(listener, SocketFlags::CLOEXEC).ok()?);
    let _ = set_socket_timeout(&connection, Timeout::Send, Some(PATIENCE));
    let peer = seamount_sys::peer::peer_uid(&connection);
    let reply = if peer != uid {
        refusal(Fault::System, &format!("this socket is for uid {uid} (--agent-uid); you are {peer}"))
    } else if busy {
        refusal(Fault::Busy, "another agent is connected; try again")
    } else {
        event("info", "connected", &[("uid", &uid)]);
        return Some(connection);
    };
    warn("connection refused", &reply.text);
    let _ = send(&connection, &reply.encode(), &None);
    None
}

/// Of a peer whose request is not read, or cannot be.
fn refusal(fault: Fault, text: &str) -> Reply {
    Reply::refusal(0, fault, text.to_owned())
}

/// One request and its reply. A message that is no frame is refused and the connection goes on; an error ends
/// it.
pub fn exchange(connection: &Foreign, node: &mut Node) -> Result<(), Errno> {
    let (frame, flags, mut fds) = receive(connection)?;
    let (reply, attached) = if flags.contains(net::ReturnFlags::CTRUNC) {
        let lost = "a descriptor was lost: the mounter is out of them";
        (refusal(Fault::Exhausted, lost), None)
    } else if flags.contains(net::ReturnFlags::TRUNC) || fds.len() > 1 {
        let long = "a frame too long, or with more than one descriptor";
        (refusal(Fault::Malformed, long), None)
    } else {
        node.handle(&frame, fds.pop())
    };
    send(connection, &reply.encode(), &attached)
}
