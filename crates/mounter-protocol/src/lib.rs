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
//! | 56 | 2 + 229 | `<pod UID>/<volume name>/<volume id>`, or nothing |
//! | 287 | 2 + 735 | text: a fault's message, the mounter's build, or a version directory's name |
//!
//! A text is its length and its UTF-8 bytes.
//!
//! A reply repeats operation, id, pod, name and volume id of its request, because a mounter that was stopped
//! answers late, and listeners bound by relative name all look alike; [`Reply::answers`] compares them.

pub mod names;

use std::fmt;

use crate::names::Volume;

/// Bytes of every frame.
pub const FRAME: usize = 1024;
/// Raised with every change of meaning; both sides refuse another one.
pub const VERSION: u16 = 1;
/// The longest text in a frame, in bytes.
pub const MAX_TEXT: usize = FRAME - TEXT - 2;

const MAGIC: [u8; 4] = *b"SMT\x01";
const TEXT: usize = 287;

/// What the agent may ask for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Request {
    /// First request on every connection. Reply: [`flag::IDMAP`], [`flag::NOSWAP`], `numbers[0]` = descriptor
    /// limit, `numbers[1]` = microseconds since the mounter started, text = build.
    Hello,
    /// The CSI listener, made or (with [`flag::EXISTING`]) the one that is kept. It is made anew where its
    /// name leads to it no more. Reply: descriptor, cookie; `numbers` = device and inode of the state tmpfs,
    /// zeros where none is mounted. `Busy` where the name leads to another process.
    CsiListener,
    /// The kubelet registration listener; as [`Request::CsiListener`].
    RegistrationListener,
    /// A directory descriptor of the state tmpfs, writable by the agent's uid. Reply: descriptor.
    State,
    /// A plain directory with a listening socket in it. Idempotent. Reply: descriptor of the listener,
    /// cookie, [`flag::EXISTING`] where the listener was kept, else it was bound now. [`flag::FOREIGN`] and
    /// no descriptor where a mount is there: nothing was changed.
    PublishIdentity(Volume),
    /// A tmpfs; idempotent. Reply: directory descriptor of a detached clone, writable by the agent's uid.
    /// [`Request::SetOwnership`] is due for what is written there.
    PublishTmpfs {
        /// Which volume.
        volume: Volume,
        /// Group of everything in it (the pod's fsGroup; 0 = root's).
        gid: u32,
        /// Size limit in bytes.
        size: u64,
    },
    /// Gives the files below the tmpfs volume's directory `version` to root and the volume's group. Refuses
    /// files with a mode above 0777.
    SetOwnership {
        /// Which volume.
        volume: Volume,
        /// A path in the volume; what is outside cannot be reached by it.
        version: String,
    },
    /// A bind mount of the mounter's configured source directory; idempotent. [`flag::FOREIGN`] where another
    /// driver's mount is there already: nothing was changed. [`flag::STALE`] where the source had been
    /// recreated: it is bound anew for containers that start later, while running ones keep the dead
    /// directory (and `Inspect` then sees the new one: remember it).
    PublishDirectory(Volume),
    /// Closes the kept listener and removes everything at the target path. Idempotent.
    Unpublish(Volume),
    /// What is at the volume's target path. Reply as for [`Request::List`]; `NotFound` where nothing is. With
    /// [`flag::SUBPATH`] the text has the containers.
    Inspect(Volume),
    /// The volume number `cursor` of the scan that cursor 0 makes. Reply: the volume echoed is the one found;
    /// flags from [`flag`], cookie and descriptor of a kept listener, `numbers` = bytes, inodes, mounts
    /// stacked (`Inspect`: 0 or 1). `NotFound` ends the list. An orphan without `vol_data.json` has the
    /// volume id `orphan`.
    List {
        /// 0, 1, 2 …
        cursor: u64,
    },
    /// Keeps the descriptor that comes along (a listening Unix socket) for this volume, replacing none:
    /// `Busy` where one is kept already.
    StoreListener {
        /// Which volume; none for the two node-wide listeners.
        volume: Option<Volume>,
        /// Which of them: [`keep::VOLUME`], [`keep::CSI`], [`keep::REGISTRATION`].
        slot: u32,
        /// The socket's cookie.
        cookie: u64,
    },
    /// Takes the registration socket's name away for an instant, so that a kubelet that missed it sees it
    /// appear. `NotFound` where the name does not lead to the kept listener.
    Offer,
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
    /// Idmapped tmpfs works on this kernel.
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
    /// A container mounted something in the volume by `subPath`, and it was replaced since: the container
    /// holds a dead inode.
    pub const SUBPATH: u32 = 1 << 10;
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
    /// With id 0, unasked: a younger mounter takes over. The agent finishes what it does, and leaves; so does
    /// this mounter then.
    Superseded = 10,
}

