//! All that comes from the mounter: the drivers' sockets, the state directory, the volumes.

use std::sync::Arc;
use std::time::SystemTime;

use tokio::time::Instant;

use super::AGAIN;
use super::attach::{AttachError, EVERY, Lost};
use super::driver::{Driver, Heard, hear};
use crate::config_manager::ConfigManager;
use crate::node;
use crate::readiness;
use crate::record::NodeRecord;
use crate::state::{StateDir, StateError};
use crate::volumes::Volumes;
use seamount_mounter_client::{Client, Link, MounterError};
use seamount_telemetry::readiness::ConditionStatus;

/// Follows the mounter and the kubelet.
pub(super) struct NodeSupervisor {
    pub(super) manager: Arc<ConfigManager>,
    pub(super) mounter: Client,
    pub(super) volumes: Arc<Volumes>,
    pub(super) drivers: Vec<Driver>,
    /// Served beside each driver.
    node: node::Service,
    pub(super) lost: Lost,
    pub(super) state: Option<Arc<StateDir>>,
    /// Device and inode of the state directory.
    pub(super) state_id: Option<(u64, u64)>,
    generation: u64,
    restored: bool,
}

impl NodeSupervisor {
    pub fn new(manager: Arc<ConfigManager>, mounter: Client, volumes: Arc<Volumes>) -> Self {
        let drivers: Vec<_> = manager.bootstrap().drivers.iter().cloned().map(Driver::new).collect();
        let node = node::Service {
            manager: Arc::clone(&manager),
            volumes: Arc::clone(&volumes),
            mounter: mounter.clone(),
            registrations: drivers.iter().map(|driver| (driver.name().clone(), driver.shown())).collect(),
            started: SystemTime::now(),
        };
        Self {
            manager,
            mounter,
            volumes,
            drivers,
            node,
            lost: Lost::default(),
            state: None,
            state_id: None,
            generation: 0,
            restored: false,
        }
    }

    /// Follows the connection to the mounter, and what the kubelet says, for ever.
    ///
    /// One task, so nothing here is locked. A connection is marked as seen before it is attached to; if it
    /// breaks meanwhile, the attempt fails or is followed by `changed`, and the next one has another number.
    /// What the kubelet says is sent by the driver's service, recorded here alone, and answered when
    /// `recorded` says so: neither can overtake the other.
    pub async fn keep(&mut self) {
        let mut link = self.mounter.link();
        let mut news: Vec<_> = self.drivers.iter().map(Driver::news).collect();
        let mut done = 0;
        let mut pause = AGAIN / 16;
        let mut next = Instant::now();
        self.tell_registration();
        loop {
            let now = link.borrow_and_update().clone();
            let connected = matches!(now, Link::Up(_));
            match now {
                Link::Up(up) if up.number != done => match self.attach().await {
                    Ok(()) => {
                        (done, pause) = (up.number, AGAIN / 16);
                        // What the mounter refused for one driver is asked for again soon.
                        let lost = self.drivers.iter().any(Driver::is_lost);
                        next = Instant::now() + if lost { AGAIN } else { EVERY };
                        self.lost.build.clone_from(&up.hello.build);
                        self.volumes.set_complete(done);
                        self.manager.metrics().mounter.connected(true);
                        self.manager.set(readiness::MOUNTER, ConditionStatus::Ready(up.hello.build));
                    }
                    Err(e) => {
                        self.manager.set(readiness::MOUNTER, ConditionStatus::NotReady(e.to_string()));
                        // What there is is served meanwhile: deletions do not wait for the state directory.
                        self.open_servers();
                        tokio::time::sleep(pause).await;
                        pause = (pause * 2).min(AGAIN);
                        continue;
                    }
                },
                Link::Up(_) => {}
                Link::Down(why) => self.no_mounter(why),
                Link::Incompatible(why) => self.no_mounter(MounterError::Version(why).to_string()),
            }
            tokio::select! {
                changed = link.changed() => {
                    if changed.is_err() {
                        return;
                    }
                }
                heard = hear(&mut news) => match heard {
                    (_, Heard::Registration) => self.record_registration(),
                    (number, Heard::Question) => {
                        if let Some(driver) = self.drivers.get_mut(number) {
                            driver.put_off();
                        }
                    }
                },
                () = tokio::time::sleep_until(next), if connected => {
                    self.tend().await;
                    next = Instant::now() + EVERY;
                }
            }
        }
    }

