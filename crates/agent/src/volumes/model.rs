//! A model (`seamount_sync::model`) of one volume's slot: publishes and unpublishes that overlap (the kubelet
//! has given up on one and calls again) or meet the end of a restore; identities made beside them; an
//! authority that goes and comes; a slow mounter.
//!
//! After each step each look finds a slot that fits together, and at the end: a volume that was taken
//! away is gone with its record and its key, nothing of an earlier incarnation lives on, and no task goes
//! round in circles.
//!
//! It found one that did: an attempt that failed for want of an authority made a volume due that had been
//! unpublished meanwhile, and when the authority came it was attempted again and again. Put in by hand, it
//! finds also an identity that comes late and does not look at `gone`.

use super::identity::server::ServeOptions;
use super::tests::{embedded, request as asked, tenants, volume};
use super::*;
use crate::csi::request::PublishRequest;
use crate::source::Signer;
use rustix::net::{
    AddressFamily, SocketAddrUnix, SocketFlags, SocketType, accept_with, bind, listen, socket_with, sockopt,
};
use seamount_authority::{Authority, AuthorityError, BoxFuture, Embedded, Workload};
use seamount_identity::{BundleSet, KeyType, TrustDomain};
use seamount_mounter_client::Socket;
use seamount_mounter_protocol::{Reply, Request, Subject, flag};
use seamount_pod_token::{DatedToken, Token};
use seamount_sync::model::{any, explore, pause, task};
use seamount_telemetry::metrics::Area as _;
use seamount_workload_api::Observer;
use std::os::fd::OwnedFd;
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::net::{SocketAddr, UnixListener};
use std::sync::{LazyLock, atomic};
use tokio_util::sync::CancellationToken;

/// Two pods, one after the other, under one UID and volume name, as static pods can be.
const ACCOUNTS: [&str; 2] = ["frontend", "admin"];

struct Silent;

impl Observer for Silent {
    fn connection(&self, _: i64) {}
    fn stream(&self, _: i64) {}
    fn refused(&self, _: &'static str) {}
}

/// Takes its time.
struct Slow(Embedded);

impl Authority for Slow {
    fn trust_domain(&self) -> &TrustDomain {
        self.0.trust_domain()
    }

    fn sign<'a>(
        &'a self,
        csr: &'a [u8],
        workload: &'a Workload,
        token: &'a str,
    ) -> BoxFuture<'a, Result<Vec<rustls_pki_types::CertificateDer<'static>>, AuthorityError>> {
        Box::pin(async move {
            pause(8).await;
            if any(8) == 0 {
                return Err(AuthorityError::Unavailable("away".to_owned()));
            }
            self.0.sign(csr, workload, token).await
        })
    }

    fn bundles(&self) -> watch::Receiver<Arc<BundleSet>> {
        self.0.bundles()
    }
}

/// Made once: a key costs more than a schedule.
static SIGNER: LazyLock<Signer> = LazyLock::new(|| {
    let (inner, template) = embedded(Duration::from_secs(3600));
    let authority = Arc::new(Slow(inner));
    Signer { authority, template: Arc::new(template), key_type: KeyType::EcP256, trouble: None }
});

fn request(account: &str) -> (PublishRequest, Workload) {
    let (request, claims) = asked(account);
    let workload = crate::csi::request::bind(&request, &claims, "node-1").unwrap();
    (request, workload)
}

/// The listener that the mounter keeps for the volume.
type Kept = Arc<std::sync::Mutex<Option<OwnedFd>>>;

fn bound() -> OwnedFd {
    static NUMBER: atomic::AtomicU64 = atomic::AtomicU64::new(0);
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    let name = format!("seamount-model-{}-{number}", std::process::id());
    UnixListener::bind_addr(&SocketAddr::from_abstract_name(name).unwrap()).unwrap().into()
}

/// The mounter, one request after the other, each after a while; it fails now and then.
async fn mounter(server: OwnedFd, kept: Kept) {
    let connection = loop {
        match accept_with(&server, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK) {
            Ok(connection) => break connection,
            Err(_) => tokio::time::sleep(seamount_sync::model::MOMENT).await,
        }
    };
    let socket = Socket::from_fd(connection).unwrap();
    while let Ok(received) = socket.receive().await {
        let Ok((id, request)) = Request::decode(&received.bytes) else { return };
        pause(4).await;
        let (mut reply, along) = answer(id, &request, received.fd, &mut kept.lock().unwrap());
        if let Some(fd) = &along {
            reply.cookie = sockopt::socket_cookie(fd).unwrap();
        }
        if socket.send(&reply.encode(), along.as_ref()).await.is_err() {
            return;
        }
    }
}

