//! Whether the kubelet waits for something now.
//!
//! A node that has just come up gets hundreds of publishes at once. What is done behind their answers (an
//! identity costs more than the publish) lets them pass first, but not for long: a pod's first stream waits
//! for it.

use std::pin::pin;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::{Instant, sleep, timeout_at};

use seamount_sync::AtomicUsize;

/// How long no call may have come for the calls to be over: calls one after the other leave less
/// between two calls. Work that begins in such a gap is in the way of the next call, on a processor that it
/// has just warmed for itself.
const QUIET: Duration = Duration::from_millis(2);

/// Counts the calls under way.
#[derive(Debug, Default)]
pub(super) struct InflightCalls {
    calls: AtomicUsize,
    /// Calls that have begun since the start.
    begun: AtomicUsize,
    over: Notify,
}

/// A call under way, for as long as it lives.
pub(super) struct Call<'a>(&'a InflightCalls);

impl InflightCalls {
    /// A call begins.
    pub fn call(&self) -> Call<'_> {
        // In this order: what finds this one among those that have begun finds it under way as well.
        self.calls.fetch_add(1, Ordering::SeqCst);
        self.begun.fetch_add(1, Ordering::SeqCst);
        Call(self)
    }

    /// Waits until there has been no call for [`QUIET`], and not beyond this moment.
    pub async fn over(&self, limit: Instant) {
        let quiet = async {
            loop {
                let begun = self.begun.load(Ordering::SeqCst);
                self.none().await;
                sleep(QUIET).await;
                // A call that began before the first look and still goes on was waited for; one that began
                // later counts here.
                if self.begun.load(Ordering::SeqCst) == begun {
                    return;
                }
            }
        };
        // Long enough is as good.
        let _ = timeout_at(limit, quiet).await;
    }

    /// Waits until no call is under way.
    async fn none(&self) {
        // Enrolled before the look: calls that end in between is not missed.
        let mut over = pin!(self.over.notified());
        over.as_mut().enable();
        if self.calls.load(Ordering::SeqCst) > 0 {
            over.await;
        }
    }
}

impl Drop for Call<'_> {
    fn drop(&mut self) {
        if self.0.calls.fetch_sub(1, Ordering::SeqCst) == 1 {
            self.0.over.notify_waiters();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    fn long() -> Instant {
        Instant::now() + Duration::from_secs(3600)
    }

    #[tokio::test(start_paused = true)]
    async fn who_waits_goes_on_when_the_last_call_has_ended() {
        let inflight = Arc::new(InflightCalls::default());
        inflight.over(long()).await;
        let (first, second) = (inflight.call(), inflight.call());
        let waiting = tokio::spawn({
            let inflight = Arc::clone(&inflight);
            async move { inflight.over(long()).await }
        });
        drop(first);
        sleep(Duration::from_secs(60)).await;
        assert!(!waiting.is_finished());
        let ended = Instant::now();
        drop(second);
        waiting.await.unwrap();
        assert!(ended.elapsed() >= QUIET && ended.elapsed() < Duration::from_secs(1));
    }

    #[tokio::test(start_paused = true)]
    async fn calls_one_after_the_other_are_one_rush() {
        let inflight = Arc::new(InflightCalls::default());
        let waiting = tokio::spawn({
            let inflight = Arc::clone(&inflight);
            async move { inflight.over(long()).await }
        });
        for _ in 0..100 {
            drop(inflight.call());
            sleep(QUIET / 2).await;
        }
        assert!(!waiting.is_finished());
        waiting.await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn a_rush_without_end_is_not_waited_for() {
        let inflight = InflightCalls::default();
        let _call = inflight.call();
        let limit = Instant::now() + Duration::from_millis(100);
        inflight.over(limit).await;
        assert!(Instant::now() >= limit);
        // What has waited long enough elsewhere does not wait here.
        inflight.over(limit).await;
        assert!(Instant::now() < limit + QUIET);
    }

    /// A model (module `model`): what waits goes on, by the end of the calls and not by its limit, however
    /// calls come and go. A waiter enrolled after the look is not found by it: there is no point between the
    /// two.
    #[test]
    fn the_end_of_a_rush_is_missed_by_nobody() {
        seamount_sync::model::explore(1000, || async {
            let inflight = Arc::new(InflightCalls::default());
            let calls: Vec<_> = (0..2)
                .map(|_| {
                    let inflight = Arc::clone(&inflight);
                    seamount_sync::model::task(async move {
                        for _ in 0..2 {
                            let _call = inflight.call();
                            seamount_sync::model::pause(2).await;
                        }
                    })
                })
                .collect();
            let waiting: Vec<_> = (0..2)
                .map(|_| {
                    let inflight = Arc::clone(&inflight);
                    seamount_sync::model::task(async move { inflight.over(long()).await })
                })
                .collect();
            for task in calls.into_iter().chain(waiting) {
                task.await.unwrap();
            }
            assert_eq!(inflight.calls.load(Ordering::SeqCst), 0);
        });
    }
}
