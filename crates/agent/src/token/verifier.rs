//! Keeps the issuer's keys and verifies tokens with them.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwapOption;
use tokio::sync::Mutex;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::Token;
use super::check::{Claims, TokenError, check, claimed};
use super::fetch::{self, FetchError};
use super::keys::KeySet;
use crate::config::{ApiServer, Keys, TokenConfig};
use crate::http::{Condition, Readiness, Standing};
use crate::metrics::{Metrics, Outcome};

/// How often the API server's keys are read in any case.
pub const KEYS_REFRESH: Duration = Duration::from_secs(300);
/// The shortest pause between two readings because of a token with an unknown key id: whoever can send tokens must not
/// be able to make us ask the API server at will.
pub const UNKNOWN_KEY_PAUSE: Duration = Duration::from_secs(10);
/// First and longest pause after a failure.
const RETRY: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));

/// Verifies pods' tokens. Share it in an `Arc`, and let [`TokenVerifier::run`] run beside.
///
/// `reading` is the only lock, and it is held over a reading: who waits for it looks afterwards whether another has replaced
/// the keys that it saw. A reading has a deadline (of the file system or of the request), so nobody waits for ever, and
/// verification itself takes no lock: keys are swapped whole. A request may still hold a verifier that has a successor, and wait
/// for its reading: `until` is cancelled before the successor states anything, and is looked at under the readiness's own lock.
pub struct TokenVerifier {
    issuer: String,
    audience: String,
    origin: Origin,
    keys: ArcSwapOption<KeySet>,
    /// Held while keys are read, so that many publishes make one request.
    reading: Mutex<Reading>,
    metrics: Arc<Metrics>,
    readiness: Arc<Readiness>,
    /// From then on the readiness is somebody else's.
    until: CancellationToken,
}

enum Origin {
    File(PathBuf),
    Server(ApiServer),
}

#[derive(Default)]
struct Reading {
    /// When keys were last asked for, with or without success.
    last: Option<Instant>,
    /// Why that failed.
    error: Option<String>,
    /// What the file looked like when it was read.
    file: Option<Stamp>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
struct Stamp {
    modified: Option<SystemTime>,
    length: u64,
    inode: u64,
}

impl TokenVerifier {
    /// Nothing is read yet. It states its readiness until cancelled.
    pub fn new(
        config: &TokenConfig,
        metrics: Arc<Metrics>,
        readiness: Arc<Readiness>,
        until: CancellationToken,
    ) -> Self {
        Self {
            issuer: config.issuer.clone(),
            audience: config.audience.clone(),
            origin: match &config.keys {
                Keys::File(path) => Origin::File(path.clone()),
                Keys::ApiServer(server) => Origin::Server(server.clone()),
            },
            keys: ArcSwapOption::empty(),
            reading: Mutex::default(),
            metrics,
            readiness,
            until,
        }
    }

    /// What the token proves, at `now`. Reads the keys first where there are none, where their file has changed, or
    /// where the token's key is unknown and the last reading is [`UNKNOWN_KEY_PAUSE`] ago.
    pub async fn verify(&self, token: &Token, now: SystemTime) -> Result<Claims, TokenError> {
        self.verify_at(token, Some(now)).await
    }

    /// What a stored token proves: it is genuine, though it may have expired since.
    pub async fn recall(&self, token: &Token) -> Result<Claims, TokenError> {
        self.verify_at(token, None).await
    }

    /// What a token says of itself, for as long as there are no keys to prove it with.
    pub fn claimed(&self, token: &Token) -> Result<Claims, TokenError> {
        claimed(token, &self.issuer, &self.audience)
    }

    async fn verify_at(&self, token: &Token, now: Option<SystemTime>) -> Result<Claims, TokenError> {
        if let Origin::File(path) = &self.origin {
            self.reread(path).await;
        }
        let seen = self.keys.load_full();
        match self.check(token, seen.as_deref(), now) {
            Err(TokenError::UnknownKey | TokenError::KeysUnavailable(_)) => {}
            decided => return decided,
        }
        let error = self.refresh(UNKNOWN_KEY_PAUSE, seen.as_ref()).await;
        match self.check(token, self.keys.load_full().as_deref(), now) {
            Err(TokenError::KeysUnavailable(_)) => {
                Err(TokenError::KeysUnavailable(error.unwrap_or_else(|| "not read yet".to_owned())))
            }
            // The issuer may have a new key that could not be read: then the kubelet is to try again.
            Err(TokenError::UnknownKey) => match error {
                Some(why) => Err(TokenError::KeysUnavailable(why)),
                None => Err(TokenError::UnknownKey),
            },
            decided => decided,
        }
    }

