//! The kills.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use rustix::process::Signal;

use crate::node::Who;
use crate::pods::{Pod, World};
use crate::random::Random;
use crate::tally::Span;

/// Volumes that are asked after each kill.
const PROBES: usize = 6;

/// Kills, and restarts at once as a container runtime would.
///
/// # Errors
/// If a process ended by itself or does not start.
pub async fn storm(world: &Arc<World>, kills: usize, mut random: Random) -> anyhow::Result<()> {
    let mut late = Vec::new();
    let mut done = 0;
    while done < kills {
        let probes = world.some(PROBES, &mut random);
        let begun = Instant::now();
        let span = match random.below(20) {
            0 | 1 => {
                let first = either(&mut random);
                let second = other(first);
                world.deaths.fetch_add(1, Ordering::Relaxed);
                for who in [first, second] {
                    world.node.kill(who)?;
                }
                for who in [first, second] {
                    world.node.reap(who)?;
                }
                for who in if random.once_in(2) { [first, second] } else { [second, first] } {
                    world.node.start(who)?;
                }
                Span::BothGap
            }
            _ => {
                let who = either(&mut random);
                if who == Who::Agent {
                    world.deaths.fetch_add(1, Ordering::Relaxed);
                }
                world.node.kill(who)?;
                world.node.reap(who)?;
                world.node.start(who)?;
                if who == Who::Agent { Span::AgentGap } else { Span::MounterGap }
            }
        };
        done += 1;
        let answers = tokio::task::spawn_local(answers(Arc::clone(world), probes, begun, span));
        if random.once_in(8) {
            // The next one comes before this one is over.
            late.push(answers);
            tokio::time::sleep(random.millis(0, 60)).await;
        } else {
            answers.await?;
            tokio::time::sleep(random.millis(0, 400)).await;
        }
        // Longer than the agent waits for the mounter, so that answers come late.
        let long = done % 100 == 50;
        if long || random.once_in(12) {
            // A start waits for a mounter that stands still: that is no gap of the kill's.
            for task in late.drain(..) {
                task.await?;
            }
            let who = either(&mut random);
            if long {
                pause(world, Who::Mounter, Duration::from_secs(11), &mut random).await?;
            } else {
                let length = random.millis(10, 1500);
                pause(world, who, length, &mut random).await?;
            }
        }
        if done % 100 == 0 {
            eprintln!("{done} kills, {} pods so far, {} faults", world.published(), world.tally.all());
        }
    }
    for task in late {
        task.await?;
    }
    Ok(())
}

/// SIGSTOP, and SIGCONT later.
async fn pause(world: &Arc<World>, who: Who, length: Duration, random: &mut Random) -> anyhow::Result<()> {
    let probes = world.some(PROBES, random);
    world.node.signal(who, Signal::STOP)?;
    tokio::time::sleep(length).await;
    world.node.signal(who, Signal::CONT)?;
    answers(Arc::clone(world), probes, Instant::now(), Span::StopGap).await;
    Ok(())
}

/// Asks these pods' volumes until each has answered; the longest counts.
async fn answers(world: Arc<World>, probes: Vec<Arc<Pod>>, begun: Instant, span: Span) {
    let gaps = join_all(probes.iter().map(|pod| pod.probe(begun, &world.tally))).await;
    if let Some(longest) = gaps.into_iter().flatten().max() {
        world.tally.took(span, longest);
    }
}

fn either(random: &mut Random) -> Who {
    if random.once_in(2) { Who::Agent } else { Who::Mounter }
}

fn other(who: Who) -> Who {
    match who {
        Who::Agent => Who::Mounter,
        Who::Mounter => Who::Agent,
    }
}
