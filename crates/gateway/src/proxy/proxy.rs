//! An inference request from its whole body to its reply.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

use bytes::Bytes;
use http::header::{self, HeaderMap, HeaderValue};
use http::{Method, Request, Response, StatusCode, request};
use hyper::body::Incoming;
use routing::{ClientKey, MediaTokens, Prompt, Request as RoutingRequest};
use serde_json::Value;

use super::body_budget::BodyBudget;
use super::body_fields::{BodyFields, OpenBody};
use super::client_key::ClientHeaders;
use super::dispatcher::Dispatcher;
use super::exchange::{Exchange, Finished};
use super::explain::Explainer;
use super::failure::Failure;
use super::form::FormFields;
use super::handshake::{self, UpgradeRequest};
use super::header_text::{ROUTING_KEY, TARGET, header_text};
use super::keep_alive::{StreamErrors, keep_alive};
use super::kept_state::owner_of;
use super::prepared_request::PreparedRequest;
use super::queue::unknown_model;
use super::relay::{Accounts, Relay, relay};
use super::relayed::Relayed;
use super::request::{BufferedRequest, ProxyRequest, RequestContext};
use super::request_body::{self, BodyLimits};
use super::response_body::ReplyBody;
use super::samples;
use super::token_charge::TokenCharge;
use super::translate::dialect;
use super::tunnel::{Tunnel, TunnelLease};
use super::usage::UsageWatch;
use crate::balancer::{Balancer, NamedAdapters};
use crate::config::ProxySection;
use crate::cpu_pool::CpuPool;
use crate::endpoint::{Inference, Servers, State, Undeclared};
use crate::error::Error;
use crate::fleet::Worker;
use crate::upstream::{CallBody, ResponseBody};

/// Carries requests to workers.
#[derive(Debug)]
pub(crate) struct Proxy {
    pub(crate) dispatcher: Dispatcher,
    pub(super) cpu_pool: CpuPool,
    body_limits: BodyLimits,
    media_tokens: MediaTokens,
    strip_billing_header: bool,
}

impl Proxy {
    pub(crate) fn new(options: &ProxySection, dispatcher: Dispatcher, cpu_pool: CpuPool) -> Self {
        let taken = dispatcher.metrics.http.buffered_bytes.clone();
        let budget = BodyBudget::new(options.max_buffered, taken);
        Self {
            dispatcher,
            cpu_pool,
            body_limits: BodyLimits {
                length: options.max_payload,
                silence: options.body_timeout,
                budget,
            },
            media_tokens: options.media_tokens,
            strip_billing_header: options.strip_billing_header,
        }
    }

    pub(crate) fn balancer(&self) -> &Arc<Balancer> {
        &self.dispatcher.balancer
    }

    pub(crate) fn explainer(&self) -> &Explainer {
        &self.dispatcher.explainer
    }

    /// What request bodies may take.
    pub(crate) fn body_limits(&self) -> BodyLimits {
        self.body_limits.clone()
    }

    /// Refuses a body that its own `content-length` says is too large.
    pub(crate) fn check_length(&self, request: &Request<Incoming>) -> Result<(), Error> {
        request_body::check_length(request.body(), self.body_limits.length)
    }

    /// Reads an inference request, whole but not yet looked at.
    pub(crate) async fn receive(
        &self,
        row: &'static Inference,
        request: Box<Request<Incoming>>,
    ) -> Result<BufferedRequest, Error> {
        let (parts, body) = request.into_parts();
        let received = request_body::read(body, &self.body_limits).await;
        let body = received.inspect_err(|error| {
            let metrics = &self.dispatcher.metrics;
            metrics.request_error(row.label, error);
        })?;
        Ok(BufferedRequest { parts, body })
    }

    /// Carries an inference request to a worker, and the worker's response back.
    pub(crate) async fn forward(
        self: &Arc<Self>,
        row: &'static Inference,
        context: RequestContext<'_>,
        buffered: BufferedRequest,
    ) -> Result<Response<ReplyBody>, Error> {
        let live = self.dispatcher.live.get();
        let keep_alive = live.keep_alive.filter(|_| row.streams);
        let prepared = PreparedRequest::new(row, buffered, live)
            .map_err(|error| self.count(row, error.into()))?;
        match keep_alive {
            None => {
                let outcome = self.carry(context, &prepared).await;
                outcome.map_err(|failure| self.count(row, failure))
            }
            // Rare, so boxed: every request's future would be larger.
            Some(interval) => Box::pin(self.carry_alive(context, prepared, interval)).await,
        }
    }

