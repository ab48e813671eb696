//! What every request passes, in order, and what is written onto every reply.

use std::sync::Arc;

use http::header::{self, HeaderName, HeaderValue};
use http::{Method, Request, Response, StatusCode, Version};
use hyper::body::Incoming;
use tracing::{debug, warn};

use super::auth::Auth;
use super::cors::{self, Cors};
use super::disclosure;
use super::in_progress::InProgress;
use super::info;
use super::loads;
use super::request_id::RequestIds;
use super::response::{Reply, RequestRecord};
use super::routes::{Access, Action, Routes};
use super::workers;
use crate::admission::Admission;
use crate::config::ServerSection;
use crate::endpoint::Inference;
use crate::error::Error;
use crate::fleet::Registry;
use crate::lane::Lane;
use crate::proxy::{FanOut, Proxy, ReplyBody, RequestContext, drain_in_background, read_body};
use crate::shutdown::Shutdown;
use crate::telemetry::Metrics;

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// The gate all lanes share.
#[derive(Debug)]
pub(crate) struct Service {
    routes: Routes,
    auth: Auth,
    cors: Cors,
    ids: RequestIds,
    proxy: Proxy,
    state: AppState,
}

/// What the gate shares with whoever runs the gateway.
#[derive(Clone, Debug)]
pub(crate) struct AppState {
    pub(crate) shutdown: Shutdown,
    pub(crate) admission: Arc<Admission>,
    pub(crate) registry: Arc<Registry>,
    pub(crate) fan_out: FanOut,
}

impl Service {
    pub(crate) fn new(
        options: &ServerSection,
        proxy: Proxy,
        metrics: &Metrics,
        state: AppState,
    ) -> Result<Self, matchit::InsertError> {
        Ok(Self {
            routes: Routes::new(metrics)?,
            auth: Auth::new(options.api_key.clone()),
            cors: Cors::new(&options.cors_allowed_origins),
            ids: RequestIds::new(options.request_id_headers.as_deref()),
            proxy,
            state,
        })
    }

    fn registry(&self) -> &Registry {
        &self.state.registry
    }

    /// The life of a request, at the door.
    pub(super) async fn answer(
        &self,
        lane: Lane,
        in_progress: InProgress,
        request: Request<Incoming>,
    ) -> Response<Reply> {
        let id = self.ids.of(request.headers(), request.uri().path());
        let origin = request.headers().get(header::ORIGIN).cloned();
        let bodiless = request.method() == Method::HEAD;
        let version = request.version();
        let context = RequestContext {
            lane,
            request_id: &id,
        };
        let (mut record, outcome) = self.record(context, request).await;
        let mut response = match outcome {
            Ok(response) => {
                record.respond_with(response.status(), "");
                response
            }
            Err(error) => {
                record.respond_with(error.status(), error.code());
                log_failure(&error, &id);
                error.render().map(ReplyBody::from)
            }
        };
        self.cors.mark(origin.as_ref(), response.headers_mut());
        response.headers_mut().insert(REQUEST_ID, id);
        if self.state.shutdown.is_lame_duck() && version < Version::HTTP_2 {
            let close = HeaderValue::from_static("close");
            response.headers_mut().insert(header::CONNECTION, close);
        }
        response.map(|body| Reply::new(body, (record, in_progress), bodiless))
    }

    async fn record(
        &self,
        context: RequestContext<'_>,
        request: Request<Incoming>,
    ) -> (RequestRecord, Result<Response<ReplyBody>, Error>) {
        if let Some(response) = self.cors.preflight(&request) {
            return (
                RequestRecord::begin(self.routes.other()),
                Ok(response.map(ReplyBody::from)),
            );
        }
        let route = match self.routes.find(request.method(), request.uri().path()) {
            Ok(route) => route,
            Err(error) => {
                drain_in_background(request.into_body());
                return (RequestRecord::begin(self.routes.other()), Err(error));
            }
        };
        let mut record = RequestRecord::begin(&route.metrics);
        // Too large beats unauthorised: no key is needed to be told to send less.
        let may = self
            .proxy
            .check_length(&request)
            .and_then(|()| match route.access {
                Access::Public => Ok(()),
                Access::ApiKey => self.auth.check(request.headers()),
            });
        if let Err(error) = may {
            drain_in_background(request.into_body());
            return (record, Err(error));
        }
        let outcome = self
            .respond(route.action, context, request, &mut record)
            .await;
        let outcome = outcome.map(|mut response| {
            cors::disown(response.headers_mut());
            response
        });
        (record, outcome)
    }

