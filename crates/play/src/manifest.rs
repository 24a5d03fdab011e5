//! From the text of manifests to what is played. No I/O here.

mod pod;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::time::Duration;

use k8s_openapi::api::core::v1 as api;
use serde_json::Value;
use zeroize::Zeroize as _;

use super::allow;

/// Something in a manifest that cannot be played.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ManifestError {
    /// Not YAML, or not an object.
    #[error("{file}: {reason}")]
    Unreadable {
        /// The file.
        file: String,
        /// Why.
        reason: String,
    },
    /// An object of a kind that has no place here.
    #[error("{kind} {name}: this kind is not played; {remedy}")]
    Kind {
        /// The kind.
        kind: String,
        /// `namespace/name`, or `name` where it has no namespace.
        name: String,
        /// What to do.
        remedy: &'static str,
    },
    /// A field.
    #[error("{kind} {name}: {field}: {reason}")]
    Field {
        /// The object's kind.
        kind: &'static str,
        /// Its `namespace/name`.
        name: String,
        /// The field's path.
        field: String,
        /// What is wrong with it.
        reason: String,
    },
}

/// All that is to be played. Holds the values of Secrets: no `Debug`.
pub struct Plan {
    /// The pods, in the order of the files.
    pub pods: Vec<Pod>,
    /// What is different from a cluster.
    pub notes: Vec<String>,
}

/// What makes a container start again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Restart {
    /// Nothing. (Also for `Always`: a simulated container runs once, or a play would never end.)
    Never,
    /// A failure.
    OnFailure,
}

/// One pod.
pub struct Pod {
    /// `metadata.name`.
    pub name: String,
    /// `metadata.namespace`, or `default`.
    pub namespace: String,
    /// A UUID, as the API server would give one.
    pub uid: String,
    /// `spec.serviceAccountName`, or `default`.
    pub service_account: String,
    /// The host name in the pod.
    pub hostname: String,
    /// Init containers and native sidecars, in order.
    pub init: Vec<Container>,
    /// The others.
    pub containers: Vec<Container>,
    /// The volumes.
    pub volumes: Vec<Volume>,
    /// `spec.restartPolicy`.
    pub restart: Restart,
    /// `spec.terminationGracePeriodSeconds`, default 30 s.
    pub grace: Duration,
    /// `spec.securityContext.fsGroup`.
    pub fs_group: Option<u32>,
    /// `spec.securityContext.supplementalGroups`.
    pub groups: Vec<u32>,
}

impl Pod {
    /// `namespace/name`.
    pub fn full_name(&self) -> String {
        format!("{}/{}", self.namespace, self.name)
    }
}

/// One container.
pub struct Container {
    /// Its name.
    pub name: String,
    /// Its image, which is only a key for `--rootfs`.
    pub image: String,
    /// Whether it is an init container with `restartPolicy: Always`.
    pub sidecar: bool,
    /// Program and arguments.
    pub command: Vec<String>,
    /// The environment, in order.
    pub env: Vec<(String, String)>,
    /// The working directory.
    pub directory: String,
    /// The user it asks for.
    pub user: Option<u32>,
    /// The group it asks for.
    pub group: Option<u32>,
    /// Whether it insists on not being root.
    pub non_root: bool,
    /// Whether its root file system is read-only.
    pub read_only: bool,
    /// Its mounts, outer paths first.
    pub mounts: Vec<Mount>,
    /// Its path in the Pod: `spec.containers[0]`.
    pub field: String,
}

/// One mount of a container.
pub struct Mount {
    /// The volume's name.
    pub volume: String,
    /// Where.
    pub path: String,
    /// What of the volume.
    pub sub_path: Option<String>,
    /// Whether the container may only read.
    pub read_only: bool,
}

/// One volume.
pub struct Volume {
    /// Its name.
    pub name: String,
    /// What is in it.
    pub source: Source,
}

/// What is in a volume.
pub enum Source {
    /// One of ours.
    Csi {
        /// `csi.readOnly`.
        read_only: bool,
        /// `csi.volumeAttributes`.
        attributes: BTreeMap<String, String>,
    },
    /// An empty directory.
    EmptyDir,
    /// The files of a ConfigMap or Secret.
    Files(Vec<File>),
}

