//! The few kernel calls that need unsafe code.
