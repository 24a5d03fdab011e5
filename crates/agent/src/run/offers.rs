//! When the registration is offered to the kubelet again. Pure.
//!
//! The kubelet looks at a registration socket when it appears, and not again. An event that its watcher lost,
//! or a kubelet that was stopped in the middle, would leave the node without the driver for ever.

use std::time::Duration;

use tokio::time::Instant;

/// How long the kubelet has at first. A registration takes it a second or two.
const FIRST: Duration = Duration::from_secs(10);
/// An offer makes a kubelet that has registered the driver do it once more, in which time no pod can start.
const LAST: Duration = Duration::from_secs(300);

/// The schedule, with a pause that grows.
#[derive(Debug)]
pub(super) struct Offers {
    next: Instant,
    pause: Duration,
}

impl Offers {
    /// The kubelet has [`FIRST`] from now.
    pub fn new(now: Instant) -> Self {
        Self { next: now + FIRST, pause: FIRST }
    }

    /// There is nothing to offer, or the socket has just appeared.
    pub fn restart(&mut self, now: Instant) {
        *self = Self::new(now);
    }

    /// The kubelet is at work on it: an offer would have it begin anew.
    pub fn put_off(&mut self, now: Instant) {
        self.next = self.next.max(now + FIRST);
    }

    /// Whether to offer it now; the next time is later then.
    pub fn take(&mut self, now: Instant) -> bool {
        if now < self.next {
            return false;
        }
        self.pause = (self.pause * 2).min(LAST);
        self.next = now + self.pause;
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pause_grows_to_its_end_and_begins_anew() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut offers = Offers::new(start);
        let taken: Vec<u64> = (0..2000).filter(|second| offers.take(at(*second))).collect();
        assert_eq!(taken, [10, 30, 70, 150, 310, 610, 910, 1210, 1510, 1810]);
        offers.restart(at(2000));
        assert!(!offers.take(at(2009)) && offers.take(at(2010)));
    }

    #[test]
    fn a_kubelet_at_work_is_not_disturbed_and_a_later_time_stays() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut offers = Offers::new(start);
        offers.put_off(at(8));
        assert!(!offers.take(at(17)) && offers.take(at(18)));
        offers.put_off(at(20));
        assert!(!offers.take(at(37)) && offers.take(at(38)));
    }
}
