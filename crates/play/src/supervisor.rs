//! PID 1 of a play: a tmpfs over `/run`, the mounter and the agent on it, the simulated kubelet, the pods.

use std::ffi::OsString;
use std::io::BufRead as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use crate::issuer::TokenIssuer;
use crate::kubelet::Kubelet;
use crate::processes::{Process, Spawn};
use anyhow::{Context as _, anyhow};
use rustix::process::Signal;
use tokio::sync::watch;
use zeroize::Zeroizing;

use super::ground::Ground;
use super::manifest::{self, Place, Plan, Source};
use super::output::Output;
use super::pods::{Play, Verdict};
use super::process::Stop;
use super::rootless::Mode;
use super::{AUDIENCE, DRIVER, NODE, Request};

/// The uid and gid of the agent.
const AGENT: u32 = 64203;
/// The issuer of the pods' tokens, as in an installation.
const ISSUER: &str = "https://kubernetes.default.svc";
/// The mounter's socket for the agent.
const SOCKET: &str = "mounter.sock";
/// The exit status of a shell's program that Ctrl-C ended.
const INTERRUPTED: u8 = 130;
/// How long mounter and agent may take to start or to stop.
const PATIENCE: Duration = Duration::from_secs(30);

/// Runs the supervisor.
pub fn run() -> anyhow::Result<ExitCode> {
    super::only_as_first_process()?;
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL)).context("die with play")?;
    let mut input = std::io::BufReader::new(std::io::stdin());
    let mut line = Zeroizing::new(String::new());
    // If play died before the line above, this is the end of the input.
    input.read_line(&mut line).context("read the request")?;
    let request: Request = serde_json::from_str(&line).context("read the request")?;
    drop(line);
    let place = Place { driver: DRIVER, node: NODE, uid: &super::uuid };
    let plan = manifest::load(&request.files, &place).map_err(|e| anyhow!("{} errors", e.len()))?;
    let ground = Ground::prepare(&request)?;
    let (stop, stops) = watch::channel(Stop::No);
    std::thread::spawn(move || {
        for _ in input.lines().map_while(Result::ok) {
            stop.send_modify(|s| *s = if *s == Stop::No { Stop::Graceful } else { Stop::Now });
        }
        // play is gone: so is everything, with this process.
        std::process::exit(1);
    });
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().context("start the runtime")?;
    runtime.block_on(play(&request, plan, ground, stops))
}

/// How mounter and agent are started, also for another time.
struct Starts {
    bin: PathBuf,
    work: PathBuf,
    mounter: Vec<OsString>,
    config: PathBuf,
    ids: Option<(u32, u32)>,
}

impl Starts {
    fn prepare(request: &Request, ground: &Ground, keys: &str) -> anyhow::Result<Self> {
        let work = &ground.work;
        let write = |name: &str, text: &str| -> anyhow::Result<PathBuf> {
            let path = work.join(name);
            std::fs::write(&path, text).with_context(|| format!("write {}", path.display()))?;
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644))?;
            Ok(path)
        };
        let keys = write("keys.json", keys)?;
        let socket = work.join(SOCKET);
        let config = serde_json::json!({
            "drivers": [{"name": DRIVER}],
            "kubeletRoot": ground.kubelet,
            "nodeName": NODE,
            "mounterSocket": socket,
            "kubeletUid": 0,
            "trustDomain": request.trust_domain,
            "identity": {"source": "authority"},
            "authority": {"embedded": {"svidTtl": request.svid_ttl}},
            "token": {"audience": AUDIENCE, "issuers": ISSUER, "keys": {"file": keys}},
            "http": {"address": ""},
            "log": {"format": "text", "level": "info"},
        });
        // Every JSON text is a YAML text.
        let config = write("agent.yaml", &config.to_string())?;
        let ids = (request.mode != Mode::OneId).then_some((AGENT, AGENT));
        let mut mounter: Vec<OsString> = vec!["--kubelet-root".into(), ground.kubelet.clone().into()];
        mounter.extend(["--driver".into(), DRIVER.into(), "--socket".into(), socket.into()]);
        match ids {
            Some((uid, gid)) => {
                mounter.extend(["--agent-uid".into(), uid.to_string().into()]);
                mounter.extend(["--agent-gid".into(), gid.to_string().into()]);
            }
            // One id is all there is.
            None => mounter.extend(["--rootless", "--agent-uid", "0", "--agent-gid", "0"].map(Into::into)),
        }
        Ok(Self { bin: ground.bin.clone(), work: work.clone(), mounter, config, ids })
    }

    fn mounter(&self) -> anyhow::Result<Process> {
        let program = self.bin.join("seamount-mounter");
        Spawn::new("mounter", &program, &self.work).args(&self.mounter).start().context("start the mounter")
    }

    fn agent(&self) -> anyhow::Result<Process> {
        let agent = Spawn::new("agent", &self.bin.join("seamount-agent"), &self.work)
            .args(["--config".as_ref(), self.config.as_os_str()])
            .args(["--health-socket", ""]);
        let agent = match self.ids {
            Some((uid, gid)) => agent.ids(uid, gid),
            None => agent,
        };
        agent.start().context("start the agent")
    }
}

