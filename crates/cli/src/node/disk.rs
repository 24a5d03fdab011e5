//! What can be seen of a node in its file system, without asking a process.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::FileTypeExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, Mode, OFlags};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with};

/// The kubelet's three directories that are ours to use.
pub const PARTS: [&str; 3] = ["pods", "plugins", "plugins_registry"];
/// The mounter's own directory of `plugins`.
const OWN: &str = "seamount.dev";
/// The socket in a volume.
const SOCKET: &str = "spire-agent.sock";
/// `vol_data.json` is shorter.
const RECORD: u64 = 4096;

/// How a socket answers a connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Door {
    /// Nothing is there.
    Missing,
    /// Something else is there.
    NotASocket,
    /// A process has it open; whether it serves it is not known.
    Open,
    /// A socket that no process has open.
    Dead,
    /// So many connections wait that no more fit.
    Full,
    /// Anything else.
    Other(String),
}

/// The state tmpfs in the mount table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StateMount {
    /// How many mounts lie there.
    pub mounts: usize,
    /// Its kind.
    pub kind: String,
    /// Whether its pages are kept from the swap.
    pub noswap: bool,
}

/// A volume's directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OnDisk {
    /// The pod's UID.
    pub pod_uid: String,
    /// The volume's name.
    pub name: String,
    /// Where it is.
    pub path: PathBuf,
    /// Whether the kubelet has a record of it.
    pub recorded: bool,
    /// Whether the directory `mount` is there.
    pub published: bool,
    /// Its socket.
    pub socket: Door,
    /// Mounts on it.
    pub mounts: usize,
}

/// What is there.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Disk {
    /// Why the root cannot be looked at.
    pub unreadable: Option<String>,
    /// Which of [`PARTS`] are there.
    pub parts: Vec<&'static str>,
    /// Names below `plugins`, for a user's misspelled driver.
    pub plugins: Vec<String>,
    /// Whether `plugins/<driver>` is there.
    pub plugin: bool,
    /// The CSI socket.
    pub csi: Option<Door>,
    /// The registration socket.
    pub registration: Option<Door>,
    /// None: nothing is mounted on the state directory, or the mount table cannot be read.
    pub state: Option<StateMount>,
    /// Volumes of the driver, and directories with a socket of ours that the kubelet has no record of.
    pub volumes: Vec<OnDisk>,
    /// Release of the kernel.
    pub kernel: String,
    /// Whether there is swap.
    pub swap: bool,
}

impl Disk {
    /// Looks; at each volume only where no process tells of them.
    pub fn look(root: &Path, driver: &str, each: bool) -> Self {
        let mut out = Self {
            kernel: read("/proc/sys/kernel/osrelease"),
            swap: read("/proc/swaps").lines().count() > 1,
            ..Self::default()
        };
        if let Err(e) = fs::read_dir(root) {
            out.unreadable = Some(match e.kind() {
                io::ErrorKind::NotFound => "it does not exist".to_owned(),
                _ => e.to_string(),
            });
            return out;
        }
        out.parts = PARTS.into_iter().filter(|part| root.join(part).is_dir()).collect();
        let plugins = root.join("plugins");
        out.plugins = names(&plugins);
        let plugin = plugins.join(driver);
        out.plugin = plugin.is_dir();
        out.csi = Some(door(&plugin.join("csi.sock")));
        out.registration = Some(door(&root.join("plugins_registry").join(format!("{driver}-reg.sock"))));
        let table = Mounts::read();
        out.state = table.state(&plugins.join(OWN).join("state"));
        if each {
            out.volumes = volumes(&root.join("pods"), driver, &table);
        }
        out
    }
}

fn read(path: &str) -> String {
    fs::read_to_string(path).unwrap_or_default().trim().to_owned()
}

fn names(directory: &Path) -> Vec<String> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    let mut names: Vec<String> = entries.filter_map(|e| e.file_name().into_string().ok()).collect();
    names.sort_unstable();
    names
}

/// Connects and hangs up. The server sees a connection that says nothing.
pub fn door(path: &Path) -> Door {
    match fs::symlink_metadata(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Door::Missing,
        Err(e) => return Door::Other(e.to_string()),
        Ok(found) if !found.file_type().is_socket() => return Door::NotASocket,
        Ok(_) => {}
    }
    match knock(path) {
        Ok(()) => Door::Open,
        Err(rustix::io::Errno::CONNREFUSED) => Door::Dead,
        Err(rustix::io::Errno::AGAIN) => Door::Full,
        Err(e) => Door::Other(io::Error::from(e).to_string()),
    }
}

fn knock(path: &Path) -> rustix::io::Result<()> {
    // Through a descriptor: an address has at most 107 bytes.
    let at = rustix::fs::openat(CWD, path, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())?;
    let address = SocketAddrUnix::new(format!("/proc/self/fd/{}", at.as_raw_fd()))?;
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    connect(socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?, &address)
}

/// The volumes of this driver. What other drivers have is skipped, as the mounter skips it.
fn volumes(pods: &Path, driver: &str, table: &Mounts) -> Vec<OnDisk> {
    let mut all = Vec::new();
    for pod_uid in names(pods) {
        let csi = pods.join(&pod_uid).join("volumes/kubernetes.io~csi");
        for name in names(&csi) {
            let directory = csi.join(&name);
            let path = directory.join("mount");
            let socket = path.join(SOCKET);
            let owner = owner(&directory.join("vol_data.json"));
            let recorded = match owner {
                Some(owner) if owner == driver => true,
                Some(_) => continue,
                // Only the socket's name speaks for us.
                None if fs::symlink_metadata(&socket).is_ok() => false,
                None => continue,
            };
            let mounts = table.at(&path);
            // A socket below a mount belongs to another driver: it is not connected to.
            let socket = if mounts == 0 { door(&socket) } else { Door::Missing };
            let published = path.is_dir();
            all.push(OnDisk { pod_uid: pod_uid.clone(), name, path, recorded, published, socket, mounts });
        }
    }
    all
}

