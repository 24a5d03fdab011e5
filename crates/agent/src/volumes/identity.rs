//! Volumes with an identity of ours: a socket of their own, with the Workload API behind it.

pub(super) mod binding;
pub(super) mod conflict;
pub mod proof;
mod publish;
pub(super) mod recall;
pub(super) mod rotate;
pub(super) mod server;

use std::time::SystemTime;

use super::entry::{Ending, Kind, LockedState, VolumeEntry, VolumeStatus};
use crate::record::{Body, IdentityBody};
use binding::{Awaits, IssuedSvid, PodBinding, Recalled};
use server::VolumeServer;

/// The kind `identity`.
#[derive(Debug)]
pub(super) struct Identity;

/// What the holder of the volume's lock sees.
#[derive(Default)]
pub(super) struct State {
    pub facts: Option<PodBinding>,
    pub held: Option<IssuedSvid>,
    /// What the record says, until that is decided (module `proof`).
    pub recalled: Option<Recalled>,
    pub serving: Option<VolumeServer>,
}

/// What is read without it.
#[derive(Debug, Default, Clone)]
pub(super) struct Seen {
    /// Whether there are bundles that the streams have not been shown.
    pub refresh: bool,
    /// What the decision over the record waits for; none: there is nothing to decide.
    pub unproved: Option<Awaits>,
}

impl Kind for Identity {
    type State = State;
    type Seen = Seen;
    type Ending = Option<VolumeServer>;

    fn end(state: &mut State) -> Option<VolumeServer> {
        let serving = state.serving.take().inspect(VolumeServer::finish);
        *state = State::default();
        serving
    }

    fn body(_: &VolumeEntry<Self>, state: &State, cookie: u64) -> Option<Body> {
        // One that waits to be decided over is not lost.
        let recalled = state.recalled.as_ref();
        let facts = state.facts.as_ref().map(|facts| &facts.token.token);
        let token = facts.or(recalled.map(|recalled| &recalled.token))?.clone();
        let held = state.held.as_ref().or_else(|| recalled?.held.as_ref());
        Some(Body::Identity(IdentityBody { cookie, token: Some(token), svid: held.map(recall::stored) }))
    }

    fn cookie(state: &State) -> u64 {
        state.serving.as_ref().map_or(0, VolumeServer::cookie)
    }

    fn next(view: &VolumeStatus<Self>) -> Option<SystemTime> {
        view.seen.refresh.then_some(SystemTime::UNIX_EPOCH)
    }
}

impl Ending for Option<VolumeServer> {
    fn cut(&self) {
        if let Some(serving) = self {
            serving.cut();
        }
    }

    async fn stop(self) {
        if let Some(serving) = self {
            serving.stop().await;
        }
    }
}

impl State {
    /// Whether the volume has an SVID, or its record has one.
    pub fn has_svid(&self) -> bool {
        self.held.is_some() || self.recalled.as_ref().is_some_and(|recalled| recalled.held.is_some())
    }

    /// Whether nothing of it was published or recalled.
    pub fn is_empty(&self) -> bool {
        self.facts.is_none() && self.recalled.is_none() && self.serving.is_none()
    }
}

type Entry = VolumeEntry<Identity>;
type Slot = LockedState<Identity>;
