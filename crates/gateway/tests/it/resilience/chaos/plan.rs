//! What goes wrong with a request, drawn from a seed.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use fastrand::Rng;

use crate::support::{Step, json};

/// Failures in a row that a plan holds at most.
const MOST_FAILURES: usize = 3;

/// What a worker does instead of answering; another worker answers. At most one of a plan is
/// about credentials or paths: a second worker that says the same would have the last word.
const REFUSALS: [&str; 13] = [
    "500", "502", "503", "504", "full", "429", "close", "reset", "event", "abort", "401", "403",
    "404",
];
const DISPUTES: [&str; 3] = ["401", "403", "404"];

/// How a request ends that is not refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    Whole,
    Chunked,
    /// Whole, but the worker closes although it said it would not.
    ThenClosed,
    ThenHalfClosed,
    InDrops,
    Late,
    BadRequest,
    CutHead,
    Garbage,
    CutBody,
    CutStream,
    /// Every worker loses its connection: the request is what ends workers.
    Deadly,
}

const ENDS: [End; 12] = [
    End::Whole,
    End::Chunked,
    End::ThenClosed,
    End::ThenHalfClosed,
    End::InDrops,
    End::Late,
    End::BadRequest,
    End::CutHead,
    End::Garbage,
    End::CutBody,
    End::CutStream,
    End::Deadly,
];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Patience {
    Stays,
    LeavesAtOnce,
    LeavesSoon,
}

#[derive(Clone, Debug)]
pub(super) struct Plan {
    pub(super) refusals: VecDeque<&'static str>,
    pub(super) end: End,
    pub(super) patience: Patience,
}

impl Plan {
    pub(super) fn rng(seed: u64, id: usize) -> Self {
        let mut rng = Rng::with_seed(seed ^ (id as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let refusals = rng.usize(..=MOST_FAILURES);
        let end = if rng.bool() {
            End::Whole
        } else {
            ENDS[rng.usize(..ENDS.len())]
        };
        let patience = match rng.u8(..20) {
            0 => Patience::LeavesAtOnce,
            1 => Patience::LeavesSoon,
            _ => Patience::Stays,
        };
        let refusals = (0..refusals).map(|_| REFUSALS[rng.usize(..REFUSALS.len())]);
        let mut disputed = false;
        let refusals = refusals.map(|refusal| {
            if !is_dispute(refusal) {
                refusal
            } else if std::mem::replace(&mut disputed, true) {
                "500"
            } else {
                refusal
            }
        });
        Self {
            refusals: refusals.collect(),
            end,
            patience,
        }
    }

    pub(super) fn faults(&self) -> usize {
        let end = usize::from(!matches!(
            self.end,
            End::Whole | End::Chunked | End::BadRequest
        ));
        self.refusals.len() + end + usize::from(self.patience != Patience::Stays)
    }
}

/// The head of a stream of events.
pub(super) const EVENTS: &str =
    "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n";

/// A stream with this event and no other.
fn one_event(data: &str) -> String {
    let event = format!("data: {data}\n\n");
    format!("{EVENTS}{:x}\r\n{event}\r\n0\r\n\r\n", event.len())
}

fn is_dispute(refusal: &str) -> bool {
    DISPUTES.contains(&refusal)
}

pub(super) fn text(text: impl Into<String>) -> Step {
    Step::Send(text.into().into_bytes())
}

pub(super) fn refuse(how: &str) -> Vec<Step> {
    match how {
        "close" => vec![Step::Close],
        "reset" => vec![Step::Reset],
        "full" => json(503, r#"{"message":"The request queue is full."}"#),
        "event" => vec![text(one_event(
            r#"{"error":{"message":"full","code":503}}"#,
        ))],
        "abort" => vec![text(one_event(
            r#"{"meta_info":{"finish_reason":{"type":"abort","message":"full","status_code":503}}}"#,
        ))],
        status => json(status.parse().unwrap(), "{}"),
    }
}

pub(super) fn answer(end: End, id: usize, began: &Arc<AtomicBool>) -> Vec<Step> {
    let body = format!("answer to {id}");
    let sized = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n", body.len());
    let events = EVENTS;
    let chunk = format!("{:x}\r\n{body}\r\n", body.len());
    let pause = Step::Pause(Duration::from_millis(2));
    let steps = match end {
        End::Whole => vec![text(sized + &body)],
        End::Chunked => vec![text(events), pause, text(chunk), text("0\r\n\r\n")],
        End::ThenClosed => vec![text(sized + &body), Step::Close],
        End::ThenHalfClosed => vec![text(sized + &body), Step::HalfClose],
        End::InDrops => {
            let drop = |piece: &[u8]| [Step::Send(piece.to_vec()), pause.clone()];
            (sized + &body)
                .as_bytes()
                .chunks(16)
                .flat_map(drop)
                .collect()
        }
        End::Late => vec![Step::Pause(Duration::from_millis(30)), text(sized + &body)],
        End::BadRequest => json(400, &format!("\"{body}\"")),
        End::CutHead => vec![text("HTTP/1.1 200 OK\r\ncontent-"), Step::Close],
        End::Garbage => vec![text("SSH-2.0-OpenSSH_9\r\n\r\n"), Step::Close],
        End::CutBody => vec![text(sized + &body[..3]), pause, Step::Reset],
        End::Deadly => vec![Step::Close],
        End::CutStream => vec![text(events), text(chunk), pause, Step::Close],
    };
    // Late answers begin after their pause.
    let at = usize::from(end == End::Late);
    let mut steps = steps;
    steps.insert(at, Step::Note(Arc::clone(began)));
    steps
}
