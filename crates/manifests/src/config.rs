//! The agent's configuration file, as far as an installation sets it.

use std::time::Duration;

use seamount_api::agent::Config;
use serde::Serialize;

use crate::options::{Options, Source};

/// Where the authority's Secret is mounted in the agent.
pub(crate) const AUTHORITY_DIRECTORY: &str = "/etc/seamount/authority";
/// Where the agent's configuration is mounted.
pub(crate) const CONFIG_DIRECTORY: &str = "/etc/seamount/config";
/// The file in the ConfigMap.
pub(crate) const CONFIG_FILE: &str = "agent.yaml";
/// Where the agent's own token and the API server's certificate are mounted.
pub(crate) const TOKEN_DIRECTORY: &str = "/var/run/secrets/kubernetes.io/serviceaccount";
/// The directory that both containers share.
pub(crate) const SHARED_DIRECTORY: &str = "/run/seamount";
/// The mounter's socket in it.
pub(crate) const MOUNTER_SOCKET: &str = "/run/seamount/mounter.sock";

/// Where the agent makes the socket that its probes ask: its own default.
pub(crate) const HEALTH_DIRECTORY: &str = "/run/seamount-agent";

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Agent<'a> {
    drivers: Vec<Driver<'a>>,
    kubelet_root: &'a str,
    mounter_socket: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    trust_domain: Option<&'a str>,
    identity: Identity<'a>,
    #[serde(skip_serializing_if = "Option::is_none")]
    authority: Option<Authority>,
    #[serde(skip_serializing_if = "Option::is_none")]
    token: Option<Token<'a>>,
    http: Http,
    log: Log<'a>,
}

#[derive(Serialize)]
struct Driver<'a> {
    name: &'a str,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Identity<'a> {
    source: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    id_template: Option<&'a str>,
}

#[derive(Serialize)]
struct Authority {
    embedded: Embedded,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Embedded {
    directory: &'static str,
    ca_ttl: String,
    svid_ttl: String,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Token<'a> {
    audience: &'a str,
    /// None: the agent takes that of its own token.
    #[serde(skip_serializing_if = "<[String]>::is_empty")]
    issuers: &'a [String],
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    allow_volume_context: bool,
    keys: Keys<'a>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Keys<'a> {
    api_server: ApiServer<'a>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct ApiServer<'a> {
    url: &'a str,
    ca_file: String,
    token_file: String,
}

#[derive(Serialize)]
struct Http {
    address: String,
}

#[derive(Serialize)]
struct Log<'a> {
    format: &'a str,
    level: &'a str,
}

/// `agent.yaml` for these options.
pub(crate) fn agent_yaml(options: &Options) -> Result<String, crate::Error> {
    // The agent refuses what a source has no use for.
    let is_authority = matches!(options.source, Source::Authority { .. });
    let config = Agent {
        drivers: options.drivers.iter().map(|name| Driver { name }).collect(),
        kubelet_root: &options.kubelet_root,
        mounter_socket: MOUNTER_SOCKET,
        trust_domain: is_authority.then_some(options.trust_domain.as_str()),
        identity: Identity {
            source: if is_authority { "authority" } else { "directory" },
            id_template: is_authority.then_some(options.id_template.as_str()),
        },
        authority: is_authority.then(|| Authority {
            embedded: Embedded {
                directory: AUTHORITY_DIRECTORY,
                ca_ttl: duration(options.ca_ttl),
                svid_ttl: duration(options.svid_ttl),
            },
        }),
        token: is_authority.then(|| Token {
            audience: &options.token_audience,
            issuers: &options.issuers,
            // Where the API server cannot put the token into secrets, it comes in the volume context.
            allow_volume_context: !options.kubernetes_version.has_tokens_in_secrets(),
            keys: Keys {
                api_server: ApiServer {
                    url: &options.api_server,
                    ca_file: format!("{TOKEN_DIRECTORY}/ca.crt"),
                    token_file: format!("{TOKEN_DIRECTORY}/token"),
                },
            },
        }),
        // The pod has a network namespace of its own. IPv4 as well, and IPv4 alone where the kernel has no
        // IPv6.
        http: Http { address: format!("[::]:{}", options.http_port) },
        log: Log { format: &options.log_format, level: &options.log_level },
    };
    let text = crate::yaml::one("agent.yaml", &config)?;
    // The agent's own judgement: what the options let pass wrongly is found here, not on a node.
    Config::check(&text)?;
    Ok(text)
}

/// A duration in the largest unit that holds it exactly.
fn duration(d: Duration) -> String {
    match d.as_secs() {
        s if s % 3600 == 0 => format!("{}h", s / 3600),
        s if s % 60 == 0 => format!("{}m", s / 60),
        s => format!("{s}s"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_agents_schema_judges_what_is_written() {
        let good = Options { trust_domain: "example.org".into(), ..Options::default() };
        assert!(agent_yaml(&good).is_ok());
        let bad = Options { svid_ttl: Duration::from_secs(1), ..good };
        let error = agent_yaml(&bad).unwrap_err();
        assert!(matches!(error, crate::Error::Agent(_)));
        assert!(error.to_string().contains("authority.embedded.svidTtl: is 1s"), "{error}");
    }

    #[test]
    fn durations_are_exact() {
        for (seconds, text) in [(3600, "1h"), (86_400, "24h"), (90 * 60, "90m"), (61, "61s")] {
            assert_eq!(duration(Duration::from_secs(seconds)), text);
        }
    }
}
