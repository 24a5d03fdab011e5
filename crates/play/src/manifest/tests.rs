use super::*;

fn place_and_load(text: &str) -> Result<Plan, Vec<ManifestError>> {
    let place = Place {
        driver: "csi.spiffe.io",
        node: "node-1",
        uid: &|| "00000000-0000-4000-8000-000000000001".into(),
    };
    load(&[("file.yaml".into(), text.into())], &place)
}

fn plan(text: &str) -> Plan {
    place_and_load(text).unwrap_or_else(|e| panic!("{e:#?}"))
}

fn errors(text: &str) -> Vec<String> {
    match place_and_load(text) {
        Ok(_) => panic!("accepted: {text}"),
        Err(errors) => errors.iter().map(ToString::to_string).collect(),
    }
}

/// A Pod with this text in its spec and in its only container.
fn pod(spec: &str, container: &str) -> String {
    format!(
        "{{apiVersion: v1, kind: Pod, metadata: {{name: p, namespace: ns}}, spec: {{{spec} containers: [{{name: c, \
         {container}}}]}}}}"
    )
}

const OTHERS: &str = "
---
apiVersion: v1
kind: ConfigMap
metadata: {name: settings, namespace: ns}
data: {colour: blue, shape: round}
binaryData: {raw: /w==}
---
apiVersion: v1
kind: Secret
metadata: {name: keys, namespace: ns}
data: {key: aHVzaA==}
stringData: {plain: text}
---
";

