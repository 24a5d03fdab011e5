//! The state tmpfs as a directory of records.
//!
//! Blocking calls: the directory is a tmpfs, a record takes microseconds. No fsync: a tmpfs has nothing to
//! sync to, and a reboot is meant to empty it. Removal unlinks; nothing is overwritten first, because the
//! pages of a `noswap` tmpfs go back to the kernel, which clears them before another process sees them.

use std::collections::HashSet;
use std::hash::{BuildHasher as _, Hasher as _, RandomState};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::LazyLock;
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::fs::{AtFlags, FileType, Mode, OFlags};
use rustix::io::Errno;
use seamount_mounter_protocol::names::{PodUid, Volume, VolumeName};
use zeroize::Zeroizing;

use crate::record::{MAX_RECORD, NodeRecord, Record, RecordError};

/// Name of the node's record. No volume's: those have a dot.
const NODE: &str = "node";
/// Beginning of the names of records that are being written, and of what was put aside to make room for one.
const TEMPORARY: &str = ".new-";
/// Names that are looked at. The mounter gives the tmpfs 65,536 inodes.
const MAX_NAMES: usize = 70_000;
/// Files that cannot be used and are told one by one; an agent that was hostile may have left thousands.
const TOLD: usize = 16;

/// Why state could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// The tmpfs is full.
    #[error(
        "state {name}: the state tmpfs is full: raise its size or its number of inodes in the mounter; nothing was changed"
    )]
    Full {
        /// The record's file name.
        name: String,
    },
    /// The process or the node is out of descriptors.
    #[error("state {name}: out of descriptors: raise the limit (LimitNOFILE); nothing was changed")]
    Descriptors {
        /// The record's file name.
        name: String,
    },
    /// Longer than [`MAX_RECORD`].
    #[error("state {name}: {length} bytes, more than {MAX_RECORD}")]
    TooLong {
        /// The record's file name.
        name: String,
        /// Its bytes.
        length: u64,
    },
    /// Of another release, or damaged.
    #[error("state {name}: {source}")]
    Record {
        /// The record's file name.
        name: String,
        /// What is wrong with it.
        source: RecordError,
    },
    /// A directory, a FIFO, a socket.
    #[error("state {name}: is no file: it cannot be used; the next record takes its place")]
    NotAFile {
        /// The name.
        name: String,
    },
    /// Under another name than the volume in it.
    #[error("state {name}: holds the record of {holds}: it cannot be used")]
    Name {
        /// The record's file name.
        name: String,
        /// The volume in it.
        holds: String,
    },
    /// Anything else that the kernel refused.
    #[error("state {name}: cannot {what}: {source}")]
    Io {
        /// The record's file name, or `directory`.
        name: String,
        /// What was tried.
        what: &'static str,
        /// The kernel's answer.
        source: io::Error,
    },
}

impl StateError {
    fn of(name: &str, what: &'static str, errno: Errno) -> Self {
        let name = name.to_owned();
        match errno {
            Errno::NOSPC | Errno::DQUOT => Self::Full { name },
            Errno::MFILE | Errno::NFILE => Self::Descriptors { name },
            other => Self::Io { name, what, source: other.into() },
        }
    }
}

/// What [`StateDir::list`] finds under one name.
pub struct Found {
    /// The file's name, for messages.
    pub name: String,
    /// The record, or why it cannot be used. The file is left alone in both cases.
    pub record: Result<Record, StateError>,
}

/// How full the state tmpfs is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Usage {
    /// Its size in bytes.
    pub bytes: u64,
    /// Bytes in use.
    pub bytes_used: u64,
    /// How many files it can hold.
    pub inodes: u64,
    /// Files in it, with the directory itself.
    pub inodes_used: u64,
}

/// The records, reached by a descriptor alone.
///
/// Each call is a few system calls, and any thread may make it: a record appears, and takes the place of
/// another, by rename(2) alone, and is never changed where it lies. Two writers of one record are kept apart
/// by the volume's slot, so that the later one is the one that stays. A [`list`](Self::list) beside them
/// leaves their temporary files alone.
pub struct StateDir {
    directory: OwnedFd,
}

/// How many files this process has begun. Relaxed: that no two are the same is all that is asked of it.
static WRITTEN: AtomicU64 = AtomicU64::new(0);
/// Marks this process's temporary files. Not the pid: in a container it is the same for the agent that is
/// just being replaced, which may be writing into the same directory.
static MARK: LazyLock<String> =
    LazyLock::new(|| format!("{TEMPORARY}{:016x}-", RandomState::new().build_hasher().finish()));

impl StateDir {
    /// `directory`: what the mounter answers to `State`.
    pub fn new(directory: OwnedFd) -> Self {
        // An agent before this one may have taken its own right to write away.
        let _ = rustix::fs::fchmod(&directory, Mode::RWXU);
        Self { directory }
    }

