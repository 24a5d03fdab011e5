//! What open streams cost: resident memory per stream, the time to the first message, and how long an update
//! takes to reach all of them. The clients are bare sockets in the same process, which cost next to nothing.
//!
//! ```text
//! cargo run --release -p seamount-workload-api --example streams -- 4000
//! ```
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::print_stdout,
    reason = "a program for people that measures"
)]

use std::{
    io::{Read as _, Write as _},
    os::unix::net::UnixStream,
    sync::Arc,
    time::{Duration, Instant},
};

use seamount_authority::{Authority as _, Embedded, EmbeddedConfig, IdTemplate, Workload, new_key_and_csr};
use seamount_identity::{KeyType, X509Svid};
use seamount_testkit::http2;
use seamount_workload_api::{IdentityState, Limits, Response, Unobserved, serve};
use tokio::{net::UnixListener, sync::watch};
use tokio_util::sync::CancellationToken;

fn resident() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<usize>().unwrap() * 1024
}

/// Preface, settings, and one FetchX509SVID call.
fn request() -> Vec<u8> {
    [http2::preface(&[]), http2::grpc_call(1, "/SpiffeWorkloadAPI/FetchX509SVID", &[])].concat()
}

/// Reads until a DATA frame has come completely.
fn read_data(stream: &mut UnixStream) {
    loop {
        let mut head = [0; 9];
        stream.read_exact(&mut head).unwrap();
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize;
        let mut payload = vec![0; length];
        stream.read_exact(&mut payload).unwrap();
        if head[3] == 0 {
            return;
        }
    }
}

fn main() {
    let count: usize = std::env::args().nth(1).map_or(1000, |text| text.parse().unwrap());
    let trust_domain = "example.org".parse().unwrap();
    let authority = Embedded::new(EmbeddedConfig {
        template: IdTemplate::parse(IdTemplate::DEFAULT, &trust_domain).unwrap(),
        trust_domain,
        key_type: KeyType::EcP256,
        ca_ttl: Duration::from_secs(24 * 3600),
        svid_ttl: Duration::from_secs(3600),
        directory: None,
    })
    .unwrap();
    let workload = Workload {
        namespace: "shop".into(),
        service_account: "cart".into(),
        pod_name: "p".into(),
        pod_uid: "u".into(),
        node: "n".into(),
    };
    let ready = || {
        let (key, csr) = new_key_and_csr(KeyType::EcP256).unwrap();
        let svid = X509Svid::new(authority.issue(&csr, &workload).unwrap(), key).unwrap();
        IdentityState::Ready(Arc::new(Response::new(&[Arc::new(svid)], &authority.bundles().borrow())))
    };

    let path = std::env::temp_dir().join(format!("streams-{}.sock", std::process::id()));
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let (served, receiver) = watch::channel(ready());
    let cancel = CancellationToken::new();
    let listener = runtime.block_on(async { UnixListener::bind(&path).unwrap() });
    // Nothing waits for its turn here.
    let limits = Limits {
        connections: count,
        all_streams: count,
        burst: u32::MAX,
        rate: u32::MAX,
        ..Limits::default()
    };
    let pending = Duration::from_secs(1);
    let serving =
        runtime.spawn(serve(listener, receiver, limits, pending, Arc::new(Unobserved), cancel.clone()));

    let request = request();
    let before = resident();
    let begin = Instant::now();
    let mut streams: Vec<UnixStream> = (0..count)
        .map(|_| {
            let mut stream = UnixStream::connect(&path).unwrap();
            stream.write_all(&request).unwrap();
            read_data(&mut stream);
            stream
        })
        .collect();
    let opened = begin.elapsed();
    println!("{count} streams: {:.2} KiB each", (resident() - before) as f64 / 1024.0 / count as f64);
    println!(
        "connect to first message, one after the other: {:.3} ms",
        opened.as_secs_f64() * 1e3 / count as f64
    );
    let begin = Instant::now();
    served.send_replace(ready());
    streams.iter_mut().for_each(read_data);
    println!("an update reached all after {:.1} ms", begin.elapsed().as_secs_f64() * 1e3);
    let begin = Instant::now();
    cancel.cancel();
    runtime.block_on(serving).unwrap();
    println!("all cut after {:.1} ms", begin.elapsed().as_secs_f64() * 1e3);
    let _ = std::fs::remove_file(path);
}
