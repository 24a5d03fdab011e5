//! From a request to its method.

use std::{convert::Infallible, future::ready, sync::Arc};

use bytes::Bytes;
use http::{Method as HttpMethod, StatusCode};
use hyper::body::Incoming;
use tokio::time::{Instant, timeout_at};
use tower::ServiceExt as _;

use crate::{
    body::{Body, Once, Updates, denied},
    grpc::{is_grpc, streaming},
    handler::{Handler, Step, View},
    message::read_message,
    methods::{self, Method, Serves},
    shared::Shared,
    state::IdentityState,
    status::{Code, Refusal, Status},
    tenant::{Ledger, Request},
};

/// The header that keeps a browser, or a proxy that is tricked, from asking (Workload Endpoint §4).
const SECURITY_HEADER: &str = "workload.spiffe.io";

/// Answers one request.
async fn call(shared: Arc<Shared>, request: http::Request<Incoming>, guard: Request) -> http::Response<Body> {
    if request.method() != HttpMethod::POST {
        shared.observer.refused("http");
        let status = Status::new(Code::Internal, "gRPC requests are POST");
        return status.response_with(StatusCode::METHOD_NOT_ALLOWED);
    }
    if !is_grpc(request.headers()) {
        shared.observer.refused("http");
        let status = Status::new(Code::InvalidArgument, "content-type must be application/grpc");
        return status.response_with(StatusCode::UNSUPPORTED_MEDIA_TYPE);
    }
    match answer(&shared, request, guard).await {
        Ok(response) => response,
        Err(Refusal { why, status }) => {
            shared.observer.refused(why);
            status.response()
        }
    }
}

/// What the request's row says.
async fn answer(
    shared: &Shared,
    request: http::Request<Incoming>,
    guard: Request,
) -> Result<http::Response<Body>, Refusal> {
    let method = methods::find(request.uri().path()).ok_or_else(unimplemented)?;
    if method.serves == Serves::Identity && !has_security_header(request.headers()) {
        let status = Status::new(Code::InvalidArgument, "security header missing from request");
        return Err(Refusal::new("security header", status));
    }
    let guard = guard.charge(method.cost).ok_or_else(|| {
        let text = "the pod has too many reflection streams open; close one";
        Refusal::new("reflection", Status::new(Code::ResourceExhausted, text))
    })?;
    let deadline = Instant::now() + shared.timing.request;
    match method.handler {
        Handler::Stream(open) => {
            let message = message_of(request, deadline).await?;
            let view = open(message).map_err(|status| Refusal::new("request", status))?;
            stream(shared, method, view, guard).await
        }
        Handler::Unary(answer) => {
            let message = message_of(request, deadline).await?;
            let answer = timeout_at(deadline, answer(shared, message)).await.map_err(|_| too_slow())??;
            Ok(streaming(Body::Once(Once::new(answer, guard))))
        }
        Handler::Tonic(service) => {
            let service = service(shared).ok_or_else(unimplemented)?;
            let response = timeout_at(deadline, service.oneshot(request)).await.map_err(|_| too_slow())?;
            let Ok(response) = response;
            Ok(response.map(|body| Body::Tonic { body, request: guard }))
        }
        Handler::NotBuilt => Err(unimplemented()),
    }
}

/// Exactly once, and exactly `true` (Workload Endpoint §4).
fn has_security_header(headers: &http::HeaderMap) -> bool {
    let mut values = headers.get_all(SECURITY_HEADER).iter();
    values.next().is_some_and(|value| value == "true") && values.next().is_none()
}

fn unimplemented() -> Refusal {
    Refusal::new("method", Status::new(Code::Unimplemented, "this method is not implemented"))
}

fn too_slow() -> Refusal {
    Refusal::new("request", Status::new(Code::DeadlineExceeded, "the request did not arrive in time"))
}

/// The one message of the request.
async fn message_of(request: http::Request<Incoming>, deadline: Instant) -> Result<Bytes, Refusal> {
    let message = timeout_at(deadline, read_message(request.into_body())).await.map_err(|_| too_slow())?;
    message.map_err(|status| Refusal::new("request", status))
}

/// Waits until there is something to begin with.
async fn stream(
    shared: &Shared,
    method: &Method,
    view: View,
    guard: Request,
) -> Result<http::Response<Body>, Refusal> {
    let unavailable = |why, text: &str| Refusal::new(why, Status::new(Code::Unavailable, text));
    let mut served = shared.served.clone();
    let deadline = Instant::now() + shared.timing.pending;
    loop {
        // Not looked at in place: a message that is made now would keep the sender waiting.
        let now: IdentityState = served.borrow_and_update().clone();
        match view(&now) {
            Step::Send(first) => {
                let observer = (method.serves == Serves::Identity).then(|| shared.observer.clone());
                return Ok(streaming(Body::Updates(Updates::new(view, first, served, observer, guard))));
            }
            Step::Denied => return Err(Refusal::new("denied", denied())),
            Step::Unavailable(why) => return Err(unavailable("unavailable", &why)),
            Step::Wait => {}
        }
        match timeout_at(deadline, served.changed()).await {
            Ok(Ok(())) => {}
            Ok(Err(_)) => return Err(unavailable("unavailable", "the Workload API is stopping")),
            Err(_) => return Err(unavailable("pending", "the identity is not ready yet; try again")),
        }
    }
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
