//! What the kernel counts by uid over all containers: a pod uses it up, and the agent has a uid of its own.

use std::collections::BTreeMap;
use std::fs;
use std::io::{IoSliceMut, Write as _};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, MutexGuard, PoisonError};

use rustix::event::epoll::{self, EventData, EventFlags};
use rustix::event::{EventfdFlags, eventfd};
use rustix::io::Errno;
use rustix::net::sockopt::set_socket_passcred;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendFlags, SocketFlags, SocketType,
    netlink::SOCK_DIAG, recvmsg, socket_with,
};
use rustix::process::Uid;
use seamount_testkit::processes::{Process, Spawn};
use seamount_testkit::skip;

use crate::harness::{LONG, Node, RUN, UID, fetch, leaf, on_node, open};

/// Watches that a uid may have while these tests run: many times what anything else on a machine has, and few
/// enough to use up in a moment.
const WATCHES: u32 = 131_072;
const SYSCTL: &str = "/proc/sys/fs/epoll/max_user_watches";

/// The limit, which is one for the machine, for as long as this lives; one test at a time.
struct Limit(String, #[allow(dead_code, reason = "held")] MutexGuard<'static, ()>);

impl Limit {
    fn lowered() -> Self {
        static ALONE: Mutex<()> = Mutex::new(());
        let alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
        let before = fs::read_to_string(SYSCTL).unwrap();
        if before.trim().parse::<u32>().unwrap() > WATCHES {
            fs::write(SYSCTL, WATCHES.to_string()).unwrap();
        }
        Self(before, alone)
    }
}

impl Drop for Limit {
    fn drop(&mut self) {
        fs::write(SYSCTL, &self.0).unwrap();
    }
}

/// All watches of a uid; they are free again when this is dropped.
struct UsedUp {
    instances: Vec<OwnedFd>,
    targets: Vec<OwnedFd>,
}

impl UsedUp {
    /// As a container with `runAsUser` can.
    fn of(uid: u32) -> Self {
        let take = move || {
            let uid = Uid::from_raw(uid);
            // This thread alone.
            rustix::thread::set_thread_res_uid(uid, uid, uid).unwrap();
            let targets = (0..400).map(|_| eventfd(0, EventfdFlags::CLOEXEC).unwrap()).collect();
            let mut used = Self { instances: Vec::new(), targets };
            loop {
                // Counted on what makes the instance.
                used.instances.push(epoll::create(epoll::CreateFlags::CLOEXEC).unwrap());
                if used.fill_up() {
                    return used;
                }
            }
        };
        std::thread::spawn(take).join().unwrap()
    }

    /// Fills the last instance; whether the kernel allows no more.
    fn fill_up(&self) -> bool {
        let instance = self.instances.last().unwrap();
        let add = |target| epoll::add(instance, target, EventData::new_u64(0), EventFlags::IN);
        self.targets.iter().any(|target| match add(target) {
            Ok(()) | Err(Errno::EXIST) => false,
            Err(Errno::NOSPC) => true,
            Err(e) => panic!("{e}"),
        })
    }
}

fn setpriv() -> Option<PathBuf> {
    let found = ["/usr/bin/setpriv", "/bin/setpriv"].map(PathBuf::from);
    found.into_iter().find(|path| path.exists())
}

/// A mounter for an agent of this uid, which no other test's agent has, and the authority's Secret for it.
fn start_mounter(node: &mut Node, uid: u32) {
    for (name, mode) in [("root", 0o755), ("root/tls.crt", 0o444), ("root/tls.key", 0o444)] {
        open(&node.path(name), mode);
    }
    let uid = uid.to_string();
    node.start_mounter_with(&["--agent-uid", &uid, "--agent-gid", "64203"]);
}

/// An agent as a container runtime starts it for the manifests: root, and of its capabilities SETUID alone.
fn drawn(node: &Node, uid: u32) -> Process {
    let program = node.program("seamount-agent").display().to_string();
    Spawn::new("agent", &setpriv().unwrap(), node.logs())
        .args(["--regid", "64203", "--clear-groups", "--inh-caps=-all", "--bounding-set=-all,+setuid"])
        .args(["--no-new-privs", &program, "--uid", &uid.to_string(), "--log-level", "debug"])
        .args(node.agent_args(RUN, &node.http))
        .start()
        .unwrap()
}

fn status(pid: u32, field: &str) -> String {
    let all = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = all.lines().find_map(|l| l.strip_prefix(field)?.strip_prefix(':')).unwrap();
    line.trim().to_owned()
}

/// What `seamount-agent health` says, as the kubelet's probe runs it.
fn health(node: &Node, what: &str) -> (bool, String) {
    let output = Command::new(setpriv().unwrap())
        .args(["--regid", "64203", "--clear-groups", "--inh-caps=-all", "--bounding-set=-all,+setuid"])
        .args(["--no-new-privs".as_ref(), node.program("seamount-agent").as_os_str()])
        .args(["health", what, "--health-socket", &node.health(RUN)])
        .output()
        .unwrap();
    (output.status.success(), String::from_utf8(output.stdout).unwrap())
}

/// The uids of the agent that a client finds out: of the sender of what it reads, where it asks for
/// credentials, and of the socket that was accepted, which is in the client's network namespace
/// (sock_diag(7)).
fn uids_of_the_other_end(socket: &Path) -> (u32, u32) {
    let mut stream = UnixStream::connect(socket).unwrap();
    set_socket_passcred(&stream, true).unwrap();
    stream.set_read_timeout(Some(LONG)).unwrap();
    stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").unwrap();
    let mut bytes = [0; 512];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmCredentials(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let into = &mut [IoSliceMut::new(&mut bytes)];
    assert!(recvmsg(stream.as_fd(), into, &mut control, RecvFlags::empty()).unwrap().bytes > 0);
    let told = control.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmCredentials(told) => Some(told.uid.as_raw()),
        _ => None,
    });
    (told.unwrap(), uid_of_the_accepted(&stream))
}

