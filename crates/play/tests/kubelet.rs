//! The simulated kubelet against a driver of a few lines.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "a test may panic")]

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use seamount_play::kubelet::{Event, Kubelet, KubeletError, PodVolume, volume_handle};
use seamount_proto::csi;
use seamount_proto::csi::node_server::{Node, NodeServer};
use seamount_proto::registration as proto;
use seamount_proto::registration::registration_server::{Registration, RegistrationServer};
use tokio::net::UnixListener;
use tokio_stream::wrappers::UnixListenerStream;
use tokio_util::sync::CancellationToken;
use tonic::{Code, Request, Response, Status};

const DRIVER: &str = "csi.spiffe.io";
const PATIENCE: Duration = Duration::from_secs(30);

/// Makes a directory at the target; refuses volumes with the attribute `refuse`, which names the code.
#[derive(Clone, Default)]
struct Driver {
    endpoint: PathBuf,
    published: Arc<Mutex<Vec<csi::NodePublishVolumeRequest>>>,
    notified: Arc<Mutex<Vec<(bool, String)>>>,
    node_id: String,
}

#[tonic::async_trait]
impl Registration for Driver {
    async fn get_info(&self, _: Request<proto::InfoRequest>) -> Result<Response<proto::PluginInfo>, Status> {
        Ok(Response::new(proto::PluginInfo {
            r#type: "CSIPlugin".into(),
            name: DRIVER.into(),
            endpoint: self.endpoint.to_string_lossy().into_owned(),
            supported_versions: vec!["1.0.0".into()],
        }))
    }

    async fn notify_registration_status(
        &self,
        request: Request<proto::RegistrationStatus>,
    ) -> Result<Response<proto::RegistrationStatusResponse>, Status> {
        let status = request.into_inner();
        self.notified.lock().unwrap().push((status.plugin_registered, status.error));
        Ok(Response::new(proto::RegistrationStatusResponse {}))
    }
}

#[tonic::async_trait]
impl Node for Driver {
    async fn node_publish_volume(
        &self,
        request: Request<csi::NodePublishVolumeRequest>,
    ) -> Result<Response<csi::NodePublishVolumeResponse>, Status> {
        let request = request.into_inner();
        match request.volume_context.get("refuse").map(String::as_str) {
            Some("final") => return Err(Status::invalid_argument("refused")),
            Some("busy") => return Err(Status::aborted("at work")),
            _ => fs::create_dir_all(&request.target_path).unwrap(),
        }
        self.published.lock().unwrap().push(request);
        Ok(Response::new(csi::NodePublishVolumeResponse {}))
    }

    async fn node_unpublish_volume(
        &self,
        request: Request<csi::NodeUnpublishVolumeRequest>,
    ) -> Result<Response<csi::NodeUnpublishVolumeResponse>, Status> {
        let _ = fs::remove_dir(request.into_inner().target_path);
        Ok(Response::new(csi::NodeUnpublishVolumeResponse {}))
    }

    async fn node_get_volume_stats(
        &self,
        _: Request<csi::NodeGetVolumeStatsRequest>,
    ) -> Result<Response<csi::NodeGetVolumeStatsResponse>, Status> {
        Err(Status::not_found("no such volume"))
    }

    async fn node_get_capabilities(
        &self,
        _: Request<csi::NodeGetCapabilitiesRequest>,
    ) -> Result<Response<csi::NodeGetCapabilitiesResponse>, Status> {
        Ok(Response::new(csi::NodeGetCapabilitiesResponse {
            capabilities: vec![csi::NodeServiceCapability {
                r#type: Some(csi::node_service_capability::Type::Rpc(csi::node_service_capability::Rpc {
                    r#type: csi::node_service_capability::rpc::Type::GetVolumeStats.into(),
                })),
            }],
        }))
    }

    async fn node_get_info(
        &self,
        _: Request<csi::NodeGetInfoRequest>,
    ) -> Result<Response<csi::NodeGetInfoResponse>, Status> {
        Ok(Response::new(csi::NodeGetInfoResponse { node_id: self.node_id.clone(), ..Default::default() }))
    }

    async fn node_get_volume_health(
        &self,
        request: Request<csi::NodeGetVolumeHealthRequest>,
    ) -> Result<Response<csi::NodeGetVolumeHealthResponse>, Status> {
        let volume_id = request.into_inner().volume_id;
        let volume_health = Some(csi::VolumeHealth { volume_id, ..Default::default() });
        Ok(Response::new(csi::NodeGetVolumeHealthResponse { volume_health }))
    }

    async fn node_get_storage_health(
        &self,
        _: Request<csi::NodeGetStorageHealthRequest>,
    ) -> Result<Response<csi::NodeGetStorageHealthResponse>, Status> {
        Err(Status::unimplemented("none"))
    }
}

