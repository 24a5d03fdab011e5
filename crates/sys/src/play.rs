//! What `seamount play` and the test kit need.

use std::io;

use rustix::mount::{MountPropagationFlags, mount_change};
use rustix::thread::{UnshareFlags, unshare_unsafe};

/// Gives the calling thread a mount namespace of its own in which every mount is private, so that nothing it mounts
/// is seen outside and all of it is gone when the last thread or process in it ends. Processes and threads that this
/// thread starts inherit it.
///
/// # Errors
/// `EPERM` without `CAP_SYS_ADMIN`; what the kernel says otherwise (unshare(2), mount_namespaces(7)).
pub fn unshare_mounts() -> io::Result<()> {
    // SAFETY: NEWNS (with the FS that it implies) changes what paths mean to this thread alone; no descriptor, no
    // memory and no other thread is affected.
    unsafe { unshare_unsafe(UnshareFlags::NEWNS | UnshareFlags::FS)? };
    mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)?;
    Ok(())
}
