//! Listening sockets in directories.
//!
//! A socket is bound under a temporary name and renamed when it listens, so nobody ever meets one that does
//! not. Its inode's time of modification is the listener's SO_COOKIE: the kernel gives that number once and
//! root alone sets that time, so a listener is told from every other, also by a mounter that did not make it.
//! (What getsockname(2) says, any process chooses for a listener of its own.)

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::LazyLock;
use std::time::SystemTime;

use rustix::fs::{self, AtFlags, FileType, Mode, Stat, Timespec, Timestamps};
use rustix::io::Errno;
use rustix::net::{self, AddressFamily, SocketAddrUnix, SocketFlags, SocketType, sockopt};
use seamount_sys::peer::peer_uid;
use seamount_sys::rights::refuse_rights;

use crate::closer::Foreign;
use crate::error::{Context, Result, bail};
use crate::wire::PATIENCE;

const BACKLOG: i32 = 1024;
/// Cookies begin anew with each boot, and a socket's name stays on the disk.
static BOOT: LazyLock<u64> = LazyLock::new(|| {
    let id = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    u64::from_str_radix(id.get(..7).unwrap_or_default(), 16).unwrap_or_default()
});

/// The time of modification that stands for a listener: 31 bits of the cookie in the seconds, which every
/// file system keeps; the rest of it and the boot in the nanoseconds.
fn mark(listener: impl AsFd) -> Result<Timespec, Errno> {
    let cookie = sockopt::socket_cookie(listener)?;
    let tv_sec = (cookie & 0x7fff_ffff) as i64;
    Ok(Timespec { tv_sec, tv_nsec: ((cookie >> 31) ^ *BOOT) as i64 & 0xfff_ffff })
}

/// When a file was modified.
pub fn time(stat: &Stat) -> Timespec {
    Timespec { tv_sec: stat.st_mtime, tv_nsec: stat.st_mtime_nsec as i64 }
}

/// A file's times, all the same.
pub fn times(time: Timespec) -> Timestamps {
    Timestamps { last_access: time, last_modification: time }
}

/// The time in a name under which a socket is bound before it gets its own; none in other names.
pub fn made_at(name: &[u8]) -> Option<(i64, i64)> {
    let name = str::from_utf8(name).ok()?;
    let (sec, nsec) = name.strip_prefix('.')?.strip_suffix(".sock")?.split_once('.')?;
    Some((sec.parse().ok()?, nsec.parse().ok()?))
}

/// Binds and listens as `name` in `dir`, replacing what has that name.
pub fn bind(dir: &OwnedFd, name: &str, kind: SocketType, mode: u32) -> Result<OwnedFd> {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let temporary = format!(".{}.{:09}.sock", now.as_secs(), now.subsec_nanos());
    let bound = listen_as(dir, &temporary, kind, mode)
        .and_then(|socket| fs::renameat(dir, &temporary, dir, name).map(|()| socket));
    // The working directory would keep a volume's file system busy.
    let _ = rustix::process::chdir("/");
    if bound.is_err() {
        let _ = fs::unlinkat(dir, &temporary, AtFlags::empty());
    }
    bound.context(format_args!("bind the socket {name}"))
}

/// A socket that listens under its temporary name, whose inode has the mark of it. Changes the working
/// directory.
fn listen_as(dir: &OwnedFd, temporary: &str, kind: SocketType, mode: u32) -> Result<OwnedFd, Errno> {
    let socket = net::socket_with(AddressFamily::UNIX, kind, SocketFlags::CLOEXEC, None)?;
    if kind == SocketType::STREAM {
        // Else what clients send along is closed by the reader, and that may take as long as they like.
        let _ = refuse_rights(&socket);
    }
    // The mode before the name is there; never by path.
    fs::fchmod(&socket, Mode::from_raw_mode(mode))?;
    // By relative name: a path below the kubelet's root is longer than sun_path.
    rustix::process::fchdir(dir)?;
    net::bind(&socket, &SocketAddrUnix::new(temporary)?)?;
    let made = times(mark(&socket)?);
    fs::utimensat(dir, temporary, &made, AtFlags::SYMLINK_NOFOLLOW)?;
    net::listen(&socket, BACKLOG)?;
    Ok(socket)
}

/// Whether `name` in `dir` is the socket of this listener.
pub fn leads_to(dir: &OwnedFd, name: &str, listener: impl AsFd) -> bool {
    let Ok(stat) = fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW) else { return false };
    let at = time(&stat);
    // Some file systems (ext4 with small inodes) keep whole seconds only.
    let same = mark(listener).is_ok_and(|made| at == made || at == Timespec { tv_nsec: 0, ..made });
    FileType::from_raw_mode(stat.st_mode) == FileType::Socket && same
}

