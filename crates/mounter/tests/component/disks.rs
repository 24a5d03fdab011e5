//! Volumes on what nodes have their kubelet's directory on, and what a removal leaves open.

use std::fs;
use std::os::unix::net::UnixListener;

use seamount_mounter_protocol::flag;
use seamount_testkit::eventually;

use crate::bench::{Bench, DEADLINE, bench, dial, names, on_disks, store};

#[test]
fn volumes_come_stay_and_go_on_a_disk() {
    on_disks("volumes_come_stay_and_go_on_a_disk", |bench| {
        bench.start(&[]);
        let agent = bench.agent();
        let volumes: Vec<_> = (0..20).map(|i| bench.volume(&format!("v{i}"))).collect();
        let mut kept = Vec::new();
        for volume in &volumes {
            let made = agent.identity(volume).good();
            assert_eq!(names(bench.target(volume)), ["agent.sock", "socket", "spire-agent.sock"]);
            kept.push((made.reply.cookie, made.fd.unwrap()));
        }
        assert_eq!(agent.list().len(), volumes.len());
        let (tmpfs, bound) = (bench.volume("tmpfs"), bench.volume("again"));
        agent.tmpfs(&tmpfs, 0, 4096).good();
        agent.identity(&bound).good();
        agent.unpublish(&bound).good();
        agent.identity(&bound).good();
        // A name's time tells its listener, also by the times that this disk keeps.
        bench.kill();
        let pid = bench.start(&[]);
        let agent = bench.agent();
        for (volume, (cookie, fd)) in volumes.iter().zip(&kept) {
            agent.ask_with(&store(volume, *cookie), &[fd]).good();
            let again = agent.identity(volume).good();
            assert!(again.has(flag::EXISTING) && again.reply.cookie == *cookie);
        }
        for (volume, (_, fd)) in volumes.iter().zip(kept) {
            let listener = UnixListener::from(fd);
            dial(bench.target(volume).join("socket"));
            listener.accept().unwrap();
            agent.unpublish(volume).good();
            assert_eq!(names(bench.place(volume)), ["vol_data.json"]);
        }
        for volume in [&tmpfs, &bound] {
            agent.unpublish(volume).good();
            assert_eq!(names(bench.place(volume)), ["vol_data.json"]);
        }
        assert!(agent.list().is_empty());
        eventually(DEADLINE, "nothing of what was removed is open", || removed(pid) == 0);
    });
}

/// How many removed directories a process has open.
pub fn removed(pid: u32) -> usize {
    let open = fs::read_dir(format!("/proc/{pid}/fd")).unwrap();
    // One may be closed between the two looks.
    let targets = open.filter_map(|fd| fs::read_link(fd.ok()?.path()).ok());
    targets.filter(|target| target.to_string_lossy().ends_with("(deleted)")).count()
}

/// What close(2) of a removed directory waits for, no request does: it is answered while the directory is
/// open still.
#[test]
fn a_request_does_not_wait_until_what_it_removed_is_freed() {
    bench("a_request_does_not_wait_until_what_it_removed_is_freed", |bench: &mut Bench| {
        let pid = bench.start(&[]);
        let (agent, volume) = (bench.agent(), bench.volume("v"));
        // It is closed soon: on a busy machine it may be before we look.
        eventually(DEADLINE, "an answer before the directory was closed", || {
            agent.identity(&volume).good();
            agent.unpublish(&volume).good();
            removed(pid) > 0
        });
        eventually(DEADLINE, "it is closed", || removed(pid) == 0);
    });
}
