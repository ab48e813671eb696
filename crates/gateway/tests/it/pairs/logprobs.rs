//! Log probabilities of the prompt: only the prefill worker has them.

use serde_json::{Value, json as value};

use super::stage::{asked, body, doing, pair_options, stream};
use crate::support::{Step, json, post, start_with, until};

fn generated(text: &str, of_prompt: &Value) -> Value {
    value!({"text": text, "meta_info": {"id": "x", "input_token_logprobs": of_prompt}})
}

const ASKED: &str = r#"{"text":"x","return_logprob":true,"logprob_start_len":0,"stream":STREAM}"#;

#[tokio::test]
async fn whole_answer_has_the_prompts_log_probabilities_of_prefill() {
    let of_prompt = value!([[null, 1, null], [-2.5, 7, null]]);
    let prefill = doing(json(200, &generated("a", &of_prompt).to_string())).await;
    let decode = doing(json(200, &generated("ab", &value!([])).to_string())).await;
    let gateway = start_with(pair_options(&[&prefill], &[&decode])).await;
    let reply = post(&gateway, "/generate", &ASKED.replace("STREAM", "false")).await;
    assert_eq!((reply.status, reply.whole), (200, true));
    assert_eq!(reply.json(), generated("ab", &of_prompt));
    // Without the question the answer is not touched.
    let plain = post(
        &gateway,
        "/generate",
        r#"{"text":"x","return_logprob":true}"#,
    )
    .await;
    assert_eq!(plain.json(), generated("ab", &value!([])));
    until(|| async { gateway.in_flight().await == 0 }).await;
}

#[tokio::test]
async fn every_event_has_the_prompts_log_probabilities_though_cut_anywhere() {
    let of_prompt = value!([[null, 1, null]]);
    let prefill = doing(json(200, &generated("a", &of_prompt).to_string())).await;
    let none = value!([]);
    let decode = doing(stream(&[generated("a", &none), generated("ab", &none)])).await;
    let gateway = start_with(pair_options(&[&prefill], &[&decode])).await;
    let sent = ASKED.replace("STREAM", "true");
    let ask = post(&gateway, "/generate", &sent);
    let go_on = until(|| async {
        decode.go_on();
        gateway.in_flight().await == 0 && !asked(&decode).is_empty()
    });
    let (reply, ()) = tokio::join!(ask, go_on);
    let events: Vec<String> = [generated("a", &of_prompt), generated("ab", &of_prompt)]
        .iter()
        .map(|event| format!("data: {event}\n\n"))
        .collect();
    assert_eq!(reply.text(), events.concat() + "data: [DONE]\n\n");
    assert!(reply.whole);
    // The prefill worker is asked for a whole answer.
    let to_prefill = String::from_utf8(asked(&prefill)[0].body.clone()).unwrap();
    assert_eq!(to_prefill.matches("stream").count(), 1);
    assert_eq!(body(&asked(&prefill)[0])["stream"], false);
    assert_eq!(body(&asked(&decode)[0])["stream"], true);
}

#[tokio::test]
async fn echoed_prompt_has_its_log_probabilities() {
    let choice =
        |tokens: Value| value!({"choices": [{"text": "Pa", "logprobs": {"tokens": tokens}}]});
    let prefill = doing(json(200, &choice(value!(["P", "a"])).to_string())).await;
    let decode = doing(json(200, &choice(value!(["a", "b"])).to_string())).await;
    let gateway = start_with(pair_options(&[&prefill], &[&decode])).await;
    let sent = r#"{"prompt":"P","echo":true,"logprobs":1}"#;
    let reply = post(&gateway, "/v1/completions", sent).await;
    assert_eq!(reply.json(), choice(value!(["P", "a", "b"])));
}

#[tokio::test]
async fn prefill_that_fails_while_its_part_is_waited_for_is_the_answer() {
    let prefill = doing(vec![Step::Wait, Step::Reset]).await;
    let decode = doing(json(200, &generated("ab", &value!([])).to_string())).await;
    let mut options = pair_options(&[&prefill], &[&decode]);
    options.disable_retries = true;
    let gateway = start_with(options).await;
    let sent = ASKED.replace("STREAM", "false");
    let ask = post(&gateway, "/generate", &sent);
    let fail = async {
        until(|| async { !asked(&prefill).is_empty() && !asked(&decode).is_empty() }).await;
        prefill.go_on();
    };
    let (reply, ()) = tokio::join!(ask, fail);
    assert_eq!(reply.status, 502);
    until(|| async { gateway.in_flight().await == 0 }).await;
}

#[tokio::test]
async fn log_probabilities_beyond_the_limit_are_an_error_and_end_both_legs() {
    let size = 65 << 20;
    let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {size}\r\n\r\n");
    let body = Step::Send(vec![b' '; size]);
    let prefill = doing(vec![Step::Send(head.into_bytes()), body]).await;
    let decode = doing(json(200, &generated("ab", &value!([])).to_string())).await;
    let gateway = start_with(pair_options(&[&prefill], &[&decode])).await;
    let reply = post(&gateway, "/generate", &ASKED.replace("STREAM", "false")).await;
    assert_eq!(
        (reply.status, reply.code()),
        (502, "pair_failed".to_owned())
    );
    assert!(reply.text().contains("67108864 bytes"), "{}", reply.text());
    assert_eq!(asked(&prefill).len(), 1);
    until(|| async { gateway.in_flight().await == 0 }).await;
}
