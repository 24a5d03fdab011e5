//! The agent's `seamount.node.v1`, on the CSI socket.

use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::{CWD, Mode, OFlags};
use seamount_proto::node::node_client::NodeClient;
use seamount_proto::node::{GetStatusRequest, GetStatusResponse, ListVolumesRequest, Volume};
use tonic::Code;
use tonic::transport::{Channel, Endpoint};

/// Why the agent did not say anything.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Failure {
    /// The socket cannot be connected to.
    #[error("{socket}: {reason}; `seamount node doctor` says what is wrong")]
    Connect {
        /// Its path.
        socket: PathBuf,
        /// The system's words.
        reason: String,
    },
    /// Connected, and nothing came: the socket outlives the agent.
    #[error(
        "{socket}: connected, but no answer within {seconds:.1} s: the mounter keeps the socket, and the agent does not \
         serve it; `seamount node doctor` says what is wrong"
    )]
    Silent {
        /// Its path.
        socket: PathBuf,
        /// How long.
        seconds: f64,
    },
    /// The connection was cut.
    #[error(
        "{socket}: the agent closed the connection: only the kubelet's user may use it (run as root, or as kubeletUid)"
    )]
    Closed {
        /// Its path.
        socket: PathBuf,
    },
    /// An agent that does not know the question.
    #[error("{socket}: the agent is of an older release, which has no `seamount node`: roll the DaemonSet")]
    Old {
        /// Its path.
        socket: PathBuf,
    },
    /// Anything else.
    #[error("{socket}: {reason}")]
    Other {
        /// Its path.
        socket: PathBuf,
        /// The agent's words.
        reason: String,
    },
}

/// Volumes, and why the mounter could not be asked, if it could not.
pub type Listed = (Vec<Volume>, Option<String>);

/// The way to the agent.
pub struct Client {
    socket: PathBuf,
    timeout: Duration,
}

impl Client {
    /// To the agent of this driver.
    pub fn new(kubelet_root: &Path, driver: &str, timeout: Duration) -> Self {
        Self { socket: kubelet_root.join("plugins").join(driver).join("csi.sock"), timeout }
    }

    /// What the agent says of itself and its node.
    pub async fn status(&self) -> Result<GetStatusResponse, Failure> {
        self.within(async |mut client| {
            client.get_status(GetStatusRequest {}).await.map(tonic::Response::into_inner)
        })
        .await
    }

    /// All volumes.
    pub async fn volumes(&self) -> Result<Listed, Failure> {
        self.within(async |mut client| {
            let mut parts = client.list_volumes(ListVolumesRequest {}).await?.into_inner();
            let (mut all, mut problem) = (Vec::new(), None);
            while let Some(part) = parts.message().await? {
                all.extend(part.volumes);
                problem = problem.or(Some(part.mounter_problem).filter(|p| !p.is_empty()));
            }
            Ok((all, problem))
        })
        .await
    }

    async fn within<T>(
        &self,
        call: impl AsyncFnOnce(NodeClient<Channel>) -> Result<T, tonic::Status>,
    ) -> Result<T, Failure> {
        let socket = self.socket.clone();
        let answer = async { call(NodeClient::new(self.connect().await?)).await.map_err(|s| self.of(&s)) };
        match tokio::time::timeout(self.timeout, answer).await {
            Ok(answer) => answer,
            Err(_) => Err(Failure::Silent { socket, seconds: self.timeout.as_secs_f64() }),
        }
    }

    async fn connect(&self) -> Result<Channel, Failure> {
        let fail = |reason: String| Failure::Connect { socket: self.socket.clone(), reason };
        // Through a descriptor: an address has at most 107 bytes, a path may have more.
        let directory = self.socket.parent().unwrap_or(&self.socket);
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let directory = rustix::fs::openat(CWD, directory, flags, Mode::empty())
            .map_err(|e| fail(std::io::Error::from(e).to_string()))?;
        let number = std::os::fd::AsRawFd::as_raw_fd(&directory);
        let endpoint = Endpoint::from_shared(format!("unix:///proc/self/fd/{number}/csi.sock"))
            .map_err(|e| fail(e.to_string()))?;
        let channel = endpoint.connect().await.map_err(|e| fail(innermost(&e)))?;
        drop(directory);
        Ok(channel)
    }

    fn of(&self, status: &tonic::Status) -> Failure {
        let socket = self.socket.clone();
        match status.code() {
            Code::Unimplemented => Failure::Old { socket },
            // What the client makes of a connection that was cut.
            Code::Unavailable | Code::Cancelled | Code::Unknown => Failure::Closed { socket },
            _ => Failure::Other { socket, reason: status.message().to_owned() },
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
