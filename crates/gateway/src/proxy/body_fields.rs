//! The fields of a request's body that routing reads: borrowed, in one pass, nothing decoded.

use std::borrow::Cow;
use std::fmt;
use std::ops::Range;

use bytes::Bytes;
use routing::Prompt;
use serde::Deserialize;
use serde::de::{Deserializer, IgnoredAny, MapAccess, Visitor};
use serde_json::value::RawValue;

use super::form::FormFields;
use crate::cpu_pool::CpuPool;
use crate::endpoint::{INFERENCE, Inference, PromptField};
use crate::error::Error;

/// Bodies beyond this are read on the CPU pool, bytes.
const LARGE: usize = 256 * 1024;

/// The fields of a request body that routing reads. Everything else is only checked to be JSON.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct BodyFields<'a> {
    pub(super) model: Option<Cow<'a, str>>,
    pub(super) stream: bool,
    /// Raw JSON of what prompts are made of, by [`PromptField`].
    prompt: [&'a [u8]; PromptField::COUNT],
}

impl<'a> BodyFields<'a> {
    /// Reads a JSON object (RFC 8259).
    pub(super) fn read(body: &'a [u8]) -> Result<Self, Error> {
        let refuse = |what: &str, why: &dyn fmt::Display| {
            Error::Json(format!("{what}: {why}; expected a JSON object"))
        };
        let text = std::str::from_utf8(body).map_err(|why| refuse("JSON syntax error", &why))?;
        serde_json::from_str(text).map_err(|why| {
            let what = if why.is_data() {
                "Invalid JSON data"
            } else {
                "JSON syntax error"
            };
            refuse(what, &why)
        })
    }

    /// The prompt, made of these fields.
    pub(super) fn prompt(&self, fields: [PromptField; 3]) -> Prompt<'a> {
        let part = |field| self.prompt.get(field as usize).copied();
        match fields.map(|field| part(field).unwrap_or_default()) {
            [list, b"", b""] | [b"", list, b""] if is_ids(list) => Prompt::ids(list),
            parts => Prompt::text(parts),
        }
    }

    /// What a form names.
    pub(super) fn of_form(form: FormFields) -> Self {
        Self {
            model: form.model.map(Cow::Owned),
            stream: form.stream,
            ..Self::default()
        }
    }

    /// As [`read`](Self::read), but a large body is read on the CPU pool: 1.2 ms per MB would hold
    /// up every stream of the lane.
    pub(super) async fn read_off_lane(body: &'a Bytes, pool: &CpuPool) -> Result<Self, Error> {
        if body.len() <= LARGE {
            return Self::read(body);
        }
        let shared = body.clone();
        let read = pool.run(move || Ranges::of(&shared)).await;
        read.map_or_else(|| Self::read(body), |ranges| Ok(ranges?.in_body(body)))
    }
}

#[cfg(any(test, fuzzing))]
impl BodyFields<'_> {
    /// What is read on the CPU pool is the same.
    pub(super) fn assert_kept_off_lane(&self, body: &[u8]) {
        let ranges = Ranges::of(body).ok();
        assert_eq!(
            ranges.map(|ranges| ranges.in_body(body)).as_ref(),
            Some(self)
        );
    }
}

/// Fields of a body by their place in it: they outlive the thread that read them.
struct Ranges {
    model: Option<String>,
    stream: bool,
    prompt: [Range<usize>; PromptField::COUNT],
}

impl Ranges {
    fn of(body: &[u8]) -> Result<Self, Error> {
        let fields = BodyFields::read(body)?;
        let start = body.as_ptr() as usize;
        let range = |part: &[u8]| {
            let at = (part.as_ptr() as usize).saturating_sub(start);
            // An absent field has an address of its own.
            if part.is_empty() {
                0..0
            } else {
                at..at + part.len()
            }
        };
        Ok(Self {
            model: fields.model.map(Cow::into_owned),
            stream: fields.stream,
            prompt: fields.prompt.map(range),
        })
    }

