//! The pods of the node: each with a volume, a stream that it holds open, and a kubelet that looks after it.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use seamount_proto::workload::X509svidResponse;
use seamount_testkit::client::{Door, leaf, names};
use seamount_testkit::kubelet::PodVolume;
use tokio::runtime::Handle;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tonic::{Code, Status};

use crate::gaps::Moment;
use crate::node::Node;
use crate::random::Random;
use crate::tally::{Fault, Span, Tally};

/// For all that has to come in the end: a kubelet never gives up, a test has to.
const IN_THE_END: Duration = Duration::from_secs(120);
/// The kubelet's first pause after a failed operation on a volume; each further one is twice as long, up to
/// 122 s (`k8s.io/kubernetes/pkg/util/goroutinemap/exponentialbackoff`).
const FIRST_PAUSE: Duration = Duration::from_millis(500);
const LAST_PAUSE: Duration = Duration::from_secs(122);
/// How long a connection may live on after its volume's unpublish was answered: the time to notice.
const CUT: Duration = Duration::from_secs(5);

/// A published volume and what its pod knows.
#[derive(Debug)]
pub struct Pod {
    /// The volume.
    pub volume: PodVolume,
    /// The identity that it must have.
    pub id: String,
    door: Arc<Door>,
    leaf: Mutex<Option<Vec<u8>>>,
    /// Unpublish has begun: no answer is owed any more.
    ended: CancellationToken,
    lost: AtomicBool,
}

impl Pod {
    /// The pod that it is about, for messages.
    pub fn name(&self) -> String {
        format!("{}/{} ({})", self.volume.namespace, self.volume.pod_name, self.volume.pod_uid)
    }

    /// Compares an answer with what it must be.
    fn check(&self, answer: &X509svidResponse, tally: &Tally) {
        let [svid] = answer.svids.as_slice() else {
            return tally
                .fault(Fault::WrongIdentity, &format!("{}: {} SVIDs", self.name(), answer.svids.len()));
        };
        let new = leaf(&svid.x509_svid);
        if svid.spiffe_id != self.id || !names(new, &self.id) {
            let text = format!("{}: {}, expected {}", self.name(), svid.spiffe_id, self.id);
            tally.fault(Fault::WrongIdentity, &text);
        }
        let mut known = self.leaf.lock().unwrap_or_else(PoisonError::into_inner);
        if known.as_deref().is_some_and(|known| known != new) {
            tally.fault(Fault::ChangedSerial, &self.name());
        }
        *known = Some(new.to_vec());
    }

    /// Which socket its volume has now; none where it has ended.
    pub fn socket(&self) -> Option<(u64, u64)> {
        self.door.socket_now().filter(|_| !self.ended.is_cancelled())
    }

    /// The volume does not serve any more; counted once.
    pub fn lose(&self, tally: &Tally, why: &str) {
        if !self.lost.swap(true, Ordering::Relaxed) {
            tally.fault(Fault::Lost, &format!("{}: {why}", self.name()));
        }
    }

    /// New FetchX509SVIDs until one is answered; how long after `since` that was. None where the pod has
    /// ended.
    pub async fn probe(&self, since: &Moment, world: &World) -> Option<Duration> {
        let since = since.instant;
        let attempts = async {
            let mut last = String::new();
            while since.elapsed() < IN_THE_END {
                match tokio::time::timeout(IN_THE_END, self.door.fetch()).await {
                    Ok(Ok(answer)) => return Ok(answer),
                    Ok(Err(status)) if status.code() == Code::PermissionDenied => {
                        return Err(format!("refused: {}", status.message()));
                    }
                    Ok(Err(status)) => last = format!("{:?}: {}", status.code(), status.message()),
                    Err(_) => last = "no answer".to_owned(),
                }
                tokio::time::sleep(Duration::from_millis(3)).await;
            }
            Err(last)
        };
        tokio::select! {
            biased;
            () = self.ended.cancelled() => None,
            outcome = attempts => match outcome {
                Ok(answer) => {
                    let took = since.elapsed();
                    self.check(&answer, &world.tally);
                    Some(took)
                }
                Err(why) => {
                    self.lose(&world.tally, &why);
                    None
                }
            }
        }
    }
}

/// All pods, and what they share.
#[derive(Debug)]
pub struct World {
    /// The node.
    pub node: Node,
    /// What went wrong.
    pub tally: Tally,
    /// No pod comes or goes any more.
    pub calm: CancellationToken,
    /// Pods close their streams.
    pub silence: CancellationToken,
    /// How often the agent was killed, or left in a roll-out.
    pub deaths: AtomicUsize,
    /// A roll-out is under way: the agent will leave.
    pub rolling: AtomicBool,
    /// The thread that asks the volumes.
    pub prober: Handle,
    /// When a process was killed, stopped or continued.
    blows: Mutex<Vec<Instant>>,
    /// The kubelet's shortest time between two publishes of a volume; the longest is half as much again.
    republish: Duration,
    live: Mutex<Vec<Arc<Pod>>>,
    published: AtomicUsize,
}

