//! The blows: kills, stops, and kills of what stands still.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use futures_util::future::join_all;
use rustix::process::Signal;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::gaps::{Gap, Moment};
use crate::node::Who;
use crate::pods::{Pod, World};
use crate::random::Random;
use crate::tally::{Fault, Span};

/// The mounter's sockets without volumes: two doors of its own, the kubelet's two, and the agent's
/// connection.
const DOORS: usize = 5;
/// Volumes that are asked after each blow.
const PROBES: usize = 6;
/// A process stands still for as long as between these two, in milliseconds. The agent waits 10 s for the
/// mounter, the kubelet much longer.
const SHORTEST_STOP: u64 = 50;
const LONGEST_STOP: u64 = 12_000;
/// How long a roll-out may take.
const ROLL: Duration = Duration::from_secs(60);

/// How many blows there were of each kind.
#[derive(Debug, Default, Clone, Copy)]
pub struct Blows {
    /// SIGKILL to a process; to both counts once.
    pub kills: usize,
    /// Of these, to both.
    pub both: usize,
    /// SIGSTOP.
    pub stops: usize,
    /// Of these, ended by SIGKILL and not by SIGCONT. They are among the kills.
    pub ended: usize,
    /// SIGKILL to the other process of one that stood still. They are among the kills.
    pub beside: usize,
    /// A second pair was started and took over.
    pub rolls: usize,
}

/// Deals blows until there were so many kills; killed processes are started again at once.
///
/// # Errors
/// If a process ended by itself or does not start.
pub async fn storm(world: &Arc<World>, kills: usize, random: Random) -> anyhow::Result<Blows> {
    let mut storm = Storm { world, random, blows: Blows::default(), late: Vec::new() };
    let mut told = 0;
    while storm.blows.kills < kills {
        storm.strike().await?;
        if storm.random.once_in(12) {
            storm.stand_still().await?;
        }
        if storm.random.once_in(20) {
            storm.roll_out().await?;
        }
        if storm.blows.kills / 100 > told {
            told = storm.blows.kills / 100;
            let (pods, faults) = (world.published(), world.tally.all());
            eprintln!(
                "{} kills, {} stops, {} roll-outs, {pods} pods so far, {faults} faults",
                storm.blows.kills, storm.blows.stops, storm.blows.rolls
            );
        }
    }
    storm.settle().await?;
    Ok(storm.blows)
}

struct Storm<'a> {
    world: &'a Arc<World>,
    random: Random,
    blows: Blows,
    /// Answers that are not awaited before the next blow.
    late: Vec<JoinHandle<()>>,
}

