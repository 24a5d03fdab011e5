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
    handler::{Step, View},
    observer::Observer,
    state::IdentityState,
    status::{Code, Status},
    tenant::Request,
};

/// What hyper sends.
pub(crate) enum Body {
    /// Headers alone.
    Empty,
    /// A stream of full sets.
    Updates(Updates),
    /// One message.
    Once(Once),
    /// What a service of tonic's sends.
    Tonic {
        /// Its own.
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
            Self::Once(once) => Poll::Ready(once.next().map(Ok)),
            Self::Tonic { body, request } => Pin::new(body).poll_frame(context).map(|frame| {
                frame.inspect(|frame| {
                    if let Some(data) = frame.as_ref().ok().and_then(Frame::data_ref) {
                        request.sends(data.len());
                    }
                })
            }),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Empty => true,
            Self::Updates(_) => false,
            Self::Once(once) => once.ended,
            Self::Tonic { body, .. } => body.is_end_stream(),
        }
    }
}

/// A stream of full sets: the first at once, then the newest whenever it is another one. hyper asks for the
/// next frame only when the client has room for it, so a slow client skips sets and holds back none.
pub(crate) struct Updates {
    view: View,
    served: WatchStream<IdentityState>,
    sent: Bytes,
    first: bool,
    ended: bool,
    request: Request,
    _counted: Option<Counted>,
}

impl Updates {
    /// A stream that begins with `first`, and counts with this observer.
    pub(crate) fn new(
        view: View,
        first: Bytes,
        served: tokio::sync::watch::Receiver<IdentityState>,
        observer: Option<Arc<dyn Observer>>,
        request: Request,
    ) -> Self {
        let served = WatchStream::from_changes(served);
        let counted = observer.map(Counted::new);
        Self { view, served, sent: first, first: true, ended: false, request, _counted: counted }
    }

    fn data(&self) -> Frame<Bytes> {
        self.request.sends(self.sent.len());
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
            let Some(state) = change else {
                break Status::new(Code::Unavailable, "the Workload API is stopping");
            };
            match (self.view)(&state) {
                Step::Send(next) if next != self.sent => {
                    self.sent = next;
                    return Poll::Ready(Some(self.data()));
                }
                // What was sent stays good until it expires.
                Step::Send(_) | Step::Wait | Step::Unavailable(_) => {}
                Step::Denied => break denied(),
            }
        };
        self.ended = true;
        self.sent = Bytes::new();
        Poll::Ready(Some(Frame::trailers(end.trailers())))
    }
}

/// A stream that the observer counts while it lives.
struct Counted(Arc<dyn Observer>);

impl Counted {
    fn new(observer: Arc<dyn Observer>) -> Self {
        observer.stream(1);
        Self(observer)
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.stream(-1);
    }
}

/// One message, and that it was all.
pub(crate) struct Once {
    message: Option<Bytes>,
    ended: bool,
    request: Request,
}

impl Once {
    /// This message, in its frame.
    pub(crate) fn new(message: Bytes, request: Request) -> Self {
        Self { message: Some(message), ended: false, request }
    }

    fn next(&mut self) -> Option<Frame<Bytes>> {
        if let Some(message) = self.message.take() {
            self.request.sends(message.len());
            return Some(Frame::data(message));
        }
        let ended = std::mem::replace(&mut self.ended, true);
        (!ended).then(|| Frame::trailers(Status::ok().trailers()))
    }
}

/// The text is SPIRE's; clients look for it to choose a slow retry.
pub(crate) fn denied() -> Status {
    Status::new(Code::PermissionDenied, "no identity issued")
}
