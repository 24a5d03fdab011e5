//! The pods of a play: volumes, then containers in Kubernetes' order, then the way back.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::issuer::TokenIssuer;
use crate::kubelet::{Kubelet, KubeletError, PodVolume};
use tokio::sync::watch;
use tokio::task::JoinSet;
use zeroize::Zeroizing;

use super::AUDIENCE;
use super::container::{Mount, Spec};
use super::ground::Ground;
use super::manifest::{Container, Pod, Restart, Source};
use super::output::Output;
use super::process::{End, Running, Stop, start};
use super::rootless::Mode;
use super::volumes;

/// How often a failed container of a pod with `restartPolicy: OnFailure` is started again.
const RETRIES: u32 = 3;
/// The longest pause before a container starts again.
const BACK_OFF: Duration = Duration::from_secs(10);
/// The user of a container that must not be root and names no user: most images' `nonroot`.
const NON_ROOT: u32 = 65532;
/// The longest path of a socket that connect(2) takes.
const LONGEST_SOCKET: usize = 107;

/// What became of a play.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Every container that is not a sidecar succeeded.
    Succeeded,
    /// One did not.
    Failed,
    /// The node itself did not work.
    Broken,
    /// It was stopped before.
    Interrupted,
}

/// What the pods share.
pub struct Play {
    /// The simulated kubelet.
    pub kubelet: Kubelet,
    /// The simulated API server's issuer of tokens.
    pub issuer: TokenIssuer,
    /// The directories.
    pub ground: Ground,
    /// Where to print.
    pub output: Output,
    /// Whose ids there are.
    pub mode: Mode,
    /// Whether volumes stay until the end.
    pub keep: bool,
    /// The trust domain.
    pub trust_domain: String,
    /// The pid of `play` outside.
    pub play: u32,
}

/// What became of one pod.
struct Outcome {
    pod: Arc<Pod>,
    volumes: Vec<PodVolume>,
    /// What the driver said of each volume at the end.
    conditions: Vec<String>,
    ends: Vec<(String, End)>,
    broken: bool,
    complete: bool,
    left: bool,
}

/// Why a pod has no volumes.
struct Failure {
    reason: String,
    broken: bool,
}

impl Play {
    /// Plays all pods to their end.
    pub async fn run(
        self: &Arc<Self>,
        pods: Vec<Pod>,
        stops: watch::Receiver<Stop>,
        timeout: Option<Duration>,
    ) -> Verdict {
        // The stop that the pods see: the user's, or the timeout's. It only ever rises (`max`), so it does
        // not matter which is first, nor that a receiver sees the last value alone. Pods share nothing else:
        // each is one task, and its containers end within it.
        let (stop, seen) = watch::channel(Stop::No);
        let mut asked = stops;
        let timed_out = std::cell::Cell::new(false);
        let watcher = async {
            let deadline = async {
                match timeout {
                    Some(timeout) => tokio::time::sleep(timeout).await,
                    None => std::future::pending().await,
                }
            };
            tokio::pin!(deadline);
            loop {
                tokio::select! {
                    () = &mut deadline, if !timed_out.get() => {
                        timed_out.set(true);
                        self.output.say("the time is over: stopping");
                        stop.send_modify(|s| *s = (*s).max(Stop::Graceful));
                    }
                    changed = asked.changed() => {
                        if changed.is_err() {
                            std::future::pending::<()>().await;
                        }
                        let now = *asked.borrow_and_update();
                        self.output.say(match now {
                            Stop::Now => "stopping at once",
                            _ => "stopping (again to stop at once)",
                        });
                        stop.send_modify(|s| *s = (*s).max(now));
                    }
                }
            }
        };
        let all = async {
            let mut tasks = JoinSet::new();
            for pod in pods {
                let (play, seen) = (Arc::clone(self), seen.clone());
                tasks.spawn(async move { play.pod(Arc::new(pod), seen).await });
            }
            let mut outcomes = Vec::new();
            while let Some(outcome) = tasks.join_next().await {
                outcomes.push(outcome);
            }
            outcomes
        };
        let outcomes = tokio::select! {
            outcomes = all => outcomes,
            () = watcher => Vec::new(),
        };
        let stopped = *seen.borrow() != Stop::No && !timed_out.get();
        self.summary(outcomes, stopped)
    }

