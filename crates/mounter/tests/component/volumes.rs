//! The plain directory with a socket in it, and removal.

use std::fs;
use std::io::Read as _;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, symlink};
use std::os::unix::net::UnixListener;

use rustix::mount::{MountFlags, mount, mount_bind};
use seamount_mounter_protocol::names::Volume;
use seamount_mounter_protocol::{Fault, flag};

use crate::bench::{DEADLINE, bench, dial, mode, mounts_on, names};

const OTHER: &str = "00000000-0000-0000-0000-000000000001";

#[test]
fn an_identity_volume_is_a_directory_with_a_socket_and_no_mount() {
    bench("an_identity_volume_is_a_directory_with_a_socket_and_no_mount", |bench| {
        bench.start(&[]);
        let (agent, volume) = (bench.agent(), bench.volume("v"));
        let mounts = crate::bench::mount_points().len();
        let made = agent.identity(&volume).good();
        assert!(!made.has(flag::EXISTING));
        let target = bench.target(&volume);
        assert_eq!(names(&target), ["agent.sock", "socket", "spire-agent.sock"]);
        assert_eq!((mode(&target), mode(target.join("spire-agent.sock"))), (0o755, 0o666));
        let inode = fs::metadata(&target).unwrap().ino();
        let listener = UnixListener::from(made.fd.unwrap());
        for name in names(&target) {
            dial(target.join(&name));
            listener.accept().unwrap();
        }
        let again = agent.identity(&volume).good();
        assert!(again.has(flag::EXISTING));
        assert_eq!(again.reply.cookie, made.reply.cookie);
        // Removed and replaced sockets and links are made anew, in the same directory.
        fs::remove_file(target.join("spire-agent.sock")).unwrap();
        fs::remove_file(target.join("agent.sock")).unwrap();
        fs::remove_file(target.join("socket")).unwrap();
        symlink("/etc/passwd", target.join("socket")).unwrap();
        fs::write(target.join(".1.2.sock"), "a leftover of a crash").unwrap();
        let anew = agent.identity(&volume).good();
        assert!(!anew.has(flag::EXISTING) && anew.reply.cookie != made.reply.cookie);
        assert_eq!(names(&target), ["agent.sock", "socket", "spire-agent.sock"]);
        for name in names(&target) {
            dial(target.join(&name));
        }
        assert_eq!(fs::metadata(&target).unwrap().ino(), inode);
        assert_eq!(crate::bench::mount_points().len(), mounts);
    });
}

#[test]
fn the_names_in_a_volume_are_configurable() {
    bench("the_names_in_a_volume_are_configurable", |bench| {
        bench.start(&["--socket-name", "workload.sock", "--socket-name", "alias"]);
        let (agent, volume) = (bench.agent(), bench.volume("v"));
        agent.identity(&volume).good();
        let target = bench.target(&volume);
        assert_eq!(names(&target), ["alias", "workload.sock"]);
        assert_eq!(fs::read_link(target.join("alias")).unwrap().to_str(), Some("workload.sock"));
        agent.unpublish(&volume).good();
        assert!(!target.exists());
    });
}

#[test]
fn a_target_that_is_somebody_elses_is_left_alone() {
    bench("a_target_that_is_somebody_elses_is_left_alone", |bench| {
        bench.start(&[]);
        let agent = bench.agent();
        let full = bench.volume("full");
        fs::create_dir(bench.target(&full)).unwrap();
        fs::write(bench.target(&full).join("precious"), "x").unwrap();
        agent.identity(&full).bad(Fault::NotOurs, "precious");
        agent.tmpfs(&full, 0, 4096).bad(Fault::NotOurs, "precious");
        assert_eq!(names(bench.target(&full)), ["precious"]);
        let file = bench.volume("file");
        fs::write(bench.target(&file), "x").unwrap();
        agent.identity(&file).bad(Fault::NotOurs, "no directory");
        assert_eq!(fs::read(bench.target(&file)).unwrap(), b"x");
        let mounted = bench.volume("mounted");
        fs::create_dir(bench.target(&mounted)).unwrap();
        mount_bind(bench.path("source"), bench.target(&mounted)).unwrap();
        let answer = agent.identity(&mounted).good();
        assert!(answer.has(flag::FOREIGN) && answer.fd.is_none());
        assert!(names(bench.target(&mounted)).is_empty());
        agent.tmpfs(&mounted, 0, 4096).bad(Fault::NotOurs, "another's mount");
        assert_eq!(mounts_on(&bench.target(&mounted)), 1);
    });
}

