//! What the mounter holds on a node, and how it carries out a request. No sockets of the protocol here.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::rc::Rc;
use std::time::{Duration, Instant};

use rustix::fs::{self, AtFlags, FlockOperation, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;
use rustix::net::{SocketType, sockopt};
use seamount_mounter::names::{PodUid, Volume, VolumeName};
use seamount_mounter::protocol::{Fault, FrameError, Reply, Request, flag, keep};

use crate::config::Config;
use crate::failure::{Doing, Failure, Outcome, fail};
use crate::log::event;
use crate::path::{self, Place, Target};
use crate::socket;
use crate::volume::scan::Found;
use crate::volume::tmpfs;

/// Descriptors that are never given to listeners: the mounter's own and those of one request.
pub const RESERVED: u64 = 64;
const DIRECTORY: OFlags = OFlags::PATH.union(OFlags::DIRECTORY);
const STATE: &str = "mode=0700,size=64m";
const STATE_INODES: u64 = 65_536;

/// The descriptor that goes along with a reply.
pub type Attached = Option<Rc<OwnedFd>>;

/// Which kept listener: [`keep`], and the volume where it is one's.
pub type Slot = (u32, Option<(PodUid, VolumeName)>);

pub fn slot(volume: &Volume) -> Slot {
    (keep::VOLUME, Some((volume.pod.clone(), volume.name.clone())))
}

/// Sends a kept listener along.
pub fn attach(fd: &Rc<OwnedFd>, reply: &mut Reply) -> Attached {
    reply.cookie = sockopt::socket_cookie(fd).unwrap_or_default();
    Some(Rc::clone(fd))
}

/// What works here, found out at start.
pub struct Abilities {
    /// For idmapped mounts; none where the kernel, the caller or a one-id namespace rules them out.
    pub swap: Option<OwnedFd>,
    pub noswap: bool,
    /// Limit of open files.
    pub descriptors: u64,
}

/// The node.
pub struct Node {
    pub config: Config,
    pub abilities: Abilities,
    pub kept: BTreeMap<Slot, Rc<OwnedFd>>,
    /// The scan that `List` pages through.
    pub listed: Vec<Found>,
    pub pods: OwnedFd,
    /// Parent and name of the `directory` source: the directory itself may be recreated at any time.
    pub source: Option<(OwnedFd, String)>,
    plugin: OwnedFd,
    registry: OwnedFd,
    /// Held for as long as this process lives.
    _lock: OwnedFd,
    started: Instant,
}

impl Node {
    /// Opens the kubelet's directories and waits for the node's lock.
    pub fn open(config: Config, abilities: Abilities) -> Outcome<Self> {
        let root = config.kubelet_root.display();
        let parts = ["pods", "plugins", "plugins_registry"];
        let at = fs::openat(fs::CWD, &config.kubelet_root, DIRECTORY | OFlags::CLOEXEC, Mode::empty());
        let at =
            at.doing(format_args!("open {root}, which should be the kubelet's --root-dir (--kubelet-root)"))?;
        if parts.iter().all(|p| fs::statat(&at, *p, AtFlags::empty()).is_err()) {
            return fail!(
                NotFound,
                "no {parts:?} in {root}: give the kubelet's --root-dir as --kubelet-root"
            );
        }
        let [pods, plugins, registry] = parts.map(|part| make_directory(&at, part, 0o750));
        let plugin = make_directory(&plugins?, &config.driver, 0o750)?;
        let source = config.source_directory.as_deref().map(open_parent).transpose()?;
        let lock = lock(&plugin, &config)?;
        Ok(Self {
            pods: pods?,
            registry: registry?,
            kept: BTreeMap::new(),
            listed: Vec::new(),
            started: Instant::now(),
            _lock: lock,
            config,
            abilities,
            source,
            plugin,
        })
    }

    /// The answer to one frame. Total: whatever comes in, one reply goes out, and a failure changes nothing.
    pub fn handle(&mut self, frame: &[u8], fd: Option<OwnedFd>) -> (Reply, Attached) {
        let (id, request) = match Request::decode(frame) {
            Ok(decoded) => decoded,
            Err((id, e @ FrameError::Version(_))) => {
                return (Reply::refusal(id, Fault::Version, e.to_string()), None);
            }
            Err((id, e)) => return (Reply::refusal(id, Fault::Malformed, e.to_string()), None),
        };
        let mut reply = Reply::to(id, &request);
        let Failure { fault, text } = match self.carry_out(&request, fd, &mut reply) {
            Ok(attached) => return (reply, attached),
            Err(failure) => failure,
        };
        let text = request.volume().map_or(String::new(), |v| format!("volume {v}: ")) + &text;
        if fault != Fault::NotFound {
            event("warn", "refused", &[("op", &request.op()), ("reason", &text)]);
        }
        (Reply { fault: Some(fault), text, ..Reply::to(id, &request) }, None)
    }

    fn carry_out(&mut self, request: &Request, fd: Option<OwnedFd>, reply: &mut Reply) -> Outcome<Attached> {
        if fd.is_some() != matches!(request, Request::Store { .. }) {
            return fail!(Malformed, "a descriptor comes with Store, and only there");
        }
        match request {
            Request::Hello => {
                reply.flags |= if self.owner() == 0 { flag::IDMAP } else { 0 };
                reply.flags |= if self.abilities.noswap { flag::NOSWAP } else { 0 };
                let age = self.started.elapsed().as_micros() as u64;
                reply.numbers = [self.abilities.descriptors, age, 0];
                reply.text = concat!("seamount-mounter ", env!("CARGO_PKG_VERSION")).into();
                Ok(None)
            }
            Request::CsiListener => self.node_listener(keep::CSI, reply),
            Request::RegistrationListener => self.node_listener(keep::REGISTRATION, reply),
            Request::State => self.state(),
            Request::PublishIdentity(volume) => self.publish_identity(volume, reply),
            Request::PublishTmpfs { volume, gid, size } => self.publish_tmpfs(volume, *gid, *size, reply),
            Request::Settle { volume, version } => self.settle(volume, version),
            Request::PublishDirectory(volume) => self.publish_directory(volume, reply),
            Request::Unpublish(volume) => self.unpublish(volume),
            Request::Inspect(volume) => self.inspect(volume, reply),
            Request::List { cursor } => self.list(*cursor, reply),
            Request::Store { volume, slot: number, cookie } => {
                volume.as_ref().map_or(Ok(()), |v| self.ours(v).map(drop))?;
                self.store(volume.as_ref().map_or((*number, None), slot), *cookie, fd)
            }
            Request::Fetch(volume) => match self.kept.get(&slot(volume)) {
                Some(kept) => Ok(attach(kept, reply)),
                None => fail!(NotFound, "no listener is kept"),
            },
        }
    }

    /// The volume's directory, if the volume is ours.
    pub fn ours(&self, volume: &Volume) -> Outcome<Place> {
        match Place::open(&self.pods, &volume.pod, &volume.name)? {
            Some(place) if place.is_ours(&self.config.driver, volume)? => Ok(place),
            Some(_) => fail!(NotOurs, "vol_data.json is missing: the kubelet writes it before it publishes"),
            None => fail!(NotFound, "the kubelet has made no directory for it"),
        }
    }

    /// Keeps a listener and attaches it to the reply.
    pub fn keep(&mut self, slot: Slot, fd: OwnedFd, reply: &mut Reply) -> Attached {
        let fd = Rc::new(fd);
        let attached = attach(&fd, reply);
        self.kept.insert(slot, fd);
        attached
    }

    /// Refuses, before anything is done, if there is no room for one more listener.
    pub fn room(&self, slot: &Slot) -> Outcome<()> {
        let limit = self.abilities.descriptors.saturating_sub(RESERVED);
        if self.kept.contains_key(slot) || (self.kept.len() as u64) < limit {
            return Ok(());
        }
        fail!(Exhausted, "{limit} listeners are kept: raise the mounter's limit of open files")
    }

    fn node_listener(&mut self, number: u32, reply: &mut Reply) -> Outcome<Attached> {
        let (driver, slot) = (&self.config.driver, (number, None));
        let (dir, name) = match number {
            keep::CSI => (&self.plugin, "csi.sock".to_owned()),
            _ => (&self.registry, format!("{driver}-reg.sock")),
        };
        if let Some(kept) = self.kept.get(&slot) {
            if socket::leads_to(dir, &name, kept) {
                reply.flags |= flag::EXISTING;
                return Ok(attach(kept, reply));
            }
        } else if socket::is_alive(dir, &name)? {
            return fail!(
                Busy,
                "another process serves {name}: remove that {driver}, or use another --driver"
            );
        }
        self.room(&slot)?;
        let fd = socket::bind(dir, &name, SocketType::STREAM, 0o600)?;
        event("info", "listening", &[("socket", &name)]);
        Ok(self.keep(slot, fd, reply))
    }

    /// The state tmpfs, mounted once per node; it outlives this process.
    fn state(&self) -> Outcome<Attached> {
        let open = || Target::of(make_directory(&self.plugin, "state", 0o700)?);
        let mut held = open()?;
        if !held.is_mount() {
            let state = tmpfs::make(self.owner(), 0, STATE, STATE_INODES, self.abilities.noswap)?;
            path::attach(&state, &held.fd)?;
            event("info", "state mounted", &[]);
            held = open()?;
        }
        let owned = [0, self.config.agent_uid].contains(&held.stat.stx_uid);
        if !owned || !tmpfs::is_tmpfs(&held.fd, STATE_INODES) {
            return fail!(NotOurs, "a mount that is not ours is on the state directory: unmount it");
        }
        Ok(Some(Rc::new(self.hand_out(&held)?)))
    }

    fn store(&mut self, slot: Slot, cookie: u64, fd: Option<OwnedFd>) -> Outcome<Attached> {
        let Some(fd) = fd else { return Ok(None) };
        socket::check(&fd, cookie)?;
        if self.kept.contains_key(&slot) {
            return fail!(Busy, "a listener is kept already");
        }
        self.room(&slot)?;
        self.kept.insert(slot, Rc::new(fd));
        Ok(None)
    }
}

/// Makes a directory if it is missing, and opens it.
fn make_directory(at: &OwnedFd, name: &str, mode: u32) -> Outcome<OwnedFd> {
    match fs::mkdirat(at, name, Mode::from_raw_mode(mode)) {
        Ok(()) | Err(Errno::EXIST) => {}
        Err(e) => return Err(e).doing(format_args!("make the kubelet's directory {name}")),
    }
    path::open(at, name, DIRECTORY, ResolveFlags::empty()).doing(format_args!("open the kubelet's {name}"))
}

/// The directory that something is in, held, and its name there.
pub fn open_parent(path: &Path) -> Outcome<(OwnedFd, String)> {
    let (Some(parent), Some(name)) = (path.parent(), path.file_name().and_then(|n| n.to_str())) else {
        return fail!(Malformed, "{} has no directory or no name", path.display());
    };
    let held = fs::openat(fs::CWD, parent, DIRECTORY | OFlags::CLOEXEC, Mode::empty());
    Ok((held.doing(format_args!("open {} for {name}", parent.display()))?, name.to_owned()))
}

/// One mounter per node and driver. The lock belongs to the open file (flock(2)), so it ends with the process. Of two
/// DaemonSet pods the newcomer waits here until the old one is gone.
fn lock(plugin: &OwnedFd, config: &Config) -> Outcome<OwnedFd> {
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let file = fs::openat(plugin, "lock", flags, Mode::from_raw_mode(0o600)).doing("open the lock")?;
    for tenths in 0.. {
        match fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Err(Errno::AGAIN | Errno::INTR) => {}
            taken => return taken.doing("take the lock").map(|()| file),
        }
        if config.lock_timeout.is_some_and(|s| tenths >= s.saturating_mul(10)) {
            break;
        }
        if tenths == 0 {
            event("info", "another mounter holds the lock; waiting for its end", &[]);
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    fail!(Busy, "another mounter serves {} on this node: stop it first", config.driver)
}
