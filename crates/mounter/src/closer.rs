//! The last descriptor of what was removed, closed on a thread of its own.
//!
//! The kernel frees a removed directory when its last descriptor is closed, and that may wait for the disk:
//! on ext4 without a journal, mounted with `discard`, the blocks are discarded in close(2), which takes 3 to
//! 4 ms. A detached mount ends in the same way, a tmpfs with all its pages. Each pod's requests go through
//! the node's one thread, so it must not wait for that. The names are gone by then. A crash leaves nothing:
//! the kernel closes what is open.

use std::iter;
use std::os::fd::OwnedFd;
use std::sync::mpsc::{SyncSender, sync_channel};
use std::thread;
use std::time::Duration;

use crate::failure::Outcome;
use crate::foreign;

/// What is held at most. A node has fewer pods; the next one is closed at once, by the caller.
const MOST: u64 = 512;
/// Of the descriptors, one in so many may be held.
const SHARE: u64 = 16;
/// How long a descriptor is kept. The agent closes the volume's listener and its connections while the
/// mounter works: each of them holds the directory too, and the last to close waits for the disk.
const PAUSE: Duration = Duration::from_millis(50);

/// Takes what was removed. Without a thread ([`Default`]) it closes at once.
#[derive(Default)]
pub struct Closer {
    queue: Option<SyncSender<OwnedFd>>,
    room: usize,
}

impl Closer {
    /// Starts the thread. `descriptors`: those that it shares with listeners.
    pub fn start(descriptors: u64) -> Outcome<Self> {
        let room = (descriptors / SHARE).min(MOST) as usize;
        let (queue, removed) = sync_channel(room);
        foreign::thread(move || {
            while let Ok(first) = removed.recv() {
                let all: Vec<OwnedFd> = iter::once(first).chain(removed.try_iter()).collect();
                thread::sleep(PAUSE);
                drop(all);
            }
        })?;
        Ok(Self { queue: Some(queue), room })
    }

    /// The descriptors that are open here at most: those queued, and as many that are just being closed.
    pub fn reserved(&self) -> u64 {
        self.room as u64 * 2
    }

    /// Closes a descriptor later, or now where there is no room.
    pub fn put(&self, fd: OwnedFd) {
        // What has no room comes back with the error, and is dropped with it.
        let _ = self.queue.as_ref().map(|queue| queue.try_send(fd));
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
        let closer = Closer::start(SHARE).unwrap();
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
        let (returned, seen) = mpsc::channel();
        thread::spawn(move || {
            closer.put(sender.into());
            let _ = returned.send(());
        });
        // Before anything is read.
        seen.recv_timeout(Duration::from_secs(60)).unwrap();
        let mut received = Vec::new();
        peer.read_to_end(&mut received).unwrap();
        assert_eq!(received.len(), sent);
    }

    #[test]
    fn what_has_no_room_is_closed_at_once() {
        let (queue, _removed) = sync_channel(1);
        let closer = Closer { queue: Some(queue), room: 1 };
        let mut open = (0..2).map(|_| pipe().unwrap()).map(|(from, to)| {
            closer.put(to.into());
            rustix::fs::fcntl_setfl(&from, OFlags::NONBLOCK).unwrap();
            from
        });
        let (mut held, mut closed) = (open.next().unwrap(), open.next().unwrap());
        assert_eq!(held.read(&mut [0]).unwrap_err().kind(), ErrorKind::WouldBlock);
        assert_eq!(closed.read(&mut [0]).unwrap(), 0);
        assert_eq!(Closer::start(SHARE * 100_000).unwrap().reserved(), MOST * 2);
        assert_eq!(Closer::default().reserved(), 0);
    }
}
