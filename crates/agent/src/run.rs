//! The agent's life: start, the connection to the mounter, and the stop.
//!
//! The order of the start: the kubelet's listeners come first and are served whatever the configuration says,
//! so that no pod's deletion waits for a repair; records are read before the first request is answered, so
//! that no publish takes a volume for a new one.

mod kubelet_server;
mod limits;
mod offers;
mod tend;

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use anyhow::Context as _;
use seamount_mounter_client::{Client, DEADLINE, Link, Listener, MounterError};
use seamount_mounter_protocol::keep;
use seamount_proto::csi::identity_server::IdentityServer;
use seamount_proto::csi::node_server::NodeServer;
use seamount_proto::node::node_server::NodeServer as NodeReportServer;
use seamount_proto::registration::registration_server::RegistrationServer;
use seamount_sys::watch::explain;
use seamount_telemetry::http::{self, BEAT, HttpState, listen};
use seamount_telemetry::logging;
use seamount_telemetry::readiness::{ConditionStatus, Readiness};
use seamount_workload_api::{Limits, Node as Shared};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{Notify, Semaphore, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::config::{self, Args, Config, HEALTH_SOCKET, Log, LogFormat, LogLevel, WorkloadApi};
use crate::config_manager::{self, BootstrapConfig, ConfigManager};
use crate::csi::service::Service;
use crate::endpoint::server::Services;
use crate::memory;
use crate::metrics::Metrics;
use crate::node;
use crate::readiness;
use crate::record::{NodeRecord, Registration};
use crate::registration;
use crate::source::{self, Source};
use crate::state::{StateDir, StateError};
use crate::volumes::proof::Prover;
use crate::volumes::{ServeOptions, Tenants, VolumeError, Volumes};
use crate::workload_api;
use kubelet_server::KubeletServer;
use offers::Offers;
use tend::Lost;

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

/// The whole agent inside somebody else's process, without a logger and signals of its own, until `stop`.
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
        driver = %bootstrap.driver_name,
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

/// Why the mounter's side of the agent is not complete.
#[derive(Debug, thiserror::Error)]
enum AttachError {
    #[error(transparent)]
    Mounter(#[from] MounterError),
    #[error(transparent)]
    State(#[from] StateError),
    #[error(transparent)]
    Volume(#[from] VolumeError),
    #[error("a listener from the mounter cannot be served: {0}")]
    Serve(#[from] std::io::Error),
    #[error("the state directory cannot be looked at: {0}")]
    Directory(rustix::io::Errno),
}

/// All that comes from the mounter: the kubelet's two servers, the state directory, the volumes.
struct NodeSupervisor {
    manager: Arc<ConfigManager>,
    mounter: Client,
    volumes: Arc<Volumes>,
    csi: Option<KubeletServer>,
    registration: Option<KubeletServer>,
    registered: watch::Sender<Registration>,
    /// What of it is recorded.
    recorded: watch::Sender<Registration>,
    /// Tells that the kubelet is at work on a registration.
    asked: Arc<Notify>,
    offers: Offers,
    lost: Lost,
    state: Option<Arc<StateDir>>,
    /// Device and inode of the state directory.
    state_id: Option<(u64, u64)>,
    generation: u64,
    restored: bool,
    started: SystemTime,
}

impl NodeSupervisor {
    fn new(manager: Arc<ConfigManager>, mounter: Client, volumes: Arc<Volumes>) -> Self {
        let (registered, _) = watch::channel(Registration::Unknown);
        Self {
            manager,
            mounter,
            volumes,
            csi: None,
            registration: None,
            registered,
            recorded: watch::Sender::new(Registration::Unknown),
            asked: Arc::default(),
            offers: Offers::new(Instant::now()),
            lost: Lost::default(),
            state: None,
            state_id: None,
            generation: 0,
            restored: false,
            started: SystemTime::now(),
        }
    }

    /// Follows the connection to the mounter, and what the kubelet says, for ever.
    ///
    /// One task, so nothing here is locked. A connection is marked as seen before it is attached to; if it
    /// breaks meanwhile, the attempt fails or is followed by `changed`, and the next one has another number.
    /// What the kubelet says is sent by the service, recorded here alone, and answered when `recorded` says
    /// so: neither can overtake the other.
    async fn keep(&mut self) {
        let mut link = self.mounter.link();
        let mut registered = self.registered.subscribe();
        let mut done = 0;
        let mut pause = AGAIN / 16;
        let mut tended = Instant::now();
        let asked = Arc::clone(&self.asked);
        self.tell_registration();
        loop {
            let now = link.borrow_and_update().clone();
            let connected = matches!(now, Link::Up(_));
            match now {
                Link::Up(up) if up.number != done => match self.attach().await {
                    Ok(()) => {
                        (done, pause, tended) = (up.number, AGAIN / 16, Instant::now());
                        self.offers.restart(tended);
                        self.lost.build.clone_from(&up.hello.build);
                        self.volumes.set_complete(done);
                        self.manager.metrics().mounter.connected(true);
                        self.manager.set(readiness::MOUNTER, ConditionStatus::Ready(up.hello.build));
                    }
                    Err(e) => {
                        self.manager.set(readiness::MOUNTER, ConditionStatus::NotReady(e.to_string()));
                        // What there is is served meanwhile: deletions do not wait for the state directory.
                        self.open_servers();
                        tokio::time::sleep(pause).await;
                        pause = (pause * 2).min(AGAIN);
                        continue;
                    }
                },
                Link::Up(_) => {}
                Link::Down(why) => self.no_mounter(why),
                Link::Incompatible(why) => self.no_mounter(MounterError::Version(why).to_string()),
            }
            tokio::select! {
                changed = link.changed() => {
                    if changed.is_err() {
                        return;
                    }
                }
                changed = registered.changed() => {
                    if changed.is_ok() {
                        self.record_registration();
                    }
                }
                () = asked.notified() => self.offers.put_off(Instant::now()),
                () = tokio::time::sleep_until(tended + tend::EVERY), if connected => {
                    self.tend().await;
                    tended = Instant::now();
                }
            }
        }
    }

    fn no_mounter(&self, why: String) {
        self.manager.metrics().mounter.connected(false);
        self.manager.set(readiness::MOUNTER, ConditionStatus::NotReady(why));
    }

    /// After each new connection. May be repeated.
    async fn attach(&mut self) -> Result<(), AttachError> {
        if let Some(listener) = self.other_listener(self.csi.as_ref(), keep::CSI).await? {
            close(self.csi.replace(KubeletServer::new("csi", listener)?)).await;
        }
        if let Some(listener) = self.other_listener(self.registration.as_ref(), keep::REGISTRATION).await? {
            close(self.register_by(listener)?).await;
        }
        let other_state = self.take_state().await?;
        if self.restored {
            if other_state {
                self.volumes.store_all().await;
            }
            self.volumes.reattach().await?;
        } else {
            self.recall_registration()?;
            let done = self.volumes.restore().await?;
            self.restored = true;
            // What the kubelet said meanwhile.
            self.record_registration();
            tracing::info!(
                with_identity = done.with_identity,
                without = done.without,
                forgotten = done.forgotten,
                "volumes restored"
            );
        }
        self.open_servers();
        Ok(())
    }

    /// The listener to serve in the place of the one that is served; none where that is the right one. A
    /// mounter that lost the listener gets it back first.
    async fn other_listener(
        &self,
        server: Option<&KubeletServer>,
        slot: u32,
    ) -> Result<Option<Listener>, MounterError> {
        if let Some(server) = server
            && self.mounter.store(None, slot, server.kept(), server.cookie()).await?
        {
            return Ok(None);
        }
        let listener = match slot {
            keep::CSI => self.mounter.csi_listener().await?,
            _ => self.mounter.registration_listener().await?,
        };
        Ok((server.map(KubeletServer::cookie) != Some(listener.cookie)).then_some(listener))
    }

    /// The state directory; whether it is another one than before.
    async fn take_state(&mut self) -> Result<bool, AttachError> {
        let directory = match self.mounter.state().await {
            Ok(directory) => directory,
            Err(e) => {
                self.volumes.set_state(Err(e.to_string()));
                return Err(e.into());
            }
        };
        let stat = rustix::fs::fstat(&directory).map_err(AttachError::Directory)?;
        let id = Some((stat.st_dev, stat.st_ino));
        if self.state_id == id {
            return Ok(false);
        }
        let state = Arc::new(StateDir::new(directory));
        self.volumes.set_state(Ok(Arc::clone(&state)));
        self.state = Some(state);
        self.state_id = id;
        self.record_registration();
        Ok(true)
    }

    /// What the kubelet said to an earlier agent about the listener that this one has inherited.
    fn recall_registration(&mut self) -> Result<(), AttachError> {
        let Some(state) = &self.state else { return Ok(()) };
        let recorded = match state.get_node() {
            Ok(recorded) => recorded,
            Err(e @ StateError::Descriptors { .. }) => return Err(e.into()),
            // Damaged, or something else of that name: not worth a start that fails.
            Err(e) => {
                tracing::warn!(error = %e, "the node's record cannot be used");
                None
            }
        };
        let Some(NodeRecord { generation, registration_cookie, registration, .. }) = recorded else {
            return Ok(());
        };
        self.generation = generation;
        if self.registration.as_ref().map(KubeletServer::cookie) == Some(registration_cookie)
            && *self.registered.borrow() == Registration::Unknown
        {
            self.registered.send_replace(registration);
        }
        Ok(())
    }

    /// Keeps what the kubelet said, and tells it.
    fn record_registration(&mut self) {
        self.tell_registration();
        // Before the record of an earlier agent was read, nothing may be written over it.
        if !self.restored {
            return;
        }
        self.generation = self.generation.wrapping_add(1);
        let cookie = |server: Option<&KubeletServer>| server.map_or(0, KubeletServer::cookie);
        let registration = self.registered.borrow().clone();
        let record = NodeRecord {
            generation: self.generation,
            csi_cookie: cookie(self.csi.as_ref()),
            registration_cookie: cookie(self.registration.as_ref()),
            registration: registration.clone(),
        };
        match self.state.as_ref().map(|s| s.put_node(&record)) {
            Some(Ok(())) => {
                self.lost.recorded = true;
                self.recorded.send_replace(registration);
            }
            Some(Err(e)) => tracing::warn!(error = %e, "the registration could not be recorded"),
            None => {}
        }
    }

    fn tell_registration(&self) {
        let (number, status) = match (&self.lost.sockets, &*self.registered.borrow()) {
            (Some(why), _) => {
                (None, ConditionStatus::NotReady(format!("the kubelet does not find the driver: {why}")))
            }
            (None, Registration::Unknown) => {
                (None, ConditionStatus::NotReady("the kubelet has not registered the driver yet".to_owned()))
            }
            (None, Registration::Registered) => (Some(true), ConditionStatus::Ready(String::new())),
            (None, Registration::Failed(why)) => {
                (Some(false), ConditionStatus::NotReady(format!("the kubelet refused the driver: {why}")))
            }
        };
        self.manager.metrics().registration.registration(number);
        self.manager.set(readiness::REGISTRATION, status);
    }

    /// Serves the kubelet, as far as there are listeners.
    fn open_servers(&mut self) {
        let service =
            Service::new(Arc::clone(&self.manager), Arc::clone(&self.volumes), self.registered.clone());
        let bootstrap = self.manager.bootstrap();
        let registration = registration::Service::new(
            bootstrap.driver_name.clone(),
            bootstrap.endpoint(),
            Arc::clone(&self.asked),
            self.registered.clone(),
            self.recorded.subscribe(),
        );
        if let Some(server) = &mut self.csi {
            let node = node::Service {
                manager: Arc::clone(&self.manager),
                volumes: Arc::clone(&self.volumes),
                mounter: self.mounter.clone(),
                registered: self.registered.subscribe(),
                started: self.started,
            };
            let services = Services::default()
                .with(NodeServer::new(service.clone()))
                .with(IdentityServer::new(service))
                .with(NodeReportServer::new(node));
            server.open(services, self.manager.uid());
        }
        if let Some(server) = &mut self.registration {
            server.open(Services::default().with(RegistrationServer::new(registration)), self.manager.uid());
        }
    }

    /// Stops to accept, and lets the calls in flight finish.
    async fn close(self) {
        tokio::join!(close(self.csi), close(self.registration));
    }
}

async fn close(server: Option<KubeletServer>) {
    if let Some(server) = server {
        server.close(STOP).await;
    }
}
