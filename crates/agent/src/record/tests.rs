use std::time::Duration;

use proptest::prelude::*;
use seamount_mounter_protocol::names::{PodUid, VolumeId, VolumeName};

use super::*;

fn time() -> impl Strategy<Value = SystemTime> {
    (0..=4_000_000_000u64, 0..1_000_000_000u32)
        .prop_map(|(s, n)| SystemTime::UNIX_EPOCH + Duration::new(s, n))
}

fn svid() -> impl Strategy<Value = StoredSvid> {
    let bytes = || proptest::collection::vec(any::<u8>(), 0..300);
    (".{0,60}", bytes(), bytes(), bytes(), time(), time(), time()).prop_map(
        |(spiffe_id, key, chain, roots, not_before, not_after, rotate_at)| StoredSvid {
            spiffe_id,
            key: Zeroizing::new(key),
            chain,
            roots,
            not_before,
            not_after,
            rotate_at,
        },
    )
}

fn record() -> impl Strategy<Value = Record> {
    let volume = (
        "[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}",
        "[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?",
        "[!-~]{1,128}",
    )
        .prop_map(|(pod, name, id)| Volume {
            driver: "csi.spiffe.io".parse().unwrap(),
            pod: pod.parse::<PodUid>().unwrap(),
            name: name.parse::<VolumeName>().unwrap(),
            id: id.parse::<VolumeId>().unwrap(),
        });
    let token = proptest::option::of(".{0,2000}".prop_map(Token::new));
    let identity = (any::<u64>(), token, proptest::option::of(svid()))
        .prop_map(|(cookie, token, svid)| Body::Identity(IdentityBody { cookie, token, svid }));
    let body = prop_oneof![4 => identity, 1 => Just(Body::Directory)];
    (any::<u64>(), volume, body).prop_map(|(generation, volume, body)| Record { generation, volume, body })
}

/// A record for tests of other modules.
pub(crate) fn example(pod: &str, name: &str) -> Record {
    let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000);
    Record {
        generation: 1,
        volume: Volume {
            driver: "csi.spiffe.io".parse().unwrap(),
            pod: pod.parse().unwrap(),
            name: name.parse().unwrap(),
            id: "csi-0123456789abcdef".parse().unwrap(),
        },
        body: Body::Identity(IdentityBody {
            cookie: 42,
            token: Some(Token::new("header.payload.signature".into())),
            svid: Some(StoredSvid {
                spiffe_id: "spiffe://example.org/ns/shop/sa/cart".into(),
                key: Zeroizing::new(vec![1, 2, 3]),
                chain: vec![4, 5, 6],
                roots: vec![7, 8],
                not_before: now,
                not_after: now + Duration::from_secs(3600),
                rotate_at: now + Duration::from_secs(1800),
            }),
        }),
    }
}

const POD: &str = "3f2c1a9e-0b1d-4c5e-8f70-a1b2c3d4e5f6";

/// Of two drivers.
pub(crate) fn node_record(registration: Registration) -> NodeRecord {
    let driver = |name: &str, registration| DriverRecord {
        driver: name.parse().unwrap(),
        csi_cookie: 4,
        registration_cookie: 5,
        registration,
    };
    let drivers = vec![
        driver("csi.spiffe.io", registration),
        driver("identity.seamount.dev", Registration::Registered),
    ];
    NodeRecord { generation: 3, drivers }
}

#[test]
fn node_records_round_trip() {
    for registration in
        [Registration::Unknown, Registration::Registered, Registration::Failed("no such driver".into())]
    {
        let node = node_record(registration);
        assert_eq!(NodeRecord::decode(&node.encode()), Ok(node));
    }
}

#[test]
fn secrets_are_not_printed() {
    let mut record = example(POD, "v");
    let mut identity = record.identity().unwrap().clone();
    identity.svid.as_mut().unwrap().key = Zeroizing::new(b"[1, 2, 3, 4, 5]".to_vec());
    record.body = Body::Identity(identity);
    let printed = format!("{record:?}");
    assert!(printed.contains("spiffe://example.org/ns/shop/sa/cart"), "{printed}");
    assert!(!printed.contains("payload") && !printed.contains("91, 49"), "{printed}");
}

