//! From one mounter to the next: who waits, who takes over, and what comes along.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use seamount_mounter_protocol::{Fault, Request, flag};
use seamount_testkit::eventually;

use crate::bench::{
    Agent, Bench, DEADLINE, as_agent, bench, csi_listener, dial, mode, registration_listener,
};

/// The directory that another pod's two containers share, in which its mounter has been before: younger than
/// all before, by the file system's clock.
fn pod(bench: &Bench, name: &str) -> PathBuf {
    std::thread::sleep(Duration::from_millis(20));
    let dir = bench.path(name);
    fs::create_dir(&dir).unwrap();
    fs::write(dir.join(".born"), "").unwrap();
    dir.join("mounter.sock")
}

fn command(bench: &Bench, socket: &Path) -> Command {
    let mut command = bench.command(&[]);
    // The last one counts.
    command.arg("--socket").arg(socket);
    command
}

/// Waits for the socket of a mounter that is not ready yet.
fn agent(socket: &Path) -> Agent {
    eventually(DEADLINE, "the socket for the agent", || socket.exists());
    Agent::connect(socket)
}

/// Three volumes and the two node-wide listeners, by cookie.
fn publish(bench: &Bench, agent: &Agent) -> Vec<u64> {
    let volumes = ["a", "b", "c"].map(|name| bench.volume(name));
    let mut cookies: Vec<u64> = volumes.iter().map(|v| agent.identity(v).good().reply.cookie).collect();
    for request in [csi_listener(), registration_listener()] {
        cookies.push(agent.ask(&request).good().reply.cookie);
    }
    cookies
}

#[test]
fn the_younger_one_takes_over_every_listener() {
    bench("the_younger_one_takes_over_every_listener", |bench| {
        let sockets = [pod(bench, "old"), pod(bench, "young")];
        bench.spawn(command(bench, &sockets[0]), true);
        let old = agent(&sockets[0]);
        let before = publish(bench, &old);
        assert_eq!(mode(bench.path("plugins/seamount.dev/take-over.sock")), 0o600);
        bench.spawn(command(bench, &sockets[1]), false);
        bench.wait_for(2, "waiting");
        // Nothing happens before its own agent is there; the other goes on.
        let young = agent(&sockets[1]);
        let notice = old.receive().unwrap();
        assert_eq!((notice.reply.id, notice.fault()), (0, Some(Fault::Superseded)));
        // What the old agent does until it leaves is done still.
        let late = bench.volume("late");
        let cookie = old.identity(&late).good().reply.cookie;
        drop(old);
        bench.wait_for(2, "msg=\"ready\"");
        let (status, log) = bench.ended_first();
        assert!(status.success() && log.contains("another mounter has taken over"), "{log}");
        let after = publish(bench, &young);
        assert_eq!(before, after);
        let again = young.identity(&late).good();
        assert!(again.has(flag::EXISTING) && again.reply.cookie == cookie);
        for name in ["a", "b", "c", "late"] {
            dial(bench.target(&bench.volume(name)).join("spire-agent.sock"));
        }
    });
}

/// As tmpfs is before Linux 5.18, on which pods' memory volumes are.
#[test]
fn pods_whose_directories_have_no_time_of_birth_follow_each_other() {
    bench("pods_whose_directories_have_no_time_of_birth_follow_each_other", |bench| {
        let sockets = ["old", "young"].map(|name| {
            let dir = bench.path(name);
            fs::create_dir(&dir).unwrap();
            let flags = rustix::mount::MountFlags::empty();
            rustix::mount::mount("none", &dir, "ramfs", flags, None).unwrap();
            assert!(fs::metadata(&dir).unwrap().created().is_err());
            dir.join("mounter.sock")
        });
        bench.spawn(command(bench, &sockets[0]), true);
        let old = agent(&sockets[0]);
        let before = publish(bench, &old);
        drop(old);
        std::thread::sleep(Duration::from_millis(20));
        bench.spawn(command(bench, &sockets[1]), false);
        let young = agent(&sockets[1]);
        bench.wait_for(2, "msg=\"ready\"");
        assert_eq!(publish(bench, &young), before);
        // The container that is started again is no younger for that.
        bench.ended_first();
        bench.spawn(command(bench, &sockets[0]), false);
        bench.wait_for(3, "waiting");
        std::thread::sleep(Duration::from_millis(300));
        assert!(!bench.log(3).contains("ready"));
        assert_eq!(publish(bench, &young), before);
    });
}

