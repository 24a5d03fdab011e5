//! The agent's connection: frames in, frames out, one descriptor at most with each.

use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use rustix::cmsg_space;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{self, RecvAncillaryMessage, SendAncillaryMessage, SocketFlags};
use seamount_mounter::protocol::{FRAME, Fault, Reply};

use crate::failure::{Doing, Outcome};
use crate::log::event;
use crate::node::{Attached, Node};

/// An agent that does not read its answers for this long is cut off; it blocks everybody.
const PATIENCE: Duration = Duration::from_secs(5);

/// Serves one agent at a time, for ever.
pub fn serve(listener: &OwnedFd, node: &mut Node) -> Outcome<()> {
    let uid = node.config.agent_uid;
    loop {
        let Some(agent) = greet(listener, uid, false) else { continue };
        loop {
            let mut ready = [&agent, listener].map(|fd| PollFd::new(fd, PollFlags::IN));
            let polled = poll(&mut ready, None);
            polled.or_else(|e| if e == Errno::INTR { Ok(0) } else { Err(e) }).doing("wait for the agent")?;
            let [old, new] = ready.map(|fd| !fd.revents().is_empty());
            // The old connection first: an agent that died makes room for its successor.
            if old && let Err(e) = exchange(&agent, node) {
                event("info", "agent gone", &[("reason", &e)]);
                break;
            }
            if new {
                greet(listener, uid, true);
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
    let _ = send(&connection, &Reply::refusal(0, fault, refusal), &None);
    None
}

/// One request and its reply. A message that is no frame is refused and the connection goes on; an error ends it.
pub fn exchange(connection: &OwnedFd, node: &mut Node) -> Result<(), Errno> {
    let mut frame = [0; FRAME + 1];
    let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(1))];
    let mut control = net::RecvAncillaryBuffer::new(&mut space);
    let into = &mut [IoSliceMut::new(&mut frame)];
    let received = net::recvmsg(connection, into, &mut control, net::RecvFlags::CMSG_CLOEXEC)?;
    if received.bytes == 0 {
        return Err(Errno::PIPE);
    }
    let rights = control.drain().filter_map(|message| match message {
        RecvAncillaryMessage::ScmRights(fds) => Some(fds),
        _ => None,
    });
    let mut fds: Vec<OwnedFd> = rights.flatten().collect();
    let refuse = |fault, text: &str| (Reply::refusal(0, fault, text.to_owned()), None);
    // Room for one descriptor is, by alignment, room for two: both checks are needed.
    let (reply, attached) = if received.flags.contains(net::ReturnFlags::CTRUNC) {
        refuse(Fault::Exhausted, "a descriptor was lost: too many in one frame, or no room for it")
    } else if received.flags.contains(net::ReturnFlags::TRUNC) || fds.len() > 1 {
        refuse(Fault::Malformed, "a frame too long, or with more than one descriptor")
    } else {
        node.handle(frame.get(..received.bytes).unwrap_or_default(), fds.pop())
    };
    send(connection, &reply, &attached)
}

fn send(connection: &OwnedFd, reply: &Reply, attached: &Attached) -> Result<(), Errno> {
    let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(1))];
    let mut control = net::SendAncillaryBuffer::new(&mut space);
    let fds = attached.as_ref().map(|fd| [fd.as_fd()]);
    if let Some(fds) = &fds {
        control.push(SendAncillaryMessage::ScmRights(fds));
    }
    let frame = reply.encode();
    net::sendmsg(connection, &[IoSlice::new(&frame)], &mut control, net::SendFlags::NOSIGNAL).map(drop)
}
