//! What one connection of a hostile pod sends.

use std::rc::Rc;
use std::time::Duration;

use seamount_testkit::http2::{
    self, END_HEADERS, INITIAL_WINDOW_SIZE, frame, grpc_call, grpc_headers, grpc_message, kind, preface,
};

const FETCH: &str = "/SpiffeWorkloadAPI/FetchX509SVID";
const HEALTH: &str = "/grpc.health.v1.Health/Check";
const WATCH: &str = "/grpc.health.v1.Health/Watch";
const REFLECTION: [&str; 2] = [
    "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
    "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
];
/// What the agent does not serve: JWT methods, and one that no server has.
const OTHERS: [&str; 4] = [
    "/SpiffeWorkloadAPI/FetchJWTSVID",
    "/SpiffeWorkloadAPI/FetchJWTBundles",
    "/SpiffeWorkloadAPI/ValidateJWTSVID",
    "/no.such.Service/Method",
];
/// Streams of one connection; the agent's bound.
const STREAMS: u32 = 64;
/// Bytes of one write, about: as much as a Unix socket's buffer takes at once.
const CHUNK: usize = 32 * 1024;
/// Calls of one write.
const CALLS: u32 = 64;

/// What a connection sends, and whether it reads.
#[derive(Debug)]
pub struct Script {
    /// First, once.
    pub opening: Rc<[u8]>,
    /// Then, until the connection ends.
    pub then: Then,
    /// What the agent sends is read, and thrown away.
    pub reads: bool,
}

/// What follows the opening.
#[derive(Debug)]
pub enum Then {
    /// Nothing: the connection is held.
    Hold,
    /// The connection is closed, and another one made.
    Leave,
    /// The same bytes without end.
    Repeat {
        /// The bytes.
        bytes: Rc<[u8]>,
        /// How many frames they are.
        frames: u64,
        /// Between two writes.
        pause: Duration,
    },
    /// Requests without end, each on a stream of its own: the writer of one, and how many frames it writes.
    Calls(fn(u32, &mut Vec<u8>), u64),
}

impl Then {
    /// The next bytes behind `calls` calls, and how many frames they have.
    pub fn next(&self, calls: &mut u32) -> Option<(Rc<[u8]>, u64)> {
        match self {
            Self::Hold | Self::Leave => None,
            Self::Repeat { bytes, frames, .. } => Some((Rc::clone(bytes), *frames)),
            Self::Calls(write, frames) => {
                let mut out = Vec::with_capacity(CHUNK);
                for _ in 0..CALLS {
                    // A client's streams have odd numbers (RFC 9113, §5.1.1), below 2³¹.
                    write(calls.checked_mul(2)?.checked_add(1)?, &mut out);
                    *calls = calls.checked_add(1)?;
                }
                Some((out.into(), frames * u64::from(CALLS)))
            }
        }
    }
}

fn script(opening: Vec<u8>, then: Then) -> Script {
    Script { opening: opening.into(), then, reads: false }
}

/// All that may be open at a time, on a connection whose streams may be sent nothing.
fn closed_window(mut stream: impl FnMut(u32) -> Vec<u8>) -> Script {
    let mut opening = preface(&[(INITIAL_WINDOW_SIZE, 0)]);
    (0..STREAMS).for_each(|n| opening.extend(stream(2 * n + 1)));
    script(opening, Then::Hold)
}

fn repeat(opening: Vec<u8>, frame: &[u8]) -> Script {
    let count = (CHUNK / frame.len()).max(1);
    let then =
        Then::Repeat { bytes: frame.repeat(count).into(), frames: count as u64, pause: Duration::ZERO };
    script(opening, then)
}

fn headers(stream: u32, path: &str, extra: &[(&str, &str)]) -> Vec<u8> {
    frame(kind::HEADERS, END_HEADERS, stream, &grpc_headers(path, extra))
}

/// A FetchX509SVID stream that is not read.
pub fn hold() -> Script {
    let opening = [preface(&[]), grpc_call(1, FETCH, &[])].concat();
    script(opening, Then::Hold)
}

/// Asks every stream for the service's description, more often than the agent may answer.
pub fn reflection() -> Script {
    // `file_containing_symbol = 4` of ServerReflectionRequest.
    let symbol = b"SpiffeWorkloadAPI";
    let request = grpc_message(&[&[0x22, 17], &symbol[..]].concat());
    // Of all streams together as much as the connection's window takes: what the agent does not read, it
    // keeps.
    let asked = request.repeat(42);
    closed_window(|stream| {
        let path = if stream % 4 == 1 { REFLECTION[0] } else { REFLECTION[1] };
        [headers(stream, path, &[]), frame(kind::DATA, 0, stream, &asked)].concat()
    })
}

/// Open FetchX509SVID streams that may be sent nothing.
pub fn streams() -> Script {
    closed_window(|stream| grpc_call(stream, FETCH, &[]))
}

/// Health streams that may be sent nothing.
pub fn health_streams() -> Script {
    closed_window(|stream| grpc_call(stream, WATCH, &[]))
}

/// Requests whose message never comes.
pub fn half_requests() -> Script {
    let mut opening = preface(&[]);
    (0..STREAMS).for_each(|n| opening.extend(headers(2 * n + 1, FETCH, &[])));
    script(opening, Then::Hold)
}

/// A frame of the largest size, of which a byte comes now and then and the last one never.
pub fn half_frames() -> Script {
    const LENGTH: usize = 16 * 1024;
    let mut opening = [preface(&[]), headers(1, FETCH, &[]), frame(kind::DATA, 0, 1, &[0; LENGTH])].concat();
    opening.truncate(opening.len() - 1024);
    let then = Then::Repeat { bytes: [0].into(), frames: 0, pause: Duration::from_millis(200) };
    script(opening, then)
}

