//! Properties of the shared model: time, memory, order.

use std::time::Duration;

use proptest::prelude::*;

use super::*;
use crate::engine::{Engine, EngineOptions, Event, EventKind, Prompt, RequestId, SimRequest};

const MS: Duration = Duration::from_millis(1);

/// A pass of 10 ms + 1 ms per token, a step of 5 ms + 1 ms per sequence, memory of 1000 tokens.
fn options() -> EngineOptions {
    EngineOptions {
        prefill_tokens_per_sec: 0.0,
        decode_step_base: Duration::ZERO,
        decode_step_per_seq: Duration::ZERO,
        max_running_requests: 8,
        max_queued_requests: 1000,
        kv_cache_tokens: 1000,
        page_size: 10,
        shared: Some(SharedOptions {
            prefill_base_ms: 10.0,
            prefill_token_us: 1000.0,
            prefill_context_ns: 0.0,
            decode_base_ms: 5.0,
            decode_sequence_us: 1000.0,
            decode_context_ns: 0.0,
            chunk_tokens: 100,
            ..SharedOptions::default()
        }),
    }
}

fn engine(change: impl FnOnce(&mut SharedOptions)) -> Engine {
    let mut options = options();
    options.shared.as_mut().map(change);
    Engine::new(options)
}

fn request(first_id: u32, prompt_tokens: u32, output_tokens: u32) -> SimRequest {
    let ids: Vec<u32> = (first_id..first_id + prompt_tokens).collect();
    SimRequest {
        prompt: Prompt::from_ids(&ids, 10),
        output_tokens,
        longest_output: 0,
        watched: false,
    }
}

fn times(events: &[Event], id: RequestId) -> Vec<(Duration, EventKind)> {
    let own = events.iter().filter(|event| event.request == id);
    own.map(|event| (event.at, event.kind)).collect()
}

fn first(at: Duration, cached_tokens: u32) -> (Duration, EventKind) {
    (at, EventKind::FirstToken { cached_tokens })
}

fn end(at: Duration, tokens: u32, cached_tokens: u32) -> (Duration, EventKind) {
    let kind = EventKind::Finished {
        tokens,
        cached_tokens,
    };
    (at, kind)
}

fn run(engine: &mut Engine) -> Vec<Event> {
    engine.advance(Duration::from_mins(10)).collect()
}

#[test]
fn pass_over_a_prompt_holds_up_the_batch() {
    let mut engine = engine(|_| {});
    let decoding = engine.submit(Duration::ZERO, request(0, 50, 11)).unwrap();
    let next = engine.submit(62 * MS, request(100, 50, 2)).unwrap();
    let events = run(&mut engine);
    // 60 ms of prefill, a step to 66, the other's pass to 126, then steps of 7 ms.
    assert_eq!(
        times(&events, next),
        [first(126 * MS, 0), end(133 * MS, 2, 0)]
    );
    let last = 133 + 8 * 6;
    assert_eq!(
        times(&events, decoding),
        [first(60 * MS, 0), end(last * MS, 11, 0)]
    );
}

#[test]
fn mixed_chunks_let_the_batch_go_on() {
    let mut engine = engine(|options| options.mixed_chunks = true);
    let decoding = engine.submit(Duration::ZERO, request(0, 50, 3)).unwrap();
    engine.submit(62 * MS, request(100, 50, 2)).unwrap();
    let events = run(&mut engine);
    assert_eq!(
        times(&events, decoding)[1],
        end((66 + 10 + 50 + 1) * MS, 3, 0),
        "the second step is part of the pass"
    );
}

#[test]
fn long_prompt_is_computed_in_chunks_of_one_pass_each() {
    let mut engine = engine(|_| {});
    let long = engine.submit(Duration::ZERO, request(0, 250, 1)).unwrap();
    let events = run(&mut engine);
    assert_eq!(times(&events, long), [end((3 * 10 + 250) * MS, 1, 0)]);
}

