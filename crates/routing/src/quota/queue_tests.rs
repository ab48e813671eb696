//! Gateways that bound a queue together: what holds however requests come.

use std::time::Duration;

use proptest::prelude::*;

use super::queue_planner::share;
use super::queue_stage::{IDLE_PAUSE, Line, ROUND, Stage};
use super::{LEASE, Part, QueueAnswer, QueueAsk, QueuePlanner};

#[derive(Clone, Copy, Debug)]
enum Step {
    Arrive(usize, u64),
    Serve(usize),
    Pass(u64),
    Restart(usize),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        5 => (0..8_usize, 1..15_u64).prop_map(|(at, many)| Step::Arrive(at, many)),
        4 => (0..8_usize).prop_map(Step::Serve),
        6 => (1..70_u64).prop_map(Step::Pass),
        1 => (0..8_usize).prop_map(Step::Restart),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 128, ..ProptestConfig::default() })]

    #[test]
    fn sum_is_within_the_limit_soon_after_the_last_arrival(
        (total, count, delay) in (0..40_u64, 1..9_usize, 0..30_u64),
        loss in prop_oneof![Just(0), 1..60_u64],
        steps in prop::collection::vec(step(), 0..60),
    ) {
        let mut stage = Stage::new(total, count, delay);
        stage.loss = loss;
        for step in steps {
            match step {
                Step::Arrive(at, many) => {
                    stage.arrive(at % count, many);
                }
                Step::Serve(at) => {
                    stage.gateways[at % count].line.serve();
                }
                Step::Pass(millis) => stage.pass(millis),
                Step::Restart(at) => stage.restart(at % count),
            }
        }
        // Answers come again: the one on its way may still be lost.
        stage.loss = 0;
        stage.pass(stage.delay + 1);
        stage.pass(stage.settled());
        prop_assert!(stage.sum() <= total, "{:?} of {total}", stage.waiting());
    }

    #[test]
    fn of_bursts_at_a_time_exactly_as_many_wait_as_may_and_the_last_ones_go(
        (total, delay) in (1..60_u64, 0..30_u64),
        bursts in prop::collection::vec(0..80_u64, 1..9),
    ) {
        let mut stage = Stage::new(total, bursts.len(), delay);
        stage.pass(200);
        for (at, burst) in bursts.iter().enumerate() {
            prop_assert_eq!(stage.arrive(at, *burst), total.min(*burst));
        }
        stage.pass(stage.settled());
        let capped: u64 = bursts.iter().map(|burst| total.min(*burst)).sum();
        prop_assert_eq!(stage.sum(), total.min(capped), "{:?}", stage.waiting());
        for gateway in &stage.gateways {
            let state = gateway.line.state();
            let last = state.waiting.last().copied().unwrap_or(0);
            prop_assert!(state.pushed_out.iter().all(|out| *out > last));
        }
        // Those with most have as many as each other.
        let waiting = stage.waiting();
        let most = waiting.iter().copied().max().unwrap_or(0);
        for (waits, burst) in waiting.iter().zip(&bursts) {
            prop_assert!(*waits == total.min(*burst) || waits + 1 >= most, "{waiting:?}");
        }
        let before = stage.pushed_out();
        stage.pass(2000);
        prop_assert_eq!(stage.pushed_out(), before);
    }

    #[test]
    fn nothing_is_refused_or_pushed_out_while_fewer_wait_than_may_and_all_know_it(
        (total, count, delay) in (1..40_u64, 1..9_usize, 0..30_u64),
        steps in prop::collection::vec((0..8_usize, 1..10_u64, any::<bool>()), 1..60),
    ) {
        let mut stage = Stage::new(total, count, delay);
        for (at, many, arrives) in steps {
            let at = at % count;
            let fits = total - stage.sum();
            if arrives {
                prop_assert_eq!(stage.arrive(at, many), many.min(fits));
            } else {
                for _ in 0..many {
                    stage.gateways[at].line.serve();
                }
            }
            // An idle gateway looks less often.
            stage.pass(IDLE_PAUSE.as_millis() as u64 + stage.two_rounds());
            if arrives && many > fits {
                // For some rounds, places that become free are kept for requests that were refused.
                stage.pass(4000);
            }
        }
        prop_assert_eq!(stage.pushed_out(), 0);
    }

    #[test]
    fn lone_gateway_behaves_as_if_nothing_were_shared(
        (total, delay) in (0..20_u64, 0..30_u64),
        steps in prop::collection::vec((step(), prop::option::weighted(0.1, 0..20_u64)), 0..80),
    ) {
        let mut stage = Stage::new(total, 1, delay);
        let (mut waiting, mut limit) = (0, total);
        for (step, reloaded) in steps {
            match step {
                Step::Arrive(_, many) => {
                    let more = many.min(limit.saturating_sub(waiting));
                    waiting += more;
                    prop_assert_eq!(stage.arrive(0, many), more);
                }
                Step::Serve(_) => {
                    prop_assert_eq!(stage.gateways[0].line.serve(), waiting > 0);
                    waiting = waiting.saturating_sub(1);
                }
                Step::Pass(millis) => stage.pass(millis),
                Step::Restart(_) => {}
            }
            if let Some(reloaded) = reloaded {
                limit = reloaded;
                stage.gateways[0].line.state().total = reloaded;
            }
            prop_assert_eq!(stage.sum(), waiting);
        }
        prop_assert_eq!(stage.pushed_out(), 0);
    }

    #[test]
    fn share_of_one_stays_when_others_are_down_to_theirs(
        wants in prop::collection::vec(0..50_u64, 1..9),
        total in 0..200_u64,
        clipped in any::<u8>(),
    ) {
        let parts: Vec<_> = (0..wants.len())
            .map(|own| share(&wants, own, total))
            .collect();
        let sum: u64 = wants.iter().sum();
        prop_assert_eq!(parts.iter().sum::<u64>(), sum.min(total));
        let some: Vec<_> = wants
            .iter()
            .zip(&parts)
            .enumerate()
            .map(|(at, (want, part))| if clipped >> at & 1 == 1 { *part } else { *want })
            .collect();
        for (own, part) in parts.iter().enumerate() {
            prop_assert_eq!(share(&some, own, total), *part);
        }
    }
}

