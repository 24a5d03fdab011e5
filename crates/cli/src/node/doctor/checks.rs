//! The checks of the node itself.

use std::time::Duration;

use seamount_proto::node::{Authority, Condition, Driver, Mounter, Validity};

use super::{Check, Evidence};
use crate::node::client::Failure;
use crate::node::disk::{Disk, Door, PARTS};
use crate::node::processes::{Process, Program};
use crate::node::render::plain;
use crate::node::time::{relative, rfc3339, span};

/// Two mounters for less than this are a roll-out or a pod that was deleted by force.
const ROLL_OUT: Duration = Duration::from_secs(120);
/// Certificates that end within so many seconds are worth a note.
const ROOT_SOON: i64 = 30 * 86_400;
/// A clock may be off by so many seconds.
const SKEW: i64 = 30;
/// Before this year (2026) no such program existed: the clock is wrong.
const FIRST: i64 = 1_767_225_600;

const PODS: &str = "kubectl -n seamount-system get pods -o wide --field-selector spec.nodeName=NODE";

fn log(container: &str) -> String {
    format!("kubectl -n seamount-system logs POD -c {container} (with --previous for the one before)")
}

/// The kubelet's directories.
pub fn directories(e: &Evidence) -> Check {
    let (name, root) = ("directories", e.root.display());
    if let Some(why) = &e.disk.unreadable {
        return Check::problem(
            name,
            format!("{root} cannot be looked at: {why}"),
            [
                "run this as root, on the node or in the mounter's container (kubectl exec … -c mounter -- /seamount node doctor)",
                "give the kubelet's --root-dir as --kubelet-root, if it is not /var/lib/kubelet",
            ],
        );
    }
    let missing: Vec<_> = PARTS.into_iter().filter(|part| !e.disk.parts.contains(part)).collect();
    if !missing.is_empty() {
        return Check::problem(
            name,
            format!(
                "{root} has no {}: this is not a kubelet's directory, or the kubelet has never run",
                missing.join(", ")
            ),
            ["find the kubelet's --root-dir (ps -C kubelet -o args) and give it as --kubelet-root"],
        );
    }
    if !e.disk.plugin {
        let others: Vec<_> = e.disk.plugins.iter().map(|p| plain(p)).collect();
        let others = if others.is_empty() { "nothing".to_owned() } else { others.join(", ") };
        return Check::problem(
            name,
            format!("Seamount has never run here: no plugins/{} (there is {others})", e.driver),
            [
                "if the installation has another driver name or kubelet directory, give --driver and --kubelet-root",
                "is the DaemonSet there, and allowed on this node? kubectl -n seamount-system describe daemonset seamount-node",
                PODS,
            ],
        );
    }
    Check::ok(name, format!("{root}, driver {}", e.driver))
}

/// From the processes to the authority.
pub fn all(e: &Evidence) -> Vec<Check> {
    let mut out = vec![processes(e), sockets(e), agent(e)];
    let Ok(status) = &e.status else {
        let why = "the agent does not answer";
        out.extend(
            ["mounter", "registration", "configuration", "token keys", "authority", "certificates"]
                .map(|name| Check::skipped(name, why)),
        );
        return out;
    };
    out.push(mounter(status.mounter.as_ref()));
    out.push(registration(e));
    let conditions = &status.conditions;
    out.push(condition(conditions, "configuration", "configuration", &[
        "correct it: kubectl -n seamount-system edit configmap seamount-agent (the agent reads it again within a minute or two)",
        "until then volumes are removed and served, but new ones wait",
    ]));
    out.push(condition(conditions, "token keys", "token keys", &[
        "token.keys in the configuration: is the file there, or does the API server answer on /openid/v1/jwks?",
        "token.issuers, where it is set, must have the API server's --service-account-issuer",
    ]));
    out.push(authority(status.authority.as_ref(), e.now));
    out.push(certificates(e));
    out
}

