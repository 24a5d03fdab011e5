//! Volumes that are mounts: the tmpfs and the directory of somebody else.

use std::fs;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixListener;

use rustix::fs::{AtFlags, Mode, OFlags, mkdirat, openat, renameat, statat, symlinkat, unlinkat};
use rustix::mount::mount_bind;
use seamount_mounter_protocol::{Fault, Request, flag};

use crate::bench::{AGENT, as_agent, bench, dial, mode, mounts_on, names};

const GROUP: u32 = 1234;
const IDS: &[&str] = &["--agent-uid", "64203", "--agent-gid", "64203"];

fn write(dir: &OwnedFd, path: &str, mode: u32) -> rustix::io::Result<()> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL;
    let file = openat(dir, path, flags, Mode::empty())?;
    rustix::io::write(&file, b"secret")?;
    rustix::fs::fchmod(&file, Mode::from_raw_mode(mode))
}

fn owner(path: impl AsRef<std::path::Path>) -> (u32, u32, u32) {
    let stat = fs::symlink_metadata(&path).unwrap();
    (stat.uid(), stat.gid(), mode(path))
}

#[test]
fn files_of_the_agent_become_roots_and_the_groups() {
    bench("files_of_the_agent_become_roots_and_the_groups", |bench| {
        bench.start(IDS);
        let volume = bench.volume("v");
        let target = bench.target(&volume);
        as_agent(|| {
            let agent = bench.agent();
            let dir = agent.tmpfs(&volume, GROUP, 1 << 20).good().fd.unwrap();
            mkdirat(&dir, "..1", Mode::from_raw_mode(0o755)).unwrap();
            write(&dir, "..1/key", 0o440).unwrap();
            write(&dir, "..1/cert", 0o444).unwrap();
            symlinkat("..1", &dir, "..data_tmp").unwrap();
            renameat(&dir, "..data_tmp", &dir, "..data").unwrap();
            symlinkat("..data/key", &dir, "key").unwrap();
            agent.ask(&Request::SetOwnership { volume: volume.clone(), version: "..1".into() }).good();
            // A second time, through a clone of its own; old versions can be removed.
            let dir = agent.tmpfs(&volume, GROUP, 1 << 20).good().fd.unwrap();
            unlinkat(&dir, "..1/cert", AtFlags::empty()).unwrap();
            // From a clone there is no way up.
            for up in ["..", "../..", "../../../../../../.."] {
                assert!(statat(&dir, format!("{up}/..1"), AtFlags::empty()).is_ok());
                assert!(statat(&dir, format!("{up}/vol_data.json"), AtFlags::empty()).is_err());
            }
        });
        assert_eq!(owner(&target), (AGENT, GROUP, 0o2755));
        assert_eq!(owner(target.join("..1/key")), (0, GROUP, 0o440));
        assert_eq!(owner(target.join("..1")), (AGENT, GROUP, 0o2755));
        assert_eq!(fs::read(target.join("key")).unwrap(), b"secret");
        assert_eq!(names(target.join("..1")), ["key"]);
        assert_eq!(mounts_on(&target), 1);
        as_agent(|| bench.agent().unpublish(&volume).good());
        assert!(!target.exists());
    });
}

/// The flags of a mount are gone after a remount that does not repeat them, as some runtimes make one.
#[test]
fn no_file_of_a_tmpfs_is_dangerous_without_the_mounts_flags() {
    bench("no_file_of_a_tmpfs_is_dangerous_without_the_mounts_flags", |bench| {
        bench.start(IDS);
        let volume = bench.volume("v");
        let target = bench.target(&volume);
        as_agent(|| {
            let agent = bench.agent();
            let dir = agent.tmpfs(&volume, GROUP, 1 << 20).good().fd.unwrap();
            mkdirat(&dir, "..1", Mode::from_raw_mode(0o1777)).unwrap();
            let flags = OFlags::RDWR | OFlags::CREATE;
            let held = openat(&dir, "..1/held", flags, Mode::from_raw_mode(0o755)).unwrap();
            let settle =
                || agent.ask(&Request::SetOwnership { volume: volume.clone(), version: "..1".into() });
            for (name, mode) in [("suid", 0o4755), ("sgid", 0o2745), ("sticky", 0o1644), ("all", 0o7777)] {
                let path = format!("..1/{name}");
                write(&dir, &path, mode).unwrap();
                let file = rustix::fs::statat(&dir, &path, AtFlags::empty()).unwrap();
                // The kernel itself takes the group's bit from an agent that is not in the group.
                if file.st_mode & 0o7000 != 0 {
                    settle().bad(Fault::Malformed, name);
                    rustix::fs::chmodat(&dir, &path, Mode::from_raw_mode(0o755), AtFlags::empty()).unwrap();
                }
            }
            let device = rustix::fs::mknodat(
                &dir,
                "..1/null",
                rustix::fs::FileType::CharacterDevice,
                Mode::from_raw_mode(0o666),
                rustix::fs::makedev(1, 3),
            );
            assert_eq!(device, Err(rustix::io::Errno::PERM));
            settle().good();
            // By no way that it has kept, or can get.
            assert!(rustix::fs::fchmod(&held, Mode::from_raw_mode(0o4755)).is_err());
            let dir = agent.tmpfs(&volume, GROUP, 1 << 20).good().fd.unwrap();
            let chmod = rustix::fs::chmodat(&dir, "..1/suid", Mode::from_raw_mode(0o4755), AtFlags::empty());
            assert!(chmod.is_err());
        });
        let flags = rustix::mount::MountFlags::BIND | rustix::mount::MountFlags::RDONLY;
        rustix::mount::mount_remount(&target, flags, "").unwrap();
        for name in ["suid", "sgid", "sticky", "all", "held"] {
            let (uid, gid, mode) = owner(target.join("..1").join(name));
            assert_eq!((uid, gid, mode & !0o777), (0, GROUP, 0), "{name}: {mode:o}");
        }
    });
}

