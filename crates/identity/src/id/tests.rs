//! Named after the sections of the SPIFFE-ID standard.

use proptest::prelude::*;

use super::*;

fn id(text: &str) -> Result<SpiffeId, IdError> {
    text.parse()
}

#[test]
fn spiffe_id_2_scheme_is_spiffe() {
    assert_eq!(id("spiffe://example.org/a").unwrap().as_str(), "spiffe://example.org/a");
    for bad in ["", "spiffe", "spiffe:/", "spiffe:/example.org/a", "http://example.org/a", "example.org/a"] {
        assert!(matches!(id(bad), Err(IdError::Scheme { .. })), "{bad}");
    }
}

#[test]
fn spiffe_id_2_scheme_and_trust_domain_ignore_case_and_path_does_not() {
    let mixed = id("SPIFFE://Example.ORG/Cart").unwrap();
    assert_eq!(mixed.as_str(), "spiffe://example.org/Cart");
    assert_ne!(mixed, id("spiffe://example.org/cart").unwrap());
    assert_eq!("EXAMPLE.org".parse::<TrustDomain>(), "example.org".parse());
}

#[test]
fn spiffe_id_2_1_trust_domain_is_not_empty() {
    assert_eq!(id("spiffe://"), Err(IdError::EmptyTrustDomain));
    assert_eq!(id("spiffe:///a"), Err(IdError::EmptyTrustDomain));
    assert_eq!("".parse::<TrustDomain>(), Err(IdError::EmptyTrustDomain));
}

#[test]
fn spiffe_id_2_1_trust_domain_characters() {
    assert!(id("spiffe://a.b-c_9/x").is_ok());
    for bad in [
        "spiffe://a b/x",
        "spiffe://user@example.org/x",
        "spiffe://example.org:443/x",
        "spiffe://ex%61mple.org/x",
        "spiffe://exämple.org/x",
        "spiffe://[::1]/x",
        "spiffe://example.org?q",
        "spiffe://example.org#f",
    ] {
        assert!(matches!(id(bad), Err(IdError::TrustDomainCharacter { .. })), "{bad}");
    }
}

#[test]
fn spiffe_id_2_1_trust_domain_length() {
    let longest = "a".repeat(255);
    assert!(longest.parse::<TrustDomain>().is_ok());
    assert_eq!("a".repeat(256).parse::<TrustDomain>(), Err(IdError::TrustDomainTooLong { bytes: 256 }));
}

#[test]
fn spiffe_id_2_2_path_segments() {
    assert!(id("spiffe://td/A-z_0.9/...").is_ok());
    for bad in ["spiffe://td/", "spiffe://td//a", "spiffe://td/a/", "spiffe://td/a//b"] {
        assert!(matches!(id(bad), Err(IdError::EmptySegment { .. })), "{bad}");
    }
    for bad in ["spiffe://td/.", "spiffe://td/..", "spiffe://td/a/./b", "spiffe://td/a/../b"] {
        assert!(matches!(id(bad), Err(IdError::DotSegment { .. })), "{bad}");
    }
    for bad in [
        "spiffe://td/a b",
        "spiffe://td/%41",
        "spiffe://td/a?q",
        "spiffe://td/a#f",
        "spiffe://td/ü",
        "spiffe://td/a\0b",
        "spiffe://td/a:b",
    ] {
        assert!(matches!(id(bad), Err(IdError::PathCharacter { .. })), "{bad}");
    }
    let td = "td".parse().unwrap();
    assert!(matches!(SpiffeId::new(&td, "a"), Err(IdError::RelativePath { .. })));
}

#[test]
fn spiffe_id_2_3_maximum_length() {
    let text = format!("spiffe://td/{}", "a".repeat(2048 - 12));
    assert_eq!(text.len(), 2048);
    assert!(id(&text).is_ok());
    assert_eq!(id(&format!("{text}a")), Err(IdError::TooLong { bytes: 2049 }));
    let td = "td".parse().unwrap();
    assert!(matches!(SpiffeId::new(&td, &format!("/{}", "a".repeat(2040))), Err(IdError::TooLong { .. })));
}

#[test]
fn parts() {
    let workload = id("spiffe://example.org/ns/a").unwrap();
    assert_eq!((workload.trust_domain().as_str(), workload.path()), ("example.org", "/ns/a"));
    assert!(!workload.is_trust_domain());
    let domain = workload.trust_domain().id();
    assert_eq!((domain.as_str(), domain.path()), ("spiffe://example.org", ""));
    assert!(domain.is_trust_domain());
    assert_eq!(id("spiffe://example.org").unwrap(), domain);
}

/// The rules once more, written independently of the parser.
fn valid(text: &str) -> bool {
    let Some(rest) = text.get(9..) else { return false };
    let mut parts = rest.split('/');
    let host = parts.next().unwrap();
    let ok = |s: &str| s.bytes().all(|b| b.is_ascii_alphanumeric() || b".-_".contains(&b));
    text.len() <= 2048
        && text[..9].eq_ignore_ascii_case("spiffe://")
        && (1..=255).contains(&host.len())
        && ok(host)
        && parts.all(|s| !s.is_empty() && s != "." && s != ".." && ok(s))
}

/// For all property tests of the workspace: what cargo starts has a seed from `.cargo/config.toml`.
#[test]
fn property_tests_draw_the_same_in_every_run() {
    let seed = std::env::var("PROPTEST_RNG_SEED").expect("cargo sets it");
    let fixed = matches!(ProptestConfig::default().rng_seed, proptest::test_runner::RngSeed::Fixed(_));
    assert_eq!(fixed, seed.parse::<u64>().is_ok(), "PROPTEST_RNG_SEED={seed}");
}

proptest! {
    #[test]
    fn parse_after_display_is_identity(text in "spiffe://[a-z0-9._-]{1,40}(/[a-zA-Z0-9_-]{1,12}){0,6}") {
        let parsed = id(&text).unwrap();
        prop_assert_eq!(parsed.to_string(), text);
        prop_assert_eq!(id(&parsed.to_string()).unwrap(), parsed);
    }

    #[test]
    fn nothing_invalid_is_accepted(text in "(spiffe://|SPIFFE://|spiffe:/)?[a-cA-C.%:@/ü ?#_-]{0,16}") {
        prop_assert_eq!(id(&text).is_ok(), text.is_char_boundary(9.min(text.len())) && valid(&text), "{}", text);
    }

    #[test]
    fn no_text_panics(text in any::<String>()) {
        let _ = id(&text);
        let _ = text.parse::<TrustDomain>();
    }
}
