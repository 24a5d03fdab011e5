//! What an installation can be told, and what makes no sense.

use std::fmt;
use std::time::Duration;

use crate::Error;

/// The longest path that fits into a Unix socket address (`sun_path`, less its NUL).
const SOCKET_PATH: usize = 107;

/// When the kubelet pulls the image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PullPolicy {
    /// On every start.
    Always,
    /// Only when the node has none.
    IfNotPresent,
    /// Never: the image was imported by hand.
    Never,
}

impl PullPolicy {
    /// The value as Kubernetes writes it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Always => "Always",
            Self::IfNotPresent => "IfNotPresent",
            Self::Never => "Never",
        }
    }
}

/// The kind of cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Environment {
    /// Any Kubernetes from 1.35.
    Kubernetes,
    /// OpenShift: a SecurityContextConstraints and the right to use it are added.
    OpenShift,
}

/// Where the pods' identities come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// Seamount's own authority, with the root in a Secret (keys `tls.crt` and `tls.key`).
    Authority {
        /// The Secret's name, in the installation's namespace.
        secret: String,
    },
    /// A directory of the node with somebody else's Workload API socket, as the SPIFFE CSI driver does it.
    Directory {
        /// The directory on the node, such as `/run/spire/agent-sockets`. Its parent is mounted, because a mount of the
        /// directory itself would keep showing the old one after it is recreated.
        host_path: String,
    },
}

/// The options of an installation. `Options::default()` lacks only the trust domain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    /// The kind of cluster.
    pub environment: Environment,
    /// The namespace; it is created with the Pod Security level `privileged`, which the mounter needs.
    pub namespace: String,
    /// The CSI driver's name, which pods write into `volumes[].csi.driver`.
    pub driver_name: String,
    /// The SPIFFE trust domain, such as `example.org`.
    pub trust_domain: String,
    /// The SPIFFE ID's template.
    pub id_template: String,
    /// The image with both binaries.
    pub image: String,
    /// When the image is pulled.
    pub image_pull_policy: PullPolicy,
    /// The kubelet's root directory.
    pub kubelet_root: String,
    /// Where identities come from.
    pub source: Source,
    /// The agent's uid. Reserved for it: the kernel counts descriptors in flight per uid, over all containers.
    pub agent_uid: u32,
    /// The agent's gid.
    pub agent_gid: u32,
    /// The audience of the pods' tokens.
    pub token_audience: String,
    /// The lifetime of the pods' tokens; Kubernetes takes 10 minutes or more.
    pub token_lifetime: Duration,
    /// The `iss` of the pods' tokens, the API server's `--service-account-issuer`.
    pub issuer: String,
    /// Where the agent reads the API server's keys.
    pub api_server: String,
    /// The lifetime of an X.509-SVID.
    pub svid_ttl: Duration,
    /// The lifetime of the authority's intermediate.
    pub ca_ttl: Duration,
    /// The port of `/livez`, `/readyz` and `/metrics` in the agent's own network namespace.
    pub http_port: u16,
    /// `text` or `json`.
    pub log_format: String,
    /// The level of the agent's log.
    pub log_level: String,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            environment: Environment::Kubernetes,
            namespace: "seamount-system".into(),
            driver_name: "csi.spiffe.io".into(),
            trust_domain: String::new(),
            id_template: "spiffe://{trustDomain}/ns/{namespace}/sa/{serviceAccount}".into(),
            image: "seamount:dev".into(),
            image_pull_policy: PullPolicy::IfNotPresent,
            kubelet_root: "/var/lib/kubelet".into(),
            source: Source::Authority { secret: "seamount-authority".into() },
            agent_uid: 64203,
            agent_gid: 64203,
            token_audience: "seamount.dev".into(),
            token_lifetime: Duration::from_hours(1),
            issuer: "https://kubernetes.default.svc".into(),
            api_server: "https://kubernetes.default.svc".into(),
            svid_ttl: Duration::from_hours(1),
            ca_ttl: Duration::from_hours(24),
            http_port: 9808,
            log_format: "text".into(),
            log_level: "info".into(),
        }
    }
}

/// One option that makes no working installation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// The option, as the command line writes it without the dashes.
    pub option: &'static str,
    /// What is wrong and what to do.
    pub reason: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "--{}: {}", self.option, self.reason)
    }
}

impl Options {
    /// All problems at once, or none.
    pub fn check(&self) -> Result<(), Error> {
        let mut found = Vec::new();
        let mut expect = |option: &'static str, ok: bool, reason: String| {
            if !ok {
                found.push(Problem { option, reason });
            }
        };
        let Self { namespace, driver_name, trust_domain, kubelet_root, .. } = self;

