//! Start, privileges, the lock, the node-wide listeners, the state, and what outlives the mounter.

use std::fs;
use std::os::unix::net::UnixListener;

use rustix::fs::{Mode, OFlags, openat};
use rustix::mount::{MountFlags, mount};
use seamount_mounter_protocol::{Fault, Request, flag};
use seamount_testkit::eventually;

use crate::bench::{
    AGENT, DEADLINE, POD, as_agent, as_user, bench, csi_listener, dial, mode, mounts_on,
    registration_listener, store, store_csi,
};

#[test]
fn it_keeps_three_capabilities_and_no_network() {
    bench("it_keeps_three_capabilities_and_no_network", |bench| {
        let pid = bench.start(&[]);
        // The thread that serves, four that close what others made, and one that closes what was removed.
        let threads: Vec<_> =
            fs::read_dir(format!("/proc/{pid}/task")).unwrap().map(|t| t.unwrap()).collect();
        assert_eq!(threads.len(), 6);
        for thread in threads {
            let status = fs::read_to_string(thread.path().join("status")).unwrap();
            let field = |name: &str| {
                let line = status.lines().find(|l| l.starts_with(name)).unwrap();
                line.split_whitespace().nth(1).unwrap().to_owned()
            };
            // CAP_CHOWN, CAP_DAC_READ_SEARCH, CAP_SYS_ADMIN.
            for set in ["CapPrm:", "CapEff:", "CapBnd:"] {
                assert_eq!(field(set), "0000000000200005", "{set}");
            }
            for set in ["CapInh:", "CapAmb:"] {
                assert_eq!(field(set), "0000000000000000", "{set}");
            }
            assert_eq!((field("NoNewPrivs:"), field("Seccomp:")), ("1".into(), "2".into()));
        }
        let net = |pid: &str| fs::read_link(format!("/proc/{pid}/ns/net")).unwrap();
        assert_ne!(net(&pid.to_string()), net("self"));
    });
}

#[test]
fn hello_and_the_log_say_what_works_and_how_many_volumes_fit() {
    bench("hello_and_the_log_say_what_works_and_how_many_volumes_fit", |bench| {
        let command = bench.limited("ulimit -S -n 100; ulimit -H -n 300", &[]);
        bench.spawn(command, true);
        assert!(bench.log(1).contains("volumes=222"), "{}", bench.log(1));
        let hello = bench.agent().ask(&Request::Hello).good();
        assert_eq!(hello.reply.numbers[0], 300);
        assert!(hello.reply.numbers[1] > 0 && hello.reply.text.starts_with("seamount-mounter "));
    });
}

#[test]
fn a_directory_that_is_no_kubelets_is_refused() {
    bench("a_directory_that_is_no_kubelets_is_refused", |bench| {
        for root in [bench.path("nowhere"), bench.path("logs")] {
            let mut command = bench.command(&[]);
            command.arg("--kubelet-root").arg(&root);
            bench.spawn(command, false);
            let (status, log) = bench.ended();
            assert!(!status.success());
            assert!(log.contains("--root-dir") && log.contains(root.to_str().unwrap()), "{log}");
        }
        assert!(fs::read_dir(bench.path("logs")).unwrap().all(|e| e.unwrap().path().is_file()));
    });
}

#[test]
fn a_second_mounter_of_the_same_age_waits_for_the_first() {
    bench("a_second_mounter_of_the_same_age_waits_for_the_first", |bench| {
        bench.start(&[]);
        let command = bench.command(&[]);
        bench.spawn(command, false);
        bench.wait_for(2, "another mounter holds the lock");
        // The first one still has the socket: the newcomer has bound nothing.
        bench.agent().ask(&Request::Hello).good();
        assert!(!bench.log(2).contains("ready"));
        bench.kill();
        bench.wait_for(2, "ready");
        bench.agent().ask(&Request::Hello).good();
    });
}

