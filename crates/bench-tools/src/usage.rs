//! CPU time and memory of the measured processes, from `/proc` (proc(5)).

use std::fs;
use std::time::Duration;

use crate::error::BenchError;

/// Length of a tick in `/proc/PID/stat`: `USER_HZ` is 100 on every architecture that Linux wheels are built for.
const TICK: Duration = Duration::from_millis(10);

/// CPU time, user and system, of these processes so far.
pub fn cpu_time(pids: &[u32]) -> Result<Duration, BenchError> {
    let mut ticks = 0;
    for &pid in pids {
        let stat = read(pid, "stat")?;
        ticks += ticks_of(&stat).ok_or(BenchError::ProcessEnded { pid })?;
    }
    Ok(TICK * ticks)
}

/// The highest resident memory of these processes so far, summed, in KiB.
pub fn peak_rss_kib(pids: &[u32]) -> Result<u64, BenchError> {
    let mut sum = 0;
    for &pid in pids {
        let status = read(pid, "status")?;
        // A process that has ended but was not waited for has no such line.
        sum += peak_of(&status).ok_or(BenchError::ProcessEnded { pid })?;
    }
    Ok(sum)
}

fn read(pid: u32, file: &str) -> Result<String, BenchError> {
    fs::read_to_string(format!("/proc/{pid}/{file}")).map_err(|_| BenchError::ProcessEnded { pid })
}

/// Fields 14 and 15. The name, field 2, may contain anything, so counting starts behind its `)`.
fn ticks_of(stat: &str) -> Option<u32> {
    let (_, rest) = stat.rsplit_once(')')?;
    let mut fields = rest.split_ascii_whitespace().skip(11);
    let user: u32 = fields.next()?.parse().ok()?;
    let system: u32 = fields.next()?.parse().ok()?;
    Some(user + system)
}

fn peak_of(status: &str) -> Option<u64> {
    let line = status.lines().find_map(|it| it.strip_prefix("VmHWM:"))?;
    line.trim().strip_suffix("kB")?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_counted_behind_a_name_with_parentheses() {
        let stat = "7 (a) b (c)) S 1 7 7 0 -1 4194560 100 0 0 0 31 11 0 0 20 0 1 0 5 6 7";
        assert_eq!(ticks_of(stat), Some(42));
        assert_eq!(ticks_of("7 (a) S 1"), None);
    }

    #[test]
    fn the_peak_is_the_high_water_mark() {
        assert_eq!(
            peak_of("VmPeak:\t 9 kB\nVmHWM:\t   22520 kB\nVmRSS:\t 5 kB\n"),
            Some(22520)
        );
        assert_eq!(peak_of("State:\tZ (zombie)\n"), None);
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn this_process_has_memory_and_an_unused_id_has_not() {
        let own = std::process::id();
        assert!(cpu_time(&[own]).is_ok());
        assert!(peak_rss_kib(&[own]).unwrap() > 100);
        // Above the largest id that Linux gives out (2^22).
        assert!(matches!(
            cpu_time(&[own, 5_000_000]),
            Err(BenchError::ProcessEnded { pid: 5_000_000 })
        ));
    }
}
