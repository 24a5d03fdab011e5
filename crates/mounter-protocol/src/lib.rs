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
//! | 56 | 2 + 293 | the subject: nothing, or as [`Subject`] says |
//! | 351 | 2 + 671 | text: a fault's message, the mounter's build, or a version directory's name |
//!
//! A text is its length and its UTF-8 bytes.
//!
//! A reply repeats operation, id and subject of its request, because a mounter that was stopped answers late,
//! and listeners bound by relative name all look alike; [`Reply::answers`] compares them.

pub mod names;

use std::fmt;

use crate::names::{DriverName, Volume};

/// Bytes of every frame.
pub const FRAME: usize = 1024;
/// Raised with every change of meaning; both sides refuse another one.
pub const VERSION: u16 = 2;
/// The longest text in a frame, in bytes.
pub const MAX_TEXT: usize = FRAME - TEXT - 2;

const MAGIC: [u8; 4] = *b"SMT\x01";
const TEXT: usize = 351;

/// What a frame is about. Each but the node has one listener that can be kept.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Subject {
    /// The node; as text nothing.
    #[default]
    Node,
    /// A driver's CSI socket; as text `csi:<driver>`.
    Csi(DriverName),
    /// A driver's kubelet registration socket; as text `registration:<driver>`.
    Registration(DriverName),
    /// A volume; as text `<driver>/<pod UID>/<volume name>/<volume id>`.
    Volume(Volume),
}

impl Subject {
    /// The volume, if it is one.
    pub fn volume(&self) -> Option<&Volume> {
        if let Self::Volume(volume) = self { Some(volume) } else { None }
    }
}

impl fmt::Display for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Node => Ok(()),
            Self::Csi(driver) => write!(f, "csi:{driver}"),
            Self::Registration(driver) => write!(f, "registration:{driver}"),
            Self::Volume(volume) => write!(f, "{}/{volume}/{}", volume.driver, volume.id),
        }
    }
}

/// What the agent may ask for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Request {
    /// First request on every connection. Reply: [`flag::IDMAP`], [`flag::NOSWAP`], `numbers[0]` = descriptor
    /// limit, `numbers[1]` = microseconds since the mounter started, text = build.
    Hello,
    /// The driver's CSI listener, made or (with [`flag::EXISTING`]) the one that is kept. It is made anew
    /// where its name leads to it no more. Reply: descriptor, cookie; `numbers` = device and inode of the
    /// state tmpfs, zeros where none is mounted. `Busy` where the name leads to another process, `NotOurs`
    /// for a driver that the mounter was not told of.
    CsiListener(DriverName),
    /// The driver's kubelet registration listener; as for [`Request::CsiListener`].
    RegistrationListener(DriverName),
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
    /// The volume number `cursor` of the scan that cursor 0 makes, which has the volumes of all drivers.
    /// Reply: the subject is the volume that was found; flags from [`flag`], cookie and descriptor of a kept
    /// listener, `numbers` = bytes, inodes, mounts stacked (`Inspect`: 0 or 1). `NotFound` ends the list. An
    /// orphan without `vol_data.json` has the volume id and the driver `orphan`.
    List {
        /// 0, 1, 2 …
        cursor: u64,
    },
    /// Keeps the descriptor that comes along (a listening Unix socket), replacing none: `Busy` where one is
    /// kept already.
    StoreListener {
        /// Whose it is; not the node's.
        subject: Subject,
        /// The socket's cookie.
        cookie: u64,
    },
    /// Takes the name of the driver's registration socket away for an instant, so that a kubelet that missed
    /// it sees it appear. `NotFound` where the name does not lead to the kept listener.
    Offer(DriverName),
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
    /// The path is not of that driver's volume: `vol_data.json` is missing or names another driver or volume.
    /// Or the driver is none of the mounter's.
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
    /// What the request is about, or the volume that `List` found.
    pub subject: Subject,
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
    fn parts(&self) -> (u16, Subject) {
        let volume = |volume: &Volume| Subject::Volume(volume.clone());
        match self {
            Self::Hello => (1, Subject::Node),
            Self::CsiListener(driver) => (2, Subject::Csi(driver.clone())),
            Self::RegistrationListener(driver) => (3, Subject::Registration(driver.clone())),
            Self::State => (4, Subject::Node),
            Self::PublishIdentity(of) => (5, volume(of)),
            Self::PublishTmpfs { volume: of, .. } => (6, volume(of)),
            Self::SetOwnership { volume: of, .. } => (7, volume(of)),
            Self::PublishDirectory(of) => (8, volume(of)),
            Self::Unpublish(of) => (9, volume(of)),
            Self::Inspect(of) => (10, volume(of)),
            Self::List { .. } => (11, Subject::Node),
            Self::StoreListener { subject, .. } => (12, subject.clone()),
            Self::Offer(driver) => (13, Subject::Registration(driver.clone())),
        }
    }

    /// The operation's number on the wire.
    pub fn op(&self) -> u16 {
        self.parts().0
    }

    /// What it is about.
    pub fn subject(&self) -> Subject {
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
            Self::StoreListener { cookie, .. } => raw.cookie = *cookie,
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

    fn from_raw(raw: Reply) -> Result<Self, FrameError> {
        let [first, second, _] = raw.numbers;
        Ok(match (raw.op, raw.subject) {
            (1, Subject::Node) => Self::Hello,
            (2, Subject::Csi(driver)) => Self::CsiListener(driver),
            (3, Subject::Registration(driver)) => Self::RegistrationListener(driver),
            (4, Subject::Node) => Self::State,
            (5, Subject::Volume(volume)) => Self::PublishIdentity(volume),
            (6, Subject::Volume(volume)) => Self::PublishTmpfs { volume, gid: first as u32, size: second },
            (7, Subject::Volume(volume)) => Self::SetOwnership { volume, version: raw.text },
            (8, Subject::Volume(volume)) => Self::PublishDirectory(volume),
            (9, Subject::Volume(volume)) => Self::Unpublish(volume),
            (10, Subject::Volume(volume)) => Self::Inspect(volume),
            (11, Subject::Node) => Self::List { cursor: first },
            (12, subject) if subject != Subject::Node => Self::StoreListener { subject, cookie: raw.cookie },
            (13, Subject::Registration(driver)) => Self::Offer(driver),
            _ => return Err(FrameError::field("operation or subject")),
        })
    }
}

