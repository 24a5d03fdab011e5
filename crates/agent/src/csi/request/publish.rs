//! NodePublishVolume.

use aws_lc_rs::digest;
use seamount_authority::Workload;
use seamount_mounter_protocol::names::Volume;
use seamount_pod_token::{Claims, Token};
use seamount_proto::csi::NodePublishVolumeRequest;
use seamount_proto::csi::volume_capability::access_mode::Mode;
use seamount_proto::csi::volume_capability::{AccessMode, AccessType, MountVolume};
use zeroize::Zeroize as _;

use super::fields::{
    EPHEMERAL, KUBELET_PREFIX, MAX_MAP, MAX_PATH, MAX_STRING, Map, POD_NAME, POD_NAMESPACE, POD_UID,
    SERVICE_ACCOUNT, TOKENS, context_value, dns_name, map, quote, target_path, text, volume_id,
};
use super::refusal::Refusal;
use super::rules::Rules;
use super::token;

/// Kubernetes object names: RFC 1123 subdomains.
const MAX_NAME: usize = 253;
/// Kubernetes namespaces: RFC 1123 labels.
const MAX_LABEL: usize = 63;

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

/// Judges a publish request. The request's tokens are wiped, also where it is refused.
pub fn publish(mut request: NodePublishVolumeRequest, rules: &Rules) -> Result<PublishRequest, Refusal> {
    let judged = judge(&request, rules);
    request.secrets.values_mut().for_each(|v| v.zeroize());
    if let Some(tokens) = request.volume_context.get_mut(TOKENS) {
        tokens.zeroize();
    }
    judged
}

fn judge(request: &NodePublishVolumeRequest, rules: &Rules) -> Result<PublishRequest, Refusal> {
    let id = volume_id(&request.volume_id)?;
    let (pod, name) = target_path("target_path", &request.target_path, &rules.kubelet_root)?;
    let mode = capability(request)?;
    if !request.readonly {
        return Err(Refusal::NotReadOnly);
    }
    let context = &request.volume_context;
    if context.get(EPHEMERAL).map(String::as_str) != Some("true") {
        return Err(Refusal::NotEphemeral);
    }

    // Unused with an ephemeral volume, but bounded like everything from outside.
    text("staging_target_path", &request.staging_target_path, MAX_PATH)?;
    map("publish_context", request.publish_context.iter(), MAX_MAP)?;
    map("volume_context", context.iter().filter(|(key, _)| *key != TOKENS), MAX_MAP)?;
    map("secrets", request.secrets.iter().filter(|(key, _)| *key != TOKENS), MAX_MAP)?;
    attributes(context)?;
    if let Some(unknown) = request.secrets.keys().filter(|key| *key != TOKENS).min() {
        return Err(Refusal::UnknownSecret(quote(unknown)));
    }

    let uid = context_value(context, POD_UID, MAX_STRING)?;
    if uid != pod.as_str() {
        return Err(Refusal::PodUid { context: quote(uid), path: quote(pod.as_str()) });
    }
    let pod_name = dns_name(context, POD_NAME, MAX_NAME, true)?;
    let namespace = dns_name(context, POD_NAMESPACE, MAX_LABEL, false)?;
    let service_account = dns_name(context, SERVICE_ACCOUNT, MAX_NAME, true)?;
    let token = token::find(&request.secrets, context, rules)?;
    let volume = Volume { driver: rules.driver.clone(), pod, name, id };
    let parameters = parameters(&volume, mode, [pod_name, namespace, service_account]);
    Ok(PublishRequest {
        volume,
        pod_name: pod_name.to_owned(),
        namespace: namespace.to_owned(),
        service_account: service_account.to_owned(),
        token,
        parameters,
    })
}

