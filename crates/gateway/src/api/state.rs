//! What handlers work with.

use std::sync::Arc;

use axum::extract::FromRef;
use bytes::Bytes;
use http::{HeaderName, HeaderValue, StatusCode};

use super::dashboard::Feed;
use super::shared_answer::SharedAnswer;
use crate::admission::Admission;
use crate::auth::Principal;
use crate::balancer::Balancer;
use crate::config::Reloads;
use crate::cpu_pool::CpuPool;
use crate::fleet::{Fleet, Registry};
use crate::lane::Lane;
use crate::proxy::{FanOut, Orders, Proxy, RequestContext};
use crate::replicas::ReplicaStatus;
use crate::shutdown::Shutdown;
use crate::telemetry::RequestLog;
use crate::upstream::ControlClient;

/// What all handlers share; each takes the parts it needs.
#[derive(Clone, Debug, FromRef)]
pub(crate) struct ApiState {
    pub(crate) fleet: Arc<Fleet>,
    pub(crate) balancer: Arc<Balancer>,
    pub(crate) registry: Arc<Registry>,
    pub(crate) proxy: Arc<Proxy>,
    pub(crate) fan_out: FanOut,
    pub(crate) orders: Orders,
    pub(crate) client: ControlClient,
    pub(crate) cpu_pool: CpuPool,
    pub(crate) reloads: Reloads,
    pub(crate) shared: Arc<SharedAnswers>,
    pub(crate) feed: Arc<Feed>,
    pub(crate) admission: Arc<Admission>,
    pub(crate) replicas: Arc<ReplicaStatus>,
    pub(crate) shutdown: Shutdown,
}

/// Answers that clients share.
#[derive(Debug, Default)]
pub(crate) struct SharedAnswers {
    pub(super) engine_metrics: SharedAnswer<Page>,
    /// The status of a worker's generation; `None` when no worker answered.
    pub(super) health_generate: SharedAnswer<Option<StatusCode>>,
}

/// A page of plain text.
pub(super) type Page = (StatusCode, [(HeaderName, &'static str); 1], Bytes);

/// What the server knows of a request besides its bytes; an extension of the request.
#[derive(Clone, Debug)]
pub(crate) struct Caller {
    /// The lane whose thread carries the request.
    pub(crate) lane: Lane,
    pub(crate) request_id: HeaderValue,
    pub(crate) principal: Principal,
    /// Empty: what handlers ask workers is no request of a client's.
    pub(crate) log: RequestLog,
}

impl Caller {
    pub(super) fn context(&self) -> RequestContext<'_> {
        RequestContext {
            lane: self.lane,
            request_id: &self.request_id,
            principal: &self.principal,
            log: &self.log,
        }
    }
}
