//! What the mounter holds on a node, and how it carries out a request. No sockets of the protocol here.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::time::{Duration, Instant};

use rustix::fs::{self, FlockOperation, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;
use rustix::net::SocketType;
use seamount_mounter::names::{PodUid, Volume, VolumeName};
use seamount_mounter::protocol::{Fault, FrameError, Reply, Request, flag, keep};

use crate::config::Config;
use crate::failure::{Doing, Failure, Outcome, fail};
use crate::log::event;
use crate::path::{self, Place};
use crate::socket;
use crate::volume::scan::Found;
use crate::volume::tmpfs::Tmpfs;

/// Descriptors that are never given to listeners: the mounter's own and those of one request.
pub const RESERVED: u64 = 64;
const DIRECTORY: OFlags = OFlags::PATH.union(OFlags::DIRECTORY);
const STATE: Tmpfs = Tmpfs { uid: 0, gid: 0, mode: "0700", size: 64 << 20, inodes: 65_536 };

/// The descriptor that goes along with a reply.
pub type Attached = Option<Rc<OwnedFd>>;

/// Which kept listener.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Slot {
    Csi,
    Registration,
    Volume(PodUid, VolumeName),
}

impl Slot {
    pub fn of(volume: &Volume) -> Self {
        Self::Volume(volume.pod.clone(), volume.name.clone())
    }
}

/// A listener that outlives the agent.
pub struct Kept {
    pub fd: Rc<OwnedFd>,
    pub cookie: u64,
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
    pub kept: BTreeMap<Slot, Kept>,
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
        let no_kubelet = |why: &str| Failure {
            fault: Fault::NotFound,
            text: format!("{root} is no kubelet's directory ({why}): give its --root-dir as --kubelet-root"),
        };
        let flags = DIRECTORY | OFlags::CLOEXEC;
        let at =
            fs::openat(fs::CWD, &config.kubelet_root, flags, Mode::empty()).map_err(|e| no_kubelet(&e.to_string()))?;
        let parts = ["pods", "plugins", "plugins_registry"];
        if !parts
            .iter()
            .any(|part| fs::accessat(&at, *part, fs::Access::EXISTS, fs::AtFlags::empty()).is_ok())
        {
            return Err(no_kubelet("it has neither pods nor plugins nor plugins_registry"));
        }
        let [pods, plugins, registry] = parts.map(|part| make_directory(&at, part, 0o750));
        let plugin = make_directory(&plugins?, &config.driver, 0o750)?;
        let source = config.source_directory.as_deref().map(open_source).transpose()?;
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
            Err((id, e)) => {
                let fault =
                    if matches!(e, FrameError::Version(_)) { Fault::Version } else { Fault::Malformed };
                return (Reply::refusal(id, fault, e.to_string()), None);
            }
        };
        let mut reply = Reply::to(id, &request);
        match self.carry_out(&request, fd, &mut reply) {
            Ok(attached) => (reply, attached),
            Err(Failure { fault, text }) => {
                let text = request.volume().map_or(text.clone(), |v| format!("volume {v}: {text}"));
                if fault != Fault::NotFound {
                    event("warn", "refused", &[("op", &request.op()), ("reason", &text)]);
                }
                (Reply { fault: Some(fault), text, ..Reply::to(id, &request) }, None)
            }
        }
    }

    fn carry_out(&mut self, request: &Request, fd: Option<OwnedFd>, reply: &mut Reply) -> Outcome<Attached> {
        if fd.is_some() != matches!(request, Request::Store { .. }) {
            return fail(Fault::Malformed, "a descriptor comes with Store, and only there");
        }
        match request {
            Request::Hello => {
                reply.flags |= if self.idmaps() { flag::IDMAP } else { 0 };
                reply.flags |= if self.abilities.noswap { flag::NOSWAP } else { 0 };
                let age = self.started.elapsed().as_micros() as u64;
                reply.numbers = [self.abilities.descriptors, age, 0];
                reply.text = concat!("seamount-mounter ", env!("CARGO_PKG_VERSION")).into();
                Ok(None)
            }
            Request::CsiListener => self.node_listener(Slot::Csi, reply),
            Request::RegistrationListener => self.node_listener(Slot::Registration, reply),
            Request::State => self.state(),
            Request::PublishIdentity(volume) => self.publish_identity(volume, reply),
            Request::PublishTmpfs { volume, gid, size } => self.publish_tmpfs(volume, *gid, *size, reply),
            Request::Settle { volume, version } => self.settle(volume, version),
            Request::PublishDirectory(volume) => self.publish_directory(volume, reply),
            Request::Unpublish(volume) => self.unpublish(volume),
            Request::Inspect(volume) => self.inspect(volume, reply),
            Request::List { cursor } => self.list(*cursor, reply),
            Request::Store { volume, slot, cookie } => self.store(volume.as_ref(), *slot, *cookie, fd),
            Request::Fetch(volume) => match self.kept.get(&Slot::of(volume)) {
                Some(kept) => Ok(kept.attach(reply)),
                None => fail(Fault::NotFound, "no listener is kept"),
            },
        }
    }

    /// The volume's directory, if the volume is ours.
    pub fn ours(&self, volume: &Volume) -> Outcome<Place> {
        let Some(place) = Place::open(&self.pods, &volume.pod, &volume.name)? else {
            return fail(Fault::NotFound, "the kubelet has made no directory for it");
        };
        if place.is_ours(&self.config.driver, volume)? {
            return Ok(place);
        }
        fail(Fault::NotOurs, "vol_data.json is missing: the kubelet writes it before it publishes")
    }

    /// Keeps a listener and attaches it to the reply.
    pub fn keep(&mut self, slot: Slot, fd: OwnedFd, reply: &mut Reply) -> Outcome<Attached> {
        let kept = Kept { cookie: socket::cookie(&fd)?, fd: Rc::new(fd) };
        let attached = kept.attach(reply);
        self.kept.insert(slot, kept);
        Ok(attached)
    }

    /// Refuses before anything is done if there is no room for one more listener.
    pub fn room(&self, slot: &Slot) -> Outcome<()> {
        let limit = self.abilities.descriptors.saturating_sub(RESERVED);
        if self.kept.contains_key(slot) || (self.kept.len() as u64) < limit {
            return Ok(());
        }
        let text =
            format!("{limit} listeners are kept: raise the mounter's limit of open files (RLIMIT_NOFILE)");
        fail(Fault::Exhausted, text)
    }

    fn node_listener(&mut self, slot: Slot, reply: &mut Reply) -> Outcome<Attached> {
        let driver = &self.config.driver;
        let (dir, name) = match slot {
            Slot::Csi => (&self.plugin, "csi.sock".to_owned()),
            _ => (&self.registry, format!("{driver}-reg.sock")),
        };
        match self.kept.get(&slot) {
            Some(kept) if socket::leads_to(dir, &name, &kept.fd) => {
                reply.flags |= flag::EXISTING;
                return Ok(kept.attach(reply));
            }
            Some(_) => {}
            None if socket::is_alive(dir, &name)? => {
                return fail(
                    Fault::Busy,
                    format!(
                        "another process serves {name}: the driver name {driver} is taken; remove that driver or use another --driver"
                    ),
                );
            }
            None => {}
        }
        self.room(&slot)?;
        let fd = socket::bind(dir, &name, SocketType::STREAM, 0o600)?;
        event("info", "listening", &[("socket", &name)]);
        self.keep(slot, fd, reply)
    }

    /// The state tmpfs, mounted once per node; it outlives this process.
    fn state(&self) -> Outcome<Attached> {
        let at = make_directory(&self.plugin, "state", 0o700)?;
        let mut held = path::Target::of(at)?;
        if !held.is_mount() {
            let uid = if self.idmaps() { 0 } else { self.config.agent_uid };
            Tmpfs { uid, ..STATE }.mount(&held.fd, self.abilities.noswap)?;
            event("info", "state mounted", &[]);
            held = path::Target::of(make_directory(&self.plugin, "state", 0o700)?)?;
        }
        let owned = held.stat.stx_uid == 0 || held.stat.stx_uid == self.config.agent_uid;
        if !Tmpfs::is_one(&held.fd) || !owned {
            return fail(
                Fault::NotOurs,
                "plugins/<driver>/state carries a mount that is not our tmpfs: unmount it",
            );
        }
        Ok(Some(Rc::new(self.hand_out(&held)?)))
    }

    fn store(
        &mut self,
        volume: Option<&Volume>,
        slot: u32,
        cookie: u64,
        fd: Option<OwnedFd>,
    ) -> Outcome<Attached> {
        let Some(fd) = fd else { return fail(Fault::Malformed, "no descriptor came along") };
        if socket::cookie(&fd)? != cookie {
            return fail(Fault::Malformed, "the descriptor is not the socket with that cookie");
        }
        let slot = match volume {
            Some(volume) => self.ours(volume).map(|_| Slot::of(volume))?,
            None if slot == keep::CSI => Slot::Csi,
            None => Slot::Registration,
        };
        if self.kept.contains_key(&slot) {
            return fail(Fault::Busy, "a listener is kept already");
        }
        self.room(&slot)?;
        self.kept.insert(slot, Kept { fd: Rc::new(fd), cookie });
        Ok(None)
    }
}

