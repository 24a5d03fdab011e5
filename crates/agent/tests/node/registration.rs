//! What the kubelet finds by name, where it is removed, and a kubelet that did not see or did not want the
//! driver.

use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use seamount_testkit::kubelet::Event;

use super::harness::*;

fn plugin(node: &Node) -> PathBuf {
    node.kubelet.root().join("plugins").join(DRIVER)
}

fn registry(node: &Node) -> PathBuf {
    node.kubelet.root().join("plugins_registry")
}

fn make_anew(directory: &Path) {
    std::fs::rename(directory, directory.with_extension("old")).unwrap();
    std::fs::create_dir(directory).unwrap();
}

/// What the metric says; its line of help begins alike.
fn registered(metrics: &str) -> bool {
    metrics.lines().any(|line| line == format!("seamount_kubelet_registered{{driver=\"{DRIVER}\"}} 1"))
}

/// Whether the agent says on all its ways that the kubelet does not have the driver.
async fn not_registered(node: &Node, why: &str) -> bool {
    let (ready, metrics) = (node.get("/readyz").await, node.get("/metrics").await);
    ready.is_some_and(|(code, text)| code == 503 && text.contains("[-] registration") && text.contains(why))
        && metrics.is_some_and(|(_, text)| !registered(&text))
}

/// Waits until the kubelet has the driver again, by what it sees in the directory alone.
async fn registered_by_events(node: &Node) {
    node.until("the registration", async || {
        let events = node.kubelet.poll_registrations().await.unwrap_or_default();
        events.iter().any(|event| matches!(event, Event::Registered(_)))
    })
    .await;
    node.ready().await;
    let (_, metrics) = node.get("/metrics").await.unwrap();
    assert!(registered(&metrics), "{metrics}");
}

/// A pod that comes and goes, its identity between.
async fn all_is_well(node: &mut Node, pod: &str) {
    let volume = node.volume("shop", "frontend", pod);
    node.publish(&volume).await;
    let view = node.view(&volume);
    fetch(&view).await;
    node.kubelet.tear_down(&volume).await.unwrap();
}

#[test]
fn a_socket_that_was_removed_is_there_again() {
    on_node("a_socket_that_was_removed_is_there_again", async |node| {
        node.start().await;
        let volume = node.volume("shop", "frontend", "web-1");
        node.publish(&volume).await;
        std::fs::remove_file(plugin(node).join("csi.sock")).unwrap();
        // The kubelet knows the path, and comes again.
        node.until("the CSI socket", async || node.kubelet.stats(&volume).await.is_ok()).await;
        node.ready().await;
        all_is_well(node, "csi").await;

        std::fs::remove_file(registry(node).join(format!("{DRIVER}-reg.sock"))).unwrap();
        let events = node.kubelet.poll_registrations().await.unwrap();
        assert_eq!(events, [Event::Deregistered { driver: DRIVER.to_owned() }]);
        node.until("the word for it", async || not_registered(node, "not registered").await).await;
        registered_by_events(node).await;
        all_is_well(node, "registration").await;
        // Said, and the way for the next agent is as it was.
        assert!(node.agent_log().contains("the registration socket was removed or replaced"));
        node.agent.take().unwrap().crash().unwrap();
        node.start_agent();
        node.ready().await;
    });
}

#[test]
fn directories_that_were_made_anew_are_served_and_hold_the_records() {
    on_node("directories_that_were_made_anew_are_served_and_hold_the_records", async |node| {
        node.start().await;
        let volume = node.volume("shop", "frontend", "web-1");
        node.publish(&volume).await;
        let view = node.view(&volume);
        let before = leaf(&fetch(&view).await);
        for directory in [plugin(node), registry(node)] {
            make_anew(&directory);
        }
        registered_by_events(node).await;
        all_is_well(node, "other").await;
        node.until("the record", async || node.record(&volume).exists()).await;
        // The new ones carry over a crash of both.
        node.agent.take().unwrap().crash().unwrap();
        node.mounter.take().unwrap().crash().unwrap();
        node.start_agent();
        node.start_mounter();
        registered_by_events(node).await;
        assert_eq!(leaf(&fetch(&view).await), before, "another certificate");
    });
}

#[test]
fn records_that_were_removed_are_written_again() {
    on_node("records_that_were_removed_are_written_again", async |node| {
        node.start().await;
        let volume = node.volume("shop", "frontend", "web-1");
        node.publish(&volume).await;
        let view = node.view(&volume);
        let before = leaf(&fetch(&view).await);
        // As `rm -rf` leaves it: all that can be removed, below the mount too.
        for directory in [node.state(), plugin(node)] {
            for entry in std::fs::read_dir(directory).unwrap() {
                let path = entry.unwrap().path();
                if !path.is_dir() {
                    std::fs::remove_file(path).unwrap();
                }
            }
        }
        node.until("the record", async || node.record(&volume).exists()).await;
        node.until("the CSI socket", async || node.kubelet.stats(&volume).await.is_ok()).await;
        // The state unmounted: records on a new one.
        rustix::mount::unmount(node.state(), rustix::mount::UnmountFlags::DETACH).unwrap();
        node.until("the record", async || node.record(&volume).exists()).await;
        node.agent.take().unwrap().crash().unwrap();
        node.start_agent();
        node.ready().await;
        assert_eq!(leaf(&fetch(&view).await), before, "another certificate");
    });
}

#[test]
fn a_kubelet_that_missed_the_socket_is_offered_it_again() {
    on_node("a_kubelet_that_missed_the_socket_is_offered_it_again", async |node| {
        node.start_mounter();
        node.start_agent();
        let socket = registry(node).join(format!("{DRIVER}-reg.sock"));
        node.until("the socket", async || socket.exists()).await;
        let before = inode(&socket);
        node.kubelet.miss_registrations().unwrap();
        assert_eq!(node.kubelet.poll_registrations().await.unwrap(), []);
        assert!(not_registered(node, "not registered").await);
        registered_by_events(node).await;
        // No other socket: a kubelet that was about to ask has not lost its connection.
        assert_eq!(inode(&socket), before);
        assert!(node.agent_log().contains("the registration is offered to the kubelet again"));
        all_is_well(node, "web-1").await;
    });
}

#[test]
fn a_kubelet_that_refuses_at_first_is_offered_it_again() {
    on_node("a_kubelet_that_refuses_at_first_is_offered_it_again", async |node| {
        node.start_mounter();
        node.start_agent();
        node.until("the refusal", async || {
            node.kubelet.refuse_registrations("not yet").await.unwrap_or_default() == 1
        })
        .await;
        node.until("the word for it", async || {
            not_registered(node, "refused the driver csi.spiffe.io: not yet").await
        })
        .await;
        registered_by_events(node).await;
    });
}

#[test]
fn a_name_that_another_process_took_is_left_to_it_and_told() {
    on_node("a_name_that_another_process_took_is_left_to_it_and_told", async |node| {
        node.start().await;
        let csi = plugin(node).join("csi.sock");
        let new = plugin(node).join("new.sock");
        let other = UnixListener::bind(&new).unwrap();
        std::fs::rename(&new, &csi).unwrap();
        let its = inode(&csi);
        node.until("the word for it", async || not_registered(node, "another process serves").await).await;
        assert_eq!(inode(&csi), its, "taken from the other process");
        // When it is gone, its name is free.
        drop(other);
        node.ready().await;
        all_is_well(node, "web-1").await;
    });
}
