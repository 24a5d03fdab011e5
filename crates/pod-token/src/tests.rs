use std::time::{Duration, SystemTime};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use proptest::prelude::*;
use seamount_testkit::issuer::{self, Algorithm, TokenIssuer};
use serde_json::{Value, json};

use super::check::check;
use super::*;

const ISSUER: &str = "https://kubernetes.default.svc";
const AUDIENCE: &str = "seamount.dev";

fn issuer() -> TokenIssuer {
    TokenIssuer::with_algorithm(ISSUER, Algorithm::Es256)
}

fn keys(issuer: &TokenIssuer) -> KeySet {
    KeySet::parse(issuer.jwks_json().as_bytes()).unwrap()
}

fn judge(issuer: &TokenIssuer, token: String) -> Result<Claims, TokenError> {
    check(&Token::new(token), &keys(issuer), &[ISSUER.to_owned()], AUDIENCE, Some(SystemTime::now()))
}

fn with(change: impl FnOnce(&mut Value)) -> Result<Claims, TokenError> {
    let issuer = issuer();
    let mut claims = issuer.claims_json(&issuer::Claims::default());
    change(&mut claims);
    judge(&issuer, issuer.token_from_json(&claims))
}

fn with_header(header: Value) -> Result<Claims, TokenError> {
    let issuer = issuer();
    let mut full = json!({"alg": "ES256", "kid": issuer.kid()});
    full.as_object_mut().unwrap().extend(header.as_object().unwrap().clone());
    let claims = issuer.claims_json(&issuer::Claims::default());
    judge(&issuer, issuer.token_with_header(&full, &claims))
}

#[test]
fn a_true_token_tells_who_the_pod_is() {
    for algorithm in [Algorithm::Es256, Algorithm::Rs256] {
        let issuer = TokenIssuer::with_algorithm(ISSUER, algorithm);
        let said = issuer::Claims {
            namespace: "shop".into(),
            service_account: "cart".into(),
            pod_name: "cart-0".into(),
            node: "node-7".into(),
            ..issuer::Claims::default()
        };
        let claims = judge(&issuer, issuer.token(&said)).unwrap();
        assert_eq!(claims.namespace, "shop");
        assert_eq!(claims.service_account, "cart");
        assert!(!claims.service_account_uid.is_empty());
        assert_eq!(claims.pod_name, "cart-0");
        assert_eq!(claims.pod_uid, said.pod_uid);
        assert_eq!(claims.node, "node-7");
        let left = claims.expires.duration_since(SystemTime::now()).unwrap();
        assert!(left > Duration::from_secs(3000) && left <= Duration::from_secs(3600), "{left:?}");
    }
}

