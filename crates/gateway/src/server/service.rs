//! What every request passes, in order, and what is written onto every reply.

use std::convert::Infallible;
use std::sync::Arc;

use arc_swap::ArcSwap;
use axum::Router;
use http::header::{self, HeaderName, HeaderValue};
use http::{Method, Request, Response, StatusCode, Uri, Version};
use http_body_util::Full;
use hyper::body::Incoming;
use tower::ServiceExt;

use super::connection_state::InProgress;
use super::open_reply::OpenRequest;
use super::request_id::RequestIds;
use super::request_record::RequestRecord;
use super::response::{Reply, is_chunked, strip_body};
use super::tunnels::spawn_tunnel;
use crate::admission::{Asker, Permit};
use crate::api::{self, ApiState, Caller, Cors, Entry, Port, RouteTable, Target};
use crate::auth::{
    Access, Audit, AuditRecord, Authenticator, Call, Credentials, KeyShare, Principal,
};
use crate::config::{ServerSection, WorkerNames};
use crate::endpoint::{Inference, Vendor};
use crate::error::{Error, ErrorContext};
use crate::header_lookup;
use crate::lane::Lane;
use crate::proxy::{Proxy, ReplyBody, RequestContext, discard_in_background};
use crate::telemetry::{RequestLines, RequestLog};
use crate::via::{Loop, Via};

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// The service of a port, which all lanes share: it relays inference requests itself, and hands all
/// others to axum.
#[derive(Debug)]
pub(crate) struct Service {
    routes: RouteTable,
    api: Router,
    auth: Arc<Auth>,
    ids: RequestIds,
    worker_names: WorkerNames,
    via: Via,
    lines: Arc<RequestLines>,
    state: ApiState,
}

/// What may change while the service runs.
#[derive(Debug)]
pub(crate) struct ServiceRules {
    pub(crate) authenticator: Authenticator,
    pub(crate) cors: Cors,
}

/// What decides, at every port, whether a request may use its route, and the record of it.
#[derive(Debug)]
pub(crate) struct Auth {
    rules: ArcSwap<ServiceRules>,
    audit: Audit,
}

impl Auth {
    pub(crate) fn new(rules: ServiceRules, audit: Audit) -> Arc<Self> {
        let rules = ArcSwap::from_pointee(rules);
        Arc::new(Self { rules, audit })
    }
}

/// A request that has been answered, and in whose dialect its client reads errors.
struct Served {
    record: RequestRecord,
    vendor: Vendor,
    outcome: Result<Response<ReplyBody>, Error>,
}

/// A request that may use its route.
struct Granted {
    principal: Principal,
    audit: Option<Box<AuditRecord>>,
    share: Option<KeyShare>,
}

impl Service {
    pub(crate) fn new(
        port: Port,
        options: &ServerSection,
        auth: &Arc<Auth>,
        state: &ApiState,
        via: &Via,
    ) -> Result<Self, matchit::InsertError> {
        let (routes, api) = api::routes(port, options).with_state(state.clone());
        let metrics = state.registry.metrics();
        Ok(Self {
            routes: RouteTable::new(port, routes, metrics)?,
            api,
            auth: Arc::clone(auth),
            ids: RequestIds::new(options.request_id_headers.as_deref()),
            worker_names: options.worker_names,
            via: via.clone(),
            lines: Arc::clone(&metrics.lines),
            state: state.clone(),
        })
    }

    /// Decides by other rules about requests from now on, here and at the other port.
    pub(crate) fn set_rules(&self, rules: ServiceRules) {
        self.auth.rules.store(Arc::new(rules));
    }

    fn proxy(&self) -> &Proxy {
        &self.state.proxy
    }

    /// The life of a request.
    pub(super) async fn answer(
        &self,
        lane: Lane,
        in_progress: InProgress,
        request: Box<Request<Incoming>>,
    ) -> Response<Reply> {
        let id = self.ids.of(request.headers(), request.uri().path());
        let origin = header_lookup::first(request.headers(), &header::ORIGIN);
        let origin = origin.map(|origin| (self.access(&request), origin.clone()));
        let method = request.method().clone();
        let version = request.version();
        let log = RequestLog::default();
        if self.lines.need_facts() {
            log.begin();
        }
        let Served {
            mut record,
            vendor,
            outcome,
        } = self.serve(lane, &id, &log, request).await;
        let context = ErrorContext {
            vendor,
            names: self.worker_names,
            request_id: Some(&id),
        };
        let mut response =
            outcome.unwrap_or_else(|error| error.respond(context).map(ReplyBody::from));
        let error = response.extensions_mut().remove::<Arc<Error>>();
        record.respond_with(response.status(), error, log);
        record.set_method(&method);
        if let Some((access, origin)) = &origin {
            let cors = &self.auth.rules.load().cors;
            cors.add_response_headers(*access, origin, response.headers_mut());
        }
        response.headers_mut().insert(REQUEST_ID, id);
        let (mut parts, body) = response.into_parts();
        let request = OpenRequest {
            record,
            in_progress,
        };
        if let ReplyBody::Tunnel(tunnel) = body {
            spawn_tunnel(*tunnel, request);
            return Response::from_parts(parts, Reply::switching());
        }
        if self.state.shutdown.is_lame_duck() && version < Version::HTTP_2 {
            let close = HeaderValue::from_static("close");
            parts.headers.insert(header::CONNECTION, close);
        }
        let body = strip_body(body, &method, version, &mut parts.headers);
        let mut reply = if is_chunked(&body, &method, version, &parts) {
            Reply::chunked(body, request)
        } else {
            Reply::new(body, version, request)
        };
        if method == Method::HEAD {
            reply = reply.without_body();
        }
        Response::from_parts(parts, reply)
    }