    fn summary(&self, outcomes: Vec<Result<Outcome, tokio::task::JoinError>>, stopped: bool) -> Verdict {
        let mut verdict = Verdict::Succeeded;
        let mut lines = vec!["summary".to_owned()];
        let mut clean = true;
        for outcome in outcomes {
            let outcome = match outcome {
                Ok(outcome) => outcome,
                Err(error) => {
                    lines.push(format!("  a pod's task failed: {error}"));
                    verdict = Verdict::Broken;
                    continue;
                }
            };
            let ends: Vec<String> = outcome
                .ends
                .iter()
                .map(|(name, end)| match end {
                    End::Exited(status) => format!("{name} {status}"),
                    End::NotStarted(_) => format!("{name} not started"),
                })
                .collect();
            let good = outcome.complete && outcome.ends.iter().all(|(_, end)| end.is_success());
            let word = if good { "succeeded" } else { "did not succeed" };
            lines.push(format!("  pod {} {word}: {}", outcome.pod.full_name(), ends.join(", ")));
            lines.extend(outcome.conditions.iter().map(|c| format!("    {c}")));
            clean &= !outcome.left;
            verdict = match (outcome.broken, good) {
                (true, _) => Verdict::Broken,
                (false, false) if verdict == Verdict::Succeeded && stopped => Verdict::Interrupted,
                (false, false) if verdict == Verdict::Succeeded => Verdict::Failed,
                _ => verdict,
            };
        }
        lines.push(
            match clean {
                true => "  every volume is unpublished and removed; the rest goes with this play's namespaces",
                false => {
                    "  not every volume could be unpublished and removed; what is left goes with this play's namespaces"
                }
            }
            .into(),
        );
        self.output.say(&lines.join("\n"));
        verdict
    }

    /// What a volume carries (the ID by the default template, which the simulated agent has) and what the
    /// driver itself says of it.
    async fn condition(&self, pod: &Pod, volume: &PodVolume) -> String {
        let id = format!("spiffe://{}/ns/{}/sa/{}", self.trust_domain, pod.namespace, pod.service_account);
        let said = match self.kubelet.stats(volume).await.map(|s| s.volume_condition) {
            Ok(Some(condition)) => condition.message,
            Ok(None) => "no condition reported".into(),
            Err(status) => format!("the driver did not say how it is: {}", status.message()),
        };
        format!("volume {}: {id} ({said})", volume.volume_name)
    }

    async fn pod(self: Arc<Self>, pod: Arc<Pod>, stop: watch::Receiver<Stop>) -> Outcome {
        let mut outcome = Outcome {
            pod: Arc::clone(&pod),
            volumes: Vec::new(),
            conditions: Vec::new(),
            ends: Vec::new(),
            broken: false,
            complete: false,
            left: false,
        };
        let mut stops = stop.clone();
        match self.set_up(&pod, &mut outcome.volumes).await {
            Ok(paths) => {
                let republish = async {
                    self.republish(&outcome.volumes).await;
                };
                let containers = async {
                    let ended = self.containers(&pod, &paths, stop).await;
                    if self.keep {
                        // An error means that the sender is gone: everything ends.
                        let _ = stops.wait_for(|s| *s != Stop::No).await;
                    }
                    ended
                };
                tokio::select! {
                    (ends, complete) = containers => (outcome.ends, outcome.complete) = (ends, complete),
                    () = republish => {}
                }
            }
            Err(Failure { reason, broken }) => {
                outcome.broken = broken;
                self.output.say(&format!("pod {}: {reason}", pod.full_name()));
            }
        }
        for volume in &outcome.volumes {
            outcome.conditions.push(self.condition(&pod, volume).await);
        }
        let directory = self.ground.kubelet.join("pods").join(&pod.uid);
        // First, so that the kubelet finds the pod's directory empty and removes it after the last volume.
        let mut errors = Vec::from_iter(volumes::remove(&directory).err().map(|e| e.to_string()));
        for volume in &outcome.volumes {
            if let Err(error) = self.tear_down(volume).await {
                errors.push(format!("volume {}: {error}", volume.volume_name));
            }
        }
        for error in &errors {
            self.output.say(&format!("pod {}: {error}", pod.full_name()));
        }
        outcome.broken |= !errors.is_empty();
        outcome.left = directory.exists();
        outcome
    }

