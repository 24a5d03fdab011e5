//! Accepting, bounding and closing connections.

use std::{
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use hyper::server::conn::http2;
use hyper_util::rt::TokioIo;
use tokio::{
    net::{UnixListener, UnixStream},
    sync::{OwnedSemaphorePermit, Semaphore},
    time::sleep,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{Shared, service::Service};
use crate::without_authority::WithoutAuthority;

/// How long accepting pauses after an error, first and at most.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(2));

/// After a goodbye, how long a client may take to go.
const GOODBYE: Duration = Duration::from_secs(5);

/// HTTP/2 bounds. Requests are a few bytes, so are windows; responses are not copied, whatever their size.
const HEADER_LIST: u32 = 8 * 1024;
const STREAM_WINDOW: u32 = 16 * 1024;
const CONNECTION_WINDOW: u32 = 65_535;
const SEND_BUFFER: usize = 16 * 1024;

/// See [`super::serve`].
pub(super) async fn serve(listener: UnixListener, shared: Shared, cancel: CancellationToken) {
    // A token of our own, so that everything ends also when this future is dropped.
    let cancel = cancel.child_token();
    let _all = cancel.clone().drop_guard();
    let shared = Arc::new(shared);
    let slots = Arc::new(Semaphore::new(shared.limits.connections));
    let tasks = TaskTracker::new();
    let mut backoff = BACKOFF.0;
    loop {
        let accepted = tokio::select! {
            biased;
            () = cancel.cancelled() => break,
            accepted = listener.accept() => accepted,
        };
        let stream = match accepted {
            Ok((stream, _)) => {
                backoff = BACKOFF.0;
                stream
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
        let Ok(slot) = slots.clone().try_acquire_owned() else {
            shared.observer.refused("connections");
            continue;
        };
        let Ok(of_all) = shared.all.clone().try_acquire_owned() else {
            shared.observer.refused("node connections");
            continue;
        };
        // Not wrapped in another async block, which would hold its future twice.
        tasks.spawn(run(stream, (slot, of_all), shared.clone(), tasks.clone(), cancel.child_token()));
    }
    drop(listener);
    tasks.close();
    tasks.wait().await;
}

/// One connection until it ends, is cancelled, or asks nothing for too long.
async fn run(
    stream: UnixStream,
    slots: (OwnedSemaphorePermit, OwnedSemaphorePermit),
    shared: Arc<Shared>,
    tasks: TaskTracker,
    cancel: CancellationToken,
) {
    let _slots = slots;
    let _streams = cancel.clone().drop_guard();
    let _open = Open::new(&shared);
    let requests = Request::default();
    let service = Service { shared: shared.clone(), requests: requests.clone() };
    let executor = Executor { tasks, cancel: cancel.clone() };
    let connection = http2::Builder::new(executor)
        .auto_date_header(false)
        .max_concurrent_streams(shared.limits.streams)
        .max_header_list_size(HEADER_LIST)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_send_buf_size(SEND_BUFFER)
        .serve_connection(TokioIo::new(WithoutAuthority::new(stream)), service);
    let mut connection = pin!(connection);
    let mut seen = 0;
    let mut patience = shared.timing.first_request;
    loop {
        tokio::select! {
            biased;
            () = cancel.cancelled() => return,
            ended = connection.as_mut() => {
                if let Err(error) = ended {
                    tracing::debug!(%error, "a Workload API connection ended");
                }
                return;
            }
            () = sleep(patience) => {}
        }
        let (active, begun) = requests.counts();
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

/// One open request of a connection; counts while it lives. The default is a new connection's own handle, which
/// does not count.
#[derive(Default)]
pub(super) struct Request {
    counters: Arc<Counters>,
    counted: bool,
}

/// Relaxed: `begun` is raised before the request is answered, and both are read by the connection's own task after a sleep of
/// many seconds. A stream that begins at the very moment of the goodbye is cut after [`GOODBYE`], and its client connects again.
#[derive(Default)]
struct Counters {
    active: AtomicUsize,
    begun: AtomicU64,
}

impl Clone for Request {
    /// The connection's own handle, which does not count.
    fn clone(&self) -> Self {
        Self { counters: self.counters.clone(), counted: false }
    }
}

impl Request {
    /// A request begins.
    pub(super) fn another(&self) -> Self {
        self.counters.active.fetch_add(1, Ordering::Relaxed);
        self.counters.begun.fetch_add(1, Ordering::Relaxed);
        Self { counters: self.counters.clone(), counted: true }
    }

    /// Open requests, and those that ever began.
    fn counts(&self) -> (usize, u64) {
        (self.counters.active.load(Ordering::Relaxed), self.counters.begun.load(Ordering::Relaxed))
    }
}

impl Drop for Request {
    fn drop(&mut self) {
        if self.counted {
            self.counters.active.fetch_sub(1, Ordering::Relaxed);
        }
    }
}
