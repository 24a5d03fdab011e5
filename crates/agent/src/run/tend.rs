//! Looks again and again whether the kubelet still finds what it has to find by name.
//!
//! Sockets and directories are removed by hand, by cleaners and by upgrades. The agent goes on to serve its
//! descriptors then, and nothing but a look at the names shows that no pod can start any more. The mounter
//! looks, and binds anew.

use futures_util::future::join_all;

use super::attach::LIMIT;
use super::driver::Driver;
use super::supervisor::NodeSupervisor;
use crate::readiness;
use seamount_telemetry::readiness::ConditionStatus;

impl NodeSupervisor {
    /// Looks, takes over what the mounter has made anew, and offers registrations where they are due.
    pub(super) async fn tend(&mut self) {
        let asked = self.drivers.iter().map(|driver| self.mounter.in_place(driver.name(), LIMIT));
        let found = join_all(asked).await;
        // Where no driver's sockets can be had the mounter is asked for the state itself.
        let state = found.iter().find_map(|found| found.as_ref().ok()).and_then(|found| found.state);
        let mut broken = false;
        for (driver, found) in self.drivers.iter_mut().zip(found) {
            match found {
                // That is the connection's matter; the next look is soon.
                Err(e) if !e.is_fault() => broken = true,
                found => driver.follow(found),
            }
        }
        // Also where the connection broke in between: what was found of one driver is not found again.
        self.tell_registration();
        if broken {
            return;
        }
        self.open_servers();
        self.tend_state(state).await;
        let mounter = &self.mounter;
        join_all(self.drivers.iter_mut().map(|driver: &mut Driver| driver.offer(mounter))).await;
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
}
