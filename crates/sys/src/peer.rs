//! The process at the other end of a Unix socket, or the one that made it.

use std::os::fd::{AsFd, AsRawFd};

/// The uid of a Unix socket's peer (SO_PEERCRED, unix(7)), or `u32::MAX`, which is no user's. rustix's call
/// takes a pid of 0 for an error, and every peer in another PID namespace, such as the other container of a
/// pod, has that one. Of a listener it is the process that called listen(2).
pub fn peer_uid(socket: impl AsFd) -> u32 {
    let mut peer = libc::ucred { pid: 0, uid: u32::MAX, gid: u32::MAX };
    let (fd, mut size) = (socket.as_fd().as_raw_fd(), size_of_val(&peer) as libc::socklen_t);
    let into = (&raw mut peer).cast();
    // SAFETY: `into` is valid for `size` bytes, and any bytes make a ucred.
    unsafe { libc::getsockopt(fd, libc::SOL_SOCKET, libc::SO_PEERCRED, into, &raw mut size) };
    peer.uid
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::linux::net::SocketAddrExt as _;
    use std::os::unix::net::{SocketAddr, UnixListener};

    #[test]
    fn the_peer_of_a_pair_and_of_a_listener_of_our_own_is_us() {
        let own = rustix::process::getuid().as_raw();
        let (one, _other) = std::os::unix::net::UnixStream::pair().unwrap();
        assert_eq!(peer_uid(&one), own);
        let name = format!("seamount-peer-{}", std::process::id());
        let listener = SocketAddr::from_abstract_name(name).and_then(|at| UnixListener::bind_addr(&at));
        assert_eq!(peer_uid(listener.unwrap()), own);
        assert_eq!(peer_uid(std::fs::File::open("/dev/null").unwrap()), u32::MAX);
    }
}
