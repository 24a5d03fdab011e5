//! The real programs as child processes.

use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

/// How long a signal SIGSTOP waits for all threads to stand still.
const STAND_STILL: Duration = Duration::from_secs(5);

/// Why a process is not as it should be.
#[derive(Debug, thiserror::Error)]
pub enum ProcessError {
    /// It did not start.
    #[error("cannot start {}: {source}", program.display())]
    Start {
        /// The program.
        program: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// It ended while something was awaited of it.
    #[error("{name} ended with {status} while waiting for {awaited}; its log:\n{log}")]
    Ended {
        /// The process's name.
        name: String,
        /// How it ended.
        status: ExitStatus,
        /// What was awaited.
        awaited: String,
        /// The end of its log.
        log: String,
    },
    /// Something was awaited in vain.
    #[error("{name} (pid {pid}): waited {deadline:?} in vain for {awaited}; its log:\n{log}")]
    InVain {
        /// The process's name.
        name: String,
        /// Its pid.
        pid: u32,
        /// How long.
        deadline: Duration,
        /// What was awaited.
        awaited: String,
        /// The end of its log.
        log: String,
    },
    /// The kernel refused something about it.
    #[error("{name} (pid {pid}): {action}: {source}")]
    Kernel {
        /// The process's name.
        name: String,
        /// Its pid.
        pid: u32,
        /// What was tried.
        action: &'static str,
        /// What the kernel says.
        source: io::Error,
    },
}

/// How to start a process.
#[derive(Debug)]
pub struct Spawn {
    name: String,
    command: Command,
    log: PathBuf,
}

impl Spawn {
    /// The program at `program`; standard output and error go to the file `<logs>/<name>.log`, to its end if
    /// it exists.
    pub fn new(name: &str, program: &Path, logs: &Path) -> Self {
        let mut command = Command::new(program);
        command.stdin(Stdio::null());
        Self { name: name.to_owned(), command, log: logs.join(format!("{name}.log")) }
    }

    /// The same for a program that may have so many descriptors and no more, whatever this process may have.
    pub fn limited(name: &str, program: &Path, logs: &Path, descriptors: u64) -> Self {
        // The shell sets both limits, and becomes the program: pid, uid and death signal stay.
        let script = "ulimit -n \"$0\" && exec \"$@\"";
        Self::new(name, Path::new("/bin/sh"), logs)
            .args(["-c", script, &descriptors.to_string()])
            .args([program])
    }

    /// Adds arguments.
    #[must_use]
    pub fn args<S: AsRef<OsStr>>(mut self, args: impl IntoIterator<Item = S>) -> Self {
        self.command.args(args);
        self
    }

    /// Sets a variable of its environment.
    #[must_use]
    pub fn env(mut self, key: &str, value: impl AsRef<OsStr>) -> Self {
        self.command.env(key, value);
        self
    }

    /// Has its log in another directory.
    #[must_use]
    pub fn log_in(mut self, logs: &Path) -> Self {
        self.log = logs.join(self.log.file_name().unwrap_or_default());
        self
    }

    /// Runs it as this uid and gid, without supplementary groups. (Takes root.)
    #[must_use]
    pub fn ids(mut self, uid: u32, gid: u32) -> Self {
        self.command.uid(uid).gid(gid);
        self
    }

    /// Has it killed when the thread that starts it ends, also by a signal to this process.
    #[must_use]
    pub fn dying_with_us(mut self) -> Self {
        seamount_sys::play::die_with_the_starter(&mut self.command);
        self
    }

    /// Starts it, in the caller's namespaces.
    ///
    /// # Errors
    /// If the log cannot be opened or the program not be started.
    pub fn start(mut self) -> Result<Process, ProcessError> {
        let program = PathBuf::from(self.command.get_program());
        let failed = |source| ProcessError::Start { program: program.clone(), source };
        let log = File::options().create(true).append(true).open(&self.log).map_err(failed)?;
        let child =
            self.command.stdout(log.try_clone().map_err(failed)?).stderr(log).spawn().map_err(failed)?;
        Ok(Process { name: self.name, child, log: self.log })
    }
}

/// A running child process. Killed and reaped when it is dropped.
#[derive(Debug)]
pub struct Process {
    name: String,
    child: Child,
    log: PathBuf,
}

impl Process {
    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// What it has written so far.
    pub fn log(&self) -> String {
        String::from_utf8_lossy(&std::fs::read(&self.log).unwrap_or_default()).into_owned()
    }

    /// The file that it writes to.
    pub fn log_path(&self) -> &Path {
        &self.log
    }

    /// How it ended, or `None` while it runs.
    ///
    /// # Errors
    /// If the kernel does not say.
    pub fn ended(&mut self) -> Result<Option<ExitStatus>, ProcessError> {
        self.child.try_wait().map_err(|source| self.kernel("cannot ask whether it runs", source))
    }