impl Reply {
    /// An empty success for this request.
    pub fn to(id: u64, request: &Request) -> Self {
        let (op, subject) = request.parts();
        Self { op, id, subject, ..Self::default() }
    }

    /// A failure for a request that could not even be read.
    pub fn refusal(id: u64, fault: Fault, text: String) -> Self {
        Self { id, fault: Some(fault), text, ..Self::default() }
    }

    /// Whether this is the answer to that request and to no other. `List` names the volume that it found.
    pub fn answers(&self, id: u64, request: &Request) -> bool {
        let (op, subject) = request.parts();
        let same = matches!(request, Request::List { .. }) || self.subject == subject;
        self.id == id && self.op == op && same
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
        // The types bound a subject at 293 bytes.
        for (text, end) in [(self.subject.to_string().as_str(), TEXT), (self.text.as_str(), FRAME)] {
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
            subject: subject(text(&take::<{ TEXT - 56 }>(rest)?)?)
                .map_err(|why| FrameError::Malformed(why.to_owned()))?,
            text: text(rest)?.to_owned(),
        };
        // One length and one encoding only: what is not used is zero.
        if reply.encode() == frame { Ok(reply) } else { Err(FrameError::field("length or padding")) }
    }
}

impl Fault {
    fn from_number(n: u32) -> Result<Option<Self>, FrameError> {
        Ok(Some(match n {
            0 => return Ok(None),
            1 => Self::Malformed,
            2 => Self::Version,
            3 => Self::Busy,
            4 => Self::NotOurs,
            5 => Self::NotFound,
            6 => Self::Exhausted,
            7 => Self::Storage,
            8 => Self::Unsupported,
            9 => Self::System,
            10 => Self::Superseded,
            _ => return Err(FrameError::field("fault")),
        }))
    }
}

fn take<const N: usize>(rest: &mut &[u8]) -> Result<[u8; N], FrameError> {
    let (head, tail) = rest.split_first_chunk::<N>().ok_or_else(|| FrameError::field("length"))?;
    *rest = tail;
    Ok(*head)
}

fn subject(text: &str) -> Result<Subject, &'static str> {
    match text.split_once(':') {
        _ if text.is_empty() => return Ok(Subject::Node),
        Some(("csi", driver)) => return Ok(Subject::Csi(driver.parse()?)),
        Some(("registration", driver)) => return Ok(Subject::Registration(driver.parse()?)),
        _ => {}
    }
    let mut parts = text.splitn(4, '/');
    let mut next = || parts.next().unwrap_or_default();
    let (driver, pod, name) = (next().parse()?, next().parse()?, next().parse()?);
    Ok(Subject::Volume(Volume { driver, pod, name, id: next().parse()? }))
}

fn text(mut bytes: &[u8]) -> Result<&str, FrameError> {
    let len = u16::from_le_bytes(take(&mut bytes)?);
    let text = bytes.get(..len.into()).and_then(|b| str::from_utf8(b).ok());
    text.ok_or_else(|| FrameError::field("text"))
}

#[cfg(test)]
mod tests;
