//! The last warnings and errors, for whoever asks the agent what is wrong.

use std::collections::VecDeque;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use tracing::{Level, Metadata, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::filter::{LevelFilter, filter_fn};
use tracing_subscriber::fmt::{self, MakeWriter};
use tracing_subscriber::registry::LookupSpan;

/// How many are kept, and how much of each, in bytes.
const LINES: usize = 16;
const LENGTH: usize = 600;

/// A line of the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Line {
    /// When it was written.
    pub time: SystemTime,
    /// Whether it is an error; else it is a warning.
    pub error: bool,
    /// The message with its fields, as in the log.
    pub text: String,
}

/// The last lines; cheap to clone.
///
/// The lock is the last that a thread takes: the formatter hands over a line that is finished, whatever the
/// thread that logs holds, and nothing is logged under it.
#[derive(Debug, Clone, Default)]
pub struct Recent(Arc<Mutex<VecDeque<Line>>>);

impl Recent {
    /// The lines, the latest first.
    pub fn lines(&self) -> Vec<Line> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).iter().rev().cloned().collect()
    }

    /// What fills it.
    pub(crate) fn layer<S>(&self) -> impl Layer<S> + use<S>
    where
        S: Subscriber + for<'a> LookupSpan<'a>,
    {
        // Spans of ours pass, because they carry the pod's name. Nothing may pass that is beyond the hint: a
        // debug build panics on it.
        let wanted = filter_fn(|metadata| {
            *metadata.level() <= if metadata.is_span() { Level::INFO } else { Level::WARN }
        })
        .with_max_level_hint(LevelFilter::INFO);
        let lines = fmt::layer().with_ansi(false).with_target(false).with_level(false).without_time();
        lines.with_writer(self.clone()).with_filter(wanted)
    }

    fn push(&self, error: bool, bytes: &[u8]) {
        let mut text = String::from_utf8_lossy(bytes).trim().to_owned();
        text.truncate(text.floor_char_boundary(LENGTH));
        let mut lines = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if lines.len() == LINES {
            lines.pop_front();
        }
        lines.push_back(Line { time: SystemTime::now(), error, text });
    }
}

/// Takes one line; the formatter writes it in one call.
pub struct Writer {
    to: Recent,
    error: bool,
}

impl io::Write for Writer {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.to.push(self.error, line);
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for Recent {
    type Writer = Writer;

    fn make_writer(&'a self) -> Writer {
        Writer { to: self.clone(), error: false }
    }

    fn make_writer_for(&'a self, metadata: &Metadata<'_>) -> Writer {
        Writer { to: self.clone(), error: *metadata.level() == Level::ERROR }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tracing_subscriber::Registry;
    use tracing_subscriber::layer::SubscriberExt as _;

    #[test]
    fn the_last_warnings_and_errors_are_kept_with_their_pod() {
        let recent = Recent::default();
        let subscriber = Registry::default().with(recent.layer());
        tracing::subscriber::with_default(subscriber, || {
            tracing::info!("not this");
            let span = tracing::info_span!("volume", pod = "web-1");
            span.in_scope(|| tracing::warn!(error = "no root", "no new identity"));
            tracing::error!("{}", "x".repeat(2 * LENGTH));
        });
        let lines = recent.lines();
        assert_eq!(lines.len(), 2, "{lines:?}");
        assert!(lines[0].error && lines[0].text.len() == LENGTH);
        assert!(!lines[1].error);
        for part in ["no new identity", "no root", "web-1"] {
            assert!(lines[1].text.contains(part), "{lines:?}");
        }
        tracing::subscriber::with_default(Registry::default().with(recent.layer()), || {
            (0..2 * LINES).for_each(|n| tracing::warn!(n, "again"));
        });
        assert_eq!(recent.lines().len(), LINES);
    }

    #[test]
    fn spans_that_only_another_layer_wants_are_left_to_it() {
        // As with `log.level: debug`, when h2 opens its own spans.
        let recent = Recent::default();
        let all = fmt::layer().with_writer(io::sink).with_filter(LevelFilter::TRACE);
        tracing::subscriber::with_default(Registry::default().with(all).with(recent.layer()), || {
            tracing::debug_span!("theirs").in_scope(|| tracing::debug!("nor this"));
        });
        assert_eq!(recent.lines(), []);
    }
}
