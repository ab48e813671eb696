//! What both sides of the gateway know of the requests under way.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::time::Instant;

use super::WORKERS;
use super::plan::{EVENTS, End, Plan, answer, refuse, text};
use crate::support::{Received, Reply, Step, json};

/// The plan of a client that does not read: a stream larger than all buffers.
pub(super) const ENDLESS: &str = "endless";

fn endless() -> Vec<Step> {
    let event = format!("data: {}\n\n", "x".repeat(60_000));
    let chunk = format!("{:x}\r\n{event}\r\n", event.len());
    let chunks = (0..250).map(|_| text(chunk.clone()));
    [text(EVENTS)].into_iter().chain(chunks).collect()
}

/// A request under way.
#[derive(Debug)]
pub(super) struct Course {
    pub(super) plan: Plan,
    /// Where it was last seen, and how often that worker had been killed before.
    pub(super) seen: Option<(usize, usize)>,
    /// An answer has begun to leave the worker.
    pub(super) began: Arc<AtomicBool>,
    /// How often a worker closed the connection on it without an answer.
    pub(super) lost: usize,
    /// Which workers did, a bit each.
    pub(super) lost_at: u8,
    /// A worker froze in the middle of the answer.
    pub(super) frozen: bool,
    /// How many workers had been killed before it.
    pub(super) kills_before: usize,
}

/// Everything both sides of the gateway know.
pub(super) struct Stage {
    pub(super) seed: u64,
    pub(super) courses: Mutex<HashMap<usize, Course>>,
    /// Requests each worker will answer with 500, whatever the plan.
    pub(super) bursts: [AtomicUsize; WORKERS],
    /// Workers that keep every connection open and send nothing.
    pub(super) frozen: [AtomicBool; WORKERS],
    /// Counts when a kill begins, and when it is done.
    pub(super) kills: [AtomicUsize; WORKERS],
    last_kill: Mutex<Option<Instant>>,
    pub(super) next: AtomicUsize,
    pub(super) faults: AtomicUsize,
    pub(super) wanted: usize,
}

impl Stage {
    pub(super) fn new(seed: u64, wanted: usize) -> Self {
        Self {
            seed,
            courses: Mutex::default(),
            bursts: Default::default(),
            frozen: Default::default(),
            kills: Default::default(),
            last_kill: Mutex::default(),
            next: AtomicUsize::new(0),
            faults: AtomicUsize::new(0),
            wanted,
        }
    }

    /// What a worker does with a request.
    pub(super) fn script(&self, worker: usize, request: &Received) -> Vec<Step> {
        let frozen = self.frozen[worker].load(SeqCst);
        if request.head.starts_with("GET ") && frozen {
            return vec![Step::Hang];
        } else if request.head.starts_with("GET ") {
            return json(200, r#"{"served_model_name":"chaos"}"#);
        } else if request.all("x-plan")[0] == ENDLESS {
            return endless();
        }
        let id = request.all("x-plan")[0].parse().unwrap();
        let mut courses = self.courses.lock().unwrap();
        // A client that has left has no plan any more.
        let Some(course) = courses.get_mut(&id) else {
            return json(200, "{}");
        };
        // A request that met a stale connection goes to the same worker once more.
        course.lost_at &= !(1 << worker);
        let burst = self.bursts[worker].fetch_update(SeqCst, SeqCst, |left| left.checked_sub(1));
        if burst.is_ok() {
            return json(500, "{}");
        }
        course.seen = Some((worker, self.kills[worker].load(SeqCst)));
        if frozen && id.is_multiple_of(2) {
            return vec![Step::Hang];
        } else if frozen {
            course.frozen = true;
            return vec![text(EVENTS), text("9\r\ndata: 1\n\n\r\n"), Step::Hang];
        }
        let lose = |course: &mut Course| {
            course.lost += 1;
            course.lost_at |= 1 << worker;
        };
        match course.plan.refusals.pop_front() {
            Some(refusal) => {
                if matches!(refusal, "close" | "reset") {
                    lose(course);
                }
                refuse(refusal)
            }
            None if course.plan.end == End::Deadly => {
                lose(course);
                vec![Step::Close]
            }
            None => answer(course.plan.end, id, &course.began),
        }
    }

    /// Whether a kill may have cut an answer that had begun.
    pub(super) fn abort(&self, course: &Course) -> bool {
        let killed = |(worker, kills): (usize, usize)| self.kills[worker].load(SeqCst) > kills;
        course.began.load(SeqCst) && course.seen.is_some_and(killed)
    }

    fn all_kills(&self) -> usize {
        self.kills.iter().map(|kills| kills.load(SeqCst)).sum()
    }

    /// The kills that are over before a request that begins now: not those of a moment ago, of
    /// which the gateway's connections may not show a trace yet.
    pub(super) fn kills_before(&self) -> usize {
        let last = *self.last_kill.lock().unwrap();
        let recent = last.is_some_and(|last| last.elapsed() < Duration::from_millis(200));
        self.all_kills() - if recent { 2 } else { 0 }
    }

    /// A kill is done.
    pub(super) fn note_kill(&self, worker: usize) {
        self.kills[worker].fetch_add(1, SeqCst);
        *self.last_kill.lock().unwrap() = Some(Instant::now());
    }

    /// Whether two workers may have lost their connection while they had this request.
    pub(super) fn ends_workers(&self, course: &Course) -> bool {
        course.lost + self.kills_since(course) >= 2
    }

    /// Whether a third worker was put at risk, but for what kills may have hidden.
    pub(super) fn risked_a_third(&self, course: &Course) -> bool {
        course.lost_at.count_ones() as usize > 2 + self.kills_since(course)
    }

    fn kills_since(&self, course: &Course) -> usize {
        (self.all_kills() - course.kills_before).div_ceil(2)
    }

    pub(super) fn over(&self) -> bool {
        self.faults.load(SeqCst) >= self.wanted
    }
}

/// Whether a reply is what the plan allows.
pub(super) fn is_right(id: usize, course: &Course, cut: bool, reply: Option<&Reply>) -> bool {
    let whole = format!("answer to {id}");
    let Some(reply) = reply else { return false };
    let right = match course.plan.end {
        End::BadRequest => reply.status == 400 && reply.text() == format!("\"{whole}\""),
        End::CutHead | End::Garbage => reply.status == 502,
        End::CutBody | End::CutStream => reply.status == 200 && !reply.whole,
        End::Deadly => reply.header("x-smg-error-code") == "request_ends_workers",
        _ => reply.status == 200 && reply.whole && reply.text() == whole,
    };
    let ended = reply.whole && reply.text().contains("stream_error");
    right
        || (course.frozen && reply.status == 200 && (ended || !reply.whole))
        || (cut && (reply.status == 502 || !reply.whole))
}