#[test]
fn only_what_vol_data_names_is_touched() {
    bench("only_what_vol_data_names_is_touched", |bench| {
        bench.start(&["--source-directory", bench.path("source").to_str().unwrap()]);
        let agent = bench.agent();
        let foreign = bench.volume_of(crate::bench::POD, "foreign", "secrets-store.csi.k8s.io");
        // As if it were ours.
        let foreign = Volume { driver: crate::bench::DRIVER.parse().unwrap(), ..foreign };
        let ours = bench.volume("ours");
        let elsewhere = bench.volume_of(OTHER, "elsewhere", crate::bench::DRIVER);
        let unrecorded = bench.volume("unrecorded");
        fs::remove_file(bench.place(&unrecorded).join("vol_data.json")).unwrap();
        let wrong_id = Volume { id: "csi-other".parse().unwrap(), ..ours.clone() };
        // The name and id of another pod's volume, in this pod.
        let wrong_pod = Volume { pod: ours.pod.clone(), ..elsewhere.clone() };
        for volume in [&foreign, &wrong_id, &unrecorded, &wrong_pod] {
            let fault = if volume == &wrong_pod { Fault::NotFound } else { Fault::NotOurs };
            agent.identity(volume).bad(fault, "");
            agent.tmpfs(volume, 0, 4096).bad(fault, "");
            agent.directory(volume).bad(fault, "");
            assert!(!bench.target(volume).exists());
        }
        for volume in [&foreign, &wrong_id] {
            fs::create_dir(bench.target(volume)).unwrap();
            fs::write(bench.target(volume).join("spire-agent.sock"), "x").unwrap();
            mount("x", bench.target(volume), "tmpfs", MountFlags::empty(), None).unwrap();
            agent.unpublish(volume).bad(Fault::NotOurs, "vol_data.json");
            agent.inspect(volume).bad(Fault::NotOurs, "vol_data.json");
            assert_eq!(mounts_on(&bench.target(volume)), 1);
        }
        assert_eq!(agent.list().len(), 1, "the driver's own, whatever id was asked for");
    });
}

#[test]
fn unpublish_is_idempotent_and_cuts_access() {
    bench("unpublish_is_idempotent_and_cuts_access", |bench| {
        bench.start(&[]);
        let (agent, volume) = (bench.agent(), bench.volume("v"));
        let listener = UnixListener::from(agent.identity(&volume).good().fd.unwrap());
        let mut waiting = dial(bench.target(&volume).join("socket"));
        waiting.set_read_timeout(Some(DEADLINE)).unwrap();
        agent.unpublish(&volume).good();
        assert!(!bench.target(&volume).exists());
        // The agent's own copy accepts no more, and does not keep what waited: a thread of the mounter takes
        // it out.
        assert_eq!(waiting.read(&mut [0; 1]).unwrap(), 0);
        assert!(listener.accept().is_err());
        agent.unpublish(&volume).good();
        fs::remove_dir_all(bench.place(&volume)).unwrap();
        agent.unpublish(&volume).good();
        agent.unpublish(&Volume { pod: OTHER.parse().unwrap(), ..volume }).good();
    });
}

#[test]
fn a_listener_is_not_cut_for_a_volume_that_is_not_named() {
    bench("a_listener_is_not_cut_for_a_volume_that_is_not_named", |bench| {
        bench.start(&[]);
        let (agent, volume) = (bench.agent(), bench.volume("v"));
        agent.identity(&volume).good();
        let wrong = Volume { id: "csi-other".parse().unwrap(), ..volume.clone() };
        agent.unpublish(&wrong).bad(Fault::NotOurs, "csi-v");
        dial(bench.target(&volume).join("socket"));
    });
}

#[test]
fn unpublish_removes_leftovers_one_level_and_no_directory() {
    bench("unpublish_removes_leftovers_one_level_and_no_directory", |bench| {
        bench.start(&[]);
        let (agent, volume) = (bench.agent(), bench.volume("v"));
        let target = bench.target(&volume);
        fs::create_dir(&target).unwrap();
        let outside = bench.path("source/precious");
        fs::write(&outside, "x").unwrap();
        fs::write(target.join("file"), "x").unwrap();
        fs::write(target.join(std::ffi::OsStr::from_bytes(b"not\xffutf8")), "x").unwrap();
        symlink(&outside, target.join("link")).unwrap();
        symlink(bench.path("source"), target.join("directory-link")).unwrap();
        agent.unpublish(&volume).good();
        assert!(!target.exists());
        assert_eq!(fs::read(&outside).unwrap(), b"x");
        // A directory with something in it: an error that names it, and it stays.
        fs::create_dir_all(target.join("deep")).unwrap();
        fs::write(target.join("deep/file"), "x").unwrap();
        agent.unpublish(&volume).bad(Fault::System, "deep");
        assert!(target.join("deep/file").exists());
        fs::remove_dir_all(target.join("deep")).unwrap();
        agent.unpublish(&volume).good();
        // A file in its place.
        fs::write(&target, "x").unwrap();
        agent.unpublish(&volume).good();
        assert!(!target.exists());
    });
}

