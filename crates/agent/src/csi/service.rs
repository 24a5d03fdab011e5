//! CSI's Identity and Node services.
//!
//! Unpublish, stats and health need nothing but the mounter; publish needs a valid configuration, the state
//! directory and the issuer's keys, and answers `Unavailable` while one of them is missing.

use std::sync::Arc;
use std::time::{Instant, SystemTime};

use seamount_mounter_client::MounterError;
use seamount_mounter_protocol::Fault;
use seamount_mounter_protocol::names::DriverName;
use seamount_pod_token::DatedToken;
use seamount_proto::csi::identity_server::Identity;
use seamount_proto::csi::node_server::Node;
use seamount_proto::csi::volume_health::VolumeHealthEntry;
use seamount_proto::csi::volume_usage::Unit;
use seamount_proto::csi::{
    GetPluginCapabilitiesRequest, GetPluginCapabilitiesResponse, GetPluginInfoRequest, GetPluginInfoResponse,
    NodeGetCapabilitiesRequest, NodeGetCapabilitiesResponse, NodeGetInfoRequest, NodeGetInfoResponse,
    NodeGetStorageHealthRequest, NodeGetStorageHealthResponse, NodeGetVolumeHealthRequest,
    NodeGetVolumeHealthResponse, NodeGetVolumeStatsRequest, NodeGetVolumeStatsResponse,
    NodePublishVolumeRequest, NodePublishVolumeResponse, NodeServiceCapability, NodeUnpublishVolumeRequest,
    NodeUnpublishVolumeResponse, ProbeRequest, ProbeResponse, VolumeCondition, VolumeHealth,
    VolumeHealthErrorType, VolumeUsage, node_service_capability,
};
use seamount_telemetry::metrics::Outcome;
use tokio::sync::watch;
use tonic::{Code, Request, Response, Status};

use super::request::{self, HealthTarget, Refusal, Rules};
use crate::config_manager::ConfigManager;
use crate::record::Registration;
use crate::state::StateError;
use crate::volumes::health::Severity;
use crate::volumes::{VolumeError, VolumeStats, Volumes};

/// Both services; cheap to clone.
#[derive(Clone)]
pub struct Service {
    driver: DriverName,
    manager: Arc<ConfigManager>,
    volumes: Arc<Volumes>,
    registered: watch::Sender<Registration>,
}

impl Service {
    /// Over those of these volumes that are this driver's.
    pub fn new(
        driver: DriverName,
        manager: Arc<ConfigManager>,
        volumes: Arc<Volumes>,
        registered: watch::Sender<Registration>,
    ) -> Self {
        Self { driver, manager, volumes, registered }
    }

    /// The kubelet calls for volumes of registered drivers only. An agent that was killed when it was just
    /// being told of its registration is not told again; this is how its successor knows.
    fn called(&self) {
        self.registered.send_if_modified(|registered| {
            let news = *registered == Registration::Unknown;
            if news {
                tracing::info!(driver = %self.driver, "registered with the kubelet, for it calls for a volume");
                *registered = Registration::Registered;
            }
            news
        });
    }

    /// The rules of what must never be in a deletion's way.
    fn basic_rules(&self) -> Rules {
        Rules::basic(self.driver.clone(), &self.manager.bootstrap().kubelet_root)
    }

    async fn publish(self, request: NodePublishVolumeRequest) -> Result<(), Status> {
        let Some(settings) = self.manager.settings() else {
            return Err(Status::unavailable(
                "the agent has no valid configuration: see its log and `seamount node status`; the kubelet tries again",
            ));
        };
        let rules = self.basic_rules().with(&settings.config);
        let request = request::publish(request, &rules).inspect_err(|e| self.refused(e))?;
        let Some(verifier) = &settings.verifier else {
            let done = self.volumes.publish_directory(&request).await;
            return Ok(done.inspect_err(|e| self.limited(e))?);
        };
        // The rules of the source `authority` refuse a request without token before this.
        let Some(token) = request.token.clone() else {
            return Err(Status::internal("a request without token passed the rules"));
        };
        let claims = verifier
            .verify(&token, SystemTime::now())
            .await
            .map_err(Refusal::from)
            .inspect_err(|e| self.refused(e))?;
        let workload =
            request::bind(&request, &claims, &settings.node_name).inspect_err(|e| self.refused(e))?;
        let done = self.volumes.publish(&request, workload, DatedToken::new(token, &claims)).await;
        Ok(done.inspect_err(|e| self.limited(e))?)
    }

    fn limited(&self, error: &VolumeError) {
        if matches!(error, VolumeError::PodVolumes { .. }) {
            self.manager.metrics().csi.refused("publish", "limit");
        }
    }

    fn refused(&self, refusal: &Refusal) {
        self.manager.metrics().csi.refused("publish", refusal.kind());
    }
}

/// Runs an operation to its end also where the kubelet gives up on the call.
async fn to_its_end(work: impl Future<Output = Result<(), Status>> + Send + 'static) -> Result<(), Status> {
    tokio::spawn(work)
        .await
        .unwrap_or_else(|e| Err(Status::internal(format!("the operation broke off: {e}"))))
}