    fn in_body(self, body: &[u8]) -> BodyFields<'_> {
        BodyFields {
            model: self.model.map(Cow::Owned),
            stream: self.stream,
            prompt: self.prompt.map(|at| body.get(at).unwrap_or_default()),
        }
    }
}

impl BodyFields<'_> {
    /// The endpoint whose shape the body has.
    pub(super) fn likely_endpoint(&self) -> &'static Inference {
        let has = |field: PromptField| {
            self.prompt
                .get(field as usize)
                .is_some_and(|raw| !raw.is_empty())
        };
        let path = if has(PromptField::Messages) {
            "/v1/chat/completions"
        } else if has(PromptField::Prompt) {
            "/v1/completions"
        } else if has(PromptField::Input) {
            "/v1/responses"
        } else if has(PromptField::Query) {
            "/rerank"
        } else {
            "/generate"
        };
        INFERENCE
            .iter()
            .find(|row| row.path == path)
            .unwrap_or(&INFERENCE[0])
    }
}

/// A JSON list, or list of lists, of numbers.
fn is_ids(json: &[u8]) -> bool {
    let mut inner = json.iter().skip_while(|byte| b"[ \n\r\t".contains(byte));
    json.first() == Some(&b'[') && inner.next().is_some_and(u8::is_ascii_digit)
}

#[derive(Deserialize)]
#[serde(field_identifier, rename_all = "snake_case")]
enum Field {
    Model,
    Stream,
    Messages,
    Text,
    InputIds,
    Prompt,
    Input,
    Query,
    Instructions,
    System,
    Tools,
    #[serde(other)]
    Other,
}

impl Field {
    fn prompt(&self) -> Option<PromptField> {
        Some(match self {
            Self::Messages => PromptField::Messages,
            Self::Text => PromptField::Text,
            Self::InputIds => PromptField::InputIds,
            Self::Prompt => PromptField::Prompt,
            Self::Input => PromptField::Input,
            Self::Query => PromptField::Query,
            Self::Instructions => PromptField::Instructions,
            Self::System => PromptField::System,
            Self::Tools => PromptField::Tools,
            Self::Model | Self::Stream | Self::Other => return None,
        })
    }
}
impl<'de: 'a, 'a> Deserialize<'de> for BodyFields<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(BodyFieldsVisitor)
    }
}

struct BodyFieldsVisitor;

impl<'de> Visitor<'de> for BodyFieldsVisitor {
    type Value = BodyFields<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON object")
    }

    /// A field of an unexpected type is the worker's to judge: here it counts as absent.
    /// Of a repeated field the last one counts, as in Python.
    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<BodyFields<'de>, A::Error> {
        let mut fields = BodyFields::default();
        while let Some(field) = map.next_key::<Field>()? {
            match field {
                Field::Model => fields.model = text(map.next_value::<&RawValue>()?),
                Field::Stream => {
                    fields.stream = matches!(map.next_value::<&RawValue>()?.get(), "true" | "1");
                }
                Field::Other => {
                    map.next_value::<IgnoredAny>()?;
                }
                part => {
                    let raw = map.next_value::<&RawValue>()?.get();
                    if let Some(known) = part
                        .prompt()
                        .and_then(|at| fields.prompt.get_mut(at as usize))
                    {
                        *known = if raw == "null" { b"" } else { raw.as_bytes() };
                    }
                }
            }
        }
        Ok(fields)
    }
}