fn answer(
    id: u64,
    request: &Request,
    fd: Option<OwnedFd>,
    kept: &mut Option<OwnedFd>,
) -> (Reply, Option<OwnedFd>) {
    let mut reply = Reply::to(id, request);
    let mut along = None;
    match request {
        Request::PublishIdentity(_) | Request::Unpublish(_) if any(12) == 0 => {
            reply.fault = Some(Fault::System)
        }
        Request::PublishIdentity(_) => along = Some(kept.get_or_insert_with(bound).try_clone().unwrap()),
        Request::Unpublish(_) => drop(kept.take()),
        Request::Inspect(_) if kept.is_some() => reply.flags = flag::IDENTITY | flag::SOCKET,
        Request::Inspect(_) => reply.fault = Some(Fault::NotFound),
        Request::List { cursor: 0 } if kept.is_some() => {
            (reply.subject, reply.flags) = (Subject::Volume(volume()), flag::IDENTITY | flag::SOCKET);
            along = Some(kept.as_ref().unwrap().try_clone().unwrap());
        }
        Request::List { .. } => reply.fault = Some(Fault::NotFound),
        Request::StoreListener { .. } if kept.is_some() => reply.fault = Some(Fault::Busy),
        Request::StoreListener { .. } => *kept = fd,
        _ => {}
    }
    (reply, along)
}

struct World {
    volumes: Arc<Volumes>,
    kept: Kept,
    source: watch::Sender<Source>,
    cancel: CancellationToken,
    /// Every incarnation that was seen.
    seen: Mutex<Vec<Arc<VolumeEntry<Identity>>>>,
    _dir: tempfile::TempDir,
}

impl World {
    fn new() -> Arc<Self> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("m");
        let server = socket_with(
            AddressFamily::UNIX,
            SocketType::SEQPACKET,
            SocketFlags::CLOEXEC | SocketFlags::NONBLOCK,
            None,
        )
        .unwrap();
        bind(&server, &SocketAddrUnix::new(&path).unwrap()).unwrap();
        listen(&server, 8).unwrap();
        let kept = Kept::default();
        // The connection is in the background, as the node's: its own model is the client's.
        tokio::spawn(mounter(server, Arc::clone(&kept)));
        let cancel = CancellationToken::new();
        let (sender, source) = watch::channel(Source::Authority(SIGNER.clone()));
        let options = ServeOptions {
            tenants: tenants(),
            volumes: Arc::new(Semaphore::new(64)),
            pending: Duration::from_secs(60),
            descriptors: u64::MAX,
            observer: Arc::new(Silent),
        };
        let client = Client::start(path, cancel.clone());
        let issuer = Arc::<super::tests::Issuer>::default();
        let mut volumes = Volumes::new(client, source, issuer, options, Arc::default());
        // A thread of its own would go on when it likes.
        Arc::get_mut(&mut volumes).unwrap().background = None;
        let records = dir.path().join("state");
        std::fs::create_dir(&records).unwrap();
        volumes.set_state(Ok(Arc::new(StateDir::new(std::fs::File::open(records).unwrap().into()))));
        Arc::new(Self { volumes, kept, source: sender, cancel, seen: Mutex::default(), _dir: dir })
    }

    async fn publish(&self, account: &str, token: usize) -> Result<(), VolumeError> {
        let (request, workload) = request(account);
        let at = |second| SystemTime::UNIX_EPOCH + Duration::from_secs(second);
        let text = Token::new(format!("token of {account} {token}"));
        let token = DatedToken { token: text, issued: at(token as u64), expires: at(4_000_000_000) };
        self.volumes.publish(&request, workload, token).await
    }

    /// What may be seen at any time.
    fn look(&self) {
        for entry in self.volumes.all_of::<Identity>() {
            let mut seen = self.seen.lock().unwrap();
            if !seen.iter().any(|known| Arc::ptr_eq(known, &entry)) {
                seen.push(Arc::clone(&entry));
            }
            drop(seen);
            let Ok(slot) = entry.slot.try_lock() else { continue };
            assert!(slot.state.held.is_none() || slot.state.facts.is_some(), "an identity without a pod");
            if let (Some(held), Some(facts)) = (&slot.state.held, &slot.state.facts) {
                let account = &facts.workload.service_account;
                assert_eq!(held.svid.id().to_string(), format!("spiffe://example.org/ns/shop/sa/{account}"));
            }
        }
    }

    /// Until what was begun has come to its end.
    async fn quiet(&self) {
        let mut calm = 0;
        while calm < 20 {
            shuttle::future::yield_now().await;
            let seen: Vec<_> = self.seen.lock().unwrap().clone();
            let busy = !self.volumes.schedule.due.lock().unwrap().is_empty()
                || seen.iter().any(|e| e.view().signing || e.view().seen.unproved.is_some());
            calm = if busy { 0 } else { calm + 1 };
        }
    }

    fn record(&self) -> Option<crate::record::Record> {
        self.volumes.state().unwrap().get(&volume().pod, &volume().name).unwrap()
    }

    /// What is published fits what is recorded.
    async fn check(&self) {
        self.look();
        let record = self.record();
        let Some(entry) = self.volumes.get_of::<Identity>(&volume()) else {
            assert!(record.is_none(), "a record of a volume that is not there");
            return;
        };
        let slot = entry.slot.lock().await;
        assert!(!slot.gone, "a volume that is gone is still known");
        let Some(facts) = &slot.state.facts else {
            assert!(record.is_none() && slot.state.serving.is_none(), "a record of an unpublished volume");
            return;
        };
        let record = record.expect("a published volume without a record");
        assert_eq!(record.identity().unwrap().token, Some(facts.token.token.clone()));
        assert_eq!(
            record.identity().unwrap().svid.as_ref().map(|s| s.spiffe_id.clone()),
            slot.state.held.as_ref().map(|h| h.svid.id().to_string())
        );
    }

    async fn end(&self) {
        loop {
            // As the kubelet does.
            if self.volumes.unpublish(&volume()).await.is_ok() {
                break;
            }
        }
        self.quiet().await;
        assert!(
            self.volumes.all_of::<Identity>().is_empty()
                && self.record().is_none()
                && self.kept.lock().unwrap().is_none()
        );
        for entry in self.seen.lock().unwrap().drain(..) {
            let slot = entry.slot.try_lock().unwrap();
            assert!(
                slot.state.facts.is_none()
                    && slot.state.held.is_none()
                    && slot.state.recalled.is_none()
                    && slot.state.serving.is_none()
                    && slot.place.is_none(),
                "something lives on"
            );
        }
        assert!(self.volumes.options.tenants.is_empty(), "its pod is counted still");
        assert!(
            !self.volumes.metrics.encode().unwrap().contains("state=\"ready\"} 1"),
            "it is counted still"
        );
        self.cancel.cancel();
    }
}

