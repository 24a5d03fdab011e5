//! What of the configuration decides over requests.

use seamount_mounter_protocol::names::DriverName;

use crate::config::Config;

/// What of the configuration decides over a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rules {
    /// The driver whose socket the request came on: all volumes of it are that driver's.
    pub driver: DriverName,
    /// The kubelet's root directory without a slash at its end.
    pub kubelet_root: String,
    /// The audience that a token must be for; none with the `directory` source, which needs no token.
    pub audience: Option<String>,
    /// Whether a token may come in `volume_context` (kubelet before 1.35).
    pub allow_volume_context: bool,
}

impl Rules {
    /// The same with what this configuration asks of a publish.
    #[must_use]
    pub fn with(self, config: &Config) -> Self {
        let authority = config.authority();
        Self {
            audience: authority.map(|a| a.token.audience.clone()),
            allow_volume_context: authority.is_some_and(|a| a.token.allow_volume_context),
            ..self
        }
    }

    /// Rules for what must never be in a deletion's way: nothing but driver and kubelet's root matter for it.
    pub fn basic(driver: DriverName, kubelet_root: &str) -> Self {
        let kubelet_root = kubelet_root.to_owned();
        Self { driver, kubelet_root, audience: None, allow_volume_context: false }
    }
}