#[test]
fn an_agent_that_never_ends_to_ask_does_not_hold_up_its_successor() {
    bench("an_agent_that_never_ends_to_ask_does_not_hold_up_its_successor", |bench| {
        let sockets = [pod(bench, "old"), pod(bench, "young")];
        bench.spawn(command(bench, &sockets[0]), true);
        let hostile = agent(&sockets[0]);
        let before = publish(bench, &hostile);
        bench.spawn(command(bench, &sockets[1]), false);
        let young = agent(&sockets[1]);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                // Longer than the successor waits, and not for ever.
                for _ in 0..40 {
                    if !hostile.pile_up(&Request::Hello.encode(1)) || hostile.receive().is_none() {
                        break;
                    }
                    std::thread::sleep(Duration::from_millis(500));
                }
            });
            bench.wait_for(2, "msg=\"ready\"");
        });
        assert!(!bench.log(2).contains("not taken over"), "{}", bench.log(2));
        assert_eq!(publish(bench, &young), before);
    });
}

#[test]
fn the_older_one_waits_however_often_it_starts() {
    bench("the_older_one_waits_however_often_it_starts", |bench| {
        let sockets = [pod(bench, "old"), pod(bench, "young")];
        bench.spawn(command(bench, &sockets[1]), true);
        let young = agent(&sockets[1]);
        let before = publish(bench, &young);
        for number in [2, 3] {
            bench.spawn(command(bench, &sockets[0]), false);
            bench.wait_for(number, "waiting");
            std::thread::sleep(Duration::from_millis(300));
            assert!(!sockets[0].exists() && !bench.log(number).contains("ready"));
            assert_eq!(publish(bench, &young), before);
            if number == 2 {
                bench.kill_last();
            }
        }
        // A roll-out that was taken back: the younger one's end makes room.
        drop(young);
        bench.kill();
        bench.wait_for(3, "msg=\"ready\"");
        publish(bench, &agent(&sockets[0]));
    });
}

#[test]
fn a_stopped_agent_is_not_waited_for_for_ever_and_a_third_pod_follows() {
    bench("a_stopped_agent_is_not_waited_for_for_ever_and_a_third_pod_follows", |bench| {
        let sockets = ["one", "two", "three"].map(|name| pod(bench, name));
        bench.spawn(command(bench, &sockets[0]), true);
        let stopped = agent(&sockets[0]);
        let before = publish(bench, &stopped);
        let mut agents = vec![stopped];
        for (i, socket) in sockets.iter().enumerate().skip(1) {
            bench.spawn(command(bench, socket), false);
            let next = agent(socket);
            bench.wait_for(i + 1, "msg=\"ready\"");
            assert_eq!(publish(bench, &next), before);
            agents.push(next);
        }
        // The first two hear of it when they wake.
        for old in &agents[..2] {
            assert_eq!(old.receive().unwrap().fault(), Some(Fault::Superseded));
            assert!(old.receive().is_none());
        }
    });
}

#[test]
fn a_successor_that_dies_in_between_changes_nothing() {
    bench("a_successor_that_dies_in_between_changes_nothing", |bench| {
        let sockets = [pod(bench, "old"), pod(bench, "young")];
        bench.spawn(command(bench, &sockets[0]), true);
        let old = agent(&sockets[0]);
        let before = publish(bench, &old);
        bench.spawn(command(bench, &sockets[1]), false);
        let _young = agent(&sockets[1]);
        old.receive().unwrap();
        // The old agent has not left yet; the successor dies.
        bench.kill_last();
        drop(old);
        bench.wait_for(1, "did not take over");
        assert_eq!(publish(bench, &agent(&sockets[0])), before);
        // And the next one succeeds.
        fs::remove_file(&sockets[1]).unwrap();
        bench.spawn(command(bench, &sockets[1]), false);
        let young = agent(&sockets[1]);
        bench.wait_for(3, "msg=\"ready\"");
        assert_eq!(publish(bench, &young), before);
    });
}

#[test]
fn a_stranger_on_the_socket_gets_nothing_from_it() {
    bench("a_stranger_on_the_socket_gets_nothing_from_it", |bench| {
        bench.start(&["--agent-uid", "64203", "--agent-gid", "64203"]);
        let path = bench.path("plugins/seamount.dev/take-over.sock");
        // Only root comes through the directory; were it open, the uid decides.
        fs::set_permissions(&path, fs::Permissions::from_mode(0o666)).unwrap();
        for dir in ["plugins", "plugins/seamount.dev"] {
            fs::set_permissions(bench.path(dir), fs::Permissions::from_mode(0o755)).unwrap();
        }
        as_agent(|| {
            let stranger = Agent::connect(&path);
            stranger.receive().unwrap().bad(Fault::System, "you are 64203");
            assert!(stranger.receive().is_none());
        });
        as_agent(|| bench.agent().ask(&Request::Hello).good());
    });
}
