//! Tokens of an issuer on the control plane.

use gateway::Gateway;
use serde_json::{Value, json};

use super::issuer::{Signer, TestIssuer, now};
use super::support::bearer;
use crate::support::{Reply, Running, options, raw, start_with};

async fn ask(gateway: &Running, method: &str, token: &str) -> Reply {
    let lines = bearer(token);
    let request =
        format!("{method} /workers HTTP/1.1\r\nhost: g\r\n{lines}content-length: 0\r\n\r\n");
    raw(gateway, request.as_bytes()).await
}

async fn status(gateway: &Running, token: &str) -> u16 {
    ask(gateway, "GET", token).await.status
}

#[tokio::test]
async fn token_opens_by_its_role_and_a_broken_one_does_not() {
    let (key, stranger) = (Signer::new("k1"), Signer::new("k1"));
    let issuer = TestIssuer::start(&[&key]);
    let gateway = start_with(issuer.options()).await;
    let token = |more: &Value| key.sign(&issuer.claims(more));
    for (more, get, post) in [
        (json!({"roles": ["admin"]}), 200, 400),
        (json!({"roles": ["user"]}), 200, 403),
        (json!({}), 200, 403),
        (json!({"aud": ["other", "gateway"]}), 200, 403),
        (json!({"exp": now() - 10}), 200, 403),
        (json!({"exp": now() - 60}), 401, 401),
        (json!({"exp": "soon"}), 401, 401),
        (json!({"exp": null}), 401, 401),
        (json!({"nbf": now() + 60}), 401, 401),
        (json!({"aud": "other"}), 401, 401),
        (json!({"aud": null}), 401, 401),
        (json!({"iss": "https://other"}), 401, 401),
        (json!({"iss": null}), 401, 401),
    ] {
        let token = token(&more);
        assert_eq!(ask(&gateway, "GET", &token).await.status, get, "{more}");
        assert_eq!(ask(&gateway, "POST", &token).await.status, post, "{more}");
    }
    let claims = issuer.claims(&json!({"roles": "admin"}));
    let unsigned = key.sign_as(&json!({"alg": "none", "kid": "k1"}), &claims);
    let (head, _) = unsigned.rsplit_once('.').unwrap();
    for bad in [
        stranger.sign(&claims),
        format!("{head}."),
        unsigned.clone(),
        key.sign_as(&json!({"alg": "HS256", "kid": "k1"}), &claims),
        key.sign_as(&json!({"alg": "ES384", "kid": "k1"}), &claims),
        key.sign_as(&json!({"alg": "RS256", "kid": "k1"}), &claims),
        key.sign_as(&json!({"alg": "ES256"}), &claims),
        format!("{}A", key.sign(&claims)),
    ] {
        let reply = ask(&gateway, "GET", &bad).await;
        assert_eq!(reply.status, 401, "{bad}");
        assert_eq!(
            reply.all("www-authenticate"),
            ["Bearer realm=\"control-plane\""]
        );
    }
}

#[tokio::test]
async fn new_key_is_fetched_when_a_token_has_it_and_unknown_ones_cause_no_flood() {
    let (old, new) = (Signer::new("k1"), Signer::new("k2"));
    let issuer = TestIssuer::start(&[&old]);
    let gateway = start_with(issuer.options()).await;
    let claims = issuer.claims(&json!({}));
    assert_eq!(status(&gateway, &old.sign(&claims)).await, 200);
    assert_eq!(issuer.fetches(), 1);
    issuer.show(&[&new]);
    let token = new.sign(&claims);
    // All at a time: one fetch serves them.
    let (one, two) = tokio::join!(status(&gateway, &token), status(&gateway, &token));
    assert_eq!((one, two, issuer.fetches()), (200, 200, 2));
    // The issuer has withdrawn it.
    assert_eq!(status(&gateway, &old.sign(&claims)).await, 401);
    for unknown in ["a", "b", "c", "d"] {
        let token = Signer::new(unknown).sign(&claims);
        assert_eq!(status(&gateway, &token).await, 401);
    }
    assert_eq!(issuer.fetches(), 2);
    assert_eq!(status(&gateway, &token).await, 200);
}

#[tokio::test]
async fn words_of_the_issuer_are_mapped_to_roles() {
    let key = Signer::new("k1");
    let issuer = TestIssuer::start(&[&key]);
    let mut options = issuer.options();
    let auth = options.control_plane_auth.as_mut().unwrap();
    let jwt = auth.jwt.as_mut().unwrap();
    jwt.role_claim = "realm_access.roles".to_owned();
    jwt.role_mapping = serde_json::from_value(json!({"gateway-ops": "admin"})).unwrap();
    jwt.jwks_uri = Some(format!("{}/keys?all=1", issuer.url()));
    let gateway = start_with(options).await;
    for (roles, expected) in [(json!(["x", "gateway-ops"]), 400), (json!(["admin"]), 403)] {
        let token = key.sign(&issuer.claims(&json!({"realm_access": {"roles": roles}})));
        assert_eq!(
            ask(&gateway, "POST", &token).await.status,
            expected,
            "{roles}"
        );
    }
}

#[test]
fn gateway_does_not_start_without_its_issuer() {
    let key = Signer::new("k1");
    let issuer = TestIssuer::start(&[&key]);
    let without = |change: fn(&mut String)| {
        let mut options = issuer.options();
        let auth = options.control_plane_auth.as_mut().unwrap();
        change(&mut auth.jwt.as_mut().unwrap().issuer);
        options
    };
    let mut no_keys = issuer.options();
    let jwt = no_keys.control_plane_auth.as_mut().unwrap().jwt.as_mut();
    jwt.unwrap().jwks_uri = Some(issuer.url());
    for (options, why) in [
        (
            without(|url| *url = "http://127.0.0.1:1".to_owned()),
            "127.0.0.1:1",
        ),
        (without(|url| url.push_str("/other")), "404"),
        // What discovery finds calls itself otherwise.
        (without(|url| url.push('/')), "calls itself"),
        (no_keys, "404"),
    ] {
        let error = Gateway::start(&options).unwrap_err().to_string();
        assert!(
            error.contains("jwt_issuer") && error.contains(why),
            "{error}"
        );
    }
    let empty = TestIssuer::start(&[]);
    let error = Gateway::start(&empty.options()).unwrap_err().to_string();
    assert!(error.contains("no key"), "{error}");
    drop(Gateway::start(&options(&[])).unwrap());
}
