//! The rules, one after the other, each with the denials that belong to it and no others.

use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use seamount_testkit::kubelet::PodVolume;
use seamount_testkit::processes::Process;

use crate::avc::{Denial, Expected, Log};
use crate::context;
use crate::stage::{AGENT, LEVEL, Stage};

const A: &str = "s0:c10,c20";
const B: &str = "s0:c30,c40";
const ACCEPT: Expected = Expected {
    permission: "accept",
    class: "unix_stream_socket",
    source: "container_t:s0:c1,c2",
    target: "spc_t:s0",
};
const GETOPT: Expected = Expected { permission: "getopt", ..ACCEPT };

/// B on the socket of A's volume.
const B_ON_A: Expected = Expected {
    permission: "write",
    class: "sock_file",
    source: "container_t:s0:c30,c40",
    target: "container_file_t:s0:c10,c20",
};
const A_ON_B: Expected =
    Expected { source: "container_t:s0:c10,c20", target: "container_file_t:s0:c30,c40", ..B_ON_A };
const SEARCH_B_ON_A: Expected = Expected { permission: "search", class: "dir", ..B_ON_A };
const SEARCH_A_ON_B: Expected = Expected { permission: "search", class: "dir", ..A_ON_B };

/// Counts, and knows every denial.
struct Report {
    policy: String,
    log: Log,
    passed: u32,
    failed: u32,
    skipped: u32,
    denials: Vec<Denial>,
    unexpected: Vec<Denial>,
}

impl Report {
    /// One rule: what was done must have succeeded, with exactly the denials that are expected.
    fn rule(
        &mut self,
        name: &str,
        expected: &[Expected],
        outcome: anyhow::Result<String>,
    ) -> anyhow::Result<()> {
        let found = self.log.denials(expected)?;
        let missing: Vec<_> = expected.iter().filter(|e| !found.iter().any(|d| d.is(e))).collect();
        let strange: Vec<_> = found.iter().filter(|d| !expected.iter().any(|e| d.is(e))).cloned().collect();
        let mut problems = Vec::new();
        let detail = match outcome {
            Ok(text) => text,
            Err(error) => {
                problems.push(format!("{error:#}"));
                String::new()
            }
        };
        problems.extend(missing.iter().map(|e| format!("no denial like {e:?}")));
        problems.extend(strange.iter().map(|d| format!("unexpected {}", d.text)));
        let policy = &self.policy;
        if problems.is_empty() {
            self.passed += 1;
            println!("PASS {policy} {name}{}{detail}", if detail.is_empty() { "" } else { ": " });
        } else {
            self.failed += 1;
            println!("FAIL {policy} {name}");
            for problem in problems {
                println!("     {}", problem.replace('\n', "\n     "));
            }
        }
        self.unexpected.extend(strange);
        self.denials.extend(found);
        Ok(())
    }
}

/// All rules under the policy that is loaded.
pub fn run(policy: &str) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let log = Log::open()?;
    let mut report = Report {
        policy: policy.to_owned(),
        log,
        passed: 0,
        failed: 0,
        skipped: 0,
        denials: Vec::new(),
        unexpected: Vec::new(),
    };
    let mut stage = Stage::new(policy)?;
    let outcome = runtime.block_on(all(&mut stage, &mut report));
    let ended = outcome.map(|()| String::new());
    let cut_short = ended.is_err();
    if cut_short {
        report.rule("the rules ran to their end", &[], ended)?;
    }
    let last = report.log.denials(&[])?;
    report.denials.extend(last.clone());
    report.unexpected.extend(last);
    println!("all denials under {policy}:");
    for denial in &report.denials {
        let known = !report.unexpected.iter().any(|d| d.text == denial.text);
        println!("  {}{}", if known { "" } else { "UNEXPECTED " }, denial.text);
    }
    let (seen, strange) = (report.denials.len(), report.unexpected.len());
    if strange == 0 {
        report.passed += 1;
        println!("PASS {policy} no other denial: {seen} seen, {seen} expected");
    } else {
        report.failed += 1;
        println!("FAIL {policy} other denials: {seen} seen, {strange} of them unexpected");
    }
    if report.failed > 0 {
        for process in [&stage.mounter, &stage.agent].into_iter().flatten() {
            println!("--- {}\n{}", process.log_path().display(), process.log());
        }
    }
    println!("sum {policy} {} {} {}", report.passed, report.failed, report.skipped);
    Ok(())
}

