//! What concerns all nodes: a roll-out, no DaemonSet, no authority, a partition, another identity source. One
//! at a time, and cargo runs this file alone.
#![allow(clippy::indexing_slicing, reason = "JSON values give null for what is missing")]

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use anyhow::{Context as _, Result, bail, ensure};
use seamount_e2e::cluster::{apply, get, kubectl, patch, script};
use seamount_e2e::spire::{self, Spire};
use seamount_e2e::survivor::passing;
use seamount_e2e::system::{
    NODES, Restore, agent_log, daemons_ready, in_order, ready_on, restart_daemons, with_svid_ttl,
};
use seamount_e2e::test::text;
use seamount_e2e::{CLIENTS, DRIVER, IMAGE, Pod, SYSTEM, Survivor, TRUST_DOMAIN, Test, node, until};
use serde_json::{Value, json};

/// Held by each test of this file.
static ALONE: Mutex<()> = Mutex::new(());

/// Runs a test that has the cluster for itself, and that finds it and leaves it in order.
fn alone(name: &str, body: impl FnOnce(&Test) -> Result<()>) {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    Test::run(name, |test| {
        in_order(name, &NODES)?;
        body(test)?;
        NODES.iter().try_for_each(|n| ready_on(n).map(drop))
    });
}

/// Survivors on both nodes.
fn on_both(test: &Test) -> Result<Vec<Survivor>> {
    let mut all = Survivor::start(test, "n1", &["stays-1"])?;
    all.extend(Survivor::start(test, "n2", &["stays-2"])?);
    Ok(all)
}

/// Six pods come, have to see their identity, and go; all of them or an error.
fn batch(test: &Test, label: &str) -> Result<usize> {
    let names: Vec<_> = (0..6).map(|i| (format!("{label}-{i}"), NODES[i % 2])).collect();
    let mut items = Vec::new();
    for (name, node) in &names {
        let mut pod = passing(name, node).object(&test.namespace);
        pod["metadata"]["labels"] = json!({"batch": label});
        items.push(pod);
    }
    apply(&json!({"apiVersion": "v1", "kind": "List", "items": items}))?;
    let selector = format!("batch={label}");
    until(&format!("the pods of {label} to end well"), || {
        let list = get(&["pods", "-n", &test.namespace, "-l", &selector])?;
        let phases: Vec<_> =
            list["items"].as_array().into_iter().flatten().map(|p| text(&p["status"]["phase"])).collect();
        if phases.iter().any(|p| p == "Failed") {
            bail!("a pod failed: {list}");
        }
        std::thread::sleep(std::time::Duration::from_millis(700));
        ensure!(phases.iter().all(|p| p == "Succeeded"), "{phases:?}");
        Ok(Some(()))
    })?;
    kubectl(&["delete", "pods", "-n", &test.namespace, "-l", &selector, "--timeout=120s"])
        .with_context(|| format!("a pod of {label} does not go"))?;
    Ok(names.len())
}

fn roll_to(image: &str) -> Result<()> {
    let both = [format!("mounter={image}"), format!("agent={image}")];
    kubectl(&["set", "image", "daemonset/seamount-node", "-n", SYSTEM, &both[0], &both[1]])?;
    daemons_ready()?;
    for n in NODES {
        let spec = &node::daemon(n)?["spec"];
        let images: Vec<_> =
            spec["containers"].as_array().into_iter().flatten().map(|c| text(&c["image"])).collect();
        ensure!(images == [image, image], "{n}: {images:?}");
    }
    Ok(())
}

/// The longest gap that the design allows to new connections while the DaemonSet rolls, in seconds.
const GAP: f64 = 3.0;

