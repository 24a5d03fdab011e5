//! A node with everything on it.

use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use seamount_testkit::issuer::{Claims, TokenIssuer};
use seamount_testkit::kubelet::{Kubelet, PodVolume};
use seamount_testkit::processes::{Process, Spawn, agent, mounter};
use seamount_testkit::{is_root, namespace, skip, uuid_of};
use spiffe::{WorkloadApiClient, X509Svid};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

pub const DRIVER: &str = "csi.spiffe.io";
pub const AUDIENCE: &str = "seamount.dev";
pub const ISSUER: &str = "https://kubernetes.default.svc";
pub const UID: u32 = 64203;
/// For everything that is awaited: generous, the machine may be busy.
pub const LONG: Duration = Duration::from_secs(60);

pub struct Node {
    pub kubelet: Kubelet,
    pub issuer: TokenIssuer,
    pub mounter: Option<Process>,
    pub agent: Option<Process>,
    pub http: String,
    dir: tempfile::TempDir,
    views: usize,
}

/// Runs a test on a node of its own, as root.
pub fn on_node(name: &str, test: impl AsyncFnOnce(&mut Node) + Send) {
    if !is_root() {
        return skip(name, "needs root for a mount namespace");
    }
    namespace::private_mounts(|| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let mut node = Node::new();
            test(&mut node).await;
        });
    });
}

impl Node {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        open(dir.path(), 0o755);
        for name in ["kubelet", "run", "etc", "logs", "root"] {
            std::fs::create_dir(dir.path().join(name)).unwrap();
        }
        let root = dir.path().join("kubelet");
        rustix::mount::mount("tmpfs", &root, "tmpfs", rustix::mount::MountFlags::empty(), Some(c"mode=750"))
            .unwrap();
        let issuer = TokenIssuer::new(ISSUER);
        std::fs::write(dir.path().join("etc/jwks.json"), issuer.jwks_json()).unwrap();
        let http = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
        let kubelet = Kubelet::new(&root, DRIVER).unwrap();
        let node = Self { kubelet, issuer, mounter: None, agent: None, http, dir, views: 0 };
        node.write_root();
        node.configure(&node.yaml());
        node
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// A root for `example.org` where the Secret would be mounted.
    pub fn write_root(&self) {
        seamount_testkit::authority::write_root(&self.path("root"), UID).unwrap();
    }

    /// A good configuration.
    pub fn yaml(&self) -> String {
        self.yaml_with("1h", &self.path("root"))
    }

    pub fn yaml_with(&self, svid_ttl: &str, root: &Path) -> String {
        format!(
            "trustDomain: example.org\n\
             kubeletRoot: {}\n\
             nodeName: node-1\n\
             mounterSocket: {}\n\
             authority: {{embedded: {{directory: {}, svidTtl: {svid_ttl}}}}}\n\
             token: {{audience: {AUDIENCE}, issuer: {ISSUER}, keys: {{file: {}}}}}\n\
             http: {{address: \"{}\"}}\n",
            self.kubelet.root().display(),
            self.path("run/mounter.sock").display(),
            root.display(),
            self.path("etc/jwks.json").display(),
            self.http,
        )
    }

    pub fn configure(&self, yaml: &str) {
        let new = self.path("etc/agent.yaml.new");
        std::fs::write(&new, yaml).unwrap();
        std::fs::rename(new, self.path("etc/agent.yaml")).unwrap();
    }

    pub fn start_mounter(&mut self) {
        self.start_mounter_with(&[]);
    }

    pub fn start_mounter_with(&mut self, more: &[&str]) {
        let root = self.kubelet.root().display().to_string();
        let socket = self.path("run/mounter.sock").display().to_string();
        let mut args = vec!["--kubelet-root", &root, "--driver", DRIVER, "--socket", &socket];
        args.extend(more);
        self.set_log_aside("mounter");
        self.mounter = Some(mounter(&self.path("logs"), args).unwrap());
    }

    pub fn start_agent(&mut self) {
        let config = self.path("etc/agent.yaml").display().to_string();
        let args = ["--config", &config, "--log-level", "debug", "--http-address", &self.http];
        self.set_log_aside("agent");
        self.agent = Some(agent(&self.path("logs"), args, Some((UID, UID))).unwrap());
    }

    /// With this hard limit of descriptors. (Only the process itself may lower its limit, hence the shell.)
    pub fn start_agent_with_descriptors(&mut self, limit: u32) {
        let config = self.path("etc/agent.yaml").display().to_string();
        let script = format!("ulimit -n {limit}; exec \"$@\"");
        let program = seamount_testkit::bin("seamount-agent").display().to_string();
        self.set_log_aside("agent");
        let spawn = Spawn::new("agent", Path::new("/bin/sh"), &self.path("logs"))
            .args(["-c", &script, "sh", &program, "--config", &config])
            .ids(UID, UID);
        self.agent = Some(spawn.start().unwrap());
    }

