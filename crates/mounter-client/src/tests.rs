//! Against a simulated mounter that answers late, wrongly, or not at all.

use super::*;
use rustix::net::{
    AddressFamily, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketAddrUnix, SocketFlags,
    SocketType, accept_with, bind, listen, sendmsg, socket_with, sockopt,
};
use seamount_mounter_protocol::names::DriverName;
use seamount_mounter_protocol::{FRAME, VERSION};
use std::io::IoSlice;
use std::mem::MaybeUninit;
use std::os::fd::AsFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;

const POD: &str = "3f2c1a9e-0b1d-4c5e-8f70-a1b2c3d4e5f6";
const LONG: Duration = Duration::from_secs(60);

fn driver() -> DriverName {
    "csi.spiffe.io".parse().unwrap()
}

fn volume(name: &str) -> Volume {
    let (driver, pod) = (driver(), POD.parse().unwrap());
    Volume { driver, pod, name: name.parse().unwrap(), id: "csi-1".parse().unwrap() }
}

struct Fake {
    dir: tempfile::TempDir,
    listener: Arc<OwnedFd>,
}

impl Fake {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let fd = socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).unwrap();
        bind(&fd, &SocketAddrUnix::new(dir.path().join("m")).unwrap()).unwrap();
        listen(&fd, 8).unwrap();
        Self { dir, listener: Arc::new(fd) }
    }

    fn client(&self) -> Client {
        Client::start(self.dir.path().join("m"), CancellationToken::new())
    }

    async fn accept(&self) -> Socket {
        let listener = Arc::clone(&self.listener);
        let fd = tokio::task::spawn_blocking(move || {
            accept_with(&listener, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK).unwrap()
        })
        .await
        .unwrap();
        Socket::from_fd(fd).unwrap()
    }

    /// A connection that has said Hello.
    async fn connection(&self) -> Socket {
        let socket = self.accept().await;
        let (id, request) = next(&socket).await;
        assert_eq!(request, Request::Hello);
        let reply = Reply { numbers: [1024, 5, 0], text: "fake".to_owned(), ..Reply::to(id, &request) };
        socket.send(&reply.encode(), None).await.unwrap();
        socket
    }

    /// A listening socket, its cookie, and its path.
    fn listening(&self, name: &str) -> (OwnedFd, u64, PathBuf) {
        let path = self.dir.path().join(name);
        let fd = OwnedFd::from(UnixListener::bind(&path).unwrap());
        let cookie = sockopt::socket_cookie(&fd).unwrap();
        (fd, cookie, path)
    }
}

async fn next(socket: &Socket) -> (u64, Request) {
    Request::decode(&socket.receive().await.unwrap().bytes).unwrap()
}

