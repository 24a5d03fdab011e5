//! The agent was hostile once, and what comes after it is clean: records and listeners that it left behind,
//! and the procedure of `docs/stolen-agent.md`.

use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt as _;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::mount::{UnmountFlags, unmount};
use rustix::net::{AddressFamily, sockopt};
use rustix::process::{Pid, PidfdFlags, PidfdGetfdFlags, pidfd_getfd, pidfd_open};
use seamount_agent::record::{Body, IdentityBody, Record, StoredSvid};
use seamount_pod_token::Token;
use seamount_testkit::kubelet::PodVolume;

use super::harness::*;

fn record(node: &Node, volume: &PodVolume) -> Record {
    Record::decode(&std::fs::read(node.record(volume)).unwrap()).unwrap()
}

fn token(node: &Node, volume: &PodVolume) -> Token {
    Token::new(node.issuer.token(&node.claims(volume)))
}

async fn restart(node: &mut Node) {
    node.agent.take().unwrap().crash().unwrap();
    node.start_agent();
    node.agent().wait_for_log(LONG, "volumes restored").unwrap();
}

async fn republish(node: &Node, volume: &PodVolume) {
    node.kubelet.publish(volume, Some(&node.tokens(volume))).await.unwrap();
}

/// Two pods, one of which the other would like to be.
async fn victim_and_thief(node: &mut Node) -> (PodVolume, PodVolume) {
    node.start().await;
    let victim = node.volume("kube-system", "cluster-admin", "admin-1");
    let thief = node.volume("shop", "frontend", "web-1");
    for volume in [&victim, &thief] {
        node.publish(volume).await;
        fetch(&node.view(volume)).await;
    }
    (victim, thief)
}

/// The record with another token and SVID.
fn forged_record(record: Record, token: Option<Token>, svid: Option<StoredSvid>) -> Record {
    let cookie = record.identity().unwrap().cookie;
    Record { body: Body::Identity(IdentityBody { cookie, token, svid }), ..record }
}

const THIEF: &str = "spiffe://example.org/ns/shop/sa/frontend";

#[test]
fn a_forged_record_yields_nothing_under_a_fresh_root_and_a_good_republish_wins() {
    on_node("a_forged_record_yields_nothing_under_a_fresh_root_and_a_good_republish_wins", async |node| {
        let (victim, thief) = victim_and_thief(node).await;
        let of_victim = record(node, &victim).identity().unwrap().clone();
        for forged in [
            // The victim's own token, one that another issuer signed, and nothing at all.
            of_victim.token.clone(),
            Some(Token::new(node.issuer.forged_with_other_key(&node.claims(&thief)))),
            None,
        ] {
            node.agent.take().unwrap().crash().unwrap();
            let forgery = forged_record(record(node, &thief), forged, of_victim.svid.clone());
            std::fs::write(node.record(&thief), &*forgery.encode()).unwrap();
            node.write_root();
            node.start_agent();
            node.agent().wait_for_log(LONG, "volumes restored").unwrap();
            let view = node.view(&thief);
            let early = tokio::spawn(async move { try_fetch(&view).await });
            // The other pods come back meanwhile.
            let svid = fetch(&node.view(&victim)).await;
            assert!(svid.spiffe_id().to_string().ends_with("sa/cluster-admin"));
            republish(node, &thief).await;
            assert_eq!(early.await.unwrap().unwrap().spiffe_id().to_string(), THIEF);
            assert_eq!(fetch(&node.view(&thief)).await.spiffe_id().to_string(), THIEF);
        }
    });
}

