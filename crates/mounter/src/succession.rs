//! One mounter per node and driver, and the way from one to the next.
//!
//! Who holds the lock is the mounter. It belongs to the open file (flock(2)): it ends with the process, and it can be
//! handed on without ever being free. Of two pods on a node (a roll-out with `maxSurge`, or a pod deleted by force) the
//! younger one takes over; a pod is as old as the directory that its two containers share, and the holder writes that on
//! the lock as its time of modification. The older one, started again, waits until the younger is gone.
//!
//! What is handed on is no part of the protocol with the agent, so that mounters of different releases understand each
//! other: per message a descriptor and its name, [`name`]; the lock comes last.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{self, AtFlags, FlockOperation, Mode, OFlags, StatxFlags, Timestamps};
use rustix::io::Errno;
use rustix::net::SocketType;
use rustix::net::sockopt::{Timeout, set_socket_timeout, socket_cookie};
use seamount_mounter::protocol::FRAME;

use crate::config::Config;
use crate::failure::{Doing, Outcome, fail};
use crate::log::{done, event};
use crate::node::{Node, Slot, open_parent};
use crate::server::{PATIENCE, receive, send};
use crate::socket;

const SOCKET: &str = "take-over.sock";
const LOCK: &str = "lock";
/// How often a mounter that waits looks again.
const PAUSE: Duration = Duration::from_millis(100);

/// The listeners that are kept.
pub type Kept = BTreeMap<Slot, Rc<OwnedFd>>;

/// The place of the one mounter.
pub struct Seat {
    pub lock: Rc<OwnedFd>,
    pub kept: Kept,
    /// Where the agent connects, and where a successor does.
    pub doors: [OwnedFd; 2],
}

impl Seat {
    /// Takes the place, waits until it is free, or takes over. That begins when our own agent is there, because the
    /// other one leaves first: connections wait meanwhile, and should not wait for a container to start.
    pub fn take(plugin: &OwnedFd, config: &Config) -> Outcome<Self> {
        let (dir, name) = open_parent(&config.socket)?;
        let stat = fs::statx(&dir, "", AtFlags::EMPTY_PATH, StatxFlags::BTIME);
        let born = stat.doing("look at the socket's directory")?.stx_btime;
        let born = Timespec { tv_sec: born.tv_sec, tv_nsec: born.tv_nsec.into() };
        // Everybody may connect; who may speak is decided by the peer's uid.
        let bind = || socket::bind(&dir, &name, SocketType::SEQPACKET, 0o666);
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = fs::openat(plugin, LOCK, flags, Mode::from_raw_mode(0o600)).doing("open the lock")?;
        let (mut agents, mut inherited, mut waits) = (None, None, false);
        while let Err(e) = fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
            if e != Errno::AGAIN {
                return Err(e).doing("take the lock");
            } else if config.no_wait {
                return fail!(Busy, "another mounter serves {} on this node: stop it first", config.driver);
            } else if !std::mem::replace(&mut waits, true) {
                done("waiting: another mounter holds the lock", None);
            }
            let holder = fs::fstat(&file).doing("look at the lock")?;
            if (holder.st_mtime, holder.st_mtime_nsec as i64) < (born.tv_sec, born.tv_nsec) {
                let door: &OwnedFd = if let Some(door) = &agents { door } else { agents.insert(bind()?) };
                if poll(&mut [PollFd::new(door, PollFlags::IN)], Some(&Timespec::default())) == Ok(1) {
                    inherited =
                        inherit(plugin).map_err(|e| event("warn", "not taken over", &[("reason", &e)])).ok();
                }
            }
            if inherited.is_some() {
                break;
            }
            std::thread::sleep(PAUSE);
        }
        let (lock, kept) = inherited.unwrap_or((file, Kept::new()));
        // Before the socket is there, so that nobody reads a predecessor's age and comes.
        let age = Timestamps { last_access: born, last_modification: born };
        fs::futimens(&lock, &age).doing("write the age on the lock")?;
        let doors =
            [agents.map_or_else(bind, Ok)?, socket::bind(plugin, SOCKET, SocketType::SEQPACKET, 0o600)?];
        Ok(Self { lock: Rc::new(lock), kept, doors })
    }
}

/// Takes everything from the one that holds the lock.
fn inherit(plugin: &OwnedFd) -> Result<(OwnedFd, Kept), Errno> {
    let predecessor = socket::connect(plugin, SOCKET, SocketType::SEQPACKET)?;
    // It waits for its agent to leave first.
    set_socket_timeout(&predecessor, Timeout::Recv, Some(PATIENCE * 2))?;
    let mut kept = Kept::new();
    loop {
        let (name, _, mut fds) = receive(&predecessor, &mut [0; FRAME])?;
        match fds.pop() {
            Some(lock) if name == LOCK.as_bytes() => return Ok((lock, kept)),
            // A name that only another release knows is closed: nobody here could use it.
            Some(fd) if socket::check(&fd, socket_cookie(&fd)?).is_ok() => {
                kept.extend(slot(&name).map(|slot| (slot, Rc::new(fd))));
            }
            _ => {}
        }
    }
}

/// Hands everything on.
pub fn hand_over(successor: &OwnedFd, node: &Node) -> Result<(), Errno> {
    for (slot, fd) in &node.seat.kept {
        send(successor, name(slot).as_bytes(), &Some(Rc::clone(fd)))?;
    }
    send(successor, LOCK.as_bytes(), &Some(Rc::clone(&node.seat.lock)))
}

/// `<number of the slot>[ <pod UID> <volume name>]`.
fn name((number, of): &Slot) -> String {
    number.to_string() + &of.as_ref().map_or(String::new(), |(pod, volume)| format!(" {pod} {volume}"))
}

fn slot(name: &[u8]) -> Option<Slot> {
    let mut words = str::from_utf8(name).ok()?.split(' ');
    let number = words.next()?.parse().ok()?;
    let Some(pod) = words.next() else { return Some((number, None)) };
    Some((number, Some((pod.parse().ok()?, words.next()?.parse().ok()?))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slot_is_found_by_its_name() {
        let volume = ("00000000-0000-4000-8000-000000000001".parse().unwrap(), "spiffe".parse().unwrap());
        for slot_of in [(0, Some(volume)), (1, None), (2, None)] {
            assert_eq!(slot(name(&slot_of).as_bytes()), Some(slot_of));
        }
        for strange in ["", "x", "0 pod", "0 00000000-0000-4000-8000-000000000001", "0 ../.. v", "\u{ff}"] {
            assert_eq!(slot(strange.as_bytes()), None, "{strange}");
        }
    }
}
