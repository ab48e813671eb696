//! The APIs of other vendors, and SGLang's own for embeddings, files and text.

use serde_json::{Value, json};
use sim::SimWorker;
use testkit::{Reply, raw, request};

use crate::support::{events, get, post, started};

async fn ask(worker: &SimWorker, path: &str, body: Value) -> Reply {
    post(worker, path, &body.to_string()).await
}

fn lines(reply: &Reply) -> Vec<Value> {
    let text = reply.text();
    let lines = text.lines().map(serde_json::from_str);
    lines.collect::<Result<_, _>>().unwrap()
}

#[tokio::test]
async fn ollama_chat_is_a_line_per_token_and_then_one_that_says_done() {
    let worker = started();
    let mut body = json!({
        "model": "m", "messages": [{"role": "user", "content": "hi"}],
        "options": {"num_predict": 3},
    });
    let reply = ask(&worker, "/api/chat", body.clone()).await;
    assert_eq!(reply.header("content-type"), "application/x-ndjson");
    let lines = lines(&reply);
    assert_eq!(lines.len(), 4);
    let done: Vec<bool> = lines.iter().map(|line| line["done"] == true).collect();
    assert_eq!(done, [false, false, false, true]);
    let streamed: String = lines
        .iter()
        .map(|line| line["message"]["content"].as_str().unwrap())
        .collect();
    body["stream"] = false.into();
    let whole = ask(&worker, "/api/chat", body).await.json();
    assert_eq!(whole["message"]["content"], streamed);
    assert_eq!(
        (&whole["eval_count"], &whole["done"]),
        (&json!(3), &json!(true))
    );
    assert_eq!(whole["model"], "sim-model");
}

#[tokio::test]
async fn ollama_generate_takes_a_prompt_and_nothing() {
    let worker = started();
    let body =
        json!({"model": "m", "prompt": "hi", "stream": false, "options": {"num_predict": 2}});
    let reply = ask(&worker, "/api/generate", body).await.json();
    assert_eq!(reply["eval_count"], 2);
    assert!(!reply["response"].as_str().unwrap().is_empty());
    let reply = ask(
        &worker,
        "/api/generate",
        json!({"model": "m", "prompt": ""}),
    )
    .await;
    let lines = lines(&reply);
    assert_eq!((lines.len(), &lines[0]["done"]), (1, &json!(true)));
    assert_eq!(
        get(&worker, "/api/tags").await.json()["models"][0]["name"],
        "sim-model"
    );
    let shown = ask(&worker, "/api/show", json!({"model": "org/m"}))
        .await
        .json();
    assert_eq!(shown["details"]["family"], "m");
}

#[tokio::test]
async fn vertex_wraps_generate() {
    let worker = started();
    let parameters = json!({"sampling_params": {"max_new_tokens": 2}});
    let instances = json!([{"text": "a"}, {"text": "b"}]);
    let body = json!({"instances": instances, "parameters": parameters});
    let reply = ask(&worker, "/vertex_generate", body).await.json();
    let predictions = reply["predictions"].as_array().unwrap();
    assert_eq!(predictions.len(), 2);
    assert_eq!(predictions[0]["meta_info"]["completion_tokens"], 2);
    let none = ask(&worker, "/vertex_generate", json!({"instances": []})).await;
    assert_eq!(none.text(), "[]");
    let refused = ask(&worker, "/vertex_generate", json!({"instances": [{}]})).await;
    assert_eq!(refused.status, 400);
}

#[tokio::test]
async fn invocations_is_chat_whatever_its_content_type() {
    let worker = started();
    let body = r#"{"messages":[{"role":"user","content":"hi"}],"max_tokens":2,"stream":true}"#;
    let asked = request("POST /invocations", "content-type: text/plain\r\n", body);
    let reply = raw(worker.addr(), &asked).await;
    assert_eq!(events(&reply).last().unwrap(), "[DONE]");
}

#[tokio::test]
async fn encode_gives_embeddings_in_sglangs_form() {
    let worker = started();
    for path in ["/encode", "/classify"] {
        let one = ask(&worker, path, json!({"text": "hi"})).await.json();
        assert_eq!(one["embedding"].as_array().unwrap().len(), 8, "{path}");
        assert_eq!(one["meta_info"]["prompt_tokens"], 1);
        let two = json!({"input_ids": [[1, 2], [3]]}).to_string();
        let put = request(
            &format!("PUT {path}"),
            "content-type: application/json\r\n",
            &two,
        );
        assert_eq!(
            raw(worker.addr(), &put)
                .await
                .json()
                .as_array()
                .unwrap()
                .len(),
            2
        );
        assert_eq!(ask(&worker, path, json!({})).await.status, 400);
    }
    let body = r#"{"query":"q","documents":["a"]}"#;
    let put = request("PUT /v1/rerank", "content-type: application/json\r\n", body);
    assert_eq!(raw(worker.addr(), &put).await.status, 200);
}

