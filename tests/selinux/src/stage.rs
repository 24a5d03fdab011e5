//! A node under one policy: the kubelet's directories with the labels that a host's have, the two processes
//! as a runtime starts them, and pods.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, bail};
use seamount_testkit::issuer::{Algorithm, TokenIssuer};
use seamount_testkit::kubelet::{Kubelet, PodVolume};
use seamount_testkit::processes::{Process, Spawn};

use crate::boot::DISK;
use crate::context;

/// The agent's uid, as in the manifests.
pub const AGENT: u32 = 64203;
/// The level that the manifests ask for, for both containers.
pub const LEVEL: &str = "s0";
pub const DRIVER: &str = "csi.spiffe.io";
const AUDIENCE: &str = "seamount.dev";
const ISSUER: &str = "https://kubernetes.default.svc";
const NODE: &str = "node-1";
const RUNTIME: &str = "system_u:system_r:container_runtime_t:s0";
const DEADLINE: Duration = Duration::from_secs(30);

/// The node.
pub struct Stage {
    /// The simulated kubelet.
    pub kubelet: Kubelet,
    /// The mounter, while it runs.
    pub mounter: Option<Process>,
    /// The agent, while it runs.
    pub agent: Option<Process>,
    issuer: TokenIssuer,
    base: PathBuf,
    starts: u32,
}

impl Stage {
    /// Makes and labels everything; starts nothing.
    pub fn new(policy: &str) -> anyhow::Result<Self> {
        let base = Path::new(DISK).join(policy);
        let dir = |name: &str, label: &str, mode: u32| -> anyhow::Result<PathBuf> {
            let path = base.join(name);
            fs::create_dir_all(&path)?;
            fs::set_permissions(&path, fs::Permissions::from_mode(mode))?;
            context::label(&path, label)?;
            Ok(path)
        };
        fs::create_dir_all(&base)?;
        for path in [Path::new(DISK), &base] {
            context::label(path, &context::file("root_t", "s0"))?;
        }
        // container.fc: /var/lib/kubelet is container_var_lib_t. The kubelet's own directories inherit it.
        let root = dir("kubelet", &context::file("container_var_lib_t", "s0"), 0o750)?;
        // An image's files, and the pod's own volumes as the runtime labels them (they are not read-only).
        let programs = dir("programs", &context::file("container_ro_file_t", "s0"), 0o755)?;
        dir("shared", &context::file("container_file_t", LEVEL), 0o777)?;
        let etc = dir("etc", &context::file("container_file_t", LEVEL), 0o755)?;
        dir("logs", &context::file("container_file_t", "s0"), 0o755)?;
        for name in ["seamount-mounter", "seamount-agent", "init"] {
            let to = programs.join(name);
            fs::copy(Path::new("/").join(name), &to).with_context(|| format!("copy {name}"))?;
            context::label(&to, &context::file("container_ro_file_t", "s0"))?;
        }
        fs::create_dir_all(crate::runtime::IN_POD)?;

        let issuer = TokenIssuer::with_algorithm(ISSUER, Algorithm::Es256);
        fs::write(etc.join("jwks.json"), issuer.jwks_json())?;
        seamount_testkit::authority::write_root(&etc, AGENT)?;
        let yaml = format!(
            "trustDomain: example.org\n\
             authority: {{embedded: {{directory: {}}}}}\n\
             token: {{audience: {AUDIENCE}, issuers: {ISSUER}, keys: {{file: {}}}}}\n",
            etc.display(),
            etc.join("jwks.json").display(),
        );
        fs::write(etc.join("agent.yaml"), yaml)?;
        for name in ["jwks.json", "tls.crt", "tls.key", "agent.yaml"] {
            context::label(&etc.join(name), &context::file("container_file_t", LEVEL))?;
        }
        let kubelet = Kubelet::new(&root, DRIVER)?;
        Ok(Self { kubelet, mounter: None, agent: None, issuer, base, starts: 0 })
    }

    fn program(&self, name: &str) -> String {
        self.base.join("programs").join(name).display().to_string()
    }

    /// The mounter's socket for the agent.
    pub fn socket(&self) -> String {
        self.base.join("shared/mounter.sock").display().to_string()
    }

    /// A command line that the runtime executes; `pod`: in a pod that has this volume.
    fn line(&self, words: &[&str]) -> Vec<String> {
        let init = self.program("init");
        let all = ["exec", RUNTIME, init.as_str()].into_iter().chain(words.iter().copied());
        all.map(str::to_owned).collect()
    }

