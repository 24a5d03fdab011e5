//! What workloads see of their identity on a real cluster. These tests run at the same time; none changes
//! anything that another one sees.
#![allow(clippy::indexing_slicing, reason = "JSON values give null for what is missing")]

use anyhow::{Context as _, Result, bail, ensure};
use seamount_e2e::cluster::script;
use seamount_e2e::test::text;
use seamount_e2e::{CLIENTS, IMAGE, MOUNT, Pod, SYSTEM, TRUST_DOMAIN, Test, cluster, node, until};
use serde_json::{Value, json};

/// What the default template makes of a service account.
fn id_of(test: &Test, account: &str) -> String {
    format!("spiffe://{TRUST_DOMAIN}/ns/{}/sa/{account}", test.namespace)
}

/// Runs the client in Python inside the node, on the socket of a pod's volume.
fn python(test: &Test, pod: &Value, arguments: &str) -> Result<String> {
    ensure!(pod["metadata"]["namespace"] == test.namespace.as_str(), "a pod of another test");
    let interpreter = std::env::var("SEAMOUNT_E2E_PYTHON").context("run.sh sets it")?;
    let client = cluster::repository().join("tests/e2e/clients/python/fetch.py");
    let volume = node::volume_path(&text(&pod["metadata"]["uid"]));
    // A socket's path has 107 bytes at most, and the kubelet's paths are longer: hence the link.
    let command = format!(
        "d=$(mktemp -d); ln -s {volume} $d/v; {interpreter} {} {arguments} unix://$d/v/spire-agent.sock; rc=$?; rm -r $d; exit $rc",
        client.display(),
    );
    node::shell(&text(&pod["spec"]["nodeName"]), &command)
}

fn parse(output: &str) -> Result<Value> {
    serde_json::from_str(output).with_context(|| format!("no JSON: {output:?}"))
}

#[test]
fn go_spiffe_fetches_an_svid_inside_a_pod() {
    Test::run("go_spiffe_fetches_an_svid_inside_a_pod", |test| {
        test.account("alice")?;
        let pod = Pod::new("go").account("alice").container("main", CLIENTS, &["/client", "fetch"]);
        let identity = parse(&test.output_of(&pod, "main")?)?;
        ensure!(identity["id"] == id_of(test, "alice"), "{identity}");
        // Signed under the root that the administrator put into the Secret.
        let root = std::env::var("SEAMOUNT_E2E_ROOT_SHA256").context("run.sh sets it")?;
        ensure!(identity["authorities"] == json!([root]), "{identity}, the root is {root}");
        Ok(())
    });
}

#[test]
fn the_spiffe_crate_fetches_an_svid_inside_a_pod() {
    Test::run("the_spiffe_crate_fetches_an_svid_inside_a_pod", |test| {
        test.account("bob")?;
        let fetch = ["/seamount", "api", "fetch", "x509", "--output", "json"];
        let output =
            test.output_of(&Pod::new("rust").account("bob").container("main", IMAGE, &fetch), "main")?;
        let identity = parse(&output)?;
        ensure!(output.contains(&format!("\"{}\"", id_of(test, "bob"))), "{identity}");
        ensure!(!output.contains("PRIVATE KEY"), "the private key is printed");
        Ok(())
    });
}

#[test]
fn the_python_package_fetches_an_svid_over_the_same_socket() {
    Test::run("the_python_package_fetches_an_svid_over_the_same_socket", |test| {
        let pod = test.start_pod(&Pod::new("python").sleeping())?;
        let inside = test.identity("python", "main")?;
        let output = python(test, &pod, "")?;
        let outside = parse(&output)?;
        ensure!(outside["id"] == id_of(test, "default"), "{outside}");
        ensure!(
            outside["id"] == inside["id"] && outside["authorities"] == inside["authorities"],
            "{outside} {inside}"
        );
        Ok(())
    });
}

#[test]
fn all_three_names_of_the_socket_work() {
    Test::run("all_three_names_of_the_socket_work", |test| {
        test.start_pod(&Pod::new("names").sleeping())?;
        for name in ["spire-agent.sock", "agent.sock", "socket"] {
            let fetch = format!("SPIFFE_ENDPOINT_SOCKET=unix://{MOUNT}/{name} exec /client fetch");
            let identity = parse(&test.exec("names", "main", &["/bin/sh", "-c", &fetch])?)?;
            ensure!(identity["id"] == id_of(test, "default"), "{name}: {identity}");
        }
        Ok(())
    });
}

