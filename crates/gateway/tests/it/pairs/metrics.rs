//! What the metrics page says of pairs.

use super::stage::{doing, engine, pair_options};
use crate::support::{Step, json, post, start_with};

fn stream() -> Vec<Step> {
    let events =
        "data: {\"meta_info\":{\"prompt_tokens\":5,\"completion_tokens\":2}}\n\ndata: [DONE]\n\n";
    let head =
        "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n";
    let reply = format!("{head}{:x}\r\n{events}\r\n0\r\n\r\n", events.len());
    vec![Step::Send(reply.into_bytes())]
}

#[tokio::test]
async fn pair_is_counted_as_such_and_each_leg_at_its_worker() {
    let (prefill, decode) = (doing(json(200, "{}")).await, doing(stream()).await);
    let gateway = start_with(pair_options(&[&prefill], &[&decode])).await;
    let body = r#"{"text":"x","stream":true}"#;
    assert_eq!(post(&gateway, "/generate", body).await.status, 200);
    let page = gateway.metrics().await;
    for line in [
        r#"smg_pd_prefill_duration_seconds_count{backend_type="pd",model="test-model",runtime="sglang"} 1"#,
        r#"smg_pd_ttft_seconds_count{backend_type="pd",model="test-model",runtime="sglang"} 1"#,
        r#"smg_router_ttft_seconds_count{backend_type="pd",endpoint="generate",model="test-model",router_type="http"} 1"#,
        r#"smg_router_tokens_total{backend_type="pd",endpoint="generate",model="test-model",router_type="http",token_type="output"} 2"#,
        r#"smg_router_upstream_responses_total{error_code="",router_type="http",status_code="200"} 2"#,
        r#"smg_worker_selection_total{connection_mode="http",model="test-model",policy="round_robin",worker_type="prefill"} 1"#,
        r#"smg_worker_selection_total{connection_mode="http",model="test-model",policy="round_robin",worker_type="decode"} 1"#,
    ] {
        assert!(page.contains(&format!("{line}\n")), "{line} in {page}");
    }
}

#[tokio::test]
async fn refusal_of_a_prefill_worker_is_counted_as_its_response() {
    let prefill = engine(|_| json(422, r#"{"message":"bad"}"#)).await;
    let decode = doing(vec![Step::Hang]).await;
    let mut options = pair_options(&[&prefill], &[&decode]);
    options.disable_health_check = true;
    let gateway = start_with(options).await;
    let reply = post(&gateway, "/generate", r#"{"text":"x"}"#).await;
    assert_eq!(reply.status, 422, "{}", reply.text());
    let line = r#"smg_router_upstream_responses_total{error_code="",router_type="http",status_code="422"} 1"#;
    assert!(gateway.metrics().await.contains(line));
}
