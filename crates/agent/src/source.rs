//! Where identities come from now: the supervisor of the configured source.
//!
//! An authority that cannot be made (a missing Secret, say) makes the agent not ready; it is tried again, and
//! it is made anew when the files it reads or its configuration change. Volumes that have an SVID go on with
//! it.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use aws_lc_rs::digest::{SHA256, digest};
use seamount_authority::{Authority, Done, Embedded, EmbeddedConfig, IdTemplate};
use seamount_identity::{KeyType, TrustDomain};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::config::{self, AuthoritySource, Config};

/// How often the authority's files are looked at, and how often it is given the time to rotate.
pub const LOOK: Duration = Duration::from_secs(5);

/// What signs for volumes.
#[derive(Clone)]
pub struct Signer {
    /// The authority.
    pub authority: Arc<dyn Authority>,
    /// Which ID a pod has; the authority's answer is compared with it.
    pub template: Arc<IdTemplate>,
    /// Kind of the keys that the agent makes.
    pub key_type: KeyType,
    /// Why it is only the last good one: its Secret is gone or not usable, or its rotation fails.
    pub trouble: Option<Arc<str>>,
}

/// The source as it is now.
#[derive(Clone)]
pub enum Source {
    /// None, and why.
    Missing(Arc<str>),
    /// Our own identities.
    Authority(Signer),
    /// Another provider's socket, bound by the mounter.
    Directory,
}

/// What the embedded authority was made from. Not the rules for tokens: a root in memory must outlive their
/// change.
#[derive(PartialEq, Eq)]
struct Made {
    trust_domain: TrustDomain,
    id_template: String,
    embedded: config::Embedded,
    files: [u8; 32],
}

impl Made {
    fn differs_in_lifetimes_only(&self, new: &Self) -> bool {
        let config::Embedded { directory, key_type, svid_key_type, ca_ttl: _, svid_ttl: _ } = &self.embedded;
        let parts = (&new.embedded.directory, &new.embedded.key_type, &new.embedded.svid_key_type);
        (&self.trust_domain, &self.id_template, self.files)
            == (&new.trust_domain, &new.id_template, new.files)
            && (directory, key_type, svid_key_type) == parts
    }
}

/// Follows the configuration until cancelled. The only one that sends a source: what reads one has the last
/// that was made, and an authority that is held still lives until its last request has ended.
pub async fn supervise(
    mut config: watch::Receiver<Option<Arc<Config>>>,
    source: watch::Sender<Source>,
    cancel: CancellationToken,
) {
    let mut embedded: Option<(Arc<Embedded>, Made)> = None;
    loop {
        let current = config.borrow_and_update().clone();
        match current.as_deref().map(|c| &c.source) {
            None => missing(&source, "there is no valid configuration"),
            Some(config::Source::Directory) => {
                embedded = None;
                if !matches!(&*source.borrow(), Source::Directory) {
                    source.send_replace(Source::Directory);
                }
            }
            Some(config::Source::Authority(wanted)) => embed(&mut embedded, wanted, &source).await,
        }
        tokio::select! {
            () = cancel.cancelled() => return,
            () = tokio::time::sleep(LOOK) => {}
            changed = config.changed() => {
                if changed.is_err() {
                    return;
                }
            }
        }
    }
}

/// Makes the embedded authority, makes it anew where what it was made from has changed, and gives it the
/// time.
async fn embed(
    embedded: &mut Option<(Arc<Embedded>, Made)>,
    wanted: &AuthoritySource,
    source: &watch::Sender<Source>,
) {
    let files = match fingerprint(wanted.embedded.directory.as_deref()) {
        Ok(files) => files,
        Err(why) => {
            // A Secret that disappears takes nothing back from an authority that was made from it.
            if embedded.is_none() {
                return missing(source, &why);
            }
            tick(embedded).await;
            return trouble(source, Some(why));
        }
    };
    let AuthoritySource { trust_domain, id_template, embedded: parts, .. } = wanted.clone();
    let new = Made { trust_domain, id_template, embedded: parts, files };
    if embedded.as_ref().is_some_and(|(_, made)| *made == new) {
        return trouble(source, tick(embedded).await);
    }
    if let Some((old, made)) = embedded.as_ref()
        && made.differs_in_lifetimes_only(&new)
        && new.embedded.directory.is_none()
    {
        let old = Arc::clone(old);
        match old.with_lifetimes(new.embedded.ca_ttl, new.embedded.svid_ttl) {
            Ok(authority) => {
                tracing::info!("the embedded authority has other lifetimes; its root stays");
                let authority = Arc::new(authority);
                source.send_if_modified(|now| match now {
                    Source::Authority(signer) => {
                        signer.authority = Arc::clone(&authority) as Arc<dyn Authority>;
                        signer.trouble = None;
                        true
                    }
                    _ => false,
                });
                *embedded = Some((authority, new));
            }
            Err(e) => trouble(source, Some(format!("the changed authority is not usable: {e}"))),
        }
        return;
    }
    match make(wanted.clone()).await {
        Ok((authority, signer)) => {
            tracing::info!(trust_domain = %wanted.trust_domain, "the embedded authority is ready");
            *embedded = Some((authority, new));
            source.send_replace(Source::Authority(signer));
        }
        Err(why) if embedded.is_some() => {
            tick(embedded).await;
            trouble(source, Some(format!("the changed authority is not usable: {why}")));
        }
        Err(why) => missing(source, &why),
    }
}

