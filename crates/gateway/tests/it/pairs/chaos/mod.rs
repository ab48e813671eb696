//! Simulated pairs under load while their workers fail, drawn from a seed: each answer is the one
//! that a worker alone would give, and nothing is left behind.
//!
//! `SEED=7 cargo test -p gateway --test it pairs::chaos -- --nocapture` replays a run.

mod ask;
mod fleet;

use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::time::Duration;

use fastrand::Rng;
use sim::Role;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};
use tracing::info;

use self::ask::{Ask, Patience};
use self::fleet::{Place, Trouble, patient, reference, until_all_serve};
use crate::support::{Client, Reply, Running, post, posting, start_with, until};

const PREFILL: usize = 2;
const DECODE: usize = 3;
const CLIENTS: usize = 300;
const TROUBLES: usize = 16;
/// No client waits longer: the limit on an answer's head, then that on a silence in its body.
const LONGEST: Duration = Duration::from_secs(15);
const TICK: Duration = Duration::from_millis(10);

/// What all clients share.
#[derive(Debug)]
struct Stage {
    seed: u64,
    gateway: SocketAddr,
    reference: SocketAddr,
    next: AtomicUsize,
    over: AtomicBool,
    right: AtomicUsize,
    failed: AtomicUsize,
    cut: AtomicUsize,
    awake: Awake,
}

/// Counts while this machine runs: one that stands still is no fault of the gateway's.
#[derive(Clone, Debug, Default)]
struct Awake(Arc<AtomicUsize>);

impl Awake {
    fn start() -> Self {
        let awake = Self::default();
        let ticks = Arc::downgrade(&awake.0);
        tokio::spawn(async move {
            while let Some(ticks) = ticks.upgrade() {
                ticks.fetch_add(1, SeqCst);
                sleep(TICK).await;
            }
        });
        awake
    }

    /// What comes within the longest time that a client waits.
    async fn in_time<T>(&self, asking: impl Future<Output = T>) -> Option<T> {
        let (mut asking, begun) = (pin!(asking), self.0.load(SeqCst));
        loop {
            if let Ok(asked) = timeout(LONGEST, asking.as_mut()).await {
                return Some(asked);
            }
            let ticks = (self.0.load(SeqCst) - begun) as u32;
            // Sleeping takes longer than it should.
            if TICK * ticks > LONGEST / 2 {
                return None;
            }
        }
    }
}

/// How an answer ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    Complete,
    /// With an error, or not at all, behind its head.
    Cut,
    Failed,
}

fn end(ask: &Ask, reply: &Reply) -> Result<End, &'static str> {
    if matches!(reply.status, 500 | 502..=504) {
        return Ok(End::Failed);
    }
    if reply.status != 200 {
        return Err("a status that no trouble explains");
    }
    let text = reply.text();
    let (done, error) = (text.contains("data: [DONE]"), text.contains("stream_error"));
    match (ask.stream, reply.whole) {
        (false, true) => Ok(End::Complete),
        (false, false) => Ok(End::Cut),
        (true, true) if done && !error => Ok(End::Complete),
        (true, _) if error && !done => Ok(End::Cut),
        // Within an event nothing can be added.
        (true, false) if !done && !text.ends_with("\n\n") => Ok(End::Cut),
        (true, _) => Err("a stream that ends neither well nor with an error"),
    }
}

impl Stage {
    /// Asks until enough has gone wrong.
    async fn client(self: Arc<Self>) {
        while !self.over.load(SeqCst) {
            let id = self.next.fetch_add(1, SeqCst);
            let ask = Ask::drawn(self.seed, id);
            let begun = Instant::now();
            let asking = self.awake.in_time(self.ask(&ask)).await;
            let context = format!("seed {}: request {id}: {ask:?}", self.seed);
            assert!(asking.is_some(), "hangs: {context}");
            if let Some(reply) = asking.unwrap() {
                let taken = begun.elapsed();
                self.check(&ask, &reply, &format!("{context} after {taken:?}"))
                    .await;
            }
        }
    }

