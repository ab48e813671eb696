//! What every request passes, in order, and what is written onto every reply.

use std::sync::Arc;

use http::header::{self, HeaderName, HeaderValue};
use http::{Method, Request, Response, StatusCode, Version};
use hyper::body::Incoming;
use tracing::{debug, warn};

use super::admission::Admission;
use super::auth::Auth;
use super::cors::{self, Cors};
use super::disclosure;
use super::info;
use super::lanes::Presence;
use super::loads;
use super::reply::{Reply, Visit};
use super::request_id::RequestIds;
use super::routes::{Action, Guard, Routes};
use super::workers;
use crate::config::Options;
use crate::endpoint::Inference;
use crate::error::Error;
use crate::fleet::Register;
use crate::proxy::{Passage, Proxy, ReplyBody, linger};
use crate::server::Shutdown;
use crate::telemetry::Metrics;

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// The gate all lanes share.
#[derive(Debug)]
pub(crate) struct Gate {
    routes: Routes,
    auth: Auth,
    cors: Cors,
    ids: RequestIds,
    proxy: Proxy,
    state: State,
}

/// What the gate shares with whoever runs the gateway.
#[derive(Clone, Debug)]
pub(crate) struct State {
    pub(crate) shutdown: Shutdown,
    pub(crate) admission: Arc<Admission>,
    pub(crate) register: Arc<Register>,
}

impl Gate {
    pub(crate) fn new(
        options: &Options,
        proxy: Proxy,
        metrics: &Metrics,
        state: State,
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

    fn register(&self) -> &Register {
        &self.state.register
    }

    /// The life of a request, at the door.
    pub(super) async fn answer(
        &self,
        lane: usize,
        present: Presence,
        request: Request<Incoming>,
    ) -> Response<Reply> {
        let id = self.ids.of(request.headers(), request.uri().path());
        let origin = request.headers().get(header::ORIGIN).cloned();
        let bodiless = request.method() == Method::HEAD;
        let version = request.version();
        let passage = Passage {
            lane,
            request_id: &id,
        };
        let (mut visit, outcome) = self.visit(passage, request).await;
        let mut response = match outcome {
            Ok(response) => {
                visit.answered(response.status(), "");
                response
            }
            Err(error) => {
                visit.answered(error.status(), error.code());
                explain(&error, &id);
                error.render().map(ReplyBody::from)
            }
        };
        self.cors.mark(origin.as_ref(), response.headers_mut());
        response.headers_mut().insert(REQUEST_ID, id);
        if self.state.shutdown.is_leaving() && version < Version::HTTP_2 {
            let close = HeaderValue::from_static("close");
            response.headers_mut().insert(header::CONNECTION, close);
        }
        response.map(|body| Reply::new(body, (visit, present), bodiless))
    }

    async fn visit(
        &self,
        passage: Passage<'_>,
        request: Request<Incoming>,
    ) -> (Visit, Result<Response<ReplyBody>, Error>) {
        if let Some(response) = self.cors.preflight(&request) {
            return (
                Visit::begin(self.routes.other()),
                Ok(response.map(ReplyBody::from)),
            );
        }
        let route = match self.routes.find(request.method(), request.uri().path()) {
            Ok(route) => route,
            Err(error) => {
                linger(request.into_body());
                return (Visit::begin(self.routes.other()), Err(error));
            }
        };
        let mut visit = Visit::begin(&route.metrics);
        // Too large beats unauthorised: no key is needed to be told to send less.
        let may = self
            .proxy
            .check_length(&request)
            .and_then(|()| match route.guard {
                Guard::Public => Ok(()),
                Guard::Key => self.auth.check(request.headers()),
            });
        if let Err(error) = may {
            linger(request.into_body());
            return (visit, Err(error));
        }
        let outcome = self.act(route.action, passage, request, &mut visit).await;
        let outcome = outcome.map(|mut response| {
            cors::disown(response.headers_mut());
            response
        });
        (visit, outcome)
    }

    /// Inference: the request comes in whole before it takes a place, so that a client that
    /// sends slowly holds up nobody; it is looked at only after that, so too much beats badly
    /// asked.
    async fn infer(
        &self,
        row: &'static Inference,
        passage: Passage<'_>,
        request: Request<Incoming>,
        visit: &mut Visit,
    ) -> Result<Response<ReplyBody>, Error> {
        let received = self.proxy.receive(row, request).await?;
        visit.admit(self.state.admission.admit().await?);
        self.proxy.forward(row, passage, received).await
    }

    async fn act(
        &self,
        action: Action,
        passage: Passage<'_>,
        request: Request<Incoming>,
        visit: &mut Visit,
    ) -> Result<Response<ReplyBody>, Error> {
        let (lane, proxy) = (passage.lane, &self.proxy);
        match action {
            Action::Forward(row) => self.infer(row, passage, request, visit).await,
            // Rare ones are boxed, so that they do not make every request's future larger.
            Action::Seek => Box::pin(proxy.seek(passage, request)).await,
            Action::AskFirst(paths) => Box::pin(proxy.ask_first(lane, paths))
                .await
                .map(|answer| disclosure::answer(&answer)),
            Action::Alive => Ok(info::text("OK")),
            Action::Readiness => Ok(info::readiness(
                &proxy.fleet,
                self.state.shutdown.is_leaving(),
            )),
            Action::Models => info::models(&proxy.fleet),
            Action::Workers => Ok(workers::list(&proxy.fleet, request.uri())),
            Action::Worker => workers::one(&proxy.fleet, request.uri().path()),
            Action::Register(change) => {
                let most = self.proxy.max_payload();
                Box::pin(workers::change(self.register(), change, request, most)).await
            }
            Action::Legacy(legacy) => {
                let asked = workers::legacy(&self.state, legacy, request.uri());
                let answered = Box::pin(asked).await;
                answered.map_err(|error| Error::Legacy(Box::new(error)))
            }
            Action::Limits => Ok(info::limits(&proxy.fleet, &self.state.admission)),
            Action::Abort => Box::pin(proxy.abort(passage, request))
                .await
                .map(|answer| disclosure::bare(&answer)),
            Action::Loads => Ok(Box::pin(loads::loads(proxy, lane)).await),
            Action::FlushCache => Ok(Box::pin(loads::flush_cache(proxy, lane)).await),
            Action::EngineMetrics => Ok(Box::pin(loads::engine_metrics(proxy, lane)).await),
            Action::Decisions => Ok(info::json(
                StatusCode::OK,
                &proxy.last_decisions(info::limit(request.uri())),
            )),
            Action::DryRun => {
                let (parts, body) = request.into_parts();
                let ranked = Box::pin(proxy.dry_run(&parts, body)).await?;
                Ok(info::json(StatusCode::OK, &ranked))
            }
            Action::Absent(what) => Err(Error::NotImplemented(what)),
        }
    }
}

/// A reply that the gateway made itself says why, also in the log.
fn explain(error: &Error, id: &HeaderValue) {
    if error.status().is_server_error() {
        warn!(request_id = ?id, code = error.code(), %error, "request failed");
    } else {
        debug!(request_id = ?id, code = error.code(), %error, "request refused");
    }
}
