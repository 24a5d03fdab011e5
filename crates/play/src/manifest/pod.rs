//! One Pod object to what is played of it.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use k8s_openapi::api::core::v1 as api;
use serde_json::Value;

use super::{
    Container, Data, File, ManifestError, Mount, Objects, Place, Pod, Restart, Source, Volume, field,
};
use crate::{allow, env};

struct Reader<'a> {
    name: String,
    namespace: String,
    objects: &'a Objects,
    errors: &'a mut Vec<ManifestError>,
}

impl Reader<'_> {
    fn refuse(&mut self, path: &str, reason: impl AsRef<str>) {
        self.errors.push(field("Pod", &self.name, path, reason.as_ref()));
    }

    fn id(&mut self, path: &str, value: Option<i64>) -> Option<u32> {
        let value = value?;
        // The API server's own bounds.
        match u32::try_from(value).ok().filter(|v| *v <= i32::MAX as u32) {
            Some(id) => Some(id),
            None => {
                self.refuse(path, format!("{value} is not between 0 and {}", i32::MAX));
                None
            }
        }
    }

    fn profile(&mut self, path: &str, profile: Option<&api::SeccompProfile>) {
        if let Some(other) =
            profile.map(|p| p.type_.as_str()).filter(|t| !matches!(*t, "RuntimeDefault" | "Unconfined"))
        {
            self.refuse(&format!("{path}.seccompProfile.type"), format!("{other} cannot be played"));
        }
    }

    fn config_map(&self, name: &str) -> Option<&Data> {
        self.objects.config_maps.get(&(self.namespace.clone(), name.to_owned()))
    }

    fn secret(&self, name: &str) -> Option<&Data> {
        self.objects.secrets.get(&(self.namespace.clone(), name.to_owned()))
    }

    fn missing(&mut self, path: &str, kind: &str, name: &str) {
        let namespace = self.namespace.clone();
        self.refuse(path, format!("there is no {kind} {name} of namespace {namespace} in the files; add it, or say `optional: true`"));
    }
}

/// Reads a Pod; also what is different from a cluster.
pub fn read(
    value: &Value,
    objects: &Objects,
    place: &Place<'_>,
    errors: &mut Vec<ManifestError>,
) -> (Option<Pod>, Vec<String>) {
    let text = |pointer: &str| value.pointer(pointer).and_then(Value::as_str);
    let namespace = text("/metadata/namespace").unwrap_or("default").to_owned();
    let short = text("/metadata/name").unwrap_or_default().to_owned();
    let name = format!("{namespace}/{short}");
    let (refused, notes) = allow::pod(value);
    let notes = notes.iter().map(|n| format!("Pod {name}: {}: {}", n.field, n.reason)).collect();
    let before = errors.len();
    errors.extend(refused.iter().map(|r| field("Pod", &name, &r.field, "cannot be played")));
    let pod: api::Pod = match serde_path_to_error::deserialize(value) {
        Ok(pod) => pod,
        Err(error) => {
            errors.push(field("Pod", &name, &error.path().to_string(), &error.inner().to_string()));
            return (None, notes);
        }
    };
    let mut reader = Reader { name, namespace, objects, errors };
    let pod = convert(&mut reader, short, pod, place);
    (pod.filter(|_| errors.len() == before), notes)
}

