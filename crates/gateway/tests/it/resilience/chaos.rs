//! Thousands of faults, drawn from a seed: nothing leaks, nothing is lost that could be served.
//!
//! Every request carries a plan: what goes wrong at its first try, its second, and so on, and
//! what the last one gives. So the right answer is known whatever the interleaving.
//! `SEED=7 FAULTS=100000 cargo test -p gateway --test it chaos` replays or extends a run.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use fastrand::Rng;
use gateway::Options;
use routing::PolicyKind;
use tokio::task::JoinSet;
use tokio::time::sleep;

use crate::support::{
    Client, Received, Reply, Running, Step, Worker, get, json, options, posting, start_with, until,
};

const WORKERS: usize = 4;
const CLIENTS: usize = 24;
/// Failures in a row that a plan holds at most.
const MOST_FAILURES: usize = 3;

/// What a worker does instead of answering; another worker answers.
const REFUSALS: [&str; 8] = ["500", "502", "503", "504", "full", "429", "close", "reset"];

/// How a request ends that is not refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
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
}

const ENDS: [End; 11] = [
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
];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Patience {
    Stays,
    LeavesAtOnce,
    LeavesSoon,
}

#[derive(Clone, Debug)]
struct Plan {
    refusals: VecDeque<&'static str>,
    end: End,
    patience: Patience,
}

impl Plan {
    fn rng(seed: u64, id: usize) -> Self {
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
        Self {
            refusals: (0..refusals)
                .map(|_| REFUSALS[rng.usize(..REFUSALS.len())])
                .collect(),
            end,
            patience,
        }
    }

    fn faults(&self) -> usize {
        let end = usize::from(!matches!(
            self.end,
            End::Whole | End::Chunked | End::BadRequest
        ));
        self.refusals.len() + end + usize::from(self.patience != Patience::Stays)
    }
}

/// A request under way.
#[derive(Debug)]
struct Course {
    plan: Plan,
    /// Where it was last seen, and how often that worker had been killed before.
    seen: Option<(usize, usize)>,
    /// An answer has begun to leave the worker.
    began: Arc<AtomicBool>,
    /// How often a worker closed the connection on it without an answer.
    lost: usize,
    /// How many workers had been killed before it.
    kills_before: usize,
}

/// Everything both sides of the gateway know.
struct Stage {
    seed: u64,
    courses: Mutex<HashMap<usize, Course>>,
    /// Requests each worker will answer with 500, whatever the plan.
    bursts: [AtomicUsize; WORKERS],
    kills: [AtomicUsize; WORKERS],
    next: AtomicUsize,
    faults: AtomicUsize,
    wanted: usize,
}

