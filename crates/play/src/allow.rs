//! Which fields of a manifest can be played. Everything else is refused by its path, so that nothing is
//! ignored in silence; what makes no difference on one machine is listed as such, and what makes a small one
//! is noted.

use serde_json::Value;

/// What playing does with a field.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rule {
    /// It has its effect.
    Played,
    /// It can have no effect here (scheduling, pulling, limits, display).
    Meaningless,
    /// It has none, and the user is told why.
    Noted(&'static str),
}

use Rule::{Meaningless, Noted, Played};

/// A field: its path below the object, with `[]` for each element of a list, and what is done with it and
/// with all below it.
type Table = &'static [(&'static str, Rule)];

const METADATA: Table = &[
    ("apiVersion", Played),
    ("kind", Played),
    ("metadata.name", Played),
    ("metadata.namespace", Played),
    ("metadata.labels", Played),
    ("metadata.annotations", Played),
    // What `kubectl get -o yaml` adds.
    ("metadata.uid", Meaningless),
    ("metadata.resourceVersion", Meaningless),
    ("metadata.generation", Meaningless),
    ("metadata.creationTimestamp", Meaningless),
    ("metadata.managedFields", Meaningless),
    ("metadata.ownerReferences", Meaningless),
    ("status", Meaningless),
];

const DATA: Table = &[
    ("data", Played),
    ("stringData", Played),
    ("binaryData", Played),
    ("immutable", Meaningless),
    ("type", Meaningless),
];

const IGNORED_OBJECT: Table = &[
    ("spec.finalizers", Meaningless),
    ("automountServiceAccountToken", Meaningless),
    ("imagePullSecrets", Meaningless),
    ("secrets", Meaningless),
];

const POD: Table = &[
    ("spec.serviceAccountName", Played),
    ("spec.serviceAccount", Played),
    ("spec.hostname", Played),
    ("spec.restartPolicy", Played),
    ("spec.terminationGracePeriodSeconds", Played),
    ("spec.hostNetwork", Noted("the network of a simulated pod is always the machine's")),
    ("spec.hostUsers", Noted("a simulated pod has no user namespace of its own")),
    ("spec.automountServiceAccountToken", Noted("there is no API server, so no token is mounted either way")),
    ("spec.securityContext.runAsUser", Played),
    ("spec.securityContext.runAsGroup", Played),
    ("spec.securityContext.runAsNonRoot", Played),
    ("spec.securityContext.fsGroup", Played),
    ("spec.securityContext.supplementalGroups", Played),
    ("spec.securityContext.fsGroupChangePolicy", Meaningless),
    ("spec.securityContext.seccompProfile.type", Played),
    ("spec.volumes[].name", Played),
    ("spec.volumes[].csi.driver", Played),
    ("spec.volumes[].csi.readOnly", Played),
    ("spec.volumes[].csi.volumeAttributes", Played),
    ("spec.volumes[].emptyDir.medium", Meaningless),
    (
        "spec.volumes[].emptyDir.sizeLimit",
        Noted("an emptyDir of a simulated pod has no size limit of its own"),
    ),
    ("spec.volumes[].configMap.name", Played),
    ("spec.volumes[].configMap.defaultMode", Played),
    ("spec.volumes[].configMap.optional", Played),
    ("spec.volumes[].configMap.items[].key", Played),
    ("spec.volumes[].configMap.items[].path", Played),
    ("spec.volumes[].configMap.items[].mode", Played),
    ("spec.volumes[].secret.secretName", Played),
    ("spec.volumes[].secret.defaultMode", Played),
    ("spec.volumes[].secret.optional", Played),
    ("spec.volumes[].secret.items[].key", Played),
    ("spec.volumes[].secret.items[].path", Played),
    ("spec.volumes[].secret.items[].mode", Played),
    // Scheduling and pulling.
    ("spec.affinity", Meaningless),
    ("spec.nodeName", Meaningless),
    ("spec.nodeSelector", Meaningless),
    ("spec.tolerations", Meaningless),
    ("spec.topologySpreadConstraints", Meaningless),
    ("spec.schedulerName", Meaningless),
    ("spec.priority", Meaningless),
    ("spec.priorityClassName", Meaningless),
    ("spec.preemptionPolicy", Meaningless),
    ("spec.overhead", Meaningless),
    ("spec.os", Meaningless),
    ("spec.imagePullSecrets", Meaningless),
    ("spec.enableServiceLinks", Meaningless),
    ("spec.dnsPolicy", Meaningless),
    ("spec.resources", Meaningless),
];

