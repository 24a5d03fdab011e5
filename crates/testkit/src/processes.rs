//! The real programs as child processes.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};

pub use seamount_play::processes::{Process, ProcessError, Spawn};

/// The mounter of this workspace, with these arguments.
///
/// # Errors
/// If it cannot be started.
///
/// # Panics
/// If it is not built ([`crate::bin`]).
pub fn mounter<S: AsRef<OsStr>>(
    logs: &Path,
    args: impl IntoIterator<Item = S>,
) -> Result<Process, ProcessError> {
    Spawn::new("mounter", &crate::bin("seamount-mounter"), logs).args(args).start()
}

/// The agent of this workspace, with these arguments, as `uid` and `gid`; `None`: as the caller.
///
/// # Errors
/// If it cannot be started.
///
/// # Panics
/// If it is not built ([`crate::bin`]).
pub fn agent<S: AsRef<OsStr>>(
    logs: &Path,
    args: impl IntoIterator<Item = S>,
    ids: Option<(u32, u32)>,
) -> Result<Process, ProcessError> {
    let spawn = Spawn::new("agent", &crate::bin("seamount-agent"), logs).args(args);
    match ids {
        Some((uid, gid)) => spawn.ids(uid, gid).start(),
        None => spawn.start(),
    }
}

/// The live children of a process, each with its program.
pub fn children(of: u32) -> Vec<(u32, PathBuf)> {
    let processes = std::fs::read_dir("/proc").into_iter().flatten().flatten().filter_map(|entry| {
        let pid = entry.file_name().to_str()?.parse().ok()?;
        // proc(5): pid (comm) state ppid …; the name may have blanks.
        let stat = std::fs::read_to_string(entry.path().join("stat")).ok()?;
        let parent = stat.rsplit_once(')')?.1.split(' ').nth(2)?.parse::<u32>().ok()?;
        (parent == of).then_some(())?;
        Some((pid, program(pid)?))
    });
    processes.collect()
}

/// The program that a process runs; none once it has ended, reaped or not.
pub fn program(pid: u32) -> Option<PathBuf> {
    std::fs::read_link(format!("/proc/{pid}/exe")).ok()
}
