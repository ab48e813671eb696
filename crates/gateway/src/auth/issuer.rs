//! An issuer of tokens (`OpenID` Connect): its keys, as they are now, and the tokens it signed.

use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use bytes::Bytes;
use http::{Method, StatusCode};
use jsonwebtoken::errors::ErrorKind;
use jsonwebtoken::{Validation, decode, decode_header};
use serde::Deserialize;
use thiserror::Error as ThisError;
use tokio::sync::Mutex;
use tokio::time::{Instant, sleep, timeout};
use tracing::{error, info};

use super::claims::{Claims, RoleRules};
use super::key_set::{KeySet, VerifyingKey};
use super::principal::{AuthMethod, Operator};
use super::ring_provider;
use crate::config::{IssuerUrl, JwtConfig};
use crate::upstream::{ControlClient, ControlRequest, Repeat};

/// Longest time for an answer of the issuer.
const ANSWER_LIMIT: Duration = Duration::from_secs(10);
/// Largest answer, bytes.
const MAX_ANSWER: usize = 1024 * 1024;
/// Age at which keys are fetched again.
const MAX_AGE: Duration = Duration::from_hours(1);
/// Pause before that is tried again.
const RETRY_PAUSE: Duration = Duration::from_mins(1);
/// Shortest pause between fetches that tokens with unknown keys cause: anyone can send those.
const MIN_PAUSE: Duration = Duration::from_secs(30);
/// How far the clocks of issuer and gateway may differ, seconds.
const LEEWAY_SECS: u64 = 30;

/// Why an issuer cannot be used.
#[derive(Debug, ThisError)]
pub(crate) enum IssuerError {
    #[error("{url}: {why}")]
    Answer { url: String, why: String },
    #[error("the issuer calls itself {0:?}, which is not what jwt_issuer says")]
    OtherIssuer(String),
    #[error("the issuer's jwks_uri {0}")]
    KeysUrl(String),
}

/// The issuer, and its keys in force.
#[derive(Debug)]
pub(crate) struct Issuer {
    client: ControlClient,
    /// What tokens call it.
    name: String,
    audience: String,
    roles: RoleRules,
    keys_at: IssuerUrl,
    keys: ArcSwap<KeySet>,
    /// When a token last caused a fetch; held during one, so there is one at a time.
    asked: Mutex<Option<Instant>>,
}

/// What discovery says (`OpenID` Connect Discovery 1.0, §4.2).
#[derive(Deserialize)]
struct Discovered {
    issuer: String,
    jwks_uri: String,
}

impl Issuer {
    /// Finds the issuer's keys and fetches them.
    ///
    /// # Errors
    /// The issuer does not answer, or not as an issuer does.
    pub(crate) async fn connect(
        options: &JwtConfig,
        client: ControlClient,
    ) -> Result<Arc<Self>, IssuerError> {
        ring_provider::install();
        let keys_at = match &options.jwks_uri {
            Some(uri) => IssuerUrl::parse(uri).map_err(|why| IssuerError::KeysUrl(why.into()))?,
            None => discover(&client, &options.issuer).await?,
        };
        let keys = fetch_keys(&client, &keys_at).await?;
        if keys.len() == 0 {
            return Err(IssuerError::Answer {
                url: keys_at.to_string(),
                why: "it lists no keys".to_owned(),
            });
        }
        info!(issuer = options.issuer, url = %keys_at, keys = keys.len(), "keys of the issuer of tokens are known");
        Ok(Arc::new(Self {
            client,
            name: options.issuer.clone(),
            audience: options.audience.clone(),
            roles: RoleRules::new(options),
            keys_at,
            keys: ArcSwap::from_pointee(keys),
            asked: Mutex::default(),
        }))
    }