/// Calls of a kubelet that is impatient (what it gave up on goes on all the same), and an authority that goes
/// and comes.
async fn history(world: &Arc<World>) {
    let mut tasks = Vec::new();
    for token in 0..5 {
        let world = Arc::clone(world);
        let call = task(async move {
            match any(5) {
                0 | 1 => drop(world.volumes.unpublish(&volume()).await),
                n => drop(world.publish(ACCOUNTS[n % 2], token).await),
            }
            world.look();
        });
        if any(3) == 0 {
            call.await.unwrap();
        } else {
            tasks.push(call);
            pause(10).await;
        }
    }
    let comes_and_goes = Arc::clone(world);
    tasks.push(task(async move {
        for _ in 0..2 {
            pause(10).await;
            comes_and_goes.source.send_replace(Source::Missing("away".into()));
            pause(10).await;
            comes_and_goes.source.send_replace(Source::Authority(SIGNER.clone()));
        }
    }));
    for task in tasks {
        task.await.unwrap();
    }
}

#[test]
fn a_slot_fits_together_in_whatever_order_its_calls_and_identities_come() {
    explore(300, || async {
        let world = World::new();
        world.volumes.restored.store(true, Ordering::Release);
        let fresh = task(Arc::clone(&world.volumes).keep_fresh(world.cancel.clone()));
        history(&world).await;
        world.quiet().await;
        world.check().await;
        world.end().await;
        fresh.await.unwrap();
    });
}

#[test]
fn what_is_unpublished_while_records_are_read_does_not_come_back() {
    explore(300, || async {
        let world = World::new();
        // By the agent before.
        world.volumes.restored.store(true, Ordering::Release);
        while world.publish(ACCOUNTS[0], 99).await.is_err() {}
        let before = world.volumes.get_of::<Identity>(&volume()).unwrap();
        {
            let mut slot = before.slot.lock().await;
            slot.place = None;
            slot.state.serving.take().unwrap().stop().await;
        }
        world.volumes.entries().clear();
        world.volumes.schedule.due.lock().unwrap().clear();
        world.volumes.restored.store(false, Ordering::Release);
        let fresh = task(Arc::clone(&world.volumes).keep_fresh(world.cancel.clone()));

        let restoring = task({
            let world = Arc::clone(&world);
            async move { while world.volumes.restore().await.is_err() {} }
        });
        let unpublishing = task({
            let world = Arc::clone(&world);
            async move {
                pause(10).await;
                let done = world.volumes.unpublish(&volume()).await.is_ok();
                // Nothing can have published it since.
                let back = world
                    .volumes
                    .get_of::<Identity>(&volume())
                    .is_some_and(|e| e.slot.try_lock().is_ok_and(|s| s.state.serving.is_some()));
                assert!(!(done && back), "it came back");
                done
            }
        });
        let done = unpublishing.await.unwrap();
        restoring.await.unwrap();
        world.look();
        if done {
            assert!(
                world.volumes.all_of::<Identity>().is_empty() && world.record().is_none(),
                "it came back"
            );
        }
        world.end().await;
        fresh.await.unwrap();
    });
}
