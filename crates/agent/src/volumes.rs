//! The volumes of this node: one entry each, from publish to unpublish.
//!
//! Publish and unpublish of one volume exclude each other, different volumes run side by side. A publish does
//! not wait for the authority: the SVID is made behind it, and the pod's first stream waits. What is made
//! late for an earlier incarnation of a volume is thrown away. An answer is given, and an SVID shown, only
//! after its record is stored.

mod background;
mod binding;
mod conflict;
mod external;
pub mod health;
mod inflight;
mod leftovers;
pub mod proof;
mod report;
mod restore;
mod rotate;
mod server;
mod tenants;

pub use report::unix;

use std::collections::{HashMap, HashSet};
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwapOption;
use seamount_identity::authority::Workload;
use seamount_identity::workload_api::{IdentityState, Response};
use seamount_mounter_protocol::names::{DriverName, PodUid, Volume, VolumeId, VolumeName};
use seamount_mounter_protocol::{Fault, flag};
use tokio::sync::{Notify, Semaphore, watch};

use crate::authority::AuthorityHealth;
use crate::csi::request::{Parameters, PublishRequest};
use crate::metrics::{Metrics, Schedule, SourceLabel, VolumeState};
use crate::mounter::{Client, Listener, MounterError};
use crate::source::Source;
use crate::state::{StateDir, StateError};
use crate::sync::{AtomicBool, AtomicU64, Mutex, MutexGuard};
use crate::token::DatedToken;
use background::BackgroundRuntime;
use binding::{Basis, IssuedSvid, PodBinding};
use conflict::{conflict, conflict_id};
use health::{Identity, OnDisk, Status, VolumeCondition};
use inflight::InflightCalls;
use proof::{Adopted, Awaits, Prover, Recalled};
pub use server::ServeOptions;
use server::VolumeServer;
use tenants::Place;
pub use tenants::{Shed, Tenants};

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

/// What only the holder of the volume's lock sees.
#[derive(Default)]
struct LockedState {
    /// Unpublished; whoever waited for the lock has to look for a new entry.
    gone: bool,
    /// Generation of the record.
    generation: u64,
    facts: Option<PodBinding>,
    held: Option<IssuedSvid>,
    /// What the record says, until that is decided (module `proof`).
    recalled: Option<Recalled>,
    serving: Option<VolumeServer>,
    /// What a republish of a `directory` volume must repeat, since this agent has seen it.
    directory: Option<Parameters>,
    /// Its place among its pod's volumes; none before a publish was let in, and when it is gone.
    place: Option<Place>,
}

impl LockedState {
    /// Unpublished, or never published.
    fn go(&mut self) {
        self.gone = true;
        self.place = None;
    }
}

/// What is read without waiting for that lock.
#[derive(Debug, Clone)]
struct VolumeStatus {
    status: Status,
    /// When the next SVID is to be made; none: not without a token.
    due: Option<SystemTime>,
    /// Attempts that failed in a row.
    failures: u32,
    /// Whether an attempt is under way.
    signing: bool,
    /// Whether the streams were told that the SVID has expired.
    expired: bool,
    /// Whether there are bundles that the streams have not been shown.
    refresh: bool,
    /// What the decision over the record waits for; none: there is nothing to decide.
    unproved: Option<Awaits>,
    /// Whether the source directory was recreated below a pod, which holds the dead one until it is
    /// restarted; the mounter sees only the new one that it has bound since.
    stale: bool,
    pod: Arc<str>,
    namespace: Arc<str>,
}

/// One incarnation of a volume: unpublish marks it as gone, and who comes after gets a new one. So what is
/// made for it late cannot land on its successor.
///
/// `slot` is written by whoever holds it, across `.await`s: publish, unpublish, restore, and the end of an
/// attempt to get an SVID, which looks at `gone` first. `view` is written by the holder, and by the clock and
/// the attempt without it; it is held for an instant and nothing is awaited or locked under it. `due` is set
/// only while the slot has facts, and unpublish takes both away; an attempt that ends later leaves `due`
/// alone where it is none. Locks are taken in the order `slot`, then one of `entries`, `view`, `unpublished`,
/// `due`, the tenants', then `soonest`. Module `model` explores all of this.
struct VolumeEntry {
    volume: Volume,
    slot: Arc<tokio::sync::Mutex<LockedState>>,
    view: Mutex<VolumeStatus>,
}