    /// Waits until `condition` holds, while the process runs.
    ///
    /// # Errors
    /// If the process ends before, or the deadline is over; with the end of its log.
    pub fn wait_until(
        &mut self,
        deadline: Duration,
        awaited: &str,
        mut condition: impl FnMut(&Self) -> bool,
    ) -> Result<(), ProcessError> {
        let started = Instant::now();
        loop {
            // In this order: what a process wrote before it ended counts.
            let ended = self.ended()?;
            if condition(self) {
                return Ok(());
            }
            if let Some(status) = ended {
                return Err(ProcessError::Ended {
                    name: self.name.clone(),
                    status,
                    awaited: awaited.to_owned(),
                    log: self.log_end(),
                });
            }
            if started.elapsed() > deadline {
                return Err(self.in_vain(deadline, awaited));
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Waits until its log has `text`.
    ///
    /// # Errors
    /// Like [`Process::wait_until`].
    pub fn wait_for_log(&mut self, deadline: Duration, text: &str) -> Result<(), ProcessError> {
        self.wait_until(deadline, &format!("{text:?} in its log"), |process| process.log().contains(text))
    }

    /// Waits until a file or socket is there.
    ///
    /// # Errors
    /// Like [`Process::wait_until`].
    pub fn wait_for_path(&mut self, deadline: Duration, path: &Path) -> Result<(), ProcessError> {
        self.wait_until(deadline, &path.display().to_string(), |_| path.symlink_metadata().is_ok())
    }

    /// Waits until it has ended.
    ///
    /// # Errors
    /// If it runs on after `deadline`.
    pub fn wait_for_end(&mut self, deadline: Duration) -> Result<ExitStatus, ProcessError> {
        let started = Instant::now();
        loop {
            if let Some(status) = self.ended()? {
                return Ok(status);
            }
            if started.elapsed() > deadline {
                return Err(self.in_vain(deadline, "its end"));
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Sends a signal. After SIGSTOP every thread stands still when this returns.
    ///
    /// # Errors
    /// If the kernel refuses, for instance because it has ended.
    pub fn signal(&mut self, signal: Signal) -> Result<(), ProcessError> {
        // A process that was reaped has given its pid back: another process may have it.
        if self.ended()?.is_some() {
            return Err(self.kernel("cannot signal it", io::Error::from(io::ErrorKind::NotFound)));
        }
        kill_process(Pid::from_child(&self.child), signal)
            .map_err(|source| self.kernel("cannot signal it", source.into()))?;
        if signal == Signal::STOP {
            self.stand_still();
        }
        Ok(())
    }

    /// Waits until every thread has stopped. One of them takes the signal and stops the others; on a busy
    /// machine they go on for milliseconds until it has its turn.
    fn stand_still(&self) {
        let state = |task: &Path| {
            let stat = std::fs::read_to_string(task.join("stat")).unwrap_or_default();
            stat.rsplit_once(") ").and_then(|(_, rest)| rest.chars().next())
        };
        let tasks = PathBuf::from(format!("/proc/{}/task", self.child.id()));
        let deadline = Instant::now() + STAND_STILL;
        while Instant::now() < deadline {
            let Ok(entries) = std::fs::read_dir(&tasks) else { return };
            // A thread that has ended meanwhile has no state.
            if entries.flatten().all(|task| matches!(state(&task.path()), Some('T' | 't' | 'Z') | None)) {
                return;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Asks it to stop (SIGTERM) and waits for its end.
    ///
    /// # Errors
    /// If it runs on after `deadline`.
    pub fn stop(mut self, deadline: Duration) -> Result<ExitStatus, ProcessError> {
        if self.ended()?.is_none() {
            self.signal(Signal::TERM)?;
        }
        self.wait_for_end(deadline)
    }

    /// Kills it (SIGKILL), as a crash would, and reaps it.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn crash(mut self) -> Result<ExitStatus, ProcessError> {
        self.child.kill().map_err(|source| self.kernel("cannot kill it", source))?;
        self.child.wait().map_err(|source| self.kernel("cannot reap it", source))
    }

    fn kernel(&self, action: &'static str, source: io::Error) -> ProcessError {
        ProcessError::Kernel { name: self.name.clone(), pid: self.pid(), action, source }
    }

    fn in_vain(&self, deadline: Duration, awaited: &str) -> ProcessError {
        ProcessError::InVain {
            name: self.name.clone(),
            pid: self.pid(),
            deadline,
            awaited: awaited.to_owned(),
            log: self.log_end(),
        }
    }

    fn log_end(&self) -> String {
        let log = self.log();
        let lines: Vec<_> = log.lines().rev().take(40).collect();
        lines.into_iter().rev().collect::<Vec<_>>().join("\n")
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Both fail only if it has been reaped.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
