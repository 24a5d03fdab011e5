//! The agent's connection: frames in, frames out, one descriptor at most with each.

use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::rc::Rc;
use std::time::Duration;

use rustix::cmsg_space;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{self, RecvAncillaryMessage, SendAncillaryMessage, SocketFlags};
use seamount_mounter::protocol::{FRAME, Fault, Reply};

use crate::failure::{Doing, Outcome, fail};
use crate::foreign::{self, Foreign};
use crate::log::event;
use crate::node::{Attached, Node};
use crate::succession::LOCK;

/// An agent that does not read its answers for this long is cut off; it blocks everybody.
pub const PATIENCE: Duration = Duration::from_secs(5);
/// An agent that is silent for this long while a successor waits is stopped, and not waited for.
const LEAVE: Duration = Duration::from_secs(2);
/// What an agent may ask for still, while a successor waits.
const LAST_REQUESTS: usize = 10_000;

/// Serves one agent at a time, until a successor has taken over.
pub fn serve(node: &mut Node) -> Outcome<()> {
    let (uid, own) = (node.config.agent_uid, rustix::process::geteuid().as_raw());
    let mut agent: Option<Foreign> = None;
    loop {
        if foreign::waiting() > foreign::MOST {
            return fail!(
                Exhausted,
                "descriptors that others made cannot be closed; it starts anew, which drops them"
            );
        }
        let [agents, successors] = &node.seat.doors;
        let mut ready = {
            let old = agent.as_ref().map_or(agents.as_fd(), AsFd::as_fd);
            [old, agents.as_fd(), successors.as_fd()].map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN))
        };
        let polled = poll(&mut ready, None);
        polled.or_else(|e| if e == Errno::INTR { Ok(0) } else { Err(e) }).doing("wait for the agent")?;
        let [old, new, next] = ready.map(|fd| !fd.revents().is_empty());
        match &agent {
            _ if next => match greet(successors, own, false).map(|to| hand_over(&to, agent.take(), node)) {
                Some(Ok(())) => return Ok(()),
                Some(Err(e)) => event("warn", "the other mounter did not take over", &[("reason", &e)]),
                None => {}
            },
            // The old connection first: an agent that died makes room for its successor.
            Some(connection) if old => {
                if let Err(e) = exchange(connection, node) {
                    event("info", "agent gone", &[("reason", &e)]);
                    agent = None;
                }
            }
            Some(_) if new => drop(greet(agents, uid, true)),
            None if new => agent = greet(agents, uid, false),
            _ => {}
        }
    }
}

/// Lets the agent finish what it does, and leave; then everything goes to the successor.
pub fn hand_over(to: &Foreign, agent: Option<Foreign>, node: &mut Node) -> Result<(), Errno> {
    if let Some(agent) = agent {
        let _ = send(&agent, &Reply::refusal(0, Fault::Superseded, String::new()).encode(), &None);
        let _ = set_socket_timeout(&agent, Timeout::Recv, Some(LEAVE));
        // Bounded: one that never ends to ask must not keep a roll-out from its end.
        let _ = (0..LAST_REQUESTS).try_for_each(|_| exchange(&agent, node));
    }
    for (slot, fd) in &node.seat.kept {
        send(to, slot.as_bytes(), &Some(Rc::clone(fd)))?;
    }
    send(to, LOCK.as_bytes(), &Some(Rc::clone(&node.seat.lock)))
}

/// Whether a descriptor can be read from, or written to, at once.
pub fn ready(fd: impl AsFd, how: PollFlags) -> bool {
    poll(&mut [PollFd::new(&fd, how)], Some(&Timespec::default())) == Ok(1)
}

/// Takes a connection of the agent; refuses everybody else, and a second one.
fn greet(listener: &OwnedFd, uid: u32, busy: bool) -> Option<Foreign> {
    let connection = Foreign::from(net::accept_with(listener, SocketFlags::CLOEXEC).ok()?);
    let _ = set_socket_timeout(&connection, Timeout::Send, Some(PATIENCE));
    let peer = seamount_sys::peer::peer_uid(&connection);
    let (fault, refusal) = if peer != uid {
        (Fault::System, format!("this socket is for uid {uid} (--agent-uid); you are {peer}"))
    } else if busy {
        (Fault::Busy, "another agent is connected; try again".to_owned())
    } else {
        event("info", "connected", &[("uid", &uid)]);
        return Some(connection);
    };
    event("warn", "connection refused", &[("reason", &refusal)]);
    let _ = send(&connection, &Reply::refusal(0, fault, refusal).encode(), &None);
    None
}

/// One message: its bytes as far as they fit, whether something did not, its descriptors.
pub fn receive(connection: &Foreign) -> Result<(Vec<u8>, net::ReturnFlags, Vec<Foreign>), Errno> {
    let mut frame = [0; FRAME + 1];
    // As many as a message can carry (SCM_MAX_FD): those that have no room the kernel closes here, and that may wait.
    let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(253))];
    let mut control = net::RecvAncillaryBuffer::new(&mut space);
    let into = &mut [IoSliceMut::new(&mut frame)];
    let received = net::recvmsg(connection, into, &mut control, net::RecvFlags::CMSG_CLOEXEC)?;
    // Nothing: the other side has closed.
    let bytes = frame.get(..received.bytes).filter(|bytes| !bytes.is_empty()).ok_or(Errno::PIPE)?.to_vec();
    let rights = control.drain().filter_map(|message| match message {
        RecvAncillaryMessage::ScmRights(fds) => Some(fds),
        _ => None,
    });
    Ok((bytes, received.flags, rights.flatten().map(Foreign::from).collect()))
}

/// One request and its reply. A message that is no frame is refused and the connection goes on; an error ends it.
pub fn exchange(connection: &Foreign, node: &mut Node) -> Result<(), Errno> {
    let (frame, flags, mut fds) = receive(connection)?;
    let refuse = |fault, text: &str| (Reply::refusal(0, fault, text.to_owned()), None);
    let (reply, attached) = if flags.contains(net::ReturnFlags::CTRUNC) {
        refuse(Fault::Exhausted, "a descriptor was lost: the mounter is out of them")
    } else if flags.contains(net::ReturnFlags::TRUNC) || fds.len() > 1 {
        refuse(Fault::Malformed, "a frame too long, or with more than one descriptor")
    } else {
        node.handle(&frame, fds.pop())
    };
    send(connection, &reply.encode(), &attached)
}

/// One message, with a descriptor or without.
pub fn send(connection: &Foreign, frame: &[u8], attached: &Attached) -> Result<(), Errno> {
    let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(1))];
    let mut control = net::SendAncillaryBuffer::new(&mut space);
    let fds = attached.as_ref().map(|fd| [fd.as_fd()]);
    if let Some(fds) = &fds {
        control.push(SendAncillaryMessage::ScmRights(fds));
    }
    net::sendmsg(connection, &[IoSlice::new(frame)], &mut control, net::SendFlags::NOSIGNAL).map(drop)
}
