//! Simulated prefill and decode workers, and what goes wrong with them.

use std::net::SocketAddr;
use std::time::Duration;

use fastrand::Rng;
use gateway::Options;
use serde_json::Value;
use sim::{Faults, Role, SimOptions, SimWorker};
use tokio::time::sleep;

use crate::support::{DEADLINE, Running, get, options, until};

/// Longer than any test: the gateway ends what is left, or nothing does.
const NEVER_S: f64 = 600.0;
const NEVER_MS: u64 = 600_000;

/// A worker that comes back on its ports.
pub(super) struct Place {
    options: SimOptions,
    worker: Option<SimWorker>,
}

/// What goes wrong with a worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Trouble {
    Killed,
    RefusesConnections,
    ServerErrors,
    RefusesInStreams,
    ClosesUnanswered,
    ClosesAmidBodies,
    StallsAmidBodies,
    Hangs,
    Freezes,
}

const TROUBLES: [Trouble; 14] = [
    Trouble::Killed,
    Trouble::Killed,
    Trouble::Killed,
    Trouble::Killed,
    Trouble::RefusesConnections,
    Trouble::RefusesConnections,
    Trouble::ServerErrors,
    Trouble::ServerErrors,
    Trouble::RefusesInStreams,
    Trouble::ClosesUnanswered,
    Trouble::ClosesAmidBodies,
    Trouble::StallsAmidBodies,
    Trouble::Hangs,
    Trouble::Freezes,
];

impl Trouble {
    pub(super) fn drawn(rng: &mut Rng) -> Self {
        TROUBLES[rng.usize(..TROUBLES.len())]
    }

    fn faults(self, rng: &mut Rng) -> Faults {
        let count = rng.u32(1..12);
        let brief = Faults {
            count,
            for_ms: rng.u64(50..200),
            ..Faults::default()
        };
        match self {
            Self::Killed => Faults::default(),
            Self::RefusesConnections => Faults {
                count: 0,
                refuse_connections: true,
                ..brief
            },
            Self::ServerErrors => Faults {
                status: Some([500, 502, 503, 504][rng.usize(..4)]),
                ..brief
            },
            Self::RefusesInStreams => Faults {
                stream_status: Some(503),
                ..brief
            },
            Self::ClosesUnanswered => Faults {
                close_before_headers: true,
                ..brief
            },
            Self::ClosesAmidBodies => Faults {
                close_mid_body: Some(rng.u64(..400)),
                ..brief
            },
            Self::StallsAmidBodies => Faults {
                stall_mid_body: Some(rng.u64(..400)),
                count: rng.u32(1..4),
                ..brief
            },
            Self::Hangs => Faults {
                delay_first_byte_ms: NEVER_MS,
                count: rng.u32(1..4),
                ..brief
            },
            // Long enough for probes to find out.
            Self::Freezes => Faults {
                delay_first_byte_ms: NEVER_MS,
                health_hang: true,
                count: 0,
                for_ms: 1500,
                ..Faults::default()
            },
        }
    }
}

impl Place {
    pub(super) fn new(role: Role) -> Self {
        let mut options = SimOptions {
            disaggregation_mode: role,
            disaggregation_bootstrap_port: 0,
            disconnect_check_s: NEVER_S,
            enable_request_header_overrides: true,
            ..regular()
        };
        let worker = SimWorker::start(options.clone()).unwrap();
        options.port = worker.addr().port();
        options.disaggregation_bootstrap_port = worker.bootstrap_port().unwrap_or(0);
        Self {
            options,
            worker: Some(worker),
        }
    }

    pub(super) fn url(&self) -> String {
        format!("http://{}", self.addr())
    }

    fn bootstrap_port(&self) -> u16 {
        self.options.disaggregation_bootstrap_port
    }

