//! An issuer of tokens on this machine, with keys of its own.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{SystemTime, UNIX_EPOCH};

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use gateway::Options;
use ring::rand::SystemRandom;
use ring::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair};
use rustls::{ServerConfig, ServerConnection, StreamOwned};
use serde_json::{Value, json};

use super::support::with_control_keys;
use crate::support::options;

pub(super) const AUDIENCE: &str = "gateway";

/// A private key, made for one test.
pub(super) struct Signer {
    id: &'static str,
    pair: EcdsaKeyPair,
}

impl Signer {
    pub(super) fn new(id: &'static str) -> Self {
        let (kind, random) = (&ECDSA_P256_SHA256_FIXED_SIGNING, SystemRandom::new());
        let document = EcdsaKeyPair::generate_pkcs8(kind, &random).unwrap();
        let pair = EcdsaKeyPair::from_pkcs8(kind, document.as_ref(), &random).unwrap();
        Self { id, pair }
    }

    /// Its public key, as issuers show it.
    pub(super) fn public(&self) -> Value {
        let (x, y) = self.pair.public_key().as_ref()[1..].split_at(32);
        let text = |bytes| URL_SAFE_NO_PAD.encode(bytes);
        json!({"kty": "EC", "crv": "P-256", "kid": self.id, "use": "sig", "x": text(x), "y": text(y)})
    }

    pub(super) fn sign(&self, claims: &Value) -> String {
        self.sign_as(&json!({"alg": "ES256", "kid": self.id}), claims)
    }

    pub(super) fn sign_as(&self, header: &Value, claims: &Value) -> String {
        let part = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
        let text = format!("{}.{}", part(header), part(claims));
        let signature = self.pair.sign(&SystemRandom::new(), text.as_bytes());
        format!("{text}.{}", URL_SAFE_NO_PAD.encode(signature.unwrap()))
    }
}

pub(super) fn now() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.unwrap().as_secs()
}

#[derive(Default)]
struct State {
    url: Mutex<String>,
    keys: Mutex<Vec<Value>>,
    fetches: AtomicUsize,
}

/// The issuer; it answers for as long as the test runs.
pub(super) struct TestIssuer(Arc<State>);

impl TestIssuer {
    pub(super) fn start(keys: &[&Signer]) -> Self {
        Self::listening("http", keys, State::serve)
    }

    /// The same over TLS, at `https://localhost`.
    pub(super) fn over_tls(keys: &[&Signer], config: ServerConfig) -> Self {
        let config = Arc::new(config);
        Self::listening("https", keys, move |state, stream| {
            let connection = ServerConnection::new(Arc::clone(&config)).unwrap();
            state.serve(StreamOwned::new(connection, stream));
        })
    }

    fn listening(
        scheme: &str,
        keys: &[&Signer],
        serve: impl Fn(&State, TcpStream) + Clone + Send + 'static,
    ) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let state = Arc::new(State::default());
        let port = listener.local_addr().unwrap().port();
        let host = if scheme == "https" {
            "localhost"
        } else {
            "127.0.0.1"
        };
        *state.url.lock().unwrap() = format!("{scheme}://{host}:{port}/realm");
        let issuer = Self(Arc::clone(&state));
        issuer.show(keys);
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (state, serve) = (Arc::clone(&state), serve.clone());
                thread::spawn(move || serve(&state, stream));
            }
        });
        issuer
    }

    pub(super) fn url(&self) -> String {
        self.0.url.lock().unwrap().clone()
    }

    /// Shows these keys from now on.
    pub(super) fn show(&self, keys: &[&Signer]) {
        *self.0.keys.lock().unwrap() = keys.iter().map(|key| key.public()).collect();
    }

    /// How often its keys have been fetched.
    pub(super) fn fetches(&self) -> usize {
        self.0.fetches.load(Relaxed)
    }

    /// The claims of a good token, with others besides.
    pub(super) fn claims(&self, more: &Value) -> Value {
        let mut claims =
            json!({"iss": self.url(), "aud": AUDIENCE, "sub": "alice", "exp": now() + 600});
        let more = more.as_object().unwrap().clone();
        claims.as_object_mut().unwrap().extend(more);
        claims
    }

    /// Options of a gateway that takes its tokens.
    pub(super) fn options(&self) -> Options {
        let jwt = json!({"issuer": self.url(), "audience": AUDIENCE, "jwks_uri": null,
            "role_mapping": {}, "role_claim": "roles"});
        let auth = json!({"jwt": jwt, "api_keys": [], "audit_enabled": false});
        Options {
            control_plane_auth: serde_json::from_value(auth).unwrap(),
            ..options(&[])
        }
    }

    /// The same with keys for the control plane.
    pub(super) fn options_with_keys(&self) -> Options {
        let (mut options, keys) = (self.options(), with_control_keys());
        let auth = options.control_plane_auth.as_mut().unwrap();
        auth.api_keys = keys.control_plane_auth.unwrap().api_keys;
        options
    }
}

impl State {
    fn serve(&self, stream: impl Read + Write) {
        let mut lines = BufReader::new(stream);
        let mut line = String::new();
        while lines.read_line(&mut line).is_ok_and(|read| read > 0) {
            let path = line.split(' ').nth(1).unwrap_or_default().to_owned();
            while line.trim_end() != "" {
                line.clear();
                lines.read_line(&mut line).unwrap();
            }
            let url = self.url.lock().unwrap().clone();
            let body = match path.as_str() {
                "/realm/.well-known/openid-configuration" => {
                    json!({"issuer": url, "jwks_uri": format!("{url}/keys?all=1"), "token_endpoint": url})
                }
                "/realm/keys?all=1" => {
                    self.fetches.fetch_add(1, Relaxed);
                    json!({"keys": *self.keys.lock().unwrap()})
                }
                _ => Value::Null,
            };
            let (status, body) = (if body.is_null() { 404 } else { 200 }, body.to_string());
            let head = format!(
                "HTTP/1.1 {status} X\r\ncontent-length: {}\r\n\r\n",
                body.len()
            );
            lines
                .get_mut()
                .write_all((head + &body).as_bytes())
                .unwrap();
            line.clear();
        }
    }
}