/// Connects to `name` in `dir`; a full queue is waited for, but not for ever (with `NONBLOCK` not at all).
pub fn connect(dir: &OwnedFd, name: &str, kind: SocketType, more: SocketFlags) -> Result<Foreign, Errno> {
    let socket = net::socket_with(AddressFamily::UNIX, kind, SocketFlags::CLOEXEC | more, None)?;
    sockopt::set_socket_timeout(&socket, sockopt::Timeout::Send, Some(PATIENCE))?;
    rustix::process::fchdir(dir)?;
    let connected = SocketAddrUnix::new(name).and_then(|name| net::connect(&socket, &name));
    let _ = rustix::process::chdir("/");
    connected.map(|()| socket.into())
}

/// Whether another process has a socket open as `name` in `dir`; another listener than `ours`.
pub fn is_alive(dir: &OwnedFd, name: &str, ours: Option<BorrowedFd>) -> Result<bool> {
    // Without waiting: whose it is, and whether that process ever accepts, is not known.
    match connect(dir, name, SocketType::STREAM, SocketFlags::NONBLOCK) {
        // The name that it was bound by; the inode of ours has another time where it was touched.
        Ok(connection) => {
            let bound = ours.and_then(|listener| net::getsockname(listener).ok());
            Ok(bound.is_none() || net::getpeername(&connection).ok().flatten() != bound)
        }
        // AGAIN: the queue is full. PROTOTYPE: a socket of another kind, which a process has open.
        Err(Errno::AGAIN | Errno::PROTOTYPE) => Ok(true),
        Err(Errno::CONNREFUSED | Errno::NOENT) => Ok(false),
        Err(e) => Err(e).context(format_args!("ask who serves {name}")),
    }
}

/// Takes the name away and brings it back, for what watches the directory. The kubelet does not look at names
/// that begin with a dot.
pub fn show_again(dir: &OwnedFd, name: &str) -> Result<()> {
    let aside = format!(".{name}");
    let away = fs::renameat(dir, name, dir, &aside);
    let back = away.and_then(|()| fs::renameat(dir, &aside, dir, name));
    back.context(format_args!("show {name} again"))
}

/// Refuses anything but a listening Unix stream socket with this cookie that a mounter made: the peer of a
/// listener (SO_PEERCRED) is the process that called listen(2).
pub fn check(fd: impl AsFd, cookie: u64) -> Result<()> {
    let fd = fd.as_fd();
    let listens = sockopt::socket_domain(fd) == Ok(AddressFamily::UNIX)
        && sockopt::socket_type(fd) == Ok(SocketType::STREAM)
        && sockopt::socket_acceptconn(fd) == Ok(true);
    if !listens || sockopt::socket_cookie(fd) != Ok(cookie) {
        bail!(Malformed, "the descriptor is not the listening Unix stream socket with that cookie");
    }
    match peer_uid(fd) {
        uid if uid == rustix::process::geteuid().as_raw() => Ok(()),
        uid => bail!(NotOurs, "the listener was made by uid {uid}, not by a mounter"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_of_ours_have_a_time() {
        assert_eq!(made_at(b".1795000000.000000042.sock"), Some((1_795_000_000, 42)));
        for other in
            ["", ".", ".sock", ".1.sock", "1.2.sock", ".1.2", ".a.2.sock", ".1.2.3.sock", "spire-agent.sock"]
        {
            assert_eq!(made_at(other.as_bytes()), None, "{other}");
        }
    }

    #[test]
    fn a_listener_is_told_from_its_successor_under_the_same_name() {
        let dir = tempfile::tempdir().unwrap();
        let held = std::fs::File::open(dir.path()).unwrap().into();
        let first = bind(&held, "name", SocketType::STREAM, 0o640).unwrap();
        assert!(leads_to(&held, "name", &first) && is_alive(&held, "name", None).unwrap());
        assert!(!is_alive(&held, "name", Some(first.as_fd())).unwrap());
        let second = bind(&held, "name", SocketType::STREAM, 0o640).unwrap();
        assert!(leads_to(&held, "name", &second) && !leads_to(&held, "name", &first));
        assert!(is_alive(&held, "name", Some(first.as_fd())).unwrap());
        // A file system without nanoseconds.
        let stat = fs::statat(&held, "name", AtFlags::SYMLINK_NOFOLLOW).unwrap();
        for (later, same) in [(0, true), (1, false)] {
            let time = Timespec { tv_sec: stat.st_mtime + later, tv_nsec: 0 };
            let times = Timestamps { last_access: time, last_modification: time };
            fs::utimensat(&held, "name", &times, AtFlags::SYMLINK_NOFOLLOW).unwrap();
            assert_eq!(leads_to(&held, "name", &second), same);
        }
        drop(second);
        assert!(!is_alive(&held, "name", None).unwrap() && !is_alive(&held, "other", None).unwrap());
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    }
}
