//! Taking a volume away, whatever its kind.

use std::sync::PoisonError;
use std::sync::atomic::Ordering;

use seamount_mounter_protocol::names::Volume;

use super::directory::Directory;
use super::entry::{Ending as _, Locked};
use super::health::Status;
use super::identity::conflict::conflict_id;
use super::kinds::{OneOf, each_locked};
use super::{VolumeError, Volumes, key, log};

impl Volumes {
    /// Takes a volume away: cuts every connection, wipes the record, removes what is on disk. Works for
    /// unknown volumes and without state, authority or configuration.
    pub async fn unpublish(&self, volume: &Volume) -> Result<(), VolumeError> {
        let _call = self.inflight.call();
        each_locked!(self.locked::<Directory>(volume).await, locked => self.take_away(volume, locked).await)
    }

    async fn take_away<K: OneOf>(
        &self,
        volume: &Volume,
        (entry, mut slot): Locked<K>,
    ) -> Result<(), VolumeError> {
        // Which driver and id are right, the mounter knows by the kubelet's record: a wrong one takes nothing
        // away. While records are read another driver's volume may not be known yet.
        let unknown = slot.place.is_none() && !self.restored.load(Ordering::Acquire);
        if (unknown || conflict_id(&entry.volume, volume).is_some())
            && let Err(e) = self.mounter.unpublish(volume).await
        {
            if unknown {
                slot.go();
                self.forget(&entry);
            }
            return Err(e.into());
        }
        {
            // The flag under the lock: else the key could be put in after restore has thrown the others away.
            let mut unpublished = self.unpublished.lock().unwrap_or_else(PoisonError::into_inner);
            if !self.restored.load(Ordering::Acquire) {
                unpublished.insert(key(volume));
            }
        }
        let span = entry.span();
        {
            let mut view = entry.view();
            view.status = Status::unknown();
            view.due = None;
            view.seen = K::Seen::default();
        }
        let ending = K::end(&mut slot.state);
        // Record and connections go while the mounter works; the answer waits for all of it. A record that a
        // crash leaves has no volume on disk and is wiped at the next start.
        let gone = async {
            // Not before the mounter's request is on its way, in another task.
            tokio::task::yield_now().await;
            ending.cut();
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
            ending.stop().await;
        };
        let (removed, ()) = tokio::join!(self.mounter.unpublish(volume), gone);
        // Where the mounter failed too: nothing is left here, and the kubelet comes again.
        slot.go();
        self.forget(&entry);
        removed?;
        log(span, "unpublished");
        Ok(())
    }
}