    /// Finds the route, checks what holds for all of them, and has the request answered.
    async fn serve(
        &self,
        lane: Lane,
        request_id: &HeaderValue,
        log: &RequestLog,
        mut request: Box<Request<Incoming>>,
    ) -> Served {
        if Cors::preflight_method(request.method(), request.headers()).is_some() {
            let cors = &self.auth.rules.load().cors;
            let answer = cors.preflight(self.access(&request), request.headers());
            return Served {
                record: RequestRecord::begin(self.routes.other(), lane, request_id, log),
                vendor: Vendor::default(),
                outcome: Ok(answer.map(ReplyBody::from)),
            };
        }
        let entry = match self.routes.find(request.method(), request.uri().path()) {
            Ok(entry) => entry,
            Err(error) => {
                let vendor = self.routes.vendor(request.uri().path());
                let redirect = self.without_slash(request.method(), request.uri());
                discard_in_background(request.into_body());
                return Served {
                    record: RequestRecord::begin(self.routes.other(), lane, request_id, log),
                    vendor,
                    outcome: redirect.ok_or(error),
                };
            }
        };
        if !matches!(entry.target, Target::Api) {
            self.lines.trace(&mut request, log);
        }
        let mut record = RequestRecord::begin(self.routes.metrics(entry), lane, request_id, log);
        let outcome = match self.grant(entry, request_id, &request).await {
            Ok(granted) => {
                record.authorize(granted.principal.clone());
                record.hold(granted.share);
                let context = RequestContext {
                    lane,
                    request_id,
                    principal: &granted.principal,
                    log,
                };
                let outcome = self.perform(entry, context, request, &mut record).await;
                if let Some(audit) = granted.audit {
                    let status = outcome.as_ref();
                    audit.finish(status.map_or_else(Error::status, Response::status));
                }
                outcome
            }
            Err(error) => {
                self.refuse(entry, request, &mut record);
                Err(error)
            }
        };
        let outcome = outcome.map(|mut response| {
            Cors::strip_worker_headers(response.headers_mut());
            response
        });
        Served {
            record,
            vendor: entry.vendor(),
            outcome,
        }
    }

    /// Lets a request go that may not use its route; its record has the name of a key that is known.
    fn refuse(&self, entry: &Entry, request: Box<Request<Incoming>>, record: &mut RequestRecord) {
        let rules = self.auth.rules.load();
        let shown = rules.authenticator.identify(credentials(entry, &request));
        if let Some(principal) = shown {
            record.authorize(principal);
        }
        discard_in_background(request.into_body());
    }

    /// Has a request that may use its route answered.
    async fn perform(
        &self,
        entry: &Entry,
        context: RequestContext<'_>,
        request: Box<Request<Incoming>>,
        record: &mut RequestRecord,
    ) -> Result<Response<ReplyBody>, Error> {
        match entry.target {
            Target::Relay(row) => self.relay(row, context, request, record).await,
            Target::Tunnel(row) => Box::pin(self.tunnel(row, context, request, record)).await,
            // Rare, so boxed: every request's future would be larger.
            Target::Api => Ok(Box::pin(self.handle(context, request)).await),
        }
    }

    /// Sends a client that wrote a slash too many to the path without it, as SGLang's server does.
    fn without_slash(&self, method: &Method, uri: &Uri) -> Option<Response<ReplyBody>> {
        let path = uri.path().strip_suffix('/')?;
        self.routes.find(method, path).ok()?;
        let target = match uri.query() {
            Some(query) => format!("{path}?{query}"),
            None => path.to_owned(),
        };
        let target = HeaderValue::try_from(target).ok()?;
        let mut response = Response::new(ReplyBody::from(Full::default()));
        *response.status_mut() = StatusCode::TEMPORARY_REDIRECT;
        response.headers_mut().insert(header::LOCATION, target);
        Some(response)
    }

    /// What holds for the requests of all routes.
    fn check(
        &self,
        rules: &ServiceRules,
        entry: &Entry,
        request: &Request<Incoming>,
    ) -> Result<(), Error> {
        let headers = request.headers();
        if let Some(found) = self.via.find_loop(headers) {
            return Err(loop_error(found));
        }
        // The size is checked before the key: a client without one learns it, too.
        self.proxy().check_length(request)?;
        rules.cors.check_site(&entry.route, request)
    }

