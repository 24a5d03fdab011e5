//! Environment and volumes.

use crate::stage::{Stage, Who, everybody, script};

const OBJECTS: &str = "
---
apiVersion: v1
kind: ConfigMap
metadata: {name: settings, namespace: ns}
data: {colour: blue, shape: round}
---
apiVersion: v1
kind: Secret
metadata: {name: keys, namespace: ns}
stringData: {key: hush}
";

#[test]
fn environment_and_files_come_from_the_same_files() {
    let spec = "  serviceAccountName: web
  volumes:
  - {name: settings, configMap: {name: settings}}
  - {name: keys, secret: {secretName: keys, defaultMode: 0400, items: [{key: key, path: deep/er}]}}";
    let container = "    workingDir: /data/here
    envFrom: [{prefix: S_, configMapRef: {name: settings}}]
    env:
    - {name: KEY, valueFrom: {secretKeyRef: {name: keys, key: key}}}
    - {name: POD, valueFrom: {fieldRef: {fieldPath: metadata.name}}}
    - {name: ACCOUNT, valueFrom: {fieldRef: {fieldPath: spec.serviceAccountName}}}
    - {name: UID_, valueFrom: {fieldRef: {fieldPath: metadata.uid}}}
    args: [x, $(S_colour)-$(KEY)]
    volumeMounts:
    - {name: settings, mountPath: /etc/settings}
    - {name: keys, mountPath: /keys}
    - {name: settings, mountPath: /etc/one-file, subPath: shape}";
    let text = "
        echo \\$S_colour \\$S_shape \\$KEY \\$POD \\$ACCOUNT \\$1; pwd
        echo \\$UID_ | grep -cE '^[0-9a-f-]{36}$'
        cat /etc/settings/colour; echo; cat /etc/settings/shape; echo; cat /keys/deep/er; echo; cat /etc/one-file; echo
        stat -c %a /etc/settings/colour /keys/deep/er
        test -e /etc/passwd && echo still there
        touch /keys/x /etc/settings/x || echo read-only
        env | grep -c CARGO
    ";
    for who in everybody("environment_and_files_come_from_the_same_files") {
        let yaml = script(spec, container, text).replace("\\\\$", "$");
        let mut command = who.command("env");
        let stage = Stage::new();
        command.arg("CARGO_OF_THE_HOST=1").arg(stage.seamount());
        let played = stage.start_with(command, &format!("{yaml}{OBJECTS}"), &[]).wait();
        assert_eq!(
            played.of("p/c"),
            [
                "blue round hush p web blue-hush",
                "/data/here",
                "1",
                "blue",
                "round",
                "hush",
                "round",
                "644",
                "400",
                "still there",
                "read-only",
                "0"
            ],
            "{played:#?}"
        );
    }
}

#[test]
fn volumes_are_shared_and_mounted_anywhere() {
    let spec = "  volumes: [{name: v, emptyDir: {medium: Memory}}]
  initContainers:
  - name: i
    command: [sh, -c, 'echo hello > /v/a && mkdir /v/d && echo deep > /v/d/b && ln -s /etc /v/out']
    volumeMounts: [{name: v, mountPath: /v}]";
    let container = "    volumeMounts:
    - {name: v, mountPath: /var/run/app/v}
    - {name: v, mountPath: /usr/share/a/b/c, readOnly: true}
    - {name: v, mountPath: /d, subPath: d}
    - {name: v, mountPath: /made, subPath: new/er}
    - {name: v, mountPath: /d/inner}";
    let text = "cat /run/app/v/a /usr/share/a/b/c/a /d/b /d/inner/a; ls -d /usr/share/doc; \
                touch /usr/share/a/b/c/x 2>/dev/null || echo read-only; echo 1 > /made/x && ls /d/inner/new/er";
    for who in everybody("volumes_are_shared_and_mounted_anywhere") {
        let stage = Stage::new();
        let played = stage.play(who, &script(spec, container, text), &[]);
        assert_eq!(
            played.assert_code(0).of("p/c"),
            ["hello", "hello", "deep", "hello", "/usr/share/doc", "read-only", "x"],
            "{played:#?}"
        );
        // A link in the volume does not lead out of it.
        let escape = "    volumeMounts: [{name: v, mountPath: /d, subPath: out}]";
        let played = stage.play(who, &script(spec, escape, "ls /d"), &[]);
        played.assert_code(1).assert_said("could not be started: mountPath /d");
    }
}

#[test]
fn a_bad_volume_is_refused_by_the_driver_and_named() {
    let spec = "  volumes: [{name: id, csi: {driver: csi.spiffe.io, readOnly: true, volumeAttributes: {colour: blue}}}]";
    for who in everybody("a_bad_volume_is_refused_by_the_driver_and_named") {
        let played = Stage::new().play(who, &script(spec, "", "true"), &[]);
        played.assert_code(1).assert_said("pod ns/p: volume id was refused: ").assert_said("colour");
        played.assert_said("every volume is unpublished and removed");
    }
}

#[test]
fn what_cannot_be_played_is_refused_before_anything_starts() {
    let stage = Stage::new();
    for who in [Who::Root, Who::User].into_iter().filter(|w| *w == Who::User || seamount_testkit::is_root()) {
        let yaml = script("  hostPID: true", "    tty: true", "true");
        let played = stage.play(who, &yaml, &[]);
        played.assert_code(1).assert_said("this cannot be played:");
        played.assert_said("Pod ns/p: spec.hostPID: cannot be played");
        played.assert_said("Pod ns/p: spec.containers[0].tty: cannot be played");
        assert_eq!((played.err.len(), played.out.len()), (3, 0), "{played:#?}");
    }
    let played = stage.play(Who::User, &script("", "", "true"), &["--bin-dir", "/usr"]);
    played.assert_code(1).assert_said("seamount-mounter is not in /usr: build it with");
    let played = stage.play(Who::User, "", &[]);
    played.assert_code(1).assert_said("there is no Pod to play");
    let mut command = Who::User.command(stage.seamount());
    let output = command.args(["play", "/nowhere.yaml"]).output().unwrap();
    assert!(String::from_utf8(output.stderr).unwrap().contains("read /nowhere.yaml"));
    // Its hidden parts touch nothing when another program starts them.
    for part in ["supervisor", "container"] {
        let output =
            std::process::Command::new(stage.seamount()).args(["play-stage", part]).output().unwrap();
        assert!(!output.status.success());
        assert!(String::from_utf8(output.stderr).unwrap().contains("a part of `seamount play`"));
    }
}

#[test]
fn what_the_agent_refuses_is_shown() {
    let spec = "  volumes: [{name: id, csi: {driver: csi.spiffe.io, readOnly: true}}]";
    for who in everybody("what_the_agent_refuses_is_shown") {
        let stage = Stage::new();
        let played = stage.play(who, &script(spec, "", "true"), &["--svid-ttl", "1s"]);
        played
            .assert_code(1)
            .assert_said("volume id was refused")
            .assert_said("log of the agent")
            .assert_said("svidTtl");
        let mut command = who.command(stage.seamount());
        let output = command.args(["play", "x.yaml", "--trust-domain", "a/b"]).output().unwrap();
        assert!(String::from_utf8(output.stderr).unwrap().contains("a trust domain is 1 to 255"));
    }
}
