//! The protocol between agent and mounter: one request, one reply, each one fixed-size frame on a
//! `SOCK_SEQPACKET` Unix socket; at most one descriptor travels with a frame (`SCM_RIGHTS`).
//!
//! No I/O here. Layout (little-endian; unused bytes are zero and checked, so a frame has one encoding only):
//!
//! | offset | bytes | field |
//! |---|---|---|
//! | 0 | 4 | magic `SMT\x01` |
//! | 4 | 2 | [`VERSION`] |
//! | 6 | 2 | operation |
//! | 8 | 8 | request id, chosen by the agent, echoed |
//! | 16 | 4 | fault (replies; 0 = success) |
//! | 20 | 4 | flags ([`Reply::flags`]) or kind |
//! | 24 | 8 | socket cookie (`SO_COOKIE`) |
//! | 32 | 24 | three numbers, by operation |
//! | 56 | 36 | pod UID |
//! | 92 | 1 + 63 | volume name |
//! | 156 | 1 + 128 | volume id |
//! | 285 | 2 + 737 | text: a fault's message, the mounter's build, or a version directory's name |
//!
//! A reply repeats operation, id, pod, name and volume id of its request (`node core`: a mounter that was stopped
//! answers late, and listeners bound by relative name all look alike); [`Reply::answers`] compares them.

use std::fmt;

use crate::names::{NameError, Volume};

/// Bytes of every frame.
pub const FRAME: usize = 1024;
/// Raised with every change of meaning; both sides refuse another one.
pub const VERSION: u16 = 1;
/// The longest text in a frame, in bytes.
pub const MAX_TEXT: usize = FRAME - TEXT - 2;

const MAGIC: [u8; 4] = *b"SMT\x01";
const ID: usize = 156;
const TEXT: usize = 285;

/// What the agent may ask for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Request {
    /// First request on every connection. Reply: [`flag::IDMAP`], [`flag::NOSWAP`], `numbers[0]` = descriptor limit,
    /// `numbers[1]` = microseconds since the mounter started, text = build.
    Hello,
    /// The CSI listener, made or (with [`flag::EXISTING`]) the one that is kept. Reply: descriptor, cookie.
    CsiListener,
    /// The kubelet registration listener; as [`Request::CsiListener`].
    RegistrationListener,
    /// A directory descriptor of the state tmpfs, writable by the agent's uid. Reply: descriptor.
    State,
    /// A plain directory with a listening socket in it. Idempotent. Reply: descriptor of the listener, cookie,
    /// [`flag::EXISTING`] where the listener was kept, else it was bound now.
    PublishIdentity(Volume),
    /// A tmpfs; idempotent. Reply: directory descriptor of a detached clone, writable by the agent's uid;
    /// [`flag::IDMAP`] where its files are root's already, else [`Request::Settle`] is due.
    PublishTmpfs {
        /// Which volume.
        volume: Volume,
        /// Group of everything in it (the pod's fsGroup; 0 = root's).
        gid: u32,
        /// Size limit in bytes.
        size: u64,
    },
    /// Gives the files below the tmpfs volume's directory `version` to root and the volume's group.
    Settle {
        /// Which volume.
        volume: Volume,
        /// One path component.
        version: String,
    },
    /// A bind mount of the mounter's configured source directory; idempotent.
    /// [`flag::FOREIGN`] where another driver's mount is there already: nothing was changed.
    PublishDirectory(Volume),
    /// Closes the kept listener and removes everything at the target path. Idempotent.
    Unpublish(Volume),
    /// What is at the volume's target path. Reply as for [`Request::List`]; `NotFound` where nothing is.
    Inspect(Volume),
    /// The volume number `cursor` of the scan that cursor 0 makes. Reply: the volume echoed is the one found;
    /// flags from [`flag`], cookie and descriptor of a kept listener, `numbers` = bytes, inodes, mounts stacked.
    /// `NotFound` ends the list.
    List {
        /// 0, 1, 2 …
        cursor: u64,
    },
    /// Keeps the descriptor that comes along (a listening Unix socket) for this volume, replacing none:
    /// `Busy` where one is kept already.
    Store {
        /// Which volume; none for the two node-wide listeners.
        volume: Option<Volume>,
        /// Which of them: [`keep::VOLUME`], [`keep::CSI`], [`keep::REGISTRATION`].
        slot: u32,
        /// The socket's cookie.
        cookie: u64,
    },
    /// The kept listener of this volume. Reply: descriptor, cookie; `NotFound` where none is kept.
    Fetch(Volume),
}

/// Slots for kept descriptors.
pub mod keep {
    /// The volume's Workload API listener.
    pub const VOLUME: u32 = 0;
    /// The CSI listener.
    pub const CSI: u32 = 1;
    /// The registration listener.
    pub const REGISTRATION: u32 = 2;
}

