//! Publishing a volume of the source `directory`, and what is seen of another driver's mount.

use std::sync::PoisonError;
use std::time::SystemTime;

use seamount_mounter_protocol::flag;
use seamount_mounter_protocol::names::Volume;

use super::Directory;
use crate::csi::request::PublishRequest;
use crate::volumes::entry::{LockedState, VolumeEntry};
use crate::volumes::health::{Content, Status};
use crate::volumes::identity::conflict::conflict_id;
use crate::volumes::identity::{self, Identity};
use crate::volumes::kinds::{AnyLocked, OneOf};
use crate::volumes::{VolumeError, Volumes, key};

impl Volumes {
    /// Publishes a volume of the `directory` source.
    pub async fn publish_directory(&self, request: &PublishRequest) -> Result<(), VolumeError> {
        let volume = &request.volume;
        let conflict = |known: &Volume| {
            conflict_id(known, volume)
                .map_or(Ok(()), |field| Err(VolumeError::Conflict { field, volume: volume.clone() }))
        };
        let (entry, mut slot) = match self.locked::<Directory>(volume).await {
            AnyLocked::Directory(locked) => locked,
            AnyLocked::Identity(locked) => {
                conflict(&locked.0.volume)?;
                let state = &locked.1.state;
                if state.facts.is_some() || state.serving.is_some() {
                    // Of the time when the source was `authority`: it goes on as it is (see
                    // `IdentityError::OtherSource`).
                    return Ok(());
                }
                self.succeed::<Identity, Directory>(locked).await
            }
        };
        conflict(&entry.volume)?;
        // One that was unpublished while records are read, and is there again.
        self.unpublished.lock().unwrap_or_else(PoisonError::into_inner).remove(&key(volume));
        if slot.state.parameters.as_ref().is_some_and(|before| *before != request.parameters) {
            let field = "volume_capability.access_mode or the pod's facts in volume_context";
            return Err(VolumeError::Conflict { field, volume: volume.clone() });
        }
        if let Err(e) = self.place(&mut slot, volume, false) {
            slot.go();
            self.forget(&entry);
            return Err(e);
        }
        match self.mounter.publish_directory(volume).await {
            Ok(flags) if flags & flag::FOREIGN != 0 => self.foreign(&entry, request),
            Ok(flags) => {
                slot.state.parameters = Some(request.parameters);
                if self.external(&entry, request) {
                    entry.span().in_scope(|| tracing::info!("published, source directory"));
                }
                if flags & flag::STALE != 0 {
                    self.remember_stale(&entry, &mut slot);
                }
            }
            Err(e) => {
                if entry.view().status.content != Content::External {
                    slot.go();
                    self.forget(&entry);
                }
                return Err(e.into());
            }
        }
        Ok(())
    }

    /// Remembers, also for an agent that comes later, that the pod holds a dead source directory.
    fn remember_stale(&self, entry: &VolumeEntry<Directory>, slot: &mut LockedState<Directory>) {
        if std::mem::replace(&mut entry.view().seen.stale, true) {
            return;
        }
        let stored = self.state().and_then(|state| self.store(&state, entry, slot, 0));
        entry.span().in_scope(|| {
            tracing::warn!(
                "the source directory was recreated; running containers hold the old one: restart the pod"
            );
            if let Err(e) = stored {
                tracing::warn!(error = %e, "that could not be recorded; a restarted agent will not know it");
            }
        });
    }

    /// A publish over another driver's mount succeeds, changes nothing, and is reported. The kubelet
    /// republishes the volumes of a driver that was here before, under the same name, when the CSIDriver
    /// object is patched.
    pub(in crate::volumes) fn foreign<K: OneOf>(&self, entry: &VolumeEntry<K>, request: &PublishRequest) {
        if self.external(entry, request) {
            tell_foreign(entry);
        }
    }

    /// A socket of ours is there, where perhaps another's mount was seen before: its identity counts again.
    pub(in crate::volumes) fn ours_again(&self, entry: &VolumeEntry<Identity>, state: &identity::State) {
        let mut view = entry.view();
        if view.status.content != Content::External || state.facts.is_none() {
            return;
        }
        view.status.content = match &state.held {
            Some(held) => Content::Ready { not_after: held.svid.not_after() },
            None => Content::Pending { since: SystemTime::now() },
        };
        view.status.rotate_at = state.held.as_ref().map(|held| held.rotate_at);
        view.status.serving = state.serving.as_ref().is_some_and(identity::server::VolumeServer::alive);
        drop(view);
        // It may have expired meanwhile.
        self.schedule.remind(SystemTime::now());
        self.count(entry);
        entry
            .span()
            .in_scope(|| tracing::info!("the other driver's mount is gone; the volume is ours again"));
    }

    /// The volume has no content of ours; whether that is news.
    fn external<K: OneOf>(&self, entry: &VolumeEntry<K>, request: &PublishRequest) -> bool {
        let mut view = entry.view();
        view.pod = request.pod_name.as_str().into();
        view.namespace = request.namespace.as_str().into();
        let news = view.status.content != Content::External;
        view.status = Status { content: Content::External, ..Status::unknown() };
        drop(view);
        self.count(entry);
        news
    }
}

/// Logs that another driver's mount is there.
pub(in crate::volumes) fn tell_foreign<K: OneOf>(entry: &VolumeEntry<K>) {
    entry.span().in_scope(|| {
        tracing::warn!("another driver's mount is there; left alone until the pod is restarted");
    });
}
