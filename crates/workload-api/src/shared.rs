//! What all connections of a socket have in common.

use std::{fmt, sync::Arc, time::Duration};

use tokio::sync::watch;

use crate::{observer::Observer, state::IdentityState, tenant::Tenant};

/// How long a client may take.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Timing {
    /// While [`IdentityState::Pending`].
    pub(crate) pending: Duration,
    /// For a whole request, from its headers on.
    pub(crate) request: Duration,
    /// Until a connection's first request.
    pub(crate) first_request: Duration,
    /// Without an open stream, after the first request.
    pub(crate) idle: Duration,
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            pending: Duration::from_secs(30),
            request: Duration::from_secs(30),
            first_request: Duration::from_secs(30),
            idle: Duration::from_secs(300),
        }
    }
}

/// What all connections of a socket have in common.
pub(crate) struct Shared {
    pub(crate) served: watch::Receiver<IdentityState>,
    pub(crate) tenant: Arc<Tenant>,
    pub(crate) timing: Timing,
    pub(crate) observer: Arc<dyn Observer>,
    /// Whether descriptors may come with the bytes.
    pub(crate) wary: bool,
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shared").field("limits", self.tenant.limits()).field("timing", &self.timing).finish()
    }
}