impl Storm<'_> {
    /// One kill, and sometimes the next one before it is over.
    async fn strike(&mut self) -> anyhow::Result<()> {
        let probes = self.world.some(PROBES, &mut self.random);
        let victims = match self.random.below(20) {
            0 | 1 => {
                let first = self.either();
                vec![first, first.other()]
            }
            _ => vec![self.either()],
        };
        let span = match victims.as_slice() {
            [who] => gap_of(*who),
            _ => Span::BothGap,
        };
        // Where all was well and one dies, the other one has every listener. An agent may call itself ready
        // for a moment after the mounter has died, so that one's own sockets count as well.
        let kept = victims.len() == 1
            && self.world.node.ready(Duration::ZERO).await.is_ok()
            && self.world.node.mounters_sockets() >= self.world.pods().len() + DOORS;
        let sockets = probes.iter().filter_map(|pod| Some((Arc::clone(pod), pod.socket()?)));
        let sockets: Vec<_> = sockets.filter(|_| kept).collect();
        let since = self.kill(&victims)?;
        let answers = self.ask(probes, since, span, sockets);
        if self.random.once_in(8) {
            // The next one comes before this one is over.
            self.late.push(answers);
            self.pause(0, 60).await;
        } else {
            answers.await?;
            self.pause(0, 400).await;
        }
        Ok(())
    }

    /// SIGKILL to these, and a new start at once.
    fn kill(&mut self, victims: &[Who]) -> anyhow::Result<Moment> {
        self.blows.kills += 1;
        self.blows.both += usize::from(victims.len() > 1);
        if victims.contains(&Who::Agent) {
            self.world.deaths.fetch_add(1, Ordering::Relaxed);
        }
        for who in victims {
            self.world.node.kill(*who)?;
        }
        let since = self.world.blow();
        for who in victims {
            self.world.node.reap(*who)?;
        }
        let mut order = victims.to_vec();
        if self.random.once_in(2) {
            order.reverse();
        }
        for who in order {
            self.world.node.start(who)?;
        }
        Ok(since)
    }

    /// SIGSTOP, and later SIGCONT or SIGKILL. Meanwhile calls pile up whose answers come late, and the other
    /// process may be killed. The gap begins when both run again: while one stands still, no answer is owed.
    async fn stand_still(&mut self) -> anyhow::Result<()> {
        self.settle().await?;
        let probes = self.world.some(PROBES, &mut self.random);
        let who = self.either();
        self.blows.stops += 1;
        self.world.node.signal(who, Signal::STOP)?;
        self.world.blow();
        let length = self.random.spread(SHORTEST_STOP, LONGEST_STOP);
        if self.random.once_in(4) {
            tokio::time::sleep(length / 2).await;
            self.blows.beside += 1;
            self.kill(&[who.other()])?;
            tokio::time::sleep(length / 2).await;
        } else {
            tokio::time::sleep(length).await;
        }
        let (span, since) = if self.random.once_in(4) {
            self.blows.ended += 1;
            (Span::EndedGap, self.kill(&[who])?)
        } else {
            self.world.node.signal(who, Signal::CONT)?;
            (Span::StopGap, self.world.blow())
        };
        self.ask(probes, since, span, Vec::new()).await?;
        Ok(())
    }

    /// A second pair takes over from the first, while clients connect all the time. What each of them waits
    /// for its answer is the gap.
    async fn roll_out(&mut self) -> anyhow::Result<()> {
        self.settle().await?;
        // One that was just started has no listeners yet that it could hand over; a DaemonSet waits for
        // readiness too.
        self.world.node.ready(ROLL).await?;
        self.blows.rolls += 1;
        self.world.deaths.fetch_add(1, Ordering::Relaxed);
        self.world.rolling.store(true, Ordering::Relaxed);
        let since = self.world.blow();
        let over = CancellationToken::new();
        let probes = self.world.some(PROBES, &mut self.random).into_iter().map(|pod| {
            let (world, over) = (Arc::clone(self.world), over.clone());
            self.world.prober.spawn(async move {
                let mut longest = Duration::ZERO;
                loop {
                    let last = over.is_cancelled();
                    let Some(took) = pod.probe(&Moment::now(), &world).await else { break };
                    longest = longest.max(took);
                    if last {
                        break;
                    }
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
                (longest, pod.volume.pod_uid.clone())
            })
        });
        let probes: Vec<_> = probes.collect();
        let first = self.either();
        let old = self.world.node.roll(first)?;
        self.world.node.left(old, ROLL).await?;
        self.world.deaths.fetch_add(1, Ordering::Relaxed);
        self.world.rolling.store(false, Ordering::Relaxed);
        self.world.node.ready(ROLL).await?;
        over.cancel();
        let mut longest = (Duration::ZERO, String::new());
        for probe in probes {
            longest = longest.max(probe.await?);
        }
        let (took, pod) = longest;
        self.world.tally.gap(Gap { span: Span::RollGap, since, took, further: 0, pod });
        Ok(())
    }

    /// Waits for the answers that are still owed.
    async fn settle(&mut self) -> anyhow::Result<()> {
        for answers in self.late.drain(..) {
            answers.await?;
        }
        Ok(())
    }

    /// Asks these pods' volumes until each has answered; the longest counts. Unless another blow falls
    /// meanwhile, those with a socket must have the same then.
    fn ask(
        &self,
        probes: Vec<Arc<Pod>>,
        since: Moment,
        span: Span,
        sockets: Vec<(Arc<Pod>, (u64, u64))>,
    ) -> JoinHandle<()> {
        let world = Arc::clone(self.world);
        // On a thread of its own: a hundred pods that connect again at the same time are not in its way.
        self.world.prober.spawn(async move {
            let probes = probes.iter().map(async |pod| (pod.probe(&since, &world).await, pod));
            let answered = join_all(probes).await;
            let replaced =
                sockets.iter().filter(|(pod, before)| pod.socket().is_some_and(|now| now != *before));
            let replaced: Vec<_> = replaced.map(|(pod, _)| pod.name()).collect();
            if world.blows_since(&since, since.instant.elapsed()) == 0 {
                replaced.iter().for_each(|pod| world.tally.fault(Fault::ReplacedSocket, pod));
            }
            let longest = answered.into_iter().filter_map(|(took, pod)| Some((took?, pod)));
            if let Some((took, pod)) = longest.max_by_key(|(took, _)| *took) {
                // Another blow may have fallen since; the answer came after that one, too.
                let further = world.blows_since(&since, took);
                let span = if further > 0 { Span::FurtherGap } else { span };
                world.tally.gap(Gap { span, since, took, further, pod: pod.volume.pod_uid.clone() });
            }
        })
    }

    fn either(&mut self) -> Who {
        if self.random.once_in(2) { Who::Agent } else { Who::Mounter }
    }

    async fn pause(&mut self, low: u64, high: u64) {
        tokio::time::sleep(self.random.millis(low, high)).await;
    }
}

fn gap_of(who: Who) -> Span {
    match who {
        Who::Agent => Span::AgentGap,
        Who::Mounter => Span::MounterGap,
    }
}

/// The shortest and the longest stop, for the report.
pub const STOPS: [Duration; 2] = [Duration::from_millis(SHORTEST_STOP), Duration::from_millis(LONGEST_STOP)];
