//! The requests for one answer each, side by side.

use std::iter;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::future::try_join_all;
use http::header::{self, HeaderValue};
use http::{Response, request};
use http_body_util::{BodyExt, Collected, Full, Limited};

use super::join::{Sample, whole};
use super::split::{MAX_SAMPLES, Split};
use super::stream::SampleStream;
use crate::error::Error;
use crate::fleet::Worker;
use crate::proxy::body_fields::LARGE;
use crate::proxy::failure::Failure;
use crate::proxy::prepared_request::PreparedRequest;
use crate::proxy::proxy::Proxy;
use crate::proxy::relay::Relay;
use crate::proxy::relayed::Relayed;
use crate::proxy::request::RequestContext;
use crate::proxy::request_body::WholeBody;
use crate::proxy::sse::is_event_stream;

/// Most bytes of one answer that is joined.
const MAX_ANSWER: usize = 64 * 1024 * 1024;

/// A reply, and the worker that gave it.
type Reply = (Arc<Worker>, Response<Box<Relay>>);

/// Why not all answers are there.
enum Ended {
    Failed(Failure),
    /// One was refused, so the request is.
    Refused(Reply),
}

impl From<Error> for Ended {
    fn from(error: Error) -> Self {
        Self::Failed(error.into())
    }
}

/// Carries a request for `count` answers to each prompt as so many requests. The first of them that
/// fails ends the others, and is the reply.
pub(in crate::proxy) async fn carry(
    proxy: &Proxy,
    context: RequestContext<'_>,
    prepared: &PreparedRequest,
    count: u64,
) -> Result<(Arc<Worker>, Response<Relayed>), Failure> {
    let refused = || Failure::from(Error::PairSamples(count));
    let of = usize::try_from(count).map_err(|_| refused())?;
    if of > MAX_SAMPLES {
        return Err(refused());
    }
    context.log.several_answers();
    // The bodies differ from the client's, so it is held twice.
    let mut share = proxy.body_limits().budget.share();
    share.grow_to(prepared.body.bytes.len() as u64)?;
    let split = read_off_lane(proxy, prepared).await.ok_or_else(refused)?;
    let carrying = (0..of).map(|at| carry_one(proxy, context, prepared, &split, Sample { at, of }));
    let mut replies = match try_join_all(carrying).await {
        Ok(replies) => replies.into_iter(),
        Err(Ended::Failed(failure)) => return Err(failure),
        Err(Ended::Refused((worker, reply))) => return Ok((worker, reply.map(Relayed::One))),
    };
    let (worker, first) = replies.next().ok_or_else(refused)?;
    let (mut head, body) = first.into_parts();
    head.headers.remove(header::CONTENT_LENGTH);
    let streams = is_event_stream(&head.headers);
    let is_other = |(_, reply): &&Reply| is_event_stream(reply.headers()) != streams;
    if let Some((worker, _)) = replies.as_slice().iter().find(is_other) {
        return Err(not_joined(worker, "not all are streams of events"));
    }
    let bodies = iter::once(body).chain(replies.map(|(_, reply)| reply.into_body()));
    let body = if streams {
        Relayed::Samples(Box::new(SampleStream::new(bodies, of)))
    } else {
        Relayed::Whole(join_whole(proxy, bodies, &worker).await?)
    };
    Ok((worker, Response::from_parts(head, body)))
}

async fn read_off_lane(proxy: &Proxy, prepared: &PreparedRequest) -> Option<Split> {
    let (body, counted) = (prepared.body.bytes.clone(), prepared.row.samples);
    if body.len() <= LARGE {
        return Split::read(&body, counted);
    }
    proxy
        .cpu_pool
        .run(move || Split::read(&body, counted))
        .await?
}

/// Carries a request for one answer.
async fn carry_one(
    proxy: &Proxy,
    context: RequestContext<'_>,
    prepared: &PreparedRequest,
    split: &Split,
    sample: Sample,
) -> Result<Reply, Ended> {
    let mut share = proxy.body_limits().budget.share();
    // Before it is made: so many at once may be more than there is room for.
    share.grow_to(split.added_by_body())?;
    let body = split.body(sample);
    let one = PreparedRequest {
        row: prepared.row,
        parts: readable(&prepared.parts),
        body: WholeBody { bytes: body, share },
        live: prepared.live,
    };
    let fields = proxy
        .read_fields(one.row, &one.parts, &one.body.bytes)
        .await?;
    let exchange = proxy.exchange(context, &one, &fields);
    let (worker, reply) = exchange.await.map_err(Ended::Failed)?;
    if reply.status().is_success() {
        Ok((worker, reply))
    } else {
        Err(Ended::Refused((worker, reply)))
    }
}

/// The head of a request whose answer is read here.
fn readable(parts: &request::Parts) -> request::Parts {
    let mut parts = parts.clone();
    let plain = HeaderValue::from_static("identity");
    parts.headers.insert(header::ACCEPT_ENCODING, plain);
    parts
}

async fn join_whole(
    proxy: &Proxy,
    bodies: impl Iterator<Item = Box<Relay>>,
    worker: &Arc<Worker>,
) -> Result<Full<Bytes>, Failure> {
    let reading = bodies.map(|body| Limited::new(body, MAX_ANSWER).collect());
    let answers = try_join_all(reading).await;
    let answers = answers.map_err(|error| not_joined(worker, &error.to_string()))?;
    let answers: Vec<_> = answers.into_iter().map(Collected::to_bytes).collect();
    let joined = proxy.cpu_pool.run(move || whole(&answers)).await.flatten();
    let joined = joined.ok_or_else(|| not_joined(worker, "they are not in SGLang's form"))?;
    Ok(joined.into())
}

fn not_joined(worker: &Arc<Worker>, why: &str) -> Failure {
    Failure::at(worker)(Error::SamplesNotJoined(why.to_owned()))
}
