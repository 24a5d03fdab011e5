//! Coming back: volumes from their records and from what the mounter finds on disk, and listeners back to a mounter
//! that lost them.

use std::collections::HashMap;
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};
use std::time::SystemTime;

use futures_util::StreamExt as _;
use seamount_identity::authority::Workload;
use seamount_identity::{BundleSet, PrivateKey, SpiffeId, X509Bundle, X509Svid};
use seamount_mounter_protocol::names::Volume;
use seamount_mounter_protocol::{Fault, flag, keep};

use super::health::Identity;
use super::leftovers;
use super::serving::ended;
use super::{Entry, Facts, Held, Slot, VolumeError, Volumes};
use crate::csi::request::PublishRequest;
use crate::mounter::{Found, Listener, MounterError};
use crate::record::{Record, StoredSvid, VolumeSource};
use crate::state::{StateDir, StateError};

/// Volumes that are brought back at once. Else each that needs a new socket waits for the mounter's turn on a busy node.
const AT_ONCE: usize = 16;

/// What [`Volumes::restore`] did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Restored {
    /// Volumes that are served again, with their SVID.
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
        slot: &mut Slot,
        cookie: u64,
    ) -> Result<(), VolumeError> {
        let Some(facts) = &slot.facts else { return Ok(()) };
        slot.generation += 1;
        let record = Record {
            generation: slot.generation,
            volume: volume.clone(),
            workload: facts.workload.clone(),
            source: VolumeSource::Authority,
            cookie,
            parameters: facts.parameters,
            token: Some(facts.token.clone()),
            svid: slot.held.as_ref().map(stored),
        };
        Ok(state.put(&record)?)
    }

    /// Brings every volume back that is on disk. May be repeated; a volume that is known already is left alone.
    pub async fn restore(&self) -> Result<Restored, VolumeError> {
        let state = self.state()?;
        let wiping = Arc::clone(&state);
        let mut done = Restored::default();
        // While the mounter looks through the pods' directories; keys and certificates take longer than the files.
        let recalled = crate::sync::blocking(move || recall_all(&state));
        let (recalled, found) = tokio::join!(recalled, self.mounter.list());
        let mut records = recalled.map_err(|e| VolumeError::NoState(e.to_string()))??;
        let mut all = found?;
        leftovers::look(&all, &self.metrics, true);
        all.retain(|found| !found.has(flag::ORPHAN));
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
        // What is left has no volume on disk. Only the mounter's word that nothing is there ends a record.
        for recalled in records.into_values() {
            let volume = &recalled.record.volume;
            match self.mounter.inspect(volume, super::LOOK).await {
                Ok(None) => {
                    if self.get(volume).is_none() {
                        wiping.remove(volume)?;
                        done.forgotten += 1;
                    }
                }
                Ok(Some(found)) => {
                    let _ = self.bring_back(found, Some(recalled)).await;
                }
                Err(e) if e.is(Fault::NotOurs) => {
                    wiping.remove(volume)?;
                    done.forgotten += 1;
                }
                // One volume that cannot be looked at must not keep the node from publishing all others.
                Err(e) if e.is_fault() => {
                    tracing::error!(%volume, error = %e, "a record's volume cannot be looked at; it waits for a republish");
                }
                Err(e) => return Err(e.into()),
            }
        }
        let mut unpublished = self.unpublished.lock().unwrap_or_else(PoisonError::into_inner);
        self.restored.store(true, Ordering::Release);
        unpublished.clear();
        Ok(done)
    }

    /// One volume; whether it has its identity again.
    pub(super) async fn bring_back(
        &self,
        found: Found,
        record: Option<Recalled>,
    ) -> Result<bool, (Volume, VolumeError)> {
        let Found { volume, flags, listener, .. } = found;
        let (entry, mut slot) = self.locked(&volume).await;
        // Under the lock: it was taken away since it was found, or its record read. No publish comes before all is
        // restored, so it is gone, and its listener is dead.
        if self.unpublished.lock().unwrap_or_else(PoisonError::into_inner).contains(&super::key(&volume)) {
            slot.go();
            self.forget(&entry);
            return Ok(false);
        }
        if let Err(e) = self.place(&mut slot, &volume, true) {
            return Err((volume, e));
        }
        if slot.serving.is_some() {
            return Ok(slot.held.is_some());
        }
        if flags & flag::IDENTITY == 0 {
            let mut view = entry.view();
            view.status.identity = Identity::Elsewhere;
            view.stale |= record.is_some_and(|recalled| recalled.record.source == VolumeSource::Directory);
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
            slot.facts = None;
            slot.held = None;
            // An attempt that is under way finds nothing due, and is not followed by another for ever.
            entry.view().due = None;
            self.forget(&entry);
            return Err((volume, e.into()));
        }
        // An earlier attempt may have come as far as this.
        let with = match slot.facts {
            Some(_) => slot.held.is_some(),
            None => record.is_some_and(|recalled| self.take(&entry, &mut slot, recalled)),
        };
        let listener = match listener {
            Ok(Some(listener)) => listener,
            Ok(None) => return Ok(false),
            Err(e) => return Err((volume, e.into())),
        };
        self.count(&entry);
        let served = self.serve(&entry, &mut slot, listener).await;
        if !with && slot.facts.is_some() {
            // The agent before died between publish and identity: the pod waits since then.
            self.hurry(&entry);
        }
        served.map_err(|e| (volume, e))?;
        Ok(with)
    }

    /// Takes a record over; whether it has a usable identity.
    fn take(&self, entry: &Arc<Entry>, slot: &mut Slot, recalled: Recalled) -> bool {
        let Recalled { record, held } = recalled;
        if record.source == VolumeSource::Directory {
            return false;
        }
        let now = SystemTime::now();
        let Record { generation, workload, parameters, token, .. } = record;
        {
            let mut view = entry.view();
            view.pod = workload.pod_name.as_str().into();
            view.namespace = workload.namespace.as_str().into();
            view.status.identity = match &held {
                Some(held) => Identity::Ready { not_after: held.svid.not_after() },
                None => Identity::Pending { since: now },
            };
            view.status.rotate_at = held.as_ref().map(|h| h.rotate_at);
            view.due = token.as_ref().map(|_| held.as_ref().map_or(now, |h| h.rotate_at));
            // The bundles of now may not verify it: the root was replaced while there was no agent.
            view.refresh = held.is_some();
        }
        self.remind(now);
        let with = held.is_some();
        slot.generation = generation;
        slot.facts = token.map(|token| Facts { parameters, workload, token });
        slot.held = held;
        with
    }

    /// Remembers, also for an agent that comes later, that the pod holds a dead source directory.
    pub(super) fn remember_stale(&self, entry: &Entry, slot: &mut Slot, request: &PublishRequest) {
        if std::mem::replace(&mut entry.view().stale, true) {
            return;
        }
        slot.generation += 1;
        let record = Record {
            generation: slot.generation,
            volume: entry.volume.clone(),
            workload: Workload {
                namespace: request.namespace.clone(),
                service_account: request.service_account.clone(),
                pod_name: request.pod_name.clone(),
                pod_uid: request.volume.pod.to_string(),
                node: String::new(),
            },
            source: VolumeSource::Directory,
            cookie: 0,
            parameters: request.parameters,
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

    /// A new connection to the mounter: it gets the listeners that it lost, and where it has another one for a volume,
    /// that one is served. Fails where the mounter is gone again.
    pub async fn reattach(&self) -> Result<(), MounterError> {
        for entry in self.all() {
            let mut slot = entry.slot.lock().await;
            let Some((cookie, kept)) = slot.serving.as_ref().map(|s| (s.cookie(), s.kept())) else {
                continue;
            };
            let result =
                match self.mounter.store(Some(entry.volume.clone()), keep::VOLUME, kept, cookie).await {
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

    async fn compare(&self, entry: &Entry, slot: &mut Slot, cookie: u64) -> Result<(), VolumeError> {
        let listener: Listener = self.mounter.fetch(&entry.volume).await?;
        if listener.cookie == cookie {
            return Ok(());
        }
        tracing::warn!(volume = %entry.volume, "the mounter keeps another listener; it is served now");
        self.serve(entry, slot, listener).await
    }
}

/// A record, and what its identity was made into.
pub(super) struct Recalled {
    record: Record,
    held: Option<Held>,
}

/// All records that can be used.
pub(super) fn recall_all(state: &StateDir) -> Result<HashMap<Volume, Recalled>, StateError> {
    let mut records = HashMap::new();
    for found in state.list()? {
        match found.record {
            Ok(mut record) => {
                let unusable = |why: &String| {
                    tracing::error!(volume = %record.volume, reason = %why, "the recorded SVID cannot be used");
                };
                let held = record.svid.as_ref().and_then(|svid| held(svid).inspect_err(unusable).ok());
                record.svid = None;
                records.insert(record.volume.clone(), Recalled { record, held });
            }
            Err(e) => {
                tracing::error!(error = %e, "a record cannot be used; its volume waits for a republish");
            }
        }
    }
    Ok(records)
}

fn stored(held: &Held) -> StoredSvid {
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

fn held(stored: &StoredSvid) -> Result<Held, String> {
    let key = PrivateKey::from_pkcs8_der(&stored.key).map_err(|e| e.to_string())?;
    let svid = X509Svid::parse(&stored.chain, key).map_err(|e| e.to_string())?;
    let id: SpiffeId = stored.spiffe_id.parse().map_err(|e| format!("{e}"))?;
    if *svid.id() != id {
        return Err(format!("it is of {}, the record says {id}", svid.id()));
    }
    let own = X509Bundle::from_der(id.trust_domain().clone(), &stored.roots).map_err(|e| e.to_string())?;
    Ok(Held { svid: Arc::new(svid), rotate_at: stored.rotate_at, bundles: Arc::new(BundleSet::new(own)) })
}
