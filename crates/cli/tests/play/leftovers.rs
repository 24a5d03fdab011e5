//! Nothing is left, however a play ends.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Instant;

use rustix::process::Signal;
use seamount_testkit::namespace::private_mounts;

use crate::stage::{PATIENCE, Playing, Stage, Who, everybody, script, start_from_input};

const SPEC: &str = "  terminationGracePeriodSeconds: 60
  volumes: [{name: id, csi: {driver: csi.spiffe.io, readOnly: true}}, {name: v}]";

/// A pod that runs for ever and whose processes are found by `mark`.
fn forever(mark: &str, text: &str) -> String {
    let container = format!(
        "    env: [{{name: SEAMOUNT_MARK, value: {mark}}}]
    volumeMounts: [{{name: id, mountPath: /id}}, {{name: v, mountPath: /v}}]"
    );
    script(SPEC, &container, text).replacen("  terminationGracePeriodSeconds: 60\n", "", 1)
}

fn unique() -> String {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    format!("seamount-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed))
}

/// The processes of this mark: play and what it starts inherit it or have it from the manifest.
fn marked(mark: &str) -> BTreeSet<PathBuf> {
    let wanted = format!("SEAMOUNT_MARK={mark}");
    fs::read_dir("/proc")
        .unwrap()
        .filter_map(|e| Some(e.ok()?.path()))
        .filter(|p| {
            let environ = fs::read(p.join("environ")).unwrap_or_default();
            environ.split(|b| *b == 0).any(|v| v == wanted.as_bytes())
        })
        .collect()
}

fn names(directory: &str) -> BTreeSet<PathBuf> {
    fs::read_dir(directory).unwrap().map(|e| e.unwrap().path()).collect()
}

/// Runs a play in a mount namespace with a /run and a /tmp that no other process uses, ends it with `end`,
/// and looks for what is left.
fn nothing_is_left(test: &str, text: &str, end: impl Fn(Playing) + Sync) {
    for who in everybody(test) {
        if !seamount_testkit::is_root() {
            seamount_testkit::skip(test, "to see everything that could be left takes root");
            continue;
        }
        let stage = Stage::new();
        private_mounts(|| {
            // Where the programs are may be covered next; this is the way to them.
            let programs = Path::new("/mnt");
            rustix::mount::mount_bind(stage.programs(), programs).unwrap();
            for path in ["/run", "/tmp"] {
                rustix::mount::mount("tmpfs", path, "tmpfs", rustix::mount::MountFlags::empty(), None)
                    .unwrap();
                fs::set_permissions(path, fs::Permissions::from_mode(0o1777)).unwrap();
            }
            let mark = unique();
            let before = fs::read_to_string("/proc/thread-self/mountinfo").unwrap();
            let (run, tmp, dev) = (names("/run"), names("/tmp"), names("/dev/shm"));
            let mut command = who.command("env");
            command.arg(format!("SEAMOUNT_MARK={mark}")).arg(programs.join("seamount"));
            let mut playing = start_from_input(command, &forever(&mark, text));
            playing.wait_for("[p/c] ready");
            let children = marked(&mark);
            // play, supervisor, mounter, agent, the container's first.
            assert!(children.len() >= 5, "{children:?}");
            end(playing);
            let deadline = Instant::now() + PATIENCE;
            while !marked(&mark).is_empty() {
                assert!(Instant::now() < deadline, "{who:?}: left: {:?}", marked(&mark));
                std::thread::sleep(std::time::Duration::from_millis(20));
            }
            assert_eq!(fs::read_to_string("/proc/thread-self/mountinfo").unwrap(), before);
            assert_eq!((names("/run"), names("/tmp")), (run, tmp));
            let new: Vec<_> = names("/dev/shm").difference(&dev).cloned().collect();
            assert!(new.iter().all(|p| !p.to_string_lossy().contains("seamount")), "{new:?}");
        });
    }
}

#[test]
fn ctrl_c_stops_in_order_and_leaves_nothing() {
    let text = "trap 'echo bye; exit 0' TERM; echo ready; while :; do sleep 0.1; done";
    nothing_is_left("ctrl_c_stops_in_order_and_leaves_nothing", text, |playing| {
        playing.signal(Signal::INT);
        let played = playing.wait();
        played.assert_code(0).assert_said("stopping").assert_said("[p/c] exited with status 0");
        assert_eq!(played.of("p/c").last(), Some(&"bye"), "{played:#?}");
        played.assert_said("every volume is unpublished and removed");
    });
}

#[test]
fn a_second_ctrl_c_does_not_wait() {
    let text = "trap '' HUP; trap 'echo deaf' TERM; echo ready; while :; do sleep 0.1; done";
    nothing_is_left("a_second_ctrl_c_does_not_wait", text, |mut playing| {
        playing.signal(Signal::TERM);
        playing.wait_for("[p/c] deaf");
        playing.signal(Signal::TERM);
        // The grace period is a minute.
        let played = playing.wait();
        played.assert_code(130).assert_said("at once").assert_said("[p/c] exited with status 137");
        played.assert_said("every volume is unpublished and removed");
    });
}

#[test]
fn kill_9_of_play_leaves_nothing() {
    let text =
        "trap '' TERM INT HUP; echo x > /v/x; (setsid sleep 1000 &); echo ready; while :; do sleep 0.1; done";
    nothing_is_left("kill_9_of_play_leaves_nothing", text, |playing| {
        playing.signal(Signal::KILL);
        let played = playing.wait();
        assert_eq!(std::os::unix::process::ExitStatusExt::signal(&played.status), Some(9));
    });
}

#[test]
fn a_killed_supervisor_leaves_nothing_and_is_reported() {
    let text = "trap '' TERM INT HUP; echo ready; sleep 1000";
    nothing_is_left("a_killed_supervisor_leaves_nothing_and_is_reported", text, |playing| {
        let children = fs::read_to_string(format!("/proc/{0}/task/{0}/children", playing.pid())).unwrap();
        // setpriv and env execute what they start, so play is the child itself.
        let supervisor: i32 = children.split_whitespace().next().unwrap().parse().unwrap();
        rustix::process::kill_process(rustix::process::Pid::from_raw(supervisor).unwrap(), Signal::KILL)
            .unwrap();
        playing.wait().assert_code(1).assert_said("the supervisor was killed");
    });
}

#[test]
fn keep_prints_sockets_that_work_from_the_host() {
    for who in everybody("keep_prints_sockets_that_work_from_the_host") {
        let stage = Stage::new();
        let yaml = script(SPEC, "", "exit 0").replacen("  terminationGracePeriodSeconds: 60\n", "", 1);
        let long = yaml.replace("name: p,", &format!("name: {},", "long-".repeat(12) + "name"));
        let mut playing = stage.start(who, &format!("{yaml}---\n{long}"), &["--keep"]);
        let mut sockets = Vec::new();
        for _ in 0..2 {
            let line = playing.wait_for("socket of pod ns/");
            sockets.push(line.split_once("unix://").unwrap().1.to_owned());
        }
        for _ in 0..2 {
            playing.wait_for("exited with status 0");
        }
        for socket in &sockets {
            let mut command = Who::command(who, stage.seamount());
            let output = command.args(["api", "fetch", "x509", "--socket", socket]).output().unwrap();
            let text = String::from_utf8(output.stdout).unwrap();
            let error = String::from_utf8(output.stderr).unwrap();
            assert!(text.contains("spiffe://example.org/ns/ns/sa/default"), "{socket}: {text}{error}");
        }
        playing.signal(Signal::INT);
        playing.wait().assert_code(0).assert_said("every volume is unpublished and removed");
        for socket in &sockets {
            assert!(!Path::new(socket).exists());
        }
    }
}

#[test]
fn a_killed_agent_and_mounter_are_started_again() {
    let text = "echo ready; until [ -e /v/go ]; do sleep 0.1; done; \
                until seamount api fetch --socket /id/spire-agent.sock 2>/dev/null; do sleep 0.2; done";
    for who in everybody("a_killed_agent_and_mounter_are_started_again") {
        let stage = Stage::new();
        let mark = unique();
        let yaml = forever(&mark, text);
        let mut command = who.command("env");
        command.arg(format!("SEAMOUNT_MARK={mark}")).arg(stage.seamount());
        let mut playing = start_from_input(command, &yaml);
        playing.wait_for("[p/c] ready");
        for name in ["seamount-agent", "seamount-mounter"] {
            let find = |p: &PathBuf| {
                fs::read(p.join("cmdline"))
                    .is_ok_and(|c| c.starts_with(format!("/run/bin/{name}").as_bytes()))
            };
            let process = marked(&mark).into_iter().find(find).unwrap();
            let pid: i32 = process.file_name().unwrap().to_str().unwrap().parse().unwrap();
            rustix::process::kill_process(rustix::process::Pid::from_raw(pid).unwrap(), Signal::KILL)
                .unwrap();
            playing.wait_for(&format!("the {} has ended", name.trim_start_matches("seamount-")));
        }
        // The container's own view of its volume.
        let container =
            marked(&mark).into_iter().find(|p| p.join("root/v").exists() && p.join("root/id").exists());
        let touched = who.command("touch").arg(container.unwrap().join("root/v/go")).status().unwrap();
        assert!(touched.success());
        let played = playing.wait();
        played.assert_code(0).assert_said("every volume is unpublished and removed");
        assert!(
            played.of("p/c").iter().any(|l| l.contains("spiffe://example.org/ns/ns/sa/default")),
            "{played:#?}"
        );
    }
}
