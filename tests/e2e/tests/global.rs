//! What changes the whole cluster, or counts on a whole node. One at a time, and cargo runs this file after
//! the others.
#![allow(clippy::indexing_slicing, reason = "JSON values give null for what is missing")]

use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use anyhow::{Context as _, Result, bail, ensure};
use seamount_e2e::cluster::{get, kubectl, patch};
use seamount_e2e::system::{NODES, Restore, daemons_ready, in_order, restart_daemons, with_svid_ttl};
use seamount_e2e::test::text;
use seamount_e2e::{CLIENTS, DRIVER, Pod, SYSTEM, TRUST_DOMAIN, Test, node, until};
use serde_json::{Value, json};

/// Held by each test of this file.
static ALONE: Mutex<()> = Mutex::new(());

fn alone(name: &str, body: impl FnOnce(&Test) -> Result<()>) {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    Test::run(name, |test| {
        in_order(name, &NODES)?;
        body(test)
    });
}

/// Changes the CSIDriver object until the guard is dropped.
fn with_driver(change: &Value) -> Result<Restore> {
    let spec = get(&["csidriver", DRIVER])?["spec"].clone();
    let restore = Restore::new(move || patch(&["csidriver", DRIVER], &json!({"spec": spec})));
    patch(&["csidriver", DRIVER], &json!({"spec": change}))?;
    // The kubelets watch the object; nothing tells when they have seen it.
    std::thread::sleep(std::time::Duration::from_secs(3));
    Ok(restore)
}

#[test]
fn deletion_leaves_nothing_on_the_node() {
    alone("deletion_leaves_nothing_on_the_node", |test| {
        let listeners = || node::listeners("n1");
        let none = listeners()?;
        let pod = test.start_pod(&Pod::new("gone").on("n1").sleeping())?;
        test.identity("gone", "main")?;
        let uid = text(&pod["metadata"]["uid"]);
        let state = node::state_directory();
        let records = || {
            let named = format!("find {state} -name '*{uid}*'; grep -rl -e {uid} {state}; true");
            node::shell("n1", &named)
        };
        let directory =
            || node::shell("n1", &format!("ls -d {} 2>/dev/null; true", node::pod_directory(&uid)));
        // All of it is there while the pod lives, so this test knows where to look.
        ensure!(!records()?.trim().is_empty(), "no record of {uid} in {state}");
        ensure!(listeners()? == none + 1, "{} listeners, {none} before", listeners()?);
        ensure!(!directory()?.is_empty(), "no directory");

        test.delete("gone")?;
        until("the pod's directory to go", || {
            let left = directory()?;
            ensure!(left.is_empty(), "{left}");
            Ok(Some(()))
        })?;
        let mounts: Vec<_> = node::mounts("n1")?.into_iter().filter(|l| l.contains(&uid)).collect();
        ensure!(mounts.is_empty(), "{mounts:?}");
        ensure!(records()?.trim().is_empty(), "records: {}", records()?);
        ensure!(listeners()? == none, "{} listeners, {none} before", listeners()?);
        Ok(())
    });
}

#[test]
fn seamount_node_tells_what_is_on_a_node() {
    alone("seamount_node_tells_what_is_on_a_node", |test| {
        let pod = test.start_pod(&Pod::new("told").on("n1").sleeping())?;
        let identity = test.identity("told", "main")?;
        // As docs/operations.md has it.
        let daemon = text(&node::daemon("n1")?["metadata"]["name"]);
        let seamount = |words: &[&str]| {
            let enter = ["exec", "-n", SYSTEM, &daemon, "-c", "mounter", "--", "/seamount", "node"];
            kubectl(&[&enter, words].concat())
        };
        let all: Value = serde_json::from_str(&seamount(&["volumes", "-o", "json"])?)?;
        let volumes = all["volumes"].as_array().into_iter().flatten();
        let ours: Vec<_> = volumes.filter(|v| v["podUid"] == pod["metadata"]["uid"]).collect();
        let [volume] = ours.as_slice() else { bail!("{} volumes of the pod: {all}", ours.len()) };
        ensure!(volume["spiffeId"] == identity["id"] && volume["pod"] == "told", "{volume}");
        ensure!(volume["state"] == "ready" && volume["healthy"] == true, "{volume}");
        for words in [&["volumes"][..], &["volumes", "-o", "wide"]] {
            let table = seamount(words)?;
            ensure!(table.contains(&text(&identity["id"])), "{table}");
        }
        let status: Value = serde_json::from_str(&seamount(&["status", "-o", "json"])?)?;
        ensure!(status["ready"] == true && status["trustDomain"] == TRUST_DOMAIN, "{status}");
        // Exit status 0: nothing is wrong.
        println!("{}", seamount(&["doctor"])?);
        Ok(())
    });
}

