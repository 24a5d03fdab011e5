//! `seamount node` on a node with the real mounter and agent, and each thing that `doctor` finds, made for
//! real.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test may panic"
)]

use std::fs;
use std::os::unix::net::UnixListener;
use std::process::Command;
use std::time::{Duration, Instant};

use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};
use rustix::process::Signal;
use seamount_testkit::issuer::TokenIssuer;
use seamount_testkit::kubelet::PodVolume;
use seamount_testkit::node::{DRIVER, ISSUER, Node, RUN};
use seamount_testkit::processes::Process;
use seamount_testkit::{is_root, namespace, skip, uuid_of};
use serde_json::Value;

/// For everything that is awaited.
const LONG: Duration = Duration::from_secs(90);

struct World {
    node: Node,
    mounter: Option<Process>,
    agent: Option<Process>,
}

#[derive(Debug)]
struct Answer {
    code: Option<i32>,
    out: String,
    err: String,
}

impl Answer {
    fn json(&self) -> Value {
        serde_json::from_str(&self.out).unwrap_or_else(|e| panic!("{e}: {self:?}"))
    }

    /// Checks with a problem.
    fn bad(&self) -> Vec<String> {
        let json = self.json();
        let checks = json["checks"].as_array().unwrap_or_else(|| panic!("{self:?}"));
        let bad = checks.iter().filter(|c| c["result"] == "problem");
        bad.map(|c| c["check"].as_str().unwrap().to_owned()).collect()
    }
}

fn on_node(name: &str, test: impl AsyncFnOnce(&mut World) + Send) {
    if !is_root() {
        return skip(name, "needs root for a mount namespace");
    }
    namespace::private_mounts(|| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let node = Node::new(TokenIssuer::new(ISSUER)).unwrap();
            let mut world = World { node, mounter: None, agent: None };
            test(&mut world).await;
        });
    });
}

impl World {
    fn start_mounter(&mut self) {
        self.mounter = Some(self.node.mounter(RUN).start().unwrap());
    }

    fn start_agent(&mut self) {
        self.agent = Some(self.node.agent(RUN, &self.node.http).start().unwrap());
    }

    async fn start(&mut self) {
        self.start_mounter();
        self.start_agent();
        self.node.kubelet.register(LONG).await.unwrap();
        self.node.ready(LONG).await.unwrap();
    }

    async fn publish(&self, pod: &str) -> PodVolume {
        let volume = PodVolume::new("shop", "frontend", pod, &uuid_of(pod), "id");
        self.node.kubelet.prepare(&volume).unwrap();
        self.node.kubelet.publish(&volume, Some(&self.node.tokens(&volume))).await.unwrap();
        volume
    }

    async fn run(&self, args: &[&str]) -> Answer {
        let root = self.node.kubelet.root().display().to_string();
        self.run_at(&root, args).await
    }

    async fn run_at(&self, root: &str, args: &[&str]) -> Answer {
        let mut command = Command::new(env!("CARGO_BIN_EXE_seamount"));
        command.arg("node").args(args).args(["--kubelet-root", root, "--driver", DRIVER]);
        // In this thread: it is the one that is in the mount namespace.
        let output = command.output().unwrap();
        let text = |bytes| String::from_utf8(bytes).unwrap();
        let answer =
            Answer { code: output.status.code(), out: text(output.stdout), err: text(output.stderr) };
        for secret in ["eyJ", "PRIVATE"] {
            assert!(!answer.out.contains(secret), "a secret: {answer:?}");
        }
        answer
    }

