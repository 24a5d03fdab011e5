//! A Unix stream that wakes no task when its other end has read.
//!
//! tokio waits for reading and writing at once, with edges. The kernel reports a Unix socket as writable each
//! time that its other end takes something out of it, so that every answer is followed by a wake-up in which
//! there is nothing to do: a context switch, and on a virtual machine an interrupt to the other processor, 10
//! to 30 µs of 500. A call's answer practically always fits into the socket's buffer (200 KB), so that this
//! waits for reading only, and for writing as well while it does not fit.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::{ManuallyDrop, MaybeUninit};
use std::os::fd::OwnedFd;
use std::pin::Pin;
use std::task::{Context, Poll, Waker, ready};

use rustix::io::{Errno, ioctl_fionread, read, writev};
use rustix::net::{
    RecvAncillaryBuffer, RecvFlags, ReturnFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags,
    Shutdown, recvmsg, sendmsg, shutdown,
};
use seamount_sys::uid;
use seamount_sys::watch::watch;
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};
use tokio::net::UnixStream;

/// The stream; closed on drop. One descriptor at any time: a client that never reads costs no more than
/// another.
#[derive(Debug)]
pub struct ReadInterestStream {
    /// None after the kernel has refused to watch it in another way, which ends the connection.
    stream: Option<AsyncFd<OwnedFd>>,
    /// Whether its buffer was full, so that it is watched for writing as well.
    full: bool,
    /// The task that waits to read: a new watch does not know it.
    reader: Option<Waker>,
    /// Whether its other end may send descriptors along.
    wary: bool,
}

impl ReadInterestStream {
    /// The same stream, waited for in another way.
    ///
    /// # Errors
    /// Where the kernel cannot watch one more descriptor.
    pub fn new(stream: UnixStream) -> io::Result<Self> {
        Self::watching(stream.into_std()?.into())
    }

    /// A connected stream that does not block.
    ///
    /// # Errors
    /// Likewise.
    pub fn watching(stream: OwnedFd) -> io::Result<Self> {
        Ok(Self { stream: Some(watch(stream, Interest::READABLE)?), full: false, reader: None, wary: false })
    }

    /// As [`watching`](Self::watching), for a stranger's connection where the kernel cannot refuse
    /// descriptors that come with bytes.
    ///
    /// Reading such bytes ends the last copy of a descriptor, on this thread: of a TCP socket that lingers
    /// (socket(7)), which the stranger has made and closed, it waits as long as the stranger likes. So they
    /// are not read, and reading fails. Take such a connection apart with [`into_unread`](Self::into_unread).
    ///
    /// # Errors
    /// Likewise.
    pub fn wary(stream: OwnedFd) -> io::Result<Self> {
        Ok(Self { wary: true, ..Self::watching(stream)? })
    }

    /// Closes it, unless closing could wait for something of a stranger's; then the descriptor, for
    /// [`close_apart`]. The other end sees the end in either case.
    pub fn into_unread(mut self) -> Option<OwnedFd> {
        let stream = self.stream.take()?;
        if self.wary { unread(stream.into_inner()) } else { None }
    }

    /// Watches in another way from now on. The new watch reports at once what there is to read; the task that
    /// waits for that looks again, and waits there.
    fn watch_full(&mut self, full: bool) -> io::Result<()> {
        let interest = if full { Interest::READABLE | Interest::WRITABLE } else { Interest::READABLE };
        self.full = full;
        self.stream = self.stream.take().map(|old| watch(old.into_inner(), interest)).transpose()?;
        self.reader.take().inspect(Waker::wake_by_ref);
        Ok(())
    }

    fn poll_out(
        &mut self,
        cx: &mut Context<'_>,
        attempt: impl Fn(&OwnedFd) -> Result<usize, Errno>,
    ) -> Poll<io::Result<usize>> {
        loop {
            let stream = self.stream.as_ref().ok_or(Errno::NOTCONN)?;
            let room = if self.full { Some(ready!(stream.poll_write_ready(cx))?) } else { None };
            match attempt(stream.get_ref()) {
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => match room {
                    Some(mut room) => room.clear_ready(),
                    None => self.watch_full(true)?,
                },
                done => {
                    if self.full {
                        self.watch_full(false)?;
                    }
                    return Poll::Ready(done.map_err(io::Error::from));
                }
            }
        }
    }
}

