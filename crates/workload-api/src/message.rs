//! gRPC messages in their frames: a flag, the length, and the bytes.

use bytes::{Buf as _, Bytes};
use http_body::Body as HttpBody;
use http_body_util::BodyExt as _;
use prost::Message;
use zeroize::Zeroizing;

use crate::status::{Code, Status};

/// The largest request message; real ones are empty.
pub(crate) const MAX_REQUEST: usize = 4 * 1024;

/// Reads exactly one message. What a client sends beyond the bounds is never stored.
pub(crate) async fn read_message<B>(mut body: B) -> Result<Bytes, Status>
where
    B: HttpBody<Data = Bytes> + Unpin,
{
    let internal = |message: &str| Status::new(Code::Internal, message);
    let mut received = Vec::new();
    loop {
        if let Some(message) = take_message(&received)? {
            return Ok(message);
        }
        let Some(frame) = body.frame().await else { break };
        let frame = frame.map_err(|_| internal("the request ended early"))?;
        if let Ok(mut data) = frame.into_data() {
            if received.len() + data.remaining() > MAX_REQUEST + 5 {
                let message = format!("the request message is larger than {MAX_REQUEST} bytes");
                return Err(Status::new(Code::ResourceExhausted, message));
            }
            received.extend_from_slice(&data.copy_to_bytes(data.remaining()));
        }
    }
    if received.is_empty() {
        Err(internal("the request holds no message"))
    } else {
        Err(internal("the request message is cut off"))
    }
}

/// The message, if `received` is a whole one.
fn take_message(received: &[u8]) -> Result<Option<Bytes>, Status> {
    let Some((&[flag, a, b, c, d], message)) = received.split_first_chunk::<5>() else { return Ok(None) };
    match flag {
        0 => {}
        1 => return Err(Status::new(Code::Unimplemented, "compressed requests are not supported")),
        _ => return Err(Status::new(Code::Internal, "the request is not framed as gRPC")),
    }
    let length = u32::from_be_bytes([a, b, c, d]) as usize;
    if length > MAX_REQUEST {
        let message = format!("the request message is larger than {MAX_REQUEST} bytes");
        return Err(Status::new(Code::ResourceExhausted, message));
    }
    match message.len() {
        got if got < length => Ok(None),
        got if got > length => Err(Status::new(Code::Internal, "the request holds more than one message")),
        _ => Ok(Some(Bytes::copy_from_slice(message))),
    }
}

struct Wiped(Zeroizing<Vec<u8>>);

impl AsRef<[u8]> for Wiped {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

/// Reads a request. Unknown fields are tolerated, what is no message is not.
pub(crate) fn decode<M: Message + Default>(message: Bytes) -> Result<M, Status> {
    M::decode(message).map_err(|_| Status::new(Code::Internal, "the request message cannot be decoded"))
}

/// These bytes, which are wiped when the last copy of them is dropped.
pub(crate) fn wiped(bytes: Vec<u8>) -> Bytes {
    Bytes::from_owner(Wiped(Zeroizing::new(bytes)))
}

/// One message as gRPC carries it: not compressed, length, bytes. The buffer never grows, so that no copy of
/// a key stays behind.
pub(crate) fn frame(message: &impl Message) -> Bytes {
    let length = message.encoded_len();
    let mut out = Zeroizing::new(Vec::with_capacity(length + 5));
    out.push(0);
    // A message of 4 GiB cannot be made of bounded chains and bundles.
    out.extend_from_slice(&u32::try_from(length).unwrap_or(u32::MAX).to_be_bytes());
    message.encode_raw(&mut *out);
    Bytes::from_owner(Wiped(out))
}

#[cfg(test)]
mod tests {
    use http_body_util::Full;

    use super::*;

    fn read(bytes: &[u8]) -> Result<Bytes, Code> {
        let body = Full::new(Bytes::copy_from_slice(bytes));
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(read_message(body)).map_err(|status| status.code)
    }

    #[test]
    fn messages() {
        assert_eq!(read(&[0, 0, 0, 0, 0]), Ok(Bytes::new()));
        assert_eq!(read(&[0, 0, 0, 0, 2, 8, 1]), Ok(Bytes::from_static(&[8, 1])));
        assert_eq!(read(&[]), Err(Code::Internal));
        assert_eq!(read(&[0, 0, 0]), Err(Code::Internal));
        assert_eq!(read(&[0, 0, 0, 0, 2, 8]), Err(Code::Internal));
        assert_eq!(read(&[0, 0, 0, 0, 0, 0]), Err(Code::Internal));
        assert_eq!(read(&[9, 0, 0, 0, 0]), Err(Code::Internal));
        assert_eq!(read(&[1, 0, 0, 0, 0]), Err(Code::Unimplemented));
        assert_eq!(read(&[0, 0, 0, 16, 1]), Err(Code::ResourceExhausted));
        assert_eq!(read(&[0, 255, 255, 255, 255, 1]), Err(Code::ResourceExhausted));
        assert_eq!(read(&[0; 5000]), Err(Code::ResourceExhausted));
    }

    proptest::proptest! {
        #[test]
        fn no_bytes_panic(bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..64)) {
            let _ = read(&bytes);
        }
    }
}
