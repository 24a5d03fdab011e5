//! The agent's life: start, the connection to the mounter, and the stop.
//!
//! The order of the start: the kubelet's listeners come first and are served whatever the configuration says,
//! so that no pod's deletion waits for a repair; records are read before the first request is answered, so
//! that no publish takes a volume for a new one.

mod attach;
mod driver;
mod kubelet_server;
mod limits;
mod offers;
mod supervisor;
mod tend;

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use seamount_mounter_client::{Client, DEADLINE};
use seamount_mounter_protocol::names::DriverName;
use seamount_sys::watch::explain;
use seamount_telemetry::http::{self, BEAT, HttpState, listen};
use seamount_telemetry::logging;
use seamount_telemetry::readiness::{ConditionStatus, Readiness};
use seamount_workload_api::{Limits, Node as Shared};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{Semaphore, watch};
use tokio_util::sync::CancellationToken;

use crate::config::{self, Args, Config, HEALTH_SOCKET, Log, LogFormat, LogLevel, WorkloadApi};
use crate::config_manager::{self, BootstrapConfig, ConfigManager};
use crate::memory;
use crate::metrics::Metrics;
use crate::readiness;
use crate::source::{self, Source};
use crate::volumes::proof::Prover;
use crate::volumes::{ServeOptions, Tenants, Volumes};
use crate::workload_api;
use supervisor::NodeSupervisor;

/// How long a stream waits for a pod's first identity before it is answered `Unavailable`.
const PENDING: Duration = Duration::from_secs(20);
/// How long calls in flight may take after SIGTERM.
const STOP: Duration = Duration::from_secs(5);
/// When the start is over: volumes are back and clients have connected again within half a second (N8).
const STARTED: Duration = Duration::from_secs(10);
/// How long to wait at most before what failed with a connected mounter is tried again; at first a sixteenth
/// of it.
const AGAIN: Duration = Duration::from_secs(1);

/// Runs the agent until SIGTERM or SIGINT.
pub fn run(args: Args) -> anyhow::Result<()> {
    let node_name = std::env::var("NODE_NAME").ok().filter(|n| !n.is_empty());
    let text = config_manager::text(&args).unwrap_or_default();
    let loaded = config::load(&args, node_name.as_deref());
    let log = loaded.as_ref().map_or(Log { format: LogFormat::Text, level: LogLevel::Info }, |c| c.log);
    let log = logging::init(log).context("the logger could not be installed")?;
    let bootstrap = BootstrapConfig::new(&args, node_name.as_deref(), loaded.as_ref().ok(), &text);
    // One worker carries a node; each more costs memory, and every call a wake-up across processors.
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .context("the runtime could not be made")?;
    let result = runtime.block_on(async {
        let mut terminate = signal(SignalKind::terminate()).context("SIGTERM")?;
        let mut interrupt = signal(SignalKind::interrupt()).context("SIGINT")?;
        let stop = async {
            tokio::select! {
                _ = terminate.recv() => tracing::info!("SIGTERM: stopping; sockets and state stay"),
                _ = interrupt.recv() => tracing::info!("SIGINT: stopping; sockets and state stay"),
            }
        };
        let loaded = loaded.map_err(Into::into);
        tokio::spawn(forget_start());
        live_on(args, node_name, loaded, bootstrap, Some(log), DEADLINE, stop).await;
        anyhow::Ok(())
    });
    // What is still open (streams of pods) ends with the process; sockets and state stay.
    runtime.shutdown_background();
    result
}

/// Gives up the pages of code that only the start has run.
async fn forget_start() {
    tokio::time::sleep(STARTED).await;
    match seamount_sys::program::forget_code() {
        Ok(bytes) => tracing::debug!(bytes, "the start's code was given up"),
        Err(e) => tracing::debug!(error = %e, "the start's code stays in memory"),
    }
}

/// The whole agent inside another process, without a logger and signals of its own, until `stop`.
/// With this patience for a request to the mounter.
pub async fn live_until(
    args: Args,
    node_name: Option<String>,
    patience: Duration,
    stop: impl Future<Output = ()>,
) {
    let text = config_manager::text(&args).unwrap_or_default();
    let loaded = config::load(&args, node_name.as_deref());
    let bootstrap = BootstrapConfig::new(&args, node_name.as_deref(), loaded.as_ref().ok(), &text);
    live_on(args, node_name, loaded.map_err(Into::into), bootstrap, None, patience, stop).await;
}

