//! SPIFFE IDs, trust domains and templates, against the standard's rules written down once more.

use arbitrary::Unstructured;
use seamount_authority::{IdTemplate, Workload};
use seamount_identity::{SpiffeId, TrustDomain};

use crate::input;

/// 0: an ID. 1: a trust domain. 2: a path below a good trust domain. 3: a template and a pod.
pub fn run(data: &[u8]) {
    let (kind, rest) = input::kind(data, 4);
    if kind == 3 {
        let _ = template(&mut Unstructured::new(rest));
        return;
    }
    let Ok(text) = str::from_utf8(rest) else { return };
    match kind {
        0 => id(text),
        1 => trust_domain(text),
        _ => {
            let domain: TrustDomain = "example.org".parse().unwrap();
            let made = SpiffeId::new(&domain, text);
            let absolute = text.is_empty() || text.starts_with('/');
            let parsed = absolute.then(|| format!("spiffe://example.org{text}").parse().ok()).flatten();
            assert_eq!(made.as_ref().ok(), parsed.as_ref());
            if let Ok(made) = made {
                assert_eq!((made.path(), made.trust_domain()), (text, &domain));
            }
        }
    }
}

fn is_name(text: &str) -> bool {
    (1..=255).contains(&text.len())
        && text.bytes().all(|b| matches!(b, b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'.' | b'-' | b'_'))
}

fn is_path(text: &str) -> bool {
    let good = |s: &str| {
        s != "."
            && s != ".."
            && s.bytes().all(|b| b.is_ascii_alphanumeric() || b".-_".contains(&b))
            && !s.is_empty()
    };
    text.is_empty() || text.starts_with('/') && text[1..].split('/').all(good)
}

fn trust_domain(text: &str) {
    let parsed = text.parse::<TrustDomain>();
    assert_eq!(parsed.is_ok(), is_name(text), "{text:?}");
    match parsed {
        Ok(domain) => {
            assert_eq!(domain.as_str(), text.to_ascii_lowercase());
            assert_eq!(domain.as_str().parse::<TrustDomain>().as_ref(), Ok(&domain));
            assert_eq!(domain.id().as_str().parse(), Ok(domain.id()));
            assert!(domain.id().is_trust_domain());
        }
        Err(why) => assert!(why.to_string().len() < 1200),
    }
}

fn id(text: &str) {
    let parsed = text.parse::<SpiffeId>();
    let rest = text.get(..9).filter(|s| s.eq_ignore_ascii_case("spiffe://")).map(|_| &text[9..]);
    let expected = rest.filter(|_| text.len() <= 2048).and_then(|rest| {
        let at = rest.find('/').unwrap_or(rest.len());
        let (name, path) = rest.split_at(at);
        (is_name(name) && is_path(path)).then(|| (name.to_ascii_lowercase(), path))
    });
    assert_eq!(parsed.is_ok(), expected.is_some(), "{text:?}");
    if let (Ok(id), Some((name, path))) = (&parsed, expected) {
        assert_eq!((id.trust_domain().as_str(), id.path()), (name.as_str(), path));
        assert_eq!(id.as_str(), format!("spiffe://{name}{path}"));
        assert_eq!(id.as_str().parse().as_ref(), Ok(id));
        assert_eq!(id.is_trust_domain(), path.is_empty());
        assert_eq!(SpiffeId::new(id.trust_domain(), path).as_ref(), Ok(id));
    }
    if let Err(why) = parsed {
        assert!(why.to_string().len() < 1200, "a message quotes a bounded part");
    }
}

fn template(u: &mut Unstructured<'_>) -> arbitrary::Result<()> {
    let domain: TrustDomain = "example.org".parse().unwrap();
    let mut pod = || -> arbitrary::Result<Workload> {
        Ok(Workload {
            namespace: u.arbitrary()?,
            service_account: u.arbitrary()?,
            pod_name: u.arbitrary()?,
            pod_uid: u.arbitrary()?,
            node: u.arbitrary()?,
        })
    };
    let (one, other) = (pod()?, pod()?);
    let Ok(text) = str::from_utf8(u.bytes(u.len())?) else { return Ok(()) };
    let Ok(template) = IdTemplate::parse(text, &domain) else { return Ok(()) };
    let ids = [&one, &other].map(|workload| template.render(workload));
    for id in ids.iter().flatten() {
        assert_eq!(id.trust_domain(), &domain);
        assert_eq!(id.as_str().parse().as_ref(), Ok(id));
        assert!(!id.is_trust_domain());
    }
    if let [Ok(a), Ok(b)] = &ids
        && (one.namespace != other.namespace && one.pod_uid != other.pod_uid)
    {
        assert_ne!(a, b, "pods of two namespaces share an identity: {text}");
    }
    Ok(())
}