    fn addr(&self) -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], self.options.port))
    }

    /// Lets the worker fail; it is back when this returns.
    pub(super) async fn suffer(&mut self, trouble: Trouble, rng: &mut Rng) {
        if trouble == Trouble::Killed {
            let worker = self.worker.take();
            // Joins its thread.
            tokio::task::spawn_blocking(|| drop(worker)).await.unwrap();
            sleep(Duration::from_millis(rng.u64(..100))).await;
            // The gateway may have seen nothing of it: a request finds that headers are ignored now.
            self.options.enable_request_header_overrides = rng.bool();
            self.worker = Some(self.restarted().await);
            return;
        }
        let faults = trouble.faults(rng);
        let lasts = Duration::from_millis(faults.for_ms);
        self.worker.as_ref().unwrap().set_faults(faults).unwrap();
        sleep(lasts).await;
    }

    async fn restarted(&self) -> SimWorker {
        loop {
            // The one before on these ports may not be quite gone.
            match SimWorker::start(self.options.clone()) {
                Ok(worker) => return worker,
                Err(_) => sleep(Duration::from_millis(1)).await,
            }
        }
    }

    /// Waits until no request is left; each has been ended by the gateway.
    pub(super) async fn is_left_empty(&self) {
        let worker = self.worker.as_ref().unwrap();
        assert_eq!(worker.crash_reason(), None, "{}", self.url());
        let mut last = Value::Null;
        let waiting = async {
            loop {
                last = get(self.addr(), "/v1/loads").await.json();
                if worker.stats().in_flight == 0 && held(&last) == 0 {
                    return;
                }
                sleep(Duration::from_millis(5)).await;
            }
        };
        let ended = tokio::time::timeout(DEADLINE, waiting).await;
        let stats = worker.stats();
        assert!(
            ended.is_ok(),
            "{:?}: {stats:?}: {last}",
            self.options.disaggregation_mode
        );
    }
}

/// The requests that a worker has by its own account.
fn held(loads: &Value) -> u64 {
    let rank = &loads["loads"][0];
    let engine = ["num_running_reqs", "num_waiting_reqs"].map(|name| &rank[name]);
    let legs = rank["disaggregation"].as_object().unwrap();
    let legs = legs.iter().filter(|(name, _)| name.ends_with("_reqs"));
    let counts = legs.map(|(_, count)| count).chain(engine);
    counts.map(|count| count.as_u64().unwrap()).sum()
}

/// A worker without a role, at the same speed.
fn regular() -> SimOptions {
    SimOptions {
        prefill_tokens_per_sec: 50_000.0,
        decode_step_base_ms: 2.0,
        kv_transfer_ms_per_1k_tokens: 20.0,
        ..SimOptions::default()
    }
}

/// A worker without a role, whose answers are the right ones; it takes no time.
pub(super) fn reference() -> SimWorker {
    SimWorker::start(SimOptions::default()).unwrap()
}

/// Options of a gateway in front of these workers.
pub(super) fn patient(prefill: &[Place], decode: &[Place]) -> Options {
    Options {
        pd_disaggregation: true,
        prefill_urls: Some(
            prefill
                .iter()
                .map(|it| (it.url(), Some(it.bootstrap_port())))
                .collect(),
        ),
        decode_urls: Some(decode.iter().map(Place::url).collect()),
        request_timeout_secs: 4,
        retry_initial_backoff_ms: 2,
        retry_max_backoff_ms: 50,
        retry_budget_ratio: 100.0,
        cb_failure_threshold: 40,
        cb_timeout_duration_secs: 1,
        cb_success_threshold: 1,
        health_check_interval_secs: 1,
        health_check_timeout_secs: 1,
        health_failure_threshold: 2,
        health_success_threshold: 1,
        client_write_timeout_secs: 2,
        ..options(&[])
    }
}

/// Waits until the gateway sends requests to all its workers.
pub(super) async fn until_all_serve(gateway: &Running) {
    until(|| async {
        let workers = get(gateway, "/workers").await.json();
        let workers = workers["workers"].as_array().unwrap();
        let serves = |it: &Value| it["status"] == "ready" && it["circuit_breaker"] == "closed";
        workers.iter().all(serves)
    })
    .await;
}
