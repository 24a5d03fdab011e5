//! Child processes and mount namespaces.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test may panic")]

use std::fs;
use std::path::Path;
use std::time::Duration;

use rustix::process::{Pid, Signal, test_kill_process};
use seamount_play::processes::{ProcessError, Spawn};
use seamount_testkit::{eventually, is_root, namespace, skip};

const PATIENCE: Duration = Duration::from_secs(30);

fn shell(logs: &Path, script: &str) -> Spawn {
    Spawn::new("shell", Path::new("/bin/sh"), logs).args(["-c", script])
}

#[test]
fn output_is_kept_and_awaited() {
    let logs = tempfile::tempdir().unwrap();
    let mut process = shell(logs.path(), "echo one; echo two >&2; exec sleep 600").start().unwrap();
    process.wait_for_log(PATIENCE, "two").unwrap();
    assert_eq!(process.log(), "one\ntwo\n");
    let error = process.wait_for_log(Duration::ZERO, "three").unwrap_err().to_string();
    assert!(error.contains("in vain") && error.contains("three") && error.contains("one"), "{error}");
}

#[test]
fn a_process_that_ends_early_is_reported_with_its_log() {
    let logs = tempfile::tempdir().unwrap();
    let mut process = shell(logs.path(), "echo sorry; exit 3").start().unwrap();
    let error = process.wait_for_path(PATIENCE, &logs.path().join("socket")).unwrap_err();
    assert!(matches!(error, ProcessError::Ended { .. }));
    let text = error.to_string();
    assert!(text.contains("exit status: 3") && text.contains("sorry"), "{text}");
    assert!(process.signal(Signal::TERM).is_err(), "no signal to a pid that was given back");
}

#[test]
fn drop_kills_and_reaps() {
    let logs = tempfile::tempdir().unwrap();
    let process = shell(logs.path(), "exec sleep 600").start().unwrap();
    let pid = Pid::from_raw(i32::try_from(process.pid()).unwrap()).unwrap();
    test_kill_process(pid).unwrap();
    drop(process);
    assert!(test_kill_process(pid).is_err());
}

#[test]
fn stop_asks_and_crash_does_not() {
    let logs = tempfile::tempdir().unwrap();
    let script = "trap 'echo bye; exit 7' TERM; echo ready; while :; do sleep 0.05; done";
    let mut process = shell(logs.path(), script).start().unwrap();
    process.wait_for_log(PATIENCE, "ready").unwrap();
    assert_eq!(process.stop(PATIENCE).unwrap().code(), Some(7));
    assert_eq!(shell(logs.path(), script).start().unwrap().crash().unwrap().code(), None);
}

#[test]
fn a_missing_program_is_named() {
    let logs = tempfile::tempdir().unwrap();
    let error = Spawn::new("x", Path::new("/no/such/program"), logs.path()).start().unwrap_err().to_string();
    assert!(error.contains("/no/such/program"), "{error}");
}

#[test]
fn ids_are_those_asked_for() {
    if !is_root() {
        return skip("ids_are_those_asked_for", "needs root to change uid");
    }
    let logs = tempfile::tempdir().unwrap();
    let mut process = shell(logs.path(), "id -u; id -g; id -G").ids(64203, 64204).start().unwrap();
    process.wait_for_end(PATIENCE).unwrap();
    assert_eq!(process.log(), "64203\n64204\n64204\n");
}

#[test]
fn mounts_in_a_private_namespace_reach_children_and_nobody_else() {
    if !is_root() {
        return skip(
            "mounts_in_a_private_namespace_reach_children_and_nobody_else",
            "needs root for namespaces",
        );
    }
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path();
    let outside = || fs::read_to_string("/proc/self/mountinfo").unwrap().contains(path.to_str().unwrap());
    let answer = namespace::private_mounts(|| {
        let script = format!("mount -t tmpfs none {0} && echo in > {0}/file && cat {0}/file", path.display());
        let logs = tempfile::tempdir().unwrap();
        let mut process = shell(logs.path(), &script).start().unwrap();
        process.wait_for_end(PATIENCE).unwrap();
        assert_eq!(process.log(), "in\n");
        assert!(path.join("file").exists(), "the thread sees what its child mounted");
        42
    });
    assert_eq!(answer, 42);
    assert!(!path.join("file").exists());
    eventually(PATIENCE, "no mount outside", || !outside());
    let panic = std::panic::catch_unwind(|| namespace::private_mounts(|| panic!("inner"))).unwrap_err();
    assert_eq!(panic.downcast_ref::<&str>(), Some(&"inner"));
}
