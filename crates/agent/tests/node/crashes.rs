//! Crashes of one, of the other, and of both: no identity is lost and no directory changes.

use seamount_testkit::kubelet::PodVolume;

use super::harness::*;

struct Before {
    volume: PodVolume,
    view: std::path::PathBuf,
    leaf: Vec<u8>,
    directory: u64,
    socket: u64,
}

async fn published(node: &mut Node) -> Before {
    node.start().await;
    let volume = node.volume("shop", "frontend", "web-1");
    node.publish(&volume).await;
    let view = node.view(&volume);
    let leaf = leaf(&fetch(&view).await);
    let directory = inode(&node.kubelet.target_path(&volume));
    let socket = inode(&view.join("spire-agent.sock"));
    Before { volume, view, leaf, directory, socket }
}

/// The same, where not both processes died: on the same socket, for nobody may take it from under a client.
async fn all_is_well_on_the_same_socket(node: &mut Node, before: &Before) {
    node.ready().await;
    assert_eq!(inode(&before.view.join("spire-agent.sock")), before.socket, "another socket");
    all_is_well(node, before).await;
}

/// The running pod sees the same identity in the same directory, and everything works as before.
async fn all_is_well(node: &mut Node, before: &Before) {
    node.ready().await;
    assert_eq!(leaf(&fetch(&before.view).await), before.leaf, "another certificate");
    assert_eq!(inode(&node.kubelet.target_path(&before.volume)), before.directory, "another directory");
    node.kubelet.publish(&before.volume, Some(&node.tokens(&before.volume))).await.unwrap();
    assert_eq!(leaf(&fetch(&before.view).await), before.leaf, "the republish disturbed");
    assert!(!node.kubelet.stats(&before.volume).await.unwrap().volume_condition.unwrap().abnormal);
    let another = node.volume("shop", "database", "db-1");
    node.publish(&another).await;
    let view = node.view(&another);
    fetch(&view).await;
    node.kubelet.tear_down(&another).await.unwrap();
    node.kubelet.tear_down(&before.volume).await.unwrap();
    assert!(tokio::net::UnixStream::connect(before.view.join("spire-agent.sock")).await.is_err());
}

#[test]
fn a_killed_agent_comes_back_with_everything() {
    on_node("a_killed_agent_comes_back_with_everything", async |node| {
        let before = published(node).await;
        node.agent.take().unwrap().crash().unwrap();
        node.start_agent();
        all_is_well_on_the_same_socket(node, &before).await;
    });
}

#[test]
fn a_killed_mounter_gets_its_descriptors_back() {
    on_node("a_killed_mounter_gets_its_descriptors_back", async |node| {
        let before = published(node).await;
        node.mounter.take().unwrap().crash().unwrap();
        // The pod notices nothing meanwhile.
        assert_eq!(leaf(&fetch(&before.view).await), before.leaf);
        node.until("the complaint", async || {
            node.get("/readyz").await.is_some_and(|(code, text)| code == 503 && text.contains("mounter"))
        })
        .await;
        let condition = node.kubelet.stats(&before.volume).await.unwrap();
        assert_eq!(condition.usage.len(), 2, "usage is always there");
        assert!(condition.volume_condition.unwrap().message.contains("MounterUnreachable"));
        node.start_mounter();
        node.ready().await;
        // Now the agent crashes: the new mounter must have what the old one kept.
        node.agent.take().unwrap().crash().unwrap();
        let early = {
            let view = before.view.clone();
            tokio::spawn(async move { fetch(&view).await })
        };
        node.start_agent();
        assert_eq!(leaf(&early.await.unwrap()), before.leaf, "the waiting connection was lost");
        all_is_well_on_the_same_socket(node, &before).await;
    });
}

#[test]
fn both_killed_the_records_bring_everything_back() {
    on_node("both_killed_the_records_bring_everything_back", async |node| {
        let before = published(node).await;
        node.agent.take().unwrap().crash().unwrap();
        node.mounter.take().unwrap().crash().unwrap();
        node.start_agent();
        node.start_mounter();
        // A registration socket made anew is registered anew.
        node.kubelet.register(LONG).await.unwrap();
        all_is_well(node, &before).await;
    });
}

