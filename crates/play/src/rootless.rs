//! The namespaces of a play: as root mount and PID; otherwise a user namespace first, with a range of ids
//! where newuidmap(1) gives one, with one id where not.

use std::ffi::OsString;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};

use rustix::mount::{MountPropagationFlags, mount_change};
use rustix::thread::{CapabilitySet, UnshareFlags};
use seamount_sys::play::unshare;
use serde::{Deserialize, Serialize};

/// Whose ids there are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Mode {
    /// The machine's: no user namespace.
    Root,
    /// A user namespace with a range of subordinate ids.
    Mapped,
    /// A user namespace with the caller's id alone, as 0.
    OneId,
}

impl Mode {
    /// The highest id that there is.
    pub fn last_id(self) -> u32 {
        match self {
            Self::Root => u32::MAX,
            Self::Mapped => RANGE,
            Self::OneId => 0,
        }
    }
}

/// How many subordinate ids are taken: enough for every 16-bit id, among them the agent's.
const RANGE: u32 = 65535;

/// Why there are no namespaces.
#[derive(Debug, thiserror::Error)]
pub enum NamespaceError {
    /// User namespaces are not allowed.
    #[error("this machine does not let you make a user namespace ({source}): {remedy}")]
    Blocked {
        /// What the kernel says.
        source: io::Error,
        /// What to do.
        remedy: String,
    },
    /// The others are not allowed.
    #[error("cannot make the namespaces of a play ({source}): {remedy}")]
    Others {
        /// What the kernel says.
        source: io::Error,
        /// What to do.
        remedy: String,
    },
}

/// Moves this process into the namespaces; its next child becomes PID 1 of the PID namespace. Call it while
/// there is one thread.
pub fn enter() -> Result<Mode, NamespaceError> {
    let may =
        rustix::thread::capabilities(None).is_ok_and(|c| c.effective.contains(CapabilitySet::SYS_ADMIN));
    let mode = if rustix::process::geteuid().is_root() && may { Mode::Root } else { user_namespace()? };
    let others = || -> io::Result<()> {
        unshare(UnshareFlags::NEWNS | UnshareFlags::FS | UnshareFlags::NEWPID)?;
        mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)?;
        Ok(())
    };
    others().map_err(|source| NamespaceError::Others { source, remedy: remedy(Path::new("/proc/sys")) })?;
    Ok(mode)
}

fn user_namespace() -> Result<Mode, NamespaceError> {
    let blocked = |source| NamespaceError::Blocked { source, remedy: remedy(Path::new("/proc/sys")) };
    let (uid, gid) = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
    // It must be outside: newuidmap(1) writes the map of another user namespace than its own.
    let mapper = Mapper::start(uid, gid);
    unshare(UnshareFlags::NEWUSER).map_err(blocked)?;
    if let Some(mapper) = mapper {
        match mapper.map() {
            Ok(()) => return Ok(Mode::Mapped),
            Err(reason) => eprintln!("seamount: subordinate ids cannot be used: {reason}"),
        }
    }
    // Without the right to set groups outside, a gid map is allowed only after giving up setgroups(2).
    let write = |name: &str, text: String| std::fs::write(format!("/proc/self/{name}"), text);
    write("setgroups", "deny".into()).map_err(blocked)?;
    write("uid_map", format!("0 {uid} 1\n")).map_err(blocked)?;
    write("gid_map", format!("0 {gid} 1\n")).map_err(blocked)?;
    Ok(Mode::OneId)
}

/// What keeps an ordinary user from making namespaces, from the settings below `sysctl` (`/proc/sys`).
fn remedy(sysctl: &Path) -> String {
    let value = |name: &str| std::fs::read_to_string(sysctl.join(name)).ok().map(|v| v.trim().to_owned());
    let settings = [
        (
            "kernel/apparmor_restrict_unprivileged_userns",
            "1",
            "AppArmor restricts user namespaces: `sudo sysctl kernel.apparmor_restrict_unprivileged_userns=0`, or an \
             AppArmor profile with `userns,` for this program",
        ),
        (
            "kernel/unprivileged_userns_clone",
            "0",
            "they are kept for root: `sudo sysctl kernel.unprivileged_userns_clone=1`",
        ),
        ("user/max_user_namespaces", "0", "none are allowed: `sudo sysctl user.max_user_namespaces=10000`"),
    ];
    let found: Vec<&str> = settings
        .iter()
        .filter(|(name, bad, _)| value(name).as_deref() == Some(*bad))
        .map(|(_, _, r)| *r)
        .collect();
    match found.as_slice() {
        [] => "run it as root, or outside of a container or sandbox that forbids namespaces".to_owned(),
        found => format!("{}; or run it as root", found.join("; ")),
    }
}