/// By a dump of the Unix sockets (linux/unix_diag.h): the peer's inode number, then the owner of that one.
fn uid_of_the_accepted(stream: &UnixStream) -> u32 {
    use std::os::unix::fs::MetadataExt as _;
    let own = fs::metadata(format!("/proc/self/fd/{}", stream.as_raw_fd())).unwrap().ino() as u32;
    let netlink =
        socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, Some(SOCK_DIAG)).unwrap();
    const SHOW_PEER_AND_UID: u32 = 0x4 | 0x40;
    let mut request = Vec::new();
    for word in [40, 0x0301 << 16 | 20, 1, 0, 1, u32::MAX, 0, SHOW_PEER_AND_UID, 0, 0] {
        request.extend(u32::to_ne_bytes(word));
    }
    rustix::net::send(&netlink, &request, SendFlags::empty()).unwrap();
    // By inode number: that of the peer, the uid.
    let mut sockets = BTreeMap::new();
    let mut buffer = vec![0; 1 << 16];
    let word = |bytes: &[u8], at: usize| u32::from_ne_bytes(bytes[at..at + 4].try_into().unwrap());
    let half =
        |bytes: &[u8], at: usize| usize::from(u16::from_ne_bytes(bytes[at..at + 2].try_into().unwrap()));
    'all: loop {
        let (length, _) = rustix::net::recv(&netlink, &mut buffer[..], RecvFlags::empty()).unwrap();
        let mut rest = &buffer[..length];
        while rest.len() >= 16 {
            let (message, after) =
                rest.split_at((word(rest, 0) as usize).next_multiple_of(4).min(rest.len()));
            rest = after;
            if half(message, 4) != 20 {
                break 'all;
            }
            let mut attributes = &message[32..];
            let (mut peer, mut uid) = (0, u32::MAX);
            while attributes.len() >= 8 {
                match half(attributes, 2) {
                    2 => peer = word(attributes, 4),
                    7 => uid = word(attributes, 4),
                    _ => {}
                }
                let length = half(attributes, 0).next_multiple_of(4).clamp(4, attributes.len());
                attributes = &attributes[length..];
            }
            sockets.insert(word(message, 20), (peer, uid));
        }
    }
    sockets[&sockets[&own].0].1
}

