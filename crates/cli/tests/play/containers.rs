//! Order, ends and surroundings of containers.

use crate::stage::{Stage, Who, everybody, script};

const SPIFFE: &str = "  serviceAccountName: web
  volumes: [{name: id, csi: {driver: csi.spiffe.io, readOnly: true}}]";
const MOUNT: &str =
    "    env: [{name: SPIFFE_ENDPOINT_SOCKET, value: 'unix:///spiffe-workload-api/spire-agent.sock'}]
    volumeMounts: [{name: id, mountPath: /spiffe-workload-api, readOnly: true}]";

#[test]
fn a_pod_fetches_its_svid() {
    for who in everybody("a_pod_fetches_its_svid") {
        let text =
            "seamount api fetch x509; ls /spiffe-workload-api; touch /spiffe-workload-api/x || echo kept";
        let yaml = script(SPIFFE, MOUNT, text);
        let played = Stage::new().play(who, &yaml, &["--trust-domain", "ci.test"]);
        played.assert_code(0).assert_said("volume id: spiffe://ci.test/ns/ns/sa/web (healthy)");
        let lines = played.of("p/c");
        assert!(lines.iter().any(|l| l.contains("spiffe://ci.test/ns/ns/sa/web")), "{played:#?}");
        for name in ["spire-agent.sock", "agent.sock", "socket", "kept"] {
            assert!(lines.contains(&name), "{name}: {played:#?}");
        }
        match who {
            Who::Root => played.assert_said("as root"),
            Who::User => played.assert_said("the privilege split is not in force"),
        };
        played.assert_said("images are not pulled").assert_said("every volume is unpublished and removed");
    }
}

#[test]
fn two_pods_have_two_identities_and_rotate() {
    for who in everybody("two_pods_have_two_identities_and_rotate") {
        // Each waits for a second serial number; the other's socket is nowhere.
        let text = "find /run /tmp /home /root /seamount /spiffe-workload-api -name '*.sock' | sort; \
                    seamount api watch | while read -r when id word serial rest; do echo $id; \
                    [ -z \"$last\" ] || [ \"$last\" = \"$serial\" ] || { echo rotated; break; }; last=$serial; done";
        let one = script(SPIFFE, MOUNT, text);
        let two =
            one.replace("name: p,", "name: q,").replace("serviceAccountName: web", "serviceAccountName: db");
        let played = Stage::new().play(who, &format!("{one}---\n{two}"), &["--svid-ttl", "20s"]);
        played.assert_code(0);
        for (pod, account) in [("p", "web"), ("q", "db")] {
            let lines = played.of(&format!("{pod}/c"));
            let own = format!("spiffe://example.org/ns/ns/sa/{account}");
            let found: Vec<_> = lines.iter().filter(|l| l.ends_with(".sock")).collect();
            assert_eq!(found, [&"/spiffe-workload-api/agent.sock", &"/spiffe-workload-api/spire-agent.sock"]);
            let ids: Vec<_> = lines.iter().filter(|l| l.starts_with("spiffe://")).collect();
            assert!(!ids.is_empty() && ids.iter().all(|id| **id == own), "{played:#?}");
            assert_eq!(lines.last(), Some(&"rotated"), "{played:#?}");
        }
    }
}

#[test]
fn init_containers_and_sidecars_keep_their_order() {
    let yaml = "
apiVersion: v1
kind: Pod
metadata: {name: p}
spec:
  volumes: [{name: v, emptyDir: {}}]
  initContainers:
  - {name: one, command: [sh, -c, 'echo one >> /v/log'], volumeMounts: [{name: v, mountPath: /v}]}
  - name: side
    restartPolicy: Always
    command: [sh, -c, 'trap \"cat /v/log; exit 0\" TERM; echo side >> /v/log; while :; do sleep 0.1; done']
    volumeMounts: [{name: v, mountPath: /v}]
  - name: two
    command: [sh, -c, 'until grep -q side /v/log; do sleep 0.1; done; echo two >> /v/log']
    volumeMounts: [{name: v, mountPath: /v}]
  containers:
  - {name: main, command: [sh, -c, 'echo main >> /v/log'], volumeMounts: [{name: v, mountPath: /v}]}
";
    for who in everybody("init_containers_and_sidecars_keep_their_order") {
        let played = Stage::new().play(who, yaml, &[]);
        played.assert_code(0).assert_said("[p/side] exited with status 0");
        // The sidecar is stopped after the last container, and has the time to say so.
        assert_eq!(played.of("p/side"), ["one", "side", "two", "main"], "{played:#?}");
    }
}