/// One file.
pub struct File {
    /// Below the volume.
    pub path: String,
    /// Permission bits.
    pub mode: u32,
    /// The content.
    pub data: Vec<u8>,
}

impl Drop for File {
    fn drop(&mut self) {
        self.data.zeroize();
    }
}

/// Where a simulated pod finds itself.
pub struct Place<'a> {
    /// The only driver whose volumes can be played.
    pub driver: &'a str,
    /// The node's name.
    pub node: &'a str,
    /// Gives a pod its UID.
    pub uid: &'a dyn Fn() -> String,
}

/// The values of a ConfigMap or Secret.
type Data = BTreeMap<String, Vec<u8>>;

/// ConfigMaps and Secrets by namespace and name.
#[derive(Default)]
struct Objects {
    config_maps: BTreeMap<(String, String), Data>,
    secrets: BTreeMap<(String, String), Data>,
}

/// Reads the files (name and text).
///
/// # Errors
/// Everything that cannot be played, in the files' order.
pub fn load(files: &[(String, String)], place: &Place<'_>) -> Result<Plan, Vec<ManifestError>> {
    let mut errors = Vec::new();
    let mut objects = Objects::default();
    let mut pods = Vec::new();
    for (file, text) in files {
        match documents(text) {
            Ok(documents) => {
                for value in documents {
                    object(file, value, &mut objects, &mut pods, &mut errors);
                }
            }
            Err(reason) => errors.push(ManifestError::Unreadable { file: file.clone(), reason }),
        }
    }
    let mut plan = Plan { pods: Vec::new(), notes: Vec::new() };
    for value in pods {
        let (pod, notes) = pod::read(&value, &objects, place, &mut errors);
        plan.notes.extend(notes);
        let Some(pod) = pod else { continue };
        if plan.pods.iter().any(|p| p.full_name() == pod.full_name()) {
            errors.push(field("Pod", &pod.full_name(), "metadata.name", "another Pod has the same name"));
        }
        plan.pods.push(pod);
    }
    if errors.is_empty() && plan.pods.is_empty() {
        let file = files.first().map_or_else(String::new, |(name, _)| name.clone());
        errors.push(ManifestError::Unreadable { file, reason: "there is no Pod to play".into() });
    }
    if errors.is_empty() { Ok(plan) } else { Err(errors) }
}

/// The documents of one text. Octal numbers are read as Kubernetes reads them (`defaultMode: 0400`). The
/// parser's messages come without the line's text, which could be a Secret's.
fn documents(text: &str) -> Result<Vec<Value>, String> {
    let options = serde_saphyr::options! { legacy_octal_numbers: true, with_snippet: false };
    serde_saphyr::from_multiple_with_options(text, options).map_err(|e| format!("not readable as YAML: {e}"))
}

