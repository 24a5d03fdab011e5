//! N1, N2, N3, N11: publish and unpublish.
//!
//! Two nodes stand side by side, one with 10 volumes and one with 2,000. One call after the other goes to the
//! bare loop, to the small node and to the large one, so that all three see the same machine.

use std::cell::Cell;
use std::time::Instant;

use rustix::thread::{CpuSet, sched_getcpu};

use seamount_testkit::disk::FileSystem;

use crate::bare::Bare;
use crate::node::{Config, Node, Volume, publish_all, unpublish_all};
use crate::report::{Row, Samples};

use super::{Context, on_one_thread};

const RUNS: usize = 7;
/// Volumes that come and go in one batch: few, so that the small node stays small.
const BATCH: usize = 10;
const BATCHES: usize = 30;
/// A batch with 16 calls at once.
const CROWD: usize = 320;
/// Before it, in the same way: what a rest has done to the machine (N0c) is in the first calls after it.
const FIRST: usize = 64;
const CROWDS: usize = 4;

/// What one run saw.
#[derive(Default)]
struct Run {
    bare: [Samples; 2],
    small: [Samples; 2],
    large: [Samples; 2],
    fresh: Samples,
    tonic: Samples,
    /// With all processes on one processor: the large node, the loop.
    together: [[Samples; 2]; 2],
}

/// Publishes and unpublishes, 16 at once.
#[derive(Default)]
struct Crowd {
    first: [Samples; 2],
    all: [Samples; 2],
}

pub fn measure(context: &Context) -> anyhow::Result<Vec<Row>> {
    measure_on(context, FileSystem::Tmpfs, RUNS)
}

/// On this file system: the two nodes, and the loop.
pub fn measure_on(context: &Context, on: FileSystem, runs: usize) -> anyhow::Result<Vec<Row>> {
    on_one_thread(async {
        let root = tempfile::tempdir()?;
        on.mount(root.path())?;
        let config = Config { on, ..Config::default() };
        let mut bare = Bare::new(root.path(), BATCH)?;
        let small = Node::started(&context.programs, config).await?;
        small.hold(&small.volumes("held", 10)?).await?;
        let large = Node::started(&context.programs, config).await?;
        large.hold(&large.volumes("held", 2000)?).await?;
        let volumes = (small.volumes("new", BATCH)?, large.volumes("new", BATCH)?);
        let crowd = large.volumes("crowd", FIRST + CROWD)?;
        let others = large.volumes("other", CROWD)?;

        let mut rows = rows();
        for run in 0..=runs {
            let seen = one_at_a_time(&mut bare, (&small, &volumes.0), (&large, &volumes.1)).await?;
            let Crowd { first, all: [publish, unpublish] } = sixteen_at_once(&large, &crowd).await?;
            let beside =
                [beside(&large, 1, &crowd, &others).await?, beside(&large, 16, &crowd, &others).await?];
            // The first is for caches and allocators.
            if run == 0 {
                continue;
            }
            let ratio = |a: &Samples, b: &Samples| a.p50() / b.p50();
            let [b, bu] = &seen.bare;
            let ([s, su], [l, lu]) = (&seen.small, &seen.large);
            let [[t, tu], [tb, tbu]] = &seen.together;
            let values = [
                ratio(l, b),
                ratio(l, s),
                l.p50(),
                b.p50(),
                seen.fresh.p50(),
                seen.tonic.p50(),
                ratio(t, tb),
                publish.p99(),
                publish.p50(),
                first[0].p99(),
                ratio(lu, bu),
                ratio(lu, su),
                unpublish.p99(),
                lu.p50(),
                bu.p50(),
                ratio(tu, tbu),
                first[1].p99(),
                beside[0].p50(),
                beside[0].p99(),
                beside[1].p99(),
            ];
            rows.iter_mut().zip(values).for_each(|(row, value)| row.run(value));
        }
        drop(bare);
        rustix::mount::unmount(root.path(), rustix::mount::UnmountFlags::DETACH)?;
        Ok(rows)
    })
}

fn rows() -> Vec<Row> {
    vec![
        Row::at_most(
            "N1",
            "publish p50, c=1, 2,000 volumes held / the same system calls in a bare loop",
            "×",
            8.0,
            Some(4.0),
        ),
        Row::at_most("N1b", "publish p50, c=1, 2,000 volumes held / 10 held", "×", 1.3, Some(1.1)),
        Row::beside("N1c", "publish p50, c=1, 2,000 volumes held", "ms"),
        Row::beside("N1d", "the same system calls in a bare loop, p50", "ms"),
        Row::beside(
            "N1e",
            "publish p50, c=1, 2,000 held, a new connection for each call (as the kubelet)",
            "ms",
        ),
        Row::beside("N1f", "publish p50, c=1, 2,000 held, with tonic's client", "ms"),
        Row::beside("N1g", "as N1, with all processes on one processor", "×"),
        Row::at_most("N2", "publish p99, c=16, 2,000 volumes held", "ms", 5.0, Some(2.0)),
        Row::beside("N2b", "publish p50, c=16, 2,000 volumes held", "ms"),
        Row::beside("N2c", "publish p99, c=16, of the first 64 after a rest", "ms"),
        Row::at_most(
            "N3",
            "unpublish p50, c=1, 2,000 volumes held / the same system calls in a bare loop",
            "×",
            8.0,
            Some(4.0),
        ),
        Row::at_most("N3b", "unpublish p50, c=1, 2,000 volumes held / 10 held", "×", 1.3, Some(1.1)),
        Row::at_most("N3c", "unpublish p99, c=16, 2,000 volumes held", "ms", 5.0, Some(2.0)),
        Row::beside("N3d", "unpublish p50, c=1, 2,000 volumes held", "ms"),
        Row::beside("N3e", "the same system calls in a bare loop, p50", "ms"),
        Row::beside("N3f", "as N3, with all processes on one processor", "×"),
        Row::beside("N3g", "unpublish p99, c=16, of the first 64 after a rest", "ms"),
        Row::beside("N11", "publish p50, c=1, while 384 others are unpublished, c=1", "ms"),
        Row::beside("N11b", "publish p99, c=1, while 384 others are unpublished, c=1", "ms"),
        Row::beside("N11c", "publish p99, c=1, while 384 others are unpublished, c=16", "ms"),
    ]
}

