//! Who may speak to the agent, and how much.

use std::os::unix::fs::PermissionsExt as _;
use std::time::Duration;

use seamount_testkit::processes;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;

use super::harness::*;

#[test]
fn another_uid_is_refused_on_the_kubelets_sockets() {
    on_node("another_uid_is_refused_on_the_kubelets_sockets", async |node| {
        node.start().await;
        let root = node.kubelet.root().to_owned();
        let sockets = [
            root.join("plugins").join(DRIVER).join("csi.sock"),
            root.join("plugins_registry").join(format!("{DRIVER}-reg.sock")),
        ];
        for socket in &sockets {
            let mode = std::fs::metadata(socket).unwrap().permissions().mode() & 0o777;
            assert_eq!(mode, 0o600, "{}", socket.display());
            // Somebody got at it in spite of its mode.
            open(socket, 0o666);
        }
        for directory in
            [&root, &root.join("plugins"), &root.join("plugins").join(DRIVER), &root.join("plugins_registry")]
        {
            open(directory, 0o755);
        }
        let tried = sockets.clone();
        std::thread::spawn(move || {
            use rustix::process::{Gid, Uid};
            let (uid, gid) = (Uid::from_raw(10_001), Gid::from_raw(10_001));
            rustix::thread::set_thread_res_gid(gid, gid, gid).unwrap();
            rustix::thread::set_thread_res_uid(uid, uid, uid).unwrap();
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                for socket in tried {
                    let mut stream = UnixStream::connect(&socket).await.unwrap();
                    let _ = stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await;
                    let mut answer = Vec::new();
                    let read = tokio::time::timeout(LONG, stream.read_to_end(&mut answer))
                        .await
                        .expect("not closed");
                    drop(read);
                    assert!(answer.is_empty(), "{} answered", socket.display());
                }
            });
        })
        .join()
        .unwrap();
        // Root is served as before.
        node.kubelet.register(LONG).await.unwrap();
    });
}

#[test]
fn a_second_agent_waits() {
    on_node("a_second_agent_waits", async |node| {
        node.start().await;
        let volume = node.volume("shop", "frontend", "web-1");
        node.publish(&volume).await;
        let view = node.view(&volume);
        let before = leaf(&fetch(&view).await);
        let logs = node.path("logs2");
        std::fs::create_dir(&logs).unwrap();
        let other = node.path("etc/other.yaml");
        let yaml = node.yaml().replace(&node.http, "");
        std::fs::write(&other, yaml).unwrap();
        let other = other.display().to_string();
        let mut second = processes::agent(&logs, ["--config", &other], Some((UID, UID))).unwrap();
        second.wait_for_log(LONG, "no connection to the mounter").unwrap();
        // The first one goes on.
        assert_eq!(leaf(&fetch(&view).await), before);
        node.kubelet.publish(&volume, Some(&node.tokens(&volume))).await.unwrap();
        // And when it goes, the second one takes over.
        node.agent.take().unwrap().stop(LONG).unwrap();
        second.wait_for_log(LONG, "volumes restored").unwrap();
        assert_eq!(leaf(&fetch(&view).await), before);
        node.agent = Some(second);
    });
}

#[test]
fn a_flood_hurts_only_its_own_volume() {
    on_node("a_flood_hurts_only_its_own_volume", async |node| {
        node.start().await;
        let (victim, neighbour) =
            (node.volume("shop", "frontend", "web-1"), node.volume("shop", "database", "db-1"));
        node.publish(&victim).await;
        node.publish(&neighbour).await;
        let (flooded, quiet) = (node.view(&victim), node.view(&neighbour));
        // More connections than a pod may have; they never read, and some send garbage.
        let mut open = Vec::new();
        for i in 0..200 {
            let connect = UnixStream::connect(flooded.join("spire-agent.sock"));
            if let Ok(Ok(mut stream)) = tokio::time::timeout(Duration::from_secs(1), connect).await {
                let garbage: &[u8] =
                    if i % 2 == 0 { &[0xff; 4096] } else { b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" };
                let _ = tokio::time::timeout(Duration::from_secs(1), stream.write_all(garbage)).await;
                open.push(stream);
            }
        }
        assert!(open.len() > 128);
        fetch(&quiet).await;
        node.kubelet.publish(&neighbour, Some(&node.tokens(&neighbour))).await.unwrap();
        let pid = node.agent().pid();
        let descriptors = std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count();
        assert!(descriptors < 128 + 64, "the pod holds {descriptors} descriptors");
        // The flood ends with the volume, at once.
        node.kubelet.tear_down(&victim).await.unwrap();
        drop(open);
        fetch(&quiet).await;
    });
}

/// As fast as the machine lets it, on its own socket, by several threads. The agent has one worker.
#[test]
fn a_pod_that_connects_without_end_keeps_nobody_from_coming_and_going() {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

    on_node("a_pod_that_connects_without_end_keeps_nobody_from_coming_and_going", async |node| {
        node.start().await;
        let [hostile, other] =
            [node.volume("evil", "any", "flood-1"), node.volume("shop", "frontend", "web-1")];
        for volume in [&hostile, &other] {
            node.publish(volume).await;
        }
        let socket = node.view(&hostile).join("spire-agent.sock");
        let (stop, made) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let threads: Vec<_> = (0..3)
            .map(|_| {
                let (socket, stop, made) = (socket.clone(), Arc::clone(&stop), Arc::clone(&made));
                std::thread::spawn(move || {
                    while !stop.load(Ordering::Relaxed) {
                        if std::os::unix::net::UnixStream::connect(&socket).is_ok() {
                            made.fetch_add(1, Ordering::Relaxed);
                        }
                    }
                })
            })
            .collect();
        node.until("a flood", async || made.load(Ordering::Relaxed) > 1000).await;
        node.kubelet.tear_down(&other).await.unwrap();
        let next = node.volume("shop", "database", "db-1");
        node.publish(&next).await;
        fetch(&node.view(&next)).await;
        assert_eq!(node.get("/livez").await.unwrap().0, 200);
        assert!(node.kubelet.stats(&hostile).await.is_ok());
        stop.store(true, Ordering::Relaxed);
        threads.into_iter().for_each(|thread| thread.join().unwrap());
        // Its own identity it has as before.
        node.until("its identity", async || try_fetch(socket.parent().unwrap()).await.is_ok()).await;
    });
}
