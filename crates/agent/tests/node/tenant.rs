//! What one pod can take from the node, with all of its volumes together.

use std::time::Duration;

use seamount_testkit::kubelet::PodVolume;
use tokio::io::AsyncReadExt as _;
use tokio::net::UnixStream;
use tonic::Code;

use super::harness::*;

fn volumes(node: &Node, pod: &str, count: usize) -> Vec<PodVolume> {
    let first = node.volume("evil", "any", pod);
    let volume = |number| PodVolume::new("evil", "any", pod, &first.pod_uid, &format!("id-{number}"));
    (0..count).map(volume).collect()
}

async fn metric(node: &Node, name: &str) -> u64 {
    let (_, text) = node.get("/metrics").await.unwrap();
    let value = text.lines().find_map(|line| line.strip_prefix(name)?.trim().parse().ok());
    value.unwrap_or_default()
}

#[test]
fn a_pod_has_so_many_volumes() {
    on_node("a_pod_has_so_many_volumes", async |node| {
        node.configure(&format!("{}workloadApi: {{volumesPerPod: 3}}\n", node.yaml()));
        node.start().await;
        let all = volumes(node, "many-1", 4);
        for volume in &all[..3] {
            node.publish(volume).await;
        }
        node.kubelet.prepare(&all[3]).unwrap();
        let status = node.kubelet.publish(&all[3], Some(&node.tokens(&all[3]))).await.unwrap_err();
        assert_eq!(status.code(), Code::ResourceExhausted, "{}", status.message());
        for part in [&*all[3].pod_uid, "3 are published", "workloadApi.volumesPerPod"] {
            assert!(status.message().contains(part), "{part}: {}", status.message());
        }
        let refused = "seamount_csi_refused_requests_total{operation=\"publish\",kind=\"limit\"}";
        assert_eq!(metric(node, refused).await, 1);
        assert_eq!(metric(node, "seamount_publish_duration_seconds_count{result=\"error\"}").await, 0);
        // Another pod, and those that are there.
        let other = node.volume("shop", "frontend", "web-1");
        node.publish(&other).await;
        node.kubelet.publish(&all[0], Some(&node.tokens(&all[0]))).await.unwrap();
        // An agent that comes back has counted them.
        node.agent.take().unwrap().crash().unwrap();
        node.start_agent();
        node.ready().await;
        node.kubelet.publish(&all[3], Some(&node.tokens(&all[3]))).await.unwrap_err();
        // What was refused is taken away like anything else, and makes no room; another one's end does.
        node.kubelet.tear_down(&all[3]).await.unwrap();
        node.kubelet.tear_down(&all[0]).await.unwrap();
        node.publish(&all[3]).await;
        fetch(&node.view(&all[3])).await;
    });
}

#[test]
fn volumes_of_one_pod_share_its_connections() {
    on_node("volumes_of_one_pod_share_its_connections", async |node| {
        node.configure(&format!("{}workloadApi: {{connectionsPerPod: 8}}\n", node.yaml()));
        node.start().await;
        let other = node.volume("shop", "frontend", "web-1");
        node.publish(&other).await;
        let mut open = Vec::new();
        for volume in volumes(node, "greedy-1", 5) {
            node.publish(&volume).await;
            let socket = node.view(&volume).join("spire-agent.sock");
            for _ in 0..8 {
                open.push(UnixStream::connect(&socket).await.unwrap());
            }
        }
        let refused = "seamount_workload_api_refused_total{reason=\"connections\"}";
        node.until("refusals", async || metric(node, refused).await == 32).await;
        assert_eq!(metric(node, "seamount_workload_api_connections").await, 8);
        fetch(&node.view(&other)).await;
    });
}

/// 16 MB are less than an agent takes: it is always above its limit, and each look finds the pod that uses
/// most.
#[test]
fn above_its_limit_the_agent_cuts_the_pod_that_uses_most() {
    on_node("above_its_limit_the_agent_cuts_the_pod_that_uses_most", async |node| {
        node.configure(&format!("{}memoryLimit: 16Mi\n", node.yaml()));
        node.start().await;
        assert_eq!(metric(node, "seamount_memory_limit_bytes").await, 16 << 20);
        node.until("a look", async || metric(node, "seamount_memory_bytes").await > 16 << 20).await;
        let other = node.volume("shop", "frontend", "web-1");
        node.publish(&other).await;
        let socket = node.view(&other).join("spire-agent.sock");
        let mut kept = UnixStream::connect(&socket).await.unwrap();
        let heavy = volumes(node, "heavy-1", 2);
        let mut open = Vec::new();
        for volume in &heavy {
            node.publish(volume).await;
            let socket = node.view(volume).join("spire-agent.sock");
            for _ in 0..20 {
                open.push(UnixStream::connect(&socket).await.unwrap());
            }
        }
        // The first one is among those that are cut, however many there were at that look.
        let end = tokio::time::timeout(LONG, open.swap_remove(0).read_to_end(&mut Vec::new())).await;
        end.expect("not cut").unwrap_or_default();
        node.agent().wait_for_log(LONG, "the connections of the pod that uses most were cut").unwrap();
        assert!(node.agent_log().contains(&heavy[0].pod_uid), "{}", node.agent_log());
        let shed = "seamount_workload_api_refused_total{reason=\"memory\"}";
        node.until("connections that were cut", async || metric(node, shed).await >= 16).await;
        // The other pod has noticed nothing, and everything goes on.
        let read = tokio::time::timeout(Duration::from_millis(100), kept.read(&mut [0; 64])).await;
        assert!(!matches!(read, Ok(Ok(0) | Err(_))), "{read:?}");
        fetch(&node.view(&other)).await;
        for volume in &heavy {
            node.kubelet.tear_down(volume).await.unwrap();
        }
    });
}
