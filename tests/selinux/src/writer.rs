//! The agent's part of a file volume, played: the agent does not publish files yet, the mounter can.

use std::fmt::Display;
use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::str::FromStr;
use std::time::Duration;

use anyhow::{Context as _, bail};
use rustix::fs::{Mode, OFlags, fchmod, mkdirat, openat, renameat, symlinkat};
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendFlags,
    SocketAddrUnix, SocketFlags, SocketType, connect, recvmsg, sendmsg, socket_with,
};
use seamount_mounter_protocol::names::Volume;
use seamount_mounter_protocol::{FRAME, Reply, Request};

/// Publishes a tmpfs and writes one more version of `key` into it, as the kubelet's own writer does: a
/// directory, then links that change in one rename.
pub fn publish(socket: &str, pod: &str, name: &str, id: &str) -> anyhow::Result<()> {
    let volume =
        Volume { driver: parse(crate::stage::DRIVER)?, pod: parse(pod)?, name: parse(name)?, id: parse(id)? };
    let mounter = socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)
        .context("socket")?;
    connect(&mounter, &SocketAddrUnix::new(socket)?).context("connect to the mounter")?;
    set_socket_timeout(&mounter, Timeout::Recv, Some(Duration::from_secs(10)))?;

    let (_, fd) =
        ask(&mounter, 1, &Request::PublishTmpfs { volume: volume.clone(), gid: 1000, size: 1 << 20 })?;
    let dir = fd.context("no directory came along")?;
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)?;
    let version = format!("..{}", now.as_nanos());
    mkdirat(&dir, &version, Mode::from_raw_mode(0o755)).context("make the version's directory")?;
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL;
    let file = openat(&dir, format!("{version}/key"), flags, Mode::empty()).context("make the file")?;
    rustix::io::write(&file, version.as_bytes()).context("write the file")?;
    fchmod(&file, Mode::from_raw_mode(0o444)).context("set the file's mode")?;
    symlinkat(&version, &dir, "..data_tmp").context("make the link")?;
    renameat(&dir, "..data_tmp", &dir, "..data").context("rename the link")?;
    let linked = symlinkat("..data/key", &dir, "key");
    linked
        .or_else(|e| if e == rustix::io::Errno::EXIST { Ok(()) } else { Err(e) })
        .context("link the file")?;
    ask(&mounter, 2, &Request::SetOwnership { volume, version: version.clone() })?;
    println!("ok {version} settled");
    Ok(())
}

fn ask(mounter: &OwnedFd, id: u64, request: &Request) -> anyhow::Result<(Reply, Option<OwnedFd>)> {
    let mut none = SendAncillaryBuffer::default();
    sendmsg(mounter, &[IoSlice::new(&request.encode(id))], &mut none, SendFlags::NOSIGNAL).context("ask")?;
    let mut frame = [0; FRAME];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let into = &mut [IoSliceMut::new(&mut frame)];
    let received = recvmsg(mounter, into, &mut control, RecvFlags::CMSG_CLOEXEC).context("receive")?;
    let mut fds = control.drain().filter_map(|message| match message {
        RecvAncillaryMessage::ScmRights(rights) => Some(rights),
        _ => None,
    });
    let fd = fds.next().and_then(|mut rights| rights.next());
    let reply = Reply::decode(frame.get(..received.bytes).unwrap_or_default())?;
    if let Some(fault) = reply.fault {
        bail!("the mounter refused: {fault:?} {}", reply.text);
    }
    if !reply.answers(id, request) {
        bail!("the answer is to something else: {reply:?}");
    }
    Ok((reply, fd))
}

fn parse<T: FromStr<Err: Display>>(text: &str) -> anyhow::Result<T> {
    text.parse().map_err(|e| anyhow::anyhow!("{text}: {e}"))
}
