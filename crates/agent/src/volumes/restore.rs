//! Coming back: volumes from their records and from what the mounter finds on disk, and listeners back to a
//! mounter that lost them.

use std::collections::HashMap;
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};
use std::time::SystemTime;

use futures_util::StreamExt as _;
use seamount_mounter_client::{Found, Listener, MounterError};
use seamount_mounter_protocol::names::Volume;
use seamount_mounter_protocol::{Fault, Subject, flag};

use super::directory::{Directory, tell_foreign};
use super::entry::{Kind, Locked, LockedState, VolumeEntry};
use super::health::Content;
use super::identity::Identity;
use super::identity::binding::{Awaits, Recalled};
use super::identity::recall::held;
use super::identity::server::ended;
use super::kinds::{AnyLocked, each_locked};
use super::{VolumeError, Volumes, leftovers};
use crate::record::{Body, IdentityBody, Record};
use crate::state::StateDir;

/// Volumes that are brought back at once. Else each that needs a new socket waits for the mounter's turn on a
/// busy node.
const AT_ONCE: usize = 16;

/// Records without a volume on disk that one restore looks after. Each takes a request to the mounter, and
/// the kubelet's calls wait for the end of a restore.
const MOST_LEFT: usize = 4096;

/// What [`Volumes::restore`] did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Restored {
    /// Volumes that are served again, and whose record has an SVID: it is shown as soon as it is proved.
    pub with_identity: usize,
    /// Volumes that wait for the next republish.
    pub without: usize,
    /// Records of volumes that are gone, removed.
    pub forgotten: usize,
}

impl Volumes {
    /// Stores what the slot holds. The cookie is that of the listener that is or will be served.
    pub(super) fn store<K: Kind>(
        &self,
        state: &StateDir,
        entry: &VolumeEntry<K>,
        slot: &mut LockedState<K>,
        cookie: u64,
    ) -> Result<(), VolumeError> {
        let Some(body) = K::body(entry, &slot.state, cookie) else { return Ok(()) };
        // The first number may be anything that a record had.
        slot.generation = slot.generation.wrapping_add(1);
        let record = Record { generation: slot.generation, volume: entry.volume.clone(), body };
        Ok(state.put(&record)?)
    }

    /// Brings every volume back that is on disk. May be repeated; a volume that is known already is left
    /// alone.
    pub async fn restore(&self) -> Result<Restored, VolumeError> {
        let state = self.state()?;
        let mut done = Restored::default();
        let mut all = self.mounter.list().await?;
        leftovers::look(&all, &self.metrics, true);
        all.retain(|found| !found.has(flag::ORPHAN));
        let known: Vec<_> = all.iter().map(|found| found.volume.clone()).collect();
        let (reading, volumes) = (Arc::clone(&state), known.clone());
        let records = seamount_sync::blocking(move || recall_all(&reading, &volumes)).await;
        let mut records = records.map_err(|e| VolumeError::NoState(e.to_string()))?;
        let all: Vec<_> = all.into_iter().map(|found| (records.remove(&found.volume), found)).collect();
        let all = all.into_iter().map(|(record, found)| self.bring_back(found, record));
        let mut back = futures_util::stream::iter(all).buffer_unordered(AT_ONCE);
        while let Some(outcome) = back.next().await {
            match outcome {
                Ok(true) => done.with_identity += 1,
                Ok(false) => done.without += 1,
                // Without the mounter each of the others would wait in vain, too.
                Err((_, VolumeError::Mounter(e))) if !e.is_fault() => return Err(e.into()),
                Err((volume, e)) => {
                    done.without += 1;
                    tracing::error!(%volume, error = %e, "the volume could not be brought back; the next republish tries again");
                }
            }
        }
        self.forget_records(&state, &known, &mut done).await?;
        let mut unpublished = self.unpublished.lock().unwrap_or_else(PoisonError::into_inner);
        self.restored.store(true, Ordering::Release);
        unpublished.clear();
        Ok(done)
    }

