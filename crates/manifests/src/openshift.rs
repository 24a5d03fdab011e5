//! What OpenShift needs beside: one SecurityContextConstraints and the right to use it, for our
//! ServiceAccount alone.

use serde_json::json;

use crate::options::{Options, Source};
use crate::{NODE, Object};

/// SecurityContextConstraints, and a Role and a RoleBinding to use it. As JSON: k8s-openapi has no OpenShift
/// types.
pub(crate) fn objects(options: &Options) -> Vec<Object> {
    let labels = crate::shared::labels();
    let mut volumes = vec!["configMap", "emptyDir", "hostPath"];
    if matches!(options.source, Source::Authority { .. }) {
        volumes.extend(["projected", "secret"]);
    }
    let constraints = json!({
        "apiVersion": "security.openshift.io/v1",
        "kind": "SecurityContextConstraints",
        "metadata": {
            "name": NODE,
            "labels": labels,
            "annotations": {
                "kubernetes.io/description":
                    "For the DaemonSet seamount-node alone: its mounter is privileged, because Kubernetes allows \
                     Bidirectional mount propagation to privileged containers only."
            }
        },
        "allowHostDirVolumePlugin": true,
        "allowHostIPC": false,
        "allowHostNetwork": false,
        "allowHostPID": false,
        "allowHostPorts": false,
        "allowPrivilegeEscalation": true,
        "allowPrivilegedContainer": true,
        // The CRD requires these and `priority`, and `kubectl apply` drops a null before it sends anything.
        // With SETUID the agent leaves root for uids of its own, and loses it by that.
        "allowedCapabilities": if options.fixed_uid { json!([]) } else { json!(["SETUID"]) },
        "defaultAddCapabilities": [],
        "requiredDropCapabilities": [],
        "readOnlyRootFilesystem": true,
        // The pod says all of this itself, container by container.
        "runAsUser": {"type": "RunAsAny"},
        "seLinuxContext": {"type": "RunAsAny"},
        "fsGroup": {"type": "RunAsAny"},
        "supplementalGroups": {"type": "RunAsAny"},
        "seccompProfiles": ["*"],
        "volumes": volumes,
        // No priority, no user and no group: an account gets it by the RoleBinding alone, and a pod only by
        // its name.
        "priority": 0,
        "users": [],
        "groups": [],
    });
    let metadata = json!({"name": NODE, "namespace": options.namespace, "labels": labels});
    let role = json!({
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "Role",
        "metadata": metadata,
        "rules": [{
            "apiGroups": ["security.openshift.io"],
            "resources": ["securitycontextconstraints"],
            "resourceNames": [NODE],
            "verbs": ["use"],
        }],
    });
    let binding = json!({
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "RoleBinding",
        "metadata": metadata,
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": NODE},
        "subjects": [{"kind": "ServiceAccount", "name": NODE, "namespace": options.namespace}],
    });
    vec![Object(constraints), Object(role), Object(binding)]
}