    /// Makes the volumes; says where each is.
    async fn set_up(
        &self,
        pod: &Pod,
        published: &mut Vec<PodVolume>,
    ) -> Result<BTreeMap<String, PathBuf>, Failure> {
        let mut paths = BTreeMap::new();
        for volume in &pod.volumes {
            let name = &volume.name;
            let Source::Csi { read_only, attributes } = &volume.source else {
                let directory = self.ground.kubelet.join("pods").join(&pod.uid);
                let path = volumes::make(&directory, volume, pod.fs_group).map_err(|e| Failure {
                    reason: format!("volume {name} cannot be made: {e}"),
                    broken: false,
                })?;
                paths.extend(path.map(|path| (name.clone(), path)));
                continue;
            };
            let mut csi = PodVolume::new(&pod.namespace, &pod.service_account, &pod.name, &pod.uid, name);
            csi.read_only = *read_only;
            csi.attributes.clone_from(attributes);
            let tokens = Zeroizing::new(self.tokens(&csi));
            if let Err(refusal) = self.kubelet.set_up(&csi, Some(&tokens)).await {
                let mut reason =
                    format!("volume {name} was refused: {} ({:?})", refusal.message(), refusal.code());
                // Whatever the driver was still doing with it, and the pod's directories.
                if let Err(error) = self.tear_down(&csi).await {
                    reason.push_str(&format!("; {error}"));
                }
                // What is wrong with the request is the manifest's fault, everything else the node's.
                return Err(Failure { reason, broken: refusal.code() != tonic::Code::InvalidArgument });
            }
            let path = self.kubelet.target_path(&csi);
            if self.keep {
                self.print_socket(pod, name, &path);
            }
            paths.insert(name.clone(), path);
            published.push(csi);
        }
        Ok(paths)
    }

    /// Unpublishes and removes a volume. A kubelet tries again and again, because the driver may just be
    /// coming back.
    async fn tear_down(&self, volume: &PodVolume) -> Result<(), KubeletError> {
        let mut tries = 5;
        loop {
            tries -= 1;
            match self.kubelet.tear_down(volume).await {
                Err(_) if tries > 0 => tokio::time::sleep(Duration::from_secs(1)).await,
                outcome => return outcome,
            }
        }
    }

    fn tokens(&self, volume: &PodVolume) -> String {
        self.issuer.tokens_json(&volume.claims(self.kubelet.node(), AUDIENCE))
    }

    /// Prints the way to a volume's socket from outside. The volume's own path is longer than a socket's may
    /// be, so a (relative) link shortens it.
    fn print_socket(&self, pod: &Pod, volume: &str, path: &std::path::Path) {
        let Ok(below) = path.strip_prefix("/run") else { return };
        let long = format!("{}.{}.{volume}", pod.namespace, pod.name);
        let short = pod.uid.get(..8).unwrap_or_default();
        let whole = |name: &str| {
            format!("/proc/{}/root{}/{name}/spire-agent.sock", self.play, self.ground.sockets.display())
        };
        let name = if whole(&long).len() <= LONGEST_SOCKET { long } else { format!("{short}.{volume}") };
        if let Err(error) =
            std::os::unix::fs::symlink(PathBuf::from("..").join(below), self.ground.sockets.join(&name))
        {
            self.output.say(&format!("the link {name} cannot be made: {error}"));
            return;
        }
        self.output.say(&format!(
            "socket of pod {}, volume {volume}: unix://{}",
            pod.full_name(),
            whole(&name)
        ));
    }

