//! What the end of a try at a worker means: the one table that retries, breakers and health go by.

/// How one try at a worker ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// A response with this HTTP status; one of success counts once its body has ended whole.
    Answered(u16),
    /// 503 from a worker that says its queue is full.
    QueueFull,
    /// No connection: refused, unreachable, or not made in time. The request was not sent.
    Refused,
    /// The connection ended before the first byte of a response. A failure of the worker
    /// unless another one hangs up on the same request, too.
    Lost,
    /// No response head in time.
    TimedOut,
    /// The response broke off, fell silent or was no HTTP after its first byte.
    Cut,
    /// The client left first.
    Abandoned,
}

/// Whether the request may be tried again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Again {
    /// What came is the answer.
    Never,
    /// At another worker. The first such retry of a request is free: what the worker had to
    /// do for it is gone with the connection, or was never asked for.
    Elsewhere,
    /// At another worker, within the retry budget: every such retry is work that nobody had
    /// planned for.
    WithinBudget,
}

/// What a worker's breaker takes down.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mark {
    /// The worker did what it is there for.
    Success,
    /// The worker failed.
    Failure,
    /// Says nothing about the worker.
    Neutral,
}

/// What an [`Outcome`] means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Meaning {
    /// For the request.
    pub again: Again,
    /// For the worker's breaker.
    pub mark: Mark,
    /// The worker may be gone: it gets nothing until a probe, sent at once, tells otherwise.
    pub suspect: bool,
    /// The worker has too much to do: others come first for a moment.
    pub busy: bool,
}

impl Outcome {
    /// The table. The README prints it for users.
    #[expect(clippy::match_same_arms, reason = "a table: one row per kind of end")]
    pub const fn meaning(self) -> Meaning {
        use Again::{Elsewhere, Never, WithinBudget};
        use Mark::{Failure, Neutral, Success};
        let (again, mark, suspect) = match self {
            Self::Answered(200..=399) => (Never, Success, false),
            Self::Answered(408 | 429) | Self::QueueFull => (WithinBudget, Neutral, false),
            // Not built there, or not in this HTTP version: no other worker will differ.
            Self::Answered(501 | 505) => (Never, Neutral, false),
            Self::Answered(500..=599) => (WithinBudget, Failure, false),
            Self::Answered(_) | Self::Abandoned => (Never, Neutral, false),
            Self::Refused | Self::Lost => (Elsewhere, Failure, true),
            Self::TimedOut => (WithinBudget, Failure, false),
            // Bytes have been given to the client: nothing can take them back.
            Self::Cut => (Never, Failure, true),
        };
        let busy = matches!(self, Self::Answered(408 | 429) | Self::QueueFull);
        Meaning {
            again,
            mark,
            suspect,
            busy,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Again::{Elsewhere, Never, WithinBudget};
    use super::Mark::{Failure, Neutral, Success};
    use super::*;

    #[track_caller]
    fn row(outcome: Outcome, again: Again, mark: Mark, suspect: bool) {
        let busy = again == WithinBudget && mark == Neutral;
        let meaning = Meaning {
            again,
            mark,
            suspect,
            busy,
        };
        assert_eq!(outcome.meaning(), meaning, "{outcome:?}");
    }

    #[test]
    fn success_is_the_answer() {
        for status in [200, 201, 204, 302, 304] {
            row(Outcome::Answered(status), Never, Success, false);
        }
    }

    #[test]
    fn a_bad_request_says_nothing_about_the_worker() {
        for status in [400, 401, 403, 404, 413, 415, 422, 499] {
            row(Outcome::Answered(status), Never, Neutral, false);
        }
    }

    #[test]
    fn a_full_worker_is_not_a_broken_one() {
        row(Outcome::Answered(408), WithinBudget, Neutral, false);
        row(Outcome::Answered(429), WithinBudget, Neutral, false);
        row(Outcome::QueueFull, WithinBudget, Neutral, false);
    }

    #[test]
    fn a_server_error_is_a_failure_and_tried_elsewhere() {
        for status in [500, 502, 503, 504, 507, 529, 599] {
            row(Outcome::Answered(status), WithinBudget, Failure, false);
        }
    }

    #[test]
    fn what_no_worker_can_do_is_not_tried_again() {
        row(Outcome::Answered(501), Never, Neutral, false);
        row(Outcome::Answered(505), Never, Neutral, false);
    }

    #[test]
    fn a_worker_without_a_connection_is_suspect() {
        row(Outcome::Refused, Elsewhere, Failure, true);
        row(Outcome::Lost, Elsewhere, Failure, true);
    }

    #[test]
    fn silence_is_a_failure() {
        row(Outcome::TimedOut, WithinBudget, Failure, false);
    }

    #[test]
    fn after_the_first_byte_nothing_is_tried_again() {
        row(Outcome::Cut, Never, Failure, true);
    }

    #[test]
    fn a_client_that_leaves_says_nothing_about_the_worker() {
        row(Outcome::Abandoned, Never, Neutral, false);
    }
}
