//! `seamount.node.v1`: what the agent says to whoever operates the node (`seamount node`).
//!
//! It is served on the CSI socket, beside CSI: that is there before the configuration is read, and only root
//! may use it, so nothing more is open than before. The kubelet asks for services by name and never sees this
//! one.

use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use futures_util::{Stream, stream};
use seamount_mounter_client::{Client, Link};
use seamount_mounter_protocol::names::{DriverName, Volume};
use seamount_proto::node::{self, node_server};
use seamount_telemetry::logging::Recent;
use seamount_telemetry::readiness::ConditionStatus;
use tokio::sync::watch;
use tonic::{Request, Response, Status};

use crate::config_manager::ConfigManager;
use crate::readiness;
use crate::registration::DriverStatus;
use crate::source::Source;
use crate::volumes::{Volumes, unix};

/// Volumes in one message: below the 4 MiB that a gRPC client takes.
const PART: usize = 256;
/// How long the mounter may take to show that it answers.
const ANSWER: Duration = Duration::from_secs(2);
/// A volume that no kubelet makes: the mounter answers that it is not there.
const NOBODY: (&str, &str) = ("00000000-0000-0000-0000-000000000000", "nobody");

/// The service; cheap to clone.
#[derive(Clone)]
pub struct Service {
    /// Basics, readiness, metrics.
    pub manager: Arc<ConfigManager>,
    /// Volumes.
    pub volumes: Arc<Volumes>,
    /// The mounter.
    pub mounter: Client,
    /// How each driver's registration stands.
    pub registrations: Vec<(DriverName, watch::Receiver<DriverStatus>)>,
    /// When the agent started.
    pub started: SystemTime,
}

impl Service {
    async fn mounter(&self) -> node::Mounter {
        let mut out = node::Mounter { socket: self.mounter.socket().to_owned(), ..node::Mounter::default() };
        let link = self.mounter.link().borrow().clone();
        let up = match link {
            Link::Up(up) => up,
            Link::Down(why) | Link::Incompatible(why) => {
                out.problem = why;
                return out;
            }
        };
        out.connected = true;
        out.connections = up.number;
        let age = Duration::from_micros(up.hello.age_us);
        out.started = up.since.checked_sub(age).map_or(0, unix);
        out.descriptor_limit = up.hello.descriptors;
        (out.idmap, out.noswap) = (up.hello.idmap, up.hello.noswap);
        out.build = up.hello.build;
        let (pod, name) = NOBODY;
        let (Ok(pod), Ok(name), Ok(id)) = (pod.parse(), name.parse(), name.parse()) else { return out };
        let Some(driver) = self.manager.bootstrap().drivers.first().cloned() else { return out };
        match self.mounter.inspect(&Volume { driver, pod, name, id }, ANSWER).await {
            Ok(_) => out.answers = true,
            Err(e) if e.is_fault() => out.answers = true,
            Err(e) => out.problem = e.to_string(),
        }
        out
    }

    fn drivers(&self) -> Vec<node::Driver> {
        let driver = |(name, status): &(DriverName, watch::Receiver<DriverStatus>)| {
            let DriverStatus { state, reason, since } = status.borrow().clone();
            let registration = node::Registration { state: state.to_owned(), since: unix(since), reason };
            node::Driver { name: name.to_string(), registration: Some(registration) }
        };
        self.registrations.iter().map(driver).collect()
    }

    fn conditions(&self) -> Vec<node::Condition> {
        let all = self.manager.shown().readiness.since().into_iter();
        all.map(|(condition, (status, since))| {
            let (state, text) = match status {
                ConditionStatus::Ready(remark) => ("ready", remark),
                ConditionStatus::NotReady(why) => ("not ready", why),
                ConditionStatus::NotNeeded => ("not needed", String::new()),
            };
            node::Condition { name: condition.to_string(), state: state.to_owned(), text, since: unix(since) }
        })
        .collect()
    }