impl VolumeEntry {
    fn new(volume: Volume) -> Arc<Self> {
        let status = Status { identity: Identity::Unknown, failure: None, serving: false, rotate_at: None };
        let none: Arc<str> = "".into();
        let view = VolumeStatus {
            status,
            due: None,
            failures: 0,
            signing: false,
            expired: false,
            refresh: false,
            unproved: None,
            stale: false,
            pod: Arc::clone(&none),
            namespace: none,
        };
        Arc::new(Self { volume, slot: Arc::default(), view: Mutex::new(view) })
    }

    fn view(&self) -> MutexGuard<'_, VolumeStatus> {
        self.view.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The span that puts pod and volume on every line.
    fn span(&self) -> tracing::Span {
        let view = self.view();
        tracing::info_span!("volume", namespace = %view.namespace, pod = %view.pod, uid = %self.volume.pod, volume = %self.volume.name)
    }
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
    entries: Mutex<HashMap<Key, Arc<VolumeEntry>>>,
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
    /// number that is stored late is equal to nobody's.
    complete: AtomicU64,
    source: watch::Receiver<Source>,
    prover: Arc<dyn Prover>,
    /// There is a record to decide over.
    unproved: Notify,
    options: ServeOptions,
    /// Volumes that are due before the next look at all of them.
    due: Mutex<Vec<Arc<VolumeEntry>>>,
    wake: Notify,
    /// When something is due next, as far as is known (`remind`); taken after `view` and held for an instant.
    soonest: Mutex<SystemTime>,
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
            due: Mutex::default(),
            wake: Notify::new(),
            soonest: Mutex::new(SystemTime::UNIX_EPOCH),
            permits: Arc::new(Semaphore::new(SIGNING)),
            inflight: InflightCalls::default(),
            background,
            authority_health: AuthorityHealth::new(Arc::clone(&metrics)),
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

    /// Starts what nobody waits for, with the low priority of making identities. Needs a tokio runtime.
    pub fn aside(&self, work: impl Future<Output = ()> + Send + 'static) {
        match &self.background {
            Some(background) => background.start_work(work),
            None => drop(tokio::spawn(work)),
        }
    }

