//! How many SVIDs the embedded authority issues per second of one core's time, end to end: key, request,
//! proof of possession, certificate, and the checks of `X509Svid::new`.
//!
//! ```text
//! cargo run --release -p seamount-authority --example issuance
//! ```
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a program for people that measures")]

use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};
use seamount_authority::{Embedded, EmbeddedConfig, IdTemplate, Workload, new_key_and_csr};
use seamount_identity::{KeyType, X509Svid};

fn main() {
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
        pod_name: "cart-1".into(),
        pod_uid: "u".into(),
        node: "n".into(),
    };
    let (_, fixed) = new_key_and_csr(KeyType::EcP256).unwrap();
    measure("key and request", || {
        new_key_and_csr(KeyType::EcP256).unwrap();
    });
    let (key, csr) = new_key_and_csr(KeyType::EcP256).unwrap();
    let chain = authority.issue(&csr, &workload).unwrap();
    measure("checks", || {
        X509Svid::new(chain.clone(), key.clone()).unwrap();
    });
    measure("authority (verify request, sign)", || {
        authority.issue(&fixed, &workload).unwrap();
    });
    measure("end to end (with key, request, checks)", || {
        let (key, csr) = new_key_and_csr(KeyType::EcP256).unwrap();
        X509Svid::new(authority.issue(&csr, &workload).unwrap(), key).unwrap();
    });
}

/// The time that this thread was given, so that a busy machine does not change the result.
fn cpu() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(time.tv_sec.unsigned_abs(), u32::try_from(time.tv_nsec).unwrap())
}

fn measure(what: &str, mut work: impl FnMut()) {
    let begin = cpu();
    let mut done = 0_u32;
    while cpu() - begin < Duration::from_secs(1) {
        work();
        done += 1;
    }
    println!("{what}: {:.0}/s", f64::from(done) / (cpu() - begin).as_secs_f64());
}
