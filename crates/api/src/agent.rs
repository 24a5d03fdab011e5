//! `agent.yaml`: its fields, their defaults and the rules between them. No I/O.
//!
//! The agent reads the file, the manifests write one: both judge it by this. Every problem is found in one
//! go, each with its field's path and the remedy. Unknown fields are refused. [`Config::needs_restart`] says
//! what of a new configuration only a restart can apply.

mod reader;
mod sections;

pub use sections::driver;

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use seamount_identity::{KeyType, TrustDomain};
use seamount_mounter_protocol::names::DriverName;

use crate::Log;
pub use crate::token::{ApiServer, Keys};

/// The one of `drivers` where none is named.
pub const DRIVER: &str = "csi.spiffe.io";
/// The most drivers of one node.
pub const MAX_DRIVERS: usize = 8;
/// `kubeletRoot`.
pub const KUBELET_ROOT: &str = "/var/lib/kubelet";
/// `mounterSocket`.
pub const MOUNTER_SOCKET: &str = "/run/seamount/mounter.sock";
/// `identity.idTemplate`.
pub const ID_TEMPLATE: &str = "spiffe://{trustDomain}/ns/{namespace}/sa/{serviceAccount}";
/// `authority.embedded.caTtl`.
pub const CA_TTL: Duration = Duration::from_secs(24 * 3600);
/// `authority.embedded.svidTtl`.
pub const SVID_TTL: Duration = Duration::from_secs(3600);
/// The shortest `authority.embedded.svidTtl`: below it, rotation would be all that an agent does.
pub const MIN_SVID_TTL: Duration = Duration::from_secs(10);
/// The longest `authority.embedded.svidTtl`: an SVID cannot be revoked.
pub const MAX_SVID_TTL: Duration = Duration::from_secs(7 * 24 * 3600);
/// How many SVID lifetimes fit into the intermediate's at least: half of its life passes before the next one
/// is prepared, and no SVID may outlive its issuer.
pub const SVIDS_PER_CA: u32 = 4;
/// `token.audience`.
pub const AUDIENCE: &str = "seamount.dev";
/// More `token.issuers` than any migration has.
pub const MAX_ISSUERS: usize = 8;
/// `token.keysMaxAge`.
pub const KEYS_MAX_AGE: Duration = Duration::from_secs(24 * 3600);
/// The shortest `token.keysMaxAge`: as long as the agent stays ready without a good reading.
pub const MIN_KEYS_MAX_AGE: Duration = Duration::from_secs(15 * 60);
/// The longest `token.keysMaxAge`: a key that was withdrawn is trusted for so long at most.
pub const MAX_KEYS_MAX_AGE: Duration = Duration::from_secs(7 * 24 * 3600);
/// `token.keys.apiServer.url`.
pub const API_SERVER: &str = "https://kubernetes.default.svc";
/// `token.keys.apiServer.caFile`.
pub const API_SERVER_CA: &str = "/var/run/secrets/kubernetes.io/serviceaccount/ca.crt";
/// `token.keys.apiServer.tokenFile`.
pub const API_SERVER_TOKEN: &str = "/var/run/secrets/kubernetes.io/serviceaccount/token";
/// `http.address`.
pub const HTTP_ADDRESS: &str = "127.0.0.1:9808";
/// The largest of `workloadApi`'s numbers of volumes, connections and streams.
pub const MAX_CONNECTIONS: u32 = 4096;
/// The bounds of `workloadApi`'s bytes: an honest client's first call takes some 2,000.
pub const BYTES: (u64, u64) = (4 << 10, 1 << 30);
/// The bounds of `memoryLimit`.
pub const MEMORY: (u64, u64) = (16 << 20, 1 << 40);
/// The largest `workloadApi.connectionsPerNode`: the kernel's own bound for the descriptors of a process
/// (`fs.nr_open`).
pub const MAX_NODE_CONNECTIONS: u32 = 1 << 20;
/// Values that win over the file's, each named after the agent's flag that carries it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Overrides {
    /// `--node-name`.
    pub node_name: Option<String>,
    /// `--mounter-socket`.
    pub mounter_socket: Option<String>,
    /// `--kubelet-root`.
    pub kubelet_root: Option<String>,
    /// `--driver`, as often as there are drivers.
    pub drivers: Vec<String>,
    /// `--http-address`.
    pub http_address: Option<String>,
    /// `--log-format`.
    pub log_format: Option<String>,
    /// `--log-level`.
    pub log_level: Option<String>,
}