fn convert(r: &mut Reader<'_>, name: String, pod: api::Pod, place: &Place<'_>) -> Option<Pod> {
    let Some(spec) = pod.spec else {
        r.refuse("spec", "is missing");
        return None;
    };
    for (path, value) in [("metadata.name", &name), ("metadata.namespace", &r.namespace.clone())] {
        if !is_name(value, 253, true) {
            r.refuse(path, "is not a DNS name (lower-case letters, digits, hyphens and dots, at most 253)");
        }
    }
    let service_account = spec
        .service_account_name
        .or(spec.service_account)
        .filter(|s| !s.is_empty())
        .unwrap_or("default".into());
    if !is_name(&service_account, 253, true) {
        r.refuse("spec.serviceAccountName", "is not a DNS name");
    }
    let hostname = spec.hostname.unwrap_or_else(|| {
        let short: String = name.chars().take(63).collect();
        short.trim_end_matches(['-', '.']).to_owned()
    });
    if !is_name(&hostname, 63, true) {
        r.refuse("spec.hostname", "is not a DNS label");
    }
    let restart = match spec.restart_policy.as_deref() {
        None | Some("Always" | "Never") => Restart::Never,
        Some("OnFailure") => Restart::OnFailure,
        Some(other) => {
            r.refuse("spec.restartPolicy", format!("{other} is not Always, OnFailure or Never"));
            Restart::Never
        }
    };
    let grace = u64::try_from(spec.termination_grace_period_seconds.unwrap_or(30)).unwrap_or_else(|_| {
        r.refuse("spec.terminationGracePeriodSeconds", "is negative");
        0
    });
    let context = spec.security_context.unwrap_or_default();
    let at = "spec.securityContext";
    r.profile(at, context.seccomp_profile.as_ref());
    let fs_group = r.id(&format!("{at}.fsGroup"), context.fs_group);
    let groups = context.supplemental_groups.clone().unwrap_or_default();
    let groups =
        groups.into_iter().filter_map(|g| r.id(&format!("{at}.supplementalGroups"), Some(g))).collect();
    let volumes = volumes(r, spec.volumes.unwrap_or_default(), place.driver);
    let uid = (place.uid)();
    let facts = Facts {
        uid: &uid,
        node: place.node,
        service_account: &service_account,
        name: &name,
        labels: pod.metadata.labels.unwrap_or_default(),
        annotations: pod.metadata.annotations.unwrap_or_default(),
        context: &context,
        volumes: &volumes,
    };
    let mut names = BTreeSet::new();
    let mut read = |list: Vec<api::Container>, at: &str, init: bool| -> Vec<Container> {
        let mut out = Vec::new();
        for (i, container) in list.into_iter().enumerate() {
            let path = format!("{at}[{i}]");
            if !is_name(&container.name, 63, false) {
                r.refuse(&format!("{path}.name"), "is not a DNS label");
            } else if !names.insert(container.name.clone()) {
                r.refuse(&format!("{path}.name"), format!("another container is named {}", container.name));
            }
            out.push(self::container(r, container, path, init, &facts));
        }
        out
    };
    let init = read(spec.init_containers.unwrap_or_default(), "spec.initContainers", true);
    let containers = read(spec.containers, "spec.containers", false);
    if containers.is_empty() {
        r.refuse("spec.containers", "is empty");
    }
    Some(Pod {
        namespace: r.namespace.clone(),
        uid: uid.clone(),
        service_account: service_account.clone(),
        hostname,
        init,
        containers,
        restart,
        grace: Duration::from_secs(grace),
        fs_group,
        groups,
        name: name.clone(),
        volumes,
    })
}

fn volumes(r: &mut Reader<'_>, list: Vec<api::Volume>, driver: &str) -> Vec<Volume> {
    let mut names = BTreeSet::new();
    let mut out = Vec::new();
    for (i, volume) in list.into_iter().enumerate() {
        let at = format!("spec.volumes[{i}]");
        if !is_name(&volume.name, 63, false) {
            r.refuse(&format!("{at}.name"), "is not a DNS label");
        } else if !names.insert(volume.name.clone()) {
            r.refuse(&format!("{at}.name"), format!("another volume is named {}", volume.name));
        }
        let sources = [
            volume.csi.is_some(),
            volume.empty_dir.is_some(),
            volume.config_map.is_some(),
            volume.secret.is_some(),
        ];
        if sources.iter().filter(|s| **s).count() > 1 {
            r.refuse(&at, "has more than one source");
        }
        let source = if let Some(csi) = volume.csi {
            if csi.driver != driver {
                r.refuse(
                    &format!("{at}.csi.driver"),
                    format!("{} is not {driver}, the only driver here", csi.driver),
                );
            }
            Source::Csi {
                read_only: csi.read_only.unwrap_or(false),
                attributes: csi.volume_attributes.unwrap_or_default(),
            }
        } else if let Some(source) = volume.config_map {
            let data = r.config_map(&source.name).cloned();
            let at = format!("{at}.configMap");
            if data.is_none() && source.optional != Some(true) {
                r.missing(&format!("{at}.name"), "ConfigMap", &source.name);
            }
            Source::Files(files(
                r,
                &at,
                data,
                source.items,
                source.default_mode,
                source.optional == Some(true),
            ))
        } else if let Some(source) = volume.secret {
            let name = source.secret_name.unwrap_or_default();
            let data = r.secret(&name).cloned();
            let at = format!("{at}.secret");
            if data.is_none() && source.optional != Some(true) {
                r.missing(&format!("{at}.secretName"), "Secret", &name);
            }
            Source::Files(files(
                r,
                &at,
                data,
                source.items,
                source.default_mode,
                source.optional == Some(true),
            ))
        } else {
            // The API server's default for a volume without a source.
            Source::EmptyDir
        };
        out.push(Volume { name: volume.name, source });
    }
    out
}