#[test]
fn a_failed_init_container_ends_the_pod() {
    let yaml = "
apiVersion: v1
kind: Pod
metadata: {name: p}
spec:
  initContainers: [{name: bad, command: [sh, -c, 'exit 7']}]
  containers: [{name: main, command: [echo, never]}]
---
apiVersion: v1
kind: Pod
metadata: {name: q}
spec:
  containers: [{name: main, command: [echo, 'always']}]
";
    for who in everybody("a_failed_init_container_ends_the_pod") {
        let played = Stage::new().play(who, yaml, &[]);
        played.assert_code(1).assert_said("[p/bad] exited with status 7");
        played
            .assert_said("pod default/p did not succeed: bad 7")
            .assert_said("pod default/q succeeded: main 0");
        assert_eq!(played.of("p/main"), [""; 0]);
        assert_eq!(played.of("q/main"), ["always"]);
    }
}

#[test]
fn ends_are_reported() {
    for who in everybody("ends_are_reported") {
        let stage = Stage::new();
        let played = stage.play(who, &script("", "", "echo out; echo err >&2; exit 3"), &[]);
        played.assert_code(1).assert_said("[p/c] exited with status 3").assert_said("[p/c] err");
        assert_eq!(played.of("p/c"), ["out"]);
        // Another process's signal: PID 1 of a namespace ignores its own.
        let played = stage.play(who, &script("", "", "exec seamount-nowhere"), &[]);
        played.assert_code(1).assert_said("[p/c] exited with status 127");
        let yaml = script("", "", "").replace("[sh, -c, \"\"]", "[seamount-nowhere]");
        let played = stage.play(who, &yaml, &[]);
        played
            .assert_code(1)
            .assert_said("[p/c] could not be started: run seamount-nowhere (the image was not pulled");
        let played = stage.play(who, &script("", "", "echo half; printf 'a line without an end'"), &[]);
        assert_eq!(played.assert_code(0).of("p/c"), ["half", "a line without an end"]);
    }
}

#[test]
fn on_failure_starts_again() {
    for who in everybody("on_failure_starts_again") {
        let spec = "  restartPolicy: OnFailure\n  volumes: [{name: v}]";
        let yaml = script(
            spec,
            "    volumeMounts: [{name: v, mountPath: /v}]",
            "echo try; mkdir /v/again && exit 1; exit 0",
        );
        let played = Stage::new().play(who, &yaml, &[]);
        assert_eq!(played.assert_code(0).assert_said("starts again in 1 s").of("p/c"), ["try", "try"]);
    }
}

#[test]
fn the_timeout_ends_it() {
    for who in everybody("the_timeout_ends_it") {
        let played = Stage::new().play(who, &script("", "", "echo on; sleep 1000"), &["--timeout", "2s"]);
        played.assert_code(1).assert_said("the time is over").assert_said("[p/c] exited with status 137");
    }
}

