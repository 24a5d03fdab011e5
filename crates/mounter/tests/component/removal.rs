//! What is removed by hand, by a cleaner or by an upgrade below the kubelet's root while the mounter runs.

use std::fs;
use std::os::unix::fs::{MetadataExt, symlink};
use std::os::unix::net::UnixListener;

use rustix::mount::{UnmountFlags, mount_bind, unmount};
use seamount_mounter_protocol::{Fault, Request, flag};
use seamount_testkit::eventually;

use crate::bench::{
    Bench, DEADLINE, OWN, POD, bench, csi_listener, dial, mode, mounts_on, names, offer,
    registration_listener,
};

const PLUGIN: &str = "plugins/csi.spiffe.io";
const REGISTRATION: &str = "plugins_registry/csi.spiffe.io-reg.sock";

/// The directory is moved away with all that is in it, and there is an empty one.
fn make_anew(bench: &Bench, directory: &str) {
    fs::rename(bench.path(directory), bench.path(&format!("{directory}.old"))).unwrap();
    fs::create_dir(bench.path(directory)).unwrap();
}

#[test]
fn sockets_and_lock_are_put_back() {
    bench("sockets_and_lock_are_put_back", |bench| {
        bench.start(&[]);
        let agent = bench.agent();
        let [lock, take_over] = ["lock", "take-over.sock"].map(|name| bench.path(&format!("{OWN}/{name}")));
        let age = fs::metadata(&lock).unwrap().modified().unwrap();
        for path in [&lock, &take_over, &bench.socket()] {
            fs::remove_file(path).unwrap();
        }
        for line in ["the lock was", "the successor's socket was", "the agent's socket was"] {
            bench.wait_for(1, line);
        }
        assert_eq!(fs::metadata(&lock).unwrap().modified().unwrap(), age, "another age");
        assert_eq!((mode(&lock), mode(&take_over)), (0o600, 0o600));
        // The agent that is connected stays; the next one finds the way.
        agent.ask(&Request::Hello).good();
        drop(agent);
        bench.agent().ask(&Request::Hello).good();
        assert!(!bench.log(1).contains("cannot put back"));
    });
}

#[test]
fn a_removed_lock_lets_no_second_mounter_in() {
    bench("a_removed_lock_lets_no_second_mounter_in", |bench| {
        bench.start(&[]);
        fs::remove_file(bench.path(&format!("{OWN}/lock"))).unwrap();
        let command = bench.command(&[]);
        bench.spawn(command, false);
        bench.wait_for(2, "another mounter holds the lock");
        bench.wait_for(1, "the lock was removed, and is held again");
        bench.agent().ask(&Request::Hello).good();
        assert!(!bench.log(2).contains("msg=\"ready\""));
        bench.kill();
        bench.wait_for(2, "msg=\"ready\"");
    });
}

#[test]
fn of_two_mounters_one_stays() {
    bench("of_two_mounters_one_stays", |bench| {
        bench.start(&[]);
        // Nothing says any more that there is one.
        make_anew(bench, OWN);
        let other = bench.path("logs/other.sock");
        let mut command = bench.command(&[]);
        command.arg("--socket").arg(&other);
        bench.spawn(command, true);
        bench.wait_for(1, "another mounter has taken it");
        let (status, log) = bench.ended_first();
        assert!(!status.success(), "{log}");
        crate::bench::Agent::connect(&other).ask(&Request::Hello).good();
    });
}

#[test]
fn directories_that_were_made_anew_are_followed() {
    bench("directories_that_were_made_anew_are_followed", |bench| {
        bench.start(&[]);
        let agent = bench.agent();
        agent.ask(&Request::State).good();
        let (csi, registration) =
            (agent.ask(&csi_listener()).good(), agent.ask(&registration_listener()).good());
        for directory in [OWN, PLUGIN, "plugins_registry", "pods"] {
            make_anew(bench, directory);
        }
        for (request, before, path) in [
            (csi_listener(), csi, format!("{PLUGIN}/csi.sock")),
            (registration_listener(), registration, REGISTRATION.to_owned()),
        ] {
            let anew = agent.ask(&request).good();
            assert!(!anew.has(flag::EXISTING) && anew.reply.cookie != before.reply.cookie);
            assert_eq!(mode(bench.path(&path)), 0o600);
            dial(bench.path(&path));
        }
        // The state is not there any more; a new one is made for the asking.
        let id = || agent.ask(&csi_listener()).good().reply.numbers;
        assert_eq!(id(), [0; 3]);
        let state = agent.ask(&Request::State).good().fd.unwrap();
        let stat = rustix::fs::fstat(&state).unwrap();
        assert_eq!(id(), [stat.st_dev, stat.st_ino, 0]);
        let path = bench.path(&format!("{OWN}/state"));
        assert_eq!(mounts_on(&path), 1);
        // The same where it was unmounted.
        unmount(&path, UnmountFlags::DETACH).unwrap();
        assert_eq!(id(), [0; 3]);
        let volume = bench.volume("v");
        eventually(DEADLINE, "the pods' directory", || agent.identity(&volume).fault().is_none());
        dial(bench.target(&volume).join("socket"));
    });
}