/// Requests come to each gateway all the time, and are served in turn.
fn overload(stage: &mut Stage, millis: u64, per_round: &[u64]) {
    for at in 0..millis / 10 {
        for (gateway, requests) in per_round.iter().enumerate() {
            stage.arrive(gateway, *requests);
        }
        let served = at as usize % per_round.len();
        stage.gateways[served].line.serve();
        stage.pass(10);
    }
}

#[test]
fn gateway_that_comes_second_to_a_full_queue_gets_as_many_places_without_any_push_out() {
    let mut stage = Stage::new(12, 3, 2);
    assert_eq!(stage.arrive(0, 100), 12);
    stage.pass(stage.two_rounds());
    assert_eq!(stage.arrive(1, 3), 0);
    overload(&mut stage, 2000, &[9, 5, 0]);
    assert_eq!(stage.pushed_out(), 0);
    let waiting = stage.waiting();
    assert!(waiting[0].abs_diff(waiting[1]) <= 2, "{waiting:?}");
    assert!(waiting[..2].iter().sum::<u64>() >= 10, "{waiting:?}");
    // Once the second one has no requests any more, the first one has all places again.
    for _ in 0..100 {
        stage.gateways[1].line.serve();
        stage.arrive(0, 5);
        stage.pass(20);
    }
    assert_eq!(stage.waiting(), [12, 0, 0]);
}

#[test]
fn excess_that_another_gateway_has_not_yet_taken_back_pushes_nothing_out() {
    let line = Line::new(10);
    let mut planner = QueuePlanner::new(&line);
    for request in 0..10 {
        line.arrive(request);
    }
    let of = |waiting| QueueAsk {
        waiting,
        wanted: waiting,
    };
    let mut heard = |elsewhere, millis| {
        let answer = QueueAnswer {
            asks: vec![of(elsewhere), of(line.waiting())],
            own: 1,
        };
        planner.heard(&line, &answer, Duration::from_millis(millis))
    };
    assert_eq!([heard(1, 0), heard(1, 39), heard(0, 60)], [0; 3]);
    assert_eq!([heard(1, 80), heard(2, 110), heard(3, 119)], [0; 3]);
    assert_eq!([heard(3, 120), heard(3, 130)], [3, 0]);
}

#[test]
fn gateway_that_wanted_nothing_so_far_has_a_share_beside_others_that_want_more_than_there_is() {
    let line = Line::new(10);
    let mut planner = QueuePlanner::new(&line);
    let of = |waiting, wanted| QueueAsk { waiting, wanted };
    let answer = QueueAnswer {
        asks: vec![of(5, 10), of(0, 3), of(0, 0)],
        own: 2,
    };
    planner.heard(&line, &answer, Duration::ZERO);
    // Three for the second one, and of the rest as many as for the first one.
    assert_eq!((0..9).filter(|request| line.arrive(*request)).count(), 3);
    // More than there are are not asked for, however many were refused.
    for request in 0..100 {
        line.arrive(request);
    }
    let ask = planner.ask(&line, Duration::ZERO, IDLE_PAUSE);
    assert_eq!(ask, Some(of(3, 10)));
}

#[test]
fn requests_of_a_gateway_that_is_gone_take_no_places_after_seconds() {
    let mut stage = Stage::new(10, 2, 2);
    stage.arrive(0, 10);
    stage.pass(stage.two_rounds());
    stage.gateways.remove(0);
    assert_eq!(stage.arrive(0, 1), 0);
    stage.pass(LEASE.as_millis() as u64 + ROUND);
    assert_eq!(stage.arrive(0, 10), 10);
}

