//! The agent's side of the protocol with the mounter (`seamount_mounter_protocol`).
//!
//! One connection, requests pipelined by id, a deadline for each. A reply counts only if it repeats its
//! request and its descriptor is what the reply says (module `check`); else the descriptor is closed and the
//! request fails. A mounter that was stopped answers late: by then the caller is gone and the descriptor is
//! closed as well.
//!
//! The connection is made again for as long as the agent lives. All operations are idempotent, so one that
//! was in flight when the connection broke is simply asked again within its deadline.

mod check;
mod metrics;
mod session;
mod socket;

use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use futures_util::future::join_all;
use seamount_mounter_protocol::names::{DriverName, Volume};
use seamount_mounter_protocol::{Fault, Reply, Request, Subject, flag};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, timeout_at};
use tokio_util::sync::CancellationToken;

pub use metrics::Metrics;
use session::Job;
pub use socket::Socket;

/// How long a request may take, all in all, unless the caller says otherwise.
pub const DEADLINE: Duration = Duration::from_secs(10);
/// Pages of a list that are asked for at once.
const PAGES: u64 = 8;

/// Why the mounter did not do what was asked.
#[derive(Debug, Clone, thiserror::Error)]
pub enum MounterError {
    /// No connection.
    #[error(
        "the mounter is not reachable on {socket}: {why}; check that the mounter's container runs on this node"
    )]
    Down {
        /// Path of the socket.
        socket: String,
        /// What the last attempt met.
        why: String,
    },
    /// The other side is of another release.
    #[error(
        "the mounter speaks another protocol version ({0}); roll the DaemonSet so that both containers run one image"
    )]
    Version(String),
    /// No answer in time. It may still come and is then thrown away.
    #[error(
        "the mounter did not answer {operation} within {seconds} s; look at its log and at the node's load"
    )]
    Timeout {
        /// Which operation.
        operation: &'static str,
        /// The deadline.
        seconds: u64,
    },
    /// The connection broke while the request was in flight.
    #[error("the connection to the mounter broke during {operation}: {why}")]
    Broken {
        /// Which operation.
        operation: &'static str,
        /// What happened.
        why: String,
    },
    /// A reply that is not the answer to the request, or whose descriptor is not what it says.
    #[error("the mounter's answer to {operation} was refused: {why}")]
    Untrusted {
        /// Which operation.
        operation: &'static str,
        /// What did not match.
        why: String,
    },
    /// The mounter refused.
    #[error("the mounter refused {operation}: {text}")]
    Fault {
        /// Which operation.
        operation: &'static str,
        /// Its reason.
        fault: Fault,
        /// Its words.
        text: String,
    },
}

impl MounterError {
    /// Whether the mounter itself refused: it is there, and another volume may fare better.
    pub fn is_fault(&self) -> bool {
        matches!(self, Self::Fault { .. })
    }

    /// Whether the mounter itself refused with this fault.
    pub fn is(&self, wanted: Fault) -> bool {
        matches!(self, Self::Fault { fault, .. } if *fault == wanted)
    }
}

/// The operation's name, for messages and metrics.
pub fn operation(request: &Request) -> &'static str {
    match request {
        Request::Hello => "Hello",
        Request::CsiListener(_) => "CsiListener",
        Request::RegistrationListener(_) => "RegistrationListener",
        Request::State => "State",
        Request::PublishIdentity(_) => "PublishIdentity",
        Request::PublishTmpfs { .. } => "PublishTmpfs",
        Request::SetOwnership { .. } => "SetOwnership",
        Request::PublishDirectory(_) => "PublishDirectory",
        Request::Unpublish(_) => "Unpublish",
        Request::Inspect(_) => "Inspect",
        Request::List { .. } => "List",
        Request::StoreListener { .. } => "StoreListener",
        Request::Offer(_) => "Offer",
    }
}

/// A reply that was checked, with its descriptor.
#[derive(Debug)]
pub struct Answer {
    /// The reply.
    pub reply: Reply,
    /// What came along.
    pub fd: Option<OwnedFd>,
}

