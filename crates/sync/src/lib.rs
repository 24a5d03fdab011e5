//! Locks and counters for what several tasks share: the standard library's.
//!
//! In tests each use of one is a point at which a model (module `model`) may let somebody else go on, so that
//! the code that ships is what is explored. That is enough: what a lock guards changes only under it, so what
//! others can see depends on the order of these points and of `.await`s alone.

#[cfg(not(test))]
pub(crate) use std::sync::{
    Mutex, MutexGuard,
    atomic::{AtomicBool, AtomicU64, AtomicUsize},
};

#[cfg(test)]
pub(crate) use watched::*;

/// Starts what nobody waits for.
#[cfg(not(test))]
pub(crate) fn spawn(work: impl Future<Output = ()> + Send + 'static) {
    tokio::spawn(work);
}

/// Runs what would keep a thread, on another one.
#[cfg(not(test))]
pub(crate) use tokio::task::spawn_blocking as blocking;

#[cfg(test)]
mod watched {
    use std::ops::{Deref, DerefMut};
    use std::sync::atomic::Ordering;
    use std::sync::{LockResult, PoisonError};

    use crate::model::{exploring, held, pause, point, task};

    /// Starts what nobody waits for; in a model as one more task of it.
    pub(crate) fn spawn(work: impl Future<Output = ()> + Send + 'static) {
        if exploring() {
            drop(task(work));
        } else {
            tokio::spawn(work);
        }
    }

    /// Runs what would keep a thread, on another one; in a model here, after a while.
    pub(crate) async fn blocking<T: Send + 'static>(
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, tokio::task::JoinError> {
        if exploring() {
            pause(8).await;
            return Ok(work());
        }
        tokio::task::spawn_blocking(work).await
    }

    #[derive(Debug, Default)]
    pub(crate) struct Mutex<T>(std::sync::Mutex<T>);

    pub(crate) struct MutexGuard<'a, T>(Option<std::sync::MutexGuard<'a, T>>);

    impl<T> Mutex<T> {
        pub(crate) const fn new(value: T) -> Self {
            Self(std::sync::Mutex::new(value))
        }

        pub(crate) fn lock(&self) -> LockResult<MutexGuard<'_, T>> {
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
            pub(crate) struct $name(std::sync::atomic::$name);

            #[allow(dead_code, reason = "not all of it is used of each")]
            impl $name {
                pub(crate) const fn new(value: $value) -> Self {
                    Self(std::sync::atomic::$name::new(value))
                }

                pub(crate) fn load(&self, order: Ordering) -> $value {
                    point();
                    self.0.load(order)
                }

                $(pub(crate) fn $call(&self, value: $value, order: Ordering) -> atomics!(@ $call $value) {
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
