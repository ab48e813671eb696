//! The memory that the process may have.

use std::fs::read_to_string;
use std::path::{Path, PathBuf};

/// Where the machine's memory is not known.
const ASSUMED: u64 = 4 << 30;

/// Bytes: the least of the limits of the control groups that the process is in, or the machine's
/// memory if that is less.
pub(super) fn available_memory() -> u64 {
    let groups = read_to_string("/proc/self/cgroup").unwrap_or_default();
    let files = limit_files(&groups).into_iter();
    let limits = files.filter_map(|path| read_to_string(path).ok());
    let limits = limits.filter_map(|text| text.trim().parse().ok());
    let machine = read_to_string("/proc/meminfo").ok();
    let machine = machine.as_deref().and_then(total);
    limits.chain(machine).min().unwrap_or(ASSUMED)
}

/// Where limits stand, by /proc/self/cgroup (cgroups(7)): of the process's own groups and of those
/// around them, in version 2 and in version 1. In a container the root is the container's group.
fn limit_files(groups: &str) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for line in groups.lines() {
        let mut fields = line.splitn(3, ':');
        let (hierarchy, controllers, group) = (fields.next(), fields.next(), fields.next());
        let (Some(hierarchy), Some(controllers), Some(group)) = (hierarchy, controllers, group)
        else {
            continue;
        };
        let (mount, name) = if hierarchy == "0" && controllers.is_empty() {
            ("/sys/fs/cgroup", "memory.max")
        } else if controllers
            .split(',')
            .any(|controller| controller == "memory")
        {
            ("/sys/fs/cgroup/memory", "memory.limit_in_bytes")
        } else {
            continue;
        };
        let own = Path::new(group.trim_start_matches('/'));
        let around = own.ancestors();
        files.extend(around.map(|group| Path::new(mount).join(group).join(name)));
    }
    files
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

    #[test]
    fn limits_of_the_groups_around_the_process_count_too() {
        let files = |groups| {
            let files: Vec<PathBuf> = limit_files(groups);
            let files = files.into_iter();
            files
                .map(|path| path.display().to_string())
                .collect::<Vec<_>>()
        };
        assert_eq!(
            files("0::/system.slice/gateway.service\n"),
            [
                "/sys/fs/cgroup/system.slice/gateway.service/memory.max",
                "/sys/fs/cgroup/system.slice/memory.max",
                "/sys/fs/cgroup/memory.max",
            ]
        );
        assert_eq!(
            files("5:cpu,memory:/pod\n4:pids:/pod\n0::/\n"),
            [
                "/sys/fs/cgroup/memory/pod/memory.limit_in_bytes",
                "/sys/fs/cgroup/memory/memory.limit_in_bytes",
                "/sys/fs/cgroup/memory.max",
            ]
        );
        assert!(files("nonsense").is_empty());
    }
}
