//! Plugin registration: the kubelet's plugin watcher and its CSI handler.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use seamount_proto::csi;
use seamount_proto::csi::node_client::NodeClient;
use seamount_proto::registration as proto;
use seamount_proto::registration::registration_client::RegistrationClient;
use tonic::Status;
use tonic::transport::Channel;

use super::{Kubelet, KubeletError, connect, within};

const DIAL_TIMEOUT: Duration = Duration::from_secs(10);
const INFO_TIMEOUT: Duration = Duration::from_secs(1);
const NOTIFY_TIMEOUT: Duration = Duration::from_secs(5);
const POLL: Duration = Duration::from_millis(50);

/// What a driver told at its registration.
#[derive(Debug, Clone, PartialEq)]
pub struct NodeInfo {
    /// The driver's name.
    pub driver: String,
    /// The registration socket.
    pub socket: PathBuf,
    /// The CSI socket.
    pub endpoint: PathBuf,
    /// The versions of CSI that it claims.
    pub versions: Vec<String>,
    /// NodeGetInfo's answer.
    pub node: csi::NodeGetInfoResponse,
    /// NodeGetCapabilities' answer, as the numbers of `csi::node_service_capability::rpc::Type`.
    pub capabilities: Vec<i32>,
}

/// What a look at the registration directory led to.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// A new socket, and its driver is registered now.
    Registered(NodeInfo),
    /// A new socket, and the registration failed; the next look tries again.
    Failed {
        /// The registration socket.
        socket: PathBuf,
        /// Why.
        reason: String,
    },
    /// The socket of a registered driver is gone, or another is in its place.
    Deregistered {
        /// The driver's name.
        driver: String,
    },
}

/// Which inode of the file system a socket is.
pub(super) type Identity = (u64, u64, i64, i64);

/// By socket, what its driver told; none where the kubelet has seen the socket, and has not registered the
/// driver.
#[derive(Debug, Default)]
pub(super) struct State(BTreeMap<PathBuf, (Identity, Option<NodeInfo>)>);

impl State {
    pub(super) fn endpoint(&self, driver: &str) -> Option<&Path> {
        self.infos().find(|info| info.driver == driver).map(|info| info.endpoint.as_path())
    }

    fn infos(&self) -> impl Iterator<Item = &NodeInfo> {
        self.0.values().filter_map(|(_, info)| info.as_ref())
    }
}

impl Kubelet {
    /// Looks once at the registration directory, as the kubelet's watcher does at each change of it:
    /// registers drivers of new sockets, deregisters those whose socket is gone. A socket that was made anew
    /// is both.
    ///
    /// # Errors
    /// If the directory cannot be read. A driver that fails is an [`Event::Failed`].
    pub async fn poll_registrations(&self) -> Result<Vec<Event>, KubeletError> {
        let sockets = self.registration_sockets()?;
        let mut events = Vec::new();
        self.state().0.retain(|socket, (identity, info)| {
            let still_there = sockets.iter().any(|found| &found.0 == socket && &found.1 == identity);
            if !still_there && let Some(info) = info {
                events.push(Event::Deregistered { driver: info.driver.clone() });
            }
            still_there
        });
        for (socket, identity) in sockets {
            if self.state().0.contains_key(&socket) {
                continue;
            }
            match self.register_socket(&socket).await {
                Ok(info) => {
                    self.state().0.insert(socket, (identity, Some(info.clone())));
                    events.push(Event::Registered(info));
                }
                Err(reason) => events.push(Event::Failed { socket, reason }),
            }
        }
        Ok(events)
    }

    /// Waits until the kubelet's driver is registered, beginning with none as after a restart of the kubelet.
    ///
    /// # Errors
    /// [`KubeletError::NotRegistered`] after `deadline`, with the last reason.
    pub async fn register(&self, deadline: Duration) -> Result<NodeInfo, KubeletError> {
        self.forget_registrations();
        let started = Instant::now();
        let mut last = format!("no socket in {}", self.root.join("plugins_registry").display());
        loop {
            for event in self.poll_registrations().await? {
                match event {
                    Event::Registered(info) if info.driver == self.driver => return Ok(info),
                    Event::Registered(info) => last = format!("only driver {} did", info.driver),
                    Event::Failed { reason, .. } => last = reason,
                    Event::Deregistered { .. } => {}
                }
            }
            if started.elapsed() > deadline {
                return Err(KubeletError::NotRegistered {
                    driver: self.driver.clone(),
                    deadline,
                    reason: last,
                });
            }
            tokio::time::sleep(POLL).await;
        }
    }

