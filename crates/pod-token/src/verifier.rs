//! Keeps the issuer's keys and verifies tokens with them.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwapOption;
use seamount_api::format_duration;
use seamount_telemetry::metrics::Outcome;
use seamount_telemetry::readiness::{ConditionStatus, Readiness, ReadinessCheck};
use tokio::sync::Mutex;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::Token;
use super::check::{Claims, check, claimed};
use super::error::TokenError;
use super::fetch::{self, FetchError};
use super::issuers::Issuers;
use super::keys::KeySet;
use super::metrics::Metrics;
use super::options::{ApiServer, Keys, Options};
use super::stamp::{Stamp, stamp};

/// Tells the time.
pub type Clock = Arc<dyn Fn() -> SystemTime + Send + Sync>;

/// The condition that the issuer's keys are known.
pub const READINESS: ReadinessCheck = ReadinessCheck::named("token keys");
/// How often the API server's keys are read in any case.
pub const KEYS_REFRESH: Duration = Duration::from_secs(300);
/// So long without a good reading the agent stays ready: a restart of the API server is none of its business.
pub const KEYS_STALE: Duration = Duration::from_secs(15 * 60);
/// The shortest pause between two readings because of a token with an unknown key id: whoever can send tokens
/// must not be able to make us ask the API server at will.
pub const UNKNOWN_KEY_PAUSE: Duration = Duration::from_secs(10);
/// First and longest pause after a failure.
const RETRY: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));

/// Verifies pods' tokens. Share it in an `Arc`, and let [`TokenVerifier::run`] run beside.
///
/// `reading` is the only lock, and it is held over a reading: who waits for it looks afterwards whether
/// another has replaced the keys that it saw. A reading has a deadline (of the file system or of the
/// request), so nobody waits for ever, and verification itself takes no lock: keys are swapped whole. A
/// request may still hold a verifier that has a successor, and wait for its reading: `until` is cancelled
/// before the successor states anything, and is looked at under the readiness's own lock.
///
/// Ages are told by the wall clock, which goes on while the machine sleeps.
pub struct TokenVerifier {
    issuers: Issuers,
    audience: String,
    origin: Origin,
    keys: ArcSwapOption<Trusted>,
    max_age: Duration,
    clock: Clock,
    /// Held while keys are read, so that many publishes make one request.
    reading: Mutex<Reading>,
    metrics: Arc<Metrics>,
    readiness: Arc<Readiness>,
    /// From then on the readiness is somebody else's.
    until: CancellationToken,
}

#[derive(PartialEq, Eq)]
enum Origin {
    File(PathBuf),
    Server(ApiServer),
}

/// The last good keys.
pub(super) struct Trusted {
    keys: KeySet,
    read: SystemTime,
}

impl Trusted {
    fn age(&self, now: SystemTime) -> Duration {
        // A clock that was set back makes them no older.
        now.duration_since(self.read).unwrap_or_default()
    }
}

#[derive(Default)]
struct Reading {
    /// When keys were last asked for, with or without success.
    last: Option<(Instant, SystemTime)>,
    /// Why that failed.
    error: Option<String>,
    /// What the file looked like when it was read.
    file: Option<Stamp>,
}

impl TokenVerifier {
    /// Nothing is read yet. It states its readiness until cancelled.
    pub fn new(
        options: &Options,
        metrics: Arc<Metrics>,
        readiness: Arc<Readiness>,
        until: CancellationToken,
    ) -> Self {
        Self::with_clock(options, metrics, readiness, until, Arc::new(SystemTime::now))
    }

    /// As [`new`](Self::new), with another wall clock.
    pub fn with_clock(
        options: &Options,
        metrics: Arc<Metrics>,
        readiness: Arc<Readiness>,
        until: CancellationToken,
        clock: Clock,
    ) -> Self {
        Self {
            issuers: Issuers::new(options),
            audience: options.audience.clone(),
            origin: match &options.keys {
                Keys::File(path) => Origin::File(path.clone()),
                Keys::ApiServer(server) => Origin::Server(server.clone()),
            },
            keys: ArcSwapOption::empty(),
            max_age: options.keys_max_age,
            clock,
            reading: Mutex::default(),
            metrics,
            readiness,
            until,
        }
    }

    /// Takes over the keys of a predecessor that reads them from the same place: during an outage a changed
    /// `token.keysMaxAge` must not throw away what it is about.
    pub fn succeed(&self, predecessor: &Self) {
        if self.origin == predecessor.origin {
            self.keys.store(predecessor.keys.load_full());
        }
    }

    /// What the token proves, at `now`. Reads the keys first where there are none or too old ones, where
    /// their file has changed, or where the token's key is unknown and the last reading is
    /// [`UNKNOWN_KEY_PAUSE`] ago.
    pub async fn verify(&self, token: &Token, now: SystemTime) -> Result<Claims, TokenError> {
        self.verify_at(token, Some(now)).await
    }

