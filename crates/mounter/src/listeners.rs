//! The kubelet's two listeners, and listeners that the agent brings back.

use std::os::fd::OwnedFd;
use std::rc::Rc;

use rustix::net::SocketType;
use seamount_mounter_protocol::names::Volume;
use seamount_mounter_protocol::{Reply, keep};

use crate::failure::{Outcome, fail};
use crate::node::{Node, REGISTRY};
use crate::path;
use crate::socket;
use crate::wire::Attached;

impl Node {
    pub fn node_listener(&mut self, number: u32, reply: &mut Reply) -> Outcome<Attached> {
        let (dir, name) = match number {
            keep::CSI => (self.plugin()?, "csi.sock".to_owned()),
            _ => self.registration()?,
        };
        if number == keep::CSI {
            reply.numbers = self.state_id(&dir);
        }
        self.listener(number.to_string(), (&dir, &name), reply, &|node| {
            let ours = node.seat.kept.get(&number.to_string());
            if socket::is_alive(&dir, &name, ours.map(Rc::as_ref))? {
                return fail!(Busy, "another process serves {name}: use another --driver");
            }
            socket::bind(&dir, &name, SocketType::STREAM, 0o600)
        })
    }

    /// Directory and name of the registration socket.
    fn registration(&self) -> Outcome<(OwnedFd, String)> {
        let registry = path::make_directory(&self.root, REGISTRY, 0o750)?;
        Ok((registry, format!("{}-reg.sock", self.config.driver)))
    }

    pub fn offer(&self) -> Outcome<Attached> {
        let (dir, name) = self.registration()?;
        let kept = self.seat.kept.get(&keep::REGISTRATION.to_string());
        if !kept.is_some_and(|kept| socket::leads_to(&dir, &name, kept)) {
            return fail!(NotFound, "{name} does not lead to the listener that is kept");
        }
        socket::show_again(&dir, &name)?;
        Ok(None)
    }

    pub fn keep(
        &mut self,
        v: &Option<Volume>,
        slot: u32,
        cookie: u64,
        fd: Option<OwnedFd>,
    ) -> Outcome<Attached> {
        let Some(fd) = fd else { return Ok(None) };
        let slot = match v {
            Some(volume) => {
                self.ours(volume)?;
                volume.to_string()
            }
            None => slot.to_string(),
        };
        socket::check(&fd, cookie)?;
        if self.seat.kept.contains_key(&slot) {
            return fail!(Busy, "a listener is kept already");
        }
        self.room(&slot)?;
        self.seat.kept.insert(slot, Rc::new(fd));
        Ok(None)
    }
}
