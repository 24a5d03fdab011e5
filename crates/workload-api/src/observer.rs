//! What the owner of a socket learns of its clients.

/// Is told what happens on a socket, for metrics. Called from many tasks, must not block.
pub trait Observer: Send + Sync {
    /// A connection was opened (+1) or closed (-1).
    fn connection(&self, delta: i64);
    /// A FetchX509SVID or FetchX509Bundles stream was answered with data (+1) or ended (-1).
    fn stream(&self, delta: i64);
    /// Something was refused; `why` is one of a small fixed set: `accept`, `connections`, `node connections`,
    /// `streams`, `reflection`, `memory`, `idle`, `http`, `security header`, `method`, `request`, `pending`,
    /// `unavailable`, `denied`.
    fn refused(&self, why: &'static str);
    /// Something waits because its tenant is over its rate: a connection is not read, or a socket takes none
    /// in.
    fn throttled(&self) {}
}

/// An [`Observer`] that ignores everything.
#[derive(Debug, Clone, Copy, Default)]
pub struct Unobserved;

impl Observer for Unobserved {
    fn connection(&self, _delta: i64) {}
    fn stream(&self, _delta: i64) {}
    fn refused(&self, _why: &'static str) {}
}
