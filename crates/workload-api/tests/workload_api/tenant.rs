//! A pod's sockets have one account: what its clients cannot take, however many sockets it has, and that no
//! other pod is hurt.

use std::sync::Arc;

use seamount_proto::workload::X509svidRequest;
use seamount_workload_api::{IdentityState, Limits, Node, Tenant};
use tokio::{io::AsyncReadExt as _, net::UnixStream, sync::Semaphore};
use tonic::Code;
use tonic_reflection::pb::v1::{
    ServerReflectionRequest, server_reflection_client::ServerReflectionClient,
    server_reflection_request::MessageRequest,
};

use crate::{
    grpc::{client, fetch, id, with_header},
    raw::*,
    support::*,
};

/// What is not spent at once comes back in days: no test waits for it.
const SLOW: Limits = Limits { connections: 128, streams: 64, all_streams: 256, burst: 16 * 1024, rate: 1 };

fn tenant(limits: Limits) -> Arc<Tenant> {
    Tenant::new(limits, Node::unbounded())
}

fn server(tenant: &Arc<Tenant>) -> Server {
    Server::start_of(tenant, ready(&svid("a")), DEADLINE)
}

/// Another pod's client gets what it asks for.
async fn is_served(other: &Server) {
    let mut stream = fetch(other).await.unwrap();
    assert_eq!(id(&soon(stream.message()).await.unwrap().unwrap()), "a");
}

#[tokio::test]
async fn all_sockets_of_a_pod_have_the_connections_of_one() {
    let pod = tenant(Limits { connections: 4, ..Limits::default() });
    let sockets: Vec<_> = (0..3).map(|_| server(&pod)).collect();
    let other = server(&tenant(Limits { connections: 4, ..Limits::default() }));
    let mut held = Vec::new();
    for number in 0..12 {
        held.push(write(&sockets[number % 3], b"").await);
    }
    let seen = |count: &dyn Fn(&Server) -> usize| sockets.iter().map(count).sum::<usize>();
    until("refusals", || seen(&|s| s.seen.refused("connections")) == 8).await;
    assert_eq!(seen(&|s| usize::try_from(s.seen.connections()).unwrap()), 4);
    is_served(&other).await;
    drop(held);
    until("room", || seen(&|s| usize::try_from(s.seen.connections()).unwrap()) == 0).await;
    is_served(&sockets[2]).await;
}

#[tokio::test]
async fn all_pods_together_leave_what_is_not_theirs() {
    let few = || Arc::new(Semaphore::new(2));
    for node in
        [Node { connections: few(), ..Node::unbounded() }, Node { descriptors: few(), ..Node::unbounded() }]
    {
        let [one, two] = [(); 2].map(|()| server(&Tenant::new(Limits::default(), node.clone())));
        let first = write(&one, b"").await;
        let _second = write(&two, b"").await;
        until("both", || one.seen.connections() + two.seen.connections() == 2).await;
        assert!(closed(write(&one, b"").await).await.is_empty());
        assert_eq!(one.seen.refused("node connections"), 1);
        drop(first);
        until("room", || one.seen.connections() == 0).await;
        is_served(&two).await;
    }
}

#[tokio::test]
async fn all_connections_of_a_pod_have_so_many_streams() {
    let pod = tenant(Limits { all_streams: 3, ..Limits::default() });
    let sockets = [server(&pod), server(&pod)];
    let mut held = Vec::new();
    for number in 0..3 {
        held.push(fetch(&sockets[number % 2]).await.unwrap());
    }
    let status = fetch(&sockets[0]).await.unwrap_err();
    assert_eq!(status.code(), Code::ResourceExhausted);
    assert!(status.message().contains("3 streams") && status.message().contains("streamsPerPod"), "{status}");
    assert_eq!(sockets[0].seen.refused("streams"), 1);
    is_served(&server(&tenant(Limits::default()))).await;
    held.pop();
    until("room", || sockets.iter().map(|s| s.seen.streams()).sum::<i64>() == 2).await;
    is_served(&sockets[1]).await;
}

