//! The SPIFFE Workload API on one Unix socket (SPIFFE Workload Endpoint and Workload API standards).
//!
//! A client that connects is the pod of the volume that holds the socket (Workload Endpoint §5), so there is
//! one [`serve`] per volume and no attestation here. FetchX509SVID and FetchX509Bundles are served, gRPC
//! health v1 and server reflection v1 and v1alpha too; the JWT methods answer `Unimplemented`. `methods.rs`
//! has the table of them all.
//!
//! HTTP/2 is hyper's, directly per connection, and responses are bytes that were encoded once and are shared
//! by all streams: memory per open stream is what this is about. Everything a client can make grow has a
//! bound: connections, streams, header lists, request messages, what is buffered for a client that does not
//! read (one response), the bytes that are read in a second, and the time that a connection may live without
//! asking anything. What is counted is counted for all sockets of a pod together ([`Tenant`]).
//!
//! * [`read_interest`]: the streams under it, which wake only for what was asked for.
//! * [`authority_header`]: lets gRPC clients in that make an authority of the socket's path.

use std::{io, os::unix::net::UnixListener as StdListener, sync::Arc, time::Duration};

use tokio::{net::UnixListener, sync::watch};
use tokio_util::sync::CancellationToken;

pub mod authority_header;
mod body;
mod bucket;
mod connection;
mod grpc;
mod handler;
mod health;
mod message;
mod metered;
mod methods;
mod observer;
pub mod read_interest;
mod reflection;
mod response;
mod service;
mod shared;
mod state;
mod status;
mod tenant;
mod x509;

pub use observer::{Observer, Unobserved};
pub use response::Response;
pub use state::IdentityState;
pub use tenant::{Limits, Node, Tenant};

use shared::{Shared, Timing};

/// Serves the Workload API on `listener` until `cancel`, and returns when every connection is closed and
/// every stream gone. Cancelling cuts the connections at once, without a goodbye. Dropping the future cuts
/// them too, and so does shutdown(2) of the listener through any copy of it: no client can connect to such a
/// socket ever again.
///
/// `pending_timeout` is how long a stream waits while [`IdentityState::Pending`]. Errors of `accept`
/// (descriptors used up) are waited out.
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

#[cfg(test)]
mod tests;
