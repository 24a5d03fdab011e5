//! Each finding from evidence that was made up; tests/node makes them for real.

use std::time::Duration;

use seamount_proto::node as proto;

use super::*;
use crate::node::disk::{Door, OnDisk, StateMount};
use crate::node::processes::{Process, Program};
use crate::node::tests::{NOW, golden, status, volumes};

fn process(program: Program, pid: u32) -> Process {
    Process { program, pid, stopped: false, age: Some(Duration::from_secs(3600)) }
}

fn disk() -> Disk {
    Disk {
        parts: vec!["pods", "plugins", "plugins_registry"],
        plugins: vec!["csi.spiffe.io".into()],
        plugin: true,
        csi: Some(Door::Open),
        registration: Some(Door::Open),
        state: Some(StateMount { mounts: 1, kind: "tmpfs".into(), noswap: true }),
        kernel: "6.18.0".into(),
        ..Disk::default()
    }
}

/// A node with nothing wrong.
fn well() -> Evidence {
    let mut status = status();
    for condition in &mut status.conditions {
        condition.state = "ready".into();
    }
    let authority = status.authority.as_mut().unwrap();
    (authority.state, authority.last_failure) = ("up".into(), 0);
    status.mounter.as_mut().unwrap().noswap = true;
    let mut volume = volumes().remove(2);
    volume.faults.clear();
    Evidence {
        root: "/var/lib/kubelet".into(),
        driver: "csi.spiffe.io".into(),
        disk: disk(),
        processes: Processes {
            ours: vec![process(Program::Mounter, 10), process(Program::Agent, 11)],
            partial: false,
        },
        status: Ok(status),
        volumes: Ok((vec![volume], None)),
        now: NOW,
    }
}

fn silent() -> Failure {
    Failure::Silent { socket: "/k/csi.sock".into(), seconds: 5.0 }
}

fn bad(e: &Evidence) -> Vec<&'static str> {
    let findings = Findings::new(e);
    for check in &findings.checks {
        assert!(
            check.result != Outcome::Problem || !check.todo.is_empty(),
            "{check:?} says nothing of what to do"
        );
    }
    findings.checks.iter().filter(|c| c.result == Outcome::Problem).map(|c| c.check).collect()
}

#[track_caller]
fn finds(change: impl FnOnce(&mut Evidence), wanted: &[&str], part: &str) {
    let mut e = well();
    change(&mut e);
    assert_eq!(bad(&e), wanted);
    let findings = Findings::new(&e);
    let text = findings.text(true);
    assert!(text.contains(part), "{part:?} is not in\n{text}");
}

fn in_status(change: impl FnOnce(&mut proto::GetStatusResponse)) -> impl FnOnce(&mut Evidence) {
    move |e| change(e.status.as_mut().unwrap())
}

#[test]
fn a_node_with_nothing_wrong() {
    let e = well();
    assert_eq!(bad(&e), [""; 0]);
    let findings = Findings::new(&e);
    assert_eq!(findings.verdict, Verdict::Fine);
    golden("doctor.fine.txt", &findings.text(false));
}

#[test]
fn without_an_agent_the_file_system_speaks() {
    let mut e = well();
    e.status = Err(silent());
    e.volumes = Err(silent());
    e.processes.ours.pop();
    let volume = |name: &str, recorded, mounts| OnDisk {
        pod_uid: "u".into(),
        name: name.into(),
        path: "/p".into(),
        recorded,
        published: true,
        socket: Door::Open,
        mounts,
    };
    e.disk.volumes = vec![volume("good", true, 0), volume("left", false, 0), volume("stack", true, 2)];
    assert_eq!(bad(&e), ["processes", "agent", "leftovers"]);
    let findings = Findings::new(&e);
    golden("doctor.silent.txt", &findings.text(false));
    golden("doctor.silent.json", &crate::node::render::json(&findings).unwrap());
    // And without a mounter.
    e.processes.ours.clear();
    e.disk.csi = Some(Door::Dead);
    for volume in &mut e.disk.volumes {
        volume.socket = Door::Dead;
    }
    assert_eq!(bad(&e), ["processes", "sockets", "agent", "volumes", "leftovers"]);
    // In a container nothing is said of what cannot be seen.
    e.processes.partial = true;
    assert_eq!(bad(&e), ["sockets", "agent", "volumes", "leftovers"]);
}

#[test]
fn without_seamount_and_without_a_kubelet() {
    let nothing = |e: &mut Evidence| {
        e.status = Err(silent());
        e.volumes = Err(silent());
        e.processes.ours.clear();
    };
    let mut e = well();
    nothing(&mut e);
    (e.disk.plugin, e.disk.plugins) = (false, vec!["csi.example.com".into()]);
    (e.disk.csi, e.disk.registration, e.disk.state) = (Some(Door::Missing), Some(Door::Missing), None);
    assert_eq!(bad(&e).first(), Some(&"directories"));
    assert!(
        Findings::new(&e)
            .text(false)
            .contains("has never run here: no plugins/csi.spiffe.io (there is csi.example.com)")
    );
    e.disk.parts.clear();
    assert!(Findings::new(&e).text(false).contains("not a kubelet's directory"));
    e.disk = Disk { unreadable: Some("it does not exist".into()), ..Disk::default() };
    let findings = Findings::new(&e);
    assert_eq!((findings.verdict, findings.checks.len()), (Verdict::Unknown, 1));
    assert_eq!(format!("{:?}", findings.code()), format!("{:?}", ExitCode::from(2)));
}

