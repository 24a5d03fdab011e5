use super::*;

fn valid() -> Options {
    Options { trust_domain: "example.org".into(), ..Options::default() }
}

fn refused(options: &Options) -> Vec<&'static str> {
    match options.check() {
        Ok(()) => Vec::new(),
        Err(Error::Options(list)) => list.iter().map(|p| p.option).collect(),
        Err(other) => panic!("{other}"),
    }
}

#[test]
fn the_defaults_lack_only_the_trust_domain() {
    assert_eq!(refused(&Options::default()), ["trust-domain"]);
    assert_eq!(refused(&valid()), [""; 0]);
}

#[test]
fn all_problems_are_reported_at_once() {
    let options = Options {
        namespace: "Seamount_System".into(),
        drivers: vec!["-x".into()],
        trust_domain: "Example.org".into(),
        image: String::new(),
        kubelet_root: "/var/lib/../kubelet".into(),
        agent_uid: 0,
        agent_gid: 65532,
        svid_ttl: Duration::from_secs(9),
        ca_ttl: Duration::from_secs(35),
        ..valid()
    };
    assert_eq!(
        refused(&options),
        [
            "namespace",
            "driver",
            "image",
            "kubelet-root",
            "agent-uid",
            "agent-gid",
            "trust-domain",
            "svid-ttl",
            "ca-ttl"
        ]
    );
    let text = options.check().unwrap_err().to_string();
    assert_eq!(text.lines().count(), 9, "one line each:\n{text}");
    assert!(text.contains("--agent-uid: 0 is root"), "{text}");
}

#[test]
fn each_bad_value_is_refused_by_its_option() {
    let cases: [(&str, Options); 22] = [
        ("namespace", Options { namespace: String::new(), ..valid() }),
        ("driver", Options { drivers: vec!["csi..io".into()], ..valid() }),
        ("driver", Options { drivers: vec!["a/b".into()], ..valid() }),
        ("driver", Options { drivers: vec![], ..valid() }),
        ("driver", Options { drivers: vec!["a".into(), "a".into()], ..valid() }),
        ("id-template", Options { id_template: "/ns/x".into(), ..valid() }),
        (
            "id-template",
            Options { id_template: "spiffe://{trustDomain}/sa/{serviceAccount}".into(), ..valid() },
        ),
        (
            "id-template",
            Options { id_template: "spiffe://{trustDomain}/{namespace}/{label}".into(), ..valid() },
        ),
        ("issuer", Options { issuers: vec![String::new()], ..valid() }),
        ("issuer", Options { issuers: vec!["https://x".into(); 9], ..valid() }),
        ("api-server", Options { api_server: "https://10.0.0.1:0".into(), ..valid() }),
        ("api-server", Options { api_server: "https://user@x?y".into(), ..valid() }),
        ("kubelet-root", Options { kubelet_root: "/".into(), ..valid() }),
        ("kubelet-root", Options { kubelet_root: "/var/lib/kubelet/".into(), ..valid() }),
        ("source-directory", Options { source: Source::Directory { host_path: "/spire".into() }, ..valid() }),
        ("authority-secret", Options { source: Source::Authority { secret: "A".into() }, ..valid() }),
        ("token-lifetime", Options { token_lifetime: Duration::from_secs(599), ..valid() }),
        ("api-server", Options { api_server: "http://10.0.0.1".into(), ..valid() }),
        ("http-port", Options { http_port: 80, ..valid() }),
        ("agent-uid", Options { agent_uid: 1 << 31, ..valid() }),
        ("monitoring-namespace", Options { monitoring_namespace: Some("A".into()), ..valid() }),
        ("log-level", Options { log_level: "loud".into(), ..valid() }),
    ];
    for (option, options) in cases {
        assert_eq!(refused(&options), [option], "{options:?}");
    }
}

#[test]
fn the_template_is_refused_with_the_agents_words() {
    let options = Options { id_template: "spiffe://{trustDomain}/{namespace}-{podName}".into(), ..valid() };
    let text = options.check().unwrap_err().to_string();
    assert!(text.starts_with("--id-template: ") && text.contains("holds two placeholders"), "{text}");
}

#[test]
fn a_registration_socket_that_the_kernel_cannot_address_is_refused() {
    // "/plugins_registry/" and "-reg.sock" are 27 bytes.
    let root = format!("/{}", "k".repeat(SOCKET_PATH - 27 - "csi.spiffe.io".len() - 1));
    assert_eq!(refused(&Options { kubelet_root: root.clone(), ..valid() }), [""; 0]);
    assert_eq!(refused(&Options { kubelet_root: format!("{root}k"), ..valid() }), ["driver"]);
}

#[test]
fn what_a_directory_has_no_use_for_is_not_asked_for() {
    let source = Source::Directory { host_path: "/run/spire/sockets".into() };
    assert_eq!(refused(&Options { source, ..Options::default() }), [""; 0]);
}
