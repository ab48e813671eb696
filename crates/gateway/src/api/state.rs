//! What handlers work with.

use std::sync::Arc;

use axum::extract::FromRef;
use http::HeaderValue;

use crate::admission::Admission;
use crate::auth::Principal;
use crate::balancer::Balancer;
use crate::cpu_pool::CpuPool;
use crate::fleet::{Fleet, Registry};
use crate::lane::Lane;
use crate::proxy::{FanOut, Proxy, RequestContext};
use crate::shutdown::Shutdown;

/// What all handlers share; each takes the parts it needs.
#[derive(Clone, Debug, FromRef)]
pub(crate) struct ApiState {
    pub(crate) fleet: Arc<Fleet>,
    pub(crate) balancer: Arc<Balancer>,
    pub(crate) registry: Arc<Registry>,
    pub(crate) proxy: Arc<Proxy>,
    pub(crate) fan_out: FanOut,
    pub(crate) cpu_pool: CpuPool,
    pub(crate) admission: Arc<Admission>,
    pub(crate) shutdown: Shutdown,
}

/// What the server knows of a request besides its bytes; an extension of the request.
#[derive(Clone, Debug)]
pub(crate) struct Caller {
    /// The lane whose thread carries the request.
    pub(crate) lane: Lane,
    pub(crate) request_id: HeaderValue,
    pub(crate) principal: Principal,
}

impl Caller {
    pub(super) fn context(&self) -> RequestContext<'_> {
        RequestContext {
            lane: self.lane,
            request_id: &self.request_id,
            principal: self.principal,
        }
    }
}