/// The configuration: complete and consistent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// The CSI drivers: each one's name is also that of its directory below the kubelet's root.
    pub drivers: Vec<DriverName>,
    /// The kubelet's root directory: absolute, without a slash at its end.
    pub kubelet_root: PathBuf,
    /// Name of this node, as `spec.nodeName` of its pods says it.
    pub node_name: String,
    /// The mounter's `SOCK_SEQPACKET` socket.
    pub mounter_socket: PathBuf,
    /// The uid that may talk to the CSI and registration sockets.
    pub kubelet_uid: u32,
    /// Where identities come from.
    pub source: Source,
    /// Where metrics are served; none: nowhere.
    pub http: Option<SocketAddr>,
    /// Logging.
    pub log: Log,
    /// Bounds of the Workload API.
    pub workload_api: WorkloadApi,
    /// `memoryLimit`, in bytes; none: what the container's own limit leaves.
    pub memory_limit: Option<u64>,
}

/// `identity.source`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// Seamount's own authority; each pod has its own socket.
    Authority(Box<AuthoritySource>),
    /// Another provider's Workload API socket, bind-mounted by the mounter.
    Directory,
}

/// What only the source `authority` needs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AuthoritySource {
    /// `trustDomain`.
    pub trust_domain: TrustDomain,
    /// `identity.idTemplate`; parses as `seamount_authority::IdTemplate`.
    pub id_template: String,
    /// `authority.embedded`.
    pub embedded: Embedded,
    /// `token`.
    pub token: TokenConfig,
}

/// `authority.embedded`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Embedded {
    /// Directory with the root's `tls.crt` and `tls.key`; none: a root in memory, other at each start.
    pub directory: Option<PathBuf>,
    /// Kind of the intermediate's key (and of the root's, where that is made in memory).
    pub key_type: KeyType,
    /// Kind of the SVIDs' keys.
    pub svid_key_type: KeyType,
    /// Lifetime of the intermediate.
    pub ca_ttl: Duration,
    /// Lifetime of an SVID.
    pub svid_ttl: Duration,
}

/// `token`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenConfig {
    /// What the tokens must be for; the same as in the CSIDriver's `tokenRequests`.
    pub audience: String,
    /// Whose tokens are taken: the API server's `--service-account-issuer`, several while it changes. Empty:
    /// that of the agent's own token, which the API server of [`Keys::ApiServer`] made.
    pub issuers: Vec<String>,
    /// Where the issuer's public keys are.
    pub keys: Keys,
    /// How long the last good keys are used where no new ones can be read.
    pub keys_max_age: Duration,
    /// Accept a token in `volume_context`, where a pod's author can write too (kubelet before 1.35).
    pub allow_volume_context: bool,
}

/// `workloadApi`: what one pod may use, with all of its volumes together, and what all may.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WorkloadApi {
    /// Volumes of a pod.
    pub volumes_per_pod: u32,
    /// Connections of a pod at a time.
    pub connections_per_pod: u32,
    /// Connections of all pods together; none: three quarters of the descriptors.
    pub connections_per_node: Option<u32>,
    /// Streams on one connection at a time.
    pub streams_per_connection: u32,
    /// Streams of a pod at a time.
    pub streams_per_pod: u32,
    /// Bytes that are read from a pod at once, after it was silent.
    pub burst_per_pod: u32,
    /// Bytes that are read from a pod in a second, in the long run.
    pub rate_per_pod: u32,
}

impl Default for WorkloadApi {
    fn default() -> Self {
        Self {
            volumes_per_pod: 16,
            connections_per_pod: 128,
            connections_per_node: None,
            streams_per_connection: 64,
            streams_per_pod: 256,
            burst_per_pod: 256 << 10,
            rate_per_pod: 64 << 10,
        }
    }
}

/// One thing that is wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// The field's path, for instance `token.keys.file`, or the flag.
    pub field: String,
    /// What is wrong with it.
    pub what: String,
    /// What to do.
    pub remedy: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}; {}", self.field, self.what, self.remedy)
    }
}

/// Why a text is no configuration.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// It is no YAML mapping.
    #[error("not valid YAML: {0}; correct it")]
    Yaml(String),
    /// All that is wrong in it.
    #[error("{}", list(.0))]
    Invalid(Vec<Problem>),
}

/// One YAML document by the rules of YAML 1.2's core schema: a node named `n` or `no` is a text, not a
/// boolean. Repeated keys are refused.
///
/// # Errors
/// With where and why it is none.
pub fn yaml(text: &str) -> Result<serde_json::Value, String> {
    if text.lines().all(|line| line.trim().is_empty() || line.trim_start().starts_with('#')) {
        return Ok(serde_json::Value::Null);
    }
    let options = serde_saphyr::options! { strict_booleans: true };
    serde_saphyr::from_str_with_options(text, options).map_err(|e| e.to_string())
}

