//! What the mounter holds on a node, and how it carries out a request. No sockets of the protocol here.

use std::os::fd::OwnedFd;
use std::path::Path;
use std::rc::Rc;
use std::time::Instant;

use rustix::fs::{self, Mode, OFlags, ResolveFlags};
use rustix::net::{SocketType, sockopt};
use seamount_mounter::names::Volume;
use seamount_mounter::protocol::{Fault, FrameError, Reply, Request, flag, keep};

use crate::config::Config;
use crate::failure::{Doing, Failure, Outcome, fail};
use crate::foreign::Foreign;
use crate::log::{done, event};
use crate::path::{self, DIRECTORY, Place, Target};
use crate::socket;
use crate::succession::Seat;
use crate::volume::scan::Found;
use crate::volume::tmpfs;

/// Descriptors that are never given to listeners: the mounter's own and those of one request.
pub const RESERVED: u64 = 64;
const STATE: &str = "mode=0700,size=64m";
const STATE_INODES: u64 = 65_536;

/// The descriptor that goes along with a reply.
pub type Attached = Option<Rc<Foreign>>;

/// Directory and name of a socket.
pub type At<'a> = (&'a OwnedFd, &'a str);
/// How it is bound.
pub type Make<'a> = &'a dyn Fn(&Node) -> Outcome<OwnedFd>;

/// Sends a kept listener along.
pub fn attach(fd: &Rc<Foreign>, reply: &mut Reply) -> Attached {
    reply.cookie = sockopt::socket_cookie(fd).unwrap_or_default();
    Some(Rc::clone(fd))
}

/// The node.
pub struct Node {
    pub config: Config,
    /// For idmapped mounts; none where the kernel, the caller or a one-id namespace rules them out.
    pub swap: Option<OwnedFd>,
    pub noswap: bool,
    /// How many listeners are kept at most.
    pub limit: u64,
    /// The scan that `List` pages through.
    pub listed: Vec<Found>,
    pub pods: OwnedFd,
    /// Parent and name of the `directory` source: the directory itself may be recreated at any time.
    pub source: Option<(OwnedFd, String)>,
    plugin: Rc<OwnedFd>,
    registry: Rc<OwnedFd>,
    pub seat: Seat,
    started: Instant,
}

impl Node {
    /// Opens the kubelet's directories and takes the place of the node's mounter.
    pub fn open(config: Config, swap: Option<OwnedFd>, noswap: bool, descriptors: u64) -> Outcome<Self> {
        let root = config.kubelet_root.display();
        let at = fs::openat(fs::CWD, &config.kubelet_root, DIRECTORY | OFlags::CLOEXEC, Mode::empty());
        let at = at.doing(format_args!("open {root}, the kubelet's --root-dir"))?;
        // The kubelet makes it before anything else.
        let pods = path::open(&at, "pods", DIRECTORY, ResolveFlags::empty());
        let pods = pods.doing(format_args!("open pods in {root}: is it the kubelet's --root-dir?"))?;
        let registry = make_directory(&at, "plugins_registry", 0o750)?;
        let plugin = make_directory(&make_directory(&at, "plugins", 0o750)?, &config.driver, 0o750)?;
        let source = config.source_directory.as_deref().map(open_parent).transpose()?;
        let seat = Seat::take(&plugin, &config)?;
        let mut node = Self {
            pods,
            registry: Rc::new(registry),
            listed: Vec::new(),
            started: Instant::now(),
            seat,
            config,
            swap,
            noswap,
            limit: descriptors.saturating_sub(RESERVED),
            source,
            plugin: Rc::new(plugin),
        };
        // What comes from the one before may come from its agent.
        let mut kept = std::mem::take(&mut node.seat.kept);
        kept.retain(|slot, fd| node.is_of(slot, fd));
        node.seat.kept = kept;
        Ok(node)
    }

