//! Templates for SPIFFE IDs.

use std::fmt;

use seamount_identity::id::{IdError, SpiffeId, TrustDomain, is_segment_character};

use crate::workload::Workload;

/// Why a template, or an ID made by it, is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TemplateError {
    /// A placeholder that does not exist, or a brace without its partner.
    #[error(
        "idTemplate: {{{0}}} is no placeholder; known are {{trustDomain}}, {{namespace}}, {{serviceAccount}}, \
         {{podName}}, {{podUid}} and {{node}}"
    )]
    Placeholder(String),
    /// Not in the trust domain.
    #[error("idTemplate: {template:?} does not begin with spiffe://{{trustDomain}}/ or spiffe://{expected}/")]
    OtherTrustDomain {
        /// The beginning of the template.
        template: String,
        /// The trust domain.
        expected: TrustDomain,
    },
    /// Pods of different namespaces would get the same ID.
    #[error(
        "idTemplate: {0:?} holds neither {{namespace}} nor {{podUid}}, so that pods of different namespaces \
         would share an identity: add {{namespace}}"
    )]
    Shared(String),
    /// Two placeholders in one segment: different pods could get the same ID.
    #[error(
        "idTemplate: segment {0:?} holds two placeholders, whose values could run into one another: put a '/' \
         between them"
    )]
    Ambiguous(String),
    /// The result is not a SPIFFE ID.
    #[error("idTemplate: {0}")]
    Id(#[from] IdError),
    /// A pod's value cannot stand in a SPIFFE ID.
    #[error("no SPIFFE ID for the pod: its {field} {value:?} cannot stand in a path segment")]
    Value {
        /// Which one.
        field: &'static str,
        /// The beginning of the value.
        value: String,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Field {
    Namespace,
    ServiceAccount,
    PodName,
    PodUid,
    Node,
}

impl Field {
    fn name(self) -> &'static str {
        match self {
            Self::Namespace => "namespace",
            Self::ServiceAccount => "serviceAccount",
            Self::PodName => "podName",
            Self::PodUid => "podUid",
            Self::Node => "node",
        }
    }

    fn by_name(name: &str) -> Option<Self> {
        [Self::Namespace, Self::ServiceAccount, Self::PodName, Self::PodUid, Self::Node]
            .into_iter()
            .find(|field| field.name() == name)
    }

    fn of(self, workload: &Workload) -> &str {
        match self {
            Self::Namespace => &workload.namespace,
            Self::ServiceAccount => &workload.service_account,
            Self::PodName => &workload.pod_name,
            Self::PodUid => &workload.pod_uid,
            Self::Node => &workload.node,
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Part {
    Text(String),
    Value(Field),
}

/// How a pod's SPIFFE ID is made, for example
/// `spiffe://{trustDomain}/ns/{namespace}/sa/{serviceAccount}`.
///
/// Placeholders: `{trustDomain}`, `{namespace}`, `{serviceAccount}`, `{podName}`, `{podUid}`, `{node}`.
///
/// Different pods must not get one ID by accident or by choice of names, hence two rules beyond those of a
/// SPIFFE ID: the template holds `{namespace}` or `{podUid}` (names of service accounts, pods and nodes
/// repeat in other namespaces, where other tenants choose them; a constant ID is refused for the same
/// reason), and no path segment holds two placeholders (`{namespace}-{serviceAccount}` is the same for
/// `a-b`,`c` and `a`,`b-c`).
#[derive(Clone, PartialEq, Eq)]
pub struct IdTemplate {
    trust_domain: TrustDomain,
    path: Vec<Part>,
    text: String,
}

impl IdTemplate {
    /// The default: `spiffe://{trustDomain}/ns/{namespace}/sa/{serviceAccount}`.
    pub const DEFAULT: &'static str = "spiffe://{trustDomain}/ns/{namespace}/sa/{serviceAccount}";

    /// Reads a template for IDs of `trust_domain`.
    pub fn parse(template: &str, trust_domain: &TrustDomain) -> Result<Self, TemplateError> {
        let text = template.replace("{trustDomain}", trust_domain.as_str());
        let other = || TemplateError::OtherTrustDomain {
            template: template.chars().take(80).collect(),
            expected: trust_domain.clone(),
        };
        let path = text
            .strip_prefix("spiffe://")
            .and_then(|rest| rest.strip_prefix(trust_domain.as_str()))
            .filter(|path| path.starts_with('/'))
            .ok_or_else(other)?;
        let parts = split(path)?;
        if let Some(segment) = path.split('/').find(|segment| segment.matches('{').count() > 1) {
            return Err(TemplateError::Ambiguous(segment.chars().take(80).collect()));
        }
        let unique = |part: &Part| matches!(part, Part::Value(Field::Namespace | Field::PodUid));
        if !parts.iter().any(unique) {
            return Err(TemplateError::Shared(template.chars().take(80).collect()));
        }
        let parsed = Self { trust_domain: trust_domain.clone(), path: parts, text: template.to_owned() };
        // The fixed text is checked now and not with the first pod.
        let sample = || "a".to_owned();
        parsed.render(&Workload {
            namespace: sample(),
            service_account: sample(),
            pod_name: sample(),
            pod_uid: sample(),
            node: sample(),
        })?;
        Ok(parsed)
    }

    /// The ID of a pod.
    pub fn render(&self, workload: &Workload) -> Result<SpiffeId, TemplateError> {
        let mut path = String::with_capacity(64);
        for part in &self.path {
            match part {
                Part::Text(text) => path.push_str(text),
                Part::Value(field) => {
                    let value = field.of(workload);
                    if value.is_empty() || !value.chars().all(is_segment_character) {
                        let value = value.chars().take(80).collect();
                        return Err(TemplateError::Value { field: field.name(), value });
                    }
                    path.push_str(value);
                }
            }
        }
        Ok(SpiffeId::new(&self.trust_domain, &path)?)
    }

    /// The trust domain of the IDs.
    pub fn trust_domain(&self) -> &TrustDomain {
        &self.trust_domain
    }
}

impl fmt::Display for IdTemplate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl fmt::Debug for IdTemplate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "IdTemplate({})", self.text)
    }
}

/// Cuts a path into text and placeholders. A stray brace is left in the text, where it is no valid character.
fn split(path: &str) -> Result<Vec<Part>, TemplateError> {
    let mut parts = Vec::new();
    let mut rest = path;
    while let Some((text, after)) = rest.split_once('{') {
        if !text.is_empty() {
            parts.push(Part::Text(text.to_owned()));
        }
        let unknown = |name: &str| TemplateError::Placeholder(name.chars().take(80).collect());
        let (name, following) = after.split_once('}').ok_or_else(|| unknown(after))?;
        parts.push(Part::Value(Field::by_name(name).ok_or_else(|| unknown(name))?));
        rest = following;
    }
    if !rest.is_empty() {
        parts.push(Part::Text(rest.to_owned()));
    }
    Ok(parts)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn domain() -> TrustDomain {
        "example.org".parse().unwrap()
    }

    fn pod() -> Workload {
        Workload {
            namespace: "shop".into(),
            service_account: "cart".into(),
            pod_name: "cart-7".into(),
            pod_uid: "3c5e".into(),
            node: "node-1".into(),
        }
    }

    fn parse(template: &str) -> Result<IdTemplate, TemplateError> {
        IdTemplate::parse(template, &domain())
    }

    #[test]
    fn renders_every_placeholder() {
        let id = |template| parse(template).unwrap().render(&pod()).unwrap().to_string();
        assert_eq!(id(IdTemplate::DEFAULT), "spiffe://example.org/ns/shop/sa/cart");
        assert_eq!(
            id("spiffe://example.org/{namespace}/x-{serviceAccount}/{podName}/{podUid}/{node}/{trustDomain}"),
            "spiffe://example.org/shop/x-cart/cart-7/3c5e/node-1/example.org"
        );
        assert_eq!(id("spiffe://{trustDomain}/pod/{podUid}"), "spiffe://example.org/pod/3c5e");
    }

    #[test]
    fn refuses_unknown_placeholders_and_stray_braces() {
        let error = parse("spiffe://{trustDomain}/{namespace}/{label}").unwrap_err();
        assert_eq!(error, TemplateError::Placeholder("label".into()));
        assert!(error.to_string().contains("{label}") && error.to_string().contains("{podUid}"));
        assert!(matches!(parse("spiffe://{trustDomain}/{namespace"), Err(TemplateError::Placeholder(_))));
        assert!(matches!(parse("spiffe://{trustDomain}/{namespace}}"), Err(TemplateError::Id(_))));
        assert!(matches!(parse("spiffe://{trustDomain}/{{namespace}"), Err(TemplateError::Placeholder(_))));
    }

    #[test]
    fn refuses_another_trust_domain() {
        for bad in [
            "",
            "spiffe://other.org/{namespace}",
            "spiffe://example.org.evil/{namespace}",
            "spiffe://{namespace}/x",
            "https://{trustDomain}/{namespace}",
            "spiffe://{trustDomain}",
        ] {
            assert!(matches!(parse(bad), Err(TemplateError::OtherTrustDomain { .. })), "{bad}");
        }
    }

    #[test]
    fn refuses_what_namespaces_would_share() {
        for bad in [
            "spiffe://{trustDomain}/everybody",
            "spiffe://{trustDomain}/sa/{serviceAccount}",
            "spiffe://{trustDomain}/{podName}/{node}",
        ] {
            assert!(matches!(parse(bad), Err(TemplateError::Shared(_))), "{bad}");
        }
    }

    #[test]
    fn refuses_two_placeholders_in_a_segment() {
        let error = parse("spiffe://{trustDomain}/{namespace}-{serviceAccount}").unwrap_err();
        assert_eq!(error, TemplateError::Ambiguous("{namespace}-{serviceAccount}".into()));
    }

    #[test]
    fn refuses_values_that_change_the_structure() {
        let template = parse(IdTemplate::DEFAULT).unwrap();
        for bad in ["", "a/b", "..", ".", "a%2fb", "ä", "a\0"] {
            let workload = Workload { service_account: bad.into(), ..pod() };
            assert!(template.render(&workload).is_err(), "{bad:?}");
        }
    }

    proptest::proptest! {
        #[test]
        fn no_template_panics_and_ids_stay_in_the_trust_domain(
            template in "spiffe://\\{trustDomain\\}/[a-z{}/.]{0,12}\\{namespace\\}[a-z/]{0,6}", value in ".{0,12}",
        ) {
            if let Ok(parsed) = parse(&template)
                && let Ok(id) = parsed.render(&Workload { namespace: value, ..pod() })
            {
                assert_eq!(id.trust_domain(), &domain());
                assert!(!id.is_trust_domain());
            }
        }
    }
}
