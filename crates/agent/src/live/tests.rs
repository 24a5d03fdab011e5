use super::*;
use std::path::Path;

fn args() -> Args {
    Args { node_name: Some("node-1".to_owned()), ..Args::default() }
}

fn parse(yaml: &str) -> Result<Config, ConfigError> {
    Config::parse(yaml, Path::new("test"), &args(), None)
}

#[test]
fn basics_are_found_in_a_configuration_that_is_not_valid() {
    let broken = "driverName: other.example.org\nkubeletUid: 7\nnodeName: n\nhttp: {address: \"0.0.0.0:1\"}\nnoSuchField: 1\n";
    assert!(parse(broken).is_err());
    let basics = Basics::new(&Args::default(), None, None, broken);
    assert_eq!(basics.driver_name, "other.example.org");
    assert_eq!((basics.kubelet_uid, basics.node_name.as_str()), (7, "n"));
    assert_eq!(basics.kubelet_root, config::KUBELET_ROOT);
    assert_eq!(basics.http, Some("0.0.0.0:1".parse().unwrap()));
    assert_eq!(basics.endpoint(), "/var/lib/kubelet/plugins/other.example.org/csi.sock");
    let flags = Args {
        driver_name: Some("flag.example.org".to_owned()),
        http_address: Some("[::]:2".to_owned()),
        ..args()
    };
    let basics = Basics::new(&flags, Some("env"), None, "]not yaml[");
    assert_eq!(basics.http, Some("[::]:2".parse().unwrap()));
    assert_eq!((basics.driver_name.as_str(), basics.node_name.as_str()), ("flag.example.org", "node-1"));
}

#[tokio::test]
async fn a_broken_configuration_leaves_the_last_good_one_in_force() {
    let basics = Basics::new(&args(), None, None, "");
    let live = Live::new(basics, Shown::default(), None, CancellationToken::new());
    live.take(parse("nope: 1\n"));
    assert!(live.settings().is_none());
    let standing = |live: &Live| live.shown().readiness.all().remove(&Condition::Configuration).unwrap();
    assert!(matches!(standing(&live), Standing::NotReady(why) if why.contains("nope")));
    let good = "trustDomain: example.org\ntoken: {issuers: i, keys: {file: /nowhere}}\n";
    live.take(parse(good));
    let first = live.settings().unwrap();
    assert!(first.verifier.is_some());
    assert_eq!(standing(&live), Standing::Ready(String::new()));
    live.take(parse("nope: 1\n"));
    assert!(Arc::ptr_eq(&first, &live.settings().unwrap()));
    assert!(matches!(standing(&live), Standing::NotReady(why) if why.contains("last good")));
    live.take(parse(&format!("{good}workloadApi: {{connectionsPerPod: 3}}\n")));
    assert!(matches!(standing(&live), Standing::Ready(remark) if remark.contains("workloadApi")));
    let second = live.settings().unwrap();
    assert!(Arc::ptr_eq(first.verifier.as_ref().unwrap(), second.verifier.as_ref().unwrap()));
}

/// `/readyz` and `seamount node` have one line for it, and it says what is wrong.
#[tokio::test]
async fn a_reason_is_one_line_of_bounded_length() {
    let live =
        Live::new(Basics::new(&args(), None, None, ""), Shown::default(), None, CancellationToken::new());
    let template = "trustDomain: example.org\nidentity: {idTemplate: \"spiffe://example.org/all\"}\n";
    for (yaml, says) in [
        (template.to_owned(), "would share an identity: add {namespace}"),
        ("driverName: [a\nb: {".to_owned(), "not valid YAML"),
        (format!("x: {}\ny: [", "a".repeat(100_000)), "not valid YAML"),
    ] {
        live.take(parse(&yaml));
        let standing = live.shown().readiness.all().remove(&Condition::Configuration).unwrap();
        let Standing::NotReady(why) = standing else { panic!("{standing:?}") };
        assert!(why.contains(says) && !why.contains('\n') && why.chars().count() <= MAX_REASON + 1, "{why}");
    }
}

#[tokio::test]
async fn what_needs_a_restart_stays_as_it_is() {
    let live =
        Live::new(Basics::new(&args(), None, None, ""), Shown::default(), None, CancellationToken::new());
    live.take(parse("trustDomain: example.org\n"));
    let remark = |live: &Live| match live.shown().readiness.all().remove(&Condition::Configuration).unwrap() {
        Standing::Ready(remark) => remark,
        other => panic!("{other:?}"),
    };
    live.take(parse("trustDomain: other.org\nkubeletUid: 7\nlog: {level: debug}\n"));
    let settings = live.settings().unwrap();
    assert_eq!(settings.config.authority().unwrap().trust_domain.to_string(), "example.org");
    assert_eq!(settings.config.kubelet_uid, 0);
    assert_eq!(settings.config.log.level, config::LogLevel::Debug);
    assert_eq!(remark(&live), "restart the agent to apply kubeletUid, trustDomain");
    // Back again: nothing is left to say.
    live.take(parse("trustDomain: example.org\nlog: {level: debug}\n"));
    assert_eq!(remark(&live), "");
    // Only such a field: still said.
    live.take(parse("trustDomain: example.org\nkubeletUid: 7\nlog: {level: debug}\n"));
    assert_eq!(remark(&live), "restart the agent to apply kubeletUid");
}

#[tokio::test]
async fn the_directory_source_verifies_no_tokens() {
    let live =
        Live::new(Basics::new(&args(), None, None, ""), Shown::default(), None, CancellationToken::new());
    live.take(parse("identity: {source: directory}\n"));
    assert!(live.settings().unwrap().verifier.is_none());
    assert_eq!(live.shown().readiness.all().remove(&Condition::TokenKeys), Some(Standing::NotNeeded));
}
