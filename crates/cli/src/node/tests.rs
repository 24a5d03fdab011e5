//! The text of `status` and `volumes`, word for word.

use std::time::{Duration, SystemTime};

use seamount_proto::node as proto;

use super::model::{Report, Volumes};
use super::render;

/// 2027-01-15T08:00:00Z
pub const NOW: i64 = 1_800_000_000;

fn now() -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000)
}

/// An agent whose authority went away ten minutes ago.
pub fn status() -> proto::GetStatusResponse {
    let condition = |name: &str, state: &str, text: &str| proto::Condition {
        name: name.into(),
        state: state.into(),
        text: text.into(),
        since: NOW - 600,
    };
    let count = |state: &str, count| proto::VolumeCount { state: state.into(), count };
    let registered =
        Some(proto::Registration { state: "registered".into(), since: NOW - 90_000, reason: String::new() });
    proto::GetStatusResponse {
        agent_version: "0.1.0".into(),
        agent_pid: 1,
        agent_started: NOW - 90_000,
        drivers: vec![
            proto::Driver { name: "csi.spiffe.io".into(), registration: registered.clone() },
            proto::Driver { name: "identity.seamount.dev".into(), registration: registered },
        ],
        node: "node-1".into(),
        kubelet_root: "/var/lib/kubelet".into(),
        trust_domain: "example.org".into(),
        source: "authority".into(),
        mounter: Some(proto::Mounter {
            connected: true,
            answers: true,
            problem: String::new(),
            build: "seamount-mounter 0.1.0".into(),
            started: NOW - 90_001,
            descriptor_limit: 1_048_576,
            idmap: true,
            noswap: false,
            connections: 1,
            socket: "/run/seamount/mounter.sock".into(),
        }),
        conditions: vec![
            condition("configuration", "ready", ""),
            condition("mounter", "ready", "seamount-mounter 0.1.0"),
            condition("registration", "ready", ""),
            condition("authority", "not ready", "it does not answer: no route\nto it"),
            condition("token keys", "ready", "2 keys"),
        ],
        authority: Some(proto::Authority {
            state: "down".into(),
            since: NOW - 600,
            last_success: NOW - 900,
            last_failure: NOW - 5,
            last_error: "no route to it".into(),
            trouble: String::new(),
            roots: vec![proto::Validity { not_before: NOW - 90_000, not_after: NOW + 400 * 86_400 }],
            issuer: Some(proto::Validity { not_before: NOW - 3_600, not_after: NOW + 82_800 }),
        }),
        volumes: vec![count("pending", 1), count("ready", 2)],
        connections: 3,
        streams: 1,
        descriptor_limit: 4096,
        descriptors: 40,
        state: Some(proto::State {
            available: true,
            problem: String::new(),
            bytes: 16 << 20,
            bytes_used: 12_288,
            inodes: 4096,
            inodes_used: 5,
        }),
        log: vec![proto::LogLine {
            time: NOW - 600,
            level: "error".into(),
            text: "the authority does not answer; what was issued goes on until it expires reason=no route"
                .into(),
        }],
        now: NOW,
        overdue: 1,
        expired: 0,
    }
}

