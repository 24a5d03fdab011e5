//! When the volumes of one kind have to be looked at.
//!
//! Timers look at the wall clock at least every [`TICK`]: a monotonic clock stops in suspend, and what
//! expires does not.

use std::sync::{Arc, PoisonError};
use std::time::{Duration, SystemTime};

use seamount_identity::rotation::random_jitter;
use seamount_sync::Mutex;
use tokio::sync::Notify;

use super::entry::{Kind, VolumeEntry};

/// How often the wall clock is looked at.
pub const TICK: Duration = Duration::from_secs(1);
/// How often all volumes are looked at although nothing is known to be due: what has no reminder comes
/// late by this much at most. Each tick would cost 500 volumes more than a thousandth of a processor where
/// their memory has gone cold.
pub(super) const ALL: Duration = Duration::from_secs(15);
/// A clock that went back by more than this was set, and what is due by it may lie years ahead.
const SET_BACK: Duration = Duration::from_secs(5);
const FIRST_RETRY: Duration = Duration::from_secs(1);
const LAST_RETRY: Duration = Duration::from_secs(60);

/// The schedule of one kind.
pub(super) struct Schedule<K: Kind> {
    /// Volumes that are due before the next look at all of them.
    pub due: Mutex<Vec<Arc<VolumeEntry<K>>>>,
    pub wake: Notify,
    /// When something is due next, as far as is known; taken after `view` and held for an instant.
    pub soonest: Mutex<SystemTime>,
}

impl<K: Kind> Default for Schedule<K> {
    fn default() -> Self {
        Self { due: Mutex::default(), wake: Notify::new(), soonest: Mutex::new(SystemTime::UNIX_EPOCH) }
    }
}

impl<K: Kind> Schedule<K> {
    /// Has a volume looked at now instead of at the next tick.
    pub fn hurry(&self, entry: &Arc<VolumeEntry<K>>) {
        self.due.lock().unwrap_or_else(PoisonError::into_inner).push(Arc::clone(entry));
        self.wake.notify_one();
    }

    /// What was hurried since the last call.
    pub fn hurried(&self) -> Vec<Arc<VolumeEntry<K>>> {
        std::mem::take(&mut *self.due.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Has all volumes looked at when this moment has come, or with the next tick after it.
    pub fn remind(&self, at: SystemTime) {
        let mut soonest = self.soonest.lock().unwrap_or_else(PoisonError::into_inner);
        *soonest = (*soonest).min(at);
    }

    /// Whether all volumes are to be looked at now. A reminder that comes after this is for another look.
    pub fn is_time(&self, now: SystemTime, always: bool) -> bool {
        let mut soonest = self.soonest.lock().unwrap_or_else(PoisonError::into_inner);
        if *soonest > now && !always {
            return false;
        }
        *soonest = now + ALL;
        true
    }

    /// Reminds of what is next among these.
    pub fn remind_of(&self, entries: &[Arc<VolumeEntry<K>>]) {
        if let Some(next) = entries.iter().filter_map(|entry| entry.view().next()).min() {
            self.remind(next);
        }
    }
}

/// Whether the clock was set back between these two looks at it.
pub(super) fn was_set_back(last: SystemTime, now: SystemTime) -> bool {
    now + SET_BACK < last
}

/// An attempt that breaks off (a panic) must not count as under way for ever.
pub(super) struct UnderWay<'a, K: Kind>(pub &'a Schedule<K>, pub &'a VolumeEntry<K>);

impl<K: Kind> Drop for UnderWay<'_, K> {
    fn drop(&mut self) {
        let Self(schedule, entry) = self;
        let mut view = entry.view();
        view.signing = false;
        view.failures = view.failures.saturating_add(1);
        let due = SystemTime::now() + backoff(view.failures);
        view.due = view.due.map(|_| due);
        view.status.failure =
            Some("the last attempt broke off, which is a fault of the agent: see its log".into());
        drop(view);
        schedule.remind(due);
    }
}

/// 1, 2, 4 … 60 s, each ± 20 % so that volumes do not ask in step.
pub(super) fn backoff(failures: u32) -> Duration {
    let exponent = failures.saturating_sub(1).min(10);
    let pause = (FIRST_RETRY * (1 << exponent)).min(LAST_RETRY);
    pause.mul_f64(0.8 + 0.4 * random_jitter())
}