    fn check(
        &self,
        token: &Token,
        keys: Option<&KeySet>,
        now: Option<SystemTime>,
    ) -> Result<Claims, TokenError> {
        let keys = keys.ok_or_else(|| TokenError::KeysUnavailable(String::new()))?;
        check(token, keys, &self.issuer, &self.audience, now)
    }

    /// Reads the keys at start, then every [`KEYS_REFRESH`], sooner after a failure. Returns when cancelled.
    pub async fn run(&self) {
        let mut pause = RETRY.0;
        loop {
            // Also a reading under way ends: a successor may have stated its own readiness by then.
            let failed = tokio::select! {
                biased;
                () = self.until.cancelled() => return,
                error = self.refresh(Duration::ZERO, None) => error.is_some(),
            };
            let wait = if failed { pause } else { KEYS_REFRESH };
            pause = if failed { (pause * 2).min(RETRY.1) } else { RETRY.0 };
            tokio::select! {
                () = self.until.cancelled() => return,
                () = tokio::time::sleep(wait) => {}
            }
        }
    }

    /// Reads the keys, at most once per `pause`, and not where somebody else has replaced `seen` in the meantime.
    /// The reason of a failure, also of the one that made this reading be left out.
    async fn refresh(&self, pause: Duration, seen: Option<&Arc<KeySet>>) -> Option<String> {
        let mut reading = self.reading.lock().await;
        let replaced =
            seen.is_some_and(|seen| self.keys.load().as_ref().is_some_and(|now| !Arc::ptr_eq(now, seen)));
        if replaced || reading.last.is_some_and(|last| last.elapsed() < pause) {
            return reading.error.clone();
        }
        let fetched = match &self.origin {
            Origin::File(path) => {
                reading.file = stamp(path);
                fetch::from_file(path)
            }
            Origin::Server(server) => fetch::from_server(server).await,
        };
        reading.last = Some(Instant::now());
        self.take(fetched, &mut reading);
        reading.error.clone()
    }

    /// Reads the file again where it has changed.
    async fn reread(&self, path: &Path) {
        let found = stamp(path);
        let mut reading = self.reading.lock().await;
        if reading.file == found && reading.last.is_some() {
            return;
        }
        reading.file = found;
        reading.last = Some(Instant::now());
        self.take(fetch::from_file(path), &mut reading);
    }

    /// The last good keys stay where there are no new ones.
    fn take(&self, fetched: Result<KeySet, FetchError>, reading: &mut Reading) {
        let standing = match fetched {
            Ok(keys) => {
                let remark = format!("{} key(s)", keys.len());
                self.keys.store(Some(Arc::new(keys)));
                self.metrics.keys(Outcome::success, SystemTime::now());
                reading.error = None;
                Standing::Ready(remark)
            }
            Err(why) => {
                self.metrics.keys(Outcome::error, SystemTime::now());
                let why = why.to_string();
                reading.error = Some(why.clone());
                if self.keys.load().is_some() {
                    Standing::Ready(format!("using the last good keys: {why}"))
                } else {
                    Standing::NotReady(why)
                }
            }
        };
        if self.readiness.set_until(&self.until, Condition::TokenKeys, standing.clone()) {
            match standing {
                Standing::NotReady(why) => tracing::warn!(reason = %why, "no keys to verify tokens with"),
                Standing::Ready(remark) => tracing::info!(%remark, "keys to verify tokens with"),
                Standing::NotNeeded => {}
            }
        }
    }
}

fn stamp(path: &Path) -> Option<Stamp> {
    use std::os::unix::fs::MetadataExt as _;
    let found = std::fs::metadata(path).ok()?;
    Some(Stamp { modified: found.modified().ok(), length: found.len(), inode: found.ino() })
}