/// Writes. A peer that asks for credentials is not told the real uid, which the agent keeps to itself.
fn send(stream: &OwnedFd, bufs: &[IoSlice<'_>]) -> Result<usize, Errno> {
    let Some(shown) = uid::shown() else { return writev(stream, bufs) };
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmCredentials(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    control.push(SendAncillaryMessage::ScmCredentials(shown));
    sendmsg(stream, bufs, &mut control, SendFlags::NOSIGNAL)
}

impl AsyncRead for ReadInterestStream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let Self { stream, reader, wary, .. } = self.get_mut();
        let stream = stream.as_ref().ok_or(Errno::NOTCONN)?;
        loop {
            let Poll::Ready(ready) = stream.poll_read_ready(cx) else {
                if reader.as_ref().is_none_or(|known| !known.will_wake(cx.waker())) {
                    *reader = Some(cx.waker().clone());
                }
                return Poll::Pending;
            };
            let mut ready = ready?;
            let space = buf.initialize_unfilled();
            let wanted = space.len();
            let outcome = match wary {
                false => read(stream.get_ref(), space),
                true => read_bytes(stream.get_ref(), space),
            };
            match outcome {
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => ready.clear_ready(),
                Err(e) => return Poll::Ready(Err(e.into())),
                Ok(got) => {
                    // Less than there was room for: the socket is empty (epoll(7), question 9), which spares
                    // the attempt that would find out. Not at the end, which is not reported twice.
                    if 0 < got && got < wanted {
                        ready.clear_ready();
                    }
                    buf.advance(got);
                    return Poll::Ready(Ok(()));
                }
            }
        }
    }
}

impl AsyncWrite for ReadInterestStream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.get_mut().poll_out(cx, |stream| send(stream, &[IoSlice::new(buf)]))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.get_mut().poll_out(cx, |stream| send(stream, bufs))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        let stream = self.stream.as_ref().ok_or(Errno::NOTCONN)?;
        Poll::Ready(shutdown(stream.get_ref(), Shutdown::Write).map_err(io::Error::from))
    }
}

/// Reads what comes without descriptors.
fn read_bytes(stream: &OwnedFd, space: &mut [u8]) -> Result<usize, Errno> {
    let mut no_room = RecvAncillaryBuffer::default();
    let peeked = recvmsg(stream, &mut [IoSliceMut::new(space)], &mut no_room, RecvFlags::PEEK)?;
    // Something came along, and there was no room for it. It stays where it is.
    if peeked.flags.contains(ReturnFlags::CTRUNC) {
        return Err(Errno::OPNOTSUPP);
    }
    let bytes = peeked.bytes.min(space.len());
    // Nothing else reads: it is what was seen.
    space.get_mut(..bytes).map_or(Ok(0), |space| read(stream, space))
}

/// Ends a stranger's connection. What it has sent and nothing has read may hold descriptors; then it is not
/// closed yet.
pub fn unread(stream: OwnedFd) -> Option<OwnedFd> {
    // From here on nothing more comes in.
    let _ = shutdown(&stream, Shutdown::Both);
    ioctl_fionread(&stream).map_or(true, |bytes| bytes > 0).then_some(stream)
}

/// Drops this on a thread of its own, which may wait as long as it must. Without a thread it is kept for
/// ever.
pub fn close_apart(what: impl Send + 'static) {
    let what = ManuallyDrop::new(what);
    let close = move || drop(ManuallyDrop::into_inner(what));
    if let Err(error) = std::thread::Builder::new().name("close".to_owned()).spawn(close) {
        tracing::warn!(%error, "a client's socket stays open: no thread could be made to close it on");
    }
}

#[cfg(test)]
mod tests;
