//! What a request may cost a gateway, in counts that are the same on every machine: allocations and
//! system calls. Times are `bench/compare.py`'s.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod allocations;
mod stage;
mod system_calls;

use std::alloc::System;

use stats_alloc::{INSTRUMENTED_SYSTEM, StatsAlloc};

/// Counts what the whole process allocates: the gateway, for workers and load are other processes.
#[global_allocator]
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;
