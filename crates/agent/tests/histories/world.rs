//! Carries a history out and compares what clients hear with the model.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use seamount_proto::csi::{NodePublishVolumeRequest, NodeUnpublishVolumeRequest, ProbeRequest};
use seamount_testkit::issuer::{Claims, TokenIssuer};
use seamount_testkit::kubelet::{Kubelet, PodVolume};
use seamount_testkit::uuid_of;
use tokio::task::JoinHandle;
use tonic::Status;

use super::client::{Stream, is_dead};
use super::history::{Mischief, Op, Pod, Proof, Spot, spots};
use super::model::{Call, Epoch, Kind, Model, Verdict};

pub const AUDIENCE: &str = "seamount.dev";
pub const ISSUER: &str = "https://kubernetes.default.svc";
/// For what must happen: generous, the machine may be busy.
const LONG: Duration = Duration::from_secs(60);
/// How long a client waits for an answer that need not come.
const SHORT: Duration = Duration::from_millis(25);

type R<T = ()> = Result<T, String>;

/// Agent and mounter, real or simulated.
pub trait Bench {
    fn kubelet(&self) -> Arc<Kubelet>;
    fn issuer(&self) -> &TokenIssuer;
    /// How long a step waits for calls while something is disturbed.
    fn patience(&self) -> Duration;
    fn agent(&mut self, up: bool);
    fn mounter(&mut self, up: bool);
    fn freeze(&mut self, on: bool);
    fn mischief(&mut self, mischief: Mischief);
    fn release(&mut self);
    /// The agent is ready and has no volume yet.
    fn idle(&mut self) {}
    /// Nothing is wrong any more with what runs.
    fn behave(&mut self);
    /// What is still there when every volume is gone.
    fn leftovers(&mut self) -> Vec<String>;
}

/// A call on its way. It comes back with what was still alive of its path when it was answered.
struct Sent {
    call: Call,
    /// The kubelet removes its record after it.
    remove: bool,
    task: JoinHandle<(Result<(), Status>, Vec<String>)>,
}

struct Link {
    path: PathBuf,
    epoch: Epoch,
    step: usize,
    dead: bool,
}

struct Listening {
    stream: Arc<Stream>,
    epoch: Epoch,
}

pub struct World<B> {
    pub bench: B,
    model: Model,
    sent: Vec<Sent>,
    /// Publishes for `Replay`: whose they are, with proof or without.
    published: Vec<(NodePublishVolumeRequest, Spot, Pod, bool)>,
    links: Vec<Link>,
    streams: Vec<Listening>,
    names: HashMap<String, Pod>,
    step: usize,
    calm: bool,
    up: (bool, bool),
}