    /// What has a record and was not found on disk. Only the mounter's word that nothing is there ends a
    /// record.
    async fn forget_records(
        &self,
        state: &Arc<StateDir>,
        known: &[Volume],
        done: &mut Restored,
    ) -> Result<(), VolumeError> {
        let (reading, known) = (Arc::clone(state), known.to_vec());
        let left = seamount_sync::blocking(move || reading.others(&known, MOST_LEFT)).await;
        let left = left.map_err(|e| VolumeError::NoState(e.to_string()))??;
        for volume in left {
            match self.mounter.inspect(&volume, super::LOOK).await {
                Ok(None) => {
                    if self.get(&volume).is_none() {
                        state.remove(&volume)?;
                        done.forgotten += 1;
                    }
                }
                Ok(Some(found)) => {
                    let (reading, of) = (Arc::clone(state), volume.clone());
                    let record = seamount_sync::blocking(move || recall(&reading, &of)).await.ok().flatten();
                    let _ = self.bring_back(found, record).await;
                }
                Err(e) if e.is(Fault::NotOurs) => {
                    state.remove(&volume)?;
                    done.forgotten += 1;
                }
                // One volume that cannot be looked at must not keep the node from publishing all others.
                Err(e) if e.is_fault() => {
                    tracing::error!(%volume, error = %e, "a record's volume cannot be looked at; it waits for a republish");
                }
                Err(e) => return Err(e.into()),
            }
        }
        Ok(())
    }

    /// One volume; whether its record has an identity.
    pub(super) async fn bring_back(
        &self,
        found: Found,
        record: Option<Memory>,
    ) -> Result<bool, (Volume, VolumeError)> {
        let volume = found.volume.clone();
        let ours = found.has(flag::IDENTITY);
        let locked = match ours {
            true => self.locked::<Identity>(&volume).await,
            false => self.locked::<Directory>(&volume).await,
        };
        // Under the lock: it was taken away since it was found, or its record read. No publish comes before
        // all is restored, so it is gone, and its listener is dead.
        if self.unpublished.lock().unwrap_or_else(PoisonError::into_inner).contains(&super::key(&volume)) {
            each_locked!(locked, (entry, mut slot) => {
                slot.go();
                self.forget(&entry);
            });
            return Ok(false);
        }
        let done = match locked {
            AnyLocked::Identity(locked) if ours || !locked.1.state.is_empty() => {
                self.bring_identity_back(locked, found, record).await
            }
            AnyLocked::Directory(locked) if ours => {
                let locked = self.succeed::<Directory, Identity>(locked).await;
                self.bring_identity_back(locked, found, record).await
            }
            AnyLocked::Identity(locked) => {
                self.bring_directory_back(self.succeed(locked).await, &found, record)
            }
            AnyLocked::Directory(locked) => self.bring_directory_back(locked, &found, record),
        };
        done.map_err(|e| (volume, e))
    }

    fn bring_directory_back(
        &self,
        (entry, mut slot): Locked<Directory>,
        found: &Found,
        record: Option<Memory>,
    ) -> Result<bool, VolumeError> {
        self.place(&mut slot, &entry.volume, true)?;
        let mut view = entry.view();
        view.status.content = Content::External;
        if let Some(Memory { generation, body: Remembered::Directory }) = record {
            slot.generation = generation;
            view.seen.stale = true;
        }
        drop(view);
        self.count(&entry);
        if found.has(flag::FOREIGN) {
            tell_foreign(&entry);
        }
        Ok(false)
    }

    async fn bring_identity_back(
        &self,
        (entry, mut slot): Locked<Identity>,
        Found { volume, flags, listener, .. }: Found,
        record: Option<Memory>,
    ) -> Result<bool, VolumeError> {
        self.place(&mut slot, &volume, true)?;
        if slot.state.serving.is_some() {
            // Of a restore that the mounter's end cut short: the one of now may not have its listener.
            self.give_back(&entry, &mut slot).await?;
            return Ok(slot.state.has_svid());
        }
        if flags & flag::IDENTITY == 0 {
            entry.view().status.content = Content::External;
            self.count(&entry);
            if flags & flag::FOREIGN != 0 {
                tell_foreign(&entry);
            }
            return Ok(false);
        }
        let listener = match listener {
            Some(listener) if !ended(&listener.fd) => Ok(Some(listener)),
            // Bound anew in the same directory, which running pods see.
            _ => self.bound(&volume).await,
        };
        if let Err(e @ MounterError::Fault { fault: Fault::NotOurs | Fault::NotFound, .. }) = listener {
            // Unpublished since it was found: nothing of it may live on.
            slot.go();
            Identity::end(&mut slot.state);
            // An attempt that is under way finds nothing due, and is not followed by another for ever.
            {
                let mut view = entry.view();
                (view.due, view.seen.unproved) = (None, None);
            }
            self.forget(&entry);
            return Err(e.into());
        }
        // An earlier attempt may have come as far as this.
        if slot.state.facts.is_none()
            && slot.state.recalled.is_none()
            && let Some(Memory { generation, body: Remembered::Identity(recalled) }) = record
        {
            slot.generation = generation;
            slot.state.recalled = Some(recalled);
            let mut view = entry.view();
            view.status.content = Content::Pending { since: SystemTime::now() };
            view.seen.unproved = Some(Awaits::Turn);
        }
        let with = slot.state.has_svid();
        let Some(listener) = listener? else { return Ok(false) };
        self.count(&entry);
        let served = self.serve(&entry, &mut slot, listener).await;
        drop(slot);
        self.look_at_record();
        served?;
        Ok(with)
    }