    fn no_mounter(&self, why: String) {
        self.manager.metrics().mounter.connected(false);
        self.manager.set(readiness::MOUNTER, ConditionStatus::NotReady(why));
    }

    /// After each new connection. May be repeated.
    async fn attach(&mut self) -> Result<(), AttachError> {
        for driver in &mut self.drivers {
            driver.attach(&self.mounter).await?;
        }
        self.tell_registration();
        let other_state = self.take_state().await?;
        if self.restored {
            if other_state {
                self.volumes.store_all().await;
            }
            self.volumes.reattach().await?;
        } else {
            self.recall_registration()?;
            let done = self.volumes.restore().await?;
            self.restored = true;
            // What the kubelet said meanwhile.
            self.record_registration();
            tracing::info!(
                with_identity = done.with_identity,
                without = done.without,
                forgotten = done.forgotten,
                "volumes restored"
            );
        }
        self.open_servers();
        Ok(())
    }

    /// The state directory; whether it is another one than before.
    pub(super) async fn take_state(&mut self) -> Result<bool, AttachError> {
        let directory = match self.mounter.state().await {
            Ok(directory) => directory,
            Err(e) => {
                self.volumes.set_state(Err(e.to_string()));
                return Err(e.into());
            }
        };
        let stat = rustix::fs::fstat(&directory).map_err(AttachError::Directory)?;
        let id = Some((stat.st_dev, stat.st_ino));
        if self.state_id == id {
            return Ok(false);
        }
        let state = Arc::new(StateDir::new(directory));
        self.volumes.set_state(Ok(Arc::clone(&state)));
        self.state = Some(state);
        self.state_id = id;
        self.record_registration();
        Ok(true)
    }

    /// What the kubelet said to an earlier agent about the listeners that this one has inherited.
    fn recall_registration(&mut self) -> Result<(), AttachError> {
        let Some(state) = &self.state else { return Ok(()) };
        let recorded = match state.get_node() {
            Ok(recorded) => recorded,
            Err(e @ StateError::Descriptors { .. }) => return Err(e.into()),
            // Damaged, or something else of that name: not worth a start that fails.
            Err(e) => {
                tracing::warn!(error = %e, "the node's record cannot be used");
                None
            }
        };
        let Some(NodeRecord { generation, drivers }) = recorded else { return Ok(()) };
        self.generation = generation;
        for record in drivers {
            if let Some(driver) = self.drivers.iter_mut().find(|driver| *driver.name() == record.driver) {
                driver.recall(record);
            }
        }
        Ok(())
    }

    /// Keeps what the kubelet said, and tells it.
    pub(super) fn record_registration(&mut self) {
        self.tell_registration();
        // Before the record of an earlier agent was read, nothing may be written over it.
        if !self.restored {
            return;
        }
        self.generation = self.generation.wrapping_add(1);
        let drivers = self.drivers.iter().map(Driver::record).collect();
        let record = NodeRecord { generation: self.generation, drivers };
        match self.state.as_ref().map(|s| s.put_node(&record)) {
            Some(Ok(())) => {
                self.lost.recorded = true;
                for (driver, record) in self.drivers.iter().zip(record.drivers) {
                    driver.recorded(record.registration);
                }
            }
            Some(Err(e)) => tracing::warn!(error = %e, "the registration could not be recorded"),
            None => {}
        }
    }

    pub(super) fn tell_registration(&self) {
        let mut problems = Vec::new();
        for driver in &self.drivers {
            let (number, problem) = driver.tell();
            self.manager.metrics().registration.registration(driver.name().as_str(), number);
            problems.extend(problem);
        }
        let status = match problems.as_slice() {
            [] => ConditionStatus::Ready(String::new()),
            all => ConditionStatus::NotReady(all.join("; ")),
        };
        self.manager.set(readiness::REGISTRATION, status);
    }

    /// Serves the kubelet, as far as there are listeners.
    pub(super) fn open_servers(&mut self) {
        for driver in &mut self.drivers {
            driver.open(&self.node);
        }
    }

    /// Stops to accept, and lets the calls in flight finish.
    pub async fn close(self) {
        futures_util::future::join_all(self.drivers.into_iter().map(Driver::close)).await;
    }
}
