//! The node that is attacked, and what its two processes use.

use std::ops::Deref;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use seamount_testkit::issuer::{Algorithm, TokenIssuer};
use seamount_testkit::node::{ISSUER, RUN};
use seamount_testkit::processes::Process;
use seamount_testkit::usage;

use crate::LONG;
use crate::attacks::Attack;

/// Between two looks at the agent's memory.
const LOOK: Duration = Duration::from_millis(20);
/// How long descriptors may take to be closed, and a process to stop.
const END: Duration = Duration::from_secs(30);
/// How long memory may take to come back: the agent's allocator gives pages back after ten seconds.
const GIVEN_BACK: Duration = Duration::from_secs(15);
/// Memory that is near the start.
const NEAR: f64 = 8.0;

/// The node, whose processes run.
#[derive(Debug)]
pub struct Node {
    base: seamount_testkit::node::Node,
    agent: Process,
    mounter: Process,
}

impl Deref for Node {
    type Target = seamount_testkit::node::Node;

    fn deref(&self) -> &Self::Target {
        &self.base
    }
}

/// What the two processes hold.
#[derive(Debug, Clone, Copy)]
pub struct Usage {
    /// The agent's memory that no file backs, in MB of 10⁶ bytes: with the program's own pages the number
    /// would depend on which code has run.
    pub memory: f64,
    /// Descriptors of agent and mounter.
    pub descriptors: [usize; 2],
}

impl Node {
    /// A node for this attack, registered and ready.
    pub async fn started(attack: &Attack, programs: Option<&Path>, logs: &Path) -> anyhow::Result<Self> {
        // An earlier run's.
        let _ = std::fs::remove_dir_all(logs);
        std::fs::create_dir_all(logs)?;
        let issuer = TokenIssuer::with_algorithm(ISSUER, Algorithm::Es256);
        let base = seamount_testkit::node::Node::new(issuer)?
            .with_logs(logs)
            .with_programs(programs)
            .with_descriptors(attack.descriptors);
        let root = base.path("root").display().to_string();
        base.configure(&base.yaml_with(&format!("directory: {root}{}", attack.authority)))?;
        let mounter = base.mounter(RUN).start()?;
        let agent = base.agent(RUN, &base.http).start()?;
        let node = Self { base, agent, mounter };
        node.kubelet.register(LONG).await?;
        node.ready(LONG).await?;
        Ok(node)
    }

    /// What the processes hold now.
    pub fn usage(&self) -> anyhow::Result<Usage> {
        let descriptors = [usage::descriptors(self.agent.pid())?, usage::descriptors(self.mounter.pid())?];
        Ok(Usage { memory: usage::anonymous(self.agent.pid())?, descriptors })
    }

    /// What the processes hold once it is near to what they held before, or does not come nearer.
    pub async fn settled(&self, before: &Usage) -> anyhow::Result<Usage> {
        let begun = Instant::now();
        loop {
            let now = self.usage()?;
            let few = now.descriptors.iter().zip(before.descriptors).all(|(now, before)| *now <= before);
            let small = now.memory <= before.memory + NEAR;
            if (few && small) || begun.elapsed() > if few { GIVEN_BACK } else { END } {
                return Ok(now);
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    /// Processor time that the agent has used.
    pub fn processor(&self) -> anyhow::Result<Duration> {
        usage::processor(self.agent.pid())
    }

    /// Looks at the agent's memory from now on.
    pub fn watch_memory(&self) -> anyhow::Result<Memory> {
        let pid = self.agent.pid();
        let shared = Arc::new((AtomicU64::new(0), AtomicBool::new(false)));
        let thread = std::thread::Builder::new().spawn({
            let shared = Arc::clone(&shared);
            move || {
                // Until it has ended, which is seen elsewhere.
                while !shared.1.load(Ordering::Relaxed)
                    && let Ok(megabytes) = usage::anonymous(pid)
                {
                    // Positive numbers have the order of their bits.
                    shared.0.fetch_max(megabytes.to_bits(), Ordering::Relaxed);
                    std::thread::sleep(LOOK);
                }
            }
        })?;
        Ok(Memory { shared, thread: Some(thread) })
    }

    /// Stops both; what was wrong with that, or with their lives.
    pub fn stop(self) -> anyhow::Result<Vec<String>> {
        let mut faults = Vec::new();
        for (name, mut process) in [("agent", self.agent), ("mounter", self.mounter)] {
            if let Some(status) = process.ended()? {
                faults.push(format!("the {name} has ended by itself: {status}"));
            } else if let Err(error) = process.stop(END) {
                faults.push(error.to_string());
            }
        }
        Ok(faults)
    }
}

/// A look at memory that goes on.
#[derive(Debug)]
pub struct Memory {
    shared: Arc<(AtomicU64, AtomicBool)>,
    thread: Option<JoinHandle<()>>,
}

impl Memory {
    /// The most that was seen, in MB.
    pub fn peak(&self) -> f64 {
        f64::from_bits(self.shared.0.load(Ordering::Relaxed))
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        self.shared.1.store(true, Ordering::Relaxed);
        // A thread that has panicked has said so.
        let _ = self.thread.take().map(JoinHandle::join);
    }
}