    /// Starts the mounter as `spc_t` of this level, and waits until it is ready.
    pub fn start_mounter(&mut self, level: &str, more: &[&str]) -> anyhow::Result<()> {
        self.starts += 1;
        let (root, socket) = (self.kubelet.root().display().to_string(), self.socket());
        let (context, program) = (context::process("spc_t", level), self.program("seamount-mounter"));
        let mut words = vec!["exec", context.as_str(), program.as_str()];
        words.extend(["--kubelet-root", root.as_str(), "--driver", DRIVER, "--socket", socket.as_str()]);
        words.extend(more);
        let mut process = self.spawn("mounter", &words)?;
        process.wait_for_log(DEADLINE, "msg=\"ready\"")?;
        self.mounter = Some(process);
        Ok(())
    }

    /// Starts the agent in this context, with its own uid and no capability.
    pub fn start_agent(&mut self, context: &str) -> anyhow::Result<()> {
        self.starts += 1;
        let (root, socket) = (self.kubelet.root().display().to_string(), self.socket());
        let (program, user) = (self.program("seamount-agent"), AGENT.to_string());
        let config = self.base.join("etc/agent.yaml").display().to_string();
        let mut words = vec!["exec", context, "--user", user.as_str(), program.as_str()];
        words.extend(["--config", config.as_str(), "--node-name", NODE]);
        words.extend(["--http-address", "", "--health-socket", ""]);
        words.extend(["--kubelet-root", root.as_str(), "--mounter-socket", socket.as_str()]);
        self.agent = Some(self.spawn("agent", &words)?);
        Ok(())
    }

    fn spawn(&self, name: &str, words: &[&str]) -> anyhow::Result<Process> {
        let name = format!("{name}-{}", self.starts);
        let spawn = Spawn::new(&name, Path::new(&self.program("init")), &self.base.join("logs"));
        Ok(spawn.args(self.line(words)).start()?)
    }

    /// Kills (SIGKILL) the agent, the mounter, or both.
    pub fn kill(&mut self, agent: bool, mounter: bool) -> anyhow::Result<()> {
        for process in [agent.then(|| self.agent.take()), mounter.then(|| self.mounter.take())] {
            if let Some(process) = process.flatten() {
                process.crash()?;
            }
        }
        Ok(())
    }

    /// A pod with a volume that is read-only, as the agent demands.
    pub fn volume(&self, name: &str) -> PodVolume {
        let uid = seamount_testkit::uuid_of(&format!("{}/{name}", self.base.display()));
        PodVolume::new("shop", name, name, &uid, "identity")
    }

    /// What the kubelet does for a new pod.
    pub async fn publish(&self, volume: &PodVolume) -> anyhow::Result<()> {
        let tokens = self.issuer.tokens_json(&volume.claims(NODE, AUDIENCE));
        self.kubelet.set_up(volume, Some(&tokens)).await.map_err(|s| anyhow::anyhow!("publish: {s}"))
    }

    /// Waits until the driver is registered.
    pub async fn register(&self, limit: Duration) -> anyhow::Result<()> {
        self.kubelet.register(limit).await.map(drop).map_err(Into::into)
    }

    /// Runs a part of this program in a context; what it prints.
    pub fn run(&self, context: &str, user: Option<u32>, words: &[&str]) -> anyhow::Result<String> {
        let (init, id) = (self.program("init"), user.unwrap_or_default().to_string());
        let mut all = vec!["exec", context];
        if user.is_some() {
            all.extend(["--user", id.as_str()]);
        }
        all.push(&init);
        all.extend(words);
        self.output(&all)
    }

    /// Runs a part of this program in a container that has the volume.
    pub fn in_pod(&self, volume: &PodVolume, context: &str, words: &[&str]) -> anyhow::Result<String> {
        let (init, target) = (self.program("init"), self.kubelet.target_path(volume).display().to_string());
        let mut all = vec!["pod", target.as_str(), context, init.as_str()];
        all.extend(words);
        self.output(&all)
    }

    /// Labels a volume as a runtime does that is asked to.
    pub fn relabel(&self, volume: &PodVolume, level: &str) -> anyhow::Result<()> {
        let target = self.kubelet.target_path(volume).display().to_string();
        let said = self.output(&["relabel", &context::file("container_file_t", level), &target])?;
        if said.is_empty() { Ok(()) } else { bail!("relabel: {said}") }
    }

    fn output(&self, words: &[&str]) -> anyhow::Result<String> {
        let output = Command::new(self.program("init")).args(self.line(words)).output()?;
        let said = [output.stdout, output.stderr].concat();
        Ok(String::from_utf8_lossy(&said).trim().to_owned())
    }
}