#[test]
fn node_listeners_are_roots_alone_and_made_once() {
    bench("node_listeners_are_roots_alone_and_made_once", |bench| {
        bench.start(&[]);
        let agent = bench.agent();
        let csi = bench.path("plugins/csi.spiffe.io/csi.sock");
        let registration = bench.path("plugins_registry/csi.spiffe.io-reg.sock");
        for (request, path) in [(csi_listener(), csi), (registration_listener(), registration)] {
            let first = agent.ask(&request).good();
            assert!(!first.has(flag::EXISTING) && first.reply.cookie != 0);
            assert_eq!(mode(&path), 0o600);
            dial(&path);
            let again = agent.ask(&request).good();
            assert!(again.has(flag::EXISTING));
            assert_eq!(again.reply.cookie, first.reply.cookie);
            // Somebody removed or replaced it: bound anew.
            fs::remove_file(&path).unwrap();
            let anew = agent.ask(&request).good();
            assert!(!anew.has(flag::EXISTING) && anew.reply.cookie != first.reply.cookie);
            dial(&path);
            let other = path.with_extension("other");
            drop(UnixListener::bind(&other).unwrap());
            fs::rename(&other, &path).unwrap();
            assert!(!agent.ask(&request).good().has(flag::EXISTING));
            dial(&path);
        }
        assert_eq!(crate::bench::names(bench.path("plugins_registry")), ["csi.spiffe.io-reg.sock"]);
    });
}

#[test]
fn a_driver_name_that_is_taken_is_left_alone() {
    bench("a_driver_name_that_is_taken_is_left_alone", |bench| {
        bench.start(&[]);
        let agent = bench.agent();
        let path = bench.path("plugins/csi.spiffe.io/csi.sock");
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        let other = UnixListener::bind(&path).unwrap();
        agent.ask(&csi_listener()).bad(Fault::Busy, "another process serves csi.sock");
        dial(&path);
        // What it left behind is replaced.
        drop(other);
        agent.ask(&csi_listener()).good();
        dial(&path);
    });
}

#[test]
fn the_state_outlives_the_mounter_and_is_the_agents() {
    bench("the_state_outlives_the_mounter_and_is_the_agents", |bench| {
        let ids: &[&str] = &["--agent-uid", "64203", "--agent-gid", "64203"];
        let state = bench.path("plugins/seamount.dev/state");
        for args in [ids, &[ids, &["--no-idmap"]].concat()] {
            bench.start(args);
            as_agent(|| {
                let dir = bench.agent().ask(&Request::State).good().fd.unwrap();
                let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL;
                let file = openat(&dir, "record", flags, Mode::from_raw_mode(0o600)).unwrap();
                rustix::io::write(&file, b"kept").unwrap();
                // No way up into the host's tree.
                let up = openat(&dir, "../../..", OFlags::RDONLY | OFlags::DIRECTORY, Mode::empty()).unwrap();
                assert!(rustix::fs::statat(&up, "record", rustix::fs::AtFlags::empty()).is_ok());
                // Not by path either.
                assert!(fs::read_dir(&state).is_err());
            });
            assert_eq!((mode(&state), mounts_on(&state)), (0o700, 1));
            bench.kill();
            bench.start(args);
            as_agent(|| {
                let dir = bench.agent().ask(&Request::State).good().fd.unwrap();
                let file = openat(&dir, "record", OFlags::RDWR, Mode::empty()).unwrap();
                let mut text = [0; 4];
                rustix::io::read(&file, &mut text).unwrap();
                assert_eq!(&text, b"kept");
                rustix::fs::unlinkat(&dir, "record", rustix::fs::AtFlags::empty()).unwrap();
            });
            assert_eq!(mounts_on(&state), 1);
            bench.kill();
            rustix::mount::unmount(&state, rustix::mount::UnmountFlags::empty()).unwrap();
        }
        // Somebody else's mount there is not taken for ours.
        mount("x", &state, "tmpfs", MountFlags::empty(), None).unwrap();
        bench.start(&[]);
        bench.agent().ask(&Request::State).bad(Fault::NotOurs, "state directory");
        assert_eq!(mounts_on(&state), 1);
    });
}

