//! Clients, and what happens to workers.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;
use std::time::Duration;

use fastrand::Rng;
use tokio::time::sleep;

use super::WORKERS;
use super::plan::{Patience, Plan};
use super::stage::{Course, ENDLESS, Stage, is_right};
use crate::support::{Client, Reply, Running, Worker, get, posting, until};

/// Asks until enough has gone wrong.
pub(super) async fn client(stage: Arc<Stage>, addr: SocketAddr) {
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
            lost_at: 0,
            frozen: false,
            kills_before: stage.kills_before(),
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
            let right = right && !stage.risked_a_third(&course);
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
pub(super) async fn trouble(
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
        if rng.u8(..24) == 0 {
            freeze(&stage, &gateway, index).await;
        } else if rng.u8(..8) == 0 {
            stage.bursts[index].store(rng.usize(5..80), SeqCst);
        } else if let Some(worker) = workers[index].take() {
            let port = worker.port();
            stage.kills[index].fetch_add(1, SeqCst);
            worker.kill().await;
            stage.note_kill(index);
            sleep(Duration::from_millis(rng.u64(..30))).await;
            workers[index] = Some(listen(&stage, index, port).await);
        }
        until(|| async { stage.over() || is_well(&gateway, index).await }).await;
        stage.faults.fetch_add(1, SeqCst);
    }
    workers
}

/// A worker stops in the middle of everything, until the gateway has ended all it had there.
async fn freeze(stage: &Stage, gateway: &Running, index: usize) {
    stage.frozen[index].store(true, SeqCst);
    until(|| async { !is_well(gateway, index).await }).await;
    until(|| async { worker(gateway, index).await["load"] == 0 }).await;
    stage.frozen[index].store(false, SeqCst);
}

/// Asks for a stream that no buffer holds, and reads nothing of it.
pub(super) async fn stalled_reader(addr: SocketAddr) -> Client {
    let mut connection = Client::to(addr).await;
    let request = posting("/generate", &format!("x-plan: {ENDLESS}\r\n"), "{}");
    connection.send(&request).await;
    connection
}

/// Whether a worker gets requests.
async fn is_well(gateway: &Running, index: usize) -> bool {
    let worker = worker(gateway, index).await;
    worker["status"] == "ready" && worker["circuit_breaker"] == "closed"
}

/// What the gateway shows of a worker.
async fn worker(gateway: &Running, index: usize) -> serde_json::Value {
    get(gateway, "/workers").await.json()["workers"][index].take()
}

pub(super) async fn listen(stage: &Arc<Stage>, index: usize, port: u16) -> Worker {
    let stage = Arc::clone(stage);
    Worker::listening(port, move |request| stage.script(index, request)).await
}
