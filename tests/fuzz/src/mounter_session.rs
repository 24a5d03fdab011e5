//! A whole session with the mounter: an agent that sends what it likes, a kubelet and a host that do what
//! they like, and the real mounter on real mounts. Whatever happens: one reply to each frame, nothing touched
//! outside, no other driver's volume touched, and at the end nothing left.

use std::collections::BTreeMap;
use std::fs;
use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd as _, OwnedFd};
use std::os::unix::fs::{MetadataExt as _, symlink};
use std::os::unix::net::{SocketAddr, UnixDatagram, UnixListener};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use arbitrary::{Result, Unstructured};
use rustix::fs::{FileType, FlockOperation, Mode, OFlags, flock, mknodat};
use rustix::mount::mount_bind;
use rustix::net::sockopt::{self, socket_cookie};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, Shutdown, SocketFlags, SocketType, accept_with, recvmsg, sendmsg,
    shutdown, socketpair,
};
use seamount_mounter_protocol::names::Volume;
use seamount_mounter_protocol::{FRAME, Fault, Reply, Request, flag};

use crate::closer::{Closer, Foreign};
use crate::config::Config;
use crate::handover::{self, Kept};
use crate::input::{self, Patches};
use crate::node::{Node, RESERVED};
use crate::{server, socket, world};

const DRIVER: &str = "csi.spiffe.io";
const AGENT: u32 = 64203;
const PODS: [&str; 2] = ["3f2c1a9e-0b1d-4c5e-8f70-a1b2c3d4e5f6", "00000000-0000-4000-8000-000000000001"];
const NAMES: [&str; 2] = ["one", "two"];
/// Listeners that the mounter may keep: few, so that it runs out of them.
const KEPT: u64 = 3;

/// Steps of kubelet, agent and host.
pub fn run(data: &[u8]) {
    let host = host();
    let mut session = Session::new(host, data.first().is_some_and(|b| b & 1 == 1));
    let mut u = Unstructured::new(data.get(1..).unwrap_or_default());
    for _ in 0..32 {
        if u.is_empty() || session.step(&mut u).is_err() {
            break;
        }
    }
    session.end();
    host.check();
}

/// What is there all the time, and must stay as it is.
struct Host {
    base: PathBuf,
    /// Exchanges the ids of root and agent; none where the kernel cannot.
    swap: Option<OwnedFd>,
    sentinel: Vec<(PathBuf, [i64; 9])>,
    mounts: Vec<String>,
    descriptors: Vec<PathBuf>,
}

fn host() -> &'static Host {
    static HOST: OnceLock<Host> = OnceLock::new();
    HOST.get_or_init(|| {
        let base = world::base().to_owned();
        for part in [
            "kubelet/pods",
            "kubelet/plugins",
            "kubelet/plugins_registry",
            "host/source",
            "agent",
            "sentinel/inner",
        ] {
            world::directory(&base.join(part));
        }
        // A volume's directory, as a link could show it.
        world::directory(&base.join("sentinel/place/mount"));
        fs::write(base.join("sentinel/place/vol_data.json"), vol_data(DRIVER, "csi-one")).unwrap();
        fs::write(base.join("sentinel/inner/file"), "kept").unwrap();
        drop(UnixListener::bind(base.join("sentinel/place/mount/spire-agent.sock")).unwrap());
        // Another driver's volumes: one mounted, one with the names that we use.
        for (pod, name) in [(PODS[0], "other"), (PODS[1], "other")] {
            let place = place(&base, pod, name);
            world::directory(&place.join("mount"));
            fs::write(place.join("vol_data.json"), vol_data("csi.example.com", "csi-other")).unwrap();
            if pod == PODS[0] {
                world::tmpfs(&place.join("mount"), c"nr_inodes=77");
            }
            fs::write(place.join("mount/spire-agent.sock"), "kept").unwrap();
            world::directory(&place.join("mount/inner"));
        }
        let swap = seamount_sys::mounter::swap_namespace(AGENT, AGENT).ok();
        let mut host = Host { base, swap, sentinel: Vec::new(), mounts: Vec::new(), descriptors: Vec::new() };
        // Once, so that whatever is made on first use is there.
        Session::new(&host, true).end();
        (host.sentinel, host.mounts) = (host.look(), world::mount_points());
        host.descriptors = world::descriptors();
        host
    })
}

