//! Registration, deletion, and the truth about a volume.

use std::time::Duration;

use futures_util::StreamExt as _;
use seamount_proto::csi;
use spiffe::WorkloadApiClient;
use tokio::io::AsyncReadExt as _;
use tonic::Code;

use super::harness::*;

#[test]
fn the_kubelet_registers_the_driver() {
    on_node("the_kubelet_registers_the_driver", async |node| {
        node.start().await;
        let info = node.kubelet.registrations().remove(0);
        assert_eq!(info.driver, DRIVER);
        assert_eq!(info.endpoint, node.kubelet.root().join("plugins").join(DRIVER).join("csi.sock"));
        assert_eq!(info.node.node_id, "node-1");
        assert_eq!(info.versions, ["1.0.0"]);
        use csi::node_service_capability::rpc::Type;
        for wanted in [Type::GetVolumeStats, Type::VolumeCondition, Type::GetVolumeHealth] {
            assert!(info.capabilities.contains(&wanted.into()), "{wanted:?}");
        }
        let mut identity = node.kubelet.identity_client().await.unwrap();
        let plugin = identity.get_plugin_info(csi::GetPluginInfoRequest {}).await.unwrap().into_inner();
        assert_eq!(plugin.name, DRIVER);
        assert!(!plugin.vendor_version.is_empty());
        let probe = identity.probe(csi::ProbeRequest {}).await.unwrap().into_inner();
        assert_eq!(probe.ready, Some(true));
        let (code, text) = node.get("/metrics").await.unwrap();
        assert_eq!(code, 200);
        // A whole line: the line of help begins alike.
        assert!(
            text.lines().any(|line| line == format!("seamount_kubelet_registered{{driver=\"{DRIVER}\"}} 1")),
            "{text}"
        );
        // Wrong path, unknown volume.
        let unknown = node.volume("shop", "frontend", "nobody");
        assert_eq!(node.kubelet.stats(&unknown).await.unwrap_err().code(), Code::NotFound);
        assert_eq!(node.kubelet.health(&unknown).await.unwrap_err().code(), Code::NotFound);
    });
}

#[test]
fn unpublish_cuts_every_connection_and_leaves_nothing() {
    on_node("unpublish_cuts_every_connection_and_leaves_nothing", async |node| {
        node.start().await;
        let volume = node.volume("shop", "frontend", "web-1");
        let other = node.volume("shop", "database", "db-1");
        node.publish(&volume).await;
        node.publish(&other).await;
        let (view, other_view) = (node.view(&volume), node.view(&other));
        let client = WorkloadApiClient::connect_to(endpoint(&view)).await.unwrap();
        let mut stream = client.stream_x509_svids().await.unwrap();
        stream.next().await.unwrap().unwrap();
        let client = WorkloadApiClient::connect_to(endpoint(&other_view)).await.unwrap();
        let mut other_stream = client.stream_x509_svids().await.unwrap();
        other_stream.next().await.unwrap().unwrap();
        // One that never speaks, and one that has not been accepted for long.
        let mut silent = tokio::net::UnixStream::connect(view.join("spire-agent.sock")).await.unwrap();
        let record = node
            .kubelet
            .root()
            .join("plugins/seamount.dev/state")
            .join(format!("{}.{}", volume.pod_uid, volume.volume_name));
        assert!(record.exists());

        node.kubelet.unpublish(&volume).await.unwrap();

        // At once: no waiting for anything after the answer.
        assert!(!record.exists(), "the record is still there");
        assert!(!node.kubelet.target_path(&volume).exists(), "the volume is still there");
        let mut rest = Vec::new();
        let end = tokio::time::timeout(LONG, silent.read_to_end(&mut rest)).await.expect("still open");
        drop(end);
        let end = tokio::time::timeout(LONG, stream.next()).await.expect("still open");
        assert!(end.is_none_or(|message| message.is_err()), "a message after unpublish");
        assert!(tokio::net::UnixStream::connect(view.join("spire-agent.sock")).await.is_err());
        node.kubelet.remove(&volume).unwrap();

        // The neighbour noticed nothing.
        let quiet = tokio::time::timeout(Duration::from_millis(200), other_stream.next()).await;
        assert!(quiet.is_err(), "{quiet:?}");
        node.kubelet.tear_down(&other).await.unwrap();
        let left = std::fs::read_dir(node.kubelet.root().join("pods")).unwrap().count();
        assert_eq!(left, 0, "pods are left over");
        let (_, text) = node.get("/metrics").await.unwrap();
        assert!(text.contains("seamount_workload_api_connections 0"), "{text}");
    });
}

