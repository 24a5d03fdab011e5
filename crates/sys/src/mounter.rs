//! What the mounter needs beyond rustix.

use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use rustix::thread::{UnshareFlags, unshare_unsafe};

/// Moves the calling thread into a new, empty network namespace.
///
/// # Errors
/// `EPERM` without `CAP_SYS_ADMIN` (unshare(2)).
pub fn leave_network() -> io::Result<()> {
    // SAFETY: NEWNET changes only which network later sockets of this thread belong to; nothing in memory
    // depends on it.
    unsafe { unshare_unsafe(UnshareFlags::NEWNET) }.map_err(io::Error::from)
}

/// A user namespace that exchanges id 0 with `uid` (and gid 0 with `gid`) and leaves every other id as it is.
/// On an idmapped mount (mount_setattr(2)) what `uid` writes is root's, and no id is unmapped. It lives as
/// long as its descriptor. Call it while the process has one thread.
///
/// # Errors
/// `EPERM` without `CAP_SYS_ADMIN`, `CAP_SETUID`, `CAP_SETGID`; `ENOSPC` where user namespaces are switched
/// off; `InvalidInput` for the ids 0, 1 and the last two.
pub fn swap_namespace(uid: u32, gid: u32) -> io::Result<OwnedFd> {
    if [uid, gid].iter().any(|id| !(2..u32::MAX - 1).contains(id)) {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let flags = libc::c_long::from(libc::CLONE_NEWUSER | libc::SIGCHLD);
    // SAFETY: no new stack and no shared memory, so this is fork(2) into a new user namespace; the child
    // calls only async-signal-safe functions and never returns.
    let pid = unsafe { libc::syscall(libc::SYS_clone, flags, 0, 0, 0, 0) } as libc::pid_t;
    match pid {
        -1 => return Err(io::Error::last_os_error()),
        // SAFETY: the child only waits, and dies with its parent.
        0 => unsafe {
            libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
            loop {
                libc::pause();
            }
        },
        _ => {}
    }
    let made = (|| {
        fs::write(format!("/proc/{pid}/uid_map"), swap(uid))?;
        fs::write(format!("/proc/{pid}/gid_map"), swap(gid))?;
        Ok(fs::File::open(format!("/proc/{pid}/ns/user"))?.into())
    })();
    // SAFETY: `pid` is a child of ours that was not waited for, so the number cannot be another process.
    unsafe {
        libc::kill(pid, libc::SIGKILL);
        libc::waitpid(pid, std::ptr::null_mut(), 0);
    }
    made
}

/// The map (user_namespaces(7)) that exchanges 0 and `id`.
fn swap(id: u32) -> String {
    let (below, next, above) = (id - 1, id + 1, u32::MAX - id - 1);
    format!("0 {id} 1\n{id} 0 1\n1 1 {below}\n{next} {next} {above}\n")
}

/// Sets attributes (`MOUNT_ATTR_*`) of a detached mount, makes it private, and idmaps it where a namespace is
/// given.
///
/// # Errors
/// `EINVAL` where the file system cannot be idmapped or the mount is attached (mount_setattr(2)).
pub fn set_attributes(mount: impl AsFd, set: u64, idmap: Option<&OwnedFd>) -> io::Result<()> {
    let attr = libc::mount_attr {
        attr_set: set | if idmap.is_some() { libc::MOUNT_ATTR_IDMAP } else { 0 },
        attr_clr: 0,
        propagation: libc::MS_PRIVATE,
        userns_fd: idmap.map_or(0, |n| n.as_raw_fd() as u64),
    };
    let (fd, path, flags) = (mount.as_fd().as_raw_fd(), c"".as_ptr(), libc::AT_EMPTY_PATH);
    let (attr, size) = (&raw const attr, size_of_val(&attr));
    // SAFETY: both descriptors are borrowed for the call; path and attributes are valid for the lengths
    // given.
    let done = unsafe { libc::syscall(libc::SYS_mount_setattr, fd, path, flags, attr, size) };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_map_exchanges_two_ids_and_keeps_the_rest() {
        assert_eq!(swap(3), "0 3 1\n3 0 1\n1 1 2\n4 4 4294967291\n");
        assert_eq!(swap(2), "0 2 1\n2 0 1\n1 1 1\n3 3 4294967292\n");
        assert!(swap_namespace(0, 5).is_err() && swap_namespace(5, 1).is_err());
    }
}
