//! A connection that is read no faster than its tenant may be.

use std::{
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::{Sleep, sleep, sleep_until},
};

use crate::{
    read_interest::{ReadInterestStream, close_apart},
    tenant::{Ledger, Seat},
};

/// How long a connection rests that has brought as much as is read at once. Calls of ordinary clients are
/// shorter.
const REST: Duration = Duration::from_millis(1);

/// The stream. What a client sends beyond its tenant's rate stays in the socket, and the client waits when
/// that is full: no frame is looked at, whichever kind it is. Cutting such a connection does not wait.
pub(crate) struct Metered {
    /// None while it is dropped.
    stream: Option<ReadInterestStream>,
    ledger: Arc<Ledger>,
    seat: Arc<Seat>,
    /// Boxed, because most connections never get there.
    asleep: Option<Pin<Box<Sleep>>>,
}

impl Metered {
    /// Before anything was read.
    pub(crate) fn new(stream: ReadInterestStream, seat: Arc<Seat>) -> Self {
        Self { stream: Some(stream), ledger: seat.ledger(), seat, asleep: None }
    }

    fn stream(&mut self) -> io::Result<Pin<&mut ReadInterestStream>> {
        self.stream.as_mut().map(Pin::new).ok_or_else(|| io::ErrorKind::NotConnected.into())
    }

    fn counted(&self, written: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        if let Poll::Ready(Ok(bytes)) = &written {
            self.ledger.written(*bytes);
        }
        written
    }
}

impl AsyncRead for Metered {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        loop {
            if let Some(asleep) = &mut this.asleep {
                ready!(asleep.as_mut().poll(cx));
                this.asleep = None;
            }
            match this.ledger.settle() {
                Some(until) => this.asleep = Some(Box::pin(sleep_until(until))),
                None => break,
            }
        }
        let before = buf.filled().len();
        ready!(this.stream()?.poll_read(cx, buf))?;
        if buf.remaining() == 0 {
            // What came is looked at first, and what it costs is known before more is read. hyper asks for
            // more before each request that it begins, so that giving way for a turn would not do.
            this.asleep = Some(Box::pin(sleep(REST)));
        }
        this.ledger.read(buf.filled().len() - before);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Metered {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let written = this.stream()?.poll_write(cx, buf);
        this.counted(written)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let written = this.stream()?.poll_write_vectored(cx, bufs);
        this.counted(written)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.get_mut().stream()?.poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.get_mut().stream()?.poll_shutdown(cx)
    }
}

impl Drop for Metered {
    fn drop(&mut self) {
        // It counts as one of its tenant's until it is closed.
        if let Some(unread) = self.stream.take().and_then(ReadInterestStream::into_unread) {
            close_apart((unread, self.seat.clone()));
        }
    }
}
