//! The waiting requests of one class: a flow per key, by start-time fair queueing.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::num::NonZeroU32;
use std::time::Duration;

/// Parts of a token that tags count in, so that weights divide without loss.
const SCALE: u128 = 1000;
/// Flows without requests whose last tag is remembered.
const MAX_IDLE: usize = 4096;
/// Requests that a free worker is offered, at most, before the first of them takes it.
const LOOK_AHEAD: usize = 8;
/// Times that a request is passed over for others that suit the worker better.
const MAX_PASSES: u32 = 8;
/// How far a flow may be ahead of the one whose turn it is, to be offered the worker: tokens, at a
/// weight of 1.
const SLACK: u128 = 8192 * SCALE;

/// Identifies a flow.
pub(super) type FlowId = u64;

/// A request that waits.
#[derive(Debug)]
pub(super) struct Entry<T> {
    pub(super) item: T,
    pub(super) cost: u64,
    pub(super) arrived: Duration,
    passes: u32,
}

impl<T> Entry<T> {
    pub(super) fn new(item: T, cost: u64, arrived: Duration) -> Self {
        Self {
            item,
            cost,
            arrived,
            passes: 0,
        }
    }
}

/// The requests of one key.
#[derive(Debug)]
struct Flow<T> {
    weight: NonZeroU32,
    /// The tag of its next request: what the flow has been served, by its weight.
    start: u128,
    /// By order of arrival.
    entries: BTreeMap<u64, Entry<T>>,
}

/// A key's requests, and where one of them stands among all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Spot {
    pub(super) flow: FlowId,
    pub(super) weight: NonZeroU32,
    /// By order of arrival.
    pub(super) number: u64,
}

/// All flows of a class.
///
/// The flow with the least tag is served, and its tag grows by the request's cost over its weight
/// (Goyal, Vin & Cheng, SIGCOMM 1996). Between two flows that wait all the time, what they are
/// served by weight differs by at most one request each, and by what look-ahead allows. Costs of
/// prompts differ a thousandfold: deficit round robin would need a quantum of the largest.
#[derive(Debug)]
pub(super) struct Flows<T> {
    waiting: HashMap<FlowId, Flow<T>>,
    /// Flows by tag.
    order: BTreeSet<(u128, FlowId)>,
    /// Flows by requests over weight.
    lengths: BTreeSet<(u128, FlowId)>,
    /// The flow of each request, by order of arrival.
    numbers: BTreeMap<u64, FlowId>,
    /// The tag of the last request that was served.
    now: u128,
    /// The tags of flows without requests, where they are ahead.
    idle: HashMap<FlowId, u128>,
    idle_order: BTreeSet<(u128, FlowId)>,
}

impl<T> Default for Flows<T> {
    fn default() -> Self {
        Self {
            waiting: HashMap::new(),
            order: BTreeSet::new(),
            lengths: BTreeSet::new(),
            numbers: BTreeMap::new(),
            now: 0,
            idle: HashMap::new(),
            idle_order: BTreeSet::new(),
        }
    }
}

impl<T> Flows<T> {
    pub(super) fn count(&self) -> usize {
        self.numbers.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.numbers.is_empty()
    }

    /// When the request came that waits longest.
    pub(super) fn oldest(&self) -> Option<Duration> {
        let (number, flow) = self.numbers.first_key_value()?;
        let flow = self.waiting.get(flow)?;
        flow.entries.get(number).map(|entry| entry.arrived)
    }

    /// What the request costs whose turn it is.
    pub(super) fn next_cost(&self) -> Option<u64> {
        let (_, flow) = self.order.first()?;
        let entries = &self.waiting.get(flow)?.entries;
        entries.first_key_value().map(|(_, entry)| entry.cost)
    }

    pub(super) fn push(&mut self, spot: Spot, entry: Entry<T>) {
        let now = self.now;
        self.numbers.insert(spot.number, spot.flow);
        let start = self.take_idle(spot.flow).unwrap_or(now).max(now);
        self.change(spot.flow, |flow| {
            let flow = flow.get_or_insert_with(|| Flow {
                weight: spot.weight,
                start,
                entries: BTreeMap::new(),
            });
            flow.weight = spot.weight;
            flow.entries.insert(spot.number, entry);
        });
    }

    /// Takes out a request that waits no longer.
    pub(super) fn remove(&mut self, spot: Spot) -> Option<Entry<T>> {
        self.numbers.remove(&spot.number)?;
        let mut removed = None;
        self.change(spot.flow, |flow| {
            let entries = flow.as_mut().map(|flow| &mut flow.entries);
            removed = entries.and_then(|entries| entries.remove(&spot.number));
        });
        self.tidy();
        removed
    }

    /// Serves the request whose turn it is, or one close behind it that `suits` better.
    pub(super) fn pop(&mut self, suits: impl Fn(&T) -> bool) -> Option<(Spot, Entry<T>)> {
        let spot = self.pick(suits)?;
        let entry = self.remove_charged(spot)?;
        self.tidy();
        Some((spot, entry))
    }

