//! The objects as a cluster gets them: the whole text, and the properties that security rests on, by value.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic, reason = "a test may panic")]

use seamount_manifests::{Environment, Object, Options, PullPolicy, Source, objects, to_yaml};
use serde_json::{Value, json};

fn options() -> Options {
    Options { trust_domain: "example.org".into(), ..Options::default() }
}

fn openshift() -> Options {
    Options { environment: Environment::OpenShift, ..options() }
}

fn directory() -> Options {
    Options { source: Source::Directory { host_path: "/run/spire/agent-sockets".into() }, ..options() }
}

fn all_kinds() -> [Options; 3] {
    [options(), openshift(), directory()]
}

fn find(list: &[Object], kind: &str) -> Value {
    list.iter().find(|o| o.kind() == kind).unwrap_or_else(|| panic!("no {kind}")).value().clone()
}

fn pod(options: &Options) -> Value {
    find(&objects(options).unwrap(), "DaemonSet")["spec"]["template"]["spec"].clone()
}

fn container(pod: &Value, name: &str) -> Value {
    pod["containers"].as_array().unwrap().iter().find(|c| c["name"] == name).unwrap().clone()
}

fn names_of_mounts(container: &Value) -> Vec<String> {
    container["volumeMounts"]
        .as_array()
        .unwrap()
        .iter()
        .map(|m| m["name"].as_str().unwrap().to_owned())
        .collect()
}

fn agent_yaml(options: &Options) -> Value {
    let map = find(&objects(options).unwrap(), "ConfigMap");
    serde_saphyr::from_str(map["data"]["agent.yaml"].as_str().unwrap()).unwrap()
}

#[test]
fn the_text_for_kubernetes() {
    insta::assert_snapshot!("kubernetes", to_yaml(&objects(&options()).unwrap()).unwrap());
}

#[test]
fn the_text_for_openshift() {
    insta::assert_snapshot!("openshift", to_yaml(&objects(&openshift()).unwrap()).unwrap());
}

#[test]
fn the_text_with_a_directory() {
    insta::assert_snapshot!("directory", to_yaml(&objects(&directory()).unwrap()).unwrap());
}

#[test]
fn the_text_reads_back_as_the_same_objects() {
    for options in all_kinds() {
        let list = objects(&options).unwrap();
        let back: Vec<Value> = serde_saphyr::from_multiple(&to_yaml(&list).unwrap()).unwrap();
        assert_eq!(back, list.iter().map(|o| o.value().clone()).collect::<Vec<_>>());
    }
}

#[test]
fn the_objects_come_in_an_order_that_can_be_applied() {
    let kinds =
        |options: &Options| objects(options).unwrap().iter().map(|o| o.kind().to_owned()).collect::<Vec<_>>();
    assert_eq!(
        kinds(&options()),
        [
            "Namespace",
            "ResourceQuota",
            "ServiceAccount",
            "ConfigMap",
            "NetworkPolicy",
            "CSIDriver",
            "DaemonSet"
        ]
    );
    assert_eq!(
        kinds(&openshift()),
        [
            "Namespace",
            "ResourceQuota",
            "ServiceAccount",
            "SecurityContextConstraints",
            "Role",
            "RoleBinding",
            "ConfigMap",
            "NetworkPolicy",
            "CSIDriver",
            "DaemonSet"
        ]
    );
}

#[test]
fn no_secret_and_no_key_is_among_the_objects() {
    for options in all_kinds() {
        let list = objects(&options).unwrap();
        assert!(list.iter().all(|o| o.kind() != "Secret"));
        assert!(!to_yaml(&list).unwrap().contains("PRIVATE KEY"));
    }
}

#[test]
fn the_csi_driver_is_as_specified() {
    let driver = find(&objects(&options()).unwrap(), "CSIDriver");
    assert_eq!(driver["metadata"]["name"], "csi.spiffe.io");
    assert_eq!(
        driver["metadata"]["labels"]["security.openshift.io/csi-ephemeral-volume-profile"],
        "restricted"
    );
    assert_eq!(
        driver["spec"],
        json!({
            "attachRequired": false,
            "podInfoOnMount": true,
            "requiresRepublish": true,
            "tokenRequests": [{"audience": "seamount.dev", "expirationSeconds": 3600}],
            "serviceAccountTokenInSecrets": true,
            "volumeLifecycleModes": ["Ephemeral"],
            "fsGroupPolicy": "None",
            "seLinuxMount": false,
        })
    );
}

