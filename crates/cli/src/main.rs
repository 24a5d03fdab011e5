//! The command `seamount`.
fn main() {}
