//! `seamount play`: plays the kubelet on this machine towards the real mounter and agent, and runs the
//! containers.
//!
//! Three kinds of process, each the same program: this one, in new user (without root), mount and PID
//! namespaces; the supervisor, PID 1 of that PID namespace, which does everything (`supervisor.rs`); one per
//! container until it becomes the container's command (`container.rs`). The supervisor dies with this
//! process, the kernel kills a PID namespace with its PID 1, and a mount namespace goes with its last
//! process: so `kill -9` of `play` leaves nothing.

mod allow;
mod container;
mod env;
mod ground;
pub mod issuer;
pub mod kubelet;
mod manifest;
mod output;
mod pods;
mod process;
pub mod processes;
mod root;
mod rootless;
mod supervisor;
mod uuid;
mod volumes;

pub use uuid::{uuid, uuid_of};

use std::io::{IsTerminal as _, Write as _};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::time::Duration;

use anyhow::{Context as _, anyhow, bail};
use serde::{Deserialize, Serialize};
use tokio::signal::unix::{SignalKind, signal};
use zeroize::Zeroizing;

use manifest::{ManifestError, Place};
use rootless::Mode;

/// The hidden subcommand's name.
pub const STAGE: &str = "play-stage";
/// The driver whose volumes are played.
const DRIVER: &str = "csi.spiffe.io";
/// The audience of the pods' tokens, as in an installation.
const AUDIENCE: &str = "seamount.dev";
/// The name of the simulated node.
const NODE: &str = "play";

/// The arguments of `seamount play`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Files of Kubernetes manifests (Pods, and the ConfigMaps and Secrets that they use); `-` is standard
    /// input.
    #[arg(required = true, value_name = "FILE")]
    files: Vec<PathBuf>,
    /// Keep the volumes when the containers have ended, until Ctrl-C, and print their sockets.
    #[arg(long)]
    keep: bool,
    /// Use the directory DIR as the root file system of containers of this image (nothing is pulled).
    #[arg(long, value_name = "IMAGE=DIR", value_parser = image_and_directory)]
    rootfs: Vec<(String, PathBuf)>,
    /// The trust domain of the simulated authority.
    #[arg(long, default_value = "example.org", value_parser = trust_domain)]
    trust_domain: String,
    /// How long an SVID is valid: 1h, 90s. It is rotated at half of that.
    #[arg(long, value_name = "TIME", default_value = "1h")]
    svid_ttl: String,
    /// Stop after this time: 90s, 10m.
    #[arg(long, value_name = "TIME", value_parser = seamount_api::parse_duration)]
    timeout: Option<Duration>,
    /// Where seamount-mounter and seamount-agent are (default: beside this program).
    #[arg(long, value_name = "DIR")]
    bin_dir: Option<PathBuf>,
    /// Print the log of mounter and agent as well.
    #[arg(long, short)]
    verbose: bool,
}

/// The arguments of the hidden stages.
#[derive(Debug, clap::Args)]
pub struct StageArgs {
    #[command(subcommand)]
    stage: Stage,
}

#[derive(Debug, clap::Subcommand)]
enum Stage {
    Supervisor,
    Container,
    MapIds(rootless::MapArgs),
}

/// What the supervisor is told, as one line of JSON on its standard input. (Not by arguments or environment:
/// the manifests may hold Secrets.) Later lines are [`STOP`]; the end of the input means that `play` is gone.
#[derive(Serialize, Deserialize)]
struct Request {
    files: Vec<(String, String)>,
    keep: bool,
    rootfs: Vec<(String, PathBuf)>,
    trust_domain: String,
    svid_ttl: String,
    timeout: Option<Duration>,
    bin: PathBuf,
    verbose: bool,
    colour: bool,
    mode: Mode,
    /// The pid of `play`, whose `/proc/<pid>/root` is the way from outside to the sockets.
    play: u32,
}

/// Asks the supervisor to stop; a second time: at once. (A third time it is killed, and all with it.)
const STOP: &str = "stop\n";

fn image_and_directory(text: &str) -> Result<(String, PathBuf), String> {
    // An image may have a digest, but no `=`.
    match text.split_once('=') {
        Some((image, directory)) if !image.is_empty() && !directory.is_empty() => {
            Ok((image.to_owned(), PathBuf::from(directory)))
        }
        _ => Err("write IMAGE=DIR".to_owned()),
    }
}

/// SPIFFE-ID §2.1: lower-case letters, digits, dots, hyphens and underscores, at most 255; case does not
/// matter.
fn trust_domain(text: &str) -> Result<String, String> {
    let name = text.to_ascii_lowercase();
    let good = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'.' | b'-' | b'_');
    match name.len() {
        1..=255 if name.bytes().all(good) => Ok(name),
        _ => Err("a trust domain is 1 to 255 letters, digits, dots, hyphens and underscores".to_owned()),
    }
}