#[test]
fn the_state_is_out_of_swap_and_executes_nothing() {
    bench("the_state_is_out_of_swap_and_executes_nothing", |bench| {
        bench.start(&[]);
        let agent = bench.agent();
        let noswap = agent.ask(&Request::Hello).good().has(flag::NOSWAP);
        agent.ask(&Request::State).good();
        let state = bench.path("plugins/seamount.dev/state");
        let table = fs::read_to_string("/proc/thread-self/mountinfo").unwrap();
        let line = table.lines().find(|l| l.contains(state.to_str().unwrap())).unwrap();
        assert!(line.contains("rw,nosuid,nodev,noexec"), "{line}");
        assert_eq!(line.contains("noswap"), noswap, "{line}");
    });
}

#[test]
fn sockets_stay_when_the_mounter_is_stopped() {
    bench("sockets_stay_when_the_mounter_is_stopped", |bench| {
        bench.start(&[]);
        let volume = bench.volume("v");
        let agent = bench.agent();
        agent.ask(&csi_listener()).good();
        agent.identity(&volume).good();
        assert!(bench.terminate().success());
        assert!(bench.path("plugins/csi.spiffe.io/csi.sock").exists());
        assert!(bench.target(&volume).join("spire-agent.sock").exists());
    });
}

#[test]
fn a_listener_comes_back_through_the_agent() {
    bench("a_listener_comes_back_through_the_agent", |bench| {
        bench.start(&[]);
        let volume = bench.volume("v");
        let path = bench.target(&volume).join("spire-agent.sock");
        let (made, csi) = {
            let agent = bench.agent();
            (agent.identity(&volume).good(), agent.ask(&csi_listener()).good())
        };
        bench.kill();
        bench.start(&[]);
        // Nobody noticed: the agent's copy still listens.
        dial(&path);
        let agent = bench.agent();
        let cookie = made.reply.cookie;
        let fd = made.fd.unwrap();
        assert!(agent.ask(&Request::Inspect(volume.clone())).good().fd.is_none());
        agent.ask_with(&store(&volume, cookie), &[&fd]).good();
        agent.ask_with(&store_csi(csi.reply.cookie), &[csi.fd.as_ref().unwrap()]).good();
        let again = agent.identity(&volume).good();
        assert!(again.has(flag::EXISTING));
        assert_eq!(again.reply.cookie, cookie);
        assert_eq!(agent.ask(&Request::Inspect(volume.clone())).good().reply.cookie, cookie);
        assert!(agent.ask(&csi_listener()).good().has(flag::EXISTING));
        agent.ask_with(&store(&volume, cookie), &[&fd]).bad(Fault::Busy, "kept already");
        // And the agent gets it back after its own crash.
        drop((agent, fd));
        let agent = bench.agent();
        let found = agent.list();
        assert_eq!((found.len(), found[0].reply.cookie), (1, cookie));
        assert!(found[0].fd.is_some());
        dial(&path);
    });
}

#[test]
fn a_stored_listener_of_another_inode_is_not_believed() {
    bench("a_stored_listener_of_another_inode_is_not_believed", |bench| {
        bench.start(&[]);
        let volume = bench.volume("v");
        let old = bench.agent().identity(&volume).good();
        bench.kill();
        // The socket was made anew in between.
        bench.start(&[]);
        let newer = bench.agent().identity(&volume).good();
        bench.kill();
        drop(newer);
        bench.start(&[]);
        let agent = bench.agent();
        let store = store(&volume, old.reply.cookie);
        agent.ask_with(&store, &[old.fd.as_ref().unwrap()]).bad(Fault::NotOurs, "socket's name");
        let made = agent.identity(&volume).good();
        assert!(!made.has(flag::EXISTING));
        dial(bench.target(&volume).join("spire-agent.sock"));
    });
}

#[test]
fn only_the_agents_uid_is_served() {
    bench("only_the_agents_uid_is_served", |bench| {
        bench.start(&["--agent-uid", "64203", "--agent-gid", "64203"]);
        let stranger = bench.agent();
        let refusal = stranger.receive().unwrap();
        assert_eq!(refusal.reply.op, 0);
        refusal.bad(Fault::System, "64203");
        assert!(stranger.receive().is_none());
        as_agent(|| bench.agent().ask(&Request::Hello).good());
        assert_eq!(AGENT, 64203);
    });
}

