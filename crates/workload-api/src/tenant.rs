//! What the clients of one pod may use together, over all of its sockets.
//!
//! A pod may have many volumes, and each has a socket: a bound for each socket bounds nothing. So
//! connections, streams, waiting bytes and the work that frames cause are counted here, once for each pod.

use std::{
    mem,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::{Instant, sleep_until},
};
use tokio_util::sync::CancellationToken;

use crate::{bucket::Bucket, observer::Observer};

/// What one tenant's clients may use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Connections at a time; further ones are accepted and closed.
    pub connections: usize,
    /// Streams of one connection at a time; further ones are refused by HTTP/2.
    pub streams: u32,
    /// Streams of all connections at a time; further ones are answered `ResourceExhausted`.
    pub all_streams: usize,
    /// Bytes that clients may have read from them at once, after they were silent. A connection counts as
    /// 1,024 bytes, a request as 512, a read as 128, whatever they bring.
    pub burst: u32,
    /// Bytes per second that are read in the long run. What is beyond waits in the sockets.
    pub rate: u32,
}

impl Default for Limits {
    /// 128 connections of 64 streams, 256 streams together; 256 KiB at once and 64 KiB per second.
    fn default() -> Self {
        Self { connections: 128, streams: 64, all_streams: 256, burst: 256 << 10, rate: 64 << 10 }
    }
}

/// Open reflection streams of one tenant. Each may hold a response that its client does not take, of some 30
/// KB, which no other stream shares.
const REFLECTIONS: usize = 4;

/// What is taken from the bucket beside the bytes that are read: accepting costs about as much processor time
/// as reading so many bytes of the cheapest frames, answering half of it, and a system call for a single
/// frame an eighth.
const CONNECTION: u64 = 1024;
const REQUEST: u64 = 512;
const READ: u64 = 128;
/// So many bytes of an answer that is shared by all streams count as one: it is only copied into the socket.
const SHARED: u64 = 64;

/// An estimate of what an open connection and an open stream hold, in bytes: buffers, tasks, what a client
/// may leave in them.
const OF_CONNECTION: u64 = 64 << 10;
const OF_STREAM: u64 = 16 << 10;

/// What all tenants of a process have together.
#[derive(Debug, Clone)]
pub struct Node {
    /// A permit for each connection.
    pub connections: Arc<Semaphore>,
    /// A permit for each descriptor that pods cause: connections here, whatever else the owner counts.
    pub descriptors: Arc<Semaphore>,
}

impl Node {
    /// Without bounds.
    pub fn unbounded() -> Self {
        let many = || Arc::new(Semaphore::new(Semaphore::MAX_PERMITS));
        Self { connections: many(), descriptors: many() }
    }
}

/// One pod's account. Each number is a sum of what was added and taken away, in any order, so relaxed atomics
/// do.
#[derive(Debug)]
pub struct Tenant {
    limits: Limits,
    node: Node,
    bucket: Bucket,
    /// Where the bucket's clock begins.
    start: Instant,
    connections: AtomicUsize,
    streams: AtomicUsize,
    reflections: AtomicUsize,
    /// Bytes of answers that no client has taken yet.
    queued: AtomicU64,
    /// Cancelled and replaced to cut every connection of the moment.
    epoch: Mutex<CancellationToken>,
}

impl Tenant {
    /// With nothing used yet.
    pub fn new(limits: Limits, node: Node) -> Arc<Self> {
        Arc::new(Self {
            limits,
            node,
            bucket: Bucket::new(limits.burst, limits.rate),
            start: Instant::now(),
            connections: AtomicUsize::new(0),
            streams: AtomicUsize::new(0),
            reflections: AtomicUsize::new(0),
            queued: AtomicU64::new(0),
            epoch: Mutex::default(),
        })
    }

    /// Its bounds.
    pub fn limits(&self) -> &Limits {
        &self.limits
    }

    /// About how many bytes of memory its clients cause.
    pub fn weight(&self) -> u64 {
        let count =
            |counter: &AtomicUsize| u64::try_from(counter.load(Ordering::Relaxed)).unwrap_or(u64::MAX);
        (count(&self.connections).saturating_mul(OF_CONNECTION))
            .saturating_add(count(&self.streams).saturating_mul(OF_STREAM))
            .saturating_add(self.queued.load(Ordering::Relaxed))
    }

    /// Cuts every connection that it has now; how many there were. New ones may come.
    pub fn shed(&self) -> usize {
        mem::take(&mut *self.epoch.lock().unwrap_or_else(PoisonError::into_inner)).cancel();
        self.connections.load(Ordering::Relaxed)
    }

    /// Cancelled when what is there now is shed.
    pub(crate) fn epoch(&self) -> CancellationToken {
        self.epoch.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Takes from the bucket; until when the taker must wait.
    fn take(&self, units: u64) -> Option<Instant> {
        let now = u64::try_from(self.start.elapsed().as_nanos()).unwrap_or(u64::MAX);
        self.bucket.take(units, now).map(|until| self.start + Duration::from_nanos(until))
    }

    /// Waits while the tenant is over its rate: new connections wait in the sockets' queues.
    pub(crate) async fn turn(&self, observer: &dyn Observer) {
        while let Some(until) = self.take(0) {
            observer.throttled();
            sleep_until(until).await;
        }
    }

    /// A place for one more connection; or what there is too much of. It is paid in either case.
    pub(crate) fn admit(self: &Arc<Self>, observer: &Arc<dyn Observer>) -> Result<Arc<Seat>, &'static str> {
        // Whether it is overdrawn, the next turn tells.
        let _ = self.take(CONNECTION);
        if !up(&self.connections, self.limits.connections) {
            return Err("connections");
        }
        let permit = |of: &Arc<Semaphore>| of.clone().try_acquire_owned();
        let (Ok(connection), Ok(descriptor)) =
            (permit(&self.node.connections), permit(&self.node.descriptors))
        else {
            down(&self.connections);
            return Err("node connections");
        };
        let ledger = Arc::new(Ledger {
            tenant: self.clone(),
            observer: observer.clone(),
            active: AtomicUsize::new(0),
            begun: AtomicU64::new(0),
            owed: AtomicU64::new(0),
            queued: AtomicU64::new(0),
        });
        Ok(Arc::new(Seat { ledger, _of_node: [connection, descriptor] }))
    }
}

