//! Gateways that exchange messages.

use std::sync::Arc;
use std::time::Duration;

use proptest::prelude::*;

use super::*;
use crate::{Load, LoadCounts};

const LIMITS: Limits = Limits {
    message_bytes: 2048,
    placement_blocks: 100,
};

struct Gateway {
    outbox: Outbox,
    journal: Journal,
    peers: Peers,
    load: Arc<Load>,
    /// What it has learnt: worker and blocks.
    learnt: Vec<(u64, Vec<u64>)>,
}

impl Gateway {
    fn new(id: u64) -> Self {
        let version = *b"1.2.3\0\0\0";
        Self {
            outbox: Outbox::new(Identity { id, version }, LIMITS),
            journal: Journal::new(64 * 1024),
            peers: Peers::new(id),
            load: Arc::default(),
            learnt: Vec::new(),
        }
    }

    /// The load is that of worker 7.
    fn batch(&mut self, now: Duration) -> Option<Vec<u8>> {
        let clocks = Clocks { now, unix_ms: 1000 };
        let counts = self.load.own();
        let loads = [WorkerLoad { worker: 7, counts }];
        self.outbox.batch(clocks, &self.journal, loads.into_iter())
    }

    fn receive(&mut self, message: &[u8], now: Duration) -> Result<Header, Malformed> {
        let (load, learnt) = (&self.load, &mut self.learnt);
        self.peers.receive(message, now, |update| match update {
            Update::Load(sum) => {
                assert_eq!(sum.worker, 7);
                load.set_peers(sum.counts);
            }
            Update::Placement(placement) => {
                for worker in placement.workers {
                    learnt.push((*worker, placement.blocks.to_vec()));
                }
            }
        })
    }

    fn expire(&mut self, now: Duration) {
        let load = &self.load;
        self.peers.expire(now, |update| {
            if let Update::Load(sum) = update {
                load.set_peers(sum.counts);
            }
        });
    }
}

fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

#[test]
fn load_and_placement_of_one_gateway_reach_another() {
    let (mut one, mut two) = (Gateway::new(1), Gateway::new(2));
    let lease = one.load.lease(500);
    one.journal.note(7, &[1, 2, 3]);
    let batch = one.batch(ms(0)).unwrap();
    let header = two.receive(&batch, ms(5)).unwrap();
    assert_eq!((header.kind, header.sender), (Kind::Batch, 1));
    assert_eq!((two.load.requests(), two.load.queued_tokens()), (1, 500));
    assert_eq!(two.load.own(), LoadCounts::default());
    assert_eq!(two.learnt, [(7, vec![1, 2, 3])]);
    assert_eq!(one.batch(ms(50)), None, "there is nothing new");
    drop(lease);
    let batch = one.batch(ms(100)).unwrap();
    two.receive(&batch, ms(105)).unwrap();
    assert_eq!((two.load.requests(), two.load.queued_tokens()), (0, 0));
    assert_eq!(two.learnt.len(), 1);
}

#[test]
fn late_and_repeated_batches_do_not_change_loads_and_lost_ones_are_counted() {
    let (mut one, mut two) = (Gateway::new(1), Gateway::new(2));
    let first = one.batch(ms(0)).unwrap();
    let lease = one.load.lease(5);
    let second = one.batch(ms(100)).unwrap();
    drop(lease);
    let third = one.batch(ms(200)).unwrap();
    for message in [&first, &third, &second, &third] {
        two.receive(message, ms(300)).unwrap();
    }
    assert_eq!(two.load.requests(), 0);
    let (_, peer) = two.peers.iter().next().unwrap();
    assert_eq!((peer.lost, peer.messages), (1, 4));
    assert_eq!(peer.version, *b"1.2.3\0\0\0");
}

#[test]
fn requests_of_a_silent_gateway_age_out_and_count_again_when_it_is_back() {
    let (mut one, mut two) = (Gateway::new(1), Gateway::new(2));
    let _lease = one.load.lease(500);
    let batch = one.batch(ms(0)).unwrap();
    two.receive(&batch, ms(0)).unwrap();
    two.expire(ms(2000));
    assert_eq!((two.load.requests(), two.peers.totals().live), (1, 1));
    two.expire(ms(2001));
    assert_eq!((two.load.requests(), two.peers.totals().live), (0, 0));
    // The next batch lists all loads, also those that have not changed.
    let batch = one.batch(ms(5000)).unwrap();
    two.receive(&batch, ms(5000)).unwrap();
    assert_eq!((two.load.requests(), two.peers.totals().live), (1, 1));
    two.expire(ms(70_000));
    assert_eq!(two.peers.iter().count(), 0);
}

