//! A full disk, a read-only one, and no descriptors left: a clear fault, and nothing half done.

use std::fs;

use rustix::mount::{MountFlags, mount, mount_bind, mount_remount};
use seamount_mounter_protocol::{Fault, Request};

use crate::bench::{bench, csi_listener, names};

#[test]
fn a_full_disk_leaves_nothing_half_done() {
    bench("a_full_disk_leaves_nothing_half_done", |bench| {
        mount("x", bench.path("pods"), "tmpfs", MountFlags::empty(), Some(c"nr_inodes=200")).unwrap();
        bench.start(&[]);
        let (agent, volume) = (bench.agent(), bench.volume("v"));
        let filler = bench.path("pods/filler");
        fs::create_dir(&filler).unwrap();
        let fill =
            || (0..).map(|i| filler.join(i.to_string())).take_while(|p| fs::File::create(p).is_ok()).count();
        let room = fill();
        assert!(room > 100);
        // From no inode at all to all but one that the volume needs: directory, two links, socket.
        for free in 0..4 {
            for i in 0..free {
                fs::remove_file(filler.join(i.to_string())).unwrap();
            }
            agent.identity(&volume).bad(Fault::Storage, "free space");
            assert_eq!(names(bench.place(&volume)), ["vol_data.json"], "{free} inodes free");
            agent.ask(&Request::Inspect(volume.clone())).bad(Fault::NotFound, "");
            (0..free).for_each(|i| drop(fs::File::create(filler.join(i.to_string())).unwrap()));
        }
        agent.tmpfs(&volume, 0, 4096).bad(Fault::Storage, "free space");
        // Removal needs no space.
        agent.unpublish(&volume).good();
        fs::remove_dir_all(&filler).unwrap();
        agent.identity(&volume).good();
    });
}

#[test]
fn a_read_only_disk_is_said_to_be_one() {
    bench("a_read_only_disk_is_said_to_be_one", |bench| {
        let pods = bench.path("pods");
        mount_bind(&pods, &pods).unwrap();
        bench.start(&[]);
        let (agent, volume, old) = (bench.agent(), bench.volume("v"), bench.volume("old"));
        agent.identity(&old).good();
        mount_remount(&pods, MountFlags::BIND | MountFlags::RDONLY, "").unwrap();
        agent.identity(&volume).bad(Fault::Storage, "read-write");
        agent.tmpfs(&volume, 0, 4096).bad(Fault::Storage, "read-write");
        agent.unpublish(&old).bad(Fault::Storage, "read-write");
        agent.inspect(&old).good();
        mount_remount(&pods, MountFlags::BIND, "").unwrap();
        agent.identity(&volume).good();
        agent.unpublish(&old).good();
        assert!(!bench.target(&old).exists());
    });
}

#[test]
fn kept_descriptors_are_bounded_and_exhaustion_is_a_clear_fault() {
    bench("kept_descriptors_are_bounded_and_exhaustion_is_a_clear_fault", |bench| {
        let command = bench.limited("ulimit -n 72", &[]);
        bench.spawn(command, true);
        assert!(bench.log(1).contains("volumes=8"));
        let agent = bench.agent();
        let volumes: Vec<_> = (0..9).map(|i| bench.volume(&format!("v{i}"))).collect();
        for volume in &volumes[..8] {
            agent.identity(volume).good();
        }
        agent.identity(&volumes[8]).bad(Fault::Exhausted, "limit of open files");
        assert_eq!(names(bench.place(&volumes[8])), ["vol_data.json"]);
        agent.ask(&csi_listener()).bad(Fault::Exhausted, "limit of open files");
        // What is there goes on, and a freed place is used again.
        agent.identity(&volumes[0]).good();
        agent.unpublish(&volumes[3]).good();
        agent.identity(&volumes[8]).good();
    });
}

#[test]
fn no_descriptor_at_all_is_a_clear_fault_and_passes() {
    bench("no_descriptor_at_all_is_a_clear_fault_and_passes", |bench| {
        let pid = bench.start(&[]);
        let (agent, volume) = (bench.agent(), bench.volume("v"));
        agent.ask(&Request::Hello).good();
        let used = names(format!("/proc/{pid}/fd"));
        // The limit is on numbers: the first ones that are not in use.
        let unused: Vec<u64> = (0..).filter(|n: &u64| !used.contains(&n.to_string())).take(3).collect();
        let limit = |soft: u64| {
            let status = std::process::Command::new("prlimit")
                .args(["--pid", &pid.to_string(), &format!("--nofile={soft}:")])
                .status()
                .unwrap();
            assert!(status.success());
        };
        // From none to all but one of the descriptors that a publish takes.
        for (free, first) in unused.into_iter().enumerate() {
            limit(first);
            agent.identity(&volume).bad(Fault::Exhausted, "limit of open files");
            limit(1000);
            assert_eq!(names(bench.place(&volume)), ["vol_data.json"], "{free} descriptors free");
        }
        agent.identity(&volume).good();
        agent.unpublish(&volume).good();
    });
}
