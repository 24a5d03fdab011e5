//! Sizes of memory as Kubernetes people write them: `512Mi`, `1Gi`, `268435456`.

use std::fmt;

/// A text is no size.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a size: a whole number, alone (bytes) or with Ki, Mi or Gi")]
pub struct SizeError;

/// Bytes of each unit, from the largest.
const UNITS: [(&str, u64); 3] = [("Gi", 1 << 30), ("Mi", 1 << 20), ("Ki", 1 << 10)];

/// Reads a size in bytes.
pub fn parse_size(text: &str) -> Result<u64, SizeError> {
    let unit = UNITS.iter().find_map(|(name, factor)| Some((text.strip_suffix(name)?, *factor)));
    let (number, factor) = unit.unwrap_or((text, 1));
    if number.is_empty() || !number.bytes().all(|b| b.is_ascii_digit()) {
        return Err(SizeError);
    }
    number.parse::<u64>().ok().and_then(|n| n.checked_mul(factor)).ok_or(SizeError)
}

/// Shows a size so that [`parse_size`] reads it.
#[derive(Debug, Clone, Copy)]
pub struct Size(pub u64);

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match UNITS.iter().find(|(_, factor)| self.0 > 0 && self.0.is_multiple_of(*factor)) {
            Some((name, factor)) => write!(f, "{}{name}", self.0.checked_div(*factor).unwrap_or(0)),
            None => write!(f, "{}", self.0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn reads_the_usual_forms() {
        let sizes = [("512Mi", 512 << 20), ("1Gi", 1 << 30), ("4Ki", 4096), ("77", 77), ("0", 0)];
        for (text, bytes) in sizes {
            assert_eq!(parse_size(text), Ok(bytes), "{text}");
        }
        for text in ["", "Mi", "-1", "1.5Gi", "1 Mi", "1M", "1mi", "99999999999999999999", "99999999999Gi"] {
            assert_eq!(parse_size(text), Err(SizeError), "{text:?}");
        }
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(bytes: u64) {
            prop_assert_eq!(parse_size(&Size(bytes).to_string()), Ok(bytes));
        }

        #[test]
        fn no_text_panics(text in ".*") {
            let _ = parse_size(&text);
        }
    }
}
