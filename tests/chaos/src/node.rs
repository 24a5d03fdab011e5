//! A node: the kubelet's root on a tmpfs, the two processes, and the files that they read.

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use rustix::process::Signal;
use seamount_testkit::issuer::{Algorithm, TokenIssuer};
use seamount_testkit::kubelet::{Kubelet, PodVolume};
use seamount_testkit::processes::{Process, Spawn};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

/// The driver's name.
pub const DRIVER: &str = "csi.spiffe.io";
const AUDIENCE: &str = "seamount.dev";
const ISSUER: &str = "https://kubernetes.default.svc";
const NODE: &str = "node-1";
const UID: u32 = 64203;

/// One of the two processes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Who {
    /// `seamount-agent`.
    Agent,
    /// `seamount-mounter`.
    Mounter,
}

/// The node.
#[derive(Debug)]
pub struct Node {
    /// The played kubelet.
    pub kubelet: Kubelet,
    issuer: TokenIssuer,
    agent: Mutex<Option<Process>>,
    mounter: Mutex<Option<Process>>,
    http: String,
    logs: PathBuf,
    programs: Option<PathBuf>,
    dir: tempfile::TempDir,
}

impl Node {
    /// In the caller's mount namespace, which has to be its own. Starts nothing yet. Without a directory of programs
    /// those beside this program are run.
    ///
    /// # Errors
    /// If something cannot be made.
    pub fn new(logs: &Path, programs: Option<PathBuf>) -> anyhow::Result<Self> {
        std::fs::create_dir_all(logs)?;
        for name in ["agent.log", "mounter.log"] {
            // An earlier run's.
            let _ = std::fs::remove_file(logs.join(name));
        }
        let dir = tempfile::tempdir()?;
        std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o755))?;
        for name in ["kubelet", "run", "etc", "root"] {
            std::fs::create_dir(dir.path().join(name))?;
        }
        let root = dir.path().join("kubelet");
        let flags = rustix::mount::MountFlags::empty();
        rustix::mount::mount("tmpfs", &root, "tmpfs", flags, Some(c"mode=750")).context("mount a tmpfs")?;
        // ECDSA: a thousand tokens should not cost the machine anything.
        let issuer = TokenIssuer::with_algorithm(ISSUER, Algorithm::Es256);
        std::fs::write(dir.path().join("etc/jwks.json"), issuer.jwks_json())?;
        let http = std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?.to_string();
        let kubelet = Kubelet::new(&root, DRIVER)?;
        seamount_testkit::authority::write_root(&dir.path().join("root"), UID)?;
        let yaml = format!(
            "trustDomain: example.org\n\
             kubeletRoot: {}\n\
             nodeName: {NODE}\n\
             mounterSocket: {}\n\
             authority: {{embedded: {{directory: {}, svidTtl: 12h, caTtl: 96h}}}}\n\
             token: {{audience: {AUDIENCE}, issuer: {ISSUER}, keys: {{file: {}}}}}\n\
             http: {{address: \"{http}\"}}\n",
            root.display(),
            dir.path().join("run/mounter.sock").display(),
            dir.path().join("root").display(),
            dir.path().join("etc/jwks.json").display(),
        );
        std::fs::write(dir.path().join("etc/agent.yaml"), yaml)?;
        let (agent, mounter) = Default::default();
        Ok(Self { kubelet, issuer, agent, mounter, http, logs: logs.to_owned(), programs, dir })
    }

    fn process(&self, who: Who) -> MutexGuard<'_, Option<Process>> {
        let process = match who {
            Who::Agent => &self.agent,
            Who::Mounter => &self.mounter,
        };
        process.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Starts a process.
    ///
    /// # Errors
    /// If it cannot be started.
    pub fn start(&self, who: Who) -> anyhow::Result<()> {
        let path = |name: &str| self.dir.path().join(name).display().to_string();
        let root = self.kubelet.root().display().to_string();
        let program = |name: &str| match &self.programs {
            Some(directory) => directory.join(name),
            None => seamount_testkit::bin(name),
        };
        let spawn = match who {
            Who::Agent => Spawn::new("agent", &program("seamount-agent"), &self.logs)
                .args(["--config", &path("etc/agent.yaml")])
                .ids(UID, UID),
            Who::Mounter => Spawn::new("mounter", &program("seamount-mounter"), &self.logs)
                .args(["--kubelet-root", &root, "--driver", DRIVER])
                .args(["--socket", &path("run/mounter.sock")]),
        };
        let process = spawn.start()?;
        *self.process(who) = Some(process);
        Ok(())
    }

    /// SIGKILL.
    ///
    /// # Errors
    /// If it has ended by itself, which is a finding.
    pub fn kill(&self, who: Who) -> anyhow::Result<()> {
        self.signal(who, Signal::KILL)
    }

    /// Waits for the end of a process that was killed.
    ///
    /// # Errors
    /// If there is none.
    pub fn reap(&self, who: Who) -> anyhow::Result<()> {
        let process = self.process(who).take().context("not started")?;
        process.crash()?;
        Ok(())
    }

    /// Any signal.
    ///
    /// # Errors
    /// Like [`Node::kill`].
    pub fn signal(&self, who: Who, signal: Signal) -> anyhow::Result<()> {
        let mut process = self.process(who);
        let process = process.as_mut().context("not started")?;
        if let Some(status) = process.ended()? {
            bail!("{who:?} ended by itself: {status}; see {}", process.log_path().display());
        }
        Ok(process.signal(signal)?)
    }

    /// Asks both to stop, and waits.
    ///
    /// # Errors
    /// If one does not stop.
    pub fn stop(&self) -> anyhow::Result<()> {
        for who in [Who::Agent, Who::Mounter] {
            if let Some(process) = self.process(who).take() {
                process.stop(Duration::from_secs(30))?;
            }
        }
        Ok(())
    }

    /// Its process id.
    pub fn pid(&self, who: Who) -> Option<u32> {
        self.process(who).as_ref().map(Process::pid)
    }

    /// Where the records are.
    pub fn state(&self) -> PathBuf {
        self.kubelet.root().join("plugins").join(DRIVER).join("state")
    }

    /// A token for this pod, as the kubelet would send it.
    pub fn tokens(&self, volume: &PodVolume) -> String {
        self.issuer.tokens_json(&volume.claims(NODE, AUDIENCE))
    }

    /// Waits until the agent says that it is ready.
    ///
    /// # Errors
    /// With its last words, after `limit`.
    pub async fn ready(&self, limit: Duration) -> anyhow::Result<()> {
        let start = Instant::now();
        loop {
            let last = self.get("/readyz").await.unwrap_or_else(|e| e.to_string());
            if last.starts_with("HTTP/1.1 200") {
                return Ok(());
            }
            if start.elapsed() > limit {
                bail!("not ready within {limit:?}: {last}");
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    async fn get(&self, path: &str) -> std::io::Result<String> {
        let mut stream = tokio::net::TcpStream::connect(&self.http).await?;
        let request = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await?;
        Ok(answer)
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        // What is mounted below cannot be removed. Those that are killed here were left by an error.
        for who in [Who::Agent, Who::Mounter] {
            drop(self.process(who).take());
        }
        for path in [self.state(), self.kubelet.root().to_owned()] {
            let _ = rustix::mount::unmount(&path, rustix::mount::UnmountFlags::DETACH);
        }
    }
}