/// All of them in one line and within bounds: `/readyz`, `seamount node` and an event have a line for each
/// condition.
fn list(problems: &[Problem]) -> String {
    const MOST: usize = 16;
    const LONGEST: usize = 400;
    let short = |problem: &Problem| bounded(&problem.to_string(), LONGEST);
    if let [one] = problems {
        return short(one);
    }
    let mut text = format!("{} problems", problems.len());
    for (number, problem) in (1..).zip(problems.iter().take(MOST)) {
        text.push_str(&format!("{} ({number}) {}", if number == 1 { ":" } else { "," }, short(problem)));
    }
    if problems.len() > MOST {
        text.push_str(&format!(", and {} more", problems.len() - MOST));
    }
    text
}

/// In one line, with at most so many characters. The end is kept as well, because the remedy stands there.
pub fn bounded(text: &str, longest: usize) -> String {
    let text = text.split_whitespace().collect::<Vec<_>>().join(" ");
    let length = text.chars().count();
    if length <= longest {
        return text;
    }
    let half = longest / 2;
    let begin: String = text.chars().take(half).collect();
    let end: String = text.chars().skip(length - half).collect();
    format!("{begin}…{end}")
}

impl Config {
    /// Reads the file's text. `node_name` is the environment's NODE_NAME.
    ///
    /// # Errors
    /// With all that is wrong.
    pub fn parse(text: &str, overrides: &Overrides, node_name: Option<&str>) -> Result<Self, ConfigError> {
        let mapping = match yaml(text).map_err(ConfigError::Yaml)? {
            serde_json::Value::Object(mapping) => mapping,
            serde_json::Value::Null => serde_json::Map::new(),
            _ => return Err(ConfigError::Yaml("the document is not a mapping".to_owned())),
        };
        sections::read(mapping, overrides, node_name).map_err(ConfigError::Invalid)
    }

    /// Whether an agent takes this text, on a node of any name.
    ///
    /// # Errors
    /// With all that is wrong.
    pub fn check(text: &str) -> Result<(), ConfigError> {
        Self::parse(text, &Overrides::default(), Some("node")).map(drop)
    }

    /// What the source `authority` needs; none with the source `directory`.
    pub fn authority(&self) -> Option<&AuthoritySource> {
        match &self.source {
            Source::Authority(authority) => Some(authority),
            Source::Directory => None,
        }
    }

    /// The fields of `new` that differ from this configuration and that only a restart applies: what names
    /// the processes' sockets and which uid may use them, the identity source and its trust domain, and the
    /// addresses and bounds of what is being served. Everything else (tokens, templates, key kinds,
    /// lifetimes, log level) can be taken over by a running agent.
    pub fn needs_restart(&self, new: &Self) -> Vec<&'static str> {
        let (old_authority, new_authority) = (self.authority(), new.authority());
        let domain = |a: Option<&AuthoritySource>| a.map(|a| a.trust_domain.clone());
        let directory = |a: Option<&AuthoritySource>| a.and_then(|a| a.embedded.directory.clone());
        [
            ("drivers", self.drivers != new.drivers),
            ("kubeletRoot", self.kubelet_root != new.kubelet_root),
            ("nodeName", self.node_name != new.node_name),
            ("mounterSocket", self.mounter_socket != new.mounter_socket),
            ("kubeletUid", self.kubelet_uid != new.kubelet_uid),
            ("identity.source", old_authority.is_some() != new_authority.is_some()),
            ("trustDomain", domain(old_authority) != domain(new_authority)),
            ("authority.embedded.directory", directory(old_authority) != directory(new_authority)),
            ("http.address", self.http != new.http),
            ("log.format", self.log.format != new.log.format),
            ("workloadApi", self.workload_api != new.workload_api),
            ("memoryLimit", self.memory_limit != new.memory_limit),
        ]
        .into_iter()
        .filter_map(|(field, differs)| differs.then_some(field))
        .collect()
    }

    /// What of `new` a running agent can take over: `new` with the fields of [`Config::needs_restart`] as
    /// they are here. Where the identity source or its trust domain differs, the whole source stays: its
    /// parts belong together.
    pub fn adopt(&self, new: &Self) -> Self {
        let source = match (&self.source, &new.source) {
            (Source::Authority(old), Source::Authority(new)) if old.trust_domain == new.trust_domain => {
                let mut taken = new.clone();
                taken.embedded.directory.clone_from(&old.embedded.directory);
                Source::Authority(taken)
            }
            (old, _) => old.clone(),
        };
        Self { source, log: Log { format: self.log.format, level: new.log.level }, ..self.clone() }
    }
}

#[cfg(test)]
mod tests;
