//! The others on the node: a pod that asks for its identity, and pods that come and go.

use std::cell::RefCell;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use futures_util::future::join_all;
use seamount_testkit::client::Door;
use seamount_testkit::kubelet::PodVolume;
use seamount_testkit::samples::Samples;
use seamount_testkit::uuid_of;

use crate::LONG;
use crate::hostile::Hostile;
use crate::node::Node;

/// How many times the standing pod asks.
pub const FETCHES: usize = 20;
/// How long it waits for an answer.
const FETCH: Duration = Duration::from_secs(5);
/// How long the kubelet waits here.
const CALL: Duration = Duration::from_secs(10);
/// Of so many pods that come, one asks for its identity before it goes.
const ASKS: usize = 8;
/// Pods before the attack: what is made at the first call is then there.
const WARM_UP: usize = 24;
/// How long the attacker may take until it has tried for all its connections.
const COMPLETE: Duration = Duration::from_secs(10);

/// A pod that is there before the attack.
#[derive(Debug)]
pub struct Standing {
    door: Arc<Door>,
}

impl Standing {
    /// Publishes its volume, and waits for its identity.
    pub async fn published(node: &Node) -> anyhow::Result<Self> {
        let volume = pod("standing");
        node.kubelet.set_up(&volume, Some(&node.tokens(&volume))).await.context("publish")?;
        let door = Arc::new(Door::open(&node.kubelet.target_path(&volume))?);
        fetch(&door, LONG).await.map_err(anyhow::Error::msg)?;
        Ok(Self { door })
    }
}

/// What the others had of it.
#[derive(Debug, Default)]
pub struct Measured {
    /// How long the standing pod's answers took; an answer that did not come has none.
    pub fetches: Samples,
    /// How many of them came.
    pub answered: usize,
    /// How many new pods asked, and how many were answered.
    pub new: (usize, usize),
    /// How long publishes took.
    pub publishes: Samples,
    /// How long unpublishes took.
    pub unpublishes: Samples,
    /// What failed, and why.
    pub failures: Vec<String>,
    /// Volumes of pods whose unpublish has failed.
    pub leftovers: Vec<PodVolume>,
}

impl Measured {
    /// The kubelet does not give up; what cannot be removed here is found by its descriptors.
    pub async fn remove_leftovers(&self, node: &Node) {
        for volume in &self.leftovers {
            let _ = tokio::time::timeout(CALL, node.kubelet.tear_down(volume)).await;
        }
    }
}

/// Pods that come and go before anything is measured.
pub async fn warm_up(node: &Node) -> anyhow::Result<()> {
    let mut measured = Measured::default();
    for n in 0..WARM_UP {
        come_and_go(node, n, &mut measured).await;
    }
    anyhow::ensure!(measured.failures.is_empty(), "{:?}", measured.failures);
    Ok(())
}

/// Has a pod ask and others come and go, until the attacker has tried for all its connections and so long
/// after that.
pub async fn measure(node: &Node, standing: &Standing, lasting: Duration, hostile: &Hostile) -> Measured {
    let begun = Instant::now();
    let over = RefCell::new(false);
    let coming = async {
        let mut measured = Measured::default();
        let mut number = WARM_UP;
        while !*over.borrow() {
            come_and_go(node, number, &mut measured).await;
            number += 1;
        }
        measured
    };
    let asking = async {
        while !hostile.got().complete && begun.elapsed() < COMPLETE {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        let each = lasting / u32::try_from(FETCHES).unwrap_or(1);
        let asked = (0..FETCHES).map(async |n| {
            tokio::time::sleep(each * u32::try_from(n).unwrap_or_default()).await;
            fetch(&standing.door, FETCH).await
        });
        let answers = join_all(asked).await;
        over.replace(true);
        answers
    };
    let (mut measured, answers) = tokio::join!(coming, asking);
    for answer in answers {
        match answer {
            Ok(took) => {
                measured.answered += 1;
                measured.fetches.add(took);
            }
            Err(why) => measured.failures.push(format!("fetch: {why}")),
        }
    }
    measured
}

fn pod(name: &str) -> PodVolume {
    PodVolume::new("shop", "frontend", name, &uuid_of(name), "id")
}

/// One pod: its volume is published and, of some, asked; and unpublished.
async fn come_and_go(node: &Node, number: usize, measured: &mut Measured) {
    let volume = pod(&format!("pod-{number}"));
    let tokens = node.tokens(&volume);
    if let Err(error) = node.kubelet.prepare(&volume) {
        return measured.failures.push(error.to_string());
    }
    let (took, outcome) = timed(CALL, node.kubelet.publish(&volume, Some(&tokens))).await;
    measured.publishes.add(took);
    match outcome {
        Ok(()) if number.is_multiple_of(ASKS) => {
            measured.new.0 += 1;
            match new_fetch(&node.kubelet.target_path(&volume)).await {
                Ok(()) => measured.new.1 += 1,
                Err(why) => measured.failures.push(format!("fetch of a new pod: {why}")),
            }
        }
        Ok(()) => {}
        Err(why) => measured.failures.push(format!("publish: {why}")),
    }
    let (took, outcome) = timed(CALL, node.kubelet.unpublish(&volume)).await;
    measured.unpublishes.add(took);
    if let Err(why) = outcome {
        measured.failures.push(format!("unpublish: {why}"));
        measured.leftovers.push(volume);
    } else if let Err(error) = node.kubelet.remove(&volume) {
        measured.failures.push(format!("removal: {error}"));
    }
}

async fn new_fetch(target: &Path) -> Result<(), String> {
    let door = Arc::new(Door::open(target).map_err(|error| error.to_string())?);
    fetch(&door, FETCH).await.map(drop)
}

/// One new connection and its first answer, and how long that took.
async fn fetch(door: &Arc<Door>, limit: Duration) -> Result<Duration, String> {
    let (took, outcome) = timed(limit, door.fetch()).await;
    outcome.map(|_| took)
}

async fn timed<T>(
    limit: Duration,
    call: impl Future<Output = Result<T, tonic::Status>>,
) -> (Duration, Result<T, String>) {
    let begun = Instant::now();
    let outcome = match tokio::time::timeout(limit, call).await {
        Ok(outcome) => outcome.map_err(|status| format!("{:?}: {}", status.code(), status.message())),
        Err(_) => Err(format!("no answer within {limit:?}")),
    };
    (begun.elapsed(), outcome)
}