    /// Publishes again with a fresh token every 60 to 90 s, as the kubelet does for `requiresRepublish`.
    /// Never ends.
    async fn republish(&self, volumes: &[PodVolume]) {
        loop {
            let jitter =
                SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| u64::from(d.subsec_millis()) * 30);
            tokio::time::sleep(Duration::from_millis(60_000 + jitter)).await;
            for volume in volumes {
                let tokens = Zeroizing::new(self.tokens(volume));
                if let Err(status) = self.kubelet.publish(volume, Some(&tokens)).await {
                    self.output.say(&format!(
                        "pod {}/{}: volume {} could not be published again: {}",
                        volume.namespace,
                        volume.pod_name,
                        volume.volume_name,
                        status.message()
                    ));
                }
            }
        }
    }

    /// Runs the containers; the ends of those that are not sidecars, and whether all of them had their turn.
    async fn containers(
        self: &Arc<Self>,
        pod: &Arc<Pod>,
        paths: &BTreeMap<String, PathBuf>,
        mut stop: watch::Receiver<Stop>,
    ) -> (Vec<(String, End)>, bool) {
        let mut ends = Vec::new();
        let mut sidecars = Vec::new();
        let mut ready = true;
        for container in &pod.init {
            if *stop.borrow() != Stop::No {
                ready = false;
                break;
            }
            let run = Run::new(self, pod, container, paths);
            if container.sidecar {
                let (end_it, told) = watch::channel(false);
                let (up, is_up) = tokio::sync::oneshot::channel();
                let mut stop = stop.clone();
                let task = tokio::spawn(async move { run.sidecar(told, &mut stop, up).await });
                // The next container waits until this one has started.
                ready = is_up.await.unwrap_or(false);
                sidecars.push((end_it, task));
                if !ready {
                    break;
                }
            } else {
                let end = run.to_the_end(pod.restart, &mut stop).await;
                ready = end.is_success();
                ends.push((container.name.clone(), end));
                if !ready {
                    break;
                }
            }
        }
        if ready && *stop.borrow() == Stop::No {
            let mut tasks = JoinSet::new();
            for (i, container) in pod.containers.iter().enumerate() {
                let run = Run::new(self, pod, container, paths);
                let (name, restart, mut stop) = (container.name.clone(), pod.restart, stop.clone());
                tasks.spawn(async move { (i, name, run.to_the_end(restart, &mut stop).await) });
            }
            let mut main: Vec<_> = tasks.join_all().await;
            main.sort_by_key(|(i, _, _)| *i);
            ends.extend(main.into_iter().map(|(_, name, end)| (name, end)));
        } else {
            ready = false;
        }
        if self.keep {
            // The sidecars belong to what is kept.
            let _ = stop.wait_for(|s| *s != Stop::No).await;
        }
        for (end_it, task) in sidecars.into_iter().rev() {
            let _ = end_it.send(true);
            if let Err(error) = task.await {
                self.output.say(&format!("pod {}: a sidecar's task failed: {error}", pod.full_name()));
            }
        }
        (ends, ready)
    }
}

/// What it takes to run one container.
struct Run {
    spec: Spec,
    label: String,
    output: Output,
    grace: Duration,
}

