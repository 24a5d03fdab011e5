//! The DaemonSet: the privileged mounter and the unprivileged agent, one pod on each node.

use std::collections::BTreeMap;

use k8s_openapi::api::apps::v1::{DaemonSet, DaemonSetSpec, DaemonSetUpdateStrategy, RollingUpdateDaemonSet};
use k8s_openapi::api::core::v1::{
    Affinity, Capabilities, ConfigMapProjection, ConfigMapVolumeSource, Container, ContainerPort,
    EmptyDirVolumeSource, EnvVar, EnvVarSource, ExecAction, HostPathVolumeSource, KeyToPath, NodeAffinity,
    NodeSelector, NodeSelectorRequirement, NodeSelectorTerm, ObjectFieldSelector, PodSpec, PodTemplateSpec,
    Probe, ProjectedVolumeSource, ResourceRequirements, SELinuxOptions, SeccompProfile, SecretVolumeSource,
    SecurityContext, ServiceAccountTokenProjection, Toleration, Volume, VolumeMount, VolumeProjection,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use crate::config::{
    AUTHORITY_DIRECTORY, CONFIG_DIRECTORY, CONFIG_FILE, HEALTH_DIRECTORY, MOUNTER_SOCKET, SHARED_DIRECTORY,
    TOKEN_DIRECTORY,
};
use crate::options::{Environment, Options, Source, parent_and_name};
use crate::shared::{PRIORITY_CLASS, labels, metadata, text_map};
use crate::{CONFIG_MAP, Error, NODE, Object};

/// Where the parent of the source directory is mounted in the mounter.
const SOURCE_DIRECTORY: &str = "/source";

/// The DaemonSet.
pub(crate) fn daemon_set(options: &Options) -> Result<Object, Error> {
    // The annotation pins our SecurityContextConstraints; another with a higher priority would change the
    // pod.
    let annotations = (options.environment == Environment::OpenShift)
        .then(|| text_map([("openshift.io/required-scc", NODE)]));
    let object = DaemonSet {
        metadata: metadata(options, NODE),
        spec: Some(DaemonSetSpec {
            selector: LabelSelector { match_labels: Some(labels()), ..LabelSelector::default() },
            // One node at a time. The new pod's mounter takes over from the old one's as soon as its agent
            // runs, so no socket is ever without a process that has it open.
            update_strategy: Some(DaemonSetUpdateStrategy {
                type_: Some("RollingUpdate".to_owned()),
                rolling_update: Some(RollingUpdateDaemonSet {
                    max_surge: Some(IntOrString::Int(1)),
                    max_unavailable: Some(IntOrString::Int(0)),
                }),
            }),
            template: PodTemplateSpec {
                metadata: Some(ObjectMeta { labels: Some(labels()), annotations, ..ObjectMeta::default() }),
                spec: Some(pod(options)),
            },
            ..DaemonSetSpec::default()
        }),
        ..DaemonSet::default()
    };
    Object::from_typed("the DaemonSet", &object)
}

fn pod(options: &Options) -> PodSpec {
    PodSpec {
        service_account_name: Some(NODE.to_owned()),
        // A token that the kubelet mounts by itself would be in the mounter too.
        automount_service_account_token: Some(false),
        // Neither container needs the environment variables of other Services.
        enable_service_links: Some(false),
        node_selector: Some(text_map([("kubernetes.io/os", "linux")])),
        affinity: Some(affinity()),
        priority_class_name: Some(PRIORITY_CLASS.to_owned()),
        tolerations: Some(vec![Toleration { operator: Some("Exists".to_owned()), ..Toleration::default() }]),
        termination_grace_period_seconds: Some(10),
        containers: vec![mounter(options), agent(options)],
        volumes: Some(volumes(options)),
        ..PodSpec::default()
    }
}

/// Not on nodes without a kubelet of their own: no container there may be privileged, so a pod would be
/// Pending for ever and hold up every roll-out (its toleration of every taint brings it there). A node
/// without these labels is taken.
fn affinity() -> Affinity {
    let not = |key: &str, value: &str| NodeSelectorRequirement {
        key: key.to_owned(),
        operator: "NotIn".to_owned(),
        values: Some(vec![value.to_owned()]),
    };
    Affinity {
        node_affinity: Some(NodeAffinity {
            required_during_scheduling_ignored_during_execution: Some(NodeSelector {
                node_selector_terms: vec![NodeSelectorTerm {
                    match_expressions: Some(vec![
                        not("eks.amazonaws.com/compute-type", "fargate"),
                        not("type", "virtual-kubelet"),
                    ]),
                    ..NodeSelectorTerm::default()
                }],
            }),
            ..NodeAffinity::default()
        }),
        ..Affinity::default()
    }
}

/// The same for both containers.
fn driver_flags(options: &Options) -> impl Iterator<Item = String> {
    options.drivers.iter().map(|name| format!("--driver={name}"))
}

fn mounter(options: &Options) -> Container {
    let mut args = vec![format!("--kubelet-root={}", options.kubelet_root)];
    args.extend(driver_flags(options));
    args.extend([
        format!("--socket={MOUNTER_SOCKET}"),
        format!("--agent-uid={}", options.agent_uid),
        format!("--agent-gid={}", options.agent_gid),
    ]);
    let mut mounts = vec![
        VolumeMount {
            // Kubernetes allows this to privileged containers alone. It carries the volumes that need a
            // mount, and the state's tmpfs, to the node, where they outlive this pod.
            mount_propagation: Some("Bidirectional".to_owned()),
            ..mount("kubelet", &options.kubelet_root)
        },
        mount("shared", SHARED_DIRECTORY),
    ];
    if let Source::Directory { host_path } = &options.source
        && let Some((_, name)) = parent_and_name(host_path)
    {
        args.push(format!("--source-directory={SOURCE_DIRECTORY}/{name}"));
        mounts.push(VolumeMount {
            // What is mounted there later, such as the agent's tmpfs of sockets, has to be seen here.
            mount_propagation: Some("HostToContainer".to_owned()),
            ..mount("source", SOURCE_DIRECTORY)
        });
    }
    Container {
        name: "mounter".to_owned(),
        image: Some(options.image.clone()),
        image_pull_policy: Some(options.image_pull_policy.as_str().to_owned()),
        command: Some(vec!["/seamount-mounter".to_owned()]),
        args: Some(args),
        security_context: Some(SecurityContext {
            privileged: Some(true),
            // No `runAsUser`: the image names no user, which is root. Where all containers name the same one,
            // the kubelet makes the projected token readable for that one alone, and the agent has another by
            // then.
            read_only_root_filesystem: Some(true),
            // Without a level a runtime picks two categories for it, and the sockets that it makes would have
            // them too.
            se_linux_options: Some(SELinuxOptions {
                type_: Some("spc_t".to_owned()),
                level: Some("s0".to_owned()),
                ..SELinuxOptions::default()
            }),
            ..SecurityContext::default()
        }),
        volume_mounts: Some(mounts),
        resources: Some(requests("5m", "8Mi")),
        termination_message_policy: Some("FallbackToLogsOnError".to_owned()),
        ..Container::default()
    }
}

fn agent(options: &Options) -> Container {
    let mut mounts = vec![
        read_only("shared", SHARED_DIRECTORY),
        read_only("config", CONFIG_DIRECTORY),
        // Its own alone: the probes below ask there.
        mount("health", HEALTH_DIRECTORY),
    ];
    if matches!(options.source, Source::Authority { .. }) {
        mounts.push(read_only("token", TOKEN_DIRECTORY));
        mounts.push(read_only("authority", AUTHORITY_DIRECTORY));
    }
    let mut args = vec![
        format!("--config={CONFIG_DIRECTORY}/{CONFIG_FILE}"),
        // What this pod mounts and what its mounter is told: the file cannot change that alone. On the
        // command line, so that volumes can be removed whatever the file says.
        format!("--mounter-socket={MOUNTER_SOCKET}"),
        format!("--kubelet-root={}", options.kubelet_root),
    ];
    args.extend(driver_flags(options));
    if !options.fixed_uid {
        args.push(format!("--uid={}", options.agent_uid));
    }
    Container {
        name: "agent".to_owned(),
        image: Some(options.image.clone()),
        image_pull_policy: Some(options.image_pull_policy.as_str().to_owned()),
        command: Some(vec!["/seamount-agent".to_owned()]),
        args: Some(args),
        env: Some(vec![EnvVar {
            name: "NODE_NAME".to_owned(),
            value_from: Some(EnvVarSource {
                field_ref: Some(ObjectFieldSelector {
                    api_version: Some("v1".to_owned()),
                    field_path: "spec.nodeName".to_owned(),
                }),
                ..EnvVarSource::default()
            }),
            ..EnvVar::default()
        }]),
        ports: Some(vec![ContainerPort {
            name: Some("metrics".to_owned()),
            container_port: i32::from(options.http_port),
            protocol: Some("TCP".to_owned()),
            ..ContainerPort::default()
        }]),
        security_context: Some(SecurityContext {
            // Root only until it has drawn a real uid, which no `runAsUser` reaches: the kernel counts epoll
            // watches and descriptors in flight by it, over all containers. SETUID goes with that.
            run_as_user: Some(if options.fixed_uid { options.agent_uid.into() } else { 0 }),
            run_as_group: Some(i64::from(options.agent_gid)),
            run_as_non_root: options.fixed_uid.then_some(true),
            allow_privilege_escalation: Some(false),
            privileged: Some(false),
            read_only_root_filesystem: Some(true),
            capabilities: Some(Capabilities {
                drop: Some(vec!["ALL".to_owned()]),
                add: (!options.fixed_uid).then(|| vec!["SETUID".to_owned()]),
            }),
            seccomp_profile: Some(SeccompProfile {
                type_: "RuntimeDefault".to_owned(),
                ..SeccompProfile::default()
            }),
            // Pods may talk to a socket of spc_t alone, and the level of the pod would keep other pods away.
            se_linux_options: Some(SELinuxOptions {
                type_: Some("spc_t".to_owned()),
                level: Some("s0".to_owned()),
                ..SELinuxOptions::default()
            }),
            ..SecurityContext::default()
        }),
        volume_mounts: Some(mounts),
        resources: Some(requests("20m", "32Mi")),
        liveness_probe: Some(probe("live", 10, 6)),
        readiness_probe: Some(probe("ready", 5, 2)),
        termination_message_policy: Some("FallbackToLogsOnError".to_owned()),
        ..Container::default()
    }
}

fn volumes(options: &Options) -> Vec<Volume> {
    let mut list = vec![
        Volume { host_path: Some(host_path(&options.kubelet_root, "Directory")), ..volume("kubelet") },
        Volume {
            empty_dir: Some(EmptyDirVolumeSource {
                medium: Some("Memory".to_owned()),
                size_limit: Some(Quantity("1Mi".to_owned())),
            }),
            ..volume("shared")
        },
        Volume {
            empty_dir: Some(EmptyDirVolumeSource {
                medium: Some("Memory".to_owned()),
                size_limit: Some(Quantity("1Mi".to_owned())),
            }),
            ..volume("health")
        },
        Volume {
            // Optional, and so are those below: what is missing makes the agent not ready, never absent,
            // because volumes have to be removed all the same.
            config_map: Some(ConfigMapVolumeSource {
                name: CONFIG_MAP.to_owned(),
                optional: Some(true),
                ..ConfigMapVolumeSource::default()
            }),
            ..volume("config")
        },
    ];
    match &options.source {
        Source::Authority { secret } => {
            list.push(Volume { projected: Some(token()), ..volume("token") });
            list.push(Volume {
                secret: Some(SecretVolumeSource {
                    secret_name: Some(secret.clone()),
                    optional: Some(true),
                    // For the agent's uid; on the node the directory lies below the kubelet's own, which is
                    // root's alone.
                    default_mode: Some(0o444),
                    ..SecretVolumeSource::default()
                }),
                ..volume("authority")
            });
        }
        Source::Directory { host_path: path } => {
            if let Some((parent, _)) = parent_and_name(path) {
                list.push(Volume {
                    host_path: Some(host_path(parent, "DirectoryOrCreate")),
                    ..volume("source")
                });
            }
        }
    }
    list
}

/// The agent's token for the API server, and the certificate to know the API server by.
fn token() -> ProjectedVolumeSource {
    ProjectedVolumeSource {
        default_mode: Some(0o444),
        sources: Some(vec![
            VolumeProjection {
                service_account_token: Some(ServiceAccountTokenProjection {
                    path: "token".to_owned(),
                    expiration_seconds: Some(3607),
                    ..ServiceAccountTokenProjection::default()
                }),
                ..VolumeProjection::default()
            },
            VolumeProjection {
                config_map: Some(ConfigMapProjection {
                    name: "kube-root-ca.crt".to_owned(),
                    items: Some(vec![KeyToPath {
                        key: "ca.crt".to_owned(),
                        path: "ca.crt".to_owned(),
                        mode: None,
                    }]),
                    optional: Some(true),
                }),
                ..VolumeProjection::default()
            },
        ]),
    }
}

fn volume(name: &str) -> Volume {
    Volume { name: name.to_owned(), ..Volume::default() }
}

fn host_path(path: &str, type_: &str) -> HostPathVolumeSource {
    HostPathVolumeSource { path: path.to_owned(), type_: Some(type_.to_owned()) }
}

fn mount(name: &str, path: &str) -> VolumeMount {
    VolumeMount { name: name.to_owned(), mount_path: path.to_owned(), ..VolumeMount::default() }
}

fn read_only(name: &str, path: &str) -> VolumeMount {
    VolumeMount { read_only: Some(true), ..mount(name, path) }
}

/// Requests alone: a memory limit would kill the agent when a node gets more pods, and with it rotation.
fn requests(cpu: &str, memory: &str) -> ResourceRequirements {
    ResourceRequirements {
        requests: Some(BTreeMap::from([
            ("cpu".to_owned(), Quantity(cpu.to_owned())),
            ("memory".to_owned(), Quantity(memory.to_owned())),
        ])),
        ..ResourceRequirements::default()
    }
}

/// The agent's program asks the running agent over a Unix socket: no network is needed, and no pod can keep
/// it out.
fn probe(what: &str, period: i32, failures: i32) -> Probe {
    Probe {
        exec: Some(ExecAction {
            command: Some(["/seamount-agent", "health", what].map(str::to_owned).to_vec()),
        }),
        period_seconds: Some(period),
        timeout_seconds: Some(3),
        failure_threshold: Some(failures),
        ..Probe::default()
    }
}
