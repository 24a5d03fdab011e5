use super::*;
use proptest::prelude::*;

fn driver() -> impl Strategy<Value = DriverName> {
    "[A-Za-z0-9]([A-Za-z0-9.-]{0,61}[A-Za-z0-9])?".prop_map(|name| name.parse().unwrap())
}

fn volume() -> impl Strategy<Value = Volume> {
    (
        driver(),
        "[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}",
        "[a-z0-9]([a-z0-9-]{0,60}[a-z0-9])?",
        "[!-~]{1,128}",
    )
        .prop_map(|(driver, pod, name, id)| Volume {
            driver,
            pod: pod.parse().unwrap(),
            name: name.parse().unwrap(),
            id: id.parse().unwrap(),
        })
}

fn listened() -> impl Strategy<Value = Subject> {
    prop_oneof![
        volume().prop_map(Subject::Volume),
        driver().prop_map(Subject::Csi),
        driver().prop_map(Subject::Registration),
    ]
}

fn request() -> impl Strategy<Value = Request> {
    prop_oneof![
        Just(Request::Hello),
        driver().prop_map(Request::CsiListener),
        driver().prop_map(Request::RegistrationListener),
        Just(Request::State),
        volume().prop_map(Request::PublishIdentity),
        (volume(), any::<u32>(), any::<u64>()).prop_map(|(volume, gid, size)| Request::PublishTmpfs {
            volume,
            gid,
            size
        }),
        (volume(), "[a-z0-9_.]{0,80}")
            .prop_map(|(volume, version)| Request::SetOwnership { volume, version }),
        volume().prop_map(Request::PublishDirectory),
        volume().prop_map(Request::Unpublish),
        volume().prop_map(Request::Inspect),
        any::<u64>().prop_map(|cursor| Request::List { cursor }),
        (listened(), any::<u64>()).prop_map(|(subject, cookie)| Request::StoreListener { subject, cookie }),
        driver().prop_map(Request::Offer),
    ]
}

proptest! {
    #[test]
    fn requests_survive_the_wire(id: u64, request in request()) {
        prop_assert_eq!(Request::decode(&request.encode(id)), Ok((id, request)));
    }

    #[test]
    fn replies_survive_the_wire(
        id: u64, request in request(), cookie: u64, flags: u32, numbers: [u64; 3], fault in 0..=10u32, text in ".{0,200}"
    ) {
        let reply = Reply { cookie, flags, numbers, fault: Fault::from_number(fault).unwrap(), text, ..Reply::to(id, &request) };
        prop_assert!(reply.answers(id, &request));
        prop_assert!(!reply.answers(id.wrapping_add(1), &request));
        let frame = reply.encode();
        if reply.text.len() <= MAX_TEXT {
            prop_assert_eq!(Reply::decode(&frame), Ok(reply));
        } else {
            prop_assert!(Reply::decode(&frame).is_ok());
        }
    }

    #[test]
    fn a_reply_for_another_volume_is_not_an_answer(id: u64, a in volume(), b in volume()) {
        prop_assume!(a != b);
        let late = Reply::to(id, &Request::PublishIdentity(a));
        prop_assert!(!late.answers(id, &Request::PublishIdentity(b)));
    }

    #[test]
    fn a_reply_for_another_driver_is_not_an_answer(id: u64, a in volume(), b in driver()) {
        prop_assume!(a.driver != b);
        let late = Reply::to(id, &Request::CsiListener(a.driver.clone()));
        prop_assert!(!late.answers(id, &Request::CsiListener(b.clone())));
        let late = Reply::to(id, &Request::PublishIdentity(a.clone()));
        let asked = Request::PublishIdentity(Volume { driver: b, ..a });
        prop_assert!(!late.answers(id, &asked));
    }

    #[test]
    fn no_bytes_panic(bytes in prop::collection::vec(any::<u8>(), 0..2000)) {
        let _ = Request::decode(&bytes);
        let _ = Reply::decode(&bytes);
    }

    #[test]
    fn one_encoding_only(id: u64, request in request(), at in 0..FRAME, bit in 0..8u8) {
        let mut frame = request.encode(id);
        frame[at] ^= 1 << bit;
        // A frame that still decodes means something else, and says it in the same bytes.
        if let Ok((id, other)) = Request::decode(&frame) {
            prop_assert_eq!(other.encode(id), frame);
        }
    }
}

#[test]
fn wrong_sizes_and_versions_are_named() {
    let why = |frame: &[u8]| Request::decode(frame).unwrap_err().1.to_string();
    assert!(
        why(&[0; 3]).contains("length") && why(&Request::Hello.encode(1)[..FRAME - 1]).contains("padding")
    );
    assert!(why(&[0; FRAME]).contains("something else"));
    let mut frame = Request::Hello.encode(1);
    frame[4] = 9;
    assert_eq!(Request::decode(&frame), Err((0, FrameError::Version(9))));
}

#[test]
fn the_longest_volume_fits_and_a_subject_is_where_it_belongs() {
    let volume = Volume {
        driver: "d".repeat(63).parse().unwrap(),
        pod: "3f2c1a9e-0b1d-4c5e-8f70-a1b2c3d4e5f6".parse().unwrap(),
        name: "n".repeat(63).parse().unwrap(),
        id: "i/:-".repeat(32).parse().unwrap(),
    };
    let request = Request::Unpublish(volume.clone());
    assert_eq!(Request::decode(&request.encode(1)), Ok((1, request)));
    // The number of one operation with the subject of another.
    let driver = &volume.driver;
    let (csi, registration) = (Subject::Csi(driver.clone()), Subject::Registration(driver.clone()));
    for subject in [Subject::Node, csi, registration, Subject::Volume(volume)] {
        for op in 1..=13 {
            let raw = Reply { op, id: 1, subject: subject.clone(), ..Reply::default() };
            if let Ok((_, request)) = Request::decode(&raw.encode()) {
                assert_eq!((request.op(), request.subject()), (op, subject.clone()));
            }
        }
    }
    assert!(Request::decode(&Reply { op: 2, ..Reply::default() }.encode()).is_err());
}
