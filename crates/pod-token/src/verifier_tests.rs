//! The verifier with its keys in a file and behind a TLS server that plays the API server.

use std::fs;
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use seamount_telemetry::metrics::Area as _;
use seamount_telemetry::readiness::{ConditionStatus, Readiness};
use seamount_testkit::issuer::{self, Algorithm, TokenIssuer};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

use super::*;

const KEYS_MAX_AGE: Duration = Duration::from_secs(24 * 3600);
const ISSUER: &str = "https://kubernetes.default.svc";

fn issuer() -> TokenIssuer {
    TokenIssuer::with_algorithm(ISSUER, Algorithm::Es256)
}

struct Bench {
    verifier: Arc<TokenVerifier>,
    readiness: Arc<Readiness>,
    metrics: Arc<Metrics>,
    until: CancellationToken,
    /// The wall clock.
    now: Arc<Mutex<SystemTime>>,
}

impl Bench {
    fn new(keys: Keys) -> Self {
        Self::with_issuers(keys, &[ISSUER])
    }

    fn with_issuers(keys: Keys, issuers: &[&str]) -> Self {
        let options = Options {
            audience: "seamount.dev".into(),
            issuers: issuers.iter().map(|issuer| (*issuer).to_owned()).collect(),
            keys,
            keys_max_age: KEYS_MAX_AGE,
        };
        let (metrics, readiness) =
            (Arc::new(Metrics::default()), Arc::new(Readiness::expecting([READINESS])));
        let until = CancellationToken::new();
        let now = Arc::new(Mutex::new(SystemTime::now()));
        let clock = Arc::clone(&now);
        let verifier = Arc::new(TokenVerifier::with_clock(
            &options,
            metrics.clone(),
            readiness.clone(),
            until.clone(),
            Arc::new(move || *clock.lock().unwrap()),
        ));
        Self { verifier, readiness, metrics, until, now }
    }

    fn later(&self, by: Duration) {
        *self.now.lock().unwrap() += by;
    }

    async fn verify(&self, by: &TokenIssuer) -> Result<Claims, TokenError> {
        let now = *self.now.lock().unwrap();
        let token = Token::new(by.token(&issuer::Claims { issued_at: now, ..issuer::Claims::default() }));
        self.verifier.verify(&token, now).await
    }

    fn status(&self) -> ConditionStatus {
        self.readiness.get(&READINESS).unwrap().0
    }
}

#[track_caller]
fn unavailable(result: &Result<Claims, TokenError>, says: &str) {
    match result {
        Err(TokenError::KeysUnavailable(why)) => assert!(why.contains(says), "{says:?} is not in {why:?}"),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_file_is_read_again_when_it_changes() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("jwks.json");
    let bench = Bench::new(Keys::File(path.clone()));
    let (first, second) = (issuer(), issuer());

    unavailable(&bench.verify(&first).await, "No such file");
    assert!(matches!(bench.status(), ConditionStatus::NotReady(why) if why.contains("jwks.json")));

    fs::write(&path, first.jwks_json()).unwrap();
    assert!(bench.verify(&first).await.is_ok());
    assert_eq!(bench.status(), ConditionStatus::Ready("1 key(s)".into()));
    assert_eq!(bench.verify(&second).await, Err(TokenError::UnknownKey));

    // As a kubelet replaces a mounted file: another inode under the same name.
    let new = dir.path().join("new");
    fs::write(&new, second.jwks_json()).unwrap();
    fs::rename(&new, &path).unwrap();
    assert!(bench.verify(&second).await.is_ok());
    assert_eq!(bench.verify(&first).await, Err(TokenError::UnknownKey));

    // Damaged or gone: the last good keys stay, and say so.
    fs::write(&path, "{").unwrap();
    assert!(bench.verify(&second).await.is_ok());
    assert!(
        matches!(bench.status(), ConditionStatus::Ready(r) if r.contains("last good") && r.contains("not a JSON Web Key Set"))
    );
    fs::remove_file(&path).unwrap();
    assert!(bench.verify(&second).await.is_ok());
    assert!(matches!(bench.status(), ConditionStatus::Ready(r) if r.contains("No such file")));
    // With an unknown key the kubelet is to come again: the new key may be in what could not be read.
    unavailable(&bench.verify(&first).await, "No such file");
}

#[tokio::test]
async fn an_oversized_or_odd_file_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("jwks.json");
    fs::write(&path, " ".repeat(MAX_JWKS + 1)).unwrap();
    unavailable(&Bench::new(Keys::File(path)).verify(&issuer()).await, "longer than");
    unavailable(&Bench::new(Keys::File(dir.path().to_owned())).verify(&issuer()).await, "not a regular file");
}