    /// Stores a volume's record in the place of the one before, all or nothing.
    pub fn put(&self, record: &Record) -> Result<(), StateError> {
        self.write(&file_name(&record.volume.pod, &record.volume.name), &record.encode())
    }

    /// The record of a volume, whatever its id.
    pub fn get(&self, pod: &PodUid, name: &VolumeName) -> Result<Option<Record>, StateError> {
        self.record(&file_name(pod, name))
    }

    /// All volumes' records in the order of their names. What an earlier process left half written is
    /// removed.
    pub fn list(&self) -> Result<Vec<Found>, StateError> {
        let found = |name: String| {
            let record = self.record(&name).transpose()?;
            Some(Found { name, record })
        };
        Ok(self.records()?.into_iter().filter_map(found).collect())
    }

    /// The volumes that have a record and are not among these, at most so many. What cannot be used is told
    /// and passed over.
    pub fn others(&self, known: &[Volume], most: usize) -> Result<Vec<Volume>, StateError> {
        let known: HashSet<String> = known.iter().map(|v| file_name(&v.pod, &v.name)).collect();
        let mut left: Vec<_> = self.records()?.into_iter().filter(|name| !known.contains(name)).collect();
        if left.len() > most {
            tracing::warn!(
                records = left.len(),
                "so many records have no volume that only some are looked after now"
            );
            left.truncate(most);
        }
        let (mut volumes, mut unusable) = (Vec::new(), 0);
        for name in left {
            match self.record(&name) {
                Ok(record) => volumes.extend(record.map(|record| record.volume)),
                Err(e) => {
                    unusable += 1;
                    if unusable <= TOLD {
                        tracing::error!(error = %e, "a record cannot be used; its volume waits for a republish");
                    }
                }
            }
        }
        if unusable > TOLD {
            tracing::error!(records = unusable, "records cannot be used; the first ones were named");
        }
        Ok(volumes)
    }

    /// The names of all records in order. What an earlier process left half written is removed, as far as
    /// that can be: one name that stays must not keep the others from being read.
    fn records(&self) -> Result<Vec<String>, StateError> {
        let (mut records, mut stay) = (Vec::new(), 0);
        for name in self.names()? {
            if !name.starts_with(TEMPORARY) {
                if name != NODE {
                    records.push(name);
                }
            } else if !name.starts_with(MARK.as_str()) && self.unlink(&name).is_err() {
                let directory = rustix::fs::unlinkat(&self.directory, &name, AtFlags::REMOVEDIR);
                stay += usize::from(directory.is_err());
            }
        }
        if stay > 0 {
            tracing::warn!(
                names = stay,
                "what is in the state directory under temporary names cannot be removed"
            );
        }
        records.sort();
        Ok(records)
    }

    fn record(&self, name: &str) -> Result<Option<Record>, StateError> {
        self.read(name)?.map(|bytes| decode(name, &bytes)).transpose()
    }

    /// Forgets a volume. Idempotent.
    pub fn remove(&self, volume: &Volume) -> Result<(), StateError> {
        self.clear(&file_name(&volume.pod, &volume.name))
    }

    /// Size and use of the file system.
    pub fn usage(&self) -> Result<Usage, StateError> {
        let fail = |e| StateError::of("directory", "ask for its size", e);
        let stat = rustix::fs::fstatvfs(&self.directory).map_err(fail)?;
        let used = |all: u64, free| all.saturating_sub(free);
        Ok(Usage {
            bytes: stat.f_blocks.saturating_mul(stat.f_frsize),
            bytes_used: used(stat.f_blocks, stat.f_bfree).saturating_mul(stat.f_frsize),
            inodes: stat.f_files,
            inodes_used: used(stat.f_files, stat.f_ffree),
        })
    }

    /// Stores the node's record.
    pub fn put_node(&self, record: &NodeRecord) -> Result<(), StateError> {
        self.write(NODE, &record.encode())
    }

    /// The node's record.
    pub fn get_node(&self) -> Result<Option<NodeRecord>, StateError> {
        match self.read(NODE)? {
            None => Ok(None),
            Some(bytes) => NodeRecord::decode(&bytes)
                .map(Some)
                .map_err(|source| StateError::Record { name: NODE.to_owned(), source }),
        }
    }