#[test]
fn unpublish_of_the_unknown_succeeds() {
    on_node("unpublish_of_the_unknown_succeeds", async |node| {
        node.start().await;
        let never = node.volume("shop", "frontend", "never");
        node.kubelet.unpublish(&never).await.unwrap();
        let volume = node.volume("shop", "frontend", "web-1");
        node.publish(&volume).await;
        node.kubelet.unpublish(&volume).await.unwrap();
        node.kubelet.unpublish(&volume).await.unwrap();
        // And the same pod's volume may come back.
        node.kubelet.publish(&volume, Some(&node.tokens(&volume))).await.unwrap();
        let view = node.view(&volume);
        fetch(&view).await;
        for (id, path, field) in [
            ("", "x", "volume_id"),
            ("csi-1", "", "target_path"),
            ("csi-1", "/etc", "target_path"),
            ("csi-1", "/../../etc/passwd", "target_path"),
        ] {
            let request = csi::NodeUnpublishVolumeRequest { volume_id: id.into(), target_path: path.into() };
            let status = node.kubelet.unpublish_raw(request).await.unwrap_err();
            assert_eq!(status.code(), Code::InvalidArgument, "{}", status.message());
            assert!(status.message().contains(field), "{}", status.message());
        }
    });
}

#[test]
fn stats_and_health_tell_the_truth() {
    on_node("stats_and_health_tell_the_truth", async |node| {
        node.start().await;
        let volume = node.volume("shop", "frontend", "web-1");
        node.publish(&volume).await;
        let view = node.view(&volume);
        fetch(&view).await;
        let stats = node.kubelet.stats(&volume).await.unwrap();
        let units: Vec<i32> = stats.usage.iter().map(|u| u.unit).collect();
        assert_eq!(units, [csi::volume_usage::Unit::Bytes as i32, csi::volume_usage::Unit::Inodes as i32]);
        assert!(stats.usage[1].used > 0, "{stats:?}");
        let condition = stats.volume_condition.unwrap();
        assert!(!condition.abnormal, "{condition:?}");
        assert!(node.kubelet.health(&volume).await.unwrap().health_statuses.is_empty());
        // Without a path: by id.
        let by_id =
            csi::NodeGetVolumeHealthRequest { volume_id: volume.volume_id.clone(), ..Default::default() };
        let mut client = node.kubelet.node_client().await.unwrap();
        let health = client.node_get_volume_health(by_id).await.unwrap().into_inner().volume_health.unwrap();
        assert_eq!(health.volume_id, volume.volume_id);

        // The socket disappears: abnormal, until the next republish heals it.
        std::fs::remove_file(node.kubelet.target_path(&volume).join("spire-agent.sock")).unwrap();
        let condition = node.kubelet.stats(&volume).await.unwrap().volume_condition.unwrap();
        assert!(condition.abnormal && condition.message.contains("SocketMissing"), "{condition:?}");
        let health = node.kubelet.health(&volume).await.unwrap();
        assert_eq!(health.health_statuses[0].reason, "SocketMissing");
        assert_eq!(health.health_statuses[0].status, csi::VolumeHealthErrorType::Inaccessible as i32);

        for (id, path, code) in [
            ("", "x".to_owned(), Code::InvalidArgument),
            (volume.volume_id.as_str(), String::new(), Code::InvalidArgument),
            (volume.volume_id.as_str(), "/etc".to_owned(), Code::NotFound),
            ("csi-other", node.kubelet.target_path(&volume).display().to_string(), Code::NotFound),
        ] {
            let request = csi::NodeGetVolumeStatsRequest {
                volume_id: id.into(),
                volume_path: path,
                ..Default::default()
            };
            let status = client.node_get_volume_stats(request).await.unwrap_err();
            assert_eq!(status.code(), code, "{}", status.message());
        }
    });
}

#[test]
fn a_stop_leaves_sockets_and_state_alone() {
    on_node("a_stop_leaves_sockets_and_state_alone", async |node| {
        node.start().await;
        let volume = node.volume("shop", "frontend", "web-1");
        node.publish(&volume).await;
        let view = node.view(&volume);
        let before = leaf(&fetch(&view).await);
        let status = node.agent.take().unwrap().stop(LONG).unwrap();
        assert!(status.success(), "{status}");
        assert!(view.join("spire-agent.sock").exists());
        // Whoever connects meanwhile waits in the queue and is served by the next agent.
        let early = {
            let view = view.clone();
            tokio::spawn(async move { fetch(&view).await })
        };
        node.start_agent();
        assert_eq!(leaf(&early.await.unwrap()), before);
        // The kubelet does not register again; the agent remembers.
        node.ready().await;
    });
}