#[test]
fn a_malformed_token_is_refused() {
    let token = issuer().token(&issuer::Claims::default());
    let (signed, signature) = token.rsplit_once('.').unwrap();
    let (header, payload) = signed.split_once('.').unwrap();
    for bad in [
        String::new(),
        ".".into(),
        "..".into(),
        "a.b.c".into(),
        header.into(),
        signed.into(),
        format!("{token}.x"),
        format!("{token}.x.y"),
        format!("{header}.{payload}=.{signature}"),
        format!("é.{payload}.{signature}"),
        format!("{}.{payload}.{signature}", URL_SAFE_NO_PAD.encode("[]")),
        format!("{}.{payload}.{signature}", URL_SAFE_NO_PAD.encode("{}")),
        format!("{}.{payload}.{signature}", URL_SAFE_NO_PAD.encode(r#"{"alg":"ES256","alg":"ES256"}"#)),
        format!("{}.{payload}.{signature}", URL_SAFE_NO_PAD.encode(r#"{"alg":7}"#)),
    ] {
        let refused = judge(&issuer(), bad.clone());
        assert!(
            matches!(refused, Err(TokenError::Malformed(_) | TokenError::UnknownKey)),
            "{bad:?} gave {refused:?}"
        );
    }
}

#[test]
fn an_oversized_token_is_refused_unread() {
    assert_eq!(judge(&issuer(), "a".repeat(MAX_TOKEN + 1)), Err(TokenError::TooLong(MAX_TOKEN + 1)));
}

#[test]
fn an_expired_token_is_refused() {
    let issuer = issuer();
    let refused = judge(&issuer, issuer.expired(&issuer::Claims::default()));
    assert!(matches!(refused, Err(TokenError::Expired(s)) if s >= 3600), "{refused:?}");
}

#[test]
fn a_token_of_the_future_is_refused() {
    let issuer = issuer();
    let refused = judge(&issuer, issuer.not_yet_valid(&issuer::Claims::default()));
    assert!(matches!(refused, Err(TokenError::NotYetValid(s)) if s > 3500), "{refused:?}");
}

#[test]
fn clocks_may_differ_by_the_leeway_and_no_more() {
    let (issuer, start) = (issuer(), SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000));
    let lifetime = Duration::from_secs(600);
    let claims = issuer::Claims { issued_at: start, lifetime, ..issuer::Claims::default() };
    let token = Token::new(issuer.token(&claims));
    let at = |now| check(&token, &keys(&issuer), &[ISSUER.to_owned()], AUDIENCE, Some(now));
    let second = Duration::from_secs(1);
    assert!(at(start - LEEWAY).is_ok());
    assert_eq!(at(start - LEEWAY - second), Err(TokenError::NotYetValid(LEEWAY.as_secs() + 1)));
    assert!(at(start + lifetime + LEEWAY - second).is_ok());
    assert_eq!(at(start + lifetime + LEEWAY), Err(TokenError::Expired(LEEWAY.as_secs())));
}

#[test]
fn a_foreign_issuer_is_refused() {
    assert!(matches!(with(|c| c["iss"] = json!("https://elsewhere")), Err(TokenError::Issuer { .. })));
    assert!(matches!(with(|c| c["iss"] = json!(null)), Err(TokenError::Issuer { .. })));
    // Another cluster's token, signed with another cluster's key.
    let foreign = TokenIssuer::with_algorithm("https://elsewhere", Algorithm::Es256);
    assert_eq!(judge(&issuer(), foreign.token(&issuer::Claims::default())), Err(TokenError::UnknownKey));
}

#[test]
fn a_token_for_somebody_else_is_refused() {
    for aud in [json!("other"), json!(["other"]), json!([]), json!(null), json!("Seamount.dev")] {
        let refused = with(|c| c["aud"] = aud.clone());
        assert_eq!(refused, Err(TokenError::Audience { expected: AUDIENCE.into() }), "{aud}");
    }
    assert!(with(|c| c["aud"] = json!(AUDIENCE)).is_ok());
    assert!(with(|c| c["aud"] = json!(["other", AUDIENCE])).is_ok());
}

#[test]
fn a_forged_signature_is_refused() {
    for algorithm in [Algorithm::Es256, Algorithm::Rs256] {
        let issuer = TokenIssuer::with_algorithm(ISSUER, algorithm);
        let claims = issuer::Claims::default();
        let changed = issuer
            .forged_with_changed_claims(&claims, |c| c["kubernetes.io"]["pod"]["name"] = json!("another"));
        assert_eq!(judge(&issuer, changed), Err(TokenError::Signature));
        assert_eq!(judge(&issuer, issuer.forged_with_other_key(&claims)), Err(TokenError::Signature));
        let token = issuer.token(&claims);
        let (signed, _) = token.rsplit_once('.').unwrap();
        for signature in ["", "AAAA", "!", &"A".repeat(86)] {
            assert_eq!(
                judge(&issuer, format!("{signed}.{signature}")),
                Err(TokenError::Signature),
                "{signature}"
            );
        }
    }
}

#[test]
fn algorithms_cannot_be_confused() {
    for algorithm in [Algorithm::Es256, Algorithm::Rs256] {
        let issuer = TokenIssuer::with_algorithm(ISSUER, algorithm);
        let claims = issuer::Claims::default();
        assert_eq!(judge(&issuer, issuer.forged_without_signature(&claims)), Err(TokenError::Algorithm));
        assert_eq!(
            judge(&issuer, issuer.forged_with_public_key_as_secret(&claims)),
            Err(TokenError::Algorithm)
        );
    }
    for alg in ["none", "None", "HS256", "HS384", "HS512", "EdDSA", "ES512", "RSA1_5", "dir", "es256", ""] {
        assert_eq!(with_header(json!({"alg": alg})), Err(TokenError::Algorithm), "{alg}");
    }
    // Allowed as such, but not with this key.
    for alg in ["RS256", "PS512", "ES384"] {
        assert_eq!(with_header(json!({"alg": alg})), Err(TokenError::Algorithm), "{alg}");
    }
}

#[test]
fn headers_that_change_the_meaning_are_refused() {
    assert_eq!(with_header(json!({"crit": ["exp"]})), Err(TokenError::Header("crit")));
    assert_eq!(with_header(json!({"crit": []})), Err(TokenError::Header("crit")));
    assert_eq!(with_header(json!({"crit": null})), Err(TokenError::Header("crit")));
    assert_eq!(with_header(json!({"b64": false})), Err(TokenError::Header("b64")));
    assert_eq!(with_header(json!({"typ": "at+jwt"})), Err(TokenError::Header("typ")));
    assert!(with_header(json!({"typ": "JWT"})).is_ok());
}

#[test]
fn a_key_in_the_header_is_not_looked_at() {
    let (ours, theirs) = (issuer(), issuer());
    let set: Value = serde_json::from_str(&theirs.jwks_json()).unwrap();
    let header =
        json!({"alg": "ES256", "kid": ours.kid(), "jwk": set["keys"][0], "jku": "https://elsewhere/jwks"});
    let forged = theirs.token_with_header(&header, &theirs.claims_json(&issuer::Claims::default()));
    assert_eq!(judge(&ours, forged), Err(TokenError::Signature));
}

#[test]
fn every_missing_claim_is_named() {
    for (pointer, name) in [
        ("/exp", "exp"),
        ("/sub", "sub"),
        ("/kubernetes.io", "kubernetes.io"),
        ("/kubernetes.io/namespace", "kubernetes.io.namespace"),
        ("/kubernetes.io/serviceaccount", "kubernetes.io.serviceaccount"),
        ("/kubernetes.io/serviceaccount/name", "kubernetes.io.serviceaccount.name"),
        ("/kubernetes.io/serviceaccount/uid", "kubernetes.io.serviceaccount.uid"),
        ("/kubernetes.io/pod", "kubernetes.io.pod"),
        ("/kubernetes.io/pod/name", "kubernetes.io.pod.name"),
        ("/kubernetes.io/pod/uid", "kubernetes.io.pod.uid"),
        ("/kubernetes.io/node", "kubernetes.io.node"),
        ("/kubernetes.io/node/name", "kubernetes.io.node.name"),
    ] {
        let nothing = with(|c| *c.pointer_mut(pointer).unwrap() = Value::Null);
        assert_eq!(nothing, Err(TokenError::Claim(name)), "{pointer}");
        if name.ends_with("name") || name.ends_with("uid") || name.ends_with("namespace") {
            let empty = with(|c| *c.pointer_mut(pointer).unwrap() = json!(""));
            assert_eq!(empty, Err(TokenError::Claim(name)), "{pointer}");
        }
        let odd = with(|c| *c.pointer_mut(pointer).unwrap() = json!([[1]]));
        assert!(matches!(odd, Err(TokenError::Malformed(_))), "{pointer} gave {odd:?}");
    }
    // A Secret's legacy token has neither pod nor expiry nor audience.
    let legacy = with(|c| {
        let subject = c["sub"].clone();
        *c = json!({"iss": ISSUER, "sub": subject, "aud": AUDIENCE, "exp": u32::MAX,
            "kubernetes.io/serviceaccount/namespace": "default"});
    });
    assert_eq!(legacy, Err(TokenError::Claim("kubernetes.io")));
}

#[test]
fn the_subject_must_fit_the_other_claims() {
    let refused = with(|c| c["sub"] = json!("system:serviceaccount:kube-system:default"));
    assert_eq!(refused, Err(TokenError::Claim("sub")));
}

#[test]
fn times_that_are_none_are_refused() {
    for exp in [json!(-1), json!("soon"), json!(1.5e300)] {
        assert!(matches!(with(|c| c["exp"] = exp.clone()), Err(TokenError::Malformed(_))), "{exp}");
    }
    assert_eq!(with(|c| c["exp"] = json!(u64::MAX)), Err(TokenError::Claim("exp")));
}

mod key_sets {
    use super::*;

    fn one(change: impl FnOnce(&mut Value)) -> Result<KeySet, KeySetError> {
        let mut set: Value = serde_json::from_str(&issuer().jwks_json()).unwrap();
        change(&mut set["keys"][0]);
        KeySet::parse(set.to_string().as_bytes())
    }

    fn reason(result: Result<KeySet, KeySetError>) -> &'static str {
        match result {
            Err(KeySetError::NoneUsable { reason, .. }) => reason,
            Err(other) => panic!("{other}"),
            Ok(_) => panic!("accepted"),
        }
    }

    #[test]
    fn unusable_keys_are_passed_over_with_the_reason() {
        assert!(reason(one(|k| k["use"] = json!("enc"))).contains("use"));
        assert!(reason(one(|k| k["key_ops"] = json!(["encrypt"]))).contains("key_ops"));
        assert!(reason(one(|k| k["alg"] = json!("HS256"))).contains("alg"));
        assert!(reason(one(|k| k["alg"] = json!("ES384"))).contains("fit"));
        assert!(reason(one(|k| k["crv"] = json!("secp256k1"))).contains("crv"));
        assert!(reason(one(|k| k["crv"] = json!("P-384"))).contains("length"));
        assert!(reason(one(|k| k["x"] = json!("AA"))).contains("length"));
        assert!(reason(one(|k| *k = json!({"kty": "oct", "k": "AAAA"}))).contains("kty"));
        assert!(reason(one(|k| *k = json!({}))).contains("kty"));
        assert!(reason(KeySet::parse(br#"{"keys":[]}"#)).contains("empty"));
        for bad in ["", "[]", "{}", r#"{"keys":7}"#] {
            assert!(matches!(KeySet::parse(bad.as_bytes()), Err(KeySetError::Json(_))), "{bad}");
        }
        let many = format!(r#"{{"keys":[{}{{}}]}}"#, "{},".repeat(64));
        assert!(matches!(KeySet::parse(many.as_bytes()), Err(KeySetError::TooMany(65))));
    }

    #[test]
    fn rsa_below_2048_bits_is_refused() {
        let rsa = |n: Vec<u8>| {
            let n = URL_SAFE_NO_PAD.encode(n);
            KeySet::parse(json!({"keys": [{"kty": "RSA", "n": n, "e": "AQAB"}]}).to_string().as_bytes())
        };
        let padded = |zeros: usize, bytes: usize| [vec![0; zeros], vec![0xff; bytes]].concat();
        assert!(reason(rsa(padded(0, 128))).contains("2048"));
        assert!(reason(rsa(padded(0, 255))).contains("2048"));
        assert!(reason(rsa(padded(64, 192))).contains("2048"));
        assert!(reason(rsa(vec![])).contains("2048"));
        assert!(reason(rsa([vec![0x7f], vec![0xff; 255]].concat())).contains("2048"));
        assert!(rsa(padded(0, 256)).is_ok());
        assert!(rsa(padded(1, 256)).is_ok());
        assert!(reason(rsa(padded(0, 1025))).contains("8192"));
    }

    #[test]
    fn one_usable_key_is_enough() {
        let mut set: Value = serde_json::from_str(&issuer().jwks_json()).unwrap();
        set["keys"].as_array_mut().unwrap().insert(0, json!({"kty": "OKP", "crv": "Ed25519", "x": "AA"}));
        assert_eq!(KeySet::parse(set.to_string().as_bytes()).unwrap().len(), 1);
    }

    #[test]
    fn a_key_without_id_serves_tokens_without_id_only() {
        let issuer = issuer();
        let mut set: Value = serde_json::from_str(&issuer.jwks_json()).unwrap();
        set["keys"][0].as_object_mut().unwrap().remove("kid");
        let keys = KeySet::parse(set.to_string().as_bytes()).unwrap();
        let claims = issuer.claims_json(&issuer::Claims::default());
        let judge =
            |token| check(&Token::new(token), &keys, &[ISSUER.to_owned()], AUDIENCE, Some(SystemTime::now()));
        assert_eq!(judge(issuer.token_from_json(&claims)), Err(TokenError::UnknownKey));
        assert!(judge(issuer.token_with_header(&json!({"alg": "ES256"}), &claims)).is_ok());
        // And the other way round: a token without id does not try every key.
        let token = issuer.token_with_header(&json!({"alg": "ES256"}), &claims);
        assert_eq!(super::judge(&issuer, token), Err(TokenError::UnknownKey));
    }

    #[test]
    fn among_keys_of_one_id_the_right_one_is_found() {
        let (ours, other) = (issuer(), issuer());
        let mut set: Value = serde_json::from_str(&other.jwks_json()).unwrap();
        set["keys"][0]["kid"] = json!(ours.kid());
        let own: Value = serde_json::from_str(&ours.jwks_json()).unwrap();
        set["keys"].as_array_mut().unwrap().push(own["keys"][0].clone());
        let keys = KeySet::parse(set.to_string().as_bytes()).unwrap();
        let token = Token::new(ours.token(&issuer::Claims::default()));
        assert!(check(&token, &keys, &[ISSUER.to_owned()], AUDIENCE, Some(SystemTime::now())).is_ok());
    }
}

proptest! {
    #[test]
    fn no_text_panics(text in ".{0,200}") {
        // One issuer for all cases would need a static; the key set alone is enough here.
        let keys = KeySet::parse(FIXED_JWKS).unwrap();
        prop_assert!(check(&Token::new(text), &keys, &[ISSUER.to_owned()], AUDIENCE, Some(SystemTime::now())).is_err());
    }

    #[test]
    fn no_header_and_payload_panic(header in ".{0,80}", payload in ".{0,80}") {
        let keys = KeySet::parse(FIXED_JWKS).unwrap();
        let token = format!("{}.{}.AAAA", URL_SAFE_NO_PAD.encode(header), URL_SAFE_NO_PAD.encode(payload));
        prop_assert!(check(&Token::new(token), &keys, &[ISSUER.to_owned()], AUDIENCE, Some(SystemTime::now())).is_err());
    }
}

/// RFC 7517, appendix A.1.
const FIXED_JWKS: &[u8] = br#"{"keys":[{"kty":"EC","crv":"P-256","kid":"1",
    "x":"MKBCTNIcKUSDii11ySs3526iDZ8AiTo7Tu6KPAqv7D4","y":"4Etl6SRW2YiLUrN5vfvVHuhp7x8PxltmWWlbbM4IFyM"}]}"#;

#[test]
fn the_issuer_of_a_token_is_read_without_its_key() {
    use super::issuers::issuer_of;
    let by = TokenIssuer::with_algorithm("https://a.example/x", Algorithm::Es256);
    assert_eq!(issuer_of(&by.token(&issuer::Claims::default())).as_deref(), Ok("https://a.example/x"));
    let with = |iss: Value| issuer_of(&by.token_from_json(&json!({"iss": iss})));
    assert_eq!(with(json!("x")).as_deref(), Ok("x"));
    for bad in [json!(null), json!(7), json!(""), json!("a\nb"), json!("x".repeat(1025))] {
        assert!(with(bad.clone()).is_err(), "{bad}");
    }
    for bad in ["", "a", "a.b", "a.b.c", "a.e30.c", "a.eyJpc3MiOiJ4In0.c.d", "a.eyJpc3MiOiJ4In0"] {
        assert!(issuer_of(bad).is_err(), "{bad}");
    }
}

proptest! {
    #[test]
    fn no_text_makes_an_issuer_that_cannot_stand_in_a_line(text in ".{0,40}", payload in ".{0,40}") {
        let encoded = format!("a.{}.c", URL_SAFE_NO_PAD.encode(json!({"iss": payload}).to_string()));
        for token in [text, encoded] {
            if let Ok(issuer) = super::issuers::issuer_of(&token) {
                prop_assert!(!issuer.is_empty() && !issuer.contains(char::is_control));
            }
        }
    }
}
