//! Models of what runs side by side: the code that ships, under shuttle's scheduler.
//!
//! A model is one async function. Each task that it starts with [`task`] is one of shuttle's, which picks at
//! random which one goes on wherever a task waits and at each [`point`]. Sockets, timers and what the code
//! itself starts with `tokio::spawn` belong to a tokio runtime that is one more task: it goes on when shuttle
//! picks it, on a clock that moves only then, by [`MOMENT`]. A model that fails panics with the
//! schedule; `SEED` makes each run the same.

use std::cell::Cell;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use shuttle::rand::Rng as _;
use shuttle::scheduler::RandomScheduler;
use shuttle::{Config, MaxSteps, Runner};

/// By how much the clock moves when it does.
pub const MOMENT: Duration = Duration::from_millis(1);
/// The same in every run: a gate must not depend on luck. `MODEL_SEED` explores others.
const SEED: u64 = 1;

thread_local! {
    static EXPLORING: Cell<bool> = const { Cell::new(false) };
    static HELD: Cell<i32> = const { Cell::new(0) };
    /// Tasks that have not ended: what the code itself has started may outlive the model, and its timers must
    /// not outlive theirs.
    static LIVE: Cell<usize> = const { Cell::new(0) };
}

/// Here another task may go on; not while a lock is held, so that none meets one that is taken.
pub fn point() {
    if EXPLORING.get() && HELD.get() == 0 && !std::thread::panicking() {
        shuttle::thread::yield_now();
    }
}

/// Whether this is a model's task, and not what it has in the background.
pub fn exploring() -> bool {
    EXPLORING.get()
}

/// A lock was taken, or given back.
pub fn held(change: i32) {
    HELD.set(HELD.get() + change);
}

/// One of several, at random.
pub fn any(below: usize) -> usize {
    shuttle::rand::thread_rng().gen_range(0..below)
}

/// Starts a task that is scheduled at random.
pub fn task<T: Send + 'static>(
    work: impl Future<Output = T> + Send + 'static,
) -> shuttle::future::JoinHandle<T> {
    struct Running;
    impl Drop for Running {
        fn drop(&mut self) {
            LIVE.set(LIVE.get() - 1);
        }
    }
    LIVE.set(LIVE.get() + 1);
    let running = Running;
    shuttle::future::spawn(async move {
        let _running = running;
        work.await
    })
}

/// Lets others go on a few times.
pub async fn pause(most: usize) {
    for _ in 0..any(most + 1) {
        shuttle::future::yield_now().await;
    }
}

/// Runs the model under so many schedules.
pub fn explore<F>(schedules: usize, model: impl Fn() -> F + Send + Sync + 'static)
where
    F: Future<Output = ()> + Send + 'static,
{
    let seed = std::env::var("MODEL_SEED").ok().and_then(|s| s.parse().ok()).unwrap_or(SEED);
    let mut config = Config::new();
    config.stack_size = 1 << 20;
    // One that never ends has a task that never rests.
    config.max_steps = MaxSteps::FailAfter(1 << 16);
    Runner::new(RandomScheduler::new_from_seed(seed, schedules), config).run(move || execution(model()));
}

fn execution(model: impl Future<Output = ()> + Send + 'static) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build();
    let runtime = Arc::new(runtime.unwrap());
    let inside = runtime.enter();
    HELD.set(0);
    LIVE.set(0);
    EXPLORING.set(true);
    let over = Arc::new(AtomicBool::new(false));
    let background = shuttle::thread::spawn({
        let (runtime, over) = (Arc::clone(&runtime), Arc::clone(&over));
        move || {
            while !over.load(Ordering::Relaxed) {
                let later = any(16) == 0;
                EXPLORING.set(false);
                runtime.block_on(async {
                    tokio::task::yield_now().await;
                    if later {
                        tokio::time::advance(MOMENT).await;
                    }
                });
                EXPLORING.set(true);
                shuttle::thread::yield_now();
            }
        }
    });
    shuttle::future::block_on(model);
    while LIVE.get() > 0 {
        shuttle::thread::yield_now();
    }
    over.store(true, Ordering::Relaxed);
    background.join().unwrap();
    EXPLORING.set(false);
    drop(inside);
}
