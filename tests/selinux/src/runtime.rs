//! The container runtime's part, played: labels, mounts and domains of what it starts.

use std::fs;
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context as _, bail};
use rustix::mount::{MountFlags, mount_bind, mount_remount};

use crate::context;

/// Where a pod sees its volume.
pub const IN_POD: &str = "/pod";
/// The user of simulated pods.
const POD_USER: u32 = 1000;

/// Executes a program in a context. Before the program: `--user N` for another uid and gid and no new
/// privileges, as a container with `allowPrivilegeEscalation: false` has them.
pub fn exec(context: &str, words: &[&str]) -> anyhow::Result<()> {
    let (user, words) = match words {
        ["--user", id, rest @ ..] => (Some(id.parse::<u32>()?), rest),
        rest => (None, rest),
    };
    let [program, args @ ..] = words else { bail!("exec: no program") };
    let mut command = Command::new(program);
    command.args(args);
    if let Some(id) = user {
        rustix::thread::set_thread_groups(&[]).context("drop groups")?;
        rustix::thread::set_no_new_privs(true).context("no new privileges")?;
        command.uid(id).gid(id);
    }
    context::set_exec(context)?;
    Err(command.exec()).with_context(|| format!("cannot execute {program} as {context}"))
}

/// Executes a program in a pod: a mount namespace where the volume is at [`IN_POD`], read-only.
pub fn pod(volume: &str, context: &str, words: &[&str]) -> anyhow::Result<()> {
    seamount_sys::play::unshare_mounts().context("make a mount namespace")?;
    mount_bind(volume, IN_POD).with_context(|| format!("bind {volume}"))?;
    mount_remount(IN_POD, MountFlags::BIND | MountFlags::RDONLY, c"").context("make it read-only")?;
    let user = POD_USER.to_string();
    let mut all = vec!["--user", user.as_str()];
    all.extend(words);
    exec(context, &all)
}

/// What a runtime does with a mount that is to be relabelled (`chcon -R` of go-selinux).
pub fn relabel(context: &str, path: &Path) -> anyhow::Result<()> {
    context::label(path, context)?;
    if fs::symlink_metadata(path)?.is_dir() {
        for entry in fs::read_dir(path)? {
            relabel(context, &entry?.path())?;
        }
    }
    Ok(())
}

/// Makes a listener with a connection waiting in it, and hands it to a process in `context` as its standard
/// input.
pub fn listen(context: &str) -> anyhow::Result<()> {
    // In the abstract name space: no file has to be reached, the sockets alone are judged.
    use std::os::linux::net::SocketAddrExt as _;
    let name = format!("listen-{}", std::process::id());
    let address = std::os::unix::net::SocketAddr::from_abstract_name(name)?;
    let listener = UnixListener::bind_addr(&address)?;
    let _waiting = UnixStream::connect_addr(&address)?;
    let program = std::env::current_exe()?;
    context::set_exec(context)?;
    let status = Command::new(program).arg("accept").stdin(Stdio::from(OwnedFd::from(listener))).status()?;
    if !status.success() {
        bail!("{status}");
    }
    Ok(())
}
