//! One run of a container's process.

use std::io::{Read as _, Write as _};
use std::net::Shutdown;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::os::unix::process::ExitStatusExt as _;
use std::process::{Command, ExitStatus};
use std::time::Duration;

use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use rustix::thread::UnshareFlags;
use tokio::sync::{oneshot, watch};
use zeroize::Zeroizing;

use super::container::Spec;
use super::output::{Output, Stream};

/// Whether and how everything is to stop.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stop {
    /// Not.
    No,
    /// In order, with the pods' grace periods.
    Graceful,
    /// At once.
    Now,
}

/// How a container ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum End {
    /// Its process exited with this status, or was killed by a signal (128 + signal), as `kubectl` shows it.
    Exited(i32),
    /// It could not be started.
    NotStarted(String),
}

impl End {
    /// Whether that is a success.
    pub fn is_success(&self) -> bool {
        *self == Self::Exited(0)
    }
}

impl From<ExitStatus> for End {
    fn from(status: ExitStatus) -> Self {
        Self::Exited(status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0)))
    }
}

/// A process that runs.
///
/// Its thread alone waits for it and reaps it, so its pidfd names it for as long as this lives, and a signal
/// that comes after its end reaches no other process. `ended` is sent once, after the last line of its output
/// was printed; a thread that panics drops it, which is an end too.
pub struct Running {
    pidfd: OwnedFd,
    pid: i32,
    ended: oneshot::Receiver<End>,
}

/// Starts a container and returns when its command runs.
///
/// # Errors
/// Why it does not.
pub async fn start(spec: &Spec, label: &str, output: Output) -> Result<Running, String> {
    let spec = Zeroizing::new(serde_json::to_vec(spec).map_err(|e| e.to_string())?);
    let label = label.to_owned();
    let (started, starts) = oneshot::channel();
    let (end, ended) = oneshot::channel();
    // A thread of its own, because the next PID namespace is a property of the thread and does not go away.
    std::thread::spawn(move || life(&spec, &label, output, started, end));
    let (pidfd, pid) = starts.await.map_err(|_| "its thread is gone".to_owned())??;
    Ok(Running { pidfd, pid, ended })
}

type Started = oneshot::Sender<Result<(OwnedFd, i32), String>>;

fn life(spec: &[u8], label: &str, output: Output, started: Started, end: oneshot::Sender<End>) {
    // Before the thread's namespace changes: it can make no threads afterwards.
    let mut copies = Vec::new();
    let mut pipe = |stream| {
        let (reader, writer) = std::io::pipe()?;
        let label = label.to_owned();
        copies.push(std::thread::spawn(move || output.copy(&label, stream, reader)));
        std::io::Result::Ok(writer)
    };
    let mut begin = || -> Result<_, String> {
        let (out, err) = (|| Ok((pipe(Stream::Out)?, pipe(Stream::Err)?)))()
            .map_err(|e: std::io::Error| format!("make pipes: {e}"))?;
        seamount_sys::play::unshare(UnshareFlags::NEWPID)
            .map_err(|e| format!("make a PID namespace: {e}"))?;
        let (mut ours, theirs) = UnixStream::pair().map_err(|e| format!("make a socket: {e}"))?;
        let mut child = Command::new("/proc/self/exe")
            .args([super::STAGE, "container"])
            .env_clear()
            .stdin(OwnedFd::from(theirs))
            .stdout(out)
            .stderr(err)
            .spawn()
            .map_err(|e| format!("start a process: {e}"))?;
        let mut talk = || -> std::io::Result<String> {
            ours.write_all(spec)?;
            ours.shutdown(Shutdown::Write)?;
            let mut text = String::new();
            ours.read_to_string(&mut text)?;
            Ok(text)
        };
        let failed = talk().unwrap_or_else(|e| format!("its process ended early: {e}"));
        if !failed.is_empty() {
            // Whatever it is doing: it is not the container.
            let _ = child.kill();
            let _ = child.wait();
            return Err(failed);
        }
        let pid = i32::try_from(child.id()).map_err(|e| e.to_string())?;
        let pidfd = Pid::from_raw(pid)
            .ok_or_else(|| "it has no pid".to_owned())
            .and_then(|p| pidfd_open(p, PidfdFlags::empty()).map_err(|e| format!("open its pidfd: {e}")))?;
        Ok((child, pidfd, pid))
    };
    match begin() {
        Ok((mut child, pidfd, pid)) => {
            // The receiver is gone only if everything is being torn down.
            let _ = started.send(Ok((pidfd, pid)));
            let status = child.wait();
            // Its PID namespace is gone, so no process holds the pipes: the last line comes before the
            // status.
            for copy in copies {
                let _ = copy.join();
            }
            let _ = end.send(status.map_or_else(|e| End::NotStarted(e.to_string()), End::from));
        }
        Err(reason) => {
            let _ = started.send(Err(reason));
        }
    }
}

