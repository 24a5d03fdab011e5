//! One CSI driver of the node: the two sockets by which the kubelet finds it, and what the kubelet said.

use std::sync::Arc;
use std::time::SystemTime;

use seamount_mounter_protocol::Subject;
use seamount_mounter_protocol::names::DriverName;
use seamount_proto::csi::identity_server::IdentityServer;
use seamount_proto::csi::node_server::NodeServer;
use seamount_proto::node::node_server::NodeServer as NodeReportServer;
use seamount_proto::registration::registration_server::RegistrationServer;
use tokio::sync::{Notify, watch};
use tokio::time::Instant;

use super::STOP;
use super::attach::{AttachError, LIMIT};
use super::kubelet_server::KubeletServer;
use super::offers::Offers;
use crate::csi::service::Service;
use crate::endpoint::server::Services;
use crate::node;
use crate::record::{DriverRecord, Registration};
use crate::registration::{self, DriverStatus};
use seamount_mounter_client::{Client, InPlace, Listener, MounterError};

/// A driver. One task owns all of them; the kubelet's word comes from the service by `registered`.
pub(super) struct Driver {
    name: DriverName,
    csi: Option<KubeletServer>,
    registration: Option<KubeletServer>,
    registered: watch::Sender<Registration>,
    /// What of it is recorded.
    recorded: watch::Sender<Registration>,
    /// Tells that the kubelet is at work on a registration.
    asked: Arc<Notify>,
    offers: Offers,
    /// Why a socket's name does not lead to the agent.
    lost: Option<String>,
    /// What an earlier agent has recorded of a listener that is not here yet.
    earlier: Option<DriverRecord>,
    shown: watch::Sender<DriverStatus>,
}

impl Driver {
    pub fn new(name: DriverName) -> Self {
        Self {
            name,
            csi: None,
            registration: None,
            registered: watch::Sender::new(Registration::Unknown),
            recorded: watch::Sender::new(Registration::Unknown),
            asked: Arc::default(),
            offers: Offers::new(Instant::now()),
            lost: None,
            earlier: None,
            shown: watch::Sender::new(DriverStatus::default()),
        }
    }

    pub fn name(&self) -> &DriverName {
        &self.name
    }

    pub fn news(&self) -> News {
        News { registered: self.registered.subscribe(), asked: Arc::clone(&self.asked) }
    }

    pub fn shown(&self) -> watch::Receiver<DriverStatus> {
        self.shown.subscribe()
    }

    pub fn is_lost(&self) -> bool {
        self.lost.is_some()
    }

    /// After each new connection to the mounter. What the mounter refuses is this driver's trouble alone, and
    /// is tried again; an error is that of the connection.
    pub async fn attach(&mut self, mounter: &Client) -> Result<(), MounterError> {
        let lost = match self.take_listeners(mounter).await {
            Ok(()) => None,
            Err(AttachError::Mounter(e)) if !e.is_fault() => return Err(e),
            Err(e) => Some(e.to_string()),
        };
        self.offers.restart(Instant::now());
        self.lose(lost);
        Ok(())
    }

    async fn take_listeners(&mut self, mounter: &Client) -> Result<(), AttachError> {
        let subject = Subject::Csi(self.name.clone());
        if !is_kept(mounter, subject, self.csi.as_ref()).await? {
            let listener = mounter.csi_listener(&self.name).await?;
            if is_other(self.csi.as_ref(), &listener) {
                // The calls in flight end beside this task, which records the kubelet's word.
                tokio::spawn(close(self.csi.replace(KubeletServer::new("csi", listener)?)));
            }
        }
        let subject = Subject::Registration(self.name.clone());
        if !is_kept(mounter, subject, self.registration.as_ref()).await? {
            let listener = mounter.registration_listener(&self.name).await?;
            if is_other(self.registration.as_ref(), &listener) {
                tokio::spawn(close(self.register_by(listener)?));
            }
        }
        Ok(())
    }

    /// Takes over what the mounter has made anew.
    pub fn follow(&mut self, found: Result<InPlace, MounterError>) {
        let followed = found.map_err(AttachError::from).and_then(|found| self.take_over(found));
        self.lose(followed.err().map(|e| e.to_string()));
    }

    fn take_over(&mut self, InPlace { csi, registration, .. }: InPlace) -> Result<(), AttachError> {
        if is_other(self.csi.as_ref(), &csi) {
            if self.csi.is_some() {
                tracing::warn!(driver = %self.name, "the CSI socket was removed or replaced, and was made anew");
            }
            tokio::spawn(close(self.csi.replace(KubeletServer::new("csi", csi)?)));
        }
        if is_other(self.registration.as_ref(), &registration) {
            if self.registration.is_some() {
                tracing::warn!(driver = %self.name, "the registration socket was removed or replaced, and was made anew");
            }
            tokio::spawn(close(self.register_by(registration)?));
            self.offers.restart(Instant::now());
        }
        Ok(())
    }

    fn lose(&mut self, lost: Option<String>) {
        if lost != self.lost
            && let Some(why) = &lost
        {
            tracing::error!(driver = %self.name, reason = %why, "the kubelet does not find the driver");
        }
        self.lost = lost;
    }

    /// Has the kubelet register the driver by another listener; returns the server before.
    fn register_by(&mut self, listener: Listener) -> Result<Option<KubeletServer>, AttachError> {
        let old = self.registration.replace(KubeletServer::new("registration", listener)?);
        self.recorded.send_replace(Registration::Unknown);
        self.registered.send_replace(Registration::Unknown);
        if let Some(earlier) = self.earlier.take() {
            self.recall(earlier);
        }
        Ok(old)
    }