#[test]
fn a_socket_that_was_mounted_by_subpath_and_died_is_told_with_its_remedy() {
    on_node("a_socket_that_was_mounted_by_subpath_and_died_is_told_with_its_remedy", async |node| {
        let before = published(node).await;
        let held = node.kubelet.mount_subpath(&before.volume, "app", "spire-agent.sock").unwrap();
        // One of the two dies: the container's socket lives.
        node.agent.take().unwrap().crash().unwrap();
        node.start_agent();
        node.ready().await;
        assert!(!node.kubelet.stats(&before.volume).await.unwrap().volume_condition.unwrap().abnormal);
        node.agent.take().unwrap().crash().unwrap();
        node.mounter.take().unwrap().crash().unwrap();
        node.start_agent();
        node.start_mounter();
        node.register().await;
        assert!(tokio::net::UnixStream::connect(&held).await.is_err(), "it is not dead");
        let condition = node.kubelet.stats(&before.volume).await.unwrap().volume_condition.unwrap();
        assert!(condition.abnormal, "{condition:?}");
        for part in ["SubPathDead", "the container app", "restart the pod", "mount the directory"] {
            assert!(condition.message.contains(part), "{part}: {condition:?}");
        }
        let health = node.kubelet.health(&before.volume).await.unwrap();
        assert_eq!(health.health_statuses[0].reason, "SubPathDead");
        // The volume itself is as it was.
        assert_eq!(leaf(&fetch(&before.view).await), before.leaf, "another certificate");
        rustix::mount::unmount(&held, rustix::mount::UnmountFlags::DETACH).unwrap();
        assert!(!node.kubelet.stats(&before.volume).await.unwrap().volume_condition.unwrap().abnormal);
    });
}

#[test]
fn a_volume_deleted_while_everything_was_down_is_forgotten() {
    on_node("a_volume_deleted_while_everything_was_down_is_forgotten", async |node| {
        let before = published(node).await;
        node.agent.take().unwrap().crash().unwrap();
        node.mounter.take().unwrap().crash().unwrap();
        let record = node
            .kubelet
            .root()
            .join("plugins/seamount.dev/state")
            .join(format!("{}.{}", before.volume.pod_uid, before.volume.volume_name));
        assert!(record.exists());
        std::fs::remove_dir_all(node.kubelet.root().join("pods").join(&before.volume.pod_uid)).unwrap();
        node.start_mounter();
        node.start_agent();
        node.agent().wait_for_log(LONG, "volumes restored").unwrap();
        assert!(!record.exists(), "key and token of a deleted pod are still there");
    });
}

#[test]
fn a_volume_without_record_waits_for_the_republish() {
    on_node("a_volume_without_record_waits_for_the_republish", async |node| {
        let before = published(node).await;
        node.agent.take().unwrap().crash().unwrap();
        let state = node.kubelet.root().join("plugins/seamount.dev/state");
        std::fs::remove_file(state.join(format!("{}.{}", before.volume.pod_uid, before.volume.volume_name)))
            .unwrap();
        node.start_agent();
        node.agent().wait_for_log(LONG, "volumes restored").unwrap();
        let condition = node.kubelet.stats(&before.volume).await.unwrap().volume_condition.unwrap();
        assert!(condition.abnormal && condition.message.contains("IdentityUnknown"), "{condition:?}");
        let waiting = {
            let view = before.view.clone();
            tokio::spawn(async move { try_fetch(&view).await })
        };
        node.kubelet.publish(&before.volume, Some(&node.tokens(&before.volume))).await.unwrap();
        match waiting.await.unwrap() {
            Ok(svid) => assert_eq!(svid.spiffe_id().to_string(), "spiffe://example.org/ns/shop/sa/frontend"),
            Err(e) => panic!("the stream was not held: {e}"),
        }
        assert_eq!(inode(&node.kubelet.target_path(&before.volume)), before.directory);
    });
}

#[test]
fn a_registration_that_nobody_heard_is_known_by_the_next_call() {
    on_node("a_registration_that_nobody_heard_is_known_by_the_next_call", async |node| {
        let before = published(node).await;
        // As if the agent had been killed before it heard of its registration, which the kubelet does not
        // repeat.
        node.agent.take().unwrap().crash().unwrap();
        std::fs::remove_file(node.kubelet.root().join("plugins/seamount.dev/state/node")).unwrap();
        node.start_agent();
        node.agent().wait_for_log(LONG, "volumes restored").unwrap();
        assert!(
            node.get("/readyz")
                .await
                .is_some_and(|(code, text)| code == 503 && text.contains("[-] registration"))
        );
        node.kubelet.stats(&before.volume).await.unwrap();
        node.ready().await;
        // And it is recorded.
        node.agent.take().unwrap().crash().unwrap();
        node.start_agent();
        node.ready().await;
    });
}