#[test]
fn processes_are_judged() {
    finds(|e| e.processes.ours[0].stopped = true, &["processes"], "kill -CONT 10");
    finds(|e| e.processes.ours.push(process(Program::Mounter, 12)), &["processes"], "2 mounters");
    finds(
        |e| {
            let young = Some(Duration::from_secs(3));
            e.processes.ours.push(Process { age: young, ..process(Program::Mounter, 12) });
        },
        &[],
        "a roll-out",
    );
}

#[test]
fn what_the_agent_says_is_judged() {
    finds(in_status(|s| s.mounter.as_mut().unwrap().connected = false), &["mounter"], "not connected");
    finds(in_status(|s| s.mounter.as_mut().unwrap().answers = false), &["mounter"], "does not answer");
    finds(
        in_status(|s| s.drivers[1].registration.as_mut().unwrap().state = "unknown".into()),
        &["registration"],
        "restart the kubelet",
    );
    finds(
        in_status(|s| {
            let registration = s.drivers[1].registration.as_mut().unwrap();
            (registration.state, registration.reason) = ("refused".into(), "taken".into());
        }),
        &["registration"],
        "taken",
    );
    finds(
        in_status(|s| {
            let registration = s.drivers[1].registration.as_mut().unwrap();
            let reason = "the kubelet does not find the driver: another process serves csi.sock";
            (registration.state, registration.reason) = ("unreachable".into(), reason.into());
        }),
        &["registration"],
        "another process serves csi.sock",
    );
    let not_ready = |name: &'static str| {
        in_status(move |s| {
            let condition = s.conditions.iter_mut().find(|c| c.name == name).unwrap();
            (condition.state, condition.text) = ("not ready".into(), "it is\nbroken".into());
        })
    };
    finds(not_ready("configuration"), &["configuration"], "it is broken");
    finds(not_ready("token keys"), &["token keys"], "--service-account-issuer");
    finds(
        in_status(|s| s.authority.as_mut().unwrap().state = "down".into()),
        &["authority"],
        "no route to it",
    );
    finds(
        in_status(|s| s.authority.as_mut().unwrap().trouble = "no tls.key".into()),
        &["authority"],
        "no tls.key",
    );
}

#[test]
fn certificates_and_the_clock_are_judged() {
    let root = |from, until| {
        in_status(move |s| {
            let validity = proto::Validity { not_before: NOW + from, not_after: NOW + until };
            s.authority.as_mut().unwrap().roots = vec![validity];
        })
    };
    finds(root(3_600, 90_000), &["certificates"], "set back");
    finds(root(-3_600, -60), &["certificates"], "the root ends at");
    finds(root(-400 * 86_400, 86_400), &[], "Replacing the root");
    finds(root(-3_600, 86_400), &[], "the root is valid until");
    let issuer = proto::Validity { not_before: NOW - 90, not_after: NOW - 1 };
    finds(
        in_status(move |s| s.authority.as_mut().unwrap().issuer = Some(issuer)),
        &["certificates"],
        "did not rotate",
    );
    finds(|e| e.volumes.as_mut().unwrap().0[0].not_before = NOW + 3_600, &["certificates"], "shop/web-1");
    finds(|e| e.now = 1_000, &["certificates"], "1970-01-01");
}

#[test]
fn volumes_are_judged() {
    finds(
        |e| e.volumes = Ok((volumes(), None)),
        &["volumes", "leftovers"],
        "RotationFailing (1): the SVID could not be renewed: no route to it. Repair what the reason names",
    );
    let dead = proto::Fault {
        severity: "inaccessible".into(),
        reason: "SubPathDead".into(),
        message: "the container app mounted the socket by subPath".into(),
    };
    finds(
        |e| e.volumes.as_mut().unwrap().0[0].faults.push(dead),
        &["volumes"],
        "the container app mounted the socket by subPath. Delete the pod",
    );
    let text = |e: &Evidence| Findings::new(e).text(false);
    let mut e = well();
    e.volumes = Ok((volumes(), None));
    for part in [
        "1 with several mounts",
        "1 that the kubelet has no record of",
        "shop/web-1 (id)",
        "begin with the first: volumes",
    ] {
        assert!(text(&e).contains(part), "{part}: {}", text(&e));
    }
    // A mounter that cannot be asked leaves the leftovers to the file system.
    e.volumes = Ok((vec![volumes().remove(3)], Some("no answer".into())));
    assert_eq!(bad(&e), [""; 0]);
}

#[test]
fn limits_are_judged() {
    finds(in_status(|s| s.descriptors = 4_000), &["descriptors"], "LimitNOFILE");
    finds(
        in_status(|s| s.mounter.as_mut().unwrap().descriptor_limit = 80),
        &["descriptors"],
        "for 3 volumes",
    );
    finds(in_status(|s| s.state.as_mut().unwrap().inodes_used = 4_000), &["state"], "nearly full");
    finds(in_status(|s| s.state.as_mut().unwrap().bytes_used = 15 << 20), &["state"], "nearly full");
    finds(in_status(|s| s.state.as_mut().unwrap().available = false), &["state"], "no state directory");
    finds(|e| e.disk.state.as_mut().unwrap().mounts = 2, &["state"], "umount");
    finds(
        |e| {
            e.disk.swap = true;
            e.disk.state.as_mut().unwrap().noswap = false;
        },
        &[],
        "may be written to swap",
    );
    finds(|e| e.disk.kernel = "5.10.0-1".into(), &["kernel"], "older than 5.12");
    finds(in_status(|s| s.mounter.as_mut().unwrap().idmap = false), &[], "6.18.0 has no idmapped tmpfs");
}
