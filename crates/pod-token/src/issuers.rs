//! Whose tokens are taken: the configured issuers, or the one that made the agent's own token.
//!
//! Clusters name their issuer in many ways (kubeadm `https://kubernetes.default.svc.cluster.local`, EKS an
//! address of its own for each cluster). The agent's own token comes from the same API server through the
//! kubelet, which mounts it for the agent alone: what it says is as sure as the keys that the agent is given
//! for it.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use seamount_http_client::file;
use serde::Deserialize;
use zeroize::Zeroizing;

use super::MAX_TOKEN;
use super::fetch::FetchError;
use super::options::{Keys, Options};
use super::stamp::{Stamp, stamp};

/// The same bound as for configured ones.
const MAX_ISSUER: usize = 1024;

/// Whose tokens are taken.
pub(super) enum Issuers {
    /// `token.issuers`.
    Configured(Arc<[String]>),
    /// The issuer of the token in this file.
    Own(OwnToken),
}

impl Issuers {
    pub fn new(options: &Options) -> Self {
        match &options.keys {
            Keys::ApiServer(server) if options.issuers.is_empty() => {
                Self::Own(OwnToken { file: server.token_file.clone(), seen: Mutex::default() })
            }
            _ => Self::Configured(options.issuers.clone().into()),
        }
    }

    /// Those known last; none where there have never been any. A file that has changed is read again.
    pub fn known(&self) -> Option<Arc<[String]>> {
        match self {
            Self::Configured(issuers) => Some(Arc::clone(issuers)),
            Self::Own(token) => token.look().ok().or_else(|| token.last()),
        }
    }

    /// Why they cannot be told now.
    pub fn check(&self) -> Result<(), FetchError> {
        match self {
            Self::Configured(_) => Ok(()),
            Self::Own(token) => token.look().map(|_| ()),
        }
    }
}

/// The agent's own token. The lock is held for a reading of a small file in memory, and nothing is awaited
/// under it.
pub(super) struct OwnToken {
    file: PathBuf,
    seen: Mutex<Option<Seen>>,
}

/// What the file held last.
struct Seen {
    stamp: Option<Stamp>,
    issuers: Arc<[String]>,
}

impl OwnToken {
    fn last(&self) -> Option<Arc<[String]>> {
        let seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        seen.as_ref().map(|seen| Arc::clone(&seen.issuers))
    }

    fn look(&self) -> Result<Arc<[String]>, FetchError> {
        let found = stamp(&self.file);
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(seen) = seen.as_ref().filter(|seen| found.is_some() && seen.stamp == found) {
            return Ok(Arc::clone(&seen.issuers));
        }
        let issuer = issuer_of_file(&self.file)?;
        if seen.as_ref().is_none_or(|before| *before.issuers != [issuer.clone()]) {
            tracing::info!(%issuer, "tokens of this issuer are taken, because the agent's own token is of it");
        }
        let issuers: Arc<[String]> = Arc::new([issuer]);
        *seen = Some(Seen { stamp: found, issuers: Arc::clone(&issuers) });
        Ok(issuers)
    }
}

fn issuer_of_file(path: &Path) -> Result<String, FetchError> {
    let fail = |reason: String| FetchError::Issuer { path: path.display().to_string(), reason };
    let bytes = file::read(path, MAX_TOKEN).map_err(|e| fail(e.to_string()))?;
    let text = std::str::from_utf8(&bytes).map_err(|_| fail("not text".to_owned()))?;
    issuer_of(text.trim()).map_err(|reason| fail(reason.to_owned()))
}

/// The `iss` of a token that is not verified. Nothing of the token is in an error.
pub(super) fn issuer_of(token: &str) -> Result<String, &'static str> {
    #[derive(Deserialize)]
    struct Payload {
        iss: String,
    }
    const FORM: &str = "not a JWT with the claim `iss`";
    let mut parts = token.split('.');
    let (Some(_), Some(payload), Some(_), None) = (parts.next(), parts.next(), parts.next(), parts.next())
    else {
        return Err(FORM);
    };
    let payload = URL_SAFE_NO_PAD.decode(payload).map(Zeroizing::new).map_err(|_| FORM)?;
    let Payload { iss } = serde_json::from_slice(&payload).map_err(|_| FORM)?;
    match iss.is_empty() || iss.len() > MAX_ISSUER || iss.contains(char::is_control) {
        true => Err("its `iss` is empty, longer than 1024 bytes or has control characters"),
        false => Ok(iss),
    }
}
