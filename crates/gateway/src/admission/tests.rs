//! Limits on inference requests, and the queue before them, under a paused clock.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use futures_util::poll;
use routing::FairShare;
use routing::quota::{QueueRoom, SharedLimits, SharedQueue};
use tokio::time::Instant;

use super::asker::Asker;
use super::limiter::Admission;
use crate::config::{AdmissionSection, Options, QueueOrder};
use crate::error::Error;
use crate::telemetry::Metrics;

fn anyone() -> Asker {
    Asker::new(FairShare::default(), None, 1)
}

fn admission(change: impl FnOnce(&mut Options)) -> Admission {
    let mut options = Options {
        queue_size: 2,
        queue_timeout_secs: 5,
        ..Options::default()
    };
    change(&mut options);
    Admission::new(
        &AdmissionSection::from(&options),
        &Metrics::new(None).unwrap(),
    )
}

#[tokio::test(start_paused = true)]
async fn nothing_is_limited_by_default() {
    let admission = admission(|options| options.queue_size = 0);
    let permit = join_all((0..10_000).map(|_| admission.admit(anyone))).await;
    assert!(permit.iter().all(Result::is_ok));
}

#[tokio::test(start_paused = true)]
async fn cap_holds_until_permit_is_dropped_and_queue_is_first_in_first_out() {
    let admission = admission(|options| options.max_concurrent_requests = 1);
    let first = admission.admit(anyone).await.unwrap();
    let (mut second, mut third) = (
        Box::pin(admission.admit(anyone)),
        Box::pin(admission.admit(anyone)),
    );
    assert!(poll!(&mut second).is_pending() && poll!(&mut third).is_pending());
    assert!(matches!(
        admission.admit(anyone).await,
        Err(Error::QueueFull { waiting: 2, .. })
    ));
    drop(first);
    assert!(poll!(&mut third).is_pending());
    let second = second.await.unwrap();
    drop(second);
    third.await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn wait_ends_after_queue_timeout() {
    let admission = admission(|options| options.max_concurrent_requests = 1);
    let _held = admission.admit(anyone).await.unwrap();
    let started = Instant::now();
    let refused = admission.admit(anyone).await.unwrap_err();
    assert_eq!(started.elapsed(), Duration::from_secs(5));
    assert_eq!(refused.status().as_u16(), 408);
}

#[tokio::test(start_paused = true)]
async fn dropped_wait_frees_its_place() {
    let admission = admission(|options| options.max_concurrent_requests = 1);
    let held = admission.admit(anyone).await.unwrap();
    {
        let mut leaving = Box::pin(admission.admit(anyone));
        assert!(poll!(&mut leaving).is_pending());
        assert_eq!(admission.waiting(), 1);
    }
    assert_eq!(admission.waiting(), 0);
    drop(held);
    admission.admit(anyone).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn rate_holds_whatever_is_in_flight() {
    let admission = admission(|options| {
        options.rate_limit_tokens_per_second = Some(100);
        options.queue_size = 1000;
    });
    let started = Instant::now();
    let all = join_all((0..300).map(|_| admission.admit(anyone)));
    tokio::select! {
        permit = all => assert!(permit.iter().all(Result::is_ok)),
        () = admission.refill() => unreachable!("pays in for ever"),
    }
    let took = started.elapsed();
    assert!(
        took >= Duration::from_secs(2) && took < Duration::from_millis(2100),
        "{took:?}"
    );
}

#[tokio::test(start_paused = true)]
async fn lifted_limits_let_those_in_that_wait_and_new_ones_hold_for_later_requests() {
    let section = |cap, rate| {
        AdmissionSection::from(&Options {
            max_concurrent_requests: cap,
            rate_limit_tokens_per_second: rate,
            queue_size: 9,
            queue_timeout_secs: 5,
            ..Options::default()
        })
    };
    let metrics = Metrics::new(None).unwrap();
    for limited in [section(1, None), section(0, Some(1))] {
        let admission = Admission::new(&limited, &metrics);
        let _first = admission.admit(anyone).await.unwrap();
        let mut second = Box::pin(admission.admit(anyone));
        assert!(poll!(&mut second).is_pending());
        admission.set(&section(0, None));
        second.await.unwrap();
        admission.set(&section(1, None));
        let third = admission.admit(anyone).await.unwrap();
        let mut fourth = Box::pin(admission.admit(anyone));
        assert!(poll!(&mut fourth).is_pending());
        drop(third);
        fourth.await.unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn rate_that_is_set_while_running_is_refilled() {
    let admission = admission(|_| {});
    let section = AdmissionSection::from(&Options {
        rate_limit_tokens_per_second: Some(10),
        queue_size: 100,
        ..Options::default()
    });
    let started = Instant::now();
    let requests = async {
        tokio::task::yield_now().await;
        admission.set(&section);
        join_all((0..30).map(|_| admission.admit(anyone))).await
    };
    tokio::select! {
        permits = requests => assert!(permits.iter().all(Result::is_ok)),
        () = admission.refill() => unreachable!("pays in for ever"),
    }
    let took = started.elapsed();
    assert!(
        took >= Duration::from_secs(2) && took < Duration::from_millis(2100),
        "{took:?}"
    );
}

#[tokio::test(start_paused = true)]
async fn zero_or_negative_limit_means_no_limit() {
    for number in [0, -1] {
        let admission = admission(|options| {
            options.max_concurrent_requests = number;
            options.rate_limit_tokens_per_second = Some(number);
        });
        assert_eq!(admission.summary(None), "none");
    }
}

fn room(elsewhere: u64) -> QueueRoom {
    QueueRoom {
        elsewhere,
        most: u64::MAX,
    }
}

#[tokio::test(start_paused = true)]
async fn last_ones_are_pushed_out_and_a_permit_that_was_granted_in_that_moment_is_kept() {
    let admission = admission(|options| {
        options.max_concurrent_requests = 1;
        options.queue_size = 9;
    });
    let held = admission.admit(anyone).await.unwrap();
    let mut waiting: Vec<_> = (0..4).map(|_| Box::pin(admission.admit(anyone))).collect();
    for request in &mut waiting {
        assert!(poll!(request).is_pending());
    }
    admission.set_room(room(7));
    assert_eq!((admission.shrink(3), admission.waiting()), (1, 3));
    let refused = waiting.pop().unwrap().await.unwrap_err();
    assert!(
        matches!(
            refused,
            Error::QueueFull {
                waiting: 10,
                retry_after: 1,
                ..
            }
        ),
        "{refused:?}"
    );
    // The first one has got the permit, and has not run since.
    drop(held);
    assert_eq!((admission.shrink(0), admission.waiting()), (3, 0));
    let mut ended = join_all(waiting).await.into_iter();
    let first = ended.next().unwrap().unwrap();
    assert!(ended.all(|ended| matches!(ended, Err(Error::QueueFull { .. }))));
    assert_eq!(admission.usage().refused, 3);
    let mut next = Box::pin(admission.admit(anyone));
    assert!(poll!(&mut next).is_pending());
    drop(first);
    drop(next.await.unwrap());
    // What needs no place in the queue is not bound by it.
    admission.set_room(room(100));
    admission.admit(anyone).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn token_of_the_rate_that_was_granted_in_the_moment_of_a_push_out_is_not_lost() {
    let admission = admission(|options| {
        options.rate_limit_tokens_per_second = Some(1);
        options.queue_size = 9;
    });
    admission.admit(anyone).await.unwrap();
    let mut waiting = [(); 3].map(|()| Box::pin(admission.admit(anyone)));
    for request in &mut waiting {
        assert!(poll!(request).is_pending());
    }
    assert_eq!(admission.shrink(2), 1);
    let started = Instant::now();
    let [first, second, third] = waiting;
    assert!(matches!(third.await, Err(Error::QueueFull { .. })));
    tokio::select! {
        () = admission.refill() => unreachable!("pays in for ever"),
        both = join_all([first, second]) => assert!(both.iter().all(Result::is_ok)),
    }
    assert!(started.elapsed() < Duration::from_millis(2050));
}

#[tokio::test(start_paused = true)]
async fn of_the_fair_order_the_last_ones_are_pushed_out_first_then_those_that_wait_for_the_rate() {
    let admission = admission(|options| {
        options.max_concurrent_requests = 1;
        options.rate_limit_tokens_per_second = Some(3);
        options.queue_size = 5;
        options.queue_order = QueueOrder::Fair;
    });
    let of = |class| move || Asker::new(FairShare::default(), Some(class), 1);
    let _held = admission.admit(anyone).await.unwrap();
    let mut interactive = Box::pin(admission.admit(of("interactive")));
    let mut batch = Box::pin(admission.admit(of("batch")));
    assert!(poll!(&mut interactive).is_pending() && poll!(&mut batch).is_pending());
    let mut for_the_rate = [(); 3].map(|()| Box::pin(admission.admit(anyone)));
    for request in &mut for_the_rate {
        assert!(poll!(request).is_pending());
    }
    assert_eq!(admission.waiting(), 5);
    let refused = admission.admit(anyone).await;
    assert!(
        matches!(refused, Err(Error::QueueFull { .. })),
        "all of the queue"
    );
    assert_eq!((admission.shrink(4), admission.waiting()), (1, 4));
    assert!(matches!(batch.await, Err(Error::QueueFull { .. })));
    assert!(poll!(&mut interactive).is_pending());
    assert_eq!((admission.shrink(2), admission.waiting()), (2, 2));
    assert!(matches!(interactive.await, Err(Error::QueueFull { .. })));
    let [first, second, third] = for_the_rate;
    assert!(matches!(third.await, Err(Error::QueueFull { .. })));
    for mut request in [first, second] {
        assert!(poll!(&mut request).is_pending());
    }
}

#[tokio::test(start_paused = true)]
async fn queue_is_shared_while_there_is_a_limit_to_wait_for_and_follows_its_size() {
    let section = |cap, queue_size| {
        AdmissionSection::from(&Options {
            max_concurrent_requests: cap,
            queue_size,
            ..Options::default()
        })
    };
    let limits = Arc::new(SharedLimits::default());
    let metrics = Metrics::new(None).unwrap();
    let admission = Admission::new(&section(0, 5), &metrics).sharing(Some(Arc::clone(&limits)));
    let shared = limits.list_queues().pop().unwrap();
    assert_eq!(&*shared.0, "admission");
    let total = || shared.1.upgrade().unwrap().total();
    assert_eq!(total(), 0);
    admission.set(&section(1, 5));
    assert_eq!(total(), 5);
    admission.set_room(room(2));
    assert_eq!(admission.to_json()["queue_size_here"], 3);
    admission.set(&section(1, 8));
    assert_eq!(
        (total(), admission.to_json()["queue_size"].as_u64()),
        (8, Some(8))
    );
    assert_eq!(admission.to_json()["queue_size_here"], 6);
    admission.set(&section(0, 8));
    assert_eq!(total(), 0);
}
