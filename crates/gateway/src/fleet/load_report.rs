//! What a worker reports of its load, as `/v1/loads` has it.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use routing::{LoadFigures, PrefillCounters, PrefillSpeed};
use serde_json::{Map, Value, json};
use tokio::time::Instant;

/// The load of one data-parallel rank, or of several together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct LoadReport {
    pub(crate) running: u64,
    pub(crate) waiting: u64,
    /// Prompt tokens to compute, of those that wait.
    pub(crate) waiting_tokens: u64,
    /// Memory that running requests take, and all of it, in tokens.
    pub(crate) used_tokens: u64,
    pub(crate) max_tokens: u64,
    /// What has been computed since the start, where the engine counts it.
    pub(crate) prefill: Option<PrefillCounters>,
}

impl LoadReport {
    /// What one entry of `/v1/loads` says, with its rank; `None` if it lacks what every release has.
    pub(super) fn of_entry(entry: &Value) -> Option<(u64, Self)> {
        let entry = entry.as_object()?;
        let prefill = || {
            Some(PrefillCounters {
                tokens: number(entry, "total_prefill_uncached_tokens")?,
                busy_us: number(entry, "total_prefill_busy_us")?,
            })
        };
        let report = Self {
            running: number(entry, "num_running_reqs")?,
            waiting: number(entry, "num_waiting_reqs")?,
            waiting_tokens: number(entry, "num_waiting_uncached_tokens").unwrap_or(0),
            used_tokens: number(entry, "num_used_tokens").unwrap_or(0),
            max_tokens: number(entry, "max_total_num_tokens").unwrap_or(0),
            prefill: prefill(),
        };
        Some((number(entry, "dp_rank").unwrap_or(0), report))
    }

    /// Both together.
    pub(super) fn plus(self, other: Self) -> Self {
        let prefill = self.prefill.zip(other.prefill);
        Self {
            running: self.running.saturating_add(other.running),
            waiting: self.waiting.saturating_add(other.waiting),
            waiting_tokens: self.waiting_tokens.saturating_add(other.waiting_tokens),
            used_tokens: self.used_tokens.saturating_add(other.used_tokens),
            max_tokens: self.max_tokens.saturating_add(other.max_tokens),
            prefill: prefill.map(|(one, other)| PrefillCounters {
                tokens: one.tokens.saturating_add(other.tokens),
                busy_us: one.busy_us.saturating_add(other.busy_us),
            }),
        }
    }

    pub(super) fn figures(self) -> LoadFigures {
        LoadFigures {
            requests: self.running.saturating_add(self.waiting),
            queued_tokens: self.waiting_tokens,
            kv_tokens: self.used_tokens,
        }
    }
}

/// A count, whole or not.
fn number(entry: &Map<String, Value>, name: &str) -> Option<u64> {
    let value = entry.get(name)?;
    let rounded = || {
        let number = value.as_f64().filter(|number| *number >= 0.0)?;
        #[expect(clippy::cast_sign_loss, reason = "it is not negative")]
        let whole = number as u64;
        Some(whole)
    };
    value.as_u64().or_else(rounded)
}

/// How reports come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum LoadSource {
    /// As answers to questions.
    Poll,
    /// As the worker publishes them.
    Push,
}

/// How long a published report counts: three of the worker's heartbeats.
pub(super) const PUSH_LASTS: Duration = Duration::from_secs(3);

/// The last report of a worker.
#[derive(Clone, Copy, Debug)]
pub(crate) struct LastReport {
    pub(crate) report: LoadReport,
    pub(crate) source: LoadSource,
    pub(crate) at: Instant,
    /// Prompt tokens per second of prefill, as measured.
    pub(crate) prefill_speed: Option<f64>,
}

impl LastReport {
    /// Whether the worker publishes its load, and has done so lately.
    fn is_pushed(self) -> bool {
        self.source == LoadSource::Push && self.at.elapsed() <= PUSH_LASTS
    }

    /// As explanations show it.
    pub(crate) fn to_json(self) -> Value {
        let report = self.report;
        json!({
            "source": match self.source {
                LoadSource::Poll => "poll",
                LoadSource::Push => "push",
            },
            "age_secs": self.at.elapsed().as_secs_f64(),
            "running": report.running,
            "waiting": report.waiting,
            "queued_tokens": report.waiting_tokens,
            "kv_tokens": report.used_tokens,
            "max_kv_tokens": report.max_tokens,
            "prefill_tokens_per_second": self.prefill_speed,
        })
    }
}

/// What a worker has reported of its load.
#[derive(Debug, Default)]
pub(crate) struct ReportedLoad(Mutex<Reported>);

#[derive(Debug, Default)]
struct Reported {
    last: Option<LastReport>,
    /// What was pushed last of each rank, where the ranks are one worker.
    ranks: BTreeMap<u16, (LoadReport, Instant)>,
    speed: PrefillSpeed,
}

