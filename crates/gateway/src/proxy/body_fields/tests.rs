//! What a prompt weighs, and which prompts are the same.

use proptest::prelude::*;
use routing::MediaTokens;
use routing::prefix::hash_blocks;

use super::BodyFields;
use crate::endpoint::INFERENCE;

const CHAT: &str = "/v1/chat/completions";
const CHARGES: MediaTokens = MediaTokens {
    image: 1_024,
    video: 8_192,
    audio: 1_024,
};

/// Tokens and block hashes of a prompt.
#[derive(Debug, PartialEq, Eq)]
struct Seen {
    tokens: u64,
    blocks: Vec<u64>,
}

fn seen(path: &str, body: &str) -> Seen {
    let fields = BodyFields::read(body.as_bytes()).unwrap();
    let prompt = fields.prompt_of(path);
    let mut blocks = Vec::new();
    hash_blocks(&prompt, &mut blocks);
    Seen {
        tokens: prompt.tokens(),
        blocks,
    }
}

/// The number of leading blocks that two prompts share.
fn shared(one: &Seen, other: &Seen) -> usize {
    let pairs = one.blocks.iter().zip(&other.blocks);
    pairs.take_while(|(one, other)| one == other).count()
}

/// A base64 string that follows from `seed`.
fn base64(seed: u64, length: usize) -> String {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let letter = |_| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        char::from(b'A' + (state % 26) as u8)
    };
    (0..length).map(letter).collect()
}

