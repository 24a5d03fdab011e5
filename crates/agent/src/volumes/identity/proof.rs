//! What an agent believes of the records that it finds.
//!
//! The agent before may have been hostile, and it could write into the state directory whatever it liked. So
//! a record is a memory, not a fact: its token is verified again, and its SVID is served only where it is
//! what the pod would get today. Until that is decided the volume's streams are held, as those of a new
//! volume are.
//!
//! | token | authority | the recorded SVID |
//! |---|---|---|
//! | proved | there | served where its ID is the pod's and the authority's bundle verifies it, else made anew |
//! | proved | away | served for now where its ID is the pod's, under the roots in the record; judged again when the authority is there |
//! | no keys yet | there | served for now, never renewed, where its ID is that of the pod that the token names and the bundle verifies it |
//! | no keys yet, or no configuration | away | held |
//! | of something else, or forged | any | never served; a republish with a good token begins anew |
//!
//! The third row is what carries running pods over a restart while the API server is away. The authority's
//! signature proves the SVID then, and its key was in the hands of the agent before in any case: nothing is
//! issued, and nothing lives longer by it.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use seamount_authority::{BoxFuture, Workload};
use seamount_identity::SpiffeId;
use seamount_mounter_protocol::names::Volume;
use seamount_pod_token::{DatedToken, Token};
use tokio_util::sync::CancellationToken;

use super::binding::{Awaits, Basis, IssuedSvid, PodBinding};
use super::{Entry, Identity, Slot};
use crate::source::Source;
use crate::volumes::Volumes;
use crate::volumes::health::Content;
use crate::volumes::schedule::TICK;

/// How soon a volume that was busy is looked at again.
const BUSY: Duration = Duration::from_millis(20);

/// What decides over stored tokens: the issuer's keys and this node's name, by the configuration in force.
pub trait Prover: Send + Sync {
    /// What the token that lies with this volume proves.
    fn prove<'a>(&'a self, volume: &'a Volume, token: &'a Token) -> BoxFuture<'a, Result<Proof, Unproved>>;

    /// The SPIFFE ID that the configuration gives to this pod; none without a configuration for it.
    fn id(&self, workload: &Workload) -> Option<SpiffeId>;
}

/// What a token says of its pod.
#[derive(Debug, Clone)]
pub struct Proof {
    /// The pod.
    pub workload: Workload,
    /// The token with its times.
    pub token: DatedToken,
}

/// Why a stored token is no proof.
#[derive(Debug)]
pub enum Unproved {
    /// Not now: there are no keys, or no configuration.
    Later {
        /// Why.
        why: String,
        /// What the token says of itself, where it is for this volume and this node.
        claimed: Option<Proof>,
    },
    /// It is forged, or of another pod, node, issuer or audience.
    Never(String),
}

/// What came of a record: what it waits for still, and when the next SVID is due.
pub(in crate::volumes) struct Adopted {
    awaits: Option<Awaits>,
    due: Option<SystemTime>,
}

enum Verdict {
    Serve(IssuedSvid),
    /// Until the authority is there.
    ForNow(IssuedSvid),
    Wait,
    Refuse(String),
}

enum Step {
    Done,
    Busy,
    NoKeys,
}

impl Volumes {
    /// Decides over what was recalled until cancelled.
    pub(in crate::volumes) async fn keep_proving(&self, cancel: &CancellationToken) {
        let mut source = self.source.clone();
        loop {
            let pause = tokio::select! {
                () = cancel.cancelled() => return,
                pause = self.prove_all() => pause,
            };
            let again = async {
                match pause {
                    Some(pause) => tokio::time::sleep(pause).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = cancel.cancelled() => return,
                () = self.unproved.notified() => {}
                () = again => {}
                changed = source.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    for entry in self.all_of::<Identity>() {
                        let mut view = entry.view();
                        view.seen.unproved = view.seen.unproved.map(|_| Awaits::Turn);
                    }
                }
            }
        }
    }

    /// One look at all that is undecided; when the next one is due.
    async fn prove_all(&self) -> Option<Duration> {
        let (mut busy, mut no_keys) = (false, false);
        for entry in self.all_of::<Identity>() {
            let awaits = entry.view().seen.unproved;
            let look = match awaits {
                None | Some(Awaits::Source) => continue,
                // There are none for the others either.
                Some(Awaits::Keys) if no_keys => continue,
                Some(awaits) => awaits == Awaits::Turn,
            };
            match self.prove(&entry, look).await {
                Step::Done => {}
                Step::Busy => busy = true,
                Step::NoKeys => no_keys = true,
            }
            // The kubelet's calls go in between.
            tokio::task::yield_now().await;
        }
        if busy { Some(BUSY) } else { no_keys.then_some(TICK) }
    }