#[test]
fn unpublish_without_the_record_removes_only_names_of_ours() {
    bench("unpublish_without_the_record_removes_only_names_of_ours", |bench| {
        bench.start(&[]);
        let (agent, volume) = (bench.agent(), bench.volume("v"));
        agent.identity(&volume).good();
        let target = bench.target(&volume);
        fs::remove_file(bench.place(&volume).join("vol_data.json")).unwrap();
        fs::write(target.join("precious"), "x").unwrap();
        agent.unpublish(&volume).bad(Fault::System, "precious");
        assert_eq!(names(&target), ["precious"]);
        mount("x", &target, "tmpfs", MountFlags::empty(), None).unwrap();
        agent.unpublish(&volume).bad(Fault::NotOurs, "no vol_data.json");
        assert_eq!(mounts_on(&target), 1);
        rustix::mount::unmount(&target, rustix::mount::UnmountFlags::empty()).unwrap();
        fs::remove_file(target.join("precious")).unwrap();
        agent.unpublish(&volume).good();
        assert!(!target.exists());
        fs::write(&target, "x").unwrap();
        agent.unpublish(&volume).bad(Fault::NotOurs, "no vol_data.json");
        assert!(target.exists());
    });
}

#[test]
fn unpublish_unwinds_stacked_and_busy_mounts() {
    bench("unpublish_unwinds_stacked_and_busy_mounts", |bench| {
        bench.start(&["--source-directory", bench.path("source").to_str().unwrap()]);
        let (agent, volume) = (bench.agent(), bench.volume("v"));
        let target = bench.target(&volume);
        agent.directory(&volume).good();
        for _ in 0..5 {
            mount("x", &target, "tmpfs", MountFlags::empty(), None).unwrap();
        }
        let busy = fs::File::create(target.join("open")).unwrap();
        assert_eq!(agent.list()[0].reply.numbers[2], 6);
        agent.unpublish(&volume).good();
        assert!(!target.exists());
        assert_eq!(mounts_on(&target), 0);
        drop(busy);
        assert!(bench.path("source").exists());
        // More than one request unwinds: the next one goes on.
        fs::create_dir(&target).unwrap();
        for _ in 0..200 {
            mount_bind(bench.path("source"), &target).unwrap();
        }
        agent.unpublish(&volume).bad(Fault::System, "still busy");
        agent.unpublish(&volume).good();
        assert_eq!(mounts_on(&target), 0);
    });
}

#[test]
fn list_and_inspect_tell_what_is_there() {
    bench("list_and_inspect_tell_what_is_there", |bench| {
        bench.start(&["--source-directory", bench.path("source").to_str().unwrap()]);
        let agent = bench.agent();
        let [identity, tmpfs, directory, foreign, empty, orphan] =
            ["identity", "tmpfs", "directory", "foreign", "empty", "orphan"].map(|n| bench.volume(n));
        agent.inspect(&identity).bad(Fault::NotFound, "");
        let cookie = agent.identity(&identity).good().reply.cookie;
        agent.tmpfs(&tmpfs, 7, 1 << 20).good();
        agent.directory(&directory).good();
        fs::create_dir(bench.target(&foreign)).unwrap();
        mount("x", bench.target(&foreign), "tmpfs", MountFlags::empty(), None).unwrap();
        fs::create_dir(bench.target(&empty)).unwrap();
        agent.identity(&orphan).good();
        fs::remove_file(bench.place(&orphan).join("vol_data.json")).unwrap();
        bench.volume_of(OTHER, "foreign", "other.driver");
        fs::create_dir_all(bench.path("pods/not-a-uid/volumes/kubernetes.io~csi/x")).unwrap();
        fs::create_dir_all(bench.path("pods").join(OTHER).join("volumes/kubernetes.io~csi/pvc.x/mount"))
            .unwrap();

        let found = agent.list();
        let of = |name: &str| {
            let one = found.iter().find(|a| a.reply.subject.volume().unwrap().name.as_str() == name).unwrap();
            (one.reply.flags, one.reply.numbers, one.reply.cookie, one.fd.is_some())
        };
        assert_eq!(found.len(), 6);
        let (flags, numbers, kept, fd) = of("identity");
        assert_eq!((flags, kept, fd), (flag::IDENTITY | flag::SOCKET, cookie, true));
        assert_eq!((numbers[1], numbers[2]), (4, 0));
        let (flags, numbers, _, fd) = of("tmpfs");
        assert_eq!((flags, numbers[2], fd), (flag::TMPFS, 1, false));
        assert_eq!(
            (of("directory").0, of("foreign").0, of("empty").0),
            (flag::DIRECTORY, flag::FOREIGN, flag::IDENTITY)
        );
        assert_eq!(of("orphan").0, flag::IDENTITY | flag::SOCKET | flag::ORPHAN);
        let inspected = agent.inspect(&identity).good();
        assert_eq!((inspected.reply.flags, inspected.reply.cookie), (flag::IDENTITY | flag::SOCKET, cookie));
        assert!(inspected.fd.is_some());
        assert!(agent.inspect(&orphan).good().has(flag::ORPHAN));
        // The orphan can be removed by what the list says of it, by a driver of the mounter's.
        let named =
            found.iter().find(|a| a.has(flag::ORPHAN)).unwrap().reply.subject.volume().cloned().unwrap();
        agent.unpublish(&Volume { driver: orphan.driver.clone(), ..named }).good();
        assert!(!bench.target(&orphan).exists());
    });
}
