//! `seamount manifests`: the objects of an installation as YAML on standard output, for `kubectl apply -f -`.

use std::io::Write;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context as _;
use clap::builder::PossibleValuesParser;
use seamount_manifests::{
    Environment, KubernetesVersion, Options, PullPolicy, Source, authority_secret, objects, to_yaml,
};

/// The arguments of `seamount manifests`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
To install, and then make the authority's root, once:
  seamount manifests --trust-domain example.org | kubectl apply -f -
  seamount manifests --trust-domain example.org --generate-authority | kubectl create -f -
The second prints a private key: pipe it, keep no file. `create` refuses to overwrite an existing root.")]
pub struct Args {
    /// The SPIFFE trust domain, such as example.org.
    #[arg(long, required_unless_present = "source_directory")]
    trust_domain: Option<String>,
    /// The kind of cluster.
    #[arg(long, default_value = "kubernetes", value_parser = PossibleValuesParser::new(["kubernetes", "openshift"]))]
    environment: String,
    /// The version of the API server, as `kubectl version` says it. Before 1.35 the pods' tokens come another
    /// way.
    #[arg(long, value_name = "VERSION", default_value_t)]
    kubernetes_version: KubernetesVersion,
    /// The namespace of the installation.
    #[arg(long, default_value = "seamount-system")]
    namespace: String,
    /// A CSI driver's name, which pods write into volumes[].csi.driver; repeated: each of several.
    #[arg(long = "driver", value_name = "NAME", default_value = "csi.spiffe.io")]
    drivers: Vec<String>,
    /// The template of a pod's SPIFFE ID.
    #[arg(long, default_value = "spiffe://{trustDomain}/ns/{namespace}/sa/{serviceAccount}")]
    id_template: String,
    /// The image with seamount-mounter and seamount-agent.
    #[arg(long, default_value = "seamount:dev")]
    image: String,
    /// When nodes pull the image.
    #[arg(long, default_value = "IfNotPresent", value_parser = PossibleValuesParser::new(["Always", "IfNotPresent", "Never"]))]
    image_pull_policy: String,
    /// The kubelet's root directory.
    #[arg(long, default_value = "/var/lib/kubelet")]
    kubelet_root: String,
    /// The Secret with the authority's root (tls.crt, tls.key), in the same namespace.
    #[arg(long, default_value = "seamount-authority")]
    authority_secret: String,
    /// Bind-mount this directory of the node, with another provider's Workload API socket, instead of issuing
    /// identities.
    #[arg(long, value_name = "DIR", conflicts_with_all = ["trust_domain", "id_template", "authority_secret", "issuer", "api_server", "svid_ttl", "ca_ttl", "generate_authority"])]
    source_directory: Option<String>,
    /// The agent's uid.
    #[arg(long, default_value_t = 64203)]
    agent_uid: u32,
    /// Run the agent as that uid from its start, for clusters that refuse the capability SETUID. Without this
    /// the agent draws a real uid that no other container can ask for; with it no other container on the
    /// nodes may have its uid.
    #[arg(long)]
    fixed_uid: bool,
    /// The agent's gid.
    #[arg(long, default_value_t = 64203)]
    agent_gid: u32,
    /// The audience of the pods' tokens.
    #[arg(long, default_value = "seamount.dev")]
    token_audience: String,
    /// The issuer of the pods' tokens, instead of that of each agent's own token; repeat it while the API
    /// server's --service-account-issuer changes.
    #[arg(long)]
    issuer: Vec<String>,
    /// Where the agents read the API server's keys.
    #[arg(long, default_value = "https://kubernetes.default.svc")]
    api_server: String,
    /// The lifetime of a pod's token, such as 1h.
    #[arg(long, default_value = "1h", value_parser = duration)]
    token_lifetime: Duration,
    /// The lifetime of an X.509-SVID; it is renewed at half of it.
    #[arg(long, default_value = "1h", value_parser = duration)]
    svid_ttl: Duration,
    /// The lifetime of the authority's intermediate.
    #[arg(long, default_value = "24h", value_parser = duration)]
    ca_ttl: Duration,
    /// The port of the agent's /metrics, in the pod's own network.
    #[arg(long, default_value_t = 9808)]
    http_port: u16,
    /// The namespace whose pods may read the metrics (a NetworkPolicy refuses all others).
    #[arg(long, value_name = "NAMESPACE")]
    monitoring_namespace: Option<String>,
    /// The form of the agent's log.
    #[arg(long, default_value = "text", value_parser = PossibleValuesParser::new(["text", "json"]))]
    log_format: String,
    /// The level of the agent's log.
    #[arg(long, default_value = "info")]
    log_level: String,
    /// Print only the Secret with a fresh root for the authority, for `kubectl create -f -`.
    #[arg(long)]
    generate_authority: bool,
    /// The lifetime of that root.
    #[arg(long, default_value = "365d", value_parser = duration, requires = "generate_authority")]
    root_ttl: Duration,
}

