//! What a verified token says about its user.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::{Map, Value};

use crate::config::{JwtConfig, Role};

/// The default claim of roles; where it is left alone, those that other providers use are read,
/// too.
const USUAL_CLAIM: &str = "roles";
const OTHER_CLAIMS: [&str; 3] = ["role", "groups", "group"];
/// What names the user, the best first.
const NAMES: [&str; 3] = ["sub", "email", "preferred_username"];

/// The claims of a token.
#[derive(Debug, Deserialize)]
#[serde(transparent)]
pub(super) struct Claims(Map<String, Value>);

/// Where a token has the role, and what its words mean.
#[derive(Debug)]
pub(super) struct RoleRules {
    claim: String,
    mapping: BTreeMap<String, Role>,
}

impl RoleRules {
    pub(super) fn new(options: &JwtConfig) -> Self {
        Self {
            claim: options.role_claim.clone(),
            mapping: options.role_mapping.clone(),
        }
    }

    /// The role of a user: the highest that one of the words in the claim means, `user` where
    /// none means any.
    pub(super) fn role(&self, claims: &Claims) -> Role {
        let others = OTHER_CLAIMS.into_iter();
        let others = others.filter(|_| self.claim == USUAL_CLAIM);
        let mut names = std::iter::once(self.claim.as_str()).chain(others);
        let known = names.find_map(|name| {
            let roles = claims.words(name).filter_map(|word| self.meaning(word));
            roles.max_by_key(|role| *role == Role::Admin)
        });
        known.unwrap_or(Role::User)
    }

    /// What a word means: what the mapping says or, without one, the words of this gateway.
    fn meaning(&self, word: &str) -> Option<Role> {
        if !self.mapping.is_empty() {
            return self.mapping.get(word).copied();
        }
        match word {
            "admin" => Some(Role::Admin),
            "user" => Some(Role::User),
            _ => None,
        }
    }
}

impl Claims {
    /// The user's name.
    pub(super) fn name(&self) -> &str {
        let texts = NAMES.iter().filter_map(|name| self.0.get(*name)?.as_str());
        texts.into_iter().next().unwrap_or("unknown")
    }

    /// The words of a claim, which is one text or a list; `a.b` is also `b` within `a`.
    fn words(&self, claim: &str) -> impl Iterator<Item = &str> {
        let value = self.0.get(claim).or_else(|| self.nested(claim));
        let list = value.and_then(Value::as_array).into_iter().flatten();
        let one = value.filter(|value| value.is_string());
        one.into_iter().chain(list).filter_map(Value::as_str)
    }

    fn nested(&self, claim: &str) -> Option<&Value> {
        let (first, rest) = claim.split_once('.')?;
        let mut value = self.0.get(first)?;
        for part in rest.split('.') {
            value = value.as_object()?.get(part)?;
        }
        Some(value)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn role(claim: &str, mapping: &[(&str, Role)], claims: Value) -> Role {
        let mapping = mapping
            .iter()
            .map(|(word, role)| ((*word).to_owned(), *role));
        let rules = RoleRules {
            claim: claim.to_owned(),
            mapping: mapping.collect(),
        };
        rules.role(&serde_json::from_value(claims).unwrap())
    }

    #[test]
    fn role_is_the_highest_that_the_claim_means() {
        let mapped = [("ops", Role::Admin), ("staff", Role::User)];
        for (claim, mapping, claims, expected) in [
            ("roles", &[][..], json!({"roles": "admin"}), Role::Admin),
            (
                "roles",
                &[],
                json!({"roles": ["user", "admin"]}),
                Role::Admin,
            ),
            ("roles", &[], json!({"roles": "Admin"}), Role::User),
            ("roles", &[], json!({"groups": ["admin"]}), Role::Admin),
            ("roles", &[], json!({}), Role::User),
            (
                "roles",
                &mapped,
                json!({"roles": ["staff", "ops"]}),
                Role::Admin,
            ),
            ("roles", &mapped, json!({"roles": ["admin"]}), Role::User),
            (
                "mine",
                &[],
                json!({"groups": ["admin"], "role": "admin"}),
                Role::User,
            ),
            (
                "a.roles",
                &[],
                json!({"a": {"roles": ["admin"]}}),
                Role::Admin,
            ),
            ("a.roles", &[], json!({"a": ["admin"]}), Role::User),
            (
                "https://x.y/role",
                &[],
                json!({"https://x.y/role": "admin"}),
                Role::Admin,
            ),
            ("roles", &[], json!({"roles": {"admin": true}}), Role::User),
        ] {
            assert_eq!(
                role(claim, mapping, claims.clone()),
                expected,
                "{claim}: {claims}"
            );
        }
    }

    #[test]
    fn user_is_named_by_the_best_claim() {
        let name = |claims: Value| {
            let claims: Claims = serde_json::from_value(claims).unwrap();
            claims.name().to_owned()
        };
        assert_eq!(name(json!({"sub": "s", "email": "e"})), "s");
        assert_eq!(name(json!({"email": "e", "preferred_username": "p"})), "e");
        assert_eq!(name(json!({"sub": 5})), "unknown");
    }
}
