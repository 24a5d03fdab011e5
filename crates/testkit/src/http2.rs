//! HTTP/2 by hand, for what no library would send (RFC 9113; header blocks as RFC 7541 has them).

/// Frame types (RFC 9113, §6).
pub mod kind {
    /// DATA.
    pub const DATA: u8 = 0;
    /// HEADERS.
    pub const HEADERS: u8 = 1;
    /// RST_STREAM.
    pub const RST_STREAM: u8 = 3;
    /// SETTINGS.
    pub const SETTINGS: u8 = 4;
    /// PING.
    pub const PING: u8 = 6;
    /// GOAWAY.
    pub const GOAWAY: u8 = 7;
    /// WINDOW_UPDATE.
    pub const WINDOW_UPDATE: u8 = 8;
    /// CONTINUATION.
    pub const CONTINUATION: u8 = 9;
}

/// The flag ACK of SETTINGS and PING.
pub const ACK: u8 = 1;
/// The flag END_STREAM of DATA and HEADERS.
pub const END_STREAM: u8 = 1;
/// The flag END_HEADERS of HEADERS and CONTINUATION.
pub const END_HEADERS: u8 = 4;
/// The setting INITIAL_WINDOW_SIZE (RFC 9113, §6.5.2).
pub const INITIAL_WINDOW_SIZE: u16 = 4;

/// One frame; its payload is shorter than 2²⁴ bytes.
pub fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap_or_default().to_be_bytes();
    let mut out: Vec<u8> = length.into_iter().skip(1).collect();
    out.extend([kind, flags]);
    out.extend(stream.to_be_bytes());
    out.extend(payload);
    out
}

/// What a client sends first: the preface and its settings.
pub fn preface(settings: &[(u16, u32)]) -> Vec<u8> {
    let mut out = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
    out.extend(frame(kind::SETTINGS, 0, 0, &self::settings(settings)));
    out
}

/// The payload of SETTINGS.
pub fn settings(settings: &[(u16, u32)]) -> Vec<u8> {
    settings.iter().flat_map(|(id, value)| [&id.to_be_bytes()[..], &value.to_be_bytes()].concat()).collect()
}

/// The header block of a gRPC call to this path, with what the Workload API asks for and these fields more.
pub fn grpc_headers(path: &str, extra: &[(&str, &str)]) -> Vec<u8> {
    // :method POST, :scheme http, :path, :authority (RFC 7541, appendix A).
    let mut block = vec![0x83, 0x86, 0x04];
    string(&mut block, path);
    block.push(0x01);
    string(&mut block, "localhost");
    let usual = [("content-type", "application/grpc"), ("te", "trailers"), ("workload.spiffe.io", "true")];
    for (name, value) in usual.iter().chain(extra) {
        // Literal, not indexed, with a new name (§6.2.2).
        block.push(0);
        string(&mut block, name);
        string(&mut block, value);
    }
    block
}

/// A gRPC message that is not compressed.
pub fn grpc_message(message: &[u8]) -> Vec<u8> {
    let mut out = vec![0];
    out.extend(u32::try_from(message.len()).unwrap_or_default().to_be_bytes());
    out.extend(message);
    out
}

/// A whole gRPC call with one message.
pub fn grpc_call(stream: u32, path: &str, message: &[u8]) -> Vec<u8> {
    let mut out = frame(kind::HEADERS, END_HEADERS, stream, &grpc_headers(path, &[]));
    out.extend(frame(kind::DATA, END_STREAM, stream, &grpc_message(message)));
    out
}

/// A string that is not compressed (RFC 7541, §5.2), behind its length (§5.1).
fn string(out: &mut Vec<u8>, text: &str) {
    const FULL: usize = 0x7f;
    let length = text.len();
    out.push(u8::try_from(length.min(FULL)).unwrap_or_default());
    if let Some(mut rest) = length.checked_sub(FULL) {
        while rest > FULL {
            out.push(0x80 | u8::try_from(rest & FULL).unwrap_or_default());
            rest >>= 7;
        }
        out.push(u8::try_from(rest).unwrap_or_default());
    }
    out.extend(text.as_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_begins_with_length_kind_flags_and_stream() {
        assert_eq!(frame(kind::DATA, END_STREAM, 3, b"ab"), [0, 0, 2, 0, 1, 0, 0, 0, 3, b'a', b'b']);
        assert_eq!(settings(&[(INITIAL_WINDOW_SIZE, 258)]), [0, 4, 0, 0, 1, 2]);
        assert_eq!(grpc_message(b"ab"), [0, 0, 0, 0, 2, b'a', b'b']);
    }

    #[test]
    fn long_strings_have_long_lengths() {
        let head = |length: usize| {
            let mut out = Vec::new();
            string(&mut out, &"a".repeat(length));
            out.truncate(out.len() - length);
            out
        };
        assert_eq!((head(126), head(127)), (vec![126], vec![127, 0]));
        // RFC 7541, C.1.2: 1337 is 31 + 1306 with a prefix of five bits; here 127 + 1210.
        assert_eq!(head(1337), [127, 0x80 | (1210 & 0x7f) as u8, (1210 >> 7) as u8]);
    }
}