/// Header lists just below what the agent takes, on all streams, and then over it without end.
pub fn header_lists() -> Script {
    let value = "v".repeat(1000);
    let (few, many): (Vec<_>, Vec<_>) = (vec![("x-filler", &*value); 7], vec![("x-filler", &*value); 15]);
    let mut opening = preface(&[(INITIAL_WINDOW_SIZE, 0)]);
    for n in 0..STREAMS {
        opening.extend(headers(2 * n + 1, if n % 2 == 0 { FETCH } else { REFLECTION[0] }, &few));
    }
    // On a stream that is refused: there is no other left.
    let next = 2 * STREAMS + 1;
    let mut list = frame(kind::HEADERS, 0, next, &grpc_headers(FETCH, &many));
    list.extend(frame(kind::CONTINUATION, END_HEADERS, next, &[]));
    opening.extend(list);
    script(opening, Then::Calls(large_list, 1))
}

fn large_list(stream: u32, out: &mut Vec<u8>) {
    let value = "v".repeat(1000);
    out.extend(headers(stream + 2 * STREAMS + 2, FETCH, &[("x-filler", &*value); 9]));
}

/// One frame of the connection, again and again.
pub fn frames(kind: u8, payload: &[u8]) -> Script {
    // A call before it: a connection that asks nothing is closed after a while.
    repeat([preface(&[]), grpc_call(1, FETCH, &[])].concat(), &frame(kind, 0, 0, payload))
}

/// Settings that change the window of every open stream.
pub fn settings() -> Script {
    let window = |size| frame(kind::SETTINGS, 0, 0, &http2::settings(&[(INITIAL_WINDOW_SIZE, size)]));
    let Script { opening, .. } = streams();
    let both = [window(1), window(0)].concat();
    let count = CHUNK / both.len();
    let then =
        Then::Repeat { bytes: both.repeat(count).into(), frames: 2 * count as u64, pause: Duration::ZERO };
    Script { opening, then, reads: false }
}

/// DATA without data on a request that does not end.
pub fn empty_data() -> Script {
    repeat([preface(&[]), headers(1, FETCH, &[])].concat(), &frame(kind::DATA, 0, 1, &[]))
}

/// A header block that does not end (CVE-2024-27316 and its siblings).
pub fn continuations() -> Script {
    let opening = [preface(&[]), frame(kind::HEADERS, 0, 1, &grpc_headers(FETCH, &[]))].concat();
    repeat(opening, &frame(kind::CONTINUATION, 0, 1, &[]))
}

/// Requests that are taken back at once (CVE-2023-44487).
pub fn rapid_reset() -> Script {
    let write = |stream: u32, out: &mut Vec<u8>| {
        out.extend(grpc_call(stream, FETCH, &[]));
        out.extend(frame(kind::RST_STREAM, 0, stream, &8_u32.to_be_bytes()));
    };
    Script { reads: true, ..script(preface(&[]), Then::Calls(write, 3)) }
}

/// Requests whose answers are not read.
pub fn unread_requests() -> Script {
    script(preface(&[]), Then::Calls(|stream, out| out.extend(grpc_call(stream, HEALTH, &[])), 2))
}

/// Requests for what is not served, and for health, as fast as they are answered.
pub fn methods() -> Script {
    let write = |stream: u32, out: &mut Vec<u8>| {
        let next = OTHERS.iter().chain([&HEALTH]).cycle().nth((stream / 2) as usize % 5);
        out.extend(grpc_call(stream, next.unwrap_or(&HEALTH), &[]));
    };
    Script { reads: true, ..script(preface(&[]), Then::Calls(write, 2)) }
}

/// Connections that are closed as soon as they are made.
pub fn connects() -> Script {
    script([preface(&[]), grpc_call(1, FETCH, &[])].concat(), Then::Leave)
}

/// Open FetchX509SVID streams with room for some answers, which are not read.
pub fn watchers() -> Script {
    let mut opening = preface(&[]);
    (0..STREAMS).for_each(|n| opening.extend(grpc_call(2 * n + 1, FETCH, &[])));
    script(opening, Then::Hold)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_are_on_streams_of_their_own_until_there_are_none_left() {
        let then = unread_requests().then;
        let mut calls = 0;
        let (first, frames) = then.next(&mut calls).unwrap();
        assert_eq!((frames, calls), (2 * u64::from(CALLS), CALLS));
        assert_eq!(first[5..9], [0, 0, 0, 1]);
        assert_eq!(then.next(&mut calls).unwrap().0[5..9], [0, 0, 0, 129]);
        calls = u32::MAX / 2;
        assert!(then.next(&mut calls).is_none());
    }

    #[test]
    fn a_flood_is_whole_frames() {
        let Then::Repeat { bytes, frames, .. } = frames(kind::PING, &[0; 8]).then else { panic!() };
        assert_eq!(bytes.len() as u64, frames * 17);
        assert!(bytes.chunks(17).all(|frame| frame.starts_with(&[0, 0, 8, kind::PING])));
    }

    #[test]
    fn a_half_frame_lacks_its_end_for_longer_than_an_attack_lasts() {
        let script = half_frames();
        let Then::Repeat { bytes, pause, .. } = script.then else { panic!() };
        assert_eq!(bytes.len(), 1);
        assert!(pause * 1024 > Duration::from_secs(120));
    }
}
