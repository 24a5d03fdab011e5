//! The authority, as the attempts to get SVIDs show it.

use std::time::SystemTime;

use seamount_telemetry::metrics::{
    Area, Gauge, Names, Outcome, Outcomes, ResultLabel, Seconds, outcomes, unix,
};

/// The authority, as the attempts to get SVIDs show it.
pub struct Metrics {
    up: Gauge,
    requests: Outcomes,
    success: Seconds,
}

impl Default for Metrics {
    fn default() -> Self {
        Self { up: Gauge::default(), requests: outcomes(), success: Seconds::default() }
    }
}

impl Area for Metrics {
    fn register(&self, names: &mut Names<'_>) {
        names.add(
            "authority_up",
            "1 while the authority answers, or none is needed (source directory); 0 while there is none or it does not",
            &self.up,
        );
        names.add("authority_requests", "Requests to the authority for an SVID", &self.requests);
        names.add(
            "authority_last_success_timestamp_seconds",
            "When the authority signed last, in Unix time; 0: not since the agent started",
            &self.success,
        );
    }
}

impl Metrics {
    /// Whether identities can be had.
    pub fn up(&self, up: bool) {
        self.up.set(i64::from(up));
    }

    /// The authority was asked for an SVID.
    pub fn request(&self, result: Outcome, now: SystemTime) {
        self.requests.get_or_create(&ResultLabel { result }).inc();
        if result == Outcome::success {
            self.success.set(unix(now));
        }
    }
}
