//! Gateways that bound a queue together through a simulated server, for tests.

use std::collections::BTreeMap;
use std::num::Wrapping;
use std::sync::{Mutex, MutexGuard};
use std::time::Duration;

use super::queue_planner::CONFIRMED_AFTER;
use super::{LEASE, Part, QueueAnswer, QueueAsk, QueuePlanner, QueueRoom, QueueUse, SharedQueue};

pub(super) const IDLE_PAUSE: Duration = Duration::from_millis(100);
/// The longest round, milliseconds.
pub(super) const ROUND: u64 = 30;

/// Requests that wait at one gateway, the last one last.
#[derive(Debug)]
pub(super) struct Line(Mutex<LineState>);

#[derive(Debug)]
pub(super) struct LineState {
    pub(super) total: u64,
    room: QueueRoom,
    pub(super) waiting: Vec<u64>,
    refused: u64,
    pub(super) pushed_out: Vec<u64>,
}

impl Line {
    pub(super) fn new(total: u64) -> Self {
        Self(Mutex::new(LineState {
            total,
            room: QueueRoom::ALL,
            waiting: Vec::new(),
            refused: 0,
            pushed_out: Vec::new(),
        }))
    }

    pub(super) fn state(&self) -> MutexGuard<'_, LineState> {
        self.0.lock().unwrap()
    }

    /// One more request; false where it may not wait.
    pub(super) fn arrive(&self, request: u64) -> bool {
        let mut state = self.state();
        let may_wait = (state.waiting.len() as u64) < state.room.of(state.total);
        if may_wait {
            state.waiting.push(request);
        } else {
            state.refused += 1;
        }
        may_wait
    }

    /// The request that waits longest is served.
    pub(super) fn serve(&self) -> bool {
        let mut state = self.state();
        let is_some = !state.waiting.is_empty();
        if is_some {
            state.waiting.remove(0);
        }
        is_some
    }

    pub(super) fn waiting(&self) -> u64 {
        self.state().waiting.len() as u64
    }
}

impl SharedQueue for Line {
    fn total(&self) -> u64 {
        self.state().total
    }

    fn usage(&self) -> QueueUse {
        let state = self.state();
        QueueUse {
            waiting: state.waiting.len() as u64,
            refused: state.refused,
        }
    }

    fn set_room(&self, room: QueueRoom) {
        self.state().room = room;
    }

    fn shrink(&self, most: u64) -> u64 {
        let mut state = self.state();
        let from = state.waiting.len().min(most as usize);
        let out = state.waiting.split_off(from);
        let count = out.len() as u64;
        state.refused += count;
        state.pushed_out.extend(out);
        count
    }
}

/// What the script of the server knows.
#[derive(Default)]
struct Server(BTreeMap<usize, (QueueAsk, u64)>);

impl Server {
    fn ask(&mut self, own: usize, ask: QueueAsk, now: u64) -> QueueAnswer {
        self.0
            .retain(|_, (_, at)| *at + LEASE.as_millis() as u64 >= now);
        self.0.insert(own, (ask, now));
        QueueAnswer {
            own: self.0.keys().take_while(|id| **id != own).count(),
            asks: self.0.values().map(|(ask, _)| *ask).collect(),
        }
    }
}

pub(super) struct Gateway {
    /// What the server calls it.
    id: usize,
    pub(super) line: Line,
    pub(super) planner: QueuePlanner,
    next: u64,
    coming: Option<(u64, Option<QueueAnswer>)>,
}

impl Gateway {
    fn new(id: usize, total: u64) -> Self {
        let line = Line::new(total);
        Self {
            id,
            planner: QueuePlanner::new(&line),
            line,
            next: 0,
            coming: None,
        }
    }
}

pub(super) struct Stage {
    total: u64,
    pub(super) delay: u64,
    /// Percent of answers that are lost.
    pub(super) loss: u64,
    server: Server,
    pub(super) gateways: Vec<Gateway>,
    random: Wrapping<u64>,
    now: u64,
    requests: u64,
    restarts: usize,
}

impl Stage {
    pub(super) fn new(total: u64, count: usize, delay: u64) -> Self {
        Self {
            total,
            delay,
            loss: 0,
            server: Server::default(),
            gateways: (0..count).map(|id| Gateway::new(id, total)).collect(),
            random: Wrapping(7 + delay + 100 * count as u64 + 10_000 * total),
            now: 0,
            requests: 0,
            restarts: 0,
        }
    }

    fn random(&mut self, below: u64) -> u64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random = self.random * Wrapping(6_364_136_223_846_793_005) + Wrapping(1);
        (self.random.0 >> 33) % below
    }

    /// So many milliseconds pass.
    pub(super) fn pass(&mut self, millis: u64) {
        for _ in 0..millis {
            for at in 0..self.gateways.len() {
                self.exchange(at);
            }
            self.now += 1;
        }
    }

    fn exchange(&mut self, at: usize) {
        let (now, delay) = (self.now, self.delay);
        let (pause, is_lost) = (10 + self.random(ROUND - 10), self.random(100) < self.loss);
        let parts = self.gateways.len() as u64;
        let gateway = &mut self.gateways[at];
        if gateway
            .coming
            .as_ref()
            .is_some_and(|(when, _)| *when <= now)
        {
            let (_, answer) = gateway.coming.take().unwrap();
            match answer {
                Some(answer) => {
                    gateway
                        .planner
                        .heard(&gateway.line, &answer, Duration::from_millis(now));
                }
                None => gateway.planner.fill(&gateway.line, Part::OneOf(parts)),
            }
            gateway.next = now + pause;
        }
        if gateway.coming.is_none() && gateway.next <= now {
            let time = Duration::from_millis(now);
            match gateway.planner.ask(&gateway.line, time, IDLE_PAUSE) {
                Some(ask) => {
                    let answer = self.server.ask(gateway.id, ask, now);
                    gateway.coming = Some((now + delay, (!is_lost).then_some(answer)));
                }
                None => gateway.next = now + pause,
            }
        }
    }

    pub(super) fn arrive(&mut self, at: usize, requests: u64) -> u64 {
        let mut waiting = 0;
        for _ in 0..requests {
            self.requests += 1;
            waiting += u64::from(self.gateways[at].line.arrive(self.requests));
        }
        waiting
    }

    /// Another process takes its place; what waited there is gone.
    pub(super) fn restart(&mut self, at: usize) {
        self.restarts += 1;
        let id = 100 + self.restarts;
        self.gateways[at] = Gateway::new(id, self.total);
    }

    pub(super) fn waiting(&self) -> Vec<u64> {
        self.gateways.iter().map(|it| it.line.waiting()).collect()
    }

    pub(super) fn sum(&self) -> u64 {
        self.waiting().iter().sum()
    }

    pub(super) fn pushed_out(&self) -> usize {
        let lines = self.gateways.iter();
        lines.map(|it| it.line.state().pushed_out.len()).sum()
    }

    /// Time in which every gateway has had two rounds, and their answers.
    pub(super) fn two_rounds(&self) -> u64 {
        2 * (ROUND + self.delay) + 1
    }

    /// Time after which nothing is pushed out any more: three rounds, and what confirms an excess.
    pub(super) fn settled(&self) -> u64 {
        3 * (ROUND + self.delay) + CONFIRMED_AFTER.as_millis() as u64 + 1
    }
}
