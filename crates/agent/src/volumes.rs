//! The volumes of this node: one entry each, from publish to unpublish.
//!
//! Publish and unpublish of one volume exclude each other, different volumes run side by side. A publish does
//! not wait for the authority: the SVID is made behind it, and the pod's first stream waits. What is made
//! late for an earlier incarnation of a volume is thrown away. An answer is given, and an SVID shown, only
//! after its record is stored.

mod background;
mod directory;
mod entry;
pub mod health;
mod identity;
mod inflight;
mod kinds;
mod leftovers;
pub mod metrics;
mod report;
mod restore;
mod schedule;
mod tenants;
mod unpublish;

pub use identity::proof;
pub use identity::server::ServeOptions;
pub use report::unix;
pub use tenants::{Shed, Tenants};

use std::collections::{HashMap, HashSet};
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwapOption;
use seamount_mounter_client::{Client, MounterError};
use seamount_mounter_protocol::Fault;
use seamount_mounter_protocol::names::{DriverName, PodUid, Volume, VolumeId, VolumeName};
use seamount_sync::{AtomicBool, AtomicU64, Mutex};
use tokio::sync::{Notify, Semaphore, watch};

use crate::authority::AuthorityHealth;
use crate::source::Source;
use crate::state::{StateDir, StateError};
use background::BackgroundRuntime;
use entry::VolumeEntry;
use health::{Content, OnDisk, VolumeCondition};
use identity::Identity;
use identity::proof::Prover;
use inflight::InflightCalls;
use kinds::{AnyEntry, OneOf};
use metrics::{Metrics, Schedule as SvidSchedule, SourceLabel, VolumeState};
use schedule::Schedule;

/// How long stats and health wait for the mounter: they are asked for every volume every minute.
const LOOK: Duration = Duration::from_secs(2);
/// Certificates asked for at once. An authority in this process makes one after the other; another one takes
/// its time.
const SIGNING: usize = 4;

/// Why a volume operation failed.
#[derive(Debug, thiserror::Error)]
pub enum VolumeError {
    /// The mounter could not or would not.
    #[error(transparent)]
    Mounter(#[from] MounterError),
    /// The record could not be stored.
    #[error(transparent)]
    State(#[from] StateError),
    /// There is no place for records yet.
    #[error("the state directory is not there yet: {0}; the kubelet tries again")]
    NoState(String),
    /// Published already, and not like this.
    #[error(
        "{field} of the volume {volume} differs from what it is published with; delete the pod to change it"
    )]
    Conflict {
        /// Which field.
        field: &'static str,
        /// Which volume.
        volume: Volume,
    },
    /// The pod has as many as it may have.
    #[error(
        "volumes of the pod {pod}: {limit} are published, as many as one pod may have (workloadApi.volumesPerPod); use fewer \
         volumes of this driver in the pod (containers can share one), or raise that limit"
    )]
    PodVolumes {
        /// The pod.
        pod: PodUid,
        /// How many.
        limit: usize,
    },
    /// The listener could not be served.
    #[error(
        "the socket of the volume {volume} cannot be served: {why}; check the agent's file descriptor limit"
    )]
    Serve {
        /// Which volume.
        volume: Volume,
        /// The system's words.
        why: std::io::Error,
    },
}

type Key = (PodUid, VolumeName);

fn key(volume: &Volume) -> Key {
    (volume.pod.clone(), volume.name.clone())
}

/// Usage and faults of a volume.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VolumeStats {
    /// Bytes used.
    pub bytes: u64,
    /// Inodes used.
    pub inodes: u64,
    /// The worst first; empty: healthy.
    pub conditions: Vec<VolumeCondition>,
}

/// The manager.
pub struct Volumes {
    mounter: Client,
    entries: Mutex<HashMap<Key, AnyEntry>>,
    state: ArcSwapOption<StateDir>,
    no_state: Mutex<String>,
    /// Whether the records were read: before that, a publish would take a known volume for a new one.
    restored: AtomicBool,
    /// What was unpublished before that: a scan, or a record that was read, may be older.
    unpublished: Mutex<HashSet<Key>>,
    /// Number of the connection whose mounter has every listener that is served. Stored (release) by the one
    /// task that attaches, after `restore` or `reattach` on that connection; read (acquire) by a publish. A
    /// volume that is published meanwhile is one that this mounter has bound itself, or is offered to it, for
    /// the number is still another one. A connection that broke has a number that no later one has, so a
    /// number that is stored late is equal to none.
    complete: AtomicU64,
    source: watch::Receiver<Source>,
    prover: Arc<dyn Prover>,
    /// There is a record to decide over.
    unproved: Notify,
    options: ServeOptions,
    schedule: Schedule<Identity>,
    permits: Arc<Semaphore>,
    /// What the kubelet waits for goes before what is made behind its back.
    inflight: InflightCalls,
    /// None where the thread could not be made: then identities are made among everything else.
    background: Option<BackgroundRuntime>,
    authority_health: AuthorityHealth,
    metrics: Arc<Metrics>,
}

