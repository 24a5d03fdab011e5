//! What the kubelet asks for, judged before anything is touched. No I/O.
//!
//! The refusals are those of the SPIFFE CSI driver 0.2.12 (same order, same code), each with the field's name
//! and the remedy, plus what a hostile pod's author can try (`volumeAttributes` end up in `volume_context`).

mod fields;
mod publish;
mod refusal;
mod rules;
mod token;

pub use fields::{MAX_MAP, MAX_PATH, MAX_STRING, TOKENS};
pub(crate) use fields::{POD_NAME, POD_NAMESPACE};
pub use publish::{Parameters, PublishRequest, bind, bind_stored, publish};
pub use refusal::Refusal;
pub use rules::Rules;

use seamount_mounter_protocol::names::{Volume, VolumeId};
use seamount_proto::csi::{
    NodeGetVolumeHealthRequest, NodeGetVolumeStatsRequest, NodeUnpublishVolumeRequest,
};

use fields::{quote, target_path, text, volume_id};

/// The volume to take away. Needs the identifiers alone: no configuration, no token, no state.
pub fn unpublish(request: &NodeUnpublishVolumeRequest, rules: &Rules) -> Result<Volume, Refusal> {
    let id = volume_id(&request.volume_id)?;
    let (pod, name) = target_path("target_path", &request.target_path, &rules.kubelet_root)?;
    Ok(Volume { driver: rules.driver.clone(), pod, name, id })
}

/// The volume whose usage is asked for. A path that cannot be one of our volumes is `NotFound`, as CSI wants
/// it.
pub fn stats(request: &NodeGetVolumeStatsRequest, rules: &Rules) -> Result<Volume, Refusal> {
    let id = volume_id(&request.volume_id)?;
    text("staging_target_path", &request.staging_target_path, MAX_PATH)?;
    find("volume_path", &request.volume_path, id, rules)
}

/// The volume whose health is asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HealthTarget {
    /// By path and id.
    Volume(Volume),
    /// The request has no path (it is optional in CSI 1.13): to be found by its id.
    Id(VolumeId),
}

/// As [`stats`], for `NodeGetVolumeHealth` of CSI 1.13.
pub fn health(request: &NodeGetVolumeHealthRequest, rules: &Rules) -> Result<HealthTarget, Refusal> {
    let id = volume_id(&request.volume_id)?;
    text("staging_target_path", &request.staging_target_path, MAX_PATH)?;
    if request.volume_publish_path.is_empty() {
        return Ok(HealthTarget::Id(id));
    }
    find("volume_publish_path", &request.volume_publish_path, id, rules).map(HealthTarget::Volume)
}

fn find(field: &'static str, path: &str, id: VolumeId, rules: &Rules) -> Result<Volume, Refusal> {
    if path.is_empty() {
        return Err(Refusal::Missing {
            field: field.to_owned(),
            remedy: "send the path that the volume is published at",
        });
    }
    let volume = id.to_string();
    match target_path(field, path, &rules.kubelet_root) {
        Ok((pod, name)) => Ok(Volume { driver: rules.driver.clone(), pod, name, id }),
        Err(why @ (Refusal::TooLong { .. } | Refusal::Nul { .. })) => Err(why),
        Err(_) => {
            Err(Refusal::NotFound { field: field.to_owned(), path: quote(path), volume: quote(&volume) })
        }
    }
}

#[cfg(test)]
mod tests;
