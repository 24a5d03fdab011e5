//! N7: SVIDs issued per second of a core, from key to checked certificate, and what the library takes for it.

use std::time::{Duration, SystemTime};

use anyhow::Context as _;
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_ASN1, ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair, KeyPair as _, UnparsedPublicKey,
};
use seamount_authority::{
    Authority as _, Embedded, EmbeddedConfig, IdTemplate, NewKey, Workload, new_key_and_csr,
};
use seamount_identity::{KeyType, X509Svid};

use crate::node::{Config, Node, publish_all, unpublish_all};
use crate::report::Row;
use crate::usage;

use super::{Context, on_one_thread};

const RUNS: usize = 5;
const SPAN: Duration = Duration::from_millis(500);
const VOLUMES: usize = 1000;

pub fn measure(context: &Context) -> anyhow::Result<Vec<Row>> {
    let trust_domain = "example.org".parse()?;
    let authority = Embedded::new(EmbeddedConfig {
        template: IdTemplate::parse(IdTemplate::DEFAULT, &trust_domain)?,
        trust_domain,
        key_type: KeyType::EcP256,
        ca_ttl: Duration::from_secs(24 * 3600),
        svid_ttl: Duration::from_secs(3600),
        directory: None,
    })?;
    let workload = Workload {
        namespace: "shop".into(),
        service_account: "cart".into(),
        pod_name: "cart-1".into(),
        pod_uid: seamount_testkit::uuid_of("cart-1"),
        node: "node-1".into(),
    };
    let bundles = authority.bundles().borrow().clone();
    let mut direct = Row::at_least(
        "N7",
        "SVIDs per second and core, as the agent makes them: key, certificate, chain verified (P-256)",
        "/s",
        5000.0,
        10_000.0,
    );
    let mut proved = Row::beside("N7c", "the same with a signed request, as for an authority outside", "/s");
    let mut bare = Row::beside("N7d", "the library alone: a P-256 key, a signature, its verification", "/s");
    let mut parts = [
        Row::beside("N7e", "of that, the key", "µs"),
        Row::beside("N7f", "the signature", "µs"),
        Row::beside("N7g", "its verification", "µs"),
    ];
    for _ in 0..RUNS {
        direct.run(per_second(|| {
            let key = NewKey::generate(KeyType::EcP256)?;
            let chain = authority.issue_key(&key, &workload)?;
            X509Svid::new_verified(chain, key.into_private_key(), bundles.own(), SystemTime::now())
                .context("the chain does not verify")?;
            Ok(())
        })?);
        proved.run(per_second(|| {
            let (key, csr) = new_key_and_csr(KeyType::EcP256)?;
            X509Svid::new_verified(authority.issue(&csr, &workload)?, key, bundles.own(), SystemTime::now())
                .context("the chain does not verify")?;
            Ok(())
        })?);
        let [key, signature, verification] = library()?;
        bare.run(1.0 / (1.0 / key + 1.0 / signature + 1.0 / verification));
        for (row, rate) in parts.iter_mut().zip([key, signature, verification]) {
            row.run(1e6 / rate);
        }
    }
    let mut through = Row::beside(
        "N7b",
        "publishes with their SVIDs, c=16, per second of the agent's processor time (token check, records)",
        "/s",
    );
    on_one_thread(async {
        let node = Node::started(&context.programs, Config::default()).await?;
        let volumes = node.volumes("pod", VOLUMES)?;
        let clients = node.clients(16).await?;
        for _ in 0..RUNS {
            let before = usage::processor(node.agent()?)?;
            publish_all(&clients, &volumes).await?;
            node.settle().await?;
            let used = usage::processor(node.agent()?)?.saturating_sub(before);
            through.run(VOLUMES as f64 / used.as_secs_f64());
            unpublish_all(&clients, &volumes).await?;
        }
        Ok(())
    })?;
    let [key, signature, verification] = parts;
    Ok(vec![direct, through, proved, bare, key, signature, verification])
}

/// Keys, signatures and verifications per second, of a message as long as an SVID's leaf.
fn library() -> anyhow::Result<[f64; 3]> {
    let unspecified = |_| anyhow::anyhow!("the cryptographic library fails");
    let random = SystemRandom::new();
    let message = [0x5a; 400];
    let key = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_ASN1_SIGNING).map_err(unspecified)?;
    let signature = key.sign(&random, &message).map_err(unspecified)?;
    let public = UnparsedPublicKey::new(&ECDSA_P256_SHA256_ASN1, key.public_key());
    Ok([
        per_second(|| {
            EcdsaKeyPair::generate(&ECDSA_P256_SHA256_ASN1_SIGNING).map(drop).map_err(unspecified)
        })?,
        per_second(|| key.sign(&random, &message).map(drop).map_err(unspecified))?,
        per_second(|| public.verify(&message, signature.as_ref()).map_err(unspecified))?,
    ])
}

/// How often something can be done per second of this thread's processor time: others on the machine do not
/// count.
fn per_second(mut work: impl FnMut() -> anyhow::Result<()>) -> anyhow::Result<f64> {
    let begun = usage::this_thread();
    let mut done = 0_u32;
    loop {
        let used = usage::this_thread().saturating_sub(begun);
        if used >= SPAN {
            return Ok(f64::from(done) / used.as_secs_f64());
        }
        work()?;
        done += 1;
    }
}
