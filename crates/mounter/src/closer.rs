//! Descriptors whose close(2) may wait, closed on threads that do nothing else. The one thread that serves
//! waits for none of it, and neither kind waits for the other.
//!
//! *Removed* directories and mounts: the kernel frees one when its last descriptor is closed, and that may
//! wait for the disk. On ext4 without a journal, mounted with `discard`, close(2) discards the blocks, which
//! takes 3 to 4 ms; a detached tmpfs ends with all its pages. The names are gone by then. A crash leaves
//! nothing: the kernel closes what is open.
//!
//! *Foreign* descriptors: what others have made, or can put something into. A TCP connection with SO_LINGER
//! waits, and a file on a file system that hangs. So does the end of a socket that has such a descriptor on
//! its way to it (SCM_RIGHTS).

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Barrier, Mutex, OnceLock};
use std::thread;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{SocketFlags, accept_with};

use crate::error::{Context, Result};

/// Removed ones that are held at most. A node has fewer pods; the next one is closed at once, by the caller.
const MOST_REMOVED: u64 = 512;
/// Of the descriptors, one in so many may be held for it.
const SHARE: u64 = 16;
/// How long a removed one is kept. The agent closes the volume's listener and its connections while the
/// mounter works: each of them holds the directory too, and the last to close waits for the disk.
const PAUSE: Duration = Duration::from_millis(50);
/// So many foreign ones have to hang before the next one waits.
const THREADS: usize = 4;
/// Foreign ones that wait to be closed, from which on the mounter rather starts anew: when a process ends,
/// nothing lingers.
pub const MOST_FOREIGN: usize = 1024;
const STACK: usize = 128 * 1024;

static FOREIGN: OnceLock<Closer> = OnceLock::new();

/// A descriptor and when to close it.
type Due = (Instant, OwnedFd);

/// A queue of descriptors, and the threads that close them. Without threads ([`Default`]) the caller does.
#[derive(Default)]
pub struct Closer {
    queue: Option<Sender<Due>>,
    /// How many are not closed yet.
    open: Arc<AtomicUsize>,
    room: usize,
    pause: Duration,
}

/// Starts the threads for foreign descriptors, and those for removed ones. `descriptors`: those that the
/// latter share with listeners.
pub fn start(descriptors: u64) -> Result<Closer> {
    // A bound here would have the caller close it.
    let _ = FOREIGN.set(Closer::start(usize::MAX, Duration::ZERO, THREADS)?);
    Closer::start((descriptors / SHARE).min(MOST_REMOVED) as usize, PAUSE, 1)
}

/// How many foreign descriptors wait to be closed.
pub fn waiting() -> usize {
    FOREIGN.get().map_or(0, |closer| closer.open.load(Ordering::Relaxed))
}

impl Closer {
    fn start(room: usize, pause: Duration, threads: usize) -> Result<Self> {
        let (queue, due) = channel();
        let (due, open) = (Arc::new(Mutex::new(due)), Arc::new(AtomicUsize::new(0)));
        // They run, with the caller's capabilities, when this returns: the seccomp filter, which has no room
        // for the start of a thread, may be installed then for all of them.
        let run = Arc::new(Barrier::new(threads + 1));
        for _ in 0..threads {
            let (due, open, run) = (Arc::clone(&due), Arc::clone(&open), Arc::clone(&run));
            let body = move || {
                run.wait();
                while let Some((at, fd)) = next(&due) {
                    thread::sleep(at.saturating_duration_since(Instant::now()));
                    close(fd);
                    open.fetch_sub(1, Ordering::Relaxed);
                }
            };
            thread::Builder::new().stack_size(STACK).spawn(body).context("start a thread")?;
        }
        run.wait();
        Ok(Self { queue: Some(queue), open, room, pause })
    }

    /// The descriptors that are open here at most.
    pub fn room(&self) -> u64 {
        self.room as u64
    }

