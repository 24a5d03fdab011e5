//! The Kubernetes objects that Seamount consists of, as Rust values, and their YAML.
//!
//! ```
//! use seamount_manifests::{Options, objects, to_yaml};
//!
//! let options = Options { trust_domain: "example.org".into(), ..Options::default() };
//! let yaml = to_yaml(&objects(&options)?)?;
//! assert!(yaml.contains("kind: CSIDriver"));
//! # Ok::<(), seamount_manifests::Error>(())
//! ```
//!
//! Seamount asks for no right on the Kubernetes API. The one thing that the agent reads there, the keys that
//! sign service account tokens (`GET /openid/v1/jwks`), is granted to every service account by Kubernetes
//! itself (ClusterRole `system:service-account-issuer-discovery`, bound to the group
//! `system:serviceaccounts`). OpenShift additionally needs the right to use one SecurityContextConstraints.

mod authority;
mod config;
mod node;
mod openshift;
mod options;
mod shared;
mod version;
mod yaml;

pub use authority::{AuthoritySecret, authority_secret};
pub use options::{Environment, Options, Problem, PullPolicy, Source};
pub use version::{KubernetesVersion, VersionError};
pub use yaml::to_yaml;

/// Name of the ConfigMap with the agent's configuration.
pub const CONFIG_MAP: &str = "seamount-agent";
/// Name of the DaemonSet, of its ServiceAccount and NetworkPolicy and, on OpenShift, of its
/// SecurityContextConstraints.
pub const NODE: &str = "seamount-node";

/// Why there are no objects, or no YAML of them.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Options that make no working installation; all of them at once.
    #[error("{}", problems(.0))]
    Options(Vec<Problem>),
    /// An object could not be turned into JSON or YAML: a defect of this program.
    #[error("cannot write {what} as {format}: {reason}; please report this")]
    Serialize {
        /// The object.
        what: String,
        /// `JSON` or `YAML`.
        format: &'static str,
        /// What the serializer said.
        reason: String,
    },
    /// The agent would not take the configuration that these options make.
    #[error("the agent does not take its configuration of these options: {0}; please report this")]
    Agent(#[from] seamount_api::agent::ConfigError),
    /// The root of the authority could not be made.
    #[error("cannot make the authority's root for trust domain {trust_domain}: {source}")]
    Root {
        /// For which trust domain.
        trust_domain: String,
        /// What the library said.
        source: rcgen::Error,
    },
}

fn problems(list: &[Problem]) -> String {
    list.iter().map(Problem::to_string).collect::<Vec<_>>().join("\n")
}

/// One Kubernetes object as the JSON that the API server takes.
#[derive(Debug, Clone, PartialEq)]
pub struct Object(serde_json::Value);

impl Object {
    fn from_typed<T: serde::Serialize>(what: &str, object: &T) -> Result<Self, Error> {
        serde_json::to_value(object).map(Self).map_err(|e| Error::Serialize {
            what: what.to_owned(),
            format: "JSON",
            reason: e.to_string(),
        })
    }

    /// The kind, such as `DaemonSet`.
    pub fn kind(&self) -> &str {
        self.text("/kind")
    }

    /// `metadata.name`.
    pub fn name(&self) -> &str {
        self.text("/metadata/name")
    }

    /// The whole object.
    pub fn value(&self) -> &serde_json::Value {
        &self.0
    }

    fn text(&self, pointer: &str) -> &str {
        self.0.pointer(pointer).and_then(serde_json::Value::as_str).unwrap_or_default()
    }
}

/// All objects of an installation, in the order in which they have to be created.
///
/// The Secret with the authority's root is not among them: printing these again must never make a new root.
/// See [`authority_secret`].
pub fn objects(options: &Options) -> Result<Vec<Object>, Error> {
    options.check()?;
    let mut list = vec![
        shared::namespace(options)?,
        shared::resource_quota(options)?,
        shared::service_account(options)?,
    ];
    if options.environment == Environment::OpenShift {
        list.extend(openshift::objects(options));
    }
    list.push(shared::config_map(options)?);
    list.push(shared::network_policy(options)?);
    for driver in &options.drivers {
        list.push(shared::csi_driver(options, driver)?);
    }
    list.push(node::daemon_set(options)?);
    Ok(list)
}
