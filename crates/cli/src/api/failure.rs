//! Why there is no answer, and what to do about it.

use std::fmt::Display;
use std::io;
use std::path::PathBuf;
use std::time::Duration;

use spiffe::WorkloadApiError;
use spiffe::transport::{GrpcStatusCode, TransportError};

const VOLUME: &str = "add to the pod\n  \
    volumes: [{name: spiffe, csi: {driver: csi.spiffe.io, readOnly: true}}]\n\
    and to the container\n  \
    volumeMounts: [{name: spiffe, mountPath: /spiffe-workload-api, readOnly: true}]\n  \
    env: [{name: SPIFFE_ENDPOINT_SOCKET, value: \"unix:///spiffe-workload-api/spire-agent.sock\"}]";

/// Why there is no answer from the Workload API.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// No socket was named and none is at the usual places.
    #[error(
        "there is no Workload API socket: neither --socket nor SPIFFE_ENDPOINT_SOCKET is set, and none of {} is \
         there; {VOLUME}",
        list(tried)
    )]
    NoSocket {
        /// Where one was looked for.
        tried: Vec<PathBuf>,
    },
    /// The socket's address is not one.
    #[error("{origin} {value:?} is not the address of a Workload API: {reason}; give a path or unix:///PATH")]
    Address {
        /// `--socket` or `SPIFFE_ENDPOINT_SOCKET`.
        origin: &'static str,
        /// What it is.
        value: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The socket is not there.
    #[error(
        "{socket} does not exist: is the volume mounted in this container, and under this path? If not, {VOLUME}"
    )]
    Missing {
        /// Which.
        socket: String,
    },
    /// Something else is there.
    #[error("{socket} is not a socket: name the socket in the volume (spire-agent.sock), not the directory")]
    NotASocket {
        /// Which.
        socket: String,
    },
    /// The socket cannot be reached by this user.
    #[error(
        "{socket} is out of reach: {source}; is a security module in the way, or a directory above it closed?"
    )]
    Unreachable {
        /// Which.
        socket: String,
        /// What the system says.
        source: io::Error,
    },
    /// No process listens.
    #[error(
        "no process answers at {socket} ({reason}): the agent on this node is not running, or the volume is stale; \
         look at the node's agent (kubectl -n seamount-system get pods -l app.kubernetes.io/name=seamount -o wide), \
         and if it is well, restart this pod"
    )]
    NoConnection {
        /// Which socket.
        socket: String,
        /// What the transport says.
        reason: String,
    },
    /// PermissionDenied.
    #[error(
        "{socket}: the authority gives this pod no identity (PermissionDenied: {message}): it knows who the pod is \
         and refuses. Its namespace and service account decide; ask whoever runs the trust domain"
    )]
    Denied {
        /// Which socket.
        socket: String,
        /// The server's words.
        message: String,
    },
    /// Unavailable.
    #[error(
        "{socket}: there is no identity yet (Unavailable: {message}): the agent has just started, waits for the \
         pod's token, or cannot reach its authority. Try again in a moment; if it stays, look at the agent's log \
         (kubectl -n seamount-system logs -l app.kubernetes.io/name=seamount -c agent)"
    )]
    Unavailable {
        /// Which socket.
        socket: String,
        /// The server's words.
        message: String,
    },
    /// No answer in time.
    #[error(
        "{socket}: no answer within {deadline:?}: the agent holds the call until it has an identity; wait longer with --timeout"
    )]
    Timeout {
        /// Which socket.
        socket: String,
        /// How long.
        deadline: Duration,
    },
    /// The stream is over.
    #[error("{socket}: the stream ended; the agent restarts, or the volume was taken away")]
    Ended {
        /// Which socket.
        socket: String,
    },
    /// Anything else: the server is not one that keeps to the standard.
    #[error(
        "{socket}: the answer is not what the Workload API promises: {source}; is this the right socket?"
    )]
    Other {
        /// Which socket.
        socket: String,
        /// What the client says.
        source: Box<WorkloadApiError>,
    },
}

impl Failure {
    /// Names the client's error.
    pub fn of(endpoint: &impl Display, error: WorkloadApiError) -> Self {
        let socket = endpoint.to_string();
        match error {
            WorkloadApiError::NoIdentityIssued => {
                Self::Denied { socket, message: "no identity issued".to_owned() }
            }
            WorkloadApiError::PermissionDenied(message) => Self::Denied { socket, message },
            WorkloadApiError::EmptyResponse => Self::Ended { socket },
            WorkloadApiError::Transport(TransportError::Connect(error)) => {
                Self::NoConnection { socket, reason: innermost(&error) }
            }
            WorkloadApiError::Transport(TransportError::Status(status)) => match status.code() {
                GrpcStatusCode::Unavailable => {
                    Self::Unavailable { socket, message: status.message().to_owned() }
                }
                // What the client makes of a connection that was cut.
                GrpcStatusCode::Cancelled | GrpcStatusCode::Unknown => Self::Ended { socket },
                _ => Self::Other {
                    socket,
                    source: Box::new(WorkloadApiError::Transport(TransportError::Status(status))),
                },
            },
            error => Self::Other { socket, source: Box::new(error) },
        }
    }

    /// Whether it may be over by itself (Workload Endpoint, 6: Unavailable and PermissionDenied are retried).
    pub fn may_pass(&self) -> bool {
        match self {
            Self::Missing { .. }
            | Self::NoConnection { .. }
            | Self::Denied { .. }
            | Self::Unavailable { .. }
            | Self::Ended { .. } => true,
            Self::NoSocket { .. }
            | Self::Address { .. }
            | Self::NotASocket { .. }
            | Self::Unreachable { .. }
            | Self::Timeout { .. }
            | Self::Other { .. } => false,
        }
    }
}

fn innermost(error: &dyn std::error::Error) -> String {
    let mut error = error;
    while let Some(source) = error.source() {
        error = source;
    }
    error.to_string()
}

fn list(paths: &[PathBuf]) -> String {
    paths.iter().map(|path| path.display().to_string()).collect::<Vec<_>>().join(", ")
}
