//! The unprivileged half of Seamount on a node.

use std::process::ExitCode;

/// glibc keeps what a burst of publishes has freed, and the holes between what is left; this gives it back.
/// Its options are compiled in: `.cargo/config.toml`.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> ExitCode {
    seamount_agent::program::main(std::env::args_os().skip(1))
}
