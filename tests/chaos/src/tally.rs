//! What went wrong, and how long things took.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::gaps::Gap;

/// What must not happen; each is counted once per volume or thing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fault {
    /// A published volume that does not serve any more, or whose directory is another one.
    Lost,
    /// An answer that is not of the pod's service account.
    WrongIdentity,
    /// Another socket in the directory, though only one of the two processes died and the other had the
    /// listener: a client that was connecting to the one before hangs.
    ReplacedSocket,
    /// Another certificate than before, though the one before was good for hours.
    ChangedSerial,
    /// A publish that did not succeed in the end.
    StuckPublish,
    /// An unpublish that did not succeed in the end.
    StuckUnpublish,
    /// A connection that outlived its volume's unpublish.
    ServedOn,
    /// A stream that broke though its agent lived: its socket was taken away.
    BrokenStream,
    /// Descriptors that one of the two processes holds and should not.
    LeakedDescriptor,
    /// Mounts below the kubelet's root.
    LeakedMount,
    /// Directories, sockets and other files without a use any more.
    LeakedDirectory,
    /// Records of volumes that are gone.
    LeakedRecord,
    /// Processes.
    LeakedProcess,
}

/// All of them, with their names in the table.
pub const FAULTS: [(Fault, &str); 13] = [
    (Fault::Lost, "lost volumes"),
    (Fault::WrongIdentity, "wrong identities"),
    (Fault::ReplacedSocket, "replaced sockets"),
    (Fault::ChangedSerial, "changed serials"),
    (Fault::StuckPublish, "stuck publishes"),
    (Fault::StuckUnpublish, "stuck unpublishes"),
    (Fault::ServedOn, "streams after unpublish"),
    (Fault::BrokenStream, "streams broken under a living agent"),
    (Fault::LeakedDescriptor, "leaked descriptors"),
    (Fault::LeakedMount, "leaked mounts"),
    (Fault::LeakedDirectory, "leaked directories"),
    (Fault::LeakedRecord, "leaked records"),
    (Fault::LeakedProcess, "leaked processes"),
];

/// What is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Span {
    /// From the agent's death to an answered FetchX509SVID.
    AgentGap,
    /// From the mounter's death.
    MounterGap,
    /// From the death of both.
    BothGap,
    /// From the SIGCONT of one that stood still.
    StopGap,
    /// From the SIGKILL to one that stood still.
    EndedGap,
    /// The longest wait of a client that connects during a roll-out.
    RollGap,
    /// From the first of several blows that fell before the answer.
    FurtherGap,
    /// The first publish of a volume, with the kubelet's retries.
    Publish,
    /// An unpublish, with the kubelet's retries.
    Unpublish,
    /// A republish, with the kubelet's retries.
    Republish,
}

/// All of them, with their names in the table.
pub const SPANS: [(Span, &str); 10] = [
    (Span::AgentGap, "agent killed → FetchX509SVID answered"),
    (Span::MounterGap, "mounter killed → FetchX509SVID answered"),
    (Span::BothGap, "both killed → FetchX509SVID answered"),
    (Span::StopGap, "stopped, continued → FetchX509SVID answered"),
    (Span::EndedGap, "stopped, killed → FetchX509SVID answered"),
    (Span::RollGap, "connected in a roll-out → FetchX509SVID answered"),
    (Span::FurtherGap, "killed, and again before the answer → answered"),
    (Span::Publish, "publish, with retries"),
    (Span::Unpublish, "unpublish, with retries"),
    (Span::Republish, "republish, with retries"),
];

/// Gaps after a blow that was the only one.
const SINGLE: [Span; 5] = [Span::AgentGap, Span::MounterGap, Span::BothGap, Span::StopGap, Span::EndedGap];
/// So many of the longest gaps are shown with what happened in them.
const SHOWN: usize = 5;

/// Faults beyond this many of a kind are only counted.
const TOLD: usize = 8;

#[derive(Debug, Default)]
struct Counts {
    faults: BTreeMap<Fault, usize>,
    spans: BTreeMap<Span, Vec<Duration>>,
    /// The longest, in their order.
    gaps: Vec<Gap>,
}

/// Counts.
#[derive(Debug, Default)]
pub struct Tally(Mutex<Counts>);

impl Tally {
    fn counts(&self) -> MutexGuard<'_, Counts> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Something that must not happen. The first of a kind are told at once.
    pub fn fault(&self, fault: Fault, what: &str) {
        self.faults(fault, 1, what);
    }

    /// The same, several times.
    pub fn faults(&self, fault: Fault, number: usize, what: &str) {
        let mut counts = self.counts();
        let count = counts.faults.entry(fault).or_default();
        *count += number;
        if *count <= TOLD.max(number) {
            eprintln!("{fault:?}: {what}");
        }
    }

