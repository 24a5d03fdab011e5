//! Pods that satisfy the Pod Security level `restricted` and mount an identity.

use serde_json::{Map, Value, json};

use crate::{DRIVER, MOUNT};

/// A pod to be; every container mounts the identity volume `spiffe` at [`MOUNT`].
#[derive(Clone)]
pub struct Pod {
    name: String,
    account: String,
    node: Option<String>,
    uid: u32,
    attributes: Map<String, Value>,
    volume: bool,
    spec: Map<String, Value>,
    containers: Vec<Value>,
}

impl Pod {
    /// A pod of service account `default` and user 12345.
    pub fn new(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            account: "default".to_owned(),
            node: None,
            uid: 12345,
            attributes: Map::new(),
            volume: true,
            spec: Map::new(),
            containers: Vec::new(),
        }
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Another service account.
    pub fn account(mut self, account: &str) -> Self {
        self.account = account.to_owned();
        self
    }

    /// Only on this node.
    pub fn on(mut self, node: &str) -> Self {
        self.node = Some(node.to_owned());
        self
    }

    /// The user of the containers that are added after this.
    pub fn uid(mut self, uid: u32) -> Self {
        self.uid = uid;
        self
    }

    /// A volume attribute, as the pod's author would write it.
    pub fn attribute(mut self, key: &str, value: &str) -> Self {
        self.attributes.insert(key.to_owned(), value.into());
        self
    }

    /// Without the identity volume.
    pub fn without_volume(mut self) -> Self {
        self.volume = false;
        self
    }

    /// A field of the pod's `spec`.
    pub fn spec(mut self, key: &str, value: Value) -> Self {
        self.spec.insert(key.to_owned(), value);
        self
    }

    /// One more container.
    pub fn container(mut self, name: &str, image: &str, command: &[&str]) -> Self {
        let mut container = json!({
            "name": name,
            "image": image,
            "imagePullPolicy": "Never",
            "command": command,
            "env": [{"name": "SPIFFE_ENDPOINT_SOCKET", "value": format!("unix://{MOUNT}/spire-agent.sock")}],
            "securityContext": {
                "runAsUser": self.uid,
                "runAsNonRoot": true,
                "allowPrivilegeEscalation": false,
                "capabilities": {"drop": ["ALL"]},
                "seccompProfile": {"type": "RuntimeDefault"},
            },
        });
        if self.volume {
            container["volumeMounts"] = json!([{"name": "spiffe", "mountPath": MOUNT, "readOnly": true}]);
        }
        self.containers.push(container);
        self
    }

    /// One container that sleeps, to run commands in. It ends at once when asked to.
    pub fn sleeping(self) -> Self {
        self.container("main", crate::CLIENTS, SLEEP)
    }

    /// The object.
    pub fn object(&self, namespace: &str) -> Value {
        let mut spec = json!({
            "serviceAccountName": self.account,
            "automountServiceAccountToken": false,
            "restartPolicy": "Never",
            "terminationGracePeriodSeconds": 5,
            "containers": self.containers,
        });
        if self.volume {
            let mut csi = json!({"driver": DRIVER, "readOnly": true});
            if !self.attributes.is_empty() {
                csi["volumeAttributes"] = Value::Object(self.attributes.clone());
            }
            spec["volumes"] = json!([{"name": "spiffe", "csi": csi}]);
        }
        if let Some(node) = &self.node {
            spec["nodeSelector"] = json!({"kubernetes.io/hostname": node});
        }
        if let Some(spec) = spec.as_object_mut() {
            spec.extend(self.spec.clone());
        }
        json!({
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": self.name, "namespace": namespace},
            "spec": spec,
        })
    }
}

/// Sleeps until told to end; PID 1 ignores signals that it has no handler for.
pub const SLEEP: &[&str] = &["/bin/sh", "-c", "trap 'exit 0' TERM; while :; do sleep 1; done"];
