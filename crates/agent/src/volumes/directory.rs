//! Volumes whose content is not ours: bind mounts of the source directory, and mounts of other drivers.

mod publish;

pub(super) use publish::tell_foreign;

use seamount_mounter_protocol::flag;

use super::entry::{Kind, VolumeEntry};
use crate::csi::request::Parameters;
use crate::record::Body;

/// The kind `directory`.
#[derive(Debug)]
pub(super) struct Directory;

/// What the holder of the volume's lock sees.
#[derive(Default)]
pub(super) struct State {
    /// What a republish must repeat, since this agent has seen it.
    parameters: Option<Parameters>,
}

/// What is read without it.
#[derive(Debug, Default, Clone)]
pub(super) struct Seen {
    /// Whether the source directory was recreated below a pod, which holds the dead one until it is
    /// restarted; the mounter sees only the new one that it has bound since.
    pub stale: bool,
}

impl Kind for Directory {
    type State = State;
    type Seen = Seen;
    type Ending = ();

    fn end(state: &mut State) {
        *state = State::default();
    }

    /// Only what is not seen on the node any more is worth a record.
    fn body(entry: &VolumeEntry<Self>, _: &State, _: u64) -> Option<Body> {
        entry.view().seen.stale.then_some(Body::Directory)
    }

    fn flags(seen: &Seen) -> u32 {
        if seen.stale { flag::STALE } else { 0 }
    }
}
