//! What `-o json` prints. The names are stable: a change of meaning, or of a name, raises [`SCHEMA`]; new
//! fields do not. Times are RFC 3339 in UTC, absent ones null.

use std::collections::BTreeMap;

use seamount_proto::node;
use serde::Serialize;

use super::client::Listed;
use super::time::{rfc3339, unix};

/// Which document this is.
pub const SCHEMA: &str = "seamount.dev/node/v1";

/// `status`.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Report {
    /// [`SCHEMA`].
    pub schema: &'static str,
    /// `Status`.
    pub kind: &'static str,
    /// Name of the node.
    pub node: String,
    /// The CSI drivers of the agent.
    pub drivers: Vec<Driver>,
    /// The kubelet's root directory, as the agent knows it.
    pub kubelet_root: String,
    /// `authority`, `directory`, `none`.
    pub source: String,
    /// Null without an authority.
    pub trust_domain: Option<String>,
    /// Whether every condition is met.
    pub ready: bool,
    /// Conditions of readiness.
    pub conditions: Vec<Condition>,
    /// The agent.
    pub agent: Agent,
    /// The mounter.
    pub mounter: Mounter,
    /// What signs.
    pub authority: Authority,
    /// Number of the agent's volumes by state.
    pub volumes: BTreeMap<String, u64>,
    /// SVIDs whose renewal is overdue, expired ones among them.
    pub overdue: u64,
    /// SVIDs that have expired.
    pub expired: u64,
    /// Open Workload API connections.
    pub connections: i64,
    /// Open Workload API streams.
    pub streams: i64,
    /// The state directory.
    pub state: State,
    /// The last warnings and errors, the latest first.
    pub log: Vec<LogLine>,
    /// Unix seconds, for relative times.
    #[serde(skip)]
    pub raw: node::GetStatusResponse,
}

/// A condition of readiness.
#[derive(Debug, Serialize)]
pub struct Condition {
    /// Which.
    pub name: String,
    /// `ready`, `not ready`, `not needed`.
    pub state: String,
    /// The reason, or a remark.
    pub text: String,
    /// Since when.
    pub since: Option<String>,
}

/// The agent.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Agent {
    /// Its release.
    pub version: String,
    /// Its pid in its own PID namespace.
    pub pid: i64,
    /// When it started.
    pub started: Option<String>,
    /// Descriptors that it has open.
    pub descriptors: u64,
    /// Descriptors that it may have open.
    pub descriptor_limit: u64,
}

/// The mounter.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Mounter {
    /// Its release.
    pub build: String,
    /// Whether the agent is connected to it.
    pub connected: bool,
    /// Whether it answered just now.
    pub answers: bool,
    /// Why not.
    pub problem: String,
    /// When it started.
    pub started: Option<String>,
    /// Descriptors that it may have open.
    pub descriptor_limit: u64,
    /// Whether its kernel idmaps a tmpfs.
    pub idmap: bool,
    /// Whether its kernel has tmpfs without swap.
    pub noswap: bool,
    /// Connections that this agent has made to it.
    pub connections: u64,
}

/// A CSI driver.
#[derive(Debug, Serialize)]
pub struct Driver {
    /// Its name.
    pub name: String,
    /// The kubelet's word.
    pub registration: Registration,
}

/// The kubelet's word.
#[derive(Debug, Serialize)]
pub struct Registration {
    /// `registered`, `refused`, `unreachable`, `unknown`.
    pub state: String,
    /// Since when this agent knows.
    pub since: Option<String>,
    /// The kubelet's reason.
    pub reason: String,
}

/// What signs.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Authority {
    /// `up`, `down`, `none`.
    pub state: String,
    /// Since when.
    pub since: Option<String>,
    /// When it signed last.
    pub last_success: Option<String>,
    /// When it did not answer last.
    pub last_failure: Option<String>,
    /// Why.
    pub last_error: String,
    /// What is wrong while it goes on.
    pub trouble: String,
    /// Roots.
    pub roots: Vec<Validity>,
    /// The certificate that signs.
    pub issuer: Option<Validity>,
}

