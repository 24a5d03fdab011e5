//! Writes the values that the corpora begin with, from those of the other tests: `seeds DIR` makes
//! `DIR/<target>/seed-<number>`. What the fuzzer has found since is in `corpus/`.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use prost::Message as _;
use seamount_agent::record::{
    Body, DriverRecord, IdentityBody, NodeRecord, Record, Registration, StoredSvid,
};
use seamount_authority::new_key_and_csr;
use seamount_fuzz::csi_requests::good;
use seamount_fuzz::tokens;
use seamount_identity::KeyType;
use seamount_mounter_protocol::names::Volume;
use seamount_mounter_protocol::{Fault, Reply, Request, Subject};
use seamount_pod_token::Token;
use seamount_proto::csi::{
    NodeGetVolumeHealthRequest, NodeGetVolumeStatsRequest, NodeUnpublishVolumeRequest,
};

type Seeds = BTreeMap<&'static str, Vec<Vec<u8>>>;

fn main() {
    let dir = std::env::args().nth(1).expect("a directory");
    let mut all = Seeds::new();
    frames(&mut all);
    names(&mut all);
    records(&mut all);
    requests(&mut all);
    token_parts(&mut all);
    documents(&mut all);
    certificates(&mut all);
    http(&mut all);
    for (target, seeds) in all {
        let dir = format!("{dir}/{target}");
        std::fs::create_dir_all(&dir).unwrap();
        for (number, seed) in seeds.iter().enumerate() {
            std::fs::write(format!("{dir}/seed-{number}"), seed).unwrap();
        }
    }
}

/// A target's kind of input, then the input.
fn add(all: &mut Seeds, target: &'static str, kind: u8, bytes: &[u8]) {
    all.entry(target).or_default().push([&[kind], bytes].concat());
}

fn volume() -> Volume {
    Volume {
        driver: "csi.spiffe.io".parse().unwrap(),
        pod: "3f2c1a9e-0b1d-4c5e-8f70-a1b2c3d4e5f6".parse().unwrap(),
        name: "spiffe".parse().unwrap(),
        id: "csi-0123456789abcdef".parse().unwrap(),
    }
}

fn frames(all: &mut Seeds) {
    let v = volume;
    let requests = [
        Request::Hello,
        Request::CsiListener(v().driver),
        Request::RegistrationListener(v().driver),
        Request::State,
        Request::PublishIdentity(v()),
        Request::PublishTmpfs { volume: v(), gid: 1000, size: 1 << 20 },
        Request::SetOwnership { volume: v(), version: "v1".into() },
        Request::PublishDirectory(v()),
        Request::Unpublish(v()),
        Request::Inspect(v()),
        Request::List { cursor: 3 },
        Request::StoreListener { subject: Subject::Volume(v()), cookie: 42 },
        Request::StoreListener { subject: Subject::Csi(v().driver), cookie: 42 },
        Request::Offer(v().driver),
    ];
    for (id, request) in requests.iter().enumerate() {
        add(all, "mounter_protocol", 0, &request.encode(id as u64));
        let reply = Reply { fault: Some(Fault::NotOurs), text: "why".into(), ..Reply::to(7, request) };
        add(all, "mounter_protocol", 0, &reply.encode());
    }
    for size in [64, 256, 1024] {
        let bytes: Vec<u8> = (0..size).map(|i| (i * 7) as u8).collect();
        for kind in [1, 2] {
            add(all, "mounter_protocol", kind, &bytes);
        }
        for step in 1..32u32 {
            let bytes: Vec<u8> = (0..size).map(|i| ((i as u32 * (step * 2 + 1)) >> 3) as u8).collect();
            add(all, "mounter_session", step as u8, &bytes);
        }
    }
}

