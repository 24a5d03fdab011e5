//! One volume's Workload API: the listener, the task that serves it, and what its streams see.

use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use seamount_identity::workload_api::{self, Limits, Observer, Served};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::endpoint;
use crate::mounter::Listener;

/// How long the connections of a volume may take to close before their task is ended from outside.
const CLOSE: Duration = Duration::from_secs(5);

/// Descriptors that no new volume takes: for the kubelet's calls, records, keys, connections of volumes that are there.
const RESERVED: u64 = 24;

/// What every volume's service is made with.
pub struct Terms {
    /// Bounds per volume.
    pub limits: Limits,
    /// A permit for each connection of all volumes together.
    pub connections: Arc<Semaphore>,
    /// How long a stream is held while there is no identity yet; then it is answered `Unavailable`.
    pub pending: Duration,
    /// The process's limit of descriptors.
    pub descriptors: u64,
    /// Counts connections and streams.
    pub observer: Arc<dyn Observer>,
}

/// Counts for one volume, and passes on.
struct Counted {
    connections: AtomicI64,
    streams: AtomicI64,
    all: Arc<dyn Observer>,
}

impl Observer for Counted {
    fn connection(&self, delta: i64) {
        self.connections.fetch_add(delta, Ordering::Relaxed);
        self.all.connection(delta);
    }

    fn stream(&self, delta: i64) {
        self.streams.fetch_add(delta, Ordering::Relaxed);
        self.all.stream(delta);
    }

    fn refused(&self, why: &'static str) {
        self.all.refused(why);
    }
}

/// A volume that is being served.
pub struct Serving {
    cookie: u64,
    /// For the mounter to keep, should it come back without.
    kept: Arc<OwnedFd>,
    served: watch::Sender<Served>,
    counted: Arc<Counted>,
    cancel: CancellationToken,
    task: JoinHandle<()>,
}

impl Serving {
    /// Serves a listener. Needs a tokio runtime.
    pub fn start(listener: Listener, first: Served, terms: &Terms) -> io::Result<Self> {
        let Listener { fd, cookie, .. } = listener;
        // The kernel gives the lowest number that is free: one near the limit says that few are left.
        let number = u64::try_from(fd.as_raw_fd()).unwrap_or_default();
        if number.saturating_add(RESERVED) >= terms.descriptors {
            return Err(rustix::io::Errno::MFILE.into());
        }
        let kept = Arc::new(fd.try_clone()?);
        let listener = endpoint::listener(fd)?;
        let (served, seen) = watch::channel(first);
        let cancel = CancellationToken::new();
        let counted = Arc::new(Counted {
            connections: AtomicI64::new(0),
            streams: AtomicI64::new(0),
            all: Arc::clone(&terms.observer),
        });
        let task = tokio::spawn(workload_api::serve_within(
            listener,
            seen,
            terms.limits,
            Arc::clone(&terms.connections),
            terms.pending,
            Arc::clone(&counted) as Arc<dyn Observer>,
            cancel.clone(),
        ));
        Ok(Self { cookie, kept, served, counted, cancel, task })
    }

    /// The listener's `SO_COOKIE`.
    pub fn cookie(&self) -> u64 {
        self.cookie
    }

    /// Open connections and open streams.
    pub fn open(&self) -> (i64, i64) {
        let Counted { connections, streams, .. } = &*self.counted;
        (connections.load(Ordering::Relaxed), streams.load(Ordering::Relaxed))
    }

    /// The listener, to be given to the mounter.
    pub fn kept(&self) -> Arc<OwnedFd> {
        Arc::clone(&self.kept)
    }

    /// Whether the service is still running; it ends only when told to.
    pub fn alive(&self) -> bool {
        !self.task.is_finished()
    }

    /// Changes what the streams see; each of them sends it on.
    pub fn show(&self, served: Served) {
        self.served.send_replace(served);
    }

    /// Has the listener and every accepted connection closed, and does not wait for it.
    pub fn cut(&self) {
        self.cancel.cancel();
    }

    /// Closes the listener and every accepted connection, and returns when that is done.
    pub async fn stop(mut self) {
        self.cut();
        if tokio::time::timeout(CLOSE, &mut self.task).await.is_err() {
            tracing::warn!("the volume's connections did not close by themselves; ended");
            self.task.abort();
            let _ = (&mut self.task).await;
        }
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        self.cancel.cancel();
    }
}
