//! What was measured against what must be.

use seamount_testkit::samples::Samples;

use crate::honest::{FETCHES, Measured};
use crate::hostile::Loot;
use crate::node::Usage;

/// What the agent may grow by, in MB of 10⁶ bytes.
const GROWTH: f64 = 32.0;
/// What one publish or unpublish of a hundred may exceed, in milliseconds.
const P99: f64 = 100.0;
/// What no publish or unpublish may exceed on a busy machine.
const SLOWEST: f64 = 2000.0;

/// Said before the table of a busy machine.
pub const BUSY: &str = "The quantiles of publish and unpublish are printed and not judged here: debug builds share the machine. \
                        A call that fails, or takes 2 s, is a failure. `make attack` judges p99 against 100 ms.";

/// The table's head.
pub const HEAD: &str = "attack              fetch p50/max ms      new    publish p50/p99/max ms  unpublish p50/p99/max ms  \
                        agent MB before +peak +after  cpu  what the pod got";

/// By what is judged.
#[derive(Debug, Clone, Copy)]
pub struct Rules {
    /// On a busy machine: no quantile is.
    pub busy: bool,
}

/// What was measured in one attack.
#[derive(Debug)]
pub struct Outcome {
    /// What the others had.
    pub measured: Measured,
    /// What the hostile pod had.
    pub got: Loot,
    /// What the processes held before.
    pub before: Usage,
    /// The most memory that the agent had, in MB.
    pub peak: f64,
    /// What the processes held afterwards.
    pub after: Usage,
    /// Processors that the agent used meanwhile.
    pub processor: f64,
    /// Volumes of the hostile pod that could not be removed.
    pub left: Vec<String>,
    /// What was wrong with the processes' ends.
    pub ended: Vec<String>,
}

impl Outcome {
    fn growth(&self) -> f64 {
        self.peak - self.before.memory
    }

    /// One line of the table.
    pub fn row(&self, name: &str) -> String {
        let Measured { fetches, answered, new, publishes, unpublishes, .. } = &self.measured;
        let three = |s: &Samples| format!("{:.1}/{:.1}/{:.1}", s.p50(), s.p99(), s.quantile(1.0));
        let Loot { volumes, refused, got } = &self.got;
        let refused: String =
            refused.iter().map(|(why, count)| format!(", {count} refused: {why}")).collect();
        format!(
            "{name:<18} {:>6} {:>13} {:>8} {:>24} {:>25} {:>15.1} {:>+5.1} {:>+6.1} {:>3.0}%  \
             {volumes} volumes{refused}; connections {} at most, {} made, {} ended; {} frames",
            format!("{answered}/{FETCHES}"),
            format!("{:.1}/{:.1}", fetches.p50(), fetches.quantile(1.0)),
            format!("{}/{}", new.1, new.0),
            three(publishes),
            three(unpublishes),
            self.before.memory,
            self.growth(),
            self.after.memory - self.before.memory,
            self.processor * 100.0,
            got.most,
            got.made,
            got.ended,
            got.frames,
        )
    }

    /// What must not be.
    pub fn faults(&self, rules: Rules) -> Vec<String> {
        let mut faults = Vec::new();
        let Measured { answered, publishes, unpublishes, failures, .. } = &self.measured;
        if *answered < FETCHES {
            faults.push(format!("another pod's fetch was answered {answered} times of {FETCHES}"));
        }
        if let Some(first) = failures.first() {
            faults.push(format!("{} calls for others failed; the first: {first}", failures.len()));
        }
        for (what, samples) in [("publish", publishes), ("unpublish", unpublishes)] {
            let (share, value, limit) = if rules.busy {
                ("the slowest", samples.quantile(1.0), SLOWEST)
            } else {
                ("p99 of", samples.p99(), P99)
            };
            if value > limit {
                faults.push(format!("{share} {what} took {value:.0} ms; the limit is {limit:.0} ms"));
            }
        }
        if self.growth() > GROWTH {
            faults.push(format!("the agent grew by {:.1} MB; the limit is {GROWTH:.0} MB", self.growth()));
        }
        for ((name, before), after) in
            ["agent", "mounter"].iter().zip(self.before.descriptors).zip(self.after.descriptors)
        {
            if after > before {
                faults.push(format!(
                    "the {name} had {before} descriptors before and has {after} after the pod"
                ));
            }
        }
        if let Some(first) = self.left.first() {
            faults.push(format!("{} volumes of the pod could not be removed; {first}", self.left.len()));
        }
        if self.got.volumes == 0 || self.got.got.made == 0 {
            faults.push("nothing was attacked: the pod had no volume, or not one connection".to_owned());
        }
        faults.extend(self.ended.iter().cloned());
        faults
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::attacker::Got;

    const JUDGED: Rules = Rules { busy: false };
    const BUSY: Rules = Rules { busy: true };

    /// As good as it has to be, and no better.
    fn good() -> Outcome {
        let mut measured = Measured { answered: FETCHES, ..Default::default() };
        for samples in [&mut measured.publishes, &mut measured.unpublishes] {
            samples.add(Duration::from_millis(100));
        }
        let got = Got { made: 1, ..Default::default() };
        let usage = Usage { memory: 3.0, descriptors: [20, 10] };
        Outcome {
            measured,
            got: Loot { volumes: 1, refused: [("ResourceExhausted".to_owned(), 9)].into(), got },
            before: usage,
            peak: 35.0,
            after: usage,
            processor: 1.0,
            left: Vec::new(),
            ended: Vec::new(),
        }
    }

    fn faults(rules: Rules, change: impl FnOnce(&mut Outcome)) -> Vec<String> {
        let mut outcome = good();
        change(&mut outcome);
        outcome.faults(rules)
    }

    #[test]
    fn each_bound_is_judged_by_itself() {
        assert_eq!(good().faults(JUDGED), [""; 0]);
        type Change = fn(&mut Outcome);
        let each: [(&str, Change); 9] = [
            ("answered 19 times of 20", |o| o.measured.answered -= 1),
            ("1 calls for others failed", |o| o.measured.failures.push("publish: Unavailable".to_owned())),
            ("p99 of publish", |o| o.measured.publishes.add(Duration::from_millis(101))),
            ("p99 of unpublish", |o| o.measured.unpublishes.add(Duration::from_millis(101))),
            ("grew by 32.1 MB", |o| o.peak += 0.1),
            ("the mounter had 10 descriptors before and has 11", |o| o.after.descriptors[1] += 1),
            ("could not be removed", |o| o.left.push("volume v0: no answer".to_owned())),
            ("nothing was attacked", |o| o.got.got.made = 0),
            ("ended by itself", |o| o.ended.push("the agent has ended by itself".to_owned())),
        ];
        for (text, change) in each {
            let faults = faults(JUDGED, change);
            assert!(matches!(&*faults, [one] if one.contains(text)), "{text}: {faults:?}");
        }
    }

    #[test]
    fn a_busy_machine_may_be_slow_and_no_slower() {
        assert_eq!(faults(BUSY, |o| o.measured.publishes.add(Duration::from_millis(1999))), [""; 0]);
        let late = faults(BUSY, |o| o.measured.unpublishes.add(Duration::from_millis(2001)));
        assert!(matches!(&*late, [one] if one.contains("the slowest unpublish")), "{late:?}");
    }
}
