//! What only happens when time passes, with short times.

use std::{
    path::PathBuf,
    sync::{
        Mutex,
        atomic::{AtomicI64, AtomicUsize, Ordering},
    },
    time::Instant,
};

use seamount_testkit::http2::{END_HEADERS, END_STREAM, frame, grpc_headers, grpc_message, kind};
use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::UnixStream,
    task::JoinHandle,
    time::timeout,
};

use super::*;

const DEADLINE: Duration = Duration::from_secs(60);
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";

#[derive(Default)]
struct Seen {
    open: AtomicI64,
    refused: Mutex<Vec<&'static str>>,
    /// Counted by a test; and its value at each refusal.
    turn: AtomicUsize,
    turns: Mutex<Vec<usize>>,
}

impl Observer for Seen {
    fn connection(&self, delta: i64) {
        self.open.fetch_add(delta, Ordering::SeqCst);
    }

    fn stream(&self, _delta: i64) {}

    fn refused(&self, why: &'static str) {
        self.refused.lock().unwrap().push(why);
        self.turns.lock().unwrap().push(self.turn.load(Ordering::SeqCst));
    }
}

struct Server {
    _directory: TempDir,
    path: PathBuf,
    /// The listener once more.
    copy: std::os::unix::net::UnixListener,
    seen: Arc<Seen>,
    served: watch::Sender<IdentityState>,
    task: JoinHandle<()>,
}

fn start(timing: Timing) -> Server {
    start_with(timing, false)
}

fn start_with(timing: Timing, wary: bool) -> Server {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("socket");
    let listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
    listener.set_nonblocking(true).unwrap();
    let copy = listener.try_clone().unwrap();
    let seen = Arc::new(Seen::default());
    let (served, receiver) = watch::channel(IdentityState::Pending);
    let shared = Shared {
        served: receiver,
        tenant: Tenant::new(Limits { connections: 64, ..Limits::default() }, Node::unbounded()),
        timing,
        observer: seen.clone(),
        wary,
    };
    let listener = connection::waiting(listener).unwrap();
    let task = tokio::spawn(connection::serve(listener, Arc::new(shared), CancellationToken::new()));
    Server { _directory: directory, path, copy, seen, served, task }
}

fn short() -> Timing {
    let short = Duration::from_millis(80);
    Timing { pending: DEADLINE, request: short, first_request: short, idle: short }
}

async fn connect(server: &Server, bytes: &[u8]) -> UnixStream {
    let mut stream = UnixStream::connect(&server.path).await.unwrap();
    stream.write_all(bytes).await.unwrap();
    stream
}

/// What comes until the server closes.
async fn rest(mut stream: UnixStream) -> Vec<u8> {
    let mut all = Vec::new();
    let _ = timeout(DEADLINE, stream.read_to_end(&mut all)).await.expect("closed in time");
    all
}

/// POST of a FetchX509SVID with everything but its message.
fn headers() -> Vec<u8> {
    frame(kind::HEADERS, END_HEADERS, 1, &grpc_headers("/SpiffeWorkloadAPI/FetchX509SVID", &[]))
}

/// Its message.
fn message() -> Vec<u8> {
    frame(kind::DATA, END_STREAM, 1, &grpc_message(&[]))
}

#[tokio::test]
async fn connections_that_ask_nothing_are_closed() {
    let server = start(short());
    let silent = connect(&server, b"").await;
    let half = connect(&server, &PREFACE[..10]).await;
    let preface_only = connect(&server, PREFACE).await;
    let half_headers = connect(&server, &[PREFACE, &headers()[..20]].concat()).await;
    for stream in [silent, half, preface_only, half_headers] {
        rest(stream).await;
    }
    assert_eq!(server.seen.open.load(Ordering::SeqCst), 0);
    assert_eq!(*server.seen.refused.lock().unwrap(), ["idle"; 4]);
    assert!(!server.task.is_finished());
}

/// A request whose message never comes is answered `DeadlineExceeded`, and its connection goes when idle.
#[tokio::test]
async fn requests_that_do_not_end_are_answered() {
    let server = start(short());
    let stream = connect(&server, &[PREFACE, &headers()].concat()).await;
    let answer = rest(stream).await;
    let text = b"the request did not arrive in time";
    // The message is Huffman-coded or not, as the library likes; the reason is with the observer.
    assert!(answer.len() > text.len());
    assert_eq!(*server.seen.refused.lock().unwrap(), ["request", "idle"]);
}

/// A stream that waits or is open keeps its connection, however long nothing happens.
#[tokio::test]
async fn open_streams_keep_their_connection() {
    let server = start(short());
    let stream = connect(&server, &[PREFACE, &headers(), &message()].concat()).await;
    let begun = Instant::now();
    tokio::time::sleep(short().idle * 8).await;
    assert!(begun.elapsed() >= short().idle * 8);
    assert_eq!(server.seen.open.load(Ordering::SeqCst), 1);
    assert!(server.seen.refused.lock().unwrap().is_empty());
    server.served.send_replace(IdentityState::Denied);
    rest(stream).await;
    assert_eq!(*server.seen.refused.lock().unwrap(), ["denied", "idle"]);
}

