//! What a test's own thread logs.
//!
//! tracing keeps for each place that logs whether a subscriber wants it, and asks again only when a
//! subscriber is made. While there is one subscriber, it asks the one of the thread that comes to a new place
//! first: with none on that thread, the place is off for all threads, and another test's lines are lost. So
//! the process gets a subscriber for all threads, which wants what tests want and keeps nothing.

use std::sync::Once;

use tracing::subscriber::{DefaultGuard, set_default, set_global_default};
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::registry;

use super::Recent;

/// The warnings and errors of this thread while this lives.
pub struct Captured {
    recent: Recent,
    _default: DefaultGuard,
}

impl Captured {
    /// From now on.
    pub fn start() -> Self {
        every_thread();
        let recent = Recent::default();
        let _default = set_default(registry().with(recent.layer()));
        Self { recent, _default }
    }

    /// The lines, the latest first.
    pub fn lines(&self) -> Vec<super::Line> {
        self.recent.lines()
    }
}

/// No thread switches off what another one captures. Tests whose code logs begin with this.
pub fn every_thread() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        // Spans as well, as in `Recent`: they carry the pod's name. Libraries stay off: the models' scheduler
        // logs each step.
        let ours = Targets::new().with_target("seamount", LevelFilter::INFO);
        #[allow(clippy::expect_used, reason = "this is for tests")]
        set_global_default(registry().with(ours)).expect("the tests' only subscriber for all threads");
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_that_captures_nothing_takes_nothing_from_one_that_does() {
        let say = || tracing::warn!("said");
        let captured = Captured::start();
        // It comes first to the place that logs, and decides for all.
        std::thread::spawn(say).join().unwrap();
        assert_eq!(captured.lines(), []);
        say();
        assert_eq!(captured.lines().len(), 1, "{:?}", captured.lines());
    }
}
