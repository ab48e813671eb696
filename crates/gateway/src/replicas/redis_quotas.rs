//! Limits in Redis or Valkey: a script each for rates, slots and queues, over a connection of their own.

use std::sync::Arc;
use std::time::Duration;

use redis::Cmd;
use redis::aio::MultiplexedConnection;
use routing::quota::{Grant, QueueAnswer, QueueAsk, SlotGrant};

use super::link::LinkError;
use super::quota_link::{Granted, QuotaLink, QuotaServer, Round};
use super::redis_link::{RedisConnector, SCRIPT_TIMEOUT, in_time, load_scripts};

/// Takes and gives back units of rates.
const LEASE: &str = concat!(include_str!("gateways.lua"), include_str!("lease.lua"));
/// Divides limits on requests at a time.
const SLOTS: &str = concat!(include_str!("gateways.lua"), include_str!("slots.lua"));
/// Says what waits in queues.
const QUEUES: &str = concat!(include_str!("gateways.lua"), include_str!("queues.lua"));
/// Time for the connection and the scripts.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);

/// The connection, and what the server calls the scripts.
pub(crate) struct RedisQuotas {
    connection: MultiplexedConnection,
    lease: String,
    slots: String,
    queues: String,
    group: String,
}

impl QuotaServer for RedisConnector {
    type Link = RedisQuotas;

    async fn connect(&self) -> Result<RedisQuotas, LinkError> {
        let connect = async {
            let mut connection = self.connection().await?;
            let scripts = load_scripts(&mut connection, [LEASE, SLOTS, QUEUES]).await?;
            Ok((connection, scripts))
        };
        let (connection, [lease, slots, queues]) = in_time(CONNECT_TIMEOUT, connect).await?;
        Ok(RedisQuotas {
            connection,
            lease,
            slots,
            queues,
            group: self.group(),
        })
    }
}

impl QuotaLink for RedisQuotas {
    async fn exchange(&mut self, round: &Round) -> Result<Granted, LinkError> {
        let mut all = redis::pipe();
        if !round.asks.is_empty() {
            all.add_command(self.lease(round));
        }
        if !round.slots.is_empty() {
            all.add_command(self.slots(round));
        }
        if !round.queues.is_empty() {
            all.add_command(self.queues(round));
        }
        let answer = all.query_async::<Vec<Vec<u64>>>(&mut self.connection);
        let mut answers = in_time(SCRIPT_TIMEOUT, answer).await?.into_iter();
        let mut granted = Granted::default();
        if !round.asks.is_empty() {
            let rows = pairs(&mut granted, answers.next())?.into_iter();
            let grants = rows.map(|[units, short]| Grant {
                units,
                short: short == 1,
            });
            granted.grants.extend(grants);
        }
        if !round.slots.is_empty() {
            let rows = pairs(&mut granted, answers.next())?.into_iter();
            let grants = rows.map(|[allowed, short]| SlotGrant {
                allowed,
                short: short == 1,
            });
            granted.slots.extend(grants);
        }
        if !round.queues.is_empty() {
            let rows = numbers(&mut granted, answers.next())?;
            granted.queues = queue_answers(&rows)?;
        }
        Ok(granted)
    }
}

impl RedisQuotas {
    /// Takes units of rates, or gives them back.
    fn lease(&self, round: &Round) -> Cmd {
        let names = round.asks.iter().map(|(name, _)| name);
        let mut command = self.script(&self.lease, "limit", names, round);
        for (_, (limit, ask)) in &round.asks {
            command.arg(limit.units).arg(limit.period_micros());
            command.arg(ask.at_once).arg(ask.units).arg(ask.needed);
        }
        command
    }

    /// Divides limits on requests at a time.
    fn slots(&self, round: &Round) -> Cmd {
        let names = round.slots.iter().map(|(name, _)| name);
        let mut command = self.script(&self.slots, "slots", names, round);
        command.arg(round.known);
        for (_, ask) in &round.slots {
            command.arg(ask.total).arg(ask.held).arg(ask.wanted);
        }
        command
    }

    /// Says what waits here, and asks what waits elsewhere.
    fn queues(&self, round: &Round) -> Cmd {
        let names = round.queues.iter().map(|(name, _)| name);
        let mut command = self.script(&self.queues, "queue", names, round);
        for (_, ask) in &round.queues {
            command.arg(ask.waiting).arg(ask.wanted);
        }
        command
    }

    /// What the calls of all scripts begin with.
    fn script<'a>(
        &self,
        script: &str,
        kind: &str,
        names: impl ExactSizeIterator<Item = &'a Arc<str>>,
        round: &Round,
    ) -> Cmd {
        let mut command = redis::cmd("EVALSHA");
        command.arg(script).arg(1 + names.len());
        command.arg(format!("{}:gateways", self.group));
        for name in names {
            command.arg(format!("{}:{kind}:{name}", self.group));
        }
        command.arg(round.gateway).arg(u8::from(round.leaves));
        command
    }
}

/// Reads what a script has returned: the number of gateways, and more.
fn numbers(granted: &mut Granted, answer: Option<Vec<u64>>) -> Result<Vec<u64>, LinkError> {
    let mut answer = answer.unwrap_or_default();
    if answer.is_empty() {
        return Err(LinkError("a script returned nothing".to_owned()));
    }
    granted.gateways = granted.gateways.max(answer.remove(0));
    Ok(answer)
}

/// The same, where these are pairs.
fn pairs(granted: &mut Granted, answer: Option<Vec<u64>>) -> Result<Vec<[u64; 2]>, LinkError> {
    let numbers = numbers(granted, answer)?;
    Ok(numbers.as_chunks::<2>().0.to_vec())
}

/// Per queue: how many gateways follow, the place of this one, and what each has said.
fn queue_answers(mut numbers: &[u64]) -> Result<Vec<QueueAnswer>, LinkError> {
    let malformed = || LinkError("a script returned something else".to_owned());
    let mut answers = Vec::new();
    while let [count, own, more @ ..] = numbers {
        let length = usize::try_from(*count)
            .ok()
            .and_then(|count| count.checked_mul(2));
        let split = length.and_then(|length| more.split_at_checked(length));
        let (rows, rest) = split.ok_or_else(malformed)?;
        let asks = rows.as_chunks::<2>().0.iter();
        let asks = asks.map(|[waiting, wanted]| QueueAsk {
            waiting: *waiting,
            wanted: *wanted,
        });
        let own = usize::try_from(*own).map_err(|_| malformed())?;
        answers.push(QueueAnswer {
            asks: asks.collect(),
            own,
        });
        numbers = rest;
    }
    Ok(answers)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_of_queues_are_read_one_after_the_other_and_malformed_ones_refused() {
        let ask = |waiting, wanted| QueueAsk { waiting, wanted };
        let read = queue_answers(&[2, 1, 3, 4, 5, 6, 1, 0, 7, 8]).unwrap();
        let first = QueueAnswer {
            asks: vec![ask(3, 4), ask(5, 6)],
            own: 1,
        };
        let second = QueueAnswer {
            asks: vec![ask(7, 8)],
            own: 0,
        };
        assert_eq!(read, [first, second]);
        assert_eq!(queue_answers(&[]).unwrap(), []);
        for malformed in [&[2, 0, 1, 1, 1][..], &[u64::MAX, 0, 1, 1]] {
            assert!(queue_answers(malformed).is_err(), "{malformed:?}");
        }
    }
}
