//! Tokens of pods: nothing that the issuer has not signed proves anything, and of what it has signed only
//! what has all claims of Kubernetes, for us, now.

use std::sync::{Arc, LazyLock};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use arbitrary::{Result, Unstructured};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use seamount_agent::config::KEYS_MAX_AGE;
use seamount_pod_token::{Claims, Keys, Metrics, Options, Token, TokenError, TokenVerifier};
use seamount_telemetry::readiness::Readiness;
use seamount_testkit::issuer::{self, Algorithm, TokenIssuer};
use serde_json::{Value, json};
use tokio::runtime::Runtime;
use tokio_util::sync::CancellationToken;

use crate::input::{self, Patches};
use crate::world::memory_file;

pub const ISSUER: &str = "https://kubernetes.default.svc";
pub const AUDIENCE: &str = "seamount.dev";
/// 2026-11-21, in seconds: the fuzzer's clock stands still.
const NOW: u64 = 1_795_219_200;

pub static RUNTIME: LazyLock<Runtime> =
    LazyLock::new(|| tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap());
pub static ISSUED_BY: LazyLock<TokenIssuer> =
    LazyLock::new(|| TokenIssuer::with_algorithm(ISSUER, Algorithm::Es256));
static VERIFIER: LazyLock<TokenVerifier> =
    LazyLock::new(|| verifier(&memory_file(ISSUED_BY.jwks_json().as_bytes()).keep()));

/// A verifier whose keys are in this file.
pub fn verifier(path: &std::path::Path) -> TokenVerifier {
    let options = Options {
        audience: AUDIENCE.to_owned(),
        issuers: vec![ISSUER.to_owned()],
        keys: Keys::File(path.to_owned()),
        keys_max_age: KEYS_MAX_AGE,
    };
    let (metrics, readiness) = (Arc::new(Metrics::default()), Arc::new(Readiness::default()));
    TokenVerifier::with_clock(&options, metrics, readiness, CancellationToken::new(), Arc::new(now))
}

pub fn now() -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(NOW)
}

/// Good claims.
pub fn claims() -> Value {
    let claims = issuer::Claims { issued_at: now(), ..issuer::Claims::default() };
    ISSUED_BY.claims_json(&claims)
}

/// 0: a token as it is. 1: a header (`KID` in it becomes our key's id), a zero byte and a payload as they
/// are, signed. 2: good claims, changed, then signed.
/// 3: a good token, then changed.
pub fn run(data: &[u8]) {
    let (kind, rest) = input::kind(data, 4);
    let _ = match kind {
        0 => {
            if let Ok(text) = str::from_utf8(rest) {
                assert!(verify(text).is_err(), "a token that nobody signed");
            }
            Ok(())
        }
        1 => {
            let mut parts = rest.splitn(2, |b| *b == 0);
            let header =
                String::from_utf8_lossy(parts.next().unwrap_or_default()).replace("KID", ISSUED_BY.kid());
            signed(header.as_bytes(), parts.next().unwrap_or_default());
            Ok(())
        }
        2 => changed(&mut Unstructured::new(rest)),
        _ => forged(&mut Unstructured::new(rest)),
    };
}

fn verify(text: &str) -> std::result::Result<Claims, TokenError> {
    let token = Token::new(text.to_owned());
    let verified = RUNTIME.block_on(VERIFIER.verify(&token, now()));
    if let Err(why) = &verified {
        let message = why.to_string();
        assert!(message.len() < 1024 && !message.chars().any(char::is_control));
        assert!(text.len() < 32 || !message.contains(text));
        assert!(!matches!(why, TokenError::KeysUnavailable(_)), "{why}");
    }
    verified
}

fn signed(header: &[u8], payload: &[u8]) {
    judge(&ISSUED_BY.token_of_parts(header, payload), header, payload);
}