/// The number of the node's mounts when nothing is being set up or taken down.
fn settled_mounts() -> Result<usize> {
    let mut last = node::mounts("n1")?.len();
    let mut same = 0;
    until("the node's mounts to settle", || {
        std::thread::sleep(std::time::Duration::from_millis(500));
        let now = node::mounts("n1")?.len();
        same = if now == last { same + 1 } else { 0 };
        last = now;
        Ok((same == 4).then_some(now))
    })
}

#[test]
fn identity_volumes_add_no_mount_to_the_host() {
    alone("identity_volumes_add_no_mount_to_the_host", |test| {
        let before = settled_mounts()?;
        test.start_pod(&Pod::new("without").on("n1").without_volume().sleeping())?;
        let without = settled_mounts()? - before;
        let pod = test.start_pod(&Pod::new("with").on("n1").sleeping())?;
        let with = settled_mounts()? - before - without;
        ensure!(without > 0, "a pod without any mount: this test counts in the wrong place");
        ensure!(with == without, "{with} mounts for a pod with an identity, {without} for one without");
        let uid = text(&pod["metadata"]["uid"]);
        let ours: Vec<_> = node::mounts("n1")?
            .into_iter()
            .filter(|l| l.contains(&uid) && l.contains("kubernetes.io~csi"))
            .collect();
        ensure!(ours.is_empty(), "{ours:?}");
        println!("mounts of a pod on its node: {without} without identity, {with} with");
        Ok(())
    });
}

/// Attributes that say that a pod is another one; the kubelet overwrites them as long as `podInfoOnMount` is
/// true.
fn forged(pod: Pod, namespace: &str) -> Pod {
    pod.attribute("csi.storage.k8s.io/pod.name", "victim")
        .attribute("csi.storage.k8s.io/pod.namespace", namespace)
        .attribute("csi.storage.k8s.io/pod.uid", "00000000-0000-4000-8000-000000000000")
        .attribute("csi.storage.k8s.io/serviceAccount.name", "victim")
        .attribute("csi.storage.k8s.io/ephemeral", "true")
}

#[test]
fn forged_pod_facts_are_refused_when_the_kubelet_sends_none() {
    alone("forged_pod_facts_are_refused_when_the_kubelet_sends_none", |test| {
        let restore = with_driver(&json!({"podInfoOnMount": false}))?;
        test.create(&forged(Pod::new("thief"), &test.namespace).sleeping())?;
        // The first that does not fit the token is enough.
        test.refused("thief", &["csi.storage.k8s.io/"])?;
        // Each alone is found, too: the rest is as the kubelet would say it, but for the uid, which is not
        // known before.
        for (name, key) in
            [("name", "pod.name"), ("account", "serviceAccount.name"), ("namespace", "pod.namespace")]
        {
            let key = format!("csi.storage.k8s.io/{key}");
            let pod = Pod::new(&format!("forged-{name}")).attribute(&key, "victim");
            test.create(&pod.attribute("csi.storage.k8s.io/ephemeral", "true").sleeping())?;
            test.refused(&format!("forged-{name}"), &["csi.storage.k8s.io/"])?;
        }
        restore.now()
    });
}

#[test]
fn a_running_pod_is_unharmed_by_a_republish_with_forged_facts() {
    alone("a_running_pod_is_unharmed_by_a_republish_with_forged_facts", |test| {
        let pod = test.start_pod(&forged(Pod::new("runs").on("n1"), &test.namespace).sleeping())?;
        let expected = format!("spiffe://{TRUST_DOMAIN}/ns/{}/sa/default", test.namespace);
        let check = || -> Result<()> {
            let identity = test.identity("runs", "main")?;
            ensure!(identity["id"] == expected.as_str(), "{identity}");
            Ok(())
        };
        check()?;
        let volume = node::volume_path(&text(&pod["metadata"]["uid"]));
        let inode = || node::run("n1", &["stat", "-c", "%i", &volume, &format!("{volume}/spire-agent.sock")]);
        let before = inode()?;

        let restore = with_driver(&json!({"podInfoOnMount": false}))?;
        until("a republish that was refused", || {
            let events = test.events("runs")?;
            let refused =
                events.iter().find(|e| e.starts_with("FailedMount") && e.contains("csi.storage.k8s.io/"));
            match refused {
                Some(event) => Ok(Some(event.clone())),
                None => bail!("the events are {events:?}"),
            }
        })?;
        check()?;
        ensure!(inode()? == before, "the volume's directory or socket is another one");
        restore.now()?;
        check()?;
        test.delete("runs")
    });
}

#[test]
fn a_token_in_the_volume_context_is_refused_unless_configured() {
    alone("a_token_in_the_volume_context_is_refused_unless_configured", |test| {
        // As a kubelet before 1.35 would send it: indistinguishable from what the pod's author can write.
        let restore = with_driver(&json!({"serviceAccountTokenInSecrets": false}))?;
        test.create(&Pod::new("context").sleeping())?;
        let event = test.refused("context", &["csi.storage.k8s.io/serviceAccount.tokens"])?;
        ensure!(!event.contains("eyJ"), "the event shows a token: {event}");
        restore.now()
    });
}