#[test]
fn the_daemonset_rolls_to_a_new_image_while_pods_come_and_go() {
    alone("the_daemonset_rolls_to_a_new_image_while_pods_come_and_go", |test| {
        let survivors = on_both(test)?;
        let restore = Restore::new(|| roll_to(IMAGE));
        let rolling = AtomicBool::new(true);
        let passed = AtomicUsize::new(0);
        let begun = Instant::now();
        std::thread::scope(|scope| -> Result<()> {
            let load: Vec<_> = ["a", "b"]
                .map(|line| {
                    let (rolling, passed) = (&rolling, &passed);
                    scope.spawn(move || -> Result<()> {
                        for i in 0.. {
                            let enough = passed.load(Ordering::Relaxed) >= 30;
                            if enough && !rolling.load(Ordering::Relaxed) {
                                break;
                            }
                            passed.fetch_add(batch(test, &format!("{line}{i}"))?, Ordering::Relaxed);
                        }
                        Ok(())
                    })
                })
                .into_iter()
                .collect();
            let rolled = roll_to("seamount:dev2").and_then(|()| {
                println!("rolled after {:.1} s", begun.elapsed().as_secs_f64());
                // And back, as an administrator does.
                restore.now()
            });
            println!("rolled back after {:.1} s", begun.elapsed().as_secs_f64());
            rolling.store(false, Ordering::Relaxed);
            for line in load {
                line.join().unwrap_or_else(|_| bail!("a line of pods panicked"))?;
            }
            rolled
        })?;
        println!("{} pods came and went, none failed, none stayed", passed.load(Ordering::Relaxed));
        let mut longest = 0.0_f64;
        for survivor in &survivors {
            survivor.check(test)?;
            survivor.updates(test)?;
            let (gap, error) = survivor.gap(test)?;
            println!(
                "{}: longest gap for new connections in two roll-outs: {gap:.2} s {error}",
                survivor.name
            );
            longest = longest.max(gap);
        }
        ensure!(longest <= GAP, "a gap of {longest:.2} s; at most {GAP} s are allowed");
        Ok(())
    });
}

#[test]
fn pods_deleted_without_a_daemonset_go_when_it_is_back() {
    alone("pods_deleted_without_a_daemonset_go_when_it_is_back", |test| {
        let survivors = on_both(test)?;
        let leaving = [("leaves-1", "n1"), ("leaves-2", "n2")];
        let pods = leaving
            .iter()
            .map(|(name, n)| test.start_pod(&Pod::new(name).on(n).sleeping()))
            .collect::<Result<Vec<_>>>()?;

        let select = |value: Value| {
            let selector =
                json!({"spec": {"template": {"spec": {"nodeSelector": {"e2e.test/nowhere": value}}}}});
            patch(&["daemonset", "seamount-node", "-n", SYSTEM], &selector)
        };
        let back = Restore::new(move || {
            select(Value::Null)?;
            daemons_ready()
        });
        select(json!("true"))?;
        until("the DaemonSet's pods to go", || {
            let left = get(&["pods", "-n", SYSTEM])?["items"].as_array().map_or(0, Vec::len);
            ensure!(left == 0, "{left} are there");
            Ok(Some(()))
        })?;
        test.ask_to_end(&leaving.map(|(name, _)| name))?;
        for (name, n) in leaving {
            test.create(&passing(&name.replace("leaves", "comes"), n))?;
        }
        std::thread::sleep(std::time::Duration::from_secs(10));
        for (name, _) in leaving {
            test.pod(name).context("it is gone, and there was no driver: it was not asked")?;
        }
        let begun = Instant::now();
        back.now()?;
        let ready = begun.elapsed().as_secs_f64();
        for ((name, n), pod) in leaving.iter().zip(&pods) {
            test.gone(name)?;
            node::forgotten(n, &text(&pod["metadata"]["uid"]))?;
        }
        let gone = begun.elapsed().as_secs_f64();
        println!("the DaemonSet was ready again after {ready:.1} s, the pods were gone after {gone:.1} s");
        for (name, _) in leaving {
            test.ended_well(&name.replace("leaves", "comes"), "main")?;
        }
        for survivor in &survivors {
            survivor.check(test)?;
            survivor.reconnected(test, 1)?;
        }
        Ok(())
    });
}

