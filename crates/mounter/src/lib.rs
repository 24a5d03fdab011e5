//! The privileged half of the node, and the protocol between the two halves.
//!
//! The agent links [`protocol`] and [`names`] only; everything else belongs to the binary `seamount-mounter`.

pub mod names;
pub mod protocol;