/// A pod with more volumes than it may have is refused for what it asks, though its code is that of a node
/// that is short of something.
fn outcome(result: &Result<(), Status>) -> Outcome {
    if result.as_ref().is_err_and(is_limited) {
        return Outcome::refused;
    }
    match result.as_ref().map_err(Status::code) {
        Ok(()) => Outcome::success,
        Err(Code::InvalidArgument | Code::PermissionDenied | Code::AlreadyExists) => Outcome::refused,
        Err(_) => Outcome::error,
    }
}

fn is_limited(status: &Status) -> bool {
    let source = std::error::Error::source(status).and_then(|e| e.downcast_ref());
    matches!(source, Some(VolumeError::PodVolumes { .. }))
}

/// What a request says of itself, for the log.
struct Named {
    volume_id: String,
    path: String,
    pod: String,
    namespace: String,
}

impl Named {
    fn new(request: &NodePublishVolumeRequest) -> Self {
        let short = |s: &str| s.get(..s.floor_char_boundary(200)).unwrap_or_default().to_owned();
        let context = |key| short(request.volume_context.get(key).map(String::as_str).unwrap_or_default());
        Self {
            volume_id: short(&request.volume_id),
            path: short(&request.target_path),
            pod: context(request::POD_NAME),
            namespace: context(request::POD_NAMESPACE),
        }
    }

    /// Quoted, because it may have been written by any program.
    fn refused(&self, status: &Status) {
        let Self { volume_id, path, pod, namespace } = self;
        tracing::warn!(
            volume = ?volume_id, ?path, ?pod, ?namespace, code = ?status.code(), "publish: {}", status.message()
        );
    }
}

impl From<VolumeError> for Status {
    /// `Unavailable` where trying again may help without a repair.
    fn from(error: VolumeError) -> Self {
        let text = error.to_string();
        match error {
            VolumeError::Mounter(e) => mounter_status(&e),
            VolumeError::Conflict { .. } => Self::already_exists(text),
            VolumeError::PodVolumes { .. } => {
                let mut status = Self::resource_exhausted(text);
                status.set_source(Arc::new(error));
                status
            }
            VolumeError::State(StateError::Full { .. } | StateError::Descriptors { .. })
            | VolumeError::Serve { .. } => Self::resource_exhausted(text),
            VolumeError::State(_) | VolumeError::NoState(_) => Self::unavailable(text),
        }
    }
}

fn mounter_status(error: &MounterError) -> Status {
    let text = error.to_string();
    match error {
        MounterError::Fault { fault, .. } => match fault {
            Fault::Malformed => Status::internal(text),
            Fault::NotOurs => Status::invalid_argument(format!("target_path: {text}")),
            Fault::NotFound => Status::not_found(text),
            Fault::Exhausted | Fault::Storage => Status::resource_exhausted(text),
            Fault::Unsupported => Status::failed_precondition(text),
            Fault::Version | Fault::Busy | Fault::Superseded => Status::unavailable(text),
            Fault::System => Status::internal(text),
        },
        MounterError::Untrusted { .. } => Status::internal(text),
        MounterError::Down { .. }
        | MounterError::Version(_)
        | MounterError::Timeout { .. }
        | MounterError::Broken { .. } => Status::unavailable(text),
    }
}

#[tonic::async_trait]
impl Identity for Service {
    async fn get_plugin_info(
        &self,
        _: Request<GetPluginInfoRequest>,
    ) -> Result<Response<GetPluginInfoResponse>, Status> {
        Ok(Response::new(GetPluginInfoResponse {
            name: self.driver.to_string(),
            vendor_version: env!("CARGO_PKG_VERSION").to_owned(),
            manifest: Default::default(),
        }))
    }

    /// None: no controller, no topology, no expansion.
    async fn get_plugin_capabilities(
        &self,
        _: Request<GetPluginCapabilitiesRequest>,
    ) -> Result<Response<GetPluginCapabilitiesResponse>, Status> {
        Ok(Response::new(GetPluginCapabilitiesResponse::default()))
    }

    async fn probe(&self, _: Request<ProbeRequest>) -> Result<Response<ProbeResponse>, Status> {
        Ok(Response::new(ProbeResponse { ready: Some(self.manager.able()) }))
    }
}

#[tonic::async_trait]
impl Node for Service {
    async fn node_publish_volume(
        &self,
        request: Request<NodePublishVolumeRequest>,
    ) -> Result<Response<NodePublishVolumeResponse>, Status> {
        self.called();
        let start = Instant::now();
        let request = request.into_inner();
        let named = Named::new(&request);
        let result = to_its_end(self.clone().publish(request)).await;
        self.manager.metrics().csi.published(outcome(&result), start.elapsed());
        if let Err(status) = &result {
            named.refused(status);
        }
        result.map(|()| Response::new(NodePublishVolumeResponse {}))
    }

