//! Ending requests at engines at once. An engine notices a closed connection late: within four
//! seconds where nothing has been sent yet.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::{StreamExt, stream};
use http::Method;
use serde_json::json;
use tokio::time::{sleep, timeout};
use tracing::debug;

use crate::fleet::Endpoint;
use crate::upstream::{ControlClient, ControlRequest};

/// Longest time for all aborts of a request.
const LIMIT: Duration = Duration::from_secs(10);
/// Aborts under way at a time, of a batch.
const AT_A_TIME: usize = 8;
/// An engine does not know a request that has just been sent: the abort is repeated after this.
const AGAIN_AFTER: Duration = Duration::from_millis(200);

/// Has engines end requests (`POST /abort_request`).
#[derive(Clone, Debug)]
pub(crate) struct Aborts {
    client: ControlClient,
}

/// A request at an engine, which ends when this is dropped before the request has ended.
#[derive(Debug)]
pub(super) struct LegGuard {
    aborts: Aborts,
    endpoint: Arc<Endpoint>,
    rids: Arc<Vec<String>>,
    /// The engine has begun to answer, so it knows the request.
    begun: bool,
    ended: bool,
}

impl Aborts {
    pub(crate) fn new(client: ControlClient) -> Self {
        Self { client }
    }

    /// A guard for a request with these ids.
    pub(super) fn guard(&self, endpoint: &Arc<Endpoint>, rids: &Arc<Vec<String>>) -> LegGuard {
        LegGuard {
            aborts: self.clone(),
            endpoint: Arc::clone(endpoint),
            rids: Arc::clone(rids),
            begun: false,
            ended: false,
        }
    }

    async fn abort(&self, endpoint: &Endpoint, rid: &str) {
        let body = Bytes::from(json!({"rid": rid}).to_string());
        let request = ControlRequest {
            body,
            ..endpoint.question(&Method::POST, "/abort_request")
        };
        if let Err(error) = self.client.send(request).await {
            debug!(worker = %endpoint.url, %error, "abort was not taken");
        }
    }
}

impl LegGuard {
    /// The engine has begun to answer. An abort is not repeated then: the client may ask again with
    /// the same id at once.
    pub(super) fn set_begun(&mut self) {
        self.begun = true;
    }

    /// The request has ended by itself.
    pub(super) fn set_ended(&mut self) {
        self.ended = true;
    }
}

impl Drop for LegGuard {
    fn drop(&mut self) {
        if self.ended {
            return;
        }
        let (aborts, endpoint) = (self.aborts.clone(), Arc::clone(&self.endpoint));
        let rids = Arc::clone(&self.rids);
        let turns: &[bool] = if self.begun { &[false] } else { &[true, false] };
        let abort_all = async move {
            for &again in turns {
                let all = rids.iter().cloned().map(|rid| {
                    let (aborts, endpoint) = (aborts.clone(), Arc::clone(&endpoint));
                    async move { aborts.abort(&endpoint, &rid).await }
                });
                stream::iter(all)
                    .buffer_unordered(AT_A_TIME)
                    .collect::<()>()
                    .await;
                if again {
                    sleep(AGAIN_AFTER).await;
                }
            }
        };
        // Its timers are those of the control thread: the lane may be gone before them.
        let bounded = async move { timeout(LIMIT, abort_all).await };
        self.aborts.client.spawn(bounded);
    }
}
