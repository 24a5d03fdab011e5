use axum::body::Body;
use axum::http::Request;
use http_body_util::BodyExt as _;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tower::ServiceExt as _;

use super::*;
use crate::readiness::ReadinessCheck;

const ONE: ReadinessCheck = ReadinessCheck::named("one");
const TWO: ReadinessCheck = ReadinessCheck::named("two");
const THREE: ReadinessCheck = ReadinessCheck::named("three");

fn shown() -> HttpState {
    HttpState { readiness: Arc::new(Readiness::expecting([ONE, TWO, THREE])), ..HttpState::default() }
}

async fn get(shown: &HttpState, path: &str) -> (StatusCode, String, String) {
    let request = Request::get(path).body(Body::empty()).unwrap();
    let routes = if path.ends_with('z') { health(shown.clone()) } else { router(shown.clone()) };
    let response = routes.oneshot(request).await.unwrap();
    let kind = response.headers().get(header::CONTENT_TYPE).map(|v| v.to_str().unwrap().to_owned());
    let status = response.status();
    let body = response.into_body().collect().await.unwrap().to_bytes();
    (status, kind.unwrap_or_default(), String::from_utf8(body.to_vec()).unwrap())
}

#[tokio::test]
async fn alive_whatever_the_conditions_are() {
    let shown = shown();
    for condition in [ONE, TWO, THREE] {
        shown.readiness.set(condition, ConditionStatus::NotReady("broken".into()));
    }
    assert_eq!(get(&shown, "/livez").await.0, StatusCode::OK);
    assert_eq!(get(&shown, "/readyz").await.0, StatusCode::SERVICE_UNAVAILABLE);
}

#[test]
fn not_alive_without_progress() {
    assert_eq!(live(Duration::ZERO).status(), StatusCode::OK);
    assert_eq!(live(STUCK - Duration::from_secs(1)).status(), StatusCode::OK);
    assert_eq!(live(STUCK).status(), StatusCode::SERVICE_UNAVAILABLE);
}

#[test]
fn a_beat_ends_the_silence() {
    let progress = Progress { last: AtomicU64::new(0) };
    // Since boot, then.
    assert!(progress.silence() >= Duration::from_secs(seconds().saturating_sub(5)));
    progress.beat();
    assert!(progress.silence() < STUCK);
}

#[tokio::test]
async fn readiness_lists_each_condition_with_its_reason() {
    let shown = shown();
    let (status, _, text) = get(&shown, "/readyz").await;
    assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(text.lines().filter(|l| l.starts_with("[-] ")).count(), 3, "{text}");

    shown.readiness.set(THREE, ConditionStatus::NotNeeded);
    shown.readiness.set(ONE, ConditionStatus::Ready(String::new()));
    shown.readiness.set(TWO, ConditionStatus::NotReady("the kubelet has not come yet".into()));
    let (status, _, text) = get(&shown, "/readyz").await;
    assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE);
    let lines = "[+] one\n[-] two: the kubelet has not come yet\n[ ] three: not needed\nnot ready\n";
    assert_eq!(text, lines);

    shown.readiness.set(TWO, ConditionStatus::Ready("2 ms ago".into()));
    let (status, _, text) = get(&shown, "/readyz").await;
    assert_eq!(status, StatusCode::OK);
    assert_eq!(text, "[+] one\n[+] two: 2 ms ago\n[ ] three: not needed\nready\n");
}

#[tokio::test]
async fn metrics_are_open_metrics() {
    let shown = shown();
    let (status, kind, text) = get(&shown, "/metrics").await;
    assert_eq!(status, StatusCode::OK);
    assert!(kind.starts_with("application/openmetrics-text; version=1.0.0"), "{kind}");
    assert!(text.ends_with("# EOF\n"));
}

#[tokio::test]
async fn nothing_else_is_served() {
    let ask = async |routes: Router, request: Request<Body>| routes.oneshot(request).await.unwrap().status();
    let get = |path: &str| Request::get(path).body(Body::empty()).unwrap();
    for path in ["/", "/debug", "/livez", "/readyz"] {
        assert_eq!(ask(router(HttpState::default()), get(path)).await, StatusCode::NOT_FOUND, "{path}");
    }
    for path in ["/", "/metrics"] {
        assert_eq!(ask(health(HttpState::default()), get(path)).await, StatusCode::NOT_FOUND, "{path}");
    }
    let post = Request::post("/livez").body(Body::empty()).unwrap();
    assert_eq!(ask(health(HttpState::default()), post).await, StatusCode::METHOD_NOT_ALLOWED);
}