#[test]
fn a_node_apart_from_the_control_plane_serves_and_rotates() {
    alone("a_node_apart_from_the_control_plane_serves_and_rotates", |test| {
        let short = with_svid_ttl("60s")?;
        let rotating = Survivor::start(test, "n2", &["apart"])?;
        let forced = test.start_pod(&Pod::new("forced").on("n2").sleeping())?;
        let begun = Instant::now();
        node::control("link", "n2", &["down"])?;
        let up = Restore::new(|| node::control("link", "n2", &["up"]));
        ensure!(test.exec("apart", "main", &["true"]).is_err(), "the link is down, and kubectl exec works");
        kubectl(&["delete", "pod", "forced", "-n", &test.namespace, "--force", "--grace-period=0"])?;
        let mut last = rotating[0].serial().clone();
        for _ in 0..2 {
            last = until("another SVID while the node is apart", || {
                let identity = rotating[0].identity_on_node()?;
                ensure!(identity["id"] == *rotating[0].id(), "{identity}");
                Ok((identity["serial"] != last).then(|| identity["serial"].clone()))
            })?;
        }
        rotating[0].same_directory()?;
        println!("two rotations after {:.0} s of partition", begun.elapsed().as_secs_f64());
        up.now()?;
        ready_on("n2")?;
        let identity =
            until("an answer through the control plane", || test.identity("apart", "main").map(Some))?;
        ensure!(identity["id"] == *rotating[0].id(), "{identity}");
        node::forgotten("n2", &text(&forced["metadata"]["uid"]))?;
        test.output_of(&passing("after", "n2"), "main")?;
        short.now()
    });
}

#[test]
fn what_was_issued_goes_on_without_the_authority() {
    alone("what_was_issued_goes_on_without_the_authority", |test| {
        let survivors = on_both(test)?;
        let saved = get(&["secret", "seamount-authority", "-n", SYSTEM])?;
        let secret = json!({
            "apiVersion": "v1",
            "kind": "Secret",
            "metadata": {"name": "seamount-authority", "namespace": SYSTEM},
            "type": saved["type"],
            "data": saved["data"],
        });
        let back = Restore::new(move || {
            apply(&secret)?;
            daemons_ready()
        });
        kubectl(&["delete", "secret", "seamount-authority", "-n", SYSTEM])?;
        for n in NODES {
            until(&format!("the agent of {n} to say that its Secret is gone"), || {
                let log = agent_log(n)?;
                ensure!(log.contains("going on with the last good authority"), "{log}");
                Ok(Some(()))
            })?;
        }
        for survivor in &survivors {
            survivor.check(test)?;
            survivor.never_broken(test)?;
        }
        // Also by agents that never saw an authority.
        restart_daemons()?;
        for n in NODES {
            until(&format!("the new agent of {n} to say that it has no authority"), || {
                let log = agent_log(n)?;
                ensure!(log.contains("no identity source"), "{log}");
                Ok(Some(()))
            })?;
        }
        for survivor in &survivors {
            survivor.check(test)?;
            survivor.reconnected(test, 1)?;
        }
        // A new pod starts and waits for its identity; the deletion of another waits for nothing.
        let waits = test.start_pod(&Pod::new("waits").on("n1").sleeping())?;
        let refusal = test.identity("waits", "main").err().map(|e| format!("{e:#}")).unwrap_or_default();
        ensure!(refusal.contains("Unavailable"), "a new pod without authority: {refusal:?}");
        test.start_pod(&Pod::new("leaves").on("n2").sleeping())?;
        test.delete("leaves")?;
        for n in NODES {
            let pod = node::daemon(n)?;
            let ready = seamount_e2e::system::is_ready(&pod);
            ensure!(!ready, "the agent of {n} calls itself ready without an authority");
        }
        back.now()?;
        until("the identity of the pod that waited", || test.identity("waits", "main").map(Some))?;
        ensure!(text(&test.pod("waits")?["metadata"]["uid"]) == text(&waits["metadata"]["uid"]));
        survivors.iter().try_for_each(|s| s.check(test))
    });
}

