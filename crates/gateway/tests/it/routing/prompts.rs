//! What a prompt weighs, and what of a body a worker gets.

use crate::support::{
    Client, Received, Running, Worker, json, ok, options, post, posting, start, start_with,
};

const HEADER: &str = "x-anthropic-billing-header: cc_version=2.1; cch=0f3a1;";

fn billed(text: &str) -> String {
    format!(
        r#"{{"model":"m","system":[{{"type":"text","text":"{HEADER}"}},{{"type":"text","text":"{text}"}}],"messages":[]}}"#
    )
}

async fn tokens(gateway: &Running, body: &str) -> u64 {
    let page = post(gateway, "/route/explain", body).await.json();
    page["prompt_tokens"].as_u64().unwrap()
}

#[tokio::test]
async fn body_passes_unchanged_whatever_parser_takes_it() {
    let worker = Worker::doing(ok()).await;
    let gateway = start(&[&worker]).await;
    let bodies = [
        "\u{feff}{\"text\":\"\\ud83d\",\"x\":[NaN,-Infinity,1e999],\"x\":2}\r\n",
        "{ \"model\":\"m\",\"model\":\"m\", \"text\" : [\"a\"] }",
        &format!("{{\"text\":{}{}}}", "[".repeat(1_000), "]".repeat(1_000)),
    ];
    for body in bodies {
        assert_eq!(
            post(&gateway, "/generate", body).await.status,
            200,
            "{body}"
        );
        assert_eq!(worker.received().last().unwrap().body, body.as_bytes());
    }
}

#[tokio::test]
async fn billing_header_reaches_the_worker_unless_an_option_cuts_it() {
    let worker = Worker::doing(ok()).await;
    let body = billed("You are an agent.");
    let kept = start(&[&worker]).await;
    assert_eq!(post(&kept, "/v1/messages", &body).await.status, 200);
    assert_eq!(worker.received().last().unwrap().body, body.as_bytes());

    let mut options = options(&[&worker]);
    options.strip_billing_header = true;
    let cut = start_with(options).await;
    assert_eq!(post(&cut, "/v1/messages", &body).await.status, 200);
    let received = worker.received();
    let received = received.last().unwrap();
    let left =
        r#"{"model":"m","system":[{"type":"text","text":"You are an agent."}],"messages":[]}"#;
    assert_eq!(String::from_utf8_lossy(&received.body), left);
    assert_eq!(received.all("content-length"), [left.len().to_string()]);
    let other = r#"{"model":"m","messages":[{"role":"user","content":"hi"}]}"#;
    assert_eq!(post(&cut, "/v1/messages", other).await.status, 200);
    assert_eq!(worker.received().last().unwrap().body, other.as_bytes());
}

#[tokio::test]
async fn media_weigh_what_the_options_say() {
    let worker = Worker::doing(ok()).await;
    let mut options = options(&[&worker]);
    (options.image_tokens, options.video_tokens) = (100_000, 200_000);
    options.audio_tokens = 400_000;
    let gateway = start_with(options).await;
    let content = "A".repeat(100_000);
    for (part, tokens_of_medium) in [
        (
            format!(r#"{{"image_url":{{"url":"data:image/png;base64,{content}"}}}}"#),
            100_000,
        ),
        (
            format!(r#"{{"video_url":{{"url":"https://a/{content}"}}}}"#),
            200_000,
        ),
        (
            format!(r#"{{"input_audio":{{"data":"{content}"}}}}"#),
            400_000,
        ),
        (r#"{"text":"none"}"#.to_owned(), 0),
    ] {
        let body = format!(r#"{{"messages":[{{"role":"user","content":[{part}]}}]}}"#);
        let tokens = tokens(&gateway, &body).await;
        let range = tokens_of_medium..tokens_of_medium + 100;
        assert!(range.contains(&tokens), "{tokens} for {tokens_of_medium}");
    }
}

#[tokio::test]
async fn tokens_are_as_long_as_the_worker_counts_them() {
    let usage = |request: &Received| {
        let text = request.body.len() / 2;
        let head = r#"{"choices":[],"usage":{"prompt_tokens":"#;
        json(200, &format!("{head}{text},\"completion_tokens\":1}}}}"))
    };
    let worker = Worker::scripted(usage).await;
    let gateway = start(&[&worker]).await;
    let body = format!(r#"{{"prompt":"{}"}}"#, "word ".repeat(1000));
    // The usual estimate is 4 bytes.
    assert!((1200..1300).contains(&tokens(&gateway, &body).await));
    let mut client = Client::to(&gateway).await;
    let request = posting("/v1/completions", "", &body);
    for _ in 0..1500 {
        client.send(&request).await;
        assert_eq!(client.reply().await.status, 200);
    }
    let learnt = tokens(&gateway, &body).await;
    assert!((2400..2600).contains(&learnt), "{learnt}");
}