    fn authority(&self) -> node::Authority {
        let seen = self.volumes.authority_health().seen();
        let condition = self.manager.shown().readiness.get(&readiness::AUTHORITY);
        let mut since = condition.map_or(0, |(_, since)| unix(since));
        let validity = |(from, until)| node::Validity { not_before: unix(from), not_after: unix(until) };
        let mut out = node::Authority {
            last_success: seen.last_success.map_or(0, unix),
            last_failure: seen.last_failure.as_ref().map_or(0, |(at, _)| unix(*at)),
            last_error: seen.last_failure.map(|(_, why)| why.to_string()).unwrap_or_default(),
            issuer: seen.issuer.or_else(|| self.volumes.issuer()).map(validity),
            ..node::Authority::default()
        };
        out.state = match &*self.volumes.source().borrow() {
            Source::Directory => "none",
            Source::Missing(why) => {
                out.trouble = why.to_string();
                "down"
            }
            Source::Authority(signer) => {
                out.trouble = signer.trouble.as_deref().unwrap_or_default().to_owned();
                let bundles = signer.authority.bundles().borrow().clone();
                out.roots = bundles.own().validities().into_iter().map(validity).collect();
                match seen.down_since {
                    Some(down) => {
                        since = unix(down);
                        "down"
                    }
                    None => "up",
                }
            }
        }
        .to_owned();
        out.since = since;
        out
    }

    fn state(&self) -> node::State {
        match self.volumes.usage() {
            Ok(usage) => node::State {
                available: true,
                problem: String::new(),
                bytes: usage.bytes,
                bytes_used: usage.bytes_used,
                inodes: usage.inodes,
                inodes_used: usage.inodes_used,
            },
            Err(problem) => node::State { problem, ..node::State::default() },
        }
    }
}

#[tonic::async_trait]
impl node_server::Node for Service {
    async fn get_status(
        &self,
        _: Request<node::GetStatusRequest>,
    ) -> Result<Response<node::GetStatusResponse>, Status> {
        let mounter = self.mounter().await;
        let (bootstrap, settings) = (self.manager.bootstrap(), self.manager.settings());
        let config = settings.as_ref().map(|s| &s.config);
        let metrics = self.manager.metrics();
        let now = SystemTime::now();
        let (connections, streams) = metrics.workload_api.open();
        let (overdue, expired) = metrics.volumes.late(now);
        let lines = self.manager.recent().as_ref().map(Recent::lines).unwrap_or_default();
        Ok(Response::new(node::GetStatusResponse {
            agent_version: env!("CARGO_PKG_VERSION").to_owned(),
            agent_pid: i64::from(std::process::id()),
            agent_started: unix(self.started),
            drivers: self.drivers(),
            node: bootstrap.node_name.clone(),
            kubelet_root: bootstrap.kubelet_root.clone(),
            trust_domain: config
                .and_then(|c| c.authority())
                .map(|a| a.trust_domain.to_string())
                .unwrap_or_default(),
            source: match config {
                None => "none",
                Some(config) if config.authority().is_some() => "authority",
                Some(_) => "directory",
            }
            .to_owned(),
            mounter: Some(mounter),
            conditions: self.conditions(),
            authority: Some(self.authority()),
            volumes: self.volumes.by_state(),
            connections,
            streams,
            descriptor_limit: metrics.process.descriptors(),
            descriptors: open_descriptors(),
            state: Some(self.state()),
            log: lines
                .into_iter()
                .map(|line| node::LogLine {
                    time: unix(line.time),
                    level: if line.error { "error" } else { "warn" }.to_owned(),
                    text: line.text,
                })
                .collect(),
            now: unix(now),
            overdue: overdue as u64,
            expired: expired as u64,
        }))
    }

    type ListVolumesStream =
        Pin<Box<dyn Stream<Item = Result<node::ListVolumesResponse, Status>> + Send + 'static>>;

    async fn list_volumes(
        &self,
        _: Request<node::ListVolumesRequest>,
    ) -> Result<Response<Self::ListVolumesStream>, Status> {
        let (volumes, problem) = self.volumes.report().await;
        let mounter_problem = problem.unwrap_or_default();
        let mut parts: Vec<_> = volumes
            .chunks(PART)
            .map(|part| node::ListVolumesResponse { volumes: part.to_vec(), ..Default::default() })
            .collect();
        parts.push(node::ListVolumesResponse { volumes: Vec::new(), mounter_problem });
        Ok(Response::new(Box::pin(stream::iter(parts.into_iter().map(Ok)))))
    }
}

/// A process may list its own descriptors also where it is not dumpable.
fn open_descriptors() -> u64 {
    // The one that the listing takes is not counted.
    std::fs::read_dir("/proc/self/fd").map_or(0, |all| all.count().saturating_sub(1) as u64)
}
