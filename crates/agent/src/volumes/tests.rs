//! Against a simulated mounter and a simulated authority, which answers when the test lets it.

mod authority;
mod directory;
mod issuer;
mod lifecycle;
mod successor;

pub(super) use issuer::Issuer;

use super::entry::VolumeStatus;
use super::identity::binding::Awaits;
use super::*;
use crate::csi::request::{Parameters, PublishRequest};
use crate::source::Signer;
use rustix::net::{
    AddressFamily, SocketAddrUnix, SocketFlags, SocketType, accept_with, bind, listen, socket_with, sockopt,
};
use seamount_authority::{
    Authority, AuthorityError, BoxFuture, Embedded, EmbeddedConfig, IdTemplate, Workload, new_key_and_csr,
};
use seamount_identity::{BundleSet, KeyType, TrustDomain};
use seamount_mounter_client::Socket;
use seamount_mounter_protocol::{Fault, Reply, Request, Subject, flag};
use seamount_pod_token::{Claims, DatedToken, Token};
use seamount_telemetry::metrics::Area as _;
use seamount_workload_api::{self as workload_api, IdentityState};
use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::path::Path;
use tokio_util::sync::CancellationToken;

const POD: &str = "3f2c1a9e-0b1d-4c5e-8f70-a1b2c3d4e5f6";
const LONG: Duration = Duration::from_secs(60);

/// What the authority does with its next request.
enum Answer {
    Sign,
    /// Nothing, for it is away.
    Away,
    /// A refusal.
    Deny,
    /// A certificate for another service account.
    OtherId,
    /// A certificate for another key.
    OtherKey,
    /// A fault of the agent.
    Panic,
}

/// Signs when it is told to.
struct Played {
    inner: Embedded,
    answers: tokio::sync::Mutex<tokio::sync::mpsc::UnboundedReceiver<Answer>>,
}

impl Authority for Played {
    fn trust_domain(&self) -> &TrustDomain {
        self.inner.trust_domain()
    }

    fn sign<'a>(
        &'a self,
        csr: &'a [u8],
        workload: &'a Workload,
        token: &'a str,
    ) -> BoxFuture<'a, Result<Vec<rustls_pki_types::CertificateDer<'static>>, AuthorityError>> {
        Box::pin(async move {
            let answer = self.answers.lock().await.recv().await;
            match answer {
                None => Err(AuthorityError::Unavailable("closed".to_owned())),
                Some(Answer::Away) => Err(AuthorityError::Unavailable("no route to it".to_owned())),
                Some(Answer::Deny) => Err(AuthorityError::Denied("not this one".to_owned())),
                Some(Answer::Sign) => self.inner.sign(csr, workload, token).await,
                Some(Answer::OtherId) => {
                    let other = Workload { service_account: "admin".to_owned(), ..workload.clone() };
                    self.inner.sign(csr, &other, token).await
                }
                // Without the hook that prints: a panic that is wanted looks like a failure in the output.
                Some(Answer::Panic) => std::panic::resume_unwind(Box::new("as the test wants it")),
                Some(Answer::OtherKey) => {
                    let (_, csr) = new_key_and_csr(KeyType::EcP256)?;
                    self.inner.sign(&csr, workload, token).await
                }
            }
        })
    }

    fn bundles(&self) -> watch::Receiver<Arc<BundleSet>> {
        self.inner.bundles()
    }
}

struct Silent;

impl workload_api::Observer for Silent {
    fn connection(&self, _: i64) {}
    fn stream(&self, _: i64) {}
    fn refused(&self, _: &'static str) {}
}

fn at(second: u64) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(second)
}

struct World {
    dir: tempfile::TempDir,
    issuer: Arc<Issuer>,
    volumes: Arc<Volumes>,
    answers: tokio::sync::mpsc::UnboundedSender<Answer>,
    source: watch::Sender<Source>,
    cancel: CancellationToken,
}

/// An authority with a root of its own, as the played ones have it inside, and its template.
pub(super) fn embedded(svid_ttl: Duration) -> (Embedded, IdTemplate) {
    let domain: TrustDomain = "example.org".parse().unwrap();
    let template = IdTemplate::parse(crate::config::ID_TEMPLATE, &domain).unwrap();
    let inner = Embedded::new(EmbeddedConfig {
        trust_domain: domain,
        template: template.clone(),
        key_type: KeyType::EcP256,
        ca_ttl: Duration::from_secs(24 * 3600),
        svid_ttl,
        directory: None,
    })
    .unwrap();
    (inner, template)
}

/// One that does as it is told, and what tells it.
fn authority(svid_ttl: Duration) -> (Signer, tokio::sync::mpsc::UnboundedSender<Answer>) {
    let (inner, template) = embedded(svid_ttl);
    let (answers, receiver) = tokio::sync::mpsc::unbounded_channel();
    let authority = Arc::new(Played { inner, answers: tokio::sync::Mutex::new(receiver) });
    let template = Arc::new(template);
    (Signer { authority, template, key_type: KeyType::EcP256, trouble: None }, answers)
}