/// A listening Unix socket from the mounter.
#[derive(Debug)]
pub struct Listener {
    /// The descriptor.
    pub fd: OwnedFd,
    /// Its `SO_COOKIE`, compared with what the mounter said.
    pub cookie: u64,
    /// Whether the mounter had kept it, so that connections may be waiting in it.
    pub existing: bool,
}

/// What the kubelet finds of a driver by name, as the mounter has found it or made it anew.
#[derive(Debug)]
pub struct InPlace {
    /// The listener of the CSI socket.
    pub csi: Listener,
    /// The listener of the registration socket.
    pub registration: Listener,
    /// Device and inode of the state tmpfs; none where nothing is mounted.
    pub state: Option<(u64, u64)>,
}

/// What the mounter says of itself.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Hello {
    /// Its descriptor limit (`RLIMIT_NOFILE`).
    pub descriptors: u64,
    /// Microseconds since it started, at the time of the connection.
    pub age_us: u64,
    /// Its build.
    pub build: String,
    /// Whether idmapped tmpfs mounts work on its kernel.
    pub idmap: bool,
    /// Whether its kernel has tmpfs without swap.
    pub noswap: bool,
}

/// What is at a volume's target path.
#[derive(Debug)]
pub struct Found {
    /// Which volume.
    pub volume: Volume,
    /// Bits of [`flag`].
    pub flags: u32,
    /// Bytes used.
    pub bytes: u64,
    /// Inodes used.
    pub inodes: u64,
    /// Mounts stacked there.
    pub mounts: u64,
    /// The containers that hold something dead of it by `subPath`, for people.
    pub dead_subpaths: String,
    /// The listener that the mounter keeps for it.
    pub listener: Option<Listener>,
}

impl Found {
    /// Whether this bit of [`flag`] is set.
    pub fn has(&self, bit: u32) -> bool {
        self.flags & bit != 0
    }
}

/// The state of the connection.
#[derive(Debug, Clone)]
pub enum Link {
    /// Not connected; attempts go on.
    Down(String),
    /// Connected to a mounter of another version; attempts go on.
    Incompatible(String),
    /// Connected.
    Up(Up),
}

/// A connection that works.
#[derive(Debug, Clone)]
pub struct Up {
    /// 1 for the first connection, then rising.
    pub number: u64,
    /// Since when.
    pub since: SystemTime,
    /// What the mounter said.
    pub hello: Hello,
    jobs: mpsc::Sender<Job>,
}

/// The client; cheap to clone.
#[derive(Debug, Clone)]
pub struct Client {
    socket: Arc<str>,
    link: watch::Receiver<Link>,
    /// One list at a time: the mounter has one scan, and a second list would turn its pages. Held over
    /// `.await`s, by a task that does not hold it already, and given back when the caller is dropped.
    listing: Arc<tokio::sync::Mutex<()>>,
    patience: Duration,
    superseded: CancellationToken,
}

impl Client {
    /// Starts to connect to the socket at this path and goes on until cancelled. Needs a tokio runtime.
    pub fn start(path: PathBuf, cancel: CancellationToken) -> Self {
        let (sender, link) = watch::channel(Link::Down("no attempt yet".to_owned()));
        let socket: Arc<str> = path.display().to_string().into();
        let superseded = CancellationToken::new();
        tokio::spawn(session::keep_connected(path, sender, cancel, superseded.clone()));
        Self { socket, link, listing: Arc::default(), patience: DEADLINE, superseded }
    }

    /// The same client with another limit for a request than [`DEADLINE`].
    #[must_use]
    pub fn with_patience(mut self, patience: Duration) -> Self {
        self.patience = patience;
        self
    }

    /// Path of the mounter's socket.
    pub fn socket(&self) -> &str {
        &self.socket
    }

    /// The connection's state, to watch.
    pub fn link(&self) -> watch::Receiver<Link> {
        self.link.clone()
    }

