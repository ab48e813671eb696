//! The public keys of an issuer of tokens (RFC 7517).

use jsonwebtoken::jwk::{AlgorithmParameters, EllipticCurve, Jwk, PublicKeyUse};
use jsonwebtoken::{Algorithm, DecodingKey};
use serde::Deserialize;
use serde_json::Value;

use super::ring_provider;

/// Keys that verify signatures.
#[derive(Debug, Default)]
pub(super) struct KeySet(Vec<VerifyingKey>);

/// A key, and the algorithms that its signatures may have.
#[derive(Debug)]
pub(super) struct VerifyingKey {
    id: String,
    pub(super) key: DecodingKey,
    pub(super) algorithms: Vec<Algorithm>,
}

#[derive(Deserialize)]
struct Document {
    keys: Vec<Value>,
}

impl KeySet {
    /// Reads a JWKS document; keys of unknown kinds, for encryption or without an id are left out.
    ///
    /// # Errors
    /// It is no such document, or none of its keys can be used.
    pub(super) fn parse(text: &[u8]) -> Result<Self, &'static str> {
        let document: Document = serde_json::from_slice(text).map_err(|_| "is no set of keys")?;
        let lists_none = document.keys.is_empty();
        let keys = document.keys.into_iter();
        let keys: Vec<_> = keys.filter_map(VerifyingKey::read).collect();
        // An issuer may withdraw all of its keys.
        if keys.is_empty() && !lists_none {
            return Err("has no key for signatures by RSA or elliptic curves");
        }
        Ok(Self(keys))
    }

    pub(super) fn find(&self, id: &str) -> Option<&VerifyingKey> {
        self.0.iter().find(|key| key.id == id)
    }

    pub(super) fn len(&self) -> usize {
        self.0.len()
    }
}

impl VerifyingKey {
    fn read(key: Value) -> Option<Self> {
        let jwk: Jwk = serde_json::from_value(key).ok()?;
        let signs = match &jwk.common.public_key_use {
            None | Some(PublicKeyUse::Signature) => true,
            Some(_) => false,
        };
        let of_kind: &[Algorithm] = match &jwk.algorithm {
            // Never a shared secret: what verifies it could sign, too.
            AlgorithmParameters::RSA(_) => &[
                Algorithm::RS256,
                Algorithm::RS384,
                Algorithm::RS512,
                Algorithm::PS256,
                Algorithm::PS384,
                Algorithm::PS512,
            ],
            AlgorithmParameters::EllipticCurve(curve) => match curve.curve {
                EllipticCurve::P256 => &[Algorithm::ES256],
                EllipticCurve::P384 => &[Algorithm::ES384],
                _ => &[],
            },
            _ => &[],
        };
        let algorithms = match jwk.common.key_algorithm {
            None => of_kind.to_vec(),
            Some(named) => {
                let named: Algorithm = named.to_string().parse().ok()?;
                of_kind.iter().copied().filter(|it| *it == named).collect()
            }
        };
        let usable = algorithms.iter().all(|it| ring_provider::supports(*it));
        if !signs || algorithms.is_empty() || !usable {
            return None;
        }
        Some(Self {
            key: DecodingKey::from_jwk(&jwk).ok()?,
            id: jwk.common.key_id?,
            algorithms,
        })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn keys_that_verify_no_signature_are_left_out() {
        let rsa = |id: &str, more: Value| {
            let mut key = json!({"kty": "RSA", "kid": id, "n": "AQAB", "e": "AQAB"});
            let more = more.as_object().unwrap().clone();
            key.as_object_mut().unwrap().extend(more);
            key
        };
        let curve =
            |id: &str, crv: &str| json!({"kty": "EC", "kid": id, "crv": crv, "x": "AA", "y": "AA"});
        let document = json!({"keys": [
            rsa("any", json!({})),
            rsa("one", json!({"alg": "RS384", "use": "sig"})),
            rsa("encrypts", json!({"use": "enc"})),
            rsa("pads", json!({"alg": "RSA-OAEP"})),
            rsa("strange", json!({"alg": "XX1"})),
            {"kty": "RSA", "n": "AQAB", "e": "AQAB"},
            {"kty": "oct", "kid": "secret", "k": "AAAA", "alg": "HS256"},
            curve("p256", "P-256"),
            curve("p521", "P-521"),
            curve("koblitz", "secp256k1"),
            "nonsense",
        ]});
        let keys = KeySet::parse(document.to_string().as_bytes()).unwrap();
        let ids: Vec<_> = keys.0.iter().map(|key| key.id.as_str()).collect();
        assert_eq!(ids, ["any", "one", "p256"]);
        assert_eq!(keys.find("any").unwrap().algorithms.len(), 6);
        assert_eq!(keys.find("one").unwrap().algorithms, [Algorithm::RS384]);
        assert_eq!(keys.find("p256").unwrap().algorithms, [Algorithm::ES256]);
    }

    #[test]
    fn issuer_may_withdraw_all_of_its_keys() {
        assert_eq!(KeySet::parse(br#"{"keys": []}"#).unwrap().len(), 0);
    }

    #[test]
    fn document_without_a_usable_key_is_refused() {
        for text in [
            "",
            "[]",
            "{}",
            r#"{"keys": [{"kty": "oct", "kid": "a", "k": "AAAA"}]}"#,
        ] {
            assert!(KeySet::parse(text.as_bytes()).is_err(), "{text}");
        }
    }
}