/// What the simulated API server does with a connection.
#[derive(Clone)]
enum Answer {
    Keys(String),
    Raw(String),
    /// As `Raw`, and then gone without TLS's farewell.
    Abrupt(String),
    Silence,
}

/// A TLS server for `localhost` that answers every request with the current [`Answer`].
struct Server {
    port: u16,
    dir: tempfile::TempDir,
    answer: Arc<Mutex<Answer>>,
    requests: Arc<Mutex<Vec<String>>>,
    count: Arc<AtomicUsize>,
}

impl Server {
    async fn start(answer: Answer) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let certified = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
        fs::write(dir.path().join("ca.crt"), certified.cert.pem()).unwrap();
        fs::write(dir.path().join("token"), "the-agents-token\n").unwrap();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let key = rustls::pki_types::PrivateKeyDer::try_from(certified.signing_key.serialize_der()).unwrap();
        let config = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![certified.cert.der().clone()], key)
            .unwrap();
        let acceptor = TlsAcceptor::from(Arc::new(config));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let server = Self {
            port,
            dir,
            answer: Arc::new(Mutex::new(answer)),
            requests: Arc::default(),
            count: Arc::default(),
        };
        let (answer, requests, count) =
            (server.answer.clone(), server.requests.clone(), server.count.clone());
        tokio::spawn(async move {
            while let Ok((tcp, _)) = listener.accept().await {
                count.fetch_add(1, Ordering::SeqCst);
                let (acceptor, answer, requests) =
                    (acceptor.clone(), answer.lock().unwrap().clone(), requests.clone());
                tokio::spawn(async move {
                    let Ok(mut tls) = acceptor.accept(tcp).await else { return };
                    let mut request = Vec::new();
                    while !request.ends_with(b"\r\n\r\n") {
                        match tls.read_u8().await {
                            Ok(byte) => request.push(byte),
                            Err(_) => return,
                        }
                    }
                    requests.lock().unwrap().push(String::from_utf8(request).unwrap());
                    let response = match answer {
                        Answer::Keys(json) => {
                            format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{json}", json.len())
                        }
                        Answer::Raw(raw) => raw,
                        Answer::Abrupt(raw) => {
                            let _ = tls.write_all(raw.as_bytes()).await;
                            let _ = tls.flush().await;
                            return;
                        }
                        Answer::Silence => return std::future::pending().await,
                    };
                    let _ = tls.write_all(response.as_bytes()).await;
                    let _ = tls.shutdown().await;
                });
            }
        });
        server
    }

    fn keys(&self) -> Keys {
        let file = |name: &str| -> PathBuf { self.dir.path().join(name) };
        Keys::ApiServer(ApiServer {
            host: "localhost".into(),
            port: self.port,
            path: "/prefix".into(),
            ca_file: file("ca.crt"),
            token_file: file("token"),
        })
    }

    fn answer(&self, answer: Answer) {
        *self.answer.lock().unwrap() = answer;
    }
}

