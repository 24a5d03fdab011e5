//! Volumes whose identity is not ours: the source `directory`, and mounts of other drivers.

use std::time::SystemTime;

use seamount_mounter_protocol::flag;

use super::health::{Identity, Status};
use super::{LockedState, VolumeEntry, VolumeError, Volumes, conflict_id};
use crate::csi::request::PublishRequest;

impl Volumes {
    /// Publishes a volume of the `directory` source.
    pub async fn publish_directory(&self, request: &PublishRequest) -> Result<(), VolumeError> {
        let volume = &request.volume;
        let (entry, mut slot) = self.locked(volume).await;
        if let Some(field) = conflict_id(&entry, volume) {
            return Err(VolumeError::Conflict { field, volume: volume.clone() });
        }
        if slot.facts.is_some() || slot.serving.is_some() {
            // Of the time when the source was `authority`: it goes on as it is (see
            // `IdentityError::OtherSource`).
            return Ok(());
        }
        if slot.directory.as_ref().is_some_and(|before| *before != request.parameters) {
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
                slot.directory = Some(request.parameters);
                if self.external(&entry, request) {
                    entry.span().in_scope(|| tracing::info!("published, source directory"));
                }
                if flags & flag::STALE != 0 {
                    self.remember_stale(&entry, &mut slot);
                }
            }
            Err(e) => {
                if entry.view().status.identity != Identity::External {
                    slot.go();
                    self.forget(&entry);
                }
                return Err(e.into());
            }
        }
        Ok(())
    }

    /// A publish over another driver's mount succeeds, changes nothing, and is reported. The kubelet
    /// republishes the volumes of a driver that was here before, under the same name, when the CSIDriver
    /// object is patched.
    pub(super) fn foreign(&self, entry: &VolumeEntry, request: &PublishRequest) {
        if self.external(entry, request) {
            entry.span().in_scope(|| {
                tracing::warn!("another driver's mount is there; left alone until the pod is restarted");
            });
        }
    }

    /// A socket of ours is there, where perhaps another's mount was seen before: its identity counts again.
    pub(super) fn ours_again(&self, entry: &VolumeEntry, slot: &LockedState) {
        let mut view = entry.view();
        if view.status.identity != Identity::External || slot.facts.is_none() {
            return;
        }
        view.status.identity = match &slot.held {
            Some(held) => Identity::Ready { not_after: held.svid.not_after() },
            None => Identity::Pending { since: SystemTime::now() },
        };
        view.status.rotate_at = slot.held.as_ref().map(|held| held.rotate_at);
        view.status.serving = slot.serving.as_ref().is_some_and(super::VolumeServer::alive);
        drop(view);
        // It may have expired meanwhile.
        self.remind(SystemTime::now());
        self.count(entry);
        entry
            .span()
            .in_scope(|| tracing::info!("the other driver's mount is gone; the volume is ours again"));
    }

    /// The volume has no identity of ours; whether that is news.
    fn external(&self, entry: &VolumeEntry, request: &PublishRequest) -> bool {
        let mut view = entry.view();
        view.pod = request.pod_name.as_str().into();
        view.namespace = request.namespace.as_str().into();
        let news = view.status.identity != Identity::External;
        view.status = Status { identity: Identity::External, failure: None, serving: false, rotate_at: None };
        drop(view);
        self.count(entry);
        news
    }
}
