//! The registry of metrics, and their OpenMetrics text (Prometheus metric naming: base units, `_total`,
//! `_seconds`).
//!
//! Each area of a program counts in a struct of its own beside its code, an [`Area`]. The program makes all
//! of them, hands each to its code, and adds each to one [`Registry`]. There is nothing global, so that tests
//! may have many.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::SystemTime;

use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue};
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::info::Info;
pub use prometheus_client::metrics::{counter::Counter, gauge::Gauge};
use prometheus_client::registry::{Metric, Registry as Inner};

/// What every name begins with.
const PREFIX: &str = "seamount";

/// A gauge of seconds.
pub type Seconds = Gauge<f64, AtomicU64>;

/// How often something ended in which way.
pub type Outcomes = Family<ResultLabel, Counter>;

/// How an operation ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, EncodeLabelValue)]
#[allow(non_camel_case_types, missing_docs, reason = "label values as they are exposed")]
pub enum Outcome {
    success,
    refused,
    error,
}

impl Outcome {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::success, Self::refused, Self::error];
}

/// The label `result`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
#[allow(missing_docs, reason = "the label")]
pub struct ResultLabel {
    pub result: Outcome,
}

/// Counts each outcome from 0, so that the first failure is a change and not a new series.
pub fn outcomes() -> Outcomes {
    let family = Outcomes::default();
    for result in Outcome::ALL {
        let _ = family.get_or_create(&ResultLabel { result });
    }
    family
}

/// What one area of a program counts. May be used from anywhere at any time.
pub trait Area: Send + Sync {
    /// Says the name and the meaning of each metric, and which it is.
    fn register(&self, names: &mut Names<'_>);

    /// Works out what changes with time alone. Before each reading.
    fn refresh(&self) {}

    /// The text of this area alone.
    ///
    /// # Errors
    /// Where a metric cannot be written.
    fn encode(self: &Arc<Self>) -> Result<String, fmt::Error>
    where
        Self: Sized + 'static,
    {
        Registry::default().with(self).encode()
    }
}

/// Takes the names of metrics.
pub struct Names<'a>(&'a mut Inner);

impl Names<'_> {
    /// `name` without the prefix and without what the kind adds (`_total`), `help` without a full stop.
    pub fn add(&mut self, name: &str, help: &str, metric: &(impl Metric + Clone)) {
        self.0.register(name, help, metric.clone());
    }

    /// What does not change: a metric of value 1 with these labels.
    pub fn info<const N: usize>(
        &mut self,
        name: &str,
        help: &str,
        labels: [(&'static str, &'static str); N],
    ) {
        self.0.register(name, help, Info::new(labels.to_vec()));
    }
}

/// All metrics of a program.
pub struct Registry {
    inner: Inner,
    areas: Vec<Arc<dyn Area>>,
}

impl Default for Registry {
    fn default() -> Self {
        Self { inner: Inner::with_prefix(PREFIX), areas: Vec::new() }
    }
}

impl Registry {
    /// Adds an area.
    #[must_use]
    pub fn with<A: Area + 'static>(mut self, area: &Arc<A>) -> Self {
        area.register(&mut Names(&mut self.inner));
        self.areas.push(Arc::clone(area) as Arc<dyn Area>);
        self
    }

    /// The OpenMetrics text.
    ///
    /// # Errors
    /// Where a metric cannot be written.
    pub fn encode(&self) -> Result<String, fmt::Error> {
        self.areas.iter().for_each(|area| area.refresh());
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &self.inner)?;
        Ok(text)
    }
}

impl fmt::Debug for Registry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Registry")
    }
}

/// A time as metrics have it: seconds since the epoch.
pub fn unix(time: SystemTime) -> f64 {
    time.duration_since(SystemTime::UNIX_EPOCH).map_or(0.0, |d| d.as_secs_f64())
}

/// A number as a gauge takes it; what is larger is the largest.
pub fn number(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Default)]
    struct Looks(Counter);

    impl Area for Looks {
        fn register(&self, names: &mut Names<'_>) {
            names.add("looks", "Readings", &self.0);
        }

        fn refresh(&self) {
            self.0.inc();
        }
    }

    struct Ends(Outcomes);

    impl Area for Ends {
        fn register(&self, names: &mut Names<'_>) {
            names.add("ends", "Ends", &self.0);
        }
    }

    #[test]
    fn areas_share_a_text_and_are_refreshed_for_it() {
        let (looks, ends) = (Arc::new(Looks::default()), Arc::new(Ends(outcomes())));
        let registry = Registry::default().with(&looks).with(&ends);
        registry.encode().unwrap();
        let text = registry.encode().unwrap();
        for line in [
            "seamount_looks_total 2",
            "# HELP seamount_ends Ends.",
            r#"seamount_ends_total{result="error"} 0"#,
        ] {
            assert!(text.lines().any(|l| l == line), "{line:?} is not in\n{text}");
        }
        assert!(text.ends_with("# EOF\n"));
        assert!(!ends.encode().unwrap().contains("looks"));
        assert_eq!((number(7), number(u64::MAX)), (7, i64::MAX));
    }
}
