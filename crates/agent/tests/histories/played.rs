//! A mounter that does what the real one does with plain directories, and answers as it is told to.

use std::collections::HashMap;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use rustix::net::{
    AddressFamily, Shutdown, SocketAddrUnix, SocketFlags, SocketType, bind, listen, shutdown, socket_with,
    sockopt,
};
use seamount_mounter_client::Socket;
use seamount_mounter_protocol::names::Volume;
use seamount_mounter_protocol::{Fault, Reply, Request, Subject, flag};
use tokio::net::UnixListener;
use tokio::sync::watch;
use tokio_util::task::AbortOnDropHandle;

use super::history::Mischief;
use super::mixer::{Mixer, Plan, send};

/// A volume, or a socket of the driver, as text.
type Slot = String;

/// What survives the mounter's death: the file system, and who is to come.
pub struct Disk {
    root: PathBuf,
    driver: String,
    /// The cookie of the socket that has the slot's name now.
    names: Mutex<HashMap<Slot, u64>>,
    pub plan: Plan,
    pub frozen: watch::Sender<bool>,
}

/// A running mounter; dropped: killed.
pub struct Played {
    kept: Arc<Mutex<HashMap<Slot, Arc<OwnedFd>>>>,
    _task: AbortOnDropHandle<()>,
}

impl Disk {
    pub fn new(root: &Path, driver: &str) -> Arc<Self> {
        for made in [driver, "seamount.dev/state"] {
            std::fs::create_dir_all(root.join("plugins").join(made)).unwrap();
        }
        Arc::new(Self {
            root: root.to_owned(),
            driver: driver.to_owned(),
            names: Mutex::default(),
            plan: Plan::default(),
            frozen: watch::Sender::new(false),
        })
    }

    fn state(&self) -> PathBuf {
        self.root.join("plugins/seamount.dev/state")
    }

    pub fn behave(&self) {
        self.plan.clear();
        self.frozen.send_replace(false);
    }

    fn volume(&self, volume: &Volume) -> PathBuf {
        let pod = self.root.join("pods").join(volume.pod.as_str());
        pod.join("volumes/kubernetes.io~csi").join(volume.name.as_str())
    }

    /// The volume id by the kubelet's record.
    fn recorded(&self, directory: &Path) -> Option<String> {
        let text = std::fs::read_to_string(directory.join("vol_data.json")).ok()?;
        // The kubelet may be writing it just now.
        let json: serde_json::Value = serde_json::from_str(&text).ok()?;
        Some(json["volumeHandle"].as_str()?.to_owned())
    }

    fn ours(&self, volume: &Volume) -> Result<bool, Fault> {
        match self.recorded(&self.volume(volume)) {
            None => Ok(false),
            Some(id) if id == volume.id.as_str() => Ok(true),
            Some(_) => Err(Fault::NotOurs),
        }
    }
}

fn slot(subject: &Subject) -> Slot {
    subject.volume().map_or_else(|| subject.to_string(), Volume::to_string)
}

fn cookie(fd: &OwnedFd) -> u64 {
    sockopt::socket_cookie(fd).unwrap()
}

/// Binds under another name first: nobody ever meets a socket that does not listen.
fn bound(directory: &Path, name: &str, kind: SocketType, mode: u32) -> OwnedFd {
    let fd = socket_with(AddressFamily::UNIX, kind, SocketFlags::CLOEXEC, None).unwrap();
    let held = std::fs::File::open(directory).unwrap();
    let new = format!("/proc/self/fd/{}/.new", held.as_raw_fd());
    let _ = std::fs::remove_file(&new);
    bind(&fd, &SocketAddrUnix::new(&new).unwrap()).unwrap();
    std::fs::set_permissions(&new, std::fs::Permissions::from_mode(mode)).unwrap();
    listen(&fd, 64).unwrap();
    std::fs::rename(&new, directory.join(name)).unwrap();
    fd
}

impl Played {
    /// Needs a tokio runtime.
    pub fn start(disk: &Arc<Disk>, socket: &Path) -> Self {
        let name = socket.file_name().unwrap().to_str().unwrap();
        let listener = bound(socket.parent().unwrap(), name, SocketType::SEQPACKET, 0o666);
        rustix::io::ioctl_fionbio(&listener, true).unwrap();
        let kept = Arc::<Mutex<HashMap<Slot, Arc<OwnedFd>>>>::default();
        let mounter = Mounter {
            disk: Arc::clone(disk),
            kept: Arc::clone(&kept),
            listed: Vec::new(),
            mixer: Mixer::default(),
        };
        let task = tokio::spawn(mounter.serve(listener));
        Self { kept, _task: AbortOnDropHandle::new(task) }
    }

