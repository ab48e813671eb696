//! Limits in Redis or Valkey: a script for rates and one for slots, over a connection of their own.

use std::time::Duration;

use redis::Cmd;
use redis::aio::MultiplexedConnection;
use routing::quota::{Grant, SlotGrant};

use super::link::LinkError;
use super::quota_link::{Granted, QuotaLink, QuotaServer, Round};
use super::redis_link::{RedisConnector, SCRIPT_TIMEOUT, in_time, load_scripts};

/// Takes and gives back units of rates.
const LEASE: &str = concat!(include_str!("gateways.lua"), include_str!("lease.lua"));
/// Divides limits on requests at a time.
const SLOTS: &str = concat!(include_str!("gateways.lua"), include_str!("slots.lua"));
/// Time for the connection and the scripts.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);

/// The connection, and what the server calls the scripts.
pub(crate) struct RedisQuotas {
    connection: MultiplexedConnection,
    lease: String,
    slots: String,
    group: String,
}

impl QuotaServer for RedisConnector {
    type Link = RedisQuotas;

    async fn connect(&self) -> Result<RedisQuotas, LinkError> {
        let connect = async {
            let mut connection = self.connection().await?;
            let scripts = load_scripts(&mut connection, [LEASE, SLOTS]).await?;
            Ok((connection, scripts))
        };
        let (connection, [lease, slots]) = in_time(CONNECT_TIMEOUT, connect).await?;
        Ok(RedisQuotas {
            connection,
            lease,
            slots,
            group: self.group(),
        })
    }
}

impl QuotaLink for RedisQuotas {
    async fn exchange(&mut self, round: &Round) -> Result<Granted, LinkError> {
        let mut both = redis::pipe();
        if !round.asks.is_empty() {
            both.add_command(self.lease(round));
        }
        if !round.slots.is_empty() {
            both.add_command(self.slots(round));
        }
        let answer = both.query_async::<Vec<Vec<u64>>>(&mut self.connection);
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
        Ok(granted)
    }
}

impl RedisQuotas {
    /// Takes units of rates, or gives them back.
    fn lease(&self, round: &Round) -> Cmd {
        let mut command = redis::cmd("EVALSHA");
        command.arg(&self.lease).arg(1 + round.asks.len());
        command.arg(format!("{}:gateways", self.group));
        for (name, _) in &round.asks {
            command.arg(format!("{}:limit:{name}", self.group));
        }
        command.arg(round.gateway).arg(u8::from(round.leaves));
        for (_, (limit, ask)) in &round.asks {
            command.arg(limit.units).arg(limit.period_micros());
            command.arg(ask.at_once).arg(ask.units).arg(ask.needed);
        }
        command
    }

    /// Divides limits on requests at a time.
    fn slots(&self, round: &Round) -> Cmd {
        let mut command = redis::cmd("EVALSHA");
        command.arg(&self.slots).arg(1 + round.slots.len());
        command.arg(format!("{}:gateways", self.group));
        for (name, _) in &round.slots {
            command.arg(format!("{}:slots:{name}", self.group));
        }
        command.arg(round.gateway).arg(u8::from(round.leaves));
        command.arg(round.known);
        for (_, ask) in &round.slots {
            command.arg(ask.total).arg(ask.held).arg(ask.wanted);
        }
        command
    }
}

/// Reads what a script has returned: the number of gateways, and pairs.
fn pairs(granted: &mut Granted, answer: Option<Vec<u64>>) -> Result<Vec<[u64; 2]>, LinkError> {
    let answer = answer.unwrap_or_default();
    let Some((gateways, rows)) = answer.split_first() else {
        return Err(LinkError("a script returned nothing".to_owned()));
    };
    granted.gateways = granted.gateways.max(*gateways);
    Ok(rows.as_chunks::<2>().0.to_vec())
}
