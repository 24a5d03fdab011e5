//! A kubelet's directory, a mounter on it, and an agent's end of the protocol.

use std::fs;
use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus};
use std::time::Duration;

use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketAddrUnix, SocketFlags, SocketType, connect, recvmsg, sendmsg,
    socket_with,
};
use seamount_mounter_protocol::names::Volume;
use seamount_mounter_protocol::{FRAME, Fault, Reply, Request, Subject};
use seamount_testkit::disk::FileSystem;
use seamount_testkit::{eventually, is_root, namespace, skip};
use tempfile::TempDir;

pub const POD: &str = "3f2c1a9e-0b1d-4c5e-8f70-a1b2c3d4e5f6";
pub const DRIVER: &str = "csi.spiffe.io";
/// The mounter's own directory.
pub const OWN: &str = "plugins/seamount.dev";
pub const AGENT: u32 = 64203;
pub const DEADLINE: Duration = Duration::from_secs(30);

pub fn csi_listener() -> Request {
    Request::CsiListener(DRIVER.parse().unwrap())
}

pub fn registration_listener() -> Request {
    Request::RegistrationListener(DRIVER.parse().unwrap())
}

pub fn offer() -> Request {
    Request::Offer(DRIVER.parse().unwrap())
}

/// Has the mounter keep the volume's listener.
pub fn store(volume: &Volume, cookie: u64) -> Request {
    Request::StoreListener { subject: Subject::Volume(volume.clone()), cookie }
}

/// Has the mounter keep the driver's CSI listener.
pub fn store_csi(cookie: u64) -> Request {
    Request::StoreListener { subject: Subject::Csi(DRIVER.parse().unwrap()), cookie }
}

/// Runs a test as root in a mount namespace of its own, on a fresh kubelet directory.
pub fn bench(name: &str, test: impl FnOnce(&mut Bench) + Send) {
    if !is_root() {
        return skip(name, "takes root");
    }
    namespace::private_mounts(|| test(&mut Bench::new()));
}

/// The same on each kind of disk.
pub fn on_disks(name: &str, test: impl Fn(&mut Bench) + Sync) {
    if !is_root() {
        return skip(name, "takes root");
    }
    for disk in FileSystem::DISKS {
        namespace::private_mounts(|| match Bench::on(disk) {
            Ok(mut bench) => test(&mut bench),
            Err(reason) => skip(&format!("{name} on {}", disk.name()), &reason),
        });
    }
}

pub struct Bench {
    dir: TempDir,
    mounters: Vec<Child>,
    started: usize,
}

impl Bench {
    fn new() -> Self {
        Self::filled(tempdir())
    }

    /// With a kubelet's directory that is a disk of its own.
    fn on(disk: FileSystem) -> Result<Self, String> {
        let dir = tempdir();
        let root = dir.path().join("kubelet");
        fs::create_dir(&root).unwrap();
        disk.mount(&root).map_err(|e| format!("{e:#}"))?;
        Ok(Self::filled(dir))
    }

    fn filled(dir: TempDir) -> Self {
        for part in ["pods", "plugins", "plugins_registry", "logs", "source"] {
            fs::create_dir_all(dir.path().join("kubelet").join(part)).unwrap();
        }
        Self { dir, mounters: Vec::new(), started: 0 }
    }

    pub fn root(&self) -> PathBuf {
        self.dir.path().join("kubelet")
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.root().join(name)
    }

    pub fn socket(&self) -> PathBuf {
        self.dir.path().join("mounter.sock")
    }

    /// A command line of the mounter whose agent is root.
    pub fn command(&self, args: &[&str]) -> Command {
        self.limited("ulimit -c 0", args)
    }

    /// The same after a line of shell.
    pub fn limited(&self, shell: &str, args: &[&str]) -> Command {
        let mut command = Command::new("sh");
        command.arg("-c").arg(format!("{shell}; exec \"$0\" \"$@\""));
        command.arg(env!("CARGO_BIN_EXE_seamount-mounter")).arg("--kubelet-root").arg(self.root());
        command.arg("--socket").arg(self.socket());
        if !args.contains(&"--agent-uid") {
            command.args(["--agent-uid", "0", "--agent-gid", "0"]);
        }
        command.args(args);
        command
    }

    pub fn start(&mut self, args: &[&str]) -> u32 {
        let command = self.command(args);
        self.spawn(command, true)
    }

    /// Starts a mounter, and waits until it is ready if it should be; its pid.
    pub fn spawn(&mut self, mut command: Command, ready: bool) -> u32 {
        self.started += 1;
        let log = self.log_path(self.started);
        let child = command.stderr(fs::File::create(&log).unwrap()).spawn().unwrap();
        let pid = child.id();
        self.mounters.push(child);
        if ready {
            self.wait_for(self.started, "msg=\"ready\"");
        }
        pid
    }