fn vol_data(driver: &str, id: &str) -> String {
    format!(r#"{{"driverName":"{driver}","volumeHandle":"{id}","specVolID":"x"}}"#)
}

fn place(base: &Path, pod: &str, name: &str) -> PathBuf {
    base.join("kubelet/pods").join(pod).join("volumes/kubernetes.io~csi").join(name)
}

/// The mounter's own directory.
fn own(host: &Host) -> PathBuf {
    host.base.join("kubelet/plugins/seamount.dev")
}

impl Host {
    fn look(&self) -> Vec<(PathBuf, [i64; 9])> {
        let mut all = world::fingerprint(&self.base.join("sentinel"));
        all.extend(PODS.iter().flat_map(|pod| world::fingerprint(&place(&self.base, pod, "other"))));
        all
    }

    fn check(&self) {
        assert_eq!(self.look(), self.sentinel, "something outside was touched");
        assert_eq!(world::mount_points(), self.mounts, "mounts are left");
        assert_eq!(world::descriptors(), self.descriptors, "descriptors are left");
    }
}

struct Session<'a> {
    host: &'a Host,
    idmap: bool,
    node: Option<Node>,
    agent: OwnedFd,
    mounter: Foreign,
    next: u64,
}

impl<'a> Session<'a> {
    fn new(host: &'a Host, idmap: bool) -> Self {
        let (agent, mounter) =
            socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).unwrap();
        let mut session = Self { host, idmap, node: None, agent, mounter: mounter.into(), next: 0 };
        session.start();
        session
    }

    /// A mounter that knows nothing.
    fn start(&mut self) {
        self.node = None;
        let base = self.host.base.display();
        let arguments = [
            format!("--kubelet-root={base}/kubelet"),
            format!("--socket={base}/agent/mounter.sock"),
            format!("--source-directory={base}/host/source"),
        ];
        let config = Config::parse(arguments.map(Into::into)).unwrap();
        let swap = self.host.swap.as_ref().filter(|_| self.idmap).map(|fd| fd.try_clone().unwrap());
        let noswap = self.host.swap.is_some();
        self.node = Some(Node::open(config, swap, noswap, RESERVED + KEPT, Closer::default()).unwrap());
    }

    /// A younger mounter takes over, as in a roll-out: the old one answers what its agent still asks, then
    /// everything is the young one's. Perhaps the young one is gone before it has all.
    fn take_over(&mut self, u: &mut Unstructured<'_>) -> Result<()> {
        let mut last = Vec::new();
        for _ in 0..u.int_in_range(0..=3u8)? {
            let (_, volume) = self.slot(u)?;
            let request = input::request(u, volume)?;
            last.push((request, if u.arbitrary()? { Some(descriptor(u)?) } else { None }));
        }
        let (with_agent, goes) = (u.ratio(7, 8)?, u.ratio(1, 8)?);
        let mut node = self.node.take().unwrap();
        let own_directory = own(self.host);
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let held = rustix::fs::open(&own_directory, flags, Mode::empty()).unwrap();
        let kept = |node: &Node| -> BTreeMap<String, u64> {
            node.lock.kept.iter().map(|(slot, fd)| (slot.clone(), socket_cookie(fd).unwrap())).collect()
        };
        // What the agent has asked when it hears of it; then it leaves.
        for (number, (request, fd)) in last.iter().enumerate() {
            send(&self.agent, &request.encode(number as u64), fd.as_slice());
        }
        shutdown(&self.agent, Shutdown::Write).unwrap();
        let agent = with_agent.then(|| Foreign::from(self.mounter.as_fd().try_clone_to_owned().unwrap()));

        let door = &node.lock.doors[1];
        let taken = if goes {
            let kind = SocketType::SEQPACKET;
            drop(socket::connect(&held, "take-over.sock", kind, SocketFlags::empty()).unwrap());
            let to = Foreign::from(accept_with(door, SocketFlags::CLOEXEC).unwrap());
            let before = kept(&node);
            let result = server::hand_over(&to, agent, &mut node);
            assert!(result.is_err(), "handed over to nobody");
            // It goes on as if none had come.
            assert!(with_agent || kept(&node) == before);
            None
        } else {
            let young = std::thread::spawn(move || {
                // With a working directory of its own, as a process has: both bind and connect by relative
                // names.
                seamount_sys::play::unshare_mounts().unwrap();
                let (lock, kept) = handover::inherit(&held).expect("the old one hands over");
                let own = |fd| std::rc::Rc::try_unwrap(fd).unwrap();
                (lock, kept.into_iter().map(|(slot, fd)| (slot, own(fd))).collect::<Vec<_>>())
            });
            let to = Foreign::from(accept_with(door, SocketFlags::CLOEXEC).unwrap());
            server::hand_over(&to, agent, &mut node).unwrap();
            Some(young.join().unwrap())
        };
        if with_agent {
            // First it is told; then each request has its answer.
            let (frame, fds) = receive(&self.agent);
            assert!(Reply::decode(&frame).unwrap().fault == Some(Fault::Superseded) && fds.is_empty());
            for (number, (request, _)) in last.iter().enumerate() {
                let (frame, mut fds) = receive(&self.agent);
                let reply = Reply::decode(&frame).unwrap();
                assert!(reply.answers(number as u64, request), "{reply:?} to {request:?}");
                answered(request, &reply, fds.pop().as_ref());
            }
        }
        if let Some((lock, inherited)) = taken {
            let was = kept(&node);
            let own = |fd| std::rc::Rc::new(fd);
            let kept_now: Kept = inherited.into_iter().map(|(slot, fd)| (slot, own(fd))).collect();
            node.lock.kept = kept_now;
            assert_eq!(kept(&node), was, "a listener was lost or exchanged on the way");
            node.lock.file = own(lock);
            // What a new process does not have.
            node.listed.clear();
        }
        // Never free in between, and not free now.
        let file = fs::File::open(own_directory.join("lock")).unwrap();
        assert!(flock(&file, FlockOperation::NonBlockingLockExclusive).is_err(), "the lock is free");
        self.node = Some(node);
        self.connect();
        Ok(())
    }

    /// Another agent, or the same again.
    fn connect(&mut self) {
        let (agent, mounter) =
            socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).unwrap();
        (self.agent, self.mounter) = (agent, mounter.into());
    }

    fn slot(&self, u: &mut Unstructured<'_>) -> Result<(PathBuf, Volume)> {
        let (pod, name) = (u.choose(&PODS)?, u.choose(&NAMES)?);
        let volume = Volume {
            driver: DRIVER.parse().unwrap(),
            pod: pod.parse().unwrap(),
            name: name.parse().unwrap(),
            id: format!("csi-{name}").parse().unwrap(),
        };
        Ok((place(&self.host.base, pod, name), volume))
    }

    fn step(&mut self, u: &mut Unstructured<'_>) -> Result<()> {
        match u.int_in_range(0..=15u8)? {
            0..=6 => self.ask(u),
            7 => self.garbage(u),
            8 | 9 => self.prepare(u),
            10..=12 => self.tamper(u),
            13 => {
                let source = self.host.base.join("host/source");
                world::remove(&source);
                if u.ratio(3, 4)? {
                    world::directory(&source);
                    fs::write(source.join("agent.sock"), "source").unwrap();
                }
                Ok(())
            }
            14 if u.arbitrary()? => self.take_over(u),
            14 => {
                self.start();
                Ok(())
            }
            _ => {
                let (place, _) = self.slot(u)?;
                clear(&place);
                Ok(())
            }
        }
    }

    /// The kubelet makes a volume's directory, and not always its own driver's.
    fn prepare(&mut self, u: &mut Unstructured<'_>) -> Result<()> {
        let (place, volume) = self.slot(u)?;
        world::unmount_all(&place);
        if fs::symlink_metadata(&place).is_ok_and(|found| !found.is_dir()) {
            world::remove(&place);
        }
        world::directory(&place);
        let file = place.join("vol_data.json");
        world::remove(&file);
        let good = vol_data(DRIVER, volume.id.as_str());
        match u.int_in_range(0..=15u8)? {
            0 => fs::write(&file, vol_data("csi.example.com", volume.id.as_str())).unwrap(),
            1 => fs::write(&file, vol_data(DRIVER, "csi-none")).unwrap(),
            2 => fs::write(&file, u.arbitrary::<&[u8]>()?).unwrap(),
            3 => {}
            4 => symlink(self.host.base.join("sentinel/place/vol_data.json"), &file).unwrap(),
            5 => fifo(&file),
            6 => {
                fs::write(&file, good).unwrap();
                std::os::unix::fs::chown(&file, Some(1000), None).unwrap();
            }
            _ => fs::write(&file, good).unwrap(),
        }
        Ok(())
    }

    /// A process of the host puts something where the volume is.
    fn tamper(&mut self, u: &mut Unstructured<'_>) -> Result<()> {
        let (place, _) = self.slot(u)?;
        world::unmount_all(&place);
        let sentinel = self.host.base.join("sentinel");
        let mount = place.join("mount");
        if !fs::symlink_metadata(&place).is_ok_and(|found| found.is_dir()) {
            return Ok(());
        }
        let choice = u.int_in_range(0..=12u8)?;
        if choice < 5 {
            world::unmount_all(&mount);
            world::remove(&mount);
        }
        let in_it = fs::symlink_metadata(&mount).is_ok_and(|found| found.is_dir()) && choice >= 5;
        // Nothing can be mounted on a source directory that was removed, and lives on as long as it is
        // mounted here.
        let alive = in_it && fs::symlink_metadata(&mount).is_ok_and(|found| found.nlink() > 0);
        match choice {
            0 => symlink(sentinel.join("place/mount"), &mount).unwrap(),
            1 => fs::write(&mount, "a file").unwrap(),
            2 => fifo(&mount),
            3 => world::directory(&mount),
            4 => {
                clear(&place);
                symlink(sentinel.join("place"), &place).unwrap();
            }
            5 if alive => world::tmpfs(&mount, c"nr_inodes=99"),
            // A write through this one would be seen.
            6 if alive => mount_bind(sentinel.join("place/mount"), &mount).unwrap(),
            // A mount on top of the whole volume's directory.
            7 => mount_bind(sentinel.join("place"), &place).unwrap(),
            8..=12 if in_it && !is_at(&mount, &sentinel.join("place/mount")) => {
                let name =
                    *u.choose(&["spire-agent.sock", "agent.sock", "socket", ".1.2.sock", "v1", "stranger"])?;
                let name = mount.join(name);
                if is_at(&mount, &self.host.base.join("host/source")) {
                    return Ok(());
                }
                match choice {
                    8 => drop((world::remove(&name), symlink(sentinel.join("inner/file"), &name))),
                    9 => drop((world::remove(&name), fs::write(&name, "x"))),
                    10 => world::remove(&name),
                    11 => drop(UnixListener::bind(&name)),
                    // As the agent writes a version, with a way out in it.
                    _ => {
                        world::remove(&name);
                        if fs::create_dir(&name).is_ok() {
                            let _ = fs::write(name.join("svid.pem"), "x");
                            let _ = symlink(sentinel.join("inner/file"), name.join("link"));
                            let _ = symlink(sentinel.join("inner"), name.join("up"));
                            let _ = std::os::unix::fs::chown(name.join("svid.pem"), Some(AGENT), Some(AGENT));
                        }
                    }
                }
            }
            _ => {}
        }
        Ok(())
    }

    /// A request, with descriptors, perhaps with a few bytes changed.
    fn ask(&mut self, u: &mut Unstructured<'_>) -> Result<()> {
        let (_, mut volume) = self.slot(u)?;
        match u.int_in_range(0..=31u8)? {
            0 => volume = input::volume(u)?,
            1 | 2 => {
                volume.name = "other".parse().unwrap();
                volume.id = "csi-other".parse().unwrap();
            }
            3 => volume.id = "csi-none".parse().unwrap(),
            4 => volume.driver = "csi.example.com".parse().unwrap(),
            _ => {}
        }
        let mut request = input::request(u, volume)?;
        let stores = matches!(request, Request::StoreListener { .. });
        let count = if stores { usize::from(!u.ratio(1, 8)?) } else { usize::from(u.ratio(1, 16)?) };
        let mut fds = (0..count).map(|_| descriptor(u)).collect::<Result<Vec<_>>>()?;
        if u.ratio(1, 32)? {
            fds.push(descriptor(u)?);
            fds.push(descriptor(u)?);
        }
        if let (Request::StoreListener { cookie, .. }, [first, ..]) = (&mut request, fds.as_slice())
            && u.ratio(7, 8)?
        {
            *cookie = socket_cookie(first).unwrap_or_default();
        }
        self.next += 1;
        let (id, mut frame) = (self.next, request.encode(self.next));
        let changed = u.ratio(1, 16)?;
        if changed {
            u.arbitrary::<Patches>()?.apply(&mut frame);
        }
        let (reply, fd) = self.exchange(&frame, &fds);
        if !changed && fds.len() < 2 {
            assert!(reply.answers(id, &request), "{reply:?} to {request:?}");
            answered(&request, &reply, fd.as_ref());
        }
        Ok(())
    }

    fn garbage(&mut self, u: &mut Unstructured<'_>) -> Result<()> {
        let mut bytes: Vec<u8> = u.arbitrary()?;
        if u.arbitrary()? {
            bytes.resize(FRAME, 0);
        }
        // Nothing at all would be the end of the connection.
        bytes.push(0);
        let (reply, _) = self.exchange(&bytes, &[]);
        assert!(matches!(reply.fault, Some(Fault::Malformed | Fault::Version)));
        Ok(())
    }

    /// One message, and the one reply to it.
    fn exchange(&mut self, bytes: &[u8], fds: &[OwnedFd]) -> (Reply, Option<OwnedFd>) {
        send(&self.agent, bytes, fds);
        server::exchange(&self.mounter, self.node.as_mut().unwrap()).unwrap();

        let (frame, mut got) = receive(&self.agent);
        let reply = Reply::decode(&frame).unwrap();
        assert!(got.len() < 2 && (got.is_empty() || reply.fault.is_none()));
        assert!(reply.fault.is_none() || !reply.text.is_empty(), "a refusal without a reason");
        (reply, got.pop())
    }

    fn unpublish(&mut self, volume: &Volume) -> Reply {
        self.next += 1;
        let frame = Request::Unpublish(volume.clone()).encode(self.next);
        self.exchange(&frame, &[]).0
    }

    /// The kubelet takes everything away, and by what it wrote each volume is ours.
    fn end(mut self) {
        for (pod, name) in PODS.iter().flat_map(|pod| NAMES.map(|name| (*pod, name))) {
            let place = place(&self.host.base, pod, name);
            // What lies on the volume's directory is not the mounter's to remove.
            world::unmount_all(&place);
            if fs::symlink_metadata(&place).is_ok_and(|found| !found.is_dir()) {
                world::remove(&place);
            }
            world::directory(&place);
            world::remove(&place.join("vol_data.json"));
            fs::write(place.join("vol_data.json"), vol_data(DRIVER, &format!("csi-{name}"))).unwrap();
            let volume = Volume {
                driver: DRIVER.parse().unwrap(),
                pod: pod.parse().unwrap(),
                name: name.parse().unwrap(),
                id: format!("csi-{name}").parse().unwrap(),
            };
            let mut reply = self.unpublish(&volume);
            if reply.fault == Some(Fault::System) && has_directories(&place.join("mount")) {
                // Never removed by the mounter, and named in its message.
                assert!(reply.text.contains("in it:"), "{}", reply.text);
                world::remove(&place.join("mount"));
                reply = self.unpublish(&volume);
            }
            assert_eq!(reply.fault, None, "{}", reply.text);
            assert!(fs::symlink_metadata(place.join("mount")).is_err());
            clear(&place);
        }
        // Nothing of the volumes is kept (only their slots have a slash in the name), and nothing is listed.
        self.next += 1;
        let (reply, _) = self.exchange(&Request::List { cursor: 0 }.encode(self.next), &[]);
        assert_eq!(reply.fault, Some(Fault::NotFound), "{:?}", reply.subject);
        let node = self.node.take().unwrap();
        assert!(!node.lock.kept.keys().any(|slot| slot.contains('/')), "{:?}", node.lock.kept.keys());
        drop(node);
        let own = own(self.host);
        world::unmount_all(&own.join("state"));
        world::remove(&own);
        world::remove(&self.host.base.join("kubelet/plugins").join(DRIVER));
        world::remove(&self.host.base.join("kubelet/plugins_registry").join(format!("{DRIVER}-reg.sock")));
        world::remove(&self.host.base.join("host/source"));
    }
}

