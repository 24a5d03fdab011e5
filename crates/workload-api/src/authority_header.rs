//! Takes the `:authority` out of HTTP/2 requests on Unix sockets.
//!
//! gRPC's C core (Python, C++, Ruby, …) and grpc-go when it dials by path, as the kubelet does for the
//! registration socket, make the authority of the socket's path: `:authority: %2Fvar%2Flib%2F…`. The `http`
//! crate takes no percent sign in a host, so h2 answers with RST_STREAM, and it has no switch for that. On a
//! Unix socket an authority says nothing, so its value is overwritten on the way in.
//!
//! The value is replaced by one of the same encoded length and without Huffman coding (RFC 7541, 5.2), so
//! that neither the frame's length nor any other byte changes. h2's dynamic table then counts the entry as
//! smaller than the kubelet's does, which only lets it keep entries longer (RFC 7541, 4.1 and 4.4); no
//! header block refers to those.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::{Buf as _, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// RFC 9113, 3.4: the length of the client's connection preface.
const PREFACE: usize = 24;
/// RFC 9113, 4.1: the length of a frame's header.
const HEADER: usize = 9;
/// RFC 9113, 6.5.2: the longest payload that we allow, since we do not announce another.
const LONGEST: usize = 16_384;
/// RFC 9113, 6.2: the type of a HEADERS frame, and two of its flags.
const HEADERS: u8 = 0x1;
const PADDED: u8 = 0x8;
const PRIORITY: u8 = 0x20;
/// RFC 7541, appendix A: `:authority` in the static table.
const AUTHORITY: usize = 1;

/// A connection whose requests have no authority to speak of.
#[derive(Debug)]
pub struct AuthorityHeaderFilter<S> {
    stream: S,
    filter: Filter,
    /// What may be read.
    out: BytesMut,
    /// Reads since the connection gave way last.
    reads: u8,
}

/// So many reads of 4 KB follow each other; then all other tasks have a turn. tokio would grant 128, which
/// are 37,000 of the shortest frames that h2 neither limits nor answers: milliseconds for each of a pod's 64
/// connections, in the kubelet's way.
const TURN: u8 = 8;

impl<S> AuthorityHeaderFilter<S> {
    /// From an accepted connection, before anything was read from it.
    pub fn new(stream: S) -> Self {
        Self { stream, filter: Filter::default(), out: BytesMut::new(), reads: 0 }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for AuthorityHeaderFilter<S> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        while this.out.is_empty() {
            if this.reads == TURN {
                this.reads = 0;
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
            let mut space = [0; 4096];
            let mut read = ReadBuf::new(&mut space);
            let Poll::Ready(outcome) = Pin::new(&mut this.stream).poll_read(cx, &mut read) else {
                this.reads = 0;
                return Poll::Pending;
            };
            outcome?;
            this.reads += 1;
            if read.filled().is_empty() {
                return Poll::Ready(Ok(()));
            }
            this.filter.feed(read.filled(), &mut this.out);
        }
        let part = this.out.split_to(buf.remaining().min(this.out.len()));
        buf.put_slice(&part);
        if this.out.is_empty() {
            // A connection with an open stream reads nothing for hours, and there are thousands of them.
            this.out = BytesMut::new();
            this.filter.shrink();
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for AuthorityHeaderFilter<S> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().stream).poll_write(cx, buf)
    }

    // Frame header and response in one system call.
    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().stream).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(cx)
    }
}

/// Where in the byte stream of a client we are.
#[derive(Debug)]
struct Filter {
    /// Bytes that pass as they are before the next frame begins.
    pass: usize,
    /// The beginning of a frame: its header, and for HEADERS its payload as well.
    held: BytesMut,
}

impl Default for Filter {
    fn default() -> Self {
        Self { pass: PREFACE, held: BytesMut::new() }
    }
}

impl Filter {
    /// Gives back the memory of frames that have passed.
    fn shrink(&mut self) {
        if self.held.is_empty() {
            self.held = BytesMut::new();
        }
    }