#[test]
fn an_svid_of_another_record_is_not_served() {
    on_node("an_svid_of_another_record_is_not_served", async |node| {
        let (victim, thief) = victim_and_thief(node).await;
        let of_victim = record(node, &victim).identity().unwrap().clone();
        let own = record(node, &thief);
        let own_token = own.identity().unwrap().token.clone();
        let leaf_of_victim = leaf(&fetch(&node.view(&victim)).await);
        for token in [own_token, Some(token(node, &thief))] {
            node.agent.take().unwrap().crash().unwrap();
            let forgery = forged_record(own.clone(), token, of_victim.svid.clone());
            std::fs::write(node.record(&thief), &*forgery.encode()).unwrap();
            node.start_agent();
            let svid = fetch(&node.view(&thief)).await;
            assert_eq!(svid.spiffe_id().to_string(), THIEF);
            assert_ne!(leaf(&svid), leaf_of_victim);
            assert!(node.agent_log().contains("is not what its pod has today"));
        }
        assert_eq!(leaf(&fetch(&node.view(&victim)).await), leaf_of_victim, "another's was disturbed");
    });
}

#[test]
fn another_id_template_is_in_force_at_once() {
    on_node("another_id_template_is_in_force_at_once", async |node| {
        node.start().await;
        let volume = node.volume("shop", "frontend", "web-1");
        node.publish(&volume).await;
        let view = node.view(&volume);
        let before = fetch(&view).await;
        let template = |path: &str| {
            format!("{}identity: {{idTemplate: \"spiffe://{{trustDomain}}/{path}\"}}\n", node.yaml())
        };
        let (pods, names) = (template("pod/{podUid}"), template("name/{namespace}/{podName}"));
        // While the agent runs.
        node.configure(&pods);
        let id = async || fetch(&view).await.spiffe_id().to_string();
        let wanted = format!("spiffe://example.org/pod/{}", volume.pod_uid);
        node.until("the other ID", async || id().await == wanted).await;
        assert_ne!(before.spiffe_id().to_string(), wanted);
        // While there is none: the first answer has the new one.
        node.agent.take().unwrap().crash().unwrap();
        node.configure(&names);
        node.start_agent();
        assert_eq!(id().await, "spiffe://example.org/name/shop/web-1");
    });
}

#[test]
fn one_bad_name_in_the_state_directory_never_fails_all() {
    on_node("one_bad_name_in_the_state_directory_never_fails_all", async |node| {
        let (victim, thief) = victim_and_thief(node).await;
        let before = leaf(&fetch(&node.view(&victim)).await);
        node.agent.take().unwrap().crash().unwrap();
        let state = node.state();
        let directory = |name: &str| {
            let path = state.join(name);
            let _ = std::fs::remove_file(&path);
            std::fs::create_dir_all(path.join("inner")).unwrap();
        };
        directory(".new-0-0");
        directory("node");
        directory(node.record(&thief).file_name().unwrap().to_str().unwrap());
        let fifo = state.join("fifo");
        rustix::fs::mknodat(rustix::fs::CWD, &fifo, rustix::fs::FileType::Fifo, 0o600.into(), 0).unwrap();
        std::os::unix::fs::symlink("/proc/kmsg", state.join("link")).unwrap();
        std::fs::write(state.join("unreadable"), "x").unwrap();
        open(&state.join("unreadable"), 0);
        node.start_agent();
        assert_eq!(leaf(&fetch(&node.view(&victim)).await), before);
        // The volume whose record is a directory is published as any other, and recorded.
        republish(node, &thief).await;
        assert_eq!(fetch(&node.view(&thief)).await.spiffe_id().to_string(), THIEF);
        node.ready().await;
        assert_eq!(record(node, &thief).volume.pod.as_str(), thief.pod_uid);
        restart(node).await;
        assert_eq!(fetch(&node.view(&thief)).await.spiffe_id().to_string(), THIEF);
        for volume in [&victim, &thief] {
            node.kubelet.tear_down(volume).await.unwrap();
            assert!(!node.record(volume).exists());
        }
    });
}

/// Everything that listens in a process, as code of an attacker in it could have copied.
fn listeners_of(pid: u32) -> Vec<OwnedFd> {
    let process = pidfd_open(Pid::from_raw(pid as i32).unwrap(), PidfdFlags::empty()).unwrap();
    let numbers = std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap();
    let numbers = numbers.map(|entry| entry.unwrap().file_name().to_str().unwrap().parse().unwrap());
    let all = numbers.filter_map(|fd| pidfd_getfd(&process, fd, PidfdGetfdFlags::empty()).ok());
    // Not the port for health: nothing but metrics comes by it, and two processes cannot have it.
    let unix = |fd: &OwnedFd| sockopt::socket_domain(fd) == Ok(AddressFamily::UNIX);
    all.filter(|fd| unix(fd) && sockopt::socket_acceptconn(fd) == Ok(true)).collect()
}