impl Drop for World {
    fn drop(&mut self) {
        self.cancel.cancel();
    }
}

impl World {
    async fn new() -> Self {
        Self::with_lifetime(Duration::from_secs(3600)).await
    }

    /// With SVIDs that live so long.
    async fn with_lifetime(svid_ttl: Duration) -> Self {
        seamount_telemetry::logging::captured::every_thread();
        let dir = tempfile::tempdir().unwrap();
        let cancel = CancellationToken::new();
        tokio::spawn(mounter(dir.path().to_owned()));
        let path = dir.path().join("m");
        while !path.exists() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let client = Client::start(path, cancel.clone());
        let (signer, answers) = authority(svid_ttl);
        let (sender, source) = watch::channel(Source::Authority(signer));
        let options = ServeOptions {
            tenants: tenants(),
            volumes: Arc::new(Semaphore::new(64)),
            pending: LONG,
            descriptors: u64::MAX,
            observer: Arc::new(Silent),
        };
        let issuer = Arc::<Issuer>::default();
        let volumes = Volumes::new(client, source, Arc::clone(&issuer) as _, options, Arc::default());
        std::fs::create_dir(dir.path().join("state")).unwrap();
        let state: OwnedFd = std::fs::File::open(dir.path().join("state")).unwrap().into();
        volumes.set_state(Ok(Arc::new(StateDir::new(state))));
        volumes.restore().await.unwrap();
        tokio::spawn(Arc::clone(&volumes).keep_fresh(cancel.clone()));
        Self { dir, issuer, volumes, answers, source: sender, cancel }
    }

    async fn publish(&self, account: &str) -> Result<(), VolumeError> {
        let (request, claims) = request(account);
        let workload = crate::csi::request::bind(&request, &claims, "node-1").unwrap();
        let token = DatedToken::new(Token::new(format!("token of {account}")), &claims);
        self.volumes.publish(&request, workload, token).await
    }

    /// As an agent that comes after this one finds everything.
    async fn restart(&self) -> restore::Restored {
        for entry in self.volumes.all_of::<Identity>() {
            let serving = entry.slot.lock().await.state.serving.take();
            if let Some(serving) = serving {
                serving.stop().await;
            }
        }
        self.volumes.entries().clear();
        self.volumes.schedule.due.lock().unwrap().clear();
        self.volumes.restored.store(false, Ordering::Release);
        self.volumes.restore().await.unwrap()
    }

    fn identity(&self) -> Option<String> {
        let entry = self.volumes.get_of::<Identity>(&volume())?;
        let slot = entry.slot.try_lock().ok()?;
        slot.state.held.as_ref().map(|h| h.svid.id().to_string())
    }

    /// The root is replaced, and all have been looked at for that.
    async fn replace_root(&mut self) {
        let never = SystemTime::now() + Duration::from_secs(3600);
        *self.volumes.schedule.soonest.lock().unwrap() = never;
        let (signer, answers) = authority(Duration::from_secs(3600));
        self.answers = answers;
        self.source.send_replace(Source::Authority(signer));
        self.until("the look at all", || *self.volumes.schedule.soonest.lock().unwrap() != never).await;
    }

    /// Whether clients that trust the root of now trust the identity.
    fn is_trusted(&self) -> bool {
        let Some(entry) = self.volumes.get_of::<Identity>(&volume()) else { return false };
        let Ok(slot) = entry.slot.try_lock() else { return false };
        let Source::Authority(signer) = &*self.source.borrow() else { return false };
        let bundles = signer.authority.bundles().borrow().clone();
        slot.state
            .held
            .as_ref()
            .is_some_and(|held| held.svid.verify(bundles.own(), SystemTime::now()).is_ok())
    }

    fn failure(&self) -> String {
        let entry = self.volumes.get_of::<Identity>(&volume()).unwrap();
        let view = entry.view();
        view.status.failure.as_deref().unwrap_or_default().to_owned()
    }

