//! `seamount api` against served Workload API sockets.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "a test may panic")]

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::Arc;
use std::time::Duration;

use seamount_authority::{Authority as _, Embedded, EmbeddedConfig, IdTemplate, Workload, new_key_and_csr};
use seamount_identity::{BundleSet, KeyType, TrustDomain, X509Bundle, X509Svid};
use seamount_testkit::processes::Spawn;
use seamount_workload_api::{self as workload_api, IdentityState, Limits, Response, Unobserved};
use serde_json::Value;
use tokio::net::UnixListener;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

const PATIENCE: Duration = Duration::from_secs(60);
const ID: &str = "spiffe://example.org/ns/shop/sa/web";

fn authority(trust_domain: &str) -> Embedded {
    let trust_domain: TrustDomain = trust_domain.parse().unwrap();
    let template =
        IdTemplate::parse("spiffe://{trustDomain}/ns/{namespace}/sa/{serviceAccount}", &trust_domain)
            .unwrap();
    Embedded::new(EmbeddedConfig {
        trust_domain,
        template,
        key_type: KeyType::EcP256,
        ca_ttl: Duration::from_secs(86_400),
        svid_ttl: Duration::from_secs(3_600),
        directory: None,
    })
    .unwrap()
}

/// A socket, and what it serves.
struct Server {
    authority: Embedded,
    directory: tempfile::TempDir,
    socket: PathBuf,
    served: watch::Sender<IdentityState>,
    cancel: CancellationToken,
}

impl Drop for Server {
    fn drop(&mut self) {
        self.cancel.cancel();
    }
}

impl Server {
    /// Serves; streams wait for an identity no longer than `pending`.
    fn new(served: IdentityState, pending: Duration) -> Self {
        let authority = authority("example.org");
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("spire-agent.sock");
        let (sender, receiver) = watch::channel(served);
        let cancel = CancellationToken::new();
        tokio::spawn(workload_api::serve(
            UnixListener::bind(&socket).unwrap(),
            receiver,
            Limits::default(),
            pending,
            Arc::new(Unobserved),
            cancel.clone(),
        ));
        Self { authority, directory, socket, served: sender, cancel }
    }

    async fn issue(&self) -> Arc<X509Svid> {
        let (key, csr) = new_key_and_csr(KeyType::EcP256).unwrap();
        let workload = Workload {
            namespace: "shop".into(),
            service_account: "web".into(),
            pod_name: "web-0".into(),
            pod_uid: seamount_testkit::uuid(),
            node: "node-1".into(),
        };
        let chain = self.authority.sign(&csr, &workload, "").await.unwrap();
        let chain: Vec<u8> = chain.iter().flat_map(|certificate| certificate.to_vec()).collect();
        Arc::new(X509Svid::parse(&chain, key).unwrap())
    }

    /// Issues an identity and serves it from now on.
    async fn ready(&self) -> Arc<X509Svid> {
        let svid = self.issue().await;
        let bundles = self.authority.bundles().borrow().clone();
        self.served.send_replace(IdentityState::Ready(Arc::new(Response::new(
            std::slice::from_ref(&svid),
            &bundles,
        ))));
        svid
    }

    async fn run(&self, args: &[&str]) -> Answer {
        let socket = self.socket.to_str().unwrap().to_owned();
        let mut all = vec!["--socket", &socket];
        all.extend(args);
        seamount(&all, &[]).await
    }
}

#[derive(Debug)]
struct Answer {
    code: Option<i32>,
    out: String,
    err: String,
}

async fn seamount(args: &[&str], env: &[(&str, &str)]) -> Answer {
    let mut command = Command::new(env!("CARGO_BIN_EXE_seamount"));
    command.arg("api").args(args).env_remove("SPIFFE_ENDPOINT_SOCKET").envs(env.iter().copied());
    let Output { status, stdout, stderr } =
        tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap();
    Answer {
        code: status.code(),
        out: String::from_utf8(stdout).unwrap(),
        err: String::from_utf8(stderr).unwrap(),
    }
}