#[test]
fn step_takes_longer_by_the_contexts_of_the_batch() {
    let mut engine = engine(|options| options.decode_context_ns = 10_000.0);
    let id = engine.submit(Duration::ZERO, request(0, 100, 4)).unwrap();
    let context = Duration::from_micros(10 * (101 + 102 + 103));
    assert_eq!(
        times(&run(&mut engine), id)[1],
        end((110 + 3 * 6) * MS + context, 4, 0)
    );
}

#[test]
fn prompt_is_cached_after_its_end_and_unused_pages_are_evicted() {
    let mut engine = engine(|_| {});
    engine.submit(Duration::ZERO, request(0, 100, 1)).unwrap();
    run(&mut engine);
    let again = engine
        .submit(Duration::from_hours(1), request(0, 105, 1))
        .unwrap();
    let events: Vec<_> = engine.advance(Duration::from_hours(2)).collect();
    let at = Duration::from_hours(1) + 15 * MS;
    assert_eq!(times(&events, again), [end(at, 1, 100)]);
    // 900 further tokens leave no room for the prompt.
    engine
        .submit(Duration::from_hours(2), request(5000, 950, 1))
        .unwrap();
    engine.advance(Duration::from_hours(3));
    let evicted = engine
        .submit(Duration::from_hours(3), request(0, 100, 1))
        .unwrap();
    let events: Vec<_> = engine.advance(Duration::from_hours(4)).collect();
    let cached = match times(&events, evicted)[..] {
        [(_, EventKind::Finished { cached_tokens, .. })] => cached_tokens,
        _ => 100,
    };
    assert!(cached <= 50, "{cached}");
}

#[test]
fn host_memory_keeps_what_the_device_evicts() {
    let mut engine = engine(|options| {
        options.host_cache_tokens = 5000;
        options.host_load_tokens_per_sec = 1000.0;
    });
    engine.submit(Duration::ZERO, request(0, 400, 1)).unwrap();
    run(&mut engine);
    engine
        .submit(Duration::from_hours(1), request(5000, 950, 1))
        .unwrap();
    engine.advance(Duration::from_hours(2));
    let hour = Duration::from_hours(2);
    let again = engine.submit(hour, request(0, 405, 1)).unwrap();
    let events: Vec<_> = engine.advance(Duration::from_hours(3)).collect();
    let [(at, EventKind::Finished { cached_tokens, .. })] = times(&events, again)[..] else {
        panic!("{events:?}")
    };
    assert_eq!(cached_tokens, 400);
    // What came from the host took a millisecond per token, the rest of the pass is hidden in that.
    let took = at.saturating_sub(hour);
    assert!(took > 300 * MS && took <= 400 * MS, "{took:?}");
}

#[test]
fn request_waits_for_memory_and_first_come_is_first_served() {
    let mut engine = engine(|_| {});
    let hog = engine.submit(Duration::ZERO, request(0, 600, 50)).unwrap();
    let large = engine.submit(MS, request(1000, 500, 5)).unwrap();
    let small = engine.submit(2 * MS, request(3000, 20, 5)).unwrap();
    let events = run(&mut engine);
    let end_of = |id| times(&events, id).last().map(|(at, _)| *at).unwrap();
    let start_of = |id| times(&events, id)[0].0;
    assert!(start_of(large) > end_of(hog));
    assert!(start_of(small) >= start_of(large));
    assert_eq!(engine.loads(Duration::from_hours(1)).retracted_total, 0);
}

#[test]
fn sequences_that_outgrow_the_memory_are_sent_back_and_end_all_the_same() {
    let mut engine = engine(|options| options.output_reserve = 0.0);
    // Each is admitted while the others' outputs are not reckoned with.
    let ids: Vec<_> = (0..4)
        .map(|n| {
            let request = SimRequest {
                longest_output: 1,
                ..request(n * 1000, 100, 240)
            };
            engine.submit(Duration::ZERO, request).unwrap()
        })
        .collect();
    let events = run(&mut engine);
    for id in ids {
        let own = times(&events, id);
        assert_eq!(own.len(), 2, "one first token, one end: {own:?}");
        assert!(matches!(own[1].1, EventKind::Finished { tokens: 240, .. }));
    }
    let load = engine.loads(Duration::from_hours(1));
    assert!(load.retracted_total > 0, "{load:?}");
    assert!(load.computed_tokens_total > 400, "{load:?}");
    assert_eq!((load.running, load.waiting, load.used_tokens), (0, 0, 0));
}

