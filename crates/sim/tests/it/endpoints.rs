//! Every endpoint has SGLang's form.

use serde_json::{Value, json};
use sim::{Role, SimOptions};

use testkit::request;

use crate::support::{chat, connect, get, post, start, started};

#[tokio::test]
async fn health_has_an_empty_body() {
    let worker = started();
    for path in ["/health", "/health_generate"] {
        let reply = get(&worker, path).await;
        assert_eq!((reply.status, reply.text().as_str()), (200, ""), "{path}");
    }
}

#[tokio::test]
async fn info_endpoints_report_the_options() {
    let options = SimOptions {
        model: "org/model".to_owned(),
        dp_size: 3,
        disaggregation_mode: Role::Decode,
        disaggregation_bootstrap_port: 9123,
        ..SimOptions::default()
    };
    let worker = start(options);
    for path in ["/server_info", "/get_server_info"] {
        let info = get(&worker, path).await.json();
        assert_eq!(info["served_model_name"], "org/model");
        assert_eq!(info["dp_size"], 3);
        assert_eq!(info["disaggregation_mode"], "decode");
        assert_eq!(info["disaggregation_bootstrap_port"], 9123);
        assert_eq!(info["internal_states"].as_array().unwrap().len(), 3);
    }
    for path in ["/model_info", "/get_model_info"] {
        assert_eq!(get(&worker, path).await.json()["is_generation"], true);
    }
    let models = get(&worker, "/v1/models").await.json();
    assert_eq!(models["data"][0]["id"], "org/model");
    assert_eq!(models["data"][0]["owned_by"], "sglang");
    assert_eq!(
        get(&worker, "/v1/models/org/model").await.json()["object"],
        "model"
    );
    assert_eq!(get(&worker, "/v1/models/other").await.status, 404);
}

