//! What the kubelet's socket takes: bytes, through prost, to the agent's judgement. What passes is what a
//! kubelet says of one volume of ours, and what may be published may always be taken away again.

use std::collections::HashMap;

use arbitrary::{Result, Unstructured};
use prost::Message as _;
use seamount_agent::csi::request::{self, HealthTarget, Refusal, Rules, TOKENS};
use seamount_proto::csi::volume_capability::{AccessMode, AccessType, MountVolume};
use seamount_proto::csi::{
    NodeGetVolumeHealthRequest, NodeGetVolumeStatsRequest, NodePublishVolumeRequest,
    NodeUnpublishVolumeRequest, VolumeCapability,
};
use serde::de::IgnoredAny;

use crate::input;

/// Where the simulated kubelet is.
pub const ROOT: &str = "/var/lib/kubelet";
const POD: &str = "3f2c1a9e-0b1d-4c5e-8f70-a1b2c3d4e5f6";
const SECRET: &str = "eyJhbGciOi.c2VjcmV0.c2lnbmF0dXJl";

/// 0 to 3: bytes of a request. 4: a good publish request, changed.
pub fn run(data: &[u8]) {
    let (kind, rest) = input::kind(data, 5);
    match kind {
        0 => NodePublishVolumeRequest::decode(rest).map(publish).unwrap_or_default(),
        1 => NodeUnpublishVolumeRequest::decode(rest).map(|r| unpublish(&r)).unwrap_or_default(),
        2 => NodeGetVolumeStatsRequest::decode(rest).map(|r| stats(&r)).unwrap_or_default(),
        3 => NodeGetVolumeHealthRequest::decode(rest).map(|r| health(&r)).unwrap_or_default(),
        _ => changed(&mut Unstructured::new(rest)).unwrap_or_default(),
    }
}

/// What the configuration of an agent with an authority asks for.
pub fn rules() -> Rules {
    Rules { audience: Some("seamount.dev".to_owned()), ..basic() }
}

fn basic() -> Rules {
    Rules::basic("csi.spiffe.io".parse().unwrap(), ROOT)
}

/// As the kubelet asks for an inline volume.
pub fn good(tokens: &str) -> NodePublishVolumeRequest {
    let context = [
        ("csi.storage.k8s.io/ephemeral", "true"),
        ("csi.storage.k8s.io/pod.name", "cart-0"),
        ("csi.storage.k8s.io/pod.namespace", "shop"),
        ("csi.storage.k8s.io/pod.uid", POD),
        ("csi.storage.k8s.io/serviceAccount.name", "cart"),
    ];
    NodePublishVolumeRequest {
        volume_id: format!("csi-{}", "a1".repeat(32)),
        target_path: format!("{ROOT}/pods/{POD}/volumes/kubernetes.io~csi/spiffe/mount"),
        volume_capability: Some(VolumeCapability {
            access_mode: Some(AccessMode { mode: 1 }),
            access_type: Some(AccessType::Mount(MountVolume::default())),
        }),
        readonly: true,
        secrets: HashMap::from([(TOKENS.to_owned(), tokens.to_owned())]),
        volume_context: context.into_iter().map(|(k, v)| (k.to_owned(), v.to_owned())).collect(),
        ..NodePublishVolumeRequest::default()
    }
}

/// A refusal says something, is bounded, is one line, and tells no secret.
fn refused(refusal: Refusal, secrets: &[&str]) {
    let (code, kind, text) = (refusal.code(), refusal.kind(), refusal.to_string());
    assert!(["form", "token", "mismatch", "keys", "unknown"].contains(&kind));
    assert!(!text.is_empty() && text.len() < 4096, "{} bytes", text.len());
    assert!(!text.chars().any(char::is_control), "{text:?}");
    assert!(!secrets.iter().any(|secret| text.contains(secret)), "{text}");
    let status = tonic::Status::from(refusal);
    assert_eq!((status.code(), status.message()), (code, text.as_str()));
}