    async fn until(&self, what: &str, condition: impl Fn() -> bool) {
        let start = std::time::Instant::now();
        while !condition() {
            assert!(
                start.elapsed() < LONG,
                "waited in vain for {what}: {:?}, {}",
                self.identity(),
                self.failure()
            );
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}

/// Where nothing is bounded that these tests look at.
pub(super) fn tenants() -> Arc<Tenants> {
    Tenants::new(workload_api::Limits::default(), workload_api::Node::unbounded(), 16)
}

pub(super) fn volume() -> Volume {
    let driver = "csi.spiffe.io".parse().unwrap();
    Volume { driver, pod: POD.parse().unwrap(), name: "id".parse().unwrap(), id: "csi-1".parse().unwrap() }
}

pub(super) fn request(account: &str) -> (PublishRequest, Claims) {
    let claims = Claims {
        namespace: "shop".to_owned(),
        service_account: account.to_owned(),
        service_account_uid: "1".to_owned(),
        pod_name: "web-1".to_owned(),
        pod_uid: POD.to_owned(),
        node: "node-1".to_owned(),
        issued: SystemTime::UNIX_EPOCH,
        expires: SystemTime::now() + Duration::from_secs(3600),
    };
    let mut parameters = [0; 32];
    parameters[..account.len()].copy_from_slice(account.as_bytes());
    let request = PublishRequest {
        volume: volume(),
        pod_name: claims.pod_name.clone(),
        namespace: claims.namespace.clone(),
        service_account: account.to_owned(),
        token: None,
        parameters: Parameters(parameters),
    };
    (request, claims)
}

/// A mounter that makes sockets in a directory, for one agent. Publishing the volume `dead` by the
/// `directory` source says that the source was recreated; looking at `broken` fails. With a file `anew` it
/// has no listener, and says in `stored` that it was given one.
async fn mounter(dir: std::path::PathBuf) {
    let fd = socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).unwrap();
    bind(&fd, &SocketAddrUnix::new(dir.join("m.new")).unwrap()).unwrap();
    listen(&fd, 8).unwrap();
    std::fs::rename(dir.join("m.new"), dir.join("m")).unwrap();
    let accepted = tokio::task::spawn_blocking(move || {
        accept_with(&fd, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK).unwrap()
    });
    let socket = Socket::from_fd(accepted.await.unwrap()).unwrap();
    let mut kept: HashMap<Volume, OwnedFd> = HashMap::new();
    let mut directories: Vec<Volume> = Vec::new();
    loop {
        let Ok(received) = socket.receive().await else { return };
        let Ok((id, request)) = Request::decode(&received.bytes) else { return };
        let mut reply = Reply::to(id, &request);
        let mut along = None;
        match &request {
            Request::PublishIdentity(_) if dir.join("foreign").exists() => reply.flags = flag::FOREIGN,
            Request::PublishIdentity(_) if dir.join("gone").exists() => reply.fault = Some(Fault::NotFound),
            Request::PublishIdentity(volume) => {
                reply.flags = if kept.contains_key(volume) { flag::EXISTING } else { 0 };
                let fd = kept.entry(volume.clone()).or_insert_with(|| bound(&dir, volume));
                reply.cookie = sockopt::socket_cookie(&*fd).unwrap();
                along = Some(fd.try_clone().unwrap());
            }
            Request::Unpublish(_) if dir.join("stuck").exists() => reply.fault = Some(Fault::System),
            Request::Unpublish(volume) if kept.keys().any(|k| key(k) == key(volume) && k != volume) => {
                reply.fault = Some(Fault::NotOurs);
            }
            Request::Unpublish(volume) => {
                kept.remove(volume);
                directories.retain(|d| d != volume);
                let _ = std::fs::remove_file(dir.join(volume.name.as_str()));
            }
            // One that has come anew has no listener.
            Request::StoreListener { subject: Subject::Volume(_), .. } if dir.join("anew").exists() => {
                std::fs::write(dir.join("stored"), "").unwrap();
            }
            Request::StoreListener { .. } => reply.fault = Some(Fault::Busy),
            Request::PublishDirectory(volume) => {
                let dead = volume.name.as_str() == "dead" && !directories.contains(volume);
                reply.flags = flag::DIRECTORY | if dead { flag::STALE } else { 0 };
                directories.push(volume.clone());
            }
            Request::Inspect(volume) => match volume.name.as_str() {
                "broken" => reply.fault = Some(Fault::System),
                _ if directories.contains(volume) => reply.flags = flag::DIRECTORY,
                _ => reply.flags = flag::IDENTITY | flag::SOCKET,
            },
            Request::List { cursor } => {
                let identities = kept.keys().map(|volume| (volume, flag::IDENTITY | flag::SOCKET));
                let mut all: Vec<_> =
                    directories.iter().map(|volume| (volume, flag::DIRECTORY)).chain(identities).collect();
                all.sort_by_key(|(volume, _)| volume.to_string());
                match all.get(*cursor as usize) {
                    Some((found, flags)) => {
                        (reply.subject, reply.flags) = (Subject::Volume((*found).clone()), *flags)
                    }
                    None => reply.fault = Some(Fault::NotFound),
                }
            }
            _ => {}
        }
        socket.send(&reply.encode(), along.as_ref()).await.unwrap();
    }
}

fn bound(dir: &Path, volume: &Volume) -> OwnedFd {
    UnixListener::bind(dir.join(volume.name.as_str())).unwrap().into()
}