fn files(
    r: &mut Reader<'_>,
    at: &str,
    data: Option<Data>,
    items: Option<Vec<api::KeyToPath>>,
    default_mode: Option<i32>,
    optional: bool,
) -> Vec<File> {
    let mut mode = |path: String, value: i32| match u32::try_from(value).ok().filter(|m| *m <= 0o777) {
        Some(mode) => mode,
        None => {
            r.refuse(&path, format!("{value} is not between 0 and 511 (0777)"));
            0
        }
    };
    let default = mode(format!("{at}.defaultMode"), default_mode.unwrap_or(0o644));
    let data = data.unwrap_or_default();
    let Some(items) = items.filter(|i| !i.is_empty()) else {
        return data.into_iter().map(|(path, data)| File { path, mode: default, data }).collect();
    };
    let modes: Vec<u32> = items
        .iter()
        .enumerate()
        .map(|(i, item)| item.mode.map_or(default, |m| mode(format!("{at}.items[{i}].mode"), m)))
        .collect();
    let mut out = Vec::new();
    for (i, (item, mode)) in items.into_iter().zip(modes).enumerate() {
        if !is_relative(&item.path) {
            r.refuse(&format!("{at}.items[{i}].path"), "is not a relative path without `..`");
        }
        match data.get(&item.key) {
            Some(data) => out.push(File { path: item.path, mode, data: data.clone() }),
            None if optional => {}
            None => r.refuse(&format!("{at}.items[{i}].key"), format!("there is no key {}", item.key)),
        }
    }
    out
}

/// What a container may know about its pod.
struct Facts<'a> {
    uid: &'a str,
    node: &'a str,
    name: &'a str,
    service_account: &'a str,
    labels: BTreeMap<String, String>,
    annotations: BTreeMap<String, String>,
    context: &'a api::PodSecurityContext,
    volumes: &'a [Volume],
}

fn container(r: &mut Reader<'_>, c: api::Container, at: String, init: bool, facts: &Facts<'_>) -> Container {
    let sidecar = match c.restart_policy.as_deref() {
        Some("Always") if init => true,
        // Elsewhere the field is refused as such.
        None => false,
        Some(_) if !init => false,
        Some(other) => {
            r.refuse(&format!("{at}.restartPolicy"), format!("{other} cannot be played"));
            false
        }
    };
    let context = c.security_context.unwrap_or_default();
    let security = format!("{at}.securityContext");
    r.profile(&security, context.seccomp_profile.as_ref());
    if context.privileged == Some(true) {
        r.refuse(&format!("{security}.privileged"), "a simulated container has no privilege");
    }
    if context.capabilities.and_then(|c| c.add).is_some_and(|a| !a.is_empty()) {
        r.refuse(&format!("{security}.capabilities.add"), "a simulated container has no capability");
    }
    let user = r.id(&format!("{security}.runAsUser"), context.run_as_user.or(facts.context.run_as_user));
    let group = r.id(&format!("{security}.runAsGroup"), context.run_as_group.or(facts.context.run_as_group));
    let non_root = context.run_as_non_root.or(facts.context.run_as_non_root).unwrap_or(false);
    if non_root && user == Some(0) {
        r.refuse(&format!("{security}.runAsUser"), "0 contradicts runAsNonRoot: true");
    }
    let env = environment(r, &at, c.env_from.unwrap_or_default(), c.env.unwrap_or_default(), facts);
    let variables: BTreeMap<String, String> = env.iter().cloned().collect();
    let command = c.command.unwrap_or_default();
    if command.is_empty() {
        r.refuse(
            &format!("{at}.command"),
            "is missing: images are not pulled, so the image's own command is not known; write it here",
        );
    }
    let command = command.iter().chain(c.args.iter().flatten()).map(|a| env::expand(a, &variables)).collect();
    let directory = c.working_dir.filter(|d| !d.is_empty()).unwrap_or_else(|| "/".into());
    if !is_absolute(&directory) {
        r.refuse(&format!("{at}.workingDir"), "is not an absolute path without `..`");
    }
    Container {
        name: c.name,
        image: c.image.unwrap_or_default(),
        sidecar,
        command,
        env,
        directory,
        user,
        group,
        non_root,
        read_only: context.read_only_root_filesystem.unwrap_or(false),
        mounts: mounts(r, &at, c.volume_mounts.unwrap_or_default(), facts.volumes),
        field: at,
    }
}

