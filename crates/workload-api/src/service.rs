//! From a request to its method.

use std::{convert::Infallible, future::ready, sync::Arc};

use bytes::Bytes;
use http::{Method, StatusCode};
use hyper::body::Incoming;
use prost::Message;
use seamount_proto::workload::{X509BundlesRequest, X509svidRequest};
use tokio::time::{Instant, timeout, timeout_at};
use tonic_health::pb::health_server::HealthServer;
use tower::ServiceExt as _;

use crate::{
    body::{Body, Kind, Updates, denied},
    grpc::{is_grpc, streaming},
    health::{self, HEALTH_PREFIX, REFLECTION_V1_PREFIX, REFLECTION_V1ALPHA_PREFIX},
    message::{MAX_REQUEST, read_message},
    shared::Shared,
    state::IdentityState,
    status::{Code, Status},
    tenant::{Ledger, Request},
};

const WORKLOAD_API_PREFIX: &str = "/SpiffeWorkloadAPI/";

/// The header that keeps a browser, or a proxy that is tricked, from asking (Workload Endpoint §4).
const SECURITY_HEADER: &str = "workload.spiffe.io";

/// Answers one request.
pub(crate) async fn call(
    shared: Arc<Shared>,
    request: http::Request<Incoming>,
    mut guard: Request,
) -> http::Response<Body> {
    let refused = |why, status: Status| {
        shared.observer.refused(why);
        status.response()
    };
    if request.method() != Method::POST {
        shared.observer.refused("http");
        let status = Status::new(Code::Internal, "gRPC requests are POST");
        return status.response_with(StatusCode::METHOD_NOT_ALLOWED);
    }
    if !is_grpc(request.headers()) {
        shared.observer.refused("http");
        let status = Status::new(Code::InvalidArgument, "content-type must be application/grpc");
        return status.response_with(StatusCode::UNSUPPORTED_MEDIA_TYPE);
    }
    let path = request.uri().path();
    if let Some(method) = path.strip_prefix(WORKLOAD_API_PREFIX) {
        if !has_security_header(request.headers()) {
            let status = Status::new(Code::InvalidArgument, "security header missing from request");
            return refused("security header", status);
        }
        let kind = match method {
            "FetchX509SVID" => Kind::Svids,
            "FetchX509Bundles" => Kind::Bundles,
            _ => return refused("method", unimplemented()),
        };
        return match open(&shared, kind, request.into_body(), guard).await {
            Ok(body) => streaming(body),
            Err((why, status)) => refused(why, status),
        };
    }
    let response = if path.starts_with(HEALTH_PREFIX) {
        let server = HealthServer::new(health::View(shared.served.clone()));
        timeout(shared.timing.request, server.max_decoding_message_size(MAX_REQUEST).oneshot(request)).await
    } else {
        let reflection = match health::REFLECTION.as_ref() {
            Some((v1, _)) if path.starts_with(REFLECTION_V1_PREFIX) => v1,
            Some((_, v1alpha)) if path.starts_with(REFLECTION_V1ALPHA_PREFIX) => v1alpha,
            _ => return refused("method", unimplemented()),
        };
        if !guard.reflect() {
            let text = "the pod has too many reflection streams open; close one";
            return refused("reflection", Status::new(Code::ResourceExhausted, text));
        }
        timeout(shared.timing.request, reflection.clone().oneshot(request)).await
    };
    match response {
        Ok(Ok(response)) => response.map(|body| Body::Tonic { body, request: guard }),
        Ok(Err(never)) => match never {},
        Err(_) => refused("request", too_slow()),
    }
}

/// Exactly once, and exactly `true` (Workload Endpoint §4).
fn has_security_header(headers: &http::HeaderMap) -> bool {
    let mut values = headers.get_all(SECURITY_HEADER).iter();
    values.next().is_some_and(|value| value == "true") && values.next().is_none()
}

fn unimplemented() -> Status {
    Status::new(Code::Unimplemented, "this method is not implemented")
}

fn too_slow() -> Status {
    Status::new(Code::DeadlineExceeded, "the request did not arrive in time")
}

/// Reads the request and waits for something to answer.
async fn open(
    shared: &Shared,
    kind: Kind,
    body: Incoming,
    guard: Request,
) -> Result<Body, (&'static str, Status)> {
    let message = match timeout(shared.timing.request, read_message(body)).await {
        Ok(Ok(message)) => message,
        Ok(Err(status)) => return Err(("request", status)),
        Err(_) => return Err(("request", too_slow())),
    };
    check(kind, message).map_err(|status| ("request", status))?;

    let mut served = shared.served.clone();
    let deadline = Instant::now() + shared.timing.pending;
    loop {
        let now = served.borrow_and_update().clone();
        match now {
            IdentityState::Ready(response) if response.count() > 0 => {
                let first = kind.of(&response).clone();
                return Ok(Body::Updates(Updates::new(kind, first, served, shared.observer.clone(), guard)));
            }
            IdentityState::Ready(_) | IdentityState::Denied => return Err(("denied", denied())),
            IdentityState::Unavailable(why) => {
                return Err(("unavailable", Status::new(Code::Unavailable, &*why)));
            }
            IdentityState::Pending => {}
        }
        match timeout_at(deadline, served.changed()).await {
            Ok(Ok(())) => {}
            Ok(Err(_)) => {
                return Err(("unavailable", Status::new(Code::Unavailable, "the Workload API is stopping")));
            }
            Err(_) => {
                let status = Status::new(Code::Unavailable, "the identity is not ready yet; try again");
                return Err(("pending", status));
            }
        }
    }
}

/// The messages are empty today; unknown fields are tolerated, what is no message is not.
fn check(kind: Kind, message: Bytes) -> Result<(), Status> {
    let decoded = match kind {
        Kind::Svids => X509svidRequest::decode(message).map(|_| ()),
        Kind::Bundles => X509BundlesRequest::decode(message).map(|_| ()),
    };
    decoded.map_err(|_| Status::new(Code::Internal, "the request message cannot be decoded"))
}

/// The service that hyper calls for each request of a connection.
pub(crate) struct Service {
    pub(crate) shared: Arc<Shared>,
    pub(crate) ledger: Arc<Ledger>,
}

impl hyper::service::Service<http::Request<Incoming>> for Service {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = std::pin::Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn call(&self, request: http::Request<Incoming>) -> Self::Future {
        let Some(guard) = self.ledger.request() else {
            self.shared.observer.refused("streams");
            let most = self.shared.tenant.limits().all_streams;
            let text = format!(
                "the pod has {most} streams open, as many as it may have (workloadApi.streamsPerPod); close some"
            );
            return Box::pin(ready(Ok(Status::new(Code::ResourceExhausted, text).response())));
        };
        let answer = call(self.shared.clone(), request, guard);
        Box::pin(async { Ok(answer.await) })
    }
}
