//! Where the shared state is: a server, or the one that sentinels name.

use percent_encoding::percent_decode_str;
use redis::{ConnectionInfo, IntoConnectionInfo};

/// Port of a sentinel where the URL names none.
const SENTINEL_PORT: u16 = 26379;

/// What a URL of the shared state names.
#[derive(Clone, Debug)]
pub(crate) enum SharedStateUrl {
    /// One server, wherever it is.
    Server(ConnectionInfo),
    /// The server that is the master of a service now.
    Sentinels(Sentinels),
}

/// Sentinels, and what they are asked for.
#[derive(Clone)]
pub(crate) struct Sentinels {
    /// Hosts and ports.
    pub(crate) addresses: Vec<(String, u16)>,
    pub(crate) service: String,
    pub(crate) database: i64,
    pub(crate) has_tls: HasTls,
    /// For the servers.
    pub(crate) login: Login,
    /// For the sentinels.
    pub(crate) sentinel_login: Login,
}

/// Whether connections are encrypted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum HasTls {
    Yes,
    No,
}

/// A user and a password, where there are any.
#[derive(Clone, Default, PartialEq, Eq)]
pub(crate) struct Login {
    pub(crate) user: Option<String>,
    pub(crate) password: Option<String>,
}

impl std::fmt::Debug for Sentinels {
    /// Without passwords.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.to_string())
    }
}

impl std::fmt::Display for Sentinels {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let addresses = self.addresses.iter();
        let addresses: Vec<_> = addresses
            .map(|(host, port)| format!("{host}:{port}"))
            .collect();
        write!(f, "{} of {}", self.service, addresses.join(", "))
    }
}

impl SharedStateUrl {
    /// Reads a URL.
    ///
    /// # Errors
    /// What it must be; the URL is not repeated.
    pub(crate) fn parse(url: &str) -> Result<Self, &'static str> {
        let (scheme, rest) = url.split_once("://").unwrap_or_default();
        match scheme {
            "redis+sentinel" => sentinels(rest, HasTls::No),
            "rediss+sentinel" => sentinels(rest, HasTls::Yes),
            "redis+cluster" | "rediss+cluster" => {
                Err("must not be a cluster, over whose nodes a round of limits \
                 would be spread: name one server, or redis+sentinel://host:26379/service")
            }
            _ => {
                let server = url.into_connection_info().map(Self::Server);
                server.map_err(|_| {
                    "must be a URL like redis://user:password@host:6379/0, or rediss:// for TLS, \
                     or redis+sentinel://user:password@host:26379,host:26379/service/0"
                })
            }
        }
    }
}

const SENTINELS: &str = "must name sentinels like redis+sentinel://user:password@host:26379,host:26379/service/0, \
     with ?sentinel_password= where they have one";

/// `USER:PASSWORD@HOST:PORT,HOST:PORT/SERVICE/DATABASE?sentinel_username=…&sentinel_password=…`
fn sentinels(rest: &str, has_tls: HasTls) -> Result<SharedStateUrl, &'static str> {
    let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
    let (authority, path) = rest.split_once('/').ok_or(SENTINELS)?;
    let (login, addresses) = match authority.rsplit_once('@') {
        Some((login, addresses)) => (read_login(login)?, addresses),
        None => (Login::default(), authority),
    };
    let addresses: Option<Vec<_>> = addresses.split(',').map(address).collect();
    let (service, database) = path.split_once('/').unwrap_or((path, "0"));
    let (service, database) = (decoded(service)?, database.parse());
    if service.is_empty() {
        return Err(SENTINELS);
    }
    Ok(SharedStateUrl::Sentinels(Sentinels {
        addresses: addresses.ok_or(SENTINELS)?,
        service,
        database: database.map_err(|_| SENTINELS)?,
        has_tls,
        login,
        sentinel_login: read_query(query)?,
    }))
}

fn address(text: &str) -> Option<(String, u16)> {
    let (host, port) = match text.rsplit_once(':') {
        // An IPv6 address is in brackets.
        Some((host, port)) if !port.ends_with(']') => (host, port.parse().ok()?),
        _ => (text, SENTINEL_PORT),
    };
    let bare = host
        .strip_prefix('[')
        .and_then(|host| host.strip_suffix(']'));
    let host = bare.unwrap_or(host);
    (!host.is_empty()).then(|| (host.to_owned(), port))
}

fn read_login(text: &str) -> Result<Login, &'static str> {
    let (user, password) = text.split_once(':').ok_or(SENTINELS)?;
    let some = |text: String| Some(text).filter(|text| !text.is_empty());
    Ok(Login {
        user: some(decoded(user)?),
        password: some(decoded(password)?),
    })
}

fn read_query(query: &str) -> Result<Login, &'static str> {
    let mut login = Login::default();
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        match pair.split_once('=') {
            Some(("sentinel_username", user)) => login.user = Some(decoded(user)?),
            Some(("sentinel_password", password)) => login.password = Some(decoded(password)?),
            _ => return Err(SENTINELS),
        }
    }
    Ok(login)
}

fn decoded(text: &str) -> Result<String, &'static str> {
    let text = percent_decode_str(text).decode_utf8();
    text.map(String::from).map_err(|_| SENTINELS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sentinels_are_read_with_and_without_passwords_and_ports() {
        let read = |url| match SharedStateUrl::parse(url) {
            Ok(SharedStateUrl::Sentinels(sentinels)) => sentinels,
            other => unreachable!("{other:?}"),
        };
        let all = read(
            "rediss+sentinel://me:p%40ss@one:26380,[fd00::2]:7,two/my%2Fservice/3?sentinel_password=s3c",
        );
        let addresses = [("one", 26380), ("fd00::2", 7), ("two", 26379)];
        let addresses = addresses.map(|(host, port)| (host.to_owned(), port));
        assert_eq!(all.addresses, addresses);
        assert_eq!(
            (&*all.service, all.database, all.has_tls),
            ("my/service", 3, HasTls::Yes)
        );
        let login = |user: Option<&str>, password: &str| Login {
            user: user.map(str::to_owned),
            password: Some(password.to_owned()),
        };
        assert!(all.login == login(Some("me"), "p@ss"));
        assert!(all.sentinel_login == login(None, "s3c"));
        assert!(!format!("{all:?}").contains("s3c") && !format!("{all:?}").contains("p@ss"));

        let few = read("redis+sentinel://host/service");
        assert_eq!((few.database, few.has_tls), (0, HasTls::No));
        assert!(few.login == Login::default());
        assert_eq!(few.to_string(), "service of host:26379");
    }

    #[test]
    fn what_is_no_server_and_no_sentinels_is_refused_with_what_to_do() {
        for url in [
            "redis+sentinel://host",
            "redis+sentinel://host/",
            "redis+sentinel:///service",
            "redis+sentinel://host:x/service",
            "redis+sentinel://host/service/x",
            "redis+sentinel://word@host/service",
            "redis+sentinel://host/service?password=x",
        ] {
            assert_eq!(SharedStateUrl::parse(url).err(), Some(SENTINELS), "{url}");
        }
        let cluster = SharedStateUrl::parse("redis+cluster://host:6379").unwrap_err();
        assert!(cluster.contains("cluster"), "{cluster}");
        assert!(SharedStateUrl::parse("http://host").is_err());
    }
}
