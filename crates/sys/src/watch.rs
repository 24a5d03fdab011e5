//! Waiting for a descriptor in tokio, for reading alone or for writing alone.

use std::io;
use std::os::fd::OwnedFd;

use rustix::io::Errno;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// The kernel watches no more descriptors for this process's uid (epoll_ctl(2), `ENOSPC`).
#[derive(Debug)]
struct WatchesUsedUp(u32);

impl std::fmt::Display for WatchesUsedUp {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self(uid) = self;
        write!(
            f,
            "fs.epoll.max_user_watches of uid {uid} is used up: another process on the node has the agent's real uid (as \
             root: ps -U {uid}), or the limit is too small for the node; end that process, or raise the limit with \
             sysctl, or start the agent again, which then has another uid unless it runs with a fixed one"
        )
    }
}

impl std::error::Error for WatchesUsedUp {}

/// Says what `ENOSPC` means where a descriptor was to be watched. Other errors stay what they are.
#[must_use]
pub fn explain(error: io::Error) -> io::Error {
    if error.raw_os_error() != Some(Errno::NOSPC.raw_os_error()) {
        return error;
    }
    io::Error::new(error.kind(), WatchesUsedUp(rustix::process::getuid().as_raw()))
}

/// Watches a non-blocking descriptor for this and nothing else. Panics outside of a tokio runtime, as tokio's
/// own sockets do.
///
/// # Errors
/// Where the kernel cannot watch one more (`epoll_ctl(2)`); the descriptor is closed.
pub fn watch(fd: OwnedFd, interest: Interest) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an `OwnedFd` is open for as long as it exists and always gives the same number, and no safe
    // code can take it out of the `AsyncFd` without ending the watch.
    unsafe { AsyncFd::register_with_interest(fd, interest) }.map_err(|e| explain(e.into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_enospc_is_explained() {
        let uid = rustix::process::getuid().as_raw();
        let explained = explain(Errno::NOSPC.into());
        assert_eq!(explained.kind(), io::ErrorKind::StorageFull);
        assert!(
            explained.to_string().starts_with(&format!("fs.epoll.max_user_watches of uid {uid} is used up"))
        );
        assert_eq!(explain(Errno::MFILE.into()).raw_os_error(), Some(Errno::MFILE.raw_os_error()));
    }
}
