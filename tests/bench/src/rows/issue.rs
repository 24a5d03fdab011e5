//! N7: SVIDs issued per second of a core, from key to checked certificate.

use std::time::{Duration, SystemTime};

use anyhow::Context as _;
use seamount_identity::X509Svid;
use seamount_identity::authority::{
    Authority as _, Embedded, EmbeddedConfig, IdTemplate, KeyType, Workload, new_key_and_csr,
};

use crate::node::{Config, Node, publish_all, unpublish_all};
use crate::report::Row;
use crate::usage;

use super::{Context, on_one_thread};

const RUNS: usize = 5;
const SPAN: Duration = Duration::from_secs(1);
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
        "SVIDs per second and core: key, request, proof, certificate, chain verified (P-256)",
        "/s",
        5000.0,
        10_000.0,
    );
    for _ in 0..RUNS {
        direct.run(per_second(|| {
            let (key, csr) = new_key_and_csr(KeyType::EcP256)?;
            let svid = X509Svid::new(authority.issue(&csr, &workload)?, key)?;
            svid.verify(bundles.own(), SystemTime::now()).context("the chain does not verify")
        })?);
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
    Ok(vec![direct, through])
}

/// How often something can be done per second of this thread's processor time: others on the machine do not count.
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