    fn log_path(&self, number: usize) -> PathBuf {
        self.root().join(format!("logs/{number}.log"))
    }

    pub fn log(&self, number: usize) -> String {
        fs::read_to_string(self.log_path(number)).unwrap()
    }

    /// Waits for a text in the log of the `number`th mounter (from 1).
    pub fn wait_for(&self, number: usize, text: &str) {
        eventually(DEADLINE, text, || self.log(number).contains(text));
    }

    /// Ends the first running mounter.
    pub fn kill(&mut self) {
        let mut child = self.mounters.remove(0);
        child.kill().unwrap();
        child.wait().unwrap();
    }

    pub fn terminate(&mut self) -> ExitStatus {
        let mut child = self.mounters.remove(0);
        let pid = rustix::process::Pid::from_child(&child);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
        child.wait().unwrap()
    }

    /// Exit status of a mounter that should end by itself, and its log.
    pub fn ended(&mut self) -> (ExitStatus, String) {
        let mut child = self.mounters.pop().unwrap();
        (child.wait().unwrap(), self.log(self.started))
    }

    /// The same of the first one.
    pub fn ended_first(&mut self) -> (ExitStatus, String) {
        (self.mounters.remove(0).wait().unwrap(), self.log(1))
    }

    /// Ends the one that was started last.
    pub fn kill_last(&mut self) {
        let mut child = self.mounters.pop().unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
    }

    pub fn agent(&self) -> Agent {
        Agent::connect(&self.socket())
    }

    /// Makes the kubelet's directories and record of one volume of [`POD`].
    pub fn volume(&self, name: &str) -> Volume {
        self.volume_of(POD, name, DRIVER)
    }

    pub fn volume_of(&self, pod: &str, name: &str, driver: &str) -> Volume {
        let volume = Volume {
            driver: driver.parse().unwrap(),
            pod: pod.parse().unwrap(),
            name: name.parse().unwrap(),
            id: format!("csi-{name}").parse().unwrap(),
        };
        fs::create_dir_all(self.place(&volume)).unwrap();
        let json = format!(r#"{{"driverName":"{driver}","volumeHandle":"csi-{name}","specVolID":"x"}}"#);
        fs::write(self.place(&volume).join("vol_data.json"), json).unwrap();
        volume
    }

    pub fn place(&self, volume: &Volume) -> PathBuf {
        self.root().join(format!("pods/{}/volumes/kubernetes.io~csi/{}", volume.pod, volume.name))
    }

    pub fn target(&self, volume: &Volume) -> PathBuf {
        self.place(volume).join("mount")
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        for child in &mut self.mounters {
            let _ = child.kill();
            let _ = child.wait();
        }
        if std::thread::panicking() {
            for number in 1..=self.started {
                let log = self.log(number);
                let end: Vec<&str> = log.lines().rev().take(10).collect();
                eprintln!("mounter {number}, last line first: {end:#?}");
            }
        }
        // Mounts of this namespace would keep the directory busy.
        while let Some(point) = mount_points().into_iter().rev().find(|p| p.starts_with(self.dir.path())) {
            if rustix::mount::unmount(&point, rustix::mount::UnmountFlags::DETACH).is_err() {
                break;
            }
        }
    }
}

fn tempdir() -> TempDir {
    tempfile::Builder::new().permissions(fs::Permissions::from_mode(0o755)).tempdir().unwrap()
}

/// All mount points of this thread's namespace, in the order of mounting.
pub fn mount_points() -> Vec<PathBuf> {
    let table = fs::read_to_string("/proc/thread-self/mountinfo").unwrap();
    table.lines().filter_map(|l| l.split(' ').nth(4)).map(PathBuf::from).collect()
}

/// How often something is mounted on exactly this path.
pub fn mounts_on(path: &Path) -> usize {
    mount_points().iter().filter(|p| *p == path).count()
}

pub fn mode(path: impl AsRef<Path>) -> u32 {
    fs::symlink_metadata(path).unwrap().mode() & 0o7777
}

/// Connects to a socket whose path is longer than `sun_path`.
#[track_caller]
pub fn dial(path: impl AsRef<Path>) -> UnixStream {
    let path = path.as_ref();
    let parent = fs::File::open(path.parent().unwrap()).unwrap();
    let name = path.file_name().unwrap().to_str().unwrap();
    UnixStream::connect(format!("/proc/self/fd/{}/{name}", parent.as_raw_fd())).unwrap()
}

/// The names in a directory, sorted.
pub fn names(path: impl AsRef<Path>) -> Vec<String> {
    let entries = fs::read_dir(path).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap());
    let mut all: Vec<String> = entries.collect();
    all.sort();
    all
}

