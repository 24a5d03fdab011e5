//! In what a call differs from what a volume is published with.

use seamount_identity::authority::Workload;
use seamount_mounter_protocol::names::Volume;

use super::{Basis, Entry, Facts};
use crate::csi::request::PublishRequest;

/// `volume_id`, where it is another one.
pub(super) fn conflict_id(entry: &Entry, volume: &Volume) -> Option<&'static str> {
    (entry.volume.id != volume.id).then_some("volume_id")
}

/// The first field in which a publish differs from what this agent has published. What a record says binds no publish: its token
/// is verified, and the agent that wrote the record may have been hostile.
pub(super) fn conflict(
    entry: &Entry,
    known: Option<&Facts>,
    request: &PublishRequest,
    workload: &Workload,
) -> Option<&'static str> {
    if let Some(field) = conflict_id(entry, &request.volume) {
        return Some(field);
    }
    let known = known?;
    let Basis::Published(parameters) = known.basis else { return None };
    let (old, new) = (&known.workload, workload);
    if old.namespace != new.namespace {
        Some("volume_context[\"csi.storage.k8s.io/pod.namespace\"]")
    } else if old.pod_name != new.pod_name {
        Some("volume_context[\"csi.storage.k8s.io/pod.name\"]")
    } else if old.service_account != new.service_account {
        Some("volume_context[\"csi.storage.k8s.io/serviceAccount.name\"]")
    } else if parameters != request.parameters {
        Some("volume_capability.access_mode")
    } else {
        None
    }
}
