//! What is known of each target path: which identities its socket may show.
//!
//! A path has *epochs*: one ends when an unpublish that no other call overlapped is answered with success.
//! What a socket of an epoch may ever say is what was accepted, or may have been, within that epoch. What may
//! be there now is a set: a call that broke off leaves both outcomes possible until a later one decides.

use std::collections::{BTreeMap, BTreeSet};

use tonic::{Code, Status};

use super::history::{Pod, Spot};

/// One epoch of one path.
pub type Epoch = (Spot, u32);

/// A call that is on its way.
#[derive(Debug, Clone)]
pub struct Call {
    pub spot: Spot,
    pub kind: Kind,
    /// Whether no other call for the same path overlapped.
    pub alone: bool,
    /// What was possible when it was sent.
    before: BTreeSet<Option<Pod>>,
    /// The number of the last step before it: sockets and streams seen since may be newer than what it does.
    pub step: usize,
    /// Whether nothing was disturbed when it was sent: then its answer is known exactly.
    pub calm: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Accepted at most if `proved` (the token is good and says the same as the request) and `known` (the
    /// kubelet's record has this volume id).
    Publish { who: Pod, proved: bool, known: bool },
    /// Carried out only if `known`: the kubelet's record has this volume id, or there is none.
    Unpublish { known: bool },
}

#[derive(Debug)]
struct Place {
    possible: BTreeSet<Option<Pod>>,
    under_way: usize,
    epoch: u32,
}

#[derive(Debug, Default)]
pub struct Model {
    places: BTreeMap<Spot, Place>,
    ever: BTreeMap<Epoch, BTreeSet<Pod>>,
}

/// What follows from an answer.
#[derive(Debug, PartialEq, Eq)]
pub enum Verdict {
    Nothing,
    /// Everything of this epoch is cut.
    Ended(Epoch),
    /// Everything of this path that was there before this step is cut.
    Cut(usize),
}

/// A refusal after which nothing has changed.
fn is_refusal(status: &Status) -> bool {
    matches!(
        status.code(),
        Code::InvalidArgument
            | Code::PermissionDenied
            | Code::AlreadyExists
            | Code::NotFound
            | Code::FailedPrecondition
    )
}

impl Model {
    fn place(&mut self, spot: Spot) -> &mut Place {
        self.places.entry(spot).or_insert_with(|| Place {
            possible: BTreeSet::from([None]),
            under_way: 0,
            epoch: 0,
        })
    }

    pub fn epoch(&mut self, spot: Spot) -> Epoch {
        (spot, self.place(spot).epoch)
    }

    /// The identities that a socket of this epoch may show.
    pub fn may_say(&self, epoch: Epoch) -> BTreeSet<Pod> {
        self.ever.get(&epoch).cloned().unwrap_or_default()
    }

    /// What is there, where that is certain.
    pub fn certain(&mut self, spot: Spot) -> Option<Option<Pod>> {
        let place = self.place(spot);
        let mut all = place.possible.iter();
        match (all.next(), all.next(), place.under_way) {
            (Some(one), None, 0) => Some(*one),
            _ => None,
        }
    }

    /// A call is sent.
    pub fn begin(
        &mut self,
        spot: Spot,
        kind: Kind,
        calls: &mut [&mut Call],
        step: usize,
        calm: bool,
    ) -> Call {
        let place = self.place(spot);
        let alone = place.under_way == 0;
        place.under_way += 1;
        let before = place.possible.clone();
        let epoch = (spot, place.epoch);
        for other in calls.iter_mut().filter(|call| call.spot == spot) {
            other.alone = false;
            // What was out of the question before this one may follow it now.
            if let Kind::Publish { who, proved: true, .. } = other.kind {
                self.ever.entry(epoch).or_default().insert(who);
            }
        }
        let call = Call { spot, kind, alone, before, step, calm };
        if let Kind::Publish { who, .. } = kind
            && call.acceptable()
        {
            self.ever.entry(epoch).or_default().insert(who);
        }
        call
    }

    /// A call was answered.
    pub fn end(&mut self, call: &Call, answer: &Result<(), Status>) -> Result<Verdict, String> {
        let fail = |what: &str| Err(format!("{what}: {call:?} answered {answer:?}"));
        // A busy machine is a mounter that answers late: nothing is certain then, and nothing is wrong.
        let late = answer.as_ref().is_err_and(|status| status.code() == Code::Unavailable);
        let calm = call.calm && !late;
        let place = self.place(call.spot);
        place.under_way -= 1;
        match (call.kind, answer) {
            (Kind::Publish { who, proved, known }, Ok(())) => {
                if !proved {
                    return fail("accepted without proof");
                }
                if call.alone && !known {
                    return fail("accepted for a volume that is not there");
                }
                if call.alone && !call.acceptable() {
                    return fail("accepted over another identity");
                }
                if call.alone {
                    place.possible.clear();
                }
                place.possible.insert(Some(who));
            }
            (Kind::Publish { who, proved, known }, Err(status)) if calm && call.alone => {
                // After calls that overlapped, somebody else may or may not be there.
                let others = call.before.iter().flatten().any(|there| *there != who);
                let right = match (proved && known, others) {
                    (true, false) => return fail("a good publish failed"),
                    (true, true) => status.code() == Code::AlreadyExists,
                    (false, _) => is_refusal(status),
                };
                if !right {
                    return fail("refused by another code");
                }
            }
            (Kind::Publish { .. }, Err(status)) if is_refusal(status) => {}
            (Kind::Publish { who, proved, .. }, Err(_)) => {
                if proved && (!call.alone || call.acceptable()) {
                    place.possible.insert(Some(who));
                }
            }
            (Kind::Unpublish { known: false }, Ok(())) if call.alone => {
                return fail("a wrong volume id took a volume away");
            }
            (Kind::Unpublish { .. }, Ok(())) if call.alone => {
                let ended = (call.spot, place.epoch);
                place.possible = BTreeSet::from([None]);
                place.epoch += 1;
                return Ok(Verdict::Ended(ended));
            }
            (Kind::Unpublish { known }, Ok(())) => {
                place.possible.insert(None);
                if known {
                    return Ok(Verdict::Cut(call.step));
                }
            }
            (Kind::Unpublish { known: true }, Err(_)) if calm && call.alone => {
                return fail("an unpublish failed");
            }
            (Kind::Unpublish { known: false }, Err(_)) if call.alone => {}
            (Kind::Unpublish { .. }, Err(_)) => drop(place.possible.insert(None)),
        }
        Ok(Verdict::Nothing)
    }
}

impl Call {
    /// Whether a publish may be accepted at all.
    fn acceptable(&self) -> bool {
        let Kind::Publish { who, proved, known } = self.kind else { return false };
        let free = self.before.iter().any(|there| there.is_none_or(|there| there == who));
        proved && (!self.alone || (known && free))
    }
}