/// Lets the authority rotate; why it could not.
async fn tick(embedded: &Option<(Arc<Embedded>, Made)>) -> Option<String> {
    let (authority, _) = embedded.as_ref()?;
    let authority = Arc::clone(authority);
    // It may make an RSA key.
    match tokio::task::spawn_blocking(move || authority.tick(std::time::SystemTime::now())).await {
        Ok(Ok(done)) if done != Done::default() => tracing::info!(?done, "the authority rotated"),
        Ok(Ok(_)) | Err(_) => {}
        Ok(Err(e)) => return Some(format!("the authority's rotation failed: {e}")),
    }
    None
}

/// Says what is wrong with an authority that goes on, or that nothing is any more; once.
fn trouble(source: &watch::Sender<Source>, why: Option<String>) {
    source.send_if_modified(|now| {
        let Source::Authority(signer) = now else { return false };
        if signer.trouble.as_deref() == why.as_deref() {
            return false;
        }
        match &why {
            Some(why) => tracing::error!(reason = %why, "going on with the last good authority"),
            None => tracing::info!("the authority is well again"),
        }
        signer.trouble = why.map(Into::into);
        true
    });
}

async fn make(wanted: AuthoritySource) -> Result<(Arc<Embedded>, Signer), String> {
    let template = IdTemplate::parse(&wanted.id_template, &wanted.trust_domain)
        .map_err(|e| format!("identity.idTemplate: {e}"))?;
    let config::Embedded { directory, key_type, svid_key_type, ca_ttl, svid_ttl } = wanted.embedded;
    let config = EmbeddedConfig {
        trust_domain: wanted.trust_domain,
        template: template.clone(),
        key_type,
        ca_ttl,
        svid_ttl,
        directory,
    };
    let made = tokio::task::spawn_blocking(move || Embedded::new(config)).await;
    let authority = match made {
        Ok(Ok(authority)) => Arc::new(authority),
        Ok(Err(e)) => return Err(e.to_string()),
        Err(e) => return Err(e.to_string()),
    };
    let signer = Signer {
        authority: Arc::clone(&authority) as Arc<dyn Authority>,
        template: Arc::new(template),
        key_type: svid_key_type,
        trouble: None,
    };
    Ok((authority, signer))
}

/// Digest of what the authority reads; zero where it reads nothing.
fn fingerprint(directory: Option<&Path>) -> Result<[u8; 32], String> {
    let mut all = Vec::new();
    let Some(directory) = directory else { return Ok([0; 32]) };
    for name in ["tls.crt", "tls.key"] {
        let path = directory.join(name);
        let bytes = std::fs::read(&path).map(zeroize::Zeroizing::new).map_err(|e| {
            format!(
                "authority.embedded.directory: {}: {e}; mount the Secret with the root there",
                path.display()
            )
        })?;
        all.extend_from_slice(digest(&SHA256, &bytes).as_ref());
    }
    let mut out = [0; 32];
    out.copy_from_slice(digest(&SHA256, &all).as_ref());
    Ok(out)
}

/// Says why there is no source, once.
fn missing(source: &watch::Sender<Source>, why: &str) {
    source.send_if_modified(|now| {
        if !matches!(now, Source::Missing(_)) && why.contains("no valid configuration") {
            return false;
        }
        if matches!(now, Source::Missing(before) if **before == *why) {
            return false;
        }
        tracing::error!(reason = why, "no identity source");
        *now = Source::Missing(why.into());
        true
    });
}

#[cfg(test)]
mod tests;
