//! When an SVID is to be replaced.

use std::time::{Duration, SystemTime};

/// The moment at which to rotate: half of the lifetime, moved by up to ± 10 % of that half, so that the SVIDs
/// of a node that were issued together are not renewed together (as SPIRE's agent does it).
///
/// `jitter` is 0..1 (0: earliest, 0.5: half-life exactly, 1: latest); what is outside is clamped. The result
/// is on the wall clock, which goes on in suspend. A lifetime that is not positive is due at once.
pub fn due(not_before: SystemTime, not_after: SystemTime, jitter: f64) -> SystemTime {
    let lifetime = not_after.duration_since(not_before).unwrap_or(Duration::ZERO);
    let jitter = if jitter.is_nan() { 0.5 } else { jitter.clamp(0.0, 1.0) };
    not_before + lifetime.mul_f64(0.45 + 0.1 * jitter)
}

/// A random jitter for [`due`], 0..1. Without randomness it is 0.5.
pub fn random_jitter() -> f64 {
    let mut bytes = [0; 4];
    match aws_lc_rs::rand::fill(&mut bytes) {
        Ok(()) => f64::from(u32::from_ne_bytes(bytes)) / f64::from(u32::MAX),
        Err(_) => 0.5,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn half_life_with_ten_percent() {
        let start = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000);
        let end = start + Duration::from_secs(1_000);
        let after = |jitter| due(start, end, jitter).duration_since(start).unwrap().as_millis();
        assert_eq!((after(0.0), after(0.5), after(1.0)), (450_000, 500_000, 550_000));
        assert_eq!((after(-3.0), after(7.0), after(f64::NAN)), (450_000, 550_000, 500_000));
    }

    #[test]
    fn nothing_left_is_due_at_once() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(9);
        assert_eq!(due(now, now - Duration::from_secs(5), 0.7), now);
    }

    #[test]
    fn random_jitter_stays_in_range_and_varies() {
        let seen: Vec<f64> = (0..64).map(|_| random_jitter()).collect();
        assert!(seen.iter().all(|j| (0.0..=1.0).contains(j)));
        assert!(seen.windows(2).any(|w| w[0] != w[1]));
    }
}