    /// The answer to one frame. Total: whatever comes in, one reply goes out, and a failure changes nothing.
    pub fn handle(&mut self, frame: &[u8], fd: Option<Foreign>) -> (Reply, Attached) {
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

    fn carry_out(&mut self, request: &Request, fd: Option<Foreign>, reply: &mut Reply) -> Outcome<Attached> {
        if fd.is_some() != matches!(request, Request::Store { .. }) {
            return fail!(Malformed, "a descriptor comes with Store, and only there");
        }
        match request {
            Request::Hello => {
                reply.flags |= if self.owner() == 0 { flag::IDMAP } else { 0 };
                reply.flags |= if self.noswap { flag::NOSWAP } else { 0 };
                reply.numbers =
                    [self.limit.saturating_add(RESERVED), self.started.elapsed().as_micros() as u64, 0];
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
            Request::Store { volume, slot, cookie } => self.keep(volume, *slot, *cookie, fd),
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

    /// Refuses, before anything is done, if there is no room for one more listener.
    pub fn room(&self, slot: &str) -> Outcome<()> {
        if self.seat.kept.contains_key(slot) || (self.seat.kept.len() as u64) < self.limit {
            return Ok(());
        }
        fail!(Exhausted, "{} listeners are kept: raise the mounter's limit of open files", self.limit)
    }

    /// The kept listener, if it has that name still; else a new one, which is then kept.
    pub fn listener(&mut self, slot: String, at: At, reply: &mut Reply, make: Make) -> Outcome<Attached> {
        if let Some(kept) = self.seat.kept.get(&slot).filter(|fd| socket::leads_to(at.0, at.1, fd)) {
            reply.flags |= flag::EXISTING;
            return Ok(attach(kept, reply));
        }
        self.room(&slot)?;
        let fd = Rc::new(Foreign::from(make(self)?));
        done("listening", reply.volume.as_ref());
        let attached = attach(&fd, reply);
        self.seat.kept.insert(slot, fd);
        Ok(attached)
    }

    /// Directory and name of one of the node's two sockets.
    fn node_socket(&self, number: u32) -> (Rc<OwnedFd>, String) {
        match number {
            keep::CSI => (Rc::clone(&self.plugin), "csi.sock".to_owned()),
            _ => (Rc::clone(&self.registry), format!("{}-reg.sock", self.config.driver)),
        }
    }

    fn node_listener(&mut self, number: u32, reply: &mut Reply) -> Outcome<Attached> {
        let (dir, name) = self.node_socket(number);
        self.listener(number.to_string(), (&dir, &name), reply, &|node| {
            if !node.seat.kept.contains_key(&number.to_string()) && socket::is_alive(&dir, &name)? {
                return fail!(Busy, "another process serves {name}: use another --driver");
            }
            socket::bind(&dir, &name, SocketType::STREAM, 0o600)
        })
    }

    /// The state tmpfs, mounted once per node; it outlives this process.
    fn state(&self) -> Outcome<Attached> {
        let open = || Target::of(make_directory(&self.plugin, "state", 0o700)?);
        let mut held = open()?;
        if !held.is_mount() {
            let state = tmpfs::make(self.owner(), 0, STATE, STATE_INODES, self.noswap)?;
            path::attach(&state, &held.fd)?;
            done("state mounted", None);
            held = open()?;
        }
        let owned = [0, self.config.agent_uid].contains(&held.stat.stx_uid);
        if !owned || !tmpfs::is_one(&held.fd, STATE_INODES) {
            return fail!(NotOurs, "a mount that is not ours is on the state directory: unmount it");
        }
        Ok(Some(Rc::new(self.hand_out(&held)?.into())))
    }

    fn keep(&mut self, v: &Option<Volume>, slot: u32, cookie: u64, fd: Option<Foreign>) -> Outcome<Attached> {
        let Some(fd) = fd else { return Ok(None) };
        v.as_ref().map_or(Ok(()), |volume| self.ours(volume).map(drop))?;
        let slot = v.as_ref().map_or(slot.to_string(), Volume::to_string);
        socket::check(&fd, cookie)?;
        if !self.is_of(&slot, &fd) {
            return fail!(NotOurs, "the listener is not the one that has the socket's name");
        }
        if self.seat.kept.contains_key(&slot) {
            return fail!(Busy, "a listener is kept already");
        }
        self.room(&slot)?;
        self.seat.kept.insert(slot, Rc::new(fd));
        Ok(None)
    }

    /// Whether the listener is the one whose socket is where this slot's has to be. An agent that was stolen may have given us
    /// one that a pod listens on as well.
    fn is_of(&self, slot: &str, fd: &Foreign) -> bool {
        let Some((pod, name)) = slot.split_once('/') else {
            let (dir, name) = self.node_socket(slot.parse().unwrap_or_default());
            return socket::leads_to(&dir, &name, fd);
        };
        let (Ok(pod), Ok(name)) = (pod.parse(), name.parse()) else { return false };
        let target = Place::open(&self.pods, &pod, &name).ok().flatten().map(|place| place.target());
        let directory = target.and_then(|target| target.ok().flatten()).filter(Target::is_directory);
        directory.is_some_and(|at| socket::leads_to(&at.fd, self.config.socket_name(), fd))
    }
}

/// Makes a directory if it is missing, and opens it.
fn make_directory(at: &OwnedFd, name: &str, mode: u32) -> Outcome<OwnedFd> {
    path::make(at, name, mode)?;
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
