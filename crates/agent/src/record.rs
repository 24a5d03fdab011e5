//! What the state tmpfs holds: one record per volume, and one of the node.
//!
//! The frame, the same for all versions: magic `SMR\x01` · version u16 · kind u16 · generation u64 · length
//! u32 · body · SHA-256 over everything before it. Little-endian. Older versions are read ([`OLDEST`]). A
//! record of a newer release is refused by name and left alone until the volume is published again: after
//! a roll-back the older release waits for the kubelet's republish, and a return before it loses nothing. A
//! damaged one is told apart from it by the checksum.

mod codec;

pub use codec::{KIND_NODE, KIND_VOLUME, MAX_RECORD, OLDEST, RecordError, VERSION};

use std::fmt;
use std::time::SystemTime;

use seamount_mounter_protocol::names::{DriverName, Volume};
use zeroize::Zeroizing;

use codec::{Reader, Writer};
use seamount_pod_token::Token;

/// How much of a failed registration's reason is kept, in bytes.
pub const MAX_REASON: usize = 1024;

/// What outlives the agent of one volume. It holds a token and a key: both are wiped on drop and hidden in
/// `Debug`.
///
/// An agent may have a predecessor that was hostile, so nothing in a record is believed: the pod's identity
/// is what the token proves, and the SVID is compared with that. A field whose truth could not be proved
/// would be of no use here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// Raised with each write of this volume's record.
    pub generation: u64,
    /// Which volume.
    pub volume: Volume,
    /// What its kind records.
    pub body: Body,
}

/// What is recorded of a volume, by its kind; a volume keeps its kind while it lives.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Body {
    /// A socket of its own.
    Identity(IdentityBody),
    /// A bind mount of the source directory, which was recreated below the pod.
    Directory,
}

/// What is recorded of an identity volume.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IdentityBody {
    /// `SO_COOKIE` of the volume's listener; 0 = none.
    pub cookie: u64,
    /// The last good token: the proof of what the pod is.
    pub token: Option<Token>,
    /// The identity, once there is one.
    pub svid: Option<StoredSvid>,
}

/// An issued identity.
#[derive(Clone, PartialEq, Eq)]
pub struct StoredSvid {
    /// The SPIFFE ID as text.
    pub spiffe_id: String,
    /// Private key, PKCS#8 DER.
    pub key: Zeroizing<Vec<u8>>,
    /// Certificates, leaf first, DER one after the other.
    pub chain: Vec<u8>,
    /// The own trust domain's roots that it was issued under, DER one after the other: an agent that comes
    /// back before its authority goes on serving with them, and one whose root in memory is gone knows it.
    pub roots: Vec<u8>,
    /// Start of validity.
    pub not_before: SystemTime,
    /// End of validity.
    pub not_after: SystemTime,
    /// When the next one is due (wall clock).
    pub rotate_at: SystemTime,
}

/// What the agent knows of the node: so that an agent that came back on inherited listeners knows whether the
/// kubelet has registered them (the kubelet does not say it twice).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeRecord {
    /// Raised with each write.
    pub generation: u64,
    /// Its drivers.
    pub drivers: Vec<DriverRecord>,
}

/// What the agent knows of one driver's sockets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DriverRecord {
    /// Which.
    pub driver: DriverName,
    /// `SO_COOKIE` of the CSI listener; 0 = none.
    pub csi_cookie: u64,
    /// `SO_COOKIE` of the registration listener; 0 = none.
    pub registration_cookie: u64,
    /// What the kubelet said about the registration on that listener.
    pub registration: Registration,
}

/// What the kubelet has said.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Registration {
    /// Nothing yet.
    #[default]
    Unknown,
    /// NotifyRegistrationStatus: registered.
    Registered,
    /// NotifyRegistrationStatus: not, and why. At most [`MAX_REASON`] bytes of it are kept.
    Failed(String),
}

impl fmt::Debug for StoredSvid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StoredSvid")
            .field("spiffe_id", &self.spiffe_id)
            .field("not_before", &self.not_before)
            .field("not_after", &self.not_after)
            .field("rotate_at", &self.rotate_at)
            .finish_non_exhaustive()
    }
}

impl StoredSvid {
    fn write(&self, w: &mut Writer) {
        w.bytes(self.spiffe_id.as_bytes());
        w.bytes(&self.key);
        w.bytes(&self.chain);
        w.bytes(&self.roots);
        for time in [self.not_before, self.not_after, self.rotate_at] {
            w.time(time);
        }
    }