/// What an API server does not know it drops, or it refuses the whole object.
#[test]
fn before_1_35_the_token_comes_in_the_volume_context() {
    for (version, in_secrets) in
        [("1.32", false), ("1.34", false), ("1.35", true), ("1.36", true), ("1.40", true)]
    {
        let options = Options { kubernetes_version: version.parse().unwrap(), ..options() };
        let spec = find(&objects(&options).unwrap(), "CSIDriver")["spec"].clone();
        assert_eq!(spec.get("serviceAccountTokenInSecrets"), in_secrets.then_some(&json!(true)), "{version}");
        let allowed = agent_yaml(&options)["token"].get("allowVolumeContext").cloned();
        assert_eq!(allowed, (!in_secrets).then_some(json!(true)), "{version}");
        assert_eq!(spec["tokenRequests"][0]["audience"], "seamount.dev");
    }
}

#[test]
fn the_issuer_is_written_only_where_it_is_given() {
    assert!(agent_yaml(&options())["token"].get("issuers").is_none());
    let options = Options { issuers: vec!["https://old".into(), "https://new".into()], ..options() };
    assert_eq!(agent_yaml(&options)["token"]["issuers"], json!(["https://old", "https://new"]));
}

/// Kubernetes reads a null as absent, and each client in its own way.
#[test]
fn no_object_has_a_null() {
    fn nulls(path: &str, value: &Value, found: &mut Vec<String>) {
        match value {
            Value::Null => found.push(path.to_owned()),
            Value::Array(items) => items.iter().for_each(|v| nulls(&format!("{path}[]"), v, found)),
            Value::Object(fields) => fields.iter().for_each(|(k, v)| nulls(&format!("{path}.{k}"), v, found)),
            _ => {}
        }
    }
    for options in all_kinds() {
        let mut found = Vec::new();
        for object in objects(&options).unwrap() {
            nulls(object.kind(), object.value(), &mut found);
        }
        assert_eq!(found, [""; 0]);
    }
}

#[test]
fn the_agent_has_no_privilege_but_to_leave_root_and_nothing_of_the_host() {
    let context = |uid: u32, capabilities: Value| {
        json!({
            "runAsUser": uid,
            "runAsGroup": 64203,
            "allowPrivilegeEscalation": false,
            "privileged": false,
            "readOnlyRootFilesystem": true,
            "capabilities": capabilities,
            "seccompProfile": {"type": "RuntimeDefault"},
            "seLinuxOptions": {"type": "spc_t", "level": "s0"},
        })
    };
    let fixed = Options { fixed_uid: true, ..openshift() };
    let mut expected = context(64203, json!({"drop": ["ALL"]}));
    expected["runAsNonRoot"] = true.into();
    assert_eq!(container(&pod(&fixed), "agent")["securityContext"], expected);
    let draws = |agent: &Value| agent["args"].as_array().unwrap().contains(&json!("--uid=64203"));
    assert!(!draws(&container(&pod(&fixed), "agent")));
    let constraints = |options| find(&objects(options).unwrap(), "SecurityContextConstraints");
    assert_eq!(constraints(&fixed)["allowedCapabilities"], json!([]));
    assert_eq!(constraints(&openshift())["allowedCapabilities"], json!(["SETUID"]));
    for options in all_kinds() {
        let pod = pod(&options);
        let agent = container(&pod, "agent");
        let alone = json!({"drop": ["ALL"], "add": ["SETUID"]});
        assert_eq!(agent["securityContext"], context(0, alone));
        assert!(draws(&agent));
        assert!(container(&pod, "mounter")["args"].as_array().unwrap().contains(&json!("--agent-uid=64203")));
        // The kubelet gives the token to a uid that all containers name, and to it alone.
        assert!(container(&pod, "mounter")["securityContext"].get("runAsUser").is_none());
        let host: Vec<&str> = pod["volumes"]
            .as_array()
            .unwrap()
            .iter()
            .filter(|v| v.get("hostPath").is_some())
            .map(|v| v["name"].as_str().unwrap())
            .collect();
        assert!(!host.is_empty(), "the mounter has the kubelet's directory");
        for mount in agent["volumeMounts"].as_array().unwrap() {
            assert!(!host.contains(&mount["name"].as_str().unwrap()), "{mount}");
            assert_eq!(mount.get("readOnly").is_some(), mount["name"] != "health", "{mount}");
            assert!(mount.get("mountPropagation").is_none(), "{mount}");
        }
        assert!(agent.get("volumeDevices").is_none());
    }
}