#[test]
fn a_forged_token_is_refused_when_the_kubelet_sends_none() {
    alone("a_forged_token_is_refused_when_the_kubelet_sends_none", |test| {
        // The API server takes no place for tokens without tokens.
        let restore = with_driver(&json!({"tokenRequests": [], "serviceAccountTokenInSecrets": null}))?;
        test.account("victim")?;
        let token =
            kubectl(&["create", "token", "victim", "--audience=seamount.dev", "-n", &test.namespace])?;
        let tokens =
            json!({"seamount.dev": {"token": token.trim(), "expirationTimestamp": "2099-01-01T00:00:00Z"}});
        let key = "csi.storage.k8s.io/serviceAccount.tokens";
        test.create(&Pod::new("thief").attribute(key, &tokens.to_string()).sleeping())?;
        test.refused("thief", &[key])?;
        // And without any token there is no identity.
        test.create(&Pod::new("nobody").sleeping())?;
        test.refused("nobody", &[key])?;
        restore.now()
    });
}

#[test]
fn an_audience_that_nobody_configured_is_refused() {
    alone("an_audience_that_nobody_configured_is_refused", |test| {
        let both = json!([{"audience": "seamount.dev"}, {"audience": "somebody.else"}]);
        let restore = with_driver(&json!({"tokenRequests": both}))?;
        test.create(&Pod::new("audience").sleeping())?;
        test.refused("audience", &["somebody.else"])?;
        restore.now()
    });
}

#[test]
fn pods_are_deleted_under_a_broken_configuration() {
    alone("pods_are_deleted_under_a_broken_configuration", |test| {
        test.start_pod(&Pod::new("leaves").on("n1").sleeping())?;
        let stays = test.start_pod(&Pod::new("stays").on("n1").sleeping())?;
        let map = ["configmap", "seamount-agent", "-n", SYSTEM];
        let good = get(&map)?["data"].clone();
        let restore = Restore::new(move || {
            patch(&map, &json!({"data": good}))?;
            restart_daemons()?;
            daemons_ready()
        });
        patch(&map, &json!({"data": {"agent.yaml": "trustDomain: [\nnothing: makes sense\n"}}))?;
        restart_daemons()?;

        // The agents say what is wrong, and are not ready; they are there.
        let agent = text(&node::daemon("n1")?["metadata"]["name"]);
        until("the agent to complain", || {
            let log = kubectl(&["logs", &agent, "-c", "agent", "-n", SYSTEM])?;
            ensure!(log.contains("agent.yaml"), "{log}");
            Ok(Some(()))
        })?;
        let statuses = node::daemon("n1")?["status"]["containerStatuses"].clone();
        let of_agent = statuses.as_array().into_iter().flatten().find(|s| s["name"] == "agent").cloned();
        let of_agent = of_agent.context("no status of the agent")?;
        ensure!(of_agent["ready"] == false && of_agent["restartCount"] == 0, "{of_agent}");

        let begun = Instant::now();
        test.delete("leaves")?;
        println!("deleted under a broken configuration in {:.1} s", begun.elapsed().as_secs_f64());

        restore.now()?;
        // The pod that lived through all of this has its identity again.
        let expected = format!("spiffe://{TRUST_DOMAIN}/ns/{}/sa/default", test.namespace);
        until("the pod that stayed to have its identity", || {
            let identity = test.identity("stays", "main")?;
            ensure!(identity["id"] == expected.as_str(), "{identity}");
            Ok(Some(()))
        })?;
        let now = test.pod("stays")?;
        ensure!(
            now["status"]["containerStatuses"] == stays["status"]["containerStatuses"],
            "the pod was restarted"
        );
        test.delete("stays")
    });
}

#[test]
fn a_running_pod_sees_the_rotation() {
    alone("a_running_pod_sees_the_rotation", |test| {
        let restore = with_svid_ttl("60s")?;
        let pod = Pod::new("watch").container("main", CLIENTS, &["/client", "watch", "3"]);
        let output = test.output_of(&pod, "main")?;
        let seen = output
            .lines()
            .map(|line| serde_json::from_str(line).with_context(|| line.to_owned()))
            .collect::<Result<Vec<Value>>>()?;
        ensure!(seen.len() == 3, "{output}");
        for pair in seen.windows(2) {
            ensure!(pair[0]["id"] == pair[1]["id"], "{output}");
            ensure!(pair[0]["serial"] != pair[1]["serial"], "the same SVID twice: {output}");
            ensure!(text(&pair[0]["notAfter"]) < text(&pair[1]["notAfter"]), "not renewed: {output}");
        }
        restore.now()
    });
}
