//! The same work without a driver: the system calls that a volume takes, in a bare loop.
//!
//! Publish: find the volume's directory below the root, make the target in it, bind a socket there under a
//! temporary name, rename it, add two links, look at the target, store a record of 1 KB under a temporary
//! name and rename it. Unpublish: the reverse.

use std::fs;
use std::os::fd::OwnedFd;
use std::path::Path;

use anyhow::Context as _;
use rustix::fs::{AtFlags, CWD, Mode, OFlags, ResolveFlags, StatxFlags};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};

const RECORD: [u8; 1024] = [7; 1024];
const TEMPORARY: &str = ".1795000000.000000042.sock";
const SOCKET: &str = "spire-agent.sock";
const LINKS: [&str; 2] = ["agent.sock", "socket"];

/// A kubelet's root with directories of volumes, and a directory for records.
pub struct Bare {
    root: fs::File,
    pods: OwnedFd,
    state: OwnedFd,
    names: Vec<String>,
    held: Vec<OwnedFd>,
}

impl Bare {
    /// With `count` volumes below `root`, on the same kind of file system as the driver's.
    pub fn new(root: &Path, count: usize) -> anyhow::Result<Self> {
        let (pods, state) = (root.join("pods"), root.join("state"));
        let mut names = Vec::new();
        for i in 0..count {
            let uid = seamount_testkit::uuid_of(&format!("bare-{i}"));
            let name = format!("{uid}/volumes/kubernetes.io~csi/id");
            fs::create_dir_all(pods.join(&name)).with_context(|| format!("cannot make {name}"))?;
            names.push(name);
        }
        fs::create_dir_all(&state)?;
        let open = |path: &Path| {
            let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
            rustix::fs::openat(CWD, path, flags, Mode::empty())
        };
        let root = fs::File::open(root)?;
        Ok(Self { root, pods: open(&pods)?, state: open(&state)?, names, held: Vec::new() })
    }

    /// Waits until all that was written is on the disk.
    pub fn sync(&self) -> rustix::io::Result<()> {
        rustix::fs::syncfs(&self.root)
    }

    fn place(&self, name: &str) -> rustix::io::Result<OwnedFd> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
        rustix::fs::openat2(&self.pods, name, flags, Mode::empty(), resolve)
    }

    /// The calls of a publish.
    pub fn publish(&mut self, index: usize) -> rustix::io::Result<()> {
        let name = self.names.get(index).map(String::as_str).unwrap_or_default();
        let place = self.place(name)?;
        rustix::fs::mkdirat(&place, "mount", Mode::from_raw_mode(0o755))?;
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let target = rustix::fs::openat(&place, "mount", flags, Mode::empty())?;
        rustix::fs::statx(&target, "", AtFlags::EMPTY_PATH, StatxFlags::BASIC_STATS)?;
        let socket =
            rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
        rustix::fs::fchmod(&socket, Mode::from_raw_mode(0o666))?;
        rustix::process::fchdir(&target)?;
        rustix::net::bind(&socket, &SocketAddrUnix::new(TEMPORARY)?)?;
        rustix::net::listen(&socket, 1024)?;
        rustix::fs::renameat(&target, TEMPORARY, &target, SOCKET)?;
        for link in LINKS {
            rustix::fs::symlinkat(SOCKET, &target, link)?;
        }
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
        let record = rustix::fs::openat(&self.state, ".new", flags, Mode::from_raw_mode(0o600))?;
        rustix::io::write(&record, &RECORD)?;
        rustix::fs::renameat(&self.state, ".new", &self.state, index.to_string())?;
        self.held.push(socket);
        Ok(())
    }

    /// The calls of an unpublish, of the volume that was published last.
    pub fn unpublish(&mut self, index: usize) -> rustix::io::Result<()> {
        let name = self.names.get(index).map(String::as_str).unwrap_or_default();
        let place = self.place(name)?;
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let target = rustix::fs::openat(&place, "mount", flags, Mode::empty())?;
        rustix::fs::statx(&target, "", AtFlags::EMPTY_PATH, StatxFlags::BASIC_STATS)?;
        self.held.pop();
        for file in LINKS.into_iter().chain([SOCKET]) {
            rustix::fs::unlinkat(&target, file, AtFlags::empty())?;
        }
        rustix::fs::unlinkat(&place, "mount", AtFlags::REMOVEDIR)?;
        rustix::fs::unlinkat(&self.state, index.to_string(), AtFlags::empty())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_volume_comes_and_goes_and_may_come_again() {
        let dir = tempfile::tempdir().unwrap();
        let mut bare = Bare::new(dir.path(), 2).unwrap();
        for _ in 0..2 {
            bare.publish(1).unwrap();
            let target = dir.path().join("pods").join(&bare.names[1]).join("mount");
            assert_eq!(fs::read_dir(&target).unwrap().count(), 3);
            assert_eq!(fs::metadata(dir.path().join("state/1")).unwrap().len(), 1024);
            bare.unpublish(1).unwrap();
            assert!(!target.exists() && bare.held.is_empty());
        }
    }
}