/// From and until.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Validity {
    /// From.
    pub not_before: Option<String>,
    /// Until.
    pub not_after: Option<String>,
}

/// The state directory.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct State {
    /// Whether the agent has it.
    pub available: bool,
    /// Why not.
    pub problem: String,
    /// Size.
    pub bytes: u64,
    /// Used.
    pub bytes_used: u64,
    /// Files it can hold.
    pub inodes: u64,
    /// Files in it.
    pub inodes_used: u64,
}

/// A line of the agent's log.
#[derive(Debug, Serialize)]
pub struct LogLine {
    /// When.
    pub time: Option<String>,
    /// `warn`, `error`.
    pub level: String,
    /// The message.
    pub text: String,
}

impl Driver {
    fn new(node::Driver { name, registration }: node::Driver) -> Self {
        let node::Registration { state, since, reason } = registration.unwrap_or_default();
        Self { name, registration: Registration { state, since: rfc3339(since), reason } }
    }
}

impl Report {
    /// From the agent's answer.
    pub fn new(raw: node::GetStatusResponse) -> Self {
        let s = raw.clone();
        let mounter = s.mounter.unwrap_or_default();
        let (authority, state) = (s.authority.unwrap_or_default(), s.state.unwrap_or_default());
        let validity = |v: node::Validity| Validity {
            not_before: rfc3339(v.not_before),
            not_after: rfc3339(v.not_after),
        };
        Self {
            schema: SCHEMA,
            kind: "Status",
            node: s.node,
            drivers: s.drivers.into_iter().map(Driver::new).collect(),
            kubelet_root: s.kubelet_root,
            source: s.source,
            trust_domain: Some(s.trust_domain).filter(|t| !t.is_empty()),
            ready: !s.conditions.iter().any(|c| c.state == "not ready"),
            conditions: s
                .conditions
                .into_iter()
                .map(|c| Condition { name: c.name, state: c.state, text: c.text, since: rfc3339(c.since) })
                .collect(),
            agent: Agent {
                version: s.agent_version,
                pid: s.agent_pid,
                started: rfc3339(s.agent_started),
                descriptors: s.descriptors,
                descriptor_limit: s.descriptor_limit,
            },
            mounter: Mounter {
                build: mounter.build,
                connected: mounter.connected,
                answers: mounter.answers,
                problem: mounter.problem,
                started: rfc3339(mounter.started),
                descriptor_limit: mounter.descriptor_limit,
                idmap: mounter.idmap,
                noswap: mounter.noswap,
                connections: mounter.connections,
            },
            authority: Authority {
                state: authority.state,
                since: rfc3339(authority.since),
                last_success: rfc3339(authority.last_success),
                last_failure: rfc3339(authority.last_failure),
                last_error: authority.last_error,
                trouble: authority.trouble,
                roots: authority.roots.into_iter().map(validity).collect(),
                issuer: authority.issuer.map(validity),
            },
            volumes: s.volumes.into_iter().map(|v| (v.state, v.count)).collect(),
            overdue: s.overdue,
            expired: s.expired,
            connections: s.connections,
            streams: s.streams,
            state: State {
                available: state.available,
                problem: state.problem,
                bytes: state.bytes,
                bytes_used: state.bytes_used,
                inodes: state.inodes,
                inodes_used: state.inodes_used,
            },
            log: s
                .log
                .into_iter()
                .map(|l| LogLine { time: rfc3339(l.time), level: l.level, text: l.text })
                .collect(),
            raw,
        }
    }
}

/// `volumes`.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Volumes {
    /// [`SCHEMA`].
    pub schema: &'static str,
    /// `Volumes`.
    pub kind: &'static str,
    /// When this was asked.
    pub time: Option<String>,
    /// Why the mounter could not be asked; null if it was.
    pub mounter_problem: Option<String>,
    /// By namespace, pod and name.
    pub volumes: Vec<Volume>,
    /// Unix seconds, for relative times.
    #[serde(skip)]
    pub raw: Vec<node::Volume>,
}