        expect(
            "namespace",
            is_label(namespace),
            format!("{namespace:?} is no DNS label (a-z, 0-9, -; at most 63 characters)"),
        );
        expect(
            "driver-name",
            driver_name.len() <= 63 && driver_name.split('.').all(is_label),
            format!(
                "{driver_name:?} is no CSI driver name (lower-case DNS labels joined by dots, at most 63 characters)"
            ),
        );
        expect(
            "trust-domain",
            is_trust_domain(trust_domain),
            format!(
                "{trust_domain:?} is no trust domain; give one such as example.org (a-z, 0-9, '.', '-', '_'; at most 255 characters)"
            ),
        );
        expect(
            "id-template",
            self.id_template.starts_with("spiffe://"),
            format!("{:?} does not begin with spiffe://", self.id_template),
        );
        expect("image", is_token(&self.image), format!("{:?} is no image name", self.image));
        expect(
            "kubelet-root",
            is_path(kubelet_root),
            format!("{kubelet_root:?} is no absolute path without '.', '..' or a slash at its end"),
        );
        // The kubelet dials both; the longer one decides.
        let longest = format!("{kubelet_root}/plugins_registry/{driver_name}-reg.sock").len();
        expect(
            "driver-name",
            longest <= SOCKET_PATH,
            format!(
                "{longest} bytes of socket path under {kubelet_root} are more than the kernel's {SOCKET_PATH}; choose a shorter name"
            ),
        );
        match &self.source {
            Source::Authority { secret } => expect(
                "authority-secret",
                secret.len() <= 253 && secret.split('.').all(is_label),
                format!("{secret:?} is no Secret name"),
            ),
            Source::Directory { host_path } => expect(
                "source-directory",
                is_path(host_path) && parent_and_name(host_path).is_some(),
                format!(
                    "{host_path:?} must be an absolute path at least two levels deep: its parent is mounted, and that must not be the node's root"
                ),
            ),
        }
        for (option, id) in [("agent-uid", self.agent_uid), ("agent-gid", self.agent_gid)] {
            let why = match id {
                0 => Some("0 is root; the agent has to run without privilege"),
                65532 => Some(
                    "65532 is everybody's `nonroot`; the kernel counts descriptors in flight per uid, so an unrelated container could stall the node",
                ),
                65534 => Some("65534 is the overflow id, which stands for everybody unknown"),
                _ => None,
            };
            expect(
                option,
                why.is_none(),
                format!("{}; take an uncommon one such as 64203", why.unwrap_or_default()),
            );
        }
        expect(
            "token-audience",
            is_token(&self.token_audience),
            format!("{:?} is no audience", self.token_audience),
        );
        expect(
            "token-lifetime",
            (600..=1 << 32).contains(&self.token_lifetime.as_secs()),
            format!("{} s: Kubernetes issues tokens of 600 s or more", self.token_lifetime.as_secs()),
        );
        for (option, url) in [("issuer", &self.issuer), ("api-server", &self.api_server)] {
            let host = url.strip_prefix("https://").unwrap_or_default();
            expect(option, is_token(host), format!("{url:?} is no https URL"));
        }
        let (svid, ca) = (self.svid_ttl.as_secs(), self.ca_ttl.as_secs());
        expect("svid-ttl", svid >= 60, format!("{svid} s is too short to rotate; take a minute or more"));
        expect(
            "ca-ttl",
            ca >= 2 * svid,
            format!("{ca} s is less than twice the lifetime of an SVID ({svid} s)"),
        );
        expect(
            "http-port",
            self.http_port >= 1024,
            format!("{} needs a privilege that the agent lacks", self.http_port),
        );
        expect(
            "log-format",
            ["text", "json"].contains(&self.log_format.as_str()),
            format!("{:?} is neither text nor json", self.log_format),
        );
        expect(
            "log-level",
            ["error", "warn", "info", "debug", "trace"].contains(&self.log_level.as_str()),
            format!("{:?} is none of error, warn, info, debug, trace", self.log_level),
        );
        if found.is_empty() { Ok(()) } else { Err(Error::Options(found)) }
    }
}

/// An RFC 1123 label.
fn is_label(s: &str) -> bool {
    let inner = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    (1..=63).contains(&s.len())
        && s.chars().all(|c| inner(c) || c == '-')
        && s.starts_with(inner)
        && s.ends_with(inner)
}

/// SPIFFE-ID §2.1.
pub(crate) fn is_trust_domain(s: &str) -> bool {
    (1..=255).contains(&s.len())
        && s.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '.' | '-' | '_'))
}

fn is_token(s: &str) -> bool {
    !s.is_empty() && s.chars().all(|c| c.is_ascii_graphic())
}

/// An absolute, normalised path other than the root.
fn is_path(s: &str) -> bool {
    s.strip_prefix('/').is_some_and(|rest| {
        rest.split('/')
            .all(|part| !part.is_empty() && part != "." && part != ".." && !part.contains(char::is_control))
    })
}

/// The parent, which is not the root, and the last component.
pub(crate) fn parent_and_name(path: &str) -> Option<(&str, &str)> {
    path.rsplit_once('/').filter(|(parent, name)| !parent.is_empty() && !name.is_empty())
}

#[cfg(test)]
mod tests;
