//! Wrong and late answers, made from right ones.

use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex};

use seamount_mounter_client::Socket;
use seamount_mounter_protocol::{Reply, Request};
use tokio::sync::Notify;

use super::history::Mischief;

/// A reply with its descriptor.
pub type Answer = (Reply, Option<Arc<OwnedFd>>);

/// How many answers are remembered, to be given again.
const REMEMBERED: usize = 12;

/// What is to happen with the next requests.
#[derive(Default)]
pub struct Plan {
    mischief: Mutex<Vec<Mischief>>,
    pub released: Notify,
}

impl Plan {
    pub fn add(&self, mischief: Mischief) {
        self.mischief.lock().unwrap().push(mischief);
    }

    pub fn clear(&self) {
        self.mischief.lock().unwrap().clear();
        self.released.notify_one();
    }

    /// For this request; what the agent cannot start without is left in peace.
    pub fn next(&self, request: &Request) -> Option<Mischief> {
        match request {
            Request::Hello
            | Request::State
            | Request::CsiListener(_)
            | Request::RegistrationListener(_)
            | Request::Offer(_) => None,
            Request::StoreListener { subject, .. } if subject.volume().is_none() => None,
            _ => self.mischief.lock().unwrap().pop(),
        }
    }
}

#[derive(Default)]
pub struct Mixer {
    before: Vec<Answer>,
    late: Vec<Answer>,
}

impl Mixer {
    /// What is sent in the place of the right answer; `None`: the connection ends.
    pub fn mix(&mut self, planned: Option<Mischief>, right: Answer) -> Option<Vec<Answer>> {
        let others = || self.before.iter().rev();
        let other = others().find(|(reply, fd)| reply.subject != right.0.subject && fd.is_some());
        // Else one of an earlier life of the same volume.
        let other = other
            .or_else(|| others().find(|(reply, fd)| fd.is_some() && reply.cookie != right.0.cookie))
            .cloned();
        if right.0.subject.volume().is_some() {
            self.before.push(right.clone());
            if self.before.len() > REMEMBERED {
                self.before.remove(0);
            }
        }
        Some(match (planned, other) {
            (Some(Mischief::Late), _) => {
                self.late.push(right);
                Vec::new()
            }
            (Some(Mischief::CloseAfter | Mischief::CloseBefore), _) => return None,
            (Some(Mischief::Twice), _) => vec![right.clone(), right],
            (Some(Mischief::OtherDescriptor), Some((_, fd))) => vec![(right.0, fd)],
            (Some(Mischief::OtherAnswer), Some((reply, fd))) => {
                vec![(Reply { id: right.0.id, op: right.0.op, ..reply }, fd)]
            }
            (Some(Mischief::Again), Some(other)) => vec![other, right],
            _ => vec![right],
        })
    }

    /// What was kept back, the last first. Forgets all others: a descriptor that is remembered keeps its
    /// listener alive.
    pub fn late(&mut self) -> Vec<Answer> {
        self.before.clear();
        self.late.drain(..).rev().collect()
    }
}

pub async fn send(socket: &Socket, answers: Vec<Answer>) -> std::io::Result<()> {
    for (reply, fd) in answers {
        socket.send(&reply.encode(), fd.as_deref()).await?;
    }
    Ok(())
}
