//! A node to measure: the real mounter and agent on a kubelet's root of their own, a tmpfs or a disk.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use rustix::thread::{CpuSet, Pid, sched_getaffinity, sched_setaffinity};
use seamount_proto::csi::node_client::NodeClient;
use seamount_proto::csi::{NodePublishVolumeRequest, NodeUnpublishVolumeRequest};
use seamount_testkit::disk::FileSystem;
use seamount_testkit::issuer::TokenIssuer;
use seamount_testkit::kubelet::{Event, Kubelet, PodVolume};
use seamount_testkit::processes::{Process, Spawn};
use seamount_testkit::uuid_of;
use tonic::transport::Channel;

use crate::call::{Csi, Method, framed};
use crate::report::Samples;
use crate::usage;

const DRIVER: &str = "csi.spiffe.io";
const AUDIENCE: &str = "seamount.dev";
const ISSUER: &str = "https://kubernetes.default.svc";
const UID: u32 = 64203;
/// Longer than anything here takes on a busy machine.
const LONG: Duration = Duration::from_secs(60);

/// How the node's agent is configured.
#[derive(Debug, Clone, Copy, Default)]
pub struct Config {
    /// `svidTtl` and `caTtl` with a root in memory; else an hour, and a root from a directory as on a
    /// cluster.
    pub lifetimes: Option<(&'static str, &'static str)>,
    /// What the kubelet's root is on.
    pub on: FileSystem,
}

/// A volume with everything that is sent for it, made before the clock runs.
#[derive(Debug, Clone)]
pub struct Volume {
    /// NodePublishVolume.
    pub publish: NodePublishVolumeRequest,
    /// NodeUnpublishVolume.
    pub unpublish: NodeUnpublishVolumeRequest,
    /// Its Workload API socket.
    pub socket: PathBuf,
}

/// The node. Its processes end with it; its mounts with the mount namespace.
pub struct Node {
    kubelet: Kubelet,
    issuer: TokenIssuer,
    http: String,
    programs: PathBuf,
    mounter: Option<Process>,
    agent: Option<Process>,
    // Dropped last.
    dir: tempfile::TempDir,
}

