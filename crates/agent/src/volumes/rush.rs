//! Whether the kubelet waits for something now.
//!
//! A node that has just come up gets hundreds of publishes at once. What is done behind their answers (an identity
//! costs more than the publish) lets them pass first, but not for long: a pod's first stream waits for it.

use std::pin::pin;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::sync::Notify;

use crate::sync::AtomicUsize;

/// Counts the calls under way.
#[derive(Debug, Default)]
pub(super) struct Rush {
    calls: AtomicUsize,
    over: Notify,
}

/// A call under way, for as long as it lives.
pub(super) struct Call<'a>(&'a Rush);

impl Rush {
    /// A call begins.
    pub fn call(&self) -> Call<'_> {
        self.calls.fetch_add(1, Ordering::SeqCst);
        Call(self)
    }

    /// Waits until no call is under way, at most this long.
    pub async fn over(&self, limit: Duration) {
        // Enrolled before the look: a rush that ends in between is not missed.
        let mut over = pin!(self.over.notified());
        over.as_mut().enable();
        if self.calls.load(Ordering::SeqCst) > 0 {
            // Long enough is as good.
            let _ = tokio::time::timeout(limit, over).await;
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

    const LONG: Duration = Duration::from_secs(3600);

    #[tokio::test]
    async fn who_waits_goes_on_when_the_last_call_has_ended() {
        let rush = Arc::new(Rush::default());
        rush.over(LONG).await;
        let (first, second) = (rush.call(), rush.call());
        let waiting = tokio::spawn({
            let rush = Arc::clone(&rush);
            async move { rush.over(LONG).await }
        });
        drop(first);
        // However often it is looked at.
        for _ in 0..100 {
            tokio::task::yield_now().await;
        }
        assert!(!waiting.is_finished());
        drop(second);
        waiting.await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn a_rush_without_end_is_not_waited_for() {
        let rush = Rush::default();
        let _call = rush.call();
        let begun = tokio::time::Instant::now();
        rush.over(Duration::from_millis(100)).await;
        assert!(begun.elapsed() >= Duration::from_millis(100));
    }

    /// A model (module `model`): who waits goes on, by the end of the rush and not by its limit, however calls come and
    /// go. A waiter enrolled after the look is not found by it: there is no point between the two.
    #[test]
    fn the_end_of_a_rush_is_missed_by_nobody() {
        crate::model::explore(1000, || async {
            let rush = Arc::new(Rush::default());
            let calls: Vec<_> = (0..2)
                .map(|_| {
                    let rush = Arc::clone(&rush);
                    crate::model::task(async move {
                        for _ in 0..2 {
                            let _call = rush.call();
                            crate::model::pause(2).await;
                        }
                    })
                })
                .collect();
            let waiting: Vec<_> = (0..2)
                .map(|_| {
                    let rush = Arc::clone(&rush);
                    crate::model::task(async move { rush.over(LONG).await })
                })
                .collect();
            for task in calls.into_iter().chain(waiting) {
                task.await.unwrap();
            }
            assert_eq!(rush.calls.load(Ordering::SeqCst), 0);
        });
    }
}