#[test]
fn two_service_accounts_have_two_ids_and_two_sockets() {
    Test::run("two_service_accounts_have_two_ids_and_two_sockets", |test| {
        let mut seen = Vec::new();
        for name in ["alice", "bob"] {
            test.account(name)?;
            let pod = test.start_pod(&Pod::new(name).account(name).on("n1").sleeping())?;
            let identity = test.identity(name, "main")?;
            ensure!(identity["id"] == id_of(test, name), "{name}: {identity}");
            let uid = text(&pod["metadata"]["uid"]);
            let socket = format!("{}/spire-agent.sock", node::volume_path(&uid));
            let inode = node::run("n1", &["stat", "-c", "%F %d:%i", &socket])?;
            ensure!(inode.starts_with("socket"), "{socket} is a {inode}");
            let pid = node::container_pid("n1", &pod, "main")?;
            seen.push((name, uid, inode, node::run("n1", &["cat", &format!("/proc/{pid}/mountinfo")])?));
        }
        ensure!(seen[0].2 != seen[1].2, "one socket for both: {}", seen[0].2);
        for (me, other) in [(&seen[0], &seen[1]), (&seen[1], &seen[0])] {
            let (name, uid, _, mounts) = me;
            // The pod's mount namespace holds its own volume and nothing of the other pod.
            let volumes: Vec<_> = mounts.lines().filter(|l| l.contains("kubernetes.io~csi")).collect();
            ensure!(volumes.len() == 1 && volumes[0].contains(uid.as_str()), "{name} mounts {volumes:?}");
            ensure!(!mounts.contains(other.1.as_str()), "{name} sees mounts of {}: {mounts}", other.0);
            let find = "find / -path /proc -prune -o -type s -name '*.sock' -print 2>/dev/null";
            let sockets = test.exec(name, "main", &["/bin/sh", "-c", &format!("{find}; true")])?;
            ensure!(sockets.trim() == format!("{MOUNT}/spire-agent.sock"), "{name} finds {sockets}");
        }
        Ok(())
    });
}

#[test]
fn two_containers_of_one_pod_have_the_same_identity() {
    Test::run("two_containers_of_one_pod_have_the_same_identity", |test| {
        let sleep = seamount_e2e::pod::SLEEP;
        let pod = Pod::new("pair")
            .uid(12345)
            .container("one", CLIENTS, sleep)
            .uid(54321)
            .container("two", CLIENTS, sleep);
        test.start_pod(&pod)?;
        ensure!(test.exec("pair", "one", &["id", "-u"])?.trim() == "12345");
        ensure!(test.exec("pair", "two", &["id", "-u"])?.trim() == "54321");
        // The key belongs to the volume, so a rotation between the two calls is the only reason for two
        // serials.
        until("both containers to have the same SVID", || {
            let (one, two) = (test.identity("pair", "one")?, test.identity("pair", "two")?);
            ensure!(one["id"] == id_of(test, "default") && two["id"] == one["id"], "{one} {two}");
            Ok((one["serial"] == two["serial"]).then_some(()))
        })
    });
}

#[test]
fn a_pod_of_any_non_root_user_has_its_identity() {
    Test::run("a_pod_of_any_non_root_user_has_its_identity", |test| {
        let mut pod = Pod::new("users");
        let users = [1, 12345, 65532, 1_000_650_000, 2_147_483_647];
        for user in users {
            pod = pod.uid(user).container(&format!("u{user}"), CLIENTS, &["/client", "fetch"]);
        }
        test.output_of(&pod, "u1")?;
        for user in users {
            let identity = parse(&test.logs("users", &format!("u{user}"))?)?;
            ensure!(identity["id"] == id_of(test, "default"), "user {user}: {identity}");
        }
        Ok(())
    });
}

#[test]
fn the_namespace_level_restricted_admits_the_volume() {
    Test::run("the_namespace_level_restricted_admits_the_volume", |test| {
        // The level is really enforced: what it forbids is refused.
        let forbidden = test.create(&Pod::new("forbidden").spec("hostNetwork", json!(true)).sleeping());
        let refusal = forbidden.err().map(|e| format!("{e:#}")).unwrap_or_default();
        ensure!(refusal.contains("violates PodSecurity \"restricted"), "hostNetwork: {refusal}");
        test.start_pod(&Pod::new("allowed").sleeping())?;
        let identity = test.identity("allowed", "main")?;
        ensure!(identity["id"] == id_of(test, "default"), "{identity}");
        Ok(())
    });
}

