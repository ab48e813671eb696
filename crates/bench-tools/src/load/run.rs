//! A run: warm up, count, report.

use std::cell::RefCell;
use std::mem;
use std::rc::Rc;
use std::time::Duration;

use tokio::task::LocalSet;
use tokio::time::{Instant, sleep};

use super::connection::{Shared, drive};
use super::options::LoadOptions;
use super::pace::Pace;
use super::report::{Report, Used};
use super::requests::Requests;
use super::tally::Tally;
use crate::error::BenchError;
use crate::tls;
use crate::usage::{cpu_time, peak_rss_kib};

/// Sends load for the stated seconds and no longer; requests that are in flight at the end are abandoned.
pub async fn run(options: &LoadOptions) -> Result<Report, BenchError> {
    let shared = Rc::new(Shared {
        port: options.port,
        events: options.events,
        requests_per_connection: options.requests_per_connection,
        tls: options.ca.as_deref().map(tls::client).transpose()?,
        requests: RefCell::new(Requests::new(options)),
        pace: (options.rate > 0).then(|| Pace::start(options.rate)),
        tally: RefCell::default(),
    });
    let connections = LocalSet::new();
    for _ in 0..options.connections {
        connections.spawn_local(drive(Rc::clone(&shared)));
    }
    connections.run_until(measure(options, &shared)).await
}

async fn measure(options: &LoadOptions, shared: &Shared) -> Result<Report, BenchError> {
    sleep(Duration::from_secs(options.warm_up_s.into())).await;
    let started = Instant::now();
    let cpu_before = cpu_time(&options.pids)?;
    take(shared);
    sleep(Duration::from_secs(options.seconds.into())).await;
    let cpu = cpu_time(&options.pids)?.saturating_sub(cpu_before);
    let tally = take(shared);
    let elapsed = started.elapsed();
    let used = if options.pids.is_empty() {
        None
    } else {
        let peak_rss_kib = peak_rss_kib(&options.pids)?;
        Some(Used { cpu, peak_rss_kib })
    };
    Ok(Report::new(tally, elapsed, used))
}

fn take(shared: &Shared) -> Tally {
    mem::take(&mut *shared.tally.borrow_mut())
}
