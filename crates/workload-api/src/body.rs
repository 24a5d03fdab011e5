//! Response bodies.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use bytes::Bytes;
use http_body::{Body as HttpBody, Frame};
use tokio_stream::{Stream as _, wrappers::WatchStream};

use crate::{
    observer::Observer,
    response::Response,
    state::IdentityState,
    status::{Code, Status},
    tenant::Request,
};

/// Which of a [`Response`]'s messages a stream carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Svids,
    Bundles,
}

impl Kind {
    pub(crate) fn of(self, response: &Response) -> &Bytes {
        match self {
            Self::Svids => response.svids(),
            Self::Bundles => response.bundles(),
        }
    }
}

/// What hyper sends.
pub(crate) enum Body {
    /// Headers alone.
    Empty,
    /// FetchX509SVID, FetchX509Bundles.
    Updates(Updates),
    /// Health and reflection; they count as the connection's open request until they end.
    Tonic {
        /// Theirs.
        body: tonic::body::Body,
        /// Counts while it lives.
        request: Request,
    },
}

impl HttpBody for Body {
    type Data = Bytes;
    type Error = tonic::Status;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, tonic::Status>>> {
        match self.get_mut() {
            Self::Empty => Poll::Ready(None),
            Self::Updates(updates) => updates.poll_frame(context).map(|frame| frame.map(Ok)),
            Self::Tonic { body, request } => Pin::new(body).poll_frame(context).map(|frame| {
                frame.inspect(|frame| {
                    if let Some(data) = frame.as_ref().ok().and_then(Frame::data_ref) {
                        request.sends_own(data.len());
                    }
                })
            }),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Empty => true,
            Self::Updates(_) => false,
            Self::Tonic { body, .. } => body.is_end_stream(),
        }
    }
}

/// A stream of full sets: the first at once, then the newest whenever it is another one. hyper asks for the
/// next frame only when the client has room for it, so a slow client skips sets and holds back none.
pub(crate) struct Updates {
    kind: Kind,
    served: WatchStream<IdentityState>,
    sent: Bytes,
    first: bool,
    ended: bool,
    observer: Arc<dyn Observer>,
    request: Request,
}

impl Updates {
    /// A stream that begins with `first`.
    pub(crate) fn new(
        kind: Kind,
        first: Bytes,
        served: tokio::sync::watch::Receiver<IdentityState>,
        observer: Arc<dyn Observer>,
        request: Request,
    ) -> Self {
        observer.stream(1);
        let served = WatchStream::from_changes(served);
        Self { kind, served, sent: first, first: true, ended: false, observer, request }
    }

    fn data(&self) -> Frame<Bytes> {
        self.request.sends_shared(self.sent.len());
        Frame::data(self.sent.clone())
    }

    fn poll_frame(&mut self, context: &mut Context<'_>) -> Poll<Option<Frame<Bytes>>> {
        if self.ended {
            return Poll::Ready(None);
        }
        if self.first {
            self.first = false;
            return Poll::Ready(Some(self.data()));
        }
        let end = loop {
            let Poll::Ready(change) = Pin::new(&mut self.served).poll_next(context) else {
                return Poll::Pending;
            };
            match change {
                Some(IdentityState::Ready(response)) if response.count() > 0 => {
                    let next = self.kind.of(&response);
                    if *next != self.sent {
                        self.sent = next.clone();
                        return Poll::Ready(Some(self.data()));
                    }
                }
                // What was sent stays good until it expires.
                Some(IdentityState::Pending | IdentityState::Unavailable(_)) => {}
                Some(IdentityState::Ready(_) | IdentityState::Denied) => break denied(),
                None => break Status::new(Code::Unavailable, "the Workload API is stopping"),
            }
        };
        self.ended = true;
        self.sent = Bytes::new();
        Poll::Ready(Some(Frame::trailers(end.trailers())))
    }
}

impl Drop for Updates {
    fn drop(&mut self) {
        self.observer.stream(-1);
    }
}

/// The text is SPIRE's; clients look for it to choose a slow retry.
pub(crate) fn denied() -> Status {
    Status::new(Code::PermissionDenied, "no identity issued")
}