async fn live_on(
    args: Args,
    node_name: Option<String>,
    loaded: Result<Config, Box<crate::config::ConfigError>>,
    bootstrap: BootstrapConfig,
    log: Option<logging::LogHandle>,
    patience: Duration,
    stop: impl Future<Output = ()>,
) {
    tracing::info!(
        version = env!("CARGO_PKG_VERSION"),
        drivers = %names(&bootstrap.drivers),
        node = %bootstrap.node_name,
        kubelet_root = %bootstrap.kubelet_root,
        "seamount-agent starts"
    );
    let cancel = CancellationToken::new();
    let metrics = Metrics::default();
    let shown = HttpState {
        readiness: Arc::new(Readiness::expecting(readiness::checks())),
        progress: Arc::default(),
        metrics: Arc::new(metrics.registry()),
    };
    let descriptors = limits::raise_descriptors();
    metrics.process.set_descriptors(descriptors);
    let options = options(
        loaded.as_ref().map(|c| c.workload_api).unwrap_or_default(),
        descriptors,
        Arc::clone(&metrics.workload_api),
    );
    let memory_limit = memory::limit(loaded.as_ref().ok().and_then(|c| c.memory_limit));
    metrics.memory.limit(memory_limit);
    let address = bootstrap.http;
    let health_socket = args.health_socket.clone().unwrap_or_else(|| HEALTH_SOCKET.to_owned());
    let mounter =
        Client::start(bootstrap.mounter_socket.clone().into(), cancel.clone()).with_patience(patience);
    let manager = ConfigManager::new(bootstrap, shown.clone(), metrics.clone(), log, cancel.clone());
    manager.take(loaded.map_err(|e| *e));
    tokio::spawn(Arc::clone(&manager).follow(args, node_name));

    let (source_sender, source) = watch::channel(Source::Missing("the agent has just started".into()));
    let prover = Arc::clone(&manager) as Arc<dyn Prover>;
    let volumes = Volumes::new(mounter.clone(), source, prover, options, Arc::clone(&metrics.volumes));
    // An authority takes longer to make than all volumes to bring back, and they do not wait for it.
    volumes.aside(source::supervise(manager.configs(), source_sender, cancel.clone()));
    tokio::spawn(Arc::clone(&volumes).keep_fresh(cancel.clone()));
    tokio::spawn(tell_source(Arc::clone(&volumes), Arc::clone(&manager)));
    tokio::spawn(beat(shown.clone(), metrics, Arc::clone(&volumes), memory_limit));
    tokio::spawn(show_health(health_socket, shown.clone(), cancel.clone()));
    tokio::spawn(show(address, manager.configs(), shown, cancel.clone()));

    let stopped = CancellationToken::new();
    let superseded = mounter.clone();
    let mut supervisor = NodeSupervisor::new(manager, mounter, volumes);
    let keeper = tokio::spawn({
        let stop = stopped.clone();
        async move {
            tokio::select! {
                () = stop.cancelled() => {}
                () = supervisor.keep() => {}
            }
            supervisor.close().await;
        }
    });
    tokio::select! {
        () = stop => {}
        // Its agent waits for the listeners until this one is gone; connections wait in their queues.
        () = superseded.superseded() => tracing::info!("a younger pod takes over: stopping; sockets and state stay"),
    }
    stopped.cancel();
    let _ = keeper.await;
    cancel.cancel();
}

fn names(drivers: &[DriverName]) -> String {
    drivers.iter().map(DriverName::as_str).collect::<Vec<_>>().join(", ")
}

/// What the volumes are served with.
fn options(bounds: WorkloadApi, descriptors: u64, metrics: Arc<workload_api::Metrics>) -> ServeOptions {
    let limits::Budget { all, connections, volumes } =
        limits::budget(bounds.connections_per_node, descriptors);
    metrics.limit(connections);
    let permits = |count: u64| {
        let count = usize::try_from(count).unwrap_or(usize::MAX);
        Arc::new(Semaphore::new(count.min(Semaphore::MAX_PERMITS)))
    };
    // Half of them at most, so that a single pod never takes what all have together.
    let half = usize::try_from(connections / 2).unwrap_or(usize::MAX).max(1);
    let limits = Limits {
        connections: half.min(bounds.connections_per_pod as usize),
        streams: bounds.streams_per_connection,
        all_streams: bounds.streams_per_pod as usize,
        burst: bounds.burst_per_pod,
        rate: bounds.rate_per_pod,
    };
    let node = Shared { connections: permits(connections), descriptors: permits(all) };
    ServeOptions {
        tenants: Tenants::new(limits, node, bounds.volumes_per_pod as usize),
        volumes: permits(volumes),
        pending: PENDING,
        descriptors,
        observer: metrics,
    }
}