    /// Waits until the mounter says that a younger one takes over (a roll-out): the agent that serves with
    /// its listeners has to leave, so that the successor's agent is the only one.
    pub async fn superseded(&self) {
        self.superseded.cancelled().await;
    }

    /// Waits until the connection works, for ever.
    pub async fn up(&self) -> Option<Up> {
        let mut link = self.link.clone();
        let up = link.wait_for(|l| matches!(l, Link::Up(_))).await.ok()?;
        match &*up {
            Link::Up(up) => Some(up.clone()),
            _ => None,
        }
    }

    /// Asks, and waits for the answer at most as long as its patience, [`DEADLINE`] unless it was given
    /// another.
    pub async fn call(&self, request: Request) -> Result<Answer, MounterError> {
        self.call_within(request, None, self.patience).await
    }

    /// Asks with a descriptor and a deadline of its own.
    pub async fn call_within(
        &self,
        request: Request,
        fd: Option<Arc<OwnedFd>>,
        limit: Duration,
    ) -> Result<Answer, MounterError> {
        let deadline = Instant::now() + limit;
        let mut link = self.link.clone();
        let mut after = 0;
        loop {
            let up = self.connection(&mut link, after, deadline, operation(&request), limit).await?;
            if let Some(answer) = ask(&up, &request, fd.clone(), deadline, limit).await? {
                return Ok(answer);
            }
            // That connection is gone; the next one will do, within the deadline.
            after = up.number;
        }
    }

    /// A working connection with a number above `after`.
    async fn connection(
        &self,
        link: &mut watch::Receiver<Link>,
        after: u64,
        deadline: Instant,
        operation: &'static str,
        limit: Duration,
    ) -> Result<Up, MounterError> {
        let usable = |l: &Link| match l {
            Link::Up(up) => up.number > after,
            Link::Incompatible(_) => true,
            Link::Down(_) => false,
        };
        match timeout_at(deadline, link.wait_for(usable)).await {
            Ok(Ok(state)) => match &*state {
                Link::Up(up) => return Ok(up.clone()),
                Link::Incompatible(text) => return Err(MounterError::Version(text.clone())),
                Link::Down(_) => {}
            },
            Ok(Err(_)) => {
                return Err(MounterError::Broken { operation, why: "the agent is stopping".to_owned() });
            }
            Err(_) => {}
        }
        let why = match &*link.borrow() {
            Link::Down(why) => why.clone(),
            _ => format!("the connection keeps breaking (for {} s)", limit.as_secs()),
        };
        Err(MounterError::Down { socket: self.socket.to_string(), why })
    }

    /// The driver's CSI listener.
    pub async fn csi_listener(&self, driver: &DriverName) -> Result<Listener, MounterError> {
        listener(self.call(Request::CsiListener(driver.clone())).await?, "CsiListener")
    }

    /// The driver's kubelet registration listener.
    pub async fn registration_listener(&self, driver: &DriverName) -> Result<Listener, MounterError> {
        listener(self.call(Request::RegistrationListener(driver.clone())).await?, "RegistrationListener")
    }

    /// Whether the names of the driver's two sockets still lead to the mounter's listeners; where they do
    /// not, it binds them anew.
    pub async fn in_place(&self, driver: &DriverName, limit: Duration) -> Result<InPlace, MounterError> {
        let csi = self.call_within(Request::CsiListener(driver.clone()), None, limit).await?;
        let [device, inode, _] = csi.reply.numbers;
        let registration = Request::RegistrationListener(driver.clone());
        let registration = self.call_within(registration, None, limit).await?;
        Ok(InPlace {
            csi: listener(csi, "CsiListener")?,
            registration: listener(registration, "RegistrationListener")?,
            state: (inode != 0).then_some((device, inode)),
        })
    }

    /// Has the driver's registration socket appear to the kubelet once more.
    pub async fn offer(&self, driver: &DriverName, limit: Duration) -> Result<(), MounterError> {
        self.call_within(Request::Offer(driver.clone()), None, limit).await.map(drop)
    }

    /// The directory that holds the records.
    pub async fn state(&self) -> Result<OwnedFd, MounterError> {
        self.call(Request::State).await?.fd.ok_or_else(|| missing("State"))
    }