    /// Closes a descriptor later, or now where there is no room.
    pub fn put(&self, fd: OwnedFd) {
        match &self.queue {
            Some(queue) if self.open.load(Ordering::Relaxed) < self.room => {
                self.open.fetch_add(1, Ordering::Relaxed);
                // There is a receiver as long as there is a thread, and these end with the process.
                let _ = queue.send((Instant::now() + self.pause, fd));
            }
            _ => close(fd),
        }
    }
}

fn next(due: &Mutex<Receiver<Due>>) -> Option<Due> {
    due.lock().ok()?.recv().ok()
}

/// A listener that was shut down lets nobody in any more, and a client that waits in its queue hangs there as
/// long as anything has a copy of it; taken out, it sees its end.
fn close(fd: OwnedFd) {
    let mut polled = [PollFd::new(&fd, PollFlags::empty())];
    let ended = poll(&mut polled, Some(&Timespec::default())) == Ok(1);
    let ended = ended && polled.iter().any(|fd| fd.revents().contains(PollFlags::HUP));
    while ended && accept_with(&fd, SocketFlags::CLOEXEC).is_ok() {}
}

/// A foreign descriptor. In a test, where nothing lingers, there may be no threads: its owner closes it.
#[derive(Debug)]
pub struct Foreign(Option<OwnedFd>);

impl From<OwnedFd> for Foreign {
    fn from(fd: OwnedFd) -> Self {
        Self(Some(fd))
    }
}

impl AsFd for Foreign {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_ref().map_or(rustix::fs::CWD, AsFd::as_fd)
    }
}

impl Drop for Foreign {
    fn drop(&mut self) {
        if let Some(fd) = self.0.take() {
            FOREIGN.get().unwrap_or(&Closer::default()).put(fd);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::{ErrorKind, Read, Write, pipe};
    use std::net::{TcpListener, TcpStream};
    use std::sync::mpsc;

    use rustix::fs::OFlags;
    use rustix::net::sockopt::set_socket_linger;

    use super::*;

    #[test]
    fn a_close_that_waits_does_not_keep_the_caller_waiting() {
        let closer = Closer::start(32, PAUSE, 1).unwrap();
        // Nothing but a disk waits in close(2) as a socket does that lingers until its peer has everything.
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut sender = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (mut peer, _) = listener.accept().unwrap();
        sender.set_nonblocking(true).unwrap();
        let mut sent = 0;
        while let Ok(count) = sender.write(&[7; 65_536]) {
            sent += count;
        }
        sender.set_nonblocking(false).unwrap();
        set_socket_linger(&sender, Some(Duration::from_secs(3600))).unwrap();
        let open = Arc::clone(&closer.open);
        let (returned, seen) = mpsc::channel();
        thread::spawn(move || {
            closer.put(sender.into());
            let _ = returned.send(());
        });
        // Before anything is read.
        seen.recv_timeout(Duration::from_secs(60)).unwrap();
        assert_eq!(open.load(Ordering::Relaxed), 1, "it waits, and is counted");
        let mut received = Vec::new();
        peer.read_to_end(&mut received).unwrap();
        assert_eq!(received.len(), sent);
    }

    #[test]
    fn what_has_no_room_is_closed_at_once() {
        let (queue, _due) = channel();
        let closer = Closer { queue: Some(queue), room: 1, ..Closer::default() };
        let mut open = (0..2).map(|_| pipe().unwrap()).map(|(from, to)| {
            closer.put(to.into());
            rustix::fs::fcntl_setfl(&from, OFlags::NONBLOCK).unwrap();
            from
        });
        let (mut held, mut closed) = (open.next().unwrap(), open.next().unwrap());
        assert_eq!(held.read(&mut [0]).unwrap_err().kind(), ErrorKind::WouldBlock);
        assert_eq!(closed.read(&mut [0]).unwrap(), 0);
        assert_eq!(Closer::default().room(), 0);
    }
}
