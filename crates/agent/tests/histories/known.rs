//! Histories that a broken agent failed, as they were shrunk, and some written by hand.

use super::history::{Mischief, Op, Pod, Proof, Spot};

const FIRST: Pod = Pod { uid: 0, namespace: 0, name: 0, account: 0 };
const HERE: Spot = Spot { uid: 0, volume: 0 };

fn publish(pod: Pod) -> Op {
    Op::Publish { pod, volume: 0, id: 0, proof: Proof::Own, prepare: true }
}

pub fn all() -> Vec<(&'static str, Vec<Op>)> {
    let other = Pod { account: 1, ..FIRST };
    let neighbour = Pod { uid: 1, ..other };
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
            "the descriptor of another volume in a publish, an unpublish that comes late, and both killed",
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
    ]
}
