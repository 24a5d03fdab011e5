//! What signs SVIDs.
//!
//! * [`Authority`]: the interface of them all. It is given a key or a signing request and the pod as its
//!   verified token describes it ([`Workload`]).
//! * [`Embedded`]: keeps a root and an intermediate in this process.
//! * [`IdTemplate`]: how a pod's SPIFFE ID is made.

mod embedded;
mod error;
mod interface;
mod load;
mod new_key;
mod signing_key;
mod template;
mod workload;

pub use embedded::{Clock, Done, Embedded, EmbeddedConfig};
pub use error::AuthorityError;
pub use interface::{Authority, BoxFuture};
pub use new_key::{NewKey, new_key_and_csr};
pub use template::{IdTemplate, TemplateError};
pub use workload::Workload;

#[cfg(test)]
mod tests;