impl Stage {
    /// What a worker does with a request.
    fn script(&self, worker: usize, request: &Received) -> Vec<Step> {
        if request.head.starts_with("GET ") {
            return json(200, r#"{"served_model_name":"chaos"}"#);
        }
        let burst = self.bursts[worker].fetch_update(SeqCst, SeqCst, |left| left.checked_sub(1));
        if burst.is_ok() {
            return json(500, "{}");
        }
        let id = request.all("x-plan")[0].parse().unwrap();
        let mut courses = self.courses.lock().unwrap();
        // A client that has left has no plan any more.
        let Some(course) = courses.get_mut(&id) else {
            return json(200, "{}");
        };
        course.seen = Some((worker, self.kills[worker].load(SeqCst)));
        match course.plan.refusals.pop_front() {
            Some(refusal) => {
                course.lost += usize::from(matches!(refusal, "close" | "reset"));
                refuse(refusal)
            }
            None => answer(course.plan.end, id, &course.began),
        }
    }

    /// Whether a kill may have cut an answer that had begun.
    fn abort(&self, course: &Course) -> bool {
        let killed = |(worker, kills): (usize, usize)| self.kills[worker].load(SeqCst) > kills;
        course.began.load(SeqCst) && course.seen.is_some_and(killed)
    }

    fn all_kills(&self) -> usize {
        self.kills.iter().map(|kills| kills.load(SeqCst)).sum()
    }

    /// Whether two workers may have lost their connection while they had this request.
    fn ends_workers(&self, course: &Course) -> bool {
        course.lost + self.all_kills() - course.kills_before >= 2
    }

    fn over(&self) -> bool {
        self.faults.load(SeqCst) >= self.wanted
    }
}

fn text(text: impl Into<String>) -> Step {
    Step::Send(text.into().into_bytes())
}

fn refuse(how: &str) -> Vec<Step> {
    match how {
        "close" => vec![Step::Close],
        "reset" => vec![Step::Reset],
        "full" => json(503, r#"{"message":"The request queue is full."}"#),
        status => json(status.parse().unwrap(), "{}"),
    }
}

fn answer(end: End, id: usize, began: &Arc<AtomicBool>) -> Vec<Step> {
    let body = format!("answer to {id}");
    let sized = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n", body.len());
    let events =
        "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n";
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
        End::CutStream => vec![text(events), text(chunk), pause, Step::Close],
    };
    // Late answers begin after their pause.
    let at = usize::from(end == End::Late);
    let mut steps = steps;
    steps.insert(at, Step::Note(Arc::clone(began)));
    steps
}

/// Whether a reply is what the plan allows.
fn is_right(id: usize, course: &Course, cut: bool, reply: Option<&Reply>) -> bool {
    let whole = format!("answer to {id}");
    let Some(reply) = reply else { return false };
    let right = match course.plan.end {
        End::BadRequest => reply.status == 400 && reply.text() == format!("\"{whole}\""),
        End::CutHead | End::Garbage => reply.status == 502,
        End::CutBody | End::CutStream => reply.status == 200 && !reply.whole,
        _ => reply.status == 200 && reply.whole && reply.text() == whole,
    };
    right || (cut && (reply.status == 502 || !reply.whole))
}

/// Asks until enough has gone wrong.
async fn client(stage: Arc<Stage>, addr: std::net::SocketAddr) {
    let mut connection = Client::to(addr).await;
    while !stage.over() {
        let id = stage.next.fetch_add(1, SeqCst);
        let plan = Plan::rng(stage.seed, id);
        let (patience, faults) = (plan.patience, plan.faults());
        let course = Course {
            plan,
            seen: None,
            began: Arc::default(),
            lost: 0,
            kills_before: stage.all_kills(),
        };
        stage.courses.lock().unwrap().insert(id, course);
        let body = format!(
            r#"{{"text":"request {id}","stream":{}}}"#,
            id.is_multiple_of(2)
        );
        let request = posting("/generate", &format!("x-plan: {id}\r\n"), &body);
        connection.send(&request).await;
        let reply = match patience {
            Patience::Stays => connection.try_reply().await,
            Patience::LeavesAtOnce => None,
            Patience::LeavesSoon => {
                sleep(Duration::from_millis(id as u64 % 5)).await;
                None
            }
        };
        let course = stage.courses.lock().unwrap().remove(&id).unwrap();
        if patience == Patience::Stays {
            let right = is_right(id, &course, stage.abort(&course), reply.as_ref());
            let ended = |reply: &Reply| reply.header("x-smg-error-code") == "request_ends_workers";
            let ended = reply.as_ref().is_some_and(ended);
            let right = right || (ended && stage.ends_workers(&course));
            let text = reply
                .as_ref()
                .map(|reply| (reply.status, reply.whole, reply.text()));
            assert!(
                right,
                "seed {}: request {id}: {course:?}: {text:?}",
                stage.seed
            );
        }
        if reply.is_none_or(|reply| !reply.whole) {
            connection = Client::to(addr).await;
        }
        stage.faults.fetch_add(faults, SeqCst);
    }
}

/// Kills workers, brings them back, and lets them fail for a while: one at a time, so that
/// there is always a worker that can answer.
async fn trouble(
    stage: Arc<Stage>,
    mut workers: Vec<Option<Worker>>,
    gateway: Arc<Running>,
) -> Vec<Option<Worker>> {
    let mut rng = Rng::with_seed(stage.seed);
    while !stage.over() {
        let due = stage.next.load(SeqCst) + rng.usize(20..100);
        while stage.next.load(SeqCst) < due && !stage.over() {
            sleep(Duration::from_millis(1)).await;
        }
        let index = rng.usize(..WORKERS);
        if rng.u8(..8) == 0 {
            stage.bursts[index].store(rng.usize(5..80), SeqCst);
        } else if let Some(worker) = workers[index].take() {
            let port = worker.port();
            stage.kills[index].fetch_add(1, SeqCst);
            worker.kill().await;
            sleep(Duration::from_millis(rng.u64(..30))).await;
            workers[index] = Some(listen(&stage, index, port).await);
        }
        until(|| async { stage.over() || is_well(&gateway, index).await }).await;
        stage.faults.fetch_add(1, SeqCst);
    }
    workers
}

/// Whether a worker gets requests.
async fn is_well(gateway: &Running, index: usize) -> bool {
    let list = get(gateway, "/workers").await.json();
    let worker = &list["workers"][index];
    worker["status"] == "ready" && worker["circuit_breaker"] == "closed"
}

async fn listen(stage: &Arc<Stage>, index: usize, port: u16) -> Worker {
    let stage = Arc::clone(stage);
    Worker::listening(port, move |request| stage.script(index, request)).await
}

fn variable(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |text| text.parse().unwrap())
}