    /// Loses the events of all sockets that are there, as a kubelet whose watcher missed them: none of them
    /// is looked at until it appears again.
    ///
    /// # Errors
    /// If the directory cannot be read.
    pub fn miss_registrations(&self) -> Result<(), KubeletError> {
        for (socket, identity) in self.registration_sockets()? {
            self.state().0.insert(socket, (identity, None));
        }
        Ok(())
    }

    /// Asks the drivers of new sockets, tells each that it is refused, and leaves it at that until the socket
    /// appears again. Returns how many there were.
    ///
    /// # Errors
    /// If the directory cannot be read.
    pub async fn refuse_registrations(&self, reason: &str) -> Result<usize, KubeletError> {
        let mut refused = 0;
        for (socket, identity) in self.registration_sockets()? {
            let known = self.state().0.get(&socket).is_some_and(|(known, _)| *known == identity);
            if !known && self.refuse_socket(&socket, reason).await.is_ok() {
                self.state().0.insert(socket, (identity, None));
                refused += 1;
            }
        }
        Ok(refused)
    }

    async fn refuse_socket(&self, socket: &Path, reason: &str) -> Result<(), Status> {
        let mut client = RegistrationClient::new(connect(socket, DIAL_TIMEOUT).await?);
        within(INFO_TIMEOUT, client.get_info(proto::InfoRequest {})).await?;
        notify(&mut client, Some(reason.to_owned())).await
    }

    /// Forgets what is registered, as the kubelet does when it restarts.
    pub fn forget_registrations(&self) {
        self.state().0.clear();
    }

    /// What is registered now.
    pub fn registrations(&self) -> Vec<NodeInfo> {
        self.state().infos().cloned().collect()
    }

    async fn register_socket(&self, socket: &Path) -> Result<NodeInfo, String> {
        let at = |what: &str, status: &Status| {
            format!("{what} at {} failed: {} ({:?})", socket.display(), status.message(), status.code())
        };
        let channel = connect(socket, DIAL_TIMEOUT).await.map_err(|status| at("the connection", &status))?;
        let mut client = RegistrationClient::new(channel);
        let info = within(INFO_TIMEOUT, client.get_info(proto::InfoRequest {}))
            .await
            .map_err(|status| at("GetInfo", &status))?
            .into_inner();
        match self.accept(socket, info).await {
            Ok(info) => {
                notify(&mut client, None).await.map_err(|status| at("NotifyRegistrationStatus", &status))?;
                Ok(info)
            }
            Err(reason) => {
                let _ = notify(&mut client, Some(reason.clone())).await;
                Err(reason)
            }
        }
    }

    async fn accept(&self, socket: &Path, info: proto::PluginInfo) -> Result<NodeInfo, String> {
        if info.r#type != "CSIPlugin" {
            return Err(format!("no handler registered for plugin type: {}", info.r#type));
        }
        if info.supported_versions.is_empty() {
            return Err("plugin returned an empty list for supported versions".to_owned());
        }
        // The kubelet takes any 0.x and 1.x.
        if !info.supported_versions.iter().any(|v| v.starts_with("1.") || v.starts_with("0.")) {
            return Err(format!(
                "none of the versions specified {:?} are supported",
                info.supported_versions
            ));
        }
        let endpoint =
            if info.endpoint.is_empty() { socket.to_owned() } else { PathBuf::from(&info.endpoint) };
        let failed = |call: &str, status: &Status| {
            format!("{call} at {} failed: {} ({:?})", endpoint.display(), status.message(), status.code())
        };
        let channel =
            connect(&endpoint, self.timeout).await.map_err(|status| failed("the connection", &status))?;
        let mut client: NodeClient<Channel> = NodeClient::new(channel);
        let node = within(self.timeout, client.node_get_info(csi::NodeGetInfoRequest {}))
            .await
            .map_err(|status| failed("NodeGetInfo", &status))?
            .into_inner();
        if node.node_id.is_empty() {
            return Err("error adding CSI driver node info: driverNodeID must not be empty".to_owned());
        }
        let capabilities =
            within(self.timeout, client.node_get_capabilities(csi::NodeGetCapabilitiesRequest {}))
                .await
                .map_err(|status| failed("NodeGetCapabilities", &status))?
                .into_inner()
                .capabilities
                .into_iter()
                .filter_map(|capability| capability.r#type)
                .map(|csi::node_service_capability::Type::Rpc(rpc)| rpc.r#type)
                .collect();
        Ok(NodeInfo {
            driver: info.name,
            socket: socket.to_owned(),
            endpoint,
            versions: info.supported_versions,
            node,
            capabilities,
        })
    }
}

async fn notify(client: &mut RegistrationClient<Channel>, error: Option<String>) -> Result<(), Status> {
    let status =
        proto::RegistrationStatus { plugin_registered: error.is_none(), error: error.unwrap_or_default() };
    within(NOTIFY_TIMEOUT, client.notify_registration_status(status)).await.map(drop)
}
