//! An inference request on a prefill or decode worker.

use std::future::pending;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::try_join_all;
use http::Response;

use super::endpoint::Endpoint;
use super::stream_refusal;
use crate::options::Role;
use crate::server::dialect::dialect::{Dialect, ParsedRequest};
use crate::server::disaggregation::client_watch::ClientWatch;
use crate::server::disaggregation::leg_failure::LegFailure;
use crate::server::disaggregation::leg_job::{LegJob, seconds, to_response};
use crate::server::disaggregation::legs::AboutLeg;
use crate::server::disaggregation::target::{Target, TargetError};
use crate::server::disaggregation::{decode_leg, prefill_leg};
use crate::server::http::body::{Content, Deferred, SimBody};
use crate::server::http::error_response::ErrorResponse;
use crate::server::http::stream::TokenStream;
use crate::server::parse::BootstrapFields;
use crate::server::runtime::request_log::increment;
use crate::server::runtime::sequence::{InferenceRequest, Sequence};
use crate::server::runtime::worker::Worker;

type ApiResult = Result<Response<SimBody>, ErrorResponse>;
type Started = Result<Vec<Sequence>, ErrorResponse>;

/// A request to one worker of a pair.
#[derive(Debug)]
pub(crate) struct LegCall {
    pub(crate) worker: Arc<Worker>,
    pub(crate) endpoint: Endpoint,
    pub(crate) fields: BootstrapFields,
}

impl LegCall {
    /// The response to a request whose body is valid.
    pub(crate) async fn respond(self, parsed: ParsedRequest) -> ApiResult {
        let ParsedRequest {
            mut inference,
            mut dialect,
        } = parsed;
        let copies = inference.check(&self.worker, self.endpoint.shape())?;
        let rids = inference.name_prompts(&self.worker);
        let request = Arc::new(inference);
        let jobs = match self.jobs(&request, &rids, copies) {
            Ok(jobs) => jobs,
            Err(LegFailure::Fatal(why)) if self.worker.options.crash_on_bad_bootstrap => {
                self.worker.disaggregation.crash(why);
                pending().await // all connections close
            }
            Err(failure) => return self.refuse(&request, &failure),
        };
        let stream = request.stream;
        let interval = self.interval(stream);
        let watch = ClientWatch {
            worker: Arc::clone(&self.worker),
            rids,
            interval,
        };
        let legs = run(self.worker.disaggregation.role(), jobs);
        if !stream {
            let sequences = watch.run(to_the_end(legs)).await?;
            let body = SimBody::from(dialect.document(&sequences));
            return Ok(body.respond(dialect.document_type()));
        }
        increment(&self.worker.counts.streams);
        let content_type = dialect.stream_type();
        let endpoint = self.endpoint;
        let content = if endpoint == Endpoint::Generate {
            let content = async move { stream_content(endpoint, watch.run(legs).await, dialect) };
            Content::Deferred(Deferred::new(content))
        } else {
            stream_content(endpoint, watch.run(legs).await, dialect)
        };
        Ok(SimBody::new(content).respond(content_type))
    }

    /// SGLang looks for clients that left from time to time, and at once where it sends a stream.
    fn interval(&self, stream: bool) -> Duration {
        if stream && self.endpoint == Endpoint::Generate {
            return Duration::ZERO;
        }
        seconds(self.worker.options.disconnect_check_s)
    }

    /// A leg for each prompt, or none.
    fn jobs(
        &self,
        request: &Arc<InferenceRequest>,
        rids: &[Arc<str>],
        copies: usize,
    ) -> Result<Vec<LegJob>, LegFailure> {
        let list = request.is_list.then_some(request.prompts.len());
        let role = self.worker.disaggregation.role();
        let first = || rids.first().cloned().unwrap_or_default();
        let targets =
            Target::of_prompts(&self.fields, list, role).map_err(|error| match error {
                TargetError::NoRoom => LegFailure::NoRoom { rid: first() },
                TargetError::TooFew => LegFailure::TooFewRooms,
                TargetError::Fatal(why) => LegFailure::Fatal(why),
            })?;
        let mut jobs = Vec::with_capacity(targets.len());
        for (prompt_index, (target, rid)) in targets.into_iter().zip(rids).enumerate() {
            let about = AboutLeg {
                rid: Arc::clone(rid),
                room: target.room,
                rank: self.rank(request, role, &target),
                prompt_tokens: request.prompts[prompt_index].tokens(),
            };
            let leg = self.worker.disaggregation.legs.begin(about);
            let duplicate = |_| LegFailure::DuplicateRid {
                rid: Arc::clone(rid),
            };
            jobs.push(LegJob {
                worker: Arc::clone(&self.worker),
                request: Arc::clone(request),
                prompt_index,
                copies,
                target,
                shape: self.endpoint.shape(),
                leg: leg.map_err(duplicate)?,
            });
        }
        Ok(jobs)
    }

    /// Prefill follows the room, decode takes turns.
    fn rank(&self, request: &InferenceRequest, role: Role, target: &Target) -> u32 {
        let ranks = u64::from(self.worker.options.dp_size);
        let own = || match role {
            Role::Prefill => (target.wire_room() % ranks) as u32,
            Role::Null | Role::Decode => self.worker.scheduler.next_rank(),
        };
        request.routing.rank.unwrap_or_else(own)
    }

    /// A refusal before any leg: streams begin with 200.
    fn refuse(&self, request: &InferenceRequest, failure: &LegFailure) -> ApiResult {
        let error = to_response(failure, self.endpoint.shape());
        if !request.stream {
            return Err(error);
        }
        Ok(SimBody::events(stream_refusal::events(
            self.endpoint,
            &error,
        )))
    }
}

async fn run(role: Role, jobs: Vec<LegJob>) -> Started {
    let legs = jobs.into_iter().map(|job| async move {
        match role {
            Role::Prefill => prefill_leg::run(job).await,
            Role::Null | Role::Decode => decode_leg::run(job).await,
        }
    });
    let sequences = try_join_all(legs).await?;
    Ok(sequences.into_iter().flatten().collect())
}

async fn to_the_end(legs: impl Future<Output = Started>) -> Started {
    let mut sequences = legs.await?;
    for sequence in &mut sequences {
        sequence.submission.wait().await;
    }
    Ok(sequences)
}

fn stream_content(endpoint: Endpoint, started: Started, dialect: Box<dyn Dialect>) -> Content {
    match started {
        Ok(sequences) => Content::Stream(Box::new(TokenStream::new(sequences, dialect))),
        Err(error) => Content::Whole(Some(stream_refusal::events(endpoint, &error))),
    }
}
