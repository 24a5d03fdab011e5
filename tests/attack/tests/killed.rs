//! An attack that is itself killed leaves nothing behind, the attacker least of all.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test may panic")]

use std::process::{Command, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use seamount_testkit::processes::{children, program};
use seamount_testkit::{eventually, is_root, skip};

const LONG: Duration = Duration::from_secs(60);

#[test]
fn a_killed_run_takes_its_children_with_it() {
    let name = "a_killed_run_takes_its_children_with_it";
    if !is_root() {
        return skip(name, "needs root for a mount namespace");
    }
    let logs = tempfile::tempdir().unwrap();
    let mut attack = Command::new(env!("CARGO_BIN_EXE_seamount-attack"))
        .args(["half-frames", "--seconds", "600", "--logs"])
        .arg(logs.path())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    // It tells of connections once it has dropped its privileges.
    let told = logs.path().join("half-frames/attacker.log");
    eventually(LONG, "the attack", || {
        assert_eq!(attack.try_wait().unwrap(), None, "the attack ended by itself");
        std::fs::read_to_string(&told).is_ok_and(|log| log.contains('\n'))
    });
    let all = children(attack.id());
    assert_eq!(all.len(), 3, "{all:?}");
    kill_process(Pid::from_child(&attack), Signal::KILL).unwrap();
    attack.wait().unwrap();
    eventually(LONG, "the children's end", || {
        all.iter().all(|(pid, was)| program(*pid).as_ref() != Some(was))
    });
}
