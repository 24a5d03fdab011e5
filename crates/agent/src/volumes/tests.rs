//! Against a simulated mounter and a simulated authority, which answers when the test lets it.

mod authority;
mod external;
mod issuer;
mod successor;

pub(super) use issuer::Issuer;

use super::*;
use crate::mounter::Socket;
use crate::source::Signer;
use crate::token::{Claims, Token};
use rustix::net::{
    AddressFamily, SocketAddrUnix, SocketFlags, SocketType, accept_with, bind, listen, socket_with, sockopt,
};
use seamount_identity::authority::{
    Authority, AuthorityError, BoxFuture, Embedded, EmbeddedConfig, IdTemplate, KeyType, new_key_and_csr,
};
use seamount_identity::{BundleSet, TrustDomain, workload_api};
use seamount_mounter_protocol::{Fault, Reply, Request, Subject};
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
    /// A certificate for somebody else's service account.
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

/// One that does as it is told, and who tells it.
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
        crate::logging::captured::every_thread();
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
        for entry in self.volumes.all() {
            let serving = entry.slot.lock().await.serving.take();
            if let Some(serving) = serving {
                serving.stop().await;
            }
        }
        self.volumes.entries().clear();
        self.volumes.due.lock().unwrap().clear();
        self.volumes.restored.store(false, Ordering::Release);
        self.volumes.restore().await.unwrap()
    }

    fn identity(&self) -> Option<String> {
        let entry = self.volumes.get(&volume())?;
        let slot = entry.slot.try_lock().ok()?;
        slot.held.as_ref().map(|h| h.svid.id().to_string())
    }

    /// The root is replaced, and all have been looked at for that.
    async fn replace_root(&mut self) {
        let never = SystemTime::now() + Duration::from_secs(3600);
        *self.volumes.soonest.lock().unwrap() = never;
        let (signer, answers) = authority(Duration::from_secs(3600));
        self.answers = answers;
        self.source.send_replace(Source::Authority(signer));
        self.until("the look at all", || *self.volumes.soonest.lock().unwrap() != never).await;
    }

    /// Whether clients that trust the root of now trust the identity.
    fn is_trusted(&self) -> bool {
        let Some(entry) = self.volumes.get(&volume()) else { return false };
        let Ok(slot) = entry.slot.try_lock() else { return false };
        let Source::Authority(signer) = &*self.source.borrow() else { return false };
        let bundles = signer.authority.bundles().borrow().clone();
        slot.held.as_ref().is_some_and(|held| held.svid.verify(bundles.own(), SystemTime::now()).is_ok())
    }

    fn failure(&self) -> String {
        let entry = self.volumes.get(&volume()).unwrap();
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
/// `directory` source says that the source was recreated; looking at `broken` fails.
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
            Request::Unpublish(volume) if kept.keys().any(|k| key(k) == key(volume) && k.id != volume.id) => {
                reply.fault = Some(Fault::NotOurs);
            }
            Request::Unpublish(volume) => {
                kept.remove(volume);
                directories.retain(|d| d != volume);
                let _ = std::fs::remove_file(dir.join(volume.name.as_str()));
            }
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

#[tokio::test]
async fn a_publish_does_not_wait_for_the_authority() {
    let world = World::new().await;
    world.publish("frontend").await.unwrap();
    assert_eq!(world.identity(), None);
    world.answers.send(Answer::Sign).unwrap();
    world.until("the identity", || world.identity().is_some()).await;
    assert_eq!(world.identity().unwrap(), "spiffe://example.org/ns/shop/sa/frontend");
}

#[tokio::test]
async fn a_late_certificate_never_lands_on_a_newer_incarnation() {
    let world = World::new().await;
    world.publish("frontend").await.unwrap();
    // The authority has the first request; the pod goes and another one's volume comes in its place.
    let entry = world.volumes.get(&volume()).unwrap();
    world.until("a request to the authority", || entry.view().signing).await;
    tokio::time::sleep(Duration::from_millis(50)).await;
    world.volumes.unpublish(&volume()).await.unwrap();
    world.publish("database").await.unwrap();
    world.answers.send(Answer::Sign).unwrap();
    world.answers.send(Answer::Sign).unwrap();
    world.until("the identity", || world.identity().is_some()).await;
    assert_eq!(world.identity().unwrap(), "spiffe://example.org/ns/shop/sa/database");
    let record = world.volumes.state().unwrap().get(&volume().pod, &volume().name).unwrap().unwrap();
    assert_eq!(record.svid.unwrap().spiffe_id, "spiffe://example.org/ns/shop/sa/database");
}

#[tokio::test]
async fn a_certificate_for_a_volume_that_is_gone_is_thrown_away() {
    let world = World::new().await;
    world.publish("frontend").await.unwrap();
    let entry = world.volumes.get(&volume()).unwrap();
    world.until("a request to the authority", || entry.view().signing).await;
    tokio::time::sleep(Duration::from_millis(50)).await;
    world.volumes.unpublish(&volume()).await.unwrap();
    world.answers.send(Answer::Sign).unwrap();
    let start = std::time::Instant::now();
    while entry.view().signing {
        assert!(start.elapsed() < LONG);
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert!(entry.slot.lock().await.held.is_none(), "a key was kept for a volume that is gone");
    assert!(world.volumes.state().unwrap().list().unwrap().is_empty(), "a record was written");
    let metrics = world.volumes.metrics.encode().unwrap();
    assert!(!metrics.contains("state=\"ready\"} 1"), "it is counted: {metrics}");
}

#[tokio::test]
async fn what_the_authority_signs_is_checked() {
    let world = World::new().await;
    world.publish("frontend").await.unwrap();
    world.answers.send(Answer::OtherId).unwrap();
    world.until("the refusal", || world.failure().contains("sa/admin")).await;
    assert_eq!(world.identity(), None, "another's identity was taken");
    world.answers.send(Answer::OtherKey).unwrap();
    world.until("the refusal", || world.failure().contains("key")).await;
    assert_eq!(world.identity(), None, "a certificate for another key was taken");
    world.answers.send(Answer::Sign).unwrap();
    world.until("the identity", || world.identity().is_some()).await;
    assert_eq!(world.failure(), "");
}

#[tokio::test]
async fn nothing_is_answered_or_shown_before_it_is_recorded() {
    let world = World::new().await;
    world.publish("frontend").await.unwrap();
    // No record can be written any more.
    std::fs::remove_dir_all(world.dir.path().join("state")).unwrap();
    world.answers.send(Answer::Sign).unwrap();
    world.until("the failure", || world.failure().contains("state")).await;
    assert_eq!(world.identity(), None, "shown without a record");
    let (mut request, claims) = request("database");
    request.volume.name = "other".parse().unwrap();
    let workload = crate::csi::request::bind(&request, &claims, "node-1").unwrap();
    let result =
        world.volumes.publish(&request, workload, DatedToken::new(Token::new("t".to_owned()), &claims)).await;
    assert!(matches!(result, Err(VolumeError::State(_))), "{result:?}");
    // And the way out stays open.
    world.volumes.unpublish(&volume()).await.unwrap();
}

#[tokio::test]
async fn publish_and_unpublish_of_one_volume_exclude_each_other() {
    let world = World::new().await;
    for _ in 0..100 {
        world.answers.send(Answer::Sign).unwrap();
    }
    let mut work = tokio::task::JoinSet::new();
    for i in 0..60 {
        let volumes = Arc::clone(&world.volumes);
        work.spawn(async move {
            if i % 3 == 2 {
                volumes.unpublish(&volume()).await.unwrap();
            } else {
                let (request, claims) = request("frontend");
                let workload = crate::csi::request::bind(&request, &claims, "node-1").unwrap();
                let token = DatedToken::new(Token::new(format!("token {i}")), &claims);
                volumes.publish(&request, workload, token).await.unwrap();
            }
        });
    }
    while let Some(done) = work.join_next().await {
        done.unwrap();
    }
    world.volumes.unpublish(&volume()).await.unwrap();
    assert!(world.volumes.all().is_empty());
    assert!(world.volumes.state().unwrap().list().unwrap().is_empty(), "a record is left over");
    // It comes back as if nothing had been.
    world.publish("frontend").await.unwrap();
    world.until("the identity", || world.identity().is_some()).await;
    let socket = tokio::net::UnixStream::connect(world.dir.path().join("id")).await;
    assert!(socket.is_ok(), "{socket:?}");
}

#[tokio::test]
async fn a_publish_before_the_records_are_read_waits() {
    let world = World::new().await;
    world.volumes.restored.store(false, Ordering::Release);
    let result = world.publish("frontend").await;
    assert!(matches!(result, Err(VolumeError::NoState(_))), "{result:?}");
    assert!(world.volumes.all().is_empty());
    world.volumes.unpublish(&volume()).await.unwrap();
}

#[tokio::test]
async fn a_token_that_could_not_be_recorded_is_not_taken_for_one_that_was() {
    let world = World::new().await;
    world.publish("frontend").await.unwrap();
    let (request, claims) = request("frontend");
    let workload = crate::csi::request::bind(&request, &claims, "node-1").unwrap();
    let publish = async || {
        let token = DatedToken::new(Token::new("a newer token".to_owned()), &claims);
        world.volumes.publish(&request, workload.clone(), token).await
    };
    let state = world.dir.path().join("state");
    std::fs::remove_dir_all(&state).unwrap();
    for _ in 0..2 {
        let result = publish().await;
        assert!(matches!(result, Err(VolumeError::State(_))), "{result:?}");
    }
    std::fs::create_dir(&state).unwrap();
    world.volumes.set_state(Ok(Arc::new(StateDir::new(std::fs::File::open(&state).unwrap().into()))));
    publish().await.unwrap();
    let record = world.volumes.state().unwrap().get(&volume().pod, &volume().name).unwrap().unwrap();
    assert_eq!(record.token.unwrap(), Token::new("a newer token".to_owned()));
}

#[tokio::test]
async fn a_wrong_id_takes_no_volume_away() {
    let world = World::new().await;
    world.publish("frontend").await.unwrap();
    world.answers.send(Answer::Sign).unwrap();
    world.until("the identity", || world.identity().is_some()).await;
    let wrong = Volume { id: "csi-2".parse().unwrap(), ..volume() };
    let result = world.volumes.unpublish(&wrong).await;
    assert!(matches!(&result, Err(VolumeError::Mounter(e)) if e.is(Fault::NotOurs)), "{result:?}");
    assert!(world.identity().is_some());
    assert!(world.volumes.state().unwrap().get(&volume().pod, &volume().name).unwrap().is_some());
    tokio::net::UnixStream::connect(world.dir.path().join("id")).await.unwrap();
    // Where the kubelet has no record any more, the path alone is enough.
    world.volumes.mounter.unpublish(&volume()).await.unwrap();
    world.volumes.unpublish(&wrong).await.unwrap();
    assert!(world.volumes.all().is_empty());
    assert!(world.volumes.state().unwrap().list().unwrap().is_empty());
}

/// The kubelet unmounts before it mounts again, but a static pod's successor has the same UID and volume
/// name.
#[tokio::test]
async fn a_publish_finishes_an_unpublish_that_the_mounter_did_not_carry_out() {
    let world = World::new().await;
    let (stuck, socket) = (world.dir.path().join("stuck"), world.dir.path().join("id"));
    for account in ["frontend", "admin"] {
        world.publish(account).await.unwrap();
        world.answers.send(Answer::Sign).unwrap();
        world.until("the identity", || world.identity().is_some()).await;
        assert_eq!(world.identity().unwrap(), format!("spiffe://example.org/ns/shop/sa/{account}"));
        let mut client = tokio::net::UnixStream::connect(&socket).await.unwrap();
        std::fs::write(&stuck, "").unwrap();
        world.volumes.unpublish(&volume()).await.unwrap_err();
        assert_eq!(tokio::io::AsyncReadExt::read(&mut client, &mut [0; 1]).await.unwrap(), 0);
        assert!(tokio::net::UnixStream::connect(&socket).await.is_err());
        // Nobody can be served at the old socket any more.
        world.publish(account).await.unwrap_err();
        std::fs::remove_file(&stuck).unwrap();
    }
    // An agent that starts now finds the volume, and no record of it.
    world.volumes.restored.store(false, Ordering::Release);
    assert_eq!(
        world.volumes.restore().await.unwrap(),
        restore::Restored { without: 1, ..Default::default() }
    );
    tokio::net::UnixStream::connect(&socket).await.unwrap();
}

#[tokio::test]
async fn one_volume_that_cannot_be_looked_at_keeps_no_other_from_coming_back() {
    let world = World::new().await;
    world.publish("frontend").await.unwrap();
    let state = world.volumes.state().unwrap();
    let mut record = state.get(&volume().pod, &volume().name).unwrap().unwrap();
    record.volume.name = "broken".parse().unwrap();
    state.put(&record).unwrap();
    world.volumes.restored.store(false, Ordering::Release);
    world.volumes.restore().await.unwrap();
    assert!(world.volumes.restored.load(Ordering::Acquire));
    assert!(state.get(&record.volume.pod, &record.volume.name).unwrap().is_some(), "its record is not lost");
}

#[tokio::test]
async fn a_dead_source_directory_is_reported_until_the_pod_goes() {
    let world = World::new().await;
    let (mut request, _) = request("frontend");
    request.volume.name = "dead".parse().unwrap();
    let volume = request.volume.clone();
    let reasons = async |volumes: &Volumes| {
        let look = volumes.look(&volume).await.unwrap();
        look.conditions.iter().map(|c| c.reason).collect::<Vec<_>>()
    };
    // The mounter binds the new one and says so once; afterwards it sees nothing wrong.
    for _ in 0..3 {
        world.volumes.publish_directory(&request).await.unwrap();
        assert_eq!(reasons(&world.volumes).await, ["SourceRecreated"]);
    }
    // An agent that comes later knows it from the record.
    world.volumes.entries().clear();
    world.volumes.restore().await.unwrap();
    assert_eq!(reasons(&world.volumes).await, ["SourceRecreated"]);
    world.volumes.unpublish(&volume).await.unwrap();
    assert!(world.volumes.state().unwrap().list().unwrap().is_empty());
}

#[tokio::test]
async fn a_volume_that_is_gone_is_not_counted_again() {
    let world = World::new().await;
    world.publish("frontend").await.unwrap();
    let entry = world.volumes.get(&volume()).unwrap();
    let counted = || world.volumes.metrics.encode().unwrap().contains("state=\"pending\"} 1");
    assert!(counted(), "{}", world.volumes.metrics.encode().unwrap());
    world.volumes.unpublish(&volume()).await.unwrap();
    assert!(!counted());
    // What an attempt to renew does at its end.
    world.volumes.count(&entry);
    assert!(!counted(), "counted for ever");
}

#[tokio::test]
async fn a_clock_that_is_set_back_postpones_no_attempt() {
    let world = World::new().await;
    world.publish("frontend").await.unwrap();
    world.answers.send(Answer::OtherId).unwrap();
    world.until("the refusal", || world.failure().contains("sa/admin")).await;
    let entry = world.volumes.get(&volume()).unwrap();
    let now = SystemTime::now();
    let later = now + Duration::from_secs(365 * 24 * 3600);
    entry.view().due = Some(later);
    world.volumes.look_back(now, now);
    assert_eq!(entry.view().due, Some(later), "the clock was not set back");
    world.answers.send(Answer::Sign).unwrap();
    world.volumes.look_back(later, now);
    world.until("the identity", || world.identity().is_some()).await;
}

/// What is due is known beforehand; but a reminder that was missed must not be the end of an identity.
#[tokio::test]
async fn what_nobody_was_reminded_of_comes_late() {
    let world = World::new().await;
    world.publish("frontend").await.unwrap();
    world.answers.send(Answer::Sign).unwrap();
    world.until("the identity", || world.identity().is_some()).await;
    let entry = world.volumes.get(&volume()).unwrap();
    let serial = || world.volumes.entries().values().next().map(|e| e.view().status.rotate_at);
    let before = serial();
    let now = SystemTime::now();
    // As the last look found it: nothing for an hour.
    *world.volumes.soonest.lock().unwrap() = now + rotate::ALL;
    entry.view().due = Some(now);
    world.answers.send(Answer::Sign).unwrap();
    world.volumes.look_at_the_clock(now);
    assert!(!entry.view().signing, "all are looked at with each tick");
    world.volumes.look_at_the_clock(now + rotate::ALL);
    assert!(entry.view().signing);
    world.until("another identity", || serial() != before).await;
    // The look before has taken note of the next one.
    assert!(*world.volumes.soonest.lock().unwrap() > now);
}
