//! What is in force now: a few values that hold for the life of the process, and the configuration, which may
//! change.
//!
//! These values come from the flags, from what can be read of the configuration file, and from defaults: CSI
//! and registration are served with them also while the file is broken: no pod's deletion waits for its
//! repair.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::atomic::AtomicU32;
use std::time::Duration;

use arc_swap::ArcSwapOption;
use seamount_authority::{BoxFuture, IdTemplate, Workload};
use seamount_identity::SpiffeId;
use seamount_mounter_protocol::names::{DriverName, Volume};
use seamount_pod_token::{Claims, DatedToken, Options, READINESS, Token, TokenError, TokenVerifier};
use seamount_telemetry::http::HttpState;
use seamount_telemetry::logging::{LogHandle, Recent};
use seamount_telemetry::readiness::{ConditionStatus, ReadinessCheck};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::config::{self, Args, Config, ConfigError, TokenConfig};
use crate::csi::request::{Refusal, bind_stored};
use crate::metrics::Metrics;
use crate::readiness;
use crate::volumes::proof::{Proof, Prover, Unproved};

/// How often the configuration file is looked at. A ConfigMap is swapped by a symbolic link, which no inotify
/// watch on the file sees.
pub const LOOK: Duration = Duration::from_secs(5);

/// The longest reason of a condition, in characters.
const MAX_REASON: usize = 8 * 1024;

/// What cannot change without a restart, and must be there without a valid configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BootstrapConfig {
    /// The CSI drivers; at least one.
    pub drivers: Vec<DriverName>,
    /// The kubelet's root directory.
    pub kubelet_root: String,
    /// Name of this node; empty: unknown.
    pub node_name: String,
    /// The mounter's socket.
    pub mounter_socket: String,
    /// The uid that may use the CSI and registration sockets.
    pub kubelet_uid: u32,
    /// Where metrics are served; none: nowhere.
    pub http: Option<SocketAddr>,
}

impl BootstrapConfig {
    /// From the valid configuration, or where there is none from flags, the file's text, and defaults.
    pub fn new(args: &Args, node_name: Option<&str>, config: Option<&Config>, text: &str) -> Self {
        if let Some(config) = config {
            return Self {
                drivers: config.drivers.clone(),
                kubelet_root: config.kubelet_root.to_string_lossy().into_owned(),
                node_name: config.node_name.clone(),
                mounter_socket: config.mounter_socket.to_string_lossy().into_owned(),
                kubelet_uid: config.kubelet_uid,
                http: config.http,
            };
        }
        let file = config::yaml(text).unwrap_or_default();
        let pick = |flag: Option<&String>, field: &str, default: &str| {
            let of_file = || file.get(field).and_then(|v| v.as_str()).map(str::to_owned);
            flag.cloned().or_else(of_file).filter(|v| !v.is_empty()).unwrap_or_else(|| default.to_owned())
        };
        let environment = node_name.map(str::to_owned);
        let of_file = file.get("http").and_then(|h| h.get("address")).and_then(|a| a.as_str());
        let http = args.http_address.as_deref().or(of_file).unwrap_or(config::HTTP_ADDRESS);
        let of_file = file.get("drivers").and_then(|list| list.as_array()).into_iter().flatten();
        let of_file = of_file.filter_map(|driver| driver.get("name").and_then(|name| name.as_str()));
        let named: Vec<&str> = match args.drivers.as_slice() {
            [] => of_file.collect(),
            flags => flags.iter().map(String::as_str).collect(),
        };
        let mut drivers: Vec<DriverName> = Vec::new();
        for driver in named.into_iter().filter_map(config::driver) {
            if !drivers.contains(&driver) {
                drivers.push(driver);
            }
        }
        drivers.truncate(config::MAX_DRIVERS);
        if drivers.is_empty() {
            drivers.extend(config::driver(config::DRIVER));
        }
        let root = pick(args.kubelet_root.as_ref(), "kubeletRoot", config::KUBELET_ROOT);
        Self {
            drivers,
            kubelet_root: root.trim_end_matches('/').to_owned(),
            node_name: pick(args.node_name.as_ref().or(environment.as_ref()), "nodeName", ""),
            mounter_socket: pick(args.mounter_socket.as_ref(), "mounterSocket", config::MOUNTER_SOCKET),
            kubelet_uid: file
                .get("kubeletUid")
                .and_then(|v| v.as_u64())
                .and_then(|uid| u32::try_from(uid).ok())
                .unwrap_or_default(),
            http: http.parse().ok(),
        }
    }

    /// What of this configuration only a restart can apply, as it is not what the agent has started with.
    fn differs(&self, config: &Config) -> Vec<&'static str> {
        [
            ("drivers", self.drivers != config.drivers),
            ("kubeletRoot", *self.kubelet_root != *config.kubelet_root.to_string_lossy()),
            ("mounterSocket", *self.mounter_socket != *config.mounter_socket.to_string_lossy()),
        ]
        .into_iter()
        .filter_map(|(field, differs)| differs.then_some(field))
        .collect()
    }

    /// Where the kubelet finds this driver's CSI socket.
    pub fn endpoint(&self, driver: &DriverName) -> String {
        format!("{}/plugins/{driver}/csi.sock", self.kubelet_root)
    }
}

