//! The filter that takes `:authority` out of HTTP/2, against a plain second reading of RFC 9113 and RFC 7541,
//! and whatever the pieces that the bytes arrive in.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Wake, Waker};

use seamount_workload_api::authority_header::AuthorityHeaderFilter;
use tokio::io::{AsyncRead, ReadBuf};

use crate::input;

/// 0: a connection's bytes. 1: a header block in a frame. 2: frames without the preface. The next byte and
/// the one after it say how the bytes are cut.
pub fn run(data: &[u8]) {
    let (kind, rest) = input::kind(data, 3);
    let Some((&[step, space], rest)) = rest.split_first_chunk() else { return };
    let bytes = match kind {
        0 => rest.to_vec(),
        1 => {
            let Some((flags, block)) = rest.split_first() else { return };
            let mut bytes = vec![b'P'; 24];
            bytes.extend(&(block.len() as u32).to_be_bytes()[1..]);
            bytes.extend([1, *flags, 0, 0, 0, 1]);
            bytes.extend(block);
            bytes.extend([0, 0, 4, 6, 0, 0, 0, 0, 0, 1, 2, 3, 4]);
            bytes
        }
        _ => [&[b'P'; 24], rest].concat(),
    };
    let expected = expected(&bytes);
    let got = filtered(&bytes, usize::from(step) + 1, usize::from(space) + 1);
    assert_eq!(got, expected);
    assert_eq!(filtered(&bytes, bytes.len().max(1), 65_536), expected, "in one piece");
    assert_eq!(filtered(&bytes, 1, 7), expected, "byte by byte");
    assert!(got.iter().zip(&bytes).all(|(new, old)| new == old || *new == b'x' || *new == old & 0x7f));
}

struct Pieces<'a> {
    rest: &'a [u8],
    step: usize,
}

impl AsyncRead for Pieces<'_> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let (now, rest) = self.rest.split_at(self.step.min(self.rest.len()).min(buf.remaining()));
        buf.put_slice(now);
        self.rest = rest;
        Poll::Ready(Ok(()))
    }
}

/// Whether a connection that gave way asked to be polled again.
#[derive(Default)]
struct Woken(AtomicBool);

impl Wake for Woken {
    fn wake(self: Arc<Self>) {
        self.0.store(true, Ordering::Relaxed);
    }
}

fn filtered(bytes: &[u8], step: usize, space: usize) -> Vec<u8> {
    let mut filter = AuthorityHeaderFilter::new(Pieces { rest: bytes, step });
    let woken = Arc::new(Woken::default());
    let waker = Waker::from(Arc::clone(&woken));
    let mut context = Context::from_waker(&waker);
    let (mut out, mut space) = (Vec::new(), vec![0; space]);
    loop {
        let mut buf = ReadBuf::new(&mut space);
        match Pin::new(&mut filter).poll_read(&mut context, &mut buf) {
            Poll::Ready(outcome) => outcome.unwrap(),
            Poll::Pending => {
                assert!(woken.0.swap(false, Ordering::Relaxed), "what is there was not read");
                continue;
            }
        }
        if buf.filled().is_empty() {
            return out;
        }
        out.extend_from_slice(buf.filled());
    }
}

/// What is to come out: everything, but the values of `:authority`; and no frame of headers that is not
/// whole.
fn expected(bytes: &[u8]) -> Vec<u8> {
    let mut out = bytes.to_vec();
    let mut at = 24;
    while at + 9 <= bytes.len() {
        let length =
            usize::from(bytes[at]) << 16 | usize::from(bytes[at + 1]) << 8 | usize::from(bytes[at + 2]);
        let (kind, flags, end) = (bytes[at + 3], bytes[at + 4], at + 9 + length);
        if kind == 1 && length <= 16_384 {
            if end > bytes.len() {
                out.truncate(at);
                return out;
            }
            for (first, value) in authorities(&bytes[at + 9..end], flags) {
                out[at + 9 + first] &= 0x7f;
                out[at + 9..][value].fill(b'x');
            }
        }
        at = end;
    }
    // The beginning of a frame's header waits for the rest.
    if at < bytes.len() {
        out.truncate(at);
    }
    out
}

/// In a payload, where an authority's length begins and which bytes are its value.
fn authorities(payload: &[u8], flags: u8) -> Vec<(usize, std::ops::Range<usize>)> {
    let mut found = Vec::new();
    let mut end = payload.len();
    let mut at = 0;
    if flags & 0x08 != 0 {
        let Some(padding) = payload.first() else { return found };
        let Some(left) = end.checked_sub(usize::from(*padding)) else { return found };
        (at, end) = (1, left);
    }
    if flags & 0x20 != 0 {
        at += 5;
    }
    if at > end {
        return found;
    }
    let block = &payload[..end];
    while at < end {
        let first = block[at];
        let (name_bits, literal) = match first {
            0x80.. => (7, false),
            0x40..=0x7f => (6, true),
            0x20..=0x3f => (5, false),
            0..=0x1f => (4, true),
        };
        let Some((index, mut next)) = number(block, at, name_bits) else { return found };
        if literal {
            let mut ours = index == 1;
            if index == 0 {
                let Some((name, after)) = string(block, next) else { return found };
                ours = block[name] == *b":authority";
                next = after;
            }
            let Some((value, after)) = string(block, next) else { return found };
            if ours {
                found.push((next, value));
            }
            next = after;
        }
        at = next;
    }
    found
}

fn string(block: &[u8], at: usize) -> Option<(std::ops::Range<usize>, usize)> {
    let (length, begin) = number(block, at, 7)?;
    let end = begin + length as usize;
    (end <= block.len()).then_some((begin..end, end))
}

/// RFC 7541, 5.1; longer than three more bytes is nothing that fits a frame.
fn number(block: &[u8], at: usize, bits: u8) -> Option<(u64, usize)> {
    let most = (1u64 << bits) - 1;
    let first = u64::from(*block.get(at)?) & most;
    if first < most {
        return Some((first, at + 1));
    }
    let more = block.get(at + 1..)?.iter().take(3).position(|b| b & 0x80 == 0)?;
    let value = block[at + 1..=at + 1 + more].iter().rev().fold(0, |sum, b| sum << 7 | u64::from(b & 0x7f));
    Some((most + value, at + 2 + more))
}
