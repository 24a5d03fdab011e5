//! The frame and the primitive fields of a record.

use std::str::FromStr;
use std::time::{Duration, SystemTime};

use aws_lc_rs::digest::{SHA256, SHA256_OUTPUT_LEN, digest};
use zeroize::Zeroizing;

/// Raised with every change of a record's body. A release reads the versions from [`OLDEST`] to its own and
/// writes its own: what is new has a default in older records, so that an upgrade keeps every identity. That
/// holds from the first release on.
pub const VERSION: u16 = 3;
/// The oldest version that is read. Version 1 had the pod's identity beside the token, where nothing proved
/// it; version 2 had no body for each kind of volume.
pub const OLDEST: u16 = 3;
/// The largest record, in bytes: a token of 16 KiB, an RSA key and a chain of a few certificates fit many
/// times.
pub const MAX_RECORD: usize = 256 * 1024;
/// A volume's record.
pub const KIND_VOLUME: u16 = 1;
/// The node's record.
pub const KIND_NODE: u16 = 2;

/// What the played next release writes into its field.
const NEXT_FIELD: u64 = 0x6e65_7874;

const MAGIC: [u8; 4] = *b"SMR\x01";
/// Magic, version, kind, generation, length.
const HEADER: usize = 4 + 2 + 2 + 8 + 4;

/// Why bytes are no record.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RecordError {
    /// Whole, but of another release. The file stays.
    #[error(
        "record of version {found}, this release knows {VERSION}: it is kept for the release that wrote it"
    )]
    Version {
        /// The record's version.
        found: u16,
    },
    /// Truncated, changed, or not a record.
    #[error("record is damaged ({0}): it cannot be used; the kubelet's next republish makes a new one")]
    Corrupt(&'static str),
}

/// The version of this process. A debug build plays the next release where a test asks for it: the next
/// version has one more field at the end of each body, and this one is read as well.
fn ours() -> u16 {
    #[cfg(debug_assertions)]
    if std::env::var_os("SEAMOUNT_TEST_NEXT_RELEASE").is_some() {
        return VERSION + 1;
    }
    VERSION
}

/// Writes into one buffer that never moves (its capacity is known at the start) and is wiped.
pub(super) struct Writer(Zeroizing<Vec<u8>>);

impl Writer {
    /// `body` is an upper bound of the body's bytes.
    pub fn new(kind: u16, generation: u64, body: usize) -> Self {
        let mut w = Self(Zeroizing::new(Vec::with_capacity(HEADER + body + SHA256_OUTPUT_LEN)));
        w.raw(&MAGIC);
        w.raw(&ours().to_le_bytes());
        w.raw(&kind.to_le_bytes());
        w.u64(generation);
        w.raw(&[0; 4]);
        w
    }

    #[cfg(test)]
    pub fn capacity(&self) -> usize {
        self.0.capacity()
    }

    pub fn raw(&mut self, bytes: &[u8]) {
        if self.0.len() + bytes.len() > self.0.capacity() {
            // An estimate was too small. Moving by hand wipes the old buffer, which `Vec` would not.
            let mut larger = Zeroizing::new(Vec::with_capacity(2 * (self.0.len() + bytes.len())));
            larger.extend_from_slice(&self.0);
            self.0 = larger;
        }
        self.0.extend_from_slice(bytes);
    }

    pub fn u8(&mut self, value: u8) {
        self.raw(&[value]);
    }

    pub fn flag(&mut self, value: bool) {
        self.u8(u8::from(value));
    }

    pub fn u64(&mut self, value: u64) {
        self.raw(&value.to_le_bytes());
    }

    pub fn bytes(&mut self, bytes: &[u8]) {
        // Nothing that is stored comes near 4 GiB; `StateDir::put` bounds the whole record.
        self.raw(&u32::try_from(bytes.len()).unwrap_or(u32::MAX).to_le_bytes());
        self.raw(bytes);
    }

    /// Since the epoch; what is earlier becomes the epoch.
    pub fn time(&mut self, time: SystemTime) {
        let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        self.u64(since.as_secs());
        self.raw(&since.subsec_nanos().to_le_bytes());
    }