#[test]
fn requests_of_a_gateway_that_leaves_end_at_once() {
    let (mut one, mut two) = (Gateway::new(1), Gateway::new(2));
    let _lease = one.load.lease(500);
    let batch = one.batch(ms(0)).unwrap();
    two.receive(&batch, ms(0)).unwrap();
    let clocks = Clocks {
        now: ms(1),
        unix_ms: 0,
    };
    let leave = one.outbox.notice(Kind::Leave, clocks);
    two.receive(&leave, ms(1)).unwrap();
    assert_eq!((two.load.requests(), two.peers.iter().count()), (0, 0));
}

#[test]
fn news_after_a_silence_go_out_at_once_and_further_ones_wait() {
    let mut one = Gateway::new(1);
    one.batch(ms(0)).unwrap();
    let lease = one.load.lease(1);
    assert_eq!(one.outbox.next(ms(4)), ms(10));
    assert_eq!(one.batch(ms(9)), None);
    assert!(one.batch(ms(10)).is_some());
    drop(lease);
    assert_eq!(one.outbox.next(ms(300)), ms(300));
    assert!(one.batch(ms(300)).is_some());
    assert_eq!(one.batch(ms(499)), None);
    assert!(one.batch(ms(500)).is_some(), "it is heard without news");
}

#[test]
fn bytes_are_bounded_and_small_news_hardly_wait() {
    let mut one = Gateway::new(1);
    let (mut bytes, mut batches) = (0, 0);
    let blocks: Vec<u64> = (0..100).collect();
    for now in 0..4000 {
        one.journal.note(now, &blocks);
        if let Some(batch) = one.batch(ms(now)) {
            assert!(batch.len() <= LIMITS.message_bytes);
            (bytes, batches) = (bytes + batch.len(), batches + 1);
        }
    }
    let full = LIMITS.message_bytes;
    assert!(bytes <= full * (20 * 4 + 3), "{bytes}");
    assert!(bytes > full * 20 * 3 && batches > 200, "{bytes} {batches}");
    // After a silence, each of some news is sent within 10 ms.
    for at in 0..12 {
        one.journal.note(7, &[at]);
        assert!(one.batch(ms(5000 + 10 * at)).is_some());
    }
}

#[test]
fn own_messages_change_nothing() {
    let mut one = Gateway::new(1);
    let _lease = one.load.lease(9);
    one.journal.note(7, &[1]);
    let batch = one.batch(ms(0)).unwrap();
    one.receive(&batch, ms(1)).unwrap();
    assert_eq!((one.load.requests(), one.learnt.len()), (1, 0));
    assert_eq!(one.peers.iter().count(), 0);
}

#[test]
fn long_placements_are_cut_so_that_all_fit() {
    let (mut one, mut two) = (Gateway::new(1), Gateway::new(2));
    let blocks: Vec<u64> = (0..200).collect();
    for worker in 0..10 {
        one.journal.note(worker, &blocks);
    }
    one.journal.note(99, &[5, 6]);
    let batch = one.batch(ms(0)).unwrap();
    assert!(batch.len() <= LIMITS.message_bytes);
    two.receive(&batch, ms(0)).unwrap();
    let lengths: Vec<_> = two.learnt.iter().map(|(_, blocks)| blocks.len()).collect();
    assert_eq!(lengths.len(), 11);
    assert!(lengths[..10].iter().all(|length| (15..30).contains(length)));
    assert_eq!(two.learnt[10], (99, vec![5, 6]));
    assert!(
        two.learnt
            .iter()
            .all(|(_, learnt)| blocks.starts_with(learnt) || learnt == &[5, 6])
    );
}

#[test]
fn journal_says_what_is_known_of_other_gateways() {
    let journal = Journal::new(80);
    assert_eq!(journal.sight(), Sight::Unheard);
    for sight in [Sight::Shared, Sight::Apart(8), Sight::Unheard] {
        journal.set_sight(sight);
        assert_eq!(journal.sight(), sight);
    }
}