fn resident_kib() -> usize {
    let pages = std::fs::read_to_string("/proc/self/statm").unwrap();
    pages.split(' ').nth(1).unwrap().parse::<usize>().unwrap() * 4
}

fn patient(workers: &[&Worker]) -> Options {
    Options {
        policy: PolicyKind::CacheAware,
        // Every refusal of a plan, a burst and a kill or two must fit.
        retry_max_retries: 16,
        retry_initial_backoff_ms: 2,
        retry_max_backoff_ms: 50,
        retry_budget_ratio: 100.0,
        // More in a row than plans make by chance; a burst has more.
        cb_failure_threshold: 40,
        cb_timeout_duration_secs: 1,
        log_level: Some(gateway::config::LogLevel::Info),
        ..options(workers)
    }
}

async fn run(seed: u64, wanted: usize) {
    let stage = Arc::new(Stage {
        seed,
        courses: Mutex::default(),
        bursts: Default::default(),
        kills: Default::default(),
        next: AtomicUsize::new(0),
        faults: AtomicUsize::new(0),
        wanted,
    });
    let mut workers = Vec::new();
    for index in 0..WORKERS {
        workers.push(Some(listen(&stage, index, 0).await));
    }
    let known: Vec<&Worker> = workers.iter().flatten().collect();
    let gateway = Arc::new(start_with(patient(&known)).await);
    let addr = gateway.gateway.addr();
    let mut clients = JoinSet::new();
    for _ in 0..CLIENTS {
        clients.spawn(client(Arc::clone(&stage), addr));
    }
    let trouble = tokio::spawn(trouble(Arc::clone(&stage), workers, Arc::clone(&gateway)));
    while stage.faults.load(SeqCst) < wanted / 2 && !clients.is_empty() {
        if let Some(ended) = clients.try_join_next() {
            ended.unwrap();
        }
        sleep(Duration::from_millis(5)).await;
    }
    let half = resident_kib();
    while let Some(ended) = clients.join_next().await {
        ended.unwrap();
    }
    let _workers = trouble.await.unwrap();
    let end = resident_kib();
    // Other tests of this process come and go meanwhile; a long run shows smaller leaks.
    let most = half + half / 4 + 64 * 1024;
    assert!(end < most, "seed {seed}: {half} KiB, then {end} KiB");
    until(|| async { gateway.in_flight().await == 0 }).await;
    // A lane that panicked would have ended the gateway.
    assert!(
        !gateway.gateway.wait(Duration::ZERO),
        "seed {seed}: the gateway ended"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn chaos_loses_nothing_that_could_be_served() {
    let seed = variable("SEED", fastrand::u64(..));
    run(seed, variable("FAULTS", 10_000) as usize).await;
}