impl Driver {
    fn new(root: &Path) -> Self {
        Self { endpoint: root.join("plugins/csi.sock"), node_id: "node-1".into(), ..Self::default() }
    }

    /// Serves both sockets until the returned token is cancelled.
    fn serve(&self, root: &Path) -> CancellationToken {
        let _ = fs::remove_file(&self.endpoint);
        let csi = UnixListener::bind(&self.endpoint).unwrap();
        let hidden = root.join("plugins_registry/.reg.sock");
        let registration = UnixListener::bind(&hidden).unwrap();
        fs::rename(hidden, root.join("plugins_registry/reg.sock")).unwrap();
        let cancel = CancellationToken::new();
        tokio::spawn(
            tonic::transport::Server::builder()
                .add_service(NodeServer::new(self.clone()))
                .serve_with_incoming_shutdown(UnixListenerStream::new(csi), cancel.clone().cancelled_owned()),
        );
        tokio::spawn(
            tonic::transport::Server::builder()
                .add_service(RegistrationServer::new(self.clone()))
                .serve_with_incoming_shutdown(
                    UnixListenerStream::new(registration),
                    cancel.clone().cancelled_owned(),
                ),
        );
        cancel
    }
}

fn pod() -> PodVolume {
    let uid = seamount_testkit::uuid();
    PodVolume::new("shop", "web", "web-0", &uid, "spiffe")
}

#[tokio::test]
async fn registers_publishes_and_removes_as_the_kubelet_does() {
    let root = tempfile::tempdir().unwrap();
    let kubelet = Kubelet::new(root.path(), DRIVER).unwrap();
    let driver = Driver::new(root.path());
    let _serving = driver.serve(root.path()).drop_guard();

    let info = kubelet.register(PATIENCE).await.unwrap();
    assert_eq!((info.driver.as_str(), info.node.node_id.as_str()), (DRIVER, "node-1"));
    assert_eq!(info.capabilities, [csi::node_service_capability::rpc::Type::GetVolumeStats as i32]);
    assert_eq!(*driver.notified.lock().unwrap(), [(true, String::new())]);
    assert_eq!(kubelet.endpoint(), driver.endpoint);

    let mut volume = pod();
    // The kubelet's own keys win over what the pod's author wrote.
    volume.attributes = BTreeMap::from([
        ("color".to_owned(), "red".to_owned()),
        ("csi.storage.k8s.io/pod.name".to_owned(), "forged".to_owned()),
    ]);
    kubelet.set_up(&volume, Some("{}")).await.unwrap();
    let request = driver.published.lock().unwrap().pop().unwrap();
    assert_eq!(
        request.target_path,
        format!(
            "{}/pods/{}/volumes/kubernetes.io~csi/spiffe/mount",
            kubelet.root().display(),
            volume.pod_uid
        )
    );
    assert_eq!(request.secrets["csi.storage.k8s.io/serviceAccount.tokens"], "{}");
    assert!(request.readonly);
    let context: BTreeMap<_, _> = request.volume_context.into_iter().collect();
    let expected = [
        ("color", "red"),
        ("csi.storage.k8s.io/ephemeral", "true"),
        ("csi.storage.k8s.io/pod.name", "web-0"),
        ("csi.storage.k8s.io/pod.namespace", "shop"),
        ("csi.storage.k8s.io/pod.uid", &volume.pod_uid),
        ("csi.storage.k8s.io/serviceAccount.name", "web"),
    ];
    assert!(context.iter().map(|(k, v)| (k.as_str(), v.as_str())).eq(expected), "{context:?}");

    let data = fs::read_to_string(kubelet.volume_directory(&volume).join("vol_data.json")).unwrap();
    let data: BTreeMap<String, String> = serde_json::from_str(&data).unwrap();
    assert_eq!(
        data.keys().collect::<Vec<_>>(),
        ["attachmentID", "driverName", "nodeName", "specVolID", "volumeHandle", "volumeLifecycleMode"]
    );
    assert_eq!(
        (data["driverName"].as_str(), data["volumeHandle"].as_str()),
        (DRIVER, volume.volume_id.as_str())
    );

    assert_eq!(kubelet.stats(&volume).await.unwrap_err().code(), Code::NotFound);
    assert_eq!(kubelet.health(&volume).await.unwrap().volume_id, volume.volume_id);

    kubelet.tear_down(&volume).await.unwrap();
    assert_eq!(fs::read_dir(root.path().join("pods")).unwrap().count(), 0);
}