/// A content part with a medium in each form that an API has, and what it weighs.
fn media_part(form: usize, content: &str) -> (String, u64) {
    let (image, video, audio) = (
        u64::from(CHARGES.image),
        u64::from(CHARGES.video),
        u64::from(CHARGES.audio),
    );
    let url = format!("data:image/png;base64,{content}");
    match form {
        0 => (
            format!(r#""type":"image_url","image_url":{{"url":"{url}","detail":"low"}}"#),
            image,
        ),
        1 => (
            format!(r#""type":"input_image","image_url":"{url}""#),
            image,
        ),
        2 => (
            format!(r#""type":"input_audio","input_audio":{{"format":"wav","data":"{content}"}}"#),
            audio,
        ),
        3 => (
            format!(r#""type":"video_url","video_url":{{"url":"{url}"}}"#),
            video,
        ),
        4 => (
            format!(
                r#""type":"image","source":{{"type":"base64","media_type":"image/png","data":"{content}"}}"#
            ),
            image,
        ),
        5 => (
            format!(
                r#""type":"image","source":{{"data":"{content}","media_type":"image/png","type":"base64"}}"#
            ),
            image,
        ),
        6 => (
            format!(
                r#""type":"tool_result","content":[{{"type":"image","source":{{"type":"url","url":"https://a/{content}"}}}}]"#
            ),
            image,
        ),
        8 => (
            format!(r#""role":"user","content":"?","images":["{content}"]"#),
            image,
        ),
        7 => (
            format!(r#""type":"audio_url","audio_url":{{"url":"{url}"}}"#),
            audio,
        ),
        _ => (format!(r#""image":"{content}""#), image),
    }
}

const FORMS: usize = 10;

/// Text, or a medium: its form, the seed of its content, its length.
#[derive(Clone, Debug)]
enum Item {
    Text(String),
    Medium {
        form: usize,
        seed: u64,
        length: usize,
    },
}

fn item() -> impl Strategy<Value = Item> {
    prop_oneof![
        "[a-z \\\\n]{0,200}".prop_map(|text| Item::Text(text.replace('\\', "\\\\"))),
        (0..FORMS, any::<u64>(), 1..20_000_usize).prop_map(|(form, seed, length)| Item::Medium {
            form,
            seed,
            length
        }),
    ]
}

/// A chat with these parts, what its media weigh, and the bytes of their content.
fn chat(items: &[Item], fields: &[&str]) -> (String, u64, usize) {
    let (mut parts, mut charge, mut bytes) = (Vec::new(), 0, 0);
    for item in items {
        match item {
            Item::Text(text) => parts.push(format!(r#"{{"type":"text","text":"{text}"}}"#)),
            Item::Medium { form, seed, length } => {
                let (part, tokens) = media_part(*form, &base64(*seed, *length));
                parts.push(format!("{{{part}}}"));
                charge += tokens;
                bytes += length;
            }
        }
    }
    let messages = format!(
        r#""messages":[{{"role":"user","content":[{}]}}]"#,
        parts.join(",")
    );
    let mut members = fields.to_vec();
    members.insert(fields.len() / 2, &messages);
    (format!("{{{}}}", members.join(", ")), charge, bytes)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(100))]

    #[test]
    fn media_weigh_their_charge_wherever_they_stand(
        items in prop::collection::vec(item(), 0..8),
    ) {
        let (body, charge, media_bytes) = chat(&items, &[]);
        let tokens = seen(CHAT, &body).tokens;
        let text = (body.len() - media_bytes) as u64;
        prop_assert!(tokens >= charge, "{tokens} < {charge}");
        prop_assert!(tokens <= charge + text.div_ceil(4), "{tokens}");
    }

    #[test]
    fn order_of_fields_changes_nothing(
        items in prop::collection::vec(item(), 0..5),
        order in Just(vec![
            r#""model":"m:adapter""#, r#""stream":true"#, r#""cache_salt":"s""#,
            r#""extra_key":["k"]"#, r#""x":[NaN,{"messages":[]}]"#, r#""tools":[{"name":"t"}]"#,
            r#""video_data":["v"]"#, r#""image_data":["i","j"]"#,
        ]).prop_shuffle(),
    ) {
        let sorted = { let mut sorted = order.clone(); sorted.sort_unstable(); sorted };
        prop_assert_eq!(seen(CHAT, &chat(&items, &order).0), seen(CHAT, &chat(&items, &sorted).0));
    }

    #[test]
    fn another_medium_ends_the_match_where_it_stands(
        before in prop::collection::vec(item(), 0..4),
        after in prop::collection::vec(item(), 0..4),
        form in 0..FORMS, seed in any::<u64>(), length in 1..20_000_usize,
    ) {
        let with = |seed| {
            let medium = Item::Medium { form, seed, length: length + 20 };
            let items = [before.clone(), vec![medium], after.clone()].concat();
            seen(CHAT, &chat(&items, &[]).0)
        };
        let (one, same, other) = (with(seed), with(seed), with(seed ^ 0x10));
        prop_assert_eq!(&one, &same);
        prop_assert_eq!(one.tokens, other.tokens);
        prop_assert_ne!(&one.blocks, &other.blocks);
        let prefix = seen(CHAT, &chat(&before, &[]).0);
        // The end of the list is not where the next part stands.
        let end = "]}]".len().div_ceil(64);
        prop_assert!(shared(&one, &other) >= prefix.blocks.len().saturating_sub(end));
    }
}

#[test]
fn image_of_five_megabytes_weighs_as_much_as_a_small_one() {
    let body = |length| {
        chat(
            &[Item::Medium {
                form: 0,
                seed: 1,
                length,
            }],
            &[],
        )
        .0
    };
    let (small, large) = (seen(CHAT, &body(200)), seen(CHAT, &body(5_000_000)));
    assert_eq!(small.tokens, large.tokens);
    assert!(large.tokens < 1_100 && large.blocks.len() < 70);
}

#[test]
fn media_fields_of_generate_come_before_the_text() {
    let body = |image: &str| format!(r#"{{"text":"What is it?","image_data":{image}}}"#);
    let [one, same, other] =
        [r#""abc""#, r#"["abc"]"#, r#"[["abd"]]"#].map(|image| seen("/generate", &body(image)));
    assert_eq!(one, same);
    assert_eq!((one.tokens, one.blocks.len()), (1_024 + 4, 64));
    assert_eq!(shared(&one, &other), 0);
    let features = seen("/generate", &body(r#"{"features":[0.5]}"#));
    assert_eq!((features.tokens, shared(&one, &features)), (one.tokens, 0));
    for none in ["null", "[]", r#""""#] {
        assert_eq!(seen("/generate", &body(none)).tokens, 4, "{none}");
    }
}

#[test]
fn labels_of_the_cache_keep_equal_prompts_apart() {
    let text = "text ".repeat(50);
    let body = |fields: &str| format!(r#"{{"text":"{text}"{fields}}}"#);
    let labels = [
        "",
        r#","cache_salt":"a""#,
        r#","cache_salt":"b""#,
        r#","extra_key":"a""#,
        r#","lora_path":"a""#,
        r#","lora_path":"a","cache_salt":"a""#,
        r#","lora_path":["a"]"#,
    ];
    let seen_all = labels.map(|fields| seen("/generate", &body(fields)));
    for (at, one) in seen_all.iter().enumerate() {
        assert_eq!(one, &seen("/generate", &body(labels[at])));
        for other in &seen_all[..at] {
            assert_eq!(shared(one, other), 0);
        }
    }
    let plain = seen("/generate", &body(""));
    for fields in [
        r#","cache_salt":"","extra_key":null"#,
        r#","bootstrap_room":7,"bootstrap_host":"h""#,
        r#","model":"base""#,
    ] {
        assert_eq!(seen("/generate", &body(fields)), plain, "{fields}");
    }
}

#[test]
fn adapter_behind_the_model_keeps_prompts_apart() {
    let body = |model: &str| format!(r#"{{"model":"{model}","prompt":"{}"}}"#, "x".repeat(100));
    let seen = |model| seen("/v1/completions", &body(model));
    assert_eq!(seen("base"), seen("another"));
    assert_eq!(shared(&seen("base:one"), &seen("base")), 0);
    assert_eq!(shared(&seen("base:one"), &seen("base:two")), 0);
}

#[test]
fn arguments_and_documents_in_plain_text_weigh_by_their_bytes() {
    let content = base64(3, 8_000);
    for part in [
        format!(r#"{{"type":"tool_use","name":"t","input":{{"image_url":"{content}"}}}}"#),
        format!(r#"{{"type":"document","source":{{"type":"text","data":"{content}"}}}}"#),
        format!(r#"{{"type":"document","source":{{"data":"{content}","type":"text"}}}}"#),
        format!(r#"{{"type":"text","text":"data:image/png;base64,{content}"}}"#),
    ] {
        let body = format!(r#"{{"messages":[{{"role":"user","content":[{part}]}}]}}"#);
        assert!(seen("/v1/messages", &body).tokens > 2_000, "{part}");
    }
}

#[test]
fn what_engines_ignore_changes_no_prompt() {
    let body = |marks: [&str; 2], system: &str| {
        let [first, second] = marks;
        format!(
            r#"{{"system":{system},"messages":[
            {{"role":"user","content":[{{"type":"text","text":"one"{first}}}]}},
            {{"role":"user","content":[{{"type":"text","text":"two"{second}}}]}}]}}"#
        )
    };
    let mark = r#" , "cache_control":{"type":"ephemeral"}"#;
    let plain = r#"[{"type":"text","text":"You are an agent."}]"#;
    let billed = |hash: &str| {
        let header = format!("x-anthropic-billing-header: cc_version=2.1; cch={hash};");
        format!(
            r#"[{{"type":"text","text":"{header}"}},{{"type":"text","text":"You are an agent."}}]"#
        )
    };
    let one = seen("/v1/messages", &body(["", ""], plain));
    assert_eq!(seen("/v1/messages", &body([mark, ""], plain)), one);
    assert_eq!(seen("/v1/messages", &body(["", mark], &billed("0f"))), one);
    assert_eq!(
        seen("/v1/messages", &body([mark, mark], &billed("1a2b"))),
        one
    );
}

/// What a worker gets when billing headers are cut.
fn stripped(path: &str, body: &str) -> String {
    let fields = BodyFields::read(body.as_bytes()).unwrap();
    let row = INFERENCE.iter().find(|row| row.path == path).unwrap();
    let parts = fields.without_billing_header(row.prompt);
    String::from_utf8(parts.concat()).unwrap()
}

const HEADER: &str = "x-anthropic-billing-header: cc_version=2.1; cch=0f3a1;";

#[test]
fn billing_header_is_cut_from_every_shape_of_a_system_prompt() {
    let block = format!(r#"{{"type":"text","text":"{HEADER}"}}"#);
    let user = r#"{"role":"user","content":"hi"}"#;
    for (path, with, without) in [
        (
            "/v1/messages",
            format!(r#"{{"x":1,"system":"{HEADER}\nYou","messages":[{user}]}}"#),
            format!(r#"{{"x":1,"system":"You","messages":[{user}]}}"#),
        ),
        (
            "/v1/messages",
            format!(r#"{{"messages":[{user}],"system":[{block},{{"text":"You"}}]}}"#),
            format!(r#"{{"messages":[{user}],"system":[{{"text":"You"}}]}}"#),
        ),
        (
            "/v1/messages",
            format!(
                r#"{{"messages":[{{"role":"system","content":[{block}]}},{user}],"system":[{block}]}}"#
            ),
            format!(r#"{{"messages":[{{"role":"system","content":[]}},{user}],"system":[]}}"#),
        ),
        (
            "/v1/chat/completions",
            format!(r#"{{"messages":[{{"role":"system","content":"{HEADER}\nYou"}},{user}]}}"#),
            format!(r#"{{"messages":[{{"role":"system","content":"You"}},{user}]}}"#),
        ),
        (
            "/v1/responses",
            format!(r#"{{"instructions":"{HEADER}\r\nYou","input":"{HEADER}"}}"#),
            format!(r#"{{"instructions":"You","input":"{HEADER}"}}"#),
        ),
    ] {
        assert_eq!(stripped(path, &with), without);
    }
}

#[test]
fn only_the_system_prompt_in_force_is_cut() {
    let chat = format!(
        r#"{{"system":"{HEADER}\nYou","messages":[{{"role":"user","content":"{HEADER}"}}]}}"#
    );
    assert_eq!(stripped("/v1/chat/completions", &chat), chat);
    let twice = format!(r#"{{"system":"{HEADER}\nYou","system":"{HEADER}\nMe"}}"#);
    let left = format!(r#"{{"system":"{HEADER}\nYou","system":"Me"}}"#);
    assert_eq!(stripped("/v1/messages", &twice), left);
    let replaced = format!(r#"{{"system":"{HEADER}\nYou","system":"Me"}}"#);
    assert_eq!(stripped("/v1/messages", &replaced), replaced);
}

proptest! {
    #[test]
    fn body_without_its_billing_header_is_json_and_the_same_prompt(
        hash in "[0-9a-f]{1,8}", rest in "[a-zA-Z \\\\n\"{},\\[\\]é]{0,60}",
        as_block in any::<bool>(), in_messages in any::<bool>(), space in "[ \n]{0,2}",
    ) {
        let header = format!("x-anthropic-billing-header: cch={hash};");
        let text = |text: &str| serde_json::to_string(text).unwrap();
        let system = if as_block {
            let block = format!(r#"{{"type":"text","text":{}}}"#, text(&rest));
            let billed = format!(r#"{{"type":"text","text":{}}}"#, text(&header));
            [format!("[{space}{billed}{space},{space}{block}]"), format!("[{space}{block}]")]
        } else {
            [text(&format!("{header}\n{rest}")), text(&rest)]
        };
        let body = |system: &str| if in_messages {
            format!(r#"{{"messages":[{{"content":{system},"role":"system"}}],"model":"m"}}"#)
        } else {
            format!(r#"{{"model":"m","system":{system},"messages":[]}}"#)
        };
        let [billed, plain] = system.map(|system| body(&system));
        let left = stripped("/v1/messages", &billed);
        prop_assert_eq!(&left, &plain);
        prop_assert!(serde_json::from_str::<serde_json::Value>(&left).is_ok());
        prop_assert_eq!(seen("/v1/messages", &billed), seen("/v1/messages", &plain));
    }
}
