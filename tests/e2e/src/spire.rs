//! A played SPIRE agent: a directory on the machine with a Workload API socket in it, as the SPIFFE CSI
//! driver shows it to pods. It has one identity for all pods.

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use anyhow::{Context as _, Result};
use seamount_authority::{Authority as _, Embedded, EmbeddedConfig, IdTemplate, Workload, new_key_and_csr};
use seamount_identity::{KeyType, TrustDomain, X509Svid};
use seamount_workload_api::{IdentityState, Limits, Response, Unobserved, serve};
use tokio::net::UnixListener;
use tokio::runtime::Runtime;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// The identity that it has for all pods.
pub const ID: &str = "spiffe://spire.test/ns/spire/sa/agent";

/// It runs until dropped.
pub struct Spire {
    root: PathBuf,
    runtime: Option<Runtime>,
}

impl Spire {
    /// Starts it. The machine's file tree is the nodes' as well, so both see its directory.
    pub fn start() -> Result<Self> {
        let root = std::env::temp_dir().join(format!("seamount-e2e-{}", std::process::id()));
        let directory = root.join("agent-sockets");
        std::fs::create_dir_all(&directory).with_context(|| format!("cannot make {}", root.display()))?;
        for path in [&root, &directory] {
            std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755))?;
        }
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
        let spire = Self { root, runtime: Some(runtime) };
        let response = runtime_of(&spire)?.block_on(issue())?;
        let socket = spire.socket();
        let listener = runtime_of(&spire)?.block_on(async { UnixListener::bind(&socket) });
        let listener = listener.with_context(|| format!("cannot listen at {}", socket.display()))?;
        std::fs::set_permissions(&socket, std::fs::Permissions::from_mode(0o777))?;
        runtime_of(&spire)?.spawn(async move {
            let (_keep, served) = watch::channel(IdentityState::Ready(Arc::new(response)));
            let pending = Duration::from_secs(30);
            let cancel = CancellationToken::new();
            serve(listener, served, Limits::default(), pending, Arc::new(Unobserved), cancel).await;
        });
        Ok(spire)
    }

    /// The directory with the socket.
    pub fn directory(&self) -> PathBuf {
        self.root.join("agent-sockets")
    }

    /// The socket.
    pub fn socket(&self) -> PathBuf {
        self.directory().join("spire-agent.sock")
    }
}

impl Drop for Spire {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
        remove(&self.root);
    }
}

fn remove(root: &Path) {
    if let Err(error) = std::fs::remove_dir_all(root) {
        println!("cannot remove {}: {error}", root.display());
    }
}

fn runtime_of(spire: &Spire) -> Result<&Runtime> {
    spire.runtime.as_ref().context("it was stopped")
}

async fn issue() -> Result<Response> {
    let trust_domain: TrustDomain = "spire.test".parse()?;
    let authority = Embedded::new(EmbeddedConfig {
        template: IdTemplate::parse(
            "spiffe://{trustDomain}/ns/{namespace}/sa/{serviceAccount}",
            &trust_domain,
        )?,
        trust_domain,
        key_type: KeyType::EcP256,
        ca_ttl: Duration::from_hours(24),
        svid_ttl: Duration::from_hours(2),
        directory: None,
    })?;
    let everybody = Workload {
        namespace: "spire".into(),
        service_account: "agent".into(),
        pod_name: "played".into(),
        pod_uid: "played".into(),
        node: "played".into(),
    };
    let (key, csr) = new_key_and_csr(KeyType::EcP256)?;
    let chain: Vec<u8> =
        authority.sign(&csr, &everybody, "").await?.iter().flat_map(|c| c.as_ref().to_vec()).collect();
    let svid = X509Svid::parse(&chain, key)?;
    anyhow::ensure!(svid.not_after() > SystemTime::now(), "it has expired");
    let bundles = authority.bundles().borrow().clone();
    Ok(Response::new(&[Arc::new(svid)], &bundles))
}
