//! Publishing an identity volume, and serving it.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::SystemTime;

use seamount_authority::Workload;
use seamount_mounter_client::{Listener, MounterError};
use seamount_mounter_protocol::names::Volume;
use seamount_pod_token::DatedToken;
use seamount_workload_api::{IdentityState, Response};

use super::binding::{Basis, PodBinding};
use super::conflict::{conflict, conflict_id};
use super::proof::Adopted;
use super::server::{self, VolumeServer};
use super::{Entry, Identity, Slot};
use crate::csi::request::PublishRequest;
use crate::volumes::directory::Directory;
use crate::volumes::health::Content;
use crate::volumes::kinds::AnyLocked;
use crate::volumes::{VolumeError, Volumes, log};

impl Volumes {
    /// Publishes a volume with an identity of ours, or refreshes its token. What `workload` says is proved.
    pub async fn publish(
        &self,
        request: &PublishRequest,
        workload: Workload,
        token: DatedToken,
    ) -> Result<(), VolumeError> {
        let _call = self.inflight.call();
        let volume = &request.volume;
        let (entry, mut slot) = match self.locked::<Identity>(volume).await {
            AnyLocked::Identity(locked) => locked,
            AnyLocked::Directory(locked) => {
                if let Some(field) = conflict_id(&locked.0.volume, volume) {
                    return Err(VolumeError::Conflict { field, volume: volume.clone() });
                }
                self.records_are_read()?;
                // A mount of the source directory, or another driver's, stays while the pod runs.
                if self.bound(volume).await?.is_none() {
                    self.foreign(&locked.0, request);
                    return Ok(());
                }
                self.succeed::<Directory, Identity>(locked).await
            }
        };
        let result = self.publish_locked(&entry, &mut slot, request, workload, token).await;
        let nothing = slot.state.facts.is_none() && slot.state.serving.is_none();
        if result.is_err() && nothing && entry.view().status.content == Content::Unknown {
            slot.go();
            self.forget(&entry);
        }
        result
    }

    async fn publish_locked(
        &self,
        entry: &Arc<Entry>,
        slot: &mut Slot,
        request: &PublishRequest,
        workload: Workload,
        token: DatedToken,
    ) -> Result<(), VolumeError> {
        let volume = &request.volume;
        self.prove_for_publish(volume, slot).await;
        if let Some(field) = conflict(&entry.volume, slot.state.facts.as_ref(), request, &workload) {
            return Err(VolumeError::Conflict { field, volume: volume.clone() });
        }
        let state = self.records_are_read()?;
        self.place(slot, volume, false)?;
        let listener = match slot.state.serving.as_ref().filter(|s| s.alive()) {
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
        self.ours_again(entry, &slot.state);
        let same_socket =
            slot.state.serving.as_ref().is_some_and(|s| s.cookie() == listener.cookie && s.alive());
        let known = slot.state.facts.as_ref().filter(|facts| facts.proved());
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
        let new = slot.state.facts.is_none() && slot.state.recalled.is_none();
        let first = same_pod.is_none();
        let before = (slot.state.facts.clone(), slot.state.held.clone(), slot.state.recalled.clone());
        if let Some(recalled) = &mut slot.state.recalled {
            recalled.token = token.token.clone();
        }
        slot.state.facts = Some(PodBinding { workload, token, basis });
        let adopted = slot.state.recalled.is_some().then(|| self.adopt(entry, slot));
        if let Err(e) = self.store(&state, entry, slot, listener.cookie) {
            // Else the kubelet's next attempt, with the same token, would be taken for one that is recorded.
            (slot.state.facts, slot.state.held, slot.state.recalled) = before;
            return Err(e);
        }
        if !same_socket && let Err(e) = self.serve(entry, slot, listener).await {
            if new {
                // As if nothing had been; the next attempt is a first one again.
                slot.state.facts = None;
                state.remove(volume)?;
            } else if let Some(adopted) = &adopted {
                // The next attempt does not come here again: what is due is due.
                self.tell(entry, slot, adopted);
            }
            return Err(e);
        }
        self.published(entry, slot, first, adopted);
        Ok(())
    }

    /// A listener for a volume that is not served. Where an unpublish has ended the one that the mounter
    /// keeps, and did not reach the mounter, that is done first.
    pub(in crate::volumes) async fn bound(&self, volume: &Volume) -> Result<Option<Listener>, MounterError> {
        match self.mounter.publish_identity(volume).await? {
            Some(kept) if kept.existing && server::ended(&kept.fd) => {
                self.mounter.unpublish(volume).await?;
                self.mounter.publish_identity(volume).await
            }
            listener => Ok(listener),
        }
    }

    /// Brings the view up to date after a publish, and the identity under way.
    fn published(&self, entry: &Arc<Entry>, slot: &Slot, first: bool, adopted: Option<Adopted>) {
        let Some(facts) = &slot.state.facts else { return };
        if let Some(adopted) = &adopted {
            self.tell(entry, slot, adopted);
        } else {
            let mut view = entry.view();
            view.pod = facts.workload.pod_name.as_str().into();
            view.namespace = facts.workload.namespace.as_str().into();
            if first && slot.state.held.is_none() {
                view.status.content = Content::Pending { since: SystemTime::now() };
            }
            if first {
                view.due = Some(slot.state.held.as_ref().map_or_else(SystemTime::now, |held| held.rotate_at));
            }
        }
        self.count(entry);
        if first {
            self.schedule.hurry(entry);
            log(entry.span(), "published");
        }
    }

    /// Serves this listener in the place of whatever was served before.
    pub(in crate::volumes) async fn serve(
        &self,
        entry: &Entry,
        slot: &mut Slot,
        listener: Listener,
    ) -> Result<(), VolumeError> {
        if let Some(old) = slot.state.serving.take() {
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
        slot.state.serving = Some(serving);
        entry.view().status.serving = true;
        Ok(())
    }

    /// What the streams of this volume see now.
    pub(in crate::volumes) fn to_show(&self, slot: &Slot) -> IdentityState {
        let Some(held) = &slot.state.held else { return IdentityState::Pending };
        if held.svid.not_after() <= SystemTime::now() {
            return IdentityState::Unavailable("the SVID has expired and could not be renewed yet".into());
        }
        let bundles = self.bundles(held);
        IdentityState::Ready(Arc::new(Response::new(&[Arc::clone(&held.svid)], &bundles)))
    }
}