/// Bits of [`Reply::flags`].
pub mod flag {
    /// The descriptor was kept, not made now.
    pub const EXISTING: u32 = 1;
    /// Idmapped tmpfs works on this kernel (Hello), or is in force (PublishTmpfs).
    pub const IDMAP: u32 = 1 << 1;
    /// `noswap` works on this kernel.
    pub const NOSWAP: u32 = 1 << 2;
    /// A plain directory with our socket.
    pub const IDENTITY: u32 = 1 << 3;
    /// Our tmpfs.
    pub const TMPFS: u32 = 1 << 4;
    /// A bind mount of the source directory.
    pub const DIRECTORY: u32 = 1 << 5;
    /// A mount that we did not make.
    pub const FOREIGN: u32 = 1 << 6;
    /// The socket's name leads to a socket.
    pub const SOCKET: u32 = 1 << 7;
    /// No `vol_data.json`, or the pod's directory is gone.
    pub const ORPHAN: u32 = 1 << 8;
    /// A `directory` volume whose source has been recreated since: the pod holds a dead inode.
    pub const STALE: u32 = 1 << 9;
}

/// Why a request was not carried out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum Fault {
    /// The frame is not one of ours, or a field of it is invalid.
    Malformed = 1,
    /// The other side speaks another [`VERSION`].
    Version = 2,
    /// Another agent is connected, or a listener is kept already.
    Busy = 3,
    /// The path is not of our driver's volume: `vol_data.json` is missing or names another driver or volume.
    NotOurs = 4,
    /// Nothing is there.
    NotFound = 5,
    /// Out of descriptors.
    Exhausted = 6,
    /// No space left, or a read-only file system.
    Storage = 7,
    /// The mounter is not configured for it.
    Unsupported = 8,
    /// Any other refusal by the kernel.
    System = 9,
}

/// What the mounter answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reply {
    /// Operation number of the request.
    pub op: u16,
    /// Id of the request.
    pub id: u64,
    /// The volume of the request, or the one that `List` found.
    pub volume: Option<Volume>,
    /// Cookie of the listener that comes along, or 0.
    pub cookie: u64,
    /// Bits of [`flag`].
    pub flags: u32,
    /// By operation.
    pub numbers: [u64; 3],
    /// Success, or the fault.
    pub fault: Option<Fault>,
    /// By operation; the message of a fault.
    pub text: String,
}

/// A frame that cannot be decoded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FrameError {
    /// Not [`FRAME`] bytes.
    Length(usize),
    /// Not the magic number: something else speaks on this socket.
    Magic,
    /// The other side is of another release.
    Version(u16),
    /// An operation or fault number that does not exist.
    Unknown {
        /// `operation` or `fault`.
        what: &'static str,
        /// Its number.
        value: u32,
    },
    /// A field that has to be there is missing, or one that must not be is set.
    Field(&'static str),
    /// A name with a character or length that is not allowed.
    Name(NameError),
}

impl fmt::Display for FrameError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Length(bytes) => write!(f, "frame of {bytes} bytes, expected {FRAME}"),
            Self::Magic => f.write_str("not a Seamount frame"),
            Self::Version(other) => write!(
                f,
                "protocol version {other}, this side speaks {VERSION}: run mounter and agent of one release"
            ),
            Self::Unknown { what, value } => write!(f, "unknown {what} {value}"),
            Self::Field(field) => write!(f, "field {field} is missing, not allowed here or not zero-padded"),
            Self::Name(e) => e.fmt(f),
        }
    }
}

impl std::error::Error for FrameError {}

impl From<NameError> for FrameError {
    fn from(e: NameError) -> Self {
        Self::Name(e)
    }
}

impl Request {
    /// The operation's number on the wire.
    pub fn op(&self) -> u16 {
        match self {
            Self::Hello => 1,
            Self::CsiListener => 2,
            Self::RegistrationListener => 3,
            Self::State => 4,
            Self::PublishIdentity(_) => 5,
            Self::PublishTmpfs { .. } => 6,
            Self::Settle { .. } => 7,
            Self::PublishDirectory(_) => 8,
            Self::Unpublish(_) => 9,
            Self::Inspect(_) => 10,
            Self::List { .. } => 11,
            Self::Store { .. } => 12,
            Self::Fetch(_) => 13,
        }
    }

    /// The volume that it is about.
    pub fn volume(&self) -> Option<&Volume> {
        match self {
            Self::PublishIdentity(v)
            | Self::PublishDirectory(v)
            | Self::Unpublish(v)
            | Self::Inspect(v)
            | Self::Fetch(v)
            | Self::PublishTmpfs { volume: v, .. }
            | Self::Settle { volume: v, .. } => Some(v),
            Self::Store { volume, .. } => volume.as_ref(),
            Self::Hello
            | Self::CsiListener
            | Self::RegistrationListener
            | Self::State
            | Self::List { .. } => None,
        }
    }