#[test]
fn smaller_limit_pushes_nothing_out_and_holds_for_new_requests() {
    let mut stage = Stage::new(10, 2, 2);
    stage.arrive(0, 6);
    stage.pass(stage.two_rounds());
    assert_eq!(stage.arrive(1, 4), 4);
    stage.pass(stage.two_rounds());
    for gateway in &stage.gateways {
        gateway.line.state().total = 4;
    }
    stage.pass(500);
    assert_eq!((stage.waiting(), stage.pushed_out()), (vec![6, 4], 0));
    assert_eq!(stage.arrive(1, 3), 0);
    for at in [0, 0, 0, 0, 0, 0, 1] {
        stage.gateways[at].line.serve();
    }
    stage.pass(2000);
    // Three are left, so that one more may wait: at both of them at a time there are too many.
    assert_eq!([stage.arrive(0, 3), stage.arrive(1, 3)], [1, 1]);
    stage.pass(stage.settled());
    assert_eq!((stage.sum(), stage.pushed_out()), (4, 1));
}

#[test]
fn requests_that_wait_when_the_limit_is_lowered_stay_although_another_gateway_hears_of_them_later()
{
    let line = Line::new(10);
    let mut planner = QueuePlanner::new(&line);
    for request in 0..5 {
        line.arrive(request);
    }
    let mut heard = |elsewhere, millis| {
        let of = |waiting| QueueAsk {
            waiting,
            wanted: waiting,
        };
        let answer = QueueAnswer {
            asks: vec![of(elsewhere), of(line.waiting())],
            own: 1,
        };
        planner.heard(&line, &answer, Duration::from_millis(millis))
    };
    assert_eq!(heard(0, 0), 0);
    line.state().total = 4;
    assert_eq!([heard(0, 20), heard(5, 40), heard(5, 100)], [0; 3]);
    assert_eq!([heard(5, 2000), heard(2, 2100)], [0; 2]);
    // Seven wait by then: no more may again.
    assert_eq!([heard(4, 2200), heard(4, 2300)], [0, 2]);
}

#[test]
fn without_a_server_new_requests_have_a_part_of_the_queue_and_those_that_wait_stay() {
    let parts = [
        (Part::None, 0),
        (Part::OneOf(0), 10),
        (Part::OneOf(1), 10),
        (Part::OneOf(4), 2),
        (Part::OneOf(40), 1),
    ];
    for (part, most) in parts {
        let line = Line::new(10);
        let mut planner = QueuePlanner::new(&line);
        planner.fill(&line, part);
        assert_eq!((0..20).filter(|it| line.arrive(*it)).count(), most);
        let line = Line::new(10);
        let mut planner = QueuePlanner::new(&line);
        for request in 0..8 {
            line.arrive(request);
        }
        planner.fill(&line, part);
        assert_eq!(line.waiting(), 8);
        // The server is back: what waits is within the limit.
        let ask = planner.ask(&line, Duration::ZERO, IDLE_PAUSE).unwrap();
        let answer = QueueAnswer {
            asks: vec![ask],
            own: 0,
        };
        assert_eq!(planner.heard(&line, &answer, Duration::ZERO), 0);
        assert_eq!((8..20).filter(|it| line.arrive(*it)).count(), 2);
    }
    let closed = Line::new(0);
    let mut planner = QueuePlanner::new(&closed);
    planner.fill(&closed, Part::OneOf(4));
    assert!(!closed.arrive(1), "none may wait");
}

#[test]
fn queue_that_is_not_used_is_not_asked_about_and_an_idle_one_rarely() {
    let unused = Line::new(0);
    let mut planner = QueuePlanner::new(&unused);
    let at = Duration::from_millis;
    assert_eq!(planner.ask(&unused, at(1000), IDLE_PAUSE), None);
    let mut stage = Stage::new(10, 1, 0);
    let gateway = &mut stage.gateways[0];
    let mut ask = |now| gateway.planner.ask(&gateway.line, at(now), IDLE_PAUSE);
    assert_eq!(ask(0), Some(QueueAsk::default()));
    assert_eq!((ask(50), ask(99)), (None, None));
    assert_eq!(ask(100), Some(QueueAsk::default()));
    gateway.line.arrive(1);
    let one = QueueAsk {
        waiting: 1,
        wanted: 1,
    };
    let mut ask = |now| gateway.planner.ask(&gateway.line, at(now), IDLE_PAUSE);
    assert_eq!((ask(110), ask(120)), (Some(one), Some(one)));
    gateway.line.serve();
    let mut ask = |now| gateway.planner.ask(&gateway.line, at(now), IDLE_PAUSE);
    assert_eq!((ask(130), ask(140)), (Some(QueueAsk::default()), None));
}
