//! What happens to a whole node: a reboot, other releases, two pairs at once, and what another driver has
//! left.

use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};
use seamount_agent::record::VERSION;
use seamount_testkit::kubelet::PodVolume;
use seamount_testkit::node::{free_address, get, ready};
use seamount_testkit::processes::Spawn;
use spiffe::X509Svid;

use super::harness::*;

/// A published volume, its view and its certificate.
async fn published(node: &mut Node) -> (PodVolume, PathBuf, Vec<u8>) {
    let volume = node.volume("shop", "frontend", "web-1");
    node.publish(&volume).await;
    let view = node.view(&volume);
    let leaf = leaf(&fetch(&view).await);
    (volume, view, leaf)
}

async fn republish(node: &Node, volume: &PodVolume) {
    node.kubelet.publish(volume, Some(&node.tokens(volume))).await.unwrap();
}

/// A pod that connects before its identity is there, and again if it was told to.
fn early(view: &Path) -> tokio::task::JoinHandle<X509Svid> {
    let view = view.to_owned();
    tokio::spawn(async move {
        loop {
            if let Ok(svid) = try_fetch(&view).await {
                return svid;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    })
}

/// A debug build that plays the release after this one (`record/codec.rs`): its records have one more field.
fn next_release(spawn: Spawn) -> Spawn {
    spawn.env("SEAMOUNT_TEST_NEXT_RELEASE", "1")
}

/// The version in a record's frame.
fn version(node: &Node, volume: &PodVolume) -> u16 {
    let bytes = std::fs::read(node.record(volume)).unwrap();
    u16::from_le_bytes(bytes[4..6].try_into().unwrap())
}

#[test]
fn a_rebooted_node_has_its_volumes_again_after_the_republish() {
    on_node("a_rebooted_node_has_its_volumes_again_after_the_republish", async |node| {
        node.start().await;
        let (volume, view, before) = published(node).await;
        let directory = inode(&node.kubelet.target_path(&volume));
        node.agent.take().unwrap().crash().unwrap();
        node.mounter.take().unwrap().crash().unwrap();
        // Mounts and /run are gone, the pods' directories are still there, dead sockets in them.
        unmount(node.state(), UnmountFlags::empty()).unwrap();
        std::fs::remove_file(node.path(RUN).join("mounter.sock")).unwrap();
        assert!(std::fs::read_dir(node.state()).unwrap().next().is_none());
        node.start_agent();
        node.start_mounter();
        node.register().await;
        // The pod's containers were started again by the kubelet and connect before it has republished: they
        // wait.
        let early = early(&view);
        node.until("the truth about the volume", async || {
            let condition = node.kubelet.stats(&volume).await.unwrap().volume_condition.unwrap();
            condition.abnormal && condition.message.contains("republish")
        })
        .await;
        republish(node, &volume).await;
        let svid = early.await.unwrap();
        assert_eq!(svid.spiffe_id().to_string(), "spiffe://example.org/ns/shop/sa/frontend");
        assert_ne!(leaf(&svid), before, "nothing was left that it could come from");
        assert_eq!(inode(&node.kubelet.target_path(&volume)), directory, "another directory");
        assert!(!node.kubelet.stats(&volume).await.unwrap().volume_condition.unwrap().abnormal);
        assert!(node.record(&volume).exists());
        node.kubelet.tear_down(&volume).await.unwrap();
    });
}

#[test]
fn an_upgrade_reads_the_records_of_the_release_before() {
    on_node("an_upgrade_reads_the_records_of_the_release_before", async |node| {
        node.start().await;
        let (volume, view, before) = published(node).await;
        assert_eq!(version(node, &volume), VERSION);
        node.agent.take().unwrap().crash().unwrap();
        node.start_agent_with(next_release);
        assert_eq!(leaf(&fetch(&view).await), before, "another serial");
        node.ready().await;
        // Whatever is stored next is of the new version.
        republish(node, &volume).await;
        assert_eq!(version(node, &volume), VERSION + 1);
        assert_eq!(leaf(&fetch(&view).await), before, "another serial");
        // And is read again, with the mounter replaced as well.
        node.agent.take().unwrap().crash().unwrap();
        node.mounter.take().unwrap().crash().unwrap();
        node.start_mounter();
        node.start_agent_with(next_release);
        // Nobody has the socket open until it is bound again.
        assert_eq!(leaf(&early(&view).await.unwrap()), before, "another serial");
    });
}

#[test]
fn after_a_roll_back_a_newer_record_is_left_alone_until_the_republish() {
    on_node("after_a_roll_back_a_newer_record_is_left_alone_until_the_republish", async |node| {
        node.start_mounter();
        node.start_agent_with(next_release);
        node.register().await;
        let (volume, view, before) = published(node).await;
        let directory = inode(&node.kubelet.target_path(&volume));
        let record = std::fs::read(node.record(&volume)).unwrap();
        assert_eq!(version(node, &volume), VERSION + 1);

        // This release cannot read it: the pod's new streams wait, and the volume says why it has nothing.
        node.agent.take().unwrap().crash().unwrap();
        node.start_agent();
        let told = format!("record of version {}, this release knows {VERSION}", VERSION + 1);
        node.agent().wait_for_log(LONG, &told).unwrap();
        node.until("the truth about the volume", async || {
            let condition = node.kubelet.stats(&volume).await.unwrap().volume_condition.unwrap();
            condition.abnormal && condition.message.contains("republish")
        })
        .await;
        assert_eq!(std::fs::read(node.record(&volume)).unwrap(), record, "it was touched");

        // Whoever returns to the next release before the republish has lost nothing.
        node.agent.take().unwrap().crash().unwrap();
        node.start_agent_with(next_release);
        assert_eq!(leaf(&fetch(&view).await), before, "another serial");

        // Back once more: the republish brings the identity back, on the same socket.
        node.agent.take().unwrap().crash().unwrap();
        node.start_agent();
        node.agent().wait_for_log(LONG, "volumes restored").unwrap();
        let early = early(&view);
        republish(node, &volume).await;
        let id = early.await.unwrap().spiffe_id().to_string();
        assert_eq!(id, "spiffe://example.org/ns/shop/sa/frontend");
        assert_eq!(version(node, &volume), VERSION);
        assert_eq!(inode(&node.kubelet.target_path(&volume)), directory, "another directory");
        node.ready().await;

        // And a deletion needs no record that it could read.
        node.agent.take().unwrap().crash().unwrap();
        std::fs::write(node.record(&volume), record).unwrap();
        node.start_agent();
        node.kubelet.tear_down(&volume).await.unwrap();
        assert!(!node.record(&volume).exists(), "a newer record outlives its volume");
    });
}

#[test]
fn of_two_pairs_one_waits_and_goes_on_with_the_same_serials() {
    on_node("of_two_pairs_one_waits_and_goes_on_with_the_same_serials", async |node| {
        // The pair that will wait is the older one: a container of the old pod that is started again, whose
        // mounter has been there before.
        node.make_run("older").unwrap();
        std::fs::write(node.path("older").join(".born"), "").unwrap();
        let run = node.path(RUN);
        std::fs::remove_dir_all(&run).unwrap();
        node.make_run(RUN).unwrap();
        node.start().await;
        let (volume, view, before) = published(node).await;
        let http = free_address().unwrap();
        let logs = node.path("logs2");
        std::fs::create_dir(&logs).unwrap();
        let move_log = |spawn: Spawn| spawn.log_in(&logs);
        let mut second_mounter = move_log(node.mounter("older")).start().unwrap();
        let second_agent = move_log(node.second_agent("older", &http)).start().unwrap();
        second_mounter.wait_for_log(LONG, "waiting").unwrap();

        // No harm: the first pair goes on with everything.
        republish(node, &volume).await;
        assert_eq!(leaf(&fetch(&view).await), before);
        let other = node.volume("shop", "database", "db-1");
        node.publish(&other).await;
        let other_view = node.view(&other);
        let other_before = leaf(&fetch(&other_view).await);
        node.until("the second agent's complaint", async || {
            let answer = get(&node.health("older"), "/readyz").await;
            answer.is_ok_and(|(code, text)| code == 503 && text.contains("[-] mounter"))
        })
        .await;

        // The first ones die, and nobody starts them again.
        node.mounter.take().unwrap().crash().unwrap();
        node.agent.take().unwrap().crash().unwrap();
        assert_eq!(leaf(&early(&view).await.unwrap()), before, "another serial");
        assert_eq!(leaf(&early(&other_view).await.unwrap()), other_before, "another serial");
        node.kubelet.register(LONG).await.unwrap();
        ready(&node.health("older"), LONG).await.unwrap();
        node.kubelet.tear_down(&volume).await.unwrap();
        node.kubelet.tear_down(&other).await.unwrap();
        drop((second_agent, second_mounter));
    });
}

#[test]
fn what_another_driver_left_is_reported_and_left_alone() {
    on_node("what_another_driver_left_is_reported_and_left_alone", async |node| {
        // Two mounts on top of each other in a volume that is ours by the kubelet's record; a volume whose
        // record is gone; one of another driver.
        let stacked = node.volume("shop", "frontend", "web-1");
        node.kubelet.prepare(&stacked).unwrap();
        let target = node.kubelet.target_path(&stacked);
        std::fs::create_dir(&target).unwrap();
        for name in ["lower", "upper"] {
            mount("tmpfs", &target, "tmpfs", MountFlags::empty(), None).unwrap();
            std::fs::write(target.join(name), "x").unwrap();
        }
        let theirs = node.volume("shop", "frontend", "web-2");
        node.kubelet.prepare(&theirs).unwrap();
        let vol_data = node.kubelet.volume_directory(&theirs).join("vol_data.json");
        let text = std::fs::read_to_string(&vol_data).unwrap();
        std::fs::write(&vol_data, text.replace(DRIVER, "csi.example.org")).unwrap();
        let their_target = node.kubelet.target_path(&theirs);
        std::fs::create_dir(&their_target).unwrap();
        std::fs::write(their_target.join("spire-agent.sock"), "x").unwrap();
        node.start().await;
        let orphan = node.volume("shop", "database", "db-1");
        node.publish(&orphan).await;
        std::fs::remove_file(node.kubelet.volume_directory(&orphan).join("vol_data.json")).unwrap();

        // At the start of the next agent, and for whoever asks.
        node.agent.take().unwrap().crash().unwrap();
        node.start_agent();
        node.ready().await;
        let log = node.agent_log();
        let told = |what: &str, volume: &PodVolume| {
            log.lines().any(|line| line.contains(what) && line.contains(&volume.pod_uid))
        };
        assert!(told("another driver's mount", &stacked), "{log}");
        assert!(told("the volume's pod is gone", &orphan), "{log}");
        assert!(!log.contains(&theirs.pod_uid), "another driver's volume is none of our business: {log}");
        let (_, metrics) = node.get("/metrics").await.unwrap();
        for line in ["seamount_leftovers{what=\"orphan\"} 1", "seamount_leftovers{what=\"stacked\"} 1"] {
            assert!(metrics.contains(line), "{line}: {metrics}");
        }
        assert!(target.join("upper").exists() && their_target.join("spire-agent.sock").exists());

        // Removed when the kubelet unpublishes, and only what the rule allows.
        node.kubelet.tear_down(&stacked).await.unwrap();
        assert!(!target.exists());
        let refused = node.kubelet.unpublish(&theirs).await;
        assert!(refused.is_err() && their_target.join("spire-agent.sock").exists(), "{refused:?}");
        node.kubelet.unpublish(&orphan).await.unwrap();
        assert!(!node.kubelet.target_path(&orphan).exists());
    });
}