fn names(all: &mut Seeds) {
    for id in [
        "spiffe://example.org/ns/shop/sa/cart",
        "SPIFFE://Example.ORG/a.b/c-d_e",
        "spiffe://example.org",
        "spiffe://example.org/",
        "spiffe://example.org/a//b",
        "spiffe://example.org/../b",
        "spiffe://user@example.org:80/b?c#d",
        "spiffe:///a",
    ] {
        add(all, "identifiers", 0, id.as_bytes());
    }
    for name in ["example.org", "EXAMPLE-1_x", "a b", ""] {
        add(all, "identifiers", 1, name.as_bytes());
    }
    for path in ["", "/a/b", "/a/../b", "a"] {
        add(all, "identifiers", 2, path.as_bytes());
    }
    for template in [
        "spiffe://{trustDomain}/ns/{namespace}/sa/{serviceAccount}",
        "spiffe://example.org/{node}/{podUid}/x-{podName}",
        "spiffe://{trustDomain}/{namespace}{podName}",
    ] {
        // Two pods of five texts, and the template.
        add(all, "identifiers", 3, &[&b"aaaaaaaaaaaaaaaa"[..], template.as_bytes()].concat());
        add(all, "identifiers", 3, template.as_bytes());
    }
}

fn records(all: &mut Seeds) {
    let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000);
    let record = Record {
        generation: 1,
        volume: volume(),
        body: Body::Identity(IdentityBody {
            cookie: 42,
            token: Some(Token::new("header.payload.signature".into())),
            svid: Some(StoredSvid {
                spiffe_id: "spiffe://example.org/ns/shop/sa/cart".into(),
                key: vec![1, 2, 3].into(),
                chain: vec![4, 5, 6],
                roots: vec![7, 8],
                not_before: now,
                not_after: now,
                rotate_at: now,
            }),
        }),
    };
    let plain = Record { body: Body::Directory, ..record.clone() };
    let node = |registration| {
        let driver = record.volume.driver.clone();
        let driver = DriverRecord { driver, csi_cookie: 4, registration_cookie: 5, registration };
        let other = DriverRecord { driver: "b.example.org".parse().unwrap(), ..driver.clone() };
        NodeRecord { generation: 3, drivers: vec![driver, other] }
    };
    let encoded = [
        record.encode(),
        plain.encode(),
        node(Registration::Unknown).encode(),
        node(Registration::Registered).encode(),
        node(Registration::Failed("no such driver".into())).encode(),
    ];
    for (number, bytes) in encoded.iter().enumerate() {
        add(all, "state_records", 0, bytes);
        add(all, "state_records", 1, &bytes[..bytes.len() - 32]);
        let kind = u8::from(number > 1);
        add(all, "state_records", 2, &[&[kind], &bytes[20..bytes.len() - 32]].concat());
    }
    add(all, "state_records", 3, &[0x55; 600]);
}

fn tokens_json() -> [String; 6] {
    [
        r#"{"seamount.dev":{"token":"aGVhZGVy.cGF5bG9hZA.c2lnbmF0dXJl","expirationTimestamp":"2026-11-21T12:00:00Z"}}"#.into(),
        r#"{"seamount.dev":{"token":"a"},"seamount.dev":{"token":"b"}}"#.into(),
        r#"{"other":{"token":"a"}}"#.into(),
        r#"{"seamount.dev":{"token":"a","token":"b"}}"#.into(),
        r#"{"seamount.dev":{"token":""}}"#.into(),
        "{}".into(),
    ]
}

fn requests(all: &mut Seeds) {
    let [tokens, ..] = tokens_json();
    let publish = good(&tokens);
    let undo = NodeUnpublishVolumeRequest {
        volume_id: publish.volume_id.clone(),
        target_path: publish.target_path.clone(),
    };
    let stats = NodeGetVolumeStatsRequest {
        volume_id: publish.volume_id.clone(),
        volume_path: publish.target_path.clone(),
        ..Default::default()
    };
    let health = NodeGetVolumeHealthRequest {
        volume_id: publish.volume_id.clone(),
        volume_publish_path: publish.target_path.clone(),
        ..Default::default()
    };
    let by_id = NodeGetVolumeHealthRequest { volume_publish_path: String::new(), ..health.clone() };
    add(all, "csi_requests", 0, &publish.encode_to_vec());
    add(all, "csi_requests", 1, &undo.encode_to_vec());
    add(all, "csi_requests", 2, &stats.encode_to_vec());
    add(all, "csi_requests", 3, &health.encode_to_vec());
    add(all, "csi_requests", 3, &by_id.encode_to_vec());
    for step in 0..12u8 {
        add(all, "csi_requests", 4, &[step; 40]);
    }
    for json in tokens_json() {
        all.entry("pod_tokens").or_default().push(json.into_bytes());
    }
}

