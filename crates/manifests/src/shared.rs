//! The objects that every environment has beside the DaemonSet.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{
    ConfigMap, Namespace, ResourceQuota, ResourceQuotaSpec, ScopeSelector, ScopedResourceSelectorRequirement,
    ServiceAccount,
};
use k8s_openapi::api::networking::v1::{
    NetworkPolicy, NetworkPolicyIngressRule, NetworkPolicyPeer, NetworkPolicyPort, NetworkPolicySpec,
};
use k8s_openapi::api::storage::v1::{CSIDriver, CSIDriverSpec, TokenRequest};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use crate::config::{CONFIG_FILE, agent_yaml};
use crate::options::{Environment, Options};
use crate::{CONFIG_MAP, Error, NODE, Object};

/// The class of the DaemonSet's pods: what mounts volumes is evicted last.
pub(crate) const PRIORITY_CLASS: &str = "system-node-critical";

/// A map of text from pairs.
pub(crate) fn text_map<const N: usize>(pairs: [(&str, &str); N]) -> BTreeMap<String, String> {
    pairs.into_iter().map(|(k, v)| (k.to_owned(), v.to_owned())).collect()
}

/// The labels of every object; the DaemonSet selects its pods by them, so they must never change.
pub(crate) fn labels() -> BTreeMap<String, String> {
    text_map([("app.kubernetes.io/name", "seamount"), ("app.kubernetes.io/component", "node")])
}

/// Metadata of an object in the installation's namespace.
pub(crate) fn metadata(options: &Options, name: &str) -> ObjectMeta {
    ObjectMeta {
        name: Some(name.to_owned()),
        namespace: Some(options.namespace.clone()),
        labels: Some(labels()),
        ..ObjectMeta::default()
    }
}

/// The namespace. Enforcing less than `privileged` would refuse the mounter; the two others would only warn
/// at each roll.
pub(crate) fn namespace(options: &Options) -> Result<Object, Error> {
    let mut labels = labels();
    for mode in ["enforce", "audit", "warn"] {
        labels.insert(format!("pod-security.kubernetes.io/{mode}"), "privileged".to_owned());
    }
    let mut annotations = None;
    if options.environment == Environment::OpenShift {
        // Without these OpenShift rewrites the labels above, and a default node selector keeps us off some
        // nodes.
        labels.insert("security.openshift.io/scc.podSecurityLabelSync".to_owned(), "false".to_owned());
        annotations = Some(text_map([("openshift.io/node-selector", "")]));
    }
    let object = Namespace {
        metadata: ObjectMeta {
            name: Some(options.namespace.clone()),
            labels: Some(labels),
            annotations,
            ..ObjectMeta::default()
        },
        ..Namespace::default()
    };
    Object::from_typed("the Namespace", &object)
}

/// The right to use our priority class. Where an API server limits the class to namespaces with a quota for
/// it (as GKE does), no pod is made without this object ("insufficient quota to match these scopes");
/// elsewhere it holds the first pods back for the moment that the quota's controller needs.
pub(crate) fn resource_quota(options: &Options) -> Result<Object, Error> {
    let object = ResourceQuota {
        metadata: metadata(options, NODE),
        spec: Some(ResourceQuotaSpec {
            // As many as GKE allows in kube-system: a permit, no limit.
            hard: Some(BTreeMap::from([("pods".to_owned(), Quantity("1G".to_owned()))])),
            scope_selector: Some(ScopeSelector {
                match_expressions: Some(vec![ScopedResourceSelectorRequirement {
                    scope_name: "PriorityClass".to_owned(),
                    operator: "In".to_owned(),
                    values: Some(vec![PRIORITY_CLASS.to_owned()]),
                }]),
            }),
            ..ResourceQuotaSpec::default()
        }),
        ..ResourceQuota::default()
    };
    Object::from_typed("the ResourceQuota", &object)
}

/// The account of the DaemonSet. It has no right, and its token is mounted by hand, in the agent alone.
pub(crate) fn service_account(options: &Options) -> Result<Object, Error> {
    let object = ServiceAccount {
        metadata: metadata(options, NODE),
        automount_service_account_token: Some(false),
        ..ServiceAccount::default()
    };
    Object::from_typed("the ServiceAccount", &object)
}

/// The agent's configuration.
pub(crate) fn config_map(options: &Options) -> Result<Object, Error> {
    let object = ConfigMap {
        metadata: metadata(options, CONFIG_MAP),
        data: Some(BTreeMap::from([(CONFIG_FILE.to_owned(), agent_yaml(options)?)])),
        ..ConfigMap::default()
    };
    Object::from_typed("the ConfigMap", &object)
}

/// What may connect to the pods of the DaemonSet: the monitoring to the metrics, and nothing else to
/// anything. They have no host network, to which no policy applies. What they connect to themselves (the API
/// server) is not limited.
pub(crate) fn network_policy(options: &Options) -> Result<Object, Error> {
    let from = |namespace: &String| NetworkPolicyIngressRule {
        from: Some(vec![NetworkPolicyPeer {
            namespace_selector: Some(LabelSelector {
                // Kubernetes sets this label itself; nothing else can have it.
                match_labels: Some(text_map([("kubernetes.io/metadata.name", namespace)])),
                ..LabelSelector::default()
            }),
            ..NetworkPolicyPeer::default()
        }]),
        ports: Some(vec![NetworkPolicyPort {
            port: Some(IntOrString::Int(options.http_port.into())),
            protocol: Some("TCP".to_owned()),
            ..NetworkPolicyPort::default()
        }]),
    };
    let object = NetworkPolicy {
        metadata: metadata(options, NODE),
        spec: Some(NetworkPolicySpec {
            pod_selector: Some(LabelSelector { match_labels: Some(labels()), ..LabelSelector::default() }),
            policy_types: Some(vec!["Ingress".to_owned()]),
            ingress: options.monitoring_namespace.as_ref().map(|namespace| vec![from(namespace)]),
            ..NetworkPolicySpec::default()
        }),
    };
    Object::from_typed("the NetworkPolicy", &object)
}

/// What Kubernetes has to know about a driver.
pub(crate) fn csi_driver(options: &Options, name: &str) -> Result<Object, Error> {
    let mut labels = labels();
    // OpenShift refuses inline volumes of a driver without this label in namespaces below `privileged`.
    labels.insert("security.openshift.io/csi-ephemeral-volume-profile".to_owned(), "restricted".to_owned());
    let object = CSIDriver {
        metadata: ObjectMeta { name: Some(name.to_owned()), labels: Some(labels), ..ObjectMeta::default() },
        spec: CSIDriverSpec {
            attach_required: Some(false),
            // The claims of the token must equal what this puts into the volume context.
            pod_info_on_mount: Some(true),
            // Brings a fresh token before the old one expires.
            requires_republish: Some(true),
            token_requests: Some(vec![TokenRequest {
                audience: options.token_audience.clone(),
                expiration_seconds: i64::try_from(options.token_lifetime.as_secs()).ok(),
            }]),
            // The volume context is the pod author's to write; `secrets` is not. An older API server drops
            // the field or refuses it, depending on the client.
            service_account_token_in_secrets: options
                .kubernetes_version
                .has_tokens_in_secrets()
                .then_some(true),
            volume_lifecycle_modes: Some(vec!["Ephemeral".to_owned()]),
            // The volume's socket has its own mode; the kubelet must not walk and chown it.
            fs_group_policy: Some("None".to_owned()),
            se_linux_mount: Some(false),
            ..CSIDriverSpec::default()
        },
    };
    Object::from_typed("the CSIDriver", &object)
}