    /// Makes the volume's directory and socket, or finds them; `None` where another driver's mount is there,
    /// which is left alone.
    pub async fn publish_identity(&self, volume: &Volume) -> Result<Option<Listener>, MounterError> {
        published(self.call(Request::PublishIdentity(volume.clone())).await?)
    }

    /// [`Client::publish_identity`] for a volume that is served. A mounter that started since and does not
    /// have the listener yet would bind another socket over the one that pods are connected to: unless the
    /// connection is the one that is known to be `complete`, it gets the listener first, on the connection
    /// that then publishes.
    pub async fn publish_served(
        &self,
        volume: &Volume,
        kept: Arc<OwnedFd>,
        cookie: u64,
        complete: u64,
    ) -> Result<Option<Listener>, MounterError> {
        let limit = self.patience;
        let deadline = Instant::now() + limit;
        let publish = Request::PublishIdentity(volume.clone());
        let store = Request::StoreListener { subject: Subject::Volume(volume.clone()), cookie };
        let mut link = self.link.clone();
        let mut after = 0;
        loop {
            let up = self.connection(&mut link, after, deadline, operation(&publish), limit).await?;
            after = up.number;
            if up.number != complete {
                match ask(&up, &store, Some(Arc::clone(&kept)), deadline, limit).await {
                    Ok(None) => continue,
                    Ok(Some(_)) => {}
                    // It has one, or the socket's name leads to another: then that one is made or found.
                    Err(e) if e.is(Fault::Busy) || e.is(Fault::NotOurs) => {}
                    Err(e) => return Err(e),
                }
            }
            if let Some(answer) = ask(&up, &publish, None, deadline, limit).await? {
                return published(answer);
            }
        }
    }

    /// The listener that the mounter keeps for this volume.
    pub async fn fetch(&self, volume: &Volume) -> Result<Listener, MounterError> {
        let found = self.inspect(volume, self.patience).await?;
        let refused =
            |fault, text: &str| MounterError::Fault { operation: "Inspect", fault, text: text.to_owned() };
        found.and_then(|f| f.listener).ok_or_else(|| refused(Fault::NotFound, "no listener is kept"))
    }

    /// Binds the source directory; the reply's flags.
    pub async fn publish_directory(&self, volume: &Volume) -> Result<u32, MounterError> {
        Ok(self.call(Request::PublishDirectory(volume.clone())).await?.reply.flags)
    }

    /// Removes everything at the volume's target path.
    pub async fn unpublish(&self, volume: &Volume) -> Result<(), MounterError> {
        self.call(Request::Unpublish(volume.clone())).await.map(drop)
    }

    /// What is at the volume's target path; `None` where nothing is.
    pub async fn inspect(&self, volume: &Volume, limit: Duration) -> Result<Option<Found>, MounterError> {
        match self.call_within(Request::Inspect(volume.clone()), None, limit).await {
            Ok(answer) => found(answer, "Inspect").map(Some),
            Err(e) if e.is(Fault::NotFound) => Ok(None),
            Err(e) => Err(e),
        }
    }

    /// All volumes of our drivers on this node: as one mounter found them in one scan. Where the connection
    /// breaks in between it begins anew, for the pages of another mounter, or of no scan, would be missing
    /// without a word.
    pub async fn list(&self) -> Result<Vec<Found>, MounterError> {
        let _alone = self.listing.lock().await;
        let mut link = self.link.clone();
        let mut deadline = Instant::now() + self.patience;
        let mut after = 0;
        loop {
            let up = self.connection(&mut link, after, deadline, "List", self.patience).await?;
            if let Some(all) = self.list_on(&up, &mut deadline).await? {
                return Ok(all);
            }
            after = up.number;
        }
    }