/// The last good configuration, with what is made from it.
pub struct ActiveConfig {
    /// The configuration.
    pub config: Arc<Config>,
    /// Verifies tokens; none with the source `directory`.
    pub verifier: Option<Arc<TokenVerifier>>,
    /// Name of this node.
    pub node_name: String,
}

/// What is in force now.
///
/// One task changes it (`follow`); everybody else reads. `settings` is swapped whole, so a request sees one
/// configuration from its beginning to its end. It is stored before `configs` is sent, so that who is woken
/// finds it. The two mutexes are held for a few instructions and never together, nothing is awaited under
/// them. `uid` stands alone: a connection that is judged by the old one is as if it had come a moment
/// earlier, so relaxed loads do.
pub struct ConfigManager {
    bootstrap: BootstrapConfig,
    settings: ArcSwapOption<ActiveConfig>,
    configs: watch::Sender<Option<Arc<Config>>>,
    shown: HttpState,
    metrics: Metrics,
    uid: Arc<AtomicU32>,
    log: Mutex<Option<LogHandle>>,
    /// Ends the verifier's reading of keys when another takes its place.
    reading: Mutex<CancellationToken>,
    cancel: CancellationToken,
}

impl ConfigManager {
    /// With nothing but the bootstrap configuration. `cancel` ends all that is started here.
    pub fn new(
        bootstrap: BootstrapConfig,
        shown: HttpState,
        metrics: Metrics,
        log: Option<LogHandle>,
        cancel: CancellationToken,
    ) -> Arc<Self> {
        let uid = Arc::new(AtomicU32::new(bootstrap.kubelet_uid));
        let reading = Mutex::new(cancel.child_token());
        let (configs, _) = watch::channel(None);
        Arc::new(Self {
            bootstrap,
            settings: ArcSwapOption::empty(),
            configs,
            shown,
            metrics,
            uid,
            log: Mutex::new(log),
            reading,
            cancel,
        })
    }

    /// The bootstrap configuration.
    pub fn bootstrap(&self) -> &BootstrapConfig {
        &self.bootstrap
    }

    /// The last good configuration; none where there has never been one.
    pub fn settings(&self) -> Option<Arc<ActiveConfig>> {
        self.settings.load_full()
    }

    /// The configurations as they come.
    pub fn configs(&self) -> watch::Receiver<Option<Arc<Config>>> {
        self.configs.subscribe()
    }

    /// Metrics.
    pub fn metrics(&self) -> &Metrics {
        &self.metrics
    }

    /// The last warnings and errors of the log; none where the logger is somebody else's.
    pub fn recent(&self) -> Option<Recent> {
        self.log.lock().unwrap_or_else(PoisonError::into_inner).as_ref().map(LogHandle::recent)
    }

    /// What the HTTP routes show.
    pub fn shown(&self) -> &HttpState {
        &self.shown
    }

    /// The uid that may use the kubelet's sockets.
    pub fn uid(&self) -> Arc<AtomicU32> {
        Arc::clone(&self.uid)
    }

    /// Whether publish would work: all conditions but the registration, which is the kubelet's, who asks.
    pub fn able(&self) -> bool {
        let able = |(condition, status): (ReadinessCheck, ConditionStatus)| {
            condition == readiness::REGISTRATION || !matches!(status, ConditionStatus::NotReady(_))
        };
        self.shown.readiness.all().into_iter().all(able)
    }

    /// States a condition, and logs where that is news.
    pub fn set(&self, condition: ReadinessCheck, status: ConditionStatus) {
        if !self.shown.readiness.set(condition.clone(), status.clone()) {
            return;
        }
        match status {
            ConditionStatus::Ready(remark) => tracing::info!(%condition, %remark, "ready"),
            ConditionStatus::NotReady(why) => tracing::warn!(%condition, reason = %why, "not ready"),
            ConditionStatus::NotNeeded => tracing::info!(%condition, "not needed"),
        }
    }