/// If it passes, then because every claim is there.
fn judge(token: &str, header: &[u8], payload: &[u8]) {
    let Ok(claims) = verify(token) else { return };
    // What is passed over may be more than a `Value` holds, and an array of the fields is read like an
    // object.
    let object = |bytes| serde_json::from_slice(bytes).ok().filter(Value::is_object);
    let (Some(header), Some(payload)) = (object(header), object(payload)) else { return };
    assert_eq!((&header["alg"], &header["kid"]), (&json!("ES256"), &json!(ISSUED_BY.kid())));
    assert!(header.get("crit").is_none() && header.get("b64").is_none());
    assert_eq!(payload["iss"], ISSUER);
    let audiences =
        payload["aud"].as_array().map_or_else(|| vec![&payload["aud"]], |all| all.iter().collect());
    assert!(audiences.contains(&&json!(AUDIENCE)));
    let exp = payload["exp"].as_u64().unwrap();
    assert!(exp + 30 > NOW && payload["nbf"].as_u64().is_none_or(|nbf| nbf <= NOW + 30));
    assert_eq!(claims.expires, UNIX_EPOCH + Duration::from_secs(exp));
    let text = |pointer: &str| payload.pointer(pointer).and_then(Value::as_str).filter(|t| !t.is_empty());
    for (pointer, claim) in [
        ("/kubernetes.io/namespace", &claims.namespace),
        ("/kubernetes.io/serviceaccount/name", &claims.service_account),
        ("/kubernetes.io/serviceaccount/uid", &claims.service_account_uid),
        ("/kubernetes.io/pod/name", &claims.pod_name),
        ("/kubernetes.io/pod/uid", &claims.pod_uid),
        ("/kubernetes.io/node/name", &claims.node),
    ] {
        let within = pointer.rsplit_once('/').and_then(|(parent, _)| payload.pointer(parent));
        if !within.is_some_and(Value::is_array) {
            assert_eq!(text(pointer), Some(claim.as_str()), "{pointer}");
        }
    }
    let subject = format!("system:serviceaccount:{}:{}", claims.namespace, claims.service_account);
    assert_eq!(text("/sub"), Some(subject.as_str()));
}

fn value(u: &mut Unstructured<'_>) -> Result<Value> {
    Ok(match u.int_in_range(0..=8u8)? {
        0 => Value::Null,
        1 => u.arbitrary::<bool>()?.into(),
        2 => u.arbitrary::<i64>()?.into(),
        3 => (NOW + u64::from(u.arbitrary::<u8>()?)).into(),
        4 => (NOW - u64::from(u.arbitrary::<u8>()?)).into(),
        5 => u.arbitrary::<String>()?.into(),
        6 => json!([AUDIENCE, u.arbitrary::<String>()?]),
        7 => json!({"name": u.arbitrary::<String>()?, "uid": u.arbitrary::<String>()?}),
        _ => u.arbitrary::<u64>()?.into(),
    })
}

fn changed(u: &mut Unstructured<'_>) -> Result<()> {
    let mut payload = claims();
    let mut header = json!({"alg": "ES256", "kid": ISSUED_BY.kid()});
    const CLAIMS: [&str; 12] = [
        "/iss",
        "/aud",
        "/exp",
        "/nbf",
        "/sub",
        "/kubernetes.io",
        "/kubernetes.io/namespace",
        "/kubernetes.io/pod",
        "/kubernetes.io/pod/uid",
        "/kubernetes.io/node",
        "/kubernetes.io/serviceaccount",
        "/kubernetes.io/serviceaccount/name",
    ];
    const FIELDS: [&str; 5] = ["alg", "kid", "typ", "crit", "b64"];
    for _ in 0..u.int_in_range(0..=3u8)? {
        if u.ratio(1, 4)? {
            header[*u.choose(&FIELDS)?] = value(u)?;
        } else if let Some(place) = payload.pointer_mut(u.choose(&CLAIMS)?) {
            *place = value(u)?;
        }
    }
    let (header, payload) = (header.to_string(), payload.to_string());
    judge(
        &ISSUED_BY.token_of_parts(header.as_bytes(), payload.as_bytes()),
        header.as_bytes(),
        payload.as_bytes(),
    );
    Ok(())
}

fn forged(u: &mut Unstructured<'_>) -> Result<()> {
    let good = ISSUED_BY.token_from_json(&claims());
    assert!(verify(&good).is_ok());
    let mut bytes = good.clone().into_bytes();
    u.arbitrary::<Patches>()?.apply(&mut bytes);
    let Ok(text) = String::from_utf8(bytes) else { return Ok(()) };
    if verify(&text).is_ok() {
        // The last character of a base64url text has unused bits, which are checked; so only the very same
        // passes.
        let signature = |t: &str| URL_SAFE_NO_PAD.decode(t.rsplit('.').next().unwrap_or_default()).ok();
        assert_eq!(
            (signature(&text), text.rsplit_once('.').map(|p| p.0)),
            (signature(&good), good.rsplit_once('.').map(|p| p.0))
        );
    }
    Ok(())
}