#[tokio::test]
async fn a_final_refusal_removes_what_was_prepared_and_an_unsure_one_does_not() {
    let root = tempfile::tempdir().unwrap();
    let kubelet = Kubelet::new(root.path(), DRIVER).unwrap();
    let driver = Driver::new(root.path());
    let _serving = driver.serve(root.path()).drop_guard();
    kubelet.register(PATIENCE).await.unwrap();
    for (refuse, code, left) in [("final", Code::InvalidArgument, false), ("busy", Code::Aborted, true)] {
        let mut volume = pod();
        volume.attributes.insert("refuse".to_owned(), refuse.to_owned());
        assert_eq!(kubelet.set_up(&volume, None).await.unwrap_err().code(), code);
        assert_eq!(kubelet.volume_directory(&volume).exists(), left, "{refuse}");
    }
}

#[tokio::test]
async fn a_socket_made_anew_registers_again_and_hidden_names_do_not() {
    let root = tempfile::tempdir().unwrap();
    let kubelet = Kubelet::new(root.path(), DRIVER).unwrap();
    let driver = Driver::new(root.path());
    let hidden = root.path().join("plugins_registry/.other.sock");
    let _hidden = UnixListener::bind(&hidden).unwrap();
    fs::write(root.path().join("plugins_registry/file.sock"), "").unwrap();
    assert_eq!(kubelet.poll_registrations().await.unwrap(), []);

    let first = driver.serve(root.path());
    kubelet.register(PATIENCE).await.unwrap();
    assert_eq!(kubelet.poll_registrations().await.unwrap(), [], "nothing changed");
    first.cancel();
    let _second = driver.serve(root.path()).drop_guard();
    let events = kubelet.poll_registrations().await.unwrap();
    assert!(
        matches!(&events[..], [Event::Deregistered { driver }, Event::Registered(info)]
            if driver == DRIVER && info.driver == DRIVER),
        "{events:?}"
    );
    fs::remove_file(root.path().join("plugins_registry/reg.sock")).unwrap();
    let events = kubelet.poll_registrations().await.unwrap();
    assert_eq!(events, [Event::Deregistered { driver: DRIVER.to_owned() }]);
    assert_eq!(kubelet.registrations(), []);
}

#[tokio::test]
async fn a_driver_without_a_node_id_is_told_that_it_is_not_registered() {
    let root = tempfile::tempdir().unwrap();
    let kubelet = Kubelet::new(root.path(), DRIVER).unwrap();
    let driver = Driver { node_id: String::new(), ..Driver::new(root.path()) };
    let _serving = driver.serve(root.path()).drop_guard();
    let error = kubelet.register(Duration::ZERO).await.unwrap_err();
    let KubeletError::NotRegistered { reason, .. } = error else { panic!("{error}") };
    assert!(reason.contains("driverNodeID must not be empty"), "{reason}");
    assert!(!driver.notified.lock().unwrap()[0].0);
}

#[tokio::test]
async fn an_absent_driver_is_unavailable() {
    let root = tempfile::tempdir().unwrap();
    let kubelet = Kubelet::new(root.path(), DRIVER).unwrap();
    assert_eq!(kubelet.publish(&pod(), None).await.unwrap_err().code(), Code::Unavailable);
    let error = kubelet.register(Duration::ZERO).await.unwrap_err().to_string();
    assert!(error.contains("no socket in"), "{error}");
}

#[tokio::test]
async fn removal_is_never_recursive() {
    let root = tempfile::tempdir().unwrap();
    let kubelet = Kubelet::new(root.path(), DRIVER).unwrap();
    let volume = pod();
    kubelet.prepare(&volume).unwrap();
    let left_over = kubelet.target_path(&volume).join("left-over");
    fs::create_dir(kubelet.target_path(&volume)).unwrap();
    fs::write(&left_over, "").unwrap();
    let error = kubelet.remove(&volume).unwrap_err().to_string();
    assert!(error.contains("/mount"), "{error}");
    assert!(left_over.exists());
    fs::remove_file(left_over).unwrap();
    kubelet.remove(&volume).unwrap();
    assert!(!kubelet.pod_directory(&volume).exists());
}

/// `printf %s%s <uid> spiffe | sha256sum`
#[test]
fn the_volume_id_is_the_kubelets() {
    assert_eq!(
        volume_handle("3f2c1a9e-0b1d-4c5e-8f70-a1b2c3d4e5f6", "spiffe"),
        "csi-2900b4cedadde5931c002e99bd6f645831afc36c5cf66278197003d56e81ef3a"
    );
}