    async fn carry(
        &self,
        context: RequestContext<'_>,
        prepared: &PreparedRequest,
    ) -> Result<Response<ReplyBody>, Failure> {
        let (row, body) = (prepared.row, &prepared.body.bytes);
        let fields = self.read_fields(row, &prepared.parts, body).await?;
        let (worker, reply) = self.exchange_samples(context, prepared, &fields).await?;
        let reply = reply.map(ReplyBody::from);
        match dialect(row.reply) {
            None => Ok(reply),
            Some(dialect) => {
                let reply = dialect.reply(body, &worker, reply).await;
                reply.map_err(Failure::at(&worker))
            }
        }
    }

    /// The same, with comments in the silences of a stream. The attempts outlive this call: they
    /// go on in the body of the reply.
    async fn carry_alive(
        self: &Arc<Self>,
        context: RequestContext<'_>,
        mut prepared: PreparedRequest,
        interval: Duration,
    ) -> Result<Response<ReplyBody>, Error> {
        let errors = StreamErrors {
            vendor: prepared.row.vendor,
            names: self.dispatcher.worker_names(),
            request_id: context.request_id.clone(),
            log: context.log.share(),
        };
        let log = errors.log.clone();
        let streams = Arc::new(AtomicBool::new(false));
        let (proxy, found) = (Arc::clone(self), Arc::clone(&streams));
        let (lane, id) = (context.lane, context.request_id.clone());
        let principal = context.principal.clone();
        let exchange = async move {
            let context = RequestContext {
                lane,
                request_id: &id,
                principal: &principal,
                log: &log,
            };
            let outcome = proxy.carry_events(context, &mut prepared, &found).await;
            outcome.map_err(|failure| proxy.count(prepared.row, failure))
        };
        let streams = || streams.load(Relaxed);
        let reply = keep_alive(Box::pin(exchange), interval, streams, errors).await?;
        Ok(reply.map(ReplyBody::KeepAlive))
    }

    /// Carries a request that may get a head of the gateway's; `streams` is set when it may.
    async fn carry_events(
        &self,
        context: RequestContext<'_>,
        prepared: &mut PreparedRequest,
        streams: &AtomicBool,
    ) -> Result<Response<Relayed>, Failure> {
        let body = &prepared.body.bytes;
        let fields = self
            .read_fields(prepared.row, &prepared.parts, body)
            .await?;
        if fields.stream {
            // That head names no encoding.
            let plain = HeaderValue::from_static("identity");
            prepared
                .parts
                .headers
                .insert(header::ACCEPT_ENCODING, plain);
            streams.store(true, Relaxed);
        }
        let (_, reply) = self.exchange_samples(context, prepared, &fields).await?;
        Ok(reply)
    }

    /// Sends a request to workers; one for several answers as so many, where pairs serve it.
    async fn exchange_samples(
        &self,
        context: RequestContext<'_>,
        prepared: &PreparedRequest,
        fields: &BodyFields<'_>,
    ) -> Result<(Arc<Worker>, Response<Relayed>), Failure> {
        match self.exchange(context, prepared, fields).await {
            Ok((worker, reply)) => Ok((worker, reply.map(Relayed::One))),
            Err(Failure {
                error: Error::PairSamples(count),
                ..
            }) => Box::pin(samples::carry(self, context, prepared, count)).await,
            Err(failure) => Err(failure),
        }
    }

