//! Waiting for a descriptor in tokio, for reading alone or for writing alone.

use std::io;
use std::os::fd::OwnedFd;

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Watches a non-blocking descriptor for this and nothing else. Panics outside of a tokio runtime, as tokio's own
/// sockets do.
///
/// # Errors
/// Where the kernel cannot watch one more (`epoll_ctl(2)`); the descriptor is closed.
pub fn watch(fd: OwnedFd, interest: Interest) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an `OwnedFd` is open for as long as it exists and always gives the same number, and no safe code can take it out
    // of the `AsyncFd` without ending the watch.
    unsafe { AsyncFd::register_with_interest(fd, interest) }.map_err(io::Error::from)
}