#[tokio::test]
async fn a_chat_response_is_an_openai_completion() {
    let worker = started();
    let reply = post(
        &worker,
        "/v1/chat/completions",
        &chat("hi", r#","max_tokens":5,"n":2"#),
    )
    .await;
    assert_eq!(reply.all("content-type"), ["application/json"]);
    let response = reply.json();
    assert_eq!(response["object"], "chat.completion");
    assert_eq!(response["choices"].as_array().unwrap().len(), 2);
    assert_eq!(response["choices"][1]["index"], 1);
    assert_eq!(response["choices"][0]["message"]["role"], "assistant");
    assert_eq!(response["choices"][0]["finish_reason"], "length");
    assert_eq!(response["usage"]["completion_tokens"], 10);
    assert!(response["usage"]["prompt_tokens_details"]["cached_tokens"].is_number());
}

#[tokio::test]
async fn without_a_maximum_the_finish_reason_is_stop() {
    let worker = start(SimOptions {
        default_output_tokens: 3,
        ..SimOptions::default()
    });
    let response = post(&worker, "/v1/chat/completions", &chat("hi", ""))
        .await
        .json();
    assert_eq!(response["choices"][0]["finish_reason"], "stop");
    assert_eq!(response["usage"]["completion_tokens"], 3);
    let response = post(
        &worker,
        "/v1/chat/completions",
        &chat("hi", r#","ignore_eos":true"#),
    )
    .await
    .json();
    assert_eq!(response["choices"][0]["finish_reason"], "length");
}

#[tokio::test]
async fn a_stop_string_ends_the_text_before_it() {
    let worker = started();
    let whole = post(
        &worker,
        "/v1/completions",
        r#"{"prompt":"p","max_tokens":20}"#,
    )
    .await
    .json();
    let text = whole["choices"][0]["text"].as_str().unwrap();
    let stop = text.split(' ').nth(4).unwrap();
    let body = format!(r#"{{"prompt":"p","max_tokens":20,"stop":["{stop}"]}}"#);
    let response = post(&worker, "/v1/completions", &body).await.json();
    let cut = response["choices"][0]["text"].as_str().unwrap();
    assert_eq!(response["choices"][0]["finish_reason"], "stop");
    assert_eq!(response["choices"][0]["matched_stop"], stop);
    assert!(text.starts_with(cut) && !cut.contains(stop));
}

#[tokio::test]
async fn equal_prompts_get_equal_text_on_every_worker() {
    let (one, other) = (started(), started());
    let message = async |worker| {
        let body = chat("what is it?", r#","max_tokens":9"#);
        post(worker, "/v1/chat/completions", &body).await.json()["choices"][0]["message"].clone()
    };
    assert_eq!(message(&one).await, message(&other).await);
    assert_eq!(message(&one).await, message(&one).await);
}

#[tokio::test]
async fn completions_accept_every_form_of_prompt() {
    let worker = started();
    for (prompt, choices, prompt_tokens) in [
        (r#""hello world.""#, 1, 3),
        (r#"["abcd","efgh"]"#, 2, 2),
        ("[1,2,3]", 1, 3),
        ("[[1,2],[3]]", 2, 3),
    ] {
        let body = format!(r#"{{"prompt":{prompt},"max_tokens":4}}"#);
        let response = post(&worker, "/v1/completions", &body).await.json();
        assert_eq!(
            response["choices"].as_array().unwrap().len(),
            choices,
            "{prompt}"
        );
        assert_eq!(
            response["usage"]["prompt_tokens"], prompt_tokens,
            "{prompt}"
        );
    }
    let body = r#"{"prompt":"said: ","max_tokens":2,"echo":true,"logprobs":1}"#;
    let choice = post(&worker, "/v1/completions", body).await.json()["choices"][0].clone();
    assert!(choice["text"].as_str().unwrap().starts_with("said: "));
    // Two tokens of the prompt, of which the first has none, and two of the text.
    let logprobs = choice["logprobs"]["token_logprobs"].as_array().unwrap();
    assert_eq!((logprobs.len(), &logprobs[0]), (4, &Value::Null));
}

#[tokio::test]
async fn generate_returns_an_object_or_a_list() {
    let worker = start(SimOptions {
        dp_size: 2,
        ..SimOptions::default()
    });
    let body = r#"{"input_ids":[5,6,7],"sampling_params":{"max_new_tokens":2},"rid":"r1",
                   "return_logprob":true,"logprob_start_len":0,"data_parallel_rank":1}"#;
    let response = post(&worker, "/generate", body).await.json();
    let meta = &response["meta_info"];
    assert_eq!(meta["id"], "r1");
    assert_eq!(
        meta["finish_reason"],
        json!({"type": "length", "length": 2})
    );
    assert_eq!(
        (&meta["prompt_tokens"], &meta["completion_tokens"]),
        (&json!(3), &json!(2))
    );
    assert_eq!(meta["dp_rank"], 1);
    assert_eq!(meta["input_token_logprobs"][0], json!([null, 5, null]));
    assert_eq!(meta["input_token_logprobs"].as_array().unwrap().len(), 3);
    assert_eq!(meta["output_token_logprobs"].as_array().unwrap().len(), 2);
    assert_eq!(response["output_ids"].as_array().unwrap().len(), 2);

    let body =
        r#"{"text":["a","b"],"sampling_params":[{"max_new_tokens":1},{"max_new_tokens":2}]}"#;
    let responses = post(&worker, "/generate", body).await.json();
    let made: Vec<&Value> = responses
        .as_array()
        .unwrap()
        .iter()
        .map(|a| &a["meta_info"]["completion_tokens"])
        .collect();
    assert_eq!(made, [1, 2]);
}

#[tokio::test]
async fn generate_writes_its_fields_in_the_engines_order() {
    let worker = started();
    let names = [
        "text",
        "output_ids",
        "meta_info",
        "id",
        "finish_reason",
        "prompt_tokens",
        "weight_version",
        "output_token_logprobs",
        "completion_tokens",
        "cached_tokens",
        "e2e_latency",
    ];
    for stream in [false, true] {
        let body = json!({"text": "a b", "stream": stream, "return_logprob": true, "sampling_params": {"max_new_tokens": 1}});
        let reply = post(&worker, "/generate", &body.to_string()).await;
        let reply = reply.text();
        let places = names.map(|name| reply.find(&format!("\"{name}\":")).expect(name));
        assert!(places.is_sorted(), "{reply}");
    }
}

#[tokio::test]
async fn generate_accepts_put_without_a_content_type() {
    let worker = started();
    let mut client = connect(&worker).await;
    client
        .send(&request("PUT /generate", "", r#"{"text":"a"}"#))
        .await;
    let reply = client.reply().await;
    assert_eq!(reply.json()["meta_info"]["completion_tokens"], 128);
}

#[tokio::test]
async fn an_unknown_rank_is_400() {
    let worker = started();
    let reply = post(&worker, "/generate", r#"{"text":"a","routed_dp_rank":1}"#).await;
    assert_eq!(reply.status, 400);
    assert!(
        reply.json()["error"]["message"]
            .as_str()
            .unwrap()
            .contains("rank 1")
    );
}

#[tokio::test]
async fn embeddings_are_floats_or_base64() {
    let worker = started();
    let floats = post(
        &worker,
        "/v1/embeddings",
        r#"{"input":["a","b"],"model":"m"}"#,
    )
    .await
    .json();
    assert_eq!(floats["data"][1]["embedding"].as_array().unwrap().len(), 8);
    assert_eq!(floats["usage"]["total_tokens"], 2);
    let body = r#"{"input":"a","encoding_format":"base64","dimensions":3}"#;
    let packed = post(&worker, "/v1/embeddings", body).await.json();
    assert_eq!(packed["data"][0]["embedding"].as_str().unwrap().len(), 16);
}

#[tokio::test]
async fn rerank_returns_an_array_best_first() {
    let worker = started();
    let body = r#"{"query":"q","documents":["a","b","c"]}"#;
    let ranks = post(&worker, "/v1/rerank", body).await.json();
    let scores: Vec<f64> = ranks
        .as_array()
        .unwrap()
        .iter()
        .map(|r| r["score"].as_f64().unwrap())
        .collect();
    assert!(scores.is_sorted_by(|a, b| a >= b) && scores.len() == 3);
    assert!(ranks[0]["document"].is_string() && ranks[0]["meta_info"]["id"].is_string());
    let body = r#"{"query":"q","documents":["a","b"],"return_documents":false,"top_n":1}"#;
    let ranks = post(&worker, "/v1/rerank", body).await.json();
    assert_eq!(
        (ranks.as_array().unwrap().len(), ranks[0].get("document")),
        (1, None)
    );
}

#[tokio::test]
async fn classify_and_score_return_probabilities() {
    let worker = started();
    let classes = post(&worker, "/v1/classify", r#"{"input":"a"}"#)
        .await
        .json();
    assert_eq!(classes["data"][0]["num_classes"], 2);
    let body = r#"{"query":"q","items":["a","b"],"label_token_ids":[1,2]}"#;
    let scores = post(&worker, "/v1/score", body).await.json();
    assert_eq!(scores["scores"][1].as_array().unwrap().len(), 2);
}

#[tokio::test]
async fn a_response_can_be_fetched_later() {
    let worker = started();
    let response = post(
        &worker,
        "/v1/responses",
        r#"{"input":"hi","max_output_tokens":3}"#,
    )
    .await
    .json();
    assert_eq!(response["status"], "incomplete");
    assert_eq!(response["output"][0]["content"][0]["type"], "output_text");
    let id = response["id"].as_str().unwrap();
    assert_eq!(
        get(&worker, &format!("/v1/responses/{id}")).await.json(),
        response
    );
    assert_eq!(
        post(&worker, &format!("/v1/responses/{id}/cancel"), "")
            .await
            .status,
        400
    );
    let unknown = get(&worker, "/v1/responses/resp_x").await;
    assert_eq!(unknown.status, 404);
    assert!(unknown.json()["error"]["message"].is_string());
}

#[tokio::test]
async fn messages_follow_the_anthropic_api() {
    let worker = started();
    let body = r#"{"max_tokens":2,"system":"s","messages":[{"role":"user","content":[{"type":"text","text":"hi"}]}]}"#;
    let response = post(&worker, "/v1/messages", body).await.json();
    assert_eq!(
        (&response["type"], &response["stop_reason"]),
        (&json!("message"), &json!("max_tokens"))
    );
    assert_eq!(response["usage"]["output_tokens"], 2);
    let refused = post(&worker, "/v1/messages", "{}").await;
    assert_eq!(
        (refused.status, &refused.json()["type"]),
        (400, &json!("error"))
    );
}

#[tokio::test]
async fn detokenize_inverts_tokenize() {
    let worker = started();
    let tokens = post(&worker, "/v1/tokenize", r#"{"prompt":"hello world"}"#)
        .await
        .json();
    assert_eq!(tokens["count"], 3);
    let body = format!(r#"{{"tokens":{}}}"#, tokens["tokens"]);
    assert_eq!(
        post(&worker, "/v1/detokenize", &body).await.json()["text"],
        "hello world"
    );
}

#[tokio::test]
async fn loads_are_reported_per_rank() {
    let worker = start(SimOptions {
        dp_size: 2,
        ..SimOptions::default()
    });
    let loads = get(&worker, "/get_load").await.json();
    assert_eq!(loads.as_array().unwrap().len(), 2);
    assert_eq!(loads[1]["num_tokens"], 0);
    let loads = get(&worker, "/v1/loads?include=core,queues").await.json();
    assert_eq!(loads["loads"][1]["dp_rank"], 1);
    assert_eq!(loads["loads"][0]["queues"]["waiting"], 0);
    assert_eq!(loads["loads"][0].get("memory"), None);
    assert_eq!(loads["aggregate"]["total_reqs"], 0);
    assert_eq!(
        get(&worker, "/v1/loads?dp_rank=1").await.json()["loads"]
            .as_array()
            .unwrap()
            .len(),
        1
    );
    assert_eq!(get(&worker, "/v1/loads?dp_rank=7").await.status, 400);
    assert!(
        get(&worker, "/v1/loads?format=prometheus")
            .await
            .text()
            .contains("sglang:token_usage{")
    );
    assert!(
        get(&worker, "/metrics")
            .await
            .text()
            .contains("\nsglang:num_running_reqs{model_name=\"sim-model\",dp_rank=\"1\"} 0\n")
    );
}

#[tokio::test]
async fn errors_have_the_form_of_their_endpoint() {
    let worker = started();
    let flat = post(&worker, "/v1/chat/completions", "{\"messages\":").await;
    assert_eq!(
        (flat.status, &flat.json()["object"]),
        (400, &json!("error"))
    );
    assert_eq!(flat.json()["code"], 400);
    let nested = post(
        &worker,
        "/generate",
        r#"{"text":"a","sampling_params":{"max_new_tokens":-1}}"#,
    )
    .await;
    assert_eq!(nested.status, 400);
    assert!(nested.json()["error"]["message"].is_string());
    let unknown = post(&worker, "/v1/nothing", "{}").await;
    assert_eq!(
        (unknown.status, unknown.json()),
        (404, json!({"detail": "Not Found"}))
    );
    let method = get(&worker, "/v1/chat/completions").await;
    assert_eq!((method.status, method.all("allow")), (405, vec!["POST"]));
    let mut client = connect(&worker).await;
    client
        .send(&request(
            "POST /v1/chat/completions",
            "content-type: text/plain\r\n",
            &chat("a", ""),
        ))
        .await;
    assert_eq!(client.reply().await.status, 400);
}
