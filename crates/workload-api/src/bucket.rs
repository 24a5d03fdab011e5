//! A token bucket: how much work a tenant may cause, at once and in the long run.
//!
//! Kept as one moment, at which everything that was taken is paid for (the generic cell rate algorithm).
//! Nothing has to refill it, and an idle tenant costs nothing. Moments are nanoseconds on a clock of the
//! owner's.

use std::sync::atomic::{AtomicU64, Ordering};

const SECOND: u128 = 1_000_000_000;

/// The bucket. Each taker that overdraws it waits until its own part is paid, so takers go on one after the
/// other and not all at the same moment.
#[derive(Debug)]
pub(crate) struct Bucket {
    /// When what was taken is paid. One number, so its order with other memory does not matter.
    paid: AtomicU64,
    /// What may be unpaid, as time.
    burst: u64,
    /// Units per second.
    rate: u32,
}

impl Bucket {
    /// Full. `rate` is in units per second and at least 1.
    pub(crate) fn new(burst: u32, rate: u32) -> Self {
        let rate = rate.max(1);
        Self { paid: AtomicU64::new(0), burst: time(burst.into(), rate), rate }
    }

    /// Takes this much, whether it is there or not; until when the taker must wait before it goes on.
    pub(crate) fn take(&self, units: u64, now: u64) -> Option<u64> {
        let cost = time(units, self.rate);
        let after = |paid: u64| paid.max(now).saturating_add(cost);
        let before = self.paid.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |paid| Some(after(paid)));
        let open = after(before.unwrap_or_else(|same| same)).saturating_sub(self.burst);
        (open > now).then_some(open)
    }
}

fn time(units: u64, rate: u32) -> u64 {
    let nanos = u128::from(units) * SECOND / u128::from(rate);
    u64::try_from(nanos).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MS: u64 = 1_000_000;

    #[test]
    fn a_burst_is_free_and_the_rest_is_paid_in_time() {
        let bucket = Bucket::new(1000, 100);
        assert_eq!(bucket.take(1000, 0), None);
        assert_eq!(bucket.take(50, 0), Some(500 * MS));
        // The next one waits for both.
        assert_eq!(bucket.take(50, 0), Some(1000 * MS));
        assert_eq!(bucket.take(0, 999 * MS), Some(1000 * MS));
        assert_eq!(bucket.take(0, 1000 * MS), None);
        assert_eq!(bucket.take(1, 1000 * MS), Some(1010 * MS));
        // Full again, and not more than that, however long nothing was taken.
        let later = 3_600_000 * MS;
        assert_eq!(bucket.take(1000, later), None);
        assert_eq!(bucket.take(1, later), Some(later + 10 * MS));
    }

    proptest! {
        /// Whatever is taken: it waits for what was taken beyond the burst, for no more and no less.
        #[test]
        fn waits_are_what_was_taken_beyond_the_burst(
            burst in 0u32..10_000, rate in 1u32..10_000, now in 0u64..u64::from(u32::MAX),
            takes in proptest::collection::vec(0u64..5_000, 1..20)
        ) {
            let bucket = Bucket::new(burst, rate);
            let mut taken = 0;
            for units in takes {
                taken += units;
                let wait = bucket.take(units, now).map_or(0, |until| until - now);
                let due = time(taken.saturating_sub(burst.into()), rate);
                // Each take is rounded down to a nanosecond.
                prop_assert!(wait.abs_diff(due) <= 25, "{wait} for {due}");
            }
        }

        #[test]
        fn no_number_panics(
            burst: u32, rate: u32, takes in proptest::collection::vec(any::<(u64, u64)>(), 1..8)
        ) {
            let bucket = Bucket::new(burst, rate);
            for (units, now) in takes {
                let _ = bucket.take(units, now);
            }
        }
    }
}