fn up(counter: &AtomicUsize, limit: usize) -> bool {
    let next = |count: usize| (count < limit).then_some(count + 1);
    counter.fetch_update(Ordering::Relaxed, Ordering::Relaxed, next).is_ok()
}

fn down(counter: &AtomicUsize) {
    counter.fetch_sub(1, Ordering::Relaxed);
}

/// An open connection; counts while it lives, that is until its descriptor is closed.
pub(crate) struct Seat {
    ledger: Arc<Ledger>,
    _of_node: [OwnedSemaphorePermit; 2],
}

impl Seat {
    /// The connection's part of the account.
    pub(crate) fn ledger(&self) -> Arc<Ledger> {
        self.ledger.clone()
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        down(&self.ledger.tenant.connections);
    }
}

/// One connection's part of its tenant's account; it ends with the connection and its last stream.
///
/// `begun` is raised before the request is answered, and `active` and `begun` are read by the connection's
/// own task after a sleep of many seconds. A stream that begins at the very moment of the goodbye is cut soon
/// after, and its client connects again.
pub(crate) struct Ledger {
    tenant: Arc<Tenant>,
    observer: Arc<dyn Observer>,
    active: AtomicUsize,
    begun: AtomicU64,
    /// What was done for the connection and is not taken from the bucket yet.
    owed: AtomicU64,
    queued: AtomicU64,
}

impl Ledger {
    /// Open requests, and those that ever began.
    pub(crate) fn counts(&self) -> (usize, u64) {
        (self.active.load(Ordering::Relaxed), self.begun.load(Ordering::Relaxed))
    }

    /// A request begins; none where the tenant has too many open ones.
    pub(crate) fn request(self: &Arc<Self>) -> Option<Request> {
        self.begun.fetch_add(1, Ordering::Relaxed);
        self.owe(REQUEST);
        if !up(&self.tenant.streams, self.tenant.limits.all_streams) {
            return None;
        }
        self.active.fetch_add(1, Ordering::Relaxed);
        Some(Request { ledger: self.clone(), cost: Cost::Own })
    }

    /// Something was read.
    pub(crate) fn read(&self, bytes: usize) {
        self.owe(u64::try_from(bytes).unwrap_or(u64::MAX).saturating_add(READ));
    }

    /// Bytes were written to the socket.
    pub(crate) fn written(&self, bytes: usize) {
        let bytes = u64::try_from(bytes).unwrap_or(u64::MAX);
        let less = |queued: u64| Some(queued.saturating_sub(bytes));
        // Headers are written that were never counted as queued.
        let before = self.queued.fetch_update(Ordering::Relaxed, Ordering::Relaxed, less);
        self.tenant.queued.fetch_sub(before.unwrap_or_default().min(bytes), Ordering::Relaxed);
    }

    fn owe(&self, units: u64) {
        self.owed.fetch_add(units, Ordering::Relaxed);
    }

    /// Takes what is owed from the bucket; until when nothing more may be read.
    pub(crate) fn settle(&self) -> Option<Instant> {
        match self.owed.swap(0, Ordering::Relaxed) {
            0 => None,
            owed => self.tenant.take(owed).inspect(|_| self.observer.throttled()),
        }
    }
}

impl Drop for Ledger {
    fn drop(&mut self) {
        // A connection that ends before it reads again is no cheaper.
        let _ = self.tenant.take(*self.owed.get_mut());
        self.tenant.queued.fetch_sub(*self.queued.get_mut(), Ordering::Relaxed);
    }
}

/// One open request of a connection; counts while it lives.
pub(crate) struct Request {
    ledger: Arc<Ledger>,
    cost: Cost,
}

/// What the answer to a request costs, beside what each request does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Cost {
    /// Its bytes are shared by all streams.
    Shared,
    /// Its bytes are made for this stream alone.
    Own,
    /// Likewise, and they are many: a tenant has few such streams.
    Reflection,
}

impl Request {
    /// It is known what the answer costs; whether its tenant may have one more of the kind.
    pub(crate) fn charge(mut self, cost: Cost) -> Option<Self> {
        if cost == Cost::Reflection && !up(&self.ledger.tenant.reflections, REFLECTIONS) {
            return None;
        }
        self.cost = cost;
        Some(self)
    }

    /// A part of the answer is on its way.
    pub(crate) fn sends(&self, bytes: usize) {
        let bytes = u64::try_from(bytes).unwrap_or(u64::MAX);
        self.ledger.owe(match self.cost {
            Cost::Shared => bytes / SHARED,
            Cost::Own | Cost::Reflection => bytes,
        });
        // In this order: what is taken away from the sum was added to it before.
        self.ledger.tenant.queued.fetch_add(bytes, Ordering::Relaxed);
        self.ledger.queued.fetch_add(bytes, Ordering::Relaxed);
    }
}

impl Drop for Request {
    fn drop(&mut self) {
        let Ledger { tenant, active, .. } = &*self.ledger;
        down(active);
        down(&tenant.streams);
        if self.cost == Cost::Reflection {
            down(&tenant.reflections);
        }
    }
}
