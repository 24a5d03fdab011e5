//! A node to test and to measure on: the kubelet's root, the files that agent and mounter read, and how the
//! two are started. It owns no process: some tests want two agents.

use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};

use crate::issuer::{Claims, TokenIssuer};
use crate::kubelet::{Kubelet, PodVolume};
use crate::namespace;
use crate::processes::Spawn;

/// The driver's name.
pub const DRIVER: &str = "csi.spiffe.io";
/// The audience of tokens.
pub const AUDIENCE: &str = "seamount.dev";
/// Their issuer.
pub const ISSUER: &str = "https://kubernetes.default.svc";
/// The node's name.
pub const NODE: &str = "node-1";
/// The agent's uid and gid.
pub const UID: u32 = 64203;

/// The directory that mounter and agent share, unless there is a second pair.
pub const RUN: &str = "run";

/// Nodes of this process, to name their directories.
static NODES: AtomicU32 = AtomicU32::new(0);

/// The node. Its files are on a tmpfs of the mount namespace that it was made in.
#[derive(Debug)]
pub struct Node {
    /// The simulated kubelet.
    pub kubelet: Kubelet,
    /// The simulated API server's part.
    pub issuer: TokenIssuer,
    /// Where the agent shows its metrics.
    pub http: String,
    logs: PathBuf,
    programs: Option<PathBuf>,
    descriptors: Option<u64>,
    dir: PathBuf,
}

impl Node {
    /// In the caller's mount namespace, which has to be its own. Has a root for the authority and
    /// [`Node::yaml`] as its configuration.
    ///
    /// # Errors
    /// If something cannot be made; mounting takes root.
    pub fn new(issuer: TokenIssuer) -> anyhow::Result<Self> {
        // Short: the path of a volume's socket below it has at most 107 bytes (unix(7)).
        let number = NODES.fetch_add(1, Ordering::Relaxed);
        let dir = namespace::scratch()?.join(format!("n{number}"));
        for name in ["", "k", "etc", "logs", "root"] {
            make_directory(&dir.join(name))?;
        }
        make_run(&dir.join(RUN))?;
        let root = dir.join("k");
        mount("tmpfs", &root, "tmpfs", MountFlags::empty(), Some(c"mode=750"))?;
        std::fs::write(dir.join("etc/jwks.json"), issuer.jwks_json())?;
        let kubelet = Kubelet::new(&root, DRIVER)?;
        let (http, logs) = (free_address()?, dir.join("logs"));
        let (programs, descriptors) = Default::default();
        let node = Self { kubelet, issuer, http, logs, programs, descriptors, dir };
        node.write_root()?;
        node.configure(&node.yaml())?;
        Ok(node)
    }

    /// With programs from this directory instead of those beside the running one.
    #[must_use]
    pub fn with_programs(mut self, directory: Option<&Path>) -> Self {
        self.programs = directory.map(Path::to_owned);
        self
    }

    /// With so many descriptors for each of the two processes; without it, as many as this one may have.
    #[must_use]
    pub fn with_descriptors(mut self, limit: u64) -> Self {
        self.descriptors = Some(limit);
        self
    }

    /// With logs in this directory, which outlives the node.
    #[must_use]
    pub fn with_logs(mut self, directory: &Path) -> Self {
        directory.clone_into(&mut self.logs);
        self
    }

    /// A file of the node's.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// Where logs go.
    pub fn logs(&self) -> &Path {
        &self.logs
    }

    /// Where the records are.
    pub fn state(&self) -> PathBuf {
        self.kubelet.root().join("plugins/seamount.dev/state")
    }

    /// The record of a volume.
    pub fn record(&self, volume: &PodVolume) -> PathBuf {
        self.state().join(format!("{}.{}", volume.pod_uid, volume.volume_name))
    }

    /// A new root for `example.org` where a cluster would mount its Secret.
    ///
    /// # Errors
    /// If it cannot be made or written.
    pub fn write_root(&self) -> anyhow::Result<()> {
        crate::authority::write_root(&self.path("root"), UID)
    }

    /// A good configuration: the embedded authority with the root in `root`.
    pub fn yaml(&self) -> String {
        self.yaml_with(&format!("directory: {}", self.path("root").display()))
    }

    /// The configuration with other fields of the embedded authority.
    pub fn yaml_with(&self, embedded: &str) -> String {
        format!(
            "trustDomain: example.org\n\
             kubeletRoot: {}\n\
             nodeName: {NODE}\n\
             mounterSocket: {}\n\
             authority: {{embedded: {{{embedded}}}}}\n\
             token: {{audience: {AUDIENCE}, issuers: {ISSUER}, keys: {{file: {}}}}}\n\
             http: {{address: \"{}\"}}\n",
            self.kubelet.root().display(),
            self.path(RUN).join("mounter.sock").display(),
            self.path("etc/jwks.json").display(),
            self.http,
        )
    }