    /// Inference: the request comes in whole before it takes a place, so that a client that
    /// sends slowly holds up nobody; it is looked at only after that, so too much beats badly
    /// asked.
    async fn infer(
        &self,
        row: &'static Inference,
        context: RequestContext<'_>,
        request: Request<Incoming>,
        record: &mut RequestRecord,
    ) -> Result<Response<ReplyBody>, Error> {
        let received = self.proxy.receive(row, request).await?;
        record.admit(self.state.admission.admit().await?);
        self.proxy.forward(row, context, received).await
    }

    async fn respond(
        &self,
        action: Action,
        context: RequestContext<'_>,
        request: Request<Incoming>,
        record: &mut RequestRecord,
    ) -> Result<Response<ReplyBody>, Error> {
        let (proxy, fan_out) = (&self.proxy, &self.state.fan_out);
        match action {
            Action::Forward(row) => self.infer(row, context, request, record).await,
            // Rare ones are boxed, so that they do not make every request's future larger.
            Action::Broadcast => Box::pin(proxy.broadcast(context, request)).await,
            Action::AskFirst(paths) => Box::pin(fan_out.ask_first(paths))
                .await
                .map(|answer| disclosure::answer(&answer)),
            Action::Alive => Ok(info::text("OK")),
            Action::Readiness => Ok(info::readiness(
                &proxy.balancer().fleet,
                self.state.shutdown.is_lame_duck(),
            )),
            Action::Models => info::models(&proxy.balancer().fleet),
            Action::Workers => Ok(workers::list(&proxy.balancer().fleet, request.uri())),
            Action::Worker => workers::one(&proxy.balancer().fleet, request.uri().path()),
            Action::Registry(change) => {
                let most = self.proxy.max_payload();
                Box::pin(workers::change(self.registry(), change, request, most)).await
            }
            Action::Legacy(legacy) => {
                let asked = workers::legacy(&self.state, legacy, request.uri());
                let answered = Box::pin(asked).await;
                answered.map_err(|error| Error::Legacy(Box::new(error)))
            }
            Action::Limits => Ok(info::limits(proxy.balancer(), &self.state.admission)),
            Action::Abort => {
                let body = read_body(request.into_body(), proxy.max_payload()).await?;
                let answer = Box::pin(fan_out.abort(body)).await?;
                Ok(disclosure::bare(&answer))
            }
            Action::Loads => Ok(Box::pin(loads::loads(fan_out)).await),
            Action::FlushCache => {
                Ok(Box::pin(loads::flush_cache(&proxy.balancer().fleet, fan_out)).await)
            }
            Action::EngineMetrics => Ok(Box::pin(loads::engine_metrics(fan_out)).await),
            Action::Decisions => Ok(info::json(
                StatusCode::OK,
                &proxy
                    .explainer()
                    .recent_decisions(info::limit(request.uri())),
            )),
            Action::Explain => {
                let (parts, body) = request.into_parts();
                let ranked = Box::pin(proxy.explain_request(&parts, body)).await?;
                Ok(info::json(StatusCode::OK, &ranked))
            }
            Action::NotImplemented(what) => Err(Error::NotImplemented(what)),
        }
    }
}

/// A reply that the gateway made itself says why, also in the log.
fn log_failure(error: &Error, id: &HeaderValue) {
    if error.status().is_server_error() {
        warn!(request_id = ?id, code = error.code(), %error, "request failed");
    } else {
        debug!(request_id = ?id, code = error.code(), %error, "request refused");
    }
}
