//! The fields of a request's body that routing reads: borrowed, in one pass, nothing decoded.

use std::borrow::Cow;
use std::ops::Range;

use bytes::Bytes;
use memchr::{memchr_iter, memrchr};
use routing::{MediaTokens, Part, Prompt};
use serde::Deserialize;

use super::json::{Scanner, Skip, SyntaxError};
use super::layout::{CacheLabel, Layout, StateField};
use crate::balancer::NamedAdapters;
use crate::cpu_pool::CpuPool;
use crate::endpoint::{INFERENCE, Inference, PromptField, State};
use crate::error::Error;
use crate::proxy::form::FormFields;
use crate::proxy::owners::{Kind, StateId};

/// Bodies beyond this are read on the CPU pool, bytes.
pub(in crate::proxy) const LARGE: usize = 256 * 1024;

/// The fields of a request body that routing reads. Everything else is only checked to be JSON.
#[derive(Debug, Default, PartialEq, Eq)]
pub(in crate::proxy) struct BodyFields<'a> {
    pub(in crate::proxy) model: Option<Cow<'a, str>>,
    pub(in crate::proxy) stream: bool,
    /// The model's name is that of an adapter.
    names_adapter: bool,
    body: &'a [u8],
    layout: Layout,
}

impl<'a> BodyFields<'a> {
    /// Reads a JSON object, as SGLang's parsers do.
    pub(in crate::proxy) fn read(body: &'a [u8]) -> Result<Self, Error> {
        // Filled in place: to move it about would cost as much as to read a short body.
        let mut fields = Self {
            names_adapter: false,
            model: None,
            stream: false,
            body,
            layout: Layout::default(),
        };
        if let Err(error) = fields.layout.fill(body) {
            return Err(refusal(body, error));
        }
        fields.stream = fields.layout.stream;
        fields.model = text(fields.raw(fields.layout.model.clone()));
        Ok(fields)
    }

    fn new(body: &'a [u8], layout: Layout) -> Self {
        Self {
            model: text(body.get(layout.model.clone()).unwrap_or_default()),
            stream: layout.stream,
            names_adapter: false,
            body,
            layout,
        }
    }

    /// What a form names.
    pub(in crate::proxy) fn of_form(form: FormFields) -> Self {
        Self {
            model: form.model.map(Cow::Owned),
            stream: form.stream,
            ..Self::default()
        }
    }

    /// As [`read`](Self::read), but a large body is read on the CPU pool, for it would hold up
    /// every stream of the lane.
    pub(in crate::proxy) async fn read_off_lane(
        body: &'a Bytes,
        pool: &CpuPool,
    ) -> Result<Self, Error> {
        if body.len() <= LARGE {
            return Self::read(body);
        }
        let shared = body.clone();
        let read = pool.run(move || read_layout(&shared)).await;
        let layout = read.unwrap_or_else(|| read_layout(body))?;
        Ok(Self::new(body, layout))
    }