    /// Gives back what [`pop`](Self::pop) gave, as if it had not.
    pub(super) fn put_back(&mut self, spot: Spot, entry: Entry<T>) {
        let charge = charge(entry.cost, spot.weight);
        let idle = self.take_idle(spot.flow);
        self.numbers.insert(spot.number, spot.flow);
        let now = self.now;
        self.change(spot.flow, |flow| {
            let flow = flow.get_or_insert_with(|| Flow {
                weight: spot.weight,
                start: idle.unwrap_or(now),
                entries: BTreeMap::new(),
            });
            flow.start = flow.start.saturating_sub(charge);
            flow.entries.insert(spot.number, entry);
        });
    }

    /// The latest request of the flow that has most of them by its weight, if that is more than a
    /// flow of `than` requests has.
    pub(super) fn longest(&self, than: u128) -> Option<Spot> {
        let (length, id) = self.lengths.last()?;
        let flow = self.waiting.get(id).filter(|_| *length > than)?;
        let (number, _) = flow.entries.last_key_value()?;
        Some(Spot {
            flow: *id,
            weight: flow.weight,
            number: *number,
        })
    }

    /// The requests over the weight of a flow, with one more of it.
    pub(super) fn length_with_next(&self, id: FlowId, weight: NonZeroU32) -> u128 {
        let requests = self.waiting.get(&id).map_or(0, |flow| flow.entries.len());
        length(requests + 1, weight)
    }

    /// The request to serve. One that is passed over too often goes next.
    fn pick(&mut self, suits: impl Fn(&T) -> bool) -> Option<Spot> {
        let (first_tag, _) = *self.order.first()?;
        let near = self
            .order
            .iter()
            .take(LOOK_AHEAD)
            .take_while(|(tag, _)| *tag <= first_tag + SLACK);
        let mut first = None;
        let mut chosen = None;
        let mut left = LOOK_AHEAD;
        for (_, id) in near {
            let flow = self.waiting.get(id)?;
            for (number, entry) in flow.entries.iter().take(left) {
                let spot = Spot {
                    flow: *id,
                    weight: flow.weight,
                    number: *number,
                };
                first.get_or_insert((spot, entry.passes));
                left -= 1;
                if chosen.is_none() && suits(&entry.item) {
                    chosen = Some(spot);
                }
            }
            if left == 0 || chosen.is_some() {
                break;
            }
        }
        let (first, passes) = first?;
        match chosen.filter(|chosen| *chosen != first && passes < MAX_PASSES) {
            Some(chosen) => {
                let flow = self.waiting.get_mut(&first.flow)?;
                flow.entries.get_mut(&first.number)?.passes += 1;
                Some(chosen)
            }
            None => Some(first),
        }
    }

    fn remove_charged(&mut self, spot: Spot) -> Option<Entry<T>> {
        self.numbers.remove(&spot.number)?;
        let mut removed = None;
        let mut served_at = self.now;
        self.change(spot.flow, |flow| {
            if let Some(flow) = flow
                && let Some(entry) = flow.entries.remove(&spot.number)
            {
                served_at = flow.start;
                flow.start += charge(entry.cost, flow.weight);
                removed = Some(entry);
            }
        });
        self.now = self.now.max(served_at);
        removed
    }

    /// Changes a flow, and keeps the orders; a flow without requests becomes an idle one.
    fn change(&mut self, id: FlowId, change: impl FnOnce(&mut Option<Flow<T>>)) {
        let mut flow = self.waiting.remove(&id);
        if let Some(flow) = &flow {
            self.order.remove(&(flow.start, id));
            self.lengths.remove(&(flow.length(), id));
        }
        change(&mut flow);
        match flow {
            Some(flow) if !flow.entries.is_empty() => {
                self.order.insert((flow.start, id));
                self.lengths.insert((flow.length(), id));
                self.waiting.insert(id, flow);
            }
            Some(flow) => {
                self.idle.insert(id, flow.start);
                self.idle_order.insert((flow.start, id));
            }
            None => {}
        }
    }

    fn take_idle(&mut self, id: FlowId) -> Option<u128> {
        let tag = self.idle.remove(&id)?;
        self.idle_order.remove(&(tag, id));
        Some(tag)
    }

    /// Forgets idle flows that are ahead no longer, and everything once nothing waits.
    fn tidy(&mut self) {
        if self.is_empty() {
            *self = Self::default();
            return;
        }
        while let Some((tag, id)) = self.idle_order.first().copied() {
            if tag > self.now && self.idle.len() <= MAX_IDLE {
                return;
            }
            self.take_idle(id);
        }
    }
}

impl<T> Flow<T> {
    fn length(&self) -> u128 {
        length(self.entries.len(), self.weight)
    }
}

fn length(requests: usize, weight: NonZeroU32) -> u128 {
    requests as u128 * SCALE / u128::from(weight.get())
}

fn charge(cost: u64, weight: NonZeroU32) -> u128 {
    u128::from(cost.max(1)) * SCALE / u128::from(weight.get())
}