#[test]
fn the_token_and_the_root_are_in_the_agent_alone() {
    for options in all_kinds() {
        let pod = pod(&options);
        assert_eq!(pod["automountServiceAccountToken"], false);
        let account = find(&objects(&options).unwrap(), "ServiceAccount");
        assert_eq!(account["automountServiceAccountToken"], false);
        // With a directory there is nothing to ask the API server.
        let has_token = names_of_mounts(&container(&pod, "agent")).contains(&"token".to_owned());
        assert_eq!(has_token, options.source != directory().source);
        for secret in ["token", "authority", "config"] {
            assert!(!names_of_mounts(&container(&pod, "mounter")).contains(&secret.to_owned()), "{secret}");
        }
        assert!(container(&pod, "mounter").get("env").is_none());
    }
}

#[test]
fn the_mounter_has_the_kubelets_directory_and_nothing_else_of_the_host() {
    let pod = pod(&options());
    let mounter = container(&pod, "mounter");
    assert_eq!(
        mounter["volumeMounts"],
        json!([
            {"name": "kubelet", "mountPath": "/var/lib/kubelet", "mountPropagation": "Bidirectional"},
            {"name": "shared", "mountPath": "/run/seamount"},
        ])
    );
    assert_eq!(mounter["securityContext"]["privileged"], true, "Bidirectional demands it");
    assert_eq!(mounter["securityContext"]["readOnlyRootFilesystem"], true);
    assert_eq!(mounter["securityContext"]["seLinuxOptions"], json!({"type": "spc_t", "level": "s0"}));
    for shared in ["hostNetwork", "hostPID", "hostIPC", "shareProcessNamespace"] {
        assert!(pod.get(shared).is_none(), "{shared}");
    }
    assert!(mounter.get("ports").is_none());
}

#[test]
fn nothing_that_is_missing_keeps_the_pod_from_starting() {
    // A pod that cannot start cannot remove volumes either.
    for options in all_kinds() {
        for volume in pod(&options)["volumes"].as_array().unwrap() {
            for source in ["configMap", "secret"] {
                if let Some(source) = volume.get(source) {
                    assert_eq!(source["optional"], true, "{volume}");
                }
            }
            for projection in
                volume.pointer("/projected/sources").and_then(Value::as_array).into_iter().flatten()
            {
                if let Some(map) = projection.get("configMap") {
                    assert_eq!(map["optional"], true, "{volume}");
                }
            }
        }
    }
    let source = pod(&directory())["volumes"]
        .as_array()
        .unwrap()
        .iter()
        .find(|v| v["name"] == "source")
        .unwrap()
        .clone();
    assert_eq!(source["hostPath"]["type"], "DirectoryOrCreate");
}

#[test]
fn the_pod_runs_on_every_node_and_is_evicted_last() {
    let pod = pod(&options());
    assert_eq!(pod["tolerations"], json!([{"operator": "Exists"}]));
    assert_eq!(pod["priorityClassName"], "system-node-critical");
    assert_eq!(pod["nodeSelector"], json!({"kubernetes.io/os": "linux"}));
}

/// There it would be Pending for ever, and hold up every roll-out.
#[test]
fn the_pod_is_kept_off_nodes_without_a_kubelet() {
    let required = "/affinity/nodeAffinity/requiredDuringSchedulingIgnoredDuringExecution/nodeSelectorTerms";
    let terms = pod(&options()).pointer(required).unwrap().clone();
    assert_eq!(
        terms,
        json!([{"matchExpressions": [
            {"key": "eks.amazonaws.com/compute-type", "operator": "NotIn", "values": ["fargate"]},
            {"key": "type", "operator": "NotIn", "values": ["virtual-kubelet"]},
        ]}])
    );
}