fn processes(e: &Evidence) -> Check {
    let name = "processes";
    let (mounters, agents) = (e.processes.of(Program::Mounter), e.processes.of(Program::Agent));
    let stopped: Vec<_> = e.processes.ours.iter().filter(|p| p.stopped).collect();
    if let Some(first) = stopped.first() {
        let all: Vec<_> = stopped.iter().map(|p| told(p)).collect();
        return Check::problem(
            name,
            format!("stopped by a signal or a debugger: {}", all.join(", ")),
            [format!("kill -CONT {}", first.pid), "if it stops again, find what stops it".to_owned()],
        );
    }
    let old = |p: &&&Process| p.age.is_some_and(|age| age > ROLL_OUT);
    if mounters.len() > 1 {
        let all: Vec<_> = mounters.iter().map(|p| told(p)).collect();
        let text = format!("{} mounters on this node: {}", mounters.len(), all.join(", "));
        if mounters.iter().filter(old).count() < 2 {
            return Check::note(name, format!("{text}: a roll-out"), ["look again in two minutes"]);
        }
        return Check::problem(
            name,
            text + "; one of them waits for the other",
            ["two installations on a node, or a pod that was deleted by force: delete the older one", PODS],
        );
    }
    if let (Some(mounter), Some(agent)) = (mounters.first(), agents.first()) {
        return Check::ok(name, format!("{}, {}", told(mounter), told(agent)));
    }
    if e.processes.partial {
        return Check::skipped(name, "not all processes can be seen from here; run this on the node as root");
    }
    let gone: Vec<_> = [Program::Mounter, Program::Agent]
        .into_iter()
        .filter(|program| e.processes.of(*program).is_empty())
        .map(Program::name)
        .collect();
    Check::problem(
        name,
        format!("no {} runs here", gone.join(" and no ")),
        [
            format!("look at the pod of this node, and why it does not run: {PODS}"),
            log(if gone.contains(&"seamount-mounter") { "mounter" } else { "agent" }),
            "what was issued stays; sockets and identities come back with the processes".to_owned(),
        ],
    )
}

fn told(p: &Process) -> String {
    let age = p.age.map(|age| format!(", up {}", span(age))).unwrap_or_default();
    format!("{} (pid {}{age})", p.program.name(), p.pid)
}

fn sockets(e: &Evidence) -> Check {
    let name = "sockets";
    let doors = [("csi.sock", &e.disk.csi), ("the registration socket", &e.disk.registration)];
    for (what, door) in doors {
        let (text, todo) = match door {
            Some(Door::Open) | None => continue,
            Some(Door::Missing) => (
                "is not there",
                "the mounter makes it when the agent has connected, and within seconds where it was removed: look at both logs, mounter first",
            ),
            Some(Door::NotASocket) => {
                ("is no socket: another file was put there", "remove it and restart the pod of this node")
            }
            Some(Door::Dead) => (
                "is there, but no process has it open: the mounter is gone, and the agent too",
                "start them again; the socket is made anew",
            ),
            Some(Door::Full) => (
                "is full: connections wait and no process takes them; the agent is dead or stuck",
                "look at the agent's log and restart it; the mounter keeps what is there",
            ),
            Some(Door::Other(why)) => {
                return Check::problem(
                    name,
                    format!("{what} cannot be connected to: {why}"),
                    ["run this as root"],
                );
            }
        };
        let todo = [todo.to_owned(), PODS.to_owned(), log("mounter"), log("agent")];
        return Check::problem(name, format!("{what} {text}"), todo);
    }
    Check::ok(name, "csi.sock and the registration socket are open")
}

fn agent(e: &Evidence) -> Check {
    let name = "agent";
    match &e.status {
        Ok(status) => {
            Check::ok(name, format!("{} on {}", status.agent_version, or(&status.node, "an unnamed node")))
        }
        Err(Failure::Silent { .. }) => {
            let text = "no process answers on csi.sock, which the mounter keeps: the agent is dead, stuck, or waits for the mounter";
            Check::problem(name, text, [log("agent"), "restart the agent's container: kubectl -n seamount-system delete pod POD; identities stay".to_owned()])
        }
        Err(Failure::Old { .. }) => Check::problem(
            name,
            "it is of an older release, which tells nothing of itself",
            ["roll the DaemonSet to one image"],
        ),
        Err(e @ Failure::Closed { .. }) => {
            Check::problem(name, e.to_string(), ["run this as root, or as the user that kubeletUid names"])
        }
        Err(e) => Check::problem(name, e.to_string(), [PODS.to_owned(), log("agent")]),
    }
}

fn or(text: &str, other: &str) -> String {
    if text.is_empty() { other.to_owned() } else { plain(text) }
}