    /// What the kubelet said to an earlier agent about the listener that this one has inherited, or will: the
    /// mounter may refuse it for a moment.
    pub fn recall(&mut self, record: DriverRecord) {
        let Some(server) = &self.registration else {
            self.earlier = Some(record);
            return;
        };
        let cookie = Some(server.cookie());
        if cookie == Some(record.registration_cookie) && *self.registered.borrow() == Registration::Unknown {
            self.registered.send_replace(record.registration);
        }
    }

    pub fn record(&self) -> DriverRecord {
        if let Some(earlier) = &self.earlier {
            return earlier.clone();
        }
        let cookie = |server: Option<&KubeletServer>| server.map_or(0, KubeletServer::cookie);
        DriverRecord {
            driver: self.name.clone(),
            csi_cookie: cookie(self.csi.as_ref()),
            registration_cookie: cookie(self.registration.as_ref()),
            registration: self.registered.borrow().clone(),
        }
    }

    /// What was said until then is recorded.
    pub fn recorded(&self, registration: Registration) {
        self.recorded.send_replace(registration);
    }

    /// Shows how the registration stands; with the number of the metric, and why it does not stand well.
    pub fn tell(&self) -> (Option<bool>, Option<String>) {
        let name = &self.name;
        let (state, reason, number, problem) = match (&*self.registered.borrow(), &self.lost) {
            (_, Some(why)) => {
                let problem = format!("the kubelet does not find the driver {name}: {why}");
                ("unreachable", problem.clone(), None, Some(problem))
            }
            (Registration::Unknown, None) => {
                let problem = format!("the kubelet has not registered the driver {name} yet");
                ("unknown", String::new(), None, Some(problem))
            }
            (Registration::Registered, None) => ("registered", String::new(), Some(true), None),
            (Registration::Failed(why), None) => {
                let problem = format!("the kubelet refused the driver {name}: {why}");
                ("refused", why.clone(), Some(false), Some(problem))
            }
        };
        self.shown.send_if_modified(|shown| {
            let news = shown.state != state || shown.reason != reason;
            let since = if shown.state == state { shown.since } else { SystemTime::now() };
            *shown = DriverStatus { state, reason, since };
            news
        });
        (number, problem)
    }

    /// Serves the kubelet, as far as there are listeners.
    pub fn open(&mut self, node: &node::Service) {
        let (manager, volumes) = (&node.manager, &node.volumes);
        if let Some(server) = &mut self.csi {
            let registered = self.registered.clone();
            let service =
                Service::new(self.name.clone(), Arc::clone(manager), Arc::clone(volumes), registered);
            let services = Services::default()
                .with(NodeServer::new(service.clone()))
                .with(IdentityServer::new(service))
                .with(NodeReportServer::new(node.clone()));
            server.open(services, manager.uid());
        }
        if let Some(server) = &mut self.registration {
            let service = registration::Service::new(
                self.name.to_string(),
                manager.bootstrap().endpoint(&self.name),
                Arc::clone(&self.asked),
                self.registered.clone(),
                self.recorded.subscribe(),
            );
            server.open(Services::default().with(RegistrationServer::new(service)), manager.uid());
        }
    }

    /// The kubelet is at work on a registration: it is not offered for a while.
    pub fn put_off(&mut self) {
        self.offers.put_off(Instant::now());
    }

    /// Where the kubelet has not registered the driver, it may have missed the socket.
    pub async fn offer(&mut self, mounter: &Client) {
        let now = Instant::now();
        if self.lost.is_some() || *self.registered.borrow() == Registration::Registered {
            self.offers.restart(now);
        } else if self.offers.take(now) {
            match mounter.offer(&self.name, LIMIT).await {
                Ok(()) => {
                    tracing::info!(driver = %self.name, "the registration is offered to the kubelet again");
                }
                Err(e) => {
                    tracing::warn!(driver = %self.name, error = %e, "the registration could not be offered to the kubelet again");
                }
            }
        }
    }

    /// Stops to accept, and lets the calls in flight finish.
    pub async fn close(self) {
        tokio::join!(close(self.csi), close(self.registration));
    }
}

/// What a driver's servers hear from the kubelet.
pub(super) struct News {
    registered: watch::Receiver<Registration>,
    asked: Arc<Notify>,
}

/// One thing that was heard.
pub(super) enum Heard {
    /// The kubelet said how its registration stands.
    Registration,
    /// It asks for the driver's name.
    Question,
}

impl News {
    async fn next(&mut self) -> Heard {
        tokio::select! {
            changed = self.registered.changed() => match changed {
                Ok(()) => Heard::Registration,
                Err(_) => std::future::pending().await,
            },
            () = self.asked.notified() => Heard::Question,
        }
    }
}

/// The next thing that the kubelet says, and the number of its driver. May be dropped: nothing is lost.
pub(super) async fn hear(all: &mut [News]) -> (usize, Heard) {
    if all.is_empty() {
        return std::future::pending().await;
    }
    let each = all.iter_mut().enumerate();
    let each = each.map(|(number, news)| Box::pin(async move { (number, news.next().await) }));
    futures_util::future::select_all(each).await.0
}

/// Whether the mounter has the listener that is served. One that lost it gets it back.
async fn is_kept(
    mounter: &Client,
    subject: Subject,
    server: Option<&KubeletServer>,
) -> Result<bool, MounterError> {
    match server {
        Some(server) => mounter.store(subject, server.kept(), server.cookie()).await,
        None => Ok(false),
    }
}

fn is_other(server: Option<&KubeletServer>, listener: &Listener) -> bool {
    server.map(KubeletServer::cookie) != Some(listener.cookie)
}

async fn close(server: Option<KubeletServer>) {
    if let Some(server) = server {
        server.close(STOP).await;
    }
}
