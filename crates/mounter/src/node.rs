//! What the mounter holds on a node, and how it carries out a request. No sockets of the protocol here.

use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::time::Instant;

use rustix::fs::{self, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;
use rustix::net::{SocketType, sockopt};
use seamount_mounter::names::Volume;
use seamount_mounter::protocol::{Fault, FrameError, Reply, Request, flag, keep};

use crate::config::Config;
use crate::failure::{Doing, Failure, Outcome, fail};
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

/// Where the kubelet looks for registration sockets.
const REGISTRY: &str = "plugins_registry";

/// The descriptor that goes along with a reply.
pub type Attached = Option<Rc<OwnedFd>>;

/// Directory and name of a socket.
pub type At<'a> = (&'a OwnedFd, &'a str);
/// How it is bound.
pub type Make<'a> = &'a dyn Fn(&Node) -> Outcome<OwnedFd>;

/// Sends a kept listener along.
pub fn attach(fd: &Rc<OwnedFd>, reply: &mut Reply) -> Attached {
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
    root: OwnedFd,
    pub pods: OwnedFd,
    /// Parent and name of the `directory` source: the directory itself may be recreated at any time.
    pub source: Option<(OwnedFd, String)>,
    pub seat: Seat,
    started: Instant,
}

impl Node {
    /// Opens the kubelet's directories and takes the place of the node's mounter.
    pub fn open(config: Config, swap: Option<OwnedFd>, noswap: bool, descriptors: u64) -> Outcome<Self> {
        let root = config.kubelet_root.display();
        let at = fs::openat(fs::CWD, &config.kubelet_root, DIRECTORY | OFlags::CLOEXEC, Mode::empty());
        let at = at.doing(format_args!("open {root}, the kubelet's --root-dir"))?;
        let pods =
            open_pods(&at).doing(format_args!("open pods in {root}: is it the kubelet's --root-dir?"))?;
        path::make_directory(&at, REGISTRY, 0o750)?;
        let source = config.source_directory.as_deref().map(path::open_parent).transpose()?;
        let seat = Seat::take(&at, &config)?;
        Ok(Self {
            root: at,
            pods,
            listed: Vec::new(),
            started: Instant::now(),
            seat,
            config,
            swap,
            noswap,
            limit: descriptors.saturating_sub(RESERVED),
            source,
        })
    }

    /// Puts back what was removed by hand. Fails where another mounter was let in by that; the rest is told.
    pub fn tend(&mut self) -> Outcome<()> {
        // Its descriptor would go on to hold a directory that was removed.
        if let Ok(pods) = open_pods(&self.root) {
            self.pods = pods;
        }
        match self.seat.tend(&self.root, &self.config) {
            Err(e) if e.fault != Fault::Busy => {
                event("warn", "cannot put back what was removed", &[("reason", &e.text)]);
                Ok(())
            }
            tended => tended,
        }
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
            Request::Offer => self.offer(),
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
        let fd = Rc::new(make(self)?);
        done("listening", reply.volume.as_ref());
        let attached = attach(&fd, reply);
        self.seat.kept.insert(slot, fd);
        Ok(attached)
    }

    fn node_listener(&mut self, number: u32, reply: &mut Reply) -> Outcome<Attached> {
        let (dir, name) = match number {
            keep::CSI => (self.plugin()?, "csi.sock".to_owned()),
            _ => self.registration()?,
        };
        if number == keep::CSI {
            reply.numbers = self.state_id(&dir);
        }
        self.listener(number.to_string(), (&dir, &name), reply, &|_| {
            if socket::is_alive(&dir, &name)? {
                return fail!(Busy, "another process serves {name}: use another --driver");
            }
            socket::bind(&dir, &name, SocketType::STREAM, 0o600)
        })
    }

    fn plugin(&self) -> Outcome<OwnedFd> {
        path::plugin(&self.root, &self.config.driver)
    }

    /// Directory and name of the registration socket.
    fn registration(&self) -> Outcome<(OwnedFd, String)> {
        let registry = path::make_directory(&self.root, REGISTRY, 0o750)?;
        Ok((registry, format!("{}-reg.sock", self.config.driver)))
    }

    fn offer(&self) -> Outcome<Attached> {
        let (dir, name) = self.registration()?;
        let kept = self.seat.kept.get(&keep::REGISTRATION.to_string());
        if !kept.is_some_and(|kept| socket::leads_to(&dir, &name, kept)) {
            return fail!(NotFound, "{name} does not lead to the listener that is kept");
        }
        socket::show_again(&dir, &name)?;
        Ok(None)
    }

    /// Device and inode of the state tmpfs, so that the agent sees that it has another one; zeros where there is none.
    fn state_id(&self, plugin: &OwnedFd) -> [u64; 3] {
        let state = path::open(plugin, "state", DIRECTORY, ResolveFlags::empty()).ok();
        let state = state.filter(|fd| tmpfs::is_one(fd, STATE_INODES));
        let stat = state.and_then(|fd| fs::fstat(&fd).ok());
        stat.map_or([0; 3], |stat| [stat.st_dev, stat.st_ino, 0])
    }

    /// The state tmpfs, mounted once per node; it outlives this process.
    fn state(&self) -> Outcome<Attached> {
        let plugin = self.plugin()?;
        let open = || Target::of(path::make_directory(&plugin, "state", 0o700)?);
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
        Ok(Some(Rc::new(self.hand_out(&held)?)))
    }

    fn keep(&mut self, v: &Option<Volume>, slot: u32, cookie: u64, fd: Option<OwnedFd>) -> Outcome<Attached> {
        let Some(fd) = fd else { return Ok(None) };
        v.as_ref().map_or(Ok(()), |volume| self.ours(volume).map(drop))?;
        let slot = v.as_ref().map_or(slot.to_string(), Volume::to_string);
        socket::check(&fd, cookie)?;
        if self.seat.kept.contains_key(&slot) {
            return fail!(Busy, "a listener is kept already");
        }
        self.room(&slot)?;
        self.seat.kept.insert(slot, Rc::new(fd));
        Ok(None)
    }
}

/// The kubelet makes it before anything else.
fn open_pods(root: &OwnedFd) -> Result<OwnedFd, Errno> {
    path::open(root, "pods", DIRECTORY, ResolveFlags::empty())
}