    fn write(&self, name: &str, bytes: &[u8]) -> Result<(), StateError> {
        if bytes.len() > MAX_RECORD {
            return Err(StateError::TooLong { name: name.to_owned(), length: bytes.len() as u64 });
        }
        let temporary = format!("{}{}", *MARK, WRITTEN.fetch_add(1, Ordering::Relaxed));
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let written = rustix::fs::openat(&self.directory, &temporary, flags, Mode::RUSR | Mode::WUSR)
            .map_err(|e| StateError::of(name, "create", e))
            .and_then(|file| write_all(&file, bytes).map_err(|e| StateError::of(name, "write", e)))
            .and_then(|()| {
                let rename = || rustix::fs::renameat(&self.directory, &temporary, &self.directory, name);
                match rename() {
                    // A directory of that name, which no agent of ours makes.
                    Err(Errno::ISDIR | Errno::NOTEMPTY | Errno::EXIST) => {
                        self.clear(name)?;
                        rename()
                    }
                    renamed => renamed,
                }
                .map_err(|e| StateError::of(name, "rename", e))
            });
        if written.is_err() {
            // The first error is the one to tell.
            let _ = self.unlink(&temporary);
        }
        written
    }

    fn read(&self, name: &str) -> Result<Option<Zeroizing<Vec<u8>>>, StateError> {
        let fail = |what, e| StateError::of(name, what, e);
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let file = match rustix::fs::openat(&self.directory, name, flags, Mode::empty()) {
            Ok(file) => file,
            Err(Errno::NOENT) => return Ok(None),
            Err(e) => return Err(fail("open", e)),
        };
        let stat = rustix::fs::fstat(&file).map_err(|e| fail("stat", e))?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
            return Err(StateError::NotAFile { name: name.to_owned() });
        }
        let length = u64::try_from(stat.st_size).unwrap_or(0);
        let size = usize::try_from(length).unwrap_or(usize::MAX);
        if size > MAX_RECORD {
            return Err(StateError::TooLong { name: name.to_owned(), length });
        }
        // Records are replaced, never changed: the size holds. The buffer does not move, so it is wiped as a
        // whole.
        let mut bytes = Zeroizing::new(vec![0u8; size]);
        let mut filled = 0;
        while let Some(rest) = bytes.get_mut(filled..).filter(|rest| !rest.is_empty()) {
            match rustix::io::read(&file, rest) {
                Ok(0) => break,
                Ok(count) => filled += count,
                Err(Errno::INTR) => {}
                Err(e) => return Err(fail("read", e)),
            }
        }
        bytes.truncate(filled);
        Ok(Some(bytes))
    }

    fn names(&self) -> Result<Vec<String>, StateError> {
        let fail = |e| StateError::of("directory", "list", e);
        // A descriptor of its own: the position of a directory stream belongs to the open file.
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let again = rustix::fs::openat(self.directory.as_fd(), ".", flags, Mode::empty()).map_err(fail)?;
        let mut names = Vec::new();
        for entry in rustix::fs::Dir::new(again).map_err(fail)?.take(MAX_NAMES) {
            // A name that is not UTF-8 is none of ours.
            if let Ok(name) = entry.map_err(fail)?.file_name().to_str()
                && name != "."
                && name != ".."
            {
                names.push(name.to_owned());
            }
        }
        Ok(names)
    }

    /// Removes what has this name, whatever it is. A directory is put aside first: what is in it cannot be
    /// told, and need not be gone for a record to take its place.
    fn clear(&self, name: &str) -> Result<(), StateError> {
        match self.unlink(name) {
            Err(_) if self.is_directory(name) => {
                let aside = format!("{}{}", *MARK, WRITTEN.fetch_add(1, Ordering::Relaxed));
                rustix::fs::renameat(&self.directory, name, &self.directory, &aside)
                    .map_err(|e| StateError::of(name, "put aside", e))?;
                let _ = rustix::fs::unlinkat(&self.directory, &aside, AtFlags::REMOVEDIR);
                Ok(())
            }
            done => done,
        }
    }

    fn is_directory(&self, name: &str) -> bool {
        rustix::fs::statat(&self.directory, name, AtFlags::SYMLINK_NOFOLLOW)
            .is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::Directory)
    }

    fn unlink(&self, name: &str) -> Result<(), StateError> {
        match rustix::fs::unlinkat(&self.directory, name, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(e) => Err(StateError::of(name, "remove", e)),
        }
    }
}

/// `<pod uid>.<volume name>`: at most 36 + 1 + 63 bytes; neither part has a dot.
fn file_name(pod: &PodUid, name: &VolumeName) -> String {
    format!("{pod}.{name}")
}

fn decode(name: &str, bytes: &[u8]) -> Result<Record, StateError> {
    let record =
        Record::decode(bytes).map_err(|source| StateError::Record { name: name.to_owned(), source })?;
    if file_name(&record.volume.pod, &record.volume.name) != name {
        return Err(StateError::Name { name: name.to_owned(), holds: record.volume.to_string() });
    }
    Ok(record)
}

fn write_all(file: &OwnedFd, mut bytes: &[u8]) -> Result<(), Errno> {
    while !bytes.is_empty() {
        match rustix::io::write(file, bytes) {
            Ok(0) => return Err(Errno::IO),
            Ok(count) => bytes = bytes.get(count..).unwrap_or_default(),
            Err(Errno::INTR) => {}
            Err(e) => return Err(e),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