/// A copy of the listener is elsewhere, too, and shut down there while a stream is open.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_listener_that_is_shut_down_ends_the_service() {
    let server = start(Timing { request: DEADLINE, first_request: DEADLINE, idle: DEADLINE, ..short() });
    let stream = connect(&server, &[PREFACE, &headers(), &message()].concat()).await;
    let begun = Instant::now();
    while server.seen.open.load(Ordering::SeqCst) == 0 {
        assert!(begun.elapsed() < DEADLINE);
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    rustix::net::shutdown(&server.copy, rustix::net::Shutdown::Both).unwrap();
    rest(stream).await;
    timeout(DEADLINE, server.task).await.expect("the service ends").unwrap();
    assert_eq!(server.seen.open.load(Ordering::SeqCst), 0);
}

/// The agent has one worker: a pod that connects without end must not have it for itself.
#[tokio::test]
async fn a_flood_of_connections_lets_others_go_on() {
    let server = start(Timing { request: DEADLINE, first_request: DEADLINE, ..short() });
    // More than are admitted, all of them before the service has its first turn.
    let flood: Vec<_> =
        (0..120).map(|_| std::os::unix::net::UnixStream::connect(&server.path).unwrap()).collect();
    let seen = Arc::clone(&server.seen);
    let others = tokio::spawn(async move {
        loop {
            seen.turn.fetch_add(1, Ordering::SeqCst);
            tokio::task::yield_now().await;
        }
    });
    let many = flood.len() - 64;
    let begun = Instant::now();
    while server.seen.refused.lock().unwrap().len() < many {
        assert!(begun.elapsed() < DEADLINE);
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    others.abort();
    let turns = server.seen.turns.lock().unwrap();
    let between = turns.last().unwrap() - turns.first().unwrap();
    assert!(between >= many - 1, "others had {between} turns while {many} connections were refused");
}

/// A TCP socket whose last copy takes an hour to end: it lingers, and the other end, which comes along, takes
/// nothing.
fn lingering() -> (std::net::TcpStream, std::net::TcpStream) {
    use std::io::Write as _;
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let mut socket = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let other = listener.accept().unwrap().0;
    rustix::net::sockopt::set_socket_linger(&socket, Some(Duration::from_secs(3600))).unwrap();
    socket.set_nonblocking(true).unwrap();
    while socket.write(&[0; 65_536]).is_ok() {}
    (socket, other)
}

/// Bytes, and with them the last copy of a descriptor.
fn send_along(
    stream: &std::os::unix::net::UnixStream,
    last: std::net::TcpStream,
) -> rustix::io::Result<usize> {
    use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
    use std::os::fd::AsFd as _;
    let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut along = SendAncillaryBuffer::new(&mut space);
    let fds = [last.as_fd()];
    assert!(along.push(SendAncillaryMessage::ScmRights(&fds)));
    let sent = sendmsg(stream, &[std::io::IoSlice::new(PREFACE)], &mut along, SendFlags::empty());
    if sent.is_err() {
        // It is the last copy still, and its end is not for this thread.
        std::mem::forget(last);
    }
    sent
}

/// What a service on a thread of its own does with a client that sends such a descriptor; then whether it
/// goes on.
fn stranger(wary: bool, refuse: bool) -> rustix::io::Result<usize> {
    let (sender, receiver) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let server = start_with(short(), wary);
            if refuse {
                connection::is_wary(&server.copy).unwrap();
            }
            let stream = std::os::unix::net::UnixStream::connect(&server.path).unwrap();
            let (last, other) = lingering();
            let sent = send_along(&stream, last);
            // Read, not read, or cut, and the runtime goes on; a service that waits for the descriptor's end
            // never gets here.
            stream.set_nonblocking(true).unwrap();
            rest(UnixStream::from_std(stream).unwrap()).await;
            rest(connect(&server, PREFACE).await).await;
            sender.send((sent, other)).unwrap();
        });
    });
    receiver.recv_timeout(DEADLINE).expect("the service stands still").0
}

/// One thread carries all pods and the kubelet: nothing that a pod sends may keep it.
#[test]
fn a_descriptor_that_comes_along_does_not_stop_the_service() {
    stranger(true, false).unwrap();
}

/// Linux 6.16 and later do not let it come.
#[test]
fn descriptors_are_refused_where_the_kernel_can() {
    let any = std::os::unix::net::UnixStream::pair().unwrap().0;
    let refuses = seamount_sys::rights::refuse_rights(any).unwrap();
    let sent = stranger(!refuses, refuses);
    assert_eq!(sent.err(), refuses.then_some(rustix::io::Errno::PERM));
}

/// Equal content has equal bytes, or every renewal of something else would be a change for every stream.
#[test]
fn equal_sets_have_equal_bytes() {
    let bundle = |name: &str| {
        let mut params = rcgen::CertificateParams::default();
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let root = params.self_signed(&rcgen::KeyPair::generate().unwrap()).unwrap();
        seamount_identity::X509Bundle::new(name.parse().unwrap(), [root.der().clone()]).unwrap()
    };
    let federated: Vec<_> = (0..8).map(|n| bundle(&format!("td{n}"))).collect();
    let own = bundle("own");
    let encode = || {
        let set = federated.iter().fold(seamount_identity::BundleSet::new(own.clone()), |set, next| {
            set.with_federated(next.clone()).unwrap()
        });
        Response::new(&[], &set)
    };
    let first = encode();
    for _ in 0..8 {
        let next = encode();
        assert!(first.svids() == next.svids() && first.bundles() == next.bundles());
    }
}

#[test]
fn responses_print_no_key() {
    let served = format!("{:?}", IdentityState::Pending);
    assert_eq!(served, "Pending");
    assert!(format!("{:?}", Limits::default()).contains("64"));
}