#[test]
fn placements_that_find_no_room_are_counted() {
    let journal = Journal::new(80);
    journal.note(1, &[1, 2, 3]);
    journal.note(1, &[1, 2, 3]);
    journal.note(1, &[1, 2, 3]);
    assert_eq!(journal.dropped(), 1);
    assert_eq!(journal.clear(), 2);
    assert_eq!((journal.clear(), journal.dropped()), (0, 1));
    let mut one = Gateway::new(1);
    for worker in 0..1000 {
        one.journal.note(worker, &[1]);
    }
    one.batch(ms(0)).unwrap();
    let totals = one.outbox.totals();
    assert_eq!(totals.placements + totals.dropped, 1000);
    assert!(totals.dropped > 0 && totals.bytes <= 2048);
}

#[test]
fn part_carries_what_is_known_to_the_one_that_asked() {
    let (mut one, mut two) = (Gateway::new(1), Gateway::new(2));
    let clocks = Clocks {
        now: ms(0),
        unix_ms: 0,
    };
    let mut part = Part::default();
    let blocks: Vec<u64> = (0..5000).collect();
    for blocks in [&blocks[..], &[], &[4]] {
        part.push(Placement {
            workers: &[7, 8],
            blocks,
        });
    }
    let message = one.outbox.part(clocks, &part, Last::Yes);
    let header = two.receive(&message, ms(0)).unwrap();
    assert_eq!((header.kind, header.complete), (Kind::Part, true));
    let lengths = two.learnt.iter().map(|(at, blocks)| (*at, blocks.len()));
    let most = MAX_BLOCKS_SENT;
    assert_eq!(
        lengths.collect::<Vec<_>>(),
        [(7, most), (8, most), (7, 1), (8, 1)]
    );
}

#[test]
fn eldest_live_peer_is_asked_first() {
    let mut two = Gateway::new(2);
    for (at, id) in [(10, 5), (20, 4), (30, 9)] {
        let batch = Gateway::new(id).batch(ms(0)).unwrap();
        two.receive(&batch, ms(at)).unwrap();
    }
    assert_eq!(two.peers.eldest(&[]), Some(5));
    assert_eq!(two.peers.eldest(&[5, 4]), Some(9));
    assert_eq!(two.peers.eldest(&[5, 4, 9]), None);
    two.expire(ms(5000));
    assert_eq!(two.peers.eldest(&[]), None);
}

proptest! {
    #[test]
    fn no_bytes_are_misread(bytes in prop::collection::vec(any::<u8>(), 0..400), cut in 0..400_usize, flip in 0..3200_usize) {
        let mut two = Gateway::new(2);
        prop_assert_eq!(two.receive(&bytes, ms(0)), Err(Malformed));
        let mut one = Gateway::new(1);
        let _lease = one.load.lease(500);
        one.journal.note(7, &[1, 2, 3]);
        one.journal.note(8, &[4]);
        let mut batch = one.batch(ms(0)).unwrap();
        let whole = batch.len();
        batch.truncate(cut);
        if cut < whole {
            prop_assert_eq!(two.receive(&batch, ms(0)), Err(Malformed));
            prop_assert!(two.learnt.is_empty() && two.load.requests() == 0);
        } else if let Some(byte) = batch.get_mut(flip / 8) {
            // Whatever it means now, it is read or refused.
            *byte ^= 1 << (flip % 8);
            let _ = two.peers.receive(&batch, ms(0), |_| {});
        }
    }

    #[test]
    fn loads_agree_after_any_losses_once_a_batch_with_all_loads_has_come(
        steps in prop::collection::vec((0..3_u8, 0..1000_u64, any::<bool>()), 1..60),
    ) {
        let (mut one, mut two) = (Gateway::new(1), Gateway::new(2));
        let (mut leases, mut now) = (Vec::new(), 0);
        for (step, tokens, arrives) in steps {
            match step {
                0 => leases.push(one.load.lease(tokens)),
                1 => drop(leases.pop()),
                _ => leases.iter_mut().for_each(crate::Lease::first_byte),
            }
            now += 50;
            if let (Some(batch), true) = (one.batch(ms(now)), arrives) {
                two.receive(&batch, ms(now)).unwrap();
            }
        }
        one.outbox.resync();
        let batch = one.batch(ms(now + 50)).unwrap();
        two.receive(&batch, ms(now + 50)).unwrap();
        prop_assert_eq!(two.load.peers(), one.load.own());
        drop(leases);
        one.outbox.resync();
        let batch = one.batch(ms(now + 100)).unwrap();
        two.receive(&batch, ms(now + 100)).unwrap();
        prop_assert_eq!(two.load.peers(), LoadCounts::default());
    }
}