    /// What a stored token proves: it is genuine, though it may have expired since.
    pub async fn recall(&self, token: &Token) -> Result<Claims, TokenError> {
        self.verify_at(token, None).await
    }

    /// What a token says of itself, for as long as there are no keys to prove it with.
    pub fn claimed(&self, token: &Token) -> Result<Claims, TokenError> {
        let unknown = || TokenError::KeysUnavailable("their issuer is not known".to_owned());
        let issuers = self.issuers.known().ok_or_else(unknown)?;
        claimed(token, &issuers, &self.audience)
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
            Err(TokenError::KeysUnavailable(what)) => {
                Err(TokenError::KeysUnavailable(error.map_or(what.clone(), |why| format!("{what}: {why}"))))
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
        known: Option<&Trusted>,
        now: Option<SystemTime>,
    ) -> Result<Claims, TokenError> {
        let unavailable = |what: &str| TokenError::KeysUnavailable(what.to_owned());
        let known = known.ok_or_else(|| unavailable("never read"))?;
        if known.age(now.unwrap_or_else(|| (self.clock)())) >= self.max_age {
            return Err(TokenError::KeysUnavailable(self.too_old()));
        }
        let issuers = self.issuers.known().ok_or_else(|| unavailable("their issuer is not known"))?;
        check(token, &known.keys, &issuers, &self.audience, now)
    }

    fn too_old(&self) -> String {
        format!("last read more than {} (token.keysMaxAge) ago", format_duration(self.max_age))
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

    /// Reads the keys, at most once per `pause`, and not where somebody else has replaced `seen` in the
    /// meantime. The reason of a failure, also of the one that made this reading be left out.
    pub(super) async fn refresh(&self, pause: Duration, seen: Option<&Arc<Trusted>>) -> Option<String> {
        let mut reading = self.reading.lock().await;
        let replaced =
            seen.is_some_and(|seen| self.keys.load().as_ref().is_some_and(|now| !Arc::ptr_eq(now, seen)));
        // A machine that slept has not asked for a while, though the monotonic clock stood still.
        let now = (self.clock)();
        let recent = |(last, wall): (Instant, SystemTime)| {
            last.elapsed() < pause && now.duration_since(wall).unwrap_or_default() < pause
        };
        if replaced || reading.last.is_some_and(recent) {
            return reading.error.clone();
        }
        let fetched = match &self.origin {
            Origin::File(path) => {
                reading.file = stamp(path);
                fetch::from_file(path)
            }
            Origin::Server(server) => fetch::from_server(server).await,
        };
        // Keys are of no use without their issuer.
        let fetched = fetched.and_then(|keys| self.issuers.check().map(|()| keys));
        // The clock is asked again: giving up on a silent server takes as long as the pause is, and each
        // caller that waits would else ask it anew.
        reading.last = Some((Instant::now(), (self.clock)()));
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
        reading.last = Some((Instant::now(), (self.clock)()));
        self.take(fetch::from_file(path), &mut reading);
    }

    /// The last good keys stay where there are no new ones, for as long as they are not too old.
    fn take(&self, fetched: Result<KeySet, FetchError>, reading: &mut Reading) {
        let now = (self.clock)();
        let status = match fetched {
            Ok(keys) => {
                let remark = format!("{} key(s)", keys.len());
                self.keys.store(Some(Arc::new(Trusted { keys, read: now })));
                self.metrics.read(Outcome::success, now);
                reading.error = None;
                ConditionStatus::Ready(remark)
            }
            Err(why) => {
                self.metrics.read(Outcome::error, now);
                let why = why.to_string();
                reading.error = Some(why.clone());
                match self.keys.load().as_ref().map(|last| last.age(now)) {
                    None => ConditionStatus::NotReady(why),
                    Some(age) if age >= self.max_age => ConditionStatus::NotReady(format!(
                        "publishes are refused, keys {}: {why}",
                        self.too_old()
                    )),
                    Some(age) if age >= KEYS_STALE => {
                        let (stale, max) = (format_duration(KEYS_STALE), format_duration(self.max_age));
                        ConditionStatus::NotReady(format!(
                            "no good reading for {stale}; the last good keys are used until they are {max} old \
                             (token.keysMaxAge): {why}"
                        ))
                    }
                    Some(_) => ConditionStatus::Ready(format!("using the last good keys: {why}")),
                }
            }
        };
        if self.readiness.set_until(&self.until, READINESS, status.clone()) {
            match status {
                ConditionStatus::NotReady(why) => {
                    tracing::warn!(reason = %why, "no fresh keys to verify tokens with")
                }
                ConditionStatus::Ready(remark) => tracing::info!(%remark, "keys to verify tokens with"),
                ConditionStatus::NotNeeded => {}
            }
        }
    }
}