fn mounts(r: &mut Reader<'_>, at: &str, list: Vec<api::VolumeMount>, volumes: &[Volume]) -> Vec<Mount> {
    let mut out: Vec<(Mount, String)> = Vec::new();
    for (i, mount) in list.into_iter().enumerate() {
        let at = format!("{at}.volumeMounts[{i}]");
        let volume = volumes.iter().find(|v| v.name == mount.name);
        if volume.is_none() {
            r.refuse(&format!("{at}.name"), format!("there is no volume {}", mount.name));
        }
        let read_only = mount.read_only.unwrap_or(false)
            || match volume.map(|v| &v.source) {
                Some(Source::Csi { read_only, .. }) => *read_only,
                Some(Source::Files(_)) => true,
                Some(Source::EmptyDir) | None => false,
            };
        let path = format!("/{}", parts(&mount.mount_path).join("/"));
        let reserved = |p: &str| path == p || path.strip_prefix(p).is_some_and(|rest| rest.starts_with('/'));
        if !is_absolute(&mount.mount_path) || path == "/" {
            r.refuse(&format!("{at}.mountPath"), "is not an absolute path below / without `..` and `:`");
        } else if ["/proc", "/dev", "/seamount"].into_iter().any(reserved) {
            r.refuse(&format!("{at}.mountPath"), "/proc, /dev and /seamount are play's own");
        } else if out.iter().any(|(m, _)| m.path == path) {
            r.refuse(&format!("{at}.mountPath"), format!("something else is mounted at {path}"));
        }
        let sub_path = mount.sub_path.filter(|s| !s.is_empty());
        if sub_path.as_deref().is_some_and(|s| !is_relative(s)) {
            r.refuse(&format!("{at}.subPath"), "is not a relative path without `..`");
        }
        out.push((Mount { volume: mount.name, path, sub_path, read_only }, at));
    }
    out.sort_by(|a, b| parts(&a.0.path).cmp(&parts(&b.0.path)));
    for (outer, _) in &out {
        for (inner, at) in &out {
            let inside = inner.path.strip_prefix(&outer.path).is_some_and(|rest| rest.starts_with('/'));
            if inside && outer.read_only {
                r.refuse(
                    &format!("{at}.mountPath"),
                    format!("lies inside the read-only mount {}", outer.path),
                );
            }
        }
    }
    out.into_iter().map(|(mount, _)| mount).collect()
}

fn environment(
    r: &mut Reader<'_>,
    at: &str,
    from: Vec<api::EnvFromSource>,
    list: Vec<api::EnvVar>,
    facts: &Facts<'_>,
) -> Vec<(String, String)> {
    let mut env: Vec<(String, String)> = Vec::new();
    for (i, source) in from.into_iter().enumerate() {
        let prefix = source.prefix.unwrap_or_default();
        let (at, kind, name, optional, data) = if let Some(map) = source.config_map_ref {
            let data = r.config_map(&map.name).cloned();
            (format!("{at}.envFrom[{i}].configMapRef"), "ConfigMap", map.name, map.optional, data)
        } else if let Some(secret) = source.secret_ref {
            let data = r.secret(&secret.name).cloned();
            (format!("{at}.envFrom[{i}].secretRef"), "Secret", secret.name, secret.optional, data)
        } else {
            r.refuse(&format!("{at}.envFrom[{i}]"), "has neither configMapRef nor secretRef");
            continue;
        };
        match data {
            Some(data) => {
                for (key, value) in data {
                    if let Some(value) = utf8(r, &format!("{at}.name"), &key, value) {
                        env.push((format!("{prefix}{key}"), value));
                    }
                }
            }
            None if optional == Some(true) => {}
            None => r.missing(&format!("{at}.name"), kind, &name),
        }
    }
    for (i, variable) in list.into_iter().enumerate() {
        let at = format!("{at}.env[{i}]");
        if variable.name.is_empty() || variable.name.contains(['=', '\0']) {
            r.refuse(&format!("{at}.name"), "is not the name of a variable");
            continue;
        }
        let value = match variable.value_from {
            None => {
                let known: BTreeMap<String, String> = env.iter().cloned().collect();
                Some(env::expand(&variable.value.unwrap_or_default(), &known))
            }
            Some(_) if variable.value.as_deref().is_some_and(|v| !v.is_empty()) => {
                r.refuse(&at, "has both value and valueFrom");
                None
            }
            Some(source) => value_from(r, &format!("{at}.valueFrom"), source, facts),
        };
        if let Some(value) = value {
            env.push((variable.name, value));
        }
    }
    if env.iter().any(|(k, v)| k.contains(['\0', '=']) || v.contains('\0')) {
        r.refuse(&format!("{at}.env"), "a variable has a NUL byte, or = in its name");
    }
    env
}

