//! The example programs against Workload API sockets: two IDs speak, a third is refused, rotation is used
//! live.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "a test may panic")]

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use seamount_authority::{Authority as _, Embedded, EmbeddedConfig, IdTemplate, Workload, new_key_and_csr};
use seamount_identity::{KeyType, TrustDomain, X509Svid};
use seamount_testkit::processes::{Process, Spawn};
use seamount_workload_api::{self as workload_api, IdentityState, Limits, Response, Unobserved};
use tokio::net::UnixListener;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

const PATIENCE: Duration = Duration::from_secs(60);
const CLIENT: &str = "spiffe://example.org/ns/demo/sa/client";
const SERVER: &str = "spiffe://example.org/ns/demo/sa/server";

/// One trust domain with a Workload API socket for each service account.
struct Domain {
    authority: Embedded,
    directory: tempfile::TempDir,
    cancel: CancellationToken,
}

impl Drop for Domain {
    fn drop(&mut self) {
        self.cancel.cancel();
    }
}

impl Domain {
    fn new() -> Self {
        let trust_domain: TrustDomain = "example.org".parse().unwrap();
        let template =
            IdTemplate::parse("spiffe://{trustDomain}/ns/{namespace}/sa/{serviceAccount}", &trust_domain)
                .unwrap();
        let authority = Embedded::new(EmbeddedConfig {
            trust_domain,
            template,
            key_type: KeyType::EcP256,
            ca_ttl: Duration::from_secs(86_400),
            svid_ttl: Duration::from_secs(3_600),
            directory: None,
        })
        .unwrap();
        Self { authority, directory: tempfile::tempdir().unwrap(), cancel: CancellationToken::new() }
    }

    async fn issue(&self, service_account: &str) -> (Arc<Response>, String) {
        let (key, csr) = new_key_and_csr(KeyType::EcP256).unwrap();
        let workload = Workload {
            namespace: "demo".into(),
            service_account: service_account.into(),
            pod_name: service_account.into(),
            pod_uid: seamount_testkit::uuid_of(service_account),
            node: "node-1".into(),
        };
        let chain = self.authority.sign(&csr, &workload, "").await.unwrap();
        let chain: Vec<u8> = chain.iter().flat_map(|certificate| certificate.to_vec()).collect();
        let svid = X509Svid::parse(&chain, key).unwrap();
        let serial = svid.serial_hex().to_owned();
        let bundles = self.authority.bundles().borrow().clone();
        (Arc::new(Response::new(&[Arc::new(svid)], &bundles)), serial)
    }

    /// Serves the account's identity; what is sent afterwards replaces it.
    async fn serve(&self, service_account: &str) -> (PathBuf, String, watch::Sender<IdentityState>) {
        let socket = self.directory.path().join(format!("{service_account}.sock"));
        let (response, serial) = self.issue(service_account).await;
        let (sender, receiver) = watch::channel(IdentityState::Ready(response));
        tokio::spawn(workload_api::serve(
            UnixListener::bind(&socket).unwrap(),
            receiver,
            Limits::default(),
            PATIENCE,
            Arc::new(Unobserved),
            self.cancel.clone(),
        ));
        (socket, serial, sender)
    }

    fn start(&self, name: &str, program: &str, socket: &Path, args: &[&str]) -> Process {
        Spawn::new(name, Path::new(program), self.directory.path())
            .args(args)
            .env("SPIFFE_ENDPOINT_SOCKET", format!("unix://{}", socket.display()))
            .start()
            .unwrap()
    }

    /// Starts the server and says where it listens.
    async fn start_server(&self, socket: &Path, allow: &str) -> (Process, String) {
        let args = ["--listen=127.0.0.1:0", "--allow", allow];
        let mut server = self.start("server", env!("CARGO_BIN_EXE_mtls-server"), socket, &args);
        let server = waiting(move || {
            server.wait_for_log(PATIENCE, "listening on ").unwrap();
            server
        })
        .await;
        let log = server.log();
        let address = log.lines().find_map(|line| line.strip_prefix("server: listening on ")).unwrap();
        (server, address.to_owned())
    }

    fn start_client(&self, name: &str, socket: &Path, args: &[&str]) -> Process {
        self.start(name, env!("CARGO_BIN_EXE_mtls-client"), socket, args)
    }
}

/// Waits off the runtime's threads, which serve the sockets.
async fn waiting<T: Send + 'static>(wait: impl FnOnce() -> T + Send + 'static) -> T {
    tokio::task::spawn_blocking(wait).await.unwrap()
}

async fn end(mut process: Process) -> (Option<i32>, String) {
    waiting(move || (process.wait_for_end(PATIENCE).unwrap().code(), process.log())).await
}