/// Fields of each element of `spec.containers` and `spec.initContainers`.
const CONTAINER: Table = &[
    ("name", Played),
    ("image", Played),
    ("command", Played),
    ("args", Played),
    ("workingDir", Played),
    ("env[].name", Played),
    ("env[].value", Played),
    ("env[].valueFrom.fieldRef.fieldPath", Played),
    ("env[].valueFrom.fieldRef.apiVersion", Meaningless),
    ("env[].valueFrom.configMapKeyRef.name", Played),
    ("env[].valueFrom.configMapKeyRef.key", Played),
    ("env[].valueFrom.configMapKeyRef.optional", Played),
    ("env[].valueFrom.secretKeyRef.name", Played),
    ("env[].valueFrom.secretKeyRef.key", Played),
    ("env[].valueFrom.secretKeyRef.optional", Played),
    ("envFrom[].prefix", Played),
    ("envFrom[].configMapRef.name", Played),
    ("envFrom[].configMapRef.optional", Played),
    ("envFrom[].secretRef.name", Played),
    ("envFrom[].secretRef.optional", Played),
    ("volumeMounts[].name", Played),
    ("volumeMounts[].mountPath", Played),
    ("volumeMounts[].readOnly", Played),
    ("volumeMounts[].subPath", Played),
    ("securityContext.runAsUser", Played),
    ("securityContext.runAsGroup", Played),
    ("securityContext.runAsNonRoot", Played),
    ("securityContext.readOnlyRootFilesystem", Played),
    // Never in force the other way: no_new_privs is always set and no capability is ever left.
    ("securityContext.allowPrivilegeEscalation", Played),
    ("securityContext.privileged", Played),
    ("securityContext.capabilities.drop", Played),
    ("securityContext.capabilities.add", Played),
    ("securityContext.seccompProfile.type", Played),
    ("ports", Meaningless),
    ("imagePullPolicy", Meaningless),
    ("resources", Meaningless),
    ("resizePolicy", Meaningless),
    ("terminationMessagePath", Meaningless),
    ("terminationMessagePolicy", Meaningless),
    ("livenessProbe", Noted("probes are not run")),
    ("readinessProbe", Noted("probes are not run")),
    ("startupProbe", Noted("probes are not run")),
];

/// A field that cannot be played.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refused {
    /// Its path, with indices.
    pub field: String,
}

/// A field without effect that the user should hear about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Note {
    /// Its path, with indices.
    pub field: String,
    /// What is different.
    pub reason: &'static str,
}

/// Looks at every field of a Pod.
pub fn pod(object: &Value) -> (Vec<Refused>, Vec<Note>) {
    let mut walk = Walk { tables: &[METADATA, POD], refused: Vec::new(), notes: Vec::new() };
    walk.object(object, "", "");
    (walk.refused, walk.notes)
}

/// Looks at every field of a ConfigMap or Secret.
pub fn data(object: &Value) -> Vec<Refused> {
    let mut walk = Walk { tables: &[METADATA, DATA], refused: Vec::new(), notes: Vec::new() };
    walk.object(object, "", "");
    walk.refused
}

/// Looks at every field of an object that has no effect at all.
pub fn without_effect(object: &Value) -> Vec<Refused> {
    let mut walk = Walk { tables: &[METADATA, IGNORED_OBJECT], refused: Vec::new(), notes: Vec::new() };
    walk.object(object, "", "");
    walk.refused
}

struct Walk {
    tables: &'static [Table],
    refused: Vec<Refused>,
    notes: Vec<Note>,
}

enum Found {
    Rule(Rule),
    Inside,
    Nothing,
}

impl Walk {
    fn object(&mut self, value: &Value, pattern: &str, shown: &str) {
        match value {
            Value::Object(fields) => {
                for (key, value) in fields {
                    // A null is an absent field.
                    if value.is_null() {
                        continue;
                    }
                    let join =
                        |path: &str| if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
                    // A key with such a character would change the meaning of the pattern.
                    let strange = key.contains(['.', '[', ']']);
                    self.field(value, &join(pattern), join(shown), strange);
                }
            }
            Value::Array(items) => {
                for (i, item) in items.iter().enumerate() {
                    self.object(item, &format!("{pattern}[]"), &format!("{shown}[{i}]"));
                }
            }
            // A scalar where an object or a list belongs: reading it into its type says so.
            _ => {}
        }
    }

