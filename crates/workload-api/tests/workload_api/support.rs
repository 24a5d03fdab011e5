//! A served socket and clients for it.

use std::{
    collections::BTreeMap,
    path::PathBuf,
    sync::{
        Arc, LazyLock, Mutex,
        atomic::{AtomicI64, Ordering},
    },
    time::Duration,
};

use hyper_util::rt::TokioIo;
use seamount_authority::{Authority as _, Embedded, EmbeddedConfig, IdTemplate, Workload, new_key_and_csr};
use seamount_identity::{BundleSet, KeyType, X509Svid};
use seamount_workload_api::{IdentityState, Limits, Node, Observer, Response, Tenant, serve_within};
use tempfile::TempDir;
use tokio::{net::UnixStream, sync::watch, task::JoinHandle};
use tokio_util::sync::CancellationToken;
use tonic::transport::{Channel, Endpoint, Uri};

/// Far more than anything here needs.
pub const DEADLINE: Duration = Duration::from_secs(60);

pub async fn soon<T>(what: impl Future<Output = T>) -> T {
    tokio::time::timeout(DEADLINE, what).await.expect("in time")
}

pub async fn until(what: &str, condition: impl Fn() -> bool) {
    let waiting = async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(DEADLINE, waiting).await.unwrap_or_else(|_| panic!("never came true: {what}"));
}

static AUTHORITY: LazyLock<Embedded> = LazyLock::new(|| {
    let trust_domain = "example.org".parse().unwrap();
    Embedded::new(EmbeddedConfig {
        template: IdTemplate::parse(IdTemplate::DEFAULT, &trust_domain).unwrap(),
        trust_domain,
        key_type: KeyType::EcP256,
        ca_ttl: Duration::from_secs(24 * 3600),
        svid_ttl: Duration::from_secs(3600),
        directory: None,
    })
    .unwrap()
});

pub fn bundles() -> Arc<BundleSet> {
    AUTHORITY.bundles().borrow().clone()
}

pub fn svid(service_account: &str) -> Arc<X509Svid> {
    let workload = Workload {
        namespace: "shop".into(),
        service_account: service_account.into(),
        pod_name: "p".into(),
        pod_uid: "u".into(),
        node: "n".into(),
    };
    let (key, csr) = new_key_and_csr(KeyType::EcP256).unwrap();
    Arc::new(X509Svid::new(AUTHORITY.issue(&csr, &workload).unwrap(), key).unwrap())
}

pub fn ready(svid: &Arc<X509Svid>) -> IdentityState {
    IdentityState::Ready(Arc::new(Response::new(std::slice::from_ref(svid), &bundles())))
}

/// What the observer saw.
#[derive(Default)]
pub struct Seen {
    pub connections: AtomicI64,
    pub streams: AtomicI64,
    pub refused: Mutex<BTreeMap<&'static str, usize>>,
    pub throttled: AtomicI64,
}

impl Seen {
    pub fn refused(&self, why: &str) -> usize {
        self.refused.lock().unwrap().get(why).copied().unwrap_or(0)
    }

    pub fn connections(&self) -> i64 {
        self.connections.load(Ordering::SeqCst)
    }

    pub fn streams(&self) -> i64 {
        self.streams.load(Ordering::SeqCst)
    }

    pub fn is_throttled(&self) -> bool {
        self.throttled.load(Ordering::SeqCst) > 0
    }
}

impl Observer for Seen {
    fn connection(&self, delta: i64) {
        self.connections.fetch_add(delta, Ordering::SeqCst);
    }

    fn stream(&self, delta: i64) {
        self.streams.fetch_add(delta, Ordering::SeqCst);
    }

    fn refused(&self, why: &'static str) {
        *self.refused.lock().unwrap().entry(why).or_default() += 1;
    }

    fn throttled(&self) {
        self.throttled.fetch_add(1, Ordering::SeqCst);
    }
}

pub struct Server {
    _directory: TempDir,
    pub path: PathBuf,
    pub served: watch::Sender<IdentityState>,
    pub cancel: CancellationToken,
    pub seen: Arc<Seen>,
    pub task: JoinHandle<()>,
}

impl Server {
    pub fn start(first: IdentityState) -> Self {
        Self::start_with(first, Limits::default(), DEADLINE)
    }

    pub fn start_with(first: IdentityState, limits: Limits, pending: Duration) -> Self {
        Self::start_of(&Tenant::new(limits, Node::unbounded()), first, pending)
    }

    /// One of this tenant's sockets.
    pub fn start_of(tenant: &Arc<Tenant>, first: IdentityState, pending: Duration) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("spire-agent.sock");
        let listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
        listener.set_nonblocking(true).unwrap();
        let (served, receiver) = watch::channel(first);
        let cancel = CancellationToken::new();
        let seen = Arc::new(Seen::default());
        let observer: Arc<dyn Observer> = seen.clone();
        let serving =
            serve_within(listener, receiver, tenant.clone(), pending, observer, cancel.clone()).unwrap();
        Self { _directory: directory, path, served, cancel, seen, task: tokio::spawn(serving) }
    }

    pub fn uri(&self) -> String {
        format!("unix://{}", self.path.display())
    }

    pub async fn channel(&self) -> Channel {
        soon(self.try_channel()).await.unwrap()
    }

    pub async fn try_channel(&self) -> Result<Channel, tonic::transport::Error> {
        let path = self.path.clone();
        let connect = tower::service_fn(move |_: Uri| {
            let path = path.clone();
            async { UnixStream::connect(path).await.map(TokioIo::new) }
        });
        Endpoint::from_static("http://localhost").connect_with_connector(connect).await
    }
}