#[test]
fn what_is_longer_than_the_memory_is_cut_off() {
    let mut engine = engine(|_| {});
    engine
        .submit(Duration::ZERO, request(0, 3000, 3000))
        .unwrap();
    engine
        .submit(Duration::ZERO, request(9000, 10, 3000))
        .unwrap();
    run(&mut engine);
    assert_eq!(engine.loads(Duration::from_hours(1)).finished_total, 2);
}

#[test]
fn abort_in_any_stage_frees_everything() {
    for at in [0, 5, 50, 105, 200, 300] {
        let mut engine = engine(|_| {});
        let ids: Vec<_> = (0..4)
            .map(|n| {
                engine
                    .submit(Duration::ZERO, request(n * 1000, 150, 30))
                    .unwrap()
            })
            .collect();
        engine.advance(at * MS);
        for id in ids {
            engine.abort(at * MS, id);
        }
        let load = engine.loads(at * MS);
        assert_eq!((load.running, load.waiting, load.used_tokens), (0, 0, 0));
        assert!(engine.flush_cache(at * MS));
        assert_eq!(engine.loads(at * MS).cached_tokens, 0);
    }
}

/// Milliseconds since the arrival before, prompt tokens, output tokens.
type Arrival = (u64, u32, u32);

/// Steps that a request reports.
#[derive(Clone, Copy, PartialEq)]
enum Reports {
    FirstAndLast,
    Every,
}

/// Submits the plan and reads events at every `tick`.
fn replay(plan: &[Arrival], reports: Reports, tick: Duration) -> (Vec<Event>, u64) {
    let mut engine = engine(|options| options.decode_context_ns = 12_345.678);
    let (mut now, mut seen) = (Duration::ZERO, Vec::new());
    for (gap, prompt, output) in plan {
        let arrival = now + *gap as u32 * MS;
        while now + tick < arrival {
            now += tick;
            seen.extend(engine.advance(now));
        }
        now = arrival;
        let request = SimRequest {
            watched: reports == Reports::Every,
            longest_output: *output * 2,
            ..request(prompt / 100 * 50, *prompt, *output)
        };
        engine.submit(now, request).unwrap();
        let load = engine.loads(now);
        assert!(load.used_tokens <= 1000, "{load:?}");
        assert!(load.cached_tokens <= 1000, "{load:?}");
    }
    seen.extend(engine.advance(now + Duration::from_hours(1)));
    let load = engine.loads(now + Duration::from_hours(1));
    assert_eq!(load.finished_total, plan.len() as u64);
    assert_eq!((load.running, load.waiting, load.used_tokens), (0, 0, 0));
    (seen, load.retracted_total)
}

proptest! {
    #[test]
    fn events_do_not_depend_on_when_they_are_read(
        plan in prop::collection::vec((0_u64..100, 1_u32..500, 1_u32..150), 1..30),
        tick in 1_u32..500,
    ) {
        let (coarse, retracted) = replay(&plan, Reports::FirstAndLast, Duration::from_secs(1000));
        prop_assert_eq!((&coarse, retracted), (&replay(&plan, Reports::FirstAndLast, tick * MS).0, retracted));
        let ends = |events: Vec<Event>| -> Vec<Event> {
            events.into_iter().filter(|e| !matches!(e.kind, EventKind::Progress { .. })).collect()
        };
        prop_assert_eq!(ends(coarse), ends(replay(&plan, Reports::Every, tick * MS).0));
    }
}
