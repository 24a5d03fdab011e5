//! One mounter per node, and the way from one to the next.
//!
//! Who holds the lock is the mounter. It belongs to the open file (flock(2)): it ends with the process, and
//! it can be handed on without ever being free. Of two pods on a node (a roll-out with `maxSurge`, or a pod
//! deleted by force) the younger one takes over; a pod is as old as the first start of its mounter
//! ([`BORN`]), and the holder writes that on the lock as its time of modification. The older one, started
//! again, waits until the younger is gone.
//!
//! What is handed on is no part of the protocol with the agent, so that mounters of different releases
//! understand each other: per message a descriptor and its slot in [`Kept`]; the lock comes last.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, OwnedFd};
use std::rc::Rc;
use std::sync::Once;
use std::time::Duration;

use rustix::event::{PollFlags, Timespec};
use rustix::fs::{self, AtFlags, FlockOperation, Mode, OFlags};
use rustix::io::Errno;
use rustix::net::sockopt::{Timeout, set_socket_timeout, socket_cookie};
use rustix::net::{SocketFlags, SocketType};

use crate::closer::Foreign;
use crate::config::Config;
use crate::error::{Context, Result, bail};
use crate::log::{done, warn};
use crate::path::{self, OWN};
use crate::socket;
use crate::wire::{PATIENCE, ready, receive};

const SOCKET: &str = "take-over.sock";
/// An empty file beside the agent's socket, whose time of modification is the pod's age: the time at which
/// its mounter started first. The directory's own time will not do, for a tmpfs keeps none before Linux 5.18.
const BORN: &str = ".born";
/// Its file's name, and that of the last message.
pub const LOCK: &str = "lock";
/// How often a mounter that waits looks again.
const PAUSE: Duration = Duration::from_millis(100);

/// The listeners that are kept, by slot: a volume's is `<pod UID>/<volume name>`, a driver's two are
/// `csi:<driver>` and `registration:<driver>`, as in the protocol.
pub type Kept = BTreeMap<String, Rc<Foreign>>;

/// The place of the one mounter.
pub struct MounterLock {
    pub file: Rc<Foreign>,
    pub kept: Kept,
    /// Where the agent connects, and where a successor does.
    pub doors: [OwnedFd; 2],
}

impl MounterLock {
    /// Takes the place, waits until it is free, or takes over. That begins when our own agent is there,
    /// because the other one leaves first: connections wait meanwhile, and should not wait for a container to
    /// start.
    pub fn take(root: &OwnedFd, config: &Config) -> Result<Self> {
        let (dir, name) = path::open_parent(&config.socket)?;
        let born = age(&open_file(&dir, BORN)?)?;
        let (mut agents, waits) = (None, Once::new());
        let (own, lock, kept) = loop {
            // By name each time: the lock of a file or directory that was removed says nothing.
            let own = path::plugin(root, OWN)?;
            let file = open_file(&own, LOCK)?;
            // A lock that was removed seems to be free. Its holder is known by its socket, and takes it
            // again.
            if !socket::is_alive(&own, SOCKET, None)? && lock(&file)? {
                break (own, Foreign::from(file), Kept::new());
            }
            waits.call_once(|| done("waiting: another mounter holds the lock", None));
            if age(&file)? < born {
                let door = agents.take().map_or_else(|| bind_agents(&dir, &name), Ok)?;
                if ready(agents.insert(door), PollFlags::IN) {
                    match inherit(&own) {
                        Ok((lock, kept)) => break (own, lock, kept),
                        Err(e) => warn("not taken over", &e),
                    }
                }
            }
            std::thread::sleep(PAUSE);
        };
        // Before the socket is there, so that nobody reads a predecessor's age and comes.
        write_age(&lock, born)?;
        let successors = bind_successors(&own)?;
        let agents = agents.map_or_else(|| bind_agents(&dir, &name), Ok)?;
        Ok(Self { file: Rc::new(lock), kept, doors: [agents, successors] })
    }

    /// Binds and locks again what was removed. `Busy` where another mounter has the lock now.
    pub fn tend(&mut self, root: &OwnedFd, config: &Config) -> Result<()> {
        let own = path::plugin(root, OWN)?;
        // First: a mounter that has lost it takes no name from the one that has it.
        self.hold_lock(&own)?;
        let (dir, name) = path::open_parent(&config.socket)?;
        let [agents, successors] = &mut self.doors;
        if !socket::leads_to(&dir, &name, &*agents) {
            *agents = bind_agents(&dir, &name)?;
            done("the agent's socket was removed, and is there again", None);
        }
        if !socket::leads_to(&own, SOCKET, &*successors) {
            *successors = bind_successors(&own)?;
            done("the successor's socket was removed, and is there again", None);
        }
        Ok(())
    }

    fn hold_lock(&mut self, own: &OwnedFd) -> Result<()> {
        let held = fs::fstat(&self.file).context("look at the lock")?;
        let named = fs::statat(own, LOCK, AtFlags::SYMLINK_NOFOLLOW);
        if named.is_ok_and(|named| (named.st_dev, named.st_ino) == (held.st_dev, held.st_ino)) {
            return Ok(());
        }
        let file = open_file(own, LOCK)?;
        if !lock(&file)? {
            bail!(Busy, "the lock was removed, and another mounter has taken it: this one waits for it");
        }
        write_age(&file, age(&self.file)?)?;
        self.file = Rc::new(file.into());
        done("the lock was removed, and is held again", None);
        Ok(())
    }
}

/// Any process may connect; the peer's uid decides which one is listened to.
fn bind_agents(dir: &OwnedFd, name: &str) -> Result<OwnedFd> {
    socket::bind(dir, name, SocketType::SEQPACKET, 0o666)
}

fn bind_successors(own: &OwnedFd) -> Result<OwnedFd> {
    socket::bind(own, SOCKET, SocketType::SEQPACKET, 0o600)
}

fn open_file(dir: &OwnedFd, name: &str) -> Result<OwnedFd> {
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    fs::openat(dir, name, flags, Mode::from_raw_mode(0o600)).context(format_args!("open {name}"))
}

/// Whether it is ours now; false where another mounter has it.
fn lock(file: &OwnedFd) -> Result<bool> {
    match fs::flock(file, FlockOperation::NonBlockingLockExclusive) {
        Err(Errno::AGAIN) => Ok(false),
        taken => taken.context("take the lock").map(|()| true),
    }
}

fn age(file: impl AsFd) -> Result<Timespec> {
    fs::fstat(file).map(|stat| socket::time(&stat)).context("look at an age")
}

fn write_age(lock: impl AsFd, born: Timespec) -> Result<()> {
    fs::futimens(lock, &socket::times(born)).context("write the age on the lock")
}

/// Takes everything from the one that holds the lock.
pub fn inherit(own: &OwnedFd) -> Result<(Foreign, Kept), Errno> {
    let predecessor = socket::connect(own, SOCKET, SocketType::SEQPACKET, SocketFlags::empty())?;
    // It waits for its agent to leave first.
    set_socket_timeout(&predecessor, Timeout::Recv, Some(PATIENCE * 2))?;
    let mut kept = Kept::new();
    loop {
        let (name, _, mut fds) = receive(&predecessor)?;
        match fds.pop() {
            Some(lock) if name == LOCK.as_bytes() => return Ok((lock, kept)),
            Some(fd) if socket::check(&fd, socket_cookie(&fd)?).is_ok() => {
                kept.insert(String::from_utf8_lossy(&name).into_owned(), Rc::new(fd));
            }
            _ => {}
        }
    }
}
