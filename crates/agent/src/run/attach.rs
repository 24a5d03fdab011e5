//! What supervisor, drivers and the looks at their names share: why an attempt failed, and how long things
//! take.

use std::time::Duration;

use seamount_mounter_client::MounterError;

use crate::state::StateError;
use crate::volumes::VolumeError;

/// Why the mounter's side of the agent is not complete.
#[derive(Debug, thiserror::Error)]
pub(super) enum AttachError {
    #[error(transparent)]
    Mounter(#[from] MounterError),
    #[error(transparent)]
    State(#[from] StateError),
    #[error(transparent)]
    Volume(#[from] VolumeError),
    #[error("a listener from the mounter cannot be served: {0}")]
    Serve(#[from] std::io::Error),
    #[error("the state directory cannot be looked at: {0}")]
    Directory(rustix::io::Errno),
}

/// How often the names are looked at.
pub(super) const EVERY: Duration = Duration::from_secs(5);
/// How long the mounter may take: the kubelet waits for 3 s until its word is recorded, by the same task.
pub(super) const LIMIT: Duration = Duration::from_secs(2);

/// What was found missing, and could not be put back.
#[derive(Debug, Default)]
pub(super) struct Lost {
    /// Why there is no place for records.
    pub state: bool,
    /// Whether the node's record was written, so that its absence says that records were removed.
    pub recorded: bool,
    /// What is said of the mounter when all is well.
    pub build: String,
}