fn blocks(pem: &str) -> Vec<(String, Vec<u8>)> {
    pem::parse_many(pem).unwrap().into_iter().map(|p| (p.tag().to_owned(), p.into_contents())).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn text_is_for_people_and_has_no_key() {
    let server = Server::new(IdentityState::Pending, PATIENCE);
    let svid = server.ready().await;
    let answer = server.run(&["fetch", "x509"]).await;
    assert_eq!(answer.code, Some(0), "{answer:?}");
    for expected in [ID, svid.serial_hex(), "59 min", "EC P-256", "example.org: 1 authority"] {
        assert!(answer.out.contains(expected), "{expected}: {}", answer.out);
    }
    assert!(!answer.out.contains("PRIVATE"));
    // The environment names the socket as well as the flag does, and `x509` is what is fetched if nothing is
    // said.
    let uri = format!("unix://{}", server.socket.display());
    let same = seamount(&["fetch"], &[("SPIFFE_ENDPOINT_SOCKET", &uri)]).await;
    assert!(same.out.contains(svid.serial_hex()), "{same:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn json_and_pem_have_the_key_only_on_request() {
    let server = Server::new(IdentityState::Pending, PATIENCE);
    let svid = server.ready().await;
    let leaf = svid.chain()[0].to_vec();
    let key = svid.key().expose_pkcs8_der();

    let answer = server.run(&["fetch", "x509", "-o", "json"]).await;
    assert!(!answer.out.contains("PRIVATE"), "{answer:?}");
    let value: Value = serde_json::from_str(&answer.out).unwrap();
    let shown = &value["svids"][0];
    assert_eq!((shown["spiffeId"].as_str(), shown["trustDomain"].as_str()), (Some(ID), Some("example.org")));
    assert_eq!(shown["chain"][0]["serial"], svid.serial_hex());
    assert_eq!(shown["chain"].as_array().unwrap().len(), svid.chain().len());
    assert_eq!(blocks(shown["chain"][0]["pem"].as_str().unwrap())[0].1, leaf);
    assert!((1..=3600).contains(&shown["remainingSeconds"].as_i64().unwrap()), "{shown}");
    assert_eq!(shown.get("key"), None);
    assert_eq!(value["bundles"]["example.org"]["authorities"].as_array().unwrap().len(), 1);

    let answer = server.run(&["fetch", "x509", "-o", "json", "--include-key"]).await;
    let value: Value = serde_json::from_str(&answer.out).unwrap();
    assert_eq!(
        blocks(value["svids"][0]["key"].as_str().unwrap()),
        [("PRIVATE KEY".to_owned(), key.to_vec())]
    );

    let answer = server.run(&["fetch", "x509", "-o", "pem"]).await;
    let shown = blocks(&answer.out);
    assert!(shown.iter().all(|(tag, _)| tag == "CERTIFICATE"), "{answer:?}");
    assert_eq!(shown[0].1, leaf);
    assert_eq!(shown.len(), svid.chain().len() + 1);
    let answer = server.run(&["fetch", "x509", "-o", "pem", "--include-key"]).await;
    assert_eq!(blocks(&answer.out).iter().filter(|(tag, der)| tag == "PRIVATE KEY" && der == key).count(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn written_files_are_whole_and_keys_are_the_callers_alone() {
    let server = Server::new(IdentityState::Pending, PATIENCE);
    let directory = server.directory.path().join("a/b");
    let path = directory.to_str().unwrap().to_owned();
    // Twice: the second identity replaces the first.
    server.ready().await;
    assert_eq!(server.run(&["fetch", "--write", &path]).await.code, Some(0));
    let svid = server.ready().await;
    let answer = server.run(&["fetch", "--write", &path]).await;
    assert_eq!(answer.code, Some(0), "{answer:?}");

    let mut names: Vec<_> = fs::read_dir(&directory).unwrap().map(|e| e.unwrap().file_name()).collect();
    names.sort();
    assert_eq!(names, ["bundle.0.pem", "svid.0.key", "svid.0.pem"]);
    let read = |name: &str| blocks(&fs::read_to_string(directory.join(name)).unwrap());
    let chain: Vec<_> = read("svid.0.pem").into_iter().map(|(_, der)| der).collect();
    assert_eq!(chain, svid.chain().iter().map(|c| c.to_vec()).collect::<Vec<_>>());
    assert_eq!(read("svid.0.key"), [("PRIVATE KEY".to_owned(), svid.key().expose_pkcs8_der().to_vec())]);
    assert_eq!(read("bundle.0.pem").len(), 1);
    let mode = |name: &str| fs::metadata(directory.join(name)).unwrap().permissions().mode() & 0o7777;
    assert_eq!(mode("svid.0.key"), 0o600);

    let answer = server.run(&["fetch", "--write", "/proc/no/such"]).await;
    assert!(answer.code == Some(1) && answer.err.contains("/proc/no/such"), "{answer:?}");
    let answer = server.run(&["bundles", "--write", &path]).await;
    assert!(answer.code == Some(1) && answer.err.contains("fetch x509"), "{answer:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn federated_bundles_are_shown_and_written_apart() {
    let server = Server::new(IdentityState::Pending, PATIENCE);
    let svid = server.issue().await;
    let own = server.authority.bundles().borrow().clone();
    let foreign = ["b.example", "a.example"].map(|name| {
        let bundles = authority(name).bundles().borrow().clone();
        bundles.own().clone()
    });
    let mut bundles = BundleSet::new(own.own().clone());
    for bundle in &foreign {
        bundles = bundles.with_federated(bundle.clone()).unwrap();
    }
    server.served.send_replace(IdentityState::Ready(Arc::new(Response::new(&[svid], &bundles))));
    let directory = server.directory.path().join("out");
    let answer = server.run(&["fetch", "--write", directory.to_str().unwrap()]).await;
    let shown: Vec<_> = answer.out.lines().filter(|line| line.starts_with("Bundle")).collect();
    assert_eq!(shown.len(), 3, "{answer:?}");
    let read = |name: &str| blocks(&fs::read_to_string(directory.join(name)).unwrap());
    let der = |bundle: &X509Bundle| vec![("CERTIFICATE".to_owned(), bundle.der())];
    assert_eq!(read("bundle.0.pem"), der(own.own()));
    // By name: a.example is the first.
    assert_eq!(read("federated_bundle.0.0.pem"), der(&foreign[1]));
    assert_eq!(read("federated_bundle.0.1.pem"), der(&foreign[0]));
}

#[tokio::test(flavor = "multi_thread")]
async fn bundles_need_no_svid_to_be_shown() {
    let server = Server::new(IdentityState::Pending, PATIENCE);
    server.ready().await;
    let answer = server.run(&["bundles"]).await;
    assert!(answer.code == Some(0) && answer.out.contains("example.org: 1 authority"), "{answer:?}");
    assert!(!answer.out.contains("SPIFFE ID"));
    let answer = server.run(&["bundles", "-o", "json"]).await;
    let value: Value = serde_json::from_str(&answer.out).unwrap();
    assert_eq!(value["svids"], Value::Array(vec![]));
    assert_eq!(blocks(&server.run(&["bundles", "-o", "pem"]).await.out).len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn watch_prints_each_update_and_outlives_a_restart() {
    let server = Server::new(IdentityState::Pending, PATIENCE);
    let first = server.ready().await;
    let logs = tempfile::tempdir().unwrap();
    let socket = server.socket.to_str().unwrap().to_owned();
    let mut watch = Spawn::new("watch", Path::new(env!("CARGO_BIN_EXE_seamount")), logs.path())
        .args(["api", "watch", "--count", "3", "--timeout", "2m", "-o", "json", "--socket", &socket])
        .start()
        .unwrap();
    let serial = first.serial_hex().to_owned();
    let watch_ = tokio::task::spawn_blocking(move || {
        watch.wait_for_log(PATIENCE, &serial).unwrap();
        watch
    });
    let mut watch = watch_.await.unwrap();
    let second = server.ready().await;
    let serial = second.serial_hex().to_owned();
    let watch_ = tokio::task::spawn_blocking(move || {
        watch.wait_for_log(PATIENCE, &serial).unwrap();
        watch
    });
    let mut watch = watch_.await.unwrap();

    // The agent goes, with its socket, and comes back.
    drop(server);
    let mut watch = tokio::task::spawn_blocking(move || {
        watch.wait_for_log(PATIENCE, "trying again").unwrap();
        watch
    })
    .await
    .unwrap();
    fs::create_dir_all(Path::new(&socket).parent().unwrap()).unwrap();
    let again = Server::new(IdentityState::Pending, PATIENCE);
    let third = again.ready().await;
    std::os::unix::fs::symlink(&again.socket, &socket).unwrap();
    let (code, log) =
        tokio::task::spawn_blocking(move || (watch.wait_for_end(PATIENCE).unwrap().code(), watch.log()))
            .await
            .unwrap();
    fs::remove_dir_all(Path::new(&socket).parent().unwrap()).unwrap();
    assert_eq!(code, Some(0), "{log}");
    let serials: Vec<_> = log
        .lines()
        .filter_map(|line| serde_json::from_str::<Value>(line).ok())
        .map(|value| value["svids"][0]["chain"][0]["serial"].as_str().unwrap().to_owned())
        .collect();
    assert_eq!(serials, [first.serial_hex(), second.serial_hex(), third.serial_hex()]);
}

#[tokio::test(flavor = "multi_thread")]
async fn watch_without_enough_updates_fails_and_without_a_count_does_not() {
    let server = Server::new(IdentityState::Pending, PATIENCE);
    server.ready().await;
    let answer = server.run(&["watch", "--count", "2", "--timeout", "1s"]).await;
    assert_eq!(answer.code, Some(1), "{answer:?}");
    assert!(answer.err.contains("of 2 updates came"), "{answer:?}");
    // Time enough for one update on a slow machine, and there is no other.
    let answer = server.run(&["watch", "--timeout", "5s"]).await;
    assert_eq!((answer.code, answer.out.lines().count()), (Some(0), 1), "{answer:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_identity_says_who_decides() {
    let server = Server::new(IdentityState::Denied, PATIENCE);
    let answer = server.run(&["fetch"]).await;
    assert_eq!(answer.code, Some(1));
    assert!(answer.err.contains("no identity issued"), "{answer:?}");
    assert!(answer.err.contains("service account"), "{answer:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_identity_that_is_not_there_yet_says_where_to_look() {
    let server = Server::new(IdentityState::Pending, Duration::from_millis(100));
    let answer = server.run(&["fetch"]).await;
    assert_eq!(answer.code, Some(1));
    assert!(answer.err.contains("Unavailable") && answer.err.contains("agent's log"), "{answer:?}");

    let server = Server::new(IdentityState::Pending, PATIENCE);
    let answer = server.run(&["fetch", "--timeout", "100ms"]).await;
    assert!(answer.code == Some(1) && answer.err.contains("no answer within 100ms"), "{answer:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_socket_is_named_with_its_remedy() {
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name).to_str().unwrap().to_owned();

    let missing = seamount(&["fetch", "--socket", &path("none")], &[]).await;
    assert!(missing.err.contains("does not exist") && missing.err.contains("csi.spiffe.io"), "{missing:?}");

    fs::write(path("file"), "").unwrap();
    let file = seamount(&["fetch", "--socket", &path("file")], &[]).await;
    assert!(file.err.contains("not a socket"), "{file:?}");

    drop(UnixListener::bind(path("stale")).unwrap());
    let stale = seamount(&["fetch", "--socket", &path("stale")], &[]).await;
    assert!(stale.err.contains("no process answers") && stale.err.contains("refused"), "{stale:?}");

    let address = seamount(&["fetch"], &[("SPIFFE_ENDPOINT_SOCKET", "http://x")]).await;
    assert!(address.err.contains("SPIFFE_ENDPOINT_SOCKET \"http://x\""), "{address:?}");
    for answer in [missing, file, stale, address] {
        assert_eq!((answer.code, answer.out.as_str()), (Some(1), ""), "{answer:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn times_have_units() {
    let answer = seamount(&["fetch", "--timeout", "30"], &[]).await;
    assert!(answer.code == Some(2) && answer.err.contains("such as 1h30m"), "{answer:?}");
}
