use super::*;
use std::path::Path;

fn args() -> Args {
    Args { node_name: Some("node-1".to_owned()), ..Args::default() }
}

fn manager(bootstrap: BootstrapConfig) -> Arc<ConfigManager> {
    let cancel = CancellationToken::new();
    ConfigManager::new(bootstrap, HttpState::default(), Metrics::default(), None, cancel)
}

fn parse(yaml: &str) -> Result<Config, ConfigError> {
    config::parse(yaml, Path::new("test"), &args(), None)
}

#[test]
fn basics_are_found_in_a_configuration_that_is_not_valid() {
    let broken = "drivers: [{name: other.example.org}, {name: Not_One}, {name: b.example.org}]\nkubeletUid: 7\nnodeName: n\nhttp: {address: \"0.0.0.0:1\"}\nnoSuchField: 1\n";
    assert!(parse(broken).is_err());
    let bootstrap = BootstrapConfig::new(&Args::default(), None, None, broken);
    assert_eq!(bootstrap.drivers, ["other.example.org", "b.example.org"].map(|d| d.parse().unwrap()));
    assert_eq!((bootstrap.kubelet_uid, bootstrap.node_name.as_str()), (7, "n"));
    assert_eq!(bootstrap.kubelet_root, config::KUBELET_ROOT);
    assert_eq!(bootstrap.http, Some("0.0.0.0:1".parse().unwrap()));
    let endpoint = bootstrap.endpoint(&bootstrap.drivers[0]);
    assert_eq!(endpoint, "/var/lib/kubelet/plugins/other.example.org/csi.sock");
    let flags = Args {
        drivers: vec!["flag.example.org".to_owned()],
        http_address: Some("[::]:2".to_owned()),
        ..args()
    };
    let bootstrap = BootstrapConfig::new(&flags, Some("env"), None, "]not yaml[");
    assert_eq!(bootstrap.http, Some("[::]:2".parse().unwrap()));
    assert_eq!((bootstrap.drivers[0].as_str(), bootstrap.node_name.as_str()), ("flag.example.org", "node-1"));
}

/// Two drivers of one name would take each other's connections.
#[test]
fn a_driver_that_is_named_twice_is_served_once() {
    let twice = "drivers: [{name: a.example.org}, {name: b.example.org}, {name: a.example.org}]";
    assert!(parse(twice).is_err());
    let bootstrap = BootstrapConfig::new(&Args::default(), None, None, twice);
    assert_eq!(bootstrap.drivers, ["a.example.org", "b.example.org"].map(|d| d.parse().unwrap()));
}

#[tokio::test]
async fn a_repair_that_names_other_drivers_needs_a_restart() {
    let manager = manager(BootstrapConfig::new(&Args::default(), None, None, "]not yaml["));
    let repaired = "drivers: [{name: a.example.org}]\ntrustDomain: example.org\n\
                    token: {issuers: i, keys: {file: /nowhere}}\n";
    manager.take(parse(repaired));
    assert!(manager.settings().is_some());
    let status = manager.shown().readiness.get(&readiness::CONFIGURATION).unwrap().0;
    let ConditionStatus::NotReady(why) = status else { panic!("{status:?}") };
    assert!(why.contains("restart the agent to apply drivers"), "{why}");
}

#[tokio::test]
async fn a_broken_configuration_leaves_the_last_good_one_in_force() {
    let bootstrap = BootstrapConfig::new(&args(), None, None, "");
    let manager = manager(bootstrap);
    manager.take(parse("nope: 1\n"));
    assert!(manager.settings().is_none());
    let status =
        |manager: &ConfigManager| manager.shown().readiness.get(&readiness::CONFIGURATION).unwrap().0;
    assert!(matches!(status(&manager), ConditionStatus::NotReady(why) if why.contains("nope")));
    let good = "trustDomain: example.org\ntoken: {issuers: i, keys: {file: /nowhere}}\n";
    manager.take(parse(good));
    let first = manager.settings().unwrap();
    assert!(first.verifier.is_some());
    assert_eq!(status(&manager), ConditionStatus::Ready(String::new()));
    manager.take(parse("nope: 1\n"));
    assert!(Arc::ptr_eq(&first, &manager.settings().unwrap()));
    assert!(matches!(status(&manager), ConditionStatus::NotReady(why) if why.contains("last good")));
    manager.take(parse(&format!("{good}workloadApi: {{connectionsPerPod: 3}}\n")));
    assert!(matches!(status(&manager), ConditionStatus::Ready(remark) if remark.contains("workloadApi")));
    let second = manager.settings().unwrap();
    assert!(Arc::ptr_eq(first.verifier.as_ref().unwrap(), second.verifier.as_ref().unwrap()));
}

/// `/readyz` and `seamount node` have one line for it, and it says what is wrong.
#[tokio::test]
async fn a_reason_is_one_line_of_bounded_length() {
    let manager = manager(BootstrapConfig::new(&args(), None, None, ""));
    let template = "trustDomain: example.org\nidentity: {idTemplate: \"spiffe://example.org/all\"}\n";
    for (yaml, says) in [
        (template.to_owned(), "would share an identity: add {namespace}"),
        ("drivers: [a\nb: {".to_owned(), "not valid YAML"),
        (format!("x: {}\ny: [", "a".repeat(100_000)), "not valid YAML"),
    ] {
        manager.take(parse(&yaml));
        let status = manager.shown().readiness.get(&readiness::CONFIGURATION).unwrap().0;
        let ConditionStatus::NotReady(why) = status else { panic!("{status:?}") };
        assert!(why.contains(says) && !why.contains('\n') && why.chars().count() <= MAX_REASON + 1, "{why}");
    }
}

#[tokio::test]
async fn what_needs_a_restart_stays_as_it_is() {
    let manager = manager(BootstrapConfig::new(&args(), None, None, ""));
    manager.take(parse("trustDomain: example.org\n"));
    let remark =
        |manager: &ConfigManager| match manager.shown().readiness.get(&readiness::CONFIGURATION).unwrap().0 {
            ConditionStatus::Ready(remark) => remark,
            other => panic!("{other:?}"),
        };
    manager.take(parse("trustDomain: other.org\nkubeletUid: 7\nlog: {level: debug}\n"));
    let settings = manager.settings().unwrap();
    assert_eq!(settings.config.authority().unwrap().trust_domain.to_string(), "example.org");
    assert_eq!(settings.config.kubelet_uid, 0);
    assert_eq!(settings.config.log.level, config::LogLevel::Debug);
    assert_eq!(remark(&manager), "restart the agent to apply kubeletUid, trustDomain");
    // Back again: nothing is left to say.
    manager.take(parse("trustDomain: example.org\nlog: {level: debug}\n"));
    assert_eq!(remark(&manager), "");
    // Only such a field: still said.
    manager.take(parse("trustDomain: example.org\nkubeletUid: 7\nlog: {level: debug}\n"));
    assert_eq!(remark(&manager), "restart the agent to apply kubeletUid");
}

#[tokio::test]
async fn the_directory_source_verifies_no_tokens() {
    let manager = manager(BootstrapConfig::new(&args(), None, None, ""));
    manager.take(parse("identity: {source: directory}\n"));
    assert!(manager.settings().unwrap().verifier.is_none());
    assert_eq!(
        manager.shown().readiness.get(&READINESS).map(|(status, _)| status),
        Some(ConditionStatus::NotNeeded)
    );
}
