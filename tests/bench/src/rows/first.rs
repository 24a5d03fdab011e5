//! N4: from the kubelet's call to the SVID in the pod's hand.

use std::time::Instant;

use crate::client;
use crate::node::{Config, Node};
use crate::report::{Row, Samples};

use super::{Context, on_one_thread};

const RUNS: usize = 5;
const VOLUMES: usize = 20;
const ROUNDS: usize = 25;

pub fn measure(context: &Context) -> anyhow::Result<Vec<Row>> {
    on_one_thread(async {
        let node = Node::started(&context.programs, Config::default()).await?;
        node.hold(&node.volumes("held", 100)?).await?;
        let volumes = node.volumes("new", VOLUMES)?;
        let mut p99 = Row::at_most(
            "N4",
            "publish to the first SVID in a client's hand (hyper), p99, c=1, 100 volumes held",
            "ms",
            20.0,
            Some(10.0),
        );
        let mut p50 = Row::beside("N4b", "the same, p50", "ms");
        let mut csi = node.client().await?;
        for run in 0..=RUNS {
            let mut samples = Samples::default();
            for _ in 0..ROUNDS {
                for volume in &volumes {
                    let request = volume.publish.clone();
                    let begun = Instant::now();
                    csi.node_publish_volume(request).await?;
                    client::fetch_with_hyper(&volume.socket).await?;
                    samples.add(begun.elapsed());
                }
                for volume in &volumes {
                    csi.node_unpublish_volume(volume.unpublish.clone()).await?;
                }
            }
            if run > 0 {
                p99.run(samples.p99());
                p50.run(samples.p50());
            }
        }
        Ok(vec![p99, p50])
    })
}
