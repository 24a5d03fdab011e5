//! What of the configuration decides over requests.

use crate::config::Config;

/// What of the configuration decides over a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rules {
    /// The kubelet's root directory without a slash at its end.
    pub kubelet_root: String,
    /// The audience that a token must be for; none with the `directory` source, which needs no token.
    pub audience: Option<String>,
    /// Whether a token may come in `volume_context` (kubelet before 1.35).
    pub allow_volume_context: bool,
}

impl Rules {
    /// The rules that this configuration asks for.
    pub fn new(config: &Config) -> Self {
        let authority = config.authority();
        Self {
            kubelet_root: config.kubelet_root.to_string_lossy().into_owned(),
            audience: authority.map(|a| a.token.audience.clone()),
            allow_volume_context: authority.is_some_and(|a| a.token.allow_volume_context),
        }
    }

    /// Rules for what must never be in a deletion's way: nothing but the kubelet's root matters for it.
    pub fn of_root(kubelet_root: &str) -> Self {
        Self { kubelet_root: kubelet_root.to_owned(), audience: None, allow_volume_context: false }
    }
}
