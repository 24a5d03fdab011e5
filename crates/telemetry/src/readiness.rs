//! Whether a program can do its work: checks that their owners name and state.

use std::borrow::Cow;
use std::fmt;
use std::sync::{Mutex, PoisonError};
use std::time::SystemTime;

use tokio_util::sync::CancellationToken;

/// The name of a condition of readiness, as `/readyz` shows it. Its owner makes it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ReadinessCheck(Cow<'static, str>);

impl ReadinessCheck {
    /// With this name.
    pub const fn named(name: &'static str) -> Self {
        Self(Cow::Borrowed(name))
    }

    /// With a name that is only known at run time, for instance one for each driver.
    pub fn new(name: String) -> Self {
        Self(Cow::Owned(name))
    }
}

impl fmt::Display for ReadinessCheck {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// How a condition stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ConditionStatus {
    /// Met; with a remark where one helps (for instance "using the last good configuration").
    Ready(String),
    /// Not met, and why.
    NotReady(String),
    /// Does not apply (for instance the authority with the `directory` source).
    NotNeeded,
}

/// The conditions, shared by all parts of a program, in the order in which they were named.
///
/// One lock for all of them, held for a look or a change, under which nothing is awaited and no other is
/// taken: what is read is how they stood at one moment. Each condition is set by one task, so that its order
/// is that of the facts; where a task may have a successor, the later is told apart under the lock
/// ([`set_until`](Self::set_until)).
#[derive(Debug, Default)]
pub struct Readiness {
    /// With the time since when it has been met, or not.
    statuses: Mutex<Vec<(ReadinessCheck, (ConditionStatus, SystemTime))>>,
}

impl Readiness {
    /// With these checks, none of which is met before it is stated.
    pub fn expecting(checks: impl IntoIterator<Item = ReadinessCheck>) -> Self {
        let now = SystemTime::now();
        let start = |check| (check, (ConditionStatus::NotReady("not looked at yet".to_owned()), now));
        Self { statuses: Mutex::new(checks.into_iter().map(start).collect()) }
    }

    /// States a condition; one that was not expected is there from then on. True where that changed something
    /// (a reason to log).
    pub fn set(&self, check: ReadinessCheck, status: ConditionStatus) -> bool {
        self.change(None, check, status)
    }

    /// The same for a task that may have a successor, which cancels `end` before it states anything itself.
    pub fn set_until(&self, end: &CancellationToken, check: ReadinessCheck, status: ConditionStatus) -> bool {
        self.change(Some(end), check, status)
    }

    fn change(
        &self,
        end: Option<&CancellationToken>,
        check: ReadinessCheck,
        status: ConditionStatus,
    ) -> bool {
        let mut statuses = self.statuses.lock().unwrap_or_else(PoisonError::into_inner);
        if end.is_some_and(CancellationToken::is_cancelled) {
            return false;
        }
        match statuses.iter_mut().find(|(known, _)| *known == check) {
            None => statuses.push((check, (status, SystemTime::now()))),
            Some((_, (old, _))) if *old == status => return false,
            Some((_, (old, since))) => {
                // Another reason is no other state.
                if std::mem::discriminant(old) != std::mem::discriminant(&status) {
                    *since = SystemTime::now();
                }
                *old = status;
            }
        }
        true
    }

    /// How this condition stands, and since when; none where nothing has named it.
    pub fn get(&self, check: &ReadinessCheck) -> Option<(ConditionStatus, SystemTime)> {
        self.since().into_iter().find_map(|(known, status)| (known == *check).then_some(status))
    }

    /// All conditions.
    pub fn all(&self) -> Vec<(ReadinessCheck, ConditionStatus)> {
        self.since().into_iter().map(|(check, (status, _))| (check, status)).collect()
    }

    /// All conditions, each with the time since when it has been met, not met, or not needed.
    pub fn since(&self) -> Vec<(ReadinessCheck, (ConditionStatus, SystemTime))> {
        self.statuses.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Whether every condition is met or not needed.
    pub fn is_ready(&self) -> bool {
        !self.all().iter().any(|(_, status)| matches!(status, ConditionStatus::NotReady(_)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: ReadinessCheck = ReadinessCheck::named("one");

    #[test]
    fn what_is_expected_is_not_ready_before_it_is_stated() {
        let readiness = Readiness::expecting([ONE]);
        assert!(!readiness.is_ready());
        assert!(readiness.set(ONE, ConditionStatus::Ready(String::new())));
        assert!(!readiness.set(ONE, ConditionStatus::Ready(String::new())), "no news");
        assert!(readiness.is_ready());
        // Found at run time, by its owner.
        let two = ReadinessCheck::new("registration of a.example".to_owned());
        assert_eq!(readiness.get(&two), None);
        assert!(readiness.set(two.clone(), ConditionStatus::NotReady("not yet".to_owned())));
        assert!(!readiness.is_ready());
        let names: Vec<_> = readiness.all().into_iter().map(|(check, _)| check).collect();
        assert_eq!(names, [ONE, two]);
    }

    #[test]
    fn another_reason_is_no_other_state() {
        let readiness = Readiness::expecting([ONE]);
        let since = |readiness: &Readiness| readiness.get(&ONE).unwrap().1;
        let start = since(&readiness);
        readiness.set(ONE, ConditionStatus::NotReady("why".to_owned()));
        assert_eq!(since(&readiness), start);
        assert_eq!(readiness.get(&ONE).unwrap().0, ConditionStatus::NotReady("why".to_owned()));
    }

    #[test]
    fn after_its_end_a_task_states_nothing() {
        let readiness = Readiness::expecting([ONE]);
        let end = CancellationToken::new();
        assert!(readiness.set_until(&end, ONE, ConditionStatus::NotNeeded));
        end.cancel();
        assert!(!readiness.set_until(&end, ONE, ConditionStatus::Ready(String::new())));
        assert!(readiness.is_ready());
    }
}
