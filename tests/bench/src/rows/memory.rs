//! N5 and N10: what 500 volumes cost when nobody asks anything, before and after a soak.

use std::time::{Duration, Instant};

use crate::node::{Config, Node, publish_all, unpublish_all};
use crate::report::Row;
use crate::usage;

use super::{Context, on_one_thread};

const VOLUMES: usize = 500;
const PAIRS: usize = 20_000;
const RUNS: usize = 3;
const SPAN: Duration = Duration::from_secs(20);

pub fn measure(context: &Context) -> anyhow::Result<Vec<Row>> {
    on_one_thread(async {
        let node = Node::started(&context.programs, Config::default()).await?;
        node.hold(&node.volumes("held", VOLUMES)?).await?;
        let (mounter, agent) = (node.mounter()?, node.agent()?);

        let mut idle = Row::at_most(
            "N10",
            "processor time of both processes, 500 volumes, no clients",
            "% of a core",
            0.1,
            None,
        );
        for _ in 0..RUNS {
            let used = || Ok::<_, anyhow::Error>(usage::processor(mounter)? + usage::processor(agent)?);
            let (before, begun) = (used()?, Instant::now());
            tokio::time::sleep(SPAN).await;
            idle.run(100.0 * (used()? - before).as_secs_f64() / begun.elapsed().as_secs_f64());
        }

        let fresh = [usage::resident(mounter)?, usage::resident(agent)?];
        let volumes = node.volumes("soak", VOLUMES)?;
        let clients = node.clients(16).await?;
        let mut half = fresh;
        for pairs in (VOLUMES..=PAIRS).step_by(VOLUMES) {
            publish_all(&clients, &volumes).await?;
            unpublish_all(&clients, &volumes).await?;
            if pairs == PAIRS / 2 {
                node.settle().await?;
                half = [usage::resident(mounter)?, usage::resident(agent)?];
            }
        }
        drop(clients);
        node.settle().await?;
        let end = [usage::resident(mounter)?, usage::resident(agent)?];
        let soak = "after 20,000 publish/unpublish pairs at c=16";
        let [a, b] = [end, half].map(|[mounter, agent]| (mounter, agent));
        Ok(vec![
            Row::at_most(
                "N5",
                &format!("mounter's memory (VmRSS), 500 volumes, {soak}"),
                "MB",
                2.0,
                Some(1.5),
            )
            .once(a.0),
            Row::at_most(
                "N5b",
                &format!("agent's memory (VmRSS), 500 volumes, {soak}"),
                "MB",
                12.0,
                Some(8.0),
            )
            .once(a.1),
            Row::beside("N5c", "mounter: growth in the soak's second half", "MB").once(a.0 - b.0),
            Row::beside("N5d", "agent: growth in the soak's second half", "MB").once(a.1 - b.1),
            Row::beside("N5e", "mounter's memory before the soak", "MB").once(fresh[0]),
            Row::beside("N5f", "agent's memory before the soak", "MB").once(fresh[1]),
            Row::beside("N5g", "agent's memory that no file backs (RssAnon), after the soak", "MB")
                .once(usage::anonymous(agent)?),
            Row::beside("N5h", "mounter's memory that no file backs (RssAnon), after the soak", "MB")
                .once(usage::anonymous(mounter)?),
            idle,
        ])
    })
}
