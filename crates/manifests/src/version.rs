//! The version of the cluster, as far as it decides what the objects say.

use std::fmt;
use std::str::FromStr;

/// The minor version of the first API server whose tokens are bound to pod and node, without which nothing is
/// proved.
const OLDEST: u32 = 32;
/// The first that puts tokens into the `secrets` of a CSI request (`serviceAccountTokenInSecrets`).
const TOKENS_IN_SECRETS: u32 = 35;
/// The newest whose objects this release knows; a newer server takes them too.
const NEWEST: u32 = 36;

/// A version of Kubernetes from 1.32, of which only the minor number matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct KubernetesVersion {
    minor: u32,
}

impl KubernetesVersion {
    /// Whether the CSIDriver field `serviceAccountTokenInSecrets` is known there.
    pub(crate) fn has_tokens_in_secrets(self) -> bool {
        self.minor >= TOKENS_IN_SECRETS
    }
}

impl Default for KubernetesVersion {
    fn default() -> Self {
        Self { minor: NEWEST }
    }
}

impl fmt::Display for KubernetesVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "1.{}", self.minor)
    }
}

/// Why a text is no version that the objects can be made for.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum VersionError {
    /// Not a version.
    #[error(
        "{0:?} is no version of Kubernetes; write what `kubectl version` says of the server, such as 1.33"
    )]
    Form(String),
    /// Its tokens do not say on which node a pod runs.
    #[error("Kubernetes {0} does not bind tokens to nodes; update the cluster to 1.{OLDEST} or newer")]
    TooOld(KubernetesVersion),
}

impl FromStr for KubernetesVersion {
    type Err = VersionError;

    /// `1.33`, `v1.33.4`, and what vendors add to it (`v1.33.4-eks-1`, `1.33+`).
    fn from_str(text: &str) -> Result<Self, VersionError> {
        let refuse = || VersionError::Form(text.chars().take(40).collect());
        let minor = text.strip_prefix('v').unwrap_or(text).strip_prefix("1.").ok_or_else(refuse)?;
        let digits = minor.find(|c: char| !c.is_ascii_digit()).unwrap_or(minor.len());
        let (minor, rest) = minor.split_at(digits);
        if !rest.is_empty() && !rest.starts_with(['.', '+', '-']) {
            return Err(refuse());
        }
        let version = Self { minor: minor.parse().map_err(|_| refuse())? };
        if version.minor < OLDEST { Err(VersionError::TooOld(version)) } else { Ok(version) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_as_servers_say_them() {
        for (text, minor) in [
            ("1.32", 32),
            ("v1.33.4", 33),
            ("1.34.1+k3s1", 34),
            ("v1.35.2-eks-abcdef0", 35),
            ("1.36+", 36),
            ("1.140.0", 140),
        ] {
            assert_eq!(text.parse(), Ok(KubernetesVersion { minor }), "{text}");
        }
        assert_eq!(KubernetesVersion::default().to_string().parse(), Ok(KubernetesVersion::default()));
    }

    #[test]
    fn what_is_no_version_or_too_old_is_refused() {
        for text in
            ["", "1", "1.", "33", "2.33", "v", "1.x", "1.33x", "latest", "4.20", "1.-33", "1.99999999999"]
        {
            assert!(matches!(text.parse::<KubernetesVersion>(), Err(VersionError::Form(_))), "{text}");
        }
        let error = "v1.31.9".parse::<KubernetesVersion>().unwrap_err();
        assert!(error.to_string().starts_with("Kubernetes 1.31 does not bind tokens"), "{error}");
    }
}
