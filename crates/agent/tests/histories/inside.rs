//! The agent as a library in this process, over the simulated mounter. Killed like a process: all of its
//! tasks end where they stand and its descriptors are closed; nothing gets a chance to tidy up.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use seamount_agent::config::Args;
use seamount_agent::run::live_until;
use seamount_testkit::issuer::{Algorithm, TokenIssuer};
use seamount_testkit::kubelet::Kubelet;
use tokio::sync::oneshot;

use super::history::Mischief;
use super::played::{Disk, Played};
use super::world::{AUDIENCE, Bench, ISSUER};

const DRIVER: &str = "csi.spiffe.io";
/// How long the agent waits for the mounter.
const PATIENCE: Duration = Duration::from_millis(150);

struct Agent {
    kill: oneshot::Sender<()>,
    thread: std::thread::JoinHandle<()>,
}

impl Agent {
    fn start(config: PathBuf) -> Self {
        let (kill, killed) = oneshot::channel();
        let thread = std::thread::spawn(move || {
            let runtime =
                tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
            runtime.block_on(async {
                let args =
                    Args { config: Some(config), health_socket: Some(String::new()), ..Args::default() };
                tokio::select! {
                    _ = killed => {}
                    () = live_until(args, None, PATIENCE, std::future::pending()) => {}
                }
            });
        });
        Self { kill, thread }
    }

    fn kill(self) {
        let _ = self.kill.send(());
        self.thread.join().unwrap();
    }
}

pub struct Inside {
    kubelet: Arc<Kubelet>,
    issuer: TokenIssuer,
    disk: Arc<Disk>,
    agent: Option<Agent>,
    mounter: Option<Played>,
    dir: tempfile::TempDir,
}

impl Inside {
    /// Needs a tokio runtime.
    pub fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        let me = rustix::process::getuid().as_raw();
        std::fs::create_dir(path("root")).unwrap();
        seamount_testkit::authority::write_root(&path("root"), me).unwrap();
        let kubelet = Kubelet::new(&path("k"), DRIVER).unwrap();
        std::fs::create_dir(path("k/links")).unwrap();
        let issuer = TokenIssuer::with_algorithm(ISSUER, Algorithm::Es256);
        std::fs::write(path("jwks.json"), issuer.jwks_json()).unwrap();
        let yaml = format!(
            "trustDomain: example.org\n\
             kubeletRoot: {}\n\
             nodeName: node-1\n\
             mounterSocket: {}\n\
             kubeletUid: {me}\n\
             identity: {{idTemplate: \"spiffe://{{trustDomain}}/ns/{{namespace}}/sa/{{serviceAccount}}/pod/{{podName}}/{{podUid}}\"}}\n\
             authority: {{embedded: {{directory: {}}}}}\n\
             token: {{audience: {AUDIENCE}, issuers: {ISSUER}, keys: {{file: {}}}}}\n\
             http: {{address: \"\"}}\n",
            kubelet.root().display(),
            path("m.sock").display(),
            path("root").display(),
            path("jwks.json").display(),
        );
        std::fs::write(path("agent.yaml"), yaml).unwrap();
        let disk = Disk::new(kubelet.root(), DRIVER);
        let mut new = Self { kubelet: Arc::new(kubelet), issuer, disk, agent: None, mounter: None, dir };
        new.mounter(true);
        new.agent(true);
        new
    }
}

impl Bench for Inside {
    fn kubelet(&self) -> Arc<Kubelet> {
        Arc::clone(&self.kubelet)
    }

    fn issuer(&self) -> &TokenIssuer {
        &self.issuer
    }

    fn patience(&self) -> Duration {
        Duration::from_millis(30)
    }

    fn agent(&mut self, up: bool) {
        if let Some(agent) = self.agent.take() {
            agent.kill();
        }
        if up {
            self.agent = Some(Agent::start(self.dir.path().join("agent.yaml")));
        }
    }

    fn mounter(&mut self, up: bool) {
        self.mounter = None;
        self.disk.frozen.send_replace(false);
        if up {
            self.mounter = Some(Played::start(&self.disk, &self.dir.path().join("m.sock")));
        }
    }

    fn freeze(&mut self, on: bool) {
        self.disk.frozen.send_replace(on);
    }

    fn mischief(&mut self, mischief: Mischief) {
        self.disk.plan.add(mischief);
    }

    fn release(&mut self) {
        self.disk.plan.released.notify_one();
    }

    fn behave(&mut self) {
        self.disk.behave();
    }

    fn leftovers(&mut self) -> Vec<String> {
        let entries = |path: PathBuf| {
            std::fs::read_dir(path).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap())
        };
        let records = entries(self.kubelet.root().join("plugins/seamount.dev/state"));
        let mut left: Vec<_> = records.filter(|name| name != "node").collect();
        left.extend(entries(self.kubelet.root().join("pods")));
        left.extend(self.mounter.iter().flat_map(Played::keeps));
        left
    }
}

impl Drop for Inside {
    fn drop(&mut self) {
        self.agent(false);
    }
}
