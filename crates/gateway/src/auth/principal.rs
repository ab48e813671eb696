//! Where a request comes from, as far as its credentials show.

use std::collections::BTreeSet;
use std::sync::Arc;

use http::Method;
use routing::FairShare;

use super::access::Access;
use super::client_keys::ClientKey;
use super::key_limits::{KeyShare, TokenShare};
use crate::config::Role;
use crate::error::Error;

/// Where a request comes from.
#[derive(Clone, Debug)]
pub(crate) enum Principal {
    /// No key was needed.
    Anonymous,
    /// The gateway's key was shown.
    ApiKey,
    /// A key of the file of keys was shown.
    Client(Arc<ClientKey>),
    /// A credential of the control plane was shown.
    Operator(Arc<Operator>),
}

/// A user of the control plane.
#[derive(Debug)]
pub(crate) struct Operator {
    /// The id of a key, or the subject of a token.
    pub(super) id: String,
    /// Whose key it is.
    pub(super) name: String,
    pub(super) role: Role,
    pub(super) method: AuthMethod,
}

/// How a request showed where it comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum AuthMethod {
    ApiKey,
    Jwt,
    None,
}

impl AuthMethod {
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::ApiKey => "api_key",
            Self::Jwt => "jwt",
            Self::None => "none",
        }
    }
}

impl Principal {
    /// Its name in log lines.
    pub(crate) fn as_str(&self) -> &str {
        match self {
            Self::Anonymous => "anonymous",
            Self::ApiKey => "api_key",
            Self::Client(key) => &key.name,
            Self::Operator(operator) => &operator.id,
        }
    }

    /// The name that goes with the id of a key, where there is one.
    pub(super) fn owner(&self) -> &str {
        match self {
            Self::Operator(operator) => &operator.name,
            _ => "",
        }
    }

    pub(super) fn method(&self) -> AuthMethod {
        match self {
            Self::Anonymous => AuthMethod::None,
            Self::ApiKey | Self::Client(_) => AuthMethod::ApiKey,
            Self::Operator(operator) => operator.method,
        }
    }

    /// Lets a request for workers in under the limits of its key, if it has any.
    ///
    /// # Errors
    /// [`Error::KeyLimit`].
    pub(crate) fn enter(&self) -> Result<Option<KeyShare>, Error> {
        match self {
            Self::Client(key) => key.enter(),
            _ => Ok(None),
        }
    }

    /// Takes so many tokens of its key's limit, if it has one.
    ///
    /// # Errors
    /// [`Error::KeyLimit`].
    pub(crate) fn take_tokens(&self, tokens: u64) -> Result<Option<TokenShare>, Error> {
        match self {
            Self::Client(key) => key.take_tokens(tokens),
            _ => Ok(None),
        }
    }

    /// The models and adapters that it may use; `None` for all.
    pub(crate) fn models(&self) -> Option<&BTreeSet<String>> {
        match self {
            Self::Client(key) => key.models.as_ref(),
            _ => None,
        }
    }

    /// What its requests may take where they wait; those without a key of the file share one.
    pub(crate) fn fair_share(&self) -> FairShare {
        match self {
            Self::Client(key) => key.share,
            _ => FairShare::default(),
        }
    }

    /// Counts a request that is refused because of `limit` of its key.
    pub(crate) fn count_refusal(&self, limit: &str) {
        if let Self::Client(key) = self {
            key.count_refusal(limit);
        }
    }

    /// Whether it may make a request of the control plane, which is open to it.
    ///
    /// # Errors
    /// [`Error::AdminOnly`].
    pub(crate) fn check_role(&self, access: Access, method: &Method) -> Result<(), Error> {
        match self.role() {
            Role::Admin => Ok(()),
            Role::User if access.only_shows(method) => Ok(()),
            Role::User => Err(Error::AdminOnly),
        }
    }

    /// What it may do on the control plane.
    pub(crate) fn role(&self) -> Role {
        match self {
            Self::Anonymous | Self::ApiKey => Role::Admin,
            Self::Client(_) => Role::User,
            Self::Operator(operator) => operator.role,
        }
    }
}
