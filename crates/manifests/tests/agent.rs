//! The agent takes the configuration that the ConfigMap carries, with the flags of the DaemonSet.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic, reason = "a test may panic")]

use std::cell::Cell;
use std::path::Path;
use std::time::Duration;

use proptest::prelude::*;
use proptest::test_runner::{RngAlgorithm, TestRng, TestRunner};
use seamount_agent::config::{self, Args, Config, Keys, Source as AgentSource};
use seamount_manifests::{Object, Options, Source, objects};
use serde_json::Value;

fn find<'a>(list: &'a [Object], kind: &str) -> &'a Value {
    list.iter().find(|o| o.kind() == kind).unwrap_or_else(|| panic!("no {kind}")).value()
}

/// What the agent makes of these options.
fn started(options: &Options) -> Config {
    let list = objects(options).unwrap();
    let pod = &find(&list, "DaemonSet")["spec"]["template"]["spec"];
    let agent = pod["containers"].as_array().unwrap().iter().find(|c| c["name"] == "agent").unwrap();
    let flags: Vec<&str> = agent["args"].as_array().unwrap().iter().map(|a| a.as_str().unwrap()).collect();
    let args = Args::parse(flags).unwrap();
    assert_eq!(args.config.as_deref(), Some(Path::new("/etc/seamount/config/agent.yaml")));
    let text = find(&list, "ConfigMap")["data"]["agent.yaml"].as_str().unwrap();
    config::parse(text, Path::new("agent.yaml"), &args, Some("node-1"))
        .unwrap_or_else(|e| panic!("{e}\n{text}"))
}

#[test]
fn the_agent_takes_its_configuration_for_an_authority() {
    let options = Options {
        trust_domain: "example.org".into(),
        drivers: vec!["id.example.org".into(), "b.example.org".into()],
        kubelet_root: "/data/kubelet".into(),
        svid_ttl: Duration::from_secs(10),
        ca_ttl: Duration::from_secs(40),
        api_server: "https://10.96.0.1:6443".into(),
        log_format: "json".into(),
        ..Options::default()
    };
    let config = started(&options);
    let drivers: Vec<&str> = config.drivers.iter().map(|driver| driver.as_str()).collect();
    assert_eq!(
        (drivers.as_slice(), config.node_name.as_str()),
        (&["id.example.org", "b.example.org"][..], "node-1")
    );
    assert_eq!(config.kubelet_root, Path::new("/data/kubelet"));
    assert_eq!(config.mounter_socket, Path::new("/run/seamount/mounter.sock"));
    assert_eq!(config.http.unwrap().to_string(), "[::]:9808");
    let AgentSource::Authority(authority) = config.source else { panic!("not an authority") };
    assert_eq!(authority.trust_domain.to_string(), "example.org");
    assert_eq!(authority.embedded.directory.as_deref(), Some(Path::new("/etc/seamount/authority")));
    assert_eq!((authority.embedded.svid_ttl, authority.embedded.ca_ttl), (options.svid_ttl, options.ca_ttl));
    assert_eq!(authority.token.audience, "seamount.dev");
    assert!(!authority.token.allow_volume_context);
    assert!(authority.token.issuers.is_empty());
    let Keys::ApiServer(server) = authority.token.keys else { panic!("not the API server's keys") };
    assert_eq!((server.host.as_str(), server.port), ("10.96.0.1", 6443));
}

#[test]
fn the_agent_takes_its_configuration_for_a_directory() {
    let source = Source::Directory { host_path: "/run/spire/agent-sockets".into() };
    assert_eq!(started(&Options { source, ..Options::default() }).source, AgentSource::Directory);
}

#[test]
fn the_agent_takes_what_older_clusters_and_migrations_need() {
    let options = Options {
        trust_domain: "example.org".into(),
        kubernetes_version: "1.33".parse().unwrap(),
        issuers: vec!["https://old".into(), "https://new".into()],
        ..Options::default()
    };
    let AgentSource::Authority(authority) = started(&options).source else { panic!("not an authority") };
    assert!(authority.token.allow_volume_context);
    assert_eq!(authority.token.issuers, options.issuers);
}

/// What is taken where it is typed, the agent takes as well: else the mistake shows when no pod starts.
#[test]
fn whatever_passes_the_options_the_agent_takes() {
    fn words(parts: &'static [&'static str]) -> impl Strategy<Value = String> {
        prop::collection::vec(prop::sample::select(parts), 0..5).prop_map(|parts| parts.concat())
    }
    fn or(usual: &str, odd: impl Strategy<Value = String>) -> impl Strategy<Value = String> {
        prop_oneof![2 => Just(usual.to_owned()), 1 => odd]
    }
    const TEMPLATE: [&str; 12] = [
        "spiffe://{trustDomain}",
        "/ns/{namespace}",
        "/sa/",
        "{serviceAccount}",
        "{podUid}",
        "/",
        "{",
        "}",
        "-",
        "é",
        "spiffe://example.org",
        "{label}",
    ];
    const URL: [&str; 16] = [
        "https://", "http://", "a", "10.0.0.1", "[::1]", "[", "]", ":", "443", "0", "65536", "/", "/x", "@",
        "?", "#",
    ];
    const NAME: [&str; 8] = ["a", "A", "-", ".", "..", "example.org", "_", "1"];
    const PATH: [&str; 8] = ["/", "/a", "a", ".", "..", "//", "/var/lib", " "];
    let strategy = (
        or("example.org", words(&NAME)),
        or("spiffe://{trustDomain}/{namespace}", words(&TEMPLATE)),
        or("https://x", words(&URL)),
        or("/var/lib/kubelet", words(&PATH)),
        or("csi.spiffe.io", words(&NAME)),
        or("seamount.dev", words(&URL)),
        prop::collection::vec(words(&URL), 0..3),
        (8u64..700_000, 30u64..3_000_000),
    );
    let config = ProptestConfig { cases: 1500, failure_persistence: None, ..ProptestConfig::default() };
    let mut runner = TestRunner::new_with_rng(config, TestRng::deterministic_rng(RngAlgorithm::ChaCha));
    let (passed, refused) = (Cell::new(0), Cell::new(0));
    runner
        .run(&strategy, |(domain, template, url, root, driver, audience, issuers, (svid, ca))| {
            let options = Options {
                trust_domain: domain,
                id_template: template,
                api_server: url,
                kubelet_root: root,
                drivers: vec![driver],
                token_audience: audience,
                issuers,
                svid_ttl: Duration::from_secs(svid),
                ca_ttl: Duration::from_secs(ca),
                ..Options::default()
            };
            if options.check().is_ok() {
                started(&options);
                passed.set(passed.get() + 1);
            } else {
                refused.set(refused.get() + 1);
            }
            Ok(())
        })
        .unwrap();
    assert!(passed.get() > 30 && refused.get() > 30, "{} passed, {} refused", passed.get(), refused.get());
}

#[test]
fn the_limits_of_the_options_are_those_of_the_agent() {
    // What the options let pass, the agent has to take.
    for (svid, ca) in [(10, 40), (7 * 86_400, 4 * 7 * 86_400)] {
        let options = Options {
            trust_domain: "example.org".into(),
            svid_ttl: Duration::from_secs(svid),
            ca_ttl: Duration::from_secs(ca),
            ..Options::default()
        };
        started(&options);
    }
}
