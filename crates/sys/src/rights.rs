//! Descriptors that come along with bytes (`SCM_RIGHTS`, unix(7)).

use std::ffi::c_int;
use std::io;
use std::os::fd::{AsFd, AsRawFd as _};

/// `asm-generic/socket.h`, since Linux 6.16; libc does not name it yet.
const SO_PASSRIGHTS: c_int = 83;

/// Has the kernel refuse descriptors that a peer sends to this Unix socket, or to what is accepted from it
/// later; the peer's sendmsg(2) fails. `false`: the kernel does not know how (before Linux 6.16).
///
/// # Errors
/// As setsockopt(2).
pub fn refuse_rights(socket: impl AsFd) -> io::Result<bool> {
    let (off, size) = (0 as c_int, size_of::<c_int>() as libc::socklen_t);
    let (fd, from) = (socket.as_fd().as_raw_fd(), (&raw const off).cast());
    // SAFETY: the kernel reads `size` bytes from `off`, which lives until the call returns.
    if unsafe { libc::setsockopt(fd, libc::SOL_SOCKET, SO_PASSRIGHTS, from, size) } == 0 {
        return Ok(true);
    }
    let e = io::Error::last_os_error();
    if e.raw_os_error() == Some(libc::ENOPROTOOPT) { Ok(false) } else { Err(e) }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd as _;

    use super::*;

    #[test]
    fn descriptors_are_refused_where_the_kernel_can() {
        let (one, other) = std::os::unix::net::UnixStream::pair().unwrap();
        if !refuse_rights(&other).unwrap() {
            println!("SKIPPED descriptors_are_refused_where_the_kernel_can: needs Linux 6.16");
            return;
        }
        let fds = [one.as_fd()];
        let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = rustix::net::SendAncillaryBuffer::new(&mut space);
        control.push(rustix::net::SendAncillaryMessage::ScmRights(&fds));
        let bytes = [io::IoSlice::new(b"x")];
        let sent = rustix::net::sendmsg(&one, &bytes, &mut control, rustix::net::SendFlags::empty());
        assert_eq!(sent, Err(rustix::io::Errno::PERM));
    }
}