    fn feed(&mut self, mut input: &[u8], out: &mut BytesMut) {
        while !input.is_empty() {
            let wanted = match self.pass {
                0 => self.wanted(),
                pass => pass,
            };
            let (taken, rest) = input.split_at(wanted.min(input.len()));
            input = rest;
            if self.pass > 0 {
                self.pass -= taken.len();
                out.extend_from_slice(taken);
                continue;
            }
            self.held.extend_from_slice(taken);
            if self.wanted() == 0 {
                self.release(out);
            }
        }
    }

    /// How many bytes are missing until `held` can be released.
    fn wanted(&self) -> usize {
        match self.frame() {
            None => HEADER - self.held.len(),
            Some((kind, length)) if is_held(kind, length) => HEADER + length - self.held.len(),
            Some(_) => 0,
        }
    }

    /// Type and length of the payload, once the header is there.
    fn frame(&self) -> Option<(u8, usize)> {
        let mut header = self.held.get(..HEADER)?;
        let length = header.get_uint(3);
        Some((header.get_u8(), usize::try_from(length).ok()?))
    }

    fn release(&mut self, out: &mut BytesMut) {
        let Some((kind, length)) = self.frame() else { return };
        let mut frame = self.held.split();
        if is_held(kind, length) {
            overwrite_in_frame(&mut frame);
        } else {
            self.pass = length;
        }
        out.extend_from_slice(&frame);
    }
}

fn is_held(kind: u8, length: usize) -> bool {
    kind == HEADERS && length <= LONGEST
}

/// A whole HEADERS frame; one that makes no sense stays as it is, and h2 says so.
fn overwrite_in_frame(frame: &mut [u8]) -> Option<()> {
    let flags = *frame.get(4)?;
    let (mut begin, mut end) = (HEADER, frame.len());
    if flags & PADDED != 0 {
        end = end.checked_sub(usize::from(*frame.get(begin)?))?;
        begin += 1;
    }
    if flags & PRIORITY != 0 {
        begin += 5;
    }
    overwrite(frame.get_mut(begin..end)?)
}

/// A header block (RFC 7541, 6).
fn overwrite(block: &mut [u8]) -> Option<()> {
    let mut at = 0;
    while at < block.len() {
        let first = *block.get(at)?;
        let is_literal = first & 0x80 == 0 && first & 0xe0 != 0x20;
        if !is_literal {
            // An indexed field, or a new size of the dynamic table.
            at = integer(block, at, if first & 0x80 != 0 { 7 } else { 5 })?.1;
            continue;
        }
        let name;
        (name, at) = integer(block, at, if first & 0x40 != 0 { 6 } else { 4 })?;
        let mut is_authority = name == AUTHORITY;
        if name == 0 {
            // gRPC's C core spells the name out, without Huffman coding.
            let (length, begin) = integer(block, at, 7)?;
            at = begin.checked_add(length)?;
            is_authority = block.get(begin..at)? == b":authority";
        }
        let (length, begin) = integer(block, at, 7)?;
        let end = begin.checked_add(length)?;
        if is_authority {
            block.get_mut(begin..end)?.fill(b'x');
            // No Huffman coding.
            *block.get_mut(at)? &= 0x7f;
        }
        at = end;
    }
    Some(())
}

/// An integer with a prefix of so many bits (RFC 7541, 5.1), and where it ends.
fn integer(block: &[u8], at: usize, bits: u32) -> Option<(usize, usize)> {
    let full = (1_usize << bits) - 1;
    let mut value = usize::from(*block.get(at)?) & full;
    let mut at = at + 1;
    if value == full {
        for shift in [0, 7, 14] {
            let byte = usize::from(*block.get(at)?);
            at += 1;
            value += (byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Some((value, at));
            }
        }
        return None;
    }
    Some((value, at))
}

#[cfg(test)]
mod tests;
