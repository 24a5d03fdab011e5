//! What the kubelet asks for, judged before anything is touched. No I/O.
//!
//! The refusals are those of the SPIFFE CSI driver 0.2.12 (same order, same code), each with the field's name
//! and the remedy, plus what a hostile pod's author can try (`volumeAttributes` end up in `volume_context`).

mod publish;
mod refusal;
mod token;

pub use publish::{bind, bind_stored, publish};
pub use refusal::Refusal;

use std::collections::HashMap;

use seamount_mounter_protocol::names::{DriverName, PodUid, Volume, VolumeId, VolumeName};
use seamount_proto::csi::{
    NodeGetVolumeHealthRequest, NodeGetVolumeStatsRequest, NodeUnpublishVolumeRequest,
};

use crate::config::Config;
use crate::token::Token;
use refusal::quote;

/// CSI 1.13, "Size Limits": strings, in bytes.
pub const MAX_STRING: usize = 128;
/// CSI 1.13, "Size Limits": maps, the sum of keys and values, in bytes. (Tokens are counted apart, by their
/// own limit.)
pub const MAX_MAP: usize = 4096;
/// The kernel's PATH_MAX, in bytes with the closing NUL.
pub const MAX_PATH: usize = 4096;

/// Prefix of the kubelet's own keys in `volume_context`.
pub(crate) const KUBELET_PREFIX: &str = "csi.storage.k8s.io/";
pub(crate) const EPHEMERAL: &str = "csi.storage.k8s.io/ephemeral";
pub(crate) const POD_NAME: &str = "csi.storage.k8s.io/pod.name";
pub(crate) const POD_NAMESPACE: &str = "csi.storage.k8s.io/pod.namespace";
pub(crate) const POD_UID: &str = "csi.storage.k8s.io/pod.uid";
pub(crate) const SERVICE_ACCOUNT: &str = "csi.storage.k8s.io/serviceAccount.name";
/// Where the kubelet puts the tokens: in `secrets` (CSIDriver `serviceAccountTokenInSecrets`), else in
/// `volume_context`.
pub const TOKENS: &str = "csi.storage.k8s.io/serviceAccount.tokens";

/// What of the configuration decides over a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rules {
    /// The driver whose socket the request came on: all volumes of it are that driver's.
    pub driver: DriverName,
    /// The kubelet's root directory without a slash at its end.
    pub kubelet_root: String,
    /// The audience that a token must be for; none with the `directory` source, which needs no token.
    pub audience: Option<String>,
    /// Whether a token may come in `volume_context` (kubelet before 1.35).
    pub allow_volume_context: bool,
}

impl Rules {
    /// The same with what this configuration asks of a publish.
    #[must_use]
    pub fn with(self, config: &Config) -> Self {
        let authority = config.authority();
        Self {
            audience: authority.map(|a| a.token.audience.clone()),
            allow_volume_context: authority.is_some_and(|a| a.token.allow_volume_context),
            ..self
        }
    }

    /// Rules for what must never be in a deletion's way: nothing but driver and kubelet's root matter for it.
    pub fn basic(driver: DriverName, kubelet_root: &str) -> Self {
        let kubelet_root = kubelet_root.to_owned();
        Self { driver, kubelet_root, audience: None, allow_volume_context: false }
    }
}

/// A publish request that has the right form. Nothing in it is proved before [`bind`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PublishRequest {
    /// Which volume.
    pub volume: Volume,
    /// `csi.storage.k8s.io/pod.name`.
    pub pod_name: String,
    /// `csi.storage.k8s.io/pod.namespace`.
    pub namespace: String,
    /// `csi.storage.k8s.io/serviceAccount.name`.
    pub service_account: String,
    /// The pod's token; none with the `directory` source.
    pub token: Option<Token>,
    /// Digest of all that may not change between two publishes of one volume.
    pub parameters: Parameters,
}

/// SHA-256 over a publish request's lasting parameters: volume id, access mode, pod name, namespace and
/// service account. CSI 1.13, "NodePublishVolume Errors": the same volume at the same path with others is
/// `AlreadyExists`, which the runtime answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Parameters(pub [u8; 32]);

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

fn volume_id(id: &str) -> Result<VolumeId, Refusal> {
    if id.is_empty() {
        return Err(Refusal::Missing {
            field: "volume_id".to_owned(),
            remedy: "send the id that the kubelet made",
        });
    }
    text("volume_id", id, MAX_STRING)?;
    if id.contains("..") || id.contains('/') {
        return Err(Refusal::Climbs { field: "volume_id".to_owned() });
    }
    id.parse().map_err(|e| Refusal::Form {
        field: "volume_id".to_owned(),
        value: quote(id),
        expected: format!("a volume id; it {e}"),
    })
}

/// `<root>/pods/<uid>/volumes/kubernetes.io~csi/<name>/mount`, compared as text: another spelling of the same
/// path is not the kubelet's.
fn target_path(field: &'static str, path: &str, root: &str) -> Result<(PodUid, VolumeName), Refusal> {
    if path.is_empty() {
        return Err(Refusal::Missing {
            field: field.to_owned(),
            remedy: "send the path that the kubelet made",
        });
    }
    text(field, path, MAX_PATH)?;
    if path.split('/').any(|part| part == "..") {
        return Err(Refusal::Climbs { field: field.to_owned() });
    }
    let form = || Refusal::Form {
        field: field.to_owned(),
        value: quote(path),
        expected: format!(
            "{root}/pods/<pod UID>/volumes/kubernetes.io~csi/<volume name>/mount (compare kubeletRoot with the kubelet's --root-dir)"
        ),
    };
    let rest = path.strip_prefix(root).and_then(|p| p.strip_prefix("/pods/")).ok_or_else(form)?;
    let mut parts = rest.split('/');
    let (Some(uid), Some("volumes"), Some("kubernetes.io~csi"), Some(name), Some("mount"), None) =
        (parts.next(), parts.next(), parts.next(), parts.next(), parts.next(), parts.next())
    else {
        return Err(form());
    };
    let pod = uid.parse().map_err(|_| form())?;
    let name = name.parse().map_err(|_| form())?;
    Ok((pod, name))
}

/// What holds for every string: bounded, no NUL.
fn text(field: &str, value: &str, max: usize) -> Result<(), Refusal> {
    if value.len() > max {
        return Err(Refusal::TooLong { field: field.to_owned(), length: value.len(), max });
    }
    if value.contains('\0') {
        return Err(Refusal::Nul { field: field.to_owned() });
    }
    Ok(())
}

/// What holds for every map: the sum of keys and values is bounded, no NUL anywhere.
fn map<'a>(
    field: &str,
    entries: impl Iterator<Item = (&'a String, &'a String)>,
    max: usize,
) -> Result<(), Refusal> {
    let mut sum = 0usize;
    for (key, value) in entries {
        sum = sum.saturating_add(key.len()).saturating_add(value.len());
        if sum > max {
            return Err(Refusal::TooLong { field: field.to_owned(), length: sum, max });
        }
        if key.contains('\0') || value.contains('\0') {
            return Err(Refusal::Nul { field: entry(field, key) });
        }
    }
    Ok(())
}

/// `volume_context["key"]`
fn entry(field: &str, key: &str) -> String {
    format!("{field}[{}]", quote(key))
}

type Map = HashMap<String, String>;

#[cfg(test)]
mod tests;
