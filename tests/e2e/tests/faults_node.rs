//! What goes wrong on one node: processes killed or standing still, kubelet and containerd restarted, the
//! power cut, two pods of the DaemonSet. Each node has its own line of tests, both run at the same time, and
//! cargo runs this file alone.
#![allow(clippy::indexing_slicing, reason = "JSON values give null for what is missing")]

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use seamount_e2e::cluster::{apply, get, kubectl};
use seamount_e2e::survivor::passing;
use seamount_e2e::system::{Restore, in_order, is_ready, ready_on};
use seamount_e2e::test::text;
use seamount_e2e::{Pod, SYSTEM, Survivor, Test, node, until};
use serde_json::{Value, json};

/// Held by each test of a node.
static N1: Mutex<()> = Mutex::new(());
static N2: Mutex<()> = Mutex::new(());

/// Runs a test that has a node for itself, and that finds it and leaves it in order.
fn on(name: &str, of: &'static str, body: impl FnOnce(&Test) -> Result<()>) {
    let lane = if of == "n1" { &N1 } else { &N2 };
    let _alone = lane.lock().unwrap_or_else(PoisonError::into_inner);
    Test::run(name, |test| {
        in_order(name, &[of])?;
        body(test)?;
        ready_on(of).map(drop)
    });
}

/// Kills processes of the DaemonSet's pod and waits until it is well again, with other processes.
fn kill(of: &str, victims: &[&str]) -> Result<()> {
    let mut pids = Vec::new();
    for victim in victims {
        let found = node::processes(of, victim)?;
        ensure!(found.len() == 1, "{} processes {victim} on {of}", found.len());
        pids.extend(found);
    }
    let begun = Instant::now();
    node::signal(of, "KILL", &pids)?;
    for victim in victims {
        until(&format!("another {victim}"), || {
            let now = node::processes(of, victim)?;
            Ok((now.len() == 1 && !pids.contains(&now[0])).then_some(()))
        })?;
    }
    println!("{victims:?} killed; started again after {:.1} s", begun.elapsed().as_secs_f64());
    ready_on(of).map(drop)
}

fn names(survivors: &[Survivor]) -> String {
    survivors.iter().map(|s| s.name.as_str()).collect::<Vec<_>>().join(", ")
}

#[test]
fn each_process_is_killed_under_running_pods() {
    on("each_process_is_killed_under_running_pods", "n1", |test| {
        let survivors = Survivor::start(test, "n1", &["one", "two"])?;
        for (i, victims) in [&["agent"][..], &["mounter"], &["mounter", "agent"]].into_iter().enumerate() {
            let before = survivors.iter().map(|s| s.updates(test)).collect::<Result<Vec<_>>>()?;
            let newcomer = format!("new-{i}");
            std::thread::scope(|scope| {
                let killer = scope.spawn(|| kill("n1", victims));
                test.create(&passing(&newcomer, "n1"))?;
                killer.join().unwrap_or_else(|_| bail!("the killer panicked"))
            })?;
            for (survivor, before) in survivors.iter().zip(before) {
                survivor.check(test)?;
                if victims.contains(&"agent") {
                    survivor.reconnected(test, before)?;
                } else {
                    ensure!(survivor.updates(test)? == before, "a stream broke though the agent lived");
                }
            }
            test.ended_well(&newcomer, "main")?;
            test.delete(&newcomer)?;
        }
        for survivor in &survivors {
            let (gap, error) = survivor.gap(test)?;
            println!("{}: longest gap for new connections {gap:.2} s {error}", survivor.name);
        }
        Ok(())
    });
}

#[test]
fn kubelet_and_containerd_restart_under_running_pods() {
    on("kubelet_and_containerd_restart_under_running_pods", "n1", |test| {
        let survivors = Survivor::start(test, "n1", &["one", "two"])?;
        let agent = node::processes("n1", "agent")?;
        for process in ["kubelet", "containerd"] {
            let leaves = format!("leaves-{process}");
            let comes = format!("comes-{process}");
            let pod = test.start_pod(&Pod::new(&leaves).on("n1").sleeping())?;
            node::control("stop", "n1", &[process])?;
            let again = Restore::new(move || node::control("start", "n1", &[process]));
            test.ask_to_end(&[&leaves])?;
            test.create(&passing(&comes, "n1"))?;
            if process == "kubelet" {
                // Without containerd nothing of a container can be found here.
                survivors.iter().try_for_each(Survivor::check_on_node)?;
            }
            again.now()?;
            ready_on("n1")?;
            test.gone(&leaves)?;
            node::forgotten("n1", &text(&pod["metadata"]["uid"]))?;
            test.ended_well(&comes, "main")?;
            for survivor in &survivors {
                survivor.check(test)?;
                survivor.never_broken(test)?;
            }
            test.delete(&comes)?;
        }
        ensure!(node::processes("n1", "agent")? == agent, "the agent was restarted");
        Ok(())
    });
}

