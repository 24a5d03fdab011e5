//! The kinds of volume.

pub mod directory;
pub mod identity;
pub mod scan;
pub mod tmpfs;
pub mod unpublish;