/// Once a second: a sign of life, and a look at the memory.
async fn beat(shown: HttpState, metrics: Metrics, volumes: Arc<Volumes>, memory_limit: u64) {
    let mut memory = memory::Watch::new(memory_limit);
    loop {
        shown.progress.beat();
        memory.look(&volumes, &metrics.memory);
        tokio::time::sleep(BEAT).await;
    }
}

/// Health, whatever the configuration says. What is in the way is tried again: an agent without is restarted
/// by the kubelet.
async fn show_health(socket: String, shown: HttpState, cancel: CancellationToken) {
    if socket.is_empty() {
        return;
    }
    let mut told = false;
    loop {
        let ended = match listen::unix(Path::new(&socket)) {
            Ok(listener) => http::serve(listener, http::health(shown.clone()), cancel.clone()).await,
            Err(e) => Err(explain(e)),
        };
        match ended {
            Ok(()) => return,
            Err(e) if !told => {
                told = true;
                tracing::error!(%socket, error = %e, "the health socket cannot be listened on; trying again");
            }
            Err(_) => {}
        }
        tokio::time::sleep(AGAIN).await;
    }
}

/// Metrics. Where the agent started without a valid configuration, the first one decides anew.
async fn show(
    mut address: Option<SocketAddr>,
    mut configs: watch::Receiver<Option<Arc<Config>>>,
    shown: HttpState,
    cancel: CancellationToken,
) {
    let mut decided = configs.borrow().is_some();
    loop {
        let serving = show_at(address, &shown, &cancel);
        let first = async {
            let config = configs.wait_for(Option::is_some).await.ok().and_then(|c| c.clone());
            match config {
                Some(config) if !decided => config.http,
                _ => std::future::pending().await,
            }
        };
        tokio::select! {
            () = cancel.cancelled() => return,
            () = serving => {}
            first = first => {
                decided = true;
                address = first;
            }
        }
    }
}

/// An address that is taken is tried again.
async fn show_at(address: Option<SocketAddr>, shown: &HttpState, cancel: &CancellationToken) {
    let Some(address) = address else { return std::future::pending().await };
    let mut told = false;
    loop {
        match listen::tcp(address) {
            Ok(listener) => {
                tracing::info!(%address, "metrics");
                if let Err(e) = http::serve(listener, http::router(shown.clone()), cancel.clone()).await {
                    tracing::error!(error = %e, "metrics ended");
                }
            }
            Err(e) if !told => {
                told = true;
                tracing::error!(%address, error = %explain(e), "http.address cannot be listened on; trying again");
            }
            Err(_) => {}
        }
        tokio::time::sleep(AGAIN).await;
    }
}

/// The identity source as a condition of readiness, and as a metric.
///
/// Both channels are read after they were marked as seen, so a change that comes while this tells of the one
/// before is seen by `changed` and told next; the last one is always told. Only this task tells.
async fn tell_source(volumes: Arc<Volumes>, manager: Arc<ConfigManager>) {
    let (mut source, mut down) = (volumes.source(), volumes.authority_health().down());
    loop {
        let silent = down.borrow_and_update().clone();
        let status = match &*source.borrow_and_update() {
            Source::Missing(why) => ConditionStatus::NotReady(why.to_string()),
            Source::Authority(signer) => match (silent, &signer.trouble) {
                (Some(why), _) => {
                    ConditionStatus::NotReady(format!("it does not answer: {why} (what was issued goes on)"))
                }
                (None, Some(why)) => {
                    ConditionStatus::NotReady(format!("{why} (going on with the last good one)"))
                }
                (None, None) => ConditionStatus::Ready(String::new()),
            },
            Source::Directory => ConditionStatus::NotNeeded,
        };
        let up = match &*source.borrow() {
            Source::Missing(_) => false,
            Source::Authority(_) => !volumes.authority_health().is_down(),
            Source::Directory => true,
        };
        manager.metrics().volumes.authority.up(up);
        manager.set(readiness::AUTHORITY, status);
        let changed = tokio::select! {
            changed = source.changed() => changed,
            changed = down.changed() => changed,
        };
        if changed.is_err() {
            return;
        }
    }
}
