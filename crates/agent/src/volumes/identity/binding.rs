//! What an identity rests on, and the identity.

use std::sync::Arc;
use std::time::SystemTime;

use seamount_authority::Workload;
use seamount_identity::{BundleSet, X509Svid};
use seamount_pod_token::{DatedToken, Token};

use crate::csi::request::Parameters;

/// What a volume's identity rests on.
#[derive(Clone)]
pub(in crate::volumes) struct PodBinding {
    pub workload: Workload,
    pub token: DatedToken,
    pub basis: Basis,
}

impl PodBinding {
    /// Whether the token was verified by this agent.
    pub fn proved(&self) -> bool {
        self.basis != Basis::Claimed
    }
}

/// Where the facts come from.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(in crate::volumes) enum Basis {
    /// A publish with a verified token, and what another one must repeat.
    Published(Parameters),
    /// A record whose token was verified again.
    Proved,
    /// A record whose token cannot be verified yet: good enough to serve what the authority has signed, not
    /// to ask for more.
    Claimed,
}

/// An SVID with its schedule.
#[derive(Clone)]
pub(in crate::volumes) struct IssuedSvid {
    pub svid: Arc<X509Svid>,
    pub rotate_at: SystemTime,
    /// The bundles at the time; of a restored SVID the own trust domain's alone.
    pub bundles: Arc<BundleSet>,
}

/// What a record says, until it is decided.
#[derive(Clone)]
pub(in crate::volumes) struct Recalled {
    pub token: Token,
    pub held: Option<IssuedSvid>,
}

/// What the decision over a record waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::volumes) enum Awaits {
    /// Its turn.
    Turn,
    /// The issuer's keys.
    Keys,
    /// The authority.
    Source,
}