fn publish(request: NodePublishVolumeRequest) {
    // The fuzzer may have put the secret where names are; an audience is one.
    let mut rest = request.clone();
    let tokens = [rest.secrets.remove(TOKENS), rest.volume_context.remove(TOKENS)];
    let rest = rest.encode_to_vec();
    let names = |json: &String| serde_json::from_str::<HashMap<String, IgnoredAny>>(json).unwrap_or_default();
    let told = rest.windows(SECRET.len()).any(|part| part == SECRET.as_bytes())
        || tokens.iter().flatten().any(|json| names(json).keys().any(|name| name.contains(SECRET)));
    for (audience, allow_volume_context) in [(true, false), (true, true), (false, false)] {
        let mut rules = Rules { allow_volume_context, ..rules() };
        rules.audience = rules.audience.filter(|_| audience);
        let judged = match request::publish(request.clone(), &rules) {
            Ok(judged) => judged,
            Err(refusal) => {
                refused(refusal, if told { &[] } else { &[SECRET] });
                continue;
            }
        };
        let volume = &judged.volume;
        let context =
            |key: &str| request.volume_context.get(&format!("csi.storage.k8s.io/{key}")).map(String::as_str);
        assert!(request.readonly && context("ephemeral") == Some("true"));
        assert_eq!(request.target_path, path(volume.pod.as_str(), volume.name.as_str()));
        assert_eq!(
            (request.volume_id.as_str(), context("pod.uid")),
            (volume.id.as_str(), Some(volume.pod.as_str()))
        );
        assert_eq!(context("pod.name"), Some(judged.pod_name.as_str()));
        assert_eq!(context("pod.namespace"), Some(judged.namespace.as_str()));
        assert_eq!(context("serviceAccount.name"), Some(judged.service_account.as_str()));
        assert!(request.volume_context.len() <= 6 && request.secrets.keys().all(|key| key == TOKENS));
        assert_eq!(judged.token.is_some(), audience);
        if let Some(token) = &judged.token {
            let place = if allow_volume_context && !request.secrets.contains_key(TOKENS) {
                &request.volume_context
            } else {
                &request.secrets
            };
            assert!(!token.expose().is_empty() && place.contains_key(TOKENS));
            assert!(told || !format!("{judged:?}").contains(SECRET));
        }
        // The same again is the same, also when it went over the wire.
        let again = NodePublishVolumeRequest::decode(request.encode_to_vec().as_slice()).unwrap();
        assert_eq!(request::publish(again, &rules).as_ref(), Ok(&judged));
        // What was let in is let out.
        let undo = NodeUnpublishVolumeRequest {
            volume_id: request.volume_id.clone(),
            target_path: request.target_path.clone(),
        };
        assert_eq!(request::unpublish(&undo, &basic()).as_ref(), Ok(volume));
    }
}

fn path(pod: &str, name: &str) -> String {
    format!("{ROOT}/pods/{pod}/volumes/kubernetes.io~csi/{name}/mount")
}

fn unpublish(request: &NodeUnpublishVolumeRequest) {
    match request::unpublish(request, &rules()) {
        Ok(volume) => {
            assert_eq!(request.target_path, path(volume.pod.as_str(), volume.name.as_str()));
            assert_eq!(request.volume_id, volume.id.as_str());
            assert_eq!(request::unpublish(request, &basic()), Ok(volume), "configuration matters");
        }
        Err(refusal) => refused(refusal, &[]),
    }
}

fn stats(request: &NodeGetVolumeStatsRequest) {
    match request::stats(request, &rules()) {
        Ok(volume) => assert_eq!(request.volume_path, path(volume.pod.as_str(), volume.name.as_str())),
        Err(refusal) => refused(refusal, &[]),
    }
}

fn health(request: &NodeGetVolumeHealthRequest) {
    match request::health(request, &rules()) {
        Ok(HealthTarget::Volume(volume)) => {
            assert_eq!(request.volume_publish_path, path(volume.pod.as_str(), volume.name.as_str()));
        }
        Ok(HealthTarget::Id(id)) => {
            assert!(request.volume_publish_path.is_empty() && request.volume_id == id.as_str());
        }
        Err(refusal) => refused(refusal, &[]),
    }
}

fn changed(u: &mut Unstructured<'_>) -> Result<()> {
    let tokens =
        format!(r#"{{"seamount.dev":{{"token":"{SECRET}","expirationTimestamp":"2026-11-21T12:00:00Z"}}}}"#);
    let mut request = good(&tokens);
    assert!(request::publish(request.clone(), &rules()).is_ok());
    const NAMES: [&str; 8] = [
        TOKENS,
        "csi.storage.k8s.io/pod.name",
        "csi.storage.k8s.io/pod.namespace",
        "csi.storage.k8s.io/pod.uid",
        "csi.storage.k8s.io/serviceAccount.name",
        "csi.storage.k8s.io/ephemeral",
        "csi.storage.k8s.io/other",
        "spiffe.csi.cert-manager.io/fs-group",
    ];
    for _ in 0..u.int_in_range(1..=4u8)? {
        match u.int_in_range(0..=11u8)? {
            0 => request.volume_id = u.arbitrary()?,
            1 => {
                // Another step may have put any text there.
                let at = u.choose_index(request.target_path.len() + 1)?;
                let at = request.target_path.floor_char_boundary(at);
                let text: &str = u.arbitrary()?;
                request.target_path.insert_str(at, text);
            }
            2 => request.target_path = u.arbitrary()?,
            3 => request.readonly = u.arbitrary()?,
            4 => request.volume_capability = None,
            5 => {
                let mount = MountVolume {
                    fs_type: u.arbitrary()?,
                    mount_flags: u.arbitrary()?,
                    volume_mount_group: u.arbitrary()?,
                };
                let access_mode = Some(AccessMode { mode: u.int_in_range(-1..=9)? });
                let access_type = Some(AccessType::Mount(mount));
                request.volume_capability = Some(VolumeCapability { access_mode, access_type });
            }
            6 => drop(request.volume_context.insert(u.choose(&NAMES)?.to_string(), u.arbitrary()?)),
            7 => drop(request.volume_context.remove(*u.choose(&NAMES)?)),
            8 => drop(request.volume_context.insert(u.arbitrary()?, u.arbitrary()?)),
            9 => drop(request.secrets.insert(u.choose(&NAMES)?.to_string(), u.arbitrary()?)),
            10 => request.secrets.clear(),
            _ => drop(request.publish_context.insert(u.arbitrary()?, u.arbitrary()?)),
        }
    }
    publish(request);
    Ok(())
}