impl Run {
    fn new(play: &Play, pod: &Pod, container: &Container, paths: &BTreeMap<String, PathBuf>) -> Self {
        let one_id = play.mode == Mode::OneId;
        let unnamed = if container.non_root && !one_id { NON_ROOT } else { 0 };
        let uid = container.user.unwrap_or(unnamed);
        let rootfs = play.ground.rootfs.get(&container.image);
        let groups = pod.groups.iter().copied().chain(pod.fs_group).collect();
        let mounts = container.mounts.iter().filter_map(|m| {
            let volume = pod.volumes.iter().find(|v| v.name == m.volume)?;
            Some(Mount {
                make_sub_path: matches!(volume.source, Source::EmptyDir),
                source: paths.get(&m.volume)?.clone(),
                sub_path: m.sub_path.clone(),
                path: m.path.clone(),
                read_only: m.read_only,
            })
        });
        Self {
            spec: Spec {
                hostname: pod.hostname.clone(),
                new_root: play.ground.new_root.clone(),
                base: rootfs.cloned().unwrap_or_else(|| PathBuf::from("/")),
                host: rootfs.is_none(),
                bin: play.ground.bin.clone(),
                resolver: play.ground.resolver.clone().filter(|_| rootfs.is_none()),
                mounts: mounts.collect(),
                command: container.command.clone(),
                env: container.env.clone(),
                directory: container.directory.clone(),
                uid,
                gid: container.group.unwrap_or(unnamed),
                groups: (!one_id).then_some(groups),
                read_only: container.read_only,
                real_ids: play.mode == Mode::Root,
            },
            label: format!("{}/{}", pod.name, container.name),
            output: play.output,
            grace: pod.grace,
        }
    }

    async fn start(&self) -> Result<Running, End> {
        start(&self.spec, &self.label, self.output).await.map_err(|reason| {
            self.output.about(&self.label, &format!("could not be started: {reason}"));
            End::NotStarted(reason)
        })
    }

    fn report(&self, end: &End) {
        match end {
            End::Exited(0) => self.output.about(&self.label, "exited with status 0"),
            End::Exited(status) => self.output.about(&self.label, &format!("exited with status {status}")),
            // Already said.
            End::NotStarted(_) => {}
        }
    }

    /// Runs once, until it ends or everything stops.
    async fn once(&self, stop: &mut watch::Receiver<Stop>) -> End {
        let mut running = match self.start().await {
            Ok(running) => running,
            Err(end) => return end,
        };
        let end = tokio::select! {
            end = running.wait() => Some(end),
            _ = stop.wait_for(|s| *s != Stop::No) => None,
        };
        let end = match end {
            Some(end) => end,
            None => running.terminate(self.grace, stop).await,
        };
        self.report(&end);
        end
    }

    async fn to_the_end(&self, restart: Restart, stop: &mut watch::Receiver<Stop>) -> End {
        let mut pause = Duration::from_secs(1);
        let mut attempt = 0;
        loop {
            let end = self.once(stop).await;
            // What cannot be started now cannot be started later either.
            let again = restart == Restart::OnFailure && matches!(end, End::Exited(status) if status != 0);
            if !again || attempt == RETRIES || *stop.borrow() != Stop::No {
                return end;
            }
            attempt += 1;
            self.output.about(&self.label, &format!("starts again in {} s", pause.as_secs()));
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                _ = stop.wait_for(|s| *s != Stop::No) => return end,
            }
            pause = (pause * 2).min(BACK_OFF);
        }
    }

    /// Runs a native sidecar again and again until it is told to end, which is after the containers.
    async fn sidecar(
        &self,
        mut told: watch::Receiver<bool>,
        stop: &mut watch::Receiver<Stop>,
        up: tokio::sync::oneshot::Sender<bool>,
    ) {
        let mut up = Some(up);
        let mut pause = Duration::from_secs(1);
        loop {
            let started = self.start().await;
            if let Some(up) = up.take() {
                let _ = up.send(started.is_ok());
            }
            let Ok(mut running) = started else { return };
            let ended = tokio::select! {
                end = running.wait() => Some(end),
                _ = told.wait_for(|t| *t) => None,
            };
            let Some(end) = ended else {
                let end = running.terminate(self.grace, stop).await;
                return self.report(&end);
            };
            self.report(&end);
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                _ = told.wait_for(|t| *t) => return,
            }
            pause = (pause * 2).min(BACK_OFF);
        }
    }
}