impl Node {
    /// A node with copies of the programs in `programs`, which are not started.
    pub fn new(programs: &Path, config: Config) -> anyhow::Result<Self> {
        // A short name: a socket's path has at most 107 bytes (unix(7)), and a volume's is long.
        let dir = tempfile::Builder::new().prefix("b").rand_bytes(4).tempdir_in("/tmp")?;
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755))?;
        for name in ["k", "bin", "run", "etc", "logs", "root", "health"] {
            fs::create_dir(dir.path().join(name))?;
        }
        fs::set_permissions(dir.path().join("health"), fs::Permissions::from_mode(0o777))?;
        for name in ["seamount-mounter", "seamount-agent"] {
            let program = programs.join(name);
            fs::copy(&program, dir.path().join("bin").join(name))
                .with_context(|| format!("{} is missing: run `make bench`", program.display()))?;
        }
        let root = dir.path().join("k");
        config.on.mount(&root).context("cannot mount the kubelet's root: measuring takes root")?;
        let issuer = TokenIssuer::new(ISSUER);
        fs::write(dir.path().join("etc/jwks.json"), issuer.jwks_json())?;
        let http = std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?.to_string();
        let kubelet = Kubelet::new(&root, DRIVER)?;
        let programs = dir.path().join("bin");
        let node = Self { kubelet, issuer, http, programs, mounter: None, agent: None, dir };
        node.configure(config)?;
        Ok(node)
    }

    /// A node whose driver is registered.
    pub async fn started(programs: &Path, config: Config) -> anyhow::Result<Self> {
        let mut node = Self::new(programs, config)?;
        node.start_mounter()?;
        node.start_agent()?;
        node.register().await?;
        node.ready().await?;
        Ok(node)
    }

    fn configure(&self, config: Config) -> anyhow::Result<()> {
        let path = |name: &str| self.dir.path().join(name).display().to_string();
        let embedded = match config.lifetimes {
            Some((svid, ca)) => format!("svidTtl: {svid}, caTtl: {ca}"),
            None => {
                seamount_testkit::authority::write_root(&self.dir.path().join("root"), UID)?;
                format!("directory: {}", path("root"))
            }
        };
        let yaml = format!(
            "trustDomain: example.org\nkubeletRoot: {}\nnodeName: node-1\nmounterSocket: {}\n\
             authority: {{embedded: {{{embedded}}}}}\n\
             token: {{audience: {AUDIENCE}, issuers: {ISSUER}, keys: {{file: {}}}}}\n\
             http: {{address: \"{}\"}}\n\
             # What a pod may have at most is not what is measured here.\n\
             workloadApi: {{burstPerPod: 1Gi, ratePerPod: 1Gi}}\n",
            path("k"),
            path("run/mounter.sock"),
            path("etc/jwks.json"),
            self.http,
        );
        Ok(fs::write(path("etc/agent.yaml"), yaml)?)
    }

    /// Starts the mounter.
    pub fn start_mounter(&mut self) -> anyhow::Result<()> {
        let (root, socket) = (self.kubelet.root().to_owned(), self.dir.path().join("run/mounter.sock"));
        let spawn = Spawn::new("mounter", &self.programs.join("seamount-mounter"), &self.logs())
            .args(["--kubelet-root".as_ref(), root.as_os_str(), "--driver".as_ref(), DRIVER.as_ref()])
            .args(["--socket".as_ref(), socket.as_os_str()]);
        self.mounter = Some(spawn.start()?);
        Ok(())
    }

    /// Starts the agent.
    pub fn start_agent(&mut self) -> anyhow::Result<()> {
        let config = self.dir.path().join("etc/agent.yaml");
        let spawn = Spawn::new("agent", &self.programs.join("seamount-agent"), &self.logs())
            .args(["--config".as_ref(), config.as_os_str()])
            .args(["--health-socket".as_ref(), self.health().as_os_str()])
            .ids(UID, UID);
        self.agent = Some(spawn.start()?);
        Ok(())
    }

    /// Kills the agent, and the mounter too if asked.
    pub fn kill(&mut self, both: bool) -> anyhow::Result<()> {
        let mounter = if both { self.mounter.take() } else { None };
        for process in [self.agent.take(), mounter].into_iter().flatten() {
            process.crash()?;
        }
        Ok(())
    }

    fn health(&self) -> PathBuf {
        self.dir.path().join("health/agent.sock")
    }

    fn logs(&self) -> PathBuf {
        self.dir.path().join("logs")
    }

    /// The mounter's pid.
    pub fn mounter(&self) -> anyhow::Result<u32> {
        Ok(self.mounter.as_ref().context("the mounter does not run")?.pid())
    }

    /// The agent's pid.
    pub fn agent(&self) -> anyhow::Result<u32> {
        Ok(self.agent.as_ref().context("the agent does not run")?.pid())
    }

    /// What the agent has logged.
    pub fn agent_log(&self) -> String {
        self.agent.as_ref().map(Process::log).unwrap_or_default()
    }

    /// Registers the driver as soon as it is there, as the kubelet's watcher does.
    pub async fn register(&self) -> anyhow::Result<()> {
        self.kubelet.forget_registrations();
        let begun = Instant::now();
        loop {
            let events = self.kubelet.poll_registrations().await?;
            if events.iter().any(|event| matches!(event, Event::Registered(_))) {
                return Ok(());
            }
            ensure!(begun.elapsed() < LONG, "not registered: {events:?}; {}", self.agent_log());
            tokio::time::sleep(Duration::from_micros(500)).await;
        }
    }

    /// Waits until the agent says that it is ready.
    async fn ready(&self) -> anyhow::Result<()> {
        let health = self.health().display().to_string();
        let ready = seamount_testkit::node::ready(&health, LONG).await;
        ready.with_context(|| self.agent_log())
    }

    /// Makes the kubelet's directories, tokens and requests of `count` pods with a volume each.
    pub fn volumes(&self, prefix: &str, count: usize) -> anyhow::Result<Vec<Volume>> {
        (0..count).map(|i| self.volume(&format!("{prefix}-{i}"))).collect()
    }

    fn volume(&self, pod: &str) -> anyhow::Result<Volume> {
        let volume = PodVolume::new("shop", "frontend", pod, &uuid_of(pod), "id");
        self.kubelet.prepare(&volume)?;
        let tokens = self.issuer.tokens_json(&volume.claims("node-1", AUDIENCE));
        let target = self.kubelet.target_path(&volume);
        Ok(Volume {
            publish: self.kubelet.publish_request(&volume, Some(&tokens)),
            unpublish: NodeUnpublishVolumeRequest {
                volume_id: volume.volume_id.clone(),
                target_path: target.display().to_string(),
            },
            socket: target.join("spire-agent.sock"),
        })
    }

    /// Lets both processes, and this one, run on these processors alone; where they could run before.
    pub fn confine(&self, to: &CpuSet) -> anyhow::Result<CpuSet> {
        let before = sched_getaffinity(None)?;
        for pid in [self.mounter()?, self.agent()?, std::process::id()] {
            for task in fs::read_dir(format!("/proc/{pid}/task"))? {
                let tid = task?.file_name().to_string_lossy().parse().ok().and_then(Pid::from_raw);
                match sched_setaffinity(tid.context("a thread without a number")?.into(), to) {
                    // One that has ended meanwhile needs no place.
                    Ok(()) | Err(rustix::io::Errno::SRCH) => {}
                    Err(e) => return Err(e).context("a thread could not be confined"),
                }
            }
        }
        Ok(before)
    }

    /// A connection to the CSI socket, made and used as by a program with tonic.
    pub async fn client(&self) -> anyhow::Result<NodeClient<Channel>> {
        Ok(self.kubelet.node_client().await?)
    }

    /// So many connections, to go round.
    pub async fn clients(&self, count: usize) -> anyhow::Result<Vec<Csi>> {
        let mut all = Vec::new();
        for _ in 0..count {
            all.push(Csi::connect(&self.kubelet.endpoint()).await?);
        }
        Ok(all)
    }

    /// Publishes volumes, and waits until they have their SVIDs.
    pub async fn hold(&self, volumes: &[Volume]) -> anyhow::Result<()> {
        publish_all(&self.clients(4).await?, volumes).await?;
        self.settle().await
    }

    /// Waits until all that was written is on the disk: what never got there costs nothing to remove.
    pub fn sync(&self) -> anyhow::Result<()> {
        Ok(rustix::fs::syncfs(fs::File::open(self.kubelet.root())?)?)
    }

    /// Waits until neither process has anything to do.
    pub async fn settle(&self) -> anyhow::Result<()> {
        let (mounter, agent) = (self.mounter()?, self.agent()?);
        let used = || Ok::<_, anyhow::Error>(usage::processor(mounter)? + usage::processor(agent)?);
        let begun = Instant::now();
        let mut quiet = 0;
        while quiet < 3 {
            let before = used()?;
            tokio::time::sleep(Duration::from_millis(100)).await;
            quiet = if used()?.saturating_sub(before) < Duration::from_millis(3) { quiet + 1 } else { 0 };
            ensure!(begun.elapsed() < LONG, "the processes do not come to rest");
        }
        Ok(())
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        drop((self.agent.take(), self.mounter.take()));
        // With what the mounter has mounted below; else the directory could not be removed.
        let _ = rustix::mount::unmount(self.kubelet.root(), rustix::mount::UnmountFlags::DETACH);
    }
}

