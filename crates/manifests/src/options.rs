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
    /// The SPIFFE trust domain, such as `example.org`; of no use with the source `directory`, as are the template, the
    /// issuer, the API server and both lifetimes below.
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
    /// The agent's uid, as files and the mounter see it.
    pub agent_uid: u32,
    /// Whether it is the real one, too. Else the agent starts as root with the capability SETUID alone and draws a real uid
    /// that no other container can ask for: the kernel counts epoll watches and descriptors in flight by it.
    pub fixed_uid: bool,
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
    /// The port of `/metrics` in the agent's own network namespace.
    pub http_port: u16,
    /// The namespace whose pods may read the metrics; none: no pod may.
    pub monitoring_namespace: Option<String>,
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
            fixed_uid: false,
            agent_gid: 64203,
            token_audience: "seamount.dev".into(),
            token_lifetime: Duration::from_hours(1),
            issuer: "https://kubernetes.default.svc".into(),
            api_server: "https://kubernetes.default.svc".into(),
            svid_ttl: Duration::from_hours(1),
            ca_ttl: Duration::from_hours(24),
            http_port: 9808,
            monitoring_namespace: None,
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
    /// All problems at once, or none. What the source `directory` has no use for is not looked at there.
    pub fn check(&self) -> Result<(), Error> {
        let mut found = Problems(Vec::new());
        self.check_node(&mut found);
        match &self.source {
            Source::Authority { secret } => self.check_authority(secret, &mut found),
            Source::Directory { host_path } => found.expect(
                "source-directory",
                is_path(host_path) && parent_and_name(host_path).is_some(),
                format!("{host_path:?} must be an absolute path at least two levels deep: its parent is mounted, and that must not be the node's root"),
            ),
        }
        if found.0.is_empty() { Ok(()) } else { Err(Error::Options(found.0)) }
    }

    fn check_node(&self, found: &mut Problems) {
        let Self { namespace, driver_name, kubelet_root, .. } = self;
        found.expect(
            "namespace",
            is_label(namespace),
            format!("{namespace:?} is no DNS label (a-z, 0-9, -; at most 63 characters)"),
        );
        found.expect(
            "driver-name",
            driver_name.len() <= 63 && driver_name.split('.').all(is_label),
            format!("{driver_name:?} is no CSI driver name (lower-case DNS labels joined by dots, at most 63 characters)"),
        );
        found.expect("image", is_word(&self.image), format!("{:?} is no image name", self.image));
        found.expect(
            "kubelet-root",
            is_path(kubelet_root),
            format!("{kubelet_root:?} is no absolute path without '.', '..' or a slash at its end"),
        );
        // The kubelet dials this one and `plugins/<driver>/csi.sock`, which is never longer.
        let longest = format!("{kubelet_root}/plugins_registry/{driver_name}-reg.sock").len();
        found.expect(
            "driver-name",
            longest <= SOCKET_PATH,
            format!("{longest} bytes of socket path under {kubelet_root} are more than the kernel's {SOCKET_PATH}; choose a shorter name"),
        );
        for (option, id) in [("agent-uid", self.agent_uid), ("agent-gid", self.agent_gid)] {
            let why = match id {
                0 => "0 is root; the agent has to run without privilege",
                65532 => {
                    "65532 is everybody's `nonroot`; the kernel counts descriptors in flight per uid, so an unrelated container could stall the node"
                }
                65534 => "65534 is the overflow id, which stands for everybody unknown",
                u32::MAX => "4294967295 means no id at all",
                _ if i32::try_from(id).is_err() => "Kubernetes takes no id above 2147483647",
                _ => "",
            };
            found.expect(option, why.is_empty(), format!("{why}; take an uncommon one such as 64203"));
        }
        found.expect(
            "token-audience",
            is_word(&self.token_audience),
            format!("{:?} is no audience", self.token_audience),
        );
        found.expect(
            "token-lifetime",
            (600..=1 << 32).contains(&self.token_lifetime.as_secs()),
            format!("{} s: Kubernetes issues tokens of 600 s or more", self.token_lifetime.as_secs()),
        );
        found.expect(
            "http-port",
            self.http_port >= 1024,
            format!("{} needs a privilege that the agent lacks", self.http_port),
        );
        found.expect(
            "monitoring-namespace",
            self.monitoring_namespace.as_deref().is_none_or(is_label),
            format!("{:?} is no DNS label", self.monitoring_namespace.as_deref().unwrap_or_default()),
        );
        for (option, value, words) in [
            ("log-format", &self.log_format, &["text", "json"][..]),
            ("log-level", &self.log_level, &["error", "warn", "info", "debug", "trace"][..]),
        ] {
            found.expect(
                option,
                words.contains(&value.as_str()),
                format!("{value:?} is none of {}", words.join(", ")),
            );
        }
    }

    fn check_authority(&self, secret: &str, found: &mut Problems) {
        let Self { trust_domain, issuer, api_server, svid_ttl, ca_ttl, .. } = self;
        found.expect(
            "trust-domain",
            is_trust_domain(trust_domain),
            format!("{trust_domain:?} is no trust domain; give one such as example.org (a-z, 0-9, '.', '-', '_'; at most 255 characters)"),
        );
        found.expect(
            "id-template",
            self.id_template.starts_with("spiffe://"),
            format!("{:?} does not begin with spiffe://", self.id_template),
        );
        found.expect(
            "authority-secret",
            secret.len() <= 253 && secret.split('.').all(is_label),
            format!("{secret:?} is no Secret name"),
        );
        found.expect(
            "issuer",
            is_word(issuer),
            format!("{issuer:?} is no issuer; give the API server's --service-account-issuer"),
        );
        found.expect(
            "api-server",
            api_server.strip_prefix("https://").is_some_and(is_word),
            format!("{api_server:?} is no https URL"),
        );
        // The agent's own limits: an SVID cannot be revoked, and must not outlive its issuer.
        let (svid, ca) = (svid_ttl.as_secs(), ca_ttl.as_secs());
        found.expect(
            "svid-ttl",
            (10..=7 * 86_400).contains(&svid),
            format!("{svid} s is not between 10 s and 7 d"),
        );
        found.expect(
            "ca-ttl",
            ca >= 4 * svid,
            format!("{ca} s is less than four times the lifetime of an SVID ({svid} s)"),
        );
    }
}

struct Problems(Vec<Problem>);

impl Problems {
    fn expect(&mut self, option: &'static str, ok: bool, reason: String) {
        if !ok {
            self.0.push(Problem { option, reason });
        }
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
fn is_trust_domain(s: &str) -> bool {
    (1..=255).contains(&s.len())
        && s.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '.' | '-' | '_'))
}

fn is_word(s: &str) -> bool {
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
