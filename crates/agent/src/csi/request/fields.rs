//! The fields of requests, checked one by one: sizes, forms and names.

use std::collections::HashMap;

use seamount_mounter_protocol::names::{PodUid, VolumeId, VolumeName};

use super::refusal::Refusal;

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

pub(super) type Map = HashMap<String, String>;

pub(super) fn volume_id(id: &str) -> Result<VolumeId, Refusal> {
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
pub(super) fn target_path(
    field: &'static str,
    path: &str,
    root: &str,
) -> Result<(PodUid, VolumeName), Refusal> {
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
pub(super) fn text(field: &str, value: &str, max: usize) -> Result<(), Refusal> {
    if value.len() > max {
        return Err(Refusal::TooLong { field: field.to_owned(), length: value.len(), max });
    }
    if value.contains('\0') {
        return Err(Refusal::Nul { field: field.to_owned() });
    }
    Ok(())
}

/// What holds for every map: the sum of keys and values is bounded, no NUL anywhere.
pub(super) fn map<'a>(
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
pub(super) fn entry(field: &str, key: &str) -> String {
    format!("{field}[{}]", quote(key))
}

pub(super) fn context_value<'a>(context: &'a Map, key: &str, max: usize) -> Result<&'a str, Refusal> {
    let value = context.get(key).map(String::as_str).unwrap_or_default();
    let field = entry("volume_context", key);
    if value.is_empty() {
        return Err(Refusal::Missing { field, remedy: "the CSIDriver object needs podInfoOnMount: true" });
    }
    text(&field, value, max)?;
    Ok(value)
}

/// A Kubernetes object's name: RFC 1123 labels, joined by dots where `dots`.
pub(super) fn dns_name<'a>(context: &'a Map, key: &str, max: usize, dots: bool) -> Result<&'a str, Refusal> {
    let value = context_value(context, key, max)?;
    let label = |label: &str| {
        label.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
            && !label.is_empty()
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    let fits = if dots { value.split('.').all(label) } else { label(value) };
    if fits {
        return Ok(value);
    }
    Err(Refusal::Form {
        field: entry("volume_context", key),
        value: quote(value),
        expected: "a Kubernetes name (lower-case letters, digits, inner hyphens and dots)".to_owned(),
    })
}

/// A value from outside as it may stand in a message and a log line: escaped and cut.
pub(super) fn quote(value: &str) -> String {
    const MAX: usize = 80;
    match value.char_indices().nth(MAX) {
        None => format!("{value:?}"),
        Some((end, _)) => format!("{:?}…", value.get(..end).unwrap_or_default()),
    }
}
