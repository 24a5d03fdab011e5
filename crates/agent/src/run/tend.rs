//! Looks again and again whether the kubelet still finds what it has to find by name.
//!
//! Sockets and directories are removed by hand, by cleaners and by upgrades. The agent goes on to serve its
//! descriptors then, and nothing but a look at the names shows that no pod can start any more. The mounter
//! looks, and binds anew.

use std::time::Duration;

use seamount_telemetry::readiness::ConditionStatus;
use tokio::time::Instant;

use super::kubelet_server::KubeletServer;
use super::{AttachError, NodeSupervisor, close};
use crate::mounter::{InPlace, Listener};
use crate::readiness;
use crate::record::Registration;

/// How often.
pub(super) const EVERY: Duration = Duration::from_secs(5);
/// How long the mounter may take: the kubelet waits for 3 s until its word is recorded, by the same task.
const LIMIT: Duration = Duration::from_secs(2);

/// What was found missing, and could not be put back.
#[derive(Debug, Default)]
pub(super) struct Lost {
    /// Why a socket's name does not lead to the agent.
    pub sockets: Option<String>,
    /// Why there is no place for records.
    state: bool,
    /// Whether the node's record was written, so that its absence says that records were removed.
    pub recorded: bool,
    /// What is said of the mounter when all is well.
    pub build: String,
}

impl NodeSupervisor {
    /// Looks, takes over what the mounter has made anew, and offers the registration where it is due.
    pub(super) async fn tend(&mut self) {
        let sockets = match self.mounter.in_place(LIMIT).await {
            Ok(found) => {
                let state = found.state;
                let sockets = self.follow(found).err();
                self.tend_state(state).await;
                sockets.map(|e| e.to_string())
            }
            Err(e) if e.is_fault() => Some(e.to_string()),
            // That is the connection's matter; the next look is soon.
            Err(_) => return,
        };
        if sockets != self.lost.sockets {
            if let Some(why) = &sockets {
                tracing::error!(reason = %why, "the kubelet does not find the driver");
            }
            self.lost.sockets = sockets;
            self.tell_registration();
        }
        self.offer().await;
    }

    fn follow(&mut self, found: InPlace) -> Result<(), AttachError> {
        let InPlace { csi, registration, .. } = found;
        let other = |server: &Option<KubeletServer>, listener: &Listener| {
            server.as_ref().map(KubeletServer::cookie) != Some(listener.cookie)
        };
        if other(&self.csi, &csi) {
            tracing::warn!("the CSI socket was removed or replaced, and was made anew");
            let old = self.csi.replace(KubeletServer::new("csi", csi)?);
            tokio::spawn(close(old));
        }
        if other(&self.registration, &registration) {
            tracing::warn!("the registration socket was removed or replaced, and was made anew");
            let old = self.register_by(registration)?;
            tokio::spawn(close(old));
            self.offers.restart(Instant::now());
        }
        self.open_servers();
        Ok(())
    }

    /// Has the kubelet register the driver by another listener; returns the server before.
    pub(super) fn register_by(&mut self, listener: Listener) -> Result<Option<KubeletServer>, AttachError> {
        let old = self.registration.replace(KubeletServer::new("registration", listener)?);
        self.recorded.send_replace(Registration::Unknown);
        self.registered.send_replace(Registration::Unknown);
        Ok(old)
    }

    /// Takes another state directory where ours was unmounted or removed, and writes what was removed from
    /// it.
    async fn tend_state(&mut self, found: Option<(u64, u64)>) {
        let wiped =
            self.lost.recorded && self.state.as_ref().is_some_and(|s| matches!(s.get_node(), Ok(None)));
        let other = match found == self.state_id {
            true => Ok(false),
            false => self.take_state().await,
        };
        match other {
            Ok(other) => {
                if other || wiped {
                    tracing::warn!("the records were removed or unmounted, and are written anew");
                    self.volumes.store_all().await;
                    self.record_registration();
                }
                if std::mem::take(&mut self.lost.state) {
                    self.manager.set(readiness::MOUNTER, ConditionStatus::Ready(self.lost.build.clone()));
                }
            }
            Err(e) => {
                self.lost.state = true;
                self.manager.set(readiness::MOUNTER, ConditionStatus::NotReady(e.to_string()));
            }
        }
    }

    /// Where the kubelet has not registered the driver, it may have missed the socket.
    async fn offer(&mut self) {
        let now = Instant::now();
        if self.lost.sockets.is_some() || *self.registered.borrow() == Registration::Registered {
            self.offers.restart(now);
        } else if self.offers.take(now) {
            match self.mounter.offer(LIMIT).await {
                Ok(()) => tracing::info!("the registration is offered to the kubelet again"),
                Err(e) => {
                    tracing::warn!(error = %e, "the registration could not be offered to the kubelet again")
                }
            }
        }
    }
}
