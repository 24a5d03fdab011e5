//! The node and its two processes.

use std::ops::Deref;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use rustix::process::Signal;
use seamount_testkit::issuer::{Algorithm, TokenIssuer};
pub use seamount_testkit::node::DRIVER;
use seamount_testkit::node::{ISSUER, RUN, free_address, ready};
use seamount_testkit::processes::Process;

/// One of the two processes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Who {
    /// `seamount-agent`.
    Agent,
    /// `seamount-mounter`.
    Mounter,
}

impl Who {
    /// The other one.
    pub fn other(self) -> Self {
        match self {
            Self::Agent => Self::Mounter,
            Self::Mounter => Self::Agent,
        }
    }
}

/// What the two processes of one DaemonSet pod share.
#[derive(Debug)]
struct Pair {
    /// The directory of the mounter's socket.
    run: String,
    /// Where the agent shows its health.
    http: String,
}

/// The node.
#[derive(Debug)]
pub struct Node {
    base: seamount_testkit::node::Node,
    pair: Mutex<Arc<Pair>>,
    agent: Mutex<Option<Process>>,
    mounter: Mutex<Option<Process>>,
    pairs: AtomicUsize,
}

/// The pair before the one that a roll-out has started.
#[derive(Debug)]
pub struct Old {
    pair: Arc<Pair>,
    processes: Vec<(Who, Process)>,
}

impl Deref for Node {
    type Target = seamount_testkit::node::Node;

    fn deref(&self) -> &Self::Target {
        &self.base
    }
}

impl Node {
    /// In the caller's mount namespace, which has to be its own. Starts nothing yet. Without a directory of
    /// programs those beside this program are run.
    ///
    /// # Errors
    /// If something cannot be made.
    pub fn new(logs: &Path, programs: Option<&Path>) -> anyhow::Result<Self> {
        std::fs::create_dir_all(logs)?;
        for name in ["agent.log", "mounter.log"] {
            // An earlier run's.
            let _ = std::fs::remove_file(logs.join(name));
        }
        // ECDSA: a thousand tokens should not cost the machine anything.
        let issuer = TokenIssuer::with_algorithm(ISSUER, Algorithm::Es256);
        let base = seamount_testkit::node::Node::new(issuer)?.with_logs(logs).with_programs(programs);
        let root = base.path("root").display().to_string();
        // Nothing is due for a new SVID while this runs: another serial is a lost one.
        base.configure(&base.yaml_with(&format!("directory: {root}, svidTtl: 12h, caTtl: 96h")))?;
        let pair = Mutex::new(Arc::new(Pair { run: RUN.to_owned(), http: base.http.clone() }));
        let (agent, mounter, pairs) = Default::default();
        Ok(Self { base, pair, agent, mounter, pairs })
    }

    fn process(&self, who: Who) -> MutexGuard<'_, Option<Process>> {
        let process = match who {
            Who::Agent => &self.agent,
            Who::Mounter => &self.mounter,
        };
        process.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn pair(&self) -> Arc<Pair> {
        Arc::clone(&self.pair.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Starts a process.
    ///
    /// # Errors
    /// If it cannot be started.
    pub fn start(&self, who: Who) -> anyhow::Result<()> {
        let pair = self.pair();
        let spawn = match who {
            Who::Agent => self.base.agent(&pair.run, &pair.http),
            Who::Mounter => self.base.mounter(&pair.run),
        };
        let process = spawn.start()?;
        *self.process(who) = Some(process);
        Ok(())
    }

    /// SIGKILL, also to one that stands still.
    ///
    /// # Errors
    /// If it has ended by itself, which is a finding.
    pub fn kill(&self, who: Who) -> anyhow::Result<()> {
        self.signal(who, Signal::KILL)
    }

    /// Waits for the end of a process that was killed.
    ///
    /// # Errors
    /// If there is none.
    pub fn reap(&self, who: Who) -> anyhow::Result<()> {
        let process = self.process(who).take().context("not started")?;
        process.crash()?;
        Ok(())
    }

    /// Any signal.
    ///
    /// # Errors
    /// Like [`Node::kill`].
    pub fn signal(&self, who: Who, signal: Signal) -> anyhow::Result<()> {
        let mut process = self.process(who);
        let process = process.as_mut().context("not started")?;
        if let Some(status) = process.ended()? {
            bail!("{who:?} ended by itself: {status}; see {}", process.log_path().display());
        }
        Ok(process.signal(signal)?)
    }

    /// Starts a second pair of processes beside the first, as a DaemonSet with `maxSurge: 1` does, and no
    /// other than these are signalled from then on.
    ///
    /// # Errors
    /// If one cannot be started.
    pub fn roll(&self, first: Who) -> anyhow::Result<Old> {
        let number = self.pairs.fetch_add(1, Ordering::Relaxed) + 1;
        let pair = Arc::new(Pair { run: format!("{RUN}{number}"), http: free_address()? });
        self.base.make_run(&pair.run)?;
        let old = std::mem::replace(&mut *self.pair.lock().unwrap_or_else(PoisonError::into_inner), pair);
        let mut processes = Vec::new();
        for who in [first, first.other()] {
            processes.extend(self.process(who).take().map(|process| (who, process)));
            self.start(who)?;
        }
        Ok(Old { pair: old, processes })
    }

    /// Waits until the processes before a roll-out have left by themselves.
    ///
    /// # Errors
    /// If one does not leave within `limit`, or not with success.
    pub async fn left(&self, mut old: Old, limit: Duration) -> anyhow::Result<()> {
        let begun = Instant::now();
        for (who, process) in &mut old.processes {
            loop {
                match process.ended()? {
                    Some(status) if status.success() => break,
                    Some(status) => bail!("the old {who:?} ended with {status} in a roll-out"),
                    None if begun.elapsed() > limit => {
                        bail!("the old {who:?} did not leave within {limit:?}")
                    }
                    None => tokio::time::sleep(Duration::from_millis(2)).await,
                }
            }
        }
        std::fs::remove_dir_all(self.base.path(&old.pair.run))?;
        Ok(())
    }

    /// Asks both to stop, and waits.
    ///
    /// # Errors
    /// If one does not stop.
    pub fn stop(&self) -> anyhow::Result<()> {
        for who in [Who::Agent, Who::Mounter] {
            if let Some(process) = self.process(who).take() {
                process.stop(Duration::from_secs(30))?;
            }
        }
        Ok(())
    }

    /// Its process id.
    pub fn pid(&self, who: Who) -> Option<u32> {
        self.process(who).as_ref().map(Process::pid)
    }

    /// How many sockets the mounter has open; none where it does not run.
    pub fn mounters_sockets(&self) -> usize {
        let directory = format!("/proc/{}/fd", self.pid(Who::Mounter).unwrap_or_default());
        let links = std::fs::read_dir(directory).into_iter().flatten();
        let links = links.filter_map(|entry| std::fs::read_link(entry.ok()?.path()).ok());
        links.filter(|link| link.to_string_lossy().starts_with("socket:")).count()
    }

    /// Waits until the agent says that it is ready.
    ///
    /// # Errors
    /// With its last words, after `limit`.
    pub async fn ready(&self, limit: Duration) -> anyhow::Result<()> {
        ready(&self.base.health(&self.pair().run), limit).await
    }
}
