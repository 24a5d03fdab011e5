use std::path::Path;

use proptest::prelude::*;

use super::*;
use crate::{LogFormat, LogLevel};

const MINIMAL: &str = "trustDomain: example.org\nnodeName: node-1\n";

const FULL: &str = r#"
drivers: [{name: id.example.org}, {name: secrets.example.org}]
kubeletRoot: /data/kubelet/
nodeName: node-2
mounterSocket: /run/x.sock
kubeletUid: 1000
trustDomain: example.org
identity: {source: authority, idTemplate: "spiffe://{trustDomain}/{namespace}/{serviceAccount}"}
authority: {embedded: {directory: /etc/root, keyType: ec-p384, svidKeyType: rsa-2048, caTtl: 12h, svidTtl: 1h30m}}
token: {audience: a, issuers: [https://issuer, https://next], keys: {file: /jwks.json}, keysMaxAge: 1h, allowVolumeContext: true}
http: {address: "[::1]:1"}
log: {format: json, level: debug}
workloadApi: {volumesPerPod: 2, connectionsPerPod: 1, connectionsPerNode: 300, streamsPerConnection: 4096, streamsPerPod: 5, burstPerPod: 1Mi, ratePerPod: 4096}
memoryLimit: 1Gi
"#;

fn parse(yaml: &str) -> Result<Config, ConfigError> {
    Config::parse(yaml, &Overrides::default(), None)
}

fn problems(yaml: &str) -> Vec<Problem> {
    match parse(yaml) {
        Err(ConfigError::Invalid(problems)) => problems,
        other => panic!("{other:?}"),
    }
}

#[track_caller]
fn refused(yaml: &str, field: &str, says: &str) {
    let problems = problems(&format!("{MINIMAL}{yaml}"));
    assert_eq!(problems.len(), 1, "{problems:#?}");
    assert_eq!(problems[0].field, field, "{problems:#?}");
    let text = problems[0].to_string();
    assert!(text.contains(says), "{says:?} is not in {text:?}");
    assert!(!problems[0].remedy.is_empty());
}

fn names(config: &Config) -> Vec<&str> {
    config.drivers.iter().map(|driver| driver.as_str()).collect()
}

#[test]
fn defaults() {
    let config = parse(MINIMAL).unwrap();
    assert_eq!(names(&config), ["csi.spiffe.io"]);
    assert_eq!(config.kubelet_root, Path::new("/var/lib/kubelet"));
    assert_eq!(config.mounter_socket, Path::new("/run/seamount/mounter.sock"));
    assert_eq!(config.kubelet_uid, 0);
    assert_eq!(config.http.unwrap().to_string(), "127.0.0.1:9808");
    assert_eq!(config.log, Log { format: LogFormat::Text, level: LogLevel::Info });
    assert_eq!(
        config.workload_api,
        WorkloadApi {
            volumes_per_pod: 16,
            connections_per_pod: 128,
            connections_per_node: None,
            streams_per_connection: 64,
            streams_per_pod: 256,
            burst_per_pod: 262_144,
            rate_per_pod: 65_536
        }
    );
    let authority = config.authority().unwrap();
    assert_eq!(authority.trust_domain.to_string(), "example.org");
    assert_eq!(authority.id_template, ID_TEMPLATE);
    assert_eq!(authority.embedded.directory, None);
    assert_eq!((authority.embedded.ca_ttl, authority.embedded.svid_ttl), (CA_TTL, SVID_TTL));
    assert_eq!(authority.token.audience, "seamount.dev");
    assert_eq!(authority.token.issuers, [""; 0], "that of the agent's own token");
    assert_eq!(authority.token.keys_max_age, Duration::from_secs(24 * 3600));
    assert!(!authority.token.allow_volume_context);
    let Keys::ApiServer(server) = &authority.token.keys else { panic!("{:?}", authority.token.keys) };
    assert_eq!(
        (server.host.as_str(), server.port, server.path.as_str()),
        ("kubernetes.default.svc", 443, "")
    );
}

/// The manual's example says what the code does.
#[test]
fn the_manual_shows_the_defaults() {
    let manual = include_str!("../../../../docs/agent.md");
    let yaml = manual.split("```yaml\n").nth(1).and_then(|rest| rest.split("```").next()).unwrap();
    assert_eq!(parse(yaml).unwrap(), parse(MINIMAL).unwrap());
    // The two that are commented out, because they exclude a default.
    let mut others = yaml.replace("# directory:", "directory:");
    assert!(parse(&others).unwrap().authority().unwrap().embedded.directory.is_some());
    others = yaml.replace("# file:", "file:");
    assert!(matches!(parse(&others), Err(ConfigError::Invalid(p)) if p[0].field == "token.keys"));
}

#[test]
fn every_field_is_taken() {
    let config = parse(FULL).unwrap();
    assert_eq!(names(&config), ["id.example.org", "secrets.example.org"]);
    assert_eq!(config.kubelet_root.to_str(), Some("/data/kubelet"), "no slash at the end");
    assert_eq!((config.node_name.as_str(), config.kubelet_uid), ("node-2", 1000));
    assert_eq!(config.mounter_socket, Path::new("/run/x.sock"));
    assert_eq!(config.http.unwrap().to_string(), "[::1]:1");
    assert_eq!(config.log, Log { format: LogFormat::Json, level: LogLevel::Debug });
    assert_eq!(
        config.workload_api,
        WorkloadApi {
            volumes_per_pod: 2,
            connections_per_pod: 1,
            connections_per_node: Some(300),
            streams_per_connection: 4096,
            streams_per_pod: 5,
            burst_per_pod: 1 << 20,
            rate_per_pod: 4096
        }
    );
    let authority = config.authority().unwrap();
    assert_eq!(authority.id_template, "spiffe://{trustDomain}/{namespace}/{serviceAccount}");
    let embedded = &authority.embedded;
    assert_eq!(embedded.directory.as_deref(), Some(Path::new("/etc/root")));
    assert_eq!((embedded.key_type, embedded.svid_key_type), (KeyType::EcP384, KeyType::Rsa2048));
    assert_eq!(embedded.ca_ttl, Duration::from_secs(12 * 3600));
    assert_eq!(embedded.svid_ttl, Duration::from_secs(5400));
    assert_eq!(authority.token.keys, Keys::File("/jwks.json".into()));
    assert_eq!(authority.token.issuers, ["https://issuer", "https://next"]);
    assert_eq!(authority.token.keys_max_age, Duration::from_secs(3600));
    assert!(authority.token.allow_volume_context);
}

/// One run finds everything, each with its path and a remedy.
#[test]
fn all_problems_at_once() {
    let problems = problems(
        r#"
drivers: [{name: Upper_Case}, {name: good, kind: x}, {nome: y}, z]
kubeletRoot: kubelet
mounterSocket: 7
kubeletUid: -1
trustDomain: spiffe://x
identity: {source: magic, template: x}
authority: {embedded: {directory: ../x, keyType: dsa, caTtl: 5m, svidTtl: 2h}, extra: 1}
token: {audience: "", keys: {file: /a, apiServer: {url: "http://x"}}, allowVolumeContext: maybe}
http: {address: "localhost"}
log: {format: xml, level: 3}
workloadApi: {connectionsPerPod: 0, streamsPerConnection: 99999, ratePerPod: 1}
memoryLimit: much
nodename: x
"#,
    );
    let mut fields: Vec<_> = problems.iter().map(|p| p.field.as_str()).collect();
    fields.sort_unstable();
    assert_eq!(
        fields,
        [
            "authority.embedded.directory",
            "authority.embedded.keyType",
            "authority.embedded.svidTtl",
            "authority.extra",
            "drivers[0].name",
            "drivers[1].kind",
            "drivers[2].name",
            "drivers[2].nome",
            "drivers[3]",
            "http.address",
            "identity.source",
            "identity.template",
            "kubeletRoot",
            "kubeletUid",
            "log.format",
            "log.level",
            "memoryLimit",
            "mounterSocket",
            "nodeName",
            "nodename",
            "token.allowVolumeContext",
            "token.audience",
            "token.keys",
            "token.keys.apiServer.url",
            "trustDomain",
            "workloadApi.connectionsPerPod",
            "workloadApi.ratePerPod",
            "workloadApi.streamsPerConnection",
        ]
    );
    let error = ConfigError::Invalid(problems.clone()).to_string();
    assert!(error.starts_with("28 problems: (1) "), "{error}");
    assert!(error.contains(", (16) ") && error.ends_with(", and 12 more"), "{error}");
    assert!(problems.iter().all(|p| !p.what.is_empty() && !p.remedy.is_empty()), "{problems:#?}");
}

/// A condition of readiness is one line, and has room for the reason whatever stands in the file.
#[test]
fn problems_are_said_in_one_line_within_bounds() {
    let one =
        parse(&format!("{MINIMAL}identity: {{idTemplate: \"spiffe://x/{{whatever}}\"}}\n")).unwrap_err();
    let text = one.to_string();
    assert!(text.starts_with("identity.idTemplate: \"spiffe://x/{whatever}\": "), "{text}");
    assert!(
        text.contains("does not begin with spiffe://") && text.contains("; write for instance "),
        "{text}"
    );
    let long = format!("{MINIMAL}identity: {{idTemplate: \"spiffe://{}\"}}\n", "a\\n".repeat(50_000));
    let text = parse(&long).unwrap_err().to_string();
    assert!(text.chars().count() < 500 && !text.contains('\n'), "{text}");
    assert!(text.contains("identity.idTemplate") && text.ends_with(ID_TEMPLATE), "{text}");
    let many: String = (0..1000).map(|i| format!("unknown{i}: {}\n", "x".repeat(100))).collect();
    let text = parse(&format!("{MINIMAL}{many}")).unwrap_err().to_string();
    assert!(text.len() < 8000 && text.starts_with("1000 problems: "), "{text}");
}

#[test]
fn each_field_has_its_rule() {
    refused("drivers: [{name: \"\"}]", "drivers[0].name", "63");
    refused(&format!("drivers: [{{name: {}}}]", "a".repeat(64)), "drivers[0].name", "63");
    refused("drivers: [{name: a..b}]", "drivers[0].name", "driver name");
    refused("drivers: [{name: ../x}]", "drivers[0].name", "driver name");
    refused("drivers: [{name: a}, {name: a}]", "drivers[1].name", "twice");
    refused("drivers: a", "drivers", "is a text");
    refused("drivers: []", "drivers", "write 1 to 8");
    refused("kubeletRoot: /", "kubeletRoot", "--root-dir");
    refused("kubeletRoot: /var/../etc", "kubeletRoot", "absolute path");
    refused("kubeletRoot: /var/./lib", "kubeletRoot", "absolute path");
    refused("kubeletRoot: \"/a\\0b\"", "kubeletRoot", "absolute path");
    refused(&format!("kubeletRoot: /{}", "a".repeat(4096)), "kubeletRoot", "4096");
    refused(&format!("mounterSocket: /{}", "a".repeat(107)), "mounterSocket", "107 bytes");
    refused("kubeletUid: 4294967295", "kubeletUid", "whole number");
    refused("kubeletUid: 1.5", "kubeletUid", "whole number");
    refused("kubeletUid: \"0\"", "kubeletUid", "whole number");
    refused("identity: {idTemplate: \"spiffe://elsewhere/x\"}", "identity.idTemplate", "spiffe://");
    refused(
        "identity: {idTemplate: \"spiffe://{trustDomain}/{whatever}\"}",
        "identity.idTemplate",
        "whatever",
    );
    refused("authority: {embedded: {svidTtl: 5s}}", "authority.embedded.svidTtl", "10s");
    refused("authority: {embedded: {caTtl: 60d, svidTtl: 8d}}", "authority.embedded.svidTtl", "7d");
    refused(
        "authority: {embedded: {caTtl: 3h, svidTtl: 1h}}",
        "authority.embedded.svidTtl",
        "4 times into caTtl 3h",
    );
    refused("authority: {embedded: {svidTtl: 3600}}", "authority.embedded.svidTtl", "without a unit");
    refused("authority: {embedded: {svidTtl: 1 hour}}", "authority.embedded.svidTtl", "not a duration");
    refused("authority: {embedded: {svidKeyType: ed25519}}", "authority.embedded.svidKeyType", "ec-p256");
    refused("authority: yes please", "authority", "mapping");
    refused("token: {issuers: \"\"}", "token.issuers", "service-account-issuer");
    refused("token: {issuers: []}", "token.issuers", "agent's own token");
    refused("token: {issuers: [a, 1]}", "token.issuers", "has a number");
    refused("token: {issuers: {a: b}}", "token.issuers", "has a mapping");
    refused("token: {issuers: [a, b, c, d, e, f, g, h, i]}", "token.issuers", "at most 8");
    refused("token: {keysMaxAge: 14m}", "token.keysMaxAge", "15m to 7d");
    refused("token: {keysMaxAge: 8d}", "token.keysMaxAge", "15m to 7d");
    refused("token: {keysMaxAge: never}", "token.keysMaxAge", "not a duration");
    refused("token: {issuers: a, keys: {file: jwks.json}}", "token.keys.file", "absolute path");
    // Only an API server gives the agent a token that tells the issuer.
    refused("token: {keys: {file: /jwks.json}}", "token.issuers", "is missing");
    refused("token: {keys: {jwks: /x}}", "token.keys.jwks", "not known");
    for url in
        ["http://x", "https://", "x", "https://u:p@x", "https://x?y", "https://x:99999", "https://x:", ""]
    {
        refused(
            &format!("token: {{keys: {{apiServer: {{url: {url:?}}}}}}}"),
            "token.keys.apiServer.url",
            "https://",
        );
    }
    refused("token: {keys: {apiServer: {caFile: ca.crt}}}", "token.keys.apiServer.caFile", "absolute path");
    refused("http: {address: \":9808\"}", "http.address", "IP address");
    refused("log: {level: INFO}", "log.level", "error, warn, info, debug, trace");
    refused("workloadApi: {volumesPerPod: 4097}", "workloadApi.volumesPerPod", "4096");
    refused("workloadApi: {burstPerPod: 4095}", "workloadApi.burstPerPod", "4Ki to 1Gi");
    refused("memoryLimit: 15Mi", "memoryLimit", "16Mi");
    refused("workloadApi: {connectionsPerNode: 0}", "workloadApi.connectionsPerNode", "from 1");
    refused("\"a\\nb\": 1", "a\\nb", "not known");
}

#[test]
fn the_node_needs_a_name() {
    let missing = problems("trustDomain: example.org");
    assert_eq!(missing[0].field, "nodeName");
    assert!(missing[0].remedy.contains("NODE_NAME"));
    for bad in ["a/b", "UPPER", "a b", "-a", ".."] {
        let result = Config::parse(MINIMAL, &Overrides::default(), Some(bad));
        assert!(
            matches!(result, Err(ConfigError::Invalid(p)) if p[0].field == "environment NODE_NAME"),
            "{bad}"
        );
    }
}

/// YAML 1.1 would read these as booleans.
#[test]
fn a_node_may_be_called_no() {
    for name in ["n", "no", "y", "yes", "on", "off"] {
        let config = parse(&format!("trustDomain: example.org\nnodeName: {name}\n")).unwrap();
        assert_eq!(config.node_name, name);
    }
    refused("token: {allowVolumeContext: yes}", "token.allowVolumeContext", "true or false");
}

#[test]
fn the_source_authority_needs_a_trust_domain() {
    assert_eq!(problems("nodeName: n")[0].field, "trustDomain");
}

#[test]
fn the_source_directory_needs_nothing_of_the_authority() {
    let config = parse("nodeName: n\nidentity: {source: directory}\n").unwrap();
    assert_eq!(config.source, Source::Directory);
    assert!(config.authority().is_none());
    let problems = problems(
        "nodeName: n\nidentity: {source: directory, idTemplate: x}\ntrustDomain: a\nauthority: {}\ntoken: {}\n",
    );
    let fields: Vec<_> = problems.iter().map(|p| p.field.as_str()).collect();
    assert_eq!(fields, ["trustDomain", "authority", "token", "identity.idTemplate"]);
}

#[test]
fn urls_of_all_forms() {
    for (url, host, port, path) in [
        ("https://10.0.0.1:6443", "10.0.0.1", 6443, ""),
        ("https://[fd00::1]", "fd00::1", 443, ""),
        ("https://[fd00::1]:6443/", "fd00::1", 6443, ""),
        ("https://gateway/k8s/clusters/c-1/", "gateway", 443, "/k8s/clusters/c-1"),
    ] {
        let config = parse(&format!("{MINIMAL}token: {{keys: {{apiServer: {{url: {url:?}}}}}}}")).unwrap();
        let Keys::ApiServer(server) = &config.authority().unwrap().token.keys else { panic!("{url}") };
        assert_eq!((server.host.as_str(), server.port, server.path.as_str()), (host, port, path));
    }
}

#[test]
fn health_can_be_off() {
    assert_eq!(parse(&format!("{MINIMAL}http: {{address: \"\"}}")).unwrap().http, None);
}

#[test]
fn an_empty_file_is_the_defaults() {
    for text in ["", "# nothing\n", "---\n", "null\n", "{}"] {
        assert_eq!(problems(text).len(), 2, "{text:?}");
    }
    let without = Config::parse("", &Overrides::default(), Some("node-1"));
    assert!(matches!(without, Err(ConfigError::Invalid(p)) if p.len() == 1 && p[0].field == "trustDomain"));
    // Where the node's name is another's matter.
    assert_eq!(Config::check("trustDomain: example.org"), Ok(()));
    assert!(matches!(Config::check("nope: 1"), Err(ConfigError::Invalid(p)) if p.len() == 2));
}

#[test]
fn what_needs_a_restart_is_named() {
    let old = parse(MINIMAL).unwrap();
    assert!(old.needs_restart(&old).is_empty());
    let new =
        parse(&format!("{MINIMAL}log: {{level: debug}}\nauthority: {{embedded: {{svidTtl: 10m}}}}")).unwrap();
    assert!(old.needs_restart(&new).is_empty());
    let all = old.needs_restart(&parse(FULL).unwrap());
    for field in
        ["drivers", "kubeletRoot", "nodeName", "mounterSocket", "kubeletUid", "http.address", "log.format"]
    {
        assert!(all.contains(&field), "{field} is not in {all:?}");
    }
    let directory = parse("nodeName: node-1\nidentity: {source: directory}").unwrap();
    assert_eq!(
        old.needs_restart(&directory),
        ["identity.source", "trustDomain"],
        "the source, and with it the trust domain"
    );
}

#[test]
fn a_running_agent_takes_over_what_needs_no_restart() {
    let old = parse(MINIMAL).unwrap();
    assert_eq!(old.adopt(&old), old);
    let adopted = old.adopt(&parse(FULL).unwrap());
    assert!(old.needs_restart(&adopted).is_empty(), "{:?}", old.needs_restart(&adopted));
    assert_eq!(adopted.log, Log { format: LogFormat::Text, level: LogLevel::Debug });
    let authority = adopted.authority().unwrap();
    assert_eq!(authority.token.audience, "a");
    assert_eq!(authority.embedded.svid_ttl, Duration::from_secs(5400));
    assert_eq!(authority.embedded.directory, None);
    // Another source, or another trust domain with an ID template that names it: all of the old source stays.
    for other in [
        "nodeName: node-1\nidentity: {source: directory}",
        "nodeName: node-1\ntrustDomain: b.org\nidentity: {idTemplate: \"spiffe://b.org/{namespace}\"}",
    ] {
        let new = parse(other).unwrap();
        assert!(!old.needs_restart(&new).is_empty());
        assert_eq!(old.adopt(&new), old);
    }
}

proptest! {
    #[test]
    fn no_text_panics(text in ".{0,200}") {
        let _ = parse(&text);
    }

    #[test]
    fn no_value_panics(value in "[a-z0-9:/{}\\[\\]\", .-]{0,40}") {
        for field in ["drivers", "kubeletRoot", "token", "identity", "authority", "http", "workloadApi"] {
            let _ = parse(&format!("{MINIMAL}{field}: {value}"));
        }
    }
}