#[test]
fn a_pod_with_a_user_namespace_has_its_identity() {
    Test::run("a_pod_with_a_user_namespace_has_its_identity", |test| {
        test.start_pod(&Pod::new("userns").spec("hostUsers", json!(false)).sleeping())?;
        let map = test.exec("userns", "main", &["cat", "/proc/self/uid_map"])?;
        let host = map.split_whitespace().nth(1).unwrap_or("0");
        ensure!(host != "0", "no user namespace: {map}");
        let identity = test.identity("userns", "main")?;
        ensure!(identity["id"] == id_of(test, "default"), "{identity}");
        Ok(())
    });
}

#[test]
fn a_read_write_volume_is_refused_by_field() {
    Test::run("a_read_write_volume_is_refused_by_field", |test| {
        let pod = Pod::new("writer").sleeping();
        let mut object = pod.object(&test.namespace);
        object["spec"]["volumes"][0]["csi"]["readOnly"] = json!(false);
        object["spec"]["containers"][0]["volumeMounts"][0]["readOnly"] = json!(false);
        cluster::apply(&object)?;
        test.refused("writer", &["readOnly"]).map(drop)
    });
}

#[test]
fn an_unknown_attribute_is_refused_by_name() {
    Test::run("an_unknown_attribute_is_refused_by_name", |test| {
        test.create(&Pod::new("colour").attribute("e2e.test/colour", "blue").sleeping())?;
        test.refused("colour", &["e2e.test/colour"])?;
        test.create(&Pod::new("reserved").attribute("csi.storage.k8s.io/colour", "blue").sleeping())?;
        test.refused("reserved", &["csi.storage.k8s.io/colour"]).map(drop)
    });
}

#[test]
fn a_forged_token_among_the_attributes_is_refused_by_name() {
    Test::run("a_forged_token_among_the_attributes_is_refused_by_name", |test| {
        // A real token, of another account, with the right audience: only the place where it comes from
        // betrays it.
        test.account("victim")?;
        let token = ["create", "token", "victim", "--audience=seamount.dev", "-n", &test.namespace];
        let token = cluster::kubectl(&token)?;
        let forged =
            json!({"seamount.dev": {"token": token.trim(), "expirationTimestamp": "2099-01-01T00:00:00Z"}});
        let key = "csi.storage.k8s.io/serviceAccount.tokens";
        test.create(&Pod::new("thief").attribute(key, &forged.to_string()).sleeping())?;
        let event = test.refused("thief", &[key])?;
        ensure!(!event.contains(token.trim()), "the event shows the token");
        Ok(())
    });
}

#[test]
fn a_call_without_the_security_header_is_refused() {
    // The same socket, spoken to by hand: proof that no test above passes by some laxness.
    Test::run("a_call_without_the_security_header_is_refused", |test| {
        let pod = test.start_pod(&Pod::new("header").sleeping())?;
        let code = python(test, &pod, "--without-header")?;
        ensure!(code.trim() == "INVALID_ARGUMENT", "{code}");
        Ok(())
    });
}

#[test]
fn the_agent_holds_no_privilege() {
    Test::run("the_agent_holds_no_privilege", |_| {
        let pod = node::daemon("n1")?;
        let pid = node::container_pid("n1", &pod, "agent")?;
        // The real one is drawn, above what a `runAsUser` can be.
        let uids = node::status("n1", pid, "Uid")?;
        let uids: Vec<u32> = uids.split('\t').map(str::parse).collect::<Result<_, _>>()?;
        let [real, effective, saved, files] = uids[..] else { bail!("{uids:?}") };
        ensure!(i32::try_from(real).is_err(), "{uids:?}");
        ensure!([effective, saved, files] == [64203; 3], "{uids:?}");
        ensure!(node::status("n1", pid, "Gid")? == "64203\t64203\t64203\t64203", "gid");
        for field in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
            let value = node::status("n1", pid, field)?;
            // SETUID is out of reach in the bounding set: nothing that could be executed gains anything (no
            // new privileges).
            let expected = if field == "CapBnd" { "0000000000000080" } else { "0000000000000000" };
            ensure!(value == expected, "{field} {value}");
        }
        ensure!(node::status("n1", pid, "NoNewPrivs")? == "1", "NoNewPrivs");
        ensure!(node::status("n1", pid, "Seccomp")? == "2", "Seccomp");

        let spec = &pod["spec"];
        for key in ["hostNetwork", "hostPID", "hostIPC"] {
            ensure!(spec[key].is_null() || spec[key] == false, "{key}");
        }
        ensure!(spec["automountServiceAccountToken"] == false, "a token in every container");
        let container = |name: &str| {
            let containers = spec["containers"].as_array().into_iter().flatten();
            containers.clone().find(|c| c["name"] == name).cloned().context("no such container")
        };
        let sources = |container: &Value, kind: &str| -> Vec<String> {
            let volumes: Vec<_> = spec["volumes"].as_array().cloned().unwrap_or_default();
            let mounts = container["volumeMounts"].as_array().cloned().unwrap_or_default();
            let named = |m: &Value| {
                volumes.iter().find(|v| v["name"] == m["name"]).is_some_and(|v| !v[kind].is_null())
            };
            mounts.iter().filter(|m| named(m)).map(|m| text(&m["mountPath"])).collect()
        };
        let (agent, mounter) = (container("agent")?, container("mounter")?);
        ensure!(agent["securityContext"]["readOnlyRootFilesystem"] == true, "the agent's root is writable");
        ensure!(sources(&agent, "hostPath").is_empty(), "the agent mounts {:?}", sources(&agent, "hostPath"));
        // The API server's token, and the authority's key, are the agent's alone.
        for kind in ["projected", "secret"] {
            ensure!(sources(&mounter, kind).is_empty(), "the mounter mounts {:?}", sources(&mounter, kind));
            ensure!(!sources(&agent, kind).is_empty(), "the agent mounts no {kind}: this test sees nothing");
        }
        // In the kernel's eyes too: no mount of the agent's namespace is the node's own file tree, and none
        // is writable but those of the runtime.
        let mounts = node::run("n1", &["cat", &format!("/proc/{pid}/mountinfo")])?;
        let kubelet: Vec<_> = mounts.lines().filter(|l| l.contains("/var/lib/kubelet ")).collect();
        ensure!(kubelet.is_empty(), "{kubelet:?}");
        Ok(())
    });
}