    /// The frame for this request. A `version` longer than [`MAX_TEXT`] is cut, and then refused by the mounter.
    pub fn encode(&self, id: u64) -> [u8; FRAME] {
        let mut raw = Raw { op: self.op(), id, volume: self.volume().cloned(), ..Raw::default() };
        match self {
            Self::PublishTmpfs { gid, size, .. } => raw.numbers = [u64::from(*gid), *size, 0],
            Self::Settle { version, .. } => raw.text.clone_from(version),
            Self::List { cursor } => raw.numbers = [*cursor, 0, 0],
            Self::Store { slot, cookie, .. } => (raw.flags, raw.cookie) = (*slot, *cookie),
            _ => {}
        }
        raw.encode()
    }

    /// The request's id and the request; the id also where only the rest is wrong, so that it can be answered.
    pub fn decode(frame: &[u8]) -> Result<(u64, Self), (u64, FrameError)> {
        let raw = Raw::decode(frame).map_err(|e| (0, e))?;
        let id = raw.id;
        raw.into_request().map(|r| (id, r)).map_err(|e| (id, e))
    }
}

impl Reply {
    /// An empty success for this request.
    pub fn to(id: u64, request: &Request) -> Self {
        Self {
            op: request.op(),
            id,
            volume: request.volume().cloned(),
            cookie: 0,
            flags: 0,
            numbers: [0; 3],
            fault: None,
            text: String::new(),
        }
    }

    /// A failure for a request that could not even be read.
    pub fn refusal(id: u64, fault: Fault, text: String) -> Self {
        Self { op: 0, id, volume: None, cookie: 0, flags: 0, numbers: [0; 3], fault: Some(fault), text }
    }

    /// Whether this is the answer to that request and to no other. `List` names the volume that it found.
    pub fn answers(&self, id: u64, request: &Request) -> bool {
        self.id == id
            && self.op == request.op()
            && (matches!(request, Request::List { .. }) || self.volume.as_ref() == request.volume())
    }

    /// The frame for this reply; a text longer than [`MAX_TEXT`] is cut.
    pub fn encode(&self) -> [u8; FRAME] {
        Raw {
            op: self.op,
            id: self.id,
            fault: self.fault.map_or(0, |f| f as u32),
            flags: self.flags,
            cookie: self.cookie,
            numbers: self.numbers,
            volume: self.volume.clone(),
            text: self.text.clone(),
        }
        .encode()
    }

    /// Reads a reply.
    pub fn decode(frame: &[u8]) -> Result<Self, FrameError> {
        let raw = Raw::decode(frame)?;
        let fault = match raw.fault {
            0 => None,
            n => Some(Fault::from_number(n).ok_or(FrameError::Unknown { what: "fault", value: n })?),
        };
        Ok(Self {
            op: raw.op,
            id: raw.id,
            volume: raw.volume,
            cookie: raw.cookie,
            flags: raw.flags,
            numbers: raw.numbers,
            fault,
            text: raw.text,
        })
    }
}

impl Fault {
    fn from_number(n: u32) -> Option<Self> {
        [
            Self::Malformed,
            Self::Version,
            Self::Busy,
            Self::NotOurs,
            Self::NotFound,
            Self::Exhausted,
            Self::Storage,
            Self::Unsupported,
            Self::System,
        ]
        .into_iter()
        .find(|f| *f as u32 == n)
    }
}

/// A frame's fields, before their meaning.
#[derive(Default)]
struct Raw {
    op: u16,
    id: u64,
    fault: u32,
    flags: u32,
    cookie: u64,
    numbers: [u64; 3],
    volume: Option<Volume>,
    text: String,
}

impl Raw {
    fn encode(&self) -> [u8; FRAME] {
        let mut out = Vec::with_capacity(FRAME);
        out.extend_from_slice(&MAGIC);
        out.extend_from_slice(&VERSION.to_le_bytes());
        out.extend_from_slice(&self.op.to_le_bytes());
        out.extend_from_slice(&self.id.to_le_bytes());
        out.extend_from_slice(&self.fault.to_le_bytes());
        out.extend_from_slice(&self.flags.to_le_bytes());
        out.extend_from_slice(&self.cookie.to_le_bytes());
        self.numbers.iter().for_each(|n| out.extend_from_slice(&n.to_le_bytes()));
        if let Some(v) = &self.volume {
            out.extend_from_slice(v.pod.as_str().as_bytes());
            // The lengths fit a byte: the types bound them at 63 and 128.
            for (name, end) in [(v.name.as_str(), ID), (v.id.as_str(), TEXT)] {
                out.push(name.len() as u8);
                out.extend_from_slice(name.as_bytes());
                out.resize(end, 0);
            }
        }
        out.resize(TEXT, 0);
        let text = self.text.as_bytes().get(..self.text.floor_char_boundary(MAX_TEXT)).unwrap_or_default();
        out.extend_from_slice(&(text.len() as u16).to_le_bytes());
        out.extend_from_slice(text);
        out.resize(FRAME, 0);
        let mut frame = [0; FRAME];
        frame.copy_from_slice(&out);
        frame
    }

