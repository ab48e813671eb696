//! A leg on a decode worker.

use std::future::pending;
use std::io;
use std::time::Duration;

use tokio::time::{Instant, sleep, sleep_until, timeout, timeout_at};

use super::leg_failure::{Cause, LegFailure, Step};
use super::leg_job::{LegJob, seconds, to_response};
use super::legs::Stage;
use super::link::Link;
use super::protocol::KvCache;
use crate::engine::mix;
use crate::server::http::error_response::ErrorResponse;
use crate::server::runtime::sequence::Sequence;

/// Makes the text of a leg without a partner another one.
const GARBAGE: u64 = 0x6761_7262_6167_6521;
/// Tries to reach a bootstrap server within the time for the handshake.
const HANDSHAKE_TRIES: u32 = 14;

/// Waits for the KV cache, and starts the sequences.
pub(crate) async fn run(job: LegJob) -> Result<Vec<Sequence>, ErrorResponse> {
    let kv = if job.target.is_fake() {
        fake(&job)
    } else {
        receive(&job).await?
    };
    // SGLang takes room 0 for metadata that have not come yet, and loses the copies of a prompt.
    if kv.room == 0 || job.copies > 1 {
        job.leg.aborted().await;
        return Err(job.failure(Step::DecodeTransfer, Cause::Aborted));
    }
    if i128::from(kv.room) != job.target.room {
        return Err(to_response(&LegFailure::WrongRoom, job.shape));
    }
    job.leg.set_stage(Stage::Running);
    let sequences = job.start(Some(kv))?;
    Ok(job.finish(sequences))
}

/// Memory that holds anything.
fn fake(job: &LegJob) -> KvCache {
    let prompt = &job.request.prompts[job.prompt_index];
    KvCache {
        room: job.target.wire_room(),
        digest: mix(prompt.digest(), GARBAGE),
        cached_tokens: 0,
    }
}

async fn receive(job: &LegJob) -> Result<KvCache, ErrorResponse> {
    job.leg.set_stage(Stage::DecodePrealloc);
    let aborted = |step| job.failure(step, Cause::Aborted);
    if job.leg.is_shadowed() {
        job.leg.set_stage(Stage::DecodeTransfer);
        job.leg.aborted().await;
        return Err(aborted(Step::DecodeTransfer));
    }
    let mut link = tokio::select! {
        () = job.leg.aborted() => return Err(aborted(Step::DecodeHandshake)),
        link = handshake(job) => link.ok_or_else(|| aborted(Step::DecodeHandshake))?,
    };
    job.leg.set_stage(Stage::DecodeTransfer);
    let cause = tokio::select! {
        () = job.leg.aborted() => {
            link.abort().await;
            Cause::Aborted
        }
        waited = wait(job, &mut link) => match waited {
            Ok(kv) => return Ok(kv),
            Err(cause) => cause,
        },
    };
    Err(job.failure(Step::DecodeTransfer, cause))
}

/// Joins the room; `None` if the bootstrap server does not respond in time.
async fn handshake(job: &LegJob) -> Option<Link> {
    let limit = seconds(job.worker.options.handshake_timeout_s);
    let deadline = Instant::now() + limit;
    while Instant::now() < deadline {
        match timeout_at(deadline, join(job)).await {
            Ok(Ok(link)) => return Some(link),
            Ok(Err(_)) => sleep_until(deadline.min(Instant::now() + pause(limit))).await,
            Err(_) => {}
        }
    }
    None
}

fn pause(limit: Duration) -> Duration {
    (limit / HANDSHAKE_TRIES).max(Duration::from_millis(1))
}

async fn join(job: &LegJob) -> io::Result<Link> {
    let own = job.worker.options.disaggregation_bootstrap_port;
    let port = job.target.port.unwrap_or(own.into());
    let port = u16::try_from(port).map_err(io::Error::other)?;
    let host = job.target.host.as_deref().unwrap_or_default();
    Link::join(host, port, job.target.wire_room()).await
}

async fn wait(job: &LegJob, link: &mut Link) -> Result<KvCache, Cause> {
    let options = &job.worker.options;
    let limit = options.waiting_timeout_s;
    let received = match timeout(seconds(limit), link.kv_cache()).await {
        Ok(received) => received,
        Err(_) if job.leg.is_shadowed() => pending().await,
        Err(_) => return Err(job.timed_out(limit, "WaitingForInput")),
    };
    if let Ok(kv) = received {
        return Ok(kv);
    }
    sleep(seconds(options.lost_connection_s)).await;
    let address = job.target.to_string();
    Err(Cause::LostPrefill { address })
}
