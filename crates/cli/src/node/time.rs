//! Times for people and for programs.

use std::time::{Duration, SystemTime};

use ::time::OffsetDateTime;
use ::time::format_description::well_known::Rfc3339;

/// Unix seconds as RFC 3339; none for 0, which says that there is no such time.
pub fn rfc3339(seconds: i64) -> Option<String> {
    let time = OffsetDateTime::from_unix_timestamp(seconds).ok()?;
    time.format(&Rfc3339).ok().filter(|_| seconds != 0)
}

/// Unix seconds of a time; 0 before 1970.
pub fn unix(time: SystemTime) -> i64 {
    let seconds = time.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |d| d.as_secs());
    i64::try_from(seconds).unwrap_or(i64::MAX)
}

/// `in 29m`, `3h ago`, `now`.
pub fn relative(seconds: i64, now: i64) -> String {
    let distance = Duration::from_secs(seconds.abs_diff(now));
    match seconds.cmp(&now) {
        std::cmp::Ordering::Less => format!("{} ago", span(distance)),
        std::cmp::Ordering::Equal => "now".to_owned(),
        std::cmp::Ordering::Greater => format!("in {}", span(distance)),
    }
}

/// Two units at most: `30y`, `4d2h`, `3h`, `12m5s`, `7s`.
pub fn span(duration: Duration) -> String {
    let seconds = duration.as_secs();
    let years = seconds / (365 * 86_400);
    if years >= 10 {
        return format!("{years}y");
    }
    let units =
        [(seconds / 86_400, "d"), (seconds / 3_600 % 24, "h"), (seconds / 60 % 60, "m"), (seconds % 60, "s")];
    let first = units.iter().position(|(n, _)| *n > 0).unwrap_or(3);
    let shown = units.iter().skip(first).take(2).filter(|(n, _)| *n > 0 || first == 3);
    shown.map(|(n, unit)| format!("{n}{unit}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn distances_have_two_units_at_most() {
        for (seconds, text) in [
            (0, "0s"),
            (59, "59s"),
            (60, "1m"),
            (65, "1m5s"),
            (3_600, "1h"),
            (90_000, "1d1h"),
            (86_460, "1d"),
            (400_000_000, "12y"),
        ] {
            assert_eq!(span(Duration::from_secs(seconds)), text, "{seconds}");
        }
        assert_eq!(
            (relative(10, 10), relative(70, 10), relative(0, 10)),
            ("now".into(), "in 1m".into(), "10s ago".into())
        );
        assert_eq!(rfc3339(0), None);
        assert_eq!(rfc3339(1_800_000_000).unwrap(), "2027-01-15T08:00:00Z");
    }
}
