//! The agent's life: start, the connection to the mounter, and the stop.
//!
//! The order of the start is that of the node core §3 and §5: the kubelet's listeners come first and are served
//! whatever the configuration says; records are read before the first request is answered, so that no publish takes
//! a volume for a new one.

mod door;
mod limits;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use anyhow::Context as _;
use seamount_identity::workload_api::Limits;
use seamount_mounter::protocol::keep;
use seamount_proto::csi::identity_server::IdentityServer;
use seamount_proto::csi::node_server::NodeServer;
use seamount_proto::node::node_server::NodeServer as NodeReportServer;
use seamount_proto::registration::registration_server::RegistrationServer;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{Semaphore, watch};
use tokio_util::sync::CancellationToken;

use crate::config::{Args, CONNECTIONS, Config, Log, LogFormat, LogLevel};
use crate::csi::service::Service;
use crate::endpoint::server::Services;
use crate::http::{self, BEAT, Condition, Shown, Standing};
use crate::live::{self, Basics, Live};
use crate::logging;
use crate::mounter::{Client, DEADLINE, Link, Listener, MounterError};
use crate::node;
use crate::record::{NodeRecord, Registration};
use crate::registration;
use crate::source::{self, Source};
use crate::state::{StateDir, StateError};
use crate::volumes::proof::Prover;
use crate::volumes::{Terms, VolumeError, Volumes};
use door::Door;

/// How long a stream waits for a pod's first identity before it is answered `Unavailable`.
const PENDING: Duration = Duration::from_secs(20);
/// How long calls in flight may take after SIGTERM.
const STOP: Duration = Duration::from_secs(5);
/// When the start is over: volumes are back and clients have connected again within half a second (N8).
const STARTED: Duration = Duration::from_secs(10);
/// How long to wait at most before what failed with a connected mounter is tried again; at first a sixteenth of it.
const AGAIN: Duration = Duration::from_secs(1);

