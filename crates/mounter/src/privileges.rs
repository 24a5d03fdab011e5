//! What the mounter gives up before it listens to anybody.

use std::collections::BTreeMap;
use std::io;

use rustix::process::{DumpableBehavior, Resource, getrlimit, set_dumpable_behavior, setrlimit};
use rustix::thread::{self, CapabilitiesSecureBits, CapabilitySet, CapabilitySets};
use seccompiler::{BackendError, SeccompAction, SeccompCmpArgLen, SeccompCmpOp};
use seccompiler::{BpfProgram, SeccompCondition, SeccompFilter, SeccompRule};

use crate::error::{Context, Result};

/// Mounts; ownership where mounts cannot be idmapped; looking into the agent's directories of such a tmpfs.
const USED: CapabilitySet =
    CapabilitySet::SYS_ADMIN.union(CapabilitySet::CHOWN).union(CapabilitySet::DAC_READ_SEARCH);

macro_rules! calls {
    ($($name:ident)*) => { &[$(libc::$name),*] };
}

/// System calls on their way through rustix, seccompiler and the standard library. `socket` is allowed for
/// AF_UNIX only.
const CALLS: &[libc::c_long] = calls! {
    SYS_accept4 SYS_bind SYS_brk SYS_chdir SYS_clock_gettime SYS_clock_nanosleep SYS_close SYS_connect
    SYS_exit SYS_exit_group SYS_fchdir SYS_fchmod SYS_fchownat SYS_fcntl SYS_flock SYS_fsconfig SYS_fsmount
    SYS_fsopen SYS_fstat SYS_fstatfs SYS_futex SYS_getdents64 SYS_geteuid SYS_getpid SYS_getrandom
    SYS_getpeername SYS_getsockname SYS_getsockopt SYS_gettid SYS_listen SYS_lseek SYS_madvise SYS_mkdirat SYS_mmap
    SYS_mount_setattr SYS_move_mount SYS_mprotect SYS_mremap SYS_munmap SYS_newfstatat SYS_open_tree
    SYS_openat SYS_openat2 SYS_ppoll SYS_read SYS_recvmsg SYS_renameat SYS_restart_syscall SYS_rt_sigaction
    SYS_rt_sigprocmask SYS_rt_sigreturn SYS_sendmsg SYS_setsockopt SYS_shutdown SYS_sigaltstack SYS_statx
    SYS_symlinkat SYS_tgkill SYS_umount2 SYS_unlinkat SYS_utimensat SYS_write SYS_writev
};

/// Raises the limit of open files to what is allowed; returns it.
pub fn raise_descriptor_limit() -> u64 {
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    let _ = setrlimit(Resource::Nofile, limit);
    getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX)
}

/// Keeps three capabilities and the system calls above, for good: in this thread and in those that `threads`
/// starts, which is called in between, because the filter lets no thread be made.
pub fn drop_the_rest<T>(threads: impl FnOnce() -> Result<T>) -> Result<T> {
    for number in 0..u64::BITS {
        let capability = CapabilitySet::from_bits_retain(1 << number);
        // Numbers that the kernel does not know are an error.
        if thread::capability_is_in_bounding_set(capability) == Ok(true) && !USED.contains(capability) {
            thread::remove_capability_from_bounding_set(capability).context("limit the capabilities")?;
        }
    }
    // Root without the privileges of root, now and after anything that might be executed.
    let bits = CapabilitiesSecureBits::from_bits_retain(0xff) - CapabilitiesSecureBits::KEEP_CAPS;
    thread::set_capabilities_secure_bits(bits).context("set the secure bits")?;
    // Nothing inheritable, so nothing ambient either.
    let sets = CapabilitySets { effective: USED, permitted: USED, inheritable: CapabilitySet::empty() };
    thread::set_capabilities(None, sets).context("drop capabilities")?;
    set_dumpable_behavior(DumpableBehavior::NotDumpable).context("forbid core dumps")?;
    let started = threads()?;
    let filter = filter().map_err(io::Error::other).context("make the seccomp filter")?;
    // Sets no_new_privs first.
    let installed = seccompiler::apply_filter_all_threads(&filter).map_err(io::Error::other);
    installed.context("install the seccomp filter")?;
    Ok(started)
}

fn filter() -> Result<BpfProgram, BackendError> {
    let unix = SeccompCondition::new(0, SeccompCmpArgLen::Dword, SeccompCmpOp::Eq, libc::AF_UNIX as u64)?;
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> = CALLS.iter().map(|call| (*call, vec![])).collect();
    #[cfg(target_arch = "x86_64")] // elsewhere rustix has only ppoll
    rules.insert(libc::SYS_poll, vec![]);
    rules.insert(libc::SYS_socket, vec![SeccompRule::new(vec![unix])?]);
    let (other, listed) = (SeccompAction::Errno(libc::EPERM as u32), SeccompAction::Allow);
    let architecture = std::env::consts::ARCH.try_into()?;
    SeccompFilter::new(rules, other, listed, architecture)?.try_into()
}