#[test]
fn reads_a_pod_as_kubernetes_does() {
    let text = format!(
        "{OTHERS}
apiVersion: v1
kind: Pod
metadata: {{name: web, namespace: ns, labels: {{app: web}}, annotations: {{a/b: note}}}}
spec:
  serviceAccountName: shop
  restartPolicy: OnFailure
  terminationGracePeriodSeconds: 5
  securityContext: {{runAsUser: 10, runAsGroup: 20, fsGroup: 30, supplementalGroups: [40], runAsNonRoot: true}}
  initContainers:
  - {{name: first, command: [a], securityContext: {{runAsUser: 11}}}}
  - {{name: side, restartPolicy: Always, command: [b]}}
  containers:
  - name: main
    image: shop:1
    workingDir: /work
    command: [run, $(COLOUR), $$(COLOUR), $(UNKNOWN)]
    args: [--node=$(NODE)]
    envFrom:
    - {{prefix: K_, secretRef: {{name: keys}}}}
    - {{configMapRef: {{name: absent, optional: true}}}}
    env:
    - {{name: COLOUR, valueFrom: {{configMapKeyRef: {{name: settings, key: colour}}}}}}
    - {{name: NODE, valueFrom: {{fieldRef: {{fieldPath: spec.nodeName}}}}}}
    - {{name: BOTH, value: $(COLOUR)-$(LATER)}}
    - {{name: LATER, value: x}}
    - {{name: APP, valueFrom: {{fieldRef: {{fieldPath: \"metadata.labels['app']\"}}}}}}
    - {{name: NOTE, valueFrom: {{fieldRef: {{fieldPath: \"metadata.annotations['a/b']\"}}}}}}
    - {{name: UID_, valueFrom: {{fieldRef: {{fieldPath: metadata.uid}}}}}}
    - {{name: NONE, valueFrom: {{secretKeyRef: {{name: keys, key: absent, optional: true}}}}}}
    securityContext: {{readOnlyRootFilesystem: true, capabilities: {{drop: [ALL]}}, seccompProfile: {{type: RuntimeDefault}}}}
    volumeMounts:
    - {{name: inner, mountPath: /a/b/, subPath: x/y}}
    - {{name: outer, mountPath: //a}}
    - {{name: files, mountPath: /files}}
    - {{name: id, mountPath: /id}}
  volumes:
  - {{name: outer, emptyDir: {{}}}}
  - {{name: inner}}
  - {{name: files, secret: {{secretName: keys, defaultMode: 0400, items: [{{key: key, path: k/1, mode: 0440}}, {{key: plain, path: p}}]}}}}
  - {{name: id, csi: {{driver: csi.spiffe.io, readOnly: true, volumeAttributes: {{a: b}}}}}}
"
    );
    let plan = plan(&text);
    let [pod] = plan.pods.as_slice() else { panic!("one pod") };
    assert_eq!((pod.full_name().as_str(), pod.service_account.as_str()), ("ns/web", "shop"));
    assert_eq!((pod.restart, pod.grace), (Restart::OnFailure, Duration::from_secs(5)));
    assert_eq!((pod.fs_group, pod.groups.as_slice()), (Some(30), [40].as_slice()));
    let [first, side] = pod.init.as_slice() else { panic!("two init containers") };
    assert_eq!((first.user, first.group, first.sidecar), (Some(11), Some(20), false));
    assert!(side.sidecar);
    let main = &pod.containers[0];
    assert_eq!(main.command, ["run", "blue", "$(COLOUR)", "$(UNKNOWN)", "--node=node-1"]);
    let env: BTreeMap<_, _> = main.env.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
    let expected = BTreeMap::from([
        ("K_key", "hush"),
        ("K_plain", "text"),
        ("COLOUR", "blue"),
        ("NODE", "node-1"),
        ("BOTH", "blue-$(LATER)"),
        ("LATER", "x"),
        ("APP", "web"),
        ("NOTE", "note"),
        ("UID_", "00000000-0000-4000-8000-000000000001"),
    ]);
    assert_eq!(env, expected);
    assert_eq!((main.directory.as_str(), main.read_only, main.non_root), ("/work", true, true));
    // Outer mounts come first; files of a Secret and a read-only CSI volume are read-only.
    let mounts: Vec<_> =
        main.mounts.iter().map(|m| (m.path.as_str(), m.sub_path.as_deref(), m.read_only)).collect();
    assert_eq!(
        mounts,
        [("/a", None, false), ("/a/b", Some("x/y"), false), ("/files", None, true), ("/id", None, true)]
    );
    assert!(matches!(pod.volumes[1].source, Source::EmptyDir));
    let Source::Files(files) = &pod.volumes[2].source else { panic!("files") };
    let files: Vec<_> = files.iter().map(|f| (f.path.as_str(), f.mode, f.data.as_slice())).collect();
    assert_eq!(files, [("k/1", 0o440, b"hush".as_slice()), ("p", 0o400, b"text".as_slice())]);
    let Source::Csi { read_only: true, attributes } = &pod.volumes[3].source else { panic!("csi") };
    assert_eq!(attributes.get("a").map(String::as_str), Some("b"));
}

#[test]
fn fills_in_the_defaults() {
    let plan = plan(
        "{apiVersion: v1, kind: Pod, metadata: {name: p}, spec: {containers: [{name: c, command: [x]}]}}",
    );
    let pod = &plan.pods[0];
    assert_eq!((pod.full_name().as_str(), pod.service_account.as_str()), ("default/p", "default"));
    assert_eq!(
        (pod.restart, pod.grace, pod.hostname.as_str()),
        (Restart::Never, Duration::from_secs(30), "p")
    );
    let container = &pod.containers[0];
    assert_eq!((container.directory.as_str(), container.user, container.read_only), ("/", None, false));
}

#[test]
fn skips_what_kubectl_adds_and_what_has_no_effect() {
    let text = "
apiVersion: v1
kind: Namespace
metadata: {name: ns, labels: {a: b}}
---
apiVersion: v1
kind: ServiceAccount
metadata: {name: s, namespace: ns, uid: u}
automountServiceAccountToken: false
---
# nothing
---
apiVersion: v1
kind: Pod
metadata: {name: p, uid: u, resourceVersion: '1', creationTimestamp: null}
spec:
  nodeName: other
  tolerations: [{operator: Exists}]
  hostNetwork: true
  containers:
  - {name: c, command: [x], resources: {limits: {cpu: 1}}, imagePullPolicy: Never, readinessProbe: {exec: {}}}
status: {phase: Pending}
";
    let notes = plan(text).notes;
    assert_eq!(notes.len(), 2, "{notes:?}");
    assert!(
        notes.iter().any(|n| n == "Pod default/p: spec.containers[0].readinessProbe: probes are not run"),
        "{notes:?}"
    );
}

/// Each spec and container text is refused at this field.
#[test]
fn refuses_by_kind_name_and_field() {
    let run = "command: [x]";
    for (spec, container, at) in [
        ("hostPID: true,", run, "spec.hostPID: cannot be played"),
        ("shareProcessNamespace: true,", run, "spec.shareProcessNamespace: cannot be played"),
        ("ephemeralContainers: [],", run, "spec.ephemeralContainers: cannot be played"),
        ("restartPolicy: Sometimes,", run, "spec.restartPolicy: Sometimes"),
        ("terminationGracePeriodSeconds: -1,", run, "spec.terminationGracePeriodSeconds: is negative"),
        ("serviceAccountName: A_B,", run, "spec.serviceAccountName: is not a DNS name"),
        ("hostname: -x,", run, "spec.hostname: is not a DNS label"),
        ("securityContext: {fsGroup: -1},", run, "spec.securityContext.fsGroup: -1"),
        ("securityContext: {sysctls: []},", run, "spec.securityContext.sysctls: cannot be played"),
        (
            "securityContext: {seccompProfile: {type: Localhost}},",
            run,
            "spec.securityContext.seccompProfile.type: Localhost",
        ),
        ("volumes: [{name: v, hostPath: {path: /}}],", run, "spec.volumes[0].hostPath: cannot be played"),
        ("volumes: [{name: v, projected: {}}],", run, "spec.volumes[0].projected: cannot be played"),
        ("volumes: [{name: V}],", run, "spec.volumes[0].name: is not a DNS label"),
        ("volumes: [{name: v}, {name: v}],", run, "spec.volumes[1].name: another volume is named v"),
        (
            "volumes: [{name: v, emptyDir: {}, csi: {driver: csi.spiffe.io}}],",
            run,
            "spec.volumes[0]: has more than one source",
        ),
        (
            "volumes: [{name: v, csi: {driver: other}}],",
            run,
            "spec.volumes[0].csi.driver: other is not csi.spiffe.io",
        ),
        (
            "volumes: [{name: v, csi: {driver: csi.spiffe.io, nodePublishSecretRef: {name: s}}}],",
            run,
            "spec.volumes[0].csi.nodePublishSecretRef: cannot be played",
        ),
        (
            "volumes: [{name: v, configMap: {name: absent}}],",
            run,
            "spec.volumes[0].configMap.name: there is no ConfigMap absent",
        ),
        (
            "volumes: [{name: v, secret: {secretName: absent}}],",
            run,
            "spec.volumes[0].secret.secretName: there is no Secret absent",
        ),
        (
            "volumes: [{name: v, configMap: {name: settings, defaultMode: 512}}],",
            run,
            "spec.volumes[0].configMap.defaultMode: 512",
        ),
        (
            "volumes: [{name: v, configMap: {name: settings, items: [{key: gone, path: a}]}}],",
            run,
            "spec.volumes[0].configMap.items[0].key: there is no key gone",
        ),
        (
            "volumes: [{name: v, configMap: {name: settings, items: [{key: shape, path: ../a}]}}],",
            run,
            "spec.volumes[0].configMap.items[0].path: is not a relative path",
        ),
        ("", "image: x", "spec.containers[0].command: is missing"),
        ("", "args: [a]", "spec.containers[0].command: is missing"),
        ("", "command: [x], comand: [y]", "spec.containers[0].comand: cannot be played"),
        ("", "command: [x], tty: true", "spec.containers[0].tty: cannot be played"),
        ("", "command: [x], lifecycle: {}", "spec.containers[0].lifecycle: cannot be played"),
        ("", "command: [x], workingDir: a", "spec.containers[0].workingDir: is not an absolute path"),
        ("", "command: [x], restartPolicy: Always", "spec.containers[0].restartPolicy: cannot be played"),
        (
            "",
            "command: [x], securityContext: {privileged: true}",
            "spec.containers[0].securityContext.privileged: a simulated",
        ),
        (
            "",
            "command: [x], securityContext: {capabilities: {add: [NET_ADMIN]}}",
            "securityContext.capabilities.add: a simulated",
        ),
        (
            "",
            "command: [x], securityContext: {runAsUser: 4294967296}",
            "securityContext.runAsUser: 4294967296 is not",
        ),
        (
            "",
            "command: [x], securityContext: {runAsUser: 0, runAsNonRoot: true}",
            "securityContext.runAsUser: 0 contradicts",
        ),
        (
            "",
            "command: [x], env: [{name: A, valueFrom: {resourceFieldRef: {}}}]",
            "env[0].valueFrom.resourceFieldRef: cannot",
        ),
        (
            "",
            "command: [x], env: [{name: A, valueFrom: {}}]",
            "spec.containers[0].env[0].valueFrom: has no source",
        ),
        (
            "",
            "command: [x], env: [{name: A, valueFrom: {fieldRef: {fieldPath: status.phase}}}]",
            "env[0].valueFrom.fieldRef.fieldPath: status.phase",
        ),
        (
            "",
            "command: [x], env: [{name: A, valueFrom: {secretKeyRef: {name: keys, key: gone}}}]",
            "env[0].valueFrom.secretKeyRef.key: Secret keys has no key gone",
        ),
        (
            "",
            "command: [x], env: [{name: A, valueFrom: {configMapKeyRef: {name: gone, key: gone}}}]",
            "configMapKeyRef.name: there is no ConfigMap gone",
        ),
        (
            "",
            "command: [x], env: [{name: A, valueFrom: {configMapKeyRef: {name: settings, key: raw}}}]",
            "configMapKeyRef.key: the value of raw is not UTF-8",
        ),
        (
            "",
            "command: [x], env: [{name: 'A=B', value: x}]",
            "spec.containers[0].env[0].name: is not the name",
        ),
        ("", "command: [x], envFrom: [{prefix: a}]", "spec.containers[0].envFrom[0]: has neither"),
        (
            "",
            "command: [x], envFrom: [{secretRef: {name: gone}}]",
            "spec.containers[0].envFrom[0].secretRef.name: there is no Secret gone",
        ),
        (
            "",
            "command: [x], volumeMounts: [{name: gone, mountPath: /a}]",
            "spec.containers[0].volumeMounts[0].name: there is no volume gone",
        ),
        (
            "volumes: [{name: v}],",
            "command: [x], volumeMounts: [{name: v, mountPath: a}]",
            "volumeMounts[0].mountPath: is not an absolute",
        ),
        (
            "volumes: [{name: v}],",
            "command: [x], volumeMounts: [{name: v, mountPath: /a/../b}]",
            "volumeMounts[0].mountPath: is not an absolute",
        ),
        (
            "volumes: [{name: v}],",
            "command: [x], volumeMounts: [{name: v, mountPath: /}]",
            "volumeMounts[0].mountPath: is not an absolute",
        ),
        (
            "volumes: [{name: v}],",
            "command: [x], volumeMounts: [{name: v, mountPath: /proc/x}]",
            "volumeMounts[0].mountPath: /proc, /dev and",
        ),
        (
            "volumes: [{name: v}],",
            "command: [x], volumeMounts: [{name: v, mountPath: /a, subPath: ../b}]",
            "volumeMounts[0].subPath: is not",
        ),
        (
            "volumes: [{name: v}],",
            "command: [x], volumeMounts: [{name: v, mountPath: /a, subPathExpr: b}]",
            "volumeMounts[0].subPathExpr: cannot",
        ),
        (
            "volumes: [{name: v}],",
            "command: [x], volumeMounts: [{name: v, mountPath: /a, mountPropagation: None}]",
            "volumeMounts[0].mountPropagation: cannot",
        ),
        (
            "volumes: [{name: v}],",
            "command: [x], volumeMounts: [{name: v, mountPath: /a}, {name: v, mountPath: /a/}]",
            "volumeMounts[1].mountPath: something else",
        ),
        (
            "volumes: [{name: v}],",
            "command: [x], volumeMounts: [{name: v, mountPath: /a/b}, {name: v, mountPath: /a, readOnly: true}]",
            "volumeMounts[0].mountPath: lies inside the read-only mount /a",
        ),
    ] {
        let found = errors(&format!("{OTHERS}{}", pod(spec, container)));
        assert_eq!(found.len(), 1, "{at}: {found:#?}");
        assert!(found[0].starts_with("Pod ns/p: spec"), "{found:#?}");
        assert!(found[0].contains(at), "{at}: {found:#?}");
    }
}

#[test]
fn refuses_other_objects() {
    let pod = pod("", "command: [x]");
    for (text, at) in [
        ("", "file.yaml: there is no Pod to play"),
        ("a: b", "file.yaml: a document has no `kind`"),
        ("[]", "file.yaml: a document has no `kind`"),
        ("a: [", "file.yaml: not readable as YAML"),
        ("{apiVersion: v1, kind: Pod, metadata: {}}", "file.yaml: a Pod has no `metadata.name`"),
        (
            "{apiVersion: v1, kind: Service, metadata: {name: s}}",
            "Service default/s: this kind is not played",
        ),
        (
            "{apiVersion: apps/v1, kind: Deployment, metadata: {name: d}}",
            "Deployment default/d: this kind is not played; write its pod template",
        ),
        ("{apiVersion: v2, kind: Pod, metadata: {name: p}}", "Pod default/p: this kind is not played"),
        ("{apiVersion: v1, kind: Pod, metadata: {name: p}}", "Pod default/p: spec: is missing"),
        (
            "{apiVersion: v1, kind: Pod, metadata: {name: p}, spec: {containers: []}}",
            "Pod default/p: spec.containers: is empty",
        ),
        ("{apiVersion: v1, kind: Pod, metadata: {name: p}, spec: 7}", "Pod default/p: spec: "),
        (
            "{apiVersion: v1, kind: Pod, metadata: {name: p, namespace: no}, spec: {}}",
            "Pod default/p: metadata.namespace: invalid type: boolean",
        ),
        (
            "{apiVersion: v1, kind: Pod, metadata: {name: p}, spec: {containers: [{command: x}]}}",
            "Pod default/p: spec.containers[0].command: invalid type",
        ),
        (
            "{apiVersion: v1, kind: Pod, metadata: {name: P}, spec: {containers: [{name: c, command: [x]}]}}",
            "Pod default/P: metadata.name: is not a DNS name",
        ),
        (
            "{apiVersion: v1, kind: ConfigMap, metadata: {name: m}, data: {a: 1}}",
            "ConfigMap default/m: data: ",
        ),
        (
            "{apiVersion: v1, kind: ConfigMap, metadata: {name: m}, dat: {}}",
            "ConfigMap default/m: dat: cannot be played",
        ),
        (
            "{apiVersion: v1, kind: ServiceAccount, metadata: {name: m}, x: 1}",
            "ServiceAccount default/m: x: cannot be played",
        ),
        (&format!("{pod}\n---\n{pod}"), "Pod ns/p: metadata.name: another Pod has the same name"),
        (
            "{apiVersion: v1, kind: Pod, metadata: {name: p}, spec: {initContainers: [{name: c, command: [x]}], \
             containers: [{name: c, command: [x]}]}}",
            "spec.containers[0].name: another container is named c",
        ),
        (
            "{apiVersion: v1, kind: Pod, metadata: {name: p}, spec: {initContainers: [{name: i, command: [x], \
             restartPolicy: Never}], containers: [{name: c, command: [x]}]}}",
            "spec.initContainers[0].restartPolicy: Never cannot be played",
        ),
    ] {
        let found = errors(text);
        assert!(found.iter().any(|e| e.contains(at)), "{at}: {found:#?}");
    }
}

#[test]
fn says_everything_at_once_and_no_secret() {
    let secret = "{apiVersion: v1, kind: Secret, metadata: {name: s}, data: {a: 'hunter2!'}}";
    let text = format!("{secret}\n---\n{}", pod("hostIPC: true, hostPID: true,", "image: x"));
    let found = errors(&text);
    assert_eq!(found.len(), 4, "{found:#?}");
    assert!(found[0].starts_with("Secret default/s: data: "), "{found:#?}");
    let broken = errors("{apiVersion: v1, kind: Secret, stringData: {a: hunter2\"");
    for text in found.iter().chain(&broken) {
        assert!(!text.contains("hunter2"), "{text}");
    }
}

#[test]
fn one_id_cannot_play_others() {
    let text = pod(
        "securityContext: {runAsUser: 5, fsGroup: 6, supplementalGroups: [7]},",
        "command: [x], securityContext: {runAsGroup: 8}",
    );
    let found: Vec<_> = needs_other_ids(&plan(&text), 0).iter().map(ToString::to_string).collect();
    for at in [
        "Pod ns/p: spec.securityContext.fsGroup: needs another",
        "Pod ns/p: spec.securityContext.supplementalGroups: needs another",
        "Pod ns/p: spec.containers[0].securityContext.runAsUser: needs another",
        "Pod ns/p: spec.containers[0].securityContext.runAsGroup: needs another",
    ] {
        assert!(found.iter().any(|f| f.starts_with(at)), "{at}: {found:#?}");
    }
    assert_eq!(found.len(), 4);
    let own = pod("securityContext: {runAsUser: 0, fsGroup: 0},", "command: [x]");
    assert_eq!(needs_other_ids(&plan(&own), 0), []);
    assert_eq!(needs_other_ids(&plan(&text), 8), []);
    let found: Vec<_> = needs_other_ids(&plan(&text), 7).iter().map(ToString::to_string).collect();
    assert_eq!(found.len(), 1);
    assert!(
        found[0].starts_with("Pod ns/p: spec.containers[0].securityContext.runAsGroup: is above"),
        "{found:?}"
    );
}

proptest::proptest! {
    #[test]
    fn arbitrary_text_never_panics(text in ".{0,200}") {
        let _ = place_and_load(&text);
    }

    /// Text that looks like a manifest gets further.
    #[test]
    fn damaged_manifests_never_panic(
        cut in 0usize..2000,
        len in 0usize..40,
        with in "[\\[\\]{}:,\\- \n\"'a0/$().~&*!|>%]{0,12}",
    ) {
        let text = format!("{OTHERS}{}", pod(
            "volumes: [{name: v, secret: {secretName: keys}}, {name: w, csi: {driver: csi.spiffe.io}}],",
            "command: [x, $(A)], env: [{name: A, value: b}], volumeMounts: [{name: v, mountPath: /a, subPath: b}]",
        ));
        let start = text.char_indices().map(|(i, _)| i).nth(cut % text.chars().count()).unwrap_or(0);
        let end = text.char_indices().map(|(i, _)| i).find(|i| *i >= start + len).unwrap_or(text.len());
        let damaged = format!("{}{with}{}", &text[..start], &text[end..]);
        let _ = place_and_load(&damaged);
    }
}