    /// The next process begins a log of its own: what is awaited in it was not said by the one before.
    fn set_log_aside(&self, name: &str) {
        let log = self.path("logs").join(format!("{name}.log"));
        if log.exists() {
            let count = std::fs::read_dir(self.path("logs")).unwrap().count();
            std::fs::rename(&log, self.path("logs").join(format!("{name}.{count}"))).unwrap();
        }
    }

    /// Mounter, agent, registration.
    pub async fn start(&mut self) {
        self.start_mounter();
        self.start_agent();
        self.register().await;
    }

    pub async fn register(&self) {
        self.kubelet.register(LONG).await.unwrap();
        self.ready().await;
    }

    pub fn volume(&self, namespace: &str, account: &str, pod: &str) -> PodVolume {
        PodVolume::new(namespace, account, pod, &uuid_of(&format!("{namespace}/{pod}")), "id")
    }

    pub fn claims(&self, volume: &PodVolume) -> Claims {
        volume.claims("node-1", AUDIENCE)
    }

    pub fn tokens(&self, volume: &PodVolume) -> String {
        self.issuer.tokens_json(&self.claims(volume))
    }

    /// Prepares and publishes, as the kubelet does for a new pod.
    pub async fn publish(&self, volume: &PodVolume) {
        self.kubelet.prepare(volume).unwrap();
        self.kubelet.publish(volume, Some(&self.tokens(volume))).await.unwrap();
    }

    /// The volume as its pod sees it: bind-mounted at a short path, read-only.
    pub fn view(&mut self, volume: &PodVolume) -> PathBuf {
        self.views += 1;
        let path = self.path(&format!("v{}", self.views));
        std::fs::create_dir(&path).unwrap();
        rustix::mount::mount_bind(self.kubelet.target_path(volume), &path).unwrap();
        rustix::mount::mount_remount(
            &path,
            rustix::mount::MountFlags::BIND | rustix::mount::MountFlags::RDONLY,
            "",
        )
        .unwrap();
        path
    }

    pub fn agent(&mut self) -> &mut Process {
        self.agent.as_mut().unwrap()
    }

    pub fn agent_log(&self) -> String {
        self.agent.as_ref().unwrap().log()
    }

    /// Waits until the agent says that it is ready.
    pub async fn ready(&self) {
        self.until("readiness", async || self.get("/readyz").await.is_some_and(|(code, _)| code == 200))
            .await;
    }

    pub async fn until(&self, what: &str, mut condition: impl AsyncFnMut() -> bool) {
        let start = SystemTime::now();
        while !condition().await {
            if start.elapsed().unwrap_or_default() > LONG {
                panic!("waited in vain for {what}; readyz: {:?}", self.get("/readyz").await);
            }
            tokio::time::sleep(Duration::from_millis(30)).await;
        }
    }

    /// Status and body of a GET.
    pub async fn get(&self, path: &str) -> Option<(u16, String)> {
        let mut stream = tokio::net::TcpStream::connect(&self.http).await.ok()?;
        let request = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.ok()?;
        let code = answer.split(' ').nth(1)?.parse().ok()?;
        Some((code, answer.split_once("\r\n\r\n")?.1.to_owned()))
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if std::thread::panicking() {
            for process in [&self.mounter, &self.agent].into_iter().flatten() {
                eprintln!("==== {}\n{}", process.log_path().display(), process.log());
            }
        }
        // A mount in it would keep the temporary directory, and the root's key in it, on the machine's disk.
        (self.mounter, self.agent) = (None, None);
        let views = (1..=self.views).map(|n| format!("v{n}"));
        for name in views.chain(["kubelet".to_owned()]) {
            let _ = rustix::mount::unmount(self.path(&name), rustix::mount::UnmountFlags::DETACH);
        }
    }
}

pub fn open(path: &Path, mode: u32) {
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
}

pub fn endpoint(view: &Path) -> String {
    format!("unix://{}", view.join("spire-agent.sock").display())
}

/// The pod's SVID over its own socket, by a client that we did not write.
pub async fn fetch(view: &Path) -> X509Svid {
    try_fetch(view).await.unwrap()
}

pub async fn try_fetch(view: &Path) -> Result<X509Svid, String> {
    let work = async {
        let client = WorkloadApiClient::connect_to(endpoint(view)).await.map_err(|e| e.to_string())?;
        client.fetch_x509_svid().await.map_err(|e| format!("{e:?}"))
    };
    tokio::time::timeout(LONG, work).await.unwrap_or_else(|_| Err("no answer".to_owned()))
}

/// The leaf certificate: the same bytes are the same serial.
pub fn leaf(svid: &X509Svid) -> Vec<u8> {
    svid.leaf().as_bytes().to_vec()
}

pub fn inode(path: &Path) -> u64 {
    std::fs::metadata(path).unwrap().ino()
}
