//! What a process uses, by the kernel's account.

use std::fs;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use rustix::time::{ClockId, clock_gettime};

/// Resident memory of a process in MB of 10⁶ bytes (`VmRSS`: its own pages, its files' and shared ones).
pub fn resident(pid: u32) -> anyhow::Result<f64> {
    field(pid, "VmRSS:")
}

/// The part of it that no file backs.
pub fn anonymous(pid: u32) -> anyhow::Result<f64> {
    field(pid, "RssAnon:")
}

fn field(pid: u32, name: &str) -> anyhow::Result<f64> {
    let path = format!("/proc/{pid}/status");
    let text = fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
    let line = text.lines().find_map(|line| line.strip_prefix(name));
    let kib = line.and_then(|rest| rest.split_whitespace().next()).and_then(|n| n.parse::<f64>().ok());
    Ok(kib.with_context(|| format!("{path} has no {name}"))? * 1024.0 / 1e6)
}

/// How many descriptors a process has open.
pub fn descriptors(pid: u32) -> anyhow::Result<usize> {
    let path = format!("/proc/{pid}/fd");
    Ok(fs::read_dir(&path).with_context(|| format!("cannot list {path}"))?.count())
}

/// Processor time of all threads of a process that are alive, by the scheduler's nanoseconds: the ticks of
/// `/proc/<pid>/stat` are too coarse for an idle process.
pub fn processor(pid: u32) -> anyhow::Result<Duration> {
    let mut total = 0;
    let tasks = format!("/proc/{pid}/task");
    for task in fs::read_dir(&tasks).with_context(|| format!("cannot list {tasks}"))? {
        // A thread may have ended since.
        let Ok(text) = fs::read_to_string(task?.path().join("schedstat")) else { continue };
        total += text.split(' ').next().and_then(|n| n.parse::<u64>().ok()).unwrap_or_default();
    }
    ensure!(total > 0, "the kernel keeps no /proc/{pid}/task/*/schedstat");
    Ok(Duration::from_nanos(total))
}

/// Processor time of this thread.
pub fn this_thread() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(time.tv_sec.unsigned_abs(), u32::try_from(time.tv_nsec).unwrap_or_default())
}

/// As many descriptors as the process may have.
pub fn raise_descriptors() {
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    // Fails only where it is not allowed; then there are as many as there are.
    let _ = setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum });
}