#[tokio::test]
async fn the_api_servers_keys_are_asked_for_with_the_agents_token() {
    let issuer = issuer();
    let server = Server::start(Answer::Keys(issuer.jwks_json())).await;
    let bench = Bench::new(server.keys());
    assert!(bench.verify(&issuer).await.is_ok());
    let request = server.requests.lock().unwrap().join("");
    assert!(request.starts_with("GET /prefix/openid/v1/jwks HTTP/1.1\r\n"), "{request}");
    let lower = request.to_lowercase();
    assert!(lower.contains("authorization: bearer the-agents-token\r\n"), "{request}");
    assert!(lower.contains(&format!("host: localhost:{}\r\n", server.port)), "{request}");
    assert!(bench.metrics.encode().unwrap().contains(r#"token_key_refreshes_total{result="success"} 1"#));
}

#[tokio::test]
async fn the_agents_token_is_read_each_time() {
    let server =
        Server::start(Answer::Raw("HTTP/1.1 401 Unauthorized\r\ncontent-length: 0\r\n\r\n".into())).await;
    let issuer = issuer();
    unavailable(&Bench::new(server.keys()).verify(&issuer).await, "401 Unauthorized");
    fs::write(server.dir.path().join("token"), "rotated").unwrap();
    server.answer(Answer::Keys(issuer.jwks_json()));
    assert!(Bench::new(server.keys()).verify(&issuer).await.is_ok());
    let requests = server.requests.lock().unwrap().clone();
    assert!(requests.last().unwrap().to_lowercase().contains("bearer rotated\r\n"), "{requests:?}");
}

#[tokio::test]
async fn unknown_keys_cannot_make_us_flood_the_api_server() {
    let (ours, foreign) = (issuer(), issuer());
    let server = Server::start(Answer::Keys(ours.jwks_json())).await;
    let bench = Bench::new(server.keys());
    for _ in 0..20 {
        assert_eq!(bench.verify(&foreign).await, Err(TokenError::UnknownKey));
    }
    assert_eq!(server.count.load(Ordering::SeqCst), 1);
    // Many at once neither.
    let bench = Bench::new(server.keys());
    let all = futures_util::future::join_all((0..20).map(|_| bench.verify(&ours))).await;
    assert!(all.iter().all(Result::is_ok), "{all:?}");
    assert_eq!(server.count.load(Ordering::SeqCst), 2);
}

/// The clock is stopped and moved by hand once the first keys are there.
#[tokio::test]
async fn a_new_key_is_found_and_old_ones_outlive_an_outage() {
    let (first, second) = (issuer(), issuer());
    let server = Server::start(Answer::Keys(first.jwks_json())).await;
    let bench = Bench::new(server.keys());
    assert!(bench.verify(&first).await.is_ok());
    server.answer(Answer::Keys(second.jwks_json()));
    assert_eq!(bench.verify(&second).await, Err(TokenError::UnknownKey), "within the pause");
    advance(UNKNOWN_KEY_PAUSE).await;
    assert!(bench.verify(&second).await.is_ok(), "after it");

    server.answer(Answer::Raw("HTTP/1.1 503 Service Unavailable\r\ncontent-length: 0\r\n\r\n".into()));
    advance(UNKNOWN_KEY_PAUSE).await;
    unavailable(&bench.verify(&first).await, "503 Service Unavailable");
    assert!(bench.verify(&second).await.is_ok(), "the last good keys are kept");
    assert!(matches!(bench.status(), ConditionStatus::Ready(r) if r.contains("last good keys")));
}

async fn advance(by: Duration) {
    tokio::time::pause();
    tokio::time::advance(by + Duration::from_millis(1)).await;
    tokio::time::resume();
}

#[tokio::test]
async fn a_bad_server_is_refused_with_its_reason() {
    let long =
        format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{}", MAX_JWKS + 1, " ".repeat(MAX_JWKS + 1));
    let endless = format!("HTTP/1.1 200 OK\r\n\r\n{}", " ".repeat(MAX_JWKS + 1));
    for (answer, says) in [
        (Answer::Raw(long), "the body of the answer is longer than"),
        (Answer::Raw(endless), "the body of the answer is longer than"),
        (
            Answer::Raw(
                "HTTP/1.1 302 Found\r\nlocation: https://elsewhere\r\ncontent-length: 0\r\n\r\n".into(),
            ),
            "302 Found",
        ),
        (Answer::Raw("HTTP/1.1 403 Forbidden\r\ncontent-length: 0\r\n\r\n".into()), "issuer-discovery"),
        (Answer::Raw("not HTTP at all\r\n\r\n".into()), "API server localhost:"),
        (Answer::Raw("HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\n{".into()), "API server localhost:"),
        (Answer::Raw(String::new()), "API server localhost:"),
        (Answer::Keys("{}".into()), "not a JSON Web Key Set"),
        (Answer::Keys(r#"{"keys":[]}"#.into()), "no usable key"),
    ] {
        let server = Server::start(answer).await;
        unavailable(&Bench::new(server.keys()).verify(&issuer()).await, says);
    }
}

/// Many times, because the order in which the two ends are seen is a matter of luck.
#[tokio::test]
async fn a_whole_answer_counts_also_where_the_server_leaves_rudely() {
    let issuer = issuer();
    let json = issuer.jwks_json();
    let whole = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{json}", json.len());
    let half = whole.get(..whole.len() - 1).unwrap().to_owned();
    let server = Server::start(Answer::Abrupt(whole.clone())).await;
    for _ in 0..50 {
        assert!(Bench::new(server.keys()).verify(&issuer).await.is_ok());
    }
    server.answer(Answer::Abrupt(half));
    for _ in 0..10 {
        unavailable(&Bench::new(server.keys()).verify(&issuer).await, "API server localhost:");
    }
}

#[tokio::test]
async fn a_server_of_another_authority_is_refused() {
    let server = Server::start(Answer::Keys(issuer().jwks_json())).await;
    let other = Server::start(Answer::Keys(issuer().jwks_json())).await;
    fs::copy(other.dir.path().join("ca.crt"), server.dir.path().join("ca.crt")).unwrap();
    unavailable(&Bench::new(server.keys()).verify(&issuer()).await, "certificate");
    // The agent's token has not been shown to it.
    assert!(server.requests.lock().unwrap().is_empty());
}

#[tokio::test]
async fn missing_or_bad_files_are_named() {
    let server = Server::start(Answer::Silence).await;
    let set = |name: &str, content: &str| fs::write(server.dir.path().join(name), content).unwrap();
    let ca = fs::read_to_string(server.dir.path().join("ca.crt")).unwrap();
    for (content, says) in
        [("", "has no certificate"), ("-----BEGIN CERTIFICATE-----\n!", "token.keys.apiServer.caFile")]
    {
        set("ca.crt", content);
        unavailable(&Bench::new(server.keys()).verify(&issuer()).await, says);
    }
    set("ca.crt", &ca);
    for content in ["", " \n", "a\nb", "\u{1}", &"a".repeat(MAX_TOKEN + 1)] {
        set("token", content);
        unavailable(&Bench::new(server.keys()).verify(&issuer()).await, "token.keys.apiServer.tokenFile");
    }
    fs::remove_file(server.dir.path().join("token")).unwrap();
    unavailable(&Bench::new(server.keys()).verify(&issuer()).await, "No such file");
    assert_eq!(server.count.load(Ordering::SeqCst), 0);
}

#[tokio::test]
async fn a_silent_server_is_given_up() {
    let server = Server::start(Answer::Silence).await;
    let bench = Bench::new(server.keys());
    let by = issuer();
    let verify = bench.verify(&by);
    tokio::pin!(verify);
    // Until the request is there time is real; then it is moved past the limit.
    loop {
        tokio::select! {
            early = &mut verify => panic!("{early:?}"),
            () = tokio::time::sleep(Duration::from_millis(5)) => {}
        }
        if !server.requests.lock().unwrap().is_empty() {
            break;
        }
    }
    advance(super::fetch::TIMEOUT).await;
    // The wall clock goes on while it is waited for.
    bench.later(super::fetch::TIMEOUT);
    unavailable(&verify.await, "no answer within 10 s");
    // All records of a node are looked at one after the other: they do not wait in turn for a silent server.
    unavailable(&bench.verify(&by).await, "no answer within 10 s");
    assert_eq!(server.requests.lock().unwrap().len(), 1);
}

#[tokio::test]
async fn the_background_reading_makes_ready_and_stops_when_told() {
    let issuer = issuer();
    let server =
        Server::start(Answer::Raw("HTTP/1.1 500 Internal Server Error\r\ncontent-length: 0\r\n\r\n".into()))
            .await;
    let bench = Bench::new(server.keys());
    let verifier = bench.verifier.clone();
    let task = tokio::spawn(async move { verifier.run().await });
    wait(|| matches!(bench.status(), ConditionStatus::NotReady(why) if why.contains("500"))).await;
    server.answer(Answer::Keys(issuer.jwks_json()));
    wait(|| bench.status() == ConditionStatus::Ready("1 key(s)".into())).await;
    bench.until.cancel();
    task.await.unwrap();
}

/// A request that came before the configuration changed holds the old verifier, and may wait seconds for its
/// keys.
#[tokio::test]
async fn a_verifier_with_a_successor_states_nothing() {
    let bench = Bench::new(Keys::File("/nonexistent/jwks.json".into()));
    bench.until.cancel();
    bench.readiness.set(READINESS, ConditionStatus::NotNeeded);
    unavailable(&bench.verify(&issuer()).await, "No such file");
    assert_eq!(bench.status(), ConditionStatus::NotNeeded);
}

async fn wait(met: impl Fn() -> bool) {
    for _ in 0..6000 {
        if met() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    panic!("the condition was not met within 30 s");
}

/// What happens to keys that cannot be read anew: used and said, then not ready, then refused, and back
/// again.
#[tokio::test]
async fn keys_that_cannot_be_read_anew_have_a_last_day() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("jwks.json");
    let by = issuer();
    for broken in [None, Some(""), Some(r#"{"keys":[]}"#)] {
        fs::write(&path, by.jwks_json()).unwrap();
        let bench = Bench::new(Keys::File(path.clone()));
        assert!(bench.verify(&by).await.is_ok());
        match broken {
            None => fs::remove_file(&path).unwrap(),
            Some(text) => fs::write(&path, text).unwrap(),
        }
        bench.later(KEYS_STALE - Duration::from_secs(1));
        assert!(bench.verify(&by).await.is_ok());
        assert!(matches!(bench.status(), ConditionStatus::Ready(why) if why.contains("last good keys")));

        bench.later(Duration::from_secs(1));
        bench.verifier.refresh(Duration::ZERO, None).await.unwrap();
        assert!(
            matches!(bench.status(), ConditionStatus::NotReady(why) if why.contains("no good reading for 15m") && why.contains("1d old"))
        );
        assert!(bench.verify(&by).await.is_ok(), "publishes go on");

        bench.later(KEYS_MAX_AGE - KEYS_STALE - Duration::from_secs(1));
        assert!(bench.verify(&by).await.is_ok());
        bench.later(Duration::from_secs(1));
        unavailable(&bench.verify(&by).await, "more than 1d (token.keysMaxAge) ago");
        assert!(
            matches!(bench.status(), ConditionStatus::NotReady(why) if why.contains("publishes are refused") && why.contains("jwks.json"))
        );

        fs::write(&path, by.jwks_json()).unwrap();
        assert!(bench.verify(&by).await.is_ok(), "there again");
        assert_eq!(bench.status(), ConditionStatus::Ready("1 key(s)".into()));
    }
}

#[tokio::test]
async fn an_api_server_that_is_away_for_too_long_ends_publishing_and_its_return_begins_it() {
    let by = issuer();
    let server = Server::start(Answer::Keys(by.jwks_json())).await;
    let bench = Bench::new(server.keys());
    assert!(bench.verify(&by).await.is_ok());
    server.answer(Answer::Keys(r#"{"keys":[]}"#.into()));
    bench.later(KEYS_STALE);
    bench.verifier.refresh(Duration::ZERO, None).await.unwrap();
    assert!(matches!(bench.status(), ConditionStatus::NotReady(why) if why.contains("the set is empty")));
    assert!(bench.verify(&by).await.is_ok());
    bench.later(KEYS_MAX_AGE);
    unavailable(&bench.verify(&by).await, "the set is empty");
    // The monotonic clock stood still, as in a machine that slept: the pause between readings has passed all
    // the same.
    server.answer(Answer::Keys(by.jwks_json()));
    bench.later(UNKNOWN_KEY_PAUSE);
    assert!(bench.verify(&by).await.is_ok());
    assert_eq!(bench.status(), ConditionStatus::Ready("1 key(s)".into()));
}

/// A configuration that prolongs `token.keysMaxAge` in an outage must not be what ends publishing.
#[tokio::test]
async fn a_successor_has_the_keys_of_the_same_place() {
    let by = issuer();
    let server = Server::start(Answer::Keys(by.jwks_json())).await;
    let (first, same) = (Bench::new(server.keys()), Bench::new(server.keys()));
    let other = Bench::new(Keys::File("/nonexistent/jwks.json".into()));
    assert!(first.verify(&by).await.is_ok());
    server.answer(Answer::Raw("HTTP/1.1 500 Internal Server Error\r\ncontent-length: 0\r\n\r\n".into()));
    same.verifier.succeed(&first.verifier);
    assert!(same.verify(&by).await.is_ok());
    other.verifier.succeed(&first.verifier);
    unavailable(&other.verify(&by).await, "No such file");
}

#[tokio::test]
async fn without_configured_issuers_that_of_the_agents_own_token_is_taken() {
    const EKS: &str = "https://oidc.eks.eu-west-1.amazonaws.com/id/ABCD";
    let named = |name| TokenIssuer::with_algorithm(name, Algorithm::Es256);
    let (ours, next) = (named(EKS), named("https://next"));
    let set = |issuers: [&TokenIssuer; 2]| {
        let keys = issuers
            .map(|i| serde_json::from_str::<serde_json::Value>(&i.jwks_json()).unwrap()["keys"][0].clone());
        serde_json::json!({"keys": keys}).to_string()
    };
    let server = Server::start(Answer::Keys(set([&ours, &next]))).await;
    let own = |text: &str| {
        // As a kubelet replaces it: another inode under the same name.
        fs::write(server.dir.path().join("new"), text).unwrap();
        fs::rename(server.dir.path().join("new"), server.dir.path().join("token")).unwrap();
    };
    let bench = Bench::with_issuers(server.keys(), &[]);
    // A bearer that is no JWT, as of a static token file: there is no issuer to take.
    unavailable(&bench.verify(&ours).await, "write token.issuers");
    assert!(matches!(bench.status(), ConditionStatus::NotReady(why) if why.contains("not a JWT")));

    own(&ours.token(&issuer::Claims::default()));
    bench.later(UNKNOWN_KEY_PAUSE);
    assert!(bench.verify(&ours).await.is_ok());
    let refused = bench.verify(&next).await;
    assert!(
        matches!(&refused, Err(TokenError::Issuer { expected }) if expected.contains(EKS)),
        "{refused:?}"
    );

    // The kubelet's next token is of the next issuer: that counts at once, without another look at the keys.
    let requests = server.count.load(Ordering::SeqCst);
    own(&next.token(&issuer::Claims::default()));
    assert!(bench.verify(&next).await.is_ok());
    assert!(matches!(bench.verify(&ours).await, Err(TokenError::Issuer { .. })));
    assert_eq!(server.count.load(Ordering::SeqCst), requests);

    // Damaged: the last good one stays, and the keys age.
    own("damaged");
    assert!(bench.verify(&next).await.is_ok());
    assert!(bench.verifier.refresh(Duration::ZERO, None).await.unwrap().contains("not a JWT"));
    bench.later(KEYS_MAX_AGE);
    unavailable(&bench.verify(&next).await, "token.keysMaxAge");
}

#[tokio::test]
async fn during_a_migration_several_issuers_are_taken() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("jwks.json");
    let (old, new) = (issuer(), TokenIssuer::with_algorithm("https://new", Algorithm::Es256));
    for by in [&old, &new] {
        fs::write(&path, by.jwks_json()).unwrap();
        let bench = Bench::with_issuers(Keys::File(path.clone()), &[ISSUER, "https://new"]);
        assert!(bench.verify(by).await.is_ok());
        let bench = Bench::with_issuers(Keys::File(path.clone()), &["https://third"]);
        assert!(matches!(bench.verify(by).await, Err(TokenError::Issuer { .. })));
    }
}
