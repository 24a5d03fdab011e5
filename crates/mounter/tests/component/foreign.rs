//! What an agent that was stolen, or a pod, can give to the mounter: a listener of its own making is not
//! taken, and nothing that is sent along keeps the mounter waiting.

use std::os::fd::OwnedFd;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener};
use std::time::Duration;

use rustix::net::sockopt::{set_socket_linger, socket_cookie};
use rustix::net::{
    AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind, getsockname, listen, socket_with,
};
use rustix::process::{Pid, Signal, kill_process};
use seamount_mounter_protocol::names::Volume;
use seamount_mounter_protocol::{Fault, Request};

use crate::bench::{Agent, Bench, as_agent, bench, csi_listener, store, store_csi};

fn keep(volume: Option<&Volume>, fd: &OwnedFd) -> Request {
    let cookie = socket_cookie(fd).unwrap();
    volume.map_or_else(|| store_csi(cookie), |volume| store(volume, cookie))
}

fn refused(agent: &Agent, volume: Option<&Volume>, fd: &OwnedFd, why: &str) {
    agent.ask_with(&keep(volume, fd), &[fd]).bad(Fault::NotOurs, why);
}

/// A listener under the name that the mounter's has in getsockname(2), in a directory of our own.
fn lookalike(bench: &Bench, of: &OwnedFd) -> OwnedFd {
    let name = SocketAddrUnix::try_from(getsockname(of).unwrap()).unwrap();
    std::fs::create_dir_all(bench.path("own")).unwrap();
    let fd = socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None).unwrap();
    let before = std::env::current_dir().unwrap();
    std::env::set_current_dir(bench.path("own")).unwrap();
    bind(&fd, &name).unwrap();
    std::env::set_current_dir(before).unwrap();
    listen(&fd, 8).unwrap();
    fd
}

#[test]
fn a_listener_that_no_mounter_made_is_not_taken() {
    bench("a_listener_that_no_mounter_made_is_not_taken", |bench| {
        bench.start(&[]);
        let volume = bench.volume("v");
        let (made, csi) = {
            let agent = bench.agent();
            (agent.identity(&volume).good().fd.unwrap(), agent.ask(&csi_listener()).good().fd.unwrap())
        };
        bench.kill();
        bench.start(&[]);
        let agent = bench.agent();
        // The agent's own.
        let address = SocketAddr::from_abstract_name(format!("seamount-{}", std::process::id())).unwrap();
        let own: OwnedFd = as_agent(|| UnixListener::bind_addr(&address).unwrap().into());
        refused(&agent, Some(&volume), &own, "uid 64203");
        refused(&agent, None, &own, "uid 64203");
        // One that a pod made as root, which looks like the mounter's as far as a process can make it look.
        for (volume, fd) in [(Some(&volume), &made), (None, &csi)] {
            refused(&agent, volume, &lookalike(bench, fd), "socket's name");
            std::fs::remove_dir_all(bench.path("own")).unwrap();
        }
        // And one of the mounter's, in another one's place.
        let other = bench.volume("other");
        let other = (agent.identity(&other).good().fd.unwrap(), other);
        refused(&agent, Some(&volume), &other.0, "socket's name");
        agent.ask_with(&keep(Some(&volume), &made), &[&made]).good();
        agent.ask_with(&keep(None, &csi), &[&csi]).good();
    });
}

/// The end of a TCP connection that close(2) waits an hour for: its peer reads nothing and all buffers are
/// full.
fn lingering() -> (OwnedFd, std::net::TcpStream) {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let stream = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let (peer, _) = listener.accept().unwrap();
    stream.set_nonblocking(true).unwrap();
    while std::io::Write::write(&mut &stream, &[0; 65536]).is_ok() {}
    stream.set_nonblocking(false).unwrap();
    set_socket_linger(&stream, Some(Duration::from_secs(3600))).unwrap();
    (stream.into(), peer)
}

#[test]
fn nothing_that_is_sent_along_keeps_the_mounter_waiting() {
    bench("nothing_that_is_sent_along_keeps_the_mounter_waiting", |bench| {
        let pid = Pid::from_raw(bench.start(&[]) as i32).unwrap();
        let volume = bench.volume("v");
        let request = store(&volume, 1);
        // Sent while the mounter stands still, so that nothing but the messages has them when it reads: one
        // or several in a message, and from agents that are refused and never read.
        kill_process(pid, Signal::STOP).unwrap();
        let (mut agents, mut peers) = (Vec::new(), Vec::new());
        for count in [1, 2, 1, 3, 1, 1] {
            let agent = bench.agent();
            let (fds, ends): (Vec<_>, Vec<_>) = (0..count).map(|_| lingering()).unzip();
            agent.send(&request.encode(1), &fds.iter().collect::<Vec<_>>());
            peers.extend(ends);
            agents.push(agent);
        }
        kill_process(pid, Signal::CONT).unwrap();
        assert!(agents[0].receive().unwrap().fault().is_some());
        drop(agents);
        // It goes on, and lets go of nothing of its own.
        seamount_testkit::eventually(crate::bench::DEADLINE, "an answer", || {
            let agent = bench.agent();
            agent.send(&Request::Inspect(volume.clone()).encode(1), &[]);
            agent.receive().is_some_and(|a| a.fault() == Some(Fault::NotFound))
        });
        let agent = bench.agent();
        agent.identity(&volume).good();
        agent.ask(&Request::Unpublish(volume.clone())).good();
        // More of them hang than there are threads that close them; what an unpublish removed does not wait.
        seamount_testkit::eventually(crate::bench::DEADLINE, "the removed directory is closed", || {
            crate::disks::removed(pid.as_raw_nonzero().get() as u32) == 0
        });
        drop(peers);
    });
}
