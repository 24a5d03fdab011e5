//! One connection after the other, and the requests in flight on it.

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use seamount_mounter_protocol::{Fault, FrameError, Reply, Request, flag};
use tokio::sync::{mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;

use super::socket::{Received, Socket};
use super::{Answer, DEADLINE, Hello, Link, MounterError, Up, check, operation};

/// Requests on the wire at once. The mounter works one after the other; this keeps it busy, and keeps both
/// sockets' buffers from filling, so that neither side ever waits for the other to read.
const IN_FLIGHT: usize = 16;
/// Both containers of a pod start at once: the agent may be a few milliseconds early.
const FIRST_RETRY: Duration = Duration::from_millis(5);
/// After a mounter that was away for long, pods that come and go wait no longer than this. An attempt is one
/// system call.
const LAST_RETRY: Duration = Duration::from_millis(200);

/// A request and where its answer goes.
#[derive(Debug)]
pub(super) struct Job {
    pub request: Request,
    pub fd: Option<Arc<OwnedFd>>,
    pub answer: oneshot::Sender<Result<Answer, MounterError>>,
}

/// Why a connection ended.
#[derive(Debug)]
enum End {
    Incompatible(String),
    Broken(String),
}

/// Connects again and again until cancelled.
///
/// `superseded` is cancelled when the mounter says that a younger one takes over; the connection goes on, so
/// that what is in flight can be finished.
pub(super) async fn keep_connected(
    path: PathBuf,
    link: watch::Sender<Link>,
    cancel: CancellationToken,
    superseded: CancellationToken,
) {
    let mut number = 0;
    let mut pause = FIRST_RETRY;
    let mut told = String::new();
    loop {
        let end = tokio::select! {
            () = cancel.cancelled() => return,
            end = connection(&path, &link, &superseded, &mut number, &mut pause) => end,
        };
        let (state, text) = match end {
            End::Incompatible(text) => (Link::Incompatible(text.clone()), text),
            End::Broken(text) => (Link::Down(text.clone()), text),
        };
        // Once per reason: a mounter that stays away would fill the log.
        if told != text {
            tracing::warn!(socket = %path.display(), reason = %text, "no connection to the mounter");
            told = text;
        }
        link.send_replace(state);
        tokio::select! {
            () = cancel.cancelled() => return,
            () = tokio::time::sleep(pause) => {}
        }
        pause = (pause * 2).min(LAST_RETRY);
    }
}

async fn connection(
    path: &Path,
    link: &watch::Sender<Link>,
    superseded: &CancellationToken,
    number: &mut u64,
    pause: &mut Duration,
) -> End {
    let socket = match Socket::connect(path) {
        Ok(socket) => socket,
        Err(e) => return End::Broken(e.to_string()),
    };
    let hello = match tokio::time::timeout(DEADLINE, hello(&socket)).await {
        Ok(Ok(hello)) => hello,
        Ok(Err(end)) => return end,
        Err(_) => return End::Broken("it does not answer Hello".to_owned()),
    };
    *number += 1;
    *pause = FIRST_RETRY;
    tracing::info!(build = %hello.build, connection = *number, "connected to the mounter");
    let (jobs, queue) = mpsc::channel(IN_FLIGHT);
    link.send_replace(Link::Up(Up { number: *number, since: SystemTime::now(), hello, jobs }));
    End::Broken(serve(&socket, queue, superseded).await)
}

async fn hello(socket: &Socket) -> Result<Hello, End> {
    let closed = || {
        End::Broken(
            "it closed the connection: it serves one agent at a time, and only the uid given as its --agent-uid"
                .to_owned(),
        )
    };
    // It may be gone before Hello is written or read.
    let broken = |e: std::io::Error| match e.kind() {
        std::io::ErrorKind::BrokenPipe | std::io::ErrorKind::ConnectionReset => closed(),
        _ => End::Broken(e.to_string()),
    };
    socket.send(&Request::Hello.encode(0), None).await.map_err(broken)?;
    let received = socket.receive().await.map_err(broken)?;
    if received.bytes.is_empty() {
        return Err(closed());
    }
    let reply = match Reply::decode(&received.bytes) {
        Ok(reply) => reply,
        Err(e @ FrameError::Version(_)) => return Err(End::Incompatible(e.to_string())),
        Err(e) => return Err(End::Broken(e.to_string())),
    };
    match check::answer(0, &Request::Hello, reply, received, socket.peer_uid()) {
        Ok(Answer { reply, .. }) => {
            let [descriptors, age_us, _] = reply.numbers;
            let has = |bit| reply.flags & bit != 0;
            let (idmap, noswap) = (has(flag::IDMAP), has(flag::NOSWAP));
            Ok(Hello { descriptors, age_us, build: reply.text, idmap, noswap })
        }
        Err(MounterError::Fault { fault: Fault::Version, text, .. }) => Err(End::Incompatible(text)),
        Err(e) => Err(End::Broken(e.to_string())),
    }
}

/// Carries requests and replies until the connection breaks; says why it did.
///
/// `pending` belongs to this task alone, so nothing is locked. A request is in it from when its frame was
/// sent until its reply was read, under an id that this connection never uses again: the job that is found
/// there is the one that was asked for. A job whose caller has given up (a deadline, a future that was
/// dropped) stays in it with a closed channel: the late reply is still known, and what came with it is
/// closed. When this ends the socket is closed, so a reply that is still on its way reaches no caller. Every
/// job fails or is dropped, which is the same to `ask`: none waits for a connection that is gone. Cancelled
/// (the agent stops), the map is dropped with all channels.
async fn serve(socket: &Socket, mut queue: mpsc::Receiver<Job>, superseded: &CancellationToken) -> String {
    let mut pending: HashMap<u64, Job> = HashMap::new();
    let mut next = 1;
    let mounter = socket.peer_uid();
    let why = loop {
        tokio::select! {
            biased;
            received = socket.receive() => {
                let outcome = match received {
                    Ok(received) => accept(&mut pending, received, mounter, superseded),
                    Err(e) => Err(e.to_string()),
                };
                if let Err(why) = outcome {
                    break why;
                }
            }
            job = queue.recv(), if pending.len() < IN_FLIGHT => {
                let Some(job) = job else { break "the agent is stopping".to_owned() };
                // The caller has given up: nothing has happened yet and nothing needs to.
                if job.answer.is_closed() {
                    continue;
                }
                if let Err(e) = socket.send(&job.request.encode(next), job.fd.as_deref()).await {
                    fail(job, &e.to_string());
                    break e.to_string();
                }
                // The message has the descriptor now. A reply that never comes must not keep a listener open.
                pending.insert(next, Job { fd: None, ..job });
                next += 1;
            }
        }
    };
    pending.into_values().for_each(|job| fail(job, &why));
    why
}

/// Gives a reply to the job that asked for it. An error ends the connection: what follows could be out of
/// step too.
fn accept(
    pending: &mut HashMap<u64, Job>,
    received: Received,
    mounter: u32,
    superseded: &CancellationToken,
) -> Result<(), String> {
    if received.bytes.is_empty() {
        return Err("the mounter closed the connection".to_owned());
    }
    let reply = Reply::decode(&received.bytes).map_err(|e| e.to_string())?;
    let id = reply.id;
    if reply.fault == Some(Fault::Superseded) {
        superseded.cancel();
        return Ok(());
    }
    let job =
        pending.remove(&id).ok_or_else(|| format!("a reply to the request {id}, which was never made"))?;
    let result = check::answer(id, &job.request, reply, received, mounter);
    let end = match &result {
        Err(e @ MounterError::Untrusted { .. }) => Err(e.to_string()),
        _ => Ok(()),
    };
    // A caller that has given up drops the answer here, and with it the descriptor.
    if job.answer.send(result).is_err() {
        tracing::warn!(operation = operation(&job.request), "the mounter answered too late; thrown away");
    }
    end
}

fn fail(job: Job, why: &str) {
    let error = MounterError::Broken { operation: operation(&job.request), why: why.to_owned() };
    let _ = job.answer.send(Err(error));
}