fn mounter(mounter: Option<&Mounter>) -> Check {
    let name = "mounter";
    let Some(mounter) = mounter else { return Check::skipped(name, "the agent says nothing of it") };
    let problem = plain(&mounter.problem);
    if !mounter.connected {
        return Check::problem(
            name,
            format!("the agent is not connected to it: {problem}"),
            [
                "is the mounter's container running? It restarts by itself; what is served goes on meanwhile"
                    .to_owned(),
                log("mounter"),
                "with `another protocol version`: roll the DaemonSet so that both containers run one image"
                    .to_owned(),
            ],
        );
    }
    if !mounter.answers {
        return Check::problem(
            name,
            format!("it is connected but does not answer: {problem}"),
            [
                "is it stopped (kill -CONT), or does it hang on a file system of the node? cat /proc/$(pidof seamount-mounter)/stack".to_owned(),
                log("mounter"),
                "restart its container; what is served goes on meanwhile".to_owned(),
            ],
        );
    }
    Check::ok(name, format!("{} is connected and answers", mounter.build))
}

/// The first driver that is not registered; else all of them.
fn registration(e: &Evidence) -> Check {
    let name = "registration";
    let drivers = e.status.as_ref().map(|s| s.drivers.as_slice()).unwrap_or_default();
    let state = |d: &Driver| d.registration.clone().unwrap_or_default();
    let Some(bad) = drivers.iter().find(|d| state(d).state != "registered") else {
        let all: Vec<_> = drivers.iter().map(|d| plain(&d.name)).collect();
        return match all.as_slice() {
            [] => Check::skipped(name, "the agent says nothing of it"),
            all => Check::ok(name, format!("the kubelet has registered {}", all.join(", "))),
        };
    };
    let (driver, found) = (plain(&bad.name), state(bad));
    match found.state.as_str() {
        "refused" => Check::problem(
            name,
            format!("the kubelet refused the driver {driver}: {}", plain(&found.reason)),
            [
                "is another driver of this name installed on the node? Remove it",
                "journalctl -u kubelet | grep csi",
            ],
        ),
        "unreachable" => Check::problem(
            name,
            plain(&found.reason),
            [
                "is another driver of this name installed on the node? Remove it; the socket comes back within seconds".to_owned(),
                "is plugins or plugins_registry below the kubelet's root read-only, or something else than a directory?".to_owned(),
                "does the mounter have the driver? It needs the same --driver as the agent".to_owned(),
                log("mounter"),
            ],
        ),
        _ => Check::problem(
            name,
            format!("the kubelet has not registered the driver {driver}; it is offered again every few minutes"),
            [
                "is the kubelet running, and is --kubelet-root its --root-dir? systemctl status kubelet",
                "restart the kubelet: it looks at plugins_registry when it starts, and does not notice that the directory itself was made anew",
            ],
        ),
    }
}

fn condition(all: &[Condition], name: &'static str, which: &str, todo: &[&str]) -> Check {
    match all.iter().find(|c| c.name == which) {
        None => Check::skipped(name, "the agent says nothing of it"),
        Some(c) if c.state == "not ready" => Check::problem(name, plain(&c.text), todo.iter().copied()),
        Some(c) if c.text.is_empty() => Check::ok(name, c.state.clone()),
        Some(c) => Check::ok(name, format!("{}: {}", c.state, plain(&c.text))),
    }
}

fn authority(authority: Option<&Authority>, now: i64) -> Check {
    let name = "authority";
    let Some(found) = authority else { return Check::skipped(name, "the agent says nothing of it") };
    let (trouble, error) = (plain(&found.trouble), plain(&found.last_error));
    match found.state.as_str() {
        "none" => Check::ok(name, "not needed with the source directory"),
        "down" => {
            let why = if trouble.is_empty() { &error } else { &trouble };
            Check::problem(
                name,
                format!("no identities can be issued since {}: {why}", since(found.since, now)),
                [
                    "what was issued goes on until it expires: `seamount node volumes` says when that is",
                    "embedded authority: is the Secret seamount-authority there, with tls.crt and tls.key of a root that is valid?",
                    "afterwards every volume is tried again within a minute, by itself",
                ],
            )
        }
        _ if !trouble.is_empty() => Check::problem(
            name,
            format!("it goes on as it was, but {trouble}"),
            [
                "repair the Secret seamount-authority: when the intermediate expires, nothing can be issued any more",
            ],
        ),
        _ if found.last_success == 0 => Check::ok(name, "ready; nothing was signed since the agent started"),
        _ => Check::ok(name, format!("signed {}", relative(found.last_success, now))),
    }
}

