//! The pure part: is this token genuine, valid now, for us, and bound to a pod?

use std::time::{Duration, SystemTime};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::Deserialize;
use zeroize::Zeroizing;

use super::Token;
use super::error::{MAX_TOKEN, TokenError};
use super::keys::{Algorithm, KeySet};

/// How far the clocks of API server and node may differ.
pub const LEEWAY: Duration = Duration::from_secs(30);

/// What a verified token says (Kubernetes `kubernetes.io` private claims of a bound service-account token).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Claims {
    /// Namespace of pod and service account.
    pub namespace: String,
    /// The service account's name.
    pub service_account: String,
    /// The service account's UID.
    pub service_account_uid: String,
    /// The pod's name.
    pub pod_name: String,
    /// The pod's UID.
    pub pod_uid: String,
    /// Name of the node that the pod is bound to.
    pub node: String,
    /// From `iat`, else `nbf`; the epoch where the token has neither. Of two tokens of a pod the later one is
    /// the newer.
    pub issued: SystemTime,
    /// From `exp`.
    pub expires: SystemTime,
}

/// RFC 7515 §4.1. serde refuses a repeated field of these; other fields do not matter.
#[derive(Deserialize)]
struct Header {
    alg: String,
    kid: Option<String>,
    typ: Option<String>,
    /// Present at all (even null) is too much: nothing critical is understood here.
    #[serde(default, deserialize_with = "present")]
    crit: bool,
    /// RFC 7797: an unencoded payload.
    #[serde(default, deserialize_with = "present")]
    b64: bool,
}

fn present<'de, D: serde::Deserializer<'de>>(d: D) -> Result<bool, D::Error> {
    serde::de::IgnoredAny::deserialize(d).map(|_| true)
}