#[test]
fn the_mounter_has_given_up_what_it_does_not_use() {
    Test::run("the_mounter_has_given_up_what_it_does_not_use", |_| {
        let pod = node::daemon("n1")?;
        let mounter = node::container_pid("n1", &pod, "mounter")?;
        let agent = node::container_pid("n1", &pod, "agent")?;
        let capabilities = u64::from_str_radix(&node::status("n1", mounter, "CapEff")?, 16)?;
        ensure!(capabilities.count_ones() <= 8, "CapEff {capabilities:#x}");
        // capabilities(7): NET_ADMIN, NET_RAW, SYS_MODULE, SYS_RAWIO, SYS_PTRACE, SYS_BOOT, SYS_TIME, MKNOD,
        // MAC_ADMIN.
        for bit in [12, 13, 16, 17, 19, 22, 25, 27, 33] {
            ensure!(capabilities & (1 << bit) == 0, "capability {bit} in {capabilities:#x}");
        }
        let bounding = u64::from_str_radix(&node::status("n1", mounter, "CapBnd")?, 16)?;
        ensure!(bounding & !capabilities == 0, "CapBnd {bounding:#x} has more than CapEff {capabilities:#x}");
        ensure!(node::status("n1", mounter, "NoNewPrivs")? == "1", "NoNewPrivs");
        ensure!(node::status("n1", mounter, "Seccomp")? == "2", "Seccomp");
        let network = |pid: &str| node::run("n1", &["readlink", &format!("/proc/{pid}/ns/net")]);
        let own = network(&mounter.to_string())?;
        ensure!(own != network(&agent.to_string())?, "the mounter is in its pod's network");
        ensure!(own != network("self")?, "the mounter is in the node's network");
        let interfaces = node::run("n1", &["cat", &format!("/proc/{mounter}/net/dev")])?;
        ensure!(interfaces.lines().count() == 3, "more than the loopback interface: {interfaces}");
        Ok(())
    });
}

#[test]
fn the_installation_has_no_right_on_the_kubernetes_api() {
    Test::run("the_installation_has_no_right_on_the_kubernetes_api", |_| {
        let account = format!("--as=system:serviceaccount:{SYSTEM}:seamount-node");
        for (verb, what) in
            [("get", "secrets"), ("list", "pods"), ("get", "nodes"), ("create", "serviceaccounts/token")]
        {
            // `kubectl auth can-i` fails when the answer is no.
            let command = format!("can-i {verb} {what}");
            let answer = script(&["kubectl", "auth", "can-i", verb, what, "-A", &account], "");
            let told = answer.as_ref().map_or_else(|e| format!("{e:#}"), Clone::clone);
            ensure!(answer.is_err() && !told.contains("yes"), "{command}: {told}");
        }
        // It does see what it needs: the keys that sign tokens.
        cluster::kubectl(&["get", "--raw", "/openid/v1/jwks", &account, "--as-group=system:serviceaccounts"])
            .map(drop)
    });
}