/// Waits until no process has this listener open any more.
async fn closed(path: &Path) {
    let start = std::time::Instant::now();
    while UnixStream::connect(path).is_ok() {
        assert!(start.elapsed() < LONG, "the descriptor is still open");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test]
async fn a_connection_says_hello_first() {
    let fake = Fake::new();
    let client = fake.client();
    let _socket = fake.connection().await;
    let up = client.up().await.unwrap();
    assert_eq!(
        up.hello,
        Hello { descriptors: 1024, age_us: 5, build: "fake".to_owned(), ..Hello::default() }
    );
}

#[tokio::test]
async fn a_listener_arrives_with_its_cookie() {
    let fake = Fake::new();
    let client = fake.client();
    let socket = fake.connection().await;
    let (fd, cookie, path) = fake.listening("a");
    let volume = volume("a");
    let (listener, ()) = tokio::join!(client.publish_identity(&volume), async {
        let (id, request) = next(&socket).await;
        let reply = Reply { cookie, flags: flag::EXISTING, ..Reply::to(id, &request) };
        socket.send(&reply.encode(), Some(&fd)).await.unwrap();
    });
    let listener = listener.unwrap().unwrap();
    assert_eq!((listener.cookie, listener.existing), (cookie, true));
    let flags = rustix::io::fcntl_getfd(&listener.fd).unwrap();
    assert!(flags.contains(rustix::io::FdFlags::CLOEXEC));
    drop(fd);
    UnixStream::connect(&path).unwrap();
    drop(listener);
    closed(&path).await;
}

#[tokio::test]
async fn a_late_reply_is_thrown_away_with_its_descriptor() {
    let fake = Fake::new();
    let client = fake.client();
    let socket = fake.connection().await;
    let (first, second) = (volume("a"), volume("b"));
    let late = client
        .call_within(Request::PublishIdentity(first), None, Duration::from_millis(100))
        .await
        .unwrap_err();
    assert!(matches!(late, MounterError::Timeout { .. }), "{late}");
    let (late_id, late_request) = next(&socket).await;
    let (late_fd, late_cookie, late_path) = fake.listening("a");
    let (fd, cookie, _path) = fake.listening("b");
    let (listener, ()) = tokio::join!(client.publish_identity(&second), async {
        let (id, request) = next(&socket).await;
        // The mounter wakes up: first the answer that no caller waits for any more, then the right one.
        let reply = Reply { cookie: late_cookie, ..Reply::to(late_id, &late_request) };
        socket.send(&reply.encode(), Some(&late_fd)).await.unwrap();
        let reply = Reply { cookie, ..Reply::to(id, &request) };
        socket.send(&reply.encode(), Some(&fd)).await.unwrap();
    });
    assert_eq!(
        listener.unwrap().unwrap().cookie,
        cookie,
        "the late listener was taken for the other volume's"
    );
    drop(late_fd);
    closed(&late_path).await;
}

#[tokio::test]
async fn an_answer_for_another_volume_is_refused_and_ends_the_connection() {
    let fake = Fake::new();
    let client = fake.client();
    let socket = fake.connection().await;
    let (fd, cookie, path) = fake.listening("a");
    let (asked, other) = (volume("a"), volume("b"));
    let (result, ()) = tokio::join!(client.publish_identity(&asked), async {
        let (id, _) = next(&socket).await;
        let reply = Reply { cookie, ..Reply::to(id, &Request::PublishIdentity(other)) };
        socket.send(&reply.encode(), Some(&fd)).await.unwrap();
    });
    let error = result.unwrap_err();
    assert!(matches!(error, MounterError::Untrusted { .. }), "{error}");
    drop(fd);
    closed(&path).await;
    assert!(socket.receive().await.unwrap().bytes.is_empty(), "the connection goes on");
    // The next connection works.
    let socket = fake.connection().await;
    let (result, ()) = tokio::join!(client.unpublish(&asked), async {
        let (id, request) = next(&socket).await;
        socket.send(&Reply::to(id, &request).encode(), None).await.unwrap();
    });
    result.unwrap();
}

/// What a bad mounter sends to `PublishIdentity`: the reply's cookie and the descriptor.
async fn publish_answered_with(cookie: u64, fd: Option<OwnedFd>) -> Result<Option<Listener>, MounterError> {
    let fake = Fake::new();
    let client = fake.client();
    let socket = fake.connection().await;
    let volume = volume("a");
    let (result, ()) = tokio::join!(client.publish_identity(&volume), async {
        let (id, request) = next(&socket).await;
        let reply = Reply { cookie, ..Reply::to(id, &request) };
        socket.send(&reply.encode(), fd.as_ref()).await.unwrap();
    });
    result
}

fn untrusted(result: Result<Option<Listener>, MounterError>, words: &str) {
    match result {
        Err(MounterError::Untrusted { why, .. }) => assert!(why.contains(words), "{why}"),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_descriptor_that_is_not_what_the_reply_says_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let listener = OwnedFd::from(UnixListener::bind(dir.path().join("s")).unwrap());
    let cookie = sockopt::socket_cookie(&listener).unwrap();
    untrusted(publish_answered_with(cookie + 1, Some(listener)).await, "cookie");
    let listener = OwnedFd::from(UnixListener::bind(dir.path().join("t")).unwrap());
    untrusted(publish_answered_with(0, Some(listener)).await, "cookie");
    untrusted(publish_answered_with(cookie, None).await, "no descriptor");
    let (stream, _other) = UnixStream::pair().unwrap();
    let cookie = sockopt::socket_cookie(&stream).unwrap();
    untrusted(publish_answered_with(cookie, Some(stream.into())).await, "does not listen");
    let tcp = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let cookie = sockopt::socket_cookie(&tcp).unwrap();
    untrusted(publish_answered_with(cookie, Some(tcp.into())).await, "not a Unix stream");
    let file = std::fs::File::open("/dev/null").unwrap();
    untrusted(publish_answered_with(1, Some(file.into())).await, "not a socket");
}

#[tokio::test]
async fn nothing_comes_along_where_nothing_was_asked_for() {
    let fake = Fake::new();
    let client = fake.client();
    let socket = fake.connection().await;
    let (fd, _, path) = fake.listening("a");
    let volume = volume("a");
    let (result, ()) = tokio::join!(client.unpublish(&volume), async {
        let (id, request) = next(&socket).await;
        socket.send(&Reply::to(id, &request).encode(), Some(&fd)).await.unwrap();
    });
    assert!(matches!(result, Err(MounterError::Untrusted { .. })));
    drop(fd);
    closed(&path).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_descriptors_are_one_too_many() {
    let fake = Fake::new();
    let client = fake.client();
    let fd = {
        let listener = Arc::clone(&fake.listener);
        tokio::task::spawn_blocking(move || accept_with(&listener, SocketFlags::CLOEXEC).unwrap())
            .await
            .unwrap()
    };
    let send = |reply: &Reply, fds: &[rustix::fd::BorrowedFd<'_>]| {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(4))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !fds.is_empty() {
            assert!(control.push(SendAncillaryMessage::ScmRights(fds)));
        }
        let frame = reply.encode();
        sendmsg(&fd, &[IoSlice::new(&frame)], &mut control, SendFlags::empty()).unwrap();
    };
    let read = || {
        let mut frame = [0; FRAME];
        let (count, _) = rustix::net::recv(&fd, &mut frame, rustix::net::RecvFlags::empty()).unwrap();
        Request::decode(&frame[..count]).unwrap()
    };
    let asked = volume("a");
    let (first, first_cookie, first_path) = fake.listening("a");
    let (second, _, second_path) = fake.listening("b");
    let work = tokio::spawn({
        let client = client.clone();
        async move { client.publish_identity(&asked).await }
    });
    let (id, request) = tokio::task::block_in_place(read);
    send(&Reply::to(id, &request), &[]);
    let (id, request) = tokio::task::block_in_place(read);
    send(&Reply { cookie: first_cookie, ..Reply::to(id, &request) }, &[first.as_fd(), second.as_fd()]);
    untrusted(work.await.unwrap(), "more than one");
    drop((first, second));
    closed(&first_path).await;
    closed(&second_path).await;
}

#[tokio::test]
async fn answers_find_their_questions_in_any_order() {
    let fake = Fake::new();
    let client = fake.client();
    let socket = fake.connection().await;
    let (a, b) = (volume("a"), volume("b"));
    let (first, second, ()) = tokio::join!(client.inspect(&a, LONG), client.inspect(&b, LONG), async {
        let one = next(&socket).await;
        let two = next(&socket).await;
        for (id, request) in [two, one] {
            let bytes = if request.subject().volume() == Some(&volume("a")) { 1 } else { 2 };
            let reply = Reply { numbers: [bytes, 0, 0], ..Reply::to(id, &request) };
            socket.send(&reply.encode(), None).await.unwrap();
        }
    });
    let (first, second) = (first.unwrap().unwrap(), second.unwrap().unwrap());
    assert_eq!((first.volume, first.bytes), (a, 1));
    assert_eq!((second.volume, second.bytes), (b, 2));
}

#[tokio::test]
async fn another_version_is_named_with_the_remedy_and_tried_again() {
    let fake = Fake::new();
    let client = fake.client();
    let socket = fake.accept().await;
    let (id, request) = next(&socket).await;
    let mut frame = Reply::to(id, &request).encode();
    frame[4..6].copy_from_slice(&(VERSION + 1).to_le_bytes());
    socket.send(&frame, None).await.unwrap();
    let mut link = client.link();
    link.wait_for(|l| matches!(l, Link::Incompatible(_))).await.unwrap();
    let error = client.unpublish(&volume("a")).await.unwrap_err();
    assert!(matches!(error, MounterError::Version(_)), "{error}");
    assert!(error.to_string().contains("roll the DaemonSet"), "{error}");
    drop(socket);
    // The other container was rolled too.
    let _socket = fake.connection().await;
    link.wait_for(|l| matches!(l, Link::Up(_))).await.unwrap();
}

#[tokio::test]
async fn a_mounter_that_refuses_the_version_is_named_too() {
    let fake = Fake::new();
    let client = fake.client();
    let socket = fake.accept().await;
    let (id, _) = next(&socket).await;
    let reply = Reply::refusal(id, Fault::Version, "protocol version 1, this side speaks 2".to_owned());
    socket.send(&reply.encode(), None).await.unwrap();
    client.link().wait_for(|l| matches!(l, Link::Incompatible(_))).await.unwrap();
}

#[tokio::test]
async fn a_request_survives_the_mounters_crash() {
    let fake = Fake::new();
    let client = fake.client();
    let socket = fake.connection().await;
    let volume = volume("a");
    let (result, ()) = tokio::join!(client.unpublish(&volume), async {
        next(&socket).await;
        drop(socket);
        let socket = fake.connection().await;
        let (id, request) = next(&socket).await;
        socket.send(&Reply::to(id, &request).encode(), None).await.unwrap();
    });
    result.unwrap();
}

#[tokio::test]
async fn a_mounter_that_lost_a_listener_gets_it_before_it_publishes() {
    let fake = Fake::new();
    let client = fake.client();
    let (fd, cookie, _path) = fake.listening("a");
    let (kept, volume) = (Arc::new(fd), volume("a"));
    let answer = async |socket: &Socket, request: &Request, id| {
        let reply = Reply { cookie, flags: flag::EXISTING, ..Reply::to(id, request) };
        socket.send(&reply.encode(), Some(&kept)).await.unwrap();
    };
    let played = async {
        // The mounter that has everything is asked at once, and dies.
        let socket = fake.connection().await;
        assert_eq!(next(&socket).await.1, Request::PublishIdentity(volume.clone()));
        drop(socket);
        // Its successor dies after the store, and the next one knows nothing of that.
        for last in [false, true] {
            let socket = fake.connection().await;
            let (id, request) = next(&socket).await;
            assert_eq!(request, Request::StoreListener { subject: Subject::Volume(volume.clone()), cookie });
            // A listener that is kept already is as good.
            let busy = Reply { fault: Some(Fault::Busy), ..Reply::to(id, &request) };
            let stored = if last { busy } else { Reply::to(id, &request) };
            socket.send(&stored.encode(), None).await.unwrap();
            let (id, request) = next(&socket).await;
            assert_eq!(request, Request::PublishIdentity(volume.clone()));
            if last {
                answer(&socket, &request, id).await;
                return socket;
            }
        }
        unreachable!();
    };
    let (listener, _socket) =
        tokio::join!(client.publish_served(&volume, Arc::clone(&kept), cookie, 1), played);
    assert_eq!(listener.unwrap().unwrap().cookie, cookie);
}

#[tokio::test]
async fn frames_of_another_size_and_uncalled_replies_end_the_connection() {
    let fake = Fake::new();
    let client = fake.client();
    let volume = volume("a");
    let answer = tokio::spawn({
        let (client, volume) = (client.clone(), volume.clone());
        async move { client.unpublish(&volume).await }
    });
    for size in [FRAME - 1, FRAME + 1, 3 * FRAME] {
        let fd = {
            let listener = Arc::clone(&fake.listener);
            tokio::task::spawn_blocking(move || accept_with(&listener, SocketFlags::CLOEXEC).unwrap())
                .await
                .unwrap()
        };
        let copy = fd.try_clone().unwrap();
        let socket = {
            rustix::io::ioctl_fionbio(&copy, true).unwrap();
            Socket::from_fd(copy).unwrap()
        };
        let (id, request) = next(&socket).await;
        socket.send(&Reply::to(id, &request).encode(), None).await.unwrap();
        let (id, request) = next(&socket).await;
        let mut frame = Reply::to(id, &request).encode().to_vec();
        frame.resize(size, 0);
        rustix::net::send(&fd, &frame, SendFlags::empty()).unwrap();
        assert!(socket.receive().await.unwrap().bytes.is_empty(), "{size} bytes were taken for a frame");
    }
    let socket = fake.connection().await;
    let (id, request) = next(&socket).await;
    socket.send(&Reply::to(id + 77, &request).encode(), None).await.unwrap();
    assert!(socket.receive().await.unwrap().bytes.is_empty(), "a reply that was not asked for was taken");
    let socket = fake.connection().await;
    let (id, request) = next(&socket).await;
    socket.send(&Reply::to(id, &request).encode(), None).await.unwrap();
    answer.await.unwrap().unwrap();
}

#[tokio::test]
async fn faults_come_with_the_mounters_words() {
    let fake = Fake::new();
    let client = fake.client();
    let socket = fake.connection().await;
    let volume = volume("a");
    let (result, ()) = tokio::join!(client.publish_identity(&volume), async {
        let (id, request) = next(&socket).await;
        let reply = Reply {
            fault: Some(Fault::NotOurs),
            text: "no vol_data.json".to_owned(),
            ..Reply::to(id, &request)
        };
        socket.send(&reply.encode(), None).await.unwrap();
    });
    let error = result.unwrap_err();
    assert!(error.is(Fault::NotOurs) && error.to_string().contains("no vol_data.json"), "{error}");
    // The connection goes on.
    let (result, ()) = tokio::join!(client.inspect(&volume, LONG), async {
        let (id, request) = next(&socket).await;
        let reply = Reply { fault: Some(Fault::NotFound), ..Reply::to(id, &request) };
        socket.send(&reply.encode(), None).await.unwrap();
    });
    assert!(result.unwrap().is_none());
}

#[tokio::test]
async fn a_refused_agent_says_why() {
    let fake = Fake::new();
    let client = fake.client();
    drop(fake.accept().await);
    let down = |l: &Link| matches!(l, Link::Down(why) if why.contains("--agent-uid"));
    client.link().wait_for(down).await.unwrap();
    let error = client
        .call_within(Request::Unpublish(volume("a")), None, Duration::from_millis(200))
        .await
        .unwrap_err();
    assert!(matches!(error, MounterError::Down { .. } | MounterError::Timeout { .. }), "{error}");
}

#[tokio::test]
async fn another_drivers_mount_has_no_listener() {
    let fake = Fake::new();
    let client = fake.client();
    let socket = fake.connection().await;
    let volume = volume("a");
    let (result, ()) = tokio::join!(client.publish_identity(&volume), async {
        let (id, request) = next(&socket).await;
        let reply = Reply { flags: flag::FOREIGN, ..Reply::to(id, &request) };
        socket.send(&reply.encode(), None).await.unwrap();
    });
    assert!(result.unwrap().is_none());
}

#[tokio::test]
async fn a_list_that_a_restart_interrupts_begins_anew() {
    let fake = Fake::new();
    let client = fake.client();
    let work = tokio::spawn(async move { client.list().await });
    let names = ["a", "b", "c"];
    // Of the first mounter's scan two pages come, then it is killed.
    let socket = fake.connection().await;
    let page = async |socket: &Socket| {
        let (id, request) = next(socket).await;
        let Request::List { cursor } = request else { panic!("{request:?}") };
        let mut reply = Reply::to(id, &request);
        match names.get(cursor as usize) {
            Some(name) => reply.subject = Subject::Volume(volume(name)),
            None => reply.fault = Some(Fault::NotFound),
        }
        socket.send(&reply.encode(), None).await.unwrap();
        cursor
    };
    assert_eq!(page(&socket).await, 0);
    assert_eq!(page(&socket).await, 1);
    drop(socket);
    // The next one has made no scan: it would take the third page for the end of the list.
    let socket = fake.connection().await;
    assert_eq!(page(&socket).await, 0, "the new mounter was asked for a page of the old one's scan");
    while !work.is_finished() {
        tokio::select! {
            _ = page(&socket) => {}
            () = tokio::time::sleep(Duration::from_millis(20)) => {}
        }
    }
    let found: Vec<_> = work.await.unwrap().unwrap().into_iter().map(|f| f.volume).collect();
    assert_eq!(found, names.map(volume));
}

#[tokio::test]
async fn a_listener_that_was_sent_is_not_held_for_an_answer() {
    let fake = Fake::new();
    let client = fake.client().with_patience(Duration::from_millis(50));
    let (listener, cookie, path) = fake.listening("l");
    let work =
        tokio::spawn(
            async move { client.store(Subject::Volume(volume("a")), Arc::new(listener), cookie).await },
        );
    let socket = fake.connection().await;
    let received = socket.receive().await.unwrap();
    assert!(received.fd.is_some());
    // The answer never comes; the caller is gone, and so is the mounter's copy.
    assert!(matches!(work.await.unwrap(), Err(MounterError::Timeout { .. })));
    drop(received);
    closed(&path).await;
    drop(socket);
}