    async fn node_unpublish_volume(
        &self,
        request: Request<NodeUnpublishVolumeRequest>,
    ) -> Result<Response<NodeUnpublishVolumeResponse>, Status> {
        self.called();
        let start = Instant::now();
        let volume = request::unpublish(request.get_ref(), &self.basic_rules())
            .inspect_err(|e| self.manager.metrics().csi.refused("unpublish", e.kind()))?;
        let (volumes, of) = (Arc::clone(&self.volumes), volume.clone());
        let result = to_its_end(async move { Ok(volumes.unpublish(&of).await?) }).await;
        self.manager.metrics().csi.unpublished(outcome(&result), start.elapsed());
        if let Err(status) = &result {
            tracing::error!(%volume, code = ?status.code(), "unpublish: {}", status.message());
        }
        result.map(|()| Response::new(NodeUnpublishVolumeResponse {}))
    }

    async fn node_get_volume_stats(
        &self,
        request: Request<NodeGetVolumeStatsRequest>,
    ) -> Result<Response<NodeGetVolumeStatsResponse>, Status> {
        self.called();
        let volume = request::stats(request.get_ref(), &self.basic_rules())?;
        let Some(look) = self.volumes.look(&volume).await else {
            return Err(Status::not_found(format!(
                "volume_path: no volume {volume} of {} is here",
                volume.id
            )));
        };
        Ok(Response::new(stats(&look)))
    }

    async fn node_get_capabilities(
        &self,
        _: Request<NodeGetCapabilitiesRequest>,
    ) -> Result<Response<NodeGetCapabilitiesResponse>, Status> {
        use node_service_capability::rpc::Type;
        use node_service_capability::{Rpc, Type as Kind};
        let capabilities = [Type::GetVolumeStats, Type::VolumeCondition, Type::GetVolumeHealth]
            .into_iter()
            .map(|t| NodeServiceCapability { r#type: Some(Kind::Rpc(Rpc { r#type: t.into() })) })
            .collect();
        Ok(Response::new(NodeGetCapabilitiesResponse { capabilities }))
    }

    async fn node_get_info(
        &self,
        _: Request<NodeGetInfoRequest>,
    ) -> Result<Response<NodeGetInfoResponse>, Status> {
        let node_id = self.manager.bootstrap().node_name.clone();
        if node_id.is_empty() {
            return Err(Status::failed_precondition(
                "the agent does not know its node's name; set --node-name or NODE_NAME",
            ));
        }
        Ok(Response::new(NodeGetInfoResponse { node_id, max_volumes_per_node: 0, accessible_topology: None }))
    }

    async fn node_get_volume_health(
        &self,
        request: Request<NodeGetVolumeHealthRequest>,
    ) -> Result<Response<NodeGetVolumeHealthResponse>, Status> {
        self.called();
        let unknown = |what: String| Status::not_found(format!("volume_id: {what} is not on this node"));
        let volume = match request::health(request.get_ref(), &self.basic_rules())? {
            HealthTarget::Volume(volume) => volume,
            HealthTarget::Id(id) => {
                self.volumes.by_id(&self.driver, &id).ok_or_else(|| unknown(id.to_string()))?
            }
        };
        let look = self.volumes.look(&volume).await.ok_or_else(|| unknown(volume.id.to_string()))?;
        let health_statuses = look
            .conditions
            .into_iter()
            .map(|c| VolumeHealthEntry {
                status: match c.severity {
                    Severity::Degraded => VolumeHealthErrorType::Degraded,
                    Severity::Inaccessible => VolumeHealthErrorType::Inaccessible,
                }
                .into(),
                reason: c.reason.to_owned(),
                message: c.message,
            })
            .collect();
        let volume_health = Some(VolumeHealth { volume_id: volume.id.to_string(), health_statuses });
        Ok(Response::new(NodeGetVolumeHealthResponse { volume_health }))
    }

    async fn node_get_storage_health(
        &self,
        _: Request<NodeGetStorageHealthRequest>,
    ) -> Result<Response<NodeGetStorageHealthResponse>, Status> {
        Err(Status::unimplemented("there is no storage behind these volumes"))
    }
}

fn stats(look: &VolumeStats) -> NodeGetVolumeStatsResponse {
    let number = |n: u64| i64::try_from(n).unwrap_or(i64::MAX);
    let usage = |unit: Unit, used: u64| VolumeUsage {
        available: 0,
        total: number(used),
        used: number(used),
        unit: unit.into(),
    };
    let message = match look.conditions.as_slice() {
        [] => "healthy".to_owned(),
        all => all.iter().map(|c| format!("{}: {}", c.reason, c.message)).collect::<Vec<_>>().join("; "),
    };
    NodeGetVolumeStatsResponse {
        usage: vec![usage(Unit::Bytes, look.bytes), usage(Unit::Inodes, look.inodes)],
        volume_condition: Some(VolumeCondition { abnormal: !look.conditions.is_empty(), message }),
    }
}

#[cfg(test)]
mod tests;
