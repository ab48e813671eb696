//! Routing keys in Redis or Valkey: two scripts over one connection, news over another.
//!
//! `smg:DATABASE:key:POOL KEY`, both as 16 digits, has a version of 16 digits and two workers of 16
//! digits, and expires. News, and pages, are records of pool, key, value and milliseconds.

use std::time::Duration;

use futures_util::StreamExt;
use redis::aio::{MultiplexedConnection, PubSubStream};
use routing::sticky::{Assignment, Claim, SharedKey};

use super::key_link::{KeyLink, KeyServer, Page, PoolKey};
use super::link::LinkError;
use super::redis_link::{RedisConnector, SCRIPT_TIMEOUT, in_time, load_scripts};

const CLAIM: &str = include_str!("keys.lua");
const PAGE: &str = include_str!("key_page.lua");
/// Time for both connections and the scripts.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// Keys of any kind that the server looks at for a page.
const PAGE_SIZE: u32 = 512;
/// Digits of a number, in hexadecimal or decimal notation.
const DIGITS: usize = 16;

/// Both connections, and what the server calls the scripts.
pub(crate) struct RedisKeys {
    commands: MultiplexedConnection,
    news: PubSubStream,
    claim: String,
    page: String,
    channel: String,
    prefix: String,
}

impl KeyServer for RedisConnector {
    type Link = RedisKeys;

    async fn connect(&self) -> Result<RedisKeys, LinkError> {
        let channel = format!("{}:keys", self.group());
        let connect = async {
            let mut commands = self.connection().await?;
            let scripts = load_scripts(&mut commands, [CLAIM, PAGE]).await?;
            let news = self.subscribe(&[&channel]).await?;
            Ok((commands, scripts, news))
        };
        let (commands, [claim, page], news) = in_time(CONNECT_TIMEOUT, connect).await?;
        Ok(RedisKeys {
            commands,
            news,
            claim,
            page,
            channel,
            prefix: format!("{}:key:", self.group()),
        })
    }
}

impl KeyLink for RedisKeys {
    async fn claim(&mut self, pool: u64, claims: &[Claim]) -> Result<Vec<Assignment>, LinkError> {
        let names = claims
            .iter()
            .map(|it| format!("{pool:016x}{:016x}", it.key));
        let names: Vec<_> = names.collect();
        let mut command = redis::cmd("EVALSHA");
        command.arg(&self.claim).arg(claims.len());
        for name in &names {
            command.arg(format!("{}{name}", self.prefix));
        }
        command.arg(&self.channel);
        for (claim, name) in claims.iter().zip(&names) {
            let [first, second] = claim.assignment.workers;
            command.arg(name).arg(format!("{first:016x}{second:016x}"));
            command.arg(claim.assignment.version);
            command.arg(u8::from(claim.changed));
            command.arg(claim.kept.as_millis().max(1) as u64);
        }
        let answer = command.query_async::<Vec<String>>(&mut self.commands);
        let answer = in_time(SCRIPT_TIMEOUT, answer).await?;
        let after: Option<Vec<_>> = answer.iter().map(|value| assignment(value)).collect();
        let after = after.filter(|after| after.len() == claims.len());
        after.ok_or_else(|| LinkError("the script returned something else".to_owned()))
    }

    async fn page(&mut self, from: u64) -> Result<Page, LinkError> {
        let mut command = redis::cmd("EVALSHA");
        command.arg(&self.page).arg(0).arg(&self.prefix);
        command.arg(from).arg(PAGE_SIZE);
        let answer = command.query_async::<Vec<String>>(&mut self.commands);
        let answer = in_time(SCRIPT_TIMEOUT, answer).await?;
        let next = answer.first().and_then(|next| next.parse().ok());
        let keys = answer.iter().skip(1).filter_map(|it| record(it));
        Ok(Page {
            keys: keys.collect(),
            next: next.filter(|next| *next != 0),
        })
    }

    async fn echo(&mut self) -> Result<(), LinkError> {
        let mut command = redis::cmd("PUBLISH");
        command.arg(&self.channel).arg("");
        let sent = command.query_async::<()>(&mut self.commands);
        in_time(SCRIPT_TIMEOUT, sent).await
    }

    async fn next(&mut self) -> Option<Vec<PoolKey>> {
        let message = self.news.next().await?;
        let text = str::from_utf8(message.get_payload_bytes()).unwrap_or_default();
        Some(records(text))
    }
}

/// Keys, one after the other, up to one that is malformed.
fn records(mut text: &str) -> Vec<PoolKey> {
    let mut keys = Vec::new();
    while let Some((one, rest)) = text.split_at_checked(6 * DIGITS) {
        let Some(key) = record(one) else { break };
        keys.push(key);
        text = rest;
    }
    keys
}

/// Pool, key, value, milliseconds.
fn record(text: &str) -> Option<PoolKey> {
    let (names, rest) = text.split_at_checked(2 * DIGITS)?;
    let (value, left) = rest.split_at_checked(3 * DIGITS)?;
    let (pool, key) = names.split_at_checked(DIGITS)?;
    Some(PoolKey {
        pool: u64::from_str_radix(pool, 16).ok()?,
        key: SharedKey {
            key: u64::from_str_radix(key, 16).ok()?,
            assignment: assignment(value)?,
            left: Duration::from_millis(left.parse().ok()?),
        },
    })
}

/// Version, then workers.
fn assignment(value: &str) -> Option<Assignment> {
    let (version, workers) = value.split_at_checked(DIGITS)?;
    let (first, second) = workers.split_at_checked(DIGITS)?;
    let worker = |digits| u64::from_str_radix(digits, 16).ok();
    Some(Assignment {
        workers: [worker(first)?, worker(second)?],
        version: version.parse().ok()?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_are_read_up_to_one_that_is_malformed() {
        let one = concat!(
            "0000000000000007",
            "0123456789abcdef",
            "0001767225600000",
            "fffffffffffffff0",
            "0000000000000000",
            "0000000000016200",
        );
        let read = records(&format!("{one}{one}"));
        assert_eq!(read.len(), 2);
        assert_eq!(
            read[0],
            PoolKey {
                pool: 7,
                key: SharedKey {
                    key: 0x0123_4567_89ab_cdef,
                    assignment: Assignment {
                        workers: [0xffff_ffff_ffff_fff0, 0],
                        version: 1_767_225_600_000,
                    },
                    left: Duration::from_millis(16_200),
                },
            }
        );
        for text in [
            "",
            "short",
            &one[1..],
            &format!("é{one}"),
            &one.replace('7', "g"),
        ] {
            assert_eq!(records(text), [], "{text}");
        }
        assert_eq!(records(&format!("{one}{}", &one[..50])).len(), 1);
    }
}
