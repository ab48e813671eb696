//! Orders to engines: calls that change an engine, carried out by each worker one at a time, in
//! the order in which they came.

use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::{BoxFuture, join_all};
use http::Method;
use tokio::sync::OwnedMutexGuard;
use tokio::time::timeout;

use super::fan_out::WorkerAnswer;
use super::worker_query::NOT_READY_TIMEOUT;
use crate::error::Error;
use crate::fleet::Worker;
use crate::upstream::{ControlClient, ControlRequest, PrivateAnswer, Repeat};

/// What engines are ordered to do.
#[derive(Clone, Debug)]
pub(crate) struct Order {
    pub(crate) method: Method,
    /// Path and query.
    pub(crate) path: String,
    /// JSON, or nothing.
    pub(crate) body: Bytes,
}

/// Carries orders out.
#[derive(Clone, Debug)]
pub(crate) struct Orders {
    client: ControlClient,
    /// Longest time for one worker to carry an order out.
    limit: Duration,
    /// Held while an order is lined up at all its workers.
    lining_up: Arc<Mutex<()>>,
}

/// An order's turn at a worker.
enum Turn {
    Now(OwnedMutexGuard<()>),
    Later(BoxFuture<'static, OwnedMutexGuard<()>>),
}

impl Turn {
    /// Lines an order up behind the earlier ones.
    fn line_up(worker: &Worker) -> Self {
        let turns = Arc::clone(&worker.endpoint.order_turns);
        let mut turn: BoxFuture<'static, _> = Box::pin(turns.lock_owned());
        // Its place is that of the first poll.
        match Pin::new(&mut turn).poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(turn) => Self::Now(turn),
            Poll::Pending => Self::Later(turn),
        }
    }

    async fn wait(self) -> OwnedMutexGuard<()> {
        match self {
            Self::Now(turn) => turn,
            Self::Later(turn) => turn.await,
        }
    }
}

impl Orders {
    pub(crate) fn new(client: ControlClient, limit: Duration) -> Self {
        Self {
            client,
            limit,
            lining_up: Arc::default(),
        }
    }

    /// Has these workers carry an order out; their answers come in the same sequence. No order is
    /// repeated. Whether it is carried out everywhere must not depend on the client's patience:
    /// run this as a task.
    pub(crate) async fn carry_out(
        &self,
        order: &Order,
        workers: Vec<Arc<Worker>>,
    ) -> Vec<WorkerAnswer> {
        let turns = self.line_up(workers);
        let carried_out = turns.into_iter().map(|(worker, turn)| async move {
            let _turn = turn.wait().await;
            let answer = self.call(order, &worker).await;
            WorkerAnswer { worker, answer }
        });
        join_all(carried_out).await
    }

    /// Two orders have the same sequence at every worker.
    fn line_up(&self, workers: Vec<Arc<Worker>>) -> Vec<(Arc<Worker>, Turn)> {
        let _one_at_a_time = self
            .lining_up
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let turns = workers.into_iter().map(|worker| {
            let turn = Turn::line_up(&worker);
            (worker, turn)
        });
        turns.collect()
    }

    async fn call(&self, order: &Order, worker: &Worker) -> Result<PrivateAnswer, Error> {
        let request = ControlRequest {
            body: order.body.clone(),
            repeat: Repeat::Never,
            ..worker.endpoint.question(&order.method, &order.path)
        };
        // One that is gone is not waited for.
        let limit = if worker.is_lost() {
            NOT_READY_TIMEOUT.min(self.limit)
        } else {
            self.limit
        };
        match timeout(limit, self.client.send(request)).await {
            Ok(answer) => answer.map_err(|source| Error::Upstream {
                worker: worker.url().to_string(),
                source,
            }),
            Err(_) => Err(Error::UpstreamTimeout {
                worker: worker.url().to_string(),
                seconds: limit.as_secs(),
            }),
        }
    }
}
