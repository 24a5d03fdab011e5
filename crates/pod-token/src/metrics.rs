//! The issuer's keys.

use std::time::SystemTime;

use seamount_telemetry::metrics::{Area, Names, Outcome, Outcomes, ResultLabel, Seconds, outcomes, unix};

/// The issuer's keys.
pub struct Metrics {
    refreshes: Outcomes,
    refreshed: Seconds,
}

impl Default for Metrics {
    fn default() -> Self {
        Self { refreshes: outcomes(), refreshed: Seconds::default() }
    }
}

impl Area for Metrics {
    fn register(&self, names: &mut Names<'_>) {
        names.add("token_key_refreshes", "Attempts to read the token issuer's keys", &self.refreshes);
        names.add(
            "token_keys_timestamp_seconds",
            "When the token issuer's keys were last read, in Unix time; 0: never",
            &self.refreshed,
        );
    }
}

impl Metrics {
    /// The issuer's keys were read, or could not be.
    pub(super) fn read(&self, result: Outcome, now: SystemTime) {
        self.refreshes.get_or_create(&ResultLabel { result }).inc();
        if result == Outcome::success {
            self.refreshed.set(unix(now));
        }
    }
}
