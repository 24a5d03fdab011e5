//! The kubelet's two listeners of each driver, and listeners that the agent brings back.

use std::os::fd::{AsFd, OwnedFd};
use std::rc::Rc;

use rustix::net::SocketType;
use seamount_mounter_protocol::{Reply, Subject};

use crate::closer::Foreign;
use crate::error::{Result, bail};
use crate::node::{Node, REGISTRY};
use crate::path::{self, Place};
use crate::socket;
use crate::wire::Attached;

impl Node {
    pub fn driver_listener(&mut self, reply: &mut Reply) -> Result<Attached> {
        let slot = reply.subject.to_string();
        let (dir, name) = self.driver_socket(&slot)?;
        reply.numbers = self.state_id();
        self.listener(slot.clone(), (&dir, &name), reply, &|node| {
            let ours = node.lock.kept.get(&slot);
            if socket::is_alive(&dir, &name, ours.map(AsFd::as_fd))? {
                bail!(Busy, "another process serves {name}: use another --driver");
            }
            socket::bind(&dir, &name, SocketType::STREAM, 0o600)
        })
    }

    /// Directory and name of a driver's socket, by its slot.
    fn driver_socket(&self, slot: &str) -> Result<(OwnedFd, String)> {
        let (kind, driver) = slot.split_once(':').unwrap_or_default();
        self.check_driver(driver)?;
        if kind == "csi" {
            return Ok((path::plugin(&self.root, driver)?, "csi.sock".to_owned()));
        }
        let registry = path::make_directory(&self.root, REGISTRY, 0o750)?;
        Ok((registry, format!("{driver}-reg.sock")))
    }

    pub fn offer(&self, slot: &str) -> Result<Attached> {
        let (dir, name) = self.driver_socket(slot)?;
        let kept = self.lock.kept.get(slot);
        if !kept.is_some_and(|kept| socket::leads_to(&dir, &name, kept)) {
            bail!(NotFound, "{name} does not lead to the listener that is kept");
        }
        socket::show_again(&dir, &name)?;
        Ok(None)
    }

    pub fn keep(&mut self, subject: &Subject, cookie: u64, fd: Option<Foreign>) -> Result<Attached> {
        let Some(fd) = fd else { return Ok(None) };
        let slot = match subject {
            Subject::Volume(volume) => self.ours(volume).map(|_| volume.to_string())?,
            of_driver => of_driver.to_string(),
        };
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
        let at = self.socket_of(slot);
        at.is_some_and(|(dir, name)| socket::leads_to(&dir, &name, fd))
    }

    fn socket_of(&self, slot: &str) -> Option<(OwnedFd, String)> {
        let Some(place) = Place::of_slot(&self.pods, slot) else {
            return self.driver_socket(slot).ok();
        };
        let place = place.ok()??;
        // Of a driver that this mounter does not have: no agent would accept on it.
        if let Some((driver, _)) = place.owner().ok()? {
            self.check_driver(&driver).ok()?;
        }
        let target = place.target().ok()??;
        target.is_directory().then(|| (target.fd, self.config.socket_name().to_owned()))
    }
}
