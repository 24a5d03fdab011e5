//! The listeners that the kubelet speaks to: connections of other users are refused, errors of `accept` are
//! survived.
//!
//! The mounter makes the sockets with mode 0600, for root; the check of the peer's uid also holds for a
//! process that got at the socket in another way. What is served on them is in [`server`].

pub mod server;

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener as StdListener;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use futures_util::Stream;
use futures_util::stream::unfold;
use seamount_sys::watch::explain;
use seamount_workload_api::authority_header::AuthorityHeaderFilter;
use seamount_workload_api::read_interest::ReadInterestStream;
use tokio::net::{UnixListener, UnixStream};

/// How long `accept` rests after an error such as the lack of descriptors, which would else spin.
const AFTER_ERROR: Duration = Duration::from_millis(100);

/// Makes a listener of tokio's from a descriptor. Needs a runtime.
pub fn listener(fd: OwnedFd) -> io::Result<UnixListener> {
    let listener = StdListener::from(fd);
    listener.set_nonblocking(true)?;
    UnixListener::from_std(listener).map_err(explain)
}

/// The connections of one uid; all others are closed at once. The uid may change; a connection that is judged
/// by the old one is as if it had come a moment earlier, so relaxed loads do.
///
/// One descriptor is held in reserve: where the process has no other left, it is given up for the connection,
/// so that a deletion gets in however many connections pods have made.
pub fn incoming(
    listener: UnixListener,
    uid: Arc<AtomicU32>,
    what: &'static str,
) -> impl Stream<Item = AuthorityHeaderFilter<ReadInterestStream>> {
    unfold((listener, uid, reserve()), move |(listener, uid, mut spare)| async move {
        loop {
            if spare.is_none() {
                spare = reserve();
            }
            match listener.accept().await {
                Ok((stream, _)) => match admit(stream, uid.load(Ordering::Relaxed)) {
                    Ok(stream) => return Some((stream, (listener, uid, spare))),
                    Err(why) => tracing::warn!(socket = what, "connection refused: {why}"),
                },
                Err(e) => {
                    tracing::warn!(socket = what, error = %explain(e), "accept failed");
                    // With the reserve the next attempt follows at once; without it, when something was
                    // closed.
                    if spare.take().is_none() {
                        tokio::time::sleep(AFTER_ERROR).await;
                    }
                    if let Ok(Ok((stream, _))) = tokio::time::timeout(AFTER_ERROR, listener.accept()).await
                        && let Ok(stream) = admit(stream, uid.load(Ordering::Relaxed))
                    {
                        return Some((stream, (listener, uid, spare)));
                    }
                }
            }
        }
    })
}

/// A descriptor that only takes up a place.
fn reserve() -> Option<OwnedFd> {
    std::fs::File::open("/dev/null").ok().map(OwnedFd::from)
}

/// The connection as it is served.
fn admit(stream: UnixStream, wanted: u32) -> Result<AuthorityHeaderFilter<ReadInterestStream>, String> {
    // Not rustix's call: it takes the pid 0, which the kubelet has in a container without hostPID, for an
    // error.
    let uid = stream.peer_cred().map_err(|e| format!("its peer cannot be seen ({e})"))?.uid();
    if uid != wanted {
        return Err(format!("the peer's uid is {uid}; only {wanted} may (kubeletUid)"));
    }
    Ok(AuthorityHeaderFilter::new(
        ReadInterestStream::new(stream).map_err(|e| format!("it cannot be watched ({e})"))?,
    ))
}

#[cfg(test)]
mod tests {
    use std::pin::pin;

    use futures_util::StreamExt as _;
    use tokio::io::AsyncReadExt as _;

    use super::*;

    #[tokio::test]
    async fn only_the_kubelets_uid_is_served() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let me = rustix::process::getuid().as_raw();
        let uid = Arc::new(AtomicU32::new(me + 1));
        let fd = OwnedFd::from(StdListener::bind(&path).unwrap());
        let mut incoming = pin!(incoming(listener(fd).unwrap(), Arc::clone(&uid), "test"));
        let serve = async {
            let mut refused = UnixStream::connect(&path).await.unwrap();
            assert_eq!(refused.read(&mut [0; 1]).await.unwrap(), 0, "must be closed");
            uid.store(me, Ordering::Relaxed);
            let _welcome = UnixStream::connect(&path).await.unwrap();
            std::future::pending::<()>().await;
        };
        tokio::select! {
            got = incoming.next() => assert!(got.is_some()),
            () = serve => unreachable!(),
        }
        assert_eq!(uid.load(Ordering::Relaxed), me, "the first connection was let in");
    }
}