    /// The prompt, made of these fields; its media have so many tokens.
    pub(in crate::proxy) fn prompt(
        &self,
        fields: [PromptField; 3],
        media_tokens: MediaTokens,
    ) -> Prompt<'_> {
        let prompt = match fields.map(|field| self.json(field)) {
            [list, b"", b""] | [b"", list, b""] if is_ids(list) => Prompt::ids(list),
            _ => Prompt::new(fields.map(|field| self.part(field))),
        };
        let prompt = prompt.with_media(self.layout.media(), media_tokens);
        let (adapter, labels) = (self.adapter_in_model(), self.layout.labels());
        if adapter.is_none() && labels.is_none() {
            return prompt;
        }
        let adapter = adapter.unwrap_or_default().as_bytes();
        let [one, two, three] = labels.unwrap_or_default().map(|at| self.raw(at));
        prompt.in_namespace([adapter, one, two, three])
    }

    /// The body without the billing headers that these fields begin with. It is valid JSON.
    pub(in crate::proxy) fn without_billing_header(
        &self,
        fields: [PromptField; 3],
    ) -> [&'a [u8]; 3] {
        // No endpoint has more than two fields with one: a system prompt and messages.
        let mut cuts = fields.map(|field| self.layout.billing_header(field));
        cuts.sort_unstable_by_key(|cut| cut.as_ref().map_or(usize::MAX, |cut| cut.start));
        let end = self.body.len()..self.body.len();
        let [first, second, _] = cuts.map(|cut| cut.unwrap_or(end.clone()));
        [
            self.raw(0..first.start),
            self.raw(first.end..second.start),
            self.raw(second.end..self.body.len()),
        ]
    }

    /// The model's name turns out to be that of an adapter.
    pub(in crate::proxy) fn set_names_adapter(&mut self) {
        self.names_adapter = true;
    }

    /// The adapter that stands in the model's name, alone or as in `base:adapter`.
    fn adapter_in_model(&self) -> Option<&str> {
        let name = self.model.as_deref()?;
        if self.names_adapter {
            return Some(name);
        }
        name.split_once(':').map(|(_, adapter)| adapter)
    }

    /// The adapter that stands in a field of its own, `lora_path`; of a list, none.
    pub(in crate::proxy) fn adapter(&self) -> Option<&'a str> {
        let at = self.layout.label(CacheLabel::LoraPath);
        let name = std::str::from_utf8(self.raw(at)).ok()?;
        (!name.is_empty() && !name.starts_with(['[', '{'])).then_some(name)
    }

    /// The adapters in that field, a list included.
    pub(in crate::proxy) fn adapters(&self, row: &Inference) -> NamedAdapters<'a> {
        let json = self.raw(self.layout.label(CacheLabel::LoraPath));
        let list = json.starts_with(b"[").then(|| serde_json::from_slice(json));
        let names: Option<Vec<Option<Cow<'a, str>>>> = match list {
            _ if row.nests_fields => None,
            Some(list) => list.ok(),
            None if json.starts_with(b"{") => None,
            None => std::str::from_utf8(json)
                .ok()
                .map(|name| vec![Some(name.into())]),
        };
        names.map_or(NamedAdapters::Unreadable, |names| {
            let names = names.into_iter().flatten();
            NamedAdapters::These(names.filter(|name| !name.is_empty()).collect())
        })
    }

    /// The most tokens that the request lets be generated, if it says that.
    pub(in crate::proxy) fn longest_output(&self) -> Option<u64> {
        self.layout.longest_output.map(u64::from)
    }

    /// The endpoint whose shape the body has.
    pub(in crate::proxy) fn likely_endpoint(&self) -> &'static Inference {
        let has = |field| !self.json(field).is_empty();
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

    /// The name of what one worker keeps for this request, where `row` can name something.
    pub(in crate::proxy) fn state(&self, row: &Inference) -> Option<StateId<'a>> {
        self.layout.states().iter().find_map(|(field, at)| {
            let json = self.raw(at.clone());
            let (kind, id) = match (field, row.state) {
                (StateField::PreviousResponse, State::Responses) => (Kind::Response, text(json)),
                (StateField::Session, State::ClosesSession) => (Kind::Session, text(json)),
                (StateField::SessionParams, State::None) => (Kind::Session, session_of(json)),
                _ => return None,
            };
            let id = id.filter(|id| !id.is_empty())?;
            Some(StateId { kind, id })
        })
    }

    fn raw(&self, at: Range<usize>) -> &'a [u8] {
        self.body.get(at).unwrap_or_default()
    }

    /// The raw JSON of a field; empty for a field that is absent or null.
    fn json(&self, field: PromptField) -> &'a [u8] {
        self.raw(self.layout.field(field).0)
    }

    fn part(&self, field: PromptField) -> Part<'_> {
        let (json, cuts) = self.layout.field(field);
        Part::new(self.raw(json), cuts)
    }
}

fn read_layout(body: &[u8]) -> Result<Layout, Error> {
    Layout::read(body).map_err(|error| refusal(body, error))
}

/// What a client reads about a body that is no JSON object.
fn refusal(body: &[u8], SyntaxError { what, at }: SyntaxError) -> Error {
    let mut scanner = Scanner::new(body);
    let is_json = scanner.peek() != Some(b'{')
        && scanner.value(&mut Skip).is_ok()
        && scanner.expect_end().is_ok();
    let kind = if is_json {
        "Invalid JSON data"
    } else {
        "JSON syntax error"
    };
    let before = body.get(..at).unwrap_or(body);
    let line = memchr_iter(b'\n', before).count() + 1;
    let column = at - memrchr(b'\n', before).map_or(0, |end| end + 1) + 1;
    Error::Json(format!(
        "{kind}: {what} at line {line} column {column}; expected a JSON object"
    ))
}

/// A JSON list, or list of lists, of numbers.
fn is_ids(json: &[u8]) -> bool {
    let mut inner = json.iter().skip_while(|byte| b"[ \n\r\t".contains(byte));
    json.first() == Some(&b'[') && inner.next().is_some_and(u8::is_ascii_digit)
}

/// The session that `session_params` name.
fn session_of(json: &[u8]) -> Option<Cow<'_, str>> {
    #[derive(Deserialize)]
    struct Params<'a> {
        #[serde(borrow)]
        id: Option<Cow<'a, str>>,
    }
    // Of a list, as a batch has one, the first counts.
    let json = json
        .strip_prefix(b"[")
        .map_or(json, <[u8]>::trim_ascii_start);
    let mut params = serde_json::Deserializer::from_slice(json).into_iter::<Params<'_>>();
    params.next()?.ok()?.id
}

/// The text of a JSON string.
fn text(json: &[u8]) -> Option<Cow<'_, str>> {
    let content = json.strip_prefix(b"\"")?.strip_suffix(b"\"")?;
    if content.contains(&b'\\') {
        return serde_json::from_slice(json).ok().map(Cow::Owned);
    }
    std::str::from_utf8(content).ok().map(Cow::Borrowed)
}

