//! A leg on a prefill worker.

use std::time::Duration;

use tokio::time::{sleep, timeout};

use super::leg_failure::{Cause, Step};
use super::leg_job::{LegJob, seconds};
use super::legs::Stage;
use super::protocol::KvCache;
use super::rooms::Entered;
use crate::server::http::error_response::ErrorResponse;
use crate::server::runtime::sequence::Sequence;

type Failed = Result<(), ErrorResponse>;

/// Waits for the decode leg, computes the prompt and sends its KV cache; the sequences have ended.
pub(crate) async fn run(job: LegJob) -> Result<Vec<Sequence>, ErrorResponse> {
    let room = (!job.target.is_fake()).then(|| {
        let rooms = &job.worker.disaggregation.rooms;
        rooms.enter(job.target.wire_room())
    });
    if let Some(room) = &room {
        bootstrap(&job, room).await?;
    }
    job.leg.set_stage(Stage::Running);
    let mut sequences = job.start(None)?;
    for sequence in &mut sequences {
        sequence.submission.wait().await;
    }
    if sequences.iter().any(Sequence::is_aborted) {
        return Err(job.failure(Step::PrefillTransfer, Cause::Aborted));
    }
    if let Some(room) = &room {
        transfer(&job, room, &sequences).await?;
    }
    Ok(job.finish(sequences))
}

async fn bootstrap(job: &LegJob, room: &Entered) -> Failed {
    job.leg.set_stage(Stage::PrefillBootstrap);
    let limit = job.worker.options.bootstrap_timeout_s;
    let cause = tokio::select! {
        () = job.leg.aborted() => Cause::Aborted,
        joined = timeout(seconds(limit), room.partner()) => match joined {
            Ok(Ok(())) => return Ok(()),
            Ok(Err(_)) => Cause::Partner,
            Err(_) => job.timed_out(limit, "Bootstrapping"),
        },
    };
    Err(job.failure(Step::PrefillBootstrap, cause))
}

async fn transfer(job: &LegJob, room: &Entered, sequences: &[Sequence]) -> Failed {
    job.leg.set_stage(Stage::PrefillInflight);
    let prompt = &job.request.prompts[job.prompt_index];
    let kv = KvCache {
        room: job.target.wire_room(),
        digest: prompt.digest(),
        cached_tokens: sequences.first().map_or(0, Sequence::cached_tokens),
    };
    let cause = tokio::select! {
        () = job.leg.aborted() => Cause::Aborted,
        () = room.partner_gone() => Cause::Partner,
        () = sleep(transfer_time(job, prompt.tokens())) => match room.send(kv) {
            Ok(()) => return Ok(()),
            Err(_) => Cause::Partner,
        },
    };
    Err(job.failure(Step::PrefillTransfer, cause))
}

fn transfer_time(job: &LegJob, tokens: u32) -> Duration {
    let per_token = job.worker.options.kv_transfer_ms_per_1k_tokens / 1e6;
    seconds(f64::from(tokens) * per_token)
}
