//! One volume's Workload API: the listener, the task that serves it, and what its streams see.

use std::io;
use std::os::fd::{AsFd, AsRawFd as _, OwnedFd};
use std::os::unix::net::UnixListener;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{Shutdown, SocketFlags, accept_with, shutdown};
use seamount_mounter_client::Listener;
use seamount_sys::rights::refuse_rights;
use seamount_workload_api::read_interest::{close_apart, unread};
use seamount_workload_api::{self as workload_api, IdentityState, Observer, Tenant};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::volumes::tenants::Tenants;

/// How long the connections of a volume may take to close before their task is ended from outside.
const CLOSE: Duration = Duration::from_secs(5);

/// Descriptors that no new volume takes: for the kubelet's calls, records, keys, connections of volumes that
/// are there.
const RESERVED: u64 = 24;

/// The listener, and its copy for the mounter.
const OF_VOLUME: u32 = 2;

/// What every volume's service is made with.
pub struct ServeOptions {
    /// Pods and their bounds.
    pub tenants: Arc<Tenants>,
    /// A permit for each descriptor that volumes may hold, connections not counted.
    pub volumes: Arc<Semaphore>,
    /// How long a stream is held while there is no identity yet; then it is answered `Unavailable`.
    pub pending: Duration,
    /// The process's limit of descriptors.
    pub descriptors: u64,
    /// Counts connections and streams.
    pub observer: Arc<dyn Observer>,
}

/// Counts for one volume, and passes on. Each is a sum of what was added and taken away, in any order:
/// nothing else is decided by it, so its order with other memory does not matter.
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

    fn throttled(&self) {
        self.all.throttled();
    }
}

/// Whether a listener was shut down. It still says that it listens, and no client can connect to it ever
/// again.
pub(in crate::volumes) fn ended(listener: impl AsFd) -> bool {
    let mut fds = [PollFd::from_borrowed_fd(listener.as_fd(), PollFlags::empty())];
    let at_once = Timespec { tv_sec: 0, tv_nsec: 0 };
    poll(&mut fds, Some(&at_once)).is_ok() && fds.iter().any(|fd| fd.revents().contains(PollFlags::HUP))
}

/// A volume that is being served.
pub struct VolumeServer {
    cookie: u64,
    /// For the mounter to keep, should it come back without.
    kept: Arc<OwnedFd>,
    served: watch::Sender<IdentityState>,
    counted: Arc<Counted>,
    cancel: CancellationToken,
    /// Whether no client waits in the queue and none ever will. Set and read by the holder of the volume's
    /// slot.
    emptied: AtomicBool,
    /// Whether clients may have sent descriptors along (`seamount_workload_api::read_interest`).
    wary: bool,
    task: JoinHandle<()>,
    /// Its descriptors, among volumes' and among all.
    _descriptors: [OwnedSemaphorePermit; 2],
}

impl VolumeServer {
    /// Serves a listener. Needs a tokio runtime.
    pub fn start(
        listener: Listener,
        first: IdentityState,
        options: &ServeOptions,
        tenant: &Arc<Tenant>,
    ) -> io::Result<Self> {
        let Listener { fd, cookie, existing } = listener;
        // A service would find it ready for ever, and no client there. One that was made for this call is
        // not.
        if existing && ended(&fd) {
            return Err(Errno::SHUTDOWN.into());
        }
        // The kernel gives the lowest number that is free: one near the limit says that few are left.
        let number = u64::try_from(fd.as_raw_fd()).unwrap_or_default();
        if number.saturating_add(RESERVED) >= options.descriptors {
            return Err(Errno::MFILE.into());
        }
        let permits = |of: &Arc<Semaphore>| {
            Arc::clone(of).try_acquire_many_owned(OF_VOLUME).map_err(|_| io::Error::from(Errno::MFILE))
        };
        let descriptors = [permits(&options.volumes)?, permits(&options.tenants.node().descriptors)?];
        let wary = !refuse_rights(&fd)?;
        let kept = Arc::new(fd.try_clone()?);
        let listener = UnixListener::from(fd);
        listener.set_nonblocking(true)?;
        let (served, seen) = watch::channel(first);
        let cancel = CancellationToken::new();
        let counted = Arc::new(Counted {
            connections: AtomicI64::new(0),
            streams: AtomicI64::new(0),
            all: Arc::clone(&options.observer),
        });
        let serving = workload_api::serve_within(
            listener,
            seen,
            Arc::clone(tenant),
            options.pending,
            Arc::clone(&counted) as Arc<dyn Observer>,
            cancel.clone(),
        )?;
        let task = tokio::spawn(serving);
        Ok(Self {
            cookie,
            kept,
            served,
            counted,
            cancel,
            emptied: AtomicBool::new(false),
            wary,
            task,
            _descriptors: descriptors,
        })
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
    pub fn show(&self, served: IdentityState) {
        self.served.send_replace(served);
    }

    /// Lets no client in any more, and ends those that are in, as soon as the service has its turn.
    pub fn finish(&self) {
        self.cancel.cancel();
    }

    /// Ends the socket in every process that has a copy of the listener. No client connects to it ever again;
    /// those in its queue see the end now, those that were accepted as soon as the service has stopped. Does
    /// not wait for that.
    pub fn cut(&self) {
        self.finish();
        self.emptied.store(self.empty(), Ordering::Relaxed);
    }

    /// shutdown(2) of a listener lets no client in any more and leaves those in the queue where they are,
    /// until the last copy is closed: the mounter's, which may be standing still. So they are taken out. (The
    /// descriptor does not block.) Whether the kernel said that none is left; not where, say, there was no
    /// descriptor to take a client out with.
    fn empty(&self) -> bool {
        let kept = &self.kept;
        let mut apart = Vec::new();
        let emptied = loop {
            let taken = shutdown(kept, Shutdown::Both).and_then(|()| accept_with(kept, SocketFlags::CLOEXEC));
            match taken {
                Ok(client) if self.wary => apart.extend(unread(client)),
                Ok(_) => {}
                Err(why) => break matches!(why, Errno::INVAL | Errno::AGAIN),
            }
        };
        if !apart.is_empty() {
            close_apart(apart);
        }
        emptied
    }

    /// Closes the listener and every accepted connection, and returns when that is done. What waits in the
    /// queue waits for the next server of the socket, unless it was [`cut`](Self::cut).
    pub async fn stop(mut self) {
        self.finish();
        if tokio::time::timeout(CLOSE, &mut self.task).await.is_err() {
            tracing::warn!("the volume's connections did not close by themselves; ended");
            self.task.abort();
            let _ = (&mut self.task).await;
        }
        // Without a descriptor to spare no client could be taken out; now its connections' are free.
        if !self.emptied.load(Ordering::Relaxed) && ended(&self.kept) {
            self.empty();
        }
    }
}

impl Drop for VolumeServer {
    fn drop(&mut self) {
        self.finish();
    }
}

#[cfg(test)]
mod tests;
