//! The mounters and agents that can be seen in /proc. In a container that is only what runs in it.

use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Which program.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Program {
    /// `seamount-mounter`.
    Mounter,
    /// `seamount-agent`.
    Agent,
}

impl Program {
    /// Its file name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Mounter => "seamount-mounter",
            Self::Agent => "seamount-agent",
        }
    }
}

/// A process of this node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Process {
    /// Which program.
    pub program: Program,
    /// Its pid, as seen from here.
    pub pid: u32,
    /// Stopped by a signal, or by a debugger.
    pub stopped: bool,
    /// How long it has run; none where that cannot be told.
    pub age: Option<Duration>,
}

/// What /proc shows.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Processes {
    /// Those of this node.
    pub ours: Vec<Process>,
    /// Whether there may be others: a container sees only its own, and an ordinary user cannot look into all.
    pub partial: bool,
}

impl Processes {
    /// Those that serve below this root, whatever their drivers: there is one mounter per node.
    pub fn look(root: &Path) -> Self {
        let uptime = fs::read_to_string("/proc/uptime").ok().and_then(|t| t.split('.').next()?.parse().ok());
        let mut ours = Vec::new();
        for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
            let Some(pid) = entry.file_name().to_str().and_then(|n| n.parse::<u32>().ok()) else { continue };
            // Threads of this program and others' end while we look.
            if let Some(process) = look_at(pid, root, uptime) {
                ours.push(process);
            }
        }
        ours.sort_by_key(|p| p.pid);
        let first = fs::read_to_string("/proc/1/comm").unwrap_or_default();
        let partial = first.trim_end().starts_with("seamount") || !rustix::process::geteuid().is_root();
        Self { ours, partial }
    }

    /// Those that run this program.
    pub fn of(&self, program: Program) -> Vec<&Process> {
        self.ours.iter().filter(|p| p.program == program).collect()
    }
}

fn look_at(pid: u32, root: &Path, uptime: Option<u64>) -> Option<Process> {
    let directory = PathBuf::from(format!("/proc/{pid}"));
    let line = fs::read(directory.join("cmdline")).ok()?;
    let args: Vec<String> =
        line.split(|b| *b == 0).map(|a| String::from_utf8_lossy(a).into_owned()).collect();
    let program = program(&args)?;
    let file = || Some(of_config(&directory, flag(&args, "--config")?.as_str()));
    let its_root = flag(&args, "--kubelet-root").or_else(|| match (program, file()?) {
        (Program::Mounter, _) => None,
        // An agent with a file that is broken: it may be ours, and is what the user is looking for.
        (Program::Agent, None) => Some(root.display().to_string()),
        (Program::Agent, Some(found)) => found,
    });
    let its_root = its_root.unwrap_or_else(|| "/var/lib/kubelet".to_owned());
    if !same(&directory, Path::new(&its_root), root, program) {
        return None;
    }
    let (stopped, start) = stat(&fs::read_to_string(directory.join("stat")).ok()?)?;
    // Ticks: Linux shows 100 a second to user space on every architecture that Rust's musl targets have.
    let age = uptime.map(|now| Duration::from_secs(now.saturating_sub(start / 100)));
    Some(Process { program, pid, stopped, age })
}

/// The program that serves with these arguments; none for a probe (`seamount-agent health`), which only asks.
fn program(args: &[String]) -> Option<Program> {
    let name = Path::new(args.first()?).file_name()?;
    let asks = args.get(1).is_some_and(|word| word == "health");
    [Program::Mounter, Program::Agent].into_iter().find(|p| name == p.name() && !asks)
}

/// Whether the root that a process names is ours: by device and inode, in the process's own mount namespace.
/// The agent has no such directory: for it the name has to do, or the name as seen from its own root.
fn same(process: &Path, its: &Path, ours: &Path, program: Program) -> bool {
    let inside = process.join("root");
    let there = inside.join(its.strip_prefix("/").unwrap_or(its));
    match (fs::metadata(&there), fs::metadata(ours)) {
        (Ok(there), Ok(ours)) => (there.dev(), there.ino()) == (ours.dev(), ours.ino()),
        _ if its == ours => true,
        (Err(e), _) if program == Program::Agent && e.kind() == ErrorKind::NotFound => {
            ours.ends_with(its.strip_prefix("/").unwrap_or(its))
        }
        _ => false,
    }
}

/// `--name value` or `--name=value`.
fn flag(args: &[String], name: &str) -> Option<String> {
    let mut args = args.iter();
    while let Some(arg) = args.next() {
        if arg == name {
            return args.next().cloned();
        }
        if let Some(value) = arg.strip_prefix(name).and_then(|rest| rest.strip_prefix('=')) {
            return Some(value.to_owned());
        }
    }
    None
}

/// The root as an agent's file has it, if the file can be read.
fn of_config(process: &Path, path: &str) -> Option<Option<String>> {
    let path = process.join("root").join(path.strip_prefix('/').unwrap_or(path));
    let file: serde_json::Value = serde_saphyr::from_str(&fs::read_to_string(path).ok()?).ok()?;
    Some(file.get("kubeletRoot").and_then(|v| v.as_str()).map(str::to_owned))
}

/// State and start (field 22, in ticks since boot) of proc_pid_stat(5). The name in parentheses may hold
/// anything.
fn stat(line: &str) -> Option<(bool, u64)> {
    let (_, rest) = line.rsplit_once(')')?;
    let fields: Vec<&str> = rest.split_whitespace().collect();
    let stopped = matches!(*fields.first()?, "T" | "t");
    Some((stopped, fields.get(19)?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_are_read_in_both_forms() {
        let args: Vec<String> =
            ["x", "--driver", "a", "--kubelet-root=/k"].into_iter().map(str::to_owned).collect();
        assert_eq!(flag(&args, "--driver").as_deref(), Some("a"));
        assert_eq!(flag(&args, "--kubelet-root").as_deref(), Some("/k"));
        assert_eq!(flag(&args, "--kubelet"), None);
    }

    #[test]
    fn a_probe_is_no_agent() {
        let of = |words: &str| program(&words.split(' ').map(str::to_owned).collect::<Vec<_>>());
        assert_eq!(of("/seamount-agent --config /c"), Some(Program::Agent));
        assert_eq!(of("/seamount-agent"), Some(Program::Agent));
        assert_eq!(of("/x/seamount-mounter --driver health"), Some(Program::Mounter));
        assert_eq!(of("/seamount-agent health ready"), None);
        assert_eq!(of("/seamount node"), None);
    }

    #[test]
    fn the_state_is_read_behind_any_name() {
        let rest = "1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 4242 20";
        assert_eq!(stat(&format!("7 (a) b) T {rest}")), Some((true, 4242)));
        assert_eq!(stat(&format!("7 (x) S {rest}")), Some((false, 4242)));
        assert_eq!(stat("7 (x"), None);
    }
}
