//! A `SOCK_SEQPACKET` Unix socket in tokio: frames with at most one descriptor each.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketAddrUnix, SocketFlags, SocketType, connect, recvmsg, sendmsg,
    socket_with,
};
use seamount_mounter_protocol::FRAME;
use seamount_sys::peer::peer_uid;
use seamount_sys::watch::watch;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// One frame that arrived.
#[derive(Debug)]
pub struct Received {
    /// Its bytes; empty when the other side has closed the connection.
    pub bytes: Vec<u8>,
    /// The descriptor that came along (close-on-exec).
    pub fd: Option<OwnedFd>,
    /// Whether more than one came along; the others are closed already.
    pub extra: bool,
    /// Whether a descriptor was lost (`MSG_CTRUNC`).
    pub truncated: bool,
}

/// The socket; closed on drop. Waited for to be read only, else each request would wake the agent once more,
/// when the mounter has taken it (see `seamount_workload_api::read_interest`).
#[derive(Debug)]
pub struct Socket(AsyncFd<OwnedFd>);

impl Socket {
    /// Connects to the mounter's socket. A Unix socket connects at once or not at all. Needs a tokio runtime.
    pub fn connect(path: &Path) -> io::Result<Self> {
        let fd = socket_with(
            AddressFamily::UNIX,
            SocketType::SEQPACKET,
            SocketFlags::CLOEXEC | SocketFlags::NONBLOCK,
            None,
        )?;
        connect(&fd, &SocketAddrUnix::new(path)?)?;
        Self::from_fd(fd)
    }

    /// Takes a connected, non-blocking socket. Needs a tokio runtime.
    pub fn from_fd(fd: OwnedFd) -> io::Result<Self> {
        Ok(Self(watch(fd, Interest::READABLE)?))
    }

    /// The uid of the process that listens at the other end.
    pub fn peer_uid(&self) -> u32 {
        peer_uid(self.0.as_fd())
    }

    /// Sends one frame.
    pub async fn send(&self, frame: &[u8; FRAME], fd: Option<&OwnedFd>) -> io::Result<()> {
        match send_now(self.0.as_fd(), frame, fd) {
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
            done => return done,
        }
        // Full: another descriptor of the same socket, for as long as that lasts.
        let full = watch(self.0.get_ref().try_clone()?, Interest::WRITABLE)?;
        full.async_io(Interest::WRITABLE, |socket| send_now(socket.as_fd(), frame, fd)).await
    }

    /// Waits for one frame. Cancellation loses nothing.
    pub async fn receive(&self) -> io::Result<Received> {
        self.0.async_io(Interest::READABLE, |socket| receive_now(socket.as_fd())).await
    }
}

fn send_now(socket: BorrowedFd<'_>, frame: &[u8; FRAME], fd: Option<&OwnedFd>) -> io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let fds = fd.map(|fd| [fd.as_fd()]);
    if let Some(fds) = &fds {
        control.push(SendAncillaryMessage::ScmRights(fds));
    }
    sendmsg(socket, &[IoSlice::new(frame)], &mut control, SendFlags::NOSIGNAL)?;
    Ok(())
}

fn receive_now(socket: BorrowedFd<'_>) -> io::Result<Received> {
    // One byte more than a frame: a longer one is seen as such, not cut to size.
    let mut bytes = [0; FRAME + 1];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(4))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let got = recvmsg(socket, &mut [IoSliceMut::new(&mut bytes)], &mut control, RecvFlags::CMSG_CLOEXEC)?;
    let mut fds = control.drain().filter_map(|m| match m {
        RecvAncillaryMessage::ScmRights(fds) => Some(fds),
        _ => None,
    });
    let mut fds: Vec<OwnedFd> = fds.by_ref().flatten().collect();
    let extra = fds.len() > 1;
    let fd = if extra { None } else { fds.pop() };
    let bytes = bytes.iter().take(got.bytes).copied().collect();
    Ok(Received { bytes, fd, extra, truncated: got.flags.contains(ReturnFlags::CTRUNC) })
}
