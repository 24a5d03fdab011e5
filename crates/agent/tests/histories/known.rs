//! Histories that a broken agent failed, as they were shrunk, and some written by hand.

use super::history::{Mischief, Op, Pod, Proof, Spot};

const FIRST: Pod = Pod { uid: 0, namespace: 0, name: 0, account: 0 };
const HERE: Spot = Spot { uid: 0, volume: 0 };

fn publish(pod: Pod) -> Op {
    Op::Publish { pod, volume: 0, id: 0, proof: Proof::Own, prepare: true }
}

/// Several clients: of two that accept at one socket, both get some.
fn asked_often(history: Vec<Op>) -> Vec<Op> {
    let ask =
        [Op::Pause].into_iter().chain([Op::Open(HERE); 10]).chain([Op::Pause, Op::Settle, Op::Fetch(HERE)]);
    history.into_iter().chain(ask).collect()
}

pub fn all() -> Vec<(&'static str, Vec<Op>)> {
    let other = Pod { account: 1, ..FIRST };
    let neighbour = Pod { uid: 1, ..other };
    let with = |proof| Op::Publish { pod: FIRST, volume: 0, id: 0, proof, prepare: true };
    vec![
        (
            "the same UID, volume and id for another account, with a stream and the old inode held",
            vec![
                publish(FIRST),
                Op::Open(HERE),
                Op::Delete(HERE),
                publish(other),
                Op::Open(HERE),
                Op::FetchOld(0),
            ],
        ),
        (
            "the right answer with the descriptor of another volume",
            asked_often(vec![publish(FIRST), Op::Mischief(Mischief::OtherDescriptor), publish(neighbour)]),
        ),
        (
            "the answer and the descriptor of another volume",
            asked_often(vec![publish(FIRST), Op::Mischief(Mischief::OtherAnswer), publish(neighbour)]),
        ),
        (
            "an answer of an earlier life of the same volume before the right one",
            asked_often(vec![
                publish(FIRST),
                Op::Delete(HERE),
                Op::Mischief(Mischief::Again),
                publish(other),
            ]),
        ),
        (
            "the token of a pod of the same name and account with another UID",
            vec![with(Proof::Of(Pod { uid: 1, ..FIRST }))],
        ),
        ("the token of another account", vec![with(Proof::Of(other))]),
        ("another account over a published volume", vec![publish(FIRST), publish(other), Op::Fetch(HERE)]),
        (
            "a deletion while the mounter is away, so that nobody else ends the listener",
            vec![
                publish(FIRST),
                Op::Open(HERE),
                Op::KillMounter { back: false },
                Op::Delete(HERE),
                Op::Back,
                Op::Delete(HERE),
                Op::Settle,
            ],
        ),
        (
            "another account while the records are not read yet",
            vec![
                publish(FIRST),
                publish(neighbour),
                Op::Mischief(Mischief::OtherDescriptor),
                Op::KillAgent { back: true },
                publish(other),
                Op::Settle,
            ],
        ),
        (
            "a descriptor of another volume, an unpublish that comes late, and both killed",
            vec![
                publish(FIRST),
                Op::Mischief(Mischief::OtherDescriptor),
                publish(neighbour),
                Op::Open(HERE),
                Op::Mischief(Mischief::Late),
                Op::Delete(HERE),
                Op::KillBoth { back: true },
                Op::Release,
                publish(other),
                Op::Settle,
            ],
        ),
        (
            "an old publish again after the pod was deleted and its successor published",
            vec![publish(FIRST), Op::Delete(HERE), publish(other), Op::Replay(0), Op::Fetch(HERE)],
        ),
        (
            "volumes that overlap in everything but the account (found by the test in its own model)",
            vec![Op::Recreate { old: HERE, new: other, volume: 0 }, Op::FetchOld(72), publish(FIRST)],
        ),
    ]
}
