//! A pod's program: it connects to a socket, by the path or by an inode that it held on to, and listens to a
//! stream.

use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use hyper_util::rt::TokioIo;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use seamount_identity::{PrivateKey, X509Svid};
use seamount_proto::workload::X509svidRequest;
use seamount_proto::workload::spiffe_workload_api_client::SpiffeWorkloadApiClient;
use tokio_util::task::AbortOnDropHandle;
use tonic::Request;
use tonic::transport::Endpoint;

/// An open FetchX509SVID stream.
pub struct Stream {
    /// The connection once more, to see whether it is cut.
    connection: OwnedFd,
    said: Arc<Mutex<Vec<String>>>,
    _task: AbortOnDropHandle<()>,
}

/// Connects by a path of any length.
fn connect(path: &Path) -> std::io::Result<UnixStream> {
    let (Some(directory), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(std::io::ErrorKind::InvalidInput.into());
    };
    let held = std::fs::File::open(directory)?;
    let fd = std::os::fd::AsRawFd::as_raw_fd(&held);
    UnixStream::connect(Path::new(&format!("/proc/self/fd/{fd}")).join(name))
}

impl Stream {
    pub fn open(path: &Path) -> std::io::Result<Self> {
        let stream = connect(path)?;
        stream.set_nonblocking(true)?;
        let connection = stream.try_clone()?.into();
        let said = Arc::default();
        let task = tokio::spawn(listen(stream, Arc::clone(&said)));
        Ok(Self { connection, said, _task: AbortOnDropHandle::new(task) })
    }

    /// The SPIFFE IDs that came, in their order.
    pub fn said(&self) -> Vec<String> {
        self.said.lock().unwrap().clone()
    }

    /// Whether the other side has closed the connection, now.
    pub fn is_cut(&self) -> bool {
        let mut fds = [PollFd::from_borrowed_fd(self.connection.as_fd(), PollFlags::RDHUP)];
        poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })).unwrap();
        fds[0].revents().intersects(PollFlags::HUP | PollFlags::RDHUP | PollFlags::ERR)
    }

    /// Waits for the first answer or the connection's end.
    pub async fn wait(&self, limit: Duration) {
        let start = Instant::now();
        while self.said.lock().unwrap().is_empty() && !self.is_cut() && start.elapsed() < limit {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        // What came before the end may not have been read yet.
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

async fn listen(stream: UnixStream, said: Arc<Mutex<Vec<String>>>) {
    let mut stream = Some(stream);
    let connector = tower::service_fn(move |_| {
        let stream = stream.take().ok_or(std::io::ErrorKind::NotConnected);
        async move { tokio::net::UnixStream::from_std(stream?).map(TokioIo::new) }
    });
    let channel = Endpoint::from_static("http://localhost").connect_with_connector(connector).await;
    let Ok(channel) = channel else { return };
    let mut request = Request::new(X509svidRequest {});
    request.metadata_mut().insert("workload.spiffe.io", "true".parse().unwrap());
    let Ok(answers) = SpiffeWorkloadApiClient::new(channel).fetch_x509svid(request).await else { return };
    let mut answers = answers.into_inner();
    while let Ok(Some(answer)) = answers.message().await {
        let mut said = said.lock().unwrap();
        for svid in answer.svids {
            let key = PrivateKey::from_pkcs8_der(&svid.x509_svid_key).unwrap();
            let parsed = X509Svid::parse(&svid.x509_svid, key).unwrap();
            assert_eq!(parsed.id().to_string(), svid.spiffe_id, "the certificate is another's");
            said.push(svid.spiffe_id);
        }
    }
}

/// Whether nobody accepts connections at a socket's inode.
pub fn is_dead(path: &Path) -> bool {
    match connect(path) {
        Ok(_) => false,
        Err(e) => matches!(e.kind(), std::io::ErrorKind::ConnectionRefused | std::io::ErrorKind::NotFound),
    }
}