#[tokio::test(flavor = "multi_thread")]
async fn two_identities_speak_and_a_third_is_refused() {
    let domain = Domain::new();
    let (server_socket, server_serial, _server) = domain.serve("server").await;
    let (client_socket, client_serial, _client) = domain.serve("client").await;
    let (stranger_socket, _, _stranger) = domain.serve("stranger").await;
    let (server, address) = domain.start_server(&server_socket, CLIENT).await;

    let client = domain.start_client(
        "client",
        &client_socket,
        &["--server", &address, "--expect", SERVER, "--count=1"],
    );
    let (code, log) = end(client).await;
    assert_eq!(code, Some(0), "{log}");
    let conversation =
        format!("{SERVER} (serial {server_serial}) says: welcome {CLIENT} (serial {client_serial})");
    assert!(log.contains(&conversation), "{log}");

    let refused = ["--server", &address, "--expect", SERVER, "--expect-refusal"];
    let (code, log) = end(domain.start_client("stranger", &stranger_socket, &refused)).await;
    assert_eq!(code, Some(0), "{log}");
    assert!(log.contains("refused me: TLS alert"), "{log}");
    assert!(server.log().contains("refused spiffe://example.org/ns/demo/sa/stranger"), "{}", server.log());
    assert!(!server.log().contains("welcome spiffe://example.org/ns/demo/sa/stranger"), "{}", server.log());

    // Each expectation fails when it is not met.
    let (code, log) = end(domain.start_client("unexpected-1", &stranger_socket, &refused[..4])).await;
    assert_eq!(code, Some(1), "{log}");
    let (code, log) = end(domain.start_client("unexpected-2", &client_socket, &refused)).await;
    assert_eq!(code, Some(1), "{log}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_does_not_speak_to_another_server_than_it_expects() {
    let domain = Domain::new();
    let (impostor_socket, _, _impostor) = domain.serve("impostor").await;
    let (client_socket, _, _client) = domain.serve("client").await;
    let (_server, address) = domain.start_server(&impostor_socket, CLIENT).await;
    let client = domain.start_client(
        "client",
        &client_socket,
        &["--server", &address, "--expect", SERVER, "--count=1"],
    );
    let (code, log) = end(client).await;
    assert_eq!(code, Some(1), "{log}");
    assert!(!log.contains("says"), "{log}");
}

#[tokio::test(flavor = "multi_thread")]
async fn another_trust_domain_of_the_same_name_is_refused() {
    let domain = Domain::new();
    let other = Domain::new();
    let (server_socket, _, _server) = domain.serve("server").await;
    let (client_socket, _, _client) = other.serve("client").await;
    let (server, address) = domain.start_server(&server_socket, CLIENT).await;
    let client = domain.start_client(
        "client",
        &client_socket,
        &["--server", &address, "--expect", SERVER, "--count=1"],
    );
    let (code, log) = end(client).await;
    assert_eq!(code, Some(1), "{log}");
    assert!(!server.log().contains("welcome"), "{}", server.log());
}

#[tokio::test(flavor = "multi_thread")]
async fn both_sides_use_a_new_svid_without_a_restart() {
    let domain = Domain::new();
    let (server_socket, old_server, server_identity) = domain.serve("server").await;
    let (client_socket, old_client, client_identity) = domain.serve("client").await;
    let (server, address) = domain.start_server(&server_socket, CLIENT).await;
    let args = ["--server", &address, "--expect", SERVER, "--until-rotated"];
    let mut client = domain.start_client("client", &client_socket, &args);
    let client = waiting(move || {
        client.wait_for_log(PATIENCE, " says: welcome ").unwrap();
        client
    })
    .await;

    // First the server's, seen by it before the client ends.
    let (response, new_server) = domain.issue("server").await;
    server_identity.send_replace(IdentityState::Ready(response));
    let mut server = server;
    let marker = format!("my SVID is new, I am {SERVER} (serial {new_server})");
    let server = waiting(move || {
        server.wait_for_log(PATIENCE, &marker).unwrap();
        server
    })
    .await;
    let (response, new_client) = domain.issue("client").await;
    client_identity.send_replace(IdentityState::Ready(response));

    let (code, log) = end(client).await;
    assert_eq!(code, Some(0), "{log}");
    for serial in [&old_server, &new_server, &old_client, &new_client] {
        assert!(log.contains(&format!("(serial {serial})")), "{serial}: {log}");
    }
    assert!(server.log().contains(&format!("welcome {CLIENT} (serial {new_client})")), "{}", server.log());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_client_waits_for_a_server_that_is_late() {
    let domain = Domain::new();
    let (client_socket, _, _client) = domain.serve("client").await;
    // A port that no process listens on.
    let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
    let mut client = domain.start_client(
        "client",
        &client_socket,
        &["--server", &address, "--expect", SERVER, "--count=1"],
    );
    waiting(move || {
        client.wait_for_log(PATIENCE, "no server yet").unwrap();
        assert!(client.ended().unwrap().is_none());
    })
    .await;
}