    /// Takes a configuration over, or keeps the last good one. Needs a tokio runtime.
    pub fn take(&self, loaded: Result<Config, ConfigError>) {
        let config = match loaded {
            Ok(config) => Arc::new(config),
            Err(e) => {
                // A line for each condition, and none that a file of 256 KiB could make as long as itself.
                let text = config::bounded(&e.to_string(), MAX_REASON);
                let why = match self.settings.load().is_some() {
                    true => format!("{text} (going on with the last good configuration)"),
                    false => text,
                };
                return self.set(readiness::CONFIGURATION, ConditionStatus::NotReady(why));
            }
        };
        let old = self.settings.load_full();
        let (mut remark, mut stale) = (String::new(), String::new());
        let config = match &old {
            None => {
                // The sockets that are served are those of the start, when the file could not be read.
                let fields = self.bootstrap.differs(&config);
                if !fields.is_empty() {
                    stale =
                        format!("restart the agent to apply {}: it started without them", fields.join(", "));
                }
                config
            }
            Some(old) => {
                let fields = old.config.needs_restart(&config);
                if !fields.is_empty() {
                    remark = format!("restart the agent to apply {}", fields.join(", "));
                }
                Arc::new(old.config.adopt(&config))
            }
        };
        if old.as_ref().is_some_and(|old| *old.config == *config) {
            return self.set(readiness::CONFIGURATION, ConditionStatus::Ready(remark));
        }
        let verifier = self.verifier(old.as_deref(), config.authority().map(|a| &a.token));
        let node_name = config.node_name.clone();
        self.settings.store(Some(Arc::new(ActiveConfig {
            config: Arc::clone(&config),
            verifier,
            node_name,
        })));
        if let Some(handle) = &*self.log.lock().unwrap_or_else(PoisonError::into_inner)
            && let Err(e) = handle.set_level(config.log.level)
        {
            tracing::warn!(error = %e, "the log level could not be changed");
        }
        self.set(
            readiness::CONFIGURATION,
            match stale.is_empty() {
                true => ConditionStatus::Ready(remark),
                false => ConditionStatus::NotReady(stale),
            },
        );
        self.configs.send_replace(Some(config));
    }

    /// The verifier for this configuration: the same one where nothing of it has changed.
    fn verifier(
        &self,
        old: Option<&ActiveConfig>,
        wanted: Option<&TokenConfig>,
    ) -> Option<Arc<TokenVerifier>> {
        let before = old.and_then(|o| o.config.authority()).map(|a| &a.token);
        if before == wanted
            && let Some(old) = old
        {
            return old.verifier.clone();
        }
        let mut reading = self.reading.lock().unwrap_or_else(PoisonError::into_inner);
        reading.cancel();
        *reading = self.cancel.child_token();
        let Some(wanted) = wanted else {
            self.set(READINESS, ConditionStatus::NotNeeded);
            return None;
        };
        let metrics = Arc::clone(&self.metrics.token);
        let readiness = Arc::clone(&self.shown.readiness);
        let verifier = Arc::new(TokenVerifier::new(&options(wanted), metrics, readiness, reading.clone()));
        if let Some(before) = old.and_then(|old| old.verifier.as_deref()) {
            verifier.succeed(before);
        }
        let run = Arc::clone(&verifier);
        tokio::spawn(async move { run.run().await });
        Some(verifier)
    }

    /// Looks at the file again and again until cancelled.
    pub async fn follow(self: Arc<Self>, args: Args, node_name: Option<String>) {
        let mut seen = text(&args);
        loop {
            tokio::select! {
                () = self.cancel.cancelled() => return,
                () = tokio::time::sleep(LOOK) => {}
            }
            let now = text(&args);
            if now != seen {
                tracing::info!("the configuration has changed");
                self.take(config::load(&args, node_name.as_deref()));
                seen = now;
            }
        }
    }
}

/// What tokens are judged by, from the configuration.
fn options(config: &TokenConfig) -> Options {
    let TokenConfig { audience, issuers, keys, keys_max_age, .. } = config.clone();
    Options { audience, issuers, keys, keys_max_age }
}

impl Prover for ConfigManager {
    fn prove<'a>(&'a self, volume: &'a Volume, token: &'a Token) -> BoxFuture<'a, Result<Proof, Unproved>> {
        Box::pin(async move {
            let Some(settings) = self.settings() else {
                let why = "the agent has no valid configuration: see its log and /readyz".to_owned();
                return Err(Unproved::Later { why, claimed: None });
            };
            let Some(verifier) = &settings.verifier else {
                let why = "the identity source is `directory` now; restart the pod".to_owned();
                return Err(Unproved::Later { why, claimed: None });
            };
            let bound = |claims: &Claims| {
                let workload = bind_stored(volume, claims, &settings.node_name)?;
                Ok(Proof { workload, token: DatedToken::new(token.clone(), claims) })
            };
            match verifier.recall(token).await {
                Ok(claims) => bound(&claims).map_err(|e: Refusal| Unproved::Never(e.to_string())),
                Err(TokenError::KeysUnavailable(why)) => {
                    let claimed = verifier.claimed(token).ok().and_then(|claims| bound(&claims).ok());
                    Err(Unproved::Later { why, claimed })
                }
                Err(e) => Err(Unproved::Never(e.to_string())),
            }
        })
    }

    fn id(&self, workload: &Workload) -> Option<SpiffeId> {
        let settings = self.settings()?;
        let authority = settings.config.authority()?;
        IdTemplate::parse(&authority.id_template, &authority.trust_domain).ok()?.render(workload).ok()
    }
}

/// The file's text, or why it cannot be read; only compared, except for [`BootstrapConfig`].
pub fn text(args: &Args) -> Result<String, String> {
    match &args.config {
        None => Ok(String::new()),
        Some(path) => std::fs::read_to_string(path).map_err(|e| e.to_string()),
    }
}

#[cfg(test)]
mod tests;
