//! Codes, texts and order, through tonic (Workload Endpoint §4, Workload API §5, and what SPIRE's agent
//! does).

use std::{sync::Arc, time::Duration};

use seamount_proto::workload::{
    JwtBundlesRequest, JwtsvidRequest, ValidateJwtsvidRequest, X509BundlesRequest, X509svidRequest,
    X509svidResponse, spiffe_workload_api_client::SpiffeWorkloadApiClient,
};
use seamount_workload_api::{IdentityState, Limits, Response};
use tonic::{Code, Request, Status, Streaming, transport::Channel};
use tonic_health::pb::{
    HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient,
};
use tonic_reflection::pb::{v1, v1alpha};

use crate::support::*;

pub fn with_header<T>(message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.metadata_mut().insert("workload.spiffe.io", "true".parse().unwrap());
    request
}

pub async fn client(server: &Server) -> SpiffeWorkloadApiClient<Channel> {
    SpiffeWorkloadApiClient::new(server.channel().await)
}

pub async fn fetch(server: &Server) -> Result<Streaming<X509svidResponse>, Status> {
    let mut client = client(server).await;
    soon(client.fetch_x509svid(with_header(X509svidRequest {}))).await.map(|r| r.into_inner())
}

pub fn id(response: &X509svidResponse) -> &str {
    response.svids[0].spiffe_id.rsplit('/').next().unwrap()
}