/// Runs the agent until SIGTERM or SIGINT.
pub fn run(args: Args) -> anyhow::Result<()> {
    let node_name = std::env::var("NODE_NAME").ok().filter(|n| !n.is_empty());
    let text = live::text(&args).unwrap_or_default();
    let loaded = Config::load(&args, node_name.as_deref());
    let log = loaded.as_ref().map_or(Log { format: LogFormat::Text, level: LogLevel::Info }, |c| c.log);
    let log = logging::init(log).context("the logger could not be installed")?;
    let basics = Basics::new(&args, node_name.as_deref(), loaded.as_ref().ok(), &text);
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
        live_on(args, node_name, loaded, basics, Some(log), DEADLINE, stop).await;
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

/// The whole agent inside somebody else's process, without a logger and signals of its own, until `stop`. With this
/// patience for a request to the mounter.
pub async fn live_until(
    args: Args,
    node_name: Option<String>,
    patience: Duration,
    stop: impl Future<Output = ()>,
) {
    let text = live::text(&args).unwrap_or_default();
    let loaded = Config::load(&args, node_name.as_deref());
    let basics = Basics::new(&args, node_name.as_deref(), loaded.as_ref().ok(), &text);
    live_on(args, node_name, loaded.map_err(Into::into), basics, None, patience, stop).await;
}

async fn live_on(
    args: Args,
    node_name: Option<String>,
    loaded: Result<Config, Box<crate::config::ConfigError>>,
    basics: Basics,
    log: Option<logging::LogHandle>,
    patience: Duration,
    stop: impl Future<Output = ()>,
) {
    tracing::info!(
        version = env!("CARGO_PKG_VERSION"),
        driver = %basics.driver_name,
        node = %basics.node_name,
        kubelet_root = %basics.kubelet_root,
        "seamount-agent starts"
    );
    let cancel = CancellationToken::new();
    let shown = Shown::default();
    let descriptors = limits::raise_descriptors();
    shown.metrics.descriptor_limit(descriptors);
    let of_node = loaded.as_ref().ok().and_then(|c| c.workload_api.connections_per_node);
    let of_node = limits::connections(of_node, descriptors);
    shown.metrics.connection_limit(of_node);
    let connections = Arc::new(Semaphore::new(
        usize::try_from(of_node).map_or(Semaphore::MAX_PERMITS, |n| n.min(Semaphore::MAX_PERMITS)),
    ));
    let bounds =
        loaded.as_ref().map_or(Limits { connections: CONNECTIONS as usize, streams: CONNECTIONS }, |c| {
            Limits {
                connections: c.workload_api.connections_per_volume as usize,
                streams: c.workload_api.streams_per_connection,
            }
        });
    let address = basics.http;
    let mounter = Client::start(basics.mounter_socket.clone().into(), cancel.clone()).with_patience(patience);
    let live = Live::new(basics, shown.clone(), log, cancel.clone());
    live.take(loaded.map_err(|e| *e));
    tokio::spawn(Arc::clone(&live).follow(args, node_name));

    let (source_sender, source) = watch::channel(Source::Missing("the agent has just started".into()));
    let terms =
        Terms { limits: bounds, connections, pending: PENDING, descriptors, observer: shown.metrics.clone() };
    let prover = Arc::clone(&live) as Arc<dyn Prover>;
    let volumes = Volumes::new(mounter.clone(), source, prover, terms, Arc::clone(&shown.metrics));
    // An authority takes longer to make than all volumes to bring back, and they do not wait for it.
    volumes.aside(source::supervise(live.configs(), source_sender, cancel.clone()));
    tokio::spawn(Arc::clone(&volumes).keep_fresh(cancel.clone()));
    tokio::spawn(tell_source(Arc::clone(&volumes), Arc::clone(&live)));
    let beat = Arc::clone(&shown.progress);
    tokio::spawn(async move {
        loop {
            beat.beat();
            tokio::time::sleep(BEAT).await;
        }
    });
    tokio::spawn(show(address, live.configs(), shown, cancel.clone()));

    let stopped = CancellationToken::new();
    let superseded = mounter.clone();
    let mut house = House::new(live, mounter, volumes);
    let keeper = tokio::spawn({
        let stop = stopped.clone();
        async move {
            tokio::select! {
                () = stop.cancelled() => {}
                () = house.keep() => {}
            }
            house.close().await;
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

/// Health and metrics. Where the agent started without a valid configuration, the first one decides anew.
async fn show(
    mut address: Option<SocketAddr>,
    mut configs: watch::Receiver<Option<Arc<Config>>>,
    shown: Shown,
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

/// An address that is taken is tried again: liveness must not depend on it.
async fn show_at(address: Option<SocketAddr>, shown: &Shown, cancel: &CancellationToken) {
    let Some(address) = address else { return std::future::pending().await };
    let mut told = false;
    loop {
        match tokio::net::TcpListener::bind(address).await {
            Ok(listener) => {
                tracing::info!(%address, "health and metrics");
                if let Err(e) = http::serve(listener, shown.clone(), cancel.clone()).await {
                    tracing::error!(error = %e, "health and metrics ended");
                }
            }
            Err(e) if !told => {
                told = true;
                tracing::error!(%address, error = %e, "http.address cannot be listened on; trying again");
            }
            Err(_) => {}
        }
        tokio::time::sleep(AGAIN).await;
    }
}

/// The identity source as a condition of readiness, and as a metric.
///
/// Both channels are read after they were marked as seen, so a change that comes while this tells of the one before is seen by
/// `changed` and told next; the last one is always told. Only this task tells.
async fn tell_source(volumes: Arc<Volumes>, live: Arc<Live>) {
    let (mut source, mut down) = (volumes.source(), volumes.pulse().down());
    loop {
        let silent = down.borrow_and_update().clone();
        let standing = match &*source.borrow_and_update() {
            Source::Missing(why) => Standing::NotReady(why.to_string()),
            Source::Authority(signer) => match (silent, &signer.trouble) {
                (Some(why), _) => {
                    Standing::NotReady(format!("it does not answer: {why} (what was issued goes on)"))
                }
                (None, Some(why)) => Standing::NotReady(format!("{why} (going on with the last good one)")),
                (None, None) => Standing::Ready(String::new()),
            },
            Source::Directory => Standing::NotNeeded,
        };
        let up = match &*source.borrow() {
            Source::Missing(_) => false,
            Source::Authority(_) => !volumes.pulse().is_down(),
            Source::Directory => true,
        };
        live.metrics().authority(up);
        live.set(Condition::Authority, standing);
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

/// All that comes from the mounter: the kubelet's two doors, the state directory, the volumes.
struct House {
    live: Arc<Live>,
    mounter: Client,
    volumes: Arc<Volumes>,
    csi: Option<Door>,
    registration: Option<Door>,
    registered: watch::Sender<Registration>,
    /// What of it is recorded.
    recorded: watch::Sender<Registration>,
    state: Option<Arc<StateDir>>,
    /// Device and inode of the state directory.
    state_id: Option<(u64, u64)>,
    generation: u64,
    restored: bool,
    started: SystemTime,
}

impl House {
    fn new(live: Arc<Live>, mounter: Client, volumes: Arc<Volumes>) -> Self {
        let (registered, _) = watch::channel(Registration::Unknown);
        Self {
            live,
            mounter,
            volumes,
            csi: None,
            registration: None,
            registered,
            recorded: watch::Sender::new(Registration::Unknown),
            state: None,
            state_id: None,
            generation: 0,
            restored: false,
            started: SystemTime::now(),
        }
    }

    /// Follows the connection to the mounter, and what the kubelet says, for ever.
    ///
    /// One task, so nothing here is locked. A connection is marked as seen before it is attached to; if it breaks meanwhile, the
    /// attempt fails or is followed by `changed`, and the next one has another number. What the kubelet says is sent by the
    /// service, recorded here alone, and answered when `recorded` says so: neither can overtake the other.
    async fn keep(&mut self) {
        let mut link = self.mounter.link();
        let mut registered = self.registered.subscribe();
        let mut done = 0;
        let mut pause = AGAIN / 16;
        self.tell_registration();
        loop {
            let now = link.borrow_and_update().clone();
            match now {
                Link::Up(up) if up.number != done => match self.attach().await {
                    Ok(()) => {
                        (done, pause) = (up.number, AGAIN / 16);
                        self.volumes.set_complete(done);
                        self.live.metrics().mounter(true);
                        self.live.set(Condition::Mounter, Standing::Ready(up.hello.build));
                    }
                    Err(e) => {
                        self.live.set(Condition::Mounter, Standing::NotReady(e.to_string()));
                        // What there is is served meanwhile: deletions do not wait for the state directory.
                        self.open_doors();
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
            }
        }
    }

    fn no_mounter(&self, why: String) {
        self.live.metrics().mounter(false);
        self.live.set(Condition::Mounter, Standing::NotReady(why));
    }

    /// After each new connection. May be repeated.
    async fn attach(&mut self) -> Result<(), AttachError> {
        if let Some(listener) = self.other_listener(self.csi.as_ref(), keep::CSI).await? {
            close(self.csi.replace(Door::new("csi", listener)?)).await;
        }
        if let Some(listener) = self.other_listener(self.registration.as_ref(), keep::REGISTRATION).await? {
            close(self.registration.replace(Door::new("registration", listener)?)).await;
            self.recorded.send_replace(Registration::Unknown);
            self.registered.send_replace(Registration::Unknown);
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
        self.open_doors();
        Ok(())
    }

    /// The listener to serve in the place of the one that is served; none where that is the right one. A mounter that
    /// lost the listener gets it back first.
    async fn other_listener(&self, door: Option<&Door>, slot: u32) -> Result<Option<Listener>, MounterError> {
        if let Some(door) = door
            && self.mounter.store(None, slot, door.kept(), door.cookie()).await?
        {
            return Ok(None);
        }
        let listener = match slot {
            keep::CSI => self.mounter.csi_listener().await?,
            _ => self.mounter.registration_listener().await?,
        };
        Ok((door.map(Door::cookie) != Some(listener.cookie)).then_some(listener))
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
        if self.registration.as_ref().map(Door::cookie) == Some(registration_cookie)
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
        let cookie = |door: Option<&Door>| door.map_or(0, Door::cookie);
        let registration = self.registered.borrow().clone();
        let record = NodeRecord {
            generation: self.generation,
            csi_cookie: cookie(self.csi.as_ref()),
            registration_cookie: cookie(self.registration.as_ref()),
            registration: registration.clone(),
        };
        match self.state.as_ref().map(|s| s.put_node(&record)) {
            Some(Ok(())) => drop(self.recorded.send_replace(registration)),
            Some(Err(e)) => tracing::warn!(error = %e, "the registration could not be recorded"),
            None => {}
        }
    }

    fn tell_registration(&self) {
        let (number, standing) = match &*self.registered.borrow() {
            Registration::Unknown => {
                (None, Standing::NotReady("the kubelet has not registered the driver yet".to_owned()))
            }
            Registration::Registered => (Some(true), Standing::Ready(String::new())),
            Registration::Failed(why) => {
                (Some(false), Standing::NotReady(format!("the kubelet refused the driver: {why}")))
            }
        };
        self.live.metrics().registration(number);
        self.live.set(Condition::Registration, standing);
    }

    /// Serves the kubelet, as far as there are listeners.
    fn open_doors(&mut self) {
        let service =
            Service::new(Arc::clone(&self.live), Arc::clone(&self.volumes), self.registered.clone());
        let basics = self.live.basics();
        let registration = registration::Service::new(
            basics.driver_name.clone(),
            basics.endpoint(),
            self.registered.clone(),
            self.recorded.subscribe(),
        );
        if let Some(door) = &mut self.csi {
            let node = node::Service {
                live: Arc::clone(&self.live),
                volumes: Arc::clone(&self.volumes),
                mounter: self.mounter.clone(),
                registered: self.registered.subscribe(),
                started: self.started,
            };
            let services = Services::default()
                .with(NodeServer::new(service.clone()))
                .with(IdentityServer::new(service))
                .with(NodeReportServer::new(node));
            door.open(services, self.live.uid());
        }
        if let Some(door) = &mut self.registration {
            door.open(Services::default().with(RegistrationServer::new(registration)), self.live.uid());
        }
    }

    /// Stops to accept, and lets the calls in flight finish.
    async fn close(self) {
        tokio::join!(close(self.csi), close(self.registration));
    }
}

async fn close(door: Option<Door>) {
    if let Some(door) = door {
        door.close(STOP).await;
    }
}