    /// The user of a token.
    ///
    /// # Errors
    /// Why the token does not count.
    pub(super) async fn verify(&self, token: &[u8]) -> Result<Operator, &'static str> {
        let header = decode_header(token).map_err(|_| "not a token")?;
        if header.crit.is_some() {
            // RFC 7515 §4.1.11: no extension is understood here.
            return Err("the token has extensions that must be understood (crit)");
        }
        let id = header.kid.ok_or("the token does not name its key")?;
        if self.keys.load().find(&id).is_none() {
            self.look_for(&id).await;
        }
        let keys = self.keys.load();
        let key = keys
            .find(&id)
            .ok_or("the token has a key that is not the issuer's")?;
        self.check(token, key)
    }

    fn check(&self, token: &[u8], key: &VerifyingKey) -> Result<Operator, &'static str> {
        let mut rules = Validation::new(key.algorithms[0]);
        rules.algorithms.clone_from(&key.algorithms);
        rules.leeway = LEEWAY_SECS;
        rules.validate_nbf = true;
        rules.set_required_spec_claims(&["exp", "iss", "aud"]);
        rules.set_issuer(&[&self.name]);
        rules.set_audience(&[&self.audience]);
        let decoded =
            decode::<Claims>(token, &key.key, &rules).map_err(|error| match error.kind() {
                ErrorKind::ExpiredSignature => "the token has expired",
                ErrorKind::ImmatureSignature => "the token is not valid yet",
                ErrorKind::InvalidIssuer => "the token is of another issuer",
                ErrorKind::InvalidAudience => "the token is for another audience",
                ErrorKind::InvalidSignature => "the token's signature is wrong",
                ErrorKind::InvalidAlgorithm => "the token's algorithm is not that of its key",
                ErrorKind::MissingRequiredClaim(_) => "the token lacks exp, iss or aud",
                _ => "the token is malformed",
            })?;
        Ok(Operator {
            id: decoded.claims.name().to_owned(),
            name: String::new(),
            role: self.roles.role(&decoded.claims),
            method: AuthMethod::Jwt,
        })
    }

    /// Fetches the keys for a key that is not known, unless that was just done.
    async fn look_for(&self, id: &str) {
        let mut asked = self.asked.lock().await;
        let known = self.keys.load().find(id).is_some();
        if known || asked.is_some_and(|asked| asked.elapsed() < MIN_PAUSE) {
            return;
        }
        *asked = Some(Instant::now());
        self.refresh().await;
    }

    /// Fetches the keys; those in force stay when that fails.
    async fn refresh(&self) -> bool {
        let url = &self.keys_at;
        match fetch_keys(&self.client, url).await {
            Ok(keys) => {
                self.keys.store(Arc::new(keys));
                true
            }
            Err(why) => {
                error!(%why, "keys of the issuer of tokens cannot be fetched, the old ones stay in force");
                false
            }
        }
    }

    /// Keeps the keys as the issuer has them; runs until dropped.
    pub(crate) async fn watch(self: Arc<Self>) {
        let mut pause = MAX_AGE;
        loop {
            sleep(pause).await;
            pause = if self.refresh().await {
                MAX_AGE
            } else {
                RETRY_PAUSE
            };
        }
    }
}

async fn discover(client: &ControlClient, issuer: &str) -> Result<IssuerUrl, IssuerError> {
    let url = format!(
        "{}/.well-known/openid-configuration",
        issuer.trim_end_matches('/')
    );
    let failed = |why: &str| IssuerError::Answer {
        url: url.clone(),
        why: why.to_owned(),
    };
    let place = IssuerUrl::parse(&url).map_err(failed)?;
    let text = fetch(client, &place).await?;
    let found: Discovered = serde_json::from_slice(&text)
        .map_err(|_| failed("is no JSON object with issuer and jwks_uri"))?;
    if found.issuer != issuer {
        return Err(IssuerError::OtherIssuer(found.issuer));
    }
    IssuerUrl::parse(&found.jwks_uri).map_err(|why| IssuerError::KeysUrl(why.into()))
}