    /// A new connection to the mounter: it gets the listeners that it lost, and where it has another one for
    /// a volume, that one is served. Fails where the mounter is gone again.
    pub async fn reattach(&self) -> Result<(), MounterError> {
        for entry in self.all_of::<Identity>() {
            let mut slot = entry.slot.lock().await;
            match self.give_back(&entry, &mut slot).await {
                Ok(()) => {}
                Err(VolumeError::Mounter(e)) if !e.is_fault() => return Err(e),
                Err(e) => entry.span().in_scope(|| {
                    tracing::warn!(error = %e, "the mounter did not take the volume's listener; its pods go on");
                }),
            }
        }
        Ok(())
    }

    /// The mounter gets the listener that is served, where it has none; where it has another one, that one is
    /// served.
    async fn give_back(
        &self,
        entry: &VolumeEntry<Identity>,
        slot: &mut LockedState<Identity>,
    ) -> Result<(), VolumeError> {
        let serving = slot.state.serving.as_ref();
        let Some((cookie, kept)) = serving.map(|s| (s.cookie(), s.kept())) else { return Ok(()) };
        match self.mounter.store(Subject::Volume(entry.volume.clone()), kept, cookie).await? {
            true => Ok(()),
            false => self.compare(entry, slot, cookie).await,
        }
    }

    /// Writes every record again: the state directory is another one.
    pub async fn store_all(&self) {
        let Ok(state) = self.state() else { return };
        for entry in self.all() {
            if let Some(locked) = entry.lock().await {
                each_locked!(locked, (entry, mut slot) => self.store_again(&state, &entry, &mut slot));
            }
        }
    }

    fn store_again<K: Kind>(&self, state: &StateDir, entry: &VolumeEntry<K>, slot: &mut LockedState<K>) {
        let cookie = K::cookie(&slot.state);
        if let Err(e) = self.store(state, entry, slot, cookie) {
            entry.span().in_scope(|| tracing::error!(error = %e, "the record could not be stored"));
        }
    }

    async fn compare(
        &self,
        entry: &VolumeEntry<Identity>,
        slot: &mut LockedState<Identity>,
        cookie: u64,
    ) -> Result<(), VolumeError> {
        let listener: Listener = self.mounter.fetch(&entry.volume).await?;
        if listener.cookie == cookie {
            return Ok(());
        }
        tracing::warn!(volume = %entry.volume, "the mounter keeps another listener; it is served now");
        self.serve(entry, slot, listener).await
    }
}

/// A record that can be read.
pub(super) struct Memory {
    generation: u64,
    body: Remembered,
}

/// What a record says of its volume, by kind.
enum Remembered {
    /// To be decided over.
    Identity(Recalled),
    /// The source directory was recreated below the pod.
    Directory,
}

/// The records of these volumes, as far as they can be used. None of the others is read: how many there are
/// is not known, and the agent before may have filled the directory.
pub(super) fn recall_all(state: &StateDir, volumes: &[Volume]) -> HashMap<Volume, Memory> {
    volumes.iter().filter_map(|volume| Some((volume.clone(), recall(state, volume)?))).collect()
}

fn recall(state: &StateDir, volume: &Volume) -> Option<Memory> {
    let record = match state.get(&volume.pod, &volume.name) {
        Ok(record) => record?,
        Err(e) => {
            tracing::error!(error = %e, "a record cannot be used; its volume waits for a republish");
            return None;
        }
    };
    if record.volume != *volume {
        // Of an earlier volume of that name, by the kubelet's record of this one: its token and key are of no
        // use.
        if let Err(e) = state.remove(volume) {
            tracing::error!(error = %e, "the record could not be wiped");
        }
        return None;
    }
    let unusable = |why: &String| {
        tracing::error!(%volume, reason = %why, "the recorded SVID cannot be used");
    };
    let body = match record.body {
        Body::Identity(IdentityBody { token, svid, .. }) => {
            let held = svid.as_ref().and_then(|svid| held(svid).inspect_err(unusable).ok());
            Remembered::Identity(Recalled { token: token?, held })
        }
        Body::Directory => Remembered::Directory,
    };
    Some(Memory { generation: record.generation, body })
}
