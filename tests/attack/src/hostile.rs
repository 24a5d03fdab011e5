//! The hostile pod as the kubelet sees it: one UID and many volumes.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use futures_util::{StreamExt as _, stream};
use seamount_testkit::kubelet::PodVolume;
use seamount_testkit::processes::{Process, Spawn};
use seamount_testkit::uuid_of;

use crate::attacker::Got;
use crate::attacks::Attack;
use crate::node::Node;

/// Publishes at a time.
const AT_ONCE: usize = 4;
/// How long the kubelet waits for one of its volumes.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long the kubelet goes on with new ones, and how long all of them may take to go.
const ALL: Duration = Duration::from_secs(30);

/// The pod.
#[derive(Debug)]
pub struct Hostile {
    /// What the kubelet tried to publish.
    tried: Vec<PodVolume>,
    volumes: usize,
    /// How often it was refused with which words.
    refused: BTreeMap<String, usize>,
    process: Option<Process>,
}

/// What the pod got in the end.
#[derive(Debug)]
pub struct Loot {
    /// Volumes that were published.
    pub volumes: usize,
    /// Volumes that were refused, by the refusal.
    pub refused: BTreeMap<String, usize>,
    /// Connections and frames.
    pub got: Got,
}

impl Hostile {
    /// Publishes the pod's volumes; a refusal is an answer.
    pub async fn published(node: &Node, attack: &Attack) -> anyhow::Result<Self> {
        let begun = Instant::now();
        let uid = uuid_of("hostile");
        let volume = |n: usize| PodVolume::new("hostile", "hostile", "hostile", &uid, &format!("v{n}"));
        let mut outcomes = stream::iter((0..attack.volumes).map(volume))
            .take_while(|_| std::future::ready(begun.elapsed() < ALL))
            .map(async |volume| {
                let tokens = node.tokens(&volume);
                let call = node.kubelet.set_up(&volume, Some(&tokens));
                let outcome = match tokio::time::timeout(PATIENCE, call).await {
                    Ok(Ok(())) => None,
                    Ok(Err(status)) => Some(format!("{:?}", status.code())),
                    Err(_) => Some("no answer".to_owned()),
                };
                (volume, outcome)
            })
            .buffered(AT_ONCE);
        let (mut tried, mut refused, mut paths) = (Vec::new(), BTreeMap::<_, usize>::new(), Vec::new());
        while let Some((volume, refusal)) = outcomes.next().await {
            match refusal {
                None => paths.push(node.kubelet.target_path(&volume).display().to_string()),
                Some(refusal) => *refused.entry(refusal).or_default() += 1,
            }
            tried.push(volume);
        }
        drop(outcomes);
        std::fs::write(node.path("volumes"), paths.join("\n"))?;
        Ok(Self { tried, volumes: paths.len(), refused, process: None })
    }

    /// Starts the pod.
    pub fn start(&mut self, node: &Node, attack: &Attack) -> anyhow::Result<()> {
        let process = Spawn::new("attacker", &std::env::current_exe()?, node.logs())
            .args([attack.name, "--volumes"])
            .args([node.path("volumes")])
            .dying_with_us()
            .start()?;
        self.process = Some(process);
        Ok(())
    }

    /// What the pod has told last.
    pub fn got(&self) -> Got {
        let log = self.process.as_ref().map(Process::log).unwrap_or_default();
        log.lines().rev().find_map(Got::parse).unwrap_or_default()
    }

    /// Kills the pod.
    pub fn stop(&mut self) -> anyhow::Result<Loot> {
        let got = self.got();
        let mut process = self.process.take().context("the pod was not started")?;
        if let Some(status) = process.ended()? {
            anyhow::bail!("the attacker has ended by itself ({status}): {}", process.log());
        }
        process.crash()?;
        Ok(Loot { volumes: self.volumes, refused: self.refused.clone(), got })
    }

    /// Removes the pod's volumes; what could not be removed, and why.
    pub async fn removed(&self, node: &Node) -> Vec<String> {
        let end = tokio::time::Instant::now() + ALL;
        let removals = self.tried.iter().map(async |volume| {
            let outcome = tokio::time::timeout_at(end, node.kubelet.tear_down(volume)).await;
            let why = match outcome {
                Ok(Ok(())) => return None,
                Ok(Err(error)) => error.to_string(),
                Err(_) => "no answer".to_owned(),
            };
            Some(format!("volume {}: {why}", volume.volume_name))
        });
        stream::iter(removals).buffer_unordered(AT_ONCE).filter_map(std::future::ready).collect().await
    }
}