#[tokio::test]
async fn first_message_at_once_then_full_sets_on_change_only() {
    let server = Server::start(ready(&svid("a")));
    let mut client = client(&server).await;
    let mut svids = soon(client.fetch_x509svid(with_header(X509svidRequest {}))).await.unwrap().into_inner();
    let mut bundles_stream =
        soon(client.fetch_x509_bundles(with_header(X509BundlesRequest {}))).await.unwrap().into_inner();
    let first = soon(svids.message()).await.unwrap().unwrap();
    assert_eq!(id(&first), "a");
    assert_eq!(first.svids[0].bundle, bundles().own().der());
    assert!(first.federated_bundles.is_empty() && first.crl.is_empty());
    let set = soon(bundles_stream.message()).await.unwrap().unwrap();
    assert_eq!(set.bundles.keys().collect::<Vec<_>>(), ["spiffe://example.org"]);
    assert_eq!(server.seen.streams(), 2);

    // The same again is no change; a new SVID is none for the bundles.
    let same = svid("b");
    for served in [ready(&same), ready(&same), ready(&svid("c"))] {
        server.served.send_replace(served);
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(id(&soon(svids.message()).await.unwrap().unwrap()), "b");
    assert_eq!(id(&soon(svids.message()).await.unwrap().unwrap()), "c");
    let more = tokio::time::timeout(Duration::from_millis(200), bundles_stream.message()).await;
    assert!(more.is_err(), "bundles did not change: {more:?}");
    drop((svids, bundles_stream));
    until("streams end", || server.seen.streams() == 0).await;
}

#[tokio::test]
async fn security_header_exactly_once_and_exactly_true() {
    let server = Server::start(ready(&svid("a")));
    let mut client = client(&server).await;
    let mut requests = vec![Request::new(X509svidRequest {})];
    for values in [&["True"][..], &["1"], &["true "], &[""], &["true", "true"], &["false", "true"]] {
        let mut request = Request::new(X509svidRequest {});
        for value in values {
            request.metadata_mut().append("workload.spiffe.io", value.parse().unwrap());
        }
        requests.push(request);
    }
    let count = requests.len();
    for request in requests {
        let shown = format!("{:?}", request.metadata());
        let status = soon(client.fetch_x509svid(request)).await.expect_err("refused");
        // HTTP strips the space at the end of a value in some libraries, not in this one.
        assert_eq!(status.code(), Code::InvalidArgument, "{shown}");
        assert_eq!(status.message(), "security header missing from request");
    }
    assert_eq!(server.seen.refused("security header"), count);
    let status = soon(client.fetch_x509_bundles(X509BundlesRequest {})).await.expect_err("refused");
    assert_eq!(status.code(), Code::InvalidArgument);
    let status = soon(client.fetch_jwtsvid(JwtsvidRequest::default())).await.expect_err("refused");
    assert_eq!(status.code(), Code::InvalidArgument);
}

#[tokio::test]
async fn denied_before_and_in_the_middle() {
    let server = Server::start(IdentityState::Denied);
    let status = fetch(&server).await.expect_err("refused");
    assert_eq!((status.code(), status.message()), (Code::PermissionDenied, "no identity issued"));

    server.served.send_replace(ready(&svid("a")));
    let mut stream = fetch(&server).await.unwrap();
    soon(stream.message()).await.unwrap().unwrap();
    server.served.send_replace(IdentityState::Denied);
    let status = soon(stream.message()).await.unwrap_err();
    assert_eq!((status.code(), status.message()), (Code::PermissionDenied, "no identity issued"));
    let empty = Response::new(&[], &bundles());
    server.served.send_replace(IdentityState::Ready(Arc::new(empty)));
    let status = fetch(&server).await.expect_err("refused");
    assert_eq!(status.code(), Code::PermissionDenied, "no SVID is no identity");
}

#[tokio::test]
async fn pending_streams_wait_and_are_then_served() {
    let server = Server::start(IdentityState::Pending);
    let mut client = client(&server).await;
    let call = tokio::spawn(async move {
        let mut stream = client.fetch_x509svid(with_header(X509svidRequest {})).await?.into_inner();
        stream.message().await
    });
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert!(!call.is_finished());
    server.served.send_replace(ready(&svid("a")));
    let message = soon(call).await.unwrap().unwrap().unwrap();
    assert_eq!(id(&message), "a");
}

#[tokio::test]
async fn pending_ends_with_unavailable() {
    let server = Server::start_with(IdentityState::Pending, Limits::default(), Duration::from_millis(50));
    let status = fetch(&server).await.expect_err("refused");
    assert_eq!(status.code(), Code::Unavailable);
    assert!(status.message().contains("not ready yet"));
    assert_eq!(server.seen.refused("pending"), 1);
    let refused = Server::start(IdentityState::Pending);
    let waiting = tokio::spawn({
        let mut client = client(&refused).await;
        async move { client.fetch_x509svid(with_header(X509svidRequest {})).await.err() }
    });
    tokio::time::sleep(Duration::from_millis(50)).await;
    refused.served.send_replace(IdentityState::Denied);
    assert_eq!(soon(waiting).await.unwrap().unwrap().code(), Code::PermissionDenied);
}

#[tokio::test]
async fn unavailable_refuses_new_streams_and_leaves_old_ones() {
    let server = Server::start(ready(&svid("a")));
    let mut stream = fetch(&server).await.unwrap();
    soon(stream.message()).await.unwrap().unwrap();
    server.served.send_replace(IdentityState::Unavailable("the authority does not answer: 5 % lost".into()));
    let status = fetch(&server).await.expect_err("refused");
    assert_eq!(status.code(), Code::Unavailable);
    assert_eq!(status.message(), "the authority does not answer: 5 % lost");
    server.served.send_replace(IdentityState::Pending);
    server.served.send_replace(ready(&svid("b")));
    assert_eq!(id(&soon(stream.message()).await.unwrap().unwrap()), "b");
}

#[tokio::test]
async fn the_sender_going_ends_streams_with_unavailable() {
    let server = Server::start(ready(&svid("a")));
    let mut stream = fetch(&server).await.unwrap();
    soon(stream.message()).await.unwrap().unwrap();
    drop(server.served);
    assert_eq!(soon(stream.message()).await.unwrap_err().code(), Code::Unavailable);
}

#[tokio::test]
async fn jwt_and_unknown_methods_are_unimplemented() {
    let server = Server::start(ready(&svid("a")));
    let mut client = client(&server).await;
    let statuses = [
        soon(client.fetch_jwtsvid(with_header(JwtsvidRequest::default()))).await.err(),
        soon(client.fetch_jwt_bundles(with_header(JwtBundlesRequest {}))).await.err(),
        soon(client.validate_jwtsvid(with_header(ValidateJwtsvidRequest::default()))).await.err(),
    ];
    for status in statuses {
        assert_eq!(status.expect("refused").code(), Code::Unimplemented);
    }
    // A service that is not there at all.
    let mut csi = seamount_proto::csi::identity_client::IdentityClient::new(server.channel().await);
    let status = soon(csi.probe(seamount_proto::csi::ProbeRequest {})).await.expect_err("refused");
    assert_eq!(status.code(), Code::Unimplemented);
    assert_eq!(server.seen.refused("method"), 4);
}

#[tokio::test]
async fn health_tells_whether_there_is_an_answer() {
    let server = Server::start(IdentityState::Pending);
    let mut health = HealthClient::new(server.channel().await);
    let mut ask = async |service: &str| {
        let request = HealthCheckRequest { service: service.into() };
        soon(health.check(request)).await.map(|reply| reply.into_inner().status())
    };
    assert_eq!(ask("").await.unwrap(), ServingStatus::NotServing);
    server.served.send_replace(ready(&svid("a")));
    assert_eq!(ask("").await.unwrap(), ServingStatus::Serving);
    assert_eq!(ask("SpiffeWorkloadAPI").await.unwrap(), ServingStatus::Serving);
    server.served.send_replace(IdentityState::Unavailable("x".into()));
    assert_eq!(ask("").await.unwrap(), ServingStatus::NotServing);
    server.served.send_replace(IdentityState::Denied);
    assert_eq!(ask("").await.unwrap(), ServingStatus::Serving, "as SPIRE's agent: it works");
    assert_eq!(ask("nobody").await.unwrap_err().code(), Code::NotFound);

    let mut watch = soon(health.watch(HealthCheckRequest::default())).await.unwrap().into_inner();
    assert_eq!(soon(watch.message()).await.unwrap().unwrap().status(), ServingStatus::Serving);
    server.served.send_replace(IdentityState::Pending);
    assert_eq!(soon(watch.message()).await.unwrap().unwrap().status(), ServingStatus::NotServing);
    // The same status is no news, and a stream that carries no identity is not counted.
    server.served.send_replace(IdentityState::Unavailable("x".into()));
    tokio::time::sleep(Duration::from_millis(50)).await;
    server.served.send_replace(ready(&svid("a")));
    assert_eq!(soon(watch.message()).await.unwrap().unwrap().status(), ServingStatus::Serving);
    assert_eq!(server.seen.streams(), 0);
    let unknown = HealthCheckRequest { service: "nobody".into() };
    let mut watch = soon(health.watch(unknown)).await.unwrap().into_inner();
    assert_eq!(soon(watch.message()).await.unwrap().unwrap().status(), ServingStatus::ServiceUnknown);
}

#[tokio::test]
async fn reflection_lists_the_services_in_both_versions() {
    let server = Server::start(IdentityState::Pending);
    let expected = ["SpiffeWorkloadAPI", "grpc.health.v1.Health"];

    let mut client = v1::server_reflection_client::ServerReflectionClient::new(server.channel().await);
    let ask = |message| v1::ServerReflectionRequest { host: String::new(), message_request: Some(message) };
    use v1::server_reflection_request::MessageRequest as Ask;
    let requests = tokio_stream::iter([
        ask(Ask::ListServices(String::new())),
        ask(Ask::FileContainingSymbol("SpiffeWorkloadAPI.FetchX509SVID".into())),
    ]);
    let mut replies = soon(client.server_reflection_info(requests)).await.unwrap().into_inner();
    use v1::server_reflection_response::MessageResponse as Reply;
    let Some(Reply::ListServicesResponse(list)) =
        soon(replies.message()).await.unwrap().unwrap().message_response
    else {
        panic!("no list");
    };
    for name in expected {
        assert!(list.service.iter().any(|service| service.name == name), "{list:?}");
    }
    let file = soon(replies.message()).await.unwrap().unwrap().message_response;
    assert!(matches!(file, Some(Reply::FileDescriptorResponse(_))), "{file:?}");

    let mut client = v1alpha::server_reflection_client::ServerReflectionClient::new(server.channel().await);
    use v1alpha::server_reflection_request::MessageRequest as AskAlpha;
    use v1alpha::server_reflection_response::MessageResponse as ReplyAlpha;
    let requests = tokio_stream::iter([v1alpha::ServerReflectionRequest {
        host: String::new(),
        message_request: Some(AskAlpha::ListServices(String::new())),
    }]);
    let mut replies = soon(client.server_reflection_info(requests)).await.unwrap().into_inner();
    let Some(ReplyAlpha::ListServicesResponse(list)) =
        soon(replies.message()).await.unwrap().unwrap().message_response
    else {
        panic!("no list");
    };
    assert!(list.service.iter().any(|service| service.name == expected[0]), "{list:?}");
}

#[tokio::test]
async fn cancelling_closes_everything_before_it_returns() {
    let server = Server::start(ready(&svid("a")));
    let mut streams = Vec::new();
    for _ in 0..8 {
        let mut stream = fetch(&server).await.unwrap();
        soon(stream.message()).await.unwrap().unwrap();
        streams.push(stream);
    }
    // One that waits, one that only connected.
    let _silent = tokio::net::UnixStream::connect(&server.path).await.unwrap();
    until("all open", || server.seen.connections() == 9).await;
    assert_eq!(server.seen.streams(), 8);
    server.cancel.cancel();
    soon(server.task).await.unwrap();
    assert_eq!((server.seen.connections(), server.seen.streams()), (0, 0));
    for mut stream in streams {
        assert!(!matches!(soon(stream.message()).await, Ok(Some(_))));
    }
    assert!(tokio::net::UnixStream::connect(&server.path).await.is_err(), "the listener is closed too");
}

#[tokio::test]
async fn dropping_the_future_closes_everything_too() {
    let server = Server::start(ready(&svid("a")));
    let mut stream = fetch(&server).await.unwrap();
    soon(stream.message()).await.unwrap().unwrap();
    server.task.abort();
    assert!(!matches!(soon(stream.message()).await, Ok(Some(_))));
    until("all closed", || (server.seen.connections(), server.seen.streams()) == (0, 0)).await;
}
