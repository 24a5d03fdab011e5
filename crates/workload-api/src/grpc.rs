//! As much of gRPC over HTTP/2 as one request message and a stream of responses need.

use bytes::{Buf as _, Bytes};
use http::{HeaderMap, HeaderValue, StatusCode, header::CONTENT_TYPE};
use http_body::Body as HttpBody;
use http_body_util::BodyExt as _;

use super::body::Body;
use super::status::{Code, Status};

/// The largest request message; real ones are empty.
pub(super) const MAX_REQUEST: usize = 4 * 1024;

const GRPC: HeaderValue = HeaderValue::from_static("application/grpc");

impl Status {
    /// A response of headers alone ("trailers-only").
    pub(super) fn response(&self) -> http::Response<Body> {
        let mut response = http::Response::new(Body::Empty);
        *response.headers_mut() = self.trailers();
        response.headers_mut().insert(CONTENT_TYPE, GRPC);
        response
    }

    /// The same with an HTTP status, for requests that are not gRPC.
    pub(super) fn response_with(&self, status: StatusCode) -> http::Response<Body> {
        let mut response = self.response();
        *response.status_mut() = status;
        response
    }
}

/// The beginning of an answer with messages.
pub(super) fn streaming(body: Body) -> http::Response<Body> {
    let mut response = http::Response::new(body);
    response.headers_mut().insert(CONTENT_TYPE, GRPC);
    response
}

/// Whether the content type is gRPC's: `application/grpc`, alone or with `+…` or `;…`.
pub(super) fn is_grpc(headers: &HeaderMap) -> bool {
    let value = headers.get(CONTENT_TYPE).map(HeaderValue::as_bytes).unwrap_or_default();
    match value.strip_prefix(b"application/grpc") {
        Some([]) => true,
        Some([next, ..]) => matches!(next, b'+' | b';'),
        None => false,
    }
}

/// Reads exactly one message. What a client sends beyond the bounds is never stored.
pub(super) async fn read_message<B>(mut body: B) -> Result<Bytes, Status>
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

    #[test]
    fn status_messages_are_percent_encoded() {
        let status = Status::new(Code::Unavailable, "100 % größer\n");
        let trailers = status.trailers();
        assert_eq!(trailers["grpc-status"], "14");
        assert_eq!(trailers["grpc-message"], "100 %25 gr%C3%B6%C3%9Fer%0A");
    }

    #[test]
    fn content_types() {
        let is = |value: &'static str| {
            is_grpc(&HeaderMap::from_iter([(CONTENT_TYPE, HeaderValue::from_static(value))]))
        };
        assert!(is("application/grpc") && is("application/grpc+proto") && is("application/grpc;x"));
        assert!(!is("application/grpc-web") && !is("application/json") && !is(""));
        assert!(!is_grpc(&HeaderMap::new()));
    }

    proptest::proptest! {
        #[test]
        fn no_bytes_panic(bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..64)) {
            let _ = read(&bytes);
        }
    }
}
