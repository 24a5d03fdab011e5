//! The kubelet's part towards a CSI driver, played as Kubernetes 1.36 does it: registration, the directories
//! and `vol_data.json` of inline volumes, publish, unpublish, stats, health, removal.
//!
//! Sources: Kubernetes `pkg/volume/csi` (`csi_plugin.go`, `csi_mounter.go`, `csi_client.go`, `csi_util.go`)
//! and `pkg/kubelet/pluginmanager` for names, modes, order and timeouts.

mod registration;
mod volumes;

use std::collections::BTreeMap;
use std::io;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use aws_lc_rs::digest;
use seamount_proto::csi;
use seamount_proto::csi::identity_client::IdentityClient;
use seamount_proto::csi::node_client::NodeClient;
use tokio::net::UnixStream;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status};

pub use registration::{Event, NodeInfo};

/// The kubelet's `csiTimeout`.
const CSI_TIMEOUT: Duration = Duration::from_secs(120);

/// Why the simulated kubelet could not go on.
#[derive(Debug, thiserror::Error)]
pub enum KubeletError {
    /// A file or directory of the kubelet.
    #[error("cannot {action} {}: {source}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// The driver answered with an error.
    #[error("{call} of driver {driver} failed: {} ({:?})", status.message(), status.code())]
    Driver {
        /// The call.
        call: &'static str,
        /// The driver's name.
        driver: String,
        /// Its answer.
        status: Box<Status>,
    },
    /// The driver did not register.
    #[error("driver {driver} did not register within {deadline:?}: {reason}")]
    NotRegistered {
        /// The driver's name.
        driver: String,
        /// How long it was waited for.
        deadline: Duration,
        /// What was seen last.
        reason: String,
    },
}

impl KubeletError {
    fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io { action, path, source }
    }
}

/// One inline CSI volume of one pod, as pod and CSIDriver object describe it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PodVolume {
    /// The pod's UID.
    pub pod_uid: String,
    /// The pod's name.
    pub pod_name: String,
    /// Its namespace.
    pub namespace: String,
    /// Its service account.
    pub service_account: String,
    /// `volumes[].name`.
    pub volume_name: String,
    /// The volume id; [`volume_handle`] makes the kubelet's.
    pub volume_id: String,
    /// `volumes[].csi.volumeAttributes`.
    pub attributes: BTreeMap<String, String>,
    /// `volumes[].csi.readOnly`.
    pub read_only: bool,
    /// `volumes[].csi.fsType`; empty if the pod has none.
    pub fs_type: String,
}

impl PodVolume {
    /// A read-only volume without attributes, with the kubelet's id for it.
    pub fn new(
        namespace: &str,
        service_account: &str,
        pod_name: &str,
        pod_uid: &str,
        volume_name: &str,
    ) -> Self {
        Self {
            pod_uid: pod_uid.to_owned(),
            pod_name: pod_name.to_owned(),
            namespace: namespace.to_owned(),
            service_account: service_account.to_owned(),
            volume_name: volume_name.to_owned(),
            volume_id: volume_handle(pod_uid, volume_name),
            attributes: BTreeMap::new(),
            read_only: true,
            fs_type: String::new(),
        }
    }

    /// The claims that the API server puts into this pod's tokens.
    pub fn claims(&self, node: &str, audience: &str) -> crate::issuer::Claims {
        crate::issuer::Claims {
            namespace: self.namespace.clone(),
            service_account: self.service_account.clone(),
            pod_name: self.pod_name.clone(),
            pod_uid: self.pod_uid.clone(),
            node: node.to_owned(),
            audience: vec![audience.to_owned()],
            ..Default::default()
        }
    }
}

/// The id that the kubelet gives to an inline volume: `csi-` and 64 hexadecimal digits (`makeVolumeHandle`).
pub fn volume_handle(pod_uid: &str, volume_name: &str) -> String {
    format!("csi-{}", sha256_hex(&[pod_uid, volume_name]))
}