    /// Sends a request to workers until one of them has the last word.
    pub(super) async fn exchange(
        &self,
        context: RequestContext<'_>,
        prepared: &PreparedRequest,
        fields: &BodyFields<'_>,
    ) -> Result<(Arc<Worker>, Response<Box<Relay>>), Failure> {
        let (row, live) = (prepared.row, &prepared.live);
        let (parts, body) = (&prepared.parts, &prepared.body);
        let state = fields.state(row);
        let goes_on = state.is_some();
        // Rare, so boxed: every request's future would be larger.
        let owner = match state {
            None => None,
            Some(state) => {
                Box::pin(owner_of(&self.dispatcher, context, &parts.headers, state)).await?
            }
        };
        let needed = row.servers == Servers::Generating && self.balancer().adds_fields();
        // Rare, so boxed: every request's future would be larger.
        let open_body = match needed.then(|| self.open_body(row, fields, &body.bytes)) {
            None => None,
            Some(reading) => Box::pin(reading).await,
        };
        let client_key = ClientHeaders::new(&parts.headers, live);
        let routing = &self.with_prompt(self.routing(&parts.headers, &client_key), fields, row);
        context.record(&self.dispatcher.metrics, routing, fields);
        let charge = TokenCharge::take(context, row, &routing.prompt)?;
        let grant = context.grant(|| fields.adapters(row));
        let request = ProxyRequest {
            row,
            context,
            parts,
            body: self.worker_body(row, fields, &body.bytes),
            open_body: open_body.as_deref(),
            routing,
            target: self.target(&parts.headers).or(owner.as_deref()),
            grant: grant.as_ref(),
            streaming: fields.stream,
            live,
        };
        // What goes on is longer than what is in the body.
        let usage = UsageWatch::new(&request, self.balancer()).learning_if(!goes_on);
        let usage = usage.charging(charge);
        let Finished { result, timer } = Exchange::new(&self.dispatcher, &request).run().await?;
        let mut response = result.answer.map_err(Failure::at(&result.worker))?;
        if row.state != State::None {
            let learning = self.learn_owner(row, &mut response, &result.worker);
            Box::pin(learning).await?;
        }
        let supervision = self.dispatcher.supervision(&result.worker, live);
        let accounts = Accounts {
            in_flight: result.in_flight,
            coupling: result.coupling,
            timer,
            usage,
        };
        let mut reply = relay(*response, supervision, accounts, row.vendor);
        if !self.dispatcher.hide_routing {
            result.explanation.write(reply.headers_mut());
        }
        Ok((result.worker, reply))
    }

    /// Learns what a worker keeps from now on.
    async fn learn_owner(
        &self,
        row: &Inference,
        response: &mut Response<ResponseBody>,
        worker: &Arc<Worker>,
    ) -> Result<(), Failure> {
        let owners = &self.dispatcher.owners;
        let learnt = owners.learn(row.state, response, worker).await;
        learnt.map_err(|source| {
            Failure::at(worker)(Error::Upstream {
                worker: worker.url().to_string(),
                source,
            })
        })
    }

    /// Counts a request that got no reply of a worker.
    fn count(&self, row: &Inference, failure: Failure) -> Error {
        let Failure { error, worker } = failure;
        let Some(worker) = worker else {
            self.dispatcher.metrics.request_error(row.label, &error);
            return error;
        };
        let info = worker.endpoint.model_info.load();
        let backend = info.role.worker_type().backend();
        info.metrics.failed(backend, row.label, &error);
        error
    }

    /// Takes a request for a connection that is switched to the protocol of `row`.
    pub(crate) fn receive_upgrade(
        &self,
        row: &'static Inference,
        request: Request<Incoming>,
    ) -> Result<UpgradeRequest, Error> {
        let received = UpgradeRequest::new(request, row.upgrade.unwrap_or_default());
        received.map_err(|error| self.count(row, error.into()))
    }

    /// Opens a connection through to a worker.
    pub(crate) async fn open_tunnel(
        &self,
        row: &'static Inference,
        context: RequestContext<'_>,
        request: UpgradeRequest,
    ) -> Result<Response<ReplyBody>, Error> {
        let outcome = self.switch(row, context, request).await;
        outcome.map_err(|failure| self.count(row, failure))
    }

