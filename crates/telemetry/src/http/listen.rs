//! The two listeners: TCP for metrics, a Unix socket for health.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener as StdListener};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use rustix::io::Errno;
use rustix::net::{
    AddressFamily, SocketFlags, SocketType, bind, listen, socket_with,
    sockopt::{set_ipv6_v6only, set_socket_reuseaddr},
};
use tokio::net::{TcpListener, UnixListener};

/// Connections that wait to be accepted.
const BACKLOG: i32 = 128;

/// Listens on TCP; on `[::]` for IPv4 as well, and for IPv4 alone where the kernel has no IPv6. Needs a tokio
/// runtime.
///
/// # Errors
/// Where the address is taken or not this machine's.
pub fn tcp(address: SocketAddr) -> io::Result<TcpListener> {
    with_fallback(address, |address| {
        let listener = open(address)?;
        listener.set_nonblocking(true)?;
        TcpListener::from_std(listener)
    })
}

fn with_fallback<T>(address: SocketAddr, open: impl Fn(SocketAddr) -> io::Result<T>) -> io::Result<T> {
    match open(address) {
        // Without IPv6 in the kernel there are no such sockets; switched off at the boot, no such address.
        Err(e)
            if address.is_ipv6()
                && address.ip().is_unspecified()
                && [Errno::AFNOSUPPORT, Errno::ADDRNOTAVAIL]
                    .contains(&Errno::from_io_error(&e).unwrap_or(Errno::IO)) =>
        {
            open(SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), address.port()))
        }
        opened => opened,
    }
}

fn open(address: SocketAddr) -> io::Result<StdListener> {
    let family = if address.is_ipv6() { AddressFamily::INET6 } else { AddressFamily::INET };
    let socket = socket_with(family, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
    set_socket_reuseaddr(&socket, true)?;
    if address.is_ipv6() && address.ip().is_unspecified() {
        // Whatever net.ipv6.bindv6only says.
        set_ipv6_v6only(&socket, false)?;
    }
    bind(&socket, &address)?;
    listen(&socket, BACKLOG)?;
    Ok(socket.into())
}

/// Listens on a Unix socket, in the place of what an earlier agent has left there. Needs a tokio runtime.
///
/// Everybody may connect as far as the mode goes: the kubelet's probe is root without the capability to pass
/// over modes. The directory is the agent's alone, and the peer's uid decides.
///
/// # Errors
/// Where the directory is missing or cannot be written to.
pub fn unix(path: &Path) -> io::Result<UnixListener> {
    match std::fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
        _ => {}
    }
    let listener = UnixListener::bind(path)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o666))?;
    Ok(listener)
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use super::*;

    /// What is opened, on a kernel that refuses IPv6 with this error.
    fn opened(address: &str, refusal: Errno) -> Result<Vec<String>, io::Error> {
        let tried = RefCell::new(Vec::new());
        with_fallback(address.parse().unwrap(), |address| {
            tried.borrow_mut().push(address.to_string());
            if address.is_ipv6() { Err(refusal.into()) } else { Ok(()) }
        })?;
        Ok(tried.into_inner())
    }

    #[test]
    fn ipv4_is_taken_where_the_kernel_has_no_ipv6() {
        for refusal in [Errno::AFNOSUPPORT, Errno::ADDRNOTAVAIL] {
            assert_eq!(opened("[::]:9808", refusal).unwrap(), ["[::]:9808", "0.0.0.0:9808"]);
            assert!(opened("[::1]:9808", refusal).is_err(), "another address was not asked for");
        }
        assert!(opened("[::]:9808", Errno::ADDRINUSE).is_err());
        assert_eq!(opened("127.0.0.1:9808", Errno::AFNOSUPPORT).unwrap(), ["127.0.0.1:9808"]);
    }
}
