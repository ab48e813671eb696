//! The line: two classes of flows, whose turn it is, and what is pushed out of a full one.

use std::num::NonZeroU32;
use std::time::Duration;

use super::class::{Class, FairRules, Turn, Turns};
use super::flows::{Entry, Flows, Spot};

/// A request that begins to wait.
#[derive(Clone, Copy, Debug)]
pub struct Arrival {
    /// Whose request it is: requests of one flow are served in the order of their arrival.
    pub flow: u64,
    /// The flow's weight: its share beside others of the class.
    pub weight: NonZeroU32,
    /// The class of the request.
    pub class: Class,
    /// Tokens that it is expected to take.
    pub cost: u64,
    /// Time since some fixed moment.
    pub now: Duration,
}

/// Where a request waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ticket {
    class: Class,
    spot: Spot,
}

/// A request that is served.
#[derive(Debug)]
pub struct Served<T> {
    ticket: Ticket,
    entry: Entry<T>,
    /// Where another class waited, too.
    turn: Option<Turn>,
}

impl<T> Served<T> {
    /// What waited.
    pub fn item(&self) -> &T {
        &self.entry.item
    }

    /// Where it waited.
    pub fn ticket(&self) -> Ticket {
        self.ticket
    }
}

/// Requests that wait, served by class, and by key within a class.
///
/// Interactive requests go before batch requests, which get a share of the tokens even so, and
/// every second turn once one of them has waited too long. Within a class, keys are served by
/// their weights, in tokens. Every operation takes logarithmic time; memory is bounded by the
/// requests that wait, and by 4096 tags per class.
#[derive(Debug)]
pub struct FairQueue<T> {
    batch: Flows<T>,
    interactive: Flows<T>,
    turns: Turns,
    arrivals: u64,
}

impl<T> Default for FairQueue<T> {
    fn default() -> Self {
        Self {
            batch: Flows::default(),
            interactive: Flows::default(),
            turns: Turns::default(),
            arrivals: 0,
        }
    }
}

impl<T> FairQueue<T> {
    /// Requests that wait.
    pub fn count(&self) -> usize {
        self.batch.count() + self.interactive.count()
    }

    /// Requests of a class that wait.
    pub fn count_of(&self, class: Class) -> usize {
        self.flows(class).count()
    }

    /// Lets a request wait.
    pub fn push(&mut self, arrival: Arrival, item: T) -> Ticket {
        self.arrivals += 1;
        let ticket = Ticket {
            class: arrival.class,
            spot: Spot {
                flow: arrival.flow,
                weight: arrival.weight,
                number: self.arrivals,
            },
        };
        let entry = Entry::new(item, arrival.cost, arrival.now);
        self.flows_mut(arrival.class).push(ticket.spot, entry);
        ticket
    }

    /// Takes out a request that waits no longer; `None` if it does not wait.
    pub fn remove(&mut self, ticket: Ticket) -> Option<T> {
        let removed = self.flows_mut(ticket.class).remove(ticket.spot);
        if self.batch.is_empty() {
            self.turns.reset();
        }
        removed.map(|entry| entry.item)
    }

    /// Serves the next request. One of those close to it goes first if it `suits` the worker that
    /// has become free.
    pub fn pop(
        &mut self,
        now: Duration,
        rules: &FairRules,
        suits: impl Fn(&T) -> bool,
    ) -> Option<Served<T>> {
        let class = self.next_class(now, rules);
        let both_wait = !self.batch.is_empty() && !self.interactive.is_empty();
        let (spot, entry) = self.flows_mut(class).pop(suits)?;
        let turn = both_wait.then(|| self.turns.served(class, entry.cost, rules));
        if self.batch.is_empty() {
            self.turns.reset();
        }
        let ticket = Ticket { class, spot };
        Some(Served {
            ticket,
            entry,
            turn,
        })
    }

    /// Gives back what [`pop`](Self::pop) gave: it waits on, where it did.
    pub fn put_back(&mut self, served: Served<T>) {
        let Served {
            ticket,
            entry,
            turn,
        } = served;
        if let Some(turn) = turn {
            self.turns.undo(&turn);
        }
        self.flows_mut(ticket.class).put_back(ticket.spot, entry);
    }

    /// Pushes out a request for a new one of a full line: a batch request for an interactive one;
    /// of the same class, one of the key that has most of them by its weight, if that stays more
    /// than the new one's key has. It is the latest of its key. `None` if there is none.
    pub fn push_out(&mut self, arrival: &Arrival) -> Option<T> {
        let lower = match arrival.class {
            Class::Interactive => self.batch.longest(0),
            Class::Batch => None,
        };
        let (class, spot) = if let Some(spot) = lower {
            (Class::Batch, spot)
        } else {
            let flows = self.flows(arrival.class);
            let own = flows.length_with_next(arrival.flow, arrival.weight);
            (arrival.class, flows.longest(own)?)
        };
        self.remove(Ticket { class, spot })
    }

    /// Pushes out a request of a line in which too many wait: a batch request where there is one; of
    /// those of its class, the latest of the key that has most by its weight.
    pub fn push_out_last(&mut self) -> Option<T> {
        let (class, spot) = match self.batch.longest(0) {
            Some(spot) => (Class::Batch, spot),
            None => (Class::Interactive, self.interactive.longest(0)?),
        };
        self.remove(Ticket { class, spot })
    }

    /// Whose turn it is.
    fn next_class(&self, now: Duration, rules: &FairRules) -> Class {
        let waiting = self.batch.oldest().zip(self.batch.next_cost());
        match waiting {
            None => Class::Interactive,
            Some(_) if self.interactive.is_empty() => Class::Batch,
            Some((arrived, cost)) => {
                let waited = now.saturating_sub(arrived);
                if self.turns.is_batch_next(cost, waited, rules) {
                    Class::Batch
                } else {
                    Class::Interactive
                }
            }
        }
    }

    fn flows(&self, class: Class) -> &Flows<T> {
        match class {
            Class::Batch => &self.batch,
            Class::Interactive => &self.interactive,
        }
    }

    fn flows_mut(&mut self, class: Class) -> &mut Flows<T> {
        match class {
            Class::Batch => &mut self.batch,
            Class::Interactive => &mut self.interactive,
        }
    }
}
