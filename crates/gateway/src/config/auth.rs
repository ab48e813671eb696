//! Credentials, and the record of what is done with them.

use std::collections::HashSet;
use std::path::PathBuf;

use http::HeaderValue;

use super::error::ConfigError;
use super::issuer_url::IssuerUrl;
use super::objects::{ApiKeyEntry, ControlPlaneAuth, JwtConfig};
use super::options::Options;
use super::secret::Secret;
use super::worker_url::WorkerUrl;

/// Which credentials open what.
#[derive(Clone, Debug)]
pub(crate) struct AuthSection {
    pub(crate) api_key: Option<Secret>,
    /// The file of clients' keys.
    pub(crate) client_keys: Option<PathBuf>,
    /// Credentials of the control plane, where it has some of its own.
    pub(crate) control_plane: Option<ControlPlaneAuth>,
}

/// Where the audit log goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum AuditTo {
    /// To the standard error.
    Stderr,
    /// To the end of a file.
    File(PathBuf),
}

impl From<&Options> for AuthSection {
    fn from(options: &Options) -> Self {
        Self {
            api_key: options.api_key.clone(),
            client_keys: options.api_keys_file.as_ref().map(PathBuf::from),
            control_plane: options.control_plane_auth.clone(),
        }
    }
}

impl AuditTo {
    /// `None` where no calls are recorded.
    pub(crate) fn new(options: &Options) -> Option<Self> {
        let control_plane = options.control_plane_auth.as_ref();
        match &options.audit_log {
            Some(path) => Some(Self::File(path.into())),
            None => control_plane
                .is_some_and(|auth| auth.audit_enabled)
                .then_some(Self::Stderr),
        }
    }
}

/// Checks the rules of credentials.
///
/// # Errors
/// The first rule that is broken; no message repeats a key.
pub(super) fn check_auth(options: &Options) -> Result<(), ConfigError> {
    if let Some(key) = &options.api_key {
        check_key("api_key", key)?;
    }
    let files = [
        ("audit_log", &options.audit_log),
        ("api_keys_file", &options.api_keys_file),
    ];
    for (field, path) in files {
        if path.as_ref().is_some_and(String::is_empty) {
            let why = "must be the path of a file";
            return Err(ConfigError::invalid(field, "\"\"", why));
        }
    }
    let Some(control_plane) = &options.control_plane_auth else {
        return Ok(());
    };
    check_control_plane_keys(&control_plane.api_keys)?;
    match &control_plane.jwt {
        Some(jwt) => check_jwt(jwt).and_then(|()| check_trust(options)),
        None if control_plane.api_keys.is_empty() => {
            // Without credentials, the control plane would be open.
            let why = "has neither keys nor an issuer of tokens";
            Err(ConfigError::invalid("control_plane_auth", "(empty)", why))
        }
        None => Ok(()),
    }
}

fn check_jwt(jwt: &JwtConfig) -> Result<(), ConfigError> {
    let urls = [
        ("jwt_issuer", Some(&jwt.issuer)),
        ("jwt_jwks_uri", jwt.jwks_uri.as_ref()),
    ];
    for (field, url) in urls {
        if let Some(url) = url
            && let Err(why) = IssuerUrl::parse(url)
        {
            return Err(ConfigError::invalid(field, WorkerUrl::quote(url), why));
        }
    }
    if jwt.audience.is_empty() {
        let why = "must not be empty";
        return Err(ConfigError::invalid("jwt_audience", "\"\"", why));
    }
    Ok(())
}

/// The issuer is trusted as workers are, so what loosens that trust would open the control plane.
fn check_trust(options: &Options) -> Result<(), ConfigError> {
    let why = "does not go with jwt_issuer, whose certificate must be checked by its own name";
    if options.tls_skip_verify {
        return Err(ConfigError::invalid("tls_skip_verify", true, why));
    }
    match &options.worker_tls_name {
        Some(name) => Err(ConfigError::invalid("worker_tls_name", name, why)),
        None => Ok(()),
    }
}

fn check_control_plane_keys(entries: &[ApiKeyEntry]) -> Result<(), ConfigError> {
    const FIELD: &str = "control_plane_api_keys";
    let (mut ids, mut keys) = (HashSet::new(), HashSet::new());
    for entry in entries {
        let id = entry.id.escape_default();
        if entry.id.is_empty() {
            return Err(ConfigError::invalid(FIELD, "(masked)", "has an empty id"));
        }
        if !ids.insert(&entry.id) {
            return Err(ConfigError::invalid(FIELD, id, "is the id of two keys"));
        }
        check_key(FIELD, &entry.key)?;
        if !keys.insert(entry.key.expose()) {
            return Err(ConfigError::invalid(FIELD, id, "has the key of another id"));
        }
    }
    Ok(())
}