    fn field(&mut self, value: &Value, pattern: &str, shown: String, strange: bool) {
        let found = if strange { Found::Nothing } else { find(self.tables, pattern) };
        match found {
            Found::Rule(Rule::Played | Rule::Meaningless) => {}
            Found::Rule(Rule::Noted(reason)) => self.notes.push(Note { field: shown, reason }),
            Found::Inside => self.object(value, pattern, &shown),
            Found::Nothing => self.refused.push(Refused { field: shown }),
        }
    }
}

fn find(tables: &[Table], pattern: &str) -> Found {
    for list in ["spec.containers", "spec.initContainers"] {
        match pattern.strip_prefix(list) {
            Some("" | "[]") => return Found::Inside,
            Some(rest) => {
                let Some(field) = rest.strip_prefix("[].") else { continue };
                if list == "spec.initContainers" && field == "restartPolicy" {
                    return Found::Rule(Played);
                }
                return find_in(CONTAINER, field).unwrap_or(Found::Nothing);
            }
            None => {}
        }
    }
    tables.iter().find_map(|t| find_in(t, pattern)).unwrap_or(Found::Nothing)
}

fn find_in(table: Table, pattern: &str) -> Option<Found> {
    if let Some((_, rule)) = table.iter().find(|(path, _)| *path == pattern) {
        return Some(Found::Rule(*rule));
    }
    let inside = |path: &str| path.strip_prefix(pattern).is_some_and(|rest| rest.starts_with(['.', '[']));
    table.iter().any(|(path, _)| inside(path)).then_some(Found::Inside)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn refused(object: &Value) -> Vec<String> {
        pod(object).0.into_iter().map(|r| r.field).collect()
    }

    #[test]
    fn names_every_field_that_it_does_not_know() {
        let object = json!({
            "kind": "Pod", "metadata": {"name": "a", "labels": {"x.y/z": "1"}, "generateName": "b"},
            "spec": {
                "hostPID": true, "volumes": [{"name": "v", "hostPath": {"path": "/"}}, {"name": "w", "emptyDir": {}}],
                "containers": [{"name": "c", "lifecycle": {"preStop": {}}, "env": [{"name": "A", "valueFrom":
                    {"resourceFieldRef": {"resource": "limits.cpu"}}}], "comand": ["x"], "restartPolicy": "Always"}],
                "initContainers": [{"name": "i", "restartPolicy": "Always", "volumeMounts": [{"subPathExpr": "x"}]}],
                "containers[]": 1, "nodeSelector": null, "ephemeralContainers": null
            }
        });
        let mut found = refused(&object);
        found.sort();
        assert_eq!(
            found,
            [
                "metadata.generateName",
                "spec.containers[0].comand",
                "spec.containers[0].env[0].valueFrom.resourceFieldRef",
                "spec.containers[0].lifecycle",
                "spec.containers[0].restartPolicy",
                "spec.containers[]",
                "spec.hostPID",
                "spec.initContainers[0].volumeMounts[0].subPathExpr",
                "spec.volumes[0].hostPath",
            ]
        );
    }

    #[test]
    fn notes_what_has_no_effect() {
        let object = json!({"spec": {"hostNetwork": true, "containers": [{"livenessProbe": {"exec": {}}}]}});
        let (refused, notes) = pod(&object);
        assert!(refused.is_empty());
        let mut fields: Vec<_> = notes.iter().map(|n| n.field.as_str()).collect();
        fields.sort_unstable();
        assert_eq!(fields, ["spec.containers[0].livenessProbe", "spec.hostNetwork"]);
    }

    #[test]
    fn no_table_has_a_field_inside_another() {
        for table in [METADATA, DATA, IGNORED_OBJECT, POD, CONTAINER] {
            for (path, _) in table {
                let inside = |other: &&(&str, Rule)| {
                    other.0.strip_prefix(path).is_some_and(|rest| rest.starts_with(['.', '[']))
                };
                assert_eq!(table.iter().find(inside), None, "{path}");
                assert_eq!(table.iter().filter(|(other, _)| other == path).count(), 1, "{path}");
            }
        }
    }
}