    /// How long something took.
    pub fn took(&self, span: Span, duration: Duration) {
        self.counts().spans.entry(span).or_default().push(duration);
    }

    /// How long a volume did not answer.
    pub fn gap(&self, gap: Gap) {
        self.took(gap.span, gap.took);
        let mut counts = self.counts();
        let at = counts.gaps.partition_point(|other| other.took >= gap.took);
        counts.gaps.insert(at, gap);
        counts.gaps.truncate(SHOWN);
    }

    /// The longest gaps.
    pub fn longest_gaps(&self) -> Vec<Gap> {
        self.counts().gaps.clone()
    }

    /// How many there were of a kind.
    pub fn count(&self, fault: Fault) -> usize {
        self.counts().faults.get(&fault).copied().unwrap_or_default()
    }

    /// How many there were altogether.
    pub fn all(&self) -> usize {
        self.counts().faults.values().sum()
    }

    /// The longest of some spans.
    fn longest(&self, spans: &[Span]) -> Duration {
        let counts = self.counts();
        spans
            .iter()
            .filter_map(|span| counts.spans.get(span)?.iter().max())
            .max()
            .copied()
            .unwrap_or_default()
    }

    /// The longest gap after a blow that was the only one before the answer.
    pub fn longest_gap(&self) -> Duration {
        self.longest(&SINGLE)
    }

    /// The table of durations, and the line of counts that begins with `blows`.
    pub fn report(&self, blows: &str, about: &str) -> String {
        let mut text =
            format!("{:<48} {:>6} {:>9} {:>9} {:>9} {:>9}  ms\n", "", "n", "p50", "p90", "p99", "max");
        for (span, name) in SPANS {
            let mut all = self.counts().spans.get(&span).cloned().unwrap_or_default();
            all.sort();
            let _ = write!(text, "{name:<48} {:>6}", all.len());
            for share in [50, 90, 99, 100] {
                let _ = write!(text, " {:>9.1}", percentile(&all, share).as_secs_f64() * 1e3);
            }
            text.push('\n');
        }
        let _ = write!(text, "chaos: {blows} ({about})");
        for (fault, name) in FAULTS {
            let _ = write!(text, ", {} {name}", self.count(fault));
        }
        let further = self.longest(&[Span::FurtherGap]).as_millis();
        let gap = self.longest_gap().as_millis();
        let roll = self.longest(&[Span::RollGap]).as_millis();
        let _ = write!(
            text,
            ", longest gap {gap} ms (must < 1000), {further} ms where further kills fell into it, {roll} ms in a roll-out (must ≤ 3000)"
        );
        text
    }
}

/// Of sorted durations the one that `share` percent do not exceed.
fn percentile(sorted: &[Duration], share: usize) -> Duration {
    let rank = (sorted.len() * share).div_ceil(100).max(1);
    sorted.get(rank - 1).copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_of_the_nearest_rank() {
        let all: Vec<_> = (1..=10).map(Duration::from_secs).collect();
        assert_eq!(percentile(&all, 50), Duration::from_secs(5));
        assert_eq!(percentile(&all, 99), Duration::from_secs(10));
        assert_eq!(percentile(&[], 50), Duration::ZERO);
    }

    #[test]
    fn the_line_has_every_count_and_the_longest_gap_after_a_kill() {
        let tally = Tally::default();
        tally.fault(Fault::Lost, "a");
        tally.faults(Fault::LeakedMount, 3, "b");
        tally.took(Span::BothGap, Duration::from_millis(70));
        tally.took(Span::AgentGap, Duration::from_millis(20));
        tally.took(Span::Publish, Duration::from_secs(9));
        tally.took(Span::FurtherGap, Duration::from_millis(90));
        tally.took(Span::RollGap, Duration::from_millis(50));
        let text = tally.report("5 kills", "seed 1");
        let line = text.lines().last().unwrap_or_default();
        assert!(line.starts_with("chaos: 5 kills (seed 1), 1 lost volumes, 0 wrong"), "{line}");
        assert!(
            line.contains(", 3 leaked mounts,") && line.contains("gap 70 ms (must < 1000), 90 ms where"),
            "{line}"
        );
        assert!(line.ends_with(", 50 ms in a roll-out (must ≤ 3000)"), "{line}");
        assert_eq!(tally.all(), 4);
    }

    #[test]
    fn the_longest_gaps_are_kept() {
        let tally = Tally::default();
        for ms in [3, 9, 1, 7, 5, 8, 2] {
            let (since, took) = (crate::gaps::Moment::now(), Duration::from_millis(ms));
            tally.gap(Gap { span: Span::AgentGap, since, took, further: 0, pod: String::new() });
        }
        let kept: Vec<_> = tally.longest_gaps().iter().map(|gap| gap.took.as_millis()).collect();
        assert_eq!(kept, [9, 8, 7, 5, 3]);
    }
}
