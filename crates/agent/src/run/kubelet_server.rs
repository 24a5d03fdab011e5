//! One of the kubelet's two sockets: its listener, and the server behind it.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::AtomicU32;
use std::time::Duration;

use seamount_mounter_client::Listener;
use tokio::net::UnixListener;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::endpoint::{self, server};

/// A listener that is served once it is open. Connections wait in its queue until then.
///
/// One task owns it (the one that attaches), so opening and closing never meet. The holder of the listener's
/// other copies (the mounter) is not disturbed by closing: what was not accepted waits for the next server.
pub(super) struct KubeletServer {
    what: &'static str,
    cookie: u64,
    /// For the mounter to keep, should it come back without.
    kept: Arc<OwnedFd>,
    listener: Option<UnixListener>,
    cancel: CancellationToken,
    task: Option<JoinHandle<()>>,
}

impl KubeletServer {
    /// Not open yet. Needs a tokio runtime.
    pub fn new(what: &'static str, listener: Listener) -> io::Result<Self> {
        let Listener { fd, cookie, existing } = listener;
        tracing::debug!(socket = what, cookie, existing, "listener from the mounter");
        let kept = Arc::new(fd.try_clone()?);
        let listener = Some(endpoint::listener(fd)?);
        Ok(Self { what, cookie, kept, listener, cancel: CancellationToken::new(), task: None })
    }

    /// The listener's `SO_COOKIE`.
    pub fn cookie(&self) -> u64 {
        self.cookie
    }

    /// The listener, to be given to the mounter.
    pub fn kept(&self) -> Arc<OwnedFd> {
        Arc::clone(&self.kept)
    }

    /// Serves these to this uid. Does nothing where it is open already.
    pub fn open(&mut self, services: server::Services, uid: Arc<AtomicU32>) {
        let Some(listener) = self.listener.take() else { return };
        let incoming = endpoint::incoming(listener, uid, self.what);
        self.task = Some(tokio::spawn(server::serve(incoming, services, self.what, self.cancel.clone())));
    }

    /// Accepts nothing more, and gives the calls in flight this long. The socket stays: the mounter keeps it.
    pub async fn close(mut self, limit: Duration) {
        self.cancel.cancel();
        if let Some(task) = &mut self.task
            && tokio::time::timeout(limit, &mut *task).await.is_err()
        {
            tracing::warn!(socket = self.what, "calls in flight did not finish in time");
            task.abort();
        }
    }
}
