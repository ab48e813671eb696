//! What replies say of a worker's cache corrects what is believed of it.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

use routing::PolicyKind;
use serde_json::{Value, json};
use sim::{SimOptions, SimWorker};
use tokio::task::JoinSet;

use crate::support::{Running, get, options, post, posting, raw, start_with, until};

const CLIENTS: usize = 6;
/// Conversations of each client.
const CONVERSATIONS: usize = 12;

/// One answered request.
#[derive(Clone, Debug)]
struct Answered {
    /// Requests sent before it, by any client.
    order: usize,
    worker: String,
    /// Cached tokens that were predicted, and those that the worker had.
    predicted: u64,
    cached: u64,
}

impl Answered {
    fn is_right(&self) -> bool {
        self.predicted < 256 || self.cached + 128 > self.predicted / 2
    }
}

/// Turns of conversations, by several clients at once.
struct Load {
    gateway: Arc<Running>,
    path: &'static str,
    sent: Arc<AtomicUsize>,
}

impl Load {
    fn new(gateway: &Arc<Running>, path: &'static str) -> Self {
        Self {
            gateway: Arc::clone(gateway),
            path,
            sent: Arc::default(),
        }
    }

    /// Every client has these turns of each of its conversations; in the order sent.
    async fn run(&self, turns: std::ops::Range<usize>) -> Vec<Answered> {
        let mut clients = JoinSet::new();
        for client in 0..CLIENTS {
            let (gateway, sent) = (Arc::clone(&self.gateway), Arc::clone(&self.sent));
            let (path, turns) = (self.path, turns.clone());
            clients.spawn(async move {
                let mut answered = Vec::new();
                for turn in turns {
                    for conversation in 0..CONVERSATIONS {
                        let text = text(client * CONVERSATIONS + conversation, turn);
                        let order = sent.fetch_add(1, SeqCst);
                        answered.push(ask(&gateway, path, &text, order).await);
                    }
                }
                answered
            });
        }
        let mut all = clients.join_all().await.concat();
        all.sort_by_key(|answered| answered.order);
        all
    }
}

/// A conversation, some 700 tokens long and longer with every turn.
fn text(conversation: usize, turn: usize) -> String {
    let sentence = format!("this is conversation {conversation} about itself ");
    sentence.repeat(60 + 6 * turn)
}

async fn ask(gateway: &Running, path: &str, text: &str, order: usize) -> Answered {
    let native = path == "/generate";
    let body = if native {
        json!({"text": text, "sampling_params": {"max_new_tokens": 4}})
    } else {
        json!({"messages": [{"role": "user", "content": text}], "max_tokens": 4})
    };
    let request = posting(path, "x-smg-explain: 1\r\n", &body.to_string());
    let reply = raw(gateway, &request).await;
    assert_eq!(reply.status, 200, "{}", reply.text());
    let said = reply.json();
    let cached = if native {
        &said["meta_info"]["cached_tokens"]
    } else {
        &said["usage"]["prompt_tokens_details"]["cached_tokens"]
    };
    Answered {
        order,
        worker: reply.header("x-smg-routed-worker").to_owned(),
        predicted: reply.header("x-smg-matched-tokens").parse().unwrap(),
        cached: cached.as_u64().unwrap(),
    }
}

fn sim_worker() -> SimWorker {
    SimWorker::start(SimOptions {
        prefill_tokens_per_sec: 200_000.0,
        decode_step_base_ms: 1.0,
        ..SimOptions::default()
    })
    .unwrap()
}

async fn before(workers: &[&SimWorker]) -> Arc<Running> {
    let mut options = options(&[]);
    options.worker_urls = workers.iter().map(|worker| worker.url()).collect();
    options.policy = PolicyKind::CacheAware;
    Arc::new(start_with(options).await)
}

/// What a series of a worker counts; 0 where it has not been counted.
fn count(page: &str, series: &str, worker: &str) -> u64 {
    let of_worker = |line: &&str| line.starts_with(series) && line.contains(&format!("{worker}\""));
    let lines = page.lines().filter(of_worker);
    lines
        .map(|line| line.rsplit(' ').next().unwrap().parse::<u64>().unwrap())
        .sum()
}

async fn flush_behind_the_gateways_back(path: &'static str) {
    let workers = [sim_worker(), sim_worker()];
    let gateway = before(&[&workers[0], &workers[1]]).await;
    let load = Load::new(&gateway, path);
    let warm = load.run(0..3).await;
    assert!(warm.iter().all(Answered::is_right), "{warm:?}");
    let flushed = workers[0].url();
    let here = warm.iter().filter(|it| it.worker == flushed).count();
    assert!(here > 50, "{here}");
    // The engine must be idle for it; so is a worker that restarts within a moment.
    until(|| async { post(workers[0].addr(), "/flush_cache", "").await.status == 200 }).await;
    let mut after = load.run(3..6).await;
    after.retain(|answered| answered.worker == flushed);
    let wrong: Vec<_> = after.iter().map(|answered| !answered.is_right()).collect();
    let (early, late) = wrong.split_at(20.min(wrong.len()));
    assert!(early.contains(&true), "{after:?}");
    assert!(!late.is_empty() && !late.contains(&true), "{wrong:?}");
    let page = gateway.metrics().await;
    let emptied =
        |worker: &SimWorker| count(&page, "smg_worker_cache_emptied_total", &worker.url());
    assert_eq!((emptied(&workers[0]), emptied(&workers[1])), (1, 0));
    let series = "smg_worker_cache_prediction_error_tokens_total{direction=\"over\"";
    assert!(count(&page, series, &flushed) > 500);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn flushed_worker_is_believed_right_again_within_twenty_requests() {
    flush_behind_the_gateways_back("/v1/chat/completions").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn flushed_worker_is_noticed_by_replies_of_its_own_api() {
    flush_behind_the_gateways_back("/generate").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn prediction_error_is_explained() {
    let worker = sim_worker();
    let gateway = before(&[&worker]).await;
    let prompt = text(1, 0);
    let body = json!({"text": prompt, "sampling_params": {"max_new_tokens": 2}}).to_string();
    let error = async || {
        let page = post(&*gateway, "/route/explain", &body).await.json();
        page["candidates"][0]["prediction_error"].clone()
    };
    assert_eq!(error().await, Value::Null);
    for order in 0..4 {
        ask(&gateway, "/generate", &prompt, order).await;
    }
    let small = error().await.as_f64().unwrap();
    assert!(small < 0.1, "{small}");
    assert_eq!(post(worker.addr(), "/flush_cache", "").await.status, 200);
    ask(&gateway, "/generate", &prompt, 4).await;
    let large = error().await.as_f64().unwrap();
    assert!(large > small + 0.1, "{large}");
    let decisions = get(&*gateway, "/debug/decisions").await.json();
    assert_eq!(decisions["decisions"][0]["prediction_error"], large);
    let explained = posting("/generate", "x-smg-explain: 1\r\n", &body);
    let reply = raw(&*gateway, &explained).await;
    assert_eq!(
        reply.header("x-smg-prediction-error"),
        format!("{large:.3}")
    );
}