/// What a good reply brings.
fn answered(request: &Request, reply: &Reply, fd: Option<&OwnedFd>) {
    if reply.fault.is_some() {
        return;
    }
    let is_directory =
        |fd: &OwnedFd| fs::metadata(format!("/proc/self/fd/{}", fd.as_raw_fd())).unwrap().is_dir();
    match (request, fd) {
        // Each that comes here is of the fuzzer's own making.
        (Request::StoreListener { .. }, _) => panic!("a listener was taken that no mounter made"),
        (Request::PublishTmpfs { .. } | Request::State, Some(fd)) => assert!(is_directory(fd)),
        (Request::PublishTmpfs { .. } | Request::State, None) => panic!("no directory"),
        (Request::PublishIdentity(_), None) => assert!(reply.flags & flag::FOREIGN != 0),
        (Request::CsiListener(_) | Request::RegistrationListener(_), None) => panic!("no listener"),
        (_, Some(fd)) => {
            assert_eq!(sockopt::socket_acceptconn(fd), Ok(true));
            assert_eq!(socket_cookie(fd), Ok(reply.cookie));
        }
        (_, None) => assert_eq!(reply.cookie, 0),
    }
}

/// One message.
fn send(socket: &OwnedFd, bytes: &[u8], fds: &[OwnedFd]) {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(4))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let borrowed: Vec<_> = fds.iter().map(|fd| fd.as_fd()).collect();
    assert!(fds.is_empty() || control.push(SendAncillaryMessage::ScmRights(&borrowed)));
    sendmsg(socket, &[IoSlice::new(bytes)], &mut control, SendFlags::NOSIGNAL).unwrap();
}

