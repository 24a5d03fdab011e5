//! gRPC health v1. The socket is serving as soon as it is known what to answer: an identity, or that there is
//! none (as SPIRE's agent has it).

use std::future::ready;

use bytes::Bytes;
use seamount_proto::workload::spiffe_workload_api_server::SERVICE_NAME;
use tonic_health::pb::{HealthCheckRequest, HealthCheckResponse, health_check_response::ServingStatus};

use crate::{
    handler::{Answer, Step, View},
    message::{decode, frame},
    shared::Shared,
    state::IdentityState,
    status::{Code, Refusal, Status},
};

/// Check.
pub(crate) fn check(shared: &Shared, request: Bytes) -> Answer<'_> {
    Box::pin(ready(match asks_for_known(request) {
        Ok(true) => Ok(reply(status(&shared.served.borrow()))),
        Ok(false) => {
            let text = "unknown service: leave it empty or ask for SpiffeWorkloadAPI";
            Err(Refusal::new("request", Status::new(Code::NotFound, text)))
        }
        Err(status) => Err(Refusal::new("request", status)),
    }))
}

/// Watch.
pub(crate) fn watch(request: Bytes) -> Result<View, Status> {
    Ok(if asks_for_known(request)? {
        |state| Step::Send(reply(status(state)))
    } else {
        // The protocol keeps such a stream open; the service will never come into being here.
        |_| Step::Send(reply(ServingStatus::ServiceUnknown))
    })
}

/// The whole endpoint (empty) and its one service have a status.
fn asks_for_known(request: Bytes) -> Result<bool, Status> {
    let HealthCheckRequest { service } = decode::<HealthCheckRequest>(request)?;
    Ok(service.is_empty() || service == SERVICE_NAME)
}

fn status(state: &IdentityState) -> ServingStatus {
    match state {
        IdentityState::Ready(_) | IdentityState::Denied => ServingStatus::Serving,
        IdentityState::Pending | IdentityState::Unavailable(_) => ServingStatus::NotServing,
    }
}

fn reply(status: ServingStatus) -> Bytes {
    frame(&HealthCheckResponse { status: status.into() })
}