    fn decode(frame: &[u8]) -> Result<Self, FrameError> {
        let frame: &[u8; FRAME] = frame.try_into().map_err(|_| FrameError::Length(frame.len()))?;
        let mut rest = frame.as_slice();
        if take::<4>(&mut rest)? != MAGIC {
            return Err(FrameError::Magic);
        }
        let version = u16::from_le_bytes(take(&mut rest)?);
        if version != VERSION {
            return Err(FrameError::Version(version));
        }
        let op = u16::from_le_bytes(take(&mut rest)?);
        let id = u64::from_le_bytes(take(&mut rest)?);
        let fault = u32::from_le_bytes(take(&mut rest)?);
        let flags = u32::from_le_bytes(take(&mut rest)?);
        let cookie = u64::from_le_bytes(take(&mut rest)?);
        let mut number = || Ok::<_, FrameError>(u64::from_le_bytes(take(&mut rest)?));
        let numbers = [number()?, number()?, number()?];
        let pod = take::<36>(&mut rest)?;
        let name = padded(take::<1>(&mut rest)?[0].into(), &take::<63>(&mut rest)?, "volume name")?;
        let volume_id = padded(take::<1>(&mut rest)?[0].into(), &take::<128>(&mut rest)?, "volume id")?;
        let text = padded(u16::from_le_bytes(take(&mut rest)?).into(), rest, "text")?;
        let volume = match (pod == [0; 36], name.is_empty(), volume_id.is_empty()) {
            (true, true, true) => None,
            _ => Some(Volume {
                pod: str::from_utf8(&pod).map_err(|_| FrameError::Field("pod UID"))?.parse()?,
                name: name.parse()?,
                id: volume_id.parse()?,
            }),
        };
        Ok(Self { op, id, fault, flags, cookie, numbers, volume, text })
    }

    fn into_request(self) -> Result<Request, FrameError> {
        let Self { op, volume, flags, cookie, numbers, text, fault, .. } = self;
        let zero = |ok: bool, field| if ok { Ok(()) } else { Err(FrameError::Field(field)) };
        zero(fault == 0, "fault")?;
        zero(op == 12 || (flags, cookie) == (0, 0), "slot")?;
        zero(op == 6 || op == 11 || numbers == [0; 3], "numbers")?;
        zero(op == 7 || text.is_empty(), "text")?;
        let given = volume.clone().ok_or(FrameError::Field("volume"));
        let none = |r| if volume.is_some() { Err(FrameError::Field("volume")) } else { Ok(r) };
        match op {
            1 => none(Request::Hello),
            2 => none(Request::CsiListener),
            3 => none(Request::RegistrationListener),
            4 => none(Request::State),
            5 => given.map(Request::PublishIdentity),
            6 => {
                zero(numbers[2] == 0, "numbers")?;
                let gid = u32::try_from(numbers[0]).map_err(|_| FrameError::Field("gid"))?;
                Ok(Request::PublishTmpfs { volume: given?, gid, size: numbers[1] })
            }
            7 => Ok(Request::Settle { volume: given?, version: text }),
            8 => given.map(Request::PublishDirectory),
            9 => given.map(Request::Unpublish),
            10 => given.map(Request::Inspect),
            11 => {
                zero(numbers[1..] == [0; 2], "numbers")?;
                none(Request::List { cursor: numbers[0] })
            }
            12 => {
                zero((flags == keep::VOLUME) == volume.is_some() && flags <= keep::REGISTRATION, "slot")?;
                Ok(Request::Store { volume, slot: flags, cookie })
            }
            13 => given.map(Request::Fetch),
            _ => Err(FrameError::Unknown { what: "operation", value: op.into() }),
        }
    }
}

fn take<const N: usize>(rest: &mut &[u8]) -> Result<[u8; N], FrameError> {
    let (head, tail) = rest.split_first_chunk::<N>().ok_or(FrameError::Length(rest.len()))?;
    *rest = tail;
    Ok(*head)
}

/// The first `len` bytes as text; the rest must be zero.
fn padded(len: usize, bytes: &[u8], field: &'static str) -> Result<String, FrameError> {
    let (text, padding) = bytes.split_at_checked(len).ok_or(FrameError::Field(field))?;
    if padding.iter().any(|b| *b != 0) {
        return Err(FrameError::Field(field));
    }
    String::from_utf8(text.to_vec()).map_err(|_| FrameError::Field(field))
}

#[cfg(test)]
mod tests;
