//! SPIFFE identities: types that cannot hold an invalid value, the embedded authority, and the Workload API
//! that is served in each volume.
//!
//! * [`SpiffeId`], [`TrustDomain`], [`X509Svid`], [`PrivateKey`], [`X509Bundle`], [`BundleSet`]: the
//!   documents of the SPIFFE standards (SPIFFE-ID, X509-SVID, SPIFFE Trust Domain and Bundle).
//! * [`authority`]: who signs. [`authority::Embedded`] keeps a root and an intermediate in this process.
//! * [`rotation`]: when an SVID is to be replaced.
//! * [`workload_api`]: the SPIFFE Workload API on one Unix socket.
//! * [`read_interest`]: the streams under it, which wake only for what was asked for.
//! * [`authority_header`]: lets gRPC clients in that make an authority of the socket's path.

pub mod authority;
pub mod authority_header;
pub mod bundle;
mod certificate;
pub mod id;
mod keys;
pub mod read_interest;
pub mod rotation;
pub mod svid;
pub mod workload_api;

pub use bundle::{BundleError, BundleSet, X509Bundle};
pub use certificate::{Certificate, CertificateError};
pub use id::{IdError, SpiffeId, TrustDomain};
pub use keys::{KeyAlgorithm, KeyError, KeyPair, KeyType, PrivateKey, UnknownKeyType};
pub use svid::{SvidError, X509Svid};