/// The driver that the kubelet has written down.
fn owner(record: &Path) -> Option<String> {
    if fs::symlink_metadata(record).ok().filter(|m| m.is_file())?.len() > RECORD {
        return None;
    }
    let record: BTreeMap<String, serde_json::Value> = serde_json::from_slice(&fs::read(record).ok()?).ok()?;
    Some(record.get("driverName")?.as_str()?.to_owned())
}

/// The mount table of this process.
struct Mounts(Vec<(PathBuf, String, String)>);

impl Mounts {
    fn read() -> Self {
        Self(parse(&fs::read_to_string("/proc/self/mountinfo").unwrap_or_default()))
    }

    fn at(&self, path: &Path) -> usize {
        let Ok(path) = path.canonicalize() else { return 0 };
        self.0.iter().filter(|(point, _, _)| *point == path).count()
    }

    fn state(&self, path: &Path) -> Option<StateMount> {
        let path = path.canonicalize().ok()?;
        let there: Vec<_> = self.0.iter().filter(|(point, _, _)| *point == path).collect();
        let (_, kind, options) = there.last()?;
        let noswap = options.split(',').any(|o| o == "noswap");
        Some(StateMount { mounts: there.len(), kind: kind.clone(), noswap })
    }
}

/// Mount point, kind and the file system's options of each line (proc_pid_mountinfo(5)).
fn parse(table: &str) -> Vec<(PathBuf, String, String)> {
    let line = |line: &str| {
        let (mount, system) = line.split_once(" - ")?;
        let mut system = system.split(' ');
        let kind = system.next()?.to_owned();
        Some((PathBuf::from(unescape(mount.split(' ').nth(4)?)), kind, system.nth(1)?.to_owned()))
    };
    table.lines().filter_map(line).collect()
}

/// `\040` is a space: three octal digits.
fn unescape(text: &str) -> String {
    let mut out = String::new();
    let mut rest = text;
    while let Some((before, after)) = rest.split_once('\\') {
        out.push_str(before);
        let code = after.get(..3).and_then(|digits| u8::from_str_radix(digits, 8).ok());
        match (code, after.get(3..)) {
            (Some(code), Some(after)) => {
                out.push(char::from(code));
                rest = after;
            }
            _ => {
                out.push('\\');
                rest = after;
            }
        }
    }
    out + rest
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixListener;

    #[test]
    fn a_door_is_what_it_is() {
        let directory = tempfile::tempdir().unwrap();
        // Longer than an address may be.
        let deep = directory.path().join("d".repeat(120));
        fs::create_dir(&deep).unwrap();
        let path = |name: &str| deep.join(name);
        assert_eq!(door(&path("none")), Door::Missing);
        fs::write(path("file"), "").unwrap();
        assert_eq!(door(&path("file")), Door::NotASocket);
        let short = directory.path().join("s");
        let listener = UnixListener::bind(&short).unwrap();
        fs::rename(&short, path("s")).unwrap();
        assert_eq!(door(&path("s")), Door::Open);
        drop(listener);
        assert_eq!(door(&path("s")), Door::Dead);
    }

    #[test]
    fn the_mount_table_is_read() {
        let table = "36 35 98:0 / /mnt\\0402 rw,noatime master:1 - tmpfs tmpfs rw,size=1k,noswap\n\
                     37 35 98:0 / /mnt\\0402 rw - ext4 /dev/sda rw\nbroken\n";
        let mounts = parse(table);
        assert_eq!(mounts.len(), 2);
        assert_eq!(mounts[0], ("/mnt 2".into(), "tmpfs".to_owned(), "rw,size=1k,noswap".to_owned()));
        assert_eq!(unescape("a\\134b\\9"), "a\\b\\9");
    }

    #[test]
    fn volumes_are_told_from_those_of_others() {
        let root = tempfile::tempdir().unwrap();
        let make = |pod: &str, name: &str, driver: Option<&str>, socket: bool| {
            let directory = root.path().join(format!("pods/{pod}/volumes/kubernetes.io~csi/{name}"));
            fs::create_dir_all(directory.join("mount")).unwrap();
            if let Some(driver) = driver {
                fs::write(directory.join("vol_data.json"), format!(r#"{{"driverName":"{driver}"}}"#))
                    .unwrap();
            }
            if socket {
                drop(UnixListener::bind(directory.join("mount").join(SOCKET)).unwrap());
            }
        };
        make("a", "ours", Some("csi.spiffe.io"), true);
        make("a", "theirs", Some("csi.example.com"), true);
        make("b", "orphan", None, true);
        make("b", "nobodys", None, false);
        let disk = Disk::look(root.path(), "csi.spiffe.io", true);
        let seen: Vec<_> =
            disk.volumes.iter().map(|v| (v.name.as_str(), v.recorded, v.socket.clone())).collect();
        assert_eq!(seen, [("ours", true, Door::Dead), ("orphan", false, Door::Dead)]);
        assert_eq!((disk.parts, disk.plugin, disk.csi), (vec!["pods"], false, Some(Door::Missing)));
    }
}