#[test]
fn without_idmapping_ownership_is_settled() {
    bench("without_idmapping_ownership_is_settled", |bench| {
        bench.start(&[IDS, &["--no-idmap"]].concat());
        let volume = bench.volume("v");
        let target = bench.target(&volume);
        as_agent(|| {
            let agent = bench.agent();
            assert!(!agent.ask(&Request::Hello).good().has(flag::IDMAP));
            let made = agent.tmpfs(&volume, GROUP, 1 << 20).good();
            assert!(made.has(flag::TMPFS));
            let dir = made.fd.unwrap();
            mkdirat(&dir, "..1", Mode::from_raw_mode(0o700)).unwrap();
            mkdirat(&dir, "..1/deep", Mode::from_raw_mode(0o700)).unwrap();
            write(&dir, "..1/key", 0o440).unwrap();
            write(&dir, "..1/deep/key", 0o400).unwrap();
            write(&dir, "..2", 0o600).unwrap();
            symlinkat("/etc/shadow", &dir, "..1/link").unwrap();
            let settle = |version: &str| {
                agent.ask(&Request::SetOwnership { volume: volume.clone(), version: version.to_owned() })
            };
            let shadow = fs::metadata("/etc/shadow").unwrap();
            settle("..1").good();
            assert_eq!(fs::metadata("/etc/shadow").unwrap().uid(), shadow.uid());
            for bad in ["", "..", "../..", "/etc", "..1/../..", "..1/link/x", &"x".repeat(700)] {
                assert!(settle(bad).fault().is_some(), "{bad}");
            }
            // A link is given away itself, not what it leads to.
            settle("..1/link").good();
            assert_eq!(fs::metadata("/etc/shadow").unwrap().uid(), shadow.uid());
            settle("nothing").bad(Fault::NotFound, "nothing");
            // Deeper than anybody needs.
            let deep = (0..20).fold("..1".to_owned(), |path, _| {
                let path = format!("{path}/d");
                mkdirat(&dir, &path, Mode::from_raw_mode(0o700)).unwrap();
                path
            });
            settle("..1").bad(Fault::Malformed, "too deeply");
            for depth in (1..=20).rev() {
                unlinkat(&dir, &deep[.."..1".len() + "/d".len() * depth], AtFlags::REMOVEDIR).unwrap();
            }
            // The agent can still remove what is settled.
            unlinkat(&dir, "..1/deep/key", AtFlags::empty()).unwrap();
        });
        assert_eq!(owner(target.join("..1/key")), (0, GROUP, 0o440));
        assert_eq!(owner(target.join("..1/link")), (0, GROUP, 0o777));
        assert_eq!(owner(target.join("..2")), (AGENT, GROUP, 0o600));
        assert_eq!(owner(&target), (AGENT, GROUP, 0o2755));
    });
}

#[test]
fn a_tmpfs_is_bounded_and_published_one_way_only() {
    bench("a_tmpfs_is_bounded_and_published_one_way_only", |bench| {
        bench.start(&[]);
        let (agent, volume) = (bench.agent(), bench.volume("v"));
        for (gid, size) in [(GROUP, 0), (GROUP, u64::MAX), (GROUP, (1 << 30) + 1), (u32::MAX, 4096)] {
            agent.tmpfs(&volume, gid, size).bad(Fault::Malformed, "size");
        }
        assert!(!bench.target(&volume).exists());
        let dir = agent.tmpfs(&volume, GROUP, 5000).good().fd.unwrap();
        let file = openat(&dir, "big", OFlags::RDWR | OFlags::CREATE, Mode::from_raw_mode(0o600)).unwrap();
        let written = (0..64).map(|_| rustix::io::write(&file, &[1; 4096])).take_while(Result::is_ok).count();
        assert_eq!(written, 2, "two pages hold 5000 bytes");
        agent.tmpfs(&volume, GROUP, 9000).bad(Fault::Malformed, "size 8192");
        agent.tmpfs(&volume, GROUP + 1, 5000).bad(Fault::Malformed, "group 1234");
        agent.tmpfs(&volume, GROUP, 5000).good();
        assert_eq!(mounts_on(&bench.target(&volume)), 1);
        let table = fs::read_to_string("/proc/thread-self/mountinfo").unwrap();
        let target = bench.target(&volume);
        let line = table.lines().find(|l| l.contains(target.to_str().unwrap())).unwrap();
        assert!(line.contains("rw,nosuid,nodev,noexec"), "{line}");
        // An identity volume it is not.
        assert!(agent.identity(&volume).good().has(flag::FOREIGN));
    });
}

