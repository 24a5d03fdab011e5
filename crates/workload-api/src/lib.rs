//! The SPIFFE Workload API on one Unix socket (SPIFFE Workload Endpoint and Workload API standards).
//!
//! Whoever connects is the pod of the volume that holds the socket (Workload Endpoint §5), so there is one
//! [`serve`] per volume and nobody is attested here. FetchX509SVID and FetchX509Bundles are served, gRPC
//! health v1 and server reflection v1 and v1alpha too; the JWT methods answer `Unimplemented`.
//!
//! HTTP/2 is hyper's, directly per connection, and responses are bytes that were encoded once and are shared
//! by all streams: memory per open stream is what this is about. Everything a client can make grow has a
//! bound: connections, streams, header lists, request messages, what is buffered for a client that does not
//! read (one response), the bytes that are read in a second, and the time that a connection may live without
//! asking anything. What is counted is counted for all sockets of a pod together ([`Tenant`]).
//!
//! * [`read_interest`]: the streams under it, which wake only for what was asked for.
//! * [`authority_header`]: lets gRPC clients in that make an authority of the socket's path.

use std::{fmt, io, os::unix::net::UnixListener as StdListener, sync::Arc, time::Duration};

use tokio::{net::UnixListener, sync::watch};
use tokio_util::sync::CancellationToken;

pub mod authority_header;
mod body;
mod bucket;
mod connection;
mod grpc;
mod health;
mod metered;
pub mod read_interest;
mod response;
mod service;
mod status;
mod tenant;

pub use response::Response;
pub use tenant::{Limits, Node, Tenant};

/// What a volume's streams see now (sent through a [`watch`]).
///
/// A stream that was already answered ends only by [`Denied`](Self::Denied) or when the sender goes: what was
/// issued stays good until it expires, so neither `Pending` nor `Unavailable` takes it away. Send
/// `Unavailable` when there is nothing valid to serve to new streams, not when an SVID merely cannot be
/// renewed.
#[derive(Debug, Clone, Default)]
pub enum IdentityState {
    /// Not known yet: new streams wait, and get `Unavailable` when the pending timeout has passed.
    #[default]
    Pending,
    /// The identity. One without any SVID is [`Denied`](Self::Denied).
    Ready(Arc<Response>),
    /// Nothing to serve for now, with the reason for people: new streams get `Unavailable`.
    Unavailable(Arc<str>),
    /// No identity: every stream, old or new, gets `PermissionDenied` with the text `no identity issued`.
    Denied,
}

/// Who wants to know what happens on a socket; for metrics. Called from many tasks, must not block.
pub trait Observer: Send + Sync {
    /// A connection was opened (+1) or closed (-1).
    fn connection(&self, delta: i64);
    /// A FetchX509SVID or FetchX509Bundles stream was answered with data (+1) or ended (-1).
    fn stream(&self, delta: i64);
    /// Something was refused; `why` is one of a small fixed set: `accept`, `connections`, `node connections`,
    /// `streams`, `reflection`, `memory`, `idle`, `http`, `security header`, `method`, `request`, `pending`,
    /// `unavailable`, `denied`.
    fn refused(&self, why: &'static str);
    /// Something waits because its tenant is over its rate: a connection is not read, or a socket takes none
    /// in.
    fn throttled(&self) {}
}

/// An [`Observer`] that does not care.
#[derive(Debug, Clone, Copy, Default)]
pub struct Unobserved;

impl Observer for Unobserved {
    fn connection(&self, _delta: i64) {}
    fn stream(&self, _delta: i64) {}
    fn refused(&self, _why: &'static str) {}
}

/// Serves the Workload API on `listener` until `cancel`, and returns when every connection is closed and
/// every stream gone. Cancelling cuts the connections at once, without a goodbye. Dropping the future cuts
/// them too, and so does shutdown(2) of the listener through any copy of it: nobody can connect to such a
/// socket ever again.
///
/// `pending_timeout` is how long a stream waits while [`IdentityState::Pending`]. Errors of `accept` (descriptors
/// used up) are waited out.
pub async fn serve(
    listener: UnixListener,
    served: watch::Receiver<IdentityState>,
    limits: Limits,
    pending_timeout: Duration,
    observer: Arc<dyn Observer>,
    cancel: CancellationToken,
) {
    let tenant = Tenant::new(limits, Node::unbounded());
    let listener = match listener.into_std() {
        Ok(listener) => listener,
        Err(error) => {
            tracing::error!(%error, "cannot wait for Workload API connections");
            return;
        }
    };
    match serve_within(listener, served, tenant, pending_timeout, observer, cancel) {
        Ok(serving) => serving.await,
        Err(error) => tracing::error!(%error, "cannot wait for Workload API connections"),
    }
}

/// As [`serve`], on a listener that does not block, and with bounds over several sockets: those of one
/// tenant, and of all tenants of a [`Node`]. A connection beyond them is accepted and closed.
///
/// # Errors
/// Where the kernel cannot watch one more descriptor.
///
/// No `async fn`: a volume's idle task is as large as what its future captures, and that of another future
/// inside would hold all of it twice.
pub fn serve_within(
    listener: StdListener,
    served: watch::Receiver<IdentityState>,
    tenant: Arc<Tenant>,
    pending_timeout: Duration,
    observer: Arc<dyn Observer>,
    cancel: CancellationToken,
) -> io::Result<impl Future<Output = ()> + Send + 'static> {
    let wary = connection::is_wary(&listener)?;
    let listener = connection::waiting(listener)?;
    let timing = Timing { pending: pending_timeout, ..Timing::default() };
    let shared = Arc::new(Shared { served, tenant, timing, observer, wary });
    // A token of our own, so that everything ends also when the future is dropped.
    Ok(connection::serve(listener, shared, cancel.child_token()))
}

/// How long a client may take.
#[derive(Debug, Clone, Copy)]
struct Timing {
    /// While [`IdentityState::Pending`].
    pending: Duration,
    /// For a whole request, from its headers on.
    request: Duration,
    /// Until a connection's first request.
    first_request: Duration,
    /// Without an open stream, after the first request.
    idle: Duration,
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            pending: Duration::from_secs(30),
            request: Duration::from_secs(30),
            first_request: Duration::from_secs(30),
            idle: Duration::from_secs(300),
        }
    }
}

/// What all connections of a socket have in common.
struct Shared {
    served: watch::Receiver<IdentityState>,
    tenant: Arc<Tenant>,
    timing: Timing,
    observer: Arc<dyn Observer>,
    /// Whether descriptors may come with the bytes.
    wary: bool,
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shared").field("limits", self.tenant.limits()).field("timing", &self.timing).finish()
    }
}

#[cfg(test)]
mod tests;