/// One volume.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Volume {
    /// The pod's namespace; empty: not known.
    pub namespace: String,
    /// The pod's name; empty: not known.
    pub pod: String,
    /// The pod's UID.
    pub pod_uid: String,
    /// The volume's name in the pod.
    pub name: String,
    /// The CSI driver; `orphan` where the kubelet has no record.
    pub driver: String,
    /// The CSI volume id; `orphan` where the kubelet has no record.
    pub volume_id: String,
    /// The pod's service account; empty: not known.
    pub service_account: String,
    /// `authority`, `directory`, `unknown`.
    pub source: String,
    /// `pending`, `ready`, `expired`, `unknown`, `directory`, `unserved`.
    pub state: String,
    /// Empty: none.
    pub spiffe_id: String,
    /// Of the SVID, lower-case hexadecimal.
    pub serial: String,
    /// Of the SVID.
    pub not_before: Option<String>,
    /// Of the SVID.
    pub not_after: Option<String>,
    /// When the SVID is due to be renewed.
    pub rotate_at: Option<String>,
    /// When the next attempt is made.
    pub next_attempt: Option<String>,
    /// Attempts that failed in a row.
    pub failures: u32,
    /// Why the last one failed.
    pub last_error: String,
    /// Open connections.
    pub connections: i64,
    /// Open streams.
    pub streams: i64,
    /// SO_COOKIE of the socket; 0: not served.
    pub socket_cookie: u64,
    /// Generation of its record.
    pub generation: u64,
    /// Whether the mounter found it.
    pub on_disk: bool,
    /// Whether the kubelet has no record of it.
    pub orphan: bool,
    /// Whether another driver's mount is there.
    pub foreign: bool,
    /// Mounts stacked there.
    pub mounts: u64,
    /// When the pod's token expires.
    pub token_expires: Option<String>,
    /// Whether an operation was under way, so that its identity could not be told.
    pub busy: bool,
    /// Whether nothing is wrong with it.
    pub healthy: bool,
    /// What is wrong, the worst first; as NodeGetVolumeHealth says it.
    pub faults: Vec<Fault>,
}

/// What is wrong with a volume.
#[derive(Debug, Serialize)]
pub struct Fault {
    /// `degraded`, `inaccessible`.
    pub severity: String,
    /// CamelCase.
    pub reason: String,
    /// For people.
    pub message: String,
}

impl Volumes {
    /// From the agent's answer.
    pub fn new((raw, mounter_problem): Listed) -> Self {
        let volumes = raw.iter().cloned().map(Volume::new).collect();
        let time = rfc3339(unix(std::time::SystemTime::now()));
        Self { schema: SCHEMA, kind: "Volumes", time, mounter_problem, volumes, raw }
    }
}

impl Volume {
    fn new(v: node::Volume) -> Self {
        Self {
            namespace: v.namespace,
            pod: v.pod,
            pod_uid: v.pod_uid,
            name: v.name,
            driver: v.driver,
            volume_id: v.volume_id,
            service_account: v.service_account,
            source: v.source,
            state: v.state,
            spiffe_id: v.spiffe_id,
            serial: v.serial,
            not_before: rfc3339(v.not_before),
            not_after: rfc3339(v.not_after),
            rotate_at: rfc3339(v.rotate_at),
            next_attempt: rfc3339(v.next_attempt),
            failures: v.failures,
            last_error: v.last_error,
            connections: v.connections,
            streams: v.streams,
            socket_cookie: v.cookie,
            generation: v.generation,
            on_disk: v.on_disk,
            orphan: v.orphan,
            foreign: v.foreign,
            mounts: v.mounts,
            token_expires: rfc3339(v.token_expires),
            busy: v.busy,
            healthy: v.faults.is_empty(),
            faults: v
                .faults
                .into_iter()
                .map(|f| Fault { severity: f.severity, reason: f.reason, message: f.message })
                .collect(),
        }
    }
}
