//! In what a call differs from what a volume is published with.

use seamount_authority::Workload;
use seamount_mounter_protocol::names::Volume;

use super::binding::{Basis, PodBinding};
use crate::csi::request::PublishRequest;

/// `volume_id`, where it is another one; `driver`, where it is another driver's.
pub(in crate::volumes) fn conflict_id(known: &Volume, volume: &Volume) -> Option<&'static str> {
    match (known.driver == volume.driver, known.id == volume.id) {
        (true, true) => None,
        (true, false) => Some("volume_id"),
        (false, _) => Some("driver"),
    }
}

/// The first field in which a publish differs from what this agent has published, or from the pod that a
/// record's verified token proves. Nothing else that a record says binds a publish: the agent that wrote it
/// may have been hostile.
pub(super) fn conflict(
    published: &Volume,
    known: Option<&PodBinding>,
    request: &PublishRequest,
    workload: &Workload,
) -> Option<&'static str> {
    if let Some(field) = conflict_id(published, &request.volume) {
        return Some(field);
    }
    let known = known.filter(|facts| facts.proved())?;
    let (old, new) = (&known.workload, workload);
    if old.namespace != new.namespace {
        return Some("volume_context[\"csi.storage.k8s.io/pod.namespace\"]");
    }
    if old.pod_name != new.pod_name {
        return Some("volume_context[\"csi.storage.k8s.io/pod.name\"]");
    }
    if old.service_account != new.service_account {
        return Some("volume_context[\"csi.storage.k8s.io/serviceAccount.name\"]");
    }
    match known.basis {
        Basis::Published(parameters) if parameters != request.parameters => {
            Some("volume_capability.access_mode")
        }
        _ => None,
    }
}