    /// Puts a configuration in the place of the one before, all or nothing.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn configure(&self, yaml: &str) -> io::Result<()> {
        let new = self.path("etc/agent.yaml.new");
        std::fs::write(&new, yaml)?;
        std::fs::rename(new, self.path("etc/agent.yaml"))
    }

    /// One of the node's two programs.
    pub fn program(&self, name: &str) -> PathBuf {
        match &self.programs {
            Some(directory) => directory.join(name),
            None => crate::bin(name),
        }
    }

    /// A directory for a second pair of mounter and agent to share.
    ///
    /// # Errors
    /// If it cannot be made.
    pub fn make_run(&self, run: &str) -> io::Result<()> {
        make_run(&self.path(run))
    }

    /// How to start a mounter whose socket is in the directory `run` ([`RUN`]).
    pub fn mounter(&self, run: &str) -> Spawn {
        self.spawn("mounter", "seamount-mounter")
            .args(["--kubelet-root".as_ref(), self.kubelet.root().as_os_str()])
            .args(["--driver", DRIVER])
            .args(["--socket".as_ref(), self.path(run).join("mounter.sock").as_os_str()])
            .dying_with_us()
    }

    /// How to start an agent of the mounter in the directory `run`, which shows its metrics at `http`.
    pub fn agent(&self, run: &str, http: &str) -> Spawn {
        let spawn = self.spawn("agent", "seamount-agent");
        spawn.args(self.agent_args(run, http)).ids(UID, UID).dying_with_us()
    }

    fn spawn(&self, name: &str, program: &str) -> Spawn {
        let program = self.program(program);
        match self.descriptors {
            Some(limit) => Spawn::limited(name, &program, &self.logs, limit),
            None => Spawn::new(name, &program, &self.logs),
        }
    }

    /// The arguments of such an agent, to start it in another way.
    pub fn agent_args(&self, run: &str, http: &str) -> [String; 8] {
        let socket = self.path(run).join("mounter.sock").display().to_string();
        let config = self.path("etc/agent.yaml").display().to_string();
        let flags = ["--config", "--mounter-socket", "--http-address", "--health-socket"].map(str::to_owned);
        let [first, second, third, fourth] = flags;
        [first, config, second, socket, third, http.into(), fourth, self.health(run)]
    }

    /// Where an agent of the mounter in the directory `run` says how it is.
    pub fn health(&self, run: &str) -> String {
        self.path(run).join("agent/health.sock").display().to_string()
    }

    /// Removes the logs of an earlier process: what is awaited in one was not said by the one before. They
    /// stay in the directory under names with numbers.
    ///
    /// # Errors
    /// If the file cannot be renamed.
    pub fn set_log_aside(&self, name: &str) -> io::Result<()> {
        let log = self.logs.join(format!("{name}.log"));
        if !log.exists() {
            return Ok(());
        }
        let count = std::fs::read_dir(&self.logs)?.count();
        std::fs::rename(&log, self.logs.join(format!("{name}.{count}")))
    }

    /// The token's claims for this volume's pod.
    pub fn claims(&self, volume: &PodVolume) -> Claims {
        volume.claims(NODE, AUDIENCE)
    }

    /// A token for this pod, as the kubelet would send it.
    pub fn tokens(&self, volume: &PodVolume) -> String {
        self.issuer.tokens_json(&self.claims(volume))
    }

    /// Status and body of a GET of the agent's health or metrics.
    ///
    /// # Errors
    /// If nothing answers.
    pub async fn get(&self, path: &str) -> io::Result<(u16, String)> {
        match path {
            "/metrics" => get(&self.http, path).await,
            _ => get(&self.health(RUN), path).await,
        }
    }

    /// Waits until the agent says that it is ready.
    ///
    /// # Errors
    /// With its last words, after `limit`.
    pub async fn ready(&self, limit: Duration) -> anyhow::Result<()> {
        ready(&self.health(RUN), limit).await
    }
}

/// Status and body of a GET, of an address or a Unix socket's path.
///
/// # Errors
/// If nothing answers.
pub async fn get(at: &str, path: &str) -> io::Result<(u16, String)> {
    match at.starts_with('/') {
        true => get_on(tokio::net::UnixStream::connect(at).await?, path).await,
        false => get_on(tokio::net::TcpStream::connect(at).await?, path).await,
    }
}

async fn get_on(mut stream: impl AsyncRead + AsyncWrite + Unpin, path: &str) -> io::Result<(u16, String)> {
    let request = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await?;
    let code = answer.split(' ').nth(1).and_then(|code| code.parse().ok());
    let body = answer.split_once("\r\n\r\n").map(|(_, body)| body.to_owned());
    code.zip(body).ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, answer))
}

/// Waits until an agent says on its health socket that it is ready.
///
/// # Errors
/// With its last words, after `limit`.
pub async fn ready(health: &str, limit: Duration) -> anyhow::Result<()> {
    let start = Instant::now();
    loop {
        let last = match get(health, "/readyz").await {
            Ok((200, _)) => return Ok(()),
            Ok((_, text)) => text,
            Err(e) => e.to_string(),
        };
        anyhow::ensure!(start.elapsed() <= limit, "not ready within {limit:?}: {last}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// What the two share, and in it a directory in which any agent may make its health socket.
fn make_run(path: &Path) -> io::Result<()> {
    make_directory(path)?;
    let agents = path.join("agent");
    make_directory(&agents)?;
    std::fs::set_permissions(agents, std::fs::Permissions::from_mode(0o777))
}

/// The agent's uid may pass, whatever the umask is.
fn make_directory(path: &Path) -> io::Result<()> {
    std::fs::create_dir(path)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755))
}

/// An address of this machine alone that no process listens on now.
///
/// # Errors
/// If there is none.
pub fn free_address() -> io::Result<String> {
    Ok(std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?.to_string())
}

impl Drop for Node {
    fn drop(&mut self) {
        // A namespace may see many nodes; all of it is gone with the namespace anyway.
        let _ = unmount(self.kubelet.root(), UnmountFlags::DETACH);
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}