async fn all(stage: &mut Stage, report: &mut Report) -> anyhow::Result<()> {
    enforced(stage, report)?;
    agent_and_listeners(stage, report).await?;
    let (a, b) = identity_volumes(stage, report).await?;
    restarts(stage, report, &a, &b).await?;
    let (c, d) = file_volumes(stage, report).await?;
    mounter_with_categories(stage, report).await?;
    report.rule("pods are removed", &[], {
        let mut removed = Ok(String::new());
        for volume in [&a, &b, &c, &d] {
            removed = removed
                .and(stage.kubelet.tear_down(volume).await.map(|()| String::new()).map_err(Into::into));
        }
        removed
    })
}

/// The policy is in force: or nothing below would mean anything.
fn enforced(stage: &Stage, report: &mut Report) -> anyhow::Result<()> {
    let enforcing = || {
        let mode = fs::read_to_string("/sys/fs/selinux/enforce").context("read the mode")?;
        ensure!(mode == "1", "mode {mode}");
        let own = context::of_process("self")?;
        ensure!(own == context::process("kubelet_t", "s0"), "{own}");
        Ok(format!("the kubelet is {own}"))
    };
    report.rule("SELinux enforces", &[], enforcing())?;
    let secret = stage.kubelet.root().join("secret");
    fs::write(&secret, "kubelet's")?;
    fs::set_permissions(stage.kubelet.root(), std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
    let path = secret.display().to_string();
    let refused = Expected { permission: "read", class: "file", source: A, target: "container_var_lib_t:s0" };
    let read =
        stage.run(&context::process("container_t", A), None, &["read", &path]).and_then(is("errno 13"));
    fs::set_permissions(stage.kubelet.root(), std::os::unix::fs::PermissionsExt::from_mode(0o750))?;
    report.rule("a container cannot read the kubelet's files, even as root", &[refused], read)
}

async fn agent_and_listeners(stage: &mut Stage, report: &mut Report) -> anyhow::Result<()> {
    let started = stage.start_mounter(LEVEL, &[]).and_then(|()| domain(&stage.mounter, "spc_t"));
    report.rule("the mounter runs as spc_t:s0", &[], started)?;

    // The control: an agent in an ordinary container's domain.
    stage.start_agent(&context::process("container_t", "s0:c1,c2"))?;
    let outcome = match stage.register(Duration::from_secs(4)).await {
        Ok(()) => Err(anyhow::anyhow!("it registered the driver")),
        Err(_) => domain(&stage.agent, "container_t"),
    };
    report.rule(
        "control: an agent as container_t can do nothing with the mounter's listeners",
        &[GETOPT],
        outcome,
    )?;
    stage.kill(true, false)?;

    let spc =
        stage.run(&context::process("spc_t", LEVEL), None, &["listen", &context::process("spc_t", LEVEL)]);
    let spc = spc.and_then(is("ok accepted"));
    report.rule("spc_t accepts on a listener that spc_t made", &[], spc)?;
    let other = context::process("container_t", "s0:c1,c2");
    let refused =
        stage.run(&context::process("spc_t", LEVEL), None, &["listen", &other]).and_then(is("errno 13"));
    report.rule("control: container_t does not", &[ACCEPT], refused)?;

    stage.start_agent(&context::process("spc_t", LEVEL))?;
    let registered = stage.register(Duration::from_secs(30)).await;
    let outcome = registered.and_then(|()| domain(&stage.agent, "spc_t")).and_then(|text| {
        let pid = stage.agent.as_ref().map(Process::pid).context("no agent")?;
        let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
        let value = |key: &str| {
            let line = status.lines().find(|line| line.starts_with(key)).unwrap_or_default();
            line.split_whitespace().nth(1).unwrap_or_default().to_owned()
        };
        let (uid, effective, nnp) = (value("Uid:"), value("CapEff:"), value("NoNewPrivs:"));
        ensure!(uid == AGENT.to_string() && effective.trim_matches('0').is_empty() && nnp == "1", "{status}");
        Ok(format!("{text}, uid {uid}, capabilities {effective}, no new privileges"))
    });
    report.rule("the agent as spc_t:s0 accepts on them and is registered", &[], outcome)
}

async fn identity_volumes(stage: &Stage, report: &mut Report) -> anyhow::Result<(PodVolume, PodVolume)> {
    let (a, b) = (stage.volume("a"), stage.volume("b"));
    let (in_a, in_b) = (context::process("container_t", A), context::process("container_t", B));
    stage.publish(&a).await?;
    stage.publish(&b).await?;
    report.rule("identity volumes are published", &[], labels(stage, &a))?;

    // The kubelet has the runtime relabel a volume only if it is not read-only (kubelet_pods.go, makeMounts:
    // Managed; csi_mounter.go, GetAttributes), and ours are.
    let own = stage.in_pod(&a, &in_a, &["fetch"]).and_then(svid("a"));
    report.rule("a pod gets its SVID from a read-only volume, which nobody relabels", &[], own)?;

    stage.relabel(&a, A)?;
    stage.relabel(&b, B)?;
    report.rule("a volume that a runtime has relabelled", &[], labels(stage, &a))?;
    for (name, volume, pod) in [("a", &a, &in_a), ("b", &b, &in_b)] {
        let own = stage.in_pod(volume, pod, &["fetch"]).and_then(svid(name));
        report.rule(&format!("pod {name} gets its SVID from its relabelled volume"), &[], own)?;
    }
    strangers(stage, report, &a, &b)?;

    // The control: the same, permissive. It shows that nothing but SELinux stood in the way.
    fs::write("/sys/fs/selinux/enforce", "0")?;
    let stranger = stage.in_pod(&a, &in_b, &["fetch"]).and_then(svid("a"));
    fs::write("/sys/fs/selinux/enforce", "1")?;
    report.rule(
        "control: with SELinux permissive pod b gets a's SVID there",
        &[SEARCH_B_ON_A, B_ON_A],
        stranger,
    )?;
    Ok((a, b))
}

/// No pod reaches the socket of a volume that has another pod's categories.
fn strangers(stage: &Stage, report: &mut Report, a: &PodVolume, b: &PodVolume) -> anyhow::Result<()> {
    let (in_a, in_b) = (context::process("container_t", A), context::process("container_t", B));
    let refused = stage.in_pod(a, &in_b, &["fetch"]).and_then(is("errno 13"));
    report.rule("pod b cannot enter a's volume", &[SEARCH_B_ON_A], refused)?;
    let refused = stage.in_pod(b, &in_a, &["fetch"]).and_then(is("errno 13"));
    report.rule("pod a cannot enter b's volume", &[SEARCH_A_ON_B], refused)?;
    // The directory alone opened: the socket has the categories as well.
    let target = stage.kubelet.target_path(a);
    context::label(&target, &context::file("container_file_t", "s0"))?;
    let refused = stage.in_pod(a, &in_b, &["fetch"]).and_then(is("errno 13"));
    context::label(&target, &context::file("container_file_t", A))?;
    report.rule("nor connect to a's socket, were the directory open to it", &[B_ON_A], refused)
}

/// A socket that is bound again, in a directory that was labelled before.
async fn restarts(
    stage: &mut Stage,
    report: &mut Report,
    a: &PodVolume,
    b: &PodVolume,
) -> anyhow::Result<()> {
    let (in_a, in_b) = (context::process("container_t", A), context::process("container_t", B));
    stage.kill(true, false)?;
    stage.start_agent(&context::process("spc_t", LEVEL))?;
    let own = stage.in_pod(a, &in_a, &["fetch"]).and_then(svid("a"));
    report.rule("a new agent serves on the listeners that the mounter kept", &[], own)?;
    stage.kill(false, true)?;
    stage.start_mounter(LEVEL, &[])?;
    let own = stage.in_pod(a, &in_a, &["fetch"]).and_then(svid("a"));
    report.rule("a new mounter takes them from the agent", &[], own)?;
    stage.kill(true, true)?;
    stage.start_mounter(LEVEL, &[])?;
    stage.start_agent(&context::process("spc_t", LEVEL))?;
    stage.register(Duration::from_secs(30)).await?;
    let socket = stage.kubelet.target_path(a).join("spire-agent.sock");
    let own = connects(stage, a, &in_a, "a");
    let label = context::type_and_level(&socket)?;
    let own = own.map(|_| format!("its label is {label}"));
    report.rule("after both were killed pod a connects to the socket that was bound again", &[], own)?;
    let refused = stage.in_pod(a, &in_b, &["fetch"]).and_then(is("errno 13"));
    report.rule("and pod b does not", &[SEARCH_B_ON_A], refused)?;
    let own = connects(stage, b, &in_b, "b");
    report.rule("pod b connects to its own", &[], own)
}

/// Fetches until the agent has served the volume again.
fn connects(stage: &Stage, volume: &PodVolume, pod: &str, name: &str) -> anyhow::Result<String> {
    let mut last = Ok(String::new());
    for _ in 0..50 {
        last = stage.in_pod(volume, pod, &["fetch"]).and_then(svid(name));
        // 111: no process listens yet.
        if !last.as_ref().is_err_and(|e| e.to_string().contains("errno 111")) {
            break;
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    last
}

/// Volumes of files: a tmpfs that the mounter makes and the agent's uid writes through a detached clone.
async fn file_volumes(stage: &mut Stage, report: &mut Report) -> anyhow::Result<(PodVolume, PodVolume)> {
    let (in_a, in_b) = (context::process("container_t", A), context::process("container_t", B));
    let agent = context::process("spc_t", LEVEL);
    // The mounter serves one agent at a time.
    stage.kill(true, false)?;
    let files = stage.volume("files");
    stage.kubelet.prepare(&files)?;
    let wrote =
        write(stage, &files, &agent).and_then(|text| Ok(format!("{text}; {}", labels(stage, &files)?)));
    report.rule("the agent's uid as spc_t:s0 writes files into a tmpfs of the mounter", &[], wrote)?;
    let read = stage.in_pod(&files, &in_a, &["read", "/pod/key"]).and_then(starts("ok .."));
    report.rule("a pod reads them in a read-only volume, which nobody relabels", &[], read.map(drop_text))?;
    let read = stage.in_pod(&files, &in_b, &["read", "/pod/key"]).and_then(starts("ok .."));
    report.rule(
        "so does one of other categories: without a relabel SELinux does not tell them apart",
        &[],
        read.map(drop_text),
    )?;
    let state = stage.kubelet.root().join("plugins/seamount.dev/state");
    let state = context::type_and_level(&state).map(|label| format!("{label} (seen, not judged)"));
    report.rule("the label of the records' tmpfs", &[], state)?;

    stage.relabel(&files, A)?;
    let read = stage.in_pod(&files, &in_a, &["read", "/pod/key"]).and_then(starts("ok .."));
    report.rule("the pod reads them after a relabel", &[], read.map(drop_text))?;
    let refused = stage.in_pod(&files, &in_b, &["read", "/pod/key"]).and_then(is("errno 13"));
    report.rule("a pod of other categories does not", &[SEARCH_B_ON_A], refused)?;
    let wrote = write(stage, &files, &agent).and_then(|text| {
        let label =
            context::type_and_level(&fs::canonicalize(stage.kubelet.target_path(&files).join("key"))?)?;
        Ok(format!("{text}; the new file is {label}"))
    });
    report.rule("the agent writes the next version into the relabelled volume", &[], wrote)?;
    let read = stage.in_pod(&files, &in_a, &["read", "/pod/key"]).and_then(starts("ok .."));
    report.rule("and the pod reads it", &[], read.map(drop_text))?;
    let container = context::process("container_t", "s0:c1,c2");
    let target = stage.kubelet.target_path(&files).join("mine").display().to_string();
    // The kubelet's directories are closed to others than root, so as root.
    let denied = Expected { source: "container_t:s0:c1,c2", ..SEARCH_B_ON_A };
    let refused = stage.run(&container, None, &["write", &target]).and_then(is("errno 13"));
    report.rule("control: an agent as container_t could not write into it", &[denied], refused)?;

    stage.kill(false, true)?;
    stage.start_mounter(LEVEL, &["--no-idmap"])?;
    let settled = stage.volume("settled");
    stage.kubelet.prepare(&settled)?;
    let wrote = write(stage, &settled, &agent).and_then(|text| {
        ensure!(text.ends_with("settled"), "{text}");
        let key = fs::canonicalize(stage.kubelet.target_path(&settled).join("key"))?;
        let owner = std::os::unix::fs::MetadataExt::uid(&fs::metadata(&key)?);
        ensure!(owner == 0, "the file is {owner}'s");
        Ok(format!("the file is root's, {}", context::type_and_level(&key)?))
    });
    report.rule("without idmapped mounts the mounter settles the files", &[], wrote)?;
    stage.relabel(&settled, A)?;
    let read = stage.in_pod(&settled, &in_a, &["read", "/pod/key"]).and_then(starts("ok .."));
    report.rule("and the pod reads them", &[], read.map(drop_text))?;
    let refused = stage.in_pod(&settled, &in_b, &["read", "/pod/key"]).and_then(is("errno 13"));
    report.rule("and a pod of other categories does not", &[SEARCH_B_ON_A], refused)?;
    stage.kill(false, true)?;
    Ok((files, settled))
}

/// Why the manifests ask for a level: without one a runtime picks two categories.
async fn mounter_with_categories(stage: &mut Stage, report: &mut Report) -> anyhow::Result<()> {
    stage.start_mounter("s0:c100,c200", &[])?;
    stage.start_agent(&context::process("spc_t", LEVEL))?;
    stage.register(Duration::from_secs(30)).await?;
    let volume = stage.volume("late");
    stage.publish(&volume).await?;
    stage.relabel(&volume, A)?;
    let said = stage.in_pod(&volume, &context::process("container_t", A), &["fetch"]);
    let refused = Expected {
        permission: "connectto",
        class: "unix_stream_socket",
        source: "container_t:s0:c10,c20",
        target: "spc_t:s0:c100,c200",
    };
    if report.policy == "fedora" {
        let own = said.and_then(svid("late"));
        report.rule("a mounter with categories of its own: Fedora's MCS lets pods connect", &[], own)?;
    } else {
        let own = said.and_then(is("errno 13"));
        report.rule(
            "control: refpolicy's MCS refuses pods the listener of a mounter that has categories",
            &[refused],
            own,
        )?;
    }
    stage.kubelet.tear_down(&volume).await?;
    stage.kill(true, true)?;
    stage.start_mounter(LEVEL, &[])?;
    stage.start_agent(&context::process("spc_t", LEVEL))?;
    stage.register(Duration::from_secs(30)).await
}

fn write(stage: &Stage, volume: &PodVolume, context: &str) -> anyhow::Result<String> {
    let words = ["publish-files", &stage.socket(), &volume.pod_uid, &volume.volume_name, &volume.volume_id];
    let said = stage.run(context, Some(AGENT), &words)?;
    let text = said.strip_prefix("ok ").with_context(|| said.clone())?;
    Ok(text.split(' ').nth(1).unwrap_or_default().to_owned())
}

/// The labels of a volume: its directory and what is in it.
fn labels(stage: &Stage, volume: &PodVolume) -> anyhow::Result<String> {
    let target = stage.kubelet.target_path(volume);
    let mut text = format!("the directory is {}", context::type_and_level(&target)?);
    for name in ["spire-agent.sock", "agent.sock", "key"] {
        let path = target.join(name);
        let path = if name == "key" { fs::canonicalize(&path).unwrap_or(path) } else { path };
        if fs::symlink_metadata(&path).is_ok() {
            text += &format!(", {name} {}", context::type_and_level(&path)?);
        }
    }
    Ok(text)
}

fn domain(process: &Option<Process>, type_: &str) -> anyhow::Result<String> {
    let pid = process.as_ref().map(Process::pid).context("it does not run")?;
    if !Path::new(&format!("/proc/{pid}")).exists() {
        bail!("it has ended");
    }
    let context = context::of_process(&pid.to_string())?;
    ensure!(context.contains(&format!(":{type_}:")), "it runs as {context}");
    Ok(context)
}

fn is(wanted: &str) -> impl Fn(String) -> anyhow::Result<String> {
    move |said| if said == wanted { Ok(said) } else { bail!("{said:?}, not {wanted:?}") }
}

fn starts(wanted: &str) -> impl Fn(String) -> anyhow::Result<String> {
    move |said| if said.starts_with(wanted) { Ok(said) } else { bail!("{said:?}, not {wanted:?}…") }
}

fn svid(pod: &str) -> impl Fn(String) -> anyhow::Result<String> {
    let wanted = format!("ok spiffe://example.org/ns/shop/sa/{pod}");
    move |said| match said.strip_prefix("ok ") {
        Some(id) if said == wanted => Ok(id.to_owned()),
        _ => bail!("{said:?}, not {wanted:?}"),
    }
}

fn drop_text(_: String) -> String {
    String::new()
}
