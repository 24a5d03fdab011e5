//! Numbers that a seed repeats.

use std::time::Duration;

/// SplitMix64 (Steele, Lea, Flood: Fast splittable pseudorandom number generators, 2014). Not for keys.
#[derive(Debug, Clone)]
pub struct Random(u64);

impl Random {
    /// The same seed gives the same numbers.
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The next number.
    pub fn number(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `end`; 0 where that is 0.
    pub fn below(&mut self, end: u64) -> u64 {
        self.number().checked_rem(end).unwrap_or_default()
    }

    /// Whether something happens that happens once in `n` times.
    pub fn once_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }

    /// Milliseconds from `low` to below `high`.
    pub fn millis(&mut self, low: u64, high: u64) -> Duration {
        Duration::from_millis(low + self.below(high.saturating_sub(low)))
    }

    /// From `low` to `high` milliseconds, as often below a middle value as above it where the middle is that
    /// of the logarithms: mostly short, sometimes long.
    pub fn spread(&mut self, low: u64, high: u64) -> Duration {
        const STEPS: u64 = 1 << 20;
        #[allow(clippy::cast_precision_loss, reason = "numbers that f64 holds")]
        let (low, high, share) = (low as f64, high as f64, self.below(STEPS + 1) as f64 / STEPS as f64);
        Duration::from_secs_f64(low * (high / low).powf(share) / 1e3)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_repeats_its_numbers() {
        let numbers = |seed| {
            let mut random = Random::new(seed);
            (0..100).map(|_| random.below(10)).collect::<Vec<_>>()
        };
        assert_eq!(numbers(7), numbers(7));
        assert_ne!(numbers(7), numbers(8));
        assert!(numbers(7).iter().all(|n| *n < 10));
        assert_eq!(Random::new(1).below(0), 0);
        let mut random = Random::new(1);
        let spread: Vec<_> = (0..1000).map(|_| random.spread(50, 12_000).as_millis()).collect();
        assert!(spread.iter().all(|ms| (50..=12_000).contains(ms)));
        let short = spread.iter().filter(|ms| **ms < 775).count();
        assert!((400..600).contains(&short), "{short}");
    }
}