/// Each may keep a response of its own in memory, which its client does not take.
#[tokio::test]
async fn reflection_is_for_a_few_at_a_time() {
    let pod = tenant(Limits::default());
    let sockets = [server(&pod), server(&pod)];
    let ask = async |server: &Server| {
        let message = Some(MessageRequest::ListServices(String::new()));
        let request = ServerReflectionRequest { host: String::new(), message_request: message };
        // Open until the sender is dropped.
        let (sender, requests) = tokio::sync::mpsc::channel(1);
        sender.send(request).await.unwrap();
        let requests = tokio_stream::wrappers::ReceiverStream::new(requests);
        let mut client = ServerReflectionClient::new(server.channel().await);
        soon(client.server_reflection_info(requests)).await.map(|response| (sender, response.into_inner()))
    };
    let mut held = Vec::new();
    for number in 0..4 {
        held.push(ask(&sockets[number % 2]).await.unwrap());
    }
    let status = ask(&sockets[0]).await.map(|_| ()).unwrap_err();
    assert_eq!(status.code(), Code::ResourceExhausted, "{status}");
    assert_eq!(sockets[0].seen.refused("reflection"), 1);
    // What the pod is here for goes on, and so does another's reflection.
    is_served(&sockets[0]).await;
    ask(&server(&tenant(Limits::default()))).await.unwrap();
    held.clear();
    let again = async {
        while ask(&sockets[1]).await.is_err() {
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
    };
    soon(again).await;
}

/// PINGs are answered one by one, so that what was read can be counted. WINDOW_UPDATE and SETTINGS are no
/// other bytes.
#[tokio::test]
async fn frames_without_end_are_not_read() {
    let pod = tenant(SLOW);
    let sockets = [server(&pod), server(&pod)];
    let other = server(&tenant(SLOW));
    let pings: Vec<u8> = (0..40_000).flat_map(|_| frame(6, 0, 0, &[7; 8])).collect();
    let bytes = [preface(None), pings].concat();
    let mut pongs = 0;
    for socket in &sockets {
        let mut stream = UnixStream::connect(&socket.path).await.unwrap();
        let (mut answers, mut requests) = stream.split();
        // It cannot be written to its end, for nothing reads it.
        let flood = tokio::io::AsyncWriteExt::write_all(&mut requests, &bytes);
        let mut received = Vec::new();
        let throttled = until("the end of the burst", || socket.seen.is_throttled());
        tokio::select! {
            _ = flood => panic!("all of it was read"),
            _ = answers.read_to_end(&mut received) => panic!("closed"),
            () = throttled => {}
        }
        let frames = received.len() / 17;
        assert!(frames > 0 || pongs > 0, "nothing was read at all");
        pongs += frames;
    }
    // The burst, and what a connection has read when it is told to wait.
    let most = (SLOW.burst as usize + sockets.len() * 4096) / 17;
    assert!(pongs <= most, "{pongs} frames were read, of {most}");
    is_served(&other).await;
    // Its end does not wait for its turn.
    for socket in sockets {
        socket.cancel.cancel();
        soon(socket.task).await.unwrap();
    }
}

/// A request costs more than the few bytes that it can be said in.
#[tokio::test]
async fn requests_without_end_are_not_answered() {
    let pod = tenant(SLOW);
    let socket = Server::start_of(&pod, IdentityState::Denied, DEADLINE);
    let calls: Vec<u8> = (0..60).flat_map(|number| call(number * 2 + 1)).collect();
    let mut bytes = preface(None);
    bytes.extend(calls);
    assert!(bytes.len() < SLOW.burst as usize, "bytes alone would be within the burst: {}", bytes.len());
    let _stream = write(&socket, &bytes).await;
    until("the end of the burst", || socket.seen.is_throttled()).await;
    // 24 of them are the burst; a connection has read 4 KB more when it is told to wait.
    assert!(socket.seen.refused("denied") <= 56, "{}", socket.seen.refused("denied"));
    is_served(&server(&tenant(SLOW))).await;
}

#[tokio::test]
async fn connections_without_end_wait_in_the_queue() {
    let pod = tenant(Limits { burst: 8 * 1024, ..SLOW });
    let sockets = [server(&pod), server(&pod)];
    let mut held = Vec::new();
    for number in 0..100 {
        held.push(UnixStream::connect(&sockets[number % 2].path).await.unwrap());
    }
    until("the end of the burst", || sockets.iter().all(|s| s.seen.is_throttled())).await;
    let open: i64 = sockets.iter().map(|s| s.seen.connections()).sum();
    assert!((1..=10).contains(&open), "{open}");
    assert!(sockets.iter().all(|s| s.seen.refused.lock().unwrap().is_empty()), "none is refused");
    is_served(&server(&tenant(SLOW))).await;
    for socket in sockets {
        socket.cancel.cancel();
        soon(socket.task).await.unwrap();
    }
}

#[tokio::test]
async fn a_pod_that_is_shed_loses_every_connection_and_comes_back() {
    let (pod, neighbour) = (tenant(Limits::default()), tenant(Limits::default()));
    let sockets = [server(&pod), server(&pod)];
    let other = server(&neighbour);
    let mut kept = fetch(&other).await.unwrap();
    soon(kept.message()).await.unwrap().unwrap();
    let client = client(&sockets[0]).await;
    let mut streams = Vec::new();
    for _ in 0..3 {
        let mut client = client.clone();
        let request = with_header(X509svidRequest {});
        streams.push(soon(client.fetch_x509svid(request)).await.unwrap().into_inner());
    }
    let idle = write(&sockets[1], &preface(None)).await;
    until("all", || sockets[1].seen.connections() == 1).await;
    assert!(pod.weight() > neighbour.weight());
    assert_eq!(pod.shed(), 2);
    closed(idle).await;
    for stream in &mut streams {
        let mut last = soon(stream.message()).await;
        if matches!(last, Ok(Some(_))) {
            last = soon(stream.message()).await;
        }
        assert!(!matches!(last, Ok(Some(_))), "{last:?}");
    }
    until("none", || sockets.iter().all(|s| s.seen.connections() == 0)).await;
    assert!(sockets.iter().all(|s| s.seen.refused("memory") == 1));
    assert_eq!(other.seen.connections(), 1);
    is_served(&sockets[0]).await;
    other.served.send_replace(ready(&svid("b")));
    assert_eq!(id(&soon(kept.message()).await.unwrap().unwrap()), "b");
}

/// What a client does not take counts, and is forgotten with its connection.
#[tokio::test]
async fn an_account_ends_at_nothing() {
    let pod = tenant(Limits::default());
    let socket = server(&pod);
    let mut stream = fetch(&socket).await.unwrap();
    soon(stream.message()).await.unwrap().unwrap();
    let honest = pod.weight();
    // Its window is closed after the first bytes.
    let slow = write(&socket, &[preface(None), frame(4, 0, 0, &[0, 4, 0, 0, 0, 1]), call(1)].concat()).await;
    until("an answer", || socket.seen.streams() == 2).await;
    until("that it is queued", || pod.weight() > 2 * honest).await;
    drop((slow, stream));
    until("nothing", || pod.weight() == 0).await;
}