/// The next message that is there.
fn receive(socket: &OwnedFd) -> (Vec<u8>, Vec<OwnedFd>) {
    let mut frame = [0; FRAME + 1];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(4))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let into = &mut [IoSliceMut::new(&mut frame)];
    let received =
        recvmsg(socket, into, &mut control, RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT).unwrap();
    let mut fds = Vec::new();
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = message {
            fds.extend(rights);
        }
    }
    (frame[..received.bytes].to_vec(), fds)
}

fn descriptor(u: &mut Unstructured<'_>) -> Result<OwnedFd> {
    static NUMBER: std::sync::atomic::AtomicU64 = std::sync::atomic::AtomicU64::new(0);
    Ok(match u.int_in_range(0..=9u8)? {
        0 => UnixDatagram::unbound().unwrap().into(),
        1 => fs::File::open("/dev/null").unwrap().into(),
        2 => {
            let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
            rustix::fs::open("/run", flags, Mode::empty()).unwrap()
        }
        3 => socketpair(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None).unwrap().0,
        _ => {
            use std::os::linux::net::SocketAddrExt as _;
            let number = NUMBER.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            let name = format!("seamount-fuzz-{}-{number}", std::process::id());
            UnixListener::bind_addr(&SocketAddr::from_abstract_name(name).unwrap()).unwrap().into()
        }
    })
}

fn fifo(path: &Path) {
    mknodat(rustix::fs::CWD, path, FileType::Fifo, 0o644.into(), 0).unwrap();
}

fn has_directories(path: &Path) -> bool {
    fs::read_dir(path).is_ok_and(|mut all| all.any(|e| e.unwrap().file_type().unwrap().is_dir()))
}

/// Whether both are the same directory, through mounts.
fn is_at(one: &Path, other: &Path) -> bool {
    let id = |path: &Path| fs::metadata(path).map(|m| (m.dev(), m.ino())).ok();
    id(one).is_some() && id(one) == id(other)
}

/// As the kubelet removes a volume's directory, whatever is in it.
fn clear(place: &Path) {
    world::unmount_all(place);
    if fs::symlink_metadata(place).is_ok_and(|found| found.is_dir()) {
        world::unmount_all(&place.join("mount"));
    }
    world::remove(place);
}
