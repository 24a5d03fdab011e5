//! The kubelet's two listeners, and listeners that the agent brings back.

use std::os::fd::{AsFd, OwnedFd};
use std::rc::Rc;

use rustix::net::SocketType;
use seamount_mounter_protocol::names::Volume;
use seamount_mounter_protocol::{Reply, keep};

use crate::closer::Foreign;
use crate::error::{Result, bail};
use crate::node::{Node, REGISTRY};
use crate::path::{self, Place, Target};
use crate::socket;
use crate::wire::Attached;

impl Node {
    pub fn node_listener(&mut self, number: u32, reply: &mut Reply) -> Result<Attached> {
        let (dir, name) = self.node_socket(number)?;
        if number == keep::CSI {
            reply.numbers = self.state_id(&dir);
        }
        self.listener(number.to_string(), (&dir, &name), reply, &|node| {
            let ours = node.lock.kept.get(&number.to_string());
            if socket::is_alive(&dir, &name, ours.map(AsFd::as_fd))? {
                bail!(Busy, "another process serves {name}: use another --driver");
            }
            socket::bind(&dir, &name, SocketType::STREAM, 0o600)
        })
    }

    /// Directory and name of one of the node's two sockets.
    pub fn node_socket(&self, number: u32) -> Result<(OwnedFd, String)> {
        match number {
            keep::CSI => Ok((self.plugin()?, "csi.sock".to_owned())),
            _ => self.registration(),
        }
    }

    /// Directory and name of the registration socket.
    fn registration(&self) -> Result<(OwnedFd, String)> {
        let registry = path::make_directory(&self.root, REGISTRY, 0o750)?;
        Ok((registry, format!("{}-reg.sock", self.config.driver)))
    }

    pub fn offer(&self) -> Result<Attached> {
        let (dir, name) = self.registration()?;
        let kept = self.lock.kept.get(&keep::REGISTRATION.to_string());
        if !kept.is_some_and(|kept| socket::leads_to(&dir, &name, kept)) {
            bail!(NotFound, "{name} does not lead to the listener that is kept");
        }
        socket::show_again(&dir, &name)?;
        Ok(None)
    }

    pub fn keep(
        &mut self,
        v: &Option<Volume>,
        slot: u32,
        cookie: u64,
        fd: Option<Foreign>,
    ) -> Result<Attached> {
        let Some(fd) = fd else { return Ok(None) };
        if let Some(volume) = v {
            self.ours(volume)?;
        }
        let slot = v.as_ref().map_or(slot.to_string(), Volume::to_string);
        socket::check(&fd, cookie)?;
        if !self.is_of(&slot, &fd) {
            bail!(NotOurs, "the listener is not the one that has the socket's name");
        }
        if self.lock.kept.contains_key(&slot) {
            bail!(Busy, "a listener is kept already");
        }
        self.room(&slot)?;
        self.lock.kept.insert(slot, Rc::new(fd));
        Ok(None)
    }

    /// Whether the listener is the one whose socket is where this slot's has to be. An agent that was stolen
    /// may have given us one that a pod listens on as well.
    pub fn is_of(&self, slot: &str, fd: &Foreign) -> bool {
        let Some(place) = Place::of_slot(&self.pods, slot) else {
            let at = self.node_socket(slot.parse().unwrap_or_default());
            return at.is_ok_and(|(dir, name)| socket::leads_to(&dir, &name, fd));
        };
        let target = place.ok().flatten().and_then(|place| place.target().ok().flatten());
        let directory = target.filter(Target::is_directory);
        directory.is_some_and(|at| socket::leads_to(&at.fd, self.config.socket_name(), fd))
    }
}