#[test]
fn pods_deleted_while_the_agent_stands_still_go_when_it_is_back() {
    on("pods_deleted_while_the_agent_stands_still_go_when_it_is_back", "n2", |test| {
        let survivors = Survivor::start(test, "n2", &["stays"])?;
        let leaving = ["leaves-1", "leaves-2", "leaves-3"];
        leaving.iter().try_for_each(|name| test.create(&Pod::new(name).on("n2").sleeping()))?;
        let uids = leaving
            .iter()
            .map(|name| Ok(text(&test.start_pod(&Pod::new(name).on("n2").sleeping())?["metadata"]["uid"])))
            .collect::<Result<Vec<_>>>()?;

        let agents = node::processes("n2", "agent")?;
        node::signal("n2", "STOP", &agents)?;
        let again = Restore::new(move || node::signal("n2", "CONT", &agents));
        test.ask_to_end(&leaving)?;
        test.create(&passing("comes", "n2"))?;
        // Long enough for the kubelet to ask, and shorter than the liveness probe's patience.
        std::thread::sleep(Duration::from_secs(12));
        for name in leaving {
            let pod = test.pod(name).context("it is gone, and the agent stood still: it was not asked")?;
            ensure!(!pod["metadata"]["deletionTimestamp"].is_null(), "{name} is not being deleted");
        }
        let begun = Instant::now();
        again.now()?;
        for (name, uid) in leaving.iter().zip(&uids) {
            test.gone(name)?;
            node::forgotten("n2", uid)?;
        }
        println!("3 pods were gone {:.1} s after the agent's return", begun.elapsed().as_secs_f64());
        test.ended_well("comes", "main")?;
        survivors[0].check(test)?;
        survivors[0].never_broken(test)
    });
}

/// The container ids of a pod, to tell those of before a power cut from those after it.
fn containers(pod: &Value) -> Vec<String> {
    let all = seamount_e2e::system::statuses(pod);
    all.iter().map(|s| text(&s["containerID"])).collect()
}

#[test]
fn a_node_that_lost_its_power_serves_again() {
    on("a_node_that_lost_its_power_serves_again", "n2", |test| {
        let survivors = Survivor::start(test, "n2", &["one", "two"])?;
        let [deleted, forced] = ["deleted", "forced"].map(|name| Pod::new(name).on("n2").sleeping());
        let [deleted, forced] = [test.start_pod(&deleted)?, test.start_pod(&forced)?];
        let before: Vec<_> =
            survivors.iter().map(|s| Ok(containers(&test.pod(&s.name)?))).collect::<Result<_>>()?;
        let daemon = containers(&node::daemon("n2")?);

        node::control("stop", "n2", &[])?;
        let again = Restore::new(|| node::control("start", "n2", &[]));
        test.ask_to_end(&["deleted"])?;
        kubectl(&["delete", "pod", "forced", "-n", &test.namespace, "--force", "--grace-period=0"])?;
        again.now()?;

        let begun = Instant::now();
        until("the node to be there", || node::run("n2", &["ctr", "version"]).map(Some))?;
        // The disk was kept, so the kubelet has to deal with what it finds there.
        for survivor in &survivors {
            survivor.same_directory()?;
        }
        until("the DaemonSet's pod to run again", || {
            let now = containers(&node::daemon("n2")?);
            Ok((now.len() == 2 && now.iter().all(|id| !daemon.contains(id))).then_some(()))
        })?;
        ready_on("n2")?;
        for (survivor, before) in survivors.iter().zip(before) {
            let pod = until(&format!("{} to run again", survivor.name), || {
                let pod = test.pod(&survivor.name)?;
                let now = containers(&pod);
                ensure!(now.iter().all(|id| !before.contains(id)), "containers of before: {}", pod["status"]);
                Ok(is_ready(&pod).then_some(pod))
            })?;
            ensure!(text(&pod["metadata"]["uid"]) == survivor.uid(), "another pod");
            let identity = until(&format!("an answer to {}", survivor.name), || {
                test.identity(&survivor.name, "main").map(Some)
            })?;
            ensure!(identity["id"] == *survivor.id(), "{identity}");
            survivor.same_directory()?;
        }
        println!(
            "{} have identities {:.1} s after the power came",
            names(&survivors),
            begun.elapsed().as_secs_f64()
        );
        test.gone("deleted")?;
        for pod in [deleted, forced] {
            node::forgotten("n2", &text(&pod["metadata"]["uid"]))?;
        }
        let state = node::state_directory();
        let mounts = node::mounts("n2")?.iter().filter(|l| l.contains(&state)).count();
        ensure!(mounts == 1, "{mounts} mounts at {state}");
        Ok(())
    });
}

