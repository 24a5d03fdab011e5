//! How many SVIDs the embedded authority issues per second on one core, end to end: key, request, proof of
//! possession, certificate, and the checks of `X509Svid::new`.
//!
//! ```text
//! cargo run --release -p seamount-identity --example issuance
//! ```
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a program for people that measures")]

use std::time::{Duration, Instant};

use seamount_identity::{
    X509Svid,
    authority::{Embedded, EmbeddedConfig, IdTemplate, KeyType, Workload, new_key_and_csr},
};

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
    measure("authority alone (verify request, sign)", || {
        authority.issue(&fixed, &workload).unwrap();
    });
    measure("end to end (with key, request, checks)", || {
        let (key, csr) = new_key_and_csr(KeyType::EcP256).unwrap();
        X509Svid::new(authority.issue(&csr, &workload).unwrap(), key).unwrap();
    });
}

fn measure(what: &str, mut work: impl FnMut()) {
    let begin = Instant::now();
    let mut done = 0_u32;
    while begin.elapsed() < Duration::from_secs(3) {
        work();
        done += 1;
    }
    println!("{what}: {:.0}/s", f64::from(done) / begin.elapsed().as_secs_f64());
}
