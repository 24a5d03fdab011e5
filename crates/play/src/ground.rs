//! The tmpfs that a play is made on, and where things are on it.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use rustix::fs::CWD;
use rustix::mount::{MoveMountFlags, move_mount};

use super::Request;
use super::root::{clone_tree, filesystem};

/// The tmpfs: everything that a play makes is below it.
const RUN: &str = "/run";

/// Where things are on the tmpfs.
pub struct Ground {
    /// The kubelet's root directory.
    pub kubelet: PathBuf,
    /// The programs.
    pub bin: PathBuf,
    /// An empty directory that each container makes its root at, in a mount namespace of its own.
    pub new_root: PathBuf,
    /// The root file systems by image.
    pub rootfs: BTreeMap<String, PathBuf>,
    /// Short ways to the volumes.
    pub sockets: PathBuf,
    /// The file of the name servers, if the tmpfs hides it.
    pub resolver: Option<(String, Vec<u8>)>,
    /// For the files of mounter and agent.
    pub work: PathBuf,
}

impl Ground {
    pub fn prepare(request: &Request) -> anyhow::Result<Self> {
        let run = Path::new(RUN);
        // Before the tmpfs covers them, should they be below /run.
        let open = |path: &Path| clone_tree(CWD, path).with_context(|| format!("open {}", path.display()));
        let bin = open(&request.bin)?;
        let images = request
            .rootfs
            .iter()
            .map(|(image, path)| Ok((image.clone(), open(path)?)))
            .collect::<anyhow::Result<Vec<_>>>()?;
        let resolver = std::fs::canonicalize("/etc/resolv.conf")
            .ok()
            .filter(|path| path.starts_with(RUN))
            .and_then(|path| Some((path.to_str()?.to_owned(), std::fs::read(path).ok()?)));
        let tmpfs = filesystem("tmpfs", &[("mode", "755")]).context("make a tmpfs")?;
        let attach = |mount: &OwnedFd, path: &Path| {
            move_mount(mount, "", CWD, path, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)
                .with_context(|| format!("mount on {}", path.display()))
        };
        attach(&tmpfs, run)?;
        let proc = filesystem("proc", &[]).context(
            "mount /proc (the kernel allows it only where the caller's own /proc has nothing mounted over parts of \
             it, which many container engines do: run on the machine itself, or as root)",
        )?;
        attach(&proc, Path::new("/proc"))?;
        let directory = |name: &str| -> anyhow::Result<PathBuf> {
            let path = run.join(name);
            std::fs::create_dir_all(&path).with_context(|| format!("make {}", path.display()))?;
            Ok(path)
        };
        let mut ground = Self {
            kubelet: directory("kubelet")?,
            bin: directory("bin")?,
            new_root: directory("root")?,
            rootfs: BTreeMap::new(),
            sockets: directory("volumes")?,
            work: directory("seamount")?,
            resolver,
        };
        attach(&bin, &ground.bin)?;
        for (i, (image, tree)) in images.into_iter().enumerate() {
            let path = directory(&format!("rootfs/{i}"))?;
            attach(&tree, &path)?;
            ground.rootfs.insert(image, path);
        }
        Ok(ground)
    }
}
