//! Other uids for a process that starts as root with `CAP_SETUID` alone, for good.

use std::io;
use std::sync::OnceLock;

use rustix::net::UCred;
use rustix::process::{Uid, getgid, getpid};
use rustix::thread::{CapabilitySet, capabilities};

static SHOWN: OnceLock<UCred> = OnceLock::new();

/// Takes these uids over, for all threads and for good: `real`, by which the kernel counts what its quotas
/// bound (credentials(7)), and `effective`, which files, the credentials of a connection and everything else
/// has.
///
/// # Errors
/// `PermissionDenied` where this is not root with `CAP_SETUID`, or where a privilege would be left.
pub fn take_over(real: u32, effective: u32) -> io::Result<()> {
    // SAFETY: no memory is involved; the C library changes all threads, so none is left with another uid.
    if unsafe { libc::setresuid(real, effective, effective) } != 0 {
        return Err(io::Error::last_os_error());
    }
    let refused = |why: &str| Err(io::Error::new(io::ErrorKind::PermissionDenied, why.to_owned()));
    let left = capabilities(None)?;
    if left.effective.union(left.permitted).union(left.inheritable) != CapabilitySet::empty() {
        return refused("a capability is left");
    }
    // SAFETY: as above; where it succeeds, the caller ends.
    if unsafe { libc::setresuid(0, 0, 0) } == 0 {
        return refused("root can be taken back");
    }
    let shown = UCred { pid: getpid(), uid: Uid::from_raw(effective), gid: getgid() };
    SHOWN.set(shown).or_else(|_| refused("it was done before"))
}

/// The credentials to send along (`SCM_CREDENTIALS`, unix(7)): where a peer asks for some, the kernel would
/// else tell it the real uid. None where no uids were taken over.
pub fn shown() -> Option<UCred> {
    SHOWN.get().copied()
}
