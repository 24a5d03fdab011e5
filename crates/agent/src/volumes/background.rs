//! The thread on which keys are made and certificates asked for.
//!
//! An SVID costs more processor time than the whole publish before it, and the kubelet waits for publishes
//! alone: with its low priority this thread yields to everything else that the agent does, and takes what is
//! left. What makes an identity holds nothing here that others wait for: no lock, no record, no log line.

use std::io;
use std::thread;

use tokio::runtime::{Builder, Handle};
use tokio::sync::oneshot;

/// Added to the agent's own niceness. A ninth of the share of a thread at the default: on a node without a
/// free processor it still goes on.
const NICER: i32 = 10;

/// The thread; it ends with this.
///
/// Nothing is shared with it but tokio's own queues. `_stop` is never sent to: its drop ends `block_on`, and
/// the runtime, which that thread owns, drops whatever still waits there; a task that awaits it (`run`) is
/// told by the join handle. What is started after that is dropped by tokio at once, which looks the same.
/// Work that was begun for a volume that is gone ends as any other: what it comes to is compared with the
/// slot by the task that asked for it.
pub(super) struct BackgroundRuntime {
    runtime: Handle,
    _stop: oneshot::Sender<()>,
}

impl BackgroundRuntime {
    /// Starts it.
    pub fn start() -> io::Result<Self> {
        let runtime = Builder::new_current_thread().enable_all().build()?;
        let handle = runtime.handle().clone();
        let (stop, stopped) = oneshot::channel();
        thread::Builder::new().name("identities".to_owned()).spawn(move || {
            // On Linux this is the calling thread's alone. Where it is refused, the work goes on as important
            // as any.
            if let Err(e) = rustix::process::nice(NICER) {
                tracing::debug!(error = %e, "the priority of making identities could not be lowered");
            }
            // Either it is told to stop, or the sender is gone.
            let _ = runtime.block_on(stopped);
        })?;
        Ok(Self { runtime: handle, _stop: stop })
    }

    /// Starts something there; it ends with this at the latest.
    pub fn start_work(&self, work: impl Future<Output = ()> + Send + 'static) {
        drop(self.runtime.spawn(work));
    }

    /// What this comes to, worked out there; none where the agent is stopping.
    pub async fn run<T: Send + 'static>(&self, work: impl Future<Output = T> + Send + 'static) -> Option<T> {
        self.runtime.spawn(work).await.ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn work_is_done_on_a_thread_of_its_own_and_of_lower_priority() {
        let background = BackgroundRuntime::start().unwrap();
        let mine = (thread::current().id(), rustix::process::getpriority_process(None).unwrap());
        let its = async { (thread::current().id(), rustix::process::getpriority_process(None).unwrap()) };
        let its = background.run(its).await.unwrap();
        assert_ne!(mine.0, its.0);
        assert_eq!(its.1, (mine.1 + NICER).min(19));
        // And no other's has changed.
        assert_eq!(rustix::process::getpriority_process(None).unwrap(), mine.1);
    }

    #[tokio::test]
    async fn what_waits_there_ends_with_it() {
        let background = BackgroundRuntime::start().unwrap();
        let (sender, receiver) = oneshot::channel::<()>();
        let work = tokio::spawn(background.runtime.spawn(async move {
            let _sender = sender;
            std::future::pending::<()>().await;
        }));
        drop(background);
        assert!(receiver.await.is_err());
        assert!(work.await.unwrap().is_err());
    }
}
