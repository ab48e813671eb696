//! An issuer of tokens that is reached over TLS.

use std::fs;

use gateway::{Gateway, Options};
use serde_json::json;

use super::issuer::{Signer, TestIssuer};
use super::support::{TempDir, bearer};
use crate::support::{raw, start_with};
use crate::tls::pki::Authority;

/// An issuer of this authority, and the options of a gateway that trusts `trusted`.
fn stage(key: &Signer, authority: &Authority, trusted: Option<&str>) -> (TestIssuer, Options) {
    let pair = authority.issue(&["localhost"]);
    let issuer = TestIssuer::over_tls(&[key], Authority::server(&pair, None));
    let options = Options {
        ca_cert_paths: trusted.into_iter().map(str::to_owned).collect(),
        ..issuer.options()
    };
    (issuer, options)
}

#[tokio::test]
async fn keys_of_an_issuer_over_https_are_fetched_with_the_authority_of_the_options() {
    let (dir, key, authority) = (
        TempDir::new("issuer-ca"),
        Signer::new("k1"),
        Authority::new(),
    );
    let ca = dir.path("ca.pem");
    fs::write(&ca, authority.pem()).unwrap();
    let (issuer, options) = stage(&key, &authority, ca.to_str());
    let gateway = start_with(options).await;
    assert_eq!(issuer.fetches(), 1);
    let ask = async |key: &Signer| {
        let token = key.sign(&issuer.claims(&json!({"roles": "user"})));
        let request = format!("GET /workers HTTP/1.1\r\nhost: g\r\n{}\r\n", bearer(&token));
        raw(&gateway, request.as_bytes()).await.status
    };
    assert_eq!(ask(&key).await, 200);
    assert_eq!(ask(&Signer::new("k1")).await, 401);
}

#[test]
fn issuer_of_another_authority_ends_the_start_with_the_reason() {
    let (dir, key) = (TempDir::new("issuer-other"), Signer::new("k1"));
    let (authority, other) = (Authority::new(), Authority::new());
    let ca = dir.path("ca.pem");
    fs::write(&ca, other.pem()).unwrap();
    for trusted in [ca.to_str(), None] {
        let (issuer, options) = stage(&key, &authority, trusted);
        let error = Gateway::start(&options).unwrap_err().to_string();
        assert!(error.contains("jwt_issuer"), "{error}");
        assert!(error.contains(&issuer.url()), "{error}");
        assert!(error.contains("invalid peer certificate"), "{error}");
        assert_eq!(issuer.fetches(), 0);
    }
}

#[test]
fn issuer_whose_certificate_has_another_name_ends_the_start() {
    let (dir, key, authority) = (
        TempDir::new("issuer-name"),
        Signer::new("k1"),
        Authority::new(),
    );
    let ca = dir.path("ca.pem");
    fs::write(&ca, authority.pem()).unwrap();
    let pair = authority.issue(&["id.example.com"]);
    let issuer = TestIssuer::over_tls(&[&key], Authority::server(&pair, None));
    let options = Options {
        ca_cert_paths: vec![ca.to_str().unwrap().to_owned()],
        ..issuer.options()
    };
    let error = Gateway::start(&options).unwrap_err().to_string();
    assert!(
        error.contains("jwt_issuer") && error.contains("not valid for name"),
        "{error}"
    );
}
