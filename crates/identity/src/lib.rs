//! SPIFFE identities: types that cannot hold an invalid value, without I/O.
//!
//! * [`SpiffeId`], [`TrustDomain`], [`X509Svid`], [`X509Bundle`], [`BundleSet`]: the documents of the SPIFFE
//!   standards (SPIFFE-ID, X509-SVID, SPIFFE Trust Domain and Bundle).
//! * [`Certificate`], [`KeyPair`], [`PrivateKey`]: what they consist of, for what signs them.
//! * [`rotation`]: when an SVID is to be replaced.

pub mod bundle;
mod certificate;
pub mod id;
mod keys;
pub mod rotation;
pub mod svid;

pub use bundle::{BundleError, BundleSet, X509Bundle};
pub use certificate::{Certificate, CertificateError};
pub use id::{IdError, SpiffeId, TrustDomain};
pub use keys::{KeyAlgorithm, KeyError, KeyPair, KeyType, PrivateKey, UnknownKeyType};
pub use svid::{SvidError, X509Svid};