/// Runs `f` on a thread that has the agent's ids and no capability.
pub fn as_agent<T: Send>(f: impl FnOnce() -> T + Send) -> T {
    as_user(AGENT, f)
}

/// Runs `f` on a thread with this uid and gid and no capability.
pub fn as_user<T: Send>(id: u32, f: impl FnOnce() -> T + Send) -> T {
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            let (uid, gid) = (rustix::fs::Uid::from_raw(id), rustix::fs::Gid::from_raw(id));
            rustix::thread::set_thread_groups(&[]).unwrap();
            rustix::thread::set_thread_res_gid(gid, gid, gid).unwrap();
            rustix::thread::set_thread_res_uid(uid, uid, uid).unwrap();
            f()
        });
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

pub struct Answer {
    pub reply: Reply,
    pub fd: Option<OwnedFd>,
}

impl Answer {
    pub fn fault(&self) -> Option<Fault> {
        self.reply.fault
    }

    pub fn has(&self, flag: u32) -> bool {
        self.reply.flags & flag != 0
    }

    #[track_caller]
    pub fn good(self) -> Self {
        assert_eq!(self.reply.fault, None, "{}", self.reply.text);
        self
    }

    #[track_caller]
    pub fn bad(self, fault: Fault, text: &str) {
        assert_eq!(self.reply.fault, Some(fault), "{}", self.reply.text);
        assert!(self.reply.text.contains(text), "{:?} in {}", text, self.reply.text);
        assert!(self.fd.is_none());
    }
}

pub struct Agent(OwnedFd);

impl Agent {
    pub fn connect(path: &Path) -> Self {
        let socket =
            socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).unwrap();
        connect(&socket, &SocketAddrUnix::new(path).unwrap()).unwrap();
        set_socket_timeout(&socket, Timeout::Recv, Some(DEADLINE)).unwrap();
        Self(socket)
    }

    pub fn send(&self, bytes: &[u8], fds: &[&OwnedFd]) {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(4))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        let fds: Vec<_> = fds.iter().map(|fd| fd.as_fd()).collect();
        if !fds.is_empty() {
            assert!(control.push(SendAncillaryMessage::ScmRights(&fds)));
        }
        sendmsg(&self.0, &[IoSlice::new(bytes)], &mut control, SendFlags::NOSIGNAL).unwrap();
    }

    /// Sends without ever waiting; false when nothing more fits.
    pub fn pile_up(&self, frame: &[u8]) -> bool {
        rustix::net::send(&self.0, frame, SendFlags::NOSIGNAL | SendFlags::DONTWAIT).is_ok()
    }

    /// The next reply; `None` when the mounter has closed the connection.
    pub fn receive(&self) -> Option<Answer> {
        let mut frame = [0; FRAME + 1];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(2))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let into = &mut [IoSliceMut::new(&mut frame)];
        let received = recvmsg(&self.0, into, &mut control, RecvFlags::CMSG_CLOEXEC).unwrap();
        if received.bytes == 0 {
            return None;
        }
        let mut fds = Vec::new();
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(rights) = message {
                fds.extend(rights);
            }
        }
        assert!(fds.len() < 2);
        Some(Answer { reply: Reply::decode(&frame[..received.bytes]).unwrap(), fd: fds.pop() })
    }

    /// Asks, and checks that the reply is to this request.
    pub fn ask(&self, request: &Request) -> Answer {
        self.ask_with(request, &[])
    }

    pub fn ask_with(&self, request: &Request, fds: &[&OwnedFd]) -> Answer {
        static ID: std::sync::atomic::AtomicU64 = std::sync::atomic::AtomicU64::new(1);
        let id = ID.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        self.send(&request.encode(id), fds);
        let answer = self.receive().expect("the mounter is there");
        assert!(answer.reply.answers(id, request), "{:?} to {request:?}", answer.reply);
        answer
    }

    pub fn identity(&self, volume: &Volume) -> Answer {
        self.ask(&Request::PublishIdentity(volume.clone()))
    }

    pub fn tmpfs(&self, volume: &Volume, gid: u32, size: u64) -> Answer {
        self.ask(&Request::PublishTmpfs { volume: volume.clone(), gid, size })
    }

    pub fn directory(&self, volume: &Volume) -> Answer {
        self.ask(&Request::PublishDirectory(volume.clone()))
    }

    pub fn unpublish(&self, volume: &Volume) -> Answer {
        self.ask(&Request::Unpublish(volume.clone()))
    }

    pub fn inspect(&self, volume: &Volume) -> Answer {
        self.ask(&Request::Inspect(volume.clone()))
    }

    pub fn list(&self) -> Vec<Answer> {
        let all = (0..).map(|cursor| self.ask(&Request::List { cursor }));
        all.take_while(|a| a.fault() != Some(Fault::NotFound)).collect()
    }
}