impl Args {
    fn options(self) -> Options {
        let source = match self.source_directory {
            Some(host_path) => Source::Directory { host_path },
            None => Source::Authority { secret: self.authority_secret },
        };
        Options {
            environment: match self.environment.as_str() {
                "openshift" => Environment::OpenShift,
                _ => Environment::Kubernetes,
            },
            kubernetes_version: self.kubernetes_version,
            namespace: self.namespace,
            drivers: self.drivers,
            trust_domain: self.trust_domain.unwrap_or_default(),
            id_template: self.id_template,
            image: self.image,
            image_pull_policy: match self.image_pull_policy.as_str() {
                "Always" => PullPolicy::Always,
                "Never" => PullPolicy::Never,
                _ => PullPolicy::IfNotPresent,
            },
            kubelet_root: self.kubelet_root,
            source,
            agent_uid: self.agent_uid,
            fixed_uid: self.fixed_uid,
            agent_gid: self.agent_gid,
            token_audience: self.token_audience,
            token_lifetime: self.token_lifetime,
            issuers: self.issuer,
            api_server: self.api_server,
            svid_ttl: self.svid_ttl,
            ca_ttl: self.ca_ttl,
            http_port: self.http_port,
            monitoring_namespace: self.monitoring_namespace,
            log_format: self.log_format,
            log_level: self.log_level,
        }
    }
}

/// Runs the subcommand.
pub fn run(args: Args) -> anyhow::Result<ExitCode> {
    let mut out = std::io::stdout().lock();
    let (generate, root_ttl) = (args.generate_authority, args.root_ttl);
    let options = args.options();
    if generate {
        authority_secret(&options, root_ttl)?.write_to(&mut out)
    } else {
        out.write_all(to_yaml(&objects(&options)?)?.as_bytes())
    }
    .context("cannot write the objects to standard output")?;
    Ok(ExitCode::SUCCESS)
}

/// A whole number and a unit: s, m, h or d.
fn duration(text: &str) -> Result<Duration, String> {
    let refuse = || format!("{text:?} is no duration; write a whole number and s, m, h or d, such as 90m");
    let unit = text.chars().last().ok_or_else(refuse)?;
    let seconds: u64 = match unit {
        's' => 1,
        'm' => 60,
        'h' => 3600,
        'd' => 86_400,
        _ => return Err(refuse()),
    };
    let number: u32 = text.strip_suffix(unit).and_then(|n| n.parse().ok()).ok_or_else(refuse)?;
    Ok(Duration::from_secs(u64::from(number) * seconds))
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Command {
        #[command(flatten)]
        args: Args,
    }

    fn parse(args: &[&str]) -> Result<Options, clap::Error> {
        Command::try_parse_from([&["manifests"], args].concat()).map(|c| c.args.options())
    }

    #[test]
    fn the_flags_default_to_what_the_library_does() {
        let expected = Options { trust_domain: "example.org".into(), ..Options::default() };
        assert_eq!(parse(&["--trust-domain=example.org"]).unwrap(), expected);
    }

    #[test]
    fn versions_and_issuers_are_read() {
        let options = parse(&[
            "--trust-domain=example.org",
            "--kubernetes-version=v1.33.4",
            "--issuer=https://a",
            "--issuer=https://b",
        ])
        .unwrap();
        assert_eq!(options.kubernetes_version.to_string(), "1.33");
        assert_eq!(options.issuers, ["https://a", "https://b"]);
        let old =
            parse(&["--trust-domain=example.org", "--kubernetes-version=1.31"]).unwrap_err().to_string();
        assert!(old.contains("--kubernetes-version") && old.contains("does not bind tokens"), "{old}");
    }

    #[test]
    fn the_two_sources_exclude_each_other() {
        let directory = "--source-directory=/run/spire/sockets";
        let options = parse(&[directory]).unwrap();
        assert_eq!(options.source, Source::Directory { host_path: "/run/spire/sockets".into() });
        for other in
            ["--trust-domain=example.org", "--authority-secret=x", "--svid-ttl=1h", "--generate-authority"]
        {
            assert!(parse(&[directory, other]).is_err(), "{other}");
        }
        assert!(parse(&[]).is_err(), "one of the two is needed");
    }

    #[test]
    fn durations_have_a_unit() {
        for (text, seconds) in [("90s", 90), ("10m", 600), ("1h", 3600), ("365d", 31_536_000)] {
            assert_eq!(duration(text), Ok(Duration::from_secs(seconds)));
        }
        for text in ["", "1", "h", "1.5h", "-1h", "1w", "5000000000s", "1 h", "1ü"] {
            assert!(duration(text).is_err(), "{text:?}");
        }
    }
}