#[tokio::test]
async fn transcription_says_what_came() {
    let worker = started();
    let form = |format: &str| {
        let audio = "a".repeat(40_000);
        format!(
            "--b\r\ncontent-disposition: form-data; name=\"file\"; filename=\"x.wav\"\r\n\r\n{audio}\r\n\
             --b\r\ncontent-disposition: form-data; name=\"response_format\"\r\n\r\n{format}\r\n--b--\r\n"
        )
    };
    let line = "POST /v1/audio/transcriptions";
    let asked = async |body: &str| {
        let kind = "content-type: multipart/form-data; boundary=b\r\n";
        raw(worker.addr(), &request(line, kind, body)).await
    };
    let reply = asked(&form("json")).await.json();
    assert_eq!(reply["text"], "x.wav: 40000 bytes");
    assert_eq!(reply["usage"]["seconds"], 2);
    let reply = asked(&form("text")).await;
    assert_eq!(reply.text(), "x.wav: 40000 bytes");
    assert_eq!(
        asked(&form("verbose_json")).await.json()["task"],
        "transcribe"
    );
    assert_eq!(asked(&form("srt")).await.status, 400);
    assert_eq!(asked("--b--\r\n").await.status, 400);
    assert_eq!(
        ask(&worker, "/v1/audio/transcriptions", json!({}))
            .await
            .status,
        400
    );
}

#[tokio::test]
async fn tokens_of_a_message_are_counted_without_an_engine() {
    let worker = started();
    let body = |system: Value| json!({"model": "m", "system": system, "messages": [{"role": "user", "content": "hi"}]});
    let path = "/v1/messages/count_tokens";
    let count = async |body: Value| {
        let reply = ask(&worker, path, body).await.json();
        reply["input_tokens"].as_u64().unwrap()
    };
    let without = count(body(Value::Null)).await;
    assert!(without > 0 && count(body(json!("be brief"))).await > without);
    let refused = ask(&worker, path, json!({})).await;
    assert_eq!(
        (refused.status, &refused.json()["type"]),
        (400, &json!("error"))
    );
    let mut message = body(Value::Null);
    message["max_tokens"] = 1.into();
    let reply = ask(&worker, "/v1/messages", message).await.json();
    assert_eq!(reply["usage"]["input_tokens"], without);
}

#[tokio::test]
async fn calls_and_reasoning_are_taken_out_of_text() {
    let worker = started();
    let body = json!({
        "text": "Sure.<tool_call>{\"name\":\"f\",\"arguments\":{\"x\":1}}</tool_call>",
        "tools": [{"type": "function", "function": {"name": "f"}}], "tool_call_parser": "qwen25",
    });
    let reply = ask(&worker, "/parse_function_call", body).await.json();
    assert_eq!(reply["normal_text"], "Sure.");
    let call = json!({"tool_index": 0, "name": "f", "parameters": "{\"x\":1}"});
    assert_eq!(reply["calls"], json!([call]));
    let body = json!({"text": "<think>hm</think>yes", "reasoning_parser": "qwen3"});
    let reply = ask(&worker, "/separate_reasoning", body).await.json();
    assert_eq!(reply, json!({"reasoning_text": "hm", "text": "yes"}));
}

#[tokio::test]
async fn response_goes_on_from_one_that_is_stored() {
    let worker = started();
    let asked = async |body: Value| ask(&worker, "/v1/responses", body).await;
    let say = |fields: Value| {
        let mut body = json!({"input": "Tell me a long story about the sea, please.", "max_output_tokens": 20});
        for (name, value) in fields.as_object().unwrap() {
            body[name] = value.clone();
        }
        body
    };
    let first = asked(say(json!({}))).await.json();
    let second = asked(say(json!({"previous_response_id": first["id"]})))
        .await
        .json();
    let tokens = |reply: &Value| reply["usage"]["input_tokens"].as_u64().unwrap();
    assert!(tokens(&second) > 2 * tokens(&first));
    let cached = &second["usage"]["input_tokens_details"]["cached_tokens"];
    assert!(cached.as_u64().unwrap() > 0);
    let unknown = asked(say(json!({"previous_response_id": "resp_no"}))).await;
    assert_eq!(unknown.status, 404);
    let message = &unknown.json()["error"]["message"];
    assert_eq!(message, "Response with id 'resp_no' not found.");
    let malformed = asked(say(json!({"previous_response_id": "no"}))).await;
    assert_eq!(malformed.status, 400);
    let unstored = asked(say(json!({"store": false}))).await.json();
    let path = format!("/v1/responses/{}", unstored["id"].as_str().unwrap());
    assert_eq!(get(&worker, &path).await.status, 404);
}

#[tokio::test]
async fn model_without_a_card_is_not_found_by_name() {
    let worker = started();
    let reply = get(&worker, "/v1/models/other").await;
    assert_eq!(reply.status, 404);
    assert_eq!(reply.json()["error"]["code"], "model_not_found");
}
