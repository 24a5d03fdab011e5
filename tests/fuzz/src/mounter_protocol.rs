//! Frames between agent and mounter: one encoding for each meaning, and nothing unsafe in a name.

use arbitrary::{Result, Unstructured};
use seamount_mounter_protocol::{FRAME, Fault, FrameError, MAX_TEXT, Reply, Request, Subject, VERSION};

use crate::input::{self, Patches};

const FAULTS: [Fault; 10] = [
    Fault::Malformed,
    Fault::Version,
    Fault::Busy,
    Fault::NotOurs,
    Fault::NotFound,
    Fault::Exhausted,
    Fault::Storage,
    Fault::Unsupported,
    Fault::System,
    Fault::Superseded,
];

/// 0: a frame as it is. 1: a good request, changed. 2: a reply and the requests that it answers.
pub fn run(data: &[u8]) {
    let (kind, rest) = input::kind(data, 3);
    let mut u = Unstructured::new(rest);
    let _ = match kind {
        0 => {
            frame(rest);
            Ok(())
        }
        1 => changed(&mut u),
        _ => answers(&mut u),
    };
}

/// What holds for any bytes.
fn frame(bytes: &[u8]) {
    let (request, reply) = (Request::decode(bytes), Reply::decode(bytes));
    let number = |at: usize| u16::from_le_bytes([bytes[at], bytes[at + 1]]);
    // Another release's frame may have another length: its version is what is told.
    let other = bytes.len() >= 6 && bytes[..4] == *b"SMT\x01" && number(4) != VERSION;
    assert_eq!(matches!(reply, Err(FrameError::Version(_))), other);
    if other {
        assert_eq!(reply, Err(FrameError::Version(number(4))));
        assert_eq!(request, Err((0, FrameError::Version(number(4)))));
        return;
    }
    if bytes.len() != FRAME {
        assert!(matches!(request, Err((0, FrameError::Malformed(_)))));
        assert!(matches!(reply, Err(FrameError::Malformed(_))));
        return;
    }
    if let Ok(reply) = &reply {
        assert_eq!(reply.encode(), bytes);
        assert_eq!((&bytes[..4], number(4), number(6)), (&b"SMT\x01"[..], VERSION, reply.op));
        component(&reply.subject);
    }
    if let Ok((id, request)) = &request {
        assert_eq!(request.encode(*id), bytes);
        let raw = reply.as_ref().expect("a request is a frame");
        assert_eq!((raw.op, raw.id, raw.fault), (request.op(), *id, None));
        assert_eq!(raw.subject, request.subject());
        assert!(Reply::to(*id, request).answers(*id, request));
    }
}

/// A name that got through is one path component, or no part of a path.
fn component(subject: &Subject) {
    let driver = match subject {
        Subject::Node => return,
        Subject::Csi(driver) | Subject::Registration(driver) => driver,
        Subject::Volume(volume) => {
            for name in [volume.pod.as_str(), volume.name.as_str()] {
                assert!(!name.is_empty() && name.len() <= 63 && !name.contains(['/', '\0', '.']), "{name:?}");
            }
            assert!(volume.id.as_str().bytes().all(|b| b.is_ascii_graphic()));
            &volume.driver
        }
    };
    let name = driver.as_str();
    assert!((1..=63).contains(&name.len()) && !name.contains(['/', '\0', ':']) && !name.starts_with('.'));
}

fn changed(u: &mut Unstructured<'_>) -> Result<()> {
    let volume = input::volume(u)?;
    let request = input::request(u, volume)?;
    let id = u.arbitrary()?;
    let mut bytes = request.encode(id);
    assert_eq!(Request::decode(&bytes), Ok((id, request)));
    let patches: Patches = u.arbitrary()?;
    patches.apply(&mut bytes);
    frame(&bytes);
    let length = u.int_in_range(0..=FRAME + 1)?;
    let other: Vec<u8> = bytes.iter().copied().chain([0]).take(length).collect();
    frame(&other);
    Ok(())
}

fn answers(u: &mut Unstructured<'_>) -> Result<()> {
    let volume = input::volume(u)?;
    let other = if u.arbitrary()? { volume.clone() } else { input::volume(u)? };
    let (asked, late) = (input::request(u, volume)?, input::request(u, other)?);
    let (id, other_id): (u64, u64) = u.arbitrary()?;
    let reply = Reply {
        cookie: u.arbitrary()?,
        flags: u.arbitrary()?,
        numbers: u.arbitrary()?,
        fault: if u.arbitrary()? { Some(*u.choose(&FAULTS)?) } else { None },
        text: u.arbitrary()?,
        ..Reply::to(id, &asked)
    };
    let read = Reply::decode(&reply.encode()).expect("what is encoded decodes");
    if reply.text.len() <= MAX_TEXT {
        assert_eq!(read, reply);
    } else {
        assert!(reply.text.starts_with(&read.text) && read.text.len() > MAX_TEXT - 4);
    }
    assert!(read.answers(id, &asked));
    let same = id == other_id
        && asked.op() == late.op()
        && (asked.subject() == late.subject() || matches!(late, Request::List { .. }));
    assert_eq!(read.answers(other_id, &late), same);
    Ok(())
}
