//! Accepting, bounding and closing connections.

use std::{
    io,
    os::{fd::OwnedFd, unix::net::UnixListener as StdListener},
    pin::pin,
    sync::Arc,
    time::Duration,
};

use hyper::server::conn::http2;
use hyper_util::rt::TokioIo;
use rustix::net::{SocketFlags, accept_with};
use seamount_sys::{rights::refuse_rights, watch::watch};
use tokio::{
    io::{Interest, unix::AsyncFd},
    time::sleep,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    authority_header::AuthorityHeaderFilter,
    metered::Metered,
    read_interest::{ReadInterestStream, close_apart},
    service::Service,
    shared::Shared,
    tenant::Seat,
};

/// How long accepting pauses after an error, first and at most.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(2));

/// After a goodbye, how long a client may take to go.
const GOODBYE: Duration = Duration::from_secs(5);

/// HTTP/2 bounds. Requests are a few bytes, so are windows; responses are not copied, whatever their size.
const HEADER_LIST: u32 = 8 * 1024;
const STREAM_WINDOW: u32 = 16 * 1024;
const CONNECTION_WINDOW: u32 = 65_535;
const SEND_BUFFER: usize = 16 * 1024;

/// A listener that does not block, to be served.
pub(crate) fn waiting(listener: StdListener) -> io::Result<AsyncFd<OwnedFd>> {
    watch(listener.into(), Interest::READABLE)
}

/// Whether clients may send descriptors along, since the kernel does not know how to refuse them.
pub(crate) fn is_wary(listener: &StdListener) -> io::Result<bool> {
    refuse_rights(listener).map(|refused| !refused)
}

/// See [`crate::serve`]. Cancels `cancel` when it is dropped.
///
/// A connection that is accepted is admitted, or closed, before anything else is awaited. `cancel` is looked
/// at before each accept: after it no connection is taken in, and each one's own token is a child of it. This
/// loop alone starts connections, and has ended when `tasks` is closed. What a connection starts (a stream)
/// it starts while it is one of `tasks` itself, so that `wait` returns only when all of them are gone.
pub(crate) async fn serve(listener: AsyncFd<OwnedFd>, shared: Arc<Shared>, cancel: CancellationToken) {
    let _all = cancel.clone().drop_guard();
    let tasks = TaskTracker::new();
    let mut backoff = BACKOFF.0;
    loop {
        let accepted = tokio::select! {
            biased;
            () = cancel.cancelled() => break,
            accepted = next(&listener, &shared) => accepted,
        };
        let stream = match accepted {
            Ok(Some(stream)) => {
                backoff = BACKOFF.0;
                stream
            }
            Ok(None) => {
                tracing::debug!("the listener was shut down");
                cancel.cancel();
                break;
            }
            Err(error) => {
                // Mostly EMFILE: the connection stays in the queue, so trying again at once would spin.
                tracing::warn!(%error, "cannot accept a Workload API connection; waiting {backoff:?}");
                shared.observer.refused("accept");
                tokio::select! {
                    () = cancel.cancelled() => break,
                    () = sleep(backoff) => {}
                }
                backoff = (backoff * 2).min(BACKOFF.1);
                continue;
            }
        };
        match shared.tenant.admit(&shared.observer) {
            // Not wrapped in another async block, which would hold its future twice.
            Ok(seat) => {
                tasks.spawn(run(stream, seat, shared.clone(), tasks.clone(), cancel.child_token()));
            }
            Err(why) => {
                shared.observer.refused(why);
                if let Some(unread) = stream.into_unread() {
                    close_apart(unread);
                }
            }
        }
        // A pod that connects without end would else keep the thread here, and with it the kubelet's calls:
        // nothing above waits while the queue holds a connection. A task that gives way goes on only after
        // the kernel was asked what else is ready.
        tokio::task::yield_now().await;
    }
    drop(listener);
    tasks.close();
    tasks.wait().await;
}