fn pick(names: [&'static str; 2], n: u8) -> &'static str {
    names[usize::from(n) % 2]
}

fn uid(n: u8) -> String {
    uuid_of(&format!("pod {n}"))
}

pub fn identity(pod: Pod) -> String {
    let v = volume_of(pod, 0);
    format!(
        "spiffe://example.org/ns/{}/sa/{}/pod/{}/{}",
        v.namespace, v.service_account, v.pod_name, v.pod_uid
    )
}

fn volume_of(pod: Pod, volume: u8) -> PodVolume {
    PodVolume::new(
        pick(["shop", "bank"], pod.namespace),
        pick(["frontend", "admin"], pod.account),
        pick(["web-1", "db-1"], pod.name),
        &uid(pod.uid),
        pick(["id", "second"], volume),
    )
}

/// Any pod's volume at that path: UID and name are all that counts.
fn at(spot: Spot) -> PodVolume {
    volume_of(Pod { uid: spot.uid, namespace: 0, name: 0, account: 0 }, spot.volume)
}

fn claims(pod: Pod) -> Claims {
    volume_of(pod, 0).claims("node-1", AUDIENCE)
}

impl<B: Bench> World<B> {
    pub fn new(bench: B) -> Self {
        let all =
            (0..16).map(|n| Pod { uid: n & 1, namespace: n >> 1 & 1, name: n >> 2 & 1, account: n >> 3 });
        Self {
            bench,
            model: Model::default(),
            sent: Vec::new(),
            published: Vec::new(),
            links: Vec::new(),
            streams: Vec::new(),
            names: all.map(|pod| (identity(pod), pod)).collect(),
            step: 0,
            calm: true,
            up: (true, true),
        }
    }

    pub async fn run(&mut self, history: &[Op]) -> R {
        self.ready().await?;
        self.bench.idle();
        for op in history {
            self.step += 1;
            self.act(*op).await.map_err(|e| format!("step {} {op:?}: {e}", self.step))?;
            self.look().map_err(|e| format!("after step {} {op:?}: {e}", self.step))?;
        }
        self.finish().await.map_err(|e| format!("at the end: {e}"))
    }

    /// Waits until the agent can publish.
    async fn ready(&self) -> R {
        let kubelet = self.bench.kubelet();
        let start = Instant::now();
        loop {
            if let Ok(mut identity) = kubelet.identity_client().await
                && let Ok(answer) = identity.probe(ProbeRequest {}).await
                && answer.into_inner().ready == Some(true)
            {
                return Ok(());
            }
            check(start.elapsed() < LONG, || "the agent does not become ready".to_owned())?;
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    async fn act(&mut self, op: Op) -> R {
        match op {
            Op::Publish { pod, volume, id, proof, prepare } => {
                self.publish(pod, volume, id, proof, prepare);
                self.wait().await
            }
            Op::Forge { pod, says, volume } => {
                let spot = Spot { uid: pod.uid, volume };
                self.prepare(pod, volume, 0);
                let mut of = volume_of(says, volume);
                let token = self.tokens(pod, Proof::Own);
                let context = self.bench.kubelet().publish_request(&of, None).volume_context;
                of.pod_uid = uid(pod.uid);
                of.volume_id = at(spot).volume_id;
                let mut request = self.bench.kubelet().publish_request(&of, token.as_deref());
                request.volume_context = context;
                self.send_publish(request, spot, says, pod == says);
                self.wait().await
            }
            Op::Replay(n) => {
                if !self.published.is_empty() {
                    let n = usize::from(n) % self.published.len();
                    let (request, spot, who, proved) = self.published[n].clone();
                    self.send_publish(request, spot, who, proved);
                }
                self.wait().await
            }
            Op::Unpublish { spot, id } => {
                self.unpublish(spot, id, false);
                self.wait().await
            }
            Op::Delete(spot) => {
                self.unpublish(spot, 0, true);
                self.wait().await
            }
            Op::Recreate { old, new, volume } => {
                self.unpublish(old, 0, true);
                self.publish(new, volume, 0, Proof::Own, true);
                self.wait().await
            }
            Op::Fetch(spot) => self.fetch(spot).await,
            Op::Open(spot) => {
                if let Ok(stream) = Stream::open(&self.path(spot)) {
                    let epoch = self.model.epoch(spot);
                    let stream = Arc::new(stream);
                    self.streams.push(Listening { stream: Arc::clone(&stream), epoch });
                    stream.wait(SHORT).await;
                }
                Ok(())
            }
            Op::FetchOld(n) => {
                let Some(link) = self.links.get(usize::from(n) % self.links.len().max(1)) else {
                    return Ok(());
                };
                if link.dead {
                    return check(is_dead(&link.path), || format!("{:?} lives again", link.epoch));
                }
                let epoch = link.epoch;
                let Ok(stream) = Stream::open(&link.path) else { return Ok(()) };
                stream.wait(SHORT).await;
                self.listen(&stream, epoch)
            }
            Op::KillAgent { back } => self.kill(true, false, back),
            Op::KillMounter { back } => self.kill(false, true, back),
            Op::KillBoth { back } => self.kill(true, true, back),
            Op::Back => self.back(),
            Op::Freeze => {
                self.calm = false;
                self.bench.freeze(true);
                Ok(())
            }
            Op::Thaw => {
                self.bench.freeze(false);
                self.wait().await
            }
            Op::Mischief(mischief) => {
                self.calm = false;
                self.bench.mischief(mischief);
                Ok(())
            }
            Op::Release => {
                self.bench.release();
                self.wait().await
            }
            Op::Pause => {
                tokio::time::sleep(self.bench.patience()).await;
                self.collect().await
            }
            Op::Settle => self.settle().await,
        }
    }

    fn kill(&mut self, agent: bool, mounter: bool, back: bool) -> R {
        self.calm = false;
        if agent {
            self.bench.agent(false);
            self.up.0 = false;
        }
        if mounter {
            self.bench.mounter(false);
            self.up.1 = false;
        }
        if back { self.back() } else { Ok(()) }
    }

    fn back(&mut self) -> R {
        if !std::mem::replace(&mut self.up.1, true) {
            self.bench.mounter(true);
        }
        if !std::mem::replace(&mut self.up.0, true) {
            self.bench.agent(true);
        }
        Ok(())
    }

    fn path(&self, spot: Spot) -> PathBuf {
        self.bench.kubelet().target_path(&at(spot)).join("spire-agent.sock")
    }

    fn id(&self, spot: Spot, id: u8) -> String {
        if id == 0 { at(spot).volume_id } else { "csi-another".to_owned() }
    }

    /// The volume id in the kubelet's record.
    fn recorded(&self, spot: Spot) -> Option<String> {
        let file = self.bench.kubelet().volume_directory(&at(spot)).join("vol_data.json");
        let json: serde_json::Value = serde_json::from_str(&std::fs::read_to_string(file).ok()?).unwrap();
        Some(json["volumeHandle"].as_str().unwrap().to_owned())
    }

    fn prepare(&self, pod: Pod, volume: u8, id: u8) {
        let spot = Spot { uid: pod.uid, volume };
        if self.recorded(spot).is_none() {
            let record = PodVolume { volume_id: self.id(spot, id), ..volume_of(pod, volume) };
            self.bench.kubelet().prepare(&record).unwrap();
        }
    }

    fn tokens(&self, pod: Pod, proof: Proof) -> Option<String> {
        let (issuer, own) = (self.bench.issuer(), claims(pod));
        let raw = match proof {
            Proof::Own | Proof::InContext => return Some(issuer.tokens_json(&own)),
            Proof::Of(other) => return Some(issuer.tokens_json(&claims(other))),
            Proof::Missing => return None,
            Proof::OtherNode => issuer.token(&Claims { node: "node-2".to_owned(), ..own }),
            Proof::OtherAudience => issuer.token(&Claims { audience: vec!["vault".to_owned()], ..own }),
            Proof::Expired => issuer.expired(&own),
            Proof::WrongKey => issuer.forged_with_other_key(&own),
            Proof::Unsigned => issuer.forged_without_signature(&own),
            Proof::ChangedClaims => {
                let other = claims(Pod { account: pod.account ^ 1, ..pod });
                issuer.forged_with_changed_claims(&other, |json| *json = issuer.claims_json(&own))
            }
        };
        let expires = "2099-01-01T00:00:00Z";
        Some(serde_json::json!({AUDIENCE: {"token": raw, "expirationTimestamp": expires}}).to_string())
    }

    fn publish(&mut self, pod: Pod, volume: u8, id: u8, proof: Proof, prepare: bool) {
        let spot = Spot { uid: pod.uid, volume };
        if prepare {
            self.prepare(pod, volume, id);
        }
        let of = PodVolume { volume_id: self.id(spot, id), ..volume_of(pod, volume) };
        let tokens = self.tokens(pod, proof);
        let mut request = self.bench.kubelet().publish_request(&of, tokens.as_deref());
        if proof == Proof::InContext {
            request.volume_context.extend(request.secrets.drain());
        }
        let proved = proof == Proof::Own || proof == Proof::Of(pod);
        self.send_publish(request, spot, pod, proved);
    }

    fn send_publish(&mut self, request: NodePublishVolumeRequest, spot: Spot, who: Pod, proved: bool) {
        let known = self.recorded(spot).is_some_and(|id| id == request.volume_id);
        self.published.push((request.clone(), spot, who, proved));
        let kubelet = self.bench.kubelet();
        let call = async move { kubelet.publish_raw(request).await };
        self.send(spot, Kind::Publish { who, proved, known }, false, call);
    }

    fn unpublish(&mut self, spot: Spot, id: u8, remove: bool) {
        let id = match self.recorded(spot) {
            Some(recorded) if id == 0 => recorded,
            _ => self.id(spot, id),
        };
        let known = self.recorded(spot).is_none_or(|recorded| recorded == id);
        let kubelet = self.bench.kubelet();
        let target_path = kubelet.target_path(&at(spot)).to_string_lossy().into_owned();
        let request = NodeUnpublishVolumeRequest { volume_id: id, target_path };
        let call = async move { kubelet.unpublish_raw(request).await };
        self.send(spot, Kind::Unpublish { known }, remove, call);
    }

    fn send(
        &mut self,
        spot: Spot,
        kind: Kind,
        remove: bool,
        call: impl Future<Output = Result<(), Status>> + Send + 'static,
    ) {
        let links: Vec<_> = self.links.iter().filter(|l| l.epoch.0 == spot).map(|l| l.path.clone()).collect();
        let streams = self.streams.iter().filter(|s| s.epoch.0 == spot);
        let streams: Vec<_> = streams.map(|s| Arc::clone(&s.stream)).collect();
        let task = tokio::spawn(async move {
            let answer = call.await;
            // Now, not a moment later: access is cut before the answer.
            let cut = matches!(kind, Kind::Unpublish { known: true }) && answer.is_ok();
            let mut alive = Vec::new();
            if cut {
                let heard = streams.iter().filter(|s| !s.said().is_empty() && !s.is_cut());
                alive.extend(heard.map(|s| format!("a stream that said {:?}", s.said())));
                alive.extend(
                    links.iter().filter(|l| !is_dead(l)).map(|l| format!("the socket {}", l.display())),
                );
            }
            (answer, alive)
        });
        let mut under_way: Vec<_> = self.sent.iter_mut().map(|s| &mut s.call).collect();
        let call = self.model.begin(spot, kind, &mut under_way, self.step, self.calm);
        self.sent.push(Sent { call, remove, task });
    }

    /// Waits for the calls: while nothing is disturbed they must be answered.
    async fn wait(&mut self) -> R {
        let limit = if self.calm { LONG } else { self.bench.patience() };
        let start = Instant::now();
        loop {
            self.collect().await?;
            if self.sent.is_empty() {
                return Ok(());
            }
            if start.elapsed() > limit {
                return check(!self.calm, || format!("no answer to {:?}", self.sent[0].call));
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    async fn collect(&mut self) -> R {
        while let Some(done) = self.sent.iter().position(|sent| sent.task.is_finished()) {
            let Sent { call, remove, task } = self.sent.remove(done);
            let (answer, alive) = task.await.map_err(|e| e.to_string())?;
            if answer.as_ref().is_err_and(|status| status.code() == tonic::Code::Unavailable) {
                self.calm = false;
            }
            match self.model.end(&call, &answer)? {
                Verdict::Nothing => {}
                Verdict::Ended(epoch) => {
                    check(alive.is_empty(), || format!("unpublished, and still there: {alive:?}"))?;
                    self.bury(|link| link.epoch == epoch);
                }
                Verdict::Cut(step) => {
                    check(alive.is_empty(), || format!("unpublished, and still there: {alive:?}"))?;
                    self.bury(|link| link.epoch.0 == call.spot && link.step < step);
                }
            }
            let quiet = self.sent.iter().all(|sent| sent.call.spot != call.spot);
            if remove && answer.is_ok() && quiet {
                let removed = self.bench.kubelet().remove(&at(call.spot));
                if call.calm && call.alone {
                    removed.map_err(|e| format!("something was left over: {e}"))?;
                }
            }
        }
        Ok(())
    }

    fn bury(&mut self, which: impl Fn(&Link) -> bool) {
        self.links.iter_mut().filter(|link| which(link)).for_each(|link| link.dead = true);
    }

    /// Holds on to the sockets that are new, and listens to all streams.
    fn look(&mut self) -> R {
        for spot in spots() {
            let path = self.bench.kubelet().root().join("links").join(self.links.len().to_string());
            let socket = self.path(spot);
            let inode = |path: &PathBuf| {
                std::fs::symlink_metadata(path).map(|m| std::os::unix::fs::MetadataExt::ino(&m)).ok()
            };
            let Some(number) = inode(&socket) else { continue };
            // A link keeps its inode, so no other gets that number.
            if self.links.iter().any(|link| inode(&link.path) == Some(number)) {
                continue;
            }
            if std::fs::hard_link(&socket, &path).is_ok() {
                let epoch = self.model.epoch(spot);
                self.links.push(Link { path, epoch, step: self.step, dead: false });
            }
        }
        self.streams.iter().try_for_each(|s| self.listen(&s.stream, s.epoch))
    }

    /// Nothing was said but what may be said in that epoch.
    fn listen(&self, stream: &Stream, epoch: Epoch) -> R {
        let may = self.model.may_say(epoch);
        for said in stream.said() {
            let known = self.names.get(&said).is_some_and(|pod| may.contains(pod));
            check(known, || format!("a socket of {epoch:?} said {said}; it may say {may:?}"))?;
        }
        Ok(())
    }

    async fn fetch(&mut self, spot: Spot) -> R {
        let certain = self.model.certain(spot);
        let epoch = self.model.epoch(spot);
        let stream = Stream::open(&self.path(spot));
        match (certain, stream) {
            (Some(None), Ok(_)) if self.calm => Err(format!("somebody accepts at {spot:?}")),
            (Some(Some(pod)), Err(e)) if self.calm => Err(format!("{pod:?} cannot connect: {e}")),
            (_, Err(_)) => Ok(()),
            (certain, Ok(stream)) => {
                stream.wait(if self.calm { LONG } else { SHORT }).await;
                if let (true, Some(Some(pod))) = (self.calm, certain) {
                    let (wanted, said) = (identity(pod), stream.said());
                    check(said.first() == Some(&wanted), || format!("heard {said:?}, not {wanted}"))?;
                }
                self.listen(&stream, epoch)
            }
        }
    }

    /// Everything runs and behaves; what is certain must be served, what is not is taken away.
    async fn settle(&mut self) -> R {
        self.bench.behave();
        self.back()?;
        self.ready().await?;
        let start = Instant::now();
        while !self.sent.is_empty() {
            self.collect().await?;
            check(start.elapsed() < LONG, || format!("no answer to {:?}", self.sent[0].call))?;
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        for spot in spots() {
            match self.model.certain(spot) {
                Some(None) => {}
                Some(Some(pod)) => {
                    self.until_done(spot, "republished", |world| {
                        let recorded = world.recorded(spot).unwrap_or_default();
                        let id = u8::from(recorded != world.id(spot, 0));
                        world.publish(pod, spot.volume, id, Proof::Own, false);
                    })
                    .await?;
                }
                None => self.until_done(spot, "unpublished", |world| world.unpublish(spot, 0, false)).await?,
            }
        }
        self.calm = true;
        for spot in spots() {
            self.fetch(spot).await?;
        }
        Ok(())
    }

    /// The kubelet tries again until it works, as long as it is not refused for good.
    async fn until_done(&mut self, spot: Spot, what: &str, send: impl Fn(&mut Self)) -> R {
        let start = Instant::now();
        loop {
            send(self);
            let Some(Sent { call, task, .. }) = self.sent.pop() else { return Ok(()) };
            let (answer, alive) = task.await.map_err(|e| e.to_string())?;
            let verdict = self.model.end(&call, &answer)?;
            if let Verdict::Ended(epoch) = verdict {
                check(alive.is_empty(), || format!("unpublished, and still there: {alive:?}"))?;
                self.bury(|link| link.epoch == epoch);
            }
            match answer {
                Ok(()) => return Ok(()),
                Err(status) if status.code() != tonic::Code::Unavailable || start.elapsed() > LONG => {
                    return Err(format!("{spot:?} cannot be {what}: {status:?}"));
                }
                Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
            }
        }
    }

    async fn finish(&mut self) -> R {
        self.settle().await?;
        self.look()?;
        for spot in spots() {
            self.until_done(spot, "unpublished", |world| world.unpublish(spot, 0, false)).await?;
            self.bench.kubelet().remove(&at(spot)).map_err(|e| format!("something was left over: {e}"))?;
        }
        for link in &self.links {
            check(is_dead(&link.path), || format!("a socket of {:?} is alive", link.epoch))?;
        }
        let start = Instant::now();
        while let Some(open) = self.streams.iter().find(|s| !s.stream.is_cut()) {
            check(start.elapsed() < LONG, || format!("a stream of {:?} is open", open.epoch))?;
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        self.streams.iter().try_for_each(|s| self.listen(&s.stream, s.epoch))?;
        let left = self.bench.leftovers();
        check(left.is_empty(), || format!("left over: {left:?}"))
    }
}

fn check(good: bool, why: impl FnOnce() -> String) -> R {
    if good { Ok(()) } else { Err(why()) }
}
