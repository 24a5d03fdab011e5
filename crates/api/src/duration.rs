//! Durations as Kubernetes and Go people write them: `1h30m`, `45s`, `250ms`, `7d`.

use std::time::Duration;

/// Why a text is no duration.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum DurationError {
    /// Not numbers, each with a unit.
    #[error(
        "not a duration: write numbers with a unit d, h, m, s or ms each, from the largest to the smallest, such as 1h30m"
    )]
    Form,
    /// Longer than can be said in milliseconds of 64 bits.
    #[error("longer than can be represented")]
    TooLong,
}

/// Milliseconds of each unit, from the largest.
const UNITS: [(&str, u64); 5] = [("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1_000), ("ms", 1)];

/// Reads `1h30m`, `45s`, `2d`. Each unit at most once, in falling order; whole numbers; no sign, no space.
pub fn parse_duration(text: &str) -> Result<Duration, DurationError> {
    let mut rest = text;
    let mut sum = 0u64;
    let mut next_unit = 0;
    if text.is_empty() {
        return Err(DurationError::Form);
    }
    while !rest.is_empty() {
        let (number, tail) = split(rest, |b| b.is_ascii_digit());
        let (unit, tail) = split(tail, |b| b.is_ascii_alphabetic());
        let index = UNITS.iter().position(|(name, _)| *name == unit).ok_or(DurationError::Form)?;
        if number.is_empty() || index < next_unit {
            return Err(DurationError::Form);
        }
        next_unit = index + 1;
        let count: u64 = number.parse().map_err(|_| DurationError::TooLong)?;
        let factor = UNITS.get(index).map_or(0, |(_, factor)| *factor);
        sum = count.checked_mul(factor).and_then(|ms| sum.checked_add(ms)).ok_or(DurationError::TooLong)?;
        rest = tail;
    }
    Ok(Duration::from_millis(sum))
}

fn split(text: &str, belongs: fn(u8) -> bool) -> (&str, &str) {
    let end = text.bytes().position(|b| !belongs(b)).unwrap_or(text.len());
    text.split_at_checked(end).unwrap_or((text, ""))
}

/// The shortest text that [`parse_duration`] reads as this; what is below a millisecond is cut.
pub fn format_duration(duration: Duration) -> String {
    let mut rest = u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
    let mut text = String::new();
    for (name, factor) in UNITS {
        let count = rest.checked_div(factor).unwrap_or(0);
        if count > 0 {
            text.push_str(&format!("{count}{name}"));
            rest -= count * factor;
        }
    }
    if text.is_empty() { "0s".to_owned() } else { text }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn reads_the_usual_forms() {
        for (text, seconds) in
            [("1h30m", 5400), ("45s", 45), ("2d", 172_800), ("0s", 0), ("24h", 86_400), ("90m", 5400)]
        {
            assert_eq!(parse_duration(text), Ok(Duration::from_secs(seconds)), "{text}");
        }
        assert_eq!(parse_duration("1s250ms"), Ok(Duration::from_millis(1250)));
    }

    #[test]
    fn refuses_everything_else() {
        for text in ["", "1", "h", "-1h", "1.5h", "1h 30m", "30m1h", "1h1h", "1y", "1H", "1hm", "é", "1ü"] {
            assert_eq!(parse_duration(text), Err(DurationError::Form), "{text:?}");
        }
        for text in ["99999999999999999999s", "18446744073709551615d"] {
            assert_eq!(parse_duration(text), Err(DurationError::TooLong), "{text:?}");
        }
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(ms in 0u64..=u64::MAX) {
            let duration = Duration::from_millis(ms);
            prop_assert_eq!(parse_duration(&format_duration(duration)), Ok(duration));
        }

        #[test]
        fn no_text_panics(text in ".*") {
            let _ = parse_duration(&text);
        }
    }
}
