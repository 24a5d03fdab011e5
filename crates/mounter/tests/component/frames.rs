//! What comes over the socket and is no request.

use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};

use rustix::net::sockopt::socket_cookie;
use seamount_mounter_protocol::names::Volume;
use seamount_mounter_protocol::{FRAME, Fault, Request};
use seamount_testkit::eventually;

use crate::bench::{self, DEADLINE, DRIVER, POD, bench};

#[test]
fn messages_that_are_no_frames_are_refused_and_the_connection_goes_on() {
    bench("messages_that_are_no_frames_are_refused_and_the_connection_goes_on", |bench| {
        bench.start(&[]);
        let agent = bench.agent();
        let good = Request::Hello.encode(1);
        let mut long = good.to_vec();
        long.extend([0; 5000]);
        let mut unknown = good;
        unknown[6] = 99;
        for (bytes, text) in [
            (&good[..1], "length"),
            (&good[..FRAME - 1], "length"),
            (&long[..FRAME + 1], "length"),
            (&long[..], "too long"),
            (&[0; FRAME][..], "something else"),
            (&[0xff; FRAME][..], "something else"),
            (&unknown[..], "operation"),
        ] {
            agent.send(bytes, &[]);
            agent.receive().unwrap().bad(Fault::Malformed, text);
            agent.ask(&Request::Hello).good();
        }
    });
}

#[test]
fn an_agent_of_another_version_is_told_both() {
    bench("an_agent_of_another_version_is_told_both", |bench| {
        bench.start(&[]);
        let agent = bench.agent();
        let mut frame = Request::Hello.encode(1);
        frame[4] = 7;
        agent.send(&frame, &[]);
        let answer = agent.receive().unwrap();
        assert!(answer.reply.text.contains("version 7") && answer.reply.text.contains("not 2"));
        answer.bad(Fault::Version, "one release");
    });
}

#[test]
fn names_that_could_leave_a_directory_do_not_get_in() {
    bench("names_that_could_leave_a_directory_do_not_get_in", |bench| {
        bench.start(&[]);
        let agent = bench.agent();
        let volume = bench.volume("v");
        let frame = Request::Unpublish(volume).encode(1);
        // The volume's text: its length at 56, `<driver>/<pod UID>/<name>/<id>` from 58.
        let with = |text: &str| {
            let mut bad = frame;
            bad[56..58].copy_from_slice(&(text.len() as u16).to_le_bytes());
            bad[58..351].fill(0);
            bad[58..58 + text.len()].copy_from_slice(text.as_bytes());
            bad
        };
        assert_eq!(with(&format!("{DRIVER}/{POD}/v/csi-v")), frame);
        let long = "x".repeat(64);
        let refuse = |text: &str, field: &str| {
            agent.send(&with(&format!("{DRIVER}/{text}")), &[]);
            agent.receive().unwrap().bad(Fault::Malformed, field);
        };
        for driver in ["..", ".", "", "\0", "a_b", "-", "csi:..", "registration:/etc", &long] {
            agent.send(&with(&format!("{driver}/{POD}/v/csi-v")), &[]);
            agent.receive().unwrap().bad(Fault::Malformed, "driver name");
        }
        for name in ["..", ".", "", "\0", "V", "-", &long] {
            refuse(&format!("{POD}/{name}/csi-v"), "volume name");
        }
        // A slash more belongs to the id, and there it is no path.
        refuse(&format!("{POD}/../../x/csi-v"), "volume name");
        for pod in ["../../../../../../../../../../../etc", "", "..", "/etc"] {
            refuse(&format!("{pod}/v/csi-v"), "pod UID");
        }
        for id in ["", "\n", "a b"] {
            refuse(&format!("{POD}/v/{id}"), "volume id");
        }
        refuse(POD, "volume name");
        refuse(&format!("{POD}/v"), "volume id");
    });
}

#[test]
fn descriptors_come_one_at_a_time_with_store_only_and_of_one_kind() {
    bench("descriptors_come_one_at_a_time_with_store_only_and_of_one_kind", |bench| {
        let pid = bench.start(&[]);
        let agent = bench.agent();
        let volume = bench.volume("v");
        let listener: OwnedFd = UnixListener::bind(bench.path("l")).unwrap().into();
        let datagram: OwnedFd = UnixDatagram::unbound().unwrap().into();
        let (stream, _peer) = UnixStream::pair().unwrap();
        let stream: OwnedFd = stream.into();
        let tcp: OwnedFd = std::net::TcpListener::bind("127.0.0.1:0").unwrap().into();
        let file: OwnedFd = std::fs::File::open("/dev/null").unwrap().into();
        let cookie = |fd: &OwnedFd| socket_cookie(fd).unwrap_or(1);
        let store = |cookie| bench::store(&volume, cookie);
        agent.ask(&Request::Hello).good();
        let before = descriptors(pid);
        for fd in [&datagram, &stream, &tcp, &file] {
            agent.ask_with(&store(cookie(fd)), &[fd]).bad(Fault::Malformed, "listening Unix stream socket");
        }
        agent.ask_with(&store(cookie(&listener) + 1), &[&listener]).bad(Fault::Malformed, "cookie");
        agent.ask(&store(cookie(&listener))).bad(Fault::Malformed, "descriptor");
        agent.ask_with(&Request::Hello, &[&listener]).bad(Fault::Malformed, "descriptor");
        for fds in [&[&listener, &file][..], &[&listener, &file, &file, &file]] {
            agent.send(&store(cookie(&listener)).encode(1), fds);
            assert!(agent.receive().unwrap().fault().is_some());
        }
        let stranger = Volume { name: "other".parse().unwrap(), ..volume.clone() };
        let request = bench::store(&stranger, cookie(&listener));
        agent.ask_with(&request, &[&listener]).bad(Fault::NotFound, "directory");
        eventually(DEADLINE, "all of that to be closed", || descriptors(pid) == before);
        // Kept where it is the right one.
        agent.identity(&volume).good();
        let made = agent.identity(&volume).good();
        agent
            .ask_with(&store(made.reply.cookie), &[made.fd.as_ref().unwrap()])
            .bad(Fault::Busy, "kept already");
        eventually(DEADLINE, "the rest to be closed", || descriptors(pid) == before + 1);
    });
}

fn descriptors(pid: u32) -> usize {
    std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count()
}

#[test]
fn garbage_never_ends_the_mounter() {
    bench("garbage_never_ends_the_mounter", |bench| {
        let pid = bench.start(&[]);
        let agent = bench.agent();
        agent.ask(&Request::Hello).good();
        let before = descriptors(pid);
        // A fixed generator (Knuth's constants): the same frames in every run.
        let mut seed = 1u64;
        let mut next = || {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (seed >> 33) as u8
        };
        let volume = bench.volume("v");
        for round in 0..5000u64 {
            let mut frame = Request::Inspect(volume.clone()).encode(round);
            for _ in 0..1 + next() % 4 {
                let at = usize::from(next()) * 4 + usize::from(next() % 4);
                frame[at] = next();
            }
            frame[6] %= 14;
            agent.send(&frame, &[]);
            agent.receive().unwrap();
        }
        agent.ask(&Request::Hello).good();
        assert!(descriptors(pid) <= before + 3);
    });
}