#[test]
fn a_container_has_no_privilege_and_sees_nothing_of_the_machine() {
    let text = "
        grep -E '^(Cap(Prm|Eff|Bnd|Inh|Amb)|NoNewPrivs)' /proc/self/status
        hostname
        echo pids $(ls /proc | grep -c '^[0-9]*$')
        echo first $(head -c 2 /proc/1/cmdline)
        echo masked $(ls -A /tmp /home /root | grep -v : | grep -c .)
        for d in kubelet seamount bin root volumes; do [ -e /run/$d ] && echo shown $d; done
        for d in /usr /etc /proc/sys/kernel; do touch $d/seamount-test 2>/dev/null && echo wrote $d; done
        mount -o remount,bind,rw /usr 2>/dev/null && echo remounted
        unshare --mount true 2>/dev/null && echo unshared
        (echo x > /proc/sysrq-trigger) 2>/dev/null && echo sysrq
        kill -0 2 2>/dev/null && echo killed
        echo x > /dev/null && head -c 4 /dev/urandom | wc -c
        echo descriptors $(ls /proc/self/fd | wc -l)
        grep -c seamount /proc/self/mountinfo
        grep -E ' /(run|tmp|home|root) ' /proc/self/mountinfo | wc -l
        tty || true
    ";
    for who in everybody("a_container_has_no_privilege_and_sees_nothing_of_the_machine") {
        let played = Stage::new().play(who, &script("", "", text), &[]);
        let lines = played.assert_code(0).of("p/c");
        let none = "0000000000000000";
        for name in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
            assert!(lines.contains(&format!("{name}:\t{none}").as_str()), "{name}: {played:#?}");
        }
        assert!(lines.contains(&"NoNewPrivs:\t1"), "{played:#?}");
        assert_eq!(lines[6], "p", "{played:#?}");
        assert!(lines.contains(&"first sh"), "{played:#?}");
        // The shell and what it runs; the machine has many more.
        let pids: u32 = lines.iter().find_map(|l| l.strip_prefix("pids ")).unwrap().parse().unwrap();
        assert!(pids < 8, "{played:#?}");
        for line in ["masked 0", "descriptors 4", "4", "not a tty"] {
            assert!(lines.contains(&line), "{line}: {played:#?}");
        }
        for bad in ["shown", "wrote", "remounted", "unshared", "sysrq", "killed"] {
            assert!(!lines.iter().any(|l| l.starts_with(bad)), "{bad}: {played:#?}");
        }
    }
}

#[test]
fn an_image_can_have_a_root_of_its_own() {
    for who in everybody("an_image_can_have_a_root_of_its_own") {
        let stage = Stage::new();
        let image = stage.path("image");
        let copy = |from: &str| {
            let to = image.join(from.trim_start_matches('/'));
            std::fs::create_dir_all(to.parent().unwrap()).unwrap();
            std::fs::copy(from, to).unwrap();
        };
        copy("/bin/sh");
        // ldd(1): `name => /path (address)` and `/path (address)`.
        let libraries = std::process::Command::new("ldd").arg("/bin/sh").output().unwrap();
        for word in
            String::from_utf8(libraries.stdout).unwrap().split_whitespace().filter(|w| w.starts_with('/'))
        {
            copy(word);
        }
        std::fs::write(image.join("mark"), "my image\n").unwrap();
        let spec = "  volumes: [{name: v}]";
        let container = "    image: shop:1\n    volumeMounts: [{name: v, mountPath: /new/place}]";
        let yaml = script(
            spec,
            container,
            "read x < /mark; echo $x; echo > /new/place/y; for f in /*; do echo $f; done",
        );
        let rootfs = format!("shop:1={}", image.display());
        let played = stage.play(who, &yaml, &["--rootfs", &rootfs]);
        let lines = played.assert_code(0).of("p/c");
        assert_eq!(lines[0], "my image");
        assert!(
            lines.contains(&"/new") && !lines.contains(&"/usr/share") && !lines.contains(&"/var"),
            "{played:#?}"
        );
        assert!(!played.err.iter().any(|l| l.contains("images are not pulled")), "{played:#?}");
        stage
            .play(who, &yaml, &["--rootfs", &rootfs.replace("shop:1", "other")])
            .assert_code(1)
            .assert_said("--rootfs other: no container has this image");
    }
}
