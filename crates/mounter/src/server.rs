//! The agent's connection: frames in, frames out, one descriptor at most with each.

use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::cmsg_space;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{self, RecvAncillaryMessage, SendAncillaryMessage, SocketFlags};
use seamount_mounter::protocol::{FRAME, Fault, Reply};

use crate::failure::{Doing, Outcome};
use crate::log::event;
use crate::node::{Attached, Node};
use crate::succession::hand_over;

/// An agent that does not read its answers for this long is cut off; it blocks everybody.
pub const PATIENCE: Duration = Duration::from_secs(5);
/// How long an agent has to finish what it does, when a successor is there.
const LEAVE: Duration = Duration::from_secs(2);

/// Serves one agent at a time, until a successor has taken over.
pub fn serve(node: &mut Node) -> Outcome<()> {
    let (uid, own) = (node.config.agent_uid, rustix::process::geteuid().as_raw());
    let (mut agent, mut successor): (Option<OwnedFd>, Option<(OwnedFd, Instant)>) = (None, None);
    loop {
        let [agents, successors] = &node.seat.doors;
        let mut ready =
            [agent.as_ref().unwrap_or(agents), agents, successors].map(|fd| PollFd::new(fd, PollFlags::IN));
        let limit = successor.is_some().then_some(Timespec { tv_sec: 0, tv_nsec: 100_000_000 });
        let polled = poll(&mut ready, limit.as_ref());
        polled.or_else(|e| if e == Errno::INTR { Ok(0) } else { Err(e) }).doing("wait for the agent")?;
        let [old, new, next] = ready.map(|fd| !fd.revents().is_empty());
        if next && let Some(connection) = greet(successors, own, successor.is_some()) {
            if let Some(agent) = &agent {
                let _ = send(agent, &Reply::refusal(0, Fault::Superseded, String::new()).encode(), &None);
            }
            successor = Some((connection, Instant::now()));
        }
        match &agent {
            // The old connection first: an agent that died makes room for its successor.
            Some(connection) if old => {
                if let Err(e) = exchange(connection, node) {
                    event("info", "agent gone", &[("reason", &e)]);
                    agent = None;
                }
            }
            Some(_) if new => drop(greet(agents, uid, true)),
            None if new && successor.is_none() => agent = greet(agents, uid, false),
            _ => {}
        }
        let ready = |since: &Instant| agent.is_none() || since.elapsed() > LEAVE;
        if let Some((to, _)) = successor.take_if(|(_, since)| ready(since)) {
            match hand_over(&to, node) {
                Ok(()) => return Ok(event("info", "another mounter has taken over", &[])),
                Err(e) => event("warn", "the other mounter did not take over", &[("reason", &e)]),
            }
        }
    }
}

/// Takes a connection of the agent; refuses everybody else, and a second one.
fn greet(listener: &OwnedFd, uid: u32, busy: bool) -> Option<OwnedFd> {
    let connection = net::accept_with(listener, SocketFlags::CLOEXEC).ok()?;
    let _ = set_socket_timeout(&connection, Timeout::Send, Some(PATIENCE));
    let peer = seamount_sys::mounter::peer_uid(&connection);
    let (fault, refusal) = match peer == uid {
        true if busy => (Fault::Busy, "another agent is connected; try again".to_owned()),
        true => {
            event("info", "agent connected", &[]);
            return Some(connection);
        }
        false => (Fault::System, format!("this socket is for uid {uid} (--agent-uid); you are {peer}")),
    };
    event("warn", "connection refused", &[("reason", &refusal)]);
    let _ = send(&connection, &Reply::refusal(0, fault, refusal).encode(), &None);
    None
}

/// One message: its bytes as far as they fit, whether something did not, its descriptors.
pub fn receive(
    connection: &OwnedFd,
    frame: &mut [u8],
) -> Result<(Vec<u8>, net::ReturnFlags, Vec<OwnedFd>), Errno> {
    let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(1))];
    let mut control = net::RecvAncillaryBuffer::new(&mut space);
    let into = &mut [IoSliceMut::new(frame)];
    let received = net::recvmsg(connection, into, &mut control, net::RecvFlags::CMSG_CLOEXEC)?;
    if received.bytes == 0 {
        return Err(Errno::PIPE);
    }
    let rights = control.drain().filter_map(|message| match message {
        RecvAncillaryMessage::ScmRights(fds) => Some(fds),
        _ => None,
    });
    let fds = rights.flatten().collect();
    Ok((frame.get(..received.bytes).unwrap_or_default().to_vec(), received.flags, fds))
}

/// One request and its reply. A message that is no frame is refused and the connection goes on; an error ends it.
pub fn exchange(connection: &OwnedFd, node: &mut Node) -> Result<(), Errno> {
    let (frame, flags, mut fds) = receive(connection, &mut [0; FRAME + 1])?;
    let refuse = |fault, text: &str| (Reply::refusal(0, fault, text.to_owned()), None);
    // Room for one descriptor is, by alignment, room for two: both checks are needed.
    let (reply, attached) = if flags.contains(net::ReturnFlags::CTRUNC) {
        refuse(Fault::Exhausted, "a descriptor was lost: too many in one frame, or no room for it")
    } else if flags.contains(net::ReturnFlags::TRUNC) || fds.len() > 1 {
        refuse(Fault::Malformed, "a frame too long, or with more than one descriptor")
    } else {
        node.handle(&frame, fds.pop())
    };
    send(connection, &reply.encode(), &attached)
}

/// One message, with a descriptor or without.
pub fn send(connection: &OwnedFd, frame: &[u8], attached: &Attached) -> Result<(), Errno> {
    let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(1))];
    let mut control = net::SendAncillaryBuffer::new(&mut space);
    let fds = attached.as_ref().map(|fd| [fd.as_fd()]);
    if let Some(fds) = &fds {
        control.push(SendAncillaryMessage::ScmRights(fds));
    }
    net::sendmsg(connection, &[IoSlice::new(frame)], &mut control, net::SendFlags::NOSIGNAL).map(drop)
}
