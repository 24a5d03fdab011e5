//! A workload, without a library that would hide an error behind a retry.

use std::os::fd::{AsRawFd as _, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{AtFlags, CWD, Mode, OFlags};
use seamount_proto::workload::spiffe_workload_api_client::SpiffeWorkloadApiClient;
use seamount_proto::workload::{X509svidRequest, X509svidResponse};
use tokio::net::UnixStream;
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Status, Streaming};

const SOCKET: &str = "spire-agent.sock";

/// A volume's directory as its pod holds it: by inode. A directory made anew at the same path is another one.
#[derive(Debug)]
pub struct Door(OwnedFd);

impl Door {
    /// Holds the directory at this path.
    ///
    /// # Errors
    /// If it is not there.
    pub fn open(path: &Path) -> std::io::Result<Self> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        Ok(Self(rustix::fs::openat(CWD, path, flags, Mode::empty())?))
    }

    /// Whether the directory that is at this path now is the one that is held.
    pub fn is_at(&self, path: &Path) -> bool {
        let (held, there) = (rustix::fs::fstat(&self.0), rustix::fs::stat(path));
        matches!((held, there), (Ok(a), Ok(b)) if (a.st_dev, a.st_ino) == (b.st_dev, b.st_ino))
    }

    /// Which socket is in the directory now, by device and inode.
    pub fn socket_now(&self) -> Option<(u64, u64)> {
        let stat = rustix::fs::statat(&self.0, SOCKET, AtFlags::SYMLINK_NOFOLLOW).ok()?;
        Some((stat.st_dev, stat.st_ino))
    }

    /// Short enough for sun_path.
    fn socket(&self) -> PathBuf {
        format!("/proc/self/fd/{}/{SOCKET}", self.0.as_raw_fd()).into()
    }

    /// A stream of the pod's SVIDs on a connection of its own.
    ///
    /// # Errors
    /// `Unavailable` if the socket cannot be connected to; else what the agent says.
    pub async fn stream(self: &Arc<Self>) -> Result<Streaming<X509svidResponse>, Status> {
        let door = Arc::clone(self);
        let connector = tower::service_fn(move |_| {
            let door = Arc::clone(&door);
            async move { UnixStream::connect(door.socket()).await.map(hyper_util::rt::TokioIo::new) }
        });
        let endpoint = Endpoint::from_static("http://localhost");
        let channel: Channel = endpoint.connect_with_connector(connector).await.map_err(|error| {
            let cause = std::error::Error::source(&error).map(ToString::to_string).unwrap_or_default();
            Status::unavailable(format!("cannot connect: {cause}"))
        })?;
        let mut request = Request::new(X509svidRequest {});
        request
            .metadata_mut()
            .insert("workload.spiffe.io", tonic::metadata::MetadataValue::from_static("true"));
        Ok(SpiffeWorkloadApiClient::new(channel).fetch_x509svid(request).await?.into_inner())
    }

    /// One new FetchX509SVID: the first answer of a new stream.
    ///
    /// # Errors
    /// Like [`Door::stream`].
    pub async fn fetch(self: &Arc<Self>) -> Result<X509svidResponse, Status> {
        let mut stream = self.stream().await?;
        stream.message().await?.ok_or_else(|| Status::unavailable("the stream ended without an answer"))
    }
}

/// The leaf certificate at the beginning of a chain of DER certificates; empty where there is none.
pub fn leaf(chain: &[u8]) -> &[u8] {
    // A SEQUENCE with a length of two bytes (X.690, 8.1.3): every certificate has one.
    match chain {
        [0x30, 0x82, high, low, ..] => {
            let length = 4 + usize::from(u16::from_be_bytes([*high, *low]));
            chain.get(..length).unwrap_or_default()
        }
        _ => &[],
    }
}

/// Whether a certificate has this URI as a subject alternative name: `[6]`, its length, the URI (RFC 5280,
/// 4.2.1.6).
pub fn names(certificate: &[u8], uri: &str) -> bool {
    let Ok(length) = u8::try_from(uri.len()) else { return false };
    let mut wanted = vec![0x86, length];
    wanted.extend(uri.bytes());
    length < 0x80 && certificate.windows(wanted.len()).any(|window| window == wanted)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_certificate_says_whose_it_is() {
        let uri = "spiffe://example.org/ns/shop/sa/a";
        let mut params = rcgen::CertificateParams::default();
        let san = |uri: &str| uri.try_into().map(rcgen::SanType::URI);
        params.subject_alt_names.extend(san(uri));
        let made = rcgen::KeyPair::generate().and_then(|key| params.self_signed(&key));
        let der = made.map(|c| c.der().to_vec()).unwrap_or_default();
        assert!(names(&der, uri));
        assert!(!names(&der, "spiffe://example.org/ns/shop/sa/") && !names(&der, &format!("{uri}b")));
        let chain = [der.clone(), der.clone()].concat();
        assert_eq!(leaf(&chain), der);
        assert_eq!(leaf(&chain[..100]), b"");
        assert_eq!(leaf(b""), b"");
    }
}