#[test]
fn kinds_are_not_mixed_up() {
    let volume = example(POD, "v").encode();
    assert_eq!(NodeRecord::decode(&volume), Err(RecordError::Corrupt("of another kind")));
    let node = node_record(Registration::Unknown).encode();
    assert!(matches!(Record::decode(&node), Err(RecordError::Corrupt("of another kind"))));
}

#[test]
fn a_long_reason_is_cut() {
    let node = node_record(Registration::Failed("é".repeat(MAX_REASON)));
    let read = NodeRecord::decode(&node.encode()).unwrap();
    assert_eq!(read.drivers[0].registration, Registration::Failed("é".repeat(MAX_REASON / 2)));
}

/// Changes a byte of the frame and makes the checksum fit again, as another release would have written it.
fn resealed(record: &Record, change: impl FnOnce(&mut [u8])) -> Vec<u8> {
    let mut bytes = record.encode().to_vec();
    let end = bytes.len() - 32;
    change(&mut bytes[..end]);
    let sum = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, &bytes[..end]);
    bytes[end..].copy_from_slice(sum.as_ref());
    bytes
}

#[test]
fn another_release_is_told_from_damage() {
    let record = example(POD, "v");
    let newer = resealed(&record, |b| b[4] += 1);
    assert!(matches!(Record::decode(&newer), Err(RecordError::Version { found }) if found == VERSION + 1));
    let mut flipped = record.encode().to_vec();
    flipped[4] += 1;
    assert!(matches!(Record::decode(&flipped), Err(RecordError::Corrupt("checksum"))));
}

#[test]
fn a_wrong_body_under_a_right_checksum_is_refused() {
    let record = example(POD, "v");
    let bad = |change: fn(&mut [u8])| Record::decode(&resealed(&record, change)).err();
    assert_eq!(bad(|b| b[16] ^= 1), Some(RecordError::Corrupt("length")));
    // First field: the pod's UID, 4 bytes of length and then the text.
    assert_eq!(bad(|b| b[24] = b'/'), Some(RecordError::Corrupt("a name")));
    assert_eq!(bad(|b| b[23] = 0xff), Some(RecordError::Corrupt("truncated")));
}

#[test]
fn the_buffer_of_secrets_never_moves() {
    let mut record = example(POD, "v");
    let token = Some(Token::new("t".repeat(16_000)));
    record.body = Body::Identity(IdentityBody { token, ..record.identity().unwrap().clone() });
    let writer = codec::Writer::new(KIND_VOLUME, 1, record.capacity());
    assert!(record.encode().len() <= writer.capacity());
}

proptest! {
    #[test]
    fn what_is_written_is_read(record in record()) {
        let bytes = record.encode();
        let read = Record::decode(&bytes);
        prop_assert!(read.as_ref().is_ok_and(|r| *r == record), "{:?}", read.err());
        prop_assert!(bytes.len() <= codec::Writer::new(KIND_VOLUME, 0, record.capacity()).capacity());
    }

    #[test]
    fn any_changed_bit_is_detected(record in record(), place in any::<prop::sample::Index>(), bit in 0..8u8) {
        let mut bytes = record.encode().to_vec();
        let place = place.index(bytes.len());
        bytes[place] ^= 1 << bit;
        prop_assert!(matches!(Record::decode(&bytes), Err(RecordError::Corrupt(_))));
    }

    #[test]
    fn any_truncation_is_detected(record in record(), place in any::<prop::sample::Index>()) {
        let bytes = record.encode();
        let end = place.index(bytes.len());
        prop_assert!(matches!(Record::decode(&bytes[..end]), Err(RecordError::Corrupt(_))));
    }

    #[test]
    fn no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
        prop_assert!(Record::decode(&bytes).is_err());
        prop_assert!(NodeRecord::decode(&bytes).is_err());
    }

    /// Past the checksum too, where only the body's own rules are left.
    #[test]
    fn no_body_panics(body in proptest::collection::vec(any::<u8>(), 0..400)) {
        let mut writer = codec::Writer::new(KIND_VOLUME, 1, body.len());
        writer.raw(&body);
        prop_assert!(Record::decode(&writer.finish()).is_err());
        let mut writer = codec::Writer::new(KIND_NODE, 1, body.len());
        writer.raw(&body);
        let _ = NodeRecord::decode(&writer.finish());
    }
}
