//! How a gRPC call ends.

use http::{HeaderMap, HeaderName, HeaderValue};

const GRPC_STATUS: HeaderName = HeaderName::from_static("grpc-status");
const GRPC_MESSAGE: HeaderName = HeaderName::from_static("grpc-message");

/// gRPC status codes that are used here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Code {
    Ok = 0,
    InvalidArgument = 3,
    DeadlineExceeded = 4,
    NotFound = 5,
    PermissionDenied = 7,
    ResourceExhausted = 8,
    Unimplemented = 12,
    Internal = 13,
    Unavailable = 14,
}

/// How a call ends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Status {
    pub(crate) code: Code,
    pub(crate) message: String,
}

impl Status {
    pub(crate) fn new(code: Code, message: impl Into<String>) -> Self {
        Self { code, message: message.into() }
    }

    /// The end of a call that got its answer.
    pub(crate) fn ok() -> Self {
        Self::new(Code::Ok, "")
    }

    /// The trailers that carry it.
    pub(crate) fn trailers(&self) -> HeaderMap {
        let mut trailers = HeaderMap::with_capacity(2);
        trailers.insert(GRPC_STATUS, HeaderValue::from(self.code as u16));
        if !self.message.is_empty()
            && let Ok(message) = HeaderValue::try_from(percent_encode(&self.message))
        {
            trailers.insert(GRPC_MESSAGE, message);
        }
        trailers
    }
}

/// A call that is not answered.
#[derive(Debug)]
pub(crate) struct Refusal {
    /// What the observer is told.
    pub(crate) why: &'static str,
    /// What the client is told.
    pub(crate) status: Status,
}

impl Refusal {
    /// `why` is one of the observer's fixed set.
    pub(crate) fn new(why: &'static str, status: Status) -> Self {
        Self { why, status }
    }
}

/// `grpc-message` is percent-encoded except for printable ASCII (gRPC over HTTP2, "Status-Message").
fn percent_encode(message: &str) -> String {
    let mut out = String::with_capacity(message.len());
    for byte in message.bytes() {
        match byte {
            b' '..=b'~' if byte != b'%' => out.push(char::from(byte)),
            _ => out.push_str(&format!("%{byte:02X}")),
        }
    }
    out
}
