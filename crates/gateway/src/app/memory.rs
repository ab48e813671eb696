//! The memory that the process may have.

use std::fs::read_to_string;

/// Where control groups of version 2 and 1 state a limit, bytes.
const LIMITS: [&str; 2] = [
    "/sys/fs/cgroup/memory.max",
    "/sys/fs/cgroup/memory/memory.limit_in_bytes",
];
/// Where the machine's memory is not known.
const ASSUMED: u64 = 4 << 30;

/// Bytes: the limit of the control group, or the machine's memory if that is less.
pub(super) fn available_memory() -> u64 {
    let limits = LIMITS.iter().filter_map(|path| read_to_string(path).ok());
    let limits = limits.filter_map(|text| text.trim().parse().ok());
    let machine = read_to_string("/proc/meminfo").ok();
    let machine = machine.as_deref().and_then(total);
    limits.chain(machine).min().unwrap_or(ASSUMED)
}

/// `MemTotal` of /proc/meminfo, in bytes.
fn total(meminfo: &str) -> Option<u64> {
    let line = meminfo
        .lines()
        .find_map(|line| line.strip_prefix("MemTotal:"))?;
    let kilobytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kilobytes * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn machines_memory_is_read_in_bytes() {
        let text = "MemTotal:       24689456 kB\nMemFree:  1 kB\n";
        assert_eq!(total(text), Some(24_689_456 * 1024));
        assert_eq!(total("MemFree: 1 kB\n"), None);
        assert!(available_memory() > 0);
    }
}