impl Kept {
    pub fn attach(&self, reply: &mut Reply) -> Attached {
        reply.cookie = self.cookie;
        Some(Rc::clone(&self.fd))
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

fn open_source(source: &std::path::Path) -> Outcome<(OwnedFd, String)> {
    let (Some(parent), Some(name)) = (source.parent(), source.file_name().and_then(|n| n.to_str())) else {
        return fail(Fault::Malformed, "--source-directory needs a parent directory and a name");
    };
    let what = format!("open {}, the parent of --source-directory", parent.display());
    let parent = fs::openat(fs::CWD, parent, DIRECTORY | OFlags::CLOEXEC, Mode::empty()).doing(what)?;
    Ok((parent, name.to_owned()))
}

/// One mounter per node and driver. The lock belongs to the open file (flock(2)), so it ends with the process. Of two
/// DaemonSet pods the newcomer waits here until the old one is gone.
fn lock(plugin: &OwnedFd, config: &Config) -> Outcome<OwnedFd> {
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let file = fs::openat(plugin, "lock", flags, Mode::from_raw_mode(0o600)).doing("open the lock")?;
    let started = Instant::now();
    let mut told = false;
    loop {
        match fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Ok(file),
            Err(Errno::AGAIN | Errno::INTR) => {}
            Err(e) => return Err(e).doing("take the lock"),
        }
        if config.lock_timeout.is_some_and(|s| started.elapsed() >= Duration::from_secs(s)) {
            let text = format!("another mounter serves {} on this node: stop it first", config.driver);
            return fail(Fault::Busy, text);
        }
        if !told {
            event(
                "info",
                "another mounter holds the lock; waiting for it to end",
                &[("driver", &config.driver)],
            );
            told = true;
        }
        std::thread::sleep(Duration::from_millis(100));
    }
}
