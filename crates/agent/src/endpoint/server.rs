//! gRPC for the kubelet: hyper's HTTP/2 and the generated services.

use std::convert::Infallible;
use std::future::{Ready, ready};
use std::pin::pin;
use std::sync::Arc;

use futures_util::future::Either;
use futures_util::{Stream, StreamExt as _};
use http::{Request, Response};
use hyper::body::Incoming;
use hyper::server::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use seamount_workload_api::authority_header::AuthorityHeaderFilter;
use seamount_workload_api::read_interest::ReadInterestStream;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tonic::Status;
use tonic::body::Body;
use tonic::server::NamedService;
use tower::util::{BoxCloneSyncService, Oneshot};
use tower::{Service, ServiceExt as _};

/// gRPC services of one socket, by the name that is the first part of a call's path.
///
/// In the place of tonic's server and router, whose layers are for what no kubelet asks.
#[derive(Clone, Default)]
pub struct Services(Arc<Vec<(&'static str, Answering)>>);

type Answering = BoxCloneSyncService<Request<Incoming>, Response<Body>, Infallible>;

impl Services {
    /// These, and one that is generated.
    #[must_use]
    pub fn with<S>(mut self, service: S) -> Self
    where
        S: NamedService
            + Service<Request<Incoming>, Response = Response<Body>, Error = Infallible>
            + Clone
            + Send
            + Sync
            + 'static,
        S::Future: Send,
    {
        Arc::make_mut(&mut self.0).push((S::NAME, BoxCloneSyncService::new(service)));
        self
    }

    fn find(&self, path: &str) -> Option<Answering> {
        let (name, _) = path.strip_prefix('/')?.split_once('/')?;
        self.0.iter().find(|(known, _)| *known == name).map(|(_, service)| service.clone())
    }
}

impl hyper::service::Service<Request<Incoming>> for Services {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Either<Oneshot<Answering, Request<Incoming>>, Ready<Result<Response<Body>, Infallible>>>;

    fn call(&self, request: Request<Incoming>) -> Self::Future {
        match self.find(request.uri().path()) {
            Some(service) => Either::Left(service.oneshot(request)),
            None => {
                let status = Status::unimplemented(format!("{} is not served here", request.uri().path()));
                Either::Right(ready(Ok(status.into_http())))
            }
        }
    }
}

/// Serves connections until cancelled; returns when the calls in flight are answered. Dropping it ends them.
///
/// Connections are started by this loop alone, and cancelling is looked at first: after it none is, each one
/// that is there is told by the same token and ends after its last call (`graceful_shutdown`), and the loop
/// at the end sees all of them. An aborted task drops the set, and that aborts them. What an operation has
/// begun goes on in a task of its own (`to_its_end`).
pub async fn serve(
    incoming: impl Stream<Item = AuthorityHeaderFilter<ReadInterestStream>>,
    services: Services,
    what: &'static str,
    cancel: CancellationToken,
) {
    let mut incoming = pin!(incoming);
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            biased;
            () = cancel.cancelled() => break,
            Some(_) = connections.join_next() => {}
            stream = incoming.next() => match stream {
                Some(stream) => drop(connections.spawn(connection(stream, services.clone(), what, cancel.clone()))),
                None => break,
            },
        }
    }
    while connections.join_next().await.is_some() {}
    tracing::debug!(socket = what, "closed");
}

async fn connection(
    stream: AuthorityHeaderFilter<ReadInterestStream>,
    services: Services,
    what: &'static str,
    cancel: CancellationToken,
) {
    let served = http2::Builder::new(TokioExecutor::new())
        .auto_date_header(false)
        .serve_connection(TokioIo::new(stream), services);
    let mut served = pin!(served);
    let ended = tokio::select! {
        ended = served.as_mut() => ended,
        () = cancel.cancelled() => {
            served.as_mut().graceful_shutdown();
            served.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(socket = what, %error, "a connection ended");
    }
}
