//! One volume as the lifecycle sees it, whatever its kind.
//!
//! A kind of volume ([`Kind`]) says what its volumes hold, how that ends and what of it is recorded. Entry,
//! lock, incarnation, restore, due times and unpublish are the same for all. A volume keeps its kind while it
//! lives; where the kubelet publishes it as another kind, the entry is replaced (`Volumes::succeed`).

use std::fmt::Debug;
use std::sync::{Arc, PoisonError};
use std::time::SystemTime;

use seamount_mounter_protocol::names::Volume;
use seamount_sync::{Mutex, MutexGuard};
use tokio::sync::OwnedMutexGuard;

use super::health::{Content, Status};
use super::tenants::Place;
use crate::record::Body;

/// A kind of volume.
pub(super) trait Kind: Sized + Send + Sync + 'static {
    /// What only the holder of the volume's lock sees.
    type State: Default + Send + Sync + 'static;
    /// What is read without that lock, beside what every kind has.
    type Seen: Debug + Default + Clone + Send + Sync + 'static;
    /// What has to end before an unpublish is answered.
    type Ending: Ending;

    /// Takes everything out that belongs to the volume: it is being unpublished.
    fn end(state: &mut Self::State) -> Self::Ending;

    /// What is recorded of the volume; none: nothing is. The cookie is that of the listener that is or will
    /// be served.
    fn body(entry: &VolumeEntry<Self>, state: &Self::State, cookie: u64) -> Option<Body>;

    /// Cookie of the listener that is served; 0 = none.
    fn cookie(_state: &Self::State) -> u64 {
        0
    }

    /// When the volume has to be looked at for another reason than an attempt that is due.
    fn next(_view: &VolumeStatus<Self>) -> Option<SystemTime> {
        None
    }

    /// Bits of `seamount_mounter_protocol::flag` that the mounter does not see.
    fn flags(_seen: &Self::Seen) -> u32 {
        0
    }
}

/// What of a volume has to end when it is unpublished.
pub(super) trait Ending: Send {
    /// Ends what clients have, and does not wait for that.
    fn cut(&self);

    /// Returns when all of it has ended.
    fn stop(self) -> impl Future<Output = ()> + Send;
}

/// Nothing has to end.
impl Ending for () {
    fn cut(&self) {}

    async fn stop(self) {}
}

/// What only the holder of the volume's lock sees.
pub(super) struct LockedState<K: Kind> {
    /// Unpublished, or replaced: what has waited for the lock has to look for a new entry.
    pub gone: bool,
    /// Generation of the record.
    pub generation: u64,
    /// Its place among its pod's volumes; none before a publish was let in, and when it is gone.
    pub place: Option<Place>,
    /// What its kind holds.
    pub state: K::State,
}

impl<K: Kind> Default for LockedState<K> {
    fn default() -> Self {
        Self { gone: false, generation: 0, place: None, state: K::State::default() }
    }
}

impl<K: Kind> LockedState<K> {
    /// Unpublished, or never published.
    pub fn go(&mut self) {
        self.gone = true;
        self.place = None;
    }
}

/// What is read without waiting for that lock.
#[derive(Debug)]
pub(super) struct VolumeStatus<K: Kind> {
    pub status: Status,
    /// When the next attempt to make the content is to begin; none: not without a token.
    pub due: Option<SystemTime>,
    /// Attempts that failed in a row.
    pub failures: u32,
    /// Whether an attempt is under way.
    pub signing: bool,
    /// Whether the pod was told that the content has expired.
    pub expired: bool,
    pub pod: Arc<str>,
    pub namespace: Arc<str>,
    /// What its kind shows.
    pub seen: K::Seen,
}

impl<K: Kind> VolumeStatus<K> {
    /// When this volume has to be looked at again, as far as is known.
    pub fn next(&self) -> Option<SystemTime> {
        let expires = match self.status.content {
            Content::Ready { not_after } if !self.expired => Some(not_after),
            _ => None,
        };
        // A volume with an attempt under way is looked at when that has ended.
        let due = self.due.filter(|_| !self.signing);
        [expires, K::next(self), due].into_iter().flatten().min()
    }

    /// What of it does not depend on the kind.
    pub fn common(&self) -> Common {
        Common {
            status: self.status.clone(),
            due: self.due,
            failures: self.failures,
            pod: Arc::clone(&self.pod),
            namespace: Arc::clone(&self.namespace),
            flags: K::flags(&self.seen),
        }
    }
}

/// What every kind of volume shows, at one moment.
#[derive(Debug, Clone)]
pub(super) struct Common {
    pub status: Status,
    pub due: Option<SystemTime>,
    pub failures: u32,
    pub pod: Arc<str>,
    pub namespace: Arc<str>,
    /// Bits of `seamount_mounter_protocol::flag` that the mounter does not see.
    pub flags: u32,
}

/// One incarnation of a volume: unpublish marks it as gone, and what comes after gets a new one. So what is
/// made for it late cannot land on its successor.
///
/// `slot` is written by its holder, across `.await`s: publish, unpublish, restore, and the end of an attempt
/// to make the content, which looks at `gone` first. `view` is written by the holder, and by the clock and
/// the attempt without it; it is held for an instant and nothing is awaited or locked under it. `due` is set
/// only while the slot has what an attempt needs, and unpublish takes both away; an attempt that ends later
/// leaves `due` alone where it is none. Locks are taken in the order `slot`, then one of `entries`, `view`,
/// `unpublished`, `due`, the tenants', then `soonest`; the slot of a successor that no task has seen yet
/// counts as the one before it. Module `model` explores all of this.
pub(super) struct VolumeEntry<K: Kind> {
    pub volume: Volume,
    pub slot: Arc<tokio::sync::Mutex<LockedState<K>>>,
    view: Mutex<VolumeStatus<K>>,
}

/// An entry with its lock.
pub(super) type Locked<K> = (Arc<VolumeEntry<K>>, OwnedMutexGuard<LockedState<K>>);

impl<K: Kind> VolumeEntry<K> {
    pub fn new(volume: Volume) -> Arc<Self> {
        let none: Arc<str> = "".into();
        let view = VolumeStatus {
            status: Status::unknown(),
            due: None,
            failures: 0,
            signing: false,
            expired: false,
            pod: Arc::clone(&none),
            namespace: none,
            seen: K::Seen::default(),
        };
        Arc::new(Self { volume, slot: Arc::default(), view: Mutex::new(view) })
    }

    pub fn view(&self) -> MutexGuard<'_, VolumeStatus<K>> {
        self.view.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The span that puts pod and volume on every line.
    pub fn span(&self) -> tracing::Span {
        let view = self.view();
        tracing::info_span!("volume", namespace = %view.namespace, pod = %view.pod, uid = %self.volume.pod, volume = %self.volume.name)
    }
}
