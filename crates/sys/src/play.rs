//! What `seamount play` and the test kit need.

use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::process::CommandExt as _;
use std::process::Command;

use rustix::mount::{MountPropagationFlags, mount_change};
use rustix::thread::{UnshareFlags, unshare_unsafe};

/// Gives the calling thread a mount namespace of its own in which every mount is private, so that nothing it
/// mounts is seen outside and all of it is gone when the last thread or process in it ends. Processes and
/// threads that this thread starts inherit it.
///
/// # Errors
/// `EPERM` without `CAP_SYS_ADMIN`; what the kernel says otherwise (unshare(2), mount_namespaces(7)).
pub fn unshare_mounts() -> io::Result<()> {
    unshare(UnshareFlags::NEWNS | UnshareFlags::FS)?;
    mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)?;
    Ok(())
}

/// Moves the calling thread into new namespaces (`NEWPID`: its next children).
///
/// # Errors
/// `EINVAL` with [`UnshareFlags::FILES`], which would give two threads different ideas of the same
/// descriptor, and for `NEWUSER` in a process with several threads; `EPERM`, `ENOSPC`, `EUSERS` as unshare(2)
/// says.
pub fn unshare(flags: UnshareFlags) -> io::Result<()> {
    if flags.contains(UnshareFlags::FILES) {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    // SAFETY: only FILES is unsafe (descriptors of other threads would change their meaning), and it is
    // refused above.
    unsafe { unshare_unsafe(flags)? };
    Ok(())
}

/// Adds attributes (`MOUNT_ATTR_*`) to the mount that `mount` is the root of and to everything mounted below
/// it.
///
/// # Errors
/// As mount_setattr(2) says; `ENOSYS` before Linux 5.12.
pub fn add_attributes(mount: impl AsFd, set: u64, recursive: bool) -> io::Result<()> {
    let attr = libc::mount_attr { attr_set: set, attr_clr: 0, propagation: 0, userns_fd: 0 };
    let flags = libc::AT_EMPTY_PATH | if recursive { libc::AT_RECURSIVE } else { 0 };
    // SAFETY: the descriptor is borrowed for the call; path and attributes are valid for the lengths given.
    let done = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_fd().as_raw_fd(),
            c"".as_ptr(),
            flags,
            &raw const attr,
            size_of_val(&attr),
        )
    };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Marks every descriptor from 3 on close-on-exec, so that what the caller's caller left open does not reach
/// a program that is executed next.
///
/// # Errors
/// As close_range(2) says; `EINVAL` before Linux 5.11.
pub fn keep_only_standard_descriptors_over_exec() -> io::Result<()> {
    // SAFETY: CLOEXEC closes nothing now; no descriptor that a value owns changes before exec(2).
    let done = unsafe { libc::syscall(libc::SYS_close_range, 3u32, u32::MAX, libc::CLOSE_RANGE_CLOEXEC) };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Has the program that `command` starts killed (SIGKILL) when the thread that started it ends, whatever ends
/// it.
pub fn die_with_the_starter(command: &mut Command) {
    let starter = std::process::id();
    let die = move || {
        // SAFETY: both calls are async-signal-safe and touch no memory.
        let (done, parent) = unsafe { (libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL), libc::getppid()) };
        match done {
            0 if u32::try_from(parent) == Ok(starter) => Ok(()),
            // It was gone before the signal was asked for.
            0 => Err(io::Error::from_raw_os_error(libc::ESRCH)),
            _ => Err(io::Error::last_os_error()),
        }
    };
    // SAFETY: between fork and exec the closure does nothing but the two calls.
    unsafe { command.pre_exec(die) };
}

/// `MOUNT_ATTR_RDONLY`.
pub const READ_ONLY: u64 = libc::MOUNT_ATTR_RDONLY;
/// `MOUNT_ATTR_NOSUID`.
pub const NO_SUID: u64 = libc::MOUNT_ATTR_NOSUID;
/// `MOUNT_ATTR_NODEV`.
pub const NO_DEVICES: u64 = libc::MOUNT_ATTR_NODEV;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refuses_to_split_the_descriptor_table() {
        assert_eq!(unshare(UnshareFlags::FILES).unwrap_err().kind(), io::ErrorKind::InvalidInput);
    }

    #[test]
    fn a_child_dies_with_the_thread_that_started_it() {
        use std::os::unix::process::ExitStatusExt as _;
        let started = std::thread::spawn(|| {
            let mut command = Command::new("sleep");
            command.arg("600");
            die_with_the_starter(&mut command);
            command.spawn().unwrap()
        });
        assert_eq!(started.join().unwrap().wait().unwrap().signal(), Some(libc::SIGKILL));
    }
}
