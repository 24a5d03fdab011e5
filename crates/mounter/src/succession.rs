//! One mounter per node and driver, and the way from one to the next.
//!
//! Who holds the lock is the mounter. It belongs to the open file (flock(2)): it ends with the process, and it can be
//! handed on without ever being free. Of two pods on a node (a roll-out with `maxSurge`, or a pod deleted by force) the
//! younger one takes over; a pod is as old as the directory that its two containers share, and the holder writes that on
//! the lock as its time of modification. The older one, started again, waits until the younger is gone.
//!
//! What is handed on is no part of the protocol with the agent, so that mounters of different releases understand each
//! other: per message a descriptor and its slot in [`Kept`]; the lock comes last.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::sync::Once;
use std::time::Duration;

use rustix::event::{PollFlags, Timespec};
use rustix::fs::{self, AtFlags, FlockOperation, Mode, OFlags, StatxFlags, Timestamps};
use rustix::io::Errno;
use rustix::net::SocketType;
use rustix::net::sockopt::{Timeout, set_socket_timeout, socket_cookie};

use crate::config::Config;
use crate::failure::{Doing, Outcome};
use crate::foreign::Foreign;
use crate::log::{done, event};
use crate::node::open_parent;
use crate::server::{PATIENCE, ready, receive};
use crate::socket;

const SOCKET: &str = "take-over.sock";
/// Its file's name, and that of the last message.
pub const LOCK: &str = "lock";
/// How often a mounter that waits looks again.
const PAUSE: Duration = Duration::from_millis(100);

/// The listeners that are kept: a volume's as `<pod UID>/<volume name>`, the others by their number in `protocol::keep`.
pub type Kept = BTreeMap<String, Rc<Foreign>>;

/// The place of the one mounter.
pub struct Seat {
    pub lock: Rc<Foreign>,
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
        let (mut agents, waits) = (None, Once::new());
        let (lock, kept) = loop {
            match fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
                Err(Errno::AGAIN) => {}
                taken => break (taken.doing("take the lock").map(|()| file.into())?, Kept::new()),
            }
            waits.call_once(|| done("waiting: another mounter holds the lock", None));
            let holder = fs::fstat(&file).doing("look at the lock")?;
            if (holder.st_mtime, holder.st_mtime_nsec as i64) < (born.tv_sec, born.tv_nsec) {
                let door: &OwnedFd = if let Some(door) = &agents { door } else { agents.insert(bind()?) };
                if ready(door, PollFlags::IN) {
                    match inherit(plugin) {
                        Ok(everything) => break everything,
                        Err(e) => event("warn", "not taken over", &[("reason", &e)]),
                    }
                }
            }
            std::thread::sleep(PAUSE);
        };
        // Before the socket is there, so that nobody reads a predecessor's age and comes.
        let age = Timestamps { last_access: born, last_modification: born };
        fs::futimens(&lock, &age).doing("write the age on the lock")?;
        let successors = socket::bind(plugin, SOCKET, SocketType::SEQPACKET, 0o600)?;
        Ok(Self { lock: Rc::new(lock), kept, doors: [agents.map_or_else(bind, Ok)?, successors] })
    }
}

/// Takes everything from the one that holds the lock.
pub fn inherit(plugin: &OwnedFd) -> Result<(Foreign, Kept), Errno> {
    let predecessor = socket::connect(plugin, SOCKET, SocketType::SEQPACKET)?;
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