    /// Volumes whose listeners are kept.
    pub fn keeps(&self) -> Vec<String> {
        let kept = self.kept.lock().unwrap();
        kept.keys().filter(|slot| slot.contains('/')).cloned().collect()
    }
}

struct Mounter {
    disk: Arc<Disk>,
    kept: Arc<Mutex<HashMap<Slot, Arc<OwnedFd>>>>,
    listed: Vec<(Volume, u32)>,
    mixer: Mixer,
}

impl Mounter {
    async fn serve(mut self, listener: OwnedFd) {
        // Only to accept: nothing is read or written as a stream.
        let listener = UnixListener::from_std(listener.into()).unwrap();
        loop {
            let Ok((connection, _)) = listener.accept().await else { continue };
            let connection = OwnedFd::from(connection.into_std().unwrap());
            self.connection(&Socket::from_fd(connection).unwrap()).await;
        }
    }

    async fn connection(&mut self, socket: &Socket) {
        let mut mixer = std::mem::take(&mut self.mixer);
        self.talk(socket, &mut mixer).await;
        // The answers of this connection may come again on the next one; what was late is lost with it.
        mixer.late();
        self.mixer = mixer;
    }

    async fn talk(&mut self, socket: &Socket, mixer: &mut Mixer) {
        let mut frozen = self.disk.frozen.subscribe();
        loop {
            let _ = frozen.wait_for(|frozen| !frozen).await;
            let disk = Arc::clone(&self.disk);
            let received = tokio::select! {
                biased;
                () = disk.plan.released.notified() => {
                    if send(socket, mixer.late()).await.is_err() {
                        return;
                    }
                    continue;
                }
                received = socket.receive() => received,
            };
            let Ok(received) = received else { return };
            if received.bytes.is_empty() || *disk.frozen.borrow() && !disk.thawed().await {
                return;
            }
            let Ok((id, request)) = Request::decode(&received.bytes) else { return };
            let planned = self.disk.plan.next(&request);
            if planned == Some(Mischief::CloseBefore) {
                return;
            }
            let mut reply = Reply::to(id, &request);
            let done = self.carry_out(&request, received.fd, &mut reply);
            let along = done.unwrap_or_else(|fault| {
                reply = Reply { fault: Some(fault), ..Reply::to(id, &request) };
                None
            });
            let Some(answers) = mixer.mix(planned, (reply, along)) else { return };
            if send(socket, answers).await.is_err() {
                return;
            }
        }
    }