#[test]
fn a_pod_cannot_use_up_what_an_agent_with_a_drawn_uid_needs() {
    const NAME: &str = "a_pod_cannot_use_up_what_an_agent_with_a_drawn_uid_needs";
    if setpriv().is_none() {
        return skip(NAME, "needs setpriv (util-linux)");
    }
    on_node(NAME, async |node| {
        const ALONE: u32 = 64301;
        start_mounter(node, ALONE);
        node.agent = Some(drawn(node, ALONE));
        node.register().await;
        let pid = node.agent().pid();
        let uids: Vec<u32> = status(pid, "Uid").split_whitespace().map(|id| id.parse().unwrap()).collect();
        assert!(i32::try_from(uids[0]).is_err(), "{uids:?} is within reach of runAsUser");
        assert_eq!(uids[1..], [ALONE; 3]);
        assert_eq!(status(pid, "Gid"), "64203\t64203\t64203\t64203");
        for field in ["CapInh", "CapPrm", "CapEff", "CapAmb"] {
            assert_eq!(status(pid, field), "0000000000000000", "{field}");
        }
        let volume = node.volume("shop", "frontend", "web-1");
        node.publish(&volume).await;
        let view = node.view(&volume);
        let before = leaf(&fetch(&view).await);
        // An image may name any uid in its /etc/passwd; it cannot name one that nothing tells it.
        assert_eq!(uids_of_the_other_end(&view.join("spire-agent.sock")), (ALONE, ALONE));

        let limit = Limit::lowered();
        let used = UsedUp::of(ALONE);
        assert_eq!(leaf(&fetch(&view).await), before);
        let other = node.volume("shop", "database", "db-1");
        node.publish(&other).await;
        fetch(&node.view(&other)).await;
        for what in ["live", "ready"] {
            let (good, text) = health(node, what);
            assert!(good, "{what}: {text}");
        }
        node.kubelet.tear_down(&other).await.unwrap();
        node.kubelet.tear_down(&volume).await.unwrap();
        assert!(used.fill_up());
        drop((used, limit));
    });
}

#[test]
fn what_is_used_up_is_said() {
    const NAME: &str = "what_is_used_up_is_said";
    if setpriv().is_none() {
        return skip(NAME, "needs setpriv (util-linux)");
    }
    on_node(NAME, async |node| {
        const ALONE: u32 = 64302;
        start_mounter(node, ALONE);
        node.set_log_aside("agent").unwrap();
        node.agent = Some(node.second_agent(RUN, &node.http).ids(ALONE, 64203).start().unwrap());
        node.register().await;
        let limit = Limit::lowered();
        let used = UsedUp::of(ALONE);
        node.until("health without an answer", async || {
            // What the agent has closed meanwhile.
            used.fill_up();
            let (good, text) = health(node, "ready");
            !good && text.contains("health.sock")
        })
        .await;
        node.agent().wait_for_log(LONG, "fs.epoll.max_user_watches of uid 64302 is used up").unwrap();
        drop((used, limit));
        node.ready().await;
        let (good, text) = health(node, "ready");
        assert!(good && text.ends_with("ready\n"), "{text}");
    });
}

/// From an agent with a fixed uid to one with a drawn uid to one with another: same sockets, same SVIDs.
#[test]
fn a_start_with_another_uid_keeps_everything() {
    const NAME: &str = "a_start_with_another_uid_keeps_everything";
    if setpriv().is_none() {
        return skip(NAME, "needs setpriv (util-linux)");
    }
    on_node(NAME, async |node| {
        node.start().await;
        let volume = node.volume("shop", "frontend", "web-1");
        node.publish(&volume).await;
        let view = node.view(&volume);
        let before = leaf(&fetch(&view).await);
        let mut seen = Vec::new();
        for _ in 0..2 {
            node.agent.take().unwrap().crash().unwrap();
            node.set_log_aside("agent").unwrap();
            node.agent = Some(drawn(node, UID));
            node.ready().await;
            assert_eq!(leaf(&fetch(&view).await), before, "another serial");
            seen.push(status(node.agent().pid(), "Uid"));
        }
        assert_ne!(seen[0], seen[1]);
        node.kubelet.tear_down(&volume).await.unwrap();
        assert!(!node.record(&volume).exists());
    });
}

#[test]
fn an_agent_that_cannot_leave_root_does_not_start() {
    on_node("an_agent_that_cannot_leave_root_does_not_start", async |node| {
        for (ids, uid, why) in [((UID, UID), "64203", "SETUID"), ((0, 0), "0", "--uid 0")] {
            node.set_log_aside("agent").unwrap();
            let (uid_now, gid_now) = ids;
            let spawn = node.second_agent(RUN, "").args(["--uid", uid]).ids(uid_now, gid_now);
            let mut agent = spawn.start().unwrap();
            assert!(!agent.wait_for_end(LONG).unwrap().success());
            assert!(agent.log().contains(why), "{}", agent.log());
        }
    });
}