/// GKE makes no pod of the class in a namespace without it.
#[test]
fn the_namespace_has_a_quota_for_the_pods_priority_class() {
    for options in all_kinds() {
        let quota = find(&objects(&options).unwrap(), "ResourceQuota");
        assert_eq!(quota["metadata"]["namespace"], "seamount-system");
        let class = pod(&options)["priorityClassName"].clone();
        assert_eq!(
            quota["spec"],
            json!({
                "hard": {"pods": "1G"},
                "scopeSelector": {"matchExpressions": [
                    {"scopeName": "PriorityClass", "operator": "In", "values": [class]},
                ]},
            })
        );
    }
}

#[test]
fn the_agent_is_probed_over_its_socket_and_knows_its_node() {
    let agent = container(&pod(&options()), "agent");
    for (probe, what) in [("livenessProbe", "live"), ("readinessProbe", "ready")] {
        assert_eq!(agent[probe]["exec"]["command"], json!(["/seamount-agent", "health", what]));
    }
    let mount = agent["volumeMounts"].as_array().unwrap().iter().find(|m| m["name"] == "health").unwrap();
    assert_eq!(mount["mountPath"], "/run/seamount-agent");
    assert!(!names_of_mounts(&container(&pod(&options()), "mounter")).contains(&"health".to_owned()));
    assert_eq!(agent["env"][0]["name"], "NODE_NAME");
    assert_eq!(agent["env"][0]["valueFrom"]["fieldRef"]["fieldPath"], "spec.nodeName");
}

#[test]
fn the_metrics_are_for_the_monitoring_alone() {
    let open = Options { http_port: 9999, monitoring_namespace: Some("monitoring".into()), ..options() };
    assert_eq!(container(&pod(&open), "agent")["ports"][0]["containerPort"], 9999);
    assert_eq!(agent_yaml(&open)["http"]["address"], "[::]:9999");
    for (options, ingress) in [
        (options(), json!([])),
        (
            open,
            json!([{
                "from": [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "monitoring"}}}],
                "ports": [{"port": 9999, "protocol": "TCP"}],
            }]),
        ),
    ] {
        let list = objects(&options).unwrap();
        let spec = find(&list, "NetworkPolicy")["spec"].clone();
        let pods = find(&list, "DaemonSet")["spec"]["template"].clone();
        assert_eq!(spec["podSelector"]["matchLabels"], pods["metadata"]["labels"]);
        assert_eq!(spec["policyTypes"], json!(["Ingress"]));
        assert_eq!(spec.get("ingress").unwrap_or(&json!([])), &ingress);
        // No policy applies to the host's network.
        assert!(pods["spec"].get("hostNetwork").is_none());
    }
}

#[test]
fn no_flag_of_the_agent_keeps_the_file_from_changing_what_it_can_change() {
    for options in all_kinds() {
        let agent = container(&pod(&options), "agent");
        let flags: Vec<&str> =
            agent["args"].as_array().unwrap().iter().filter_map(|a| a.as_str()?.split('=').next()).collect();
        // The mounter is told the same in its own flags, or the pod mounts it.
        let of_the_pod = ["--config", "--mounter-socket", "--kubelet-root", "--driver", "--uid"];
        assert_eq!(flags, of_the_pod);
    }
}

#[test]
fn a_directory_is_mounted_by_its_parent_and_named_beneath_it() {
    let options = directory();
    let pod = pod(&options);
    let source = pod["volumes"].as_array().unwrap().iter().find(|v| v["name"] == "source").unwrap();
    assert_eq!(source["hostPath"]["path"], "/run/spire");
    let mounter = container(&pod, "mounter");
    let mount = mounter["volumeMounts"].as_array().unwrap().iter().find(|m| m["name"] == "source").unwrap();
    assert_eq!(mount["mountPath"], "/source");
    assert_eq!(mount["mountPropagation"], "HostToContainer");
    assert!(mounter["args"].as_array().unwrap().contains(&json!("--source-directory=/source/agent-sockets")));
    assert_eq!(agent_yaml(&options)["identity"]["source"], "directory");
    // The agent refuses these there.
    for field in ["trustDomain", "authority", "token"] {
        assert!(agent_yaml(&options).get(field).is_none(), "{field}");
    }
    for volume in ["authority", "token"] {
        assert!(pod["volumes"].as_array().unwrap().iter().all(|v| v["name"] != volume), "{volume}");
    }
}

