use std::time::SystemTime;

use seamount_pod_token::Claims;
use seamount_proto::csi::volume_capability::{AccessMode, AccessType, BlockVolume, MountVolume};
use seamount_proto::csi::{NodePublishVolumeRequest, VolumeCapability};
use tonic::{Code, Status};

use super::fields::*;
use super::*;

mod facts;

const ROOT: &str = "/var/lib/kubelet";
const UID: &str = "3f2c1a9e-0b1d-4c5e-8f70-a1b2c3d4e5f6";
const OTHER_UID: &str = "00000000-0000-0000-0000-000000000000";
const SECRET: &str = "header.payload.signature";

fn basic() -> Rules {
    Rules::basic("csi.spiffe.io".parse().unwrap(), ROOT)
}

fn rules() -> Rules {
    Rules { audience: Some("seamount.dev".into()), ..basic() }
}

fn path() -> String {
    format!("{ROOT}/pods/{UID}/volumes/kubernetes.io~csi/identity/mount")
}

fn tokens(audience: &str) -> String {
    format!(r#"{{"{audience}":{{"token":"{SECRET}","expirationTimestamp":"2026-11-21T12:00:00Z"}}}}"#)
}

/// What a kubelet of 1.36 sends for a good pod.
fn good() -> NodePublishVolumeRequest {
    let context = [
        (EPHEMERAL, "true"),
        (POD_NAME, "cart-0"),
        (POD_NAMESPACE, "shop"),
        (POD_UID, UID),
        (SERVICE_ACCOUNT, "cart"),
    ];
    NodePublishVolumeRequest {
        volume_id: format!("csi-{}", "a".repeat(64)),
        target_path: path(),
        volume_capability: Some(VolumeCapability {
            access_mode: Some(AccessMode { mode: 1 }),
            access_type: Some(AccessType::Mount(MountVolume::default())),
        }),
        readonly: true,
        secrets: [(TOKENS.to_owned(), tokens("seamount.dev"))].into(),
        volume_context: context.map(|(k, v)| (k.to_owned(), v.to_owned())).into(),
        ..NodePublishVolumeRequest::default()
    }
}

fn claims() -> Claims {
    Claims {
        namespace: "shop".into(),
        service_account: "cart".into(),
        service_account_uid: OTHER_UID.into(),
        pod_name: "cart-0".into(),
        pod_uid: UID.into(),
        node: "node-1".into(),
        issued: SystemTime::UNIX_EPOCH,
        expires: SystemTime::UNIX_EPOCH,
    }
}

type Request = NodePublishVolumeRequest;
type Change = Box<dyn Fn(&mut Request)>;

/// One hostile request: what is changed in the good one, the code, and what the message has to say.
struct Hostile(&'static str, Change, Code, &'static [&'static str]);

fn hostile(
    name: &'static str,
    change: impl Fn(&mut Request) + 'static,
    code: Code,
    says: &'static [&'static str],
) -> Hostile {
    Hostile(name, Box::new(change), code, says)
}

fn put(key: &'static str, value: impl Into<String>) -> impl Fn(&mut Request) + 'static {
    let value = value.into();
    move |r| {
        r.volume_context.insert(key.to_owned(), value.clone());
    }
}

fn cut(key: &'static str) -> impl Fn(&mut Request) + 'static {
    move |r| {
        r.volume_context.remove(key);
    }
}

fn mount(change: impl Fn(&mut MountVolume) + 'static) -> impl Fn(&mut Request) + 'static {
    move |r| {
        let mut volume = MountVolume::default();
        change(&mut volume);
        r.volume_capability.as_mut().unwrap().access_type = Some(AccessType::Mount(volume));
    }
}

fn target(path: impl Into<String>) -> impl Fn(&mut Request) + 'static {
    let path = path.into();
    move |r| r.target_path.clone_from(&path)
}

fn mode(mode: i32) -> impl Fn(&mut Request) + 'static {
    move |r| r.volume_capability.as_mut().unwrap().access_mode = Some(AccessMode { mode })
}

fn secret(json: impl Into<String>) -> impl Fn(&mut Request) + 'static {
    let json = json.into();
    move |r| {
        r.secrets.insert(TOKENS.to_owned(), json.clone());
    }
}

fn check(table: Vec<Hostile>) {
    for Hostile(name, change, code, says) in table {
        let mut request = good();
        change(&mut request);
        let refusal = publish(request, &rules()).expect_err(name);
        let status = Status::from(refusal);
        assert_eq!(status.code(), code, "{name}: {}", status.message());
        for part in says {
            assert!(status.message().contains(part), "{name}: {:?} is not in {:?}", part, status.message());
        }
        assert!(!status.message().contains(SECRET), "{name} tells the token");
        assert!(status.message().len() < 700, "{name}: {} bytes", status.message().len());
    }
}

const INVALID: Code = Code::InvalidArgument;

#[test]
fn a_good_request_is_taken_apart() {
    let request = publish(good(), &rules()).unwrap();
    assert_eq!(request.volume.pod.as_str(), UID);
    assert_eq!(request.volume.name.as_str(), "identity");
    assert_eq!(request.volume.id.as_str(), good().volume_id);
    assert_eq!(request.pod_name, "cart-0");
    assert_eq!(request.namespace, "shop");
    assert_eq!(request.service_account, "cart");
    assert_eq!(request.token.as_ref().unwrap().expose(), SECRET);
    assert!(!format!("{request:?}").contains(SECRET));
}

/// The refusals of the SPIFFE CSI driver 0.2.12, with its code.
#[test]
fn drop_in_refusals() {
    check(vec![
        hostile("no id", |r| r.volume_id.clear(), INVALID, &["missing required volume_id"]),
        hostile("no path", |r| r.target_path.clear(), INVALID, &["missing required target_path"]),
        hostile(
            "no capability",
            |r| r.volume_capability = None,
            INVALID,
            &["missing required volume_capability"],
        ),
        hostile(
            "no access type",
            |r| r.volume_capability.as_mut().unwrap().access_type = None,
            INVALID,
            &["volume_capability.access_type"],
        ),
        hostile(
            "no access mode",
            |r| r.volume_capability.as_mut().unwrap().access_mode = None,
            INVALID,
            &["volume_capability.access_mode"],
        ),
        hostile(
            "block",
            |r| r.volume_capability.as_mut().unwrap().access_type = Some(AccessType::Block(BlockVolume {})),
            INVALID,
            &["must be a simple mount", "block"],
        ),
        hostile("fsType", mount(|m| m.fs_type = "ext4".into()), INVALID, &["simple mount", "fs_type"]),
        hostile("flags", mount(|m| m.mount_flags = vec!["rw".into()]), INVALID, &["mount_flags"]),
        hostile("group", mount(|m| m.volume_mount_group = "0".into()), INVALID, &["volume_mount_group"]),
        hostile("mode unknown", mode(0), INVALID, &["access_mode 0"]),
        hostile("mode reader only", mode(2), INVALID, &["access_mode 2", "SINGLE_NODE_WRITER"]),
        hostile("mode many nodes", mode(5), INVALID, &["access_mode 5"]),
        hostile("mode out of range", mode(99), INVALID, &["access_mode 99"]),
        hostile("mode negative", mode(-1), INVALID, &["access_mode -1"]),
        hostile(
            "read-write",
            |r| r.readonly = false,
            INVALID,
            &["pod.spec.volumes[].csi.readOnly must be set to 'true'"],
        ),
        hostile("persistent", put(EPHEMERAL, "false"), INVALID, &["only ephemeral volumes are supported"]),
        hostile("no pod info", cut(EPHEMERAL), INVALID, &["podInfoOnMount"]),
        hostile("odd ephemeral", put(EPHEMERAL, "True"), INVALID, &["csi.storage.k8s.io/ephemeral"]),
    ]);
}

#[test]
fn the_modes_of_one_writing_node_are_accepted() {
    for accepted in [1, 6, 7] {
        let mut request = good();
        mode(accepted)(&mut request);
        assert!(publish(request, &rules()).is_ok(), "{accepted}");
    }
}

#[test]
fn hostile_strings() {
    let long = |n: usize| "a".repeat(n);
    check(vec![
        hostile(
            "id over-long",
            move |r| r.volume_id = long(129),
            INVALID,
            &["volume_id has 129 bytes", "128"],
        ),
        hostile("id NUL", |r| r.volume_id = "csi\0".into(), INVALID, &["volume_id has a NUL byte"]),
        hostile("id ..", |r| r.volume_id = "..".into(), INVALID, &["volume_id climbs"]),
        hostile("id slash", |r| r.volume_id = "a/b".into(), INVALID, &["volume_id climbs"]),
        hostile("id space", |r| r.volume_id = "a b".into(), INVALID, &["volume_id", "printable"]),
        hostile("id newline", |r| r.volume_id = "a\nb".into(), INVALID, &["volume_id", "\\n"]),
        hostile("id not ASCII", |r| r.volume_id = "é".into(), INVALID, &["volume_id"]),
        hostile(
            "staging over-long",
            |r| r.staging_target_path = "a".repeat(4097),
            INVALID,
            &["staging_target_path"],
        ),
        hostile(
            "staging NUL",
            |r| r.staging_target_path = "/\0".into(),
            INVALID,
            &["staging_target_path has a NUL"],
        ),
        hostile(
            "publish context",
            |r| {
                r.publish_context.insert("a".into(), "b".repeat(4096));
            },
            INVALID,
            &["publish_context has 4097 bytes"],
        ),
        hostile(
            "volume context over-long",
            |r| {
                r.volume_context.insert("a".into(), "b".repeat(4096));
            },
            INVALID,
            &["volume_context has"],
        ),
        hostile(
            "volume context key over-long",
            |r| {
                r.volume_context.insert("k".repeat(5000), String::new());
            },
            INVALID,
            &["volume_context has"],
        ),
        hostile("NUL in a value", put(POD_NAME, "a\0"), INVALID, &["pod.name\"] has a NUL"]),
        hostile(
            "NUL in a key",
            |r| {
                r.volume_context.insert("a\0".into(), "b".into());
            },
            INVALID,
            &["volume_context[\"a\\0\"]"],
        ),
        hostile(
            "secrets over-long",
            |r| {
                r.secrets.insert("x".into(), "b".repeat(4096));
            },
            INVALID,
            &["secrets has 4097 bytes"],
        ),
        hostile(
            "foreign secret",
            |r| {
                r.secrets.insert("password".into(), "hunter2".into());
            },
            INVALID,
            &["secrets[\"password\"]", "nodePublishSecretRef"],
        ),
    ]);
}

#[test]
fn hostile_paths() {
    let p = |path: &str| target(path.replace("ROOT", ROOT).replace("UID", UID));
    let form: &[&str] = &["target_path", "kubernetes.io~csi/<volume name>/mount"];
    let climbs: &[&str] = &["target_path climbs"];
    check(vec![
        hostile("relative", p("pods/UID/volumes/kubernetes.io~csi/identity/mount"), INVALID, form),
        hostile("root", p("/"), INVALID, form),
        hostile("elsewhere", p("/etc"), INVALID, form),
        hostile(
            "root's sibling",
            p("ROOT2/pods/UID/volumes/kubernetes.io~csi/identity/mount"),
            INVALID,
            form,
        ),
        hostile("not pods", p("ROOT/plugins/UID/volumes/kubernetes.io~csi/identity/mount"), INVALID, form),
        hostile("no mount", p("ROOT/pods/UID/volumes/kubernetes.io~csi/identity"), INVALID, form),
        hostile(
            "slash at the end",
            p("ROOT/pods/UID/volumes/kubernetes.io~csi/identity/mount/"),
            INVALID,
            form,
        ),
        hostile("more below", p("ROOT/pods/UID/volumes/kubernetes.io~csi/identity/mount/x"), INVALID, form),
        hostile("double slash", p("ROOT//pods/UID/volumes/kubernetes.io~csi/identity/mount"), INVALID, form),
        hostile("dot", p("ROOT/pods/UID/volumes/kubernetes.io~csi/./mount"), INVALID, form),
        hostile(
            "another plugin",
            p("ROOT/pods/UID/volumes/kubernetes.io~secret/identity/mount"),
            INVALID,
            form,
        ),
        hostile("no UUID", p("ROOT/pods/abc/volumes/kubernetes.io~csi/identity/mount"), INVALID, form),
        hostile("no name", p("ROOT/pods/UID/volumes/kubernetes.io~csi//mount"), INVALID, form),
        hostile("odd name", p("ROOT/pods/UID/volumes/kubernetes.io~csi/-a/mount"), INVALID, form),
        hostile("upper case", p("ROOT/pods/UID/volumes/kubernetes.io~csi/A/mount"), INVALID, form),
        hostile(
            "long name",
            target(format!("{ROOT}/pods/{UID}/volumes/kubernetes.io~csi/{}/mount", "a".repeat(64))),
            INVALID,
            form,
        ),
        hostile(".. for the name", p("ROOT/pods/UID/volumes/kubernetes.io~csi/../mount"), INVALID, climbs),
        hostile(
            ".. for the UID",
            p("ROOT/pods/../volumes/kubernetes.io~csi/identity/mount"),
            INVALID,
            climbs,
        ),
        hostile(
            "out and in",
            p("ROOT/../kubelet/pods/UID/volumes/kubernetes.io~csi/a/mount"),
            INVALID,
            climbs,
        ),
        hostile("NUL", p("ROOT/pods/UID/volumes/kubernetes.io~csi/identity/mount\0"), INVALID, &["NUL"]),
        hostile(
            "over-long",
            target(format!("/{}", "a".repeat(4096))),
            INVALID,
            &["target_path has 4097 bytes"],
        ),
    ]);
}

#[test]
fn the_pods_author_cannot_speak_for_the_kubelet() {
    check(vec![
        hostile(
            "unknown attribute",
            put("spiffeId", "spiffe://x/admin"),
            INVALID,
            &["volume_context[\"spiffeId\"]", "volumeAttributes"],
        ),
        hostile("empty attribute", put("", "x"), INVALID, &["volume_context[\"\"]"]),
        hostile(
            "reserved attribute",
            put("csi.storage.k8s.io/pod.serviceAccount", "x"),
            INVALID,
            &["csi.storage.k8s.io/pod.serviceAccount", "reserved"],
        ),
        hostile("reserved prefix alone", put("csi.storage.k8s.io/", "x"), INVALID, &["reserved"]),
        hostile("no name", cut(POD_NAME), INVALID, &["pod.name", "podInfoOnMount"]),
        hostile("no namespace", cut(POD_NAMESPACE), INVALID, &["pod.namespace"]),
        hostile("no UID", cut(POD_UID), INVALID, &["pod.uid"]),
        hostile("no account", cut(SERVICE_ACCOUNT), INVALID, &["serviceAccount.name"]),
        hostile("empty name", put(POD_NAME, ""), INVALID, &["pod.name"]),
        hostile("long name", put(POD_NAME, "a".repeat(254)), INVALID, &["pod.name", "253"]),
        hostile("long namespace", put(POD_NAMESPACE, "a".repeat(64)), INVALID, &["pod.namespace", "63"]),
        hostile("name with ..", put(POD_NAME, ".."), INVALID, &["pod.name", "Kubernetes name"]),
        hostile("name with a slash", put(POD_NAME, "a/b"), INVALID, &["pod.name"]),
        hostile("namespace with a dot", put(POD_NAMESPACE, "a.b"), INVALID, &["pod.namespace"]),
        hostile("account with a colon", put(SERVICE_ACCOUNT, "a:b"), INVALID, &["serviceAccount.name"]),
        hostile(
            "another pod's UID",
            put(POD_UID, OTHER_UID),
            Code::PermissionDenied,
            &["pod.uid", OTHER_UID, "target_path", UID],
        ),
    ]);
}

#[test]
fn hostile_tokens() {
    let both = |r: &mut Request| {
        r.volume_context.insert(TOKENS.to_owned(), tokens("seamount.dev"));
    };
    let only_context = move |r: &mut Request| {
        r.secrets.clear();
        both(r);
    };
    let json: &[&str] = &["secrets[\"csi.storage.k8s.io/serviceAccount.tokens\"]", "JSON of tokens"];
    check(vec![
        hostile(
            "none",
            |r| r.secrets.clear(),
            INVALID,
            &["serviceAccount.tokens", "tokenRequests", "seamount.dev"],
        ),
        hostile("both", both, INVALID, &["volume_context", "forged"]),
        hostile("in the context", only_context, INVALID, &["volume_context", "serviceAccountTokenInSecrets"]),
        hostile(
            "another audience",
            secret(tokens("vault")),
            INVALID,
            &["audience \"vault\"", "token.audience"],
        ),
        hostile("the default audience", secret(tokens("")), INVALID, &["audience \"\""]),
        hostile(
            "one more audience",
            secret(format!(
                "{{{},{}}}",
                tokens("seamount.dev").trim_matches(['{', '}']).to_owned() + "}",
                tokens("vault").trim_matches(['{', '}']).to_owned() + "}",
            )),
            INVALID,
            &["audience \"vault\""],
        ),
        hostile("no audience", secret("{}"), INVALID, &["tokenRequests"]),
        hostile(
            "twice",
            secret(format!(
                r#"{{"seamount.dev":{{"token":"{SECRET}"}},"seamount.dev":{{"token":"{SECRET}"}}}}"#
            )),
            INVALID,
            &["twice"],
        ),
        hostile("empty", secret(""), INVALID, json),
        hostile("no JSON", secret(SECRET), INVALID, json),
        hostile("a list", secret("[]"), INVALID, json),
        hostile("a text", secret(format!("{SECRET:?}")), INVALID, json),
        hostile("text for an object", secret(format!(r#"{{"seamount.dev":"{SECRET}"}}"#)), INVALID, json),
        hostile("no token", secret(r#"{"seamount.dev":{"expirationTimestamp":""}}"#), INVALID, json),
        hostile("empty token", secret(r#"{"seamount.dev":{"token":""}}"#), INVALID, json),
        hostile("number", secret(r#"{"seamount.dev":{"token":7}}"#), INVALID, json),
        hostile(
            "two tokens",
            secret(format!(r#"{{"seamount.dev":{{"token":"{SECRET}","token":"x"}}}}"#)),
            INVALID,
            json,
        ),
        hostile("something after", secret(tokens("seamount.dev") + "x"), INVALID, json),
        hostile("oversized", secret("x".repeat(40_000)), INVALID, &["40000 bytes"]),
        hostile("deep", secret("[".repeat(10_000)), INVALID, json),
        hostile("deep inside", secret(format!(r#"{{"seamount.dev":{}"#, "[".repeat(10_000))), INVALID, json),
    ]);
}
