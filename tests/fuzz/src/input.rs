//! Values made of a fuzzer's bytes.

use arbitrary::{Arbitrary, Result, Unstructured};
use seamount_mounter_protocol::names::{DriverName, Volume};
use seamount_mounter_protocol::{Request, Subject};

/// The first byte says what the rest is.
pub fn kind(data: &[u8], kinds: u8) -> (u8, &[u8]) {
    data.split_first().map_or((0, data), |(first, rest)| (first % kinds, rest))
}

/// Changes of single bytes: place (modulo the length) and value to exclusive-or with.
#[derive(Debug, Arbitrary)]
pub struct Patches(Vec<(u16, u8)>);

impl Patches {
    /// Applies them to bytes that are not empty.
    pub fn apply(&self, bytes: &mut [u8]) {
        for (place, bits) in self.0.iter().take(8) {
            let length = bytes.len();
            bytes[usize::from(*place) % length] ^= bits;
        }
    }
}

fn of(u: &mut Unstructured<'_>, alphabet: &[u8], most: usize) -> Result<String> {
    let length = u.int_in_range(1..=most)?;
    (0..length).map(|_| u.choose(alphabet).map(|b| char::from(*b))).collect()
}

/// Any driver's name that the type allows; mostly the usual one.
pub fn driver(u: &mut Unstructured<'_>) -> Result<DriverName> {
    let usual = u.ratio(3, 4)?;
    let name = if usual { "csi.spiffe.io".to_owned() } else { of(u, b"abzABZ09.-", 63)? };
    Ok(name.parse().unwrap_or_else(|_| "d".parse().unwrap()))
}

/// Any volume that the types allow.
pub fn volume(u: &mut Unstructured<'_>) -> Result<Volume> {
    let hex: String = <[u8; 16]>::arbitrary(u)?.iter().map(|b| format!("{b:02x}")).collect();
    let pod = [&hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..]].join("-");
    let name = of(u, b"abcxyz019-", 63)?;
    let name = if name.starts_with('-') || name.ends_with('-') { "v".to_owned() } else { name };
    let printable: Vec<u8> = (b'!'..=b'~').collect();
    let id = of(u, &printable, 128)?;
    let driver = driver(u)?;
    Ok(Volume { driver, pod: pod.parse().unwrap(), name: name.parse().unwrap(), id: id.parse().unwrap() })
}

/// Any request about this volume.
pub fn request(u: &mut Unstructured<'_>, volume: Volume) -> Result<Request> {
    Ok(match u.int_in_range(0..=12u8)? {
        0 => Request::Hello,
        1 => Request::CsiListener(driver(u)?),
        2 => Request::RegistrationListener(driver(u)?),
        3 => Request::State,
        4 => Request::PublishIdentity(volume),
        5 => {
            let size = if u.ratio(7, 8)? { u.int_in_range(1..=1 << 20)? } else { u.arbitrary()? };
            Request::PublishTmpfs { volume, gid: u.arbitrary()?, size }
        }
        6 => Request::SetOwnership {
            volume,
            version: u.choose(&["v1", "v2", "..", ".", "a/b", ""])?.to_string(),
        },
        7 => Request::PublishDirectory(volume),
        8 => Request::Unpublish(volume),
        9 => Request::Inspect(volume),
        10 => Request::List { cursor: if u.ratio(3, 4)? { u.int_in_range(0..=9)? } else { u.arbitrary()? } },
        11 => {
            let subject = match u.int_in_range(0..=2u8)? {
                0 => Subject::Volume(volume),
                1 => Subject::Csi(driver(u)?),
                _ => Subject::Registration(driver(u)?),
            };
            Request::StoreListener { subject, cookie: u.arbitrary()? }
        }
        _ => Request::Offer(driver(u)?),
    })
}
