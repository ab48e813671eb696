//! The consequences of an attempt's outcome: one table for retries, breakers and health.

use std::fmt;

/// How one attempt at a worker ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// A response with this HTTP status. A success counts only when its body is complete.
    Answered(u16),
    /// 503 from a worker that says its queue is full.
    QueueFull,
    /// The gateway's machine lacked descriptors, ports, buffers or memory; no worker is at fault.
    Local,
    /// No connection: refused, unreachable, or not made in time. The request was not sent.
    NotConnected,
    /// The connection ended before the first byte of a response. The caller forgives the worker
    /// if a second worker closes the connection on the same request.
    NoResponse,
    /// No response head in time.
    TimedOut,
    /// After its first byte, the response was cut off or stalled.
    Truncated,
    /// The response is no HTTP: the worker is alive, and speaks nonsense.
    Malformed,
    /// 401 or 403 to the gateway's own credentials, or 404 on a path that peers serve: it may be
    /// this worker's alone. The caller blames the worker if another one serves the request.
    Disputed(u16),
    /// The client disconnected first.
    Abandoned,
}

/// Whether the request may be retried.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Retry {
    /// No: the outcome is final.
    No,
    /// At one other worker, free; without one, or if it says the same, the outcome is final.
    Once,
    /// At another worker. The first such retry of a request is free, because it adds no work:
    /// the first worker never got the request or lost it with the connection.
    Free,
    /// At another worker, within the retry budget, because every such retry adds work.
    Budgeted,
}

/// The signal to the worker's circuit breaker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BreakerSignal {
    /// The worker served the request.
    Success,
    /// The worker failed.
    Failure,
    /// The worker could not be connected to, or lost the connection. A passed probe refutes that.
    ConnectionFailure,
    /// No evidence for or against the worker.
    Neutral,
}

/// The consequences of an [`Outcome`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Consequence {
    /// For the request.
    pub retry: Retry,
    /// For the worker's breaker.
    pub signal: BreakerSignal,
    /// The worker may be gone: until a probe, sent at once, has passed, it gets requests only if
    /// no other worker can take them.
    pub suspect: bool,
    /// The worker is overloaded: others are preferred for a moment.
    pub busy: bool,
}

/// A word for log lines; an answer is its status.
impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let word = match self {
            Self::Answered(status) | Self::Disputed(status) => return status.fmt(f),
            Self::QueueFull => "queue_full",
            Self::Local => "local",
            Self::NotConnected => "not_connected",
            Self::NoResponse => "no_response",
            Self::TimedOut => "timed_out",
            Self::Truncated => "truncated",
            Self::Malformed => "malformed",
            Self::Abandoned => "abandoned",
        };
        f.write_str(word)
    }
}

impl Outcome {
    /// The table of consequences; docs/reliability.md shows it to users.
    #[expect(
        clippy::match_same_arms,
        reason = "a table: one row per kind of outcome"
    )]
    pub const fn consequence(self) -> Consequence {
        use BreakerSignal::{ConnectionFailure, Failure, Neutral, Success};
        use Retry::{Budgeted, Free, No, Once};
        let (retry, signal, suspect) = match self {
            Self::Answered(101 | 200..=399) => (No, Success, false),
            Self::Answered(408 | 429) | Self::QueueFull => (Budgeted, Neutral, false),
            // Not implemented, not in this HTTP version, or going in circles: others will not differ.
            Self::Answered(501 | 505 | 508) => (No, Neutral, false),
            Self::Answered(500..=599) => (Budgeted, Failure, false),
            Self::Local => (Budgeted, Neutral, false),
            Self::Answered(_) | Self::Abandoned => (No, Neutral, false),
            Self::Disputed(_) => (Once, Failure, false),
            Self::NotConnected | Self::NoResponse => (Free, ConnectionFailure, true),
            Self::TimedOut => (Budgeted, Failure, false),
            // The client has received bytes already.
            Self::Truncated => (No, Failure, true),
            Self::Malformed => (No, Failure, false),
        };
        let busy = matches!(self, Self::Answered(408 | 429) | Self::QueueFull);
        Consequence {
            retry,
            signal,
            suspect,
            busy,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::BreakerSignal::{ConnectionFailure, Failure, Neutral, Success};
    use super::Retry::{Budgeted, Free, No, Once};
    use super::*;

    /// The worker becomes suspect, or keeps its health.
    const SUSPECT: bool = true;
    const KEPT: bool = false;

    #[track_caller]
    fn row(outcome: Outcome, retry: Retry, signal: BreakerSignal, suspect: bool) {
        let busy = retry == Budgeted && signal == Neutral && outcome != Outcome::Local;
        let consequence = Consequence {
            retry,
            signal,
            suspect,
            busy,
        };
        assert_eq!(outcome.consequence(), consequence, "{outcome:?}");
    }

    #[test]
    fn success_is_final_and_clears_the_breaker() {
        for status in [101, 200, 201, 204, 302, 304] {
            row(Outcome::Answered(status), No, Success, KEPT);
        }
    }

    #[test]
    fn client_error_is_final_and_neutral() {
        for status in [400, 401, 403, 404, 413, 415, 422, 499] {
            row(Outcome::Answered(status), No, Neutral, KEPT);
        }
    }

    #[test]
    fn overload_is_retried_and_neutral() {
        row(Outcome::Answered(408), Budgeted, Neutral, KEPT);
        row(Outcome::Answered(429), Budgeted, Neutral, KEPT);
        row(Outcome::QueueFull, Budgeted, Neutral, KEPT);
    }

    #[test]
    fn server_error_is_retried_and_a_failure() {
        for status in [500, 502, 503, 504, 507, 529, 599] {
            row(Outcome::Answered(status), Budgeted, Failure, KEPT);
        }
    }

    #[test]
    fn unsupported_request_is_final_and_neutral() {
        row(Outcome::Answered(501), No, Neutral, KEPT);
        row(Outcome::Answered(508), No, Neutral, KEPT);
        row(Outcome::Answered(505), No, Neutral, KEPT);
    }

    #[test]
    fn lost_connection_makes_worker_suspect_and_retry_free() {
        row(Outcome::NotConnected, Free, ConnectionFailure, SUSPECT);
        row(Outcome::NoResponse, Free, ConnectionFailure, SUSPECT);
    }

    #[test]
    fn shortage_at_the_gateway_is_retried_and_blames_no_worker() {
        row(Outcome::Local, Budgeted, Neutral, KEPT);
    }

    #[test]
    fn timeout_is_retried_and_a_failure() {
        row(Outcome::TimedOut, Budgeted, Failure, KEPT);
    }

    #[test]
    fn truncated_response_is_final_and_makes_worker_suspect() {
        row(Outcome::Truncated, No, Failure, SUSPECT);
    }

    #[test]
    fn response_that_is_no_http_is_final_and_keeps_the_workers_health() {
        row(Outcome::Malformed, No, Failure, KEPT);
    }

    #[test]
    fn disputed_refusal_is_retried_once() {
        row(Outcome::Disputed(401), Once, Failure, KEPT);
    }

    #[test]
    fn client_disconnect_is_final_and_neutral() {
        row(Outcome::Abandoned, No, Neutral, KEPT);
    }
}