fn text(value: &RawValue) -> Option<Cow<'_, str>> {
    #[derive(Deserialize)]
    struct Text<'a>(#[serde(borrow)] Cow<'a, str>);
    serde_json::from_str::<Text<'_>>(value.get())
        .ok()
        .map(|text| text.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fields(body: &str) -> BodyFields<'_> {
        BodyFields::read(body.as_bytes()).unwrap()
    }

    #[test]
    fn only_model_and_stream_are_read() {
        let fields =
            fields(r#"{"messages":[{"model":"no"}],"model":"a\u0062","stream":true,"x":1e999}"#);
        assert_eq!(
            fields,
            BodyFields {
                model: Some("ab".into()),
                stream: true,
                prompt: fields.prompt
            }
        );
    }

    #[test]
    fn fields_of_another_type_count_as_absent() {
        assert_eq!(
            fields(r#"{"model":7,"stream":"yes"}"#),
            BodyFields::default()
        );
        assert_eq!(
            fields(r#"{"model":null,"stream":null}"#),
            BodyFields::default()
        );
    }

    #[tokio::test]
    async fn large_body_read_off_the_lane_gives_the_same_fields() {
        let pool = CpuPool::new().unwrap();
        let text = "long ".repeat(LARGE);
        let body = format!(
            r#"{{"model":"a\u0062","stream":true,"tools":[1],"messages":["{text}"],"prompt":null}}"#
        );
        let body = Bytes::from(body);
        let read = BodyFields::read_off_lane(&body, &pool).await.unwrap();
        assert_eq!(read, BodyFields::read(&body).unwrap());
        assert_eq!(read.model.as_deref(), Some("ab"));
        let broken = Bytes::from("{".repeat(2 * LARGE));
        let error = BodyFields::read_off_lane(&broken, &pool).await.unwrap_err();
        assert_eq!(
            error.to_string(),
            BodyFields::read(&broken).unwrap_err().to_string()
        );
    }

    #[test]
    fn of_a_repeated_field_the_last_counts() {
        assert_eq!(fields(r#"{"model":"a","model":"b"}"#).model.unwrap(), "b");
    }

    #[test]
    fn deep_nesting_is_accepted() {
        let deep = format!(r#"{{"a":{}{}}}"#, "[".repeat(100_000), "]".repeat(100_000));
        assert_eq!(fields(&deep), BodyFields::default());
    }

    #[test]
    fn a_prompt_is_the_raw_json_of_its_fields_in_order() {
        let prompt = |path: &str, body: &str| {
            let row = INFERENCE.iter().find(|row| row.path == path).unwrap();
            let prompt = fields(body).prompt(row.prompt);
            (
                prompt
                    .parts()
                    .map(|part| String::from_utf8(part.to_vec()).unwrap())
                    .concat(),
                prompt.tokens(),
            )
        };
        let chat = r#"{"messages":[{"role":"user","content":"hi"}],"tools":[{"a":1}],"n":1}"#;
        assert_eq!(
            prompt("/v1/chat/completions", chat).0,
            r#"[{"a":1}][{"role":"user","content":"hi"}]"#
        );
        assert_eq!(
            prompt("/generate", r#"{"text":"hello"}"#),
            (r#""hello""#.to_owned(), 2)
        );
        assert_eq!(
            prompt("/generate", r#"{"input_ids":[[1,2],[30]]}"#),
            ("[[1,2],[30]]".to_owned(), 2)
        );
        assert_eq!(prompt("/v1/completions", r#"{"prompt":[1, 2, 3]}"#).1, 2);
        assert_eq!(
            prompt("/v1/messages", r#"{"system":"s","messages":[1]}"#).0,
            r#""s"[1]"#
        );
        assert_eq!(
            prompt("/v1/embeddings", r#"{"input":null}"#),
            (String::new(), 0)
        );
    }

    #[test]
    fn a_body_that_is_not_utf8_is_refused() {
        assert_eq!(
            BodyFields::read(b"{\"a\":\"\xff\"}").unwrap_err().status(),
            400
        );
    }

    #[test]
    fn a_body_that_is_no_json_object_is_refused() {
        for body in [
            "",
            "{",
            "[]",
            "1",
            "{\"a\":}",
            "{} {}",
            "{'a':1}",
            "\u{feff}{}",
        ] {
            let error = BodyFields::read(body.as_bytes()).unwrap_err();
            assert_eq!(error.status(), 400, "{body}");
            assert!(error.to_string().contains("JSON object"), "{error}");
        }
    }
}
