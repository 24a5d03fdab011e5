//! What answers a request: a function of one of a few kinds.

use std::{convert::Infallible, pin::Pin, sync::Arc};

use bytes::Bytes;
use hyper::body::Incoming;
use tower::util::BoxCloneSyncService;

use crate::{
    shared::Shared,
    state::IdentityState,
    status::{Refusal, Status},
};

/// What answers a request.
#[derive(Clone, Copy)]
pub(crate) enum Handler {
    /// A stream: the function reads the request message, and says what the stream makes of each state.
    Stream(fn(Bytes) -> Result<View, Status>),
    /// One message, in its frame, to one request message.
    Unary(for<'a> fn(&'a Shared, Bytes) -> Answer<'a>),
    /// One of tonic's services, which reads and writes messages itself: for streams of requests.
    Tonic(fn(&Shared) -> Option<Routed>),
    /// The contract has the method, and it is not built: `Unimplemented`.
    NotBuilt,
}

/// What a stream makes of a state. A plain function: an open stream holds one pointer for it, and no message
/// needs a future of its own.
pub(crate) type View = fn(&IdentityState) -> Step;

/// What a stream does with a state.
pub(crate) enum Step {
    /// It sends this message, in its frame, unless it sent the same one last.
    Send(Bytes),
    /// A new stream waits; an older one keeps what it has.
    Wait,
    /// A new stream gets `Unavailable` with this reason; an older one keeps what it has.
    Unavailable(Arc<str>),
    /// It ends with `PermissionDenied`.
    Denied,
}

/// The message of a [`Handler::Unary`] to come.
pub(crate) type Answer<'a> = Pin<Box<dyn Future<Output = Result<Bytes, Refusal>> + Send + 'a>>;

/// A tonic service of a nameable type.
pub(crate) type Routed =
    BoxCloneSyncService<http::Request<Incoming>, http::Response<tonic::body::Body>, Infallible>;
