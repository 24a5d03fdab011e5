//! Histories as data: what a kubelet, hostile pods' authors, crashes and a confused mounter do, one after the
//! other.
//!
//! Names come from very small sets, so that they are reused all the time. A failing history prints as Rust
//! and can be put into `known.rs` as it is.

use proptest::prelude::*;
use proptest::sample::select;

/// A pod, as token and request describe it. Each number stands for one of a few names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Pod {
    pub uid: u8,
    pub namespace: u8,
    pub name: u8,
    pub account: u8,
}

/// A target path: pod UID and volume name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Spot {
    pub uid: u8,
    pub volume: u8,
}

/// What a publish has to prove who the pod is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Proof {
    /// The pod's own token.
    Own,
    /// A good token of another pod.
    Of(Pod),
    WrongKey,
    Unsigned,
    ChangedClaims,
    Expired,
    OtherAudience,
    OtherNode,
    Missing,
    /// The pod's own token, in `volume_context`, where the pod's author can write.
    InContext,
}

/// How a mounter answers wrongly, or late. Holds for one request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mischief {
    /// Carries it out, and keeps the reply until `Release`: what comes later is answered earlier.
    Late,
    /// Carries it out, and ends the connection instead of answering.
    CloseAfter,
    /// Ends the connection.
    CloseBefore,
    /// The right reply with the descriptor of another volume, or of an earlier one.
    OtherDescriptor,
    /// The reply and the descriptor of another volume under this request's id.
    OtherAnswer,
    /// An earlier reply, with its own id and descriptor, before the right one.
    Again,
    /// The right reply, twice.
    Twice,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Op {
    /// The kubelet publishes, or publishes again. With `prepare` it writes its record first, unless there is
    /// one.
    Publish {
        pod: Pod,
        volume: u8,
        id: u8,
        proof: Proof,
        prepare: bool,
    },
    /// The pod's author has put another pod's facts into `volume_context` (podInfoOnMount off), the token is
    /// his own.
    Forge {
        pod: Pod,
        says: Pod,
        volume: u8,
    },
    /// A publish that was sent before, byte for byte.
    Replay(u8),
    Unpublish {
        spot: Spot,
        id: u8,
    },
    /// Unpublishes and, if that succeeds, removes the kubelet's record.
    Delete(Spot),
    /// Deletes one pod and creates the next one of the same name without waiting for anything.
    Recreate {
        old: Spot,
        new: Pod,
        volume: u8,
    },
    /// A client connects by the path and asks.
    Fetch(Spot),
    /// The same, and keeps the stream.
    Open(Spot),
    /// A client connects to a socket that was at a path some time ago, and asks.
    FetchOld(u8),
    KillAgent {
        back: bool,
    },
    KillMounter {
        back: bool,
    },
    KillBoth {
        back: bool,
    },
    /// Whatever is dead starts again.
    Back,
    /// SIGSTOP of the mounter, and SIGCONT.
    Freeze,
    Thaw,
    Mischief(Mischief),
    /// Replies that were kept come now.
    Release,
    Pause,
    /// All disturbances end, and everything must be as the model says.
    Settle,
}

pub const UIDS: u8 = 2;
pub const VOLUMES: u8 = 2;

pub fn spots() -> impl Iterator<Item = Spot> {
    (0..UIDS).flat_map(|uid| (0..VOLUMES).map(move |volume| Spot { uid, volume }))
}

fn pod() -> impl Strategy<Value = Pod> {
    // Mostly the same name in the same namespace: it is the UID and the account that differ.
    (0..UIDS, prop_oneof![5 => Just(0u8), 1 => Just(1)], prop_oneof![5 => Just(0u8), 1 => Just(1)], 0..2u8)
        .prop_map(|(uid, namespace, name, account)| Pod { uid, namespace, name, account })
}

fn spot() -> impl Strategy<Value = Spot> {
    (0..UIDS, prop_oneof![3 => Just(0u8), 1 => Just(1)]).prop_map(|(uid, volume)| Spot { uid, volume })
}

fn volume() -> impl Strategy<Value = u8> {
    prop_oneof![3 => Just(0u8), 1 => Just(1)]
}

fn proof() -> impl Strategy<Value = Proof> {
    use Proof::{ChangedClaims, Expired, InContext, Missing, OtherAudience, OtherNode, Unsigned, WrongKey};
    let forged =
        vec![WrongKey, Unsigned, ChangedClaims, Expired, OtherAudience, OtherNode, Missing, InContext];
    prop_oneof![12 => Just(Proof::Own), 2 => pod().prop_map(Proof::Of), 1 => select(forged)]
}

fn mischief() -> impl Strategy<Value = Mischief> {
    use Mischief::{Again, CloseAfter, CloseBefore, Late, OtherAnswer, OtherDescriptor, Twice};
    prop_oneof![
        3 => Just(Late),
        1 => Just(CloseAfter),
        1 => Just(CloseBefore),
        2 => Just(OtherDescriptor),
        2 => Just(OtherAnswer),
        1 => Just(Again),
        1 => Just(Twice),
    ]
}

fn op() -> impl Strategy<Value = Op> {
    let id = || prop_oneof![9 => Just(0u8), 1 => Just(1)];
    let prepare = prop_oneof![9 => Just(true), 1 => Just(false)];
    prop_oneof![
        14 => (pod(), volume(), id(), proof(), prepare)
            .prop_map(|(pod, volume, id, proof, prepare)| Op::Publish { pod, volume, id, proof, prepare }),
        2 => (pod(), pod(), volume()).prop_map(|(pod, says, volume)| Op::Forge { pod, says, volume }),
        3 => any::<u8>().prop_map(Op::Replay),
        4 => (spot(), id()).prop_map(|(spot, id)| Op::Unpublish { spot, id }),
        4 => spot().prop_map(Op::Delete),
        3 => (spot(), pod(), volume()).prop_map(|(old, new, volume)| Op::Recreate { old, new, volume }),
        4 => spot().prop_map(Op::Fetch),
        5 => spot().prop_map(Op::Open),
        2 => any::<u8>().prop_map(Op::FetchOld),
        2 => any::<bool>().prop_map(|back| Op::KillAgent { back }),
        2 => any::<bool>().prop_map(|back| Op::KillMounter { back }),
        1 => any::<bool>().prop_map(|back| Op::KillBoth { back }),
        3 => Just(Op::Back),
        2 => Just(Op::Freeze),
        2 => Just(Op::Thaw),
        5 => mischief().prop_map(Op::Mischief),
        3 => Just(Op::Release),
        2 => Just(Op::Pause),
        3 => Just(Op::Settle),
    ]
}

pub fn history(length: usize) -> impl Strategy<Value = Vec<Op>> {
    proptest::collection::vec(op(), 1..length)
}
