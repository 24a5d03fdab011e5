//! Whether a reply and the descriptor beside it may be believed.

use std::os::fd::{AsFd, OwnedFd};

use rustix::net::{AddressFamily, SocketType, sockopt};
use seamount_mounter_protocol::{Fault, Reply, Request, flag};
use seamount_sys::peer::peer_uid;

use super::{Answer, MounterError, operation};
use crate::socket::Received;

/// What has to come along with a successful reply.
enum Wanted {
    Nothing,
    Listener,
    /// A listener, or none where another driver's mount is there.
    ListenerOrForeign,
    /// A listener where the reply has a cookie.
    ListenerByCookie,
    Directory,
}

fn wanted(request: &Request) -> Wanted {
    match request {
        Request::CsiListener(_) | Request::RegistrationListener(_) => Wanted::Listener,
        Request::PublishIdentity(_) => Wanted::ListenerOrForeign,
        Request::Inspect(_) | Request::List { .. } => Wanted::ListenerByCookie,
        Request::State | Request::PublishTmpfs { .. } => Wanted::Directory,
        Request::Hello
        | Request::SetOwnership { .. }
        | Request::PublishDirectory(_)
        | Request::Unpublish(_)
        | Request::StoreListener { .. }
        | Request::Offer(_) => Wanted::Nothing,
    }
}

/// Takes a reply for the answer to this request, or closes what came with it. `mounter`: the uid at the other
/// end.
pub(super) fn answer(
    id: u64,
    request: &Request,
    reply: Reply,
    received: Received,
    mounter: u32,
) -> Result<Answer, MounterError> {
    let operation = operation(request);
    let untrusted = |why: &str| Err(MounterError::Untrusted { operation, why: why.to_owned() });
    // A request that the mounter could not read is refused by its id alone.
    let unread = reply.op == 0 && reply.id == id && reply.fault.is_some();
    if !unread && !reply.answers(id, request) {
        return untrusted("it answers another request");
    }
    if let Some(fault) = reply.fault {
        return Err(MounterError::Fault { operation, fault, text: reply.text });
    }
    if received.truncated {
        return Err(MounterError::Fault {
            operation,
            fault: Fault::Exhausted,
            text: "its descriptor was lost on the way: the agent is out of file descriptors".to_owned(),
        });
    }
    if received.extra {
        return untrusted("more than one descriptor came along");
    }
    let fd = received.fd;
    match (wanted(request), &fd, reply.cookie) {
        (Wanted::Nothing, None, _) | (Wanted::ListenerByCookie, None, 0) => {}
        (Wanted::ListenerOrForeign, None, 0) if reply.flags & flag::FOREIGN != 0 => {}
        (Wanted::Listener | Wanted::ListenerOrForeign | Wanted::ListenerByCookie, Some(fd), cookie) => {
            if let Err(why) = listener(fd, cookie, mounter) {
                return untrusted(&why);
            }
        }
        (Wanted::Directory, Some(fd), _) => {
            if let Err(why) = directory(fd) {
                return untrusted(&why);
            }
        }
        (Wanted::Nothing, Some(_), _) => return untrusted("a descriptor came along that was not asked for"),
        (_, None, _) => return untrusted("no descriptor came along"),
    }
    Ok(Answer { reply, fd })
}

/// A listening Unix stream socket with this cookie that was made by the mounter's uid: the peer of a listener
/// (SO_PEERCRED) is the process that called listen(2). What an agent before this one has made, perhaps
/// together with a pod, is not served.
pub(super) fn listener(fd: &OwnedFd, cookie: u64, mounter: u32) -> Result<(), String> {
    let fd = fd.as_fd();
    let failed = |e: rustix::io::Errno| format!("its descriptor is not a socket ({e})");
    if sockopt::socket_domain(fd).map_err(failed)? != AddressFamily::UNIX
        || sockopt::socket_type(fd).map_err(failed)? != SocketType::STREAM
    {
        return Err("its descriptor is not a Unix stream socket".to_owned());
    }
    if !sockopt::socket_acceptconn(fd).map_err(failed)? {
        return Err("its socket does not listen".to_owned());
    }
    let actual = sockopt::socket_cookie(fd).map_err(failed)?;
    if cookie == 0 || actual != cookie {
        return Err(format!("its socket has the cookie {actual}, the reply says {cookie}"));
    }
    let maker = peer_uid(fd);
    if maker != mounter {
        return Err(format!("its socket was made by uid {maker}, the mounter has {mounter}"));
    }
    Ok(())
}

fn directory(fd: &OwnedFd) -> Result<(), String> {
    let stat = rustix::fs::fstat(fd).map_err(|e| format!("its descriptor cannot be looked at ({e})"))?;
    if rustix::fs::FileType::from_raw_mode(stat.st_mode) != rustix::fs::FileType::Directory {
        return Err("its descriptor is not a directory".to_owned());
    }
    Ok(())
}
