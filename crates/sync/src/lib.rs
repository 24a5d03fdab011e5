//! Locks and counters for what several tasks share: the standard library's.
//!
//! With the feature `model` each use of one is a point at which a model (module `model`) may let another task
//! go on, so that the code that ships is what is explored. That is enough: what a lock guards changes only
//! under it, so what others can see depends on the order of these points and of `.await`s alone.
//!
//! Crates have this crate twice: as a dependency without features, and as a dev-dependency with `model`. No
//! shipped program has the feature, for cargo leaves dev-dependencies out where it builds no test.

#[cfg(not(feature = "model"))]
pub use std::sync::{
    Mutex, MutexGuard,
    atomic::{AtomicBool, AtomicU64, AtomicUsize},
};

#[cfg(feature = "model")]
#[allow(clippy::unwrap_used, reason = "for tests alone")]
pub mod model;

#[cfg(feature = "model")]
pub use watched::*;

/// Starts a task whose end no one is told of. Needs a tokio runtime.
#[cfg(not(feature = "model"))]
pub fn spawn(work: impl Future<Output = ()> + Send + 'static) {
    tokio::spawn(work);
}

/// Runs what would keep a thread, on another one.
#[cfg(not(feature = "model"))]
pub use tokio::task::spawn_blocking as blocking;

#[cfg(feature = "model")]
#[allow(
    clippy::unwrap_used,
    missing_docs,
    reason = "for tests alone; each item is the standard library's of that name"
)]
mod watched {
    use std::ops::{Deref, DerefMut};
    use std::sync::atomic::Ordering;
    use std::sync::{LockResult, PoisonError};

    use crate::model::{exploring, held, pause, point, task};

    /// Starts a task whose end no one is told of; in a model as one more task of it.
    pub fn spawn(work: impl Future<Output = ()> + Send + 'static) {
        if exploring() {
            drop(task(work));
        } else {
            tokio::spawn(work);
        }
    }

    /// Runs what would keep a thread, on another one; in a model here, after a while.
    pub async fn blocking<T: Send + 'static>(
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, tokio::task::JoinError> {
        if exploring() {
            pause(8).await;
            return Ok(work());
        }
        tokio::task::spawn_blocking(work).await
    }

    #[derive(Debug, Default)]
    pub struct Mutex<T>(std::sync::Mutex<T>);

    pub struct MutexGuard<'a, T>(Option<std::sync::MutexGuard<'a, T>>);

    impl<T> Mutex<T> {
        pub const fn new(value: T) -> Self {
            Self(std::sync::Mutex::new(value))
        }

        pub fn lock(&self) -> LockResult<MutexGuard<'_, T>> {
            point();
            let guard = self.0.lock();
            held(1);
            match guard {
                Ok(guard) => Ok(MutexGuard(Some(guard))),
                Err(poisoned) => Err(PoisonError::new(MutexGuard(Some(poisoned.into_inner())))),
            }
        }
    }

    impl<T> Deref for MutexGuard<'_, T> {
        type Target = T;
        fn deref(&self) -> &T {
            self.0.as_deref().unwrap()
        }
    }

    impl<T> DerefMut for MutexGuard<'_, T> {
        fn deref_mut(&mut self) -> &mut T {
            self.0.as_deref_mut().unwrap()
        }
    }

    impl<T> Drop for MutexGuard<'_, T> {
        fn drop(&mut self) {
            drop(self.0.take());
            held(-1);
            point();
        }
    }

    macro_rules! atomics {
        ($($name:ident $value:ty: $($call:ident)*;)*) => {$(
            #[allow(dead_code, reason = "not all of it is used of each")]
            #[derive(Debug, Default)]
            pub struct $name(std::sync::atomic::$name);

            #[allow(dead_code, reason = "not all of it is used of each")]
            impl $name {
                pub const fn new(value: $value) -> Self {
                    Self(std::sync::atomic::$name::new(value))
                }

                pub fn load(&self, order: Ordering) -> $value {
                    point();
                    self.0.load(order)
                }

                $(pub fn $call(&self, value: $value, order: Ordering) -> atomics!(@ $call $value) {
                    point();
                    self.0.$call(value, order)
                })*
            }
        )*};
        (@ store $value:ty) => { () };
        (@ $other:ident $value:ty) => { $value };
    }

    atomics! {
        AtomicBool bool: store;
        AtomicU64 u64: store;
        AtomicUsize usize: fetch_add fetch_sub;
    }
}