#[tokio::test]
async fn the_health_socket_takes_the_place_of_one_that_was_left() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("health.sock");
    drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
    let listener = listen::unix(&path).unwrap();
    let task = tokio::spawn(serve(listener, health(shown()), CancellationToken::new()));
    let socket = path.display().to_string();
    const PROBE: crate::health::Probe = crate::health::Probe { program: "program", socket: "" };
    let args = |word: &'static str| [word.to_owned(), "--health-socket".into(), socket.clone()];
    let (live, ready) = (args("live"), args("ready"));
    let asked = tokio::task::spawn_blocking(|| [live, ready].map(|args| PROBE.ask(args)));
    let [live, ready] = asked.await.unwrap().map(Result::unwrap);
    assert_eq!(live, (true, "ok\n".to_owned()));
    assert!(!ready.0 && ready.1.contains("[-] one: not looked at yet\n"), "{}", ready.1);
    task.abort();
}

struct Running {
    address: std::net::SocketAddr,
    cancel: CancellationToken,
    task: tokio::task::JoinHandle<io::Result<()>>,
}

async fn start() -> Running {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let cancel = CancellationToken::new();
    let task = tokio::spawn(serve(listener, router(HttpState::default()), cancel.clone()));
    Running { address, cancel, task }
}

async fn ask(address: std::net::SocketAddr, request: &[u8]) -> String {
    let mut stream = TcpStream::connect(address).await.unwrap();
    let _ = stream.write_all(request).await;
    let mut answer = Vec::new();
    // A server that closes with bytes unread resets the connection after its answer.
    let _ = stream.read_to_end(&mut answer).await;
    String::from_utf8(answer).unwrap()
}

const METRICS: &[u8] = b"GET /metrics HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n";

#[tokio::test]
async fn serves_until_cancelled() {
    let served = start().await;
    let answer = ask(served.address, METRICS).await;
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n") && answer.ends_with("# EOF\n"), "{answer}");
    let mut idle = TcpStream::connect(served.address).await.unwrap();
    served.cancel.cancel();
    served.task.await.unwrap().unwrap();
    // One that was not accepted yet is reset.
    let end = idle.read(&mut [0]).await;
    let reset = |e: &io::Error| e.kind() == io::ErrorKind::ConnectionReset;
    assert!(matches!(&end, Ok(0)) || end.as_ref().is_err_and(reset), "open connections are closed: {end:?}");
    assert!(TcpStream::connect(served.address).await.is_err());
}

#[tokio::test]
async fn idle_connections_do_not_keep_a_request_out() {
    let served = start().await;
    let mut idle = Vec::new();
    for _ in 0..MAX_CONNECTIONS + 10 {
        idle.push(TcpStream::connect(served.address).await.unwrap());
    }
    assert!(ask(served.address, METRICS).await.starts_with("HTTP/1.1 200 OK\r\n"));
    // The oldest were closed for the younger ones, and no more than needed.
    for oldest in &mut idle[..11] {
        assert_eq!(oldest.read(&mut [0]).await.unwrap(), 0);
    }
    let youngest = idle.last_mut().unwrap();
    youngest.write_all(METRICS).await.unwrap();
    let mut answer = String::new();
    youngest.read_to_string(&mut answer).await.unwrap();
    assert!(answer.ends_with("# EOF\n"), "{answer}");
}

#[tokio::test]
async fn garbage_and_oversized_heads_are_refused() {
    let served = start().await;
    assert!(ask(served.address, b"\x16\x03\x01 hello\r\n\r\n").await.starts_with("HTTP/1.1 400"));
    let long = format!("GET /metrics HTTP/1.1\r\nx: {}", "a".repeat(16 * 1024));
    assert!(ask(served.address, long.as_bytes()).await.starts_with("HTTP/1.1 431"));
    assert!(ask(served.address, METRICS).await.starts_with("HTTP/1.1 200"));
}

/// Connections that come right behind a probe do not close it before it had its turn.
#[tokio::test]
async fn a_burst_of_connections_does_not_close_a_probe() {
    use std::io::Write as _;
    let served = start().await;
    let mut probe = std::net::TcpStream::connect(served.address).unwrap();
    probe.write_all(METRICS).unwrap();
    let _burst: Vec<_> =
        (0..2 * MAX_CONNECTIONS).map(|_| std::net::TcpStream::connect(served.address).unwrap()).collect();
    probe.set_nonblocking(true).unwrap();
    let mut answer = Vec::new();
    let _ = TcpStream::from_std(probe).unwrap().read_to_end(&mut answer).await;
    assert!(answer.starts_with(b"HTTP/1.1 200 OK"), "{:?}", String::from_utf8_lossy(&answer));
}
