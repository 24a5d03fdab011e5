//! Identities: the first one, the next one, and what the streams see of it.
//!
//! When a volume is looked at, the [`schedule`](crate::volumes::schedule) says.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use seamount_authority::{AuthorityError, NewKey, TemplateError, Workload};
use seamount_identity::rotation::{self, random_jitter};
use seamount_identity::{BundleSet, KeyType, SpiffeId, SvidError, X509Svid};
use seamount_pod_token::Token;
use seamount_telemetry::metrics::Outcome;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::Instrument as _;

use super::binding::{IssuedSvid, PodBinding};
use super::{Entry, Identity};
use crate::source::{Signer, Source};
use crate::volumes::entry::Kind as _;
use crate::volumes::health::Content;
use crate::volumes::schedule::{TICK, UnderWay, backoff, was_set_back};
use crate::volumes::{VolumeError, Volumes};

/// How long an authority may take for one certificate.
const SIGN: Duration = Duration::from_secs(30);
/// How long a new identity lets the kubelet's calls pass.
const YIELD: Duration = Duration::from_millis(100);

/// Why there is no new SVID.
#[derive(Debug, thiserror::Error)]
enum IdentityError {
    #[error("no authority: {0}")]
    NoAuthority(Arc<str>),
    #[error("the identity source is `directory`, the volume was published with `authority`; restart the pod")]
    OtherSource,
    #[error("no SPIFFE ID for it: {0}")]
    Id(#[from] TemplateError),
    #[error("the authority refused: {0}")]
    Authority(#[from] AuthorityError),
    #[error("the authority did not answer within {} s", SIGN.as_secs())]
    Timeout,
    #[error("the authority's certificate is not usable: {0}")]
    Svid(#[from] SvidError),
    #[error("the authority signed {got}, expected {wanted}")]
    OtherId { got: SpiffeId, wanted: SpiffeId },
    #[error(transparent)]
    Store(#[from] VolumeError),
    #[error("the key could not be made: the agent is stopping")]
    Stopping,
}

impl Volumes {
    /// Keeps identities fresh until cancelled.
    pub async fn keep_fresh(self: Arc<Self>, cancel: CancellationToken) {
        tokio::join!(self.keep_proving(&cancel), Arc::clone(&self).keep_renewing(&cancel));
    }

    async fn keep_renewing(self: Arc<Self>, cancel: &CancellationToken) {
        let mut source = self.source.clone();
        let mut bundles = bundles_of(&source.borrow_and_update());
        // Volumes that were restored may wait for bundles that are there already.
        self.refresh_all();
        let mut last = SystemTime::now();
        let mut next = Instant::now();
        loop {
            let changed = async {
                match &mut bundles {
                    Some(bundles) => {
                        let _ = bundles.changed().await;
                    }
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = cancel.cancelled() => return,
                // These alone: among thousands of volumes, a look at all of them for each publish is what
                // takes longest.
                () = self.schedule.wake.notified() => {
                    let due = self.schedule.hurried();
                    self.look_at_these(&due, SystemTime::now());
                    continue;
                }
                () = tokio::time::sleep_until(next) => {}
                changed = source.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    bundles = bundles_of(&source.borrow_and_update());
                    self.retry_all();
                    self.refresh_all();
                }
                () = changed => {
                    if let Some(bundles) = &mut bundles {
                        // A sender that is gone is followed by a change of the source.
                        if bundles.has_changed().is_err() {
                            tokio::time::sleep(TICK).await;
                        }
                        bundles.borrow_and_update();
                    }
                    self.refresh_all();
                }
            }
            let now = SystemTime::now();
            self.look_back(last, now);
            last = now;
            next = Instant::now() + TICK;
            self.look_at_the_clock(now);
        }
    }

    /// Where the clock was set back: what is not valid yet by it is due, and what failed is tried at once.
    pub(in crate::volumes) fn look_back(self: &Arc<Self>, last: SystemTime, now: SystemTime) {
        if was_set_back(last, now) {
            tracing::warn!("the clock was set back; identities of the future are made anew");
            self.retry_all();
            self.refresh_all();
        }
    }

    /// Starts what is due, and takes expired identities back.
    pub(in crate::volumes) fn look_at_the_clock(self: &Arc<Self>, now: SystemTime) {
        // While the authority is away, what has failed is asked for with each tick.
        let down = self.authority_health.is_down();
        if !self.schedule.is_time(now, down) {
            return;
        }
        let all = self.all_of::<Identity>();
        self.look_at_these(&all, now);
        if down && all.iter().all(|entry| entry.view().failures == 0) {
            self.authority_health.forget();
        }
    }

    fn look_at_these(self: &Arc<Self>, entries: &[Arc<Entry>], now: SystemTime) {
        let refreshed = entries.iter().filter(|entry| entry.view().seen.refresh && self.refresh(entry));
        self.check(refreshed.cloned().collect());
        let expired: Vec<_> = entries.iter().filter(|entry| self.look_at(entry, now)).collect();
        // One line, for they expire together when the authority is away for long.
        if let Some(first) = expired.first() {
            let volumes = expired.len();
            first.span().in_scope(|| {
                tracing::error!(
                    volumes,
                    "SVIDs have expired and could not be renewed, this pod's among them; the Workload API answers Unavailable"
                );
            });
        }
        self.schedule.remind_of(entries);
    }

    /// True where its SVID was found to have expired.
    fn look_at(self: &Arc<Self>, entry: &Arc<Entry>, now: SystemTime) -> bool {
        let (sign, expire) = {
            let mut view = entry.view();
            let sign = !view.signing && view.due.is_some_and(|due| due <= now);
            if sign {
                view.signing = true;
            }
            let past = matches!(view.status.content, Content::Ready { not_after } if not_after <= now);
            (sign, past && !view.expired)
        };
        let expired = expire && self.expire(entry);
        if sign {
            let span = entry.span();
            seamount_sync::spawn(Arc::clone(self).renew(Arc::clone(entry)).instrument(span));
        }
        expired
    }

    /// An SVID that has expired is no longer shown. A volume that is busy is looked at with the next tick.
    fn expire(&self, entry: &Entry) -> bool {
        let Ok(slot) = entry.slot.try_lock() else {
            self.schedule.remind(SystemTime::now());
            return false;
        };
        if slot.state.held.as_ref().is_none_or(|h| h.svid.not_after() > SystemTime::now()) {
            return false;
        }
        if let Some(serving) = &slot.state.serving {
            serving.show(self.to_show(&slot));
        }
        entry.view().expired = true;
        self.count(entry);
        entry.span().in_scope(|| tracing::debug!("the SVID has expired"));
        true
    }

    /// Another source, or another time: what failed, and what waits for its first, is tried at once.
    fn retry_all(&self) {
        let now = SystemTime::now();
        for entry in self.all_of::<Identity>() {
            let mut view = entry.view();
            let waits = matches!(view.status.content, Content::Pending { .. });
            if view.due.is_some() && (view.failures > 0 || waits) {
                view.due = Some(now);
                view.failures = 0;
            }
        }
        self.schedule.remind(now);
    }

    /// Other bundles: every response is made again, and an SVID that they do not verify (the root was
    /// replaced) is due.
    pub(in crate::volumes) fn refresh_all(self: &Arc<Self>) {
        let mut all = self.all_of::<Identity>();
        // First all streams have it, then signatures are verified, which takes much longer.
        all.retain(|entry| {
            entry.view().seen.refresh = true;
            self.refresh(entry)
        });
        self.check(all);
    }

    /// Shows the bundles of now. A volume that is busy is looked at with the next tick: one that waits for
    /// the mounter must not keep the others waiting. False for that one, and where there is no SVID.
    fn refresh(&self, entry: &Entry) -> bool {
        let Ok(mut slot) = entry.slot.try_lock() else {
            self.schedule.remind(SystemTime::now());
            return false;
        };
        entry.view().seen.refresh = false;
        let Some(held) = &mut slot.state.held else { return false };
        let now = self.bundles(held);
        if *now != *held.bundles {
            held.bundles = now;
            if let Some(serving) = &slot.state.serving {
                serving.show(self.to_show(&slot));
            }
        }
        true
    }

    /// Has SVIDs made anew that the bundles do not verify, or whose pod has another ID today. Signatures are
    /// verified where identities are made, so that nothing waits for thousands of them.
    fn check(self: &Arc<Self>, entries: Vec<Arc<Entry>>) {
        if entries.is_empty() || !matches!(&*self.source.borrow(), Source::Authority(_)) {
            return;
        }
        let held = |entry: Arc<Entry>| {
            let Ok(slot) = entry.slot.try_lock() else {
                entry.view().seen.refresh = true;
                self.schedule.remind(SystemTime::now());
                return None;
            };
            let other = self.has_other_id(&slot);
            let pair =
                slot.state.held.as_ref().map(|held| (Arc::clone(&held.svid), Arc::clone(&held.bundles)));
            drop(slot);
            pair.map(|(svid, bundles)| (entry, svid, bundles, other))
        };
        let all: Vec<_> = entries.into_iter().filter_map(held).collect();
        let verify = async move {
            let mut refused = Vec::new();
            for (entry, svid, bundles, other) in all {
                if other || svid.verify(bundles.own(), SystemTime::now()).is_err() {
                    refused.push((entry, svid));
                }
                // New identities go in between.
                tokio::task::yield_now().await;
            }
            refused
        };
        let this = Arc::clone(self);
        seamount_sync::spawn(async move {
            let refused = match &this.background {
                Some(background) => background.run(verify).await.unwrap_or_default(),
                None => verify.await,
            };
            for (entry, svid) in refused {
                let slot = entry.slot.lock().await;
                let proved = slot.state.facts.as_ref().is_some_and(PodBinding::proved);
                if proved && slot.state.held.as_ref().is_some_and(|held| Arc::ptr_eq(&held.svid, &svid)) {
                    entry.view().due = Some(SystemTime::now());
                    this.schedule.hurry(&entry);
                }
            }
        });
    }

    /// One attempt to get an SVID.
    async fn renew(self: Arc<Self>, entry: Arc<Entry>) {
        let under_way = UnderWay(&self.schedule, &entry);
        let result = self.attempt(&entry).await;
        let now = SystemTime::now();
        let mut view = entry.view();
        view.signing = false;
        // Only a reference; what follows says how it ended.
        std::mem::forget(under_way);
        match result {
            Ok(Some((id, not_after, due))) => {
                view.due = Some(due);
                view.failures = 0;
                view.expired = false;
                view.status.failure = None;
                view.status.rotate_at = Some(due);
                view.status.content = Content::Ready { not_after };
                drop(view);
                self.schedule.remind(due.min(not_after));
                self.count(&entry);
                self.metrics.rotation(Outcome::success);
                tracing::info!(
                    %id,
                    valid_for_s = not_after.duration_since(now).unwrap_or_default().as_secs(),
                    next_in_s = due.duration_since(now).unwrap_or_default().as_secs(),
                    "identity issued"
                );
            }
            // Unpublished or published anew meanwhile: nothing of it is for this volume as it is now.
            Ok(None) => {
                tracing::debug!("a late identity was thrown away");
                let due = view.due.is_some();
                drop(view);
                if due {
                    self.schedule.hurry(&entry);
                }
            }
            Err(e) => {
                let text = e.to_string();
                let new = view.status.failure.as_deref() != Some(text.as_str());
                let has_one = matches!(view.status.content, Content::Ready { not_after } if not_after > now);
                view.status.failure = Some(text.as_str().into());
                view.failures = view.failures.saturating_add(1);
                // Where the authority came while this failed for want of one, its coming was missed.
                let missed = view.due.is_some()
                    && matches!(e, IdentityError::NoAuthority(_))
                    && bundles_of(&self.source.borrow()).is_some();
                // Nothing is due any more where it was unpublished meanwhile: it would be tried without end.
                let due = if missed { now } else { now + backoff(view.failures) };
                view.due = view.due.map(|_| due);
                drop(view);
                self.schedule.remind(due);
                if missed {
                    self.schedule.hurry(&entry);
                }
                self.metrics.rotation(Outcome::error);
                let all = self.blame(&e, now);
                if new && all && has_one {
                    // The authority's silence is told once (by `authority_health`), not for each volume that
                    // can go on.
                    tracing::debug!(error = %text, "no new identity; going on with the old one");
                } else if new {
                    tracing::warn!(error = %text, "no new identity; trying again");
                }
            }
        }
    }

    /// Tells what an attempt says about the authority; whether it is the same for all volumes.
    fn blame(&self, error: &IdentityError, now: SystemTime) -> bool {
        match error {
            // Told by the task that keeps the source.
            IdentityError::NoAuthority(_) => return true,
            IdentityError::Timeout => self.authority_health.failed(now, &error.to_string()),
            IdentityError::Authority(e @ AuthorityError::Invalid(_)) => {
                tracing::debug!(error = %e, "the authority's fault");
                self.authority_health.misbehaved(now);
                return false;
            }
            IdentityError::Authority(e) if e.is_retryable() => {
                self.authority_health.failed(now, &e.to_string())
            }
            IdentityError::Authority(_) => {
                self.authority_health.refused(now);
                return false;
            }
            IdentityError::Svid(_) | IdentityError::OtherId { .. } => {
                self.authority_health.misbehaved(now);
                return false;
            }
            IdentityError::OtherSource
            | IdentityError::Id(_)
            | IdentityError::Store(_)
            | IdentityError::Stopping => return false,
        }
        true
    }

    async fn attempt(
        &self,
        entry: &Arc<Entry>,
    ) -> Result<Option<(SpiffeId, SystemTime, SystemTime)>, IdentityError> {
        let limit = Instant::now() + YIELD;
        let (permit, workload, token) = loop {
            let Ok(permit) = Arc::clone(&self.permits).acquire_owned().await else {
                return Err(IdentityError::Stopping);
            };
            // Those with a permit wait for the end of the calls, and the others for them: each call's end
            // would else wake all.
            self.inflight.over(limit).await;
            if let Ok(slot) = entry.slot.try_lock() {
                match &slot.state.facts {
                    Some(facts) if !slot.gone && facts.proved() => {
                        break (permit, facts.workload.clone(), facts.token.token.clone());
                    }
                    _ => return Ok(None),
                }
            }
            // The holder may wait for the mounter for long, and no other identity for that.
            drop(permit);
            drop(entry.slot.lock().await);
        };
        let signer = match &*self.source.borrow() {
            Source::Authority(signer) => signer.clone(),
            Source::Missing(why) => return Err(IdentityError::NoAuthority(Arc::clone(why))),
            Source::Directory => return Err(IdentityError::OtherSource),
        };
        let work = issue(signer, workload, token);
        let issued = match &self.background {
            Some(background) => background.run(work).await.ok_or(IdentityError::Stopping)?,
            None => work.await,
        };
        let (svid, bundles) = issued?;
        // What follows may have to wait for the mounter, and no other identity for that.
        drop(permit);
        self.authority_health.answered(SystemTime::now(), svid.issuer_validity());
        let due = rotation::due(svid.not_before(), svid.not_after(), random_jitter());
        let not_after = svid.not_after();
        let id = svid.id().clone();
        let held = IssuedSvid { svid: Arc::new(svid), rotate_at: due, bundles };

        let mut slot = entry.slot.lock().await;
        if slot.gone {
            return Ok(None);
        }
        let before = slot.state.held.replace(held);
        let cookie = Identity::cookie(&slot.state);
        let stored = self.state().and_then(|state| self.store(&state, entry, &mut slot, cookie));
        if let Err(e) = stored {
            slot.state.held = before;
            return Err(e.into());
        }
        if let Some(serving) = &slot.state.serving {
            serving.show(self.to_show(&slot));
        }
        // What the record said is of no use any more.
        slot.state.recalled = None;
        entry.view().seen.unproved = None;
        // Others since it was asked for, perhaps ones that do not verify it; the task that looked at all then
        // has not seen it.
        if self.has_other_id(&slot)
            || slot.state.held.as_ref().is_some_and(|held| *self.bundles(held) != *held.bundles)
        {
            entry.view().seen.refresh = true;
            self.schedule.remind(SystemTime::now());
        }
        Ok(Some((id, not_after, due)))
    }

    /// The bundles that belong to this SVID: the authority's, or while there is none those it was issued
    /// under.
    pub(in crate::volumes) fn bundles(&self, held: &IssuedSvid) -> Arc<BundleSet> {
        match &*self.source.borrow() {
            Source::Authority(signer) => signer.authority.bundles().borrow().clone(),
            Source::Missing(_) | Source::Directory => Arc::clone(&held.bundles),
        }
    }
}

fn bundles_of(source: &Source) -> Option<watch::Receiver<Arc<BundleSet>>> {
    match source {
        Source::Authority(signer) => Some(signer.authority.bundles()),
        Source::Missing(_) | Source::Directory => None,
    }
}

async fn issue(
    signer: Signer,
    workload: Workload,
    token: Token,
) -> Result<(X509Svid, Arc<BundleSet>), IdentityError> {
    let wanted = signer.template.render(&workload)?;
    let kind = signer.key_type;
    let key = match kind {
        // Microseconds, where the certificate is made too.
        KeyType::EcP256 | KeyType::EcP384 => NewKey::generate(kind)?,
        // A tenth of a second or more.
        KeyType::Rsa2048 | KeyType::Rsa4096 => tokio::task::spawn_blocking(move || NewKey::generate(kind))
            .await
            .map_err(|_| IdentityError::Stopping)??,
    };
    let signing = signer.authority.sign_key(&key, &workload, token.expose());
    let chain = tokio::time::timeout(SIGN, signing).await.map_err(|_| IdentityError::Timeout)??;
    let bundles = signer.authority.bundles().borrow().clone();
    // Refuses a chain that is not for this key, or that clients would not trust.
    let svid = X509Svid::new_verified(chain, key.into_private_key(), bundles.own(), SystemTime::now())?;
    if *svid.id() != wanted {
        return Err(IdentityError::OtherId { got: svid.id().clone(), wanted });
    }
    Ok((svid, bundles))
}
