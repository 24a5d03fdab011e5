//! A pod's identity: whose it is, that it is renewed, and who may reach it.

use std::time::Duration;

use futures_util::StreamExt as _;
use spiffe::WorkloadApiClient;

use super::harness::*;

#[test]
fn two_pods_of_two_service_accounts_have_two_identities() {
    on_node("two_pods_of_two_service_accounts_have_two_identities", async |node| {
        node.start().await;
        let (web, db) = (node.volume("shop", "frontend", "web-1"), node.volume("shop", "database", "db-1"));
        node.publish(&web).await;
        node.publish(&db).await;
        let (web_view, db_view) = (node.view(&web), node.view(&db));
        let (web_svid, db_svid) = (fetch(&web_view).await, fetch(&db_view).await);
        assert_eq!(web_svid.spiffe_id().to_string(), "spiffe://example.org/ns/shop/sa/frontend");
        assert_eq!(db_svid.spiffe_id().to_string(), "spiffe://example.org/ns/shop/sa/database");
        assert_ne!(
            web_svid.private_key().as_bytes(),
            db_svid.private_key().as_bytes(),
            "a key for each volume"
        );

        // The bundle that comes along is the one that verifies both.
        let client = WorkloadApiClient::connect_to(endpoint(&web_view)).await.unwrap();
        let bundles = client.fetch_x509_bundles().await.unwrap();
        let root = std::fs::read_to_string(node.path("root/tls.crt")).unwrap();
        let bundle = bundles.get(&"example.org".try_into().unwrap()).unwrap();
        assert_eq!(bundle.authorities().len(), 1);
        assert!(root.starts_with("-----BEGIN CERTIFICATE-----"));

        // Neither token nor key is in the log.
        let log = node.agent_log();
        assert!(log.contains("web-1") && log.contains("shop"), "pod and namespace on the lines: {log}");
        assert!(!log.contains("eyJ"), "a token is in the log");
        assert!(!log.contains("PRIVATE"), "a key is in the log");
    });
}

#[test]
fn any_user_in_the_pod_gets_the_identity() {
    on_node("any_user_in_the_pod_gets_the_identity", async |node| {
        node.start().await;
        let volume = node.volume("shop", "frontend", "web-1");
        node.publish(&volume).await;
        let view = node.view(&volume);
        let id = std::thread::spawn(move || {
            use rustix::process::{Gid, Uid};
            // Of this thread alone.
            let (uid, gid) = (Uid::from_raw(10_001), Gid::from_raw(10_001));
            rustix::thread::set_thread_groups(&[]).unwrap();
            rustix::thread::set_thread_res_gid(gid, gid, gid).unwrap();
            rustix::thread::set_thread_res_uid(uid, uid, uid).unwrap();
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            assert!(std::fs::write(view.join("x"), "x").is_err(), "the volume is read-only");
            runtime.block_on(fetch(&view)).spiffe_id().to_string()
        })
        .join()
        .unwrap();
        assert_eq!(id, "spiffe://example.org/ns/shop/sa/frontend");
    });
}

#[test]
fn the_symlinks_lead_to_the_socket() {
    on_node("the_symlinks_lead_to_the_socket", async |node| {
        node.start().await;
        let volume = node.volume("shop", "frontend", "web-1");
        node.publish(&volume).await;
        let view = node.view(&volume);
        for name in ["spire-agent.sock", "agent.sock", "socket"] {
            let url = format!("unix://{}", view.join(name).display());
            let client = WorkloadApiClient::connect_to(url).await.unwrap();
            let svid = client.fetch_x509_svid().await.unwrap();
            assert_eq!(svid.spiffe_id().to_string(), "spiffe://example.org/ns/shop/sa/frontend", "{name}");
        }
    });
}

#[test]
fn a_rotation_is_pushed_to_an_open_stream() {
    on_node("a_rotation_is_pushed_to_an_open_stream", async |node| {
        node.configure(&node.yaml_with("10s", &node.path("root")));
        node.start().await;
        let volume = node.volume("shop", "frontend", "web-1");
        node.publish(&volume).await;
        let view = node.view(&volume);
        let client = WorkloadApiClient::connect_to(endpoint(&view)).await.unwrap();
        let mut stream = client.stream_x509_svids().await.unwrap();
        let mut seen: Vec<Vec<u8>> = Vec::new();
        while seen.len() < 3 {
            let svid =
                tokio::time::timeout(LONG, stream.next()).await.expect("no rotation came").unwrap().unwrap();
            assert_eq!(svid.spiffe_id().to_string(), "spiffe://example.org/ns/shop/sa/frontend");
            let leaf = leaf(&svid);
            assert!(!seen.contains(&leaf), "each message is a new SVID");
            seen.push(leaf);
        }
    });
}

#[test]
fn a_republish_refreshes_the_token_and_disturbs_nothing() {
    on_node("a_republish_refreshes_the_token_and_disturbs_nothing", async |node| {
        node.start().await;
        let volume = node.volume("shop", "frontend", "web-1");
        node.publish(&volume).await;
        let view = node.view(&volume);
        let before = fetch(&view).await;
        let client = WorkloadApiClient::connect_to(endpoint(&view)).await.unwrap();
        let mut stream = client.stream_x509_svids().await.unwrap();
        assert_eq!(leaf(&stream.next().await.unwrap().unwrap()), leaf(&before));
        let target = node.kubelet.target_path(&volume);
        let socket = target.join("spire-agent.sock");
        let (directory, bound) = (inode(&target), inode(&socket));
        let state = node.kubelet.root().join("plugins/seamount.dev/state");
        let record = state.join(format!("{}.{}", volume.pod_uid, volume.volume_name));
        let first_record = std::fs::read(&record).unwrap();

        // The same token changes nothing, not even the record.
        let claims = node.claims(&volume);
        let tokens = node.issuer.tokens_json(&claims);
        node.kubelet.publish(&volume, Some(&tokens)).await.unwrap();
        let second_record = std::fs::read(&record).unwrap();
        let written = inode(&record);
        node.kubelet.publish(&volume, Some(&tokens)).await.unwrap();
        assert_eq!(inode(&record), written, "the same token wrote the record again");

        // Another one is kept.
        let newer = seamount_testkit::issuer::Claims { lifetime: Duration::from_secs(7200), ..claims };
        node.kubelet.publish(&volume, Some(&node.issuer.tokens_json(&newer))).await.unwrap();
        let third_record = std::fs::read(&record).unwrap();
        assert_ne!(third_record, second_record);
        assert_ne!(third_record, first_record);

        assert_eq!((inode(&target), inode(&socket)), (directory, bound));
        assert_eq!(leaf(&fetch(&view).await), leaf(&before));
        let quiet = tokio::time::timeout(Duration::from_millis(300), stream.next()).await;
        assert!(quiet.is_err(), "the open stream was disturbed: {quiet:?}");
    });
}

#[test]
fn a_new_root_gives_new_identities() {
    on_node("a_new_root_gives_new_identities", async |node| {
        node.start().await;
        let volume = node.volume("shop", "frontend", "web-1");
        node.publish(&volume).await;
        let view = node.view(&volume);
        let before = leaf(&fetch(&view).await);
        node.write_root();
        node.until("an SVID under the new root", async || leaf(&fetch(&view).await) != before).await;
    });
}
