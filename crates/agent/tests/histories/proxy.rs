//! Stands between the real agent and the real mounter and mixes the answers up. It has the agent's uid, which
//! is the only one that the mounter serves.

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;

use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind, listen, socket_with};
use rustix::process::{Gid, Uid};
use seamount_mounter_client::Socket;
use seamount_mounter_protocol::{FRAME, Reply, Request};
use tokio::net::UnixListener;
use tokio_util::sync::CancellationToken;

use super::history::Mischief;
use super::mixer::{Mixer, Plan, send};

/// On a thread of its own, until cancelled. Returns when it listens.
pub fn start(at: PathBuf, mounter: PathBuf, uid: u32, plan: Arc<Plan>, cancel: CancellationToken) {
    let fd = socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).unwrap();
    bind(&fd, &SocketAddrUnix::new(&at).unwrap()).unwrap();
    std::fs::set_permissions(&at, std::os::unix::fs::PermissionsExt::from_mode(0o666)).unwrap();
    listen(&fd, 16).unwrap();
    std::thread::spawn(move || {
        // Of this thread alone.
        let (user, group) = (Uid::from_raw(uid), Gid::from_raw(uid));
        rustix::thread::set_thread_res_gid(group, group, group).unwrap();
        rustix::thread::set_thread_res_uid(user, user, user).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            tokio::select! {
                () = cancel.cancelled() => {}
                () = serve(fd, mounter, plan) => {}
            }
        });
    });
}

async fn serve(fd: OwnedFd, mounter: PathBuf, plan: Arc<Plan>) {
    let listener = std::os::unix::net::UnixListener::from(fd);
    listener.set_nonblocking(true).unwrap();
    // Only to accept: nothing is read or written as a stream.
    let listener = UnixListener::from_std(listener).unwrap();
    let mut mixer = Mixer::default();
    loop {
        let Ok((agent, _)) = listener.accept().await else { continue };
        let agent = Socket::from_fd(agent.into_std().unwrap().into()).unwrap();
        // A mounter that is not there is an agent's connection that ends.
        if let Ok(mounter) = Socket::connect(&mounter) {
            pass(&agent, &mounter, &plan, &mut mixer).await;
            mixer.late();
        }
    }
}

async fn pass(agent: &Socket, mounter: &Socket, plan: &Plan, mixer: &mut Mixer) {
    let mut planned: HashMap<u64, Mischief> = HashMap::new();
    loop {
        tokio::select! {
            () = plan.released.notified() => {
                if send(agent, mixer.late()).await.is_err() {
                    return;
                }
            }
            request = agent.receive() => {
                let Ok(received) = request else { return };
                let Ok(frame) = <&[u8; FRAME]>::try_from(received.bytes.as_slice()) else { return };
                if let Ok((id, request)) = Request::decode(frame)
                    && let Some(mischief) = plan.next(&request)
                {
                    if mischief == Mischief::CloseBefore {
                        return;
                    }
                    planned.insert(id, mischief);
                }
                if mounter.send(frame, received.fd.as_ref()).await.is_err() {
                    return;
                }
            }
            reply = mounter.receive() => {
                let Ok(received) = reply else { return };
                let Ok(reply) = Reply::decode(&received.bytes) else { return };
                let mischief = planned.remove(&reply.id);
                let Some(answers) = mixer.mix(mischief, (reply, received.fd.map(Arc::new))) else { return };
                if send(agent, answers).await.is_err() {
                    return;
                }
            }
        }
    }
}