#[derive(Deserialize)]
struct Payload {
    iss: Option<String>,
    aud: Option<Audience>,
    exp: Option<u64>,
    iat: Option<u64>,
    nbf: Option<u64>,
    sub: Option<String>,
    #[serde(rename = "kubernetes.io")]
    kubernetes: Option<Kubernetes>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Audience {
    One(String),
    Many(Vec<String>),
}

#[derive(Deserialize)]
struct Kubernetes {
    namespace: Option<String>,
    serviceaccount: Option<Reference>,
    pod: Option<Reference>,
    node: Option<Reference>,
}

#[derive(Deserialize)]
struct Reference {
    name: Option<String>,
    uid: Option<String>,
}

/// Checks a token against the issuer's keys, and where there is a `now` whether it is valid then. Pure.
pub(super) fn check(
    token: &Token,
    keys: &KeySet,
    issuers: &[String],
    audience: &str,
    now: Option<SystemTime>,
) -> Result<Claims, TokenError> {
    judge(token, Some(keys), issuers, audience, now)
}

/// What a token says of itself. Nothing of it is proved: anything may have written it.
pub(super) fn claimed(token: &Token, issuers: &[String], audience: &str) -> Result<Claims, TokenError> {
    judge(token, None, issuers, audience, None)
}

fn judge(
    token: &Token,
    keys: Option<&KeySet>,
    issuers: &[String],
    audience: &str,
    now: Option<SystemTime>,
) -> Result<Claims, TokenError> {
    let text = token.expose();
    if text.len() > MAX_TOKEN {
        return Err(TokenError::TooLong(text.len()));
    }
    let (message, signature) = text.rsplit_once('.').ok_or(TokenError::Malformed("not three parts"))?;
    let (header, payload) = message.split_once('.').ok_or(TokenError::Malformed("not three parts"))?;
    if payload.contains('.') {
        return Err(TokenError::Malformed("not three parts"));
    }

    let header = decode(header, "the header is not base64url")?;
    let header: Header = serde_json::from_slice(&header)
        .map_err(|_| TokenError::Malformed("the header is not a JSON object with one `alg`"))?;
    if header.crit {
        return Err(TokenError::Header("crit"));
    }
    if header.b64 {
        return Err(TokenError::Header("b64"));
    }
    if header.typ.is_some_and(|t| !t.eq_ignore_ascii_case("JWT")) {
        return Err(TokenError::Header("typ"));
    }
    let algorithm = Algorithm::named(&header.alg).ok_or(TokenError::Algorithm)?;
    // RFC 7515 §5.2: nothing of the payload is looked at before the signature.
    if let Some(keys) = keys {
        keys.verify(header.kid.as_deref(), algorithm, message, signature)?;
    }

    let payload = decode(payload, "the payload is not base64url")?;
    let payload: Payload = serde_json::from_slice(&payload)
        .map_err(|_| TokenError::Malformed("the payload is not a JSON object of Kubernetes' form"))?;
    claims(payload, issuers, audience, now)
}

fn decode(part: &str, what: &'static str) -> Result<Zeroizing<Vec<u8>>, TokenError> {
    URL_SAFE_NO_PAD.decode(part).map(Zeroizing::new).map_err(|_| TokenError::Malformed(what))
}

fn claims(
    payload: Payload,
    issuers: &[String],
    audience: &str,
    now: Option<SystemTime>,
) -> Result<Claims, TokenError> {
    if !payload.iss.as_ref().is_some_and(|iss| issuers.contains(iss)) {
        let expected: Vec<_> = issuers.iter().map(|issuer| format!("{issuer:?}")).collect();
        return Err(TokenError::Issuer { expected: expected.join(" or ") });
    }
    let ours = match &payload.aud {
        Some(Audience::One(one)) => one == audience,
        Some(Audience::Many(many)) => many.iter().any(|one| one == audience),
        None => false,
    };
    if !ours {
        return Err(TokenError::Audience { expected: audience.to_owned() });
    }

    let exp = payload.exp.ok_or(TokenError::Claim("exp"))?;
    if let Some(now) = now {
        let now = now.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |d| d.as_secs());
        let leeway = LEEWAY.as_secs();
        if exp.saturating_add(leeway) <= now {
            return Err(TokenError::Expired(now.saturating_sub(exp)));
        }
        if let Some(nbf) = payload.nbf
            && nbf > now.saturating_add(leeway)
        {
            return Err(TokenError::NotYetValid(nbf.saturating_sub(now)));
        }
    }
    let at = |seconds| SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(seconds));
    let expires = at(exp).ok_or(TokenError::Claim("exp"))?;
    let issued = at(payload.iat.or(payload.nbf).unwrap_or_default()).ok_or(TokenError::Claim("iat"))?;

    let kubernetes = payload.kubernetes.ok_or(TokenError::Claim("kubernetes.io"))?;
    let namespace = required(kubernetes.namespace, "kubernetes.io.namespace")?;
    let account = kubernetes.serviceaccount.ok_or(TokenError::Claim("kubernetes.io.serviceaccount"))?;
    let pod = kubernetes.pod.ok_or(TokenError::Claim("kubernetes.io.pod"))?;
    let node = kubernetes.node.ok_or(TokenError::Claim("kubernetes.io.node"))?;
    let claims = Claims {
        service_account: required(account.name, "kubernetes.io.serviceaccount.name")?,
        service_account_uid: required(account.uid, "kubernetes.io.serviceaccount.uid")?,
        pod_name: required(pod.name, "kubernetes.io.pod.name")?,
        pod_uid: required(pod.uid, "kubernetes.io.pod.uid")?,
        node: required(node.name, "kubernetes.io.node.name")?,
        namespace,
        issued,
        expires,
    };
    let subject = format!("system:serviceaccount:{}:{}", claims.namespace, claims.service_account);
    if payload.sub.as_deref() != Some(subject.as_str()) {
        return Err(TokenError::Claim("sub"));
    }
    Ok(claims)
}

fn required(value: Option<String>, name: &'static str) -> Result<String, TokenError> {
    value.filter(|v| !v.is_empty()).ok_or(TokenError::Claim(name))
}
