//! Errors as clients read them.

use bytes::Bytes;
use http_body_util::{BodyExt, Full};

use super::*;
use crate::config::WorkerNames;
use crate::endpoint::Vendor;
use crate::upstream::UpstreamError;

fn openai(names: WorkerNames) -> ErrorContext<'static> {
    ErrorContext {
        vendor: Vendor::OpenAi,
        names,
        request_id: None,
    }
}

#[test]
fn the_envelope_has_what_clients_read() {
    let response = Error::NoAvailableWorkers { retry_after: 1 }.render(openai(WorkerNames::Shown));
    assert_eq!(response.status(), 503);
    assert_eq!(
        response.headers()["x-smg-error-code"],
        "no_available_workers"
    );
    assert_eq!(response.headers()["retry-after"], "1");
    let body = futures_body(response.into_body());
    let error = &body["error"];
    assert_eq!(error["type"], "server_error");
    assert_eq!(error["code"], "no_available_workers");
    assert!(error["param"].is_null() && error["message"].is_string());
}

#[test]
fn refused_and_slow_workers_differ_from_broken_ones() {
    let failed = |source| Error::Upstream {
        worker: "w".into(),
        source,
    };
    let refused = failed(UpstreamError::NotSent(
        std::io::ErrorKind::ConnectionRefused.into(),
    ));
    let broken = failed(UpstreamError::NoResponse);
    let local = failed(UpstreamError::Local(std::io::ErrorKind::OutOfMemory.into()));
    assert_eq!(
        (local.status().as_u16(), local.code()),
        (503, "gateway_resources_exhausted")
    );
    assert_eq!(
        local.render(openai(WorkerNames::Shown)).headers()["retry-after"],
        "1"
    );
    let slow = Error::UpstreamTimeout {
        worker: "w".into(),
        seconds: 1,
    };
    assert_eq!(
        (refused.status().as_u16(), refused.code()),
        (502, "call_upstream_connection_failed")
    );
    assert_eq!(
        (broken.status().as_u16(), broken.code()),
        (502, "call_upstream_request_failed")
    );
    assert_eq!(
        (slow.status().as_u16(), slow.code()),
        (504, "call_upstream_timeout")
    );
}

#[test]
fn worker_is_named_only_to_clients_that_may_know_it() {
    let error = Error::UpstreamTimeout {
        worker: "http://gpu-7:30000".into(),
        seconds: 1,
    };
    let message = |names| {
        let body = futures_body(error.render(openai(names)).into_body());
        body["error"]["message"].as_str().unwrap().to_owned()
    };
    assert!(message(WorkerNames::Shown).contains("gpu-7"));
    assert!(!message(WorkerNames::Hidden).contains("gpu-7"));
}

fn futures_body(body: Full<Bytes>) -> serde_json::Value {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .build()
        .unwrap();
    let bytes = runtime.block_on(body.collect()).unwrap().to_bytes();
    serde_json::from_slice(&bytes).unwrap()
}