impl ReportedLoad {
    /// All ranks together, of which this one has reported now. One that has been silent does not
    /// count.
    pub(super) fn with_rank(&self, rank: u16, report: LoadReport) -> LoadReport {
        let ranks = &mut self.lock().ranks;
        ranks.insert(rank, (report, Instant::now()));
        ranks.retain(|_, (_, at)| at.elapsed() <= PUSH_LASTS);
        let reports = ranks.values().map(|(report, _)| *report);
        reports.reduce(LoadReport::plus).unwrap_or(report)
    }

    /// Takes note of a report; false for a polled one while others are pushed.
    pub(super) fn note(&self, report: LoadReport, source: LoadSource) -> bool {
        let mut reported = self.lock();
        let pushed = reported.last.is_some_and(LastReport::is_pushed);
        if pushed && source == LoadSource::Poll {
            return false;
        }
        if let Some(counters) = report.prefill {
            reported.speed.observe(counters);
        }
        reported.last = Some(LastReport {
            report,
            source,
            at: Instant::now(),
            prefill_speed: reported.speed.tokens_per_sec(),
        });
        true
    }

    /// Forgets a report of this source that is older than this; true if there was one.
    pub(super) fn expire(&self, source: LoadSource, age: Duration) -> bool {
        let mut reported = self.lock();
        let of_source = reported.last.filter(|last| last.source == source);
        let is_old = of_source.is_some_and(|last| last.at.elapsed() > age);
        if is_old {
            reported.last = None;
            reported.ranks.clear();
        }
        is_old
    }

    /// The last report, unless it is too old to count.
    pub(crate) fn last(&self) -> Option<LastReport> {
        self.lock().last
    }

    fn lock(&self) -> MutexGuard<'_, Reported> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entry_is_read_with_and_without_what_newer_releases_add() {
        let entry = json!({"dp_rank": 3, "num_running_reqs": 2, "num_waiting_reqs": 1,
            "num_waiting_uncached_tokens": 700, "num_used_tokens": 900.0, "max_total_num_tokens": 5000,
            "total_prefill_uncached_tokens": 10, "total_prefill_busy_us": 20});
        let report = LoadReport {
            running: 2,
            waiting: 1,
            waiting_tokens: 700,
            used_tokens: 900,
            max_tokens: 5000,
            prefill: Some(PrefillCounters {
                tokens: 10,
                busy_us: 20,
            }),
        };
        assert_eq!(LoadReport::of_entry(&entry), Some((3, report)));
        let old = json!({"num_running_reqs": 2, "num_waiting_reqs": 0});
        let (rank, report) = LoadReport::of_entry(&old).unwrap();
        assert_eq!((rank, report.running, report.prefill), (0, 2, None));
        for other in [json!({"num_running_reqs": 2}), json!([]), json!(null)] {
            assert_eq!(LoadReport::of_entry(&other), None, "{other}");
        }
        let negative = json!({"num_running_reqs": -1, "num_waiting_reqs": 0});
        assert_eq!(LoadReport::of_entry(&negative), None);
    }

    #[tokio::test(start_paused = true)]
    async fn report_counts_until_it_is_old() {
        let (reported, age) = (ReportedLoad::default(), Duration::from_secs(3));
        let expire = || reported.expire(LoadSource::Poll, age);
        assert!(!expire() && reported.last().is_none());
        assert!(reported.note(LoadReport::default(), LoadSource::Poll));
        tokio::time::advance(age).await;
        assert!(!expire() && reported.last().is_some());
        tokio::time::advance(Duration::from_millis(1)).await;
        assert!(expire() && reported.last().is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn pushed_report_counts_before_a_polled_one_until_it_is_old() {
        let reported = ReportedLoad::default();
        let running = |running| LoadReport {
            running,
            ..LoadReport::default()
        };
        let shown = || reported.last().unwrap().report.running;
        assert!(reported.note(running(1), LoadSource::Poll));
        assert!(reported.note(running(2), LoadSource::Push));
        assert!(!reported.note(running(3), LoadSource::Poll));
        assert!(!reported.expire(LoadSource::Poll, Duration::ZERO));
        tokio::time::advance(PUSH_LASTS).await;
        assert!(!reported.note(running(3), LoadSource::Poll));
        assert_eq!(shown(), 2);
        tokio::time::advance(Duration::from_millis(1)).await;
        assert!(reported.note(running(4), LoadSource::Poll));
        assert_eq!(shown(), 4);
    }

    #[tokio::test(start_paused = true)]
    async fn ranks_that_are_one_worker_add_up_unless_silent() {
        let reported = ReportedLoad::default();
        let waiting = |waiting| LoadReport {
            waiting,
            ..LoadReport::default()
        };
        let sum = |rank, count| reported.with_rank(rank, waiting(count)).waiting;
        assert_eq!((sum(0, 5), sum(1, 7), sum(0, 1)), (5, 12, 8));
        tokio::time::advance(PUSH_LASTS).await;
        assert_eq!(sum(0, 2), 9);
        tokio::time::advance(Duration::from_millis(1)).await;
        assert_eq!(sum(0, 2), 2);
    }
}