#[test]
fn an_expired_identity_is_taken_back() {
    on_node("an_expired_identity_is_taken_back", async |node| {
        node.configure(&node.yaml_with("12s", &node.path("root")));
        let before = published(node).await;
        // The agent comes back and its authority does not: what is recorded is served until it expires.
        node.agent.take().unwrap().crash().unwrap();
        node.configure(&node.yaml_with("12s", &node.path("away")));
        node.start_agent();
        let recorded = fetch(&before.view).await;
        assert_eq!(recorded.spiffe_id().to_string(), "spiffe://example.org/ns/shop/sa/frontend");
        node.until("the end of the identity", async || {
            try_fetch(&before.view)
                .await
                .is_err_and(|e| e.contains("Unavailable") || e.contains("unavailable"))
        })
        .await;
        // Said in metrics and health as well.
        let told =
            async |path: &str, text: &str| node.get(path).await.is_some_and(|(_, all)| all.contains(text));
        node.until("the metrics", async || {
            told("/metrics", "seamount_svids_expired 1").await
                && told("/metrics", "seamount_authority_up 0").await
        })
        .await;
        assert!(told("/readyz", "[-] authority").await, "{:?}", node.get("/readyz").await);
        node.until("an abnormal volume", async || {
            let condition = node.kubelet.stats(&before.volume).await.unwrap().volume_condition.unwrap();
            condition.abnormal && condition.message.contains("IdentityExpired")
        })
        .await;
        // The authority is back: so is the identity, and the volume.
        std::fs::rename(node.path("root"), node.path("away")).unwrap();
        node.until("a new identity", async || try_fetch(&before.view).await.is_ok()).await;
        assert_eq!(inode(&node.kubelet.target_path(&before.volume)), before.directory);
    });
}

#[test]
fn a_mounter_of_another_version_is_named_and_pods_go_on() {
    use rustix::net::{
        AddressFamily, SocketAddrUnix, SocketFlags, SocketType, accept, bind, listen, recv, send, socket_with,
    };
    use seamount_mounter_protocol::{FRAME, Reply, Request, VERSION};

    on_node("a_mounter_of_another_version_is_named_and_pods_go_on", async |node| {
        let before = published(node).await;
        node.mounter.take().unwrap().crash().unwrap();
        let path = node.path("run/mounter.sock");
        std::fs::remove_file(&path).unwrap();
        let fd = socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).unwrap();
        bind(&fd, &SocketAddrUnix::new(&path).unwrap()).unwrap();
        open(&path, 0o666);
        listen(&fd, 4).unwrap();
        // It answers every attempt, until the test has seen what it wants to see.
        let seen = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
        let stop = std::sync::Arc::clone(&seen);
        let played = std::thread::spawn(move || {
            while !stop.load(std::sync::atomic::Ordering::SeqCst) {
                let connection = accept(&fd).unwrap();
                let mut frame = [0; FRAME];
                recv(&connection, &mut frame, rustix::net::RecvFlags::empty()).unwrap();
                let (id, request) = Request::decode(&frame).unwrap();
                let mut reply = Reply::to(id, &request).encode();
                reply[4..6].copy_from_slice(&(VERSION + 1).to_le_bytes());
                send(&connection, &reply, rustix::net::SendFlags::empty()).unwrap();
            }
        });
        node.until("the remedy", async || {
            node.get("/readyz")
                .await
                .is_some_and(|(code, text)| code == 503 && text.contains("roll the DaemonSet"))
        })
        .await;
        seen.store(true, std::sync::atomic::Ordering::SeqCst);
        played.join().unwrap();
        assert_eq!(node.get("/livez").await.unwrap().0, 200);
        assert_eq!(leaf(&fetch(&before.view).await), before.leaf);
        std::fs::remove_file(&path).unwrap();
        node.start_mounter();
        all_is_well_on_the_same_socket(node, &before).await;
    });
}