fn value_from(r: &mut Reader<'_>, at: &str, source: api::EnvVarSource, facts: &Facts<'_>) -> Option<String> {
    if let Some(reference) = source.field_ref {
        let path = reference.field_path;
        let entry = |map: &BTreeMap<String, String>, prefix: &str| {
            let key = path.strip_prefix(prefix)?.strip_prefix("['")?.strip_suffix("']")?;
            Some(map.get(key).cloned().unwrap_or_default())
        };
        let value = match path.as_str() {
            "metadata.name" => Some(facts.name.to_owned()),
            "metadata.namespace" => Some(r.namespace.clone()),
            "metadata.uid" => Some(facts.uid.to_owned()),
            "spec.nodeName" => Some(facts.node.to_owned()),
            "spec.serviceAccountName" => Some(facts.service_account.to_owned()),
            // The pod is on the machine's network.
            "status.podIP" | "status.podIPs" | "status.hostIP" | "status.hostIPs" => Some("127.0.0.1".into()),
            _ => entry(&facts.labels, "metadata.labels")
                .or_else(|| entry(&facts.annotations, "metadata.annotations")),
        };
        if value.is_none() {
            r.refuse(&format!("{at}.fieldRef.fieldPath"), format!("{path} cannot be played"));
        }
        return value;
    }
    let (at, kind, name, key, optional, data) = if let Some(map) = source.config_map_key_ref {
        let data = r.config_map(&map.name).cloned();
        (format!("{at}.configMapKeyRef"), "ConfigMap", map.name, map.key, map.optional, data)
    } else if let Some(secret) = source.secret_key_ref {
        let data = r.secret(&secret.name).cloned();
        (format!("{at}.secretKeyRef"), "Secret", secret.name, secret.key, secret.optional, data)
    } else {
        // The other sources are refused as fields.
        if source.resource_field_ref.is_none() && source.file_key_ref.is_none() {
            r.refuse(at, "has no source");
        }
        return None;
    };
    let optional = optional == Some(true);
    let Some(mut data) = data else {
        if !optional {
            r.missing(&format!("{at}.name"), kind, &name);
        }
        return None;
    };
    match data.remove(&key) {
        Some(value) => utf8(r, &format!("{at}.key"), &key, value),
        None => {
            if !optional {
                r.refuse(&format!("{at}.key"), format!("{kind} {name} has no key {key}"));
            }
            None
        }
    }
}

fn utf8(r: &mut Reader<'_>, at: &str, key: &str, value: Vec<u8>) -> Option<String> {
    let value = String::from_utf8(value).ok();
    if value.is_none() {
        r.refuse(at, format!("the value of {key} is not UTF-8, so it cannot be a variable"));
    }
    value
}

fn parts(path: &str) -> Vec<&str> {
    path.split('/').filter(|p| !p.is_empty() && *p != ".").collect()
}

fn is_absolute(path: &str) -> bool {
    path.starts_with('/')
        && !path.contains(['\0', ':'])
        && path.len() < 4096
        && !path.split('/').any(|p| p == "..")
}

fn is_relative(path: &str) -> bool {
    !path.is_empty() && is_absolute(&format!("/{path}")) && !path.starts_with('/') && !parts(path).is_empty()
}

fn is_name(name: &str, max: usize, dots: bool) -> bool {
    let inner = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-' || (dots && b == b'.');
    let outer = |b: Option<&u8>| b.is_some_and(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
    name.len() <= max
        && name.bytes().all(inner)
        && outer(name.as_bytes().first())
        && outer(name.as_bytes().last())
        && !name.contains("..")
}