    /// A request with its model and prompt, and what is expected of their tokens.
    fn with_prompt<'a>(
        &self,
        request: RoutingRequest<'a>,
        fields: &'a BodyFields<'_>,
        row: &Inference,
    ) -> RoutingRequest<'a> {
        let mut request = RoutingRequest {
            model: fields.model.as_deref(),
            adapter: fields.adapter(),
            ..request
        };
        let longest = fields.longest_output();
        let expected = self.balancer().expected_tokens(&request, longest);
        let prompt = fields.prompt(row.prompt, self.media_tokens);
        request.prompt = prompt.with_text_ratio(expected.text_ratio);
        request.output_tokens = expected.output;
        request
    }

    /// What a worker gets of a body.
    fn worker_body<'a>(
        &self,
        row: &Inference,
        fields: &BodyFields<'a>,
        body: &'a Bytes,
    ) -> CallBody<'a> {
        if self.strip_billing_header {
            fields.without_billing_header(row.prompt).into()
        } else {
            (&**body).into()
        }
    }

    /// A body that fields of the gateway's are added to.
    async fn open_body(
        &self,
        row: &Inference,
        fields: &BodyFields<'_>,
        body: &Bytes,
    ) -> Option<Box<OpenBody>> {
        let source = if self.strip_billing_header {
            &fields.without_billing_header(row.prompt).concat().into()
        } else {
            body
        };
        let read = OpenBody::read_off_lane(source, &self.cpu_pool).await;
        read.map(Box::new)
    }

    async fn switch(
        &self,
        row: &'static Inference,
        context: RequestContext<'_>,
        request: UpgradeRequest,
    ) -> Result<Response<ReplyBody>, Failure> {
        let UpgradeRequest { parts, client } = request;
        let model = handshake::model(&parts.uri);
        let live = &self.dispatcher.live.get();
        let client_key = ClientHeaders::new(&parts.headers, live);
        let grant = context.grant(NamedAdapters::default);
        let request = ProxyRequest {
            row,
            context,
            parts: &parts,
            body: CallBody::default(),
            open_body: None,
            routing: &RoutingRequest {
                model: model.as_deref(),
                adapter: None,
                prompt: Prompt::default(),
                ..self.routing(&parts.headers, &client_key)
            },
            target: self.target(&parts.headers),
            grant: grant.as_ref(),
            streaming: true,
            live,
        };
        let Finished { result, timer } = Exchange::new(&self.dispatcher, &request).run().await?;
        let response = result.answer.map_err(Failure::at(&result.worker))?;
        let supervision = self.dispatcher.supervision(&result.worker, live);
        let mut reply = if response.status() == StatusCode::SWITCHING_PROTOCOLS {
            let in_flight = result.in_flight;
            let log = context.log.share();
            let lease = TunnelLease {
                in_flight,
                timer,
                log,
            };
            let tunnel = Tunnel::new(client, *response, supervision, lease);
            let tunnel = tunnel.map_err(|source| {
                let worker = result.worker.url().to_string();
                Failure::at(&result.worker)(Error::Upstream { worker, source })
            })?;
            tunnel.map(|tunnel| ReplyBody::Tunnel(Box::new(tunnel)))
        } else {
            let in_flight = result.in_flight;
            let accounts = Accounts {
                in_flight,
                coupling: None,
                timer,
                usage: UsageWatch::default(),
            };
            relay(*response, supervision, accounts, row.vendor).map(ReplyBody::from)
        };
        if !self.dispatcher.hide_routing {
            result.explanation.write(reply.headers_mut());
        }
        Ok(reply)
    }

    /// What routing knows of a request besides its model and prompt.
    fn routing<'a>(&self, headers: &'a HeaderMap, client: &'a dyn ClientKey) -> RoutingRequest<'a> {
        RoutingRequest {
            routing_key: header_text(headers, &ROUTING_KEY),
            client_key: Some(client),
            now: self.balancer().fleet.now(),
            seed: fastrand::u64(..),
            ..RoutingRequest::default()
        }
    }

    /// The worker that the client names, where it may.
    fn target<'a>(&self, headers: &'a HeaderMap) -> Option<&'a str> {
        header_text(headers, &TARGET).filter(|_| !self.dispatcher.hide_routing)
    }

    /// The fields of a request that routing reads.
    pub(super) async fn read_fields<'a>(
        &self,
        row: &Inference,
        parts: &request::Parts,
        body: &'a Bytes,
    ) -> Result<BodyFields<'a>, Error> {
        let mut fields = if row.undeclared == Undeclared::NoForm {
            let boundary = request_body::boundary(&parts.headers).unwrap_or_default();
            let form = FormFields::read_off_lane(body, boundary, &self.cpu_pool).await?;
            BodyFields::of_form(form)
        } else if body.is_empty() && parts.method == Method::GET {
            // It asks without a body.
            BodyFields::default()
        } else {
            BodyFields::read_off_lane(body, &self.cpu_pool).await?
        };
        let model = fields.model.as_deref();
        if model.is_some_and(|model| self.balancer().is_adapter(model)) {
            fields.set_names_adapter();
        }
        Ok(fields)
    }

    /// What would be decided for a request with this body; nothing is sent or learnt.
    pub(crate) async fn explain_request(
        &self,
        headers: &HeaderMap,
        body: &Bytes,
    ) -> Result<Value, Error> {
        let fields = BodyFields::read_off_lane(body, &self.cpu_pool).await?;
        let live = self.dispatcher.live.get();
        let client_key = ClientHeaders::new(headers, &live);
        let endpoint = fields.likely_endpoint();
        let request = self.with_prompt(self.routing(headers, &client_key), &fields, endpoint);
        let decided = self.explainer().dry_run(&request, endpoint.path);
        decided.map_err(|_| unknown_model(self.balancer(), request.model, None))
    }
}