#[test]
fn names_and_ids_reach_both_containers() {
    let options = Options {
        drivers: vec!["id.example.org".into(), "b.example.org".into()],
        kubelet_root: "/data/kubelet".into(),
        agent_uid: 70001,
        agent_gid: 70002,
        image: "registry.example.org/seamount:1".into(),
        image_pull_policy: PullPolicy::Never,
        ..options()
    };
    let pod = pod(&options);
    let (mounter, agent) = (container(&pod, "mounter"), container(&pod, "agent"));
    for argument in [
        "--kubelet-root=/data/kubelet",
        "--driver=id.example.org",
        "--driver=b.example.org",
        "--agent-uid=70001",
        "--agent-gid=70002",
    ] {
        assert!(mounter["args"].as_array().unwrap().contains(&json!(argument)), "{argument}");
    }
    for argument in ["--kubelet-root=/data/kubelet", "--driver=id.example.org", "--driver=b.example.org"] {
        assert!(agent["args"].as_array().unwrap().contains(&json!(argument)), "{argument}");
    }
    assert!(agent["args"].as_array().unwrap().contains(&json!("--uid=70001")));
    assert_eq!(agent["securityContext"]["runAsGroup"], 70002);
    assert_eq!(agent_yaml(&options)["kubeletRoot"], "/data/kubelet");
    let named = json!([{"name": "id.example.org"}, {"name": "b.example.org"}]);
    assert_eq!(agent_yaml(&options)["drivers"], named);
    let drivers: Vec<_> = objects(&options)
        .unwrap()
        .iter()
        .filter(|o| o.kind() == "CSIDriver")
        .map(|o| o.name().to_owned())
        .collect();
    assert_eq!(drivers, ["id.example.org", "b.example.org"]);
    assert_eq!(mounter["volumeMounts"][0]["mountPath"], "/data/kubelet");
    for container in [mounter, agent] {
        assert_eq!(container["image"], "registry.example.org/seamount:1");
        assert_eq!(container["imagePullPolicy"], "Never");
    }
}

#[test]
fn kubernetes_gives_us_no_right_and_openshift_only_the_use_of_one_scc() {
    for object in objects(&options()).unwrap() {
        assert!(!object.kind().contains("Role"), "{}", object.kind());
    }
    let list = objects(&openshift()).unwrap();
    let rules = &find(&list, "Role")["rules"];
    assert_eq!(
        *rules,
        json!([{
            "apiGroups": ["security.openshift.io"],
            "resources": ["securitycontextconstraints"],
            "resourceNames": ["seamount-node"],
            "verbs": ["use"],
        }])
    );
    assert_eq!(
        find(&list, "RoleBinding")["subjects"],
        json!([{"kind": "ServiceAccount", "name": "seamount-node", "namespace": "seamount-system"}])
    );
    let scc = find(&list, "SecurityContextConstraints");
    for refused in ["allowHostIPC", "allowHostNetwork", "allowHostPID", "allowHostPorts"] {
        assert_eq!(scc[refused], false, "{refused}");
    }
    assert_eq!(scc["users"], json!([]));
    assert_eq!(scc["groups"], json!([]));
    let annotations = &find(&list, "DaemonSet")["spec"]["template"]["metadata"]["annotations"];
    assert_eq!(annotations["openshift.io/required-scc"], "seamount-node");
}

#[test]
fn the_scc_admits_every_kind_of_volume_that_the_pod_has() {
    for source in [options().source, directory().source] {
        let options = Options { source, ..openshift() };
        let scc = find(&objects(&options).unwrap(), "SecurityContextConstraints");
        let allowed = scc["volumes"].as_array().unwrap();
        for volume in pod(&options)["volumes"].as_array().unwrap() {
            let kind = volume.as_object().unwrap().keys().find(|k| *k != "name").unwrap();
            assert!(allowed.contains(&json!(kind)), "{kind}");
        }
    }
}

#[test]
fn the_namespace_admits_the_mounter() {
    let namespace = find(&objects(&options()).unwrap(), "Namespace");
    assert_eq!(namespace["metadata"]["labels"]["pod-security.kubernetes.io/enforce"], "privileged");
}
