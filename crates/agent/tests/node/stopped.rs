//! A mounter or an agent that stands still, and a node whose clients take all connections.

use std::pin::Pin;
use std::time::Duration;

use rustix::process::Signal;
use tokio::io::AsyncReadExt as _;
use tokio::net::UnixStream;
use tonic::{Code, Status};

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
        node.mounter.as_mut().unwrap().signal(Signal::STOP).unwrap();
        // The kubelet is told to come again, the pod has nothing any more.
        let status = node.kubelet.unpublish(&volume).await.unwrap_err();
        assert_eq!(status.code(), Code::Unavailable, "{status:?}");
        let mut rest = Vec::new();
        let end = tokio::time::timeout(LONG, open.read_to_end(&mut rest)).await.expect("still open");
        drop(end);
        // The mounter's copy of the listener lets nobody in either.
        assert!(UnixStream::connect(view.join("spire-agent.sock")).await.is_err());
        let state = node.kubelet.root().join("plugins/seamount.dev/state");
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

/// Answers that come late from an agent that stood still: to calls that the kubelet has given up, and to
/// clients that waited.
#[test]
fn a_stopped_agent_answers_late_and_to_everybody_with_their_own_identity() {
    on_node("a_stopped_agent_answers_late_and_to_everybody_with_their_own_identity", async |node| {
        node.start().await;
        let first = node.volume("shop", "frontend", "web-1");
        node.publish(&first).await;
        let view = node.view(&first);
        let (before, socket) = (leaf(&fetch(&view).await), inode(&view.join("spire-agent.sock")));
        let second = node.volume("shop", "admin", "web-2");
        let third = node.volume("shop", "gone", "web-3");
        node.kubelet.prepare(&second).unwrap();
        node.publish(&third).await;
        let third_view = node.view(&third);

        node.agent().signal(Signal::STOP).unwrap();
        let waiting = {
            let view = view.clone();
            tokio::spawn(async move { fetch(&view).await })
        };
        // The kubelet's patience, shortened: nobody can answer.
        let given_up = async |call: Pin<Box<dyn Future<Output = Result<(), Status>> + '_>>| {
            assert!(tokio::time::timeout(Duration::from_millis(300), call).await.is_err(), "answered");
        };
        let [old, new] = [node.tokens(&first), node.tokens(&second)];
        for _ in 0..2 {
            given_up(Box::pin(node.kubelet.publish(&second, Some(&new)))).await;
            given_up(Box::pin(node.kubelet.publish(&first, Some(&old)))).await;
            given_up(Box::pin(node.kubelet.unpublish(&third))).await;
        }
        node.agent().signal(Signal::CONT).unwrap();

        assert_eq!(leaf(&waiting.await.unwrap()), before, "another certificate");
        // The kubelet comes again with the same calls.
        node.kubelet.publish(&second, Some(&new)).await.unwrap();
        node.kubelet.publish(&first, Some(&old)).await.unwrap();
        node.kubelet.tear_down(&third).await.unwrap();
        assert!(UnixStream::connect(third_view.join("spire-agent.sock")).await.is_err());
        assert_eq!(leaf(&fetch(&view).await), before, "another certificate");
        assert_eq!(inode(&view.join("spire-agent.sock")), socket, "another socket");
        let id = fetch(&node.view(&second)).await.spiffe_id().to_string();
        assert_eq!(id, "spiffe://example.org/ns/shop/sa/admin");
        node.ready().await;
    });
}
