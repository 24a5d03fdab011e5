//! Whether the authority answers, as the attempts to get SVIDs tell: for the log, readiness, metrics and
//! `seamount node`.
//!
//! No request is made only to know. An authority that is down takes nothing back: what was issued goes on
//! until it expires.

use std::sync::{Arc, PoisonError};
use std::time::SystemTime;

use seamount_telemetry::metrics::Outcome;
use tokio::sync::watch;

use seamount_sync::{Mutex, MutexGuard};

mod metrics;

pub use metrics::Metrics;

/// From and until.
pub type Validity = (SystemTime, SystemTime);

/// What is known of it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Seen {
    /// Since when it has not answered.
    pub down_since: Option<SystemTime>,
    /// When it signed last.
    pub last_success: Option<SystemTime>,
    /// When it did not answer last, and why.
    pub last_failure: Option<(SystemTime, Arc<str>)>,
    /// Validity of the certificate that signed the last SVID, if it is not the root.
    pub issuer: Option<Validity>,
}

/// Whether the authority answers.
///
/// `down` is sent while `seen` is locked, so that the last to change `down_since` is also the last to tell:
/// volumes are made side by side, and one that fails beside one that succeeds could else leave "does not
/// answer" standing for good. Nothing is locked or awaited inside; receivers take the watch's own lock alone.
pub struct AuthorityHealth {
    seen: Mutex<Seen>,
    down: watch::Sender<Option<Arc<str>>>,
    metrics: Arc<Metrics>,
}

impl AuthorityHealth {
    /// Nothing known yet, which counts as up.
    pub fn new(metrics: Arc<Metrics>) -> Self {
        let (down, _) = watch::channel(None);
        Self { seen: Mutex::default(), down, metrics }
    }

    /// Why it does not answer; none while it does.
    pub fn down(&self) -> watch::Receiver<Option<Arc<str>>> {
        self.down.subscribe()
    }

    /// Whether it does not answer.
    pub fn is_down(&self) -> bool {
        self.down.borrow().is_some()
    }

    /// What is known.
    pub fn seen(&self) -> Seen {
        self.lock().clone()
    }

    /// It signed.
    pub fn answered(&self, now: SystemTime, issuer: Option<Validity>) {
        self.metrics.request(Outcome::success, now);
        {
            let mut seen = self.lock();
            (seen.last_success, seen.issuer) = (Some(now), issuer);
        }
        self.up(now);
    }

    /// It answered that this workload gets nothing.
    pub fn refused(&self, now: SystemTime) {
        self.metrics.request(Outcome::refused, now);
        self.up(now);
    }

    /// It answered something that cannot be used.
    pub fn misbehaved(&self, now: SystemTime) {
        self.metrics.request(Outcome::error, now);
        self.up(now);
    }

    fn up(&self, now: SystemTime) {
        let mut seen = self.lock();
        if let Some(since) = seen.down_since.take() {
            let down_for_s = now.duration_since(since).unwrap_or_default().as_secs();
            tracing::info!(down_for_s, "the authority answers again");
            self.down.send_replace(None);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// It did not answer. Told once, however many volumes wait for it.
    pub fn failed(&self, now: SystemTime, why: &str) {
        self.metrics.request(Outcome::error, now);
        let why: Arc<str> = why.into();
        let mut seen = self.lock();
        seen.last_failure = Some((now, Arc::clone(&why)));
        if seen.down_since.is_none() {
            seen.down_since = Some(now);
            tracing::error!(reason = %why, "the authority does not answer; what was issued goes on until it expires");
            self.down.send_replace(Some(why));
        }
    }

    /// Nothing asks it any more, so nothing would learn that it is back.
    pub fn forget(&self) {
        let mut seen = self.lock();
        if seen.down_since.take().is_some() {
            tracing::info!("no volume waits for the authority any more; whether it answers is not known");
            self.down.send_replace(None);
        }
    }
}

#[cfg(test)]
mod tests {
    use seamount_telemetry::metrics::Area as _;

    use super::*;

    #[test]
    fn down_is_told_once_and_ends_with_an_answer() {
        let metrics = Arc::new(Metrics::default());
        let authority_health = AuthorityHealth::new(Arc::clone(&metrics));
        let mut down = authority_health.down();
        let now = SystemTime::now();
        authority_health.refused(now);
        authority_health.misbehaved(now);
        assert!(!authority_health.is_down());
        for why in ["no route", "timeout"] {
            authority_health.failed(now, why);
        }
        assert_eq!(down.borrow_and_update().as_deref(), Some("no route"));
        assert_eq!(authority_health.seen().last_failure.unwrap().1.as_ref(), "timeout");
        authority_health.answered(now, None);
        assert!(down.has_changed().unwrap() && !authority_health.is_down());
        assert_eq!(
            (authority_health.seen().down_since, authority_health.seen().last_success),
            (None, Some(now))
        );
        authority_health.failed(now, "again");
        authority_health.forget();
        assert!(!authority_health.is_down());
        let text = metrics.encode().unwrap();
        for line in ["success\"} 1", "refused\"} 1", "error\"} 4"] {
            assert!(text.contains(&format!("authority_requests_total{{result=\"{line}")), "{text}");
        }
    }

    /// A model (module `model`). Found by it: `down` sent after `seen` was given back; `up` that looks at
    /// `down_since` and takes it under two locks.
    #[test]
    fn what_is_told_is_what_is_known_however_answers_and_failures_meet() {
        seamount_sync::model::explore(500, || async {
            let authority_health = Arc::new(AuthorityHealth::new(Arc::new(Metrics::default())));
            let now = SystemTime::now();
            let tasks: Vec<_> = (0..3)
                .map(|_| {
                    let authority_health = Arc::clone(&authority_health);
                    seamount_sync::model::task(async move {
                        for _ in 0..3 {
                            match seamount_sync::model::any(4) {
                                0 => authority_health.refused(now),
                                1 => authority_health.answered(now, None),
                                2 => authority_health.forget(),
                                _ => authority_health.failed(now, "timeout"),
                            }
                        }
                    })
                })
                .collect();
            for task in tasks {
                task.await.unwrap();
            }
            assert_eq!(authority_health.is_down(), authority_health.seen().down_since.is_some());
        });
    }
}