fn token_parts(all: &mut Seeds) {
    let payload = tokens::claims().to_string();
    for header in [
        r#"{"alg":"ES256","kid":"KID"}"#,
        r#"{"alg":"ES256","kid":"KID","typ":"JWT"}"#,
        r#"{"alg":"none","kid":"KID"}"#,
        r#"{"alg":"HS256","kid":"KID"}"#,
        r#"{"alg":"RS256","kid":"KID","crit":["b64"],"b64":false}"#,
        r#"["ES256","KID",null]"#,
    ] {
        add(all, "tokens", 1, &[header.as_bytes(), b"\0", payload.as_bytes()].concat());
    }
    add(all, "tokens", 0, b"eyJhbGciOiJub25lIn0.eyJpc3MiOiJ4In0.");
    for step in 0..16u8 {
        add(all, "tokens", 2, &[step.wrapping_mul(17); 24]);
        add(all, "tokens", 3, &[step, step, step, step, 1]);
    }
    let rsa = format!(
        r#"{{"keys":[{{"kty":"RSA","kid":"KID","use":"sig","alg":"RS256","n":"{}","e":"AQAB"}}]}}"#,
        "w".repeat(342)
    );
    let coordinate = "A".repeat(43);
    let p256 = format!(
        r#"{{"keys":[{{"kty":"EC","kid":"KID","crv":"P-256","key_ops":["verify"],"x":"{coordinate}","y":"{coordinate}"}}]}}"#
    );
    let p384 = format!(
        r#"{{"keys":[{{"kty":"EC","kid":"KID","crv":"P-384","x":"{0}","y":"{0}"}}]}}"#,
        "B".repeat(64)
    );
    for set in [rsa, p256, p384, r#"{"keys":[{"kty":"oct","k":"AAAA"}]}"#.into(), r#"{"keys":[]}"#.into()] {
        all.entry("token_keys").or_default().push(set.into_bytes());
    }
}

fn documents(all: &mut Seeds) {
    for json in [
        r#"{"attachmentID":"csi-1","driverName":"csi.spiffe.io","nodeName":"n","specVolID":"x","volumeHandle":"csi-v","volumeLifecycleMode":"Ephemeral"}"#,
        r#"{"driverName":"csi.example.com","volumeHandle":"csi-v"}"#,
        r#"{"driverName":"csi.spiffe.io","volumeHandle":"csi-w","driverName":"b"}"#,
        r#"{"driverName":1}"#,
        "[]",
        "",
    ] {
        add(all, "vol_data", 0, json.as_bytes());
    }
    for kind in 0..5 {
        add(all, "vol_data", 1, &[kind, 7]);
    }
    for length in [0, 200, 255] {
        add(all, "vol_data", 2, &[length]);
    }
    let manifests = concat!(env!("CARGO_MANIFEST_DIR"), "/../../examples");
    let texts =
        ["identity.yaml", "service.yaml"].map(|name| std::fs::read(format!("{manifests}/{name}")).unwrap());
    let all_fields = br#"apiVersion: v1
kind: Pod
metadata: {name: web, namespace: ns, labels: {app: web}}
spec:
  serviceAccountName: shop
  restartPolicy: OnFailure
  terminationGracePeriodSeconds: 5
  securityContext: {runAsUser: 10, runAsGroup: 20, fsGroup: 30, supplementalGroups: [40], runAsNonRoot: true}
  initContainers:
  - {name: first, command: [a], securityContext: {runAsUser: 11}}
  - {name: side, restartPolicy: Always, command: [b]}
  containers:
  - name: main
    image: shop:1
    workingDir: /work
    command: [run, $(COLOUR), $$(COLOUR)]
    envFrom:
    - {prefix: K_, secretRef: {name: keys}}
    env:
    - {name: COLOUR, valueFrom: {configMapKeyRef: {name: settings, key: a}}}
    - {name: NODE, valueFrom: {fieldRef: {fieldPath: spec.nodeName}}}
    - {name: HUSH, valueFrom: {secretKeyRef: {name: keys, key: key}}}
    volumeMounts:
    - {name: inner, mountPath: /a/b/, subPath: x/y}
    - {name: files, mountPath: /files}
    - {name: id, mountPath: /id}
  volumes:
  - {name: inner, emptyDir: {}}
  - {name: files, secret: {secretName: keys, defaultMode: 0400, items: [{key: key, path: k/1, mode: 0440}]}}
  - {name: id, csi: {driver: csi.spiffe.io, readOnly: true, volumeAttributes: {a: b}}}
"#;
    let small = b"{apiVersion: v1, kind: Pod, metadata: {name: p, namespace: ns}, spec: {containers: [{name: c, command: [x]}]}}";
    let into = all.entry("manifests").or_default();
    into.extend(texts);
    into.extend([all_fields.to_vec(), small.to_vec()]);
}