impl Running {
    /// Waits for its end.
    pub async fn wait(&mut self) -> End {
        (&mut self.ended).await.unwrap_or_else(|_| End::NotStarted("its thread is gone".into()))
    }

    /// Stops it: SIGTERM, and after the grace period, or when `stop` says so, SIGKILL.
    pub async fn terminate(&mut self, grace: Duration, stop: &mut watch::Receiver<Stop>) -> End {
        // PID 1 of a namespace gets no signal that it has no handler for, so there is nothing to wait for
        // then.
        if *stop.borrow() < Stop::Now && !grace.is_zero() && handles_termination(self.pid) {
            let _ = pidfd_send_signal(&self.pidfd, Signal::TERM);
            let now = async {
                // An error means that the sender is gone, which is as good as a request.
                let _ = stop.wait_for(|s| *s == Stop::Now).await;
            };
            tokio::select! {
                end = self.wait() => return end,
                () = tokio::time::sleep(grace) => {}
                () = now => {}
            }
        }
        let _ = pidfd_send_signal(&self.pidfd, Signal::KILL);
        self.wait().await
    }
}

fn handles_termination(pid: i32) -> bool {
    // Where it cannot be known, it is given its time.
    std::fs::read_to_string(format!("/proc/{pid}/status"))
        .map_or(true, |status| catches(&status, Signal::TERM))
}

/// Whether a process catches a signal, from its `/proc/<pid>/status` (proc(5), `SigCgt`). A blocked one
/// counts too: the process takes it from a signalfd or sigwait(3).
fn catches(status: &str, signal: Signal) -> bool {
    ["SigCgt:", "SigBlk:"].into_iter().any(|field| {
        status
            .lines()
            .find_map(|l| l.strip_prefix(field))
            .and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok())
            .is_some_and(|mask| mask & (1 << (signal.as_raw() - 1)) != 0)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_the_signal_masks() {
        let status =
            "Name:\tx\nSigBlk:\t0000000000000000\nSigIgn:\t0000000000004000\nSigCgt:\t0000000000004002\n";
        assert!(catches(status, Signal::TERM));
        assert!(catches(status, Signal::INT));
        assert!(!catches(status, Signal::HUP));
        assert!(!catches(&status.replace("SigCgt:\t0000000000004002", "SigCgt:\t0"), Signal::TERM));
        assert!(catches("SigBlk:\t4000\nSigCgt:\t0\n", Signal::TERM));
        assert!(!catches("", Signal::TERM));
    }

    #[test]
    fn a_signal_counts_as_128_and_its_number() {
        assert_eq!(End::from(ExitStatus::from_raw(9)), End::Exited(137));
        assert_eq!(End::from(ExitStatus::from_raw(3 << 8)), End::Exited(3));
        assert!(End::from(ExitStatus::from_raw(0)).is_success());
    }
}