fn sha256_hex(parts: &[&str]) -> String {
    let mut context = digest::Context::new(&digest::SHA256);
    for part in parts {
        context.update(part.as_bytes());
    }
    context.finish().as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The simulated kubelet of one node. Its methods may be called at the same time from several tasks.
#[derive(Debug)]
pub struct Kubelet {
    root: PathBuf,
    driver: String,
    node: String,
    timeout: Duration,
    /// Held for a look or a change, and never over an `.await`. Two calls that look at the same time may both
    /// register a new socket; the later answer stays, as with a kubelet that registers twice.
    registered: Mutex<registration::State>,
}

impl Kubelet {
    /// A kubelet of `node-1` with its root directory at `root` (as `--root-dir`), for one CSI driver. Makes
    /// `pods`, `plugins` and `plugins_registry` below it, mode 0750 as the kubelet does.
    ///
    /// # Errors
    /// If a directory cannot be made.
    pub fn new(root: &Path, driver: &str) -> Result<Self, KubeletError> {
        let root = std::path::absolute(root).map_err(KubeletError::io("find", root))?;
        for name in ["pods", "plugins", "plugins_registry"] {
            make_directory(&root.join(name))?;
        }
        Ok(Self {
            root,
            driver: driver.to_owned(),
            node: "node-1".to_owned(),
            timeout: CSI_TIMEOUT,
            registered: Mutex::default(),
        })
    }

    /// The same kubelet on a node of another name.
    #[must_use]
    pub fn with_node(mut self, node: &str) -> Self {
        self.node = node.to_owned();
        self
    }

    /// The same kubelet with another patience than two minutes for each CSI call.
    #[must_use]
    pub fn with_timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// Its root directory, absolute.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The driver's name.
    pub fn driver(&self) -> &str {
        &self.driver
    }

    /// The node's name.
    pub fn node(&self) -> &str {
        &self.node
    }

    /// The driver's socket: the endpoint that it registered, or where it ought to be before that.
    pub fn endpoint(&self) -> PathBuf {
        match self.state().endpoint(&self.driver) {
            Some(endpoint) => endpoint.to_owned(),
            None => self.root.join("plugins").join(&self.driver).join("csi.sock"),
        }
    }

    /// A client of the driver's Node service on a connection of its own, as the kubelet makes one for each
    /// call.
    ///
    /// # Errors
    /// `Unavailable` if the socket cannot be connected to.
    pub async fn node_client(&self) -> Result<NodeClient<Channel>, Status> {
        Ok(NodeClient::new(connect(&self.endpoint(), self.timeout).await?))
    }

    /// A client of the driver's Identity service.
    ///
    /// # Errors
    /// `Unavailable` if the socket cannot be connected to.
    pub async fn identity_client(&self) -> Result<IdentityClient<Channel>, Status> {
        Ok(IdentityClient::new(connect(&self.endpoint(), self.timeout).await?))
    }

    /// The request that the kubelet sends for a volume. `tokens_json` is what `tokenRequests` of the
    /// CSIDriver object yield; with `serviceAccountTokenInSecrets: true` it goes into `secrets`.
    pub fn publish_request(
        &self,
        volume: &PodVolume,
        tokens_json: Option<&str>,
    ) -> csi::NodePublishVolumeRequest {
        // The kubelet merges its own keys over the pod author's attributes (podInfoOnMount: true).
        let mut context: std::collections::HashMap<_, _> = volume.attributes.clone().into_iter().collect();
        for (key, value) in [
            ("csi.storage.k8s.io/pod.name", volume.pod_name.as_str()),
            ("csi.storage.k8s.io/pod.namespace", &volume.namespace),
            ("csi.storage.k8s.io/pod.uid", &volume.pod_uid),
            ("csi.storage.k8s.io/serviceAccount.name", &volume.service_account),
            ("csi.storage.k8s.io/ephemeral", "true"),
        ] {
            context.insert(key.to_owned(), value.to_owned());
        }
        csi::NodePublishVolumeRequest {
            volume_id: volume.volume_id.clone(),
            target_path: self.target_path(volume).to_string_lossy().into_owned(),
            volume_capability: Some(csi::VolumeCapability {
                // For inline volumes the kubelet always assumes ReadWriteOnce; `readonly` is a field of its
                // own.
                access_mode: Some(csi::volume_capability::AccessMode {
                    mode: csi::volume_capability::access_mode::Mode::SingleNodeWriter.into(),
                }),
                access_type: Some(csi::volume_capability::AccessType::Mount(
                    csi::volume_capability::MountVolume {
                        fs_type: volume.fs_type.clone(),
                        ..Default::default()
                    },
                )),
            }),
            readonly: volume.read_only,
            secrets: tokens_json
                .map(|tokens| ("csi.storage.k8s.io/serviceAccount.tokens".to_owned(), tokens.to_owned()))
                .into_iter()
                .collect(),
            volume_context: context,
            ..Default::default()
        }
    }

    /// NodePublishVolume, as for a volume that the kubelet has prepared; also for a republish
    /// (`requiresRepublish: true`).
    ///
    /// # Errors
    /// The driver's answer; `Unavailable` if it is not there, `DeadlineExceeded` after two minutes.
    pub async fn publish(&self, volume: &PodVolume, tokens_json: Option<&str>) -> Result<(), Status> {
        self.publish_raw(self.publish_request(volume, tokens_json)).await
    }

    /// NodePublishVolume with any request.
    ///
    /// # Errors
    /// Like [`Kubelet::publish`].
    pub async fn publish_raw(&self, request: csi::NodePublishVolumeRequest) -> Result<(), Status> {
        self.in_time(async { self.node_client().await?.node_publish_volume(request).await.map(drop) }).await
    }

    /// What the kubelet does for a volume of a new pod: prepare and publish, and after a final error (not one
    /// after which the driver may still be at work) removal of what it prepared.
    ///
    /// # Errors
    /// The driver's answer, or `Internal` if a directory cannot be made.
    pub async fn set_up(&self, volume: &PodVolume, tokens_json: Option<&str>) -> Result<(), Status> {
        self.prepare(volume).map_err(|error| Status::internal(error.to_string()))?;
        let outcome = self.publish(volume, tokens_json).await;
        if let Err(status) = &outcome
            && is_final(status.code())
        {
            // Like the kubelet: what cannot be removed stays, the publish error is the news.
            let _ = self.remove_volume(volume);
        }
        outcome
    }

    /// NodeUnpublishVolume.
    ///
    /// # Errors
    /// Like [`Kubelet::publish`].
    pub async fn unpublish(&self, volume: &PodVolume) -> Result<(), Status> {
        self.unpublish_raw(csi::NodeUnpublishVolumeRequest {
            volume_id: volume.volume_id.clone(),
            target_path: self.target_path(volume).to_string_lossy().into_owned(),
        })
        .await
    }

    /// NodeUnpublishVolume with any request.
    ///
    /// # Errors
    /// Like [`Kubelet::publish`].
    pub async fn unpublish_raw(&self, request: csi::NodeUnpublishVolumeRequest) -> Result<(), Status> {
        self.in_time(async { self.node_client().await?.node_unpublish_volume(request).await.map(drop) }).await
    }

    /// NodeGetVolumeStats, which the kubelet asks for every minute.
    ///
    /// # Errors
    /// Like [`Kubelet::publish`].
    pub async fn stats(&self, volume: &PodVolume) -> Result<csi::NodeGetVolumeStatsResponse, Status> {
        let request = csi::NodeGetVolumeStatsRequest {
            volume_id: volume.volume_id.clone(),
            volume_path: self.target_path(volume).to_string_lossy().into_owned(),
            ..Default::default()
        };
        let call = async { self.node_client().await?.node_get_volume_stats(request).await };
        self.in_time(call).await.map(tonic::Response::into_inner)
    }

    /// NodeGetVolumeHealth (CSI 1.13); an answer without `volume_health` comes back as an empty one.
    ///
    /// # Errors
    /// Like [`Kubelet::publish`].
    pub async fn health(&self, volume: &PodVolume) -> Result<csi::VolumeHealth, Status> {
        let request = csi::NodeGetVolumeHealthRequest {
            volume_id: volume.volume_id.clone(),
            volume_publish_path: self.target_path(volume).to_string_lossy().into_owned(),
            ..Default::default()
        };
        let call = async { self.node_client().await?.node_get_volume_health(request).await };
        Ok(self.in_time(call).await?.into_inner().volume_health.unwrap_or_default())
    }

    /// What the kubelet does for a volume of a deleted pod: unpublish, then remove.
    ///
    /// # Errors
    /// If the driver refuses, or if something is left that the kubelet would not remove.
    pub async fn tear_down(&self, volume: &PodVolume) -> Result<(), KubeletError> {
        self.unpublish(volume).await.map_err(|status| KubeletError::Driver {
            call: "NodeUnpublishVolume",
            driver: self.driver.clone(),
            status: Box::new(status),
        })?;
        self.remove(volume)
    }

    async fn in_time<T>(&self, call: impl Future<Output = Result<T, Status>>) -> Result<T, Status> {
        within(self.timeout, call).await
    }

    fn state(&self) -> MutexGuard<'_, registration::State> {
        self.registered.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The kubelet's `IsOperationFinishedError`: after these codes the driver cannot be at work any more.
fn is_final(code: Code) -> bool {
    !matches!(
        code,
        Code::Cancelled
            | Code::DeadlineExceeded
            | Code::Unavailable
            | Code::ResourceExhausted
            | Code::Aborted
    )
}

async fn within<T>(timeout: Duration, call: impl Future<Output = Result<T, Status>>) -> Result<T, Status> {
    match tokio::time::timeout(timeout, call).await {
        Ok(outcome) => outcome,
        Err(_) => Err(Status::deadline_exceeded(format!("no answer from the driver within {timeout:?}"))),
    }
}

/// Connects to a Unix socket, once.
async fn connect(socket: &Path, timeout: Duration) -> Result<Channel, Status> {
    let path = socket.to_owned();
    let connector = tower::service_fn(move |_| {
        let path = path.clone();
        async move { UnixStream::connect(path).await.map(hyper_util::rt::TokioIo::new) }
    });
    let endpoint = Endpoint::from_static("http://localhost");
    within(timeout, async {
        endpoint.connect_with_connector(connector).await.map_err(|error| {
            let cause = std::error::Error::source(&error).map(ToString::to_string).unwrap_or_default();
            Status::unavailable(format!("cannot connect to {}: {error}: {cause}", socket.display()))
        })
    })
    .await
}

/// Makes a directory of the kubelet (mode 0750) with its parents.
fn make_directory(path: &Path) -> Result<(), KubeletError> {
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o750)
        .create(path)
        .map_err(KubeletError::io("make", path))
}
