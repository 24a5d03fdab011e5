//! What the mounter holds on a node, and what every kind of volume asks of it.

use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::time::Instant;

use rustix::fs::{self, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;
use rustix::net::sockopt;
use seamount_mounter_protocol::names::Volume;
use seamount_mounter_protocol::{Fault, Reply, flag};

use crate::closer::{Closer, Foreign};
use crate::config::Config;
use crate::error::{Context, Result, bail};
use crate::handover::MounterLock;
use crate::log::{done, warn};
use crate::path::{self, DIRECTORY, Place};
use crate::socket;
use crate::wire::Attached;

/// Descriptors that are never given to listeners: the mounter's own and those of one request.
pub const RESERVED: u64 = 64;
/// Where the kubelet looks for registration sockets.
pub const REGISTRY: &str = "plugins_registry";

/// Directory and name of a socket.
pub type At<'a> = (&'a OwnedFd, &'a str);
/// How it is bound.
pub type Make<'a> = &'a dyn Fn(&Node) -> Result<OwnedFd>;

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
    /// The limit of open files.
    pub descriptors: u64,
    /// How many listeners are kept at most.
    pub limit: u64,
    /// The scan that `List` pages through: a reply's part for each volume.
    pub listed: Vec<Reply>,
    pub root: OwnedFd,
    pub pods: OwnedFd,
    /// Parent and name of the `directory` source: the directory itself may be recreated at any time.
    pub source: Option<(OwnedFd, String)>,
    pub lock: MounterLock,
    pub closer: Closer,
    pub started: Instant,
}

impl Node {
    /// Opens the kubelet's directories and takes the place of the node's mounter.
    pub fn open(
        config: Config,
        swap: Option<OwnedFd>,
        noswap: bool,
        descriptors: u64,
        closer: Closer,
    ) -> Result<Self> {
        let root = config.kubelet_root.display();
        let flags = DIRECTORY | OFlags::CLOEXEC;
        let at = fs::openat(fs::CWD, &config.kubelet_root, flags, Mode::empty());
        let at = at.context(format_args!("open {root}, the kubelet's --root-dir"))?;
        let pods = open_pods(&at);
        let pods = pods.context(format_args!("open pods in {root}: is it the kubelet's --root-dir?"))?;
        path::make_directory(&at, REGISTRY, 0o750)?;
        let source = config.source_directory.as_deref().map(path::open_parent).transpose()?;
        let lock = MounterLock::take(&at, &config)?;
        let mut node = Self {
            root: at,
            pods,
            listed: Vec::new(),
            started: Instant::now(),
            lock,
            config,
            swap,
            noswap,
            limit: descriptors.saturating_sub(RESERVED + closer.room()),
            descriptors,
            closer,
            source,
        };
        // What comes from the one before may come from its agent.
        let mut kept = std::mem::take(&mut node.lock.kept);
        kept.retain(|slot, fd| node.is_of(slot, fd));
        node.lock.kept = kept;
        Ok(node)
    }

    /// Puts back what was removed by hand. Fails where another mounter was let in by that; the rest is told.
    pub fn tend(&mut self) -> Result<()> {
        // Its descriptor would go on to hold a directory that was removed.
        if let Ok(pods) = open_pods(&self.root) {
            self.pods = pods;
        }
        match self.lock.tend(&self.root, &self.config) {
            Err(e) if e.fault != Fault::Busy => {
                warn("cannot put back what was removed", &e.text);
                Ok(())
            }
            tended => tended,
        }
    }

    /// Refuses a driver that the mounter was not told of.
    pub fn check_driver(&self, driver: &str) -> Result<()> {
        if self.config.drivers.iter().any(|ours| ours.as_str() == driver) {
            return Ok(());
        }
        bail!(Unsupported, "the mounter was started without --driver {driver}")
    }

    /// The volume's directory; `None` where the kubelet has none.
    pub fn place(&self, volume: &Volume) -> Result<Option<Place>> {
        self.check_driver(volume.driver.as_str())?;
        Place::open(&self.pods, &volume.pod, &volume.name)
    }

    /// The same, if the volume is ours.
    pub fn ours(&self, volume: &Volume) -> Result<Place> {
        match self.place(volume)? {
            Some(place) if place.is(volume)? => Ok(place),
            Some(_) => bail!(NotOurs, "vol_data.json is missing: the kubelet writes it first"),
            None => bail!(NotFound, "the kubelet has made no directory for it"),
        }
    }

    /// Refuses, before anything is done, if there is no room for one more listener.
    pub fn room(&self, slot: &str) -> Result<()> {
        if self.lock.kept.contains_key(slot) || (self.lock.kept.len() as u64) < self.limit {
            return Ok(());
        }
        bail!(Exhausted, "{} listeners are kept: raise the limit of open files", self.limit)
    }

    /// The kept listener, if it has that name still; else a new one, which is then kept.
    pub fn listener(&mut self, slot: String, at: At, reply: &mut Reply, make: Make) -> Result<Attached> {
        if let Some(kept) = self.lock.kept.get(&slot).filter(|fd| socket::leads_to(at.0, at.1, fd)) {
            reply.flags |= flag::EXISTING;
            return Ok(attach(kept, reply));
        }
        self.room(&slot)?;
        let fd = Rc::new(Foreign::from(make(self)?));
        done("listening", reply.subject.volume());
        let attached = attach(&fd, reply);
        self.lock.kept.insert(slot, fd);
        Ok(attached)
    }
}

/// The kubelet makes it before anything else.
fn open_pods(root: &OwnedFd) -> Result<OwnedFd, Errno> {
    path::open(root, "pods", DIRECTORY, ResolveFlags::empty())
}
