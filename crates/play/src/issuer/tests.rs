use super::*;
use jsonwebtoken::jwk::JwkSet;
use jsonwebtoken::{DecodingKey, Validation, decode, decode_header};

/// Verifies with a library that is not ours, by the published key set alone.
fn verify(issuer: &TokenIssuer, token: &str) -> Result<Value, jsonwebtoken::errors::Error> {
    let keys: JwkSet = serde_json::from_str(&issuer.jwks_json()).unwrap();
    let header = decode_header(token)?;
    let jwk = keys.find(header.kid.as_deref().unwrap()).expect("the token's kid is in the key set");
    let algorithm = match issuer.algorithm() {
        Algorithm::Rs256 => jsonwebtoken::Algorithm::RS256,
        Algorithm::Es256 => jsonwebtoken::Algorithm::ES256,
    };
    let mut validation = Validation::new(algorithm);
    validation.set_audience(&["seamount.dev"]);
    validation.set_issuer(&[issuer.issuer()]);
    validation.validate_nbf = true;
    Ok(decode::<Value>(token, &DecodingKey::from_jwk(jwk)?, &validation)?.claims)
}

fn issuers() -> [TokenIssuer; 2] {
    [Algorithm::Rs256, Algorithm::Es256]
        .map(|algorithm| TokenIssuer::with_algorithm("https://kubernetes.default.svc", algorithm))
}

#[test]
fn tokens_verify_and_have_the_claims_of_a_bound_token() {
    for issuer in issuers() {
        let claims = verify(&issuer, &issuer.token(&Claims::default())).unwrap();
        assert_eq!(claims["sub"], "system:serviceaccount:default:default");
        assert_eq!(claims["aud"], json!(["seamount.dev"]));
        assert_eq!(claims["exp"].as_u64().unwrap() - claims["iat"].as_u64().unwrap(), 3600);
        assert_eq!(claims["nbf"], claims["iat"]);
        let bound = &claims["kubernetes.io"];
        assert_eq!(bound["namespace"], "default");
        assert_eq!(bound["serviceaccount"]["name"], "default");
        assert_eq!(bound["pod"], json!({"name": "pod", "uid": crate::uuid_of("pod")}));
        assert_eq!(bound["node"]["name"], "node-1");
    }
}

#[test]
fn forgeries_and_times_out_of_range_do_not_verify() {
    for issuer in issuers() {
        let claims = Claims::default();
        let changed = |token: String| verify(&issuer, &token).map(|_| ()).unwrap_err().to_string();
        changed(issuer.forged_with_other_key(&claims));
        changed(issuer.forged_without_signature(&claims));
        changed(issuer.forged_with_public_key_as_secret(&claims));
        changed(
            issuer.forged_with_changed_claims(&claims, |c| c["kubernetes.io"]["namespace"] = "prod".into()),
        );
        assert!(changed(issuer.expired(&claims)).contains("Expired"));
        assert!(changed(issuer.not_yet_valid(&claims)).contains("Immature"));
    }
}

#[test]
fn the_kubelets_token_map_has_one_token_for_each_audience() {
    let [issuer, _] = issuers();
    let audience = vec!["seamount.dev".to_owned(), "vault".to_owned()];
    let tokens: Value =
        serde_json::from_str(&issuer.tokens_json(&Claims { audience, ..Claims::default() })).unwrap();
    assert_eq!(tokens.as_object().unwrap().len(), 2);
    assert!(
        OffsetDateTime::parse(tokens["vault"]["expirationTimestamp"].as_str().unwrap(), &Rfc3339).is_ok()
    );
    verify(&issuer, tokens["seamount.dev"]["token"].as_str().unwrap()).unwrap();
    verify(&issuer, tokens["vault"]["token"].as_str().unwrap()).unwrap_err();
}

#[test]
fn no_key_is_shown_by_debug() {
    let [issuer, _] = issuers();
    assert_eq!(
        format!("{issuer:?}"),
        format!("TokenIssuer {{ issuer: {:?}, kid: {:?}, .. }}", issuer.issuer(), issuer.kid())
    );
}