#[test]
fn a_volume_of_the_driver_before_us_is_left_alone() {
    on_node("a_volume_of_the_driver_before_us_is_left_alone", async |node| {
        node.start().await;
        // The SPIFFE CSI driver was replaced under running pods: the kubelet republishes its bind mounts.
        let volume = node.volume("shop", "frontend", "web-1");
        node.kubelet.prepare(&volume).unwrap();
        let target = node.kubelet.target_path(&volume);
        std::fs::create_dir(&target).unwrap();
        rustix::mount::mount("tmpfs", &target, "tmpfs", rustix::mount::MountFlags::empty(), None).unwrap();
        std::fs::write(target.join("theirs"), "x").unwrap();
        for _ in 0..2 {
            node.kubelet.publish(&volume, Some(&node.tokens(&volume))).await.unwrap();
        }
        assert_eq!(std::fs::read_dir(&target).unwrap().count(), 1, "the foreign mount was changed");
        let condition = node.kubelet.stats(&volume).await.unwrap().volume_condition.unwrap();
        assert!(condition.abnormal && condition.message.contains("restart the pod"), "{condition:?}");
        assert!(node.agent_log().contains("another driver's mount"));
        node.kubelet.tear_down(&volume).await.unwrap();
        assert!(!target.exists());
    });
}

#[test]
fn the_directory_source_binds_and_tells_when_it_is_stale() {
    on_node("the_directory_source_binds_and_tells_when_it_is_stale", async |node| {
        let source = node.path("spire");
        std::fs::create_dir_all(source.join("public")).unwrap();
        let directory = source.join("public").display().to_string();
        let yaml = format!(
            "identity: {{source: directory}}\nkubeletRoot: {}\nnodeName: node-1\nmounterSocket: {}\nhttp: {{address: \"{}\"}}\n",
            node.kubelet.root().display(),
            node.path("run/mounter.sock").display(),
            node.http
        );
        node.configure(&yaml);
        node.start_mounter_with(&["--source-directory", &directory]);
        node.start_agent();
        node.register().await;

        let volume = node.volume("shop", "frontend", "web-1");
        node.kubelet.prepare(&volume).unwrap();
        node.kubelet.publish(&volume, None).await.unwrap();
        std::fs::write(source.join("public/hello"), "x").unwrap();
        assert!(node.kubelet.target_path(&volume).join("hello").exists(), "the source is not there");
        node.kubelet.publish(&volume, None).await.unwrap();
        assert!(!node.kubelet.stats(&volume).await.unwrap().volume_condition.unwrap().abnormal);

        // The source is made anew: the pod holds the dead one.
        std::fs::rename(source.join("public"), source.join("old")).unwrap();
        std::fs::create_dir(source.join("public")).unwrap();
        let condition = node.kubelet.stats(&volume).await.unwrap().volume_condition.unwrap();
        assert!(condition.abnormal && condition.message.contains("restart the pod"), "{condition:?}");
        node.kubelet.tear_down(&volume).await.unwrap();

        // Removed and made anew: the republish binds the new one, and running containers still hold the dead
        // one.
        let volume = node.volume("shop", "frontend", "web-3");
        node.kubelet.prepare(&volume).unwrap();
        node.kubelet.publish(&volume, None).await.unwrap();
        std::fs::remove_dir_all(source.join("public")).unwrap();
        std::fs::create_dir(source.join("public")).unwrap();
        std::fs::write(source.join("public/hello"), "x").unwrap();
        node.kubelet.publish(&volume, None).await.unwrap();
        assert!(node.kubelet.target_path(&volume).join("hello").exists(), "the new source is not there");
        for _ in 0..2 {
            let condition = node.kubelet.stats(&volume).await.unwrap().volume_condition.unwrap();
            assert!(condition.abnormal && condition.message.contains("SourceRecreated"), "{condition:?}");
            node.agent.take().unwrap().crash().unwrap();
            node.start_agent();
            node.ready().await;
        }
        node.kubelet.tear_down(&volume).await.unwrap();

        // A mount that somebody else made.
        let foreign = node.volume("shop", "frontend", "web-2");
        node.kubelet.prepare(&foreign).unwrap();
        let target = node.kubelet.target_path(&foreign);
        std::fs::create_dir(&target).unwrap();
        rustix::mount::mount("tmpfs", &target, "tmpfs", rustix::mount::MountFlags::empty(), None).unwrap();
        std::fs::write(target.join("theirs"), "x").unwrap();
        node.kubelet.publish(&foreign, None).await.unwrap();
        assert!(target.join("theirs").exists(), "the foreign mount was changed");
        let condition = node.kubelet.stats(&foreign).await.unwrap().volume_condition.unwrap();
        assert!(condition.abnormal && condition.message.contains("ForeignMount"), "{condition:?}");
        assert!(node.agent_log().contains("another driver's mount"));
    });
}

#[test]
fn no_core_file_can_hold_the_keys() {
    on_node("no_core_file_can_hold_the_keys", async |node| {
        use std::os::unix::fs::MetadataExt as _;
        node.start().await;
        // proc(5): of a process whose memory is not dumped, and which its own uid may not trace, this is
        // root's.
        let maps = format!("/proc/{}/maps", node.agent().pid());
        assert_eq!(std::fs::metadata(maps).unwrap().uid(), 0);
    });
}