/// A plain mount for one node. The SPIFFE CSI driver refuses SINGLE_NODE_READER_ONLY and so do we: an inline
/// volume is always SINGLE_NODE_WRITER, made read-only by `readonly` alone. The modes for several nodes are
/// refused too; no kubelet sends them for a volume that exists on one node.
fn capability(request: &NodePublishVolumeRequest) -> Result<i32, Refusal> {
    let missing = |field: &str| Refusal::Missing {
        field: field.to_owned(),
        remedy: "use an inline volume (pod.spec.volumes[].csi)",
    };
    let capability = request.volume_capability.as_ref().ok_or_else(|| missing("volume_capability"))?;
    match capability.access_type.as_ref().ok_or_else(|| missing("volume_capability.access_type"))? {
        AccessType::Block(_) => return Err(Refusal::NotPlainMount("block")),
        AccessType::Mount(MountVolume { fs_type, .. }) if !fs_type.is_empty() => {
            return Err(Refusal::NotPlainMount("fs_type"));
        }
        AccessType::Mount(MountVolume { mount_flags, .. }) if !mount_flags.is_empty() => {
            return Err(Refusal::NotPlainMount("mount_flags"));
        }
        // Sent only to drivers with the capability VOLUME_MOUNT_GROUP, which this is not.
        AccessType::Mount(MountVolume { volume_mount_group, .. }) if !volume_mount_group.is_empty() => {
            return Err(Refusal::NotPlainMount("volume_mount_group"));
        }
        AccessType::Mount(_) => {}
    }
    let AccessMode { mode } =
        capability.access_mode.as_ref().ok_or_else(|| missing("volume_capability.access_mode"))?;
    match Mode::try_from(*mode) {
        Ok(Mode::SingleNodeWriter | Mode::SingleNodeSingleWriter | Mode::SingleNodeMultiWriter) => Ok(*mode),
        _ => Err(Refusal::AccessMode(*mode)),
    }
}

/// The pod's author has no attribute yet. The smallest key is named, so that the message does not vary.
fn attributes(context: &Map) -> Result<(), Refusal> {
    const KUBELETS: [&str; 6] = [EPHEMERAL, POD_NAME, POD_NAMESPACE, POD_UID, SERVICE_ACCOUNT, TOKENS];
    match context.keys().filter(|key| !KUBELETS.contains(&key.as_str())).min() {
        None => Ok(()),
        Some(key) if key.starts_with(KUBELET_PREFIX) => Err(Refusal::ReservedAttribute(quote(key))),
        Some(key) => Err(Refusal::UnknownAttribute(quote(key))),
    }
}

fn parameters(volume: &Volume, mode: i32, facts: [&str; 3]) -> Parameters {
    let mut hash = digest::Context::new(&digest::SHA256);
    let mut field = |bytes: &[u8]| {
        hash.update(&(bytes.len() as u64).to_le_bytes());
        hash.update(bytes);
    };
    field(volume.id.as_str().as_bytes());
    field(&mode.to_le_bytes());
    facts.iter().for_each(|fact| field(fact.as_bytes()));
    let mut out = [0; 32];
    for (to, from) in out.iter_mut().zip(hash.finish().as_ref()) {
        *to = *from;
    }
    Parameters(out)
}

/// Compares what the request says with what the token proves: pod name, namespace, service account, pod UID
/// (as in `target_path`) and this node. What comes out is proved.
pub fn bind(request: &PublishRequest, claims: &Claims, node: &str) -> Result<Workload, Refusal> {
    same("volume_context[\"csi.storage.k8s.io/pod.namespace\"]", &request.namespace, &claims.namespace)?;
    same("volume_context[\"csi.storage.k8s.io/pod.name\"]", &request.pod_name, &claims.pod_name)?;
    same("target_path (pod UID)", request.volume.pod.as_str(), &claims.pod_uid)?;
    same(
        "volume_context[\"csi.storage.k8s.io/serviceAccount.name\"]",
        &request.service_account,
        &claims.service_account,
    )?;
    same("nodeName", node, &claims.node)?;
    Ok(workload(claims))
}

/// Compares the volume that a stored token lies with, and this node, with what the token proves. What comes
/// out is proved; a stored token of another pod, or of a pod on another node, proves nothing here.
pub fn bind_stored(volume: &Volume, claims: &Claims, node: &str) -> Result<Workload, Refusal> {
    same("the volume's pod UID", volume.pod.as_str(), &claims.pod_uid)?;
    same("nodeName", node, &claims.node)?;
    Ok(workload(claims))
}

fn same(field: &'static str, value: &str, claim: &str) -> Result<(), Refusal> {
    if value == claim {
        Ok(())
    } else {
        Err(Refusal::Mismatch { field, value: quote(value), claim: quote(claim) })
    }
}

fn workload(claims: &Claims) -> Workload {
    Workload {
        namespace: claims.namespace.clone(),
        service_account: claims.service_account.clone(),
        pod_name: claims.pod_name.clone(),
        pod_uid: claims.pod_uid.clone(),
        node: claims.node.clone(),
    }
}
