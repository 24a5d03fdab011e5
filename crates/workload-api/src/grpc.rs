//! gRPC over HTTP/2: what says that a request is one, and how a response begins.

use http::{HeaderMap, HeaderValue, StatusCode, header::CONTENT_TYPE};

use crate::{body::Body, status::Status};

const GRPC: HeaderValue = HeaderValue::from_static("application/grpc");

impl Status {
    /// A response of headers alone ("trailers-only").
    pub(crate) fn response(&self) -> http::Response<Body> {
        let mut response = http::Response::new(Body::Empty);
        *response.headers_mut() = self.trailers();
        response.headers_mut().insert(CONTENT_TYPE, GRPC);
        response
    }

    /// The same with an HTTP status, for requests that are not gRPC.
    pub(crate) fn response_with(&self, status: StatusCode) -> http::Response<Body> {
        let mut response = self.response();
        *response.status_mut() = status;
        response
    }
}

/// The beginning of an answer with messages.
pub(crate) fn streaming(body: Body) -> http::Response<Body> {
    let mut response = http::Response::new(body);
    response.headers_mut().insert(CONTENT_TYPE, GRPC);
    response
}

/// Whether the content type is gRPC's: `application/grpc`, alone or with `+…` or `;…`.
pub(crate) fn is_grpc(headers: &HeaderMap) -> bool {
    let value = headers.get(CONTENT_TYPE).map(HeaderValue::as_bytes).unwrap_or_default();
    match value.strip_prefix(b"application/grpc") {
        Some([]) => true,
        Some([next, ..]) => matches!(next, b'+' | b';'),
        None => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::status::Code;

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
}
