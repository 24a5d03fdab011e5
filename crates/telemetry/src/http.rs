//! `/metrics` over TCP; `/livez` and `/readyz` over a Unix socket that no pod reaches.
//!
//! The reasons of `/readyz` tell of the node and its configuration, and a probe over the pods' network could
//! be kept out by pods.
//!
//! Liveness is the process's own progress and nothing else: a check that asked for the mounter or for the
//! kubelet's registration would restart a healthy agent for somebody else's trouble, for ever. Those are
//! conditions of readiness.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::{HeaderValue, Request, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use rustix::process::geteuid;
use rustix::time::{ClockId, clock_gettime};
use seamount_sys::watch::explain;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;
use tower::ServiceExt as _;

use crate::metrics::Registry;
use crate::readiness::{ConditionStatus, Readiness};

pub mod listen;

/// How often the agent's own loop calls [`Progress::beat`].
pub const BEAT: Duration = Duration::from_secs(1);
/// Without a beat for so long the process makes no progress. Long, because a node may be starved for seconds.
pub const STUCK: Duration = Duration::from_secs(60);

/// The process's own progress, by CLOCK_MONOTONIC: a node that was suspended for an hour comes back alive, so
/// here (unlike in rotation timers) suspension must not count.
#[derive(Debug)]
pub struct Progress {
    /// Nothing else is read by it, so relaxed will do: a beat that is seen a moment late is a moment, and the
    /// limit is many seconds.
    last: AtomicU64,
}

impl Default for Progress {
    fn default() -> Self {
        Self { last: AtomicU64::new(seconds()) }
    }
}

impl Progress {
    /// The agent's loop went round once more.
    pub fn beat(&self) {
        self.last.store(seconds(), Ordering::Relaxed);
    }

    /// How long ago the last beat was.
    pub fn silence(&self) -> Duration {
        Duration::from_secs(seconds().saturating_sub(self.last.load(Ordering::Relaxed)))
    }
}

fn seconds() -> u64 {
    u64::try_from(clock_gettime(ClockId::Monotonic).tv_sec).unwrap_or(0)
}

/// What the routes show.
#[derive(Debug, Clone, Default)]
pub struct HttpState {
    /// Conditions of readiness.
    pub readiness: Arc<Readiness>,
    /// The process's progress.
    pub progress: Arc<Progress>,
    /// Metrics.
    pub metrics: Arc<Registry>,
}

/// What is served over TCP. GET only; everything else is 404 or 405.
pub fn router(shown: HttpState) -> Router {
    Router::new().route("/metrics", get(metrics)).with_state(shown)
}

/// What is served over the health socket, likewise.
pub fn health(shown: HttpState) -> Router {
    Router::new().route("/livez", get(livez)).route("/readyz", get(readyz)).with_state(shown)
}

/// Open connections at a time. Prometheus needs one; the port may be open to every pod, and each connection
/// is a descriptor that a volume then lacks.
pub const MAX_CONNECTIONS: usize = 64;
/// How long a client may take for a request's head.
const HEAD: Duration = Duration::from_secs(10);

/// Where connections come from.
pub trait Accept {
    /// One of them.
    type Stream: AsyncRead + AsyncWrite + Unpin + Send + 'static;

    /// The next one; none where it is not let in.
    fn next(&self) -> impl Future<Output = io::Result<Option<Self::Stream>>> + Send;
}

impl Accept for TcpListener {
    type Stream = TcpStream;

    async fn next(&self) -> io::Result<Option<TcpStream>> {
        self.accept().await.map(|(stream, _)| Some(stream))
    }
}

impl Accept for UnixListener {
    type Stream = UnixStream;

    /// Root's, which the kubelet's probes are, and the agent's own.
    async fn next(&self) -> io::Result<Option<UnixStream>> {
        let (stream, _) = self.accept().await?;
        let peer = stream.peer_cred()?.uid();
        Ok((peer == 0 || peer == geteuid().as_raw()).then_some(stream))
    }
}

/// Serves until cancelled. Where one connection too many comes, the oldest is closed: a request lasts a
/// millisecond, so that idle connections of others cannot keep it out.
pub async fn serve(listener: impl Accept, router: Router, cancel: CancellationToken) -> io::Result<()> {
    let mut open: VecDeque<AbortOnDropHandle<()>> = VecDeque::new();
    let mut told = false;
    loop {
        let accepted = tokio::select! {
            () = cancel.cancelled() => return Ok(()),
            accepted = listener.next() => accepted,
        };
        let stream = match accepted {
            Ok(Some(stream)) => stream,
            Ok(None) => continue,
            // Out of descriptors or watches, or the client is gone already; a pause, because the former
            // lasts.
            Err(e) => {
                if !std::mem::replace(&mut told, true) {
                    tracing::warn!(error = %explain(e), "accept failed");
                }
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        told = false;
        open.retain(|task| !task.is_finished());
        while open.len() >= MAX_CONNECTIONS {
            open.pop_front();
        }
        open.push_back(AbortOnDropHandle::new(tokio::spawn(connection(stream, router.clone()))));
        // It has its turn before the next one is taken on: a burst would else close a probe that nobody has
        // looked at.
        tokio::task::yield_now().await;
    }
}

async fn connection(stream: impl AsyncRead + AsyncWrite + Unpin, router: Router) {
    let service = service_fn(move |request: Request<Incoming>| router.clone().oneshot(request));
    let served = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD)
        .max_buf_size(16 * 1024)
        .serve_connection(TokioIo::new(stream), service)
        .await;
    // Whatever a client does wrong is its own business.
    if let Err(why) = served {
        tracing::debug!(error = %why, "HTTP connection");
    }
}

async fn livez(State(shown): State<HttpState>) -> Response {
    live(shown.progress.silence())
}

fn live(silence: Duration) -> Response {
    if silence < STUCK {
        return (StatusCode::OK, "ok\n").into_response();
    }
    let text = format!("no progress for {} s\n", silence.as_secs());
    (StatusCode::SERVICE_UNAVAILABLE, text).into_response()
}

/// One line for each condition: `[+]` met, `[-]` not met, `[ ]` not needed.
async fn readyz(State(shown): State<HttpState>) -> Response {
    let all = shown.readiness.all();
    let mut text = String::new();
    let mut code = StatusCode::OK;
    for (condition, status) in &all {
        let line = match status {
            ConditionStatus::Ready(remark) if remark.is_empty() => format!("[+] {condition}\n"),
            ConditionStatus::Ready(remark) => format!("[+] {condition}: {remark}\n"),
            ConditionStatus::NotReady(why) => {
                code = StatusCode::SERVICE_UNAVAILABLE;
                format!("[-] {condition}: {why}\n")
            }
            ConditionStatus::NotNeeded => format!("[ ] {condition}: not needed\n"),
        };
        text.push_str(&line);
    }
    text.push_str(if code == StatusCode::OK { "ready\n" } else { "not ready\n" });
    (code, text).into_response()
}

async fn metrics(State(shown): State<HttpState>) -> Response {
    const OPEN_METRICS: HeaderValue =
        HeaderValue::from_static("application/openmetrics-text; version=1.0.0; charset=utf-8");
    match shown.metrics.encode() {
        Ok(text) => ([(header::CONTENT_TYPE, OPEN_METRICS)], text).into_response(),
        Err(_) => (StatusCode::INTERNAL_SERVER_ERROR, "metrics cannot be encoded\n").into_response(),
    }
}

#[cfg(test)]
mod tests;
