//! Questions to workers that are not inference: one worker's answer, or everybody's.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use futures_util::{StreamExt, stream};
use http::{Method, StatusCode};
use tokio::time::timeout;

use super::Proxy;
use crate::error::Error;
use crate::fleet::{Answer, Worker};

/// Workers asked at once.
pub(super) const FAN_OUT: usize = 32;
/// Longest wait for an answer to a question that costs the worker nothing.
const PATIENCE: Duration = Duration::from_secs(5);
/// Longest wait for an answer that takes work: a worker's generation check alone gives
/// itself 20 s.
pub(super) const WORK_PATIENCE: Duration = Duration::from_secs(45);

/// A worker and what it answered, if it did.
#[derive(Debug)]
pub(crate) struct Asked {
    pub(crate) worker: Arc<Worker>,
    pub(crate) answer: Result<Answer, Error>,
}

impl Proxy {
    /// The answer of the first ready worker to the first of `paths` that is not 404 there.
    pub(crate) async fn ask_first(&self, lane: usize, paths: &[&str]) -> Result<Answer, Error> {
        let worker = self.fleet.first_ready().ok_or(Error::NoWorkers)?;
        ask(worker, lane, &Method::GET, paths, WORK_PATIENCE).await
    }

    /// Every worker's answer, in configuration order. One that is not ready is only asked to
    /// do things (POST), not to tell them.
    pub(crate) async fn ask_all(&self, lane: usize, method: &Method, paths: &[&str]) -> Vec<Asked> {
        let mut asked: Vec<BoxFuture<'_, Asked>> = Vec::new();
        for worker in self.fleet.workers() {
            asked.push(Box::pin(async move {
                let tell = *method == Method::GET;
                let patience = if tell { PATIENCE } else { WORK_PATIENCE };
                let answer = if tell && !worker.is_ready() {
                    Err(Error::NoWorkerResponse)
                } else {
                    ask(worker, lane, method, paths, patience).await
                };
                Asked {
                    worker: Arc::clone(worker),
                    answer,
                }
            }));
        }
        stream::iter(asked).buffered(FAN_OUT).collect().await
    }
}

async fn ask(
    worker: &Arc<Worker>,
    lane: usize,
    method: &Method,
    paths: &[&str],
    patience: Duration,
) -> Result<Answer, Error> {
    let mut last = Err(Error::NoWorkerResponse);
    for path in paths {
        let asked = timeout(patience, worker.ask(lane, method, path)).await;
        last = match asked {
            Ok(Ok(answer)) if answer.status == StatusCode::NOT_FOUND => Ok(answer),
            Ok(Ok(answer)) => return Ok(answer),
            Ok(Err(source)) => Err(Error::Upstream {
                worker: worker.url.to_string(),
                source,
            }),
            Err(_) => {
                let worker = worker.url.to_string();
                Err(Error::UpstreamTimeout {
                    worker,
                    seconds: patience.as_secs(),
                })
            }
        };
        if last.is_err() {
            break;
        }
    }
    last
}
