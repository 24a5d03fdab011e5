//! A node with everything on it.

use std::cell::Cell;
use std::ops::Deref;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use seamount_testkit::issuer::TokenIssuer;
use seamount_testkit::kubelet::PodVolume;
pub use seamount_testkit::node::{AUDIENCE, DRIVER, ISSUER, RUN, UID};
use seamount_testkit::processes::{Process, Spawn};
use seamount_testkit::{is_root, namespace, skip, uuid_of};
use spiffe::{WorkloadApiClient, X509Svid};

/// For everything that is awaited: generous, the machine may be busy.
pub const LONG: Duration = Duration::from_secs(60);

pub struct Node {
    base: seamount_testkit::node::Node,
    pub mounter: Option<Process>,
    pub agent: Option<Process>,
    views: Cell<usize>,
}

impl Deref for Node {
    type Target = seamount_testkit::node::Node;

    fn deref(&self) -> &Self::Target {
        &self.base
    }
}

/// Runs a test on a node of its own, as root.
pub fn on_node(name: &str, test: impl AsyncFnOnce(&mut Node) + Send) {
    if !is_root() {
        return skip(name, "needs root for a mount namespace");
    }
    namespace::private_mounts(|| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let base = seamount_testkit::node::Node::new(TokenIssuer::new(ISSUER)).unwrap();
            let mut node = Node { base, mounter: None, agent: None, views: Cell::new(0) };
            test(&mut node).await;
        });
    });
}

impl Node {
    /// A root for `example.org` where the Secret would be mounted.
    pub fn write_root(&self) {
        self.base.write_root().unwrap();
    }

    pub fn yaml_with(&self, svid_ttl: &str, root: &Path) -> String {
        self.base.yaml_with(&format!("directory: {}, svidTtl: {svid_ttl}", root.display()))
    }

    pub fn configure(&self, yaml: &str) {
        self.base.configure(yaml).unwrap();
    }

    pub fn start_mounter(&mut self) {
        self.start_mounter_with(&[]);
    }

    pub fn start_mounter_with(&mut self, more: &[&str]) {
        self.set_log_aside("mounter").unwrap();
        self.mounter = Some(self.base.mounter(RUN).args(more).start().unwrap());
    }

    pub fn start_agent(&mut self) {
        self.start_agent_with(|spawn| spawn);
    }

    /// With more arguments or variables.
    pub fn start_agent_with(&mut self, more: impl FnOnce(Spawn) -> Spawn) {
        self.set_log_aside("agent").unwrap();
        let spawn = self.base.agent(RUN, &self.http).args(["--log-level", "debug"]);
        self.agent = Some(more(spawn).start().unwrap());
    }

    /// How to start the agent of a second pair.
    pub fn second_agent(&self, run: &str, http: &str) -> Spawn {
        self.base.agent(run, http).args(["--log-level", "debug"])
    }

    /// With this hard limit of descriptors. (Only the process itself may lower its limit, hence the shell.)
    pub fn start_agent_with_descriptors(&mut self, limit: u32) {
        let script = format!("ulimit -n {limit}; exec \"$@\"");
        let program = self.program("seamount-agent").display().to_string();
        self.set_log_aside("agent").unwrap();
        let spawn = Spawn::new("agent", Path::new("/bin/sh"), self.logs())
            .args(["-c", &script, "sh", &program])
            .args(self.agent_args(RUN, &self.http))
            .ids(UID, UID)
            .dying_with_us();
        self.agent = Some(spawn.start().unwrap());
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

    /// Prepares and publishes, as the kubelet does for a new pod.
    pub async fn publish(&self, volume: &PodVolume) {
        self.kubelet.prepare(volume).unwrap();
        self.kubelet.publish(volume, Some(&self.tokens(volume))).await.unwrap();
    }

    /// The volume as its pod sees it: bind-mounted at a short path, read-only.
    pub fn view(&self, volume: &PodVolume) -> PathBuf {
        self.views.set(self.views.get() + 1);
        let path = self.path(&format!("v{}", self.views.get()));
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
        self.base.get(path).await.ok()
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if std::thread::panicking() {
            for process in [&self.mounter, &self.agent].into_iter().flatten() {
                eprintln!("==== {}\n{}", process.log_path().display(), process.log());
            }
        }
        (self.mounter, self.agent) = (None, None);
        for n in 1..=self.views.get() {
            let _ = rustix::mount::unmount(self.path(&format!("v{n}")), rustix::mount::UnmountFlags::DETACH);
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
