//! The agent's metrics: those of each area, which counts beside its own code, and of the process.

use std::sync::Arc;

use seamount_telemetry::logging;
use seamount_telemetry::metrics::{Area, Gauge, Names, Registry, number};

use crate::{csi, memory, mounter, registration, volumes, workload_api};

/// What each area counts with; cheap to clone.
#[derive(Clone, Default)]
#[allow(missing_docs, reason = "the areas' names")]
pub struct Metrics {
    pub process: Arc<Process>,
    pub csi: Arc<csi::metrics::Metrics>,
    pub volumes: Arc<volumes::metrics::Metrics>,
    pub workload_api: Arc<workload_api::Metrics>,
    pub memory: Arc<memory::Metrics>,
    pub mounter: Arc<mounter::Metrics>,
    pub registration: Arc<registration::Metrics>,
    pub token: Arc<seamount_pod_token::Metrics>,
}

impl Metrics {
    /// All of them, to be shown.
    pub fn registry(&self) -> Registry {
        Registry::default()
            .with(&self.process)
            .with(&self.csi)
            .with(&self.volumes)
            .with(&self.workload_api)
            .with(&self.memory)
            .with(&self.mounter)
            .with(&self.registration)
            .with(&self.token)
            .with(&Arc::<logging::Metrics>::default())
    }
}

/// The process itself.
#[derive(Debug, Default)]
pub struct Process {
    descriptors: Gauge,
}

impl Area for Process {
    fn register(&self, names: &mut Names<'_>) {
        names.info("agent_build", "Release of the agent", [("version", env!("CARGO_PKG_VERSION"))]);
        names.add("descriptor_limit", "Descriptors that the agent may have open", &self.descriptors);
    }
}

impl Process {
    /// The process's limit of descriptors.
    pub fn descriptors(&self) -> u64 {
        u64::try_from(self.descriptors.get()).unwrap_or_default()
    }

    /// The process's limit of descriptors is this.
    pub fn set_descriptors(&self, limit: u64) {
        self.descriptors.set(number(limit));
    }
}

#[cfg(test)]
mod tests;
