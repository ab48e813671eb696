//! Which Redis or Valkey server is spoken to: always the same, or the one that sentinels name.

use std::sync::Arc;

use redis::io::tcp::TcpSettings;
use redis::sentinel::{SentinelClient, SentinelClientBuilder, SentinelServerType};
use redis::{Client, ConnectionAddr, ConnectionInfo, RedisError, TlsMode};
use tokio::sync::Mutex;

use crate::config::{HasTls, Login, Sentinels, SharedStateUrl};

/// The server, as it is found for each connection.
#[derive(Clone)]
pub(super) enum Server {
    Fixed(Box<Client>),
    /// Asked anew for every connection: another server may be the master by then.
    Elected(Arc<Mutex<SentinelClient>>),
}

impl std::fmt::Debug for Server {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Fixed(_) => "Fixed",
            Self::Elected(_) => "Elected",
        })
    }
}

/// What a URL says of it.
pub(super) struct Found {
    pub(super) server: Server,
    /// Without credentials.
    pub(super) address: String,
    pub(super) database: i64,
}

impl Found {
    pub(super) fn new(url: SharedStateUrl) -> Result<Self, RedisError> {
        // Small messages must not wait for the answer to the one before.
        let tcp = TcpSettings::default().set_nodelay(true);
        match url {
            SharedStateUrl::Server(info) => {
                let info: ConnectionInfo = info.set_tcp_settings(tcp);
                Ok(Self {
                    address: info.addr().to_string(),
                    database: info.redis_settings().db(),
                    server: Server::Fixed(Box::new(Client::open(info)?)),
                })
            }
            SharedStateUrl::Sentinels(sentinels) => Ok(Self {
                address: sentinels.to_string(),
                database: sentinels.database,
                server: Server::Elected(Arc::new(Mutex::new(elected(&sentinels, tcp)?))),
            }),
        }
    }
}

impl Server {
    /// For new connections.
    pub(super) async fn client(&self) -> Result<Client, RedisError> {
        match self {
            Self::Fixed(client) => Ok(Client::clone(client)),
            Self::Elected(sentinels) => sentinels.lock().await.async_get_client().await,
        }
    }
}

fn elected(sentinels: &Sentinels, tcp: TcpSettings) -> Result<SentinelClient, RedisError> {
    let tls = sentinels.has_tls == HasTls::Yes;
    let addresses = sentinels.addresses.iter().cloned();
    let addresses = addresses.map(|(host, port)| {
        if tls {
            ConnectionAddr::TcpTls {
                host,
                port,
                insecure: false,
                tls_params: None,
            }
        } else {
            ConnectionAddr::Tcp(host, port)
        }
    });
    let kind = SentinelServerType::Master;
    let mut builder = SentinelClientBuilder::new(addresses, &sentinels.service, kind)?
        .set_client_to_redis_db(sentinels.database)
        .set_client_to_redis_tcp_settings(tcp);
    if tls {
        builder = builder
            .set_client_to_redis_tls_mode(TlsMode::Secure)
            .set_client_to_sentinel_tls_mode(TlsMode::Secure);
    }
    let Login { user, password } = &sentinels.login;
    if let Some(user) = user {
        builder = builder.set_client_to_redis_username(user);
    }
    if let Some(password) = password {
        builder = builder.set_client_to_redis_password(password);
    }
    let Login { user, password } = &sentinels.sentinel_login;
    if let Some(user) = user {
        builder = builder.set_client_to_sentinel_username(user);
    }
    if let Some(password) = password {
        builder = builder.set_client_to_sentinel_password(password);
    }
    builder.build()
}