fn since(seconds: i64, now: i64) -> String {
    rfc3339(seconds)
        .map_or_else(|| "the start".to_owned(), |text| format!("{text} ({})", relative(seconds, now)))
}

fn certificates(e: &Evidence) -> Check {
    let name = "certificates";
    let Ok(status) = &e.status else { return Check::skipped(name, "the agent does not answer") };
    const CLOCK: &str = "compare the node's clock with others: timedatectl";
    const ROOT: &str = "replace the root in time: docs/agent.md, \"Replacing the root\"";
    if e.now < FIRST {
        let text = format!("the node's clock says {}", rfc3339(e.now).unwrap_or_default());
        return Check::problem(name, text, [CLOCK]);
    }
    let authority = status.authority.as_ref();
    let roots = authority.map(|a| a.roots.as_slice()).unwrap_or_default();
    let issuer = authority.and_then(|a| a.issuer.as_ref());
    let future = |v: &&Validity| v.not_before > e.now + SKEW;
    if let Some(v) = roots.iter().chain(issuer).find(future) {
        let from = since(v.not_before, e.now);
        return Check::problem(
            name,
            format!(
                "an authority's certificate is valid only from {from}: the clock was set back, or it was made by a clock that is ahead"
            ),
            [CLOCK],
        );
    }
    if let Ok((volumes, _)) = &e.volumes
        && let Some(v) = volumes.iter().find(|v| v.not_before > e.now + SKEW)
    {
        let text = format!(
            "the SVID of {}/{} is valid only from {}",
            plain(&v.namespace),
            plain(&v.pod),
            since(v.not_before, e.now)
        );
        return Check::problem(name, text, [CLOCK]);
    }
    // One that is made for a day is replaced by itself.
    let long = |v: &&Validity| v.not_after - v.not_before > 2 * ROOT_SOON || v.not_after <= e.now;
    let last = roots.iter().max_by_key(|v| v.not_after).filter(long);
    if let Some(v) = last.filter(|v| v.not_after <= e.now + ROOT_SOON) {
        let text = format!("the root ends at {}", since(v.not_after, e.now));
        return match v.not_after <= e.now {
            true => Check::problem(name, text, [ROOT]),
            false => Check::note(name, text, [ROOT]),
        };
    }
    match (roots.first(), issuer) {
        (None, _) => Check::skipped(name, "no authority's certificates are known"),
        (Some(_), Some(v)) if v.not_after <= e.now => Check::problem(
            name,
            format!("the certificate that signed last has ended at {}", since(v.not_after, e.now)),
            ["look in the agent's log for why the authority did not rotate", CLOCK],
        ),
        (Some(root), _) => {
            Check::ok(name, format!("the root is valid until {}", since(root.not_after, e.now)))
        }
    }
}

/// Descriptors, the state directory, the kernel.
pub fn limits(e: &Evidence) -> Vec<Check> {
    vec![descriptors(e), state(e), kernel(e)]
}

fn descriptors(e: &Evidence) -> Check {
    let name = "descriptors";
    let Ok(status) = &e.status else { return Check::skipped(name, "the agent does not answer") };
    let volumes: u64 = status.volumes.iter().map(|v| v.count).sum();
    let (open, limit) = (status.descriptors, status.descriptor_limit);
    let mounter = status.mounter.as_ref().map_or(0, |m| m.descriptor_limit);
    const RAISE: &str = "raise the limit of open files of the container runtime (LimitNOFILE of containerd or CRI-O), and restart the pod";
    if limit > 0 && open.saturating_mul(10) > limit.saturating_mul(8) {
        return Check::problem(
            name,
            format!("the agent has {open} of {limit} open"),
            [
                RAISE,
                "`seamount node volumes -o wide` has the connections, and so which pod holds them; workloadApi.connectionsPerPod bounds them",
            ],
        );
    }
    if mounter > 0 && (volumes + 64).saturating_mul(10) > mounter.saturating_mul(8) {
        return Check::problem(
            name,
            format!("the mounter may have {mounter} open, for {volumes} volumes"),
            [RAISE],
        );
    }
    let carries = |limit: u64| limit.saturating_sub(128) / 4;
    Check::ok(
        name,
        format!("agent {open} of {limit}, mounter at most {mounter}; enough for {} volumes", carries(limit)),
    )
}