    /// Where a request comes from, and what it holds, if it may use its route.
    async fn grant(
        &self,
        entry: &Entry,
        request_id: &HeaderValue,
        request: &Request<Incoming>,
    ) -> Result<Granted, Error> {
        if entry.route.access.is_control() {
            // Rare, and perhaps long.
            Box::pin(self.authorize_control(entry, request_id, request)).await
        } else {
            self.authorize(entry, request)
        }
    }

    /// The same where that is known at once.
    fn authorize(&self, entry: &Entry, request: &Request<Incoming>) -> Result<Granted, Error> {
        let rules = self.auth.rules.load();
        self.check(&rules, entry, request)?;
        let credentials = credentials(entry, request);
        let principal = rules.authenticator.authenticate(credentials)?;
        let share = if entry.route.access == Access::Inference {
            principal.enter()?
        } else {
            None
        };
        Ok(Granted {
            principal,
            audit: None,
            share,
        })
    }

    /// The same for a call of the control plane, which is recorded where that is wanted.
    async fn authorize_control(
        &self,
        entry: &Entry,
        request_id: &HeaderValue,
        request: &Request<Incoming>,
    ) -> Result<Granted, Error> {
        let method = request.method();
        let call = Call {
            method,
            path: request.uri().path(),
            route: entry.route.path,
            request_id,
        };
        let credentials = credentials(entry, request);
        // Kept for as long as an issuer takes to answer.
        let rules = self.auth.rules.load_full();
        let came = match self.check(&rules, entry, request) {
            Ok(()) => rules.authenticator.authenticate_control(credentials).await,
            Err(error) => Err(error),
        };
        let principal = came.inspect_err(|error| self.auth.audit.deny(call, None, error))?;
        let allowed = principal.check_role(entry.route.access, method);
        match allowed.and_then(|()| self.auth.audit.check()) {
            Ok(()) => {
                let audit = self.auth.audit.allow(call, &principal);
                Ok(Granted {
                    principal,
                    audit,
                    share: None,
                })
            }
            Err(error) => {
                self.auth.audit.deny(call, Some(&principal), &error);
                Err(error)
            }
        }
    }

    /// The right that the route of a browser's request needs: of the request itself, or of the
    /// one that it is the preflight of.
    fn access<B>(&self, request: &Request<B>) -> Access {
        let (method, headers) = (request.method(), request.headers());
        let asked = Cors::preflight_method(method, headers);
        let method = asked.as_ref().unwrap_or(method);
        let found = self.routes.find(method, request.uri().path());
        found.map_or(Access::Info, |entry| entry.route.access)
    }

    /// Relays an inference request: reads its body, admits it, parses it. A slow client thus
    /// takes no share of the limits, and a full queue is reported before a bad body.
    async fn relay(
        &self,
        row: &'static Inference,
        context: RequestContext<'_>,
        request: Box<Request<Incoming>>,
        record: &mut RequestRecord,
    ) -> Result<Response<ReplyBody>, Error> {
        let received = self.proxy().receive(row, request).await?;
        let asker = || received.asker(context.principal);
        record.admit(self.admit(context, asker).await?);
        self.state.proxy.forward(row, context, received).await
    }

    /// Waits for a share of the limits.
    async fn admit(
        &self,
        context: RequestContext<'_>,
        asker: impl FnOnce() -> Asker,
    ) -> Result<Permit, Error> {
        let entered = context.log.enter_queue();
        let permit = self.state.admission.admit(asker).await;
        context.log.leave_queue(entered);
        permit
    }

    /// Opens a connection through to a worker.
    async fn tunnel(
        &self,
        row: &'static Inference,
        context: RequestContext<'_>,
        request: Box<Request<Incoming>>,
        record: &mut RequestRecord,
    ) -> Result<Response<ReplyBody>, Error> {
        let request = self.proxy().receive_upgrade(row, *request)?;
        let asker = || request.asker(context.principal);
        record.admit(self.admit(context, asker).await?);
        self.proxy().open_tunnel(row, context, request).await
    }

    /// Everything else.
    async fn handle(
        &self,
        context: RequestContext<'_>,
        mut request: Box<Request<Incoming>>,
    ) -> Response<ReplyBody> {
        if request.method() == Method::HEAD {
            // Handlers need not know; hyper leaves the body out.
            *request.method_mut() = Method::GET;
        }
        request.extensions_mut().insert(Caller {
            lane: context.lane,
            request_id: context.request_id.clone(),
            principal: context.principal.clone(),
            log: RequestLog::default(),
        });
        let response: Result<_, Infallible> = self.api.clone().oneshot(*request).await;
        let Ok(response) = response;
        response.map(ReplyBody::Api)
    }
}

fn credentials<'a>(entry: &Entry, request: &'a Request<Incoming>) -> Credentials<'a> {
    Credentials {
        access: entry.route.access,
        vendor: entry.vendor(),
        headers: request.headers(),
    }
}

fn loop_error(found: Loop) -> Error {
    Error::LoopDetected(match found {
        Loop::Own => {
            "this request has passed this gateway before: the URL of a worker leads back to it"
        }
        Loop::TooLong => "this request has passed too many gateways",
    })
}
