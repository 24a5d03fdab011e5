//! SPIFFE IDs and trust domains (SPIFFE-ID standard, §2).

use std::{fmt, str::FromStr, sync::Arc};

/// Longest SPIFFE ID in bytes that every implementation must support (SPIFFE-ID §2.3). Longer ones are
/// refused, because other implementations might not be able to read them.
pub const MAX_ID_BYTES: usize = 2048;

/// Longest trust domain name in bytes (SPIFFE-ID §2.1: the host part of a URI, RFC 3986 §3.2.2).
pub const MAX_TRUST_DOMAIN_BYTES: usize = 255;

/// Why a string is not a SPIFFE ID or trust domain. The message quotes at most 80 characters of it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IdError {
    /// Longer than the standard's limit.
    #[error("SPIFFE ID has {bytes} bytes; at most {MAX_ID_BYTES} are allowed: shorten its path")]
    TooLong {
        /// Its length.
        bytes: usize,
    },
    /// Not `spiffe://…`.
    #[error("{id:?} is not a SPIFFE ID: it must begin with spiffe://")]
    Scheme {
        /// The beginning of the string.
        id: String,
    },
    /// The trust domain is empty.
    #[error("the trust domain is empty: give a name such as example.org")]
    EmptyTrustDomain,
    /// The trust domain is too long.
    #[error("the trust domain has {bytes} bytes; at most {MAX_TRUST_DOMAIN_BYTES} are allowed")]
    TrustDomainTooLong {
        /// Its length.
        bytes: usize,
    },
    /// A character that a trust domain cannot have; user, port and percent-encoding come here too.
    #[error("trust domain {name:?} holds {character:?}; only a-z, 0-9, '.', '-' and '_' are allowed")]
    TrustDomainCharacter {
        /// The beginning of the name.
        name: String,
        /// The first offender.
        character: char,
    },
    /// A character that a path cannot have; query, fragment and percent-encoding come here too.
    #[error(
        "path {path:?} of the SPIFFE ID holds {character:?}; only A-Z, a-z, 0-9, '.', '-' and '_' are allowed \
         in a segment"
    )]
    PathCharacter {
        /// The beginning of the path.
        path: String,
        /// The first offender.
        character: char,
    },
    /// `//` or a slash at the end.
    #[error("path {path:?} of the SPIFFE ID has an empty segment: remove the doubled or trailing slash")]
    EmptySegment {
        /// The beginning of the path.
        path: String,
    },
    /// `.` or `..` as a segment.
    #[error("path {path:?} of the SPIFFE ID has a segment that is '.' or '..', which is not allowed")]
    DotSegment {
        /// The beginning of the path.
        path: String,
    },
    /// A path that does not begin with a slash.
    #[error("path {path:?} of a SPIFFE ID must begin with '/'")]
    RelativePath {
        /// The beginning of the path.
        path: String,
    },
}

/// The beginning of a string that a message may quote.
fn quote(text: &str) -> String {
    text.chars().take(80).collect()
}

/// A trust domain's name, in lower case, for example `example.org` (SPIFFE-ID §2.1).
///
/// Parsing accepts upper case and stores lower case, because trust domains compare without regard to it.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TrustDomain(Arc<str>);

impl TrustDomain {
    /// The name, for example `example.org`.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The trust domain's own ID, `spiffe://<name>`, without a path.
    pub fn id(&self) -> SpiffeId {
        SpiffeId { text: format!("{PREFIX}{}", self.0).into(), trust_domain: self.clone() }
    }
}

impl FromStr for TrustDomain {
    type Err = IdError;

    fn from_str(name: &str) -> Result<Self, IdError> {
        if name.is_empty() {
            return Err(IdError::EmptyTrustDomain);
        }
        if name.len() > MAX_TRUST_DOMAIN_BYTES {
            return Err(IdError::TrustDomainTooLong { bytes: name.len() });
        }
        let allowed = |c: &char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
        if let Some(character) = name.chars().find(|c| !allowed(c)) {
            return Err(IdError::TrustDomainCharacter { name: quote(name), character });
        }
        Ok(Self(name.to_ascii_lowercase().into()))
    }
}

impl fmt::Display for TrustDomain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for TrustDomain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TrustDomain({})", self.0)
    }
}

const PREFIX: &str = "spiffe://";

/// A SPIFFE ID, for example `spiffe://example.org/ns/shop/sa/cart` (SPIFFE-ID §2). Scheme and trust domain
/// are in lower case.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SpiffeId {
    text: Arc<str>,
    trust_domain: TrustDomain,
}

impl SpiffeId {
    /// An ID from its parts; `path` is empty or begins with a slash.
    pub fn new(trust_domain: &TrustDomain, path: &str) -> Result<Self, IdError> {
        check_path(path)?;
        let text = format!("{PREFIX}{trust_domain}{path}");
        if text.len() > MAX_ID_BYTES {
            return Err(IdError::TooLong { bytes: text.len() });
        }
        Ok(Self { text: text.into(), trust_domain: trust_domain.clone() })
    }

    /// The whole ID.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// The trust domain.
    pub fn trust_domain(&self) -> &TrustDomain {
        &self.trust_domain
    }

    /// The path with its leading slash; empty for a trust domain's own ID.
    pub fn path(&self) -> &str {
        self.text.get(PREFIX.len() + self.trust_domain.0.len()..).unwrap_or_default()
    }

    /// Whether this names a trust domain and no workload.
    pub fn is_trust_domain(&self) -> bool {
        self.path().is_empty()
    }
}

/// The rules of SPIFFE-ID §2.2 for a path.
fn check_path(path: &str) -> Result<(), IdError> {
    if path.is_empty() {
        return Ok(());
    }
    let Some(segments) = path.strip_prefix('/') else {
        return Err(IdError::RelativePath { path: quote(path) });
    };
    for segment in segments.split('/') {
        if segment.is_empty() {
            return Err(IdError::EmptySegment { path: quote(path) });
        }
        if matches!(segment, "." | "..") {
            return Err(IdError::DotSegment { path: quote(path) });
        }
        if let Some(character) = segment.chars().find(|c| !is_segment_character(*c)) {
            return Err(IdError::PathCharacter { path: quote(path), character });
        }
    }
    Ok(())
}

/// Whether a path segment may hold this character (SPIFFE-ID §2.2).
pub fn is_segment_character(c: char) -> bool {
    c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_')
}

impl FromStr for SpiffeId {
    type Err = IdError;

    fn from_str(text: &str) -> Result<Self, IdError> {
        if text.len() > MAX_ID_BYTES {
            return Err(IdError::TooLong { bytes: text.len() });
        }
        let rest = match text.split_at_checked(PREFIX.len()) {
            Some((scheme, rest)) if scheme.eq_ignore_ascii_case(PREFIX) => rest,
            _ => return Err(IdError::Scheme { id: quote(text) }),
        };
        let (name, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
        Self::new(&name.parse()?, path)
    }
}

impl fmt::Display for SpiffeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl fmt::Debug for SpiffeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SpiffeId({})", self.text)
    }
}

#[cfg(test)]
mod tests;
