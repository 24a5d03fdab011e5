//! How long a volume did not answer, and what happened meanwhile.

use std::fmt::Write as _;
use std::path::Path;
use std::time::{Duration, Instant, SystemTime};

use crate::tally::Span;

/// A moment on both clocks: one to measure with, one to find it in the logs.
#[derive(Debug, Clone, Copy)]
pub struct Moment {
    /// Of the monotonic clock.
    pub instant: Instant,
    /// Of the wall clock.
    pub wall: SystemTime,
}

impl Moment {
    /// This one.
    pub fn now() -> Self {
        Self { instant: Instant::now(), wall: SystemTime::now() }
    }
}

/// From a blow to the answer of a new FetchX509SVID.
#[derive(Debug, Clone)]
pub struct Gap {
    /// After what.
    pub span: Span,
    /// When the blow fell.
    pub since: Moment,
    /// How long until the slowest of the volumes that were asked had answered.
    pub took: Duration,
    /// Further blows before that.
    pub further: usize,
    /// The slowest volume's pod.
    pub pod: String,
}

/// What the agents' log says that concerns a gap: their starts, connections and returns, and the volume
/// itself.
pub fn anatomy(gap: &Gap, agent_log: &Path) -> String {
    let pod = gap.pod.get(..8).unwrap_or_default();
    let mut text =
        format!("{:.0} ms, {:?}, {} further blows, pod {pod}:\n", millis(gap.took), gap.span, gap.further);
    let log = std::fs::read(agent_log).unwrap_or_default();
    let marks = ["agent starts", "connect", "volumes restored", "health and metrics", &gap.pod];
    for line in String::from_utf8_lossy(&log).lines() {
        let Some((time, rest)) = line.split_once(' ') else { continue };
        let Some(at) = seconds(time) else { continue };
        let begun = gap.since.wall.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs_f64();
        let after = at - begun;
        if (-0.002..=gap.took.as_secs_f64()).contains(&after) && marks.iter().any(|mark| rest.contains(mark))
        {
            let rest: String = rest.trim().chars().take(150).collect();
            let _ = writeln!(text, "    {:>8.1} ms  {rest}", after * 1e3);
        }
    }
    text
}

fn millis(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}

/// Seconds since the epoch of the agent's time stamps, `2026-11-21T14:56:26.749075Z`.
fn seconds(stamp: &str) -> Option<f64> {
    let (date, time) = stamp.strip_suffix('Z')?.split_once('T')?;
    let numbers = |text: &str, by: char| -> Option<[f64; 3]> {
        text.split(by).map(|n| n.parse().ok()).collect::<Option<Vec<f64>>>()?.try_into().ok()
    };
    let ([year, month, day], [hour, minute, second]) = (numbers(date, '-')?, numbers(time, ':')?);
    // Days from civil (H. Hinnant, chrono-compatible low-level date algorithms), with March as the first
    // month.
    let year = if month <= 2.0 { year - 1.0 } else { year };
    let shifted = (month + 9.0) % 12.0;
    let of_year = ((153.0 * shifted + 2.0) / 5.0).floor() + day - 1.0;
    let era = (year / 400.0).floor();
    let of_era = year - era * 400.0;
    let days = era * 146_097.0 + of_era * 365.0 + (of_era / 4.0).floor() - (of_era / 100.0).floor() + of_year
        - 719_468.0;
    Some(days * 86_400.0 + hour * 3600.0 + minute * 60.0 + second)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_stamps_are_read() {
        assert_eq!(seconds("1970-01-01T00:00:00.000000Z"), Some(0.0));
        assert_eq!(seconds("2026-11-21T14:56:26.500000Z"), Some(1_795_272_986.5));
        assert_eq!(seconds("2000-02-29T00:00:01.0Z"), Some(951_782_401.0));
        for bad in ["", "level=info", "2026-11-21", "2026-11-21T14:56Z"] {
            assert_eq!(seconds(bad), None, "{bad}");
        }
    }
}