/// One of each kind.
pub fn volumes() -> Vec<proto::Volume> {
    let fault = |reason: &str, message: &str| proto::Fault {
        severity: "degraded".into(),
        reason: reason.into(),
        message: message.into(),
    };
    vec![
        proto::Volume {
            pod_uid: "00000000-0000-4000-8000-000000000009".into(),
            name: "left".into(),
            driver: "orphan".into(),
            volume_id: "orphan".into(),
            source: "unknown".into(),
            state: "unserved".into(),
            on_disk: true,
            orphan: true,
            faults: vec![fault("Orphan", "the kubelet has no record")],
            ..proto::Volume::default()
        },
        proto::Volume {
            namespace: "shop".into(),
            pod: "db-1".into(),
            pod_uid: "00000000-0000-4000-8000-000000000002".into(),
            name: "id".into(),
            driver: "identity.seamount.dev".into(),
            volume_id: "csi-2".into(),
            source: "directory".into(),
            state: "directory".into(),
            on_disk: true,
            foreign: true,
            mounts: 2,
            faults: vec![fault("ForeignMount", "another driver's mount is there")],
            ..proto::Volume::default()
        },
        proto::Volume {
            namespace: "shop".into(),
            pod: "web-1".into(),
            pod_uid: "00000000-0000-4000-8000-000000000001".into(),
            name: "id".into(),
            driver: "csi.spiffe.io".into(),
            volume_id: "csi-1".into(),
            service_account: "web".into(),
            source: "authority".into(),
            state: "ready".into(),
            spiffe_id: "spiffe://example.org/ns/shop/sa/web".into(),
            serial: "7a02".into(),
            not_before: NOW - 2_700,
            not_after: NOW + 900,
            rotate_at: NOW - 900,
            next_attempt: NOW + 30,
            failures: 9,
            last_error: "the authority refused: no route to it".into(),
            connections: 3,
            streams: 1,
            cookie: 4711,
            generation: 3,
            on_disk: true,
            token_expires: NOW + 3_000,
            faults: vec![fault("RotationFailing", "the SVID could not be renewed: no route to it")],
            ..proto::Volume::default()
        },
        proto::Volume {
            namespace: "shop".into(),
            pod: "web-2".into(),
            pod_uid: "00000000-0000-4000-8000-000000000003".into(),
            name: "id".into(),
            driver: "csi.spiffe.io".into(),
            volume_id: "csi-3".into(),
            source: "authority".into(),
            state: "pending".into(),
            cookie: 4712,
            generation: 1,
            on_disk: true,
            ..proto::Volume::default()
        },
    ]
}

/// Compares with the file; `SEAMOUNT_GOLDEN=write` writes it instead.
#[track_caller]
pub fn golden(name: &str, found: &str) {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("src/node/golden").join(name);
    if std::env::var_os("SEAMOUNT_GOLDEN").is_some_and(|v| v == "write") {
        std::fs::write(&path, found).unwrap();
    }
    let wanted = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(found == wanted, "{} differs; it is now\n{found}", path.display());
}

#[test]
fn status_as_text_wide_and_json() {
    let report = Report::new(status());
    assert!(!report.ready);
    golden("status.txt", &render::status(&report, false, now()));
    golden("status.wide.txt", &render::status(&report, true, now()));
    golden("status.json", &render::json(&report).unwrap());
}

#[test]
fn volumes_as_text_wide_and_json() {
    let mut volumes = Volumes::new((volumes(), None));
    golden("volumes.txt", &render::volumes(&volumes, false, now()));
    golden("volumes.wide.txt", &render::volumes(&volumes, true, now()));
    volumes.time = Some("2027-01-15T08:00:00Z".into());
    golden("volumes.json", &render::json(&volumes).unwrap());
}

#[test]
fn what_is_not_there_is_said() {
    let empty = Volumes::new((Vec::new(), Some("no\nanswer".to_owned())));
    let text = render::volumes(&empty, false, now());
    assert!(text.starts_with("no volumes\n"), "{text}");
    assert!(text.contains("could not be asked") && text.contains("no answer"), "{text}");
    let text = render::status(&Report::new(proto::GetStatusResponse::default()), false, now());
    for part in ["(unknown)", "no valid configuration", "drivers      unknown", "not there", "0; 0 overdue"] {
        assert!(text.contains(part), "{part}: {text}");
    }
}

#[test]
fn a_pods_author_writes_no_second_line() {
    let evil = proto::Volume {
        namespace: "shop".into(),
        pod: "a\nshop/b\u{1b}[2J ok".into(),
        last_error: "x\ny".into(),
        ..proto::Volume::default()
    };
    let text = render::volumes(&Volumes::new((vec![evil], None)), true, now());
    assert_eq!(text.lines().count(), 2, "{text}");
    assert!(!text.contains('\u{1b}'), "{text}");
}

#[test]
fn names_that_would_be_paths_are_refused() {
    for bad in ["", "..", ".x", "a/b", &"a".repeat(64)] {
        assert!(super::driver(bad).is_err(), "{bad}");
    }
    assert!(super::driver("csi.spiffe.io").is_ok());
}
