//! Properties of the engine: time, order and slots.

use std::time::Duration;

use super::*;
use proptest::prelude::*;

const MS: Duration = Duration::from_millis(1);

/// 1000 prefill tokens/s, decode steps of 10 ms + 1 ms per sequence.
fn options() -> EngineOptions {
    EngineOptions {
        prefill_tokens_per_sec: 1000.0,
        decode_step_base: 10 * MS,
        decode_step_per_seq: MS,
        max_running_requests: 8,
        max_queued_requests: 100,
        kv_cache_tokens: 10_000,
        page_size: 10,
        shared: None,
    }
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

fn run(engine: &mut Engine, until: Duration) -> Vec<Event> {
    engine.advance(until).collect()
}

fn finish_of(events: &[Event], id: RequestId) -> Duration {
    let is_end =
        |event: &&Event| event.request == id && matches!(event.kind, EventKind::Finished { .. });
    events.iter().find(is_end).expect("the request ends").at
}

#[test]
fn duration_is_prefill_tokens_plus_decode_steps() {
    let mut engine = Engine::new(options());
    let id = engine.submit(Duration::ZERO, request(0, 100, 3)).unwrap();
    let events = run(&mut engine, Duration::from_secs(1));
    let first = EventKind::FirstToken { cached_tokens: 0 };
    let end = EventKind::Finished {
        tokens: 3,
        cached_tokens: 0,
    };
    assert_eq!(
        events,
        [
            Event {
                at: 100 * MS,
                request: id,
                kind: first
            },
            Event {
                at: 122 * MS,
                request: id,
                kind: end
            }
        ]
    );
}

#[test]
fn a_cached_prefix_is_not_prefilled_again() {
    let mut engine = Engine::new(options());
    engine.submit(Duration::ZERO, request(0, 100, 1)).unwrap();
    run(&mut engine, 100 * MS);
    let id = engine.submit(100 * MS, request(0, 150, 1)).unwrap();
    let events = run(&mut engine, Duration::from_secs(1));
    assert_eq!(finish_of(&events, id), 150 * MS);
    assert_eq!(
        events[0].kind,
        EventKind::Finished {
            tokens: 1,
            cached_tokens: 100
        }
    );
}

#[test]
fn the_last_token_of_a_known_prompt_is_computed_again() {
    let mut engine = Engine::new(options());
    engine.submit(Duration::ZERO, request(0, 100, 1)).unwrap();
    let id = engine.submit(200 * MS, request(0, 100, 1)).unwrap();
    let events = run(&mut engine, Duration::from_secs(1));
    assert_eq!(finish_of(&events, id), 210 * MS, "one page of ten tokens");
}

#[test]
fn jobs_are_prefilled_in_order_of_arrival() {
    let mut engine = Engine::new(options());
    let ids: Vec<RequestId> = (0..5)
        .map(|n| {
            engine
                .submit(Duration::ZERO, request(n * 1000, 10, 1))
                .unwrap()
        })
        .collect();
    let order: Vec<RequestId> = run(&mut engine, Duration::from_secs(1))
        .iter()
        .map(|e| e.request)
        .collect();
    assert_eq!(order, ids);
}

#[test]
fn no_more_jobs_run_than_allowed() {
    let mut engine = Engine::new(EngineOptions {
        max_running_requests: 2,
        ..options()
    });
    for n in 0..6 {
        engine
            .submit(Duration::ZERO, request(n * 1000, 10, 50))
            .unwrap();
    }
    let mut now = Duration::ZERO;
    while let Some(next) = engine.next_event() {
        now = next;
        let load = engine.loads(now);
        assert!(load.running <= 2, "{load:?}");
        engine.advance(now);
    }
    assert_eq!(engine.loads(now).finished_total, 6);
}

#[test]
fn a_bigger_batch_decodes_slower() {
    let alone = {
        let mut engine = Engine::new(options());
        let id = engine.submit(Duration::ZERO, request(0, 10, 100)).unwrap();
        finish_of(&run(&mut engine, Duration::from_secs(9)), id)
    };
    let mut engine = Engine::new(options());
    let id = engine.submit(Duration::ZERO, request(0, 10, 100)).unwrap();
    for n in 1..5 {
        engine
            .submit(Duration::ZERO, request(n * 1000, 10, 100))
            .unwrap();
    }
    let together = finish_of(&run(&mut engine, Duration::from_secs(9)), id);
    assert!(
        together > alone + 300 * MS,
        "{together:?} against {alone:?}"
    );
}

#[test]
fn a_new_request_waits_for_the_step_to_end() {
    let mut engine = Engine::new(options());
    engine.submit(Duration::ZERO, request(0, 10, 100)).unwrap(); // steps from 10 ms, 11 ms each
    let id = engine.submit(Duration::ZERO, request(1000, 5, 2)).unwrap(); // prefilled at 15 ms
    let events = run(&mut engine, 60 * MS);
    assert_eq!(finish_of(&events, id), (21 + 12) * MS);
}

#[test]
fn a_full_queue_rejects_requests() {
    let mut engine = Engine::new(EngineOptions {
        max_queued_requests: 1,
        ..options()
    });
    engine.submit(Duration::ZERO, request(0, 10, 1)).unwrap();
    engine.submit(Duration::ZERO, request(0, 10, 1)).unwrap();
    assert_eq!(
        engine.submit(Duration::ZERO, request(0, 10, 1)),
        Err(QueueFull)
    );
}

#[test]
fn an_abort_frees_its_slot_at_once() {
    let mut engine = Engine::new(EngineOptions {
        max_running_requests: 1,
        ..options()
    });
    let hog = engine
        .submit(Duration::ZERO, request(0, 10_000, 100))
        .unwrap();
    let next = engine
        .submit(Duration::ZERO, request(20_000, 10, 1))
        .unwrap();
    assert!(engine.abort(5 * MS, hog));
    assert!(!engine.abort(5 * MS, hog), "only once");
    assert_eq!(
        finish_of(&run(&mut engine, Duration::from_secs(1)), next),
        15 * MS
    );
}

#[test]
fn an_aborted_job_leaves_the_batch_and_the_queue() {
    let mut engine = Engine::new(EngineOptions {
        max_running_requests: 1,
        ..options()
    });
    let decoding = engine.submit(Duration::ZERO, request(0, 10, 100)).unwrap();
    let queued = engine
        .submit(Duration::ZERO, request(1000, 10, 100))
        .unwrap();
    run(&mut engine, 50 * MS);
    assert!(engine.abort(50 * MS, queued) && engine.abort(50 * MS, decoding));
    let load = engine.loads(50 * MS);
    assert_eq!((load.running, load.waiting, load.used_tokens), (0, 0, 0));
    assert_eq!(engine.next_event(), None);
}

#[test]
fn the_cache_is_flushed_only_when_idle() {
    let mut engine = Engine::new(options());
    engine.submit(Duration::ZERO, request(0, 100, 2)).unwrap();
    assert!(!engine.flush_cache(50 * MS));
    assert!(engine.flush_cache(Duration::from_secs(1)));
    assert_eq!(engine.loads(Duration::from_secs(1)).cached_tokens, 0);
}

#[test]
fn with_zero_speeds_requests_finish_at_once() {
    let mut engine = Engine::new(EngineOptions {
        prefill_tokens_per_sec: 0.0,
        decode_step_base: Duration::ZERO,
        decode_step_per_seq: Duration::ZERO,
        ..options()
    });
    engine.submit(7 * MS, request(0, 100, 64)).unwrap();
    let end = EventKind::Finished {
        tokens: 64,
        cached_tokens: 0,
    };
    assert_eq!(
        run(&mut engine, 7 * MS),
        [Event {
            at: 7 * MS,
            request: RequestId(0),
            kind: end
        }]
    );
}

/// Milliseconds since the arrival before, prompt tokens, output tokens.
type Arrival = (u64, u32, u32);

/// Steps that a request reports.
#[derive(Clone, Copy, PartialEq)]
enum Reports {
    FirstAndLast,
    Every,
}

/// Submits the plan and reads events at every `tick`; the events must not depend on `tick`.
fn replay(plan: &[Arrival], reports: Reports, tick: Duration) -> Vec<Event> {
    let mut engine = Engine::new(EngineOptions {
        max_running_requests: 3,
        ..options()
    });
    let (mut now, mut seen) = (Duration::ZERO, Vec::new());
    for (gap, prompt, output) in plan {
        let arrival = now + *gap as u32 * MS;
        while now + tick < arrival {
            now += tick;
            seen.extend(engine.advance(now));
        }
        now = arrival;
        engine
            .submit(
                now,
                SimRequest {
                    watched: reports == Reports::Every,
                    ..request(prompt * 50, *prompt, *output)
                },
            )
            .unwrap();
    }
    seen.extend(engine.advance(now + Duration::from_mins(10)));
    seen
}

proptest! {
    #[test]
    fn events_do_not_depend_on_when_they_are_read(
        plan in prop::collection::vec((0_u64..200, 1_u32..300, 0_u32..40), 1..20),
        tick in 1_u32..500,
    ) {
        let coarse = replay(&plan, Reports::FirstAndLast, Duration::from_secs(1000));
        prop_assert_eq!(&coarse, &replay(&plan, Reports::FirstAndLast, tick * MS));
        let ends = |events: Vec<Event>| -> Vec<Event> {
            events.into_iter().filter(|e| !matches!(e.kind, EventKind::Progress { .. })).collect()
        };
        prop_assert_eq!(ends(coarse), ends(replay(&plan, Reports::Every, tick * MS)));
    }
}