fn has_a_client(listener: &OwnedFd) -> bool {
    let mut polled = [PollFd::new(listener, PollFlags::IN)];
    poll(&mut polled, Some(&Timespec::default())).unwrap();
    polled[0].revents().contains(PollFlags::IN)
}

#[test]
fn the_procedure_for_a_stolen_agent_ends_in_a_clean_state() {
    on_node("the_procedure_for_a_stolen_agent_ends_in_a_clean_state", async |node| {
        let (victim, thief) = victim_and_thief(node).await;
        let volumes = [&victim, &thief];
        // What an attacker in the agent takes along: the state directory and every socket, and a forged
        // record stays behind.
        let stolen = listeners_of(node.agent().pid());
        assert!(stolen.len() >= 4, "{}", stolen.len());
        let directory = std::fs::File::open(node.state()).unwrap();
        let own = record(node, &thief);
        let token = own.identity().unwrap().token.clone();
        let svid = record(node, &victim).identity().unwrap().svid.clone();
        let forgery = forged_record(own, token, svid);
        let sockets = volumes.map(|v| node.kubelet.target_path(v).join("spire-agent.sock"));
        let before = sockets.each_ref().map(|path| inode(path));
        let mut leaves = Vec::new();
        for volume in volumes {
            leaves.push(leaf(&fetch(&node.view(volume)).await));
        }
        std::fs::write(node.record(&thief), &*forgery.encode()).unwrap();

        // 2. The root.
        node.write_root();
        // 3. Both at once.
        node.agent.take().unwrap().crash().unwrap();
        node.mounter.take().unwrap().crash().unwrap();
        // 4. The state.
        unmount(node.state(), UnmountFlags::empty()).unwrap_or_else(|_| {
            // The attacker's descriptor keeps it busy, as a pod's would.
            unmount(node.state(), UnmountFlags::DETACH).unwrap();
        });
        let plugins = node.kubelet.root().join("plugins").join(DRIVER);
        std::fs::remove_file(plugins.join("csi.sock")).unwrap();
        let registration = format!("plugins_registry/{DRIVER}-reg.sock");
        std::fs::remove_file(node.kubelet.root().join(registration)).unwrap();
        // 5. The patched pair.
        node.start_mounter();
        node.start_agent();
        node.register().await;
        for volume in volumes {
            republish(node, volume).await;
        }
        // 6. Clean: every pod has its own identity, anew, and the attacker's copies see nobody.
        for (volume, old) in volumes.into_iter().zip(&leaves) {
            let svid = fetch(&node.view(volume)).await;
            let wanted =
                format!("spiffe://example.org/ns/{}/sa/{}", volume.namespace, volume.service_account);
            assert_eq!(svid.spiffe_id().to_string(), wanted);
            assert_ne!(leaf(&svid), *old);
            let condition = node.kubelet.stats(volume).await.unwrap().volume_condition.unwrap();
            assert!(!condition.abnormal, "{condition:?}");
        }
        for (path, old) in sockets.iter().zip(before) {
            assert_ne!(inode(path), old, "the same socket");
        }
        assert!(!stolen.iter().any(has_a_client), "somebody connected to what the attacker listens on");
        let (old, new) = (directory.metadata().unwrap(), std::fs::metadata(node.state()).unwrap());
        assert_ne!((old.dev(), old.ino()), (new.dev(), new.ino()), "the same state directory");
        node.ready().await;
        assert!(!node.agent_log().contains("a record"), "something of that time was read");
        // 7. The pods go.
        for volume in volumes {
            node.kubelet.tear_down(volume).await.unwrap();
        }
        let left: Vec<_> = std::fs::read_dir(node.state()).unwrap().map(|e| e.unwrap().file_name()).collect();
        assert_eq!(left, ["node"]);
    });
}
