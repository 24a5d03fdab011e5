//! The first process of a container: makes its root, gives up every privilege and becomes the container's
//! command.
//!
//! The supervisor starts it as PID 1 of a PID namespace of its own with a socket as standard input: the
//! [`Spec`] comes over it as JSON (not by arguments or environment, which others can read), and what went
//! wrong goes back. The socket is closed by a successful exec(2).

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::io::{Read as _, Write as _};
use std::os::fd::AsFd as _;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use anyhow::{Context as _, anyhow};
use rustix::process::{Gid, Uid};
use rustix::thread::{CapabilitySet, CapabilitySets, UnshareFlags};
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use super::root::{Kind, Root};

/// Where the programs that came with `seamount` are inside a container.
pub const BIN: &str = "/seamount/bin";
const PATH: &str = "/seamount/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// One thing to mount.
#[derive(Serialize, Deserialize)]
pub struct Mount {
    /// The directory of the volume, as the supervisor sees it.
    pub source: PathBuf,
    /// What to mount of it.
    pub sub_path: Option<String>,
    /// Whether a missing sub-path is made (as a directory).
    pub make_sub_path: bool,
    /// Where in the container.
    pub path: String,
    /// Whether the container may only read.
    pub read_only: bool,
}

/// What a container is. Holds values of Secrets: no `Debug`.
#[derive(Serialize, Deserialize)]
pub struct Spec {
    /// The pod's host name.
    pub hostname: String,
    /// An empty directory to make the root at.
    pub new_root: PathBuf,
    /// What is shown in it.
    pub base: PathBuf,
    /// Whether `base` is the host's root.
    pub host: bool,
    /// The directory that becomes [`BIN`].
    pub bin: PathBuf,
    /// A file of the masked directories that programs need: the name servers.
    pub resolver: Option<(String, Vec<u8>)>,
    /// Volumes, outer paths first.
    pub mounts: Vec<Mount>,
    /// Program and arguments.
    pub command: Vec<String>,
    /// The environment.
    pub env: Vec<(String, String)>,
    /// The working directory.
    pub directory: String,
    /// User and group ids.
    pub uid: u32,
    /// See `uid`.
    pub gid: u32,
    /// Supplementary groups; `None` where the user namespace lets no process set them.
    pub groups: Option<Vec<u32>>,
    /// Whether the root file system is read-only for the container.
    pub read_only: bool,
    /// Whether ids are those of the machine (no user namespace).
    pub real_ids: bool,
}

/// Runs the stage.
pub fn run() -> anyhow::Result<ExitCode> {
    super::only_as_first_process()?;
    let mut channel = UnixStream::from(std::io::stdin().as_fd().try_clone_to_owned()?);
    let mut text = Zeroizing::new(Vec::new());
    channel.read_to_end(&mut text).context("read the container's specification")?;
    let spec: Spec = serde_json::from_slice(&text).context("read the container's specification")?;
    match become_container(&spec) {
        Ok(never) => match never {},
        Err(error) => {
            channel.write_all(format!("{error:#}").as_bytes())?;
            Ok(ExitCode::from(125))
        }
    }
}

fn become_container(spec: &Spec) -> anyhow::Result<Infallible> {
    let null = std::fs::File::open("/dev/null").context("open /dev/null")?;
    rustix::stdio::dup2_stdin(&null).context("take /dev/null as standard input")?;
    seamount_sys::play::keep_only_standard_descriptors_over_exec().context("close what was left open")?;
    // No controlling terminal: its input could be forged.
    rustix::process::setsid().context("start a session")?;
    rustix::process::umask(rustix::fs::Mode::empty());
    seamount_sys::play::unshare(UnshareFlags::NEWUTS | UnshareFlags::NEWIPC).context("make namespaces")?;
    seamount_sys::play::unshare_mounts().context("make a mount namespace")?;
    rustix::system::sethostname(spec.hostname.as_bytes()).context("set the host name")?;
    let mut root = Root::new(&spec.new_root, &spec.base, spec.host)?;
    root.proc(spec.real_ids)?;
    root.dev()?;
    root.bind(&spec.bin, BIN, true)?;
    if let Some((path, content)) = &spec.resolver {
        root.write(path, content)?;
    }
    for mount in &spec.mounts {
        match &mount.sub_path {
            Some(sub) => {
                root.bind_below(&mount.source, sub, mount.make_sub_path, &mount.path, mount.read_only)
            }
            None => root.bind(&mount.source, &mount.path, mount.read_only),
        }
        .with_context(|| format!("mountPath {}", mount.path))?;
    }
    // A container runtime makes a missing working directory.
    root.place(&spec.directory, Kind::Directory).context("workingDir")?;
    root.enter(spec.read_only)?;
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o022));
    drop_privileges(spec)?;
    rustix::process::chdir(spec.directory.as_str())
        .with_context(|| format!("enter the working directory {}", spec.directory))?;
    exec(spec)
}

fn drop_privileges(spec: &Spec) -> anyhow::Result<()> {
    for capability in CapabilitySet::all().iter() {
        match rustix::thread::remove_capability_from_bounding_set(capability) {
            // A capability that this kernel does not have.
            Ok(()) | Err(rustix::io::Errno::INVAL) => {}
            Err(error) => return Err(error).context("drop capabilities"),
        }
    }
    rustix::thread::clear_ambient_capability_set().context("drop ambient capabilities")?;
    if let Some(groups) = &spec.groups {
        let groups: Vec<Gid> = groups.iter().map(|g| Gid::from_raw(*g)).collect();
        rustix::thread::set_thread_groups(&groups).context("set the supplementary groups")?;
    }
    let (uid, gid) = (Uid::from_raw(spec.uid), Gid::from_raw(spec.gid));
    rustix::thread::set_thread_res_gid(gid, gid, gid)
        .with_context(|| format!("become group {}", spec.gid))?;
    rustix::thread::set_thread_res_uid(uid, uid, uid).with_context(|| format!("become user {}", spec.uid))?;
    let none = CapabilitySets {
        effective: CapabilitySet::empty(),
        permitted: CapabilitySet::empty(),
        inheritable: CapabilitySet::empty(),
    };
    rustix::thread::set_capabilities(None, none).context("drop capabilities")?;
    rustix::thread::set_no_new_privs(true).context("set no_new_privs")?;
    Ok(())
}

fn exec(spec: &Spec) -> anyhow::Result<Infallible> {
    let mut env: BTreeMap<&str, &str> = BTreeMap::from([
        ("PATH", PATH),
        ("HOSTNAME", spec.hostname.as_str()),
        ("HOME", if spec.uid == 0 { "/root" } else { "/" }),
    ]);
    env.extend(spec.env.iter().map(|(k, v)| (k.as_str(), v.as_str())));
    let [program, args @ ..] = spec.command.as_slice() else {
        return Err(anyhow!("the command is empty"));
    };
    let error = Command::new(program).args(args).env_clear().envs(env).exec();
    let hint = match error.kind() {
        std::io::ErrorKind::NotFound if spec.host && !Path::new(program).exists() => {
            " (the image was not pulled: commands are looked for on this machine and in /seamount/bin; give the \
             image's files with --rootfs IMAGE=DIR)"
        }
        _ => "",
    };
    Err(anyhow!(error).context(format!("run {program}{hint}")))
}