    fn entries(&self) -> MutexGuard<'_, HashMap<Key, Arc<VolumeEntry>>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn all(&self) -> Vec<Arc<VolumeEntry>> {
        self.entries().values().cloned().collect()
    }

    fn entry(&self, volume: &Volume) -> Arc<VolumeEntry> {
        Arc::clone(self.entries().entry(key(volume)).or_insert_with(|| VolumeEntry::new(volume.clone())))
    }

    fn get(&self, volume: &Volume) -> Option<Arc<VolumeEntry>> {
        self.entries().get(&key(volume)).filter(|e| e.volume == *volume).cloned()
    }

    fn forget(&self, entry: &Arc<VolumeEntry>) {
        let mut entries = self.entries();
        let key = key(&entry.volume);
        if entries.get(&key).is_some_and(|e| Arc::ptr_eq(e, entry)) {
            entries.remove(&key);
            self.metrics.volume_gone(&entry.volume.to_string());
        }
    }

    /// The entry and its lock; made where there is none.
    async fn locked(&self, volume: &Volume) -> (Arc<VolumeEntry>, tokio::sync::OwnedMutexGuard<LockedState>) {
        loop {
            let entry = self.entry(volume);
            let slot = Arc::clone(&entry.slot).lock_owned().await;
            if !slot.gone {
                return (entry, slot);
            }
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

    fn state(&self) -> Result<Arc<StateDir>, VolumeError> {
        self.state.load_full().ok_or_else(|| {
            VolumeError::NoState(self.no_state.lock().unwrap_or_else(PoisonError::into_inner).clone())
        })
    }

    /// Publishes a volume with an identity of ours, or refreshes its token. What `workload` says is proved.
    pub async fn publish(
        &self,
        request: &PublishRequest,
        workload: Workload,
        token: DatedToken,
    ) -> Result<(), VolumeError> {
        let _call = self.inflight.call();
        let volume = &request.volume;
        let (entry, mut slot) = self.locked(volume).await;
        let result = self.publish_locked(&entry, &mut slot, request, workload, token).await;
        let nothing = slot.facts.is_none() && slot.serving.is_none();
        if result.is_err() && nothing && entry.view().status.identity == Identity::Unknown {
            slot.go();
            self.forget(&entry);
        }
        result
    }

    async fn publish_locked(
        &self,
        entry: &Arc<VolumeEntry>,
        slot: &mut LockedState,
        request: &PublishRequest,
        workload: Workload,
        token: DatedToken,
    ) -> Result<(), VolumeError> {
        let volume = &request.volume;
        self.prove_for_publish(volume, slot).await;
        if let Some(field) = conflict(entry, slot.facts.as_ref(), request, &workload) {
            return Err(VolumeError::Conflict { field, volume: volume.clone() });
        }
        let state = self.state()?;
        if !self.restored.load(Ordering::Acquire) {
            return Err(VolumeError::NoState("the records have not been read".to_owned()));
        }
        self.place(slot, volume, false)?;
        let listener = match slot.serving.as_ref().filter(|s| s.alive()) {
            Some(served) => {
                let complete = self.complete.load(Ordering::Acquire);
                self.mounter.publish_served(volume, served.kept(), served.cookie(), complete).await?
            }
            None => self.bound(volume).await?,
        };
        let Some(listener) = listener else {
            self.foreign(entry, request);
            return Ok(());
        };
        self.ours_again(entry, slot);
        let same_socket = slot.serving.as_ref().is_some_and(|s| s.cookie() == listener.cookie && s.alive());
        let known = slot.facts.as_ref().filter(|facts| facts.proved());
        let same_pod = known.filter(|facts| facts.workload == workload);
        // What arrives late does not take a newer one's place.
        let token = same_pod
            .map(|facts| &facts.token)
            .filter(|held| held.is_newer_than(&token))
            .cloned()
            .unwrap_or(token);
        let basis = Basis::Published(request.parameters);
        let same = same_pod.is_some_and(|facts| facts.token == token && facts.basis == basis);
        if same_socket && same {
            return Ok(());
        }
        let new = slot.facts.is_none() && slot.recalled.is_none();
        let first = same_pod.is_none();
        let before = (slot.facts.clone(), slot.held.clone(), slot.recalled.clone());
        if let Some(recalled) = &mut slot.recalled {
            recalled.token = token.token.clone();
        }
        slot.facts = Some(PodBinding { workload, token, basis });
        let adopted = slot.recalled.is_some().then(|| self.adopt(entry, slot));
        if let Err(e) = self.store(&state, volume, slot, listener.cookie) {
            // Else the kubelet's next attempt, with the same token, would be taken for one that is recorded.
            (slot.facts, slot.held, slot.recalled) = before;
            return Err(e);
        }
        if !same_socket && let Err(e) = self.serve(entry, slot, listener).await {
            if new {
                // As if nothing had been; the next attempt is a first one again.
                slot.facts = None;
                state.remove(volume)?;
            }
            return Err(e);
        }
        self.published(entry, slot, first, adopted);
        Ok(())
    }

    /// A listener for a volume that is not served. Where an unpublish has ended the one that the mounter
    /// keeps, and did not reach the mounter, that is done first.
    async fn bound(&self, volume: &Volume) -> Result<Option<Listener>, MounterError> {
        match self.mounter.publish_identity(volume).await? {
            Some(kept) if kept.existing && server::ended(&kept.fd) => {
                self.mounter.unpublish(volume).await?;
                self.mounter.publish_identity(volume).await
            }
            listener => Ok(listener),
        }
    }

    /// Brings the view up to date after a publish, and the identity under way.
    fn published(&self, entry: &Arc<VolumeEntry>, slot: &LockedState, first: bool, adopted: Option<Adopted>) {
        let Some(facts) = &slot.facts else { return };
        if let Some(adopted) = &adopted {
            self.tell(entry, slot, adopted);
        } else {
            let mut view = entry.view();
            view.pod = facts.workload.pod_name.as_str().into();
            view.namespace = facts.workload.namespace.as_str().into();
            if first && slot.held.is_none() {
                view.status.identity = Identity::Pending { since: SystemTime::now() };
            }
            if first {
                view.due = Some(slot.held.as_ref().map_or_else(SystemTime::now, |held| held.rotate_at));
            }
        }
        self.count(entry);
        if first {
            self.hurry(entry);
            log(entry.span(), "published");
        }
    }

    /// Serves this listener in the place of whatever was served before.
    async fn serve(
        &self,
        entry: &VolumeEntry,
        slot: &mut LockedState,
        listener: Listener,
    ) -> Result<(), VolumeError> {
        if let Some(old) = slot.serving.take() {
            entry.view().status.serving = false;
            if old.cookie() != listener.cookie {
                old.cut();
            }
            old.stop().await;
        }
        let first = self.to_show(slot);
        self.place(slot, &entry.volume, true)?;
        let serving = match &slot.place {
            Some(place) => VolumeServer::start(listener, first, &self.options, place.tenant()),
            None => Err(std::io::ErrorKind::NotFound.into()),
        };
        let serving = serving.map_err(|why| VolumeError::Serve { volume: entry.volume.clone(), why })?;
        slot.serving = Some(serving);
        entry.view().status.serving = true;
        Ok(())
    }

    /// What the streams of this volume see now.
    fn to_show(&self, slot: &LockedState) -> IdentityState {
        let Some(held) = &slot.held else { return IdentityState::Pending };
        if held.svid.not_after() <= SystemTime::now() {
            return IdentityState::Unavailable("the SVID has expired and could not be renewed yet".into());
        }
        let bundles = self.bundles(held);
        IdentityState::Ready(Arc::new(Response::new(&[Arc::clone(&held.svid)], &bundles)))
    }

    /// Takes a volume away: cuts every connection, wipes the record, removes what is on disk. Works for
    /// unknown volumes and without state, authority or configuration.
    pub async fn unpublish(&self, volume: &Volume) -> Result<(), VolumeError> {
        let _call = self.inflight.call();
        let (entry, mut slot) = self.locked(volume).await;
        if conflict_id(&entry, volume).is_some() {
            // Which id is right, the mounter knows by the kubelet's record: a wrong one takes nothing away.
            self.mounter.unpublish(volume).await?;
        }
        {
            // The flag under the lock: else the key could be put in after restore has thrown the others away.
            let mut unpublished = self.unpublished.lock().unwrap_or_else(PoisonError::into_inner);
            if !self.restored.load(Ordering::Acquire) {
                unpublished.insert(key(volume));
            }
        }
        let span = entry.span();
        slot.facts = None;
        slot.held = None;
        slot.recalled = None;
        {
            let mut view = entry.view();
            view.status =
                Status { identity: Identity::Unknown, failure: None, serving: false, rotate_at: None };
            view.due = None;
            view.unproved = None;
        }
        let serving = slot.serving.take().inspect(VolumeServer::finish);
        // Record and connections go while the mounter works; the answer waits for all of it. A record that a
        // crash leaves has no volume on disk and is wiped at the next start.
        let gone = async {
            // Not before the mounter's request is on its way, in another task.
            tokio::task::yield_now().await;
            let serving = serving.inspect(VolumeServer::cut);
            match self.state.load_full().map(|state| state.remove(&entry.volume)) {
                Some(Err(e)) => {
                    span.in_scope(|| tracing::error!(error = %e, "the record could not be wiped"))
                }
                Some(Ok(())) => {}
                None => span.in_scope(|| {
                    tracing::warn!(
                        "no state directory: a record, if there is one, is wiped when the directory is back"
                    );
                }),
            }
            if let Some(serving) = serving {
                serving.stop().await;
            }
        };
        let (removed, ()) = tokio::join!(self.mounter.unpublish(volume), gone);
        // Where the mounter failed too: nothing is left here, and the kubelet comes again.
        slot.go();
        self.forget(&entry);
        removed?;
        log(span, "unpublished");
        Ok(())
    }

    /// Usage and faults; `None` for a volume that is neither known nor on disk.
    pub async fn look(&self, volume: &Volume) -> Option<VolumeStats> {
        let known = self.get(volume).map(|e| {
            let view = e.view();
            (view.status.clone(), if view.stale { flag::STALE } else { 0 })
        });
        let (status, stale) = known.unzip();
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
        let ours = |e: &&Arc<VolumeEntry>| e.volume.driver == *driver && e.volume.id == *id;
        self.entries().values().find(ours).map(|e| e.volume.clone())
    }

    /// Tells the metrics where a volume stands; nothing of one that was taken away meanwhile.
    fn count(&self, entry: &VolumeEntry) {
        let view = entry.view();
        let rotate_at = view.status.rotate_at;
        let schedule = |not_after| {
            let overdue = rotate_at.map_or(not_after, |due| health::overdue(due, not_after));
            Some(Schedule { overdue, not_after })
        };
        let (source, state, svid) = match view.status.identity {
            Identity::External => (SourceLabel::directory, VolumeState::ready, None),
            Identity::Unknown | Identity::Pending { .. } => {
                (SourceLabel::authority, VolumeState::pending, None)
            }
            Identity::Ready { not_after } if view.expired => {
                (SourceLabel::authority, VolumeState::unavailable, schedule(not_after))
            }
            Identity::Ready { not_after } => {
                (SourceLabel::authority, VolumeState::ready, schedule(not_after))
            }
        };
        drop(view);
        let entries = self.entries();
        if entries.get(&key(&entry.volume)).is_some_and(|known| std::ptr::eq(&raw const **known, entry)) {
            self.metrics.volume(&entry.volume.to_string(), source, state, svid);
        }
    }
}

/// A line that the kubelet does not wait for.
fn log(span: tracing::Span, what: &'static str) {
    crate::sync::spawn(async move { span.in_scope(|| tracing::info!("{what}")) });
}

#[cfg(test)]
mod model;
#[cfg(test)]
mod tests;