    fn carry_out(
        &mut self,
        request: &Request,
        fd: Option<OwnedFd>,
        reply: &mut Reply,
    ) -> Result<Option<Arc<OwnedFd>>, Fault> {
        let disk = Arc::clone(&self.disk);
        let plugin = disk.root.join("plugins").join(&disk.driver);
        match request {
            Request::Hello => {
                reply.text = "played".to_owned();
                Ok(None)
            }
            Request::CsiListener(_) => {
                Ok(Some(self.listener(slot(&request.subject()), &plugin, "csi.sock", 0o600, reply)))
            }
            Request::RegistrationListener(_) => {
                let registry = disk.root.join("plugins_registry");
                let name = format!("{}-reg.sock", disk.driver);
                Ok(Some(self.listener(slot(&request.subject()), &registry, &name, 0o600, reply)))
            }
            Request::State => Ok(Some(Arc::new(std::fs::File::open(disk.state()).unwrap().into()))),
            Request::PublishIdentity(volume) => {
                if !disk.ours(volume)? {
                    return Err(Fault::NotFound);
                }
                let target = disk.volume(volume).join("mount");
                std::fs::create_dir_all(&target).unwrap();
                Ok(Some(self.listener(slot(&request.subject()), &target, "spire-agent.sock", 0o666, reply)))
            }
            Request::Unpublish(volume) => {
                disk.ours(volume)?;
                let slot = slot(&request.subject());
                if let Some(kept) = self.kept.lock().unwrap().remove(&slot) {
                    let _ = shutdown(&*kept, Shutdown::Both);
                }
                disk.names.lock().unwrap().remove(&slot);
                let target = disk.volume(volume).join("mount");
                let _ = std::fs::remove_file(target.join("spire-agent.sock"));
                let _ = std::fs::remove_dir(target);
                Ok(None)
            }
            Request::Inspect(volume) => {
                let orphan = if disk.ours(volume)? { 0 } else { flag::ORPHAN };
                let target = disk.volume(volume).join("mount");
                if !target.exists() {
                    return Err(Fault::NotFound);
                }
                reply.flags = orphan | found(&target);
                Ok(self.kept(&slot(&request.subject()), reply))
            }
            Request::List { cursor } => {
                if *cursor == 0 {
                    self.listed = scan(&disk);
                }
                let (volume, flags) = self.listed.get(*cursor as usize).ok_or(Fault::NotFound)?;
                (reply.subject, reply.flags) = (Subject::Volume(volume.clone()), *flags);
                Ok(self.kept(&volume.to_string(), reply))
            }
            Request::StoreListener { subject, cookie: of } => {
                if let Some(volume) = subject.volume()
                    && !disk.ours(volume)?
                {
                    return Err(Fault::NotFound);
                }
                let slot = slot(subject);
                let fd = fd.ok_or(Fault::Malformed)?;
                assert_eq!(cookie(&fd), *of, "another descriptor than the agent says");
                let mut kept = self.kept.lock().unwrap();
                if kept.contains_key(&slot) {
                    return Err(Fault::Busy);
                }
                kept.insert(slot, Arc::new(fd));
                Ok(None)
            }
            Request::Offer(_) => Ok(None),
            _ => Err(Fault::Unsupported),
        }
    }

    fn kept(&self, slot: &Slot, reply: &mut Reply) -> Option<Arc<OwnedFd>> {
        let kept = self.kept.lock().unwrap().get(slot).cloned()?;
        reply.cookie = cookie(&kept);
        Some(kept)
    }

    /// The kept listener if the name is still its own, else a new one.
    fn listener(&self, slot: Slot, at: &Path, name: &str, mode: u32, reply: &mut Reply) -> Arc<OwnedFd> {
        let mut names = self.disk.names.lock().unwrap();
        let mut kept = self.kept.lock().unwrap();
        let known = kept.get(&slot).filter(|fd| names.get(&slot) == Some(&cookie(fd))).cloned();
        let fd = known.unwrap_or_else(|| Arc::new(bound(at, name, SocketType::STREAM, mode)));
        reply.cookie = cookie(&fd);
        names.insert(slot.clone(), reply.cookie);
        kept.insert(slot, Arc::clone(&fd));
        fd
    }
}

impl Disk {
    /// Waits for SIGCONT, as a stopped process does with a request that it has in hand.
    async fn thawed(&self) -> bool {
        self.frozen.subscribe().wait_for(|frozen| !frozen).await.is_ok()
    }
}

fn found(target: &Path) -> u32 {
    let socket = if target.join("spire-agent.sock").exists() { flag::SOCKET } else { 0 };
    flag::IDENTITY | socket
}

fn scan(disk: &Disk) -> Vec<(Volume, u32)> {
    let entries = |path: &Path| {
        let names = std::fs::read_dir(path).into_iter().flatten();
        names.map(|e| e.unwrap().file_name().into_string().unwrap()).collect::<Vec<_>>()
    };
    let mut all = Vec::new();
    let pods = disk.root.join("pods");
    for pod in entries(&pods) {
        let csi = pods.join(&pod).join("volumes/kubernetes.io~csi");
        for name in entries(&csi) {
            let directory = csi.join(&name);
            if !directory.join("mount").exists() {
                continue;
            }
            let id = disk.recorded(&directory);
            let orphan = if id.is_none() { flag::ORPHAN } else { 0 };
            let id = id.unwrap_or_else(|| "orphan".to_owned());
            let volume = Volume {
                driver: disk.driver.parse().unwrap(),
                pod: pod.parse().unwrap(),
                name: name.parse().unwrap(),
                id: id.parse().unwrap(),
            };
            all.push((volume, orphan | found(&directory.join("mount"))));
        }
    }
    all
}
