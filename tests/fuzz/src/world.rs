//! A place where the mounter may do what it wants: a mount namespace of this thread's, with a tmpfs on /run.
//! All of it is gone when the process ends, however it ends.

use std::fs;
use std::io::Write as _;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};

/// Where everything is. The first call makes it; the target runs on one thread.
///
/// # Panics
/// Without root.
pub fn base() -> &'static Path {
    static BASE: OnceLock<&Path> = OnceLock::new();
    BASE.get_or_init(|| {
        seamount_sys::play::unshare_mounts().expect("this target needs root: a mount namespace of its own");
        rustix::process::umask(rustix::fs::Mode::empty());
        tmpfs(Path::new("/run"), c"mode=0755");
        Path::new("/run")
    })
}

/// Mounts a new tmpfs.
pub fn tmpfs(at: &Path, options: &std::ffi::CStr) {
    mount("fuzz", at, "tmpfs", MountFlags::empty(), options).unwrap();
}

/// Makes a directory and those above it.
pub fn directory(path: &Path) {
    fs::DirBuilder::new().recursive(true).mode(0o755).create(path).unwrap();
}

/// Unmounts everything that lies on this path.
pub fn unmount_all(path: &Path) {
    while unmount(path, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW).is_ok() {}
}

/// Removes whatever has this name; nothing may be mounted in it.
pub fn remove(path: &Path) {
    match fs::symlink_metadata(path) {
        Ok(found) if found.is_dir() => fs::remove_dir_all(path).unwrap(),
        Ok(_) => fs::remove_file(path).unwrap(),
        Err(_) => {}
    }
}

/// Everything below a path, with all that changes when it is touched.
pub fn fingerprint(path: &Path) -> Vec<(PathBuf, [i64; 9])> {
    let found = fs::symlink_metadata(path).unwrap();
    let numbers = [
        found.dev() as i64,
        found.ino() as i64,
        found.mode().into(),
        found.uid().into(),
        found.gid().into(),
        found.size() as i64,
        found.nlink() as i64,
        found.ctime(),
        found.ctime_nsec(),
    ];
    let mut all = vec![(path.to_owned(), numbers)];
    if found.is_dir() {
        let mut inner: Vec<PathBuf> = fs::read_dir(path).unwrap().map(|e| e.unwrap().path()).collect();
        inner.sort();
        inner.iter().for_each(|path| all.extend(fingerprint(path)));
    }
    all
}

/// All mount points of this namespace.
pub fn mount_points() -> Vec<String> {
    let table = fs::read_to_string("/proc/thread-self/mountinfo").unwrap();
    table.lines().filter_map(|line| line.split(' ').nth(4)).map(str::to_owned).collect()
}

/// What the descriptors of this process lead to, but for the one that lists them, and for pipes: the
/// sanitizer's to a symbolizer, and the mounter makes none.
pub fn descriptors() -> Vec<PathBuf> {
    let all = fs::read_dir("/proc/self/fd").unwrap();
    let mut all: Vec<PathBuf> = all.filter_map(|fd| fs::read_link(fd.unwrap().path()).ok()).collect();
    all.retain(|path| !path.starts_with("/proc") && !path.to_string_lossy().starts_with("pipe:"));
    all.sort();
    all
}

/// A file that is nowhere.
pub struct MemoryFile(OwnedFd, PathBuf);

/// Makes one.
pub fn memory_file(content: &[u8]) -> MemoryFile {
    let fd = rustix::fs::memfd_create("fuzz", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
    let mut file = fs::File::from(fd);
    file.write_all(content).unwrap();
    let path = PathBuf::from(format!("/proc/self/fd/{}", file.as_raw_fd()));
    MemoryFile(file.into(), path)
}

impl MemoryFile {
    /// Its path, for this process while it lives.
    pub fn path(&self) -> &Path {
        &self.1
    }

    /// Its path for good.
    pub fn keep(self) -> PathBuf {
        std::mem::forget(self.0);
        self.1
    }
}