impl World {
    /// A node without pods.
    pub fn new(node: Node, republish: Duration, prober: Handle) -> Arc<Self> {
        let (tally, live, published, deaths, rolling, blows) = Default::default();
        let (calm, silence) = (CancellationToken::new(), CancellationToken::new());
        Arc::new(Self {
            node,
            tally,
            calm,
            silence,
            deaths,
            rolling,
            prober,
            blows,
            republish,
            live,
            published,
        })
    }

    /// A process was killed, stopped or continued just now.
    pub fn blow(&self) -> Moment {
        let now = Moment::now();
        self.blows.lock().unwrap_or_else(PoisonError::into_inner).push(now.instant);
        now
    }

    /// How many blows fell after this moment and before so long had passed.
    pub fn blows_since(&self, since: &Moment, took: Duration) -> usize {
        let blows = self.blows.lock().unwrap_or_else(PoisonError::into_inner);
        let later = blows.iter().rev().take_while(|blow| **blow > since.instant);
        later.filter(|blow| **blow < since.instant + took).count()
    }

    fn live(&self) -> MutexGuard<'_, Vec<Arc<Pod>>> {
        self.live.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The pods that have their identity now.
    pub fn pods(&self) -> Vec<Arc<Pod>> {
        self.live().clone()
    }

    /// How many pods there were altogether.
    pub fn published(&self) -> usize {
        self.published.load(Ordering::Relaxed)
    }

    /// Up to `number` pods at random.
    pub fn some(&self, number: usize, random: &mut Random) -> Vec<Arc<Pod>> {
        let mut all = self.pods();
        let mut chosen = Vec::new();
        while chosen.len() < number && !all.is_empty() {
            let at = usize::try_from(random.below(all.len() as u64)).unwrap_or_default();
            chosen.push(all.swap_remove(at));
        }
        chosen
    }

    /// The kubelet's life with one pod after the other on a place; the last one is left when it is calm. Pods
    /// of a place have the same name, as those of a StatefulSet, and another UID and mostly another service
    /// account.
    pub async fn place(self: Arc<Self>, number: usize, lasting: bool, mut random: Random) {
        // Not all at once.
        tokio::time::sleep(random.millis(0, 3000)).await;
        while !self.calm.is_cancelled() {
            let account = format!("account-{}", random.below(7));
            let mut uid = String::new();
            for _ in 0..2 {
                uid += &format!("{:016x}", random.number());
            }
            let volume = PodVolume::new(
                "chaos",
                &account,
                &format!("web-{number}"),
                &seamount_testkit::uuid_of(&uid),
                "spiffe",
            );
            let Some((pod, holder)) = self.begin(volume).await else { continue };
            let life = if lasting { IN_THE_END * 1000 } else { random.millis(1000, 25_000) };
            let ended = tokio::time::timeout(life, self.look_after(&pod, &mut random)).await;
            if ended.is_ok() {
                // Calm: the pod stays, and its stream as well.
                return;
            }
            self.end(&pod, holder).await;
        }
    }

    /// Publishes a volume and waits until the pod has its identity.
    async fn begin(self: &Arc<Self>, volume: PodVolume) -> Option<(Arc<Pod>, JoinHandle<()>)> {
        let tokens = self.node.tokens(&volume);
        let id = format!("spiffe://example.org/ns/{}/sa/{}", volume.namespace, volume.service_account);
        let publish = async || self.node.kubelet.set_up(&volume, Some(&tokens)).await;
        match self.in_the_end(publish).await {
            Ok(took) => self.tally.took(Span::Publish, took),
            Err(status) => {
                let text = format!("{}: {status}", volume.pod_uid);
                self.tally.fault(Fault::StuckPublish, &text);
                return None;
            }
        }
        let door = match Door::open(&self.node.kubelet.target_path(&volume)) {
            Ok(door) => Arc::new(door),
            Err(e) => {
                self.tally.fault(Fault::Lost, &format!("{} has no directory: {e}", volume.pod_uid));
                return None;
            }
        };
        let (leaf, ended, lost) = Default::default();
        let pod = Arc::new(Pod { volume, id, door, leaf, ended, lost });
        self.published.fetch_add(1, Ordering::Relaxed);
        self.live().push(Arc::clone(&pod));
        let holder = tokio::task::spawn_local(Arc::clone(self).hold(Arc::clone(&pod)));
        Some((pod, holder))
    }