/// Plays the files.
pub fn run(args: Args) -> anyhow::Result<ExitCode> {
    let files = args.files.iter().map(|f| read(f)).collect::<anyhow::Result<Vec<_>>>()?;
    let place = Place { driver: DRIVER, node: NODE, uid: &String::new };
    let plan = manifest::load(&files, &place).map_err(|e| refused(&e))?;
    let bin = programs(args.bin_dir.as_deref())?;
    let rootfs = args
        .rootfs
        .into_iter()
        .map(|(image, directory)| match directory.canonicalize() {
            Ok(path) if path.is_dir() => Ok((image, path)),
            Ok(path) => bail!("--rootfs {image}: {} is not a directory", path.display()),
            Err(error) => bail!("--rootfs {image}: {}: {error}", directory.display()),
        })
        .collect::<anyhow::Result<Vec<_>>>()?;
    let used = |image: &str| {
        plan.pods.iter().flat_map(|p| p.init.iter().chain(&p.containers)).any(|c| c.image == image)
    };
    if let Some((image, _)) = rootfs.iter().find(|(image, _)| !used(image)) {
        bail!("--rootfs {image}: no container has this image");
    }
    let mode = rootless::enter()?;
    let errors = manifest::needs_other_ids(&plan, mode.last_id());
    if !errors.is_empty() {
        return Err(refused(&errors));
    }
    let request = Request {
        files,
        keep: args.keep,
        rootfs,
        trust_domain: args.trust_domain,
        svid_ttl: args.svid_ttl,
        timeout: args.timeout,
        bin,
        verbose: args.verbose,
        colour: std::io::stdout().is_terminal(),
        mode,
        play: std::process::id(),
    };
    // One thread only: the kernel allows no new one in a process whose children belong to another PID
    // namespace.
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().context("start the runtime")?;
    runtime.block_on(supervise(&request))
}

fn refused(errors: &[ManifestError]) -> anyhow::Error {
    let lines: Vec<String> = errors.iter().map(|e| format!("  {e}")).collect();
    anyhow!("this cannot be played:\n{}", lines.join("\n"))
}

fn read(path: &Path) -> anyhow::Result<(String, String)> {
    let text = if path == Path::new("-") {
        std::io::read_to_string(std::io::stdin())
    } else {
        std::fs::read_to_string(path)
    };
    let name = path.display().to_string();
    let text = text.with_context(|| format!("read {name}"))?;
    Ok((name, text))
}

/// The directory of the programs that play starts.
fn programs(given: Option<&Path>) -> anyhow::Result<PathBuf> {
    let own = std::env::current_exe().context("find this program")?;
    let directory = match given {
        Some(directory) => {
            directory.canonicalize().with_context(|| format!("--bin-dir {}", directory.display()))?
        }
        None => own.parent().context("find this program's directory")?.to_owned(),
    };
    for name in ["seamount-mounter", "seamount-agent"] {
        if !directory.join(name).is_file() {
            bail!(
                "{name} is not in {}: build it with `cargo build --workspace --bins`, or say where it is with --bin-dir",
                directory.display()
            );
        }
    }
    Ok(directory)
}

/// Starts the supervisor, passes stops on to it, and waits for it.
async fn supervise(request: &Request) -> anyhow::Result<ExitCode> {
    // Before the supervisor, so that a handler is there for each signal.
    let mut interrupt = signal(SignalKind::interrupt()).context("listen for signals")?;
    let mut terminate = signal(SignalKind::terminate()).context("listen for signals")?;
    let mut hang_up = signal(SignalKind::hangup()).context("listen for signals")?;
    let mut command = Command::new("/proc/self/exe");
    command.args([STAGE, "supervisor"]).stdin(Stdio::piped());
    // A process group of its own, so that a terminal's Ctrl-C reaches this process alone, which stops the
    // rest in order.
    command.process_group(0);
    let mut child = tokio::process::Command::from(command).spawn().context("start the supervisor")?;
    let control =
        child.stdin.take().and_then(|c| c.into_owned_fd().ok()).context("talk to the supervisor")?;
    let mut control = std::fs::File::from(control);
    rustix::io::ioctl_fionbio(&control, false).context("talk to the supervisor")?;
    let mut line = Zeroizing::new(serde_json::to_vec(request).context("write the request")?);
    line.push(b'\n');
    control.write_all(&line).context("talk to the supervisor")?;
    drop(line);
    let mut asked = 0;
    loop {
        tokio::select! {
            status = child.wait() => {
                let status = status.context("wait for the supervisor")?;
                return match status.code() {
                    Some(code) => Ok(ExitCode::from(u8::try_from(code).unwrap_or(1))),
                    None => bail!("the supervisor was killed ({status}); nothing of what it made is left"),
                };
            }
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
            _ = hang_up.recv() => {}
        }
        asked += 1;
        if asked > 2 {
            child.start_kill().context("kill the supervisor")?;
        }
        // If the supervisor has just ended, the next turn says how.
        let _ = control.write_all(STOP.as_bytes());
    }
}

/// The stages change what is mounted where, which they may do only where `play` has put them: as PID 1 of a
/// PID namespace. Run by hand, one would change the machine.
fn only_as_first_process() -> anyhow::Result<()> {
    anyhow::ensure!(std::process::id() == 1, "this is a part of `seamount play`, which starts it itself");
    Ok(())
}

/// Runs one of the hidden stages.
pub fn run_stage(args: StageArgs) -> anyhow::Result<ExitCode> {
    match args.stage {
        Stage::Supervisor => supervisor::run(),
        Stage::Container => container::run(),
        Stage::MapIds(args) => rootless::map(&args),
    }
}
