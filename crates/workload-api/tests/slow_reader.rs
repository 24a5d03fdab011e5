//! A client that never reads costs the server one response, however often it changes, and holds no other
//! client up. Alone in its process, because it measures the process's memory.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    missing_docs,
    dead_code,
    reason = "a test may panic, and uses only a part of what it shares with the others"
)]

use std::sync::Arc;

use seamount_identity::X509Bundle;
use seamount_proto::workload::{X509svidRequest, spiffe_workload_api_client::SpiffeWorkloadApiClient};
use seamount_workload_api::{IdentityState, Response};
use tonic::Request;

#[path = "workload_api/raw.rs"]
mod raw;
#[path = "workload_api/support.rs"]
mod support;

use raw::{call, preface, write};
use support::*;

/// Resident memory of this process in bytes.
fn resident() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<usize>().unwrap() * 1024
}

/// A federated bundle of many certificates makes every response large.
fn large() -> X509Bundle {
    let key = rcgen::KeyPair::generate().unwrap();
    let certificates = (0..256).map(|_| {
        let mut params = rcgen::CertificateParams::default();
        params.distinguished_name.push(rcgen::DnType::OrganizationName, "x".repeat(3000));
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let serial: [u8; 16] =
            std::array::from_fn(|_| (seamount_identity::rotation::random_jitter() * 127.0) as u8);
        params.serial_number = Some(rcgen::SerialNumber::from_slice(&serial));
        params.self_signed(&key).unwrap().der().clone()
    });
    X509Bundle::new("large.org".parse().unwrap(), certificates).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn memory_is_bounded_and_others_are_served() {
    const CHANGES: usize = 40;
    let set = (*bundles()).clone().with_federated(large()).unwrap();
    let size = set.federated().map(|bundle| bundle.der().len()).sum::<usize>();
    assert!(size > 1_500_000, "{size}");
    let respond = |name: &str| IdentityState::Ready(Arc::new(Response::new(&[svid(name)], &set)));

    let server = Server::start(respond("s0"));
    // One stalls on HTTP/2's windows, the others, with endless windows, on the socket; with several streams.
    let small = write(&server, &[preface(None), call(1)].concat()).await;
    let mut slow = vec![small];
    for _ in 0..3 {
        let calls: Vec<u8> = (0..4).flat_map(|stream| call(stream * 2 + 1)).collect();
        slow.push(write(&server, &[preface(Some(0x7fff_ffff)), calls].concat()).await);
    }
    until("all streams", || server.seen.streams() == 13).await;

    let channel = server.channel().await;
    let mut client = SpiffeWorkloadApiClient::new(channel).max_decoding_message_size(16 * 1024 * 1024);
    let mut request = Request::new(X509svidRequest {});
    request.metadata_mut().insert("workload.spiffe.io", "true".parse().unwrap());
    let mut stream = soon(client.fetch_x509svid(request)).await.unwrap().into_inner();
    soon(stream.message()).await.unwrap().unwrap();
    // What the first rounds need stays allocated.
    let mut before = 0;
    for change in 1..=CHANGES {
        let name = format!("s{change}");
        server.served.send_replace(respond(&name));
        loop {
            let message = soon(stream.message()).await.unwrap().unwrap();
            if message.svids[0].spiffe_id.ends_with(&format!("/{name}")) {
                break;
            }
        }
        if change == 10 {
            before = resident();
        }
    }
    let grown = resident().saturating_sub(before);
    println!("{CHANGES} changes of {size} bytes to 13 streams that are not read: {} KiB more", grown / 1024);
    // 30 responses kept for each of 13 streams would be 640 MB; kept once, 49 MB.
    assert!(grown < 24 * 1024 * 1024, "{grown}");
    assert_eq!(server.seen.streams(), 14);
    server.cancel.cancel();
    soon(server.task).await.unwrap();
    drop(slow);
}