    pub fn finish(mut self) -> Zeroizing<Vec<u8>> {
        if ours() > VERSION {
            self.u64(NEXT_FIELD);
        }
        let body = u32::try_from(self.0.len().saturating_sub(HEADER)).unwrap_or(u32::MAX);
        if let Some(length) = self.0.get_mut(HEADER - 4..HEADER) {
            length.copy_from_slice(&body.to_le_bytes());
        }
        let sum = digest(&SHA256, &self.0);
        self.raw(sum.as_ref());
        self.0
    }
}

/// Reads a body front to back.
pub(super) struct Reader<'a> {
    rest: &'a [u8],
    version: u16,
}

impl<'a> Reader<'a> {
    /// Checks the frame; the generation and the body.
    pub fn open(record: &'a [u8], kind: u16) -> Result<(u64, Self), RecordError> {
        let (frame, sum) = record
            .len()
            .checked_sub(SHA256_OUTPUT_LEN)
            .and_then(|end| record.split_at_checked(end))
            .ok_or(RecordError::Corrupt("too short"))?;
        let mut r = Self { rest: frame, version: VERSION };
        if r.array()? != MAGIC {
            return Err(RecordError::Corrupt("not a record"));
        }
        // The checksum first: a changed version must not look like a newer release's record.
        if digest(&SHA256, frame).as_ref() != sum {
            return Err(RecordError::Corrupt("checksum"));
        }
        r.version = u16::from_le_bytes(r.array()?);
        if !(OLDEST..=ours()).contains(&r.version) {
            return Err(RecordError::Version { found: r.version });
        }
        if u16::from_le_bytes(r.array()?) != kind {
            return Err(RecordError::Corrupt("of another kind"));
        }
        let generation = r.u64()?;
        let length = u32::from_le_bytes(r.array()?);
        if usize::try_from(length) != Ok(r.rest.len()) {
            return Err(RecordError::Corrupt("length"));
        }
        Ok((generation, r))
    }

    fn take(&mut self, count: usize) -> Result<&'a [u8], RecordError> {
        let (head, tail) = self.rest.split_at_checked(count).ok_or(RecordError::Corrupt("truncated"))?;
        self.rest = tail;
        Ok(head)
    }

    pub fn array<const N: usize>(&mut self) -> Result<[u8; N], RecordError> {
        self.take(N)?.try_into().map_err(|_| RecordError::Corrupt("truncated"))
    }

    pub fn u8(&mut self) -> Result<u8, RecordError> {
        self.array().map(u8::from_le_bytes)
    }

    pub fn flag(&mut self) -> Result<bool, RecordError> {
        match self.u8()? {
            0 => Ok(false),
            1 => Ok(true),
            _ => Err(RecordError::Corrupt("neither yes nor no")),
        }
    }

    pub fn u64(&mut self) -> Result<u64, RecordError> {
        self.array().map(u64::from_le_bytes)
    }

    pub fn bytes(&mut self) -> Result<&'a [u8], RecordError> {
        let count = u32::from_le_bytes(self.array()?);
        self.take(usize::try_from(count).unwrap_or(usize::MAX))
    }

    fn text(&mut self) -> Result<&'a str, RecordError> {
        std::str::from_utf8(self.bytes()?).map_err(|_| RecordError::Corrupt("not UTF-8"))
    }

    pub fn string(&mut self) -> Result<String, RecordError> {
        self.text().map(str::to_owned)
    }

    pub fn parsed<T: FromStr>(&mut self) -> Result<T, RecordError> {
        self.text()?.parse().map_err(|_| RecordError::Corrupt("a name"))
    }

    pub fn time(&mut self) -> Result<SystemTime, RecordError> {
        let seconds = self.u64()?;
        let nanos = u32::from_le_bytes(self.array()?);
        if nanos >= 1_000_000_000 {
            return Err(RecordError::Corrupt("a time"));
        }
        SystemTime::UNIX_EPOCH
            .checked_add(Duration::new(seconds, nanos))
            .ok_or(RecordError::Corrupt("a time"))
    }

    pub fn end(mut self) -> Result<(), RecordError> {
        if self.version > VERSION && self.u64()? != NEXT_FIELD {
            return Err(RecordError::Corrupt("the next release's field"));
        }
        if self.rest.is_empty() { Ok(()) } else { Err(RecordError::Corrupt("too long")) }
    }
}