    /// Holds a stream open, as a workload does, and opens another one when it breaks.
    async fn hold(self: Arc<Self>, pod: Arc<Pod>) {
        let streams = async {
            let mut pause = 1;
            loop {
                let deaths = self.deaths.load(Ordering::Relaxed);
                let mut broken = None;
                if let Ok(mut stream) = pod.door.stream().await {
                    while broken.is_none() {
                        match stream.message().await {
                            Ok(Some(answer)) => {
                                pause = 1;
                                pod.check(&answer, &self.tally);
                            }
                            end => broken = Some(format!("{:?}", end.err())),
                        }
                    }
                }
                if pod.ended.is_cancelled() {
                    return;
                }
                let excused =
                    self.rolling.load(Ordering::Relaxed) || deaths != self.deaths.load(Ordering::Relaxed);
                if let Some(end) = broken.filter(|_| !excused) {
                    self.tally.fault(Fault::BrokenStream, &format!("{}: {end}", pod.name()));
                }
                // Client libraries wait longer; this one is here to be a burden.
                tokio::time::sleep(Duration::from_millis(20 * pause)).await;
                pause = (pause * 2).min(16);
            }
        };
        tokio::select! {
            () = self.silence.cancelled() => {}
            () = streams => {}
        }
    }

    /// The kubelet's republish and its question for usage, until it is calm.
    async fn look_after(&self, pod: &Pod, random: &mut Random) {
        let shortest = u64::try_from(self.republish.as_millis()).unwrap_or(u64::MAX);
        let tick = async {
            // Somewhere between two.
            let mut pause = random.millis(0, shortest);
            loop {
                tokio::time::sleep(pause).await;
                pause = random.millis(shortest, shortest + shortest / 2);
                let tokens = self.node.tokens(&pod.volume);
                let republish = async || self.node.kubelet.publish(&pod.volume, Some(&tokens)).await;
                match self.in_the_end(republish).await {
                    Ok(took) => self.tally.took(Span::Republish, took),
                    Err(status) => {
                        pod.lose(&self.tally, &format!("its republish fails: {status}"));
                        return self.calm.cancelled().await;
                    }
                }
                // An answer that fails is asked for again in a minute.
                let _ = self.node.kubelet.stats(&pod.volume).await;
            }
        };
        tokio::select! {
            () = tick => {}
            () = self.calm.cancelled() => {}
        }
    }

    /// Unpublishes, and looks whether that cut the pod's stream.
    async fn end(&self, pod: &Pod, holder: JoinHandle<()>) {
        self.live().retain(|other| other.volume.pod_uid != pod.volume.pod_uid);
        pod.ended.cancel();
        self.unpublish(pod).await;
        if tokio::time::timeout(CUT, holder).await.is_err() && !self.silence.is_cancelled() {
            self.tally.fault(Fault::ServedOn, &pod.name());
        }
    }

    /// Unpublish and the removal of the pod's directories, as the kubelet does it.
    pub async fn unpublish(&self, pod: &Pod) {
        let tear_down = async || {
            self.node.kubelet.tear_down(&pod.volume).await.map_err(|e| Status::internal(e.to_string()))
        };
        match self.in_the_end(tear_down).await {
            Ok(took) => self.tally.took(Span::Unpublish, took),
            Err(status) => {
                let text = format!("{}: {}", pod.name(), status.message());
                self.tally.fault(Fault::StuckUnpublish, &text);
            }
        }
    }

    /// Every volume serves the same pod, in the same directory, and is healthy.
    pub async fn check_all(&self) {
        for pod in self.pods() {
            pod.probe(&Moment::now(), self).await;
            let target = self.node.kubelet.target_path(&pod.volume);
            if !pod.door.is_at(&target) {
                pod.lose(&self.tally, "its directory is another one");
            }
            match self.node.kubelet.stats(&pod.volume).await {
                Err(status) => pod.lose(&self.tally, &format!("no stats: {status}")),
                Ok(stats) => {
                    let condition = stats.volume_condition.unwrap_or_default();
                    if condition.abnormal {
                        pod.lose(&self.tally, &format!("abnormal: {}", condition.message));
                    }
                }
            }
        }
    }

    /// Takes all pods away.
    pub async fn tear_down(&self) {
        let pods = std::mem::take(&mut *self.live());
        for pod in pods {
            pod.ended.cancel();
            self.unpublish(&pod).await;
        }
    }

    /// Repeats a kubelet's call until it succeeds; how long that took. The last error after [`IN_THE_END`],
    /// if no blow fell for half of that: on a busy machine every attempt may meet a kill.
    async fn in_the_end(
        &self,
        mut call: impl AsyncFnMut() -> Result<(), Status>,
    ) -> Result<Duration, Status> {
        let start = Instant::now();
        let mut pause = FIRST_PAUSE;
        loop {
            match call().await {
                Ok(()) => return Ok(start.elapsed()),
                Err(status) if start.elapsed() > IN_THE_END && self.quiet() > IN_THE_END / 2 => {
                    return Err(status);
                }
                Err(_) => tokio::time::sleep(pause).await,
            }
            pause = (pause * 2).min(LAST_PAUSE);
        }
    }

    /// How long no blow has fallen.
    fn quiet(&self) -> Duration {
        let blows = self.blows.lock().unwrap_or_else(PoisonError::into_inner);
        blows.last().map_or(Duration::MAX, Instant::elapsed)
    }
}
