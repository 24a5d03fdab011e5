//! What a kubelet's root is on: memory, or a file system in a file that a loop device shows as a disk.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context as _, ensure};
use rustix::mount::{MountFlags, mount};

/// Room for some thousand volumes, and for xfs's smallest size. The file is sparse.
const SIZE: u64 = 1 << 30;

/// A file system.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum FileSystem {
    /// In memory: it never waits.
    #[default]
    Tmpfs,
    /// ext4 with its journal.
    Ext4,
    /// xfs.
    Xfs,
    /// ext4 without a journal, mounted with `discard`: what is freed is discarded at once, and close(2) waits
    /// for it.
    Discard,
}

impl FileSystem {
    /// Those that are on a disk.
    pub const DISKS: [Self; 3] = [Self::Ext4, Self::Xfs, Self::Discard];

    /// A word for it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Tmpfs => "tmpfs",
            Self::Ext4 => "ext4",
            Self::Xfs => "xfs",
            Self::Discard => "discard",
        }
    }

    /// The program that makes it, with its arguments; and options of its mount.
    fn made_by(self) -> Option<(&'static [&'static str], &'static str)> {
        match self {
            Self::Tmpfs => None,
            Self::Ext4 => Some((&["mkfs.ext4", "-q", "-F"], "loop")),
            Self::Xfs => Some((&["mkfs.xfs", "-q", "-f"], "loop")),
            Self::Discard => Some((&["mkfs.ext4", "-q", "-F", "-O", "^has_journal"], "loop,discard")),
        }
    }

    /// Mounts a new one on this directory, for root and its group. Call it in a mount namespace of one's own:
    /// file and device are gone with the mount, whatever ends the processes in it.
    ///
    /// # Errors
    /// If it cannot be made here, with the reason: that takes root, loop devices, and the programs that make
    /// it.
    pub fn mount(self, at: &Path) -> anyhow::Result<()> {
        let Some((make, options)) = self.made_by() else {
            return Ok(mount("tmpfs", at, "tmpfs", MountFlags::empty(), Some(c"mode=750"))?);
        };
        let image = image()?;
        let mounted =
            program(make, &[&image]).and_then(|()| program(&["mount", "-o", options], &[&image, at]));
        // The device keeps what is in it.
        fs::remove_file(&image)?;
        mounted?;
        Ok(fs::set_permissions(at, fs::Permissions::from_mode(0o750))?)
    }
}

/// A new file beside this program, which is on a disk where /tmp may not be.
fn image() -> io::Result<PathBuf> {
    static NUMBER: AtomicU32 = AtomicU32::new(0);
    let name = format!("disk-{}-{}.img", std::process::id(), NUMBER.fetch_add(1, Ordering::Relaxed));
    let path = std::env::current_exe()?.with_file_name(name);
    File::create(&path)?.set_len(SIZE)?;
    Ok(path)
}

fn program(line: &[&str], paths: &[&Path]) -> anyhow::Result<()> {
    let (name, arguments) = line.split_first().context("no program")?;
    let path = std::env::var("PATH").unwrap_or_default() + ":/usr/sbin:/sbin";
    let output = Command::new(name).args(arguments).args(paths).env("PATH", path).output();
    let output = output.with_context(|| format!("{name} is missing: run `tests/setup.sh disk`"))?;
    ensure!(output.status.success(), "{name} failed: {}", String::from_utf8_lossy(&output.stderr).trim());
    Ok(())
}