/// Mounter and agent.
struct Node {
    starts: Starts,
    mounter: Process,
    agent: Process,
}

impl Node {
    fn start(starts: Starts) -> anyhow::Result<Self> {
        let mut mounter = starts.mounter()?;
        mounter.wait_for_path(PATIENCE, &starts.work.join(SOCKET)).context("start the mounter")?;
        let agent = starts.agent()?;
        Ok(Self { starts, mounter, agent })
    }

    /// Starts again what has ended by itself, as a kubelet does with containers. Never returns.
    async fn keep_alive(&mut self, output: Output) {
        loop {
            tokio::time::sleep(Duration::from_secs(1)).await;
            if let Err(error) = self.revive(output) {
                output.say(&format!("{error:#}"));
            }
        }
    }

    fn revive(&mut self, output: Output) -> anyhow::Result<()> {
        if let Some(status) = self.mounter.ended()? {
            output.say(&format!("the mounter has ended ({status}) and is started again"));
            self.mounter = self.starts.mounter()?;
        }
        if let Some(status) = self.agent.ended()? {
            output.say(&format!("the agent has ended ({status}) and is started again"));
            self.agent = self.starts.agent()?;
        }
        Ok(())
    }

    fn stop(self, output: Output) {
        for (name, process) in [("agent", self.agent), ("mounter", self.mounter)] {
            if let Err(error) = process.stop(PATIENCE) {
                output.say(&format!("the {name} did not stop in order: {error}"));
            }
        }
    }

    fn logs(&self) -> String {
        format!("log of the mounter:\n{}log of the agent:\n{}", self.mounter.log(), self.agent.log())
    }
}

async fn play(
    request: &Request,
    plan: Plan,
    ground: Ground,
    stops: watch::Receiver<Stop>,
) -> anyhow::Result<ExitCode> {
    let output = Output { colour: request.colour };
    output.say(&introduction(request, &plan));
    let issuer = TokenIssuer::new(ISSUER);
    let kubelet = Kubelet::new(&ground.kubelet, DRIVER)?.with_node(NODE);
    let ours = |p: &manifest::Pod| p.volumes.iter().any(|v| matches!(v.source, Source::Csi { .. }));
    let node = if plan.pods.iter().any(ours) {
        let node = Node::start(Starts::prepare(request, &ground, &issuer.jwks_json())?)?;
        let mut stop = stops.clone();
        let registered = tokio::select! {
            registered = kubelet.register(PATIENCE) => Some(registered),
            _ = stop.wait_for(|s| *s != Stop::No) => None,
        };
        match registered {
            Some(Ok(_)) => Some(node),
            Some(Err(error)) => {
                return Err(anyhow!(error).context(format!("the agent did not come up; {}", node.logs())));
            }
            None => {
                node.stop(output);
                return Ok(INTERRUPTED.into());
            }
        }
    } else {
        None
    };
    let play = Arc::new(Play {
        kubelet,
        issuer,
        ground,
        output,
        mode: request.mode,
        keep: request.keep,
        trust_domain: request.trust_domain.clone(),
        play: request.play,
    });
    let mut node = node;
    let keep_alive = async {
        match &mut node {
            Some(node) => node.keep_alive(output).await,
            None => std::future::pending().await,
        }
    };
    let verdict = tokio::select! {
        verdict = play.run(plan.pods, stops, request.timeout) => verdict,
        () = keep_alive => Verdict::Broken,
    };
    if let Some(node) = node {
        if request.verbose || verdict == Verdict::Broken {
            output.say(&node.logs());
        }
        node.stop(output);
    }
    Ok(match verdict {
        Verdict::Succeeded => ExitCode::SUCCESS,
        Verdict::Failed | Verdict::Broken => ExitCode::FAILURE,
        Verdict::Interrupted => INTERRUPTED.into(),
    })
}

fn introduction(request: &Request, plan: &Plan) -> String {
    let mut text = format!(
        "playing {} on this machine: trust domain {}, driver {DRIVER}",
        match plan.pods.len() {
            1 => "1 pod".to_owned(),
            n => format!("{n} pods"),
        },
        request.trust_domain
    );
    text.push_str(match request.mode {
        Mode::Root => "\nas root: the mounter keeps the few capabilities that it needs, the agent is uid 64203 and has none",
        Mode::Mapped => "\nwithout root, with your subordinate ids: the agent is uid 64203 of a user namespace",
        Mode::OneId => {
            "\nwithout root and with one id: mounter, agent and containers are all you, so the privilege split is not \
             in force"
        }
    });
    let images: Vec<&str> = plan
        .pods
        .iter()
        .flat_map(|p| p.init.iter().chain(&p.containers))
        .map(|c| c.image.as_str())
        .filter(|image| !request.rootfs.iter().any(|(known, _)| known == image))
        .collect();
    if !images.is_empty() {
        text.push_str(
            "\nimages are not pulled: commands run on a read-only view of this machine (/run, /home, /root and /tmp \
             are empty), with seamount's programs in /seamount/bin and the machine's network",
        );
    }
    for note in &plan.notes {
        text.push_str("\nnote: ");
        text.push_str(note);
    }
    text
}
