//! Which tokens are taken: of which issuer, for which audience, proved by which keys.

use std::time::Duration;

pub use seamount_api::token::{ApiServer, Keys};

/// What a verifier judges by.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    /// What the tokens must be for; the same as in the CSIDriver's `tokenRequests`.
    pub audience: String,
    /// Whose tokens are taken: the API server's `--service-account-issuer`, several while it changes. Empty:
    /// that of the program's own token, which the API server of [`Keys::ApiServer`] made.
    pub issuers: Vec<String>,
    /// Where the issuer's public keys are.
    pub keys: Keys,
    /// How long the last good keys are used where no new ones can be read.
    pub keys_max_age: Duration,
}