fn certificates(all: &mut Seeds) {
    let fixture =
        |name: &str| std::fs::read(format!("{}/fixtures/{name}.der", env!("CARGO_MANIFEST_DIR"))).unwrap();
    let [root, signer, leaf] = ["root", "signer", "leaf"].map(fixture);
    let domain: seamount_identity::TrustDomain = "example.org".parse().unwrap();
    let bundle = seamount_identity::X509Bundle::from_der(domain, &root).unwrap();
    add(all, "certificates", 0, &root);
    add(all, "certificates", 0, &[&root[..], &root].concat());
    add(all, "certificates", 1, bundle.pem().as_bytes());
    add(all, "certificates", 2, &leaf);
    add(all, "certificates", 2, &[&leaf[..], &signer].concat());
    add(all, "certificates", 2, &[&leaf[..], &signer, &root].concat());
    for place in 0..40u8 {
        add(all, "certificates", 3, &[2, 1, place, place, place, 1, 0]);
    }
    let (key, _) = new_key_and_csr(KeyType::EcP256).unwrap();
    let mut der = key.expose_pkcs8_der().to_vec();
    // Its form, not a key.
    der[36..60].fill(0x11);
    add(all, "certificates", 4, &der);
}

fn hex(text: &str) -> Vec<u8> {
    let digits: Vec<u8> = text.bytes().filter(u8::is_ascii_hexdigit).collect();
    digits.chunks(2).map(|pair| u8::from_str_radix(str::from_utf8(pair).unwrap(), 16).unwrap()).collect()
}

fn http(all: &mut Seeds) {
    // RFC 7541, C.4, and a literal name.
    let blocks = [
        hex("8286 8441 8cf1 e3c2 e5f2 3a6b a0ab 90f4 ff"),
        hex("8286 84be 5886 a8eb 1064 9cbf"),
        hex("8287 85bf 4088 25a8 49e9 5ba9 7d7f 8925 a849 e95b b8e8 b4bf"),
        [&[0x83, 0x40, 10][..], b":authority", &[4], b"%2Fa", &[0x40, 1], b"a", &[1], b"b"].concat(),
        hex("3fe1 1f41 ffff 037f 40 7f80 01"),
    ];
    for block in &blocks {
        for flags in [0x5u8, 0xd, 0x2d] {
            let head = if flags == 0x5 { vec![] } else { vec![2, 0, 0, 0, 0, 16] };
            add(all, "authority_filter", 1, &[&[3, 5, flags], &head[..], block, &[0, 0]].concat());
        }
        let length = (block.len() as u32).to_be_bytes();
        let frame = [&length[1..], &[1, 5, 0, 0, 0, 1], block].concat();
        let other = [&[0, 0, 6, 4, 0, 0, 0, 0, 0][..], &[0x41; 6]].concat();
        add(all, "authority_filter", 2, &[&[1, 9], &other[..], &frame, &other, &frame].concat());
        add(
            all,
            "authority_filter",
            0,
            &[&[9, 1], &b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"[..], &frame].concat(),
        );
        let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
        add(all, "workload_api", 2, &[&preface[..], &[0, 0, 0, 4, 0, 0, 0, 0, 0], &frame].concat());
    }
    for step in 0..24u8 {
        add(all, "workload_api", 0, &[step; 30]);
        add(all, "workload_api", 1, &[step.wrapping_mul(11); 60]);
    }
}
