//! What the end of a try at a worker means: the one table that retries, breakers and health go by.

/// How one try at a worker ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// A response with this HTTP status; one of success counts once its body has ended whole.
    Answered(u16),
    /// 503 from a worker that says its queue is full.
    QueueFull,
    /// The gateway's machine lacked descriptors, ports, buffers or memory: no worker's fault.
    Local,
    /// No connection: refused, unreachable, or not made in time. The request was not sent.
    NotConnected,
    /// The connection ended before the first byte of a response. A failure of the worker
    /// unless another one hangs up on the same request, too.
    NoResponse,
    /// No response head in time.
    TimedOut,
    /// The response broke off, fell silent or was no HTTP after its first byte.
    Truncated,
    /// The client left first.
    Abandoned,
}

/// Whether the request may be tried again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Retry {
    /// What came is the answer.
    No,
    /// At another worker. The first such retry of a request is free: what the worker had to
    /// do for it is gone with the connection, or was never asked for.
    Free,
    /// At another worker, within the retry budget: every such retry is work that nobody had
    /// planned for.
    Budgeted,
}

/// What a worker's breaker takes down.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BreakerSignal {
    /// The worker did what it is there for.
    Success,
    /// The worker failed.
    Failure,
    /// Says nothing about the worker.
    Neutral,
}

/// What an [`Outcome`] means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Consequence {
    /// For the request.
    pub retry: Retry,
    /// For the worker's breaker.
    pub signal: BreakerSignal,
    /// The worker may be gone: it gets nothing until a probe, sent at once, tells otherwise.
    pub suspect: bool,
    /// The worker has too much to do: others come first for a moment.
    pub busy: bool,
}

impl Outcome {
    /// The table. The README prints it for users.
    #[expect(clippy::match_same_arms, reason = "a table: one row per kind of end")]
    pub const fn consequence(self) -> Consequence {
        use BreakerSignal::{Failure, Neutral, Success};
        use Retry::{Budgeted, Free, No};
        let (retry, signal, suspect) = match self {
            Self::Answered(200..=399) => (No, Success, false),
            Self::Answered(408 | 429) | Self::QueueFull => (Budgeted, Neutral, false),
            // Not built there, or not in this HTTP version: no other worker will differ.
            Self::Answered(501 | 505) => (No, Neutral, false),
            Self::Answered(500..=599) => (Budgeted, Failure, false),
            Self::Local => (Budgeted, Neutral, false),
            Self::Answered(_) | Self::Abandoned => (No, Neutral, false),
            Self::NotConnected | Self::NoResponse => (Free, Failure, true),
            Self::TimedOut => (Budgeted, Failure, false),
            // Bytes have been given to the client: nothing can take them back.
            Self::Truncated => (No, Failure, true),
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
    use super::BreakerSignal::{Failure, Neutral, Success};
    use super::Retry::{Budgeted, Free, No};
    use super::*;

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
    fn success_is_the_answer() {
        for status in [200, 201, 204, 302, 304] {
            row(Outcome::Answered(status), No, Success, false);
        }
    }

    #[test]
    fn a_bad_request_says_nothing_about_the_worker() {
        for status in [400, 401, 403, 404, 413, 415, 422, 499] {
            row(Outcome::Answered(status), No, Neutral, false);
        }
    }

    #[test]
    fn a_full_worker_is_not_a_broken_one() {
        row(Outcome::Answered(408), Budgeted, Neutral, false);
        row(Outcome::Answered(429), Budgeted, Neutral, false);
        row(Outcome::QueueFull, Budgeted, Neutral, false);
    }

    #[test]
    fn a_server_error_is_a_failure_and_tried_elsewhere() {
        for status in [500, 502, 503, 504, 507, 529, 599] {
            row(Outcome::Answered(status), Budgeted, Failure, false);
        }
    }

    #[test]
    fn what_no_worker_can_do_is_not_tried_again() {
        row(Outcome::Answered(501), No, Neutral, false);
        row(Outcome::Answered(505), No, Neutral, false);
    }

    #[test]
    fn a_worker_without_a_connection_is_suspect() {
        row(Outcome::NotConnected, Free, Failure, true);
        row(Outcome::NoResponse, Free, Failure, true);
    }

    #[test]
    fn shortage_at_the_gateway_is_retried_and_blames_no_worker() {
        row(Outcome::Local, Budgeted, Neutral, false);
    }

    #[test]
    fn silence_is_a_failure() {
        row(Outcome::TimedOut, Budgeted, Failure, false);
    }

    #[test]
    fn after_the_first_byte_nothing_is_tried_again() {
        row(Outcome::Truncated, No, Failure, true);
    }

    #[test]
    fn a_client_that_leaves_says_nothing_about_the_worker() {
        row(Outcome::Abandoned, No, Neutral, false);
    }
}