    /// Doctor until it finds these problems and no others.
    async fn finds(&self, wanted: &[&str], part: &str) {
        let start = Instant::now();
        loop {
            let answer = self.run(&["doctor", "-o", "json", "--timeout", "4s"]).await;
            if answer.bad() == wanted && answer.out.contains(part) {
                assert_eq!(answer.code, Some(i32::from(!wanted.is_empty())), "{answer:?}");
                return;
            }
            if start.elapsed() > LONG {
                let text = self.run(&["doctor", "-o", "wide"]).await;
                panic!("waited in vain for {wanted:?} and {part:?}; now {:?}\n{}", answer.bad(), text.out);
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    async fn volume(&self, name: &str, wanted: impl Fn(&Value) -> bool) -> Value {
        let start = Instant::now();
        loop {
            let answer = self.run(&["volumes", "-o", "json"]).await;
            let json = answer.json();
            let found = json["volumes"].as_array().unwrap().iter().find(|v| v["pod"] == name).cloned();
            if let Some(found) = found.filter(|v| wanted(v)) {
                return found;
            }
            assert!(start.elapsed() < LONG, "waited in vain: {json:#}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
}

#[test]
fn a_node_tells_of_itself_and_of_each_volume() {
    on_node("a_node_tells_of_itself_and_of_each_volume", async |world| {
        world.start().await;
        let volume = world.publish("web-1").await;
        let ready = world.volume("web-1", |v| v["state"] == "ready").await;
        assert_eq!(ready["spiffeId"], "spiffe://example.org/ns/shop/sa/frontend");
        assert_eq!(ready["podUid"], volume.pod_uid.as_str());
        assert_eq!(ready["volumeId"], volume.volume_id.as_str());
        assert_eq!((&ready["healthy"], &ready["onDisk"]), (&Value::Bool(true), &Value::Bool(true)));
        assert_eq!(ready["streams"], 0);
        // A client's stream is counted, and its SVID is the one that is told.
        let path = world.node.kubelet.target_path(&volume).join("spire-agent.sock");
        let url = format!("unix://{}", path.display());
        let client = spiffe::WorkloadApiClient::connect_to(url).await.unwrap();
        let stream = client.stream_x509_svids().await.unwrap();
        let mut stream = Box::pin(stream);
        let svid = tokio_stream::StreamExt::next(&mut stream).await.unwrap().unwrap();
        let open = world.volume("web-1", |v| v["streams"] == 1).await;
        assert_eq!(open["connections"], 1);
        let der = svid.leaf().as_bytes().to_vec();
        let (_, leaf) = x509_parser::parse_x509_certificate(&der).unwrap();
        let serial: String = leaf.raw_serial().iter().map(|b| format!("{b:02x}")).collect();
        assert_eq!(open["serial"].as_str().unwrap().trim_start_matches('0'), serial.trim_start_matches('0'));

        let status = world.run(&["status", "-o", "json"]).await;
        assert_eq!(status.code, Some(0), "{status:?}");
        let json = status.json();
        assert_eq!((&json["schema"], &json["kind"]), (&"seamount.dev/node/v1".into(), &"Status".into()));
        assert_eq!((&json["node"], &json["trustDomain"]), (&"node-1".into(), &"example.org".into()));
        assert_eq!(json["drivers"][0]["registration"]["state"], "registered");
        assert_eq!((&json["ready"], &json["volumes"]["ready"]), (&Value::Bool(true), &1.into()));
        assert_eq!(
            (&json["mounter"]["answers"], &json["authority"]["state"]),
            (&Value::Bool(true), &"up".into())
        );
        assert_eq!(json["agent"]["pid"], world.agent.as_ref().unwrap().pid());
        assert!(json["state"]["inodesUsed"].as_u64().unwrap() >= 3, "{json:#}");
        assert!(json["authority"]["issuer"]["notAfter"].is_string(), "{json:#}");
        let text = world.run(&["status"]).await.out;
        assert!(text.contains("volumes      1: 1 ready"), "{text}");
        let text = world.run(&["volumes", "-o", "wide"]).await.out;
        assert!(text.contains("shop/web-1") && text.contains("  ok  "), "{text}");
        world.finds(&[], "all healthy: 1").await;

        // What is wrong is what the kubelet is told.
        fs::remove_file(&path).unwrap();
        let ill = world.volume("web-1", |v| v["healthy"] == false).await;
        let told = world.node.kubelet.health(&volume).await.unwrap().health_statuses;
        let reasons = |v: &Value| v["reason"].as_str().unwrap().to_owned();
        let ours: Vec<_> = ill["faults"].as_array().unwrap().iter().map(reasons).collect();
        assert_eq!(ours, told.iter().map(|t| t.reason.clone()).collect::<Vec<_>>());
        world.finds(&["volumes"], "SocketMissing (1)").await;
    });
}

#[test]
fn doctor_is_of_use_without_agent_and_without_mounter() {
    on_node("doctor_is_of_use_without_agent_and_without_mounter", async |world| {
        world.start().await;
        let volume = world.publish("web-1").await;
        world.volume("web-1", |v| v["state"] == "ready").await;

        world.agent.take().unwrap().crash().unwrap();
        // The mounter keeps the socket: it can be connected to, and no process answers.
        world.finds(&["processes", "agent"], "no seamount-agent runs here").await;
        let answer = world.run(&["status", "--timeout", "500ms"]).await;
        assert_eq!(answer.code, Some(1), "{answer:?}");
        assert!(answer.err.contains("the mounter keeps the socket"), "{answer:?}");

        world.mounter.take().unwrap().crash().unwrap();
        world.finds(&["processes", "sockets", "agent", "volumes"], "socket that no process keeps").await;
        assert!(world.node.kubelet.target_path(&volume).exists());

        world.start_mounter();
        world.start_agent();
        // The sockets are new ones, so the kubelet comes again.
        world.node.kubelet.register(LONG).await.unwrap();
        world.finds(&[], "all healthy: 1").await;

        // The agent alone goes on serving.
        world.mounter.take().unwrap().crash().unwrap();
        world.finds(&["processes", "mounter", "volumes"], "no seamount-mounter runs here").await;
        world.start_mounter();
        world.finds(&[], "all healthy: 1").await;
    });
}

#[test]
fn stopped_processes_are_found() {
    on_node("stopped_processes_are_found", async |world| {
        world.start().await;
        world.publish("web-1").await;
        world.mounter.as_mut().unwrap().signal(Signal::STOP).unwrap();
        world.finds(&["processes", "mounter", "volumes"], "kill -CONT").await;
        world.mounter.as_mut().unwrap().signal(Signal::CONT).unwrap();
        world.finds(&[], "connected and answers").await;
        world.agent.as_mut().unwrap().signal(Signal::STOP).unwrap();
        world.finds(&["processes", "agent"], "kill -CONT").await;
        world.agent.as_mut().unwrap().signal(Signal::CONT).unwrap();
        world.finds(&[], "connected and answers").await;
    });
}

#[test]
fn configuration_authority_and_registration_are_found() {
    on_node("configuration_authority_and_registration_are_found", async |world| {
        world.start_mounter();
        world.start_agent();
        world.finds(&["registration"], "restart the kubelet").await;
        world.node.kubelet.register(LONG).await.unwrap();
        world.finds(&[], "the kubelet has registered csi.spiffe.io").await;
        let good = world.node.yaml();
        world.node.configure("trustDomain: [broken\n").unwrap();
        world.finds(&["configuration"], "kubectl -n seamount-system edit configmap").await;
        world.node.configure(&good).unwrap();
        world.finds(&[], "the kubelet has registered csi.spiffe.io").await;
        fs::rename(world.node.path("root"), world.node.path("away")).unwrap();
        world.finds(&["authority"], "tls.crt").await;
        fs::rename(world.node.path("away"), world.node.path("root")).unwrap();
        world.finds(&[], "the kubelet has registered csi.spiffe.io").await;
        // From the start: nothing was ever issued.
        fs::rename(world.node.path("root"), world.node.path("away")).unwrap();
        world.agent.take().unwrap().crash().unwrap();
        world.start_agent();
        world.finds(&["authority"], "no identities can be issued").await;
        let json = world.run(&["status", "-o", "json"]).await.json();
        let log = json["log"].as_array().unwrap();
        assert!(log.iter().any(|l| l["text"].as_str().unwrap().contains("no identity source")), "{json:#}");
    });
}

#[test]
fn leftovers_are_found() {
    on_node("leftovers_are_found", async |world| {
        world.start().await;
        let volume = world.publish("web-1").await;
        world.volume("web-1", |v| v["state"] == "ready").await;
        // A socket of ours that the kubelet knows nothing of.
        let uid = uuid_of("nobody");
        let left = world.node.kubelet.root().join(format!("pods/{uid}/volumes/kubernetes.io~csi/id/mount"));
        fs::create_dir_all(&left).unwrap();
        drop(UnixListener::bind(left.join("spire-agent.sock")).unwrap());
        world.finds(&["leftovers"], &uid).await;
        let json = world.run(&["volumes", "-o", "json"]).await.json();
        let all = json["volumes"].as_array().unwrap();
        let orphan = all.iter().find(|v| v["podUid"] == uid.as_str()).unwrap();
        assert_eq!(
            (&orphan["orphan"], &orphan["faults"][0]["reason"]),
            (&Value::Bool(true), &"Orphan".into())
        );
        fs::remove_file(left.join("spire-agent.sock")).unwrap();
        world.finds(&[], "no orphans").await;

        // Another driver's mounts, one on the other.
        let target = world.node.kubelet.target_path(&volume);
        for _ in 0..2 {
            mount("tmpfs", &target, "tmpfs", MountFlags::empty(), None).unwrap();
        }
        world.finds(&["leftovers"], "several mounts on one path").await;
        // The same from the file system, when no process answers.
        world.agent.take().unwrap().crash().unwrap();
        world.finds(&["processes", "agent", "leftovers"], "several mounts on one path").await;
        for _ in 0..2 {
            unmount(&target, UnmountFlags::empty()).unwrap();
        }
        world.start_agent();
        world.finds(&[], "no orphans").await;

        // And on the state directory.
        mount("tmpfs", world.node.state(), "tmpfs", MountFlags::empty(), None).unwrap();
        world.finds(&["state"], "umount the extra mounts").await;
        unmount(world.node.state(), UnmountFlags::empty()).unwrap();
    });
}

#[test]
fn a_second_mounter_is_found() {
    on_node("a_second_mounter_is_found", async |world| {
        world.start().await;
        world.node.make_run("run2").unwrap();
        // It waits, for it has no agent.
        let second = world.node.mounter("run2").start().unwrap();
        world.finds(&[], "2 mounters on this node").await;
        drop(second);
        world.finds(&[], "seamount-mounter (pid").await;
        assert!(!world.run(&["doctor"]).await.out.contains("2 mounters"));
    });
}

#[test]
fn where_there_is_no_seamount_doctor_says_so() {
    on_node("where_there_is_no_seamount_doctor_says_so", async |world| {
        let answer = world.run_at("/no/such/kubelet", &["doctor"]).await;
        assert_eq!(answer.code, Some(2), "{answer:?}");
        assert!(answer.out.contains("--kubelet-root"), "{answer:?}");
        let answer = world.run(&["doctor"]).await;
        assert_eq!(answer.code, Some(1), "{answer:?}");
        assert!(answer.out.contains("has never run here"), "{answer:?}");
        let answer = world.run(&["volumes"]).await;
        assert_eq!(answer.code, Some(1), "{answer:?}");
        assert!(answer.err.contains("seamount node doctor"), "{answer:?}");
    });
}