#[test]
fn another_process_keeps_the_name_that_it_took() {
    bench("another_process_keeps_the_name_that_it_took", |bench| {
        bench.start(&[]);
        let agent = bench.agent();
        let csi = bench.path(&format!("{PLUGIN}/csi.sock"));
        let kept = agent.ask(&csi_listener()).good();
        let short = bench.path("s");
        let other = UnixListener::bind(&short).unwrap();
        fs::rename(&short, &csi).unwrap();
        let inode = fs::metadata(&csi).unwrap().ino();
        agent.ask(&csi_listener()).bad(Fault::Busy, "another process serves csi.sock");
        // Also where it accepts nothing, and its queue is full of the one question: the mounter does not wait
        // for it.
        rustix::net::listen(&other, 0).unwrap();
        agent.ask(&csi_listener()).bad(Fault::Busy, "another process serves csi.sock");
        assert_eq!(fs::metadata(&csi).unwrap().ino(), inode);
        drop(other);
        let anew = agent.ask(&csi_listener()).good();
        assert!(!anew.has(flag::EXISTING) && anew.reply.cookie != kept.reply.cookie);
        // Our own, with another time on its inode, is none of another process.
        let touched = rustix::fs::Timespec { tv_sec: 1, tv_nsec: 0 };
        let times = rustix::fs::Timestamps { last_access: touched, last_modification: touched };
        rustix::fs::utimensat(rustix::fs::CWD, &csi, &times, rustix::fs::AtFlags::SYMLINK_NOFOLLOW).unwrap();
        agent.ask(&csi_listener()).good();
        assert!(agent.ask(&csi_listener()).good().has(flag::EXISTING));
    });
}

#[test]
fn an_offer_shows_the_same_socket_again() {
    bench("an_offer_shows_the_same_socket_again", |bench| {
        bench.start(&[]);
        let agent = bench.agent();
        agent.ask(&offer()).bad(Fault::NotFound, "does not lead");
        let first = agent.ask(&registration_listener()).good();
        let path = bench.path(REGISTRATION);
        let before = fs::metadata(&path).unwrap();
        // As the kubelet does.
        let events = rustix::fs::inotify::init(rustix::fs::inotify::CreateFlags::NONBLOCK).unwrap();
        let moved = rustix::fs::inotify::WatchFlags::MOVED_TO;
        rustix::fs::inotify::add_watch(&events, bench.path("plugins_registry"), moved).unwrap();
        agent.ask(&offer()).good();
        let mut space = [std::mem::MaybeUninit::uninit(); 1024];
        let mut reader = rustix::fs::inotify::Reader::new(&events, &mut space);
        let mut seen = Vec::new();
        while let Ok(event) = reader.next() {
            seen.push(event.file_name().unwrap().to_str().unwrap().to_owned());
        }
        assert_eq!(seen, [".csi.spiffe.io-reg.sock", "csi.spiffe.io-reg.sock"]);
        let after = fs::metadata(&path).unwrap();
        assert_eq!((after.ino(), after.mtime_nsec()), (before.ino(), before.mtime_nsec()));
        let again = agent.ask(&registration_listener()).good();
        assert!(again.has(flag::EXISTING) && again.reply.cookie == first.reply.cookie);
        assert_eq!(names(bench.path("plugins_registry")), ["csi.spiffe.io-reg.sock"]);
        // What does not lead to us is left alone.
        fs::remove_file(&path).unwrap();
        agent.ask(&offer()).bad(Fault::NotFound, "does not lead");
    });
}

#[test]
fn a_container_that_holds_a_replaced_socket_by_subpath_is_named() {
    bench("a_container_that_holds_a_replaced_socket_by_subpath_is_named", |bench| {
        bench.start(&[]);
        let volume = bench.volume("v");
        let other = bench.volume("w");
        let agent = bench.agent();
        agent.identity(&volume).good();
        agent.identity(&other).good();
        // As the kubelet does: a file, and the socket on it; a directory of the volume is mounted on a
        // directory.
        let below = bench.path(&format!("pods/{POD}/volume-subpaths"));
        for (name, container) in [("v", "app"), ("v", "helper"), ("w", "app")] {
            let place = below.join(name).join(container);
            fs::create_dir_all(&place).unwrap();
            fs::write(place.join("0"), "").unwrap();
            let socket = bench.place(&bench.volume(name)).join("mount/spire-agent.sock");
            mount_bind(&socket, place.join("0")).unwrap();
        }
        fs::create_dir_all(below.join("v/whole/1")).unwrap();
        mount_bind(bench.target(&volume), below.join("v/whole/1")).unwrap();
        // A container that ended, what is no container, and a link that leads away.
        fs::create_dir_all(below.join("v/ended/2")).unwrap();
        fs::write(below.join("v/file"), "").unwrap();
        symlink("/", below.join("v/link")).unwrap();
        let told = |answer: crate::bench::Answer| (answer.has(flag::SUBPATH), answer.reply.text.clone());
        assert_eq!(told(agent.inspect(&volume).good()), (false, String::new()));
        drop(agent);
        // Both die: the next mounter has no listener to go on with.
        bench.kill();
        bench.start(&[]);
        let agent = bench.agent();
        assert!(!agent.identity(&volume).good().has(flag::EXISTING));
        assert_eq!(told(agent.inspect(&volume).good()), (true, "app, helper".to_owned()));
        assert_eq!(told(agent.inspect(&other).good()), (false, String::new()), "still the one in the volume");
        let mut all: Vec<_> = agent.list().into_iter().map(told).collect();
        all.sort();
        assert_eq!(all, [(false, String::new()), (true, "app, helper".to_owned())]);
        // The pod restarts, and the kubelet takes its mounts away.
        for container in ["app", "helper"] {
            unmount(below.join("v").join(container).join("0"), UnmountFlags::DETACH).unwrap();
        }
        assert_eq!(told(agent.inspect(&volume).good()), (false, String::new()));
    });
}
