//! What a volume has to serve.

use std::sync::Arc;

use crate::response::Response;

/// What a volume's streams see now (sent through a [`watch`](tokio::sync::watch)).
///
/// A stream that was already answered ends only by [`Denied`](Self::Denied) or when the sender goes: what was
/// issued stays good until it expires, so neither `Pending` nor `Unavailable` takes it away. Send
/// `Unavailable` when there is nothing valid to serve to new streams, not when an SVID merely cannot be
/// renewed.
#[derive(Debug, Clone, Default)]
pub enum IdentityState {
    /// Not known yet: new streams wait, and get `Unavailable` when the pending timeout has passed.
    #[default]
    Pending,
    /// The identity. One without any SVID is [`Denied`](Self::Denied).
    Ready(Arc<Response>),
    /// Nothing to serve for now, with the reason for people: new streams get `Unavailable`.
    Unavailable(Arc<str>),
    /// No identity: every stream, old or new, gets `PermissionDenied` with the text `no identity issued`.
    Denied,
}