impl Volumes {
    /// Without volumes and state yet.
    pub fn new(
        mounter: Client,
        source: watch::Receiver<Source>,
        prover: Arc<dyn Prover>,
        options: ServeOptions,
        metrics: Arc<Metrics>,
    ) -> Arc<Self> {
        let background = BackgroundRuntime::start()
            .inspect_err(|e| tracing::warn!(error = %e, "identities have no thread of their own; publishes will wait for them"))
            .ok();
        Arc::new(Self {
            mounter,
            entries: Mutex::default(),
            state: ArcSwapOption::empty(),
            no_state: Mutex::new("the mounter has not been asked".to_owned()),
            restored: AtomicBool::new(false),
            unpublished: Mutex::default(),
            complete: AtomicU64::new(0),
            source,
            prover,
            unproved: Notify::new(),
            options,
            schedule: Schedule::default(),
            permits: Arc::new(Semaphore::new(SIGNING)),
            inflight: InflightCalls::default(),
            background,
            authority_health: AuthorityHealth::new(Arc::clone(&metrics.authority)),
            metrics,
        })
    }

    /// Where identities come from.
    pub fn source(&self) -> watch::Receiver<Source> {
        self.source.clone()
    }

    /// Whether the authority answers.
    pub fn authority_health(&self) -> &AuthorityHealth {
        &self.authority_health
    }

    /// Starts what no call waits for, with the low priority of making identities. Needs a tokio runtime.
    pub fn aside(&self, work: impl Future<Output = ()> + Send + 'static) {
        match &self.background {
            Some(background) => background.start_work(work),
            None => drop(tokio::spawn(work)),
        }
    }

    /// The mounter of this connection has every listener that is served.
    pub fn set_complete(&self, connection: u64) {
        self.complete.store(connection, Ordering::Release);
    }

    /// Records may be read and written from now on.
    pub fn set_state(&self, state: Result<Arc<StateDir>, String>) {
        match state {
            Ok(state) => self.state.store(Some(state)),
            Err(why) => *self.no_state.lock().unwrap_or_else(PoisonError::into_inner) = why,
        }
    }

    /// The records, once all of them were read: before that, a publish would take a known volume for a new
    /// one.
    fn records_are_read(&self) -> Result<Arc<StateDir>, VolumeError> {
        let state = self.state()?;
        match self.restored.load(Ordering::Acquire) {
            true => Ok(state),
            false => Err(VolumeError::NoState("the records have not been read".to_owned())),
        }
    }

    fn state(&self) -> Result<Arc<StateDir>, VolumeError> {
        self.state.load_full().ok_or_else(|| {
            VolumeError::NoState(self.no_state.lock().unwrap_or_else(PoisonError::into_inner).clone())
        })
    }

    /// Usage and faults; `None` for a volume that is neither known nor on disk.
    pub async fn look(&self, volume: &Volume) -> Option<VolumeStats> {
        let common = self.get(volume).map(|entry| entry.common());
        let (status, stale) = common.map(|common| (common.status, common.flags)).unzip();
        let stale = stale.unwrap_or_default();
        let mut dead = None;
        let (disk, bytes, inodes) = match self.mounter.inspect(volume, LOOK).await {
            Ok(Some(found)) => {
                dead = health::dead_subpaths(&found.dead_subpaths);
                (OnDisk::Flags(found.flags | stale), found.bytes, found.inodes)
            }
            Ok(None) => (OnDisk::Nothing, 0, 0),
            Err(MounterError::Fault { fault: Fault::NotOurs, text, .. }) => {
                tracing::debug!(%volume, reason = %text, "not a volume of ours");
                (OnDisk::Nothing, 0, 0)
            }
            Err(_) => (OnDisk::Unasked, 0, 0),
        };
        if status.is_none() && !matches!(disk, OnDisk::Flags(_)) {
            return None;
        }
        let conditions =
            dead.into_iter().chain(health::conditions(status.as_ref(), disk, SystemTime::now())).collect();
        Some(VolumeStats { bytes, inodes, conditions })
    }

    /// The driver's volume with this id.
    pub fn by_id(&self, driver: &DriverName, id: &VolumeId) -> Option<Volume> {
        let ours = |volume: &&Volume| volume.driver == *driver && volume.id == *id;
        self.entries().values().map(AnyEntry::volume).find(ours).cloned()
    }

    /// Tells the metrics where a volume stands; nothing of one that was taken away meanwhile.
    fn count<K: OneOf>(&self, entry: &VolumeEntry<K>) {
        let view = entry.view();
        let rotate_at = view.status.rotate_at;
        let schedule = |not_after| {
            let overdue = rotate_at.map_or(not_after, |due| health::overdue(due, not_after));
            Some(SvidSchedule { overdue, not_after })
        };
        let (source, state, svid) = match view.status.content {
            Content::External => (SourceLabel::directory, VolumeState::ready, None),
            Content::Unknown | Content::Pending { .. } => {
                (SourceLabel::authority, VolumeState::pending, None)
            }
            Content::Ready { not_after } if view.expired => {
                (SourceLabel::authority, VolumeState::unavailable, schedule(not_after))
            }
            Content::Ready { not_after } => (SourceLabel::authority, VolumeState::ready, schedule(not_after)),
        };
        drop(view);
        let entries = self.entries();
        let known = entries.get(&key(&entry.volume)).and_then(K::unwrap);
        if known.is_some_and(|known| std::ptr::eq(&raw const **known, entry)) {
            self.metrics.volume(&entry.volume.to_string(), source, state, svid);
        }
    }
}

/// A line that the kubelet does not wait for.
fn log(span: tracing::Span, what: &'static str) {
    seamount_sync::spawn(async move { span.in_scope(|| tracing::info!("{what}")) });
}

#[cfg(test)]
mod model;
#[cfg(test)]
mod tests;
