//! A mounter that stands still, and a node whose clients take all connections.

use rustix::process::Signal;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;
use tonic::Code;

use super::harness::*;

#[test]
fn an_unpublish_while_the_mounter_is_stopped_cuts_access_and_succeeds_later() {
    on_node("an_unpublish_while_the_mounter_is_stopped_cuts_access_and_succeeds_later", async |node| {
        node.start().await;
        let volume = node.volume("shop", "frontend", "web-1");
        node.publish(&volume).await;
        let view = node.view(&volume);
        fetch(&view).await;
        let mut open = UnixStream::connect(view.join("spire-agent.sock")).await.unwrap();
        // Accepted, which an answer shows: one that still waits in the listener's queue hangs on the mounter's copy of it.
        open.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").await.unwrap();
        open.read_exact(&mut [0; 9]).await.unwrap();
        node.mounter.as_mut().unwrap().signal(Signal::STOP).unwrap();
        // The kubelet is told to come again, the pod has nothing any more.
        let status = node.kubelet.unpublish(&volume).await.unwrap_err();
        assert_eq!(status.code(), Code::Unavailable, "{status:?}");
        let mut rest = Vec::new();
        let end = tokio::time::timeout(LONG, open.read_to_end(&mut rest)).await.expect("still open");
        drop(end);
        let state = node.kubelet.root().join("plugins").join(DRIVER).join("state");
        let record = state.join(format!("{}.{}", volume.pod_uid, volume.volume_name));
        assert!(!record.exists(), "key and token are still there");
        // What comes late is for nobody: neither the answer to the first attempt, nor those to more of them.
        let again = async || node.kubelet.unpublish(&volume).await;
        assert_eq!(again().await.unwrap_err().code(), Code::Unavailable);
        node.mounter.as_mut().unwrap().signal(Signal::CONT).unwrap();
        node.until("the unpublish", async || node.kubelet.unpublish(&volume).await.is_ok()).await;
        node.kubelet.remove(&volume).unwrap();
        assert!(UnixStream::connect(view.join("spire-agent.sock")).await.is_err());
        // The same pod name again, and another one: each with its own identity.
        for (account, pod) in [("admin", "web-2"), ("frontend", "web-1")] {
            let next = node.volume("shop", account, pod);
            node.publish(&next).await;
            let view = node.view(&next);
            let id = fetch(&view).await.spiffe_id().to_string();
            assert_eq!(id, format!("spiffe://example.org/ns/shop/sa/{account}"));
            node.kubelet.tear_down(&next).await.unwrap();
        }
        node.ready().await;
    });
}

#[test]
fn clients_of_all_volumes_together_leave_room_for_a_publish() {
    on_node("clients_of_all_volumes_together_leave_room_for_a_publish", async |node| {
        node.configure(&format!("{}workloadApi: {{connectionsPerNode: 6}}\n", node.yaml()));
        node.start().await;
        let volumes = [node.volume("shop", "frontend", "web-1"), node.volume("shop", "database", "db-1")];
        let mut open = Vec::new();
        for volume in &volumes {
            node.publish(volume).await;
            let socket = node.view(volume).join("spire-agent.sock");
            for _ in 0..3 {
                open.push(UnixStream::connect(&socket).await.unwrap());
            }
        }
        let metric = async |text: &str| node.get("/metrics").await.unwrap().1.contains(text);
        node.until("all connections", async || metric("seamount_workload_api_connections 6").await).await;
        assert!(metric("seamount_workload_api_connection_limit 6").await);
        // Pods are published all the same; their clients wait for a connection.
        let late = node.volume("shop", "late", "late-1");
        node.publish(&late).await;
        let view = node.view(&late);
        let mut refused = UnixStream::connect(view.join("spire-agent.sock")).await.unwrap();
        let read = tokio::time::timeout(LONG, refused.read(&mut [0])).await.expect("not closed");
        assert!(matches!(read, Ok(0) | Err(_)), "{read:?}");
        let reason = "seamount_workload_api_refused_total{reason=\"node connections\"}";
        assert!(metric(reason).await, "{:?}", node.get("/metrics").await);
        drop(open);
        node.until("a connection", async || try_fetch(&view).await.is_ok()).await;
    });
}