    fn read(r: &mut Reader<'_>) -> Result<Self, RecordError> {
        Ok(Self {
            spiffe_id: r.string()?,
            key: Zeroizing::new(r.bytes()?.to_vec()),
            chain: r.bytes()?.to_vec(),
            roots: r.bytes()?.to_vec(),
            not_before: r.time()?,
            not_after: r.time()?,
            rotate_at: r.time()?,
        })
    }
}

impl Record {
    /// What it says of an identity; none where the volume is of another kind.
    pub fn identity(&self) -> Option<&IdentityBody> {
        match &self.body {
            Body::Identity(identity) => Some(identity),
            Body::Directory => None,
        }
    }

    /// The bytes for the state tmpfs; wiped on drop.
    pub fn encode(&self) -> Zeroizing<Vec<u8>> {
        let mut w = Writer::new(KIND_VOLUME, self.generation, self.capacity());
        for text in names(&self.volume) {
            w.bytes(text.as_bytes());
        }
        match &self.body {
            Body::Identity(IdentityBody { cookie, token, svid }) => {
                w.u8(1);
                w.u64(*cookie);
                w.flag(token.is_some());
                if let Some(token) = token {
                    w.bytes(token.expose().as_bytes());
                }
                w.flag(svid.is_some());
                if let Some(svid) = svid {
                    svid.write(&mut w);
                }
            }
            Body::Directory => w.u8(2),
        }
        w.finish()
    }

    /// Enough bytes, so that the buffer never moves and leaves a copy of a secret behind.
    fn capacity(&self) -> usize {
        let names: usize = names(&self.volume).iter().map(|name| name.len() + 4).sum();
        let body = match &self.body {
            Body::Identity(IdentityBody { token, svid, .. }) => {
                let token = token.as_ref().map_or(0, |t| t.expose().len());
                let of = |s: &StoredSvid| s.spiffe_id.len() + s.key.len() + s.chain.len() + s.roots.len();
                token + svid.as_ref().map_or(0, of)
            }
            Body::Directory => 0,
        };
        names + body + 256
    }

    /// Reads what [`Record::encode`] wrote.
    pub fn decode(bytes: &[u8]) -> Result<Self, RecordError> {
        let (generation, mut r) = Reader::open(bytes, KIND_VOLUME)?;
        let (driver, pod, name, id) = (r.parsed()?, r.parsed()?, r.parsed()?, r.parsed()?);
        let volume = Volume { driver, pod, name, id };
        let body = match r.u8()? {
            1 => Body::Identity(IdentityBody {
                cookie: r.u64()?,
                token: if r.flag()? { Some(Token::new(r.string()?)) } else { None },
                svid: if r.flag()? { Some(StoredSvid::read(&mut r)?) } else { None },
            }),
            2 => Body::Directory,
            _ => return Err(RecordError::Corrupt("unknown kind of volume")),
        };
        r.end()?;
        Ok(Self { generation, volume, body })
    }
}

fn names(Volume { driver, pod, name, id }: &Volume) -> [&str; 4] {
    [driver.as_str(), pod.as_str(), name.as_str(), id.as_str()]
}

impl NodeRecord {
    /// The bytes for the state tmpfs.
    pub fn encode(&self) -> Zeroizing<Vec<u8>> {
        let mut w = Writer::new(KIND_NODE, self.generation, 256);
        w.u64(self.drivers.len() as u64);
        for of in &self.drivers {
            w.bytes(of.driver.as_str().as_bytes());
            w.u64(of.csi_cookie);
            w.u64(of.registration_cookie);
            match &of.registration {
                Registration::Unknown => w.u8(0),
                Registration::Registered => w.u8(1),
                Registration::Failed(why) => {
                    w.u8(2);
                    w.bytes(why.get(..why.floor_char_boundary(MAX_REASON)).unwrap_or_default().as_bytes());
                }
            }
        }
        w.finish()
    }

    /// Reads what [`NodeRecord::encode`] wrote.
    pub fn decode(bytes: &[u8]) -> Result<Self, RecordError> {
        let (generation, mut r) = Reader::open(bytes, KIND_NODE)?;
        let mut drivers = Vec::new();
        for _ in 0..r.u64()? {
            drivers.push(DriverRecord {
                driver: r.parsed()?,
                csi_cookie: r.u64()?,
                registration_cookie: r.u64()?,
                registration: match r.u8()? {
                    0 => Registration::Unknown,
                    1 => Registration::Registered,
                    2 => Registration::Failed(r.string()?),
                    _ => return Err(RecordError::Corrupt("unknown registration state")),
                },
            });
        }
        r.end()?;
        Ok(Self { generation, drivers })
    }
}

#[cfg(test)]
pub(crate) mod tests;