    /// What a client gets that stays.
    async fn ask(&self, ask: &Ask) -> Option<Reply> {
        let mut client = Client::to(self.gateway).await;
        client.send(&posting(ask.path(), "", &ask.body())).await;
        match ask.patience {
            Patience::Stays => {
                let mut reply = client.head().await.ok().flatten().unwrap_or_default();
                // A body that ends with a reset is not whole.
                let _ = client.body(&mut reply).await;
                Some(reply)
            }
            Patience::LeavesAfter(pause) => {
                sleep(pause).await;
                None
            }
            Patience::LeavesAtTheFirstByte => {
                let _ = client.head().await;
                None
            }
        }
    }

    async fn check(&self, ask: &Ask, reply: &Reply, context: &str) {
        let got = reply.text();
        let end = end(ask, reply);
        assert!(end.is_ok(), "{end:?}: {context}: {} {got}", reply.status);
        let count = match end.unwrap() {
            End::Complete => {
                let right = post(self.reference, ask.path(), &ask.whole()).await;
                assert_eq!(ask.texts(reply), ask.texts(&right), "{context}: {got}");
                &self.right
            }
            End::Cut => &self.cut,
            End::Failed => &self.failed,
        };
        count.fetch_add(1, SeqCst);
    }

    /// Lets one worker after the other fail, each as soon as all serve again.
    async fn trouble(&self, gateway: &Running, places: &mut [Place]) {
        let mut rng = Rng::with_seed(self.seed);
        for _ in 0..TROUBLES {
            let due = self.next.load(SeqCst) + rng.usize(20..100);
            until(|| async { self.next.load(SeqCst) >= due }).await;
            let place = &mut places[rng.usize(..PREFILL + DECODE)];
            place.suffer(Trouble::drawn(&mut rng), &mut rng).await;
            until_all_serve(gateway).await;
        }
        self.over.store(true, SeqCst);
    }
}

async fn run(seed: u64) {
    let places = |role, count| (0..count).map(move |_| Place::new(role));
    let mut workers: Vec<Place> = places(Role::Prefill, PREFILL)
        .chain(places(Role::Decode, DECODE))
        .collect();
    let (prefill, decode) = workers.split_at(PREFILL);
    let gateway = start_with(patient(prefill, decode)).await;
    let reference = reference();
    let stage = Arc::new(Stage {
        seed,
        gateway: gateway.gateway.addr(),
        reference: reference.addr(),
        next: AtomicUsize::default(),
        over: AtomicBool::default(),
        right: AtomicUsize::default(),
        failed: AtomicUsize::default(),
        cut: AtomicUsize::default(),
        awake: Awake::start(),
    });
    let begun = Instant::now();
    let mut clients = JoinSet::new();
    for _ in 0..CLIENTS {
        clients.spawn(Arc::clone(&stage).client());
    }
    stage.trouble(&gateway, &mut workers).await;
    while let Some(ended) = clients.join_next().await {
        ended.unwrap();
    }
    report(&stage, begun);
    until(|| async { gateway.in_flight().await == 0 }).await;
    for worker in &workers {
        worker.is_left_empty().await;
    }
    // A lane that panicked would have ended the gateway.
    assert!(!gateway.gateway.wait(Duration::ZERO), "the gateway ended");
}

/// Prints the goodput, and wants most answers to be right.
fn report(stage: &Stage, begun: Instant) {
    let of = |count: &AtomicUsize| count.load(SeqCst);
    let (right, failed, cut) = (of(&stage.right), of(&stage.failed), of(&stage.cut));
    let (all, seconds) = (right + failed + cut, begun.elapsed().as_secs_f64());
    let share = 100.0 * right as f64 / all as f64;
    info!(
        "seed {}: {TROUBLES} troubles, {right} of {all} answers right ({share:.1} %), {failed} failed, \
         {cut} cut, {:.0} right answers/s in {seconds:.1} s",
        stage.seed,
        right as f64 / seconds
    );
    assert!(share > 75.0, "seed {}: {share:.1} %", stage.seed);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pairs_that_lose_workers_give_right_answers_or_none_and_leave_nothing_behind() {
    let seed = std::env::var("SEED").map_or(1, |text| text.parse().unwrap());
    run(seed).await;
}
