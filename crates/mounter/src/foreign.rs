//! Descriptors of what others have made, or can put something into: closed on threads of their own.
//!
//! close(2) may wait: for a TCP connection with SO_LINGER, for a file on a file system that hangs. So may the
//! end of a socket, for such a descriptor on its way to it (SCM_RIGHTS) is closed with it. The one thread
//! that serves waits for none of it.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Barrier, Mutex, OnceLock};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{SocketFlags, accept_with};

use crate::failure::{Doing, Outcome};

/// So many have to hang before the next one waits.
const THREADS: usize = 4;
const STACK: usize = 128 * 1024;
/// Descriptors that wait to be closed, from which on the mounter rather starts anew: when a process ends,
/// nothing lingers.
pub const MOST: usize = 1024;

static QUEUE: OnceLock<Sender<OwnedFd>> = OnceLock::new();
static WAITING: AtomicUsize = AtomicUsize::new(0);

/// Such a descriptor.
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
        match (self.0.take(), QUEUE.get()) {
            (Some(fd), Some(queue)) => {
                WAITING.fetch_add(1, Ordering::Relaxed);
                // There is a receiver as long as there is a thread, and these end with the process.
                let _ = queue.send(fd);
            }
            // In a test, where nothing lingers.
            (Some(fd), None) => close(fd),
            (None, _) => {}
        }
    }
}

/// How many descriptors wait to be closed.
pub fn waiting() -> usize {
    WAITING.load(Ordering::Relaxed)
}

/// Starts the threads.
pub fn start() -> Outcome<()> {
    let (sender, receiver) = channel();
    let receiver = Arc::new(Mutex::new(receiver));
    for _ in 0..THREADS {
        let receiver = Arc::clone(&receiver);
        thread(move || {
            while let Some(fd) = next(&receiver) {
                close(fd);
                WAITING.fetch_sub(1, Ordering::Relaxed);
            }
        })?;
    }
    let _ = QUEUE.set(sender);
    Ok(())
}

/// Starts a thread with the caller's capabilities, and returns when it runs: the seccomp filter, which has no
/// room for the start of a thread, may be installed then for all of them.
pub fn thread(body: impl FnOnce() + Send + 'static) -> Outcome<()> {
    let runs = Arc::new(Barrier::new(2));
    let ready = Arc::clone(&runs);
    let run = move || {
        ready.wait();
        body();
    };
    std::thread::Builder::new().stack_size(STACK).spawn(run).doing("start a thread")?;
    runs.wait();
    Ok(())
}

fn next(receiver: &Mutex<Receiver<OwnedFd>>) -> Option<OwnedFd> {
    receiver.lock().ok()?.recv().ok()
}

/// A listener that was shut down lets nobody in any more, and who waits in its queue hangs there as long as
/// anything has a copy of it; taken out, they see their end.
fn close(fd: OwnedFd) {
    let mut polled = [PollFd::new(&fd, PollFlags::empty())];
    let ended = poll(&mut polled, Some(&Timespec::default())) == Ok(1);
    let ended = ended && polled.iter().any(|fd| fd.revents().contains(PollFlags::HUP));
    while ended && accept_with(&fd, SocketFlags::CLOEXEC).is_ok() {}
}