async fn fetch_keys(client: &ControlClient, url: &IssuerUrl) -> Result<KeySet, IssuerError> {
    let text = fetch(client, url).await?;
    KeySet::parse(&text).map_err(|why| IssuerError::Answer {
        url: url.to_string(),
        why: why.to_owned(),
    })
}

async fn fetch(client: &ControlClient, url: &IssuerUrl) -> Result<Bytes, IssuerError> {
    let failed = |why: String| IssuerError::Answer {
        url: url.to_string(),
        why,
    };
    let call = client.send(ControlRequest {
        method: Method::GET,
        url: url.base(),
        path: url.path(),
        bearer: None,
        line: None,
        body: Bytes::new(),
        repeat: Repeat::Once,
    });
    let answer = timeout(ANSWER_LIMIT, call)
        .await
        .map_err(|_| failed(format!("no answer within {} s", ANSWER_LIMIT.as_secs())))?
        .map_err(|error| failed(error.to_string()))?;
    if answer.status != StatusCode::OK {
        return Err(failed(format!("answered {}", answer.status)));
    }
    if answer.body.len() > MAX_ANSWER {
        return Err(failed(format!("answered more than {MAX_ANSWER} bytes")));
    }
    Ok(answer.body)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{ConnectionSection, Options};
    use crate::upstream::Resolver;
    use crate::via::Via;
    use tokio::runtime::Handle;

    /// Made by python-cryptography: RS256, its private key thrown away.
    const KEYS: &str = include_str!("testdata/rs256.jwks.json");
    const TOKEN: &str = include_str!("testdata/rs256.jwt");

    fn issuer(audience: &str) -> Issuer {
        ring_provider::install();
        let options: JwtConfig = serde_json::from_value(serde_json::json!({
            "issuer": "https://issuer.example", "audience": audience, "jwks_uri": null,
            "role_mapping": {}, "role_claim": "roles",
        }))
        .unwrap();
        let client = ControlClient::new(
            &ConnectionSection::from(&Options::default()),
            Resolver::default(),
            Arc::default(),
            Handle::current(),
            &Via::new(),
        );
        Issuer {
            client: client.unwrap(),
            roles: RoleRules::new(&options),
            name: options.issuer,
            audience: options.audience,
            keys_at: IssuerUrl::parse("http://127.0.0.1:1/keys").unwrap(),
            keys: ArcSwap::from_pointee(KeySet::parse(KEYS.as_bytes()).unwrap()),
            asked: Mutex::new(Some(Instant::now())),
        }
    }

    #[tokio::test]
    async fn token_of_another_implementation_is_verified_and_no_changed_one() {
        let token = TOKEN.trim_end();
        let found = issuer("gateway").verify(token.as_bytes()).await.unwrap();
        assert_eq!(
            (found.id.as_str(), found.role, found.method),
            ("alice", crate::config::Role::Admin, AuthMethod::Jwt)
        );
        let other = issuer("other").verify(token.as_bytes()).await;
        assert_eq!(other.unwrap_err(), "the token is for another audience");
        let (head, signature) = token.rsplit_once('.').unwrap();
        let flipped = if signature.starts_with('A') { 'B' } else { 'A' };
        let forged = format!("{head}.{flipped}{}", &signature[1..]);
        let forged = issuer("gateway").verify(forged.as_bytes()).await;
        assert_eq!(forged.unwrap_err(), "the token's signature is wrong");
        // {"alg":"RS256","kid":"a","crit":["b64"],"b64":false}
        let extended =
            "eyJhbGciOiJSUzI1NiIsImtpZCI6ImEiLCJjcml0IjpbImI2NCJdLCJiNjQiOmZhbHNlfQ.e30.AAAA";
        let extended = issuer("gateway").verify(extended.as_bytes()).await;
        assert!(extended.unwrap_err().contains("crit"));
        for text in ["", "a", "a.b", "a.b.c", "..", &format!("{token}.x")] {
            let refused = issuer("gateway").verify(text.as_bytes()).await;
            assert!(refused.is_err(), "{text}");
        }
    }
}
