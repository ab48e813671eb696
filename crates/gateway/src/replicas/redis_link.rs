//! Redis or Valkey: pub/sub over two connections, one to publish and one to listen.

use std::time::Duration;

use futures_util::StreamExt;
use redis::aio::{MultiplexedConnection, PubSubStream};
use redis::{AsyncConnectionConfig, RedisError, ToRedisArgs};
use tokio::time::timeout;

use super::link::{Connector, Link, LinkError};
use super::redis_server::{Found, Server};
use crate::config::{Secret, SharedStateUrl};

/// Time for both connections to be made.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// Time for an answer. A server that is slower is left, and another connection is tried.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(1);
/// Time for the answer of a script. A server that is slower counts as away.
pub(super) const SCRIPT_TIMEOUT: Duration = Duration::from_millis(500);

/// Connects to the server of a URL.
#[derive(Clone, Debug)]
pub(crate) struct RedisConnector {
    server: Server,
    address: String,
    database: i64,
}

/// Both connections.
pub(crate) struct RedisLink {
    publisher: MultiplexedConnection,
    messages: PubSubStream,
}

impl RedisConnector {
    /// For the server of a URL.
    ///
    /// # Errors
    /// When it is not a URL of a server, or TLS cannot be set up.
    pub(crate) fn new(url: &Secret) -> Result<Self, LinkError> {
        let url = SharedStateUrl::parse(url.expose());
        let url = url.map_err(|why| LinkError(why.to_owned()))?;
        let Found {
            server,
            address,
            database,
        } = Found::new(url).map_err(|e| error(&e))?;
        Ok(Self {
            server,
            address,
            database,
        })
    }

    /// Host and port, or service and sentinels, without credentials.
    pub(crate) fn address(&self) -> &str {
        &self.address
    }

    /// A connection for commands.
    pub(super) async fn connection(&self) -> Result<MultiplexedConnection, RedisError> {
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(CONNECT_TIMEOUT))
            .set_response_timeout(Some(ANSWER_TIMEOUT));
        let client = self.server.client().await?;
        client
            .get_multiplexed_async_connection_with_config(&config)
            .await
    }

    /// What distinguishes the fleets that use the same server.
    pub(super) fn group(&self) -> String {
        format!("smg:{}", self.database)
    }

    async fn listen(&self, channels: [String; 2]) -> Result<RedisLink, RedisError> {
        let publisher = self.connection().await?;
        let messages = self.subscribe(&channels).await?;
        Ok(RedisLink {
            publisher,
            messages,
        })
    }

    /// What is published on these channels from now on.
    pub(super) async fn subscribe(
        &self,
        channels: &[impl ToRedisArgs],
    ) -> Result<PubSubStream, RedisError> {
        let client = self.server.client().await?;
        let mut listener = client.get_async_pubsub().await?;
        listener.subscribe(channels).await?;
        Ok(listener.into_on_message())
    }
}

impl Connector for RedisConnector {
    type Link = RedisLink;

    async fn connect(&self, channels: [String; 2]) -> Result<RedisLink, LinkError> {
        in_time(CONNECT_TIMEOUT, self.listen(channels)).await
    }

    /// Channels do not depend on the database that is selected, so its number is in their names.
    fn group(&self) -> String {
        self.group()
    }
}

impl Link for RedisLink {
    async fn publish(&mut self, channel: &str, message: Vec<u8>) -> Result<(), LinkError> {
        let mut command = redis::cmd("PUBLISH");
        command.arg(channel).arg(message);
        let sent = command.query_async::<()>(&mut self.publisher);
        in_time(ANSWER_TIMEOUT, sent).await
    }

    async fn next(&mut self) -> Option<Vec<u8>> {
        let message = self.messages.next().await?;
        Some(message.get_payload_bytes().to_vec())
    }
}

/// Loads scripts; returns what the server calls them.
pub(super) async fn load_scripts<const COUNT: usize>(
    connection: &mut MultiplexedConnection,
    scripts: [&str; COUNT],
) -> redis::RedisResult<[String; COUNT]> {
    let mut names = scripts.map(str::to_owned);
    for name in &mut names {
        let mut load = redis::cmd("SCRIPT");
        load.arg("LOAD").arg(name.as_str());
        *name = load.query_async(connection).await?;
    }
    Ok(names)
}

/// What the server answers within this time.
pub(super) async fn in_time<T>(
    time: Duration,
    answer: impl Future<Output = Result<T, RedisError>>,
) -> Result<T, LinkError> {
    match timeout(time, answer).await {
        Ok(answer) => answer.map_err(|e| error(&e)),
        Err(_) => Err(LinkError("no answer in time".to_owned())),
    }
}

/// Messages of the library do not repeat the URL; neither may this.
fn error(error: &RedisError) -> LinkError {
    LinkError(error.to_string())
}