/// The next connection, once the tenant may have one. Until then it waits in the queue, and so do those
/// behind it.
async fn next(listener: &AsyncFd<OwnedFd>, shared: &Shared) -> io::Result<Option<ReadInterestStream>> {
    shared.tenant.turn(&*shared.observer).await;
    accept(listener, shared.wary).await
}

/// The next connection; `None` where the listener was shut down, through any copy of it.
///
/// Not tokio's own `accept`: it finds such a listener ready and empty again and again, in a loop that never
/// gives way, and neither cancelling nor aborting its task ends that.
async fn accept(listener: &AsyncFd<OwnedFd>, wary: bool) -> io::Result<Option<ReadInterestStream>> {
    loop {
        let mut ready = listener.readable().await?;
        // Asked before: an attempt that finds nothing forgets what it was woken for.
        let closed = ready.ready().is_read_closed();
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        match ready.try_io(|listener| Ok(accept_with(listener, flags)?)) {
            Ok(accepted) if wary => return ReadInterestStream::wary(accepted?).map(Some),
            Ok(accepted) => return ReadInterestStream::watching(accepted?).map(Some),
            Err(_) if closed => return Ok(None),
            Err(_) => {}
        }
    }
}

/// One connection until it ends, is cancelled or shed, or asks nothing for too long.
async fn run(
    stream: ReadInterestStream,
    seat: Arc<Seat>,
    shared: Arc<Shared>,
    tasks: TaskTracker,
    cancel: CancellationToken,
) {
    let _streams = cancel.clone().drop_guard();
    let _open = Open::new(&shared);
    let ledger = seat.ledger();
    let epoch = shared.tenant.epoch();
    let stream = Metered::new(stream, seat);
    let service = Service { shared: shared.clone(), ledger: ledger.clone() };
    let executor = Executor { tasks, cancel: cancel.clone() };
    let connection = http2::Builder::new(executor)
        .auto_date_header(false)
        .max_concurrent_streams(shared.tenant.limits().streams)
        .max_header_list_size(HEADER_LIST)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_send_buf_size(SEND_BUFFER)
        .serve_connection(TokioIo::new(AuthorityHeaderFilter::new(stream)), service);
    let mut connection = pin!(connection);
    let mut seen = 0;
    let mut patience = shared.timing.first_request;
    loop {
        tokio::select! {
            biased;
            () = cancel.cancelled() => return,
            () = epoch.cancelled() => return shared.observer.refused("memory"),
            ended = connection.as_mut() => {
                if let Err(error) = ended {
                    tracing::debug!(%error, "a Workload API connection ended");
                }
                return;
            }
            () = sleep(patience) => {}
        }
        let (active, begun) = ledger.counts();
        if begun == 0 {
            shared.observer.refused("idle");
            return;
        }
        if active == 0 && begun == seen {
            break;
        }
        seen = begun;
        patience = shared.timing.idle;
    }
    shared.observer.refused("idle");
    connection.as_mut().graceful_shutdown();
    tokio::select! {
        () = cancel.cancelled() => {}
        () = epoch.cancelled() => {}
        _ = connection.as_mut() => {}
        () = sleep(GOODBYE) => {}
    }
}

/// Tells the observer of a connection's beginning and end.
struct Open<'a>(&'a Shared);

impl<'a> Open<'a> {
    fn new(shared: &'a Shared) -> Self {
        shared.observer.connection(1);
        Self(shared)
    }
}

impl Drop for Open<'_> {
    fn drop(&mut self) {
        self.0.observer.connection(-1);
    }
}

/// Spawns a connection's streams so that they end with it, and so that [`serve`] can wait for them.
#[derive(Clone)]
struct Executor {
    tasks: TaskTracker,
    cancel: CancellationToken,
}

impl<F> hyper::rt::Executor<F> for Executor
where
    F: Future<Output = ()> + Send + 'static,
{
    fn execute(&self, stream: F) {
        let cancel = self.cancel.clone();
        self.tasks.spawn(async move {
            cancel.run_until_cancelled(stream).await;
        });
    }
}
