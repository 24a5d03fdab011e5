//! The token issuer's key set: what is not our issuer's key does not verify our issuer's tokens.

use std::sync::LazyLock;

use seamount_pod_token::{KeySet, KeySetError, MAX_JWKS, Token, TokenError};
use serde_json::{Value, json};

use crate::tokens::{ISSUED_BY, RUNTIME, claims, now, verifier};
use crate::world::memory_file;

static TOKEN: LazyLock<String> = LazyLock::new(|| ISSUED_BY.token_from_json(&claims()));

/// A key set. `KID` in it becomes our issuer's key id, so that its keys are tried.
pub fn run(data: &[u8]) {
    let text = String::from_utf8_lossy(data).replace("KID", ISSUED_BY.kid());
    let set = KeySet::parse(text.as_bytes());
    // What is passed over may be more than a `Value` holds, and an array of the fields is read like an
    // object.
    let value: Option<Value> = serde_json::from_str(&text).ok().filter(Value::is_object);
    if value.is_none() && !matches!(set, Err(KeySetError::Json(_))) {
        return;
    }
    let entries = value.as_ref().and_then(|v| v.get("keys")?.as_array().map(Vec::len));
    match &set {
        Ok(set) => {
            assert!(!set.is_empty() && set.len() <= 64);
            assert!(entries.is_some_and(|all| set.len() <= all && all <= 64));
            // An entry that is not understood changes nothing.
            let mut more = value.clone().unwrap();
            if let Some(keys) = more["keys"].as_array_mut().filter(|keys| keys.len() < 64) {
                keys.push(json!({"kty": "OKP", "crv": "Ed25519", "x": "AAAA"}));
                assert_eq!(KeySet::parse(more.to_string().as_bytes()).map(|s| s.len()), Ok(set.len()));
            }
        }
        Err(KeySetError::TooMany(total)) => assert_eq!(entries, Some(*total)),
        Err(KeySetError::NoneUsable { total, .. }) => assert_eq!(entries, Some(*total)),
        Err(KeySetError::Json(why)) => assert!(!why.is_empty()),
    }
    let file = memory_file(text.as_bytes());
    let verified = RUNTIME.block_on(verifier(file.path()).verify(&Token::new(TOKEN.clone()), now()));
    match verified {
        Ok(_) => {
            let keys: Value = serde_json::from_str(&ISSUED_BY.jwks_json()).unwrap();
            let coordinate = |name: &str| keys["keys"][0][name].as_str().unwrap().to_owned();
            assert!(text.contains(&coordinate("x")) && text.contains(&coordinate("y")));
        }
        Err(TokenError::KeysUnavailable(_)) => assert!(set.is_err() || text.len() > MAX_JWKS),
        Err(_) => assert!(set.is_ok()),
    }
}
