//! `seamount node` against a play that goes on.

use std::time::{Duration, Instant};

use super::stage::{Stage, everybody, script};

#[test]
fn a_play_can_be_looked_at_like_a_node() {
    for who in everybody("a_play_can_be_looked_at_like_a_node") {
        let stage = Stage::new();
        let yaml = script(
            "  volumes: [{name: spiffe, csi: {driver: csi.spiffe.io, readOnly: true}}]",
            "    volumeMounts: [{name: spiffe, mountPath: /spiffe, readOnly: true}]",
            "exit 0",
        );
        let mut playing = stage.start(who, &yaml, &["--keep"]);
        playing.wait_for("unix:///proc/");
        let root = format!("/proc/{}/root/run/kubelet", playing.pid());
        let run = |args: &[&str]| {
            let mut command = who.command(stage.seamount());
            let output = command.arg("node").args(args).args(["--kubelet-root", &root]).output().unwrap();
            (output.status.code(), String::from_utf8_lossy(&output.stdout).into_owned(), output.stderr)
        };
        let (code, text, err) = run(&["status"]);
        assert_eq!(code, Some(0), "{who:?}: {text}{}", String::from_utf8_lossy(&err));
        assert!(text.contains("node         play, /run/kubelet"), "{who:?}: {text}");
        assert!(text.contains("drivers      csi.spiffe.io: "), "{who:?}: {text}");
        let (_, text, _) = run(&["volumes"]);
        assert!(text.contains("ns/p "), "{who:?}: {text}");
        // The pod's socket is there before the authority is made.
        let began = Instant::now();
        let mut doctor = run(&["doctor"]);
        while doctor.0 != Some(0) && began.elapsed() < Duration::from_secs(60) {
            std::thread::sleep(Duration::from_millis(100));
            doctor = run(&["doctor"]);
        }
        assert_eq!(doctor.0, Some(0), "{who:?}: {}", doctor.1);
    }
}
