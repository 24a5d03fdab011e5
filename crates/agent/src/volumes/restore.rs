//! Coming back: volumes from their records and from what the mounter finds on disk, and listeners back to a
//! mounter that lost them.

use std::collections::HashMap;
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};
use std::time::SystemTime;

use futures_util::StreamExt as _;
use seamount_identity::rotation::{self, random_jitter};
use seamount_identity::{BundleSet, PrivateKey, SpiffeId, X509Bundle, X509Svid};
use seamount_mounter_protocol::names::Volume;
use seamount_mounter_protocol::{Fault, Subject, flag};

use super::health::Identity;
use super::leftovers;
use super::proof::{Awaits, Recalled};
use super::server::ended;
use super::{IssuedSvid, LockedState, VolumeEntry, VolumeError, Volumes};
use crate::mounter::{Found, Listener, MounterError};
use crate::record::{Record, StoredSvid, VolumeSource};
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
    pub(super) fn store(
        &self,
        state: &StateDir,
        volume: &Volume,
        slot: &mut LockedState,
        cookie: u64,
    ) -> Result<(), VolumeError> {
        let Some(facts) = &slot.facts else { return Ok(()) };
        // The first number may be anything that a record had.
        slot.generation = slot.generation.wrapping_add(1);
        // One that waits to be decided over is not lost.
        let recalled = slot.recalled.as_ref().and_then(|recalled| recalled.held.as_ref());
        let record = Record {
            generation: slot.generation,
            volume: volume.clone(),
            source: VolumeSource::Authority,
            cookie,
            token: Some(facts.token.token.clone()),
            svid: slot.held.as_ref().or(recalled).map(stored),
        };
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
        let records = crate::sync::blocking(move || recall_all(&reading, &volumes)).await;
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
        let left = crate::sync::blocking(move || reading.others(&known, MOST_LEFT)).await;
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
                    let record = crate::sync::blocking(move || recall(&reading, &of)).await.ok().flatten();
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
        let Found { volume, flags, listener, .. } = found;
        let (entry, mut slot) = self.locked(&volume).await;
        // Under the lock: it was taken away since it was found, or its record read. No publish comes before
        // all is restored, so it is gone, and its listener is dead.
        if self.unpublished.lock().unwrap_or_else(PoisonError::into_inner).contains(&super::key(&volume)) {
            slot.go();
            self.forget(&entry);
            return Ok(false);
        }
        if let Err(e) = self.place(&mut slot, &volume, true) {
            return Err((volume, e));
        }
        let has_one = |slot: &LockedState| {
            slot.held.is_some() || slot.recalled.as_ref().is_some_and(|recalled| recalled.held.is_some())
        };
        if slot.serving.is_some() {
            return Ok(has_one(&slot));
        }
        if flags & flag::IDENTITY == 0 {
            let mut view = entry.view();
            view.status.identity = Identity::External;
            view.stale |= record.is_some_and(|record| record.source == VolumeSource::Directory);
            drop(view);
            self.count(&entry);
            if flags & flag::FOREIGN != 0 {
                entry.span().in_scope(|| {
                    tracing::warn!("another driver's mount is there; left alone until the pod is restarted");
                });
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
            (slot.facts, slot.held, slot.recalled) = (None, None, None);
            // An attempt that is under way finds nothing due, and is not followed by another for ever.
            {
                let mut view = entry.view();
                (view.due, view.unproved) = (None, None);
            }
            self.forget(&entry);
            return Err((volume, e.into()));
        }
        // An earlier attempt may have come as far as this.
        if slot.facts.is_none()
            && slot.recalled.is_none()
            && let Some(record) = record
        {
            take(&entry, &mut slot, record);
        }
        let with = has_one(&slot);
        let listener = match listener {
            Ok(Some(listener)) => listener,
            Ok(None) => return Ok(false),
            Err(e) => return Err((volume, e.into())),
        };
        self.count(&entry);
        let served = self.serve(&entry, &mut slot, listener).await;
        drop(slot);
        self.look_at_record();
        served.map_err(|e| (volume, e))?;
        Ok(with)
    }

    /// Remembers, also for an agent that comes later, that the pod holds a dead source directory.
    pub(super) fn remember_stale(&self, entry: &VolumeEntry, slot: &mut LockedState) {
        if std::mem::replace(&mut entry.view().stale, true) {
            return;
        }
        slot.generation = slot.generation.wrapping_add(1);
        let record = Record {
            generation: slot.generation,
            volume: entry.volume.clone(),
            source: VolumeSource::Directory,
            cookie: 0,
            token: None,
            svid: None,
        };
        let stored = self.state().and_then(|state| Ok(state.put(&record)?));
        entry.span().in_scope(|| {
            tracing::warn!(
                "the source directory was recreated; running containers hold the old one: restart the pod"
            );
            if let Err(e) = stored {
                tracing::warn!(error = %e, "that could not be recorded; a restarted agent will not know it");
            }
        });
    }

    /// A new connection to the mounter: it gets the listeners that it lost, and where it has another one for
    /// a volume, that one is served. Fails where the mounter is gone again.
    pub async fn reattach(&self) -> Result<(), MounterError> {
        for entry in self.all() {
            let mut slot = entry.slot.lock().await;
            let Some((cookie, kept)) = slot.serving.as_ref().map(|s| (s.cookie(), s.kept())) else {
                continue;
            };
            let result = match self.mounter.store(Subject::Volume(entry.volume.clone()), kept, cookie).await {
                Ok(true) => Ok(()),
                Ok(false) => self.compare(&entry, &mut slot, cookie).await,
                Err(e) => Err(e.into()),
            };
            match result {
                Ok(()) => {}
                Err(VolumeError::Mounter(e)) if !e.is_fault() => return Err(e),
                Err(e) => entry.span().in_scope(|| {
                    tracing::warn!(error = %e, "the mounter did not take the volume's listener; its pods go on");
                }),
            }
        }
        Ok(())
    }

    /// Writes every record again: the state directory is another one.
    pub async fn store_all(&self) {
        let Ok(state) = self.state() else { return };
        for entry in self.all() {
            let mut slot = entry.slot.lock().await;
            let cookie = slot.serving.as_ref().map_or(0, |s| s.cookie());
            if let Err(e) = self.store(&state, &entry.volume, &mut slot, cookie) {
                entry.span().in_scope(|| tracing::error!(error = %e, "the record could not be stored"));
            }
        }
    }

    async fn compare(
        &self,
        entry: &VolumeEntry,
        slot: &mut LockedState,
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
    source: VolumeSource,
    generation: u64,
    recalled: Option<Recalled>,
}

/// Takes a record into the slot, to be decided over.
fn take(entry: &VolumeEntry, slot: &mut LockedState, memory: Memory) {
    let Some(recalled) = memory.recalled else { return };
    slot.generation = memory.generation;
    slot.recalled = Some(recalled);
    let mut view = entry.view();
    view.status.identity = Identity::Pending { since: SystemTime::now() };
    view.unproved = Some(Awaits::VolumeStats);
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
        // Of an earlier volume of that name, by the kubelet's record of this one: its token and key are
        // nobody's.
        if let Err(e) = state.remove(volume) {
            tracing::error!(error = %e, "the record could not be wiped");
        }
        return None;
    }
    let unusable = |why: &String| {
        tracing::error!(%volume, reason = %why, "the recorded SVID cannot be used");
    };
    let held = record.svid.as_ref().and_then(|svid| held(svid).inspect_err(unusable).ok());
    let authority = record.source == VolumeSource::Authority;
    let recalled = record.token.filter(|_| authority).map(|token| Recalled { token, held });
    Some(Memory { source: record.source, generation: record.generation, recalled })
}