/// What the mounter answers; also the fields of any frame before their meaning.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
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
    /// The other side is of another release.
    Version(u16),
    /// Anything else: what.
    Malformed(String),
}

impl fmt::Display for FrameError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Version(other) => write!(f, "protocol version {other}, not {VERSION}: run one release"),
            Self::Malformed(why) => write!(f, "malformed frame: {why}"),
        }
    }
}

impl std::error::Error for FrameError {}

impl FrameError {
    fn field(name: &str) -> Self {
        Self::Malformed(format!("{name} is unknown, missing, or not allowed here"))
    }
}

impl Request {
    fn parts(&self) -> (u16, Option<&Volume>) {
        match self {
            Self::Hello => (1, None),
            Self::CsiListener => (2, None),
            Self::RegistrationListener => (3, None),
            Self::State => (4, None),
            Self::PublishIdentity(volume) => (5, Some(volume)),
            Self::PublishTmpfs { volume, .. } => (6, Some(volume)),
            Self::SetOwnership { volume, .. } => (7, Some(volume)),
            Self::PublishDirectory(volume) => (8, Some(volume)),
            Self::Unpublish(volume) => (9, Some(volume)),
            Self::Inspect(volume) => (10, Some(volume)),
            Self::List { .. } => (11, None),
            Self::StoreListener { volume, .. } => (12, volume.as_ref()),
            Self::Offer => (13, None),
        }
    }

    /// The operation's number on the wire.
    pub fn op(&self) -> u16 {
        self.parts().0
    }

    /// The volume that it is about.
    pub fn volume(&self) -> Option<&Volume> {
        self.parts().1
    }

    /// The frame for this request. A `version` longer than [`MAX_TEXT`] is cut, and then refused by the
    /// mounter.
    pub fn encode(&self, id: u64) -> [u8; FRAME] {
        let mut raw = Reply::to(id, self);
        match self {
            Self::PublishTmpfs { gid, size, .. } => raw.numbers = [u64::from(*gid), *size, 0],
            Self::SetOwnership { version, .. } => raw.text.clone_from(version),
            Self::List { cursor } => raw.numbers = [*cursor, 0, 0],
            Self::StoreListener { slot, cookie, .. } => {
                raw.flags = *slot;
                raw.cookie = *cookie;
            }
            _ => {}
        }
        raw.encode()
    }

    /// The request's id and the request; the id also where only the rest is wrong, so that it can be
    /// answered.
    pub fn decode(frame: &[u8]) -> Result<(u64, Self), (u64, FrameError)> {
        let raw = Reply::decode(frame).map_err(|e| (0, e))?;
        let id = raw.id;
        let request = Self::from_raw(raw).map_err(|e| (id, e))?;
        // What a request does not use is zero in its encoding.
        let canonical = request.encode(id) == frame;
        if canonical { Ok((id, request)) } else { Err((id, FrameError::field("an unused field"))) }
    }

    fn from_raw(Reply { op, volume, flags, cookie, numbers, text, .. }: Reply) -> Result<Self, FrameError> {
        let [first, second, _] = numbers;
        let right_slot = flags <= keep::REGISTRATION && (flags == keep::VOLUME) == volume.is_some();
        let given = volume.clone().ok_or_else(|| FrameError::field("volume"));
        Ok(match op {
            1 => Self::Hello,
            2 => Self::CsiListener,
            3 => Self::RegistrationListener,
            4 => Self::State,
            5 => Self::PublishIdentity(given?),
            6 => Self::PublishTmpfs { volume: given?, gid: first as u32, size: second },
            7 => Self::SetOwnership { volume: given?, version: text },
            8 => Self::PublishDirectory(given?),
            9 => Self::Unpublish(given?),
            10 => Self::Inspect(given?),
            11 => Self::List { cursor: first },
            12 if right_slot => Self::StoreListener { volume, slot: flags, cookie },
            12 => return Err(FrameError::field("slot")),
            13 => Self::Offer,
            _ => return Err(FrameError::field("operation")),
        })
    }
}

impl Reply {
    /// An empty success for this request.
    pub fn to(id: u64, request: &Request) -> Self {
        Self { op: request.op(), id, volume: request.volume().cloned(), ..Self::default() }
    }

