//! The kinds of volume that a node has, and its entries, each of one of them.

use std::collections::HashMap;
use std::sync::{Arc, PoisonError};

use seamount_mounter_protocol::names::Volume;
use seamount_sync::MutexGuard;

use super::directory::Directory;
use super::entry::{Common, Kind, Locked, LockedState, VolumeEntry};
use super::identity::Identity;
use super::{Key, VolumeError, Volumes, key};

/// A kind that a node's volumes may have.
pub(super) trait OneOf: Kind {
    /// One of the node's entries.
    fn wrap(entry: Arc<VolumeEntry<Self>>) -> AnyEntry;

    /// The entry, if it is of this kind.
    fn unwrap(entry: &AnyEntry) -> Option<&Arc<VolumeEntry<Self>>>;
}

impl OneOf for Identity {
    fn wrap(entry: Arc<VolumeEntry<Self>>) -> AnyEntry {
        AnyEntry::Identity(entry)
    }

    fn unwrap(entry: &AnyEntry) -> Option<&Arc<VolumeEntry<Self>>> {
        match entry {
            AnyEntry::Identity(entry) => Some(entry),
            AnyEntry::Directory(_) => None,
        }
    }
}

impl OneOf for Directory {
    fn wrap(entry: Arc<VolumeEntry<Self>>) -> AnyEntry {
        AnyEntry::Directory(entry)
    }

    fn unwrap(entry: &AnyEntry) -> Option<&Arc<VolumeEntry<Self>>> {
        match entry {
            AnyEntry::Directory(entry) => Some(entry),
            AnyEntry::Identity(_) => None,
        }
    }
}

/// An entry of any kind.
#[derive(Clone)]
pub(super) enum AnyEntry {
    Identity(Arc<VolumeEntry<Identity>>),
    Directory(Arc<VolumeEntry<Directory>>),
}

/// The same with its lock.
pub(super) enum AnyLocked {
    Identity(Locked<Identity>),
    Directory(Locked<Directory>),
}

/// Does the same for an entry of each kind with its lock.
macro_rules! each_locked {
    ($any:expr, $locked:pat => $do:expr) => {
        match $any {
            $crate::volumes::kinds::AnyLocked::Identity($locked) => $do,
            $crate::volumes::kinds::AnyLocked::Directory($locked) => $do,
        }
    };
}

pub(super) use each_locked;

impl AnyEntry {
    pub fn volume(&self) -> &Volume {
        match self {
            Self::Identity(entry) => &entry.volume,
            Self::Directory(entry) => &entry.volume,
        }
    }

    /// What every kind shows.
    pub fn common(&self) -> Common {
        match self {
            Self::Identity(entry) => entry.view().common(),
            Self::Directory(entry) => entry.view().common(),
        }
    }

    /// Waits for its lock; none where it is gone.
    pub async fn lock(self) -> Option<AnyLocked> {
        match self {
            Self::Identity(entry) => lock(entry).await.map(AnyLocked::Identity),
            Self::Directory(entry) => lock(entry).await.map(AnyLocked::Directory),
        }
    }
}

async fn lock<K: Kind>(entry: Arc<VolumeEntry<K>>) -> Option<Locked<K>> {
    let slot = Arc::clone(&entry.slot).lock_owned().await;
    (!slot.gone).then_some((entry, slot))
}

impl Volumes {
    pub(super) fn entries(&self) -> MutexGuard<'_, HashMap<Key, AnyEntry>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn all(&self) -> Vec<AnyEntry> {
        self.entries().values().cloned().collect()
    }

    /// All of this kind.
    pub(super) fn all_of<K: OneOf>(&self) -> Vec<Arc<VolumeEntry<K>>> {
        self.entries().values().filter_map(K::unwrap).cloned().collect()
    }

    pub(super) fn get(&self, volume: &Volume) -> Option<AnyEntry> {
        self.entries().get(&key(volume)).filter(|e| e.volume() == volume).cloned()
    }

    /// The entry, if it is of this kind.
    #[cfg(test)]
    pub(super) fn get_of<K: OneOf>(&self, volume: &Volume) -> Option<Arc<VolumeEntry<K>>> {
        K::unwrap(&self.get(volume)?).cloned()
    }

    /// The entry and its lock, whatever its kind; one of `K` is made where there is none.
    pub(super) async fn locked<K: OneOf>(&self, volume: &Volume) -> AnyLocked {
        loop {
            let new = || K::wrap(VolumeEntry::new(volume.clone()));
            let entry = self.entries().entry(key(volume)).or_insert_with(new).clone();
            if let Some(locked) = entry.lock().await {
                return locked;
            }
        }
    }

    /// The volume goes on as one of another kind.
    pub(super) async fn succeed<A: OneOf, B: OneOf>(&self, (old, mut slot): Locked<A>) -> Locked<B> {
        let entry = VolumeEntry::<B>::new(old.volume.clone());
        // No task has seen it yet.
        let mut next = Arc::clone(&entry.slot).lock_owned().await;
        next.generation = slot.generation;
        next.place = slot.place.take();
        slot.go();
        {
            let common = old.view().common();
            let mut view = entry.view();
            (view.pod, view.namespace) = (common.pod, common.namespace);
        }
        self.entries().insert(key(&entry.volume), B::wrap(Arc::clone(&entry)));
        (entry, next)
    }

    pub(super) fn forget<K: OneOf>(&self, entry: &Arc<VolumeEntry<K>>) {
        let mut entries = self.entries();
        let key = key(&entry.volume);
        if entries.get(&key).and_then(K::unwrap).is_some_and(|known| Arc::ptr_eq(known, entry)) {
            entries.remove(&key);
            self.metrics.volume_gone(&entry.volume.to_string());
        }
    }

    /// Gives the volume its place, where it has none.
    pub(super) fn place<K: Kind>(
        &self,
        slot: &mut LockedState<K>,
        volume: &Volume,
        there: bool,
    ) -> Result<(), VolumeError> {
        if slot.place.is_none() {
            let place = self.options.tenants.claim(&volume.pod, there);
            let place = place.map_err(|limit| VolumeError::PodVolumes { pod: volume.pod.clone(), limit })?;
            slot.place = Some(place);
        }
        Ok(())
    }
}
