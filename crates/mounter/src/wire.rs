//! Messages over Unix sockets, one descriptor at most with each.

use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::AsFd;
use std::rc::Rc;
use std::time::Duration;

use rustix::cmsg_space;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{self, RecvAncillaryMessage, SendAncillaryMessage};
use seamount_mounter_protocol::FRAME;

use crate::closer::Foreign;

/// An agent that does not read its answers for this long is cut off; it blocks everybody.
pub const PATIENCE: Duration = Duration::from_secs(5);

/// The descriptor that goes along with a reply.
pub type Attached = Option<Rc<Foreign>>;

/// Whether a descriptor can be read from, or written to, at once.
pub fn ready(fd: impl AsFd, how: PollFlags) -> bool {
    poll(&mut [PollFd::new(&fd, how)], Some(&Timespec::default())) == Ok(1)
}

/// One message: its bytes as far as they fit, whether something did not, its descriptors.
pub fn receive(connection: &Foreign) -> Result<(Vec<u8>, net::ReturnFlags, Vec<Foreign>), Errno> {
    let mut frame = [0; FRAME + 1];
    // As many as a message can carry (SCM_MAX_FD): those that have no room the kernel closes here, and that
    // may wait.
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