/// The arguments of the process that maps ids.
#[derive(Debug, clap::Args)]
pub struct MapArgs {
    pid: u32,
    uid: u32,
    gid: u32,
    uids: u32,
    gids: u32,
}

/// A process outside of the user namespace that waits for it to be made.
struct Mapper(Child);

impl Mapper {
    /// `None` where there is no range of ids for this user, or no program to map them.
    fn start(uid: u32, gid: u32) -> Option<Self> {
        find("newuidmap")?;
        find("newgidmap")?;
        let users = std::fs::read_to_string("/etc/passwd").unwrap_or_default();
        let range = |path: &str| {
            let text = std::fs::read_to_string(path).unwrap_or_default();
            subordinate(&text, uid, user_name(&users, uid))
        };
        let (uids, gids) = (range("/etc/subuid")?, range("/etc/subgid")?);
        let numbers = [std::process::id(), uid, gid, uids, gids].map(|n| n.to_string());
        let child = Command::new("/proc/self/exe")
            .args([super::STAGE, "map-ids"])
            .args(numbers)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .ok()?;
        Some(Self(child))
    }

    fn map(mut self) -> Result<(), String> {
        // The end of its input tells it that the namespace is there.
        drop(self.0.stdin.take());
        let output = self.0.wait_with_output().map_err(|e| e.to_string())?;
        if output.status.success() {
            return Ok(());
        }
        Err(String::from_utf8_lossy(&output.stderr).trim().to_owned())
    }
}

/// Waits for the user namespace of process `pid` and maps the ids.
pub fn map(args: &MapArgs) -> anyhow::Result<ExitCode> {
    let mut nothing = Vec::new();
    io::stdin().read_to_end(&mut nothing)?;
    for (program, own, first) in [("newuidmap", args.uid, args.uids), ("newgidmap", args.gid, args.gids)] {
        let Some(path) = find(program) else { anyhow::bail!("{program} is not there") };
        let status = Command::new(path)
            .args([args.pid, 0, own, 1, 1, first, RANGE].map(|n| n.to_string()))
            .stdin(Stdio::null())
            .status()?;
        anyhow::ensure!(status.success(), "{program} failed ({status})");
    }
    Ok(ExitCode::SUCCESS)
}

fn find(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_else(|| OsString::from("/usr/bin"));
    std::env::split_paths(&path).map(|d| d.join(program)).find(|p| p.is_file())
}

/// The name of this uid in the text of passwd(5).
fn user_name(passwd: &str, uid: u32) -> Option<&str> {
    passwd.lines().find_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        (fields.nth(1)?.parse() == Ok(uid)).then_some(name)
    })
}

/// The first id of a range of [`RANGE`] ids for this user in the text of subuid(5).
fn subordinate(text: &str, uid: u32, name: Option<&str>) -> Option<u32> {
    text.lines().find_map(|line| {
        let mut fields = line.trim().split(':');
        let owner = fields.next()?;
        if Some(owner) != name && owner.parse() != Ok(uid) {
            return None;
        }
        let first: u32 = fields.next()?.parse().ok()?;
        let count: u32 = fields.next()?.parse().ok()?;
        (count >= RANGE && first.checked_add(RANGE).is_some()).then_some(first)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_the_range_of_a_user() {
        let passwd = "root:x:0:0:root:/root:/bin/sh\nann:x:1000:1000::/home/ann:/bin/sh\n";
        assert_eq!(user_name(passwd, 1000), Some("ann"));
        assert_eq!(user_name(passwd, 7), None);
        let text = "bob:100000:65536\nann:5:10\nann:165536:65536\n1001:231072:65536\nodd\n";
        assert_eq!(subordinate(text, 1000, Some("ann")), Some(165_536));
        assert_eq!(subordinate(text, 1001, None), Some(231_072));
        assert_eq!(subordinate(text, 1002, None), None);
        assert_eq!(subordinate("ann:4294967295:65536", 1000, Some("ann")), None);
    }

    #[test]
    fn names_the_setting_that_is_in_the_way() {
        let directory = tempfile::tempdir().unwrap();
        for part in ["kernel", "user"] {
            std::fs::create_dir(directory.path().join(part)).unwrap();
        }
        assert!(remedy(directory.path()).starts_with("run it as root"));
        for (name, bad, good) in [
            ("kernel/apparmor_restrict_unprivileged_userns", "1\n", "0\n"),
            ("kernel/unprivileged_userns_clone", "0\n", "1\n"),
            ("user/max_user_namespaces", "0\n", "5\n"),
        ] {
            let path = directory.path().join(name);
            std::fs::write(&path, bad).unwrap();
            let text = remedy(directory.path());
            assert!(text.contains(&name.replace('/', ".")), "{text}");
            assert!(text.ends_with("or run it as root"), "{text}");
            std::fs::write(&path, good).unwrap();
            assert!(remedy(directory.path()).starts_with("run it as root"));
        }
    }
}
