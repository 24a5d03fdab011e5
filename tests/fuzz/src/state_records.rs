//! Records of the state tmpfs: one encoding, damage is detected, another release's is told from damage.

use std::time::{Duration, SystemTime};

use arbitrary::{Result, Unstructured};
use aws_lc_rs::digest::{SHA256, digest};
use seamount_agent::record::{
    Body, DriverRecord, IdentityBody, MAX_REASON, NodeRecord, Record, RecordError, Registration, StoredSvid,
    VERSION,
};
use seamount_pod_token::Token;
use zeroize::Zeroizing;

use crate::input;

/// 0: bytes as they are. 1: bytes with a good checksum. 2: a body in a good frame. 3: a record, and bits of
/// it changed.
pub fn run(data: &[u8]) {
    let (kind, rest) = input::kind(data, 4);
    match kind {
        0 => any(rest),
        1 => any(&seal(rest)),
        2 => {
            let (kind, body) = input::kind(rest, 2);
            let mut bytes = b"SMR\x01".to_vec();
            bytes.extend(VERSION.to_le_bytes().into_iter().chain([kind + 1, 0]));
            bytes.extend([7; 8]);
            bytes.extend((body.len() as u32).to_le_bytes());
            bytes.extend(body);
            any(&seal(&bytes));
        }
        _ => drop(whole(&mut Unstructured::new(rest))),
    }
}

fn seal(bytes: &[u8]) -> Vec<u8> {
    [bytes, digest(&SHA256, bytes).as_ref()].concat()
}

fn any(bytes: &[u8]) {
    let (volume, node) = (Record::decode(bytes), NodeRecord::decode(bytes));
    assert!(volume.is_err() || node.is_err(), "one file, two kinds");
    let sealed = bytes.len() >= 32
        && digest(&SHA256, &bytes[..bytes.len() - 32]).as_ref() == &bytes[bytes.len() - 32..];
    for error in [volume.as_ref().err(), node.as_ref().err()].into_iter().flatten() {
        if let RecordError::Version { found } = error {
            assert!(sealed && *found != VERSION && bytes[4..6] == found.to_le_bytes());
        }
    }
    assert!(sealed || volume.is_err() && node.is_err());
    if let Ok(record) = &volume {
        assert_eq!(*record.encode(), bytes);
        damage(bytes, |b| Record::decode(b).is_err());
    }
    if let Ok(record) = &node {
        // A reason that is too long is cut when it is written.
        let long =
            |d: &DriverRecord| matches!(&d.registration, Registration::Failed(why) if why.len() > MAX_REASON);
        if !record.drivers.iter().any(long) {
            assert_eq!(*record.encode(), bytes);
        }
        damage(bytes, |b| NodeRecord::decode(b).is_err());
    }
}

/// A bit in each place, one after the other, and the end cut off.
fn damage(bytes: &[u8], refused: impl Fn(&[u8]) -> bool) {
    let mut changed = bytes.to_vec();
    // Steps, so that a large record does not take the fuzzer's time.
    for at in (0..bytes.len()).step_by(1 + bytes.len() / 16) {
        changed[at] ^= 1 << (at % 8);
        assert!(refused(&changed), "a changed byte {at} is not noticed");
        changed[at] = bytes[at];
    }
    assert!(refused(&bytes[..bytes.len() - 1]) && refused(&[bytes, &[0]].concat()));
}

fn time(u: &mut Unstructured<'_>) -> Result<SystemTime> {
    Ok(SystemTime::UNIX_EPOCH + Duration::new(u.arbitrary::<u32>()?.into(), u.int_in_range(0..=999_999_999)?))
}

fn whole(u: &mut Unstructured<'_>) -> Result<()> {
    let svid = |u: &mut Unstructured<'_>| -> Result<StoredSvid> {
        Ok(StoredSvid {
            spiffe_id: u.arbitrary()?,
            key: Zeroizing::new(u.arbitrary()?),
            chain: u.arbitrary()?,
            roots: u.arbitrary()?,
            not_before: time(u)?,
            not_after: time(u)?,
            rotate_at: time(u)?,
        })
    };
    let record = Record {
        generation: u.arbitrary()?,
        volume: input::volume(u)?,
        body: if u.arbitrary()? {
            Body::Identity(IdentityBody {
                cookie: u.arbitrary()?,
                token: if u.arbitrary()? { Some(Token::new(u.arbitrary()?)) } else { None },
                svid: if u.arbitrary()? { Some(svid(u)?) } else { None },
            })
        } else {
            Body::Directory
        },
    };
    let bytes = record.encode();
    assert_eq!(Record::decode(&bytes).as_ref(), Ok(&record));
    any(&bytes);
    let driver = |u: &mut Unstructured<'_>| -> Result<DriverRecord> {
        Ok(DriverRecord {
            driver: input::driver(u)?,
            csi_cookie: u.arbitrary()?,
            registration_cookie: u.arbitrary()?,
            registration: match u.int_in_range(0..=2)? {
                0 => Registration::Unknown,
                1 => Registration::Registered,
                _ => Registration::Failed(u.arbitrary()?),
            },
        })
    };
    let drivers = (0..u.int_in_range(0..=3)?).map(|_| driver(u)).collect::<Result<_>>()?;
    any(&NodeRecord { generation: u.arbitrary()?, drivers }.encode());
    Ok(())
}
