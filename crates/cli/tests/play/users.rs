//! Users and groups.

use std::fs;

use seamount_testkit::namespace::private_mounts;

use crate::stage::{Playing, Stage, Who, everybody, root, script};

const IDS: &str = "  securityContext: {runAsUser: 10001, runAsGroup: 10002, fsGroup: 10003, supplementalGroups: [10004], runAsNonRoot: true}
  volumes: [{name: v}, {name: f, secret: {secretName: keys, defaultMode: 0400}}, {name: id, csi: {driver: csi.spiffe.io, readOnly: true}}]";
const MOUNTS: &str = "    securityContext: {readOnlyRootFilesystem: true, allowPrivilegeEscalation: false, capabilities: {drop: [ALL]}}
    volumeMounts: [{name: v, mountPath: /v}, {name: f, mountPath: /f}, {name: id, mountPath: /id, readOnly: true}]";
const SECRET: &str = "---
{apiVersion: v1, kind: Secret, metadata: {name: keys, namespace: ns}, stringData: {key: hush}}
";
const SCRIPT: &str = "id -u; id -g; id -G; touch /v/x && stat -c '%u %g %a' /v/x /v; stat -c '%u %g %a' /f/key; cat /f/key; echo
    for d in / /tmp /run /etc; do touch $d/x 2>/dev/null && echo wrote $d; done
    stat -c '%u %g %a %F' /id /id/spire-agent.sock
    seamount api fetch --socket /id/spire-agent.sock | grep -c SPIFFE";
const EXPECTED: [&str; 9] = [
    "10001",
    "10002",
    "10002 10003 10004",
    "10001 10003 644",
    "0 10003 2777",
    "0 10003 440",
    "hush",
    "0 0 755 directory",
    "0 0 666 socket",
];

fn yaml() -> String {
    format!("{}{SECRET}", script(IDS, MOUNTS, SCRIPT))
}

fn check(playing: Playing) {
    let played = playing.wait();
    let mut lines = played.assert_code(0).of("p/c");
    assert_eq!(lines.pop(), Some("1"), "{played:#?}");
    // id(1) prints the groups in the kernel's order.
    let groups: std::collections::BTreeSet<_> = lines[2].split(' ').collect();
    assert_eq!(groups, EXPECTED[2].split(' ').collect(), "{played:#?}");
    lines[2] = EXPECTED[2];
    assert_eq!(lines, EXPECTED, "{played:#?}");
}

#[test]
fn root_plays_any_user() {
    if root("root_plays_any_user") {
        let stage = Stage::new();
        check(stage.start(Who::Root, &yaml(), &[]));
        let played =
            stage.play(Who::Root, &script("  securityContext: {runAsNonRoot: true}", "", "id -u"), &[]);
        assert_eq!(played.assert_code(0).of("p/c"), ["65532"]);
    }
}

/// With newuidmap(1) and ranges for a user that exists in this test's own view of /etc only.
#[test]
fn subordinate_ids_play_any_user() {
    let test = "subordinate_ids_play_any_user";
    if !root(test) {
        return;
    }
    if !std::env::split_paths(&std::env::var_os("PATH").unwrap()).any(|d| d.join("newuidmap").is_file()) {
        return seamount_testkit::skip(test, "newuidmap is not installed (package uidmap)");
    }
    let stage = Stage::new();
    let passwd = fs::read_to_string("/etc/passwd").unwrap();
    let mine = stage.write("passwd", &format!("{passwd}seamount-test:x:51234:51234::/:/bin/sh\n"));
    let ranges = stage.write("ranges", "seamount-test:200000:65536\n");
    private_mounts(|| {
        for (from, to) in [(&mine, "/etc/passwd"), (&ranges, "/etc/subuid"), (&ranges, "/etc/subgid")] {
            rustix::mount::mount_bind(from, to).unwrap();
        }
        let mut playing = stage.start(Who::User, &yaml(), &[]);
        playing.wait_for("with your subordinate ids");
        check(playing);
    });
}

#[test]
fn one_id_refuses_others_by_field() {
    for who in everybody("one_id_refuses_others_by_field").into_iter().filter(|w| *w == Who::User) {
        let stage = Stage::new();
        let played = stage.play(who, &yaml(), &[]);
        for field in [
            "spec.securityContext.fsGroup",
            "spec.securityContext.supplementalGroups",
            "spec.containers[0].securityContext.runAsUser",
            "spec.containers[0].securityContext.runAsGroup",
        ] {
            played.assert_code(1).assert_said(&format!("Pod ns/p: {field}: needs another user or group id"));
        }
        // Not being root is something else: outside, it is an ordinary user.
        let text = "id -u; touch /tmp/x && echo ok";
        let played = stage.play(who, &script("  securityContext: {runAsNonRoot: true}", "", text), &[]);
        assert_eq!(played.assert_code(0).of("p/c"), ["0", "ok"]);
    }
}
