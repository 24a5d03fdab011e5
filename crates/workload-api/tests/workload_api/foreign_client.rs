//! Through the `spiffe` crate, a client that we did not write.

use futures_util::StreamExt as _;
use seamount_identity::X509Bundle;
use seamount_workload_api::{IdentityState, Response};
use spiffe::{WorkloadApiClient, WorkloadApiError, X509Source};
use std::sync::Arc;

use crate::support::*;

async fn client(server: &Server) -> WorkloadApiClient {
    soon(WorkloadApiClient::connect_to(server.uri())).await.unwrap()
}

#[tokio::test]
async fn fetches_svid_and_bundle() {
    let identity = svid("cart");
    let server = Server::start(ready(&identity));
    let client = client(&server).await;
    let context = soon(client.fetch_x509_context()).await.unwrap();
    let got = context.default_svid().unwrap();
    assert_eq!(got.spiffe_id().to_string(), "spiffe://example.org/ns/shop/sa/cart");
    assert_eq!(got.cert_chain().len(), 2);
    assert_eq!(got.private_key().as_bytes(), identity.key().expose_pkcs8_der());

    let set = soon(client.fetch_x509_bundles()).await.unwrap();
    let domain = "example.org".try_into().unwrap();
    let bundle = set.get(&domain).unwrap();
    let der: Vec<u8> = bundle.authorities().iter().flat_map(|a| a.as_bytes().to_vec()).collect();
    assert_eq!(der, bundles().own().der());
}

#[tokio::test]
async fn the_first_of_many_is_the_default_and_federated_bundles_come_along() {
    let other = X509Bundle::new("other.org".parse().unwrap(), {
        let key = rcgen::KeyPair::generate().unwrap();
        let mut params = rcgen::CertificateParams::default();
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        [params.self_signed(&key).unwrap().der().clone()]
    })
    .unwrap();
    let set = (*bundles()).clone().with_federated(other).unwrap();
    let response = Response::new(&[svid("first"), svid("second")], &set);
    assert_eq!(format!("{response:?}"), "Response(2 SVIDs)");
    let server = Server::start(IdentityState::Ready(Arc::new(response)));
    let client = client(&server).await;
    let svids = soon(client.fetch_all_x509_svids()).await.unwrap();
    let names: Vec<_> = svids.iter().map(|svid| svid.spiffe_id().path().to_string()).collect();
    assert_eq!(names, ["/ns/shop/sa/first", "/ns/shop/sa/second"]);
    assert_eq!(soon(client.fetch_x509_bundles()).await.unwrap().len(), 2);
    let context = soon(client.fetch_x509_context()).await.unwrap();
    assert!(context.bundle_set().get(&"other.org".try_into().unwrap()).is_some());
}

#[tokio::test]
async fn sees_every_rotation() {
    let server = Server::start(ready(&svid("a")));
    let client = client(&server).await;
    let mut stream = soon(client.stream_x509_contexts()).await.unwrap();
    for name in ["a", "b", "c"] {
        if name != "a" {
            server.served.send_replace(ready(&svid(name)));
        }
        let context = soon(stream.next()).await.unwrap().unwrap();
        let id = context.default_svid().unwrap().spiffe_id().to_string();
        assert_eq!(id, format!("spiffe://example.org/ns/shop/sa/{name}"));
    }
}

#[tokio::test]
async fn a_source_follows_and_survives_a_restart_of_the_server() {
    let server = Server::start(ready(&svid("a")));
    let source = soon(X509Source::builder().endpoint(server.uri()).build()).await.unwrap();
    assert_eq!(source.svid().unwrap().spiffe_id().path(), "/ns/shop/sa/a");
    server.served.send_replace(ready(&svid("b")));
    until("update", || source.svid().unwrap().spiffe_id().path() == "/ns/shop/sa/b").await;

    // The socket is bound again in the same directory, as after a restart of the agent.
    server.cancel.cancel();
    soon(server.task).await.unwrap();
    std::fs::remove_file(&server.path).unwrap();
    let listener = tokio::net::UnixListener::bind(&server.path).unwrap();
    let (_sender, served) = tokio::sync::watch::channel(ready(&svid("c")));
    let again = tokio::spawn(seamount_workload_api::serve(
        listener,
        served,
        Default::default(),
        DEADLINE,
        server.seen.clone(),
        Default::default(),
    ));
    until("reconnect", || source.svid().unwrap().spiffe_id().path() == "/ns/shop/sa/c").await;
    again.abort();
}

#[tokio::test]
async fn knows_the_text_of_a_refusal() {
    let server = Server::start(IdentityState::Denied);
    let client = client(&server).await;
    let error = soon(client.fetch_x509_svid()).await.unwrap_err();
    assert!(matches!(error, WorkloadApiError::NoIdentityIssued), "{error:?}");
    let error = soon(client.fetch_x509_bundles()).await.unwrap_err();
    assert!(matches!(error, WorkloadApiError::NoIdentityIssued), "{error:?}");
}
