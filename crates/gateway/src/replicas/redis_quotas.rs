//! Limits in Redis or Valkey: one script, over a connection of its own.

use std::time::Duration;

use redis::aio::MultiplexedConnection;
use routing::quota::Grant;

use super::link::LinkError;
use super::quota_link::{Granted, QuotaLink, QuotaServer, Round};
use super::redis_link::{RedisConnector, in_time};

/// Takes and gives back units.
const SCRIPT: &str = include_str!("lease.lua");
/// Time for an answer. A server that is slower counts as away.
const ANSWER_TIMEOUT: Duration = Duration::from_millis(500);
/// Time for the connection and the script.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);

/// The connection, and what the server calls the script.
pub(crate) struct RedisQuotas {
    connection: MultiplexedConnection,
    script: String,
    group: String,
}

impl QuotaServer for RedisConnector {
    type Link = RedisQuotas;

    async fn connect(&self) -> Result<RedisQuotas, LinkError> {
        let connect = async {
            let mut connection = self.connection().await?;
            let mut load = redis::cmd("SCRIPT");
            load.arg("LOAD").arg(SCRIPT);
            let script: String = load.query_async(&mut connection).await?;
            Ok((connection, script))
        };
        let (connection, script) = in_time(CONNECT_TIMEOUT, connect).await?;
        Ok(RedisQuotas {
            connection,
            script,
            group: self.group(),
        })
    }
}

impl QuotaLink for RedisQuotas {
    async fn exchange(&mut self, round: &Round) -> Result<Granted, LinkError> {
        let mut command = redis::cmd("EVALSHA");
        command.arg(&self.script).arg(1 + round.asks.len());
        command.arg(format!("{}:gateways", self.group));
        for (name, ..) in &round.asks {
            command.arg(format!("{}:limit:{name}", self.group));
        }
        command.arg(round.gateway).arg(u8::from(round.leaves));
        for (_, limit, ask) in &round.asks {
            command.arg(limit.units).arg(limit.period_micros());
            command.arg(ask.at_once).arg(ask.units).arg(ask.needed);
        }
        let answer = command.query_async::<Vec<u64>>(&mut self.connection);
        let answer = in_time(ANSWER_TIMEOUT, answer).await?;
        let Some((gateways, grants)) = answer.split_first() else {
            return Err(LinkError("the script returned nothing".to_owned()));
        };
        let grants = grants.as_chunks::<2>().0.iter();
        let grants = grants.map(|[units, short]| Grant {
            units: *units,
            short: *short == 1,
        });
        Ok(Granted {
            gateways: *gateways,
            grants: grants.collect(),
        })
    }
}