fn state(e: &Evidence) -> Check {
    let name = "state";
    const UNMOUNT: &str =
        "umount the extra mounts on plugins/seamount.dev/state, the upper ones first, and restart the pod";
    let swapped = "records with keys may be written to swap: the kernel has no noswap for tmpfs (6.4)";
    let remedies = [
        "switch swap off, or encrypt it",
        "or a kernel of 6.4 or later; the node has to be rebooted for the state to be mounted anew",
    ];
    let mount = e.disk.state.as_ref();
    if let Some(mount) = mount.filter(|m| m.mounts > 1 || m.kind != "tmpfs") {
        return Check::problem(
            name,
            format!("{} mounts on the state directory, the upper one {}", mount.mounts, mount.kind),
            [UNMOUNT],
        );
    }
    let Some(state) = e.status.as_ref().ok().and_then(|s| s.state.as_ref()) else {
        return match mount {
            Some(mount) if !mount.noswap && e.disk.swap => Check::note(name, swapped, remedies),
            Some(_) => Check::ok(name, "the state tmpfs is mounted; identities outlive both processes"),
            None => Check::note(
                name,
                "no state tmpfs is mounted here: the mounter makes it when the agent connects; a reboot empties it",
                [] as [&str; 0],
            ),
        };
    };
    if !state.available {
        return Check::problem(
            name,
            format!("the agent has no state directory: {}", plain(&state.problem)),
            [log("mounter"), UNMOUNT.to_owned()],
        );
    }
    let full = |used: u64, all: u64| all > 0 && used.saturating_mul(10) > all.saturating_mul(8);
    if full(state.bytes_used, state.bytes) || full(state.inodes_used, state.inodes) {
        return Check::problem(
            name,
            format!(
                "the state tmpfs is nearly full: {} of {} bytes, {} of {} files; new volumes are refused when it is full",
                state.bytes_used, state.bytes, state.inodes_used, state.inodes
            ),
            [
                "ls -la below plugins/seamount.dev/state as root: a file that is not <pod uid>.<volume> or node is not ours; remove it",
                "so many volumes are too many for a node: move pods away",
            ],
        );
    }
    match mount {
        Some(mount) if !mount.noswap && e.disk.swap => Check::note(name, swapped, remedies),
        _ => Check::ok(
            name,
            format!(
                "{} of {} bytes, {} of {} files",
                state.bytes_used, state.bytes, state.inodes_used, state.inodes
            ),
        ),
    }
}

fn kernel(e: &Evidence) -> Check {
    let name = "kernel";
    let Disk { kernel, .. } = &e.disk;
    let mut numbers = kernel.split(|c: char| !c.is_ascii_digit()).filter_map(|n| n.parse::<u32>().ok());
    let version = (numbers.next().unwrap_or_default(), numbers.next().unwrap_or_default());
    if version == (0, 0) {
        return Check::skipped(name, "its release cannot be read");
    }
    if version < (5, 12) {
        return Check::problem(name, format!("{kernel} is older than 5.12"), ["run a newer kernel"]);
    }
    let from_mounter = e.status.as_ref().ok().and_then(|s| s.mounter.as_ref()).filter(|m| m.connected);
    let idmap = from_mounter.map_or(version >= (6, 3), |m| m.idmap);
    let noswap = from_mounter.map_or(version >= (6, 4), |m| m.noswap);
    let missing: Vec<_> = [(idmap, "idmapped tmpfs (6.3)"), (noswap, "tmpfs without swap (6.4)")]
        .into_iter()
        .filter_map(|(has, what)| (!has).then_some(what))
        .collect();
    match missing.as_slice() {
        [] => Check::ok(name, format!("{kernel}, idmapped tmpfs, tmpfs without swap")),
        missing => Check::note(
            name,
            format!("{kernel} has no {}; both have a replacement", missing.join(", no ")),
            [] as [&str; 0],
        ),
    }
}
