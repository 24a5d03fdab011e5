//! N5 and N10: what 500 volumes cost when no client asks anything, before and after a soak.

use std::time::{Duration, Instant};

use crate::node::{Config, Node, publish_all, unpublish_all};
use crate::report::Row;
use crate::usage;

use super::{Context, on_one_thread};

const VOLUMES: usize = 500;
const PAIRS: usize = 20_000;
const RUNS: usize = 3;
const SPAN: Duration = Duration::from_secs(20);
/// What counts as flat, in MB: the soak's second half may add a few pages, not one for each hundred pairs
/// (0.4 MB).
const FLAT: f64 = 0.25;

pub fn measure(context: &Context) -> anyhow::Result<Vec<Row>> {
    on_one_thread(async {
        let mut rows = rows();
        // Each run with processes of its own: memory depends on all that was before.
        for _ in 0..RUNS {
            let node = Node::started(&context.programs, Config::default()).await?;
            node.hold(&node.volumes("held", VOLUMES)?).await?;
            let idle = idle(&node).await?;
            let soaked = soak(&node).await?;
            rows.iter_mut().zip(soaked.into_iter().chain([idle])).for_each(|(row, value)| row.run(value));
        }
        Ok(rows)
    })
}

fn rows() -> Vec<Row> {
    let soak = "after 20,000 publish/unpublish pairs at c=16";
    let growth = "growth in the soak's second half (flat)";
    let memory = |whose: &str| format!("{whose}'s memory (VmRSS), 500 volumes, {soak}");
    let anonymous = |whose: &str| format!("{whose}'s memory that no file backs (RssAnon), after the soak");
    vec![
        Row::at_most("N5", &memory("mounter"), "MB", 2.0, Some(1.5)),
        Row::at_most("N5b", &memory("agent"), "MB", 12.0, Some(8.0)),
        Row::at_most("N5c", &format!("mounter: {growth}"), "MB", FLAT, None),
        Row::at_most("N5d", &format!("agent: {growth}"), "MB", FLAT, None),
        Row::beside("N5e", "mounter's memory before the soak", "MB"),
        Row::beside("N5f", "agent's memory before the soak", "MB"),
        Row::beside("N5g", &anonymous("agent"), "MB"),
        Row::beside("N5h", &anonymous("mounter"), "MB"),
        Row::at_most(
            "N10",
            "processor time of both processes, 500 volumes, no clients",
            "% of a core",
            0.1,
            None,
        ),
    ]
}

/// Percent of a core that both processes take while no client asks anything.
async fn idle(node: &Node) -> anyhow::Result<f64> {
    let (mounter, agent) = (node.mounter()?, node.agent()?);
    let used = || Ok::<_, anyhow::Error>(usage::processor(mounter)? + usage::processor(agent)?);
    let (before, begun) = (used()?, Instant::now());
    tokio::time::sleep(SPAN).await;
    Ok(100.0 * (used()? - before).as_secs_f64() / begun.elapsed().as_secs_f64())
}

/// The rows of N5 in their order.
async fn soak(node: &Node) -> anyhow::Result<[f64; 8]> {
    let (mounter, agent) = (node.mounter()?, node.agent()?);
    let resident = || Ok::<_, anyhow::Error>((usage::resident(mounter)?, usage::resident(agent)?));
    let fresh = resident()?;
    let volumes = node.volumes("soak", VOLUMES)?;
    let clients = node.clients(16).await?;
    let mut half = fresh;
    for pairs in (VOLUMES..=PAIRS).step_by(VOLUMES) {
        publish_all(&clients, &volumes).await?;
        unpublish_all(&clients, &volumes).await?;
        if pairs == PAIRS / 2 {
            node.settle().await?;
            half = resident()?;
        }
    }
    drop(clients);
    node.settle().await?;
    let end = resident()?;
    Ok([
        end.0,
        end.1,
        end.0 - half.0,
        end.1 - half.1,
        fresh.0,
        fresh.1,
        usage::anonymous(agent)?,
        usage::anonymous(mounter)?,
    ])
}