/// `seamount manifests` with the options of the installation under test and these.
fn manifests(options: &[&str]) -> Result<String> {
    let program = std::env::var("SEAMOUNT_E2E_PROGRAM").context("run.sh sets it")?;
    let output = std::process::Command::new(&program)
        .args(["manifests", "--image", IMAGE, "--image-pull-policy=Never", "--log-level=debug"])
        .args(options)
        .output()
        .with_context(|| format!("cannot run {program}"))?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Ok(String::from_utf8(output.stdout)?)
}

fn install(manifests: &str) -> Result<()> {
    script(&["kubectl", "apply", "-f", "-"], manifests)?;
    daemons_ready()
}

#[test]
fn a_node_of_the_directory_source_moves_to_the_authority() {
    alone("a_node_of_the_directory_source_moves_to_the_authority", |test| {
        let file = std::env::var("SEAMOUNT_E2E_MANIFESTS").context("run.sh sets it")?;
        let authority = std::fs::read_to_string(&file).context(file)?;
        let mine = format!("spiffe://{TRUST_DOMAIN}/ns/{}/sa/default", test.namespace);
        let spire = Spire::start()?;
        let directory = spire.directory().display().to_string();
        let own = authority.clone();
        let back = Restore::new(move || install(&own));
        // A pod of the authority lives through both moves, and has its SVID again after the second.
        let survivors = Survivor::start(test, "n1", &["always"])?;
        install(&manifests(&["--source-directory", &directory])?)?;
        // As an installed spiffe-csi has it: it is not published again, and gets no token.
        let classic =
            json!({"requiresRepublish": false, "tokenRequests": [], "serviceAccountTokenInSecrets": null});
        patch(&["csidriver", DRIVER], &json!({"spec": classic}))?;
        let names = ["stays", "leaves"];
        let pods = names
            .iter()
            .map(|name| test.start_pod(&Pod::new(name).on("n1").sleeping()))
            .collect::<Result<Vec<_>>>()?;
        for name in names {
            let identity = test.identity(name, "main")?;
            ensure!(identity["id"] == spire::ID, "{name}: {identity}");
        }
        // Without an issuer in the configuration nothing proves what a record says: the pod is held, and
        // neither refused nor given what an earlier agent may have forged.
        match test.identity("always", "main") {
            Ok(identity) => bail!("served by an unproved record: {identity}"),
            Err(e) => ensure!(format!("{e:#}").contains("Unavailable"), "{e:#}"),
        }
        survivors[0].same_directory()?;

        // The CSIDriver object is patched in place, and the kubelet publishes over the old mounts.
        back.now()?;
        let uid = text(&pods[0]["metadata"]["uid"]);
        until("the agent to report the pod of before", || {
            let log = agent_log("n1")?;
            let line =
                log.lines().find(|l| l.contains("another driver's mount is there") && l.contains(&uid));
            line.map(|l| Some(l.to_owned())).with_context(|| log.clone())
        })?;
        let identity = test.identity("stays", "main")?;
        ensure!(identity["id"] == spire::ID, "the pod of before: {identity}");
        let new = Pod::new("new").on("n1").container("main", CLIENTS, &["/client", "fetch"]);
        let identity: Value = serde_json::from_str(&test.output_of(&new, "main")?)?;
        ensure!(identity["id"] == mine.as_str(), "a new pod: {identity}");
        survivors[0].check(test)?;

        for (name, pod) in names.iter().zip(&pods) {
            test.delete(name)?;
            node::forgotten("n1", &text(&pod["metadata"]["uid"]))?;
        }
        ensure!(spire.socket().exists(), "the unpublish of its volumes took the agent's own socket away");
        Ok(())
    });
}