async fn one_at_a_time(
    bare: &mut Bare,
    small: (&Node, &[Volume]),
    large: (&Node, &[Volume]),
) -> anyhow::Result<Run> {
    let mut run = Run::default();
    let (in_small, in_large) = (small.0.clients(1).await?, large.0.clients(1).await?);
    for batch in 0..BATCHES {
        for (what, publish) in [(0, true), (1, false)] {
            if !publish {
                bare.sync()?;
                small.0.sync()?;
                large.0.sync()?;
            }
            for i in 0..BATCH {
                let begun = Instant::now();
                if publish { bare.publish(i) } else { bare.unpublish(BATCH - 1 - i) }?;
                let took = begun.elapsed();
                if let Some(samples) = run.bare.get_mut(what) {
                    samples.add(took);
                }
                // The second meets what the first one still does behind its answer: take turns.
                let mut sides = [(&in_small, small.1, &mut run.small), (&in_large, large.1, &mut run.large)];
                if (batch + i) % 2 == 1 {
                    sides.reverse();
                }
                for (clients, volumes, samples) in sides {
                    let one = volumes.get(i..=i).unwrap_or_default();
                    let took = if publish {
                        publish_all(clients, one).await
                    } else {
                        unpublish_all(clients, one).await
                    }?;
                    if let Some(samples) = samples.get_mut(what) {
                        samples.extend(took);
                    }
                }
            }
        }
    }
    for volume in large.1 {
        let begun = Instant::now();
        large.0.client().await?.node_publish_volume(volume.publish.clone()).await?;
        run.fresh.add(begun.elapsed());
    }
    unpublish_all(&in_large, large.1).await?;
    let mut tonic = large.0.client().await?;
    for volume in large.1 {
        let request = volume.publish.clone();
        let begun = Instant::now();
        tonic.node_publish_volume(request).await?;
        run.tonic.add(begun.elapsed());
    }
    unpublish_all(&in_large, large.1).await?;
    run.together = together(bare, large).await?;
    large.0.settle().await?;
    Ok(run)
}

/// The loop runs on one processor. So does everything here, for once: no call wakes a processor that sleeps,
/// and what it needs is in the caches of this one.
async fn together(bare: &mut Bare, (node, volumes): (&Node, &[Volume])) -> anyhow::Result<[[Samples; 2]; 2]> {
    let clients = node.clients(1).await?;
    let mut one = CpuSet::new();
    one.set(sched_getcpu());
    let before = node.confine(&one)?;
    let (mut driver, mut alone) = <([Samples; 2], [Samples; 2])>::default();
    for _ in 0..BATCHES {
        for (i, volume) in volumes.iter().enumerate() {
            let begun = Instant::now();
            bare.publish(i)?;
            alone[0].add(begun.elapsed());
            driver[0].extend(publish_all(&clients, std::slice::from_ref(volume)).await?);
        }
        for (i, volume) in volumes.iter().enumerate() {
            let begun = Instant::now();
            bare.unpublish(BATCH - 1 - i)?;
            alone[1].add(begun.elapsed());
            driver[1].extend(unpublish_all(&clients, std::slice::from_ref(volume)).await?);
        }
    }
    node.confine(&before)?;
    Ok([driver, alone])
}

async fn sixteen_at_once(node: &Node, volumes: &[Volume]) -> anyhow::Result<Crowd> {
    let mut run = Crowd::default();
    let clients = node.clients(16).await?;
    let (first, rest) = volumes.split_at(FIRST);
    for _ in 0..CROWDS {
        run.first[0].extend(publish_all(&clients, first).await?);
        run.all[0].extend(publish_all(&clients, rest).await?);
        node.sync()?;
        node.settle().await?;
        run.first[1].extend(unpublish_all(&clients, first).await?);
        run.all[1].extend(unpublish_all(&clients, rest).await?);
        node.settle().await?;
    }
    Ok(run)
}

/// Publishes one volume after the other for as long as so many calls at once unpublish all of the crowd.
async fn beside(node: &Node, count: usize, crowd: &[Volume], others: &[Volume]) -> anyhow::Result<Samples> {
    let (many, one) = (node.clients(count).await?, node.clients(1).await?);
    publish_all(&node.clients(16).await?, crowd).await?;
    node.sync()?;
    node.settle().await?;
    let done = Cell::new(false);
    let removing = async {
        unpublish_all(&many, crowd).await?;
        done.set(true);
        anyhow::Ok(())
    };
    let publishing = async {
        let mut samples = Samples::default();
        for volume in others.iter().take_while(|_| !done.get()) {
            samples.extend(publish_all(&one, std::slice::from_ref(volume)).await?);
        }
        anyhow::Ok(samples)
    };
    let ((), samples) = tokio::try_join!(removing, publishing)?;
    // Those that never came are as if they had gone.
    unpublish_all(&node.clients(16).await?, others).await?;
    node.settle().await?;
    Ok(samples)
}