fn check_key(field: &'static str, key: &Secret) -> Result<(), ConfigError> {
    if is_sendable(key) {
        return Ok(());
    }
    let why = "must be non-empty and fit into a header";
    Err(ConfigError::invalid(field, "(masked)", why))
}

/// Whether a client can show a key: it fits into a header, whose value begins and ends with no
/// space.
pub(crate) fn is_sendable(key: &Secret) -> bool {
    let key = key.expose();
    !key.is_empty() && key.trim() == key && HeaderValue::try_from(key).is_ok()
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn error(control_plane_auth: &Value) -> String {
        let options = json!({"control_plane_auth": control_plane_auth});
        let options: Options = serde_json::from_value(options).unwrap();
        check_auth(&options).unwrap_err().to_string()
    }

    fn key(id: &str, key: &str) -> Value {
        json!({"id": id, "name": "n", "key": key})
    }

    #[test]
    fn broken_keys_are_refused_and_none_is_repeated() {
        for (keys, why) in [
            (json!([key("", "s3cret")]), "empty id"),
            (json!([key("a", "")]), "non-empty"),
            (json!([key("a", "s3cret\n")]), "header"),
            (json!([key("a", "s3cret ")]), "header"),
            (
                json!([key("a", "s3cret1"), key("a", "s3cret2")]),
                "a - is the id of two",
            ),
            (
                json!([key("a", "s3cret"), key("b", "s3cret")]),
                "b - has the key of another",
            ),
            (json!([]), "neither keys nor"),
        ] {
            let auth = json!({"jwt": null, "api_keys": keys, "audit_enabled": false});
            let error = error(&auth);
            assert!(error.contains(why) && !error.contains("s3cret"), "{error}");
        }
    }

    #[test]
    fn issuer_must_be_reached_over_tls_or_within_the_machine() {
        for (issuer, jwks_uri, audience, named) in [
            ("http://issuer.example", None, "a", "jwt_issuer"),
            ("https://u:s3cret@issuer.example", None, "a", "jwt_issuer"),
            ("", None, "a", "jwt_issuer"),
            (
                "http://localhost:1",
                Some("http://10.0.0.1/keys"),
                "a",
                "jwt_jwks_uri",
            ),
            (
                "http://127.0.0.1:1/realm",
                Some("ftp://x"),
                "a",
                "jwt_jwks_uri",
            ),
            ("http://[::1]:1", None, "", "jwt_audience"),
        ] {
            let jwt = json!({"issuer": issuer, "audience": audience, "jwks_uri": jwks_uri,
                "role_mapping": {}, "role_claim": "roles"});
            let auth = json!({"jwt": jwt, "api_keys": [], "audit_enabled": false});
            let error = error(&auth);
            assert!(
                error.contains(named) && !error.contains("s3cret"),
                "{error}"
            );
        }
    }

    #[test]
    fn trust_in_workers_is_not_loosened_beside_an_issuer() {
        let jwt = json!({"issuer": "https://issuer.example", "audience": "a", "jwks_uri": null,
            "role_mapping": {}, "role_claim": "roles"});
        let auth = json!({"jwt": jwt, "api_keys": [], "audit_enabled": false});
        let options = |more: Value| {
            let mut options = json!({"control_plane_auth": auth});
            let more = more.as_object().unwrap().clone();
            options.as_object_mut().unwrap().extend(more);
            check_auth(&serde_json::from_value(options).unwrap())
        };
        options(json!({})).unwrap();
        for (more, named) in [
            (json!({"tls_skip_verify": true}), "tls_skip_verify"),
            (json!({"worker_tls_name": "w"}), "worker_tls_name"),
        ] {
            let error = options(more).unwrap_err().to_string();
            assert!(error.contains(named), "{error}");
        }
    }

    #[test]
    fn calls_are_recorded_where_a_switch_or_a_file_says_so() {
        let to = |options: Value| AuditTo::new(&serde_json::from_value(options).unwrap());
        let keys = |audit: bool| json!({"control_plane_auth": {"jwt": null, "api_keys": [key("a", "k")], "audit_enabled": audit}});
        assert_eq!(to(json!({})), None);
        assert_eq!(to(keys(false)), None);
        assert_eq!(to(keys(true)), Some(AuditTo::Stderr));
        let file = Some(AuditTo::File("/a".into()));
        assert_eq!(to(json!({"audit_log": "/a"})), file);
    }
}