/// Publishes all, as many at once as there are connections; how long each took.
pub async fn publish_all(clients: &[Csi], volumes: &[Volume]) -> anyhow::Result<Samples> {
    all(clients, volumes, async |client, volume| {
        let message = framed(&volume.publish)?;
        let begun = Instant::now();
        client.call(Method::Publish, message).await?;
        Ok(begun.elapsed())
    })
    .await
}

/// Unpublishes all, likewise.
pub async fn unpublish_all(clients: &[Csi], volumes: &[Volume]) -> anyhow::Result<Samples> {
    all(clients, volumes, async |client, volume| {
        let message = framed(&volume.unpublish)?;
        let begun = Instant::now();
        client.call(Method::Unpublish, message).await?;
        Ok(begun.elapsed())
    })
    .await
}

/// Each connection takes the next volume when it has done one.
async fn all(
    clients: &[Csi],
    volumes: &[Volume],
    work: impl AsyncFn(&Csi, &Volume) -> anyhow::Result<Duration>,
) -> anyhow::Result<Samples> {
    let next = Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let workers = clients.iter().map(async |client| {
        let mut samples = Samples::default();
        while let Some(volume) = volumes.get(next.fetch_add(1, std::sync::atomic::Ordering::Relaxed)) {
            samples.add(work(client, volume).await?);
        }
        anyhow::Ok(samples)
    });
    let parts: Vec<Samples> =
        stream::iter(workers).buffer_unordered(clients.len().max(1)).try_collect().await?;
    let mut samples = Samples::default();
    parts.into_iter().for_each(|part| samples.extend(part));
    Ok(samples)
}
