//! What a client cannot make grow, and that it cannot hurt others.

use seamount_proto::workload::X509svidRequest;
use seamount_workload_api::Limits;

use crate::{
    grpc::{client, fetch, id, with_header},
    raw::*,
    support::*,
};

#[tokio::test]
async fn connections_beyond_the_limit_are_closed_and_slots_come_back() {
    let limits = Limits { connections: 4, ..Limits::default() };
    let server = Server::start_with(ready(&svid("a")), limits, DEADLINE);
    let mut held = Vec::new();
    for _ in 0..4 {
        let mut stream = fetch(&server).await.unwrap();
        soon(stream.message()).await.unwrap().unwrap();
        held.push(stream);
    }
    for _ in 0..100 {
        assert!(closed(write(&server, b"").await).await.is_empty());
    }
    assert_eq!(server.seen.refused("connections"), 100);
    assert_eq!(server.seen.connections(), 4);
    // Those within the limit are not disturbed.
    server.served.send_replace(ready(&svid("b")));
    for stream in &mut held {
        assert_eq!(id(&soon(stream.message()).await.unwrap().unwrap()), "b");
    }
    held.pop();
    until("a slot", || server.seen.connections() == 3).await;
    let mut stream = fetch(&server).await.unwrap();
    assert_eq!(id(&soon(stream.message()).await.unwrap().unwrap()), "b");
}

/// HTTP/2 holds further streams back at the client until one ends.
#[tokio::test]
async fn streams_of_one_connection_are_bounded() {
    let server = Server::start_with(
        ready(&svid("a")),
        Limits { connections: 4, streams: 8, ..Limits::default() },
        DEADLINE,
    );
    let client = client(&server).await;
    let mut held = Vec::new();
    for _ in 0..8 {
        let mut client = client.clone();
        held.push(soon(client.fetch_x509svid(with_header(X509svidRequest {}))).await.unwrap());
    }
    let mut ninth = client.clone();
    let ninth = tokio::spawn(async move { ninth.fetch_x509svid(with_header(X509svidRequest {})).await });
    tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    assert!(!ninth.is_finished());
    assert_eq!(server.seen.streams(), 8);
    held.pop();
    held.push(soon(ninth).await.unwrap().unwrap());

    // A client that ignores the setting is refused stream by stream.
    let mut bytes = preface(None);
    for stream in 0..200 {
        bytes.extend(call(stream * 2 + 1));
    }
    let _flood = write(&server, &bytes).await;
    until("served", || server.seen.streams() >= 16).await;
    tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    assert_eq!(server.seen.streams(), 16);
}

#[tokio::test]
async fn many_streams_all_get_every_change() {
    let server = Server::start(ready(&svid("a")));
    let mut streams = Vec::new();
    for _ in 0..8 {
        let client = client(&server).await;
        for _ in 0..32 {
            let mut client = client.clone();
            let request = with_header(X509svidRequest {});
            streams.push(soon(client.fetch_x509svid(request)).await.unwrap().into_inner());
        }
    }
    for name in ["a", "b"] {
        server.served.send_replace(ready(&svid(name)));
        for stream in &mut streams {
            while id(&soon(stream.message()).await.unwrap().unwrap()) != name {}
        }
    }
    assert_eq!(server.seen.streams(), 256);
}

/// Opening and resetting streams as fast as possible ("rapid reset") ends the connection or is survived;
/// either way the others do not notice.
#[tokio::test]
async fn rapid_resets_hurt_nobody_else() {
    let server = Server::start(ready(&svid("a")));
    let mut bytes = preface(None);
    for stream in (0..5000).map(|n| n * 2 + 1) {
        bytes.extend(call(stream));
        bytes.extend(frame(3, 0, stream, &[0, 0, 0, 8]));
    }
    let flood = write(&server, &bytes).await;
    let mut stream = fetch(&server).await.unwrap();
    assert_eq!(id(&soon(stream.message()).await.unwrap().unwrap()), "a");
    drop(flood);
    until("cleaned up", || (server.seen.connections(), server.seen.streams()) == (1, 1)).await;
}