#[cfg(any(test, fuzzing))]
impl BodyFields<'_> {
    /// The raw JSON of a field; empty for a field that is absent or null.
    pub(in crate::proxy) fn raw_json(&self, field: PromptField) -> &[u8] {
        self.json(field)
    }

    /// The prompt of an endpoint.
    pub(in crate::proxy) fn prompt_of(&self, path: &str) -> Prompt<'_> {
        let row = INFERENCE.iter().find(|row| row.path == path);
        let fields = row.map_or([PromptField::None; 3], |row| row.prompt);
        self.prompt(fields, MediaTokens::default())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fields(body: &str) -> BodyFields<'_> {
        BodyFields::read(body.as_bytes()).unwrap()
    }

    fn prompt(path: &str, body: &str) -> (String, u64) {
        let fields = fields(body);
        let prompt = fields.prompt_of(path);
        let content = prompt.pieces().collect::<Vec<_>>().concat();
        (String::from_utf8(content).unwrap(), prompt.tokens())
    }

    #[test]
    fn only_model_and_stream_are_read() {
        let body =
            r#"{"messages":[{"model":"no"}],"m\u006fdel":"a\u0062","stream":true,"x":1e999}"#;
        let fields = fields(body);
        assert_eq!(fields.model.as_deref(), Some("ab"));
        assert!(fields.stream);
    }

    #[test]
    fn fields_of_another_type_count_as_absent() {
        for body in [
            r#"{"model":7,"stream":"yes"}"#,
            r#"{"model":null,"stream":null}"#,
        ] {
            let fields = fields(body);
            assert!(fields.model.is_none() && !fields.stream, "{body}");
        }
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
        let twice = r#"{"text":"first","text":"second"}"#;
        assert_eq!(prompt("/generate", twice).0, r#""second""#);
    }

    #[test]
    fn deep_nesting_is_accepted_within_a_bound() {
        let deep = |depth| {
            let body = format!(r#"{{"a":{}{}}}"#, "[".repeat(depth), "]".repeat(depth));
            BodyFields::read(body.as_bytes()).map(|_| ())
        };
        assert!(deep(1000).is_ok());
        assert_eq!(deep(100_000).unwrap_err().status(), 400);
    }

    #[test]
    fn a_prompt_is_the_raw_json_of_its_fields_in_order() {
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
            ("[[1,2],[30]]".to_owned(), 3)
        );
        assert_eq!(prompt("/v1/completions", r#"{"prompt":[1, 2, 3]}"#).1, 3);
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
    fn documents_and_batches_weigh_all_they_hold() {
        let rerank = r#"{"documents":["one","two"],"query":"which"}"#;
        assert_eq!(prompt("/v1/rerank", rerank).0, r#""which"["one","two"]"#);
        let score = r#"{"items":["one","two"],"query":"which"}"#;
        assert_eq!(prompt("/v1/score", score).0, r#""which"["one","two"]"#);
        let batch = r#"{"text":["one two three four","five six seven"]}"#;
        assert_eq!(prompt("/generate", batch).1, 10);
    }

    #[test]
    fn json_that_only_some_parsers_take_is_read_like_any_other() {
        let body = "\u{feff}{\"model\":\"m\",\"x\":[NaN,-Infinity],\"text\":\"\\ud83d\"}";
        let fields = fields(body);
        assert_eq!(fields.model.as_deref(), Some("m"));
        assert_eq!(fields.raw_json(PromptField::Text), br#""\ud83d""#);
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
        for (body, why) in [
            ("", "JSON syntax error: unexpected end at line 1 column 1"),
            ("{", "JSON syntax error: unexpected end at line 1 column 2"),
            ("[]", "Invalid JSON data: expected '{' at line 1 column 1"),
            ("1", "Invalid JSON data"),
            ("{\n\"a\":}", "expected a value at line 2 column 5"),
            ("{} {}", "trailing characters at line 1 column 4"),
            ("{'a':1}", "expected a name in double quotes"),
        ] {
            let error = BodyFields::read(body.as_bytes()).unwrap_err();
            assert_eq!(error.status(), 400, "{body}");
            assert!(error.to_string().contains("JSON object"), "{error}");
            assert!(error.to_string().contains(why), "{error}");
        }
    }

    #[test]
    fn longest_output_is_read_wherever_engines_take_it_from() {
        for (body, longest) in [
            (r#"{"max_tokens":64}"#, Some(64)),
            (r#"{"max_completion_tokens": 7 ,"model":"m"}"#, Some(7)),
            (r#"{"max_output_tokens":9}"#, Some(9)),
            (
                r#"{"text":"a","sampling_params":{"top_p":1,"max_new_tokens": 12}}"#,
                Some(12),
            ),
            (r#"{"max_tokens":null}"#, None),
            (r#"{"max_tokens":"many"}"#, None),
            (r#"{"max_tokens":99999999999999999999}"#, None),
            (r#"{"messages":[{"max_tokens":5}]}"#, None),
        ] {
            assert_eq!(fields(body).longest_output(), longest, "{body}");
        }
    }
}
