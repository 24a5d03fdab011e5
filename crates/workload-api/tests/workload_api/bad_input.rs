//! Requests that are wrong, and bytes that are no requests. After each the socket still works.

use std::time::Duration;

use proptest::prelude::*;
use seamount_workload_api::{IdentityState, Limits};

use crate::{
    grpc::{fetch, id},
    raw::*,
    support::*,
};

const GRPC: &str = "application/grpc";

async fn still_works(server: &Server) {
    let mut stream = fetch(server).await.unwrap();
    assert_eq!(id(&soon(stream.message()).await.unwrap().unwrap()), "a");
}

#[tokio::test]
async fn http_that_is_not_grpc() {
    let server = Server::start(ready(&svid("a")));
    let (http, grpc, _) = ask(&server, request("GET", FETCH, GRPC, b"")).await;
    assert_eq!((http, grpc.as_str()), (405, "13"));
    for content_type in ["application/json", "application/grpc-web", "text/html"] {
        let (http, grpc, _) = ask(&server, request("POST", FETCH, content_type, EMPTY)).await;
        assert_eq!((http, grpc.as_str()), (415, "3"), "{content_type}");
    }
    assert_eq!(server.seen.refused("http"), 4);
    still_works(&server).await;
}

#[tokio::test]
async fn unknown_paths() {
    let server = Server::start(ready(&svid("a")));
    for path in [
        "/",
        "/SpiffeWorkloadAPI/",
        "/SpiffeWorkloadAPI/FetchX509svid",
        "/SpiffeWorkloadAPI/FetchWITSVID",
        "/grpc.health.v1.Health/Nothing",
        "/a/b/c",
        "/%00",
    ] {
        let (http, grpc, _) = ask(&server, request("POST", path, GRPC, EMPTY)).await;
        assert_eq!((http, grpc.as_str()), (200, "12"), "{path}");
    }
}

#[tokio::test]
async fn broken_messages() {
    let server = Server::start(ready(&svid("a")));
    let large = [&[0, 0, 1, 0, 0][..], &[0; 0x1_0000]].concat();
    for (body, code, text) in [
        (&b""[..], "13", "no message"),
        (&[0, 0, 0], "13", "cut off"),
        (&[0, 0, 0, 0, 9, 1], "13", "cut off"),
        (&[1, 0, 0, 0, 0], "12", "compressed"),
        (&[7, 0, 0, 0, 0], "13", "not framed"),
        (&[0, 0, 0, 0, 0, 0, 0, 0, 0, 0], "13", "more than one"),
        (&[0, 0, 0, 0, 3, 0xff, 0xff, 0xff], "13", "cannot be decoded"),
        (&[0, 0xff, 0xff, 0xff, 0xff], "8", "larger than"),
        (&large, "8", "larger than"),
    ] {
        let (http, grpc, message) = ask(&server, request("POST", FETCH, GRPC, body)).await;
        assert_eq!((http, grpc.as_str()), (200, code), "{text}");
        assert!(message.contains(text), "{message}");
    }
    // Unknown fields are no error.
    let mut stream = write(&server, &preface(None)).await;
    let mut bytes = headers(1, &[]);
    bytes.extend(frame(0, 1, 1, &[0, 0, 0, 0, 2, 0x50, 1]));
    tokio::io::AsyncWriteExt::write_all(&mut stream, &bytes).await.unwrap();
    until("served", || server.seen.streams() == 1).await;
    still_works(&server).await;
}

#[tokio::test]
async fn bytes_that_are_no_http_2() {
    let server = Server::start(ready(&svid("a")));
    for bytes in [
        &b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"[..],
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03 this is how TLS begins, more or less",
        &[0; 100],
        &[0xff; 5000],
        b"PRI * HTTP/2.0\r\n\r\nXX\r\n\r\n",
    ] {
        closed(write(&server, bytes).await).await;
    }
    until("all closed", || server.seen.connections() == 0).await;
    still_works(&server).await;
}

#[tokio::test]
async fn frames_that_break_http_2() {
    let server = Server::start(ready(&svid("a")));
    let broken: [Vec<u8>; 6] = [
        frame(0, 0, 1, b"data before headers"),
        frame(1, 4, 1, &[0xff; 64]),
        frame(1, 4, 2, &[0x83]),
        frame(8, 0, 0, &[0, 0, 0, 0]),
        frame(5, 4, 1, &[0; 8]),
        frame(6, 0, 0, b"short"),
    ];
    for bytes in broken {
        let answer = closed(write(&server, &[preface(None), bytes].concat()).await).await;
        assert!(!answer.is_empty(), "a GOAWAY says why");
    }
    still_works(&server).await;
}

/// 8 KiB of header fields is all that a request may have; the stream is refused, not served.
#[tokio::test]
async fn header_lists_are_bounded() {
    let server = Server::start(ready(&svid("a")));
    let value = "v".repeat(120);
    let extra: Vec<_> = (0..100).map(|_| ("x-filler", value.as_str())).collect();
    let mut bytes = preface(None);
    bytes.extend(headers(1, &extra));
    bytes.extend(frame(0, 1, 1, EMPTY));
    let _stream = write(&server, &bytes).await;
    still_works(&server).await;
    assert_eq!(server.seen.streams(), 1, "only the good one");
}

/// A client that closes in the middle of everything leaves nothing behind.
#[tokio::test]
async fn clients_that_go_away() {
    let server = Server::start_with(IdentityState::Pending, Limits::default(), DEADLINE);
    let whole = [preface(None), call(1)].concat();
    for length in [0, 1, 10, 24, 30, whole.len() - 3, whole.len()] {
        drop(write(&server, &whole[..length]).await);
    }
    until("all closed", || server.seen.connections() == 0).await;
    server.served.send_replace(ready(&svid("a")));
    for _ in 0..20 {
        drop(write(&server, &whole).await);
    }
    until("all closed", || (server.seen.connections(), server.seen.streams()) == (0, 0)).await;
    still_works(&server).await;
}

#[test]
fn no_bytes_disturb_the_server() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let server = runtime.block_on(async { Server::start(ready(&svid("a"))) });
    let bytes = proptest::collection::vec(any::<u8>(), 0..300);
    let config = ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() };
    let mut runner = proptest::test_runner::TestRunner::new(config);
    runner
        .run(&(any::<bool>(), bytes), |(valid_preface, bytes)| {
            runtime.block_on(async {
                let all = if valid_preface { [preface(None), bytes].concat() } else { bytes };
                drop(write(&server, &all).await);
                tokio::time::sleep(Duration::from_millis(1)).await;
            });
            Ok(())
        })
        .unwrap();
    runtime.block_on(still_works(&server));
}