#[test]
fn the_source_directory_is_shown_and_can_be_relabelled() {
    bench("the_source_directory_is_shown_and_can_be_relabelled", |bench| {
        bench.start(&["--source-directory", bench.path("source").to_str().unwrap()]);
        let (agent, volume) = (bench.agent(), bench.volume("v"));
        let target = bench.target(&volume);
        let listener = UnixListener::bind(bench.path("source/agent.sock")).unwrap();
        let made = agent.directory(&volume).good();
        assert!(made.has(flag::DIRECTORY) && !made.has(flag::STALE) && made.fd.is_none());
        dial(target.join("agent.sock"));
        listener.accept().unwrap();
        // Writable on the host, or the runtime could not relabel it for SELinux; but nothing in it runs or is
        // a device.
        let table = fs::read_to_string("/proc/thread-self/mountinfo").unwrap();
        let line = table.lines().find(|l| l.contains(target.to_str().unwrap())).unwrap();
        assert!(line.contains(" rw,nosuid,nodev,noexec"), "{line}");
        fs::write(target.join("x"), "x").unwrap();
        assert!(bench.path("source/x").exists());
        assert!(agent.directory(&volume).good().has(flag::DIRECTORY));
        assert_eq!(mounts_on(&target), 1);
        // Something that is mounted in the source does not come along, and nothing of ours goes back.
        fs::create_dir(bench.path("source/inner")).unwrap();
        mount_bind(bench.path("logs"), bench.path("source/inner")).unwrap();
        assert!(names(target.join("inner")).is_empty());
        agent.unpublish(&volume).good();
        assert!(bench.path("source/agent.sock").exists() && !target.exists());
    });
}

#[test]
fn a_recreated_source_is_bound_anew_and_reported() {
    bench("a_recreated_source_is_bound_anew_and_reported", |bench| {
        let source = bench.path("source");
        bench.start(&["--source-directory", source.to_str().unwrap()]);
        let (agent, volume) = (bench.agent(), bench.volume("v"));
        let target = bench.target(&volume);
        agent.directory(&volume).good();
        fs::remove_dir(&source).unwrap();
        assert!(agent.inspect(&volume).good().has(flag::DIRECTORY | flag::STALE));
        // Nothing to bind yet: no error, nothing changed.
        assert!(agent.directory(&volume).good().has(flag::DIRECTORY | flag::STALE));
        assert_eq!(mounts_on(&target), 1);
        let other = bench.volume("other");
        agent.directory(&other).bad(Fault::NotFound, "source");
        assert!(!bench.target(&other).exists());
        fs::create_dir(&source).unwrap();
        fs::write(source.join("new"), "x").unwrap();
        assert!(agent.inspect(&volume).good().has(flag::DIRECTORY | flag::STALE));
        assert!(agent.directory(&volume).good().has(flag::DIRECTORY | flag::STALE));
        assert_eq!((names(&target), mounts_on(&target)), (vec!["new".to_owned()], 1));
        assert!(!agent.inspect(&volume).good().has(flag::STALE));
    });
}

#[test]
fn another_drivers_mount_is_reported_and_kept() {
    bench("another_drivers_mount_is_reported_and_kept", |bench| {
        bench.start(&["--source-directory", bench.path("source").to_str().unwrap()]);
        let (agent, volume) = (bench.agent(), bench.volume("v"));
        let target = bench.target(&volume);
        fs::create_dir(&target).unwrap();
        mount_bind(bench.path("logs"), &target).unwrap();
        let answer = agent.directory(&volume).good();
        assert!(answer.has(flag::FOREIGN) && !answer.has(flag::DIRECTORY));
        assert_eq!((mounts_on(&target), names(&target)), (1, names(bench.path("logs"))));
        // The former driver's bind of the same source is as good as ours.
        rustix::mount::unmount(&target, rustix::mount::UnmountFlags::empty()).unwrap();
        mount_bind(bench.path("source"), &target).unwrap();
        assert!(agent.directory(&volume).good().has(flag::DIRECTORY));
        agent.unpublish(&volume).good();
        assert_eq!(mounts_on(&target), 0);
    });
}

#[test]
fn a_directory_volume_takes_a_configured_source() {
    bench("a_directory_volume_takes_a_configured_source", |bench| {
        bench.start(&[]);
        let (agent, volume) = (bench.agent(), bench.volume("v"));
        agent.directory(&volume).bad(Fault::Unsupported, "--source-directory");
        assert!(!bench.target(&volume).exists());
    });
}
