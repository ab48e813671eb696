//! Aborts, clients that leave, loads and the change of roles.

use sim::{Role, SimOptions, SimWorker};
use testkit::Reply;
use tokio::time::Instant;

use crate::pair::{Pair, Replies, generate, options, waiting};
use crate::support::{chat, get, post, start, until};

const PREFILL_WAITS: &str = "prefill_bootstrap_queue_reqs";
const DECODE_WAITS: &str = "decode_transfer_queue_reqs";
/// Seconds between two looks for clients.
const LOOK: f64 = 0.8;

async fn abort(worker: &SimWorker, rid: &str) {
    let body = format!(r#"{{"rid":"{rid}"}}"#);
    assert_eq!(post(worker, "/abort_request", &body).await.status, 200);
}

fn message(reply: &Reply) -> String {
    let json = reply.json();
    json["message"].as_str().expect("a message").to_owned()
}

#[tokio::test]
async fn an_aborted_decode_leg_fails_a_later_prefill_leg_at_once() {
    let pair = Pair::start();
    let body = generate("a", &format!(r#""rid":"r",{}"#, pair.fields("7")));
    let mut client = waiting(&pair.decode, "/generate", &body).await;
    pair.until_queued(&pair.decode, DECODE_WAITS, 1).await;
    abort(&pair.decode, "other").await;
    pair.until_queued(&pair.decode, DECODE_WAITS, 1).await;
    abort(&pair.decode, "r").await;
    let aborted = client.reply().await;
    assert_eq!(aborted.status, 500);
    assert!(message(&aborted).contains("Aborted by AbortReq."));
    let later = post(&pair.prefill, "/generate", &body).await;
    assert_eq!(later.status, 500);
    let why = "Failed due to an unknown reason from another rank";
    assert!(message(&later).contains(why));
    // The room is not spoilt for a fresh pair.
    let Replies { prefill, decode } = pair.both("/generate", &body).await;
    assert_eq!((prefill.status, decode.status), (200, 200));
}

#[tokio::test]
async fn an_aborted_prefill_leg_leaves_a_later_decode_leg_waiting() {
    let pair = Pair::with(|options| options.waiting_timeout_s = 0.3);
    let body = generate("a", &format!(r#""rid":"r",{}"#, pair.fields("7")));
    let mut client = waiting(&pair.prefill, "/generate", &body).await;
    pair.until_queued(&pair.prefill, PREFILL_WAITS, 1).await;
    abort(&pair.prefill, "r").await;
    let aborted = client.reply().await;
    assert_eq!(aborted.status, 500);
    assert!(message(&aborted).contains("Aborted by AbortReq."));
    let later = post(&pair.decode, "/generate", &body).await;
    assert!(message(&later).contains("KVPoll.WaitingForInput"));
}

#[tokio::test]
async fn an_abort_while_decoding_gives_the_text_so_far() {
    let pair = Pair::with(|options| options.decode_step_base_ms = 3_600_000.0);
    let body = generate("a", &format!(r#""rid":"r",{}"#, pair.fields("7")));
    let mut client = waiting(&pair.decode, "/generate", &body).await;
    assert_eq!(post(&pair.prefill, "/generate", &body).await.status, 200);
    pair.until_queued(&pair.decode, DECODE_WAITS, 0).await;
    abort(&pair.decode, "r").await;
    let reply = client.reply().await;
    let meta = &reply.json()["meta_info"];
    assert_eq!((reply.status, &meta["completion_tokens"]), (200, &1.into()));
    assert_eq!(meta["finish_reason"]["type"], "abort");
}

#[tokio::test]
async fn a_client_that_left_is_noticed_at_the_next_look() {
    for (path, body) in [
        ("/generate", generate("a", "#")),
        ("/v1/chat/completions", chat("a", r#","stream":true,#"#)),
    ] {
        let pair = Pair::with(|options| options.disconnect_check_s = LOOK);
        let body = |room| body.replace('#', &pair.fields(room));
        let begin = Instant::now();
        let client = waiting(&pair.decode, path, &body("7")).await;
        let early = waiting(&pair.decode, path, &body("8")).await;
        pair.until_queued(&pair.decode, DECODE_WAITS, 2).await;
        drop((client, early));
        // Not yet noticed.
        assert_eq!(post(&pair.prefill, path, &body("8")).await.status, 200);
        pair.until_queued(&pair.decode, DECODE_WAITS, 0).await;
        assert!(begin.elapsed().as_secs_f64() >= LOOK, "{path}");
        let later = post(&pair.prefill, path, &body("7")).await.text();
        assert!(later.contains("from another rank"), "{later}");
    }
}

#[tokio::test]
async fn a_prefill_client_that_left_serves_its_partner_until_noticed() {
    let pair = Pair::with(|options| options.disconnect_check_s = LOOK);
    let body = generate("a", &pair.fields("7"));
    let client = waiting(&pair.prefill, "/generate", &body).await;
    pair.until_queued(&pair.prefill, PREFILL_WAITS, 1).await;
    drop(client);
    assert_eq!(post(&pair.decode, "/generate", &body).await.status, 200);
    let client = waiting(&pair.prefill, "/generate", &body).await;
    pair.until_queued(&pair.prefill, PREFILL_WAITS, 1).await;
    drop(client);
    pair.until_queued(&pair.prefill, PREFILL_WAITS, 0).await;
}

#[tokio::test]
async fn a_generate_stream_that_lost_its_client_ends_at_once() {
    let pair = Pair::with(|options| options.disconnect_check_s = 3600.0);
    let body = generate("a", &format!(r#""stream":true,{}"#, pair.fields("7")));
    let mut client = waiting(&pair.decode, "/generate", &body).await;
    client.head().await.unwrap();
    pair.until_queued(&pair.decode, DECODE_WAITS, 1).await;
    drop(client);
    pair.until_queued(&pair.decode, DECODE_WAITS, 0).await;
    let later = post(&pair.prefill, "/generate", &body).await.text();
    assert!(later.contains("from another rank"), "{later}");
}

#[tokio::test]
async fn a_running_stream_that_lost_its_client_ends_at_once() {
    let pair = Pair::with(|options| {
        options.disconnect_check_s = 3600.0;
        options.decode_step_base_ms = 3_600_000.0;
    });
    let body = chat("a", &format!(r#","stream":true,{}"#, pair.fields("7")));
    let mut client = waiting(&pair.decode, "/v1/chat/completions", &body).await;
    let prefill = post(&pair.prefill, "/v1/chat/completions", &body).await;
    assert_eq!(prefill.status, 200);
    client.head().await.unwrap();
    client.chunk().await.unwrap();
    drop(client);
    until(&pair.decode, |stats| stats.aborted == 1).await;
}

#[tokio::test]
async fn a_client_without_stream_that_left_while_decoding_is_noticed_later() {
    let pair = Pair::with(|options| {
        options.disconnect_check_s = LOOK;
        options.decode_step_base_ms = 3_600_000.0;
    });
    let body = generate("a", &pair.fields("7"));
    let begin = Instant::now();
    let client = waiting(&pair.decode, "/generate", &body).await;
    assert_eq!(post(&pair.prefill, "/generate", &body).await.status, 200);
    drop(client);
    until(&pair.decode, |stats| stats.aborted == 1).await;
    assert!(begin.elapsed().as_secs_f64() >= LOOK);
}

#[tokio::test]
async fn loads_show_the_legs_and_the_tokens_held_for_them() {
    let pair = Pair::start();
    let text = "x".repeat(40);
    let load = async |worker: &SimWorker| get(worker, "/v1/loads").await.json()["loads"][0].clone();
    let _prefill = waiting(
        &pair.prefill,
        "/generate",
        &generate(&text, &pair.fields("7")),
    )
    .await;
    pair.until_queued(&pair.prefill, PREFILL_WAITS, 1).await;
    let loads = load(&pair.prefill).await;
    assert_eq!(loads["disaggregation"]["mode"], "prefill");
    assert_eq!(
        (&loads["num_waiting_reqs"], &loads["num_used_tokens"]),
        (&1.into(), &0.into())
    );
    let _decode = waiting(
        &pair.decode,
        "/generate",
        &generate(&text, &pair.fields("8")),
    )
    .await;
    pair.until_queued(&pair.decode, DECODE_WAITS, 1).await;
    let loads = load(&pair.decode).await;
    assert_eq!(loads["disaggregation"]["mode"], "decode");
    assert_eq!(
        (&loads["num_waiting_reqs"], &loads["num_used_tokens"]),
        (&1.into(), &10.into())
    );
    assert_eq!(get(&pair.decode, "/flush_cache").await.status, 400);
    let unreachable = r#""bootstrap_host":"127.0.0.1","bootstrap_port":0,"bootstrap_room":9"#;
    let _lost = waiting(&pair.decode, "/generate", &generate(&text, unreachable)).await;
    pair.until_queued(&pair.decode, "decode_prealloc_queue_reqs", 1)
        .await;
}

#[tokio::test]
async fn information_shows_the_role_at_start_and_the_role_now() {
    let decode = start(SimOptions {
        disaggregation_mode: Role::Decode,
        ..SimOptions::default()
    });
    let info = get(&decode, "/server_info").await.json();
    assert_eq!(info["disaggregation_bootstrap_port"], 8998);
    assert_eq!(info["load_balance_method"], "round_robin");
    assert_eq!(
        get(&decode, "/model_info").await.json()["disaggregation_mode"],
        "decode"
    );
    let prefill = get(&start(options(Role::Prefill)), "/server_info")
        .await
        .json();
    assert_eq!(prefill["load_balance_method"], "follow_bootstrap_room");
}

async fn switch(worker: &SimWorker, body: &str) -> Reply {
    post(worker, "/pd_role_switch", body).await
}

async fn role(worker: &SimWorker) -> String {
    let info = get(worker, "/model_info").await.json();
    info["disaggregation_mode"]
        .as_str()
        .unwrap_or_default()
        .to_owned()
}

#[tokio::test]
async fn an_idle_pair_changes_its_roles_and_works() {
    let pair = Pair::with(|options| options.enable_pd_role_switch = true);
    let to_decode = r#"{"new_role":"decode","decode_cuda_graph_memory_gb":0}"#;
    let to_prefill = r#"{"new_role":"prefill"}"#;
    assert_eq!(
        switch(&pair.prefill, r#"{"new_role":"decode"}"#)
            .await
            .status,
        400
    );
    assert_eq!(switch(&pair.prefill, to_prefill).await.status, 200);
    assert_eq!(role(&pair.prefill).await, "prefill");
    let Pair { prefill, decode } = pair;
    assert_eq!(switch(&prefill, to_decode).await.status, 200);
    assert_eq!(switch(&decode, to_prefill).await.status, 200);
    assert_eq!(
        (prefill.bootstrap_port(), role(&prefill).await.as_str()),
        (None, "decode")
    );
    let info = get(&prefill, "/server_info").await.json();
    assert_eq!(info["disaggregation_mode"], "prefill");
    let swapped = Pair {
        prefill: decode,
        decode: prefill,
    };
    swapped.assert_works().await;
    let Pair { prefill, decode } = swapped;
    assert_eq!(switch(&prefill, to_decode).await.status, 200);
    assert_eq!(switch(&decode, to_prefill).await.status, 200);
    Pair {
        prefill: decode,
        decode: prefill,
    }
    .assert_works()
    .await;
}

#[tokio::test]
async fn a_busy_worker_or_one_without_the_option_keeps_its_role() {
    let pair = Pair::with(|options| options.enable_pd_role_switch = true);
    let to_prefill = r#"{"new_role":"prefill"}"#;
    let _client = waiting(&pair.decode, "/generate", &generate("a", &pair.fields("7"))).await;
    pair.until_queued(&pair.decode, DECODE_WAITS, 1).await;
    let busy = switch(&pair.decode, to_prefill).await;
    assert_eq!(busy.status, 400);
    assert!(message(&busy).contains("instance is not idle"));
    assert_eq!(role(&pair.decode).await, "decode");
    let plain = Pair::start();
    assert_eq!(switch(&plain.decode, to_prefill).await.status, 400);
    assert_eq!(role(&plain.decode).await, "decode");
}