/// A copy of the DaemonSet's pod on a node, which the test alone controls.
fn copy_of(daemon: &Value) -> Value {
    let mut spec = daemon["spec"].clone();
    // The API server adds these again.
    if let Some(spec) = spec.as_object_mut() {
        spec.remove("affinity");
    }
    json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "copy", "namespace": SYSTEM},
        "spec": spec,
    })
}

#[test]
fn two_pods_of_the_daemonset_do_no_harm() {
    on("two_pods_of_the_daemonset_do_no_harm", "n2", |test| {
        let survivors = Survivor::start(test, "n2", &["one", "two"])?;

        // The old one does not end when it is told to, and is forced out of the API: both are there for a
        // while.
        let old = node::daemon("n2")?;
        let stopped = [node::processes("n2", "agent")?, node::processes("n2", "mounter")?].concat();
        node::signal("n2", "STOP", &stopped)?;
        let name = text(&old["metadata"]["name"]);
        let begun = Instant::now();
        kubectl(&["delete", "pod", &name, "-n", SYSTEM, "--force", "--grace-period=0"])?;
        let mut most = 0;
        until("another pod of the DaemonSet", || {
            most = most.max(node::processes("n2", "mounter")?.len());
            let now = node::daemon("n2")?;
            Ok((now["metadata"]["uid"] != old["metadata"]["uid"]).then_some(()))
        })?;
        until("one mounter and one agent", || {
            let [mounters, agents] = [node::processes("n2", "mounter")?, node::processes("n2", "agent")?];
            most = most.max(mounters.len());
            let all = [&mounters[..], &agents].concat();
            Ok((mounters.len() == 1 && agents.len() == 1 && all.iter().all(|p| !stopped.contains(p)))
                .then_some(()))
        })?;
        ready_on("n2")?;
        println!("forced out: ready after {:.1} s, {most} mounters at a time", begun.elapsed().as_secs_f64());
        for survivor in &survivors {
            survivor.check(test)?;
        }

        // And side by side for as long as one likes.
        let remove = Restore::new(|| {
            kubectl(&["delete", "pod", "copy", "-n", SYSTEM, "--ignore-not-found", "--timeout=120s"])
                .map(drop)
        });
        apply(&copy_of(&node::daemon("n2")?))?;
        until("the copy's processes", || {
            let copy = get(&["pod", "copy", "-n", SYSTEM])?;
            let both = seamount_e2e::system::statuses(&copy);
            let running = both.iter().filter(|s| !s["state"]["running"].is_null()).count();
            ensure!(running == 2, "{}", copy["status"]);
            Ok(Some(()))
        })?;
        for i in 0..3 {
            let newcomer = format!("beside-{i}");
            test.output_of(&passing(&newcomer, "n2"), "main")?;
            test.delete(&newcomer)?;
            for survivor in &survivors {
                survivor.check(test)?;
            }
        }
        remove.now()?;
        ready_on("n2")?;
        for survivor in &survivors {
            survivor.check(test)?;
            survivor.updates(test)?;
            let (gap, error) = survivor.gap(test)?;
            println!("{}: longest gap for new connections {gap:.2} s {error}", survivor.name);
        }
        test.output_of(&passing("after", "n2"), "main").map(drop)
    });
}