    /// A failure for a request that could not even be read.
    pub fn refusal(id: u64, fault: Fault, text: String) -> Self {
        Self { id, fault: Some(fault), text, ..Self::default() }
    }

    /// Whether this is the answer to that request and to no other. `List` names the volume that it found.
    pub fn answers(&self, id: u64, request: &Request) -> bool {
        self.id == id
            && self.op == request.op()
            && (matches!(request, Request::List { .. }) || self.volume.as_ref() == request.volume())
    }

    /// The frame for this reply; a text longer than [`MAX_TEXT`] is cut.
    pub fn encode(&self) -> [u8; FRAME] {
        let mut out = Vec::with_capacity(FRAME);
        out.extend(MAGIC.into_iter().chain(VERSION.to_le_bytes()).chain(self.op.to_le_bytes()));
        out.extend(self.id.to_le_bytes());
        out.extend(self.fault.map_or(0, |f| f as u32).to_le_bytes());
        out.extend(self.flags.to_le_bytes());
        out.extend(self.cookie.to_le_bytes());
        out.extend(self.numbers.iter().flat_map(|n| n.to_le_bytes()));
        let volume = self.volume.as_ref().map_or(String::new(), |v| format!("{v}/{}", v.id));
        // The types bound a volume at 229 bytes.
        for (text, end) in [(volume.as_str(), TEXT), (self.text.as_str(), FRAME)] {
            let text = text.get(..text.floor_char_boundary(end - out.len() - 2)).unwrap_or_default();
            out.extend((text.len() as u16).to_le_bytes());
            out.extend(text.bytes());
            out.resize(end, 0);
        }
        // Its length is FRAME, by the line above.
        out.try_into().unwrap_or([0; FRAME])
    }

    /// Reads a reply.
    pub fn decode(frame: &[u8]) -> Result<Self, FrameError> {
        let rest = &mut &*frame;
        if take(rest)? != MAGIC {
            return Err(FrameError::Malformed("something else speaks on this socket".to_owned()));
        }
        let version = u16::from_le_bytes(take(rest)?);
        if version != VERSION {
            return Err(FrameError::Version(version));
        }
        let reply = Self {
            op: u16::from_le_bytes(take(rest)?),
            id: u64::from_le_bytes(take(rest)?),
            fault: Fault::from_number(u32::from_le_bytes(take(rest)?))?,
            flags: u32::from_le_bytes(take(rest)?),
            cookie: u64::from_le_bytes(take(rest)?),
            numbers: [take(rest)?, take(rest)?, take(rest)?].map(u64::from_le_bytes),
            volume: volume(text(&take::<{ TEXT - 56 }>(rest)?)?)?,
            text: text(rest)?.to_owned(),
        };
        // One length and one encoding only: what is not used is zero.
        if reply.encode() == frame { Ok(reply) } else { Err(FrameError::field("length or padding")) }
    }
}

impl Fault {
    fn from_number(n: u32) -> Result<Option<Self>, FrameError> {
        use Fault::*;
        let all = [Malformed, Version, Busy, NotOurs, NotFound, Exhausted, Storage, Unsupported, System];
        let known = all.into_iter().chain([Superseded]).find(|fault| *fault as u32 == n);
        if n == 0 { Ok(None) } else { known.map(Some).ok_or_else(|| FrameError::field("fault")) }
    }
}

fn take<const N: usize>(rest: &mut &[u8]) -> Result<[u8; N], FrameError> {
    let (head, tail) = rest.split_first_chunk::<N>().ok_or_else(|| FrameError::field("length"))?;
    *rest = tail;
    Ok(*head)
}

fn volume(text: &str) -> Result<Option<Volume>, FrameError> {
    let mut parts = text.splitn(3, '/');
    let [pod, name, id] = [parts.next(), parts.next(), parts.next()].map(Option::unwrap_or_default);
    let bad = |e: &str| FrameError::Malformed(e.to_owned());
    let read = || Ok(Volume { pod: pod.parse()?, name: name.parse()?, id: id.parse()? });
    if text.is_empty() { Ok(None) } else { read().map(Some).map_err(bad) }
}

fn text(mut bytes: &[u8]) -> Result<&str, FrameError> {
    let len = u16::from_le_bytes(take(&mut bytes)?);
    let text = bytes.get(..len.into()).and_then(|b| str::from_utf8(b).ok());
    text.ok_or_else(|| FrameError::field("text"))
}

#[cfg(test)]
mod tests;