fn object(
    file: &str,
    value: Value,
    objects: &mut Objects,
    pods: &mut Vec<Value>,
    errors: &mut Vec<ManifestError>,
) {
    if value.is_null() {
        return;
    }
    let text = |pointer: &str| value.pointer(pointer).and_then(Value::as_str);
    let unreadable =
        |reason: &str| ManifestError::Unreadable { file: file.to_owned(), reason: reason.into() };
    let Some(kind) = text("/kind") else {
        errors.push(unreadable("a document has no `kind`"));
        return;
    };
    let Some(name) = text("/metadata/name").filter(|n| !n.is_empty()) else {
        errors.push(unreadable(&format!("a {kind} has no `metadata.name`")));
        return;
    };
    let namespace = text("/metadata/namespace").unwrap_or("default");
    let full_name = format!("{namespace}/{name}");
    let key = (namespace.to_owned(), name.to_owned());
    let version = text("/apiVersion").unwrap_or_default();
    let (kind, refused) = match (version, kind) {
        ("v1", "Pod") => return pods.push(value),
        ("v1", "ConfigMap") => ("ConfigMap", allow::data(&value)),
        ("v1", "Secret") => ("Secret", allow::data(&value)),
        ("v1", "Namespace") => ("Namespace", allow::without_effect(&value)),
        ("v1", "ServiceAccount") => ("ServiceAccount", allow::without_effect(&value)),
        (_, "Deployment" | "StatefulSet" | "DaemonSet" | "ReplicaSet" | "Job" | "CronJob") => {
            let remedy = "write its pod template as a Pod of its own";
            errors.push(ManifestError::Kind { kind: kind.to_owned(), name: full_name, remedy });
            return;
        }
        _ => {
            let remedy = "play reads Pods, ConfigMaps and Secrets of apiVersion v1 \
                          (and skips Namespaces and ServiceAccounts): leave it out";
            errors.push(ManifestError::Kind { kind: kind.to_owned(), name: full_name, remedy });
            return;
        }
    };
    let refused = refused.into_iter().map(|r| field(kind, &full_name, &r.field, "cannot be played"));
    let before = errors.len();
    errors.extend(refused);
    if errors.len() > before {
        return;
    }
    let (into, data) = match kind {
        "ConfigMap" => (&mut objects.config_maps, config_map(value)),
        "Secret" => (&mut objects.secrets, secret(value)),
        _ => return,
    };
    match data {
        Ok(data) => {
            if into.insert(key, data).is_some() {
                errors.push(field(kind, &full_name, "metadata.name", "another object has the same name"));
            }
        }
        Err(reason) => errors.push(field(kind, &full_name, "data", &reason)),
    }
}

fn config_map(value: Value) -> Result<Data, String> {
    let map: api::ConfigMap = serde_json::from_value(value).map_err(|e| e.to_string())?;
    let text = map.data.unwrap_or_default().into_iter().map(|(k, v)| (k, v.into_bytes()));
    let bytes = map.binary_data.unwrap_or_default().into_iter().map(|(k, v)| (k, v.0));
    Ok(text.chain(bytes).collect())
}

fn secret(value: Value) -> Result<Data, String> {
    // serde's own message would show the value.
    let secret: api::Secret = serde_json::from_value(value)
        .map_err(|_| "is not a map of base64 texts (or `stringData` is not a map of texts)".to_owned())?;
    let bytes = secret.data.unwrap_or_default().into_iter().map(|(k, v)| (k, v.0));
    let text = secret.string_data.unwrap_or_default().into_iter().map(|(k, v)| (k, v.into_bytes()));
    Ok(bytes.chain(text).collect())
}

fn field(kind: &'static str, name: &str, field: &str, reason: &str) -> ManifestError {
    ManifestError::Field { kind, name: name.to_owned(), field: field.to_owned(), reason: reason.to_owned() }
}

/// What a user namespace in which `last` is the highest id cannot play (user_namespaces(7): no other id is
/// mapped).
pub fn needs_other_ids(plan: &Plan, last: u32) -> Vec<ManifestError> {
    let reason = match last {
        0 => {
            "needs another user or group id than yours, and without root there is none: install newuidmap and \
             newgidmap (package uidmap or shadow-utils) with a range for you in /etc/subuid and /etc/subgid, run as \
             root, or leave the field out"
        }
        _ => {
            "is above 65535, the last of your subordinate ids that a play uses: run as root, or use a smaller one"
        }
    };
    let beyond = |id: Option<u32>| id.is_some_and(|id| id > last);
    let mut errors = Vec::new();
    for pod in &plan.pods {
        let mut refuse = |path: String| errors.push(field("Pod", &pod.full_name(), &path, reason));
        let context = "spec.securityContext";
        if beyond(pod.fs_group) {
            refuse(format!("{context}.fsGroup"));
        }
        if pod.groups.iter().any(|g| beyond(Some(*g))) {
            refuse(format!("{context}.supplementalGroups"));
        }
        for container in pod.init.iter().chain(&pod.containers) {
            if beyond(container.user) {
                refuse(format!("{}.securityContext.runAsUser", container.field));
            }
            if beyond(container.group) {
                refuse(format!("{}.securityContext.runAsGroup", container.field));
            }
        }
    }
    errors
}