    /// The same on one connection; `None` where it broke. Each page has a deadline of its own.
    async fn list_on(&self, up: &Up, deadline: &mut Instant) -> Result<Option<Vec<Found>>, MounterError> {
        let mut all = Vec::new();
        // The first has the mounter make the scan; the others are pages of it and need not wait for each
        // other.
        let mut pages = 1;
        loop {
            let next = all.len() as u64;
            let requests: Vec<_> = (next..next + pages).map(|cursor| Request::List { cursor }).collect();
            let until = *deadline;
            let asked = requests.iter().map(|request| ask(up, request, None, until, self.patience));
            for answer in join_all(asked).await {
                match answer {
                    Ok(Some(answer)) => all.push(found(answer, "List")?),
                    Ok(None) => return Ok(None),
                    Err(e) if e.is(Fault::NotFound) => return Ok(Some(all)),
                    Err(e) => return Err(e),
                }
            }
            pages = PAGES;
            *deadline = Instant::now() + self.patience;
        }
    }

    /// Gives a listener to the mounter to keep. False where it keeps one for that place already, or where the
    /// name that the place has leads to another one.
    pub async fn store(&self, subject: Subject, fd: Arc<OwnedFd>, cookie: u64) -> Result<bool, MounterError> {
        let store = Request::StoreListener { subject, cookie };
        match self.call_within(store, Some(fd), self.patience).await {
            Ok(_) => Ok(true),
            Err(e) if e.is(Fault::Busy) || e.is(Fault::NotOurs) => Ok(false),
            Err(e) => Err(e),
        }
    }
}

/// Asks on this connection; `None` where it is gone.
///
/// The queue's receiver lives in `session::serve` alone: a job is either sent there, and answered or dropped
/// with it, or dropped here. Both ends of `answer` can go at any time; the one that is left sees it and
/// closes what it holds. Whether the mounter has done what was asked is not known after a break or a
/// deadline, which is why every operation may be repeated.
async fn ask(
    up: &Up,
    request: &Request,
    fd: Option<Arc<OwnedFd>>,
    deadline: Instant,
    limit: Duration,
) -> Result<Option<Answer>, MounterError> {
    let late = || MounterError::Timeout { operation: operation(request), seconds: limit.as_secs() };
    let (answer, mut answered) = oneshot::channel();
    let job = Job { request: request.clone(), fd, answer };
    if timeout_at(deadline, up.jobs.send(job)).await.map_err(|_| late())?.is_err() {
        return Ok(None);
    }
    match timeout_at(deadline, &mut answered).await {
        Err(_) => Err(late()),
        Ok(Ok(Err(MounterError::Broken { .. })) | Err(_)) => Ok(None),
        Ok(Ok(result)) => result.map(Some),
    }
}

/// The listener of a publish; none where another driver's mount is there.
fn published(answer: Answer) -> Result<Option<Listener>, MounterError> {
    if answer.fd.is_none() {
        return Ok(None);
    }
    listener(answer, "PublishIdentity").map(Some)
}

fn missing(operation: &'static str) -> MounterError {
    MounterError::Untrusted { operation, why: "no descriptor came along".to_owned() }
}

fn listener(answer: Answer, operation: &'static str) -> Result<Listener, MounterError> {
    let Answer { reply, fd } = answer;
    let fd = fd.ok_or_else(|| missing(operation))?;
    Ok(Listener { fd, cookie: reply.cookie, existing: reply.flags & flag::EXISTING != 0 })
}

fn found(answer: Answer, operation: &'static str) -> Result<Found, MounterError> {
    let Answer { reply, fd } = answer;
    let Subject::Volume(volume) = reply.subject else {
        return Err(MounterError::Untrusted { operation, why: "no volume in it".to_owned() });
    };
    let [bytes, inodes, mounts] = reply.numbers;
    let listener = fd.map(|fd| Listener { fd, cookie: reply.cookie, existing: true });
    let dead_subpaths = match reply.flags & flag::SUBPATH {
        0 => String::new(),
        _ => reply.text.chars().filter(|c| !c.is_control()).collect(),
    };
    Ok(Found { volume, flags: reply.flags, bytes, inodes, mounts, dead_subpaths, listener })
}

#[cfg(test)]
mod tests;
