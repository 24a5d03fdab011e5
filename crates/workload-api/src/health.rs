//! gRPC health v1 and server reflection, by tonic's services.

use std::{convert::Infallible, pin::Pin, sync::LazyLock};

use hyper::body::Incoming;
use seamount_proto::workload::spiffe_workload_api_server::SERVICE_NAME;
use tokio::sync::watch;
use tokio_stream::{Stream, StreamExt as _, wrappers::WatchStream};
use tonic::{Request, Response, Status};
use tonic_health::pb::{
    HealthCheckRequest, HealthCheckResponse, health_check_response::ServingStatus, health_server::Health,
};
use tower::util::BoxCloneSyncService;

use crate::{message::MAX_REQUEST, state::IdentityState};

/// The prefix of health's paths.
pub(crate) const HEALTH_PREFIX: &str = "/grpc.health.v1.Health/";
/// The prefixes of reflection's paths.
pub(crate) const REFLECTION_V1_PREFIX: &str = "/grpc.reflection.v1.ServerReflection/";
/// See [`REFLECTION_V1_PREFIX`].
pub(crate) const REFLECTION_V1ALPHA_PREFIX: &str = "/grpc.reflection.v1alpha.ServerReflection/";

/// Serving as soon as it is known what to answer: an identity, or that there is none (as SPIRE's agent has
/// it).
pub(crate) struct View(pub(crate) watch::Receiver<IdentityState>);

fn status(served: &IdentityState) -> ServingStatus {
    match served {
        IdentityState::Ready(_) | IdentityState::Denied => ServingStatus::Serving,
        IdentityState::Pending | IdentityState::Unavailable(_) => ServingStatus::NotServing,
    }
}

fn reply(status: ServingStatus) -> HealthCheckResponse {
    HealthCheckResponse { status: status.into() }
}

/// The whole endpoint (empty) and its one service have a status.
fn is_known(service: &str) -> bool {
    service.is_empty() || service == SERVICE_NAME
}

#[tonic::async_trait]
impl Health for View {
    async fn check(
        &self,
        request: Request<HealthCheckRequest>,
    ) -> Result<Response<HealthCheckResponse>, Status> {
        if !is_known(&request.get_ref().service) {
            return Err(Status::not_found("unknown service: leave it empty or ask for SpiffeWorkloadAPI"));
        }
        Ok(Response::new(reply(status(&self.0.borrow()))))
    }

    type WatchStream = Pin<Box<dyn Stream<Item = Result<HealthCheckResponse, Status>> + Send>>;

    async fn watch(
        &self,
        request: Request<HealthCheckRequest>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        if !is_known(&request.get_ref().service) {
            // The protocol keeps such a stream open; the service will never come into being here.
            let unknown = tokio_stream::once(Ok(reply(ServingStatus::ServiceUnknown)));
            return Ok(Response::new(Box::pin(unknown.chain(tokio_stream::pending()))));
        }
        let mut last = None;
        let changes = WatchStream::new(self.0.clone()).filter_map(move |served| {
            let now = status(&served);
            (last.replace(now) != Some(now)).then(|| Ok(reply(now)))
        });
        Ok(Response::new(Box::pin(changes)))
    }
}

/// A tonic service of a nameable type.
pub(crate) type Routed =
    BoxCloneSyncService<http::Request<Incoming>, http::Response<tonic::body::Body>, Infallible>;

/// Reflection v1 and v1alpha, made once for all sockets. `None` if the descriptors do not load, which a test
/// excludes.
pub(crate) static REFLECTION: LazyLock<Option<(Routed, Routed)>> = LazyLock::new(|| {
    let builder = || {
        tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(seamount_proto::WORKLOAD_API_DESCRIPTORS)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
    };
    let v1 = builder().build_v1().ok()?.max_decoding_message_size(MAX_REQUEST);
    let v1alpha = builder().build_v1alpha().ok()?.max_decoding_message_size(MAX_REQUEST);
    Some((BoxCloneSyncService::new(v1), BoxCloneSyncService::new(v1alpha)))
});