#[test]
fn one_agent_at_a_time() {
    bench("one_agent_at_a_time", |bench| {
        bench.start(&[]);
        let first = bench.agent();
        first.ask(&Request::Hello).good();
        let second = bench.agent();
        second.receive().unwrap().bad(Fault::Busy, "another agent");
        assert!(second.receive().is_none());
        first.ask(&Request::Hello).good();
        drop(first);
        eventually(DEADLINE, "the successor to be served", || {
            let agent = bench.agent();
            agent.send(&Request::Hello.encode(1), &[]);
            agent.receive().is_some_and(|a| a.fault().is_none())
        });
    });
}

#[test]
fn a_listener_whose_pod_is_gone_is_dropped_by_the_scan() {
    bench("a_listener_whose_pod_is_gone_is_dropped_by_the_scan", |bench| {
        bench.start(&[]);
        let volume = bench.volume("v");
        let agent = bench.agent();
        agent.identity(&volume).good();
        fs::remove_dir_all(bench.path("pods").join(POD)).unwrap();
        assert!(agent.list().is_empty());
        agent.ask(&Request::Inspect(volume)).bad(Fault::NotFound, "");
    });
}

#[test]
fn an_agent_that_does_not_read_is_cut_off() {
    bench("an_agent_that_does_not_read_is_cut_off", |bench| {
        bench.start(&[]);
        let deaf = bench.agent();
        deaf.ask(&Request::Hello).good();
        eventually(DEADLINE, "the mounter to give up on it", || {
            while deaf.pile_up(&Request::Hello.encode(1)) {}
            bench.log(1).contains("agent gone")
        });
        bench.agent().ask(&Request::Hello).good();
    });
}

#[test]
fn without_root_it_works_in_a_namespace_with_one_id() {
    bench("without_root_it_works_in_a_namespace_with_one_id", |bench| {
        const USER: u32 = 1500;
        let volumes = ["identity", "tmpfs", "directory"].map(|name| bench.volume(name));
        let chown = std::process::Command::new("chown")
            .args(["-R", "1500:1500"])
            .arg(bench.root().parent().unwrap())
            .status()
            .unwrap();
        assert!(chown.success());
        let source = bench.path("source");
        let mut command = std::process::Command::new("setpriv");
        command.args(["--reuid=1500", "--regid=1500", "--clear-groups"]);
        command.args([
            "unshare",
            "--user",
            "--map-root-user",
            "--mount",
            env!("CARGO_BIN_EXE_seamount-mounter"),
        ]);
        command
            .args(["--rootless", "--agent-uid", "0", "--agent-gid", "0"])
            .arg("--kubelet-root")
            .arg(bench.root())
            .arg("--socket")
            .arg(bench.socket());
        command.arg("--source-directory").arg(source);
        let pid = bench.spawn(command, false);
        eventually(DEADLINE, "the mounter", || {
            bench.log(1).contains("ready")
                || !std::path::Path::new(&format!("/proc/{pid}")).exists()
                || bench.log(1).contains("unshare")
        });
        if bench.log(1).contains("unshare") {
            return seamount_testkit::skip(
                "without_root_it_works_in_a_namespace_with_one_id",
                "user namespaces are blocked",
            );
        }
        as_user(USER, || {
            let agent = bench.agent();
            let [identity, tmpfs, directory] = &volumes;
            agent.ask(&Request::Hello).good();
            agent.identity(identity).good();
            dial(bench.target(identity).join("socket"));
            for dir in [agent.ask(&Request::State).good(), agent.tmpfs(tmpfs, 0, 1 << 20).good()] {
                let flags = OFlags::RDWR | OFlags::CREATE;
                openat(dir.fd.unwrap(), "file", flags, Mode::from_raw_mode(0o600)).unwrap();
            }
            agent.directory(directory).good();
            assert_eq!(agent.list().len(), 3);
            for volume in &volumes {
                agent.unpublish(volume).good();
                assert!(!bench.target(volume).exists());
            }
        });
    });
}