fn stored(held: &IssuedSvid) -> StoredSvid {
    StoredSvid {
        spiffe_id: held.svid.id().to_string(),
        key: held.svid.key().expose_pkcs8_der().to_vec().into(),
        chain: held.svid.chain_der(),
        roots: held.bundles.own().der(),
        not_before: held.svid.not_before(),
        not_after: held.svid.not_after(),
        rotate_at: held.rotate_at,
    }
}

fn held(stored: &StoredSvid) -> Result<IssuedSvid, String> {
    let key = PrivateKey::from_pkcs8_der(&stored.key).map_err(|e| e.to_string())?;
    let svid = X509Svid::parse(&stored.chain, key).map_err(|e| e.to_string())?;
    let id: SpiffeId = stored.spiffe_id.parse().map_err(|e| format!("{e}"))?;
    if *svid.id() != id {
        return Err(format!("it is of {}, the record says {id}", svid.id()));
    }
    let own = X509Bundle::from_der(id.trust_domain().clone(), &stored.roots).map_err(|e| e.to_string())?;
    // By the record it might never be due.
    let (from, until) = (svid.not_before(), svid.not_after());
    let plausible = (from..=rotation::due(from, until, 1.0)).contains(&stored.rotate_at);
    let rotate_at = if plausible { stored.rotate_at } else { rotation::due(from, until, random_jitter()) };
    Ok(IssuedSvid { svid: Arc::new(svid), rotate_at, bundles: Arc::new(BundleSet::new(own)) })
}
