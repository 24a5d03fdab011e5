//! What an installation can be told, and what makes no sense.

use std::fmt;
use std::time::Duration;

use seamount_api::agent::{MAX_DRIVERS, MAX_ISSUERS, MAX_SVID_TTL, MIN_SVID_TTL, SVIDS_PER_CA};
use seamount_api::format_duration;
use seamount_authority::IdTemplate;
use seamount_identity::TrustDomain;

use crate::{Error, KubernetesVersion};

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
    /// Any Kubernetes from 1.32.
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
    /// A directory of the node with another provider's Workload API socket, as the SPIFFE CSI driver does it.
    Directory {
        /// The directory on the node, such as `/run/spire/agent-sockets`. Its parent is mounted, because a
        /// mount of the directory itself would keep showing the old one after it is recreated.
        host_path: String,
    },
}

/// The options of an installation. `Options::default()` lacks only the trust domain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    /// The kind of cluster.
    pub environment: Environment,
    /// The version of its API server: what that cannot do is left out, and done in another way.
    pub kubernetes_version: KubernetesVersion,
    /// The namespace; it is created with the Pod Security level `privileged`, which the mounter needs.
    pub namespace: String,
    /// The CSI drivers' names, one of which a pod writes into `volumes[].csi.driver`.
    pub drivers: Vec<String>,
    /// The SPIFFE trust domain, such as `example.org`; of no use with the source `directory`, as are the
    /// template, the issuers, the API server and both lifetimes below.
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
    /// Whether it is the real one, too. Else the agent starts as root with the capability SETUID alone and
    /// draws a real uid that no other container can ask for: the kernel counts epoll watches and descriptors
    /// in flight by it.
    pub fixed_uid: bool,
    /// The agent's gid.
    pub agent_gid: u32,
    /// The audience of the pods' tokens.
    pub token_audience: String,
    /// The lifetime of the pods' tokens; Kubernetes takes 10 minutes or more.
    pub token_lifetime: Duration,
    /// The `iss` of the pods' tokens, the API server's `--service-account-issuer`; several while it changes.
    /// None: each agent takes that of its own token.
    pub issuers: Vec<String>,
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
            kubernetes_version: KubernetesVersion::default(),
            namespace: "seamount-system".into(),
            drivers: vec!["csi.spiffe.io".into()],
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
            issuers: Vec::new(),
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
        let Self { namespace, drivers, kubelet_root, .. } = self;
        found.expect(
            "namespace",
            is_label(namespace),
            format!("{namespace:?} is no DNS label (a-z, 0-9, -; at most 63 characters)"),
        );
        found.expect(
            "driver",
            (1..=MAX_DRIVERS).contains(&drivers.len()),
            format!("{} names; give 1 to {MAX_DRIVERS}", drivers.len()),
        );
        for (number, driver) in drivers.iter().enumerate() {
            found.expect(
                "driver",
                driver.len() <= 63 && driver.split('.').all(is_label),
                format!("{driver:?} is no CSI driver name (lower-case DNS labels joined by dots, at most 63 characters)"),
            );
            let first = drivers.iter().position(|other| other == driver) == Some(number);
            found.expect("driver", first, format!("{driver:?} is given twice"));
        }
        found.expect("image", is_word(&self.image), format!("{:?} is no image name", self.image));
        found.expect(
            "kubelet-root",
            is_path(kubelet_root),
            format!("{kubelet_root:?} is no absolute path without '.', '..' or a slash at its end"),
        );
        // The kubelet dials this one and `plugins/<driver>/csi.sock`, which is never longer.
        let longest = drivers.iter().map(String::len).max().unwrap_or_default();
        let longest = format!("{kubelet_root}/plugins_registry/-reg.sock").len() + longest;
        found.expect(
            "driver",
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
            self.token_audience.len() <= 1024 && is_word(&self.token_audience),
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
        let Self { trust_domain, id_template, issuers, api_server, svid_ttl, ca_ttl, .. } = self;
        // The agent's own parsers: what it refuses is refused where it is typed.
        match trust_domain.parse::<TrustDomain>() {
            Err(why) => found.expect("trust-domain", false, format!("{trust_domain:?}: {why}")),
            // The agent lowers it; the Secret's certificate has it as it is typed.
            Ok(domain) if domain.as_str() != trust_domain => {
                found.expect("trust-domain", false, format!("{trust_domain:?}: write {domain}"));
            }
            Ok(domain) => {
                if let Err(why) = IdTemplate::parse(id_template, &domain) {
                    found.expect("id-template", false, why.to_string());
                }
            }
        }
        found.expect(
            "authority-secret",
            secret.len() <= 253 && secret.split('.').all(is_label),
            format!("{secret:?} is no Secret name"),
        );
        found.expect(
            "issuer",
            issuers.len() <= MAX_ISSUERS
                && issuers.iter().all(|issuer| issuer.len() <= 1024 && is_word(issuer)),
            format!(
                "{issuers:?}: give the API server's --service-account-issuer, at most {MAX_ISSUERS} of them"
            ),
        );
        found.expect(
            "api-server",
            is_https_url(api_server),
            format!("{api_server:?}: write https://<host>[:<port>][/<path>]"),
        );
        // The agent's own limits: an SVID cannot be revoked, and must not outlive its issuer.
        let (svid, ca) = (svid_ttl.as_secs(), ca_ttl.as_secs());
        let [min, max] = [MIN_SVID_TTL, MAX_SVID_TTL].map(format_duration);
        found.expect(
            "svid-ttl",
            (MIN_SVID_TTL..=MAX_SVID_TTL).contains(svid_ttl),
            format!("{svid} s is not between {min} and {max}"),
        );
        found.expect(
            "ca-ttl",
            *ca_ttl >= svid_ttl.saturating_mul(SVIDS_PER_CA),
            format!("{ca} s is less than {SVIDS_PER_CA} times the lifetime of an SVID ({svid} s)"),
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

fn is_word(s: &str) -> bool {
    !s.is_empty() && s.chars().all(|c| c.is_ascii_graphic())
}

/// As `token.keys.apiServer.url` is read, for the hosts that people have: a name, an IPv4 or a bracketed IPv6
/// address.
fn is_https_url(s: &str) -> bool {
    let Some(rest) = s.strip_prefix("https://") else { return false };
    let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
    let (host, port) = match authority.strip_prefix('[').and_then(|v6| v6.split_once(']')) {
        Some((v6, port)) if v6.parse::<std::net::Ipv6Addr>().is_ok() => (v6, port.strip_prefix(':')),
        Some(_) => return false,
        None => match authority.split_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (authority, None),
        },
    };
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | '_');
    let is_host = host.contains(':') || (!host.is_empty() && host.chars().all(plain));
    let is_port = port.is_none_or(|port| {
        port.bytes().all(|b| b.is_ascii_digit()) && port.parse::<u16>().is_ok_and(|port| port != 0)
    });
    is_host && is_port && path.chars().all(|c| plain(c) || matches!(c, '/' | '~'))
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