    /// One volume. No lock is waited for: whatever holds it may wait for the mounter, and the other volumes
    /// must not.
    async fn prove(&self, entry: &Arc<Entry>, look: bool) -> Step {
        let token = {
            let Ok(mut slot) = entry.slot.try_lock() else { return Step::Busy };
            let Some(recalled) = slot.state.recalled.as_ref().filter(|_| !slot.gone) else {
                entry.view().seen.unproved = None;
                return Step::Done;
            };
            let token = recalled.token.clone();
            // The publish has proved it.
            if matches!(&slot.state.facts, Some(PodBinding { basis: Basis::Published(_), .. })) {
                let adopted = self.adopt(entry, &mut slot);
                self.tell(entry, &slot, &adopted);
                return Step::Done;
            }
            token
        };
        let proof = self.prover.prove(&entry.volume, &token).await;
        let Ok(mut slot) = entry.slot.try_lock() else { return Step::Busy };
        // Taken away or published meanwhile: that has decided.
        if slot.gone || slot.state.recalled.as_ref().is_none_or(|recalled| recalled.token != token) {
            return Step::Done;
        }
        match proof {
            Ok(Proof { workload, token }) => {
                slot.state.facts = Some(PodBinding { workload, token, basis: Basis::Proved });
                let adopted = self.adopt(entry, &mut slot);
                self.tell(entry, &slot, &adopted);
                Step::Done
            }
            Err(Unproved::Later { why, claimed }) => {
                if look && let Some(Proof { workload, token }) = claimed {
                    slot.state.facts = Some(PodBinding { workload, token, basis: Basis::Claimed });
                    let adopted = self.adopt(entry, &mut slot);
                    self.tell(entry, &slot, &adopted);
                }
                let mut view = entry.view();
                view.seen.unproved = Some(Awaits::Keys);
                let failure = format!("the recorded token cannot be verified yet: {why}");
                if view.status.failure.as_deref() != Some(failure.as_str()) {
                    view.status.failure = Some(failure.into());
                }
                Step::NoKeys
            }
            Err(Unproved::Never(why)) => {
                self.disbelieve(entry, &mut slot, &why);
                Step::Done
            }
        }
    }

    /// A publish does not wait for its turn in that: what is proved of the record binds it, and what is not
    /// gives way.
    pub(in crate::volumes) async fn prove_for_publish(&self, volume: &Volume, slot: &mut Slot) {
        let undecided = slot.state.facts.as_ref().is_none_or(|facts| !facts.proved());
        if let Some(recalled) = slot.state.recalled.as_ref().filter(|_| undecided)
            && let Ok(Proof { workload, token }) = self.prover.prove(volume, &recalled.token).await
        {
            slot.state.facts = Some(PodBinding { workload, token, basis: Basis::Proved });
        }
    }

    /// The record's token proves nothing here: as if there were no record. It is left where it is, and the
    /// next publish takes its place.
    fn disbelieve(&self, entry: &Arc<Entry>, slot: &mut Slot, why: &str) {
        (slot.state.recalled, slot.state.facts, slot.state.held) = (None, None, None);
        {
            let mut view = entry.view();
            view.seen.unproved = None;
            view.due = None;
            view.status.content = Content::Unknown;
            view.status.rotate_at = None;
            view.status.failure = Some(format!("the recorded token proves nothing: {why}").into());
        }
        if let Some(serving) = &slot.state.serving {
            serving.show(self.to_show(slot));
        }
        self.count(entry);
        entry.span().in_scope(|| {
            tracing::error!(reason = %why, "a record's token proves nothing; its volume waits for a republish");
        });
    }

    /// Has a volume's record decided over now.
    pub(in crate::volumes) fn look_at_record(&self) {
        self.unproved.notify_one();
    }

