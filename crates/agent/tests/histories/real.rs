//! The real agent (its own uid, no capability) and the real mounter in a mount namespace of their own.

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use seamount_testkit::issuer::{Algorithm, TokenIssuer};
use seamount_testkit::kubelet::Kubelet;
use seamount_testkit::processes::{Process, agent, mounter};
use tokio_util::sync::CancellationToken;

use super::history::Mischief;
use super::mixer::Plan;
use super::proxy;
use super::world::{AUDIENCE, Bench, ISSUER};

const DRIVER: &str = "csi.spiffe.io";
const UID: u32 = 64203;
const LONG: Duration = Duration::from_secs(60);

pub struct Real {
    kubelet: Arc<Kubelet>,
    issuer: TokenIssuer,
    plan: Arc<Plan>,
    agent: Option<Process>,
    mounter: Option<Process>,
    /// Open sockets of agent and mounter without any volume.
    idle: Option<[usize; 2]>,
    stop: CancellationToken,
    dir: tempfile::TempDir,
}

impl Real {
    /// In a mount namespace of its own.
    pub fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
        let path = |name: &str| dir.path().join(name);
        for name in ["k", "run", "logs", "root"] {
            std::fs::create_dir(path(name)).unwrap();
        }
        rustix::mount::mount(
            "tmpfs",
            path("k"),
            "tmpfs",
            rustix::mount::MountFlags::empty(),
            Some(c"mode=750"),
        )
        .unwrap();
        seamount_testkit::authority::write_root(&path("root"), UID).unwrap();
        let kubelet = Kubelet::new(&path("k"), DRIVER).unwrap();
        std::fs::create_dir(path("k/links")).unwrap();
        let issuer = TokenIssuer::with_algorithm(ISSUER, Algorithm::Es256);
        std::fs::write(path("jwks.json"), issuer.jwks_json()).unwrap();
        let yaml = format!(
            "trustDomain: example.org\n\
             kubeletRoot: {}\n\
             nodeName: node-1\n\
             mounterSocket: {}\n\
             identity: {{idTemplate: \"spiffe://{{trustDomain}}/ns/{{namespace}}/sa/{{serviceAccount}}/pod/{{podName}}/{{podUid}}\"}}\n\
             authority: {{embedded: {{directory: {}}}}}\n\
             token: {{audience: {AUDIENCE}, issuers: {ISSUER}, keys: {{file: {}}}}}\n\
             http: {{address: \"\"}}\n",
            kubelet.root().display(),
            path("run/proxy.sock").display(),
            path("root").display(),
            path("jwks.json").display(),
        );
        std::fs::write(path("agent.yaml"), yaml).unwrap();
        let (plan, stop) = (Arc::<Plan>::default(), CancellationToken::new());
        let mounters = path("run/mounter.sock");
        proxy::start(path("run/proxy.sock"), mounters, UID, Arc::clone(&plan), stop.clone());
        let kubelet = Arc::new(kubelet);
        let mut new = Self { kubelet, issuer, plan, agent: None, mounter: None, idle: None, stop, dir };
        new.mounter(true);
        new.agent(true);
        new
    }

    fn sockets(&self) -> [usize; 2] {
        [&self.agent, &self.mounter].map(|process| {
            let pid = process.as_ref().unwrap().pid();
            let fds = std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap();
            let targets = fds.filter_map(|fd| std::fs::read_link(fd.unwrap().path()).ok());
            targets.filter(|to| to.to_string_lossy().starts_with("socket:")).count()
        })
    }
}

fn entries(path: &Path) -> Vec<String> {
    std::fs::read_dir(path).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect()
}

impl Bench for Real {
    fn kubelet(&self) -> Arc<Kubelet> {
        Arc::clone(&self.kubelet)
    }

    fn issuer(&self) -> &TokenIssuer {
        &self.issuer
    }

    fn patience(&self) -> Duration {
        Duration::from_millis(60)
    }

    fn idle(&mut self) {
        self.idle = Some(self.sockets());
    }

    fn agent(&mut self, up: bool) {
        if let Some(agent) = self.agent.take() {
            agent.crash().unwrap();
        }
        if up {
            let config = self.dir.path().join("agent.yaml").display().to_string();
            self.agent =
                Some(agent(&self.dir.path().join("logs"), ["--config", &config], Some((UID, UID))).unwrap());
        }
    }

    fn mounter(&mut self, up: bool) {
        if let Some(mounter) = self.mounter.take() {
            mounter.crash().unwrap();
        }
        if up {
            let path = |name: &str| self.dir.path().join(name).display().to_string();
            let (root, socket) = (path("k"), path("run/mounter.sock"));
            let args = ["--kubelet-root", &root, "--driver", DRIVER, "--socket", &socket];
            self.mounter = Some(mounter(&self.dir.path().join("logs"), args).unwrap());
        }
    }

    fn freeze(&mut self, on: bool) {
        if let Some(mounter) = &mut self.mounter {
            mounter.signal(if on { Signal::STOP } else { Signal::CONT }).unwrap();
        }
    }

    fn mischief(&mut self, mischief: Mischief) {
        self.plan.add(mischief);
    }

    fn release(&mut self) {
        self.plan.released.notify_one();
    }

    fn behave(&mut self) {
        self.plan.clear();
        self.freeze(false);
    }

    fn leftovers(&mut self) -> Vec<String> {
        let root: PathBuf = self.kubelet.root().to_owned();
        let mut left = entries(&root.join("plugins/seamount.dev/state"));
        left.retain(|name| name != "node");
        left.extend(entries(&root.join("pods")));
        let mounts = std::fs::read_to_string("/proc/thread-self/mountinfo").unwrap();
        let pods = root.join("pods").display().to_string();
        left.extend(mounts.lines().filter(|line| line.contains(&pods)).map(str::to_owned));
        // What the last calls and clients had open is closed a moment after they got their answer.
        let (start, idle) = (Instant::now(), self.idle.unwrap());
        while self.sockets().iter().zip(idle).any(|(now, before)| *now > before) {
            if start.elapsed() > LONG {
                left.push(format!("sockets of agent and mounter: {:?}, idle {idle:?}", self.sockets()));
                break;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        left
    }
}

impl Drop for Real {
    fn drop(&mut self) {
        self.stop.cancel();
        (self.agent, self.mounter) = (None, None);
        let _ = rustix::mount::unmount(self.dir.path().join("k"), rustix::mount::UnmountFlags::DETACH);
    }
}
