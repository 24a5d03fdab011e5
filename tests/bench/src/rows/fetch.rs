//! N9: connect and take the first message on a warm volume, with the client's own cost.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::client;
use crate::node::{Config, Node};
use crate::report::{Row, Samples};

use super::{Context, on_one_thread};

const RUNS: usize = 5;
const CALLS: usize = 1000;
const CROWD: usize = 16;
const SPAN: Duration = Duration::from_secs(2);

pub fn measure(context: &Context) -> anyhow::Result<Vec<Row>> {
    let mut p50 =
        Row::at_most("N9", "connect + first message, hyper's client, p50, c=1", "ms", 0.5, Some(0.25));
    let mut p99 =
        Row::at_most("N9b", "connect + first message, hyper's client, p99, c=1", "ms", 1.5, Some(0.8));
    let mut rate = Row::at_least(
        "N9c",
        "connections with a first message, hyper's client, c=16",
        "/s",
        5000.0,
        10_000.0,
    );
    let mut tonic = Row::beside("N9d", "connect + first message, tonic's client, p50, c=1", "ms");
    let mut bare = Row::beside("N9e", "connect + first message, bare socket as client, p50, c=1", "ms");
    let mut agent =
        Row::beside("N9f", "connections with a first message per second of the agent's processor time", "/s");

    let (node, sockets) = on_one_thread(async {
        let node = Node::started(&context.programs, Config::default()).await?;
        let volumes = node.volumes("warm", CROWD)?;
        node.hold(&volumes).await?;
        Ok((node, volumes.into_iter().map(|v| v.socket).collect::<Vec<_>>()))
    })?;
    let first = sockets.first().cloned().unwrap_or_default();
    for run in 0..=RUNS {
        let (hyper, by_tonic, by_hand) = on_one_thread(one_at_a_time(&first))?;
        let before = crate::usage::processor(node.agent()?)?;
        let (count, took) = sixteen_at_once(&sockets)?;
        let used = crate::usage::processor(node.agent()?)?.saturating_sub(before);
        if run > 0 {
            p50.run(hyper.p50());
            p99.run(hyper.p99());
            rate.run(count as f64 / took.as_secs_f64());
            tonic.run(by_tonic.p50());
            bare.run(by_hand.p50());
            agent.run(count as f64 / used.as_secs_f64());
        }
    }
    Ok(vec![p50, p99, rate, tonic, bare, agent])
}

/// The three clients in turn.
async fn one_at_a_time(socket: &Path) -> anyhow::Result<(Samples, Samples, Samples)> {
    let (mut hyper, mut tonic, mut bare) = (Samples::default(), Samples::default(), Samples::default());
    for _ in 0..CALLS {
        let begun = Instant::now();
        client::fetch_with_hyper(socket).await?;
        hyper.add(begun.elapsed());
        // The aborted task ends, and with it the connection.
        tokio::task::yield_now().await;

        let begun = Instant::now();
        client::fetch_with_tonic(socket).await?;
        tonic.add(begun.elapsed());
        tokio::task::yield_now().await;

        let begun = Instant::now();
        let message = client::Bare::ask(socket)?.message()?;
        bare.add(begun.elapsed());
        client::chain(message)?;
    }
    Ok((hyper, tonic, bare))
}

/// How many connections 16 clients on two threads make in how long, each beginning the next when it has its
/// SVID.
fn sixteen_at_once(sockets: &[PathBuf]) -> anyhow::Result<(usize, Duration)> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let stop = Arc::new(AtomicBool::new(false));
    runtime.block_on(async {
        let begun = Instant::now();
        let clients: Vec<_> = sockets
            .iter()
            .cloned()
            .map(|socket| {
                let stop = Arc::clone(&stop);
                tokio::spawn(async move {
                    let mut count = 0;
                    while !stop.load(Ordering::Relaxed) {
                        client::fetch_with_hyper(&socket).await?;
                        count += 1;
                    }
                    anyhow::Ok(count)
                })
            })
            .collect();
        tokio::time::sleep(SPAN).await;
        stop.store(true, Ordering::Relaxed);
        let mut total = 0;
        for client in clients {
            total += client.await??;
        }
        Ok((total, begun.elapsed()))
    })
}
