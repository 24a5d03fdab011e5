//! A chaos run that is itself killed leaves nothing behind.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test may panic")]

use std::process::{Command, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use seamount_testkit::processes::{children, program};
use seamount_testkit::{eventually, is_root, skip};

const LONG: Duration = Duration::from_secs(60);

#[test]
fn a_killed_run_takes_its_children_and_files_with_it() {
    let name = "a_killed_run_takes_its_children_and_files_with_it";
    if !is_root() {
        return skip(name, "needs root for a mount namespace");
    }
    for signal in [Signal::TERM, Signal::KILL] {
        let (logs, temporary) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let mut chaos = Command::new(env!("CARGO_BIN_EXE_seamount-chaos"))
            .args(["--kills", "1000000", "--volumes", "4", "--logs"])
            .arg(logs.path())
            .env("TMPDIR", temporary.path())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        // Into the storm: both are there, and one or the other may stand still.
        let log = logs.path().join("agent.log");
        eventually(LONG, "the storm", || {
            assert_eq!(chaos.try_wait().unwrap(), None, "chaos ended by itself");
            let starts = std::fs::read_to_string(&log).unwrap_or_default().matches("agent starts").count();
            starts > 2 && children(chaos.id()).len() == 2
        });
        let both = children(chaos.id());
        kill_process(Pid::from_child(&chaos), signal).unwrap();
        chaos.wait().unwrap();
        eventually(LONG, "the children's end", || {
            both.iter().all(|(pid, was)| program(*pid).as_ref() != Some(was))
        });
        assert_eq!(std::fs::read_dir(temporary.path()).unwrap().count(), 0, "temporary files are left");
    }
}