    /// Takes the recalled SVID over, by what is known of the pod; changes nothing but the slot.
    pub(in crate::volumes) fn adopt(&self, entry: &Entry, slot: &mut Slot) -> Adopted {
        let (Some(facts), Some(recalled)) = (&slot.state.facts, &mut slot.state.recalled) else {
            return Adopted { awaits: None, due: None };
        };
        let proved = facts.proved();
        let verdict = recalled.held.as_ref().map(|held| self.judge(held, &facts.workload, proved));
        let (held, settled) = match verdict {
            Some(Verdict::Serve(held)) => (Some(held), true),
            Some(Verdict::ForNow(held)) => (Some(held), false),
            Some(Verdict::Wait) => (None, false),
            Some(Verdict::Refuse(why)) => {
                recalled.held = None;
                entry.span().in_scope(|| {
                    tracing::warn!(reason = %why, "the recorded SVID is not what its pod has today");
                });
                (None, true)
            }
            None => (None, true),
        };
        let awaits = match (proved, settled) {
            (true, true) => None,
            (true, false) => Some(Awaits::Source),
            (false, _) => Some(Awaits::Keys),
        };
        let due = match &held {
            _ if !proved => None,
            Some(held) => Some(held.rotate_at),
            // One that may be served in a moment is not made anew.
            None => settled.then(SystemTime::now),
        };
        if !proved && held.is_none() {
            slot.state.facts = None;
        }
        slot.state.held = held;
        if awaits.is_none() {
            slot.state.recalled = None;
        }
        Adopted { awaits, due }
    }

    /// Brings the view and the streams up to date with that.
    pub(in crate::volumes) fn tell(&self, entry: &Arc<Entry>, slot: &Slot, adopted: &Adopted) {
        {
            let mut view = entry.view();
            if let Some(facts) = slot.state.facts.as_ref().filter(|facts| facts.proved()) {
                view.pod = facts.workload.pod_name.as_str().into();
                view.namespace = facts.workload.namespace.as_str().into();
                view.status.failure = None;
            }
            view.status.content = match (&slot.state.held, &view.status.content) {
                (Some(held), _) => Content::Ready { not_after: held.svid.not_after() },
                (None, Content::Pending { since }) => Content::Pending { since: *since },
                (None, _) => Content::Pending { since: SystemTime::now() },
            };
            view.status.rotate_at = slot.state.held.as_ref().map(|held| held.rotate_at);
            view.expired = false;
            view.due = adopted.due;
            view.seen.unproved = adopted.awaits;
        }
        if let Some(serving) = &slot.state.serving {
            serving.show(self.to_show(slot));
        }
        self.count(entry);
        self.schedule.remind(SystemTime::now());
        if adopted.due.is_some() {
            self.schedule.hurry(entry);
        }
    }

    /// Whether a recorded SVID is what the pod would get today.
    fn judge(&self, held: &IssuedSvid, workload: &Workload, proved: bool) -> Verdict {
        let now = SystemTime::now();
        let source = self.source.borrow().clone();
        let (id, bundles) = match &source {
            Source::Authority(signer) => (
                signer.template.render(workload).map_err(|e| e.to_string()),
                signer.authority.bundles().borrow().clone(),
            ),
            Source::Missing(_) if !proved || !self.source_has_spoken() => return Verdict::Wait,
            Source::Missing(_) => (
                self.prover.id(workload).ok_or_else(|| "the configuration gives the pod no ID".to_owned()),
                Arc::clone(&held.bundles),
            ),
            Source::Directory => {
                return Verdict::Refuse("the identity source is `directory` now; restart the pod".to_owned());
            }
        };
        match id {
            Ok(id) if id == *held.svid.id() => {}
            Ok(id) => return Verdict::Refuse(format!("it is of {}, the pod is {id}", held.svid.id())),
            Err(why) => return Verdict::Refuse(why),
        }
        if let Err(why) = held.svid.verify(bundles.own(), now) {
            return Verdict::Refuse(why.to_string());
        }
        match source {
            Source::Authority(_) => Verdict::Serve(IssuedSvid { bundles, ..held.clone() }),
            _ => Verdict::ForNow(held.clone()),
        }
    }

    /// Whether the source was decided since the start: before that it is only not there yet.
    fn source_has_spoken(&self) -> bool {
        // Nothing marks this receiver's value as seen. An error: there will be no other.
        self.source.has_changed().unwrap_or(true)
    }

    /// Whether what is held is what the authority of now would give to its pod.
    pub(in crate::volumes) fn has_other_id(&self, slot: &Slot) -> bool {
        let (Some(facts), Some(held)) = (&slot.state.facts, &slot.state.held) else { return false };
        match &*self.source.borrow() {
            Source::Authority(signer) => {
                signer.template.render(&facts.workload).is_ok_and(|id| id != *held.svid.id())
            }
            Source::Missing(_) | Source::Directory => false,
        }
    }
}
