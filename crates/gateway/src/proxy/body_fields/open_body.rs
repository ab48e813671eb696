//! A body that fields of the gateway's are added to, for workers in pairs and for data-parallel
//! ranks: where they stand, what of the client's must not pass, how many prompts and samples there are.

use std::ops::Range;

use bytes::Bytes;
use serde_json::Value;

use super::body_fields::LARGE;
use super::json::{Scanner, Skip, SyntaxError};
use super::layout::decoded;
use crate::cpu_pool::CpuPool;
use crate::endpoint::{Inference, Samples};

/// A client's body, open for fields of the gateway's at its end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::proxy) struct OpenBody {
    /// The client's bytes, where nothing must be cut out of them.
    pub(in crate::proxy) whole: Option<Bytes>,
    /// The client's object without its closing brace and without the fields that would steer
    /// engines.
    open: Bytes,
    /// What stands between that and a field that follows: a comma, or nothing.
    comma: &'static str,
    /// The same without `stream`, where the prefill worker's answer is wanted: that comes whole.
    pub(in crate::proxy) unstreamed: Option<Box<Self>>,
    /// The request ids that the client gives.
    pub(in crate::proxy) rids: Vec<String>,
    /// Where in `open` they stand, with the comma behind them, if there is one.
    rid: Range<usize>,
    /// Prompts of a list, which may be one; `None` for a request that is no list.
    pub(in crate::proxy) listed: Option<usize>,
    /// Answers to each prompt, as `/generate` counts them.
    native_samples: u64,
    /// Answers to each prompt, as other endpoints count them.
    samples: u64,
    /// It asks `/generate` for log probabilities of its prompt.
    pub(in crate::proxy) prompt_logprobs: bool,
    /// It asks `/v1/completions` for its prompt with log probabilities.
    pub(in crate::proxy) echoed_logprobs: bool,
}

/// The beginning of a body that fields of the gateway's follow.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::proxy) struct Opening {
    pub(in crate::proxy) parts: [Bytes; 2],
    /// What stands before the next field: a comma, or nothing.
    pub(in crate::proxy) comma: &'static str,
}

/// What is found in one pass.
#[derive(Default)]
struct Found {
    /// The members that must not pass, each with the comma behind it.
    cuts: Vec<Range<usize>>,
    /// The last member stays, so a comma follows it.
    ends_in_member: bool,
    end: usize,
    rid: Range<usize>,
    /// From the member that holds it to the next one, if there is one.
    rid_member: Range<usize>,
    samples: Range<usize>,
    sampling: Range<usize>,
    logprobs: LogprobFields,
    /// Lists of prompts are in one of these.
    prompts: [Range<usize>; 3],
}

/// The fields that ask for log probabilities.
#[derive(Default)]
struct LogprobFields {
    return_logprob: Range<usize>,
    start: Range<usize>,
    token_ids: Range<usize>,
    echo: Range<usize>,
    logprobs: Range<usize>,
}

impl OpenBody {
    /// Reads a body that has been found to be a JSON object.
    ///
    /// # Errors
    /// When it is none.
    pub(super) fn read(body: &Bytes) -> Result<Self, SyntaxError> {
        let mut read = Self::read_less(body, steers)?;
        if read.prompt_logprobs || read.echoed_logprobs {
            let unstreamed = Self::read_less(body, |name| steers(name) || name == b"stream")?;
            read.unstreamed = Some(Box::new(unstreamed));
        }
        Ok(read)
    }

    /// The same less the members whose names are `cut`.
    fn read_less(body: &Bytes, cut: fn(&[u8]) -> bool) -> Result<Self, SyntaxError> {
        let found = Found::read(body, cut)?;
        let raw = |range: &Range<usize>| body.get(range.clone()).unwrap_or_default();
        let open = found.open(body);
        Ok(Self {
            rids: names(raw(&found.rid)),
            rid: found.rid_in(&open),
            listed: found.prompts.iter().find_map(|list| prompts(raw(list))),
            native_samples: native_samples(raw(&found.sampling)),
            samples: samples(raw(&found.samples)),
            prompt_logprobs: found.logprobs.of_prompt(body),
            echoed_logprobs: found.logprobs.echoed(body),
            unstreamed: None,
            whole: found.cuts.is_empty().then(|| body.clone()),
            comma: if found.ends_in_member { "," } else { "" },
            open,
        })
    }

    /// Answers to each prompt, as this endpoint counts them.
    pub(in crate::proxy) fn samples(&self, row: &Inference) -> u64 {
        match row.samples {
            Samples::One => 1,
            Samples::N => self.samples,
            Samples::SamplingParams => self.native_samples,
        }
    }

    /// The client's fields.
    pub(in crate::proxy) fn opening(&self) -> Opening {
        Opening {
            parts: [self.open.clone(), Bytes::new()],
            comma: self.comma,
        }
    }

    /// The client's fields without its request ids.
    pub(in crate::proxy) fn opening_without_rids(&self) -> Opening {
        let Range { start, end } = self.rid.clone();
        let was_last = start < end && end == self.open.len();
        Opening {
            parts: [self.open.slice(..start), self.open.slice(end..)],
            // The comma before the ids has stayed.
            comma: if was_last { "" } else { self.comma },
        }
    }

    /// Reads a body; a large one is read on the CPU pool, for it would hold up every stream of the
    /// lane. `None` for a body that is no JSON object.
    pub(in crate::proxy) async fn read_off_lane(body: &Bytes, pool: &CpuPool) -> Option<Self> {
        if body.len() <= LARGE {
            return Self::read(body).ok();
        }
        let shared = body.clone();
        let read = pool.run(move || Self::read(&shared)).await;
        read.unwrap_or_else(|| Self::read(body)).ok()
    }
}

impl Found {
    /// Reads an object, less the members whose names are `cut`.
    fn read(body: &[u8], cut: fn(&[u8]) -> bool) -> Result<Self, SyntaxError> {
        let mut found = Self::default();
        let mut scanner = Scanner::new(body);
        scanner.expect(b'{', "expected '{'")?;
        if !scanner.pass(b'}') {
            loop {
                found.read_member(&mut scanner, cut)?;
                if !scanner.pass(b',') {
                    break;
                }
                if !found.ends_in_member
                    && let Some(cut) = found.cuts.last_mut()
                {
                    cut.end = scanner.at();
                }
            }
            scanner.expect(b'}', "expected ',' or '}'")?;
        }
        found.end = scanner.at() - 1;
        Ok(found)
    }

    /// Of a repeated field the last one counts, as in Python.
    fn read_member(
        &mut self,
        scanner: &mut Scanner<'_>,
        cut: fn(&[u8]) -> bool,
    ) -> Result<(), SyntaxError> {
        scanner.peek();
        let start = scanner.at();
        self.rid_member.end = self.rid_member.end.min(start);
        let name = scanner.key()?;
        let name = decoded(scanner.slice(name));
        let value = scanner.value(&mut Skip)?;
        self.ends_in_member = !cut(&name);
        if !self.ends_in_member {
            self.cuts.push(start..value.end);
            return Ok(());
        }
        let [text, input_ids, prompt] = &mut self.prompts;
        let field = match &*name {
            b"rid" => {
                self.rid_member = start..usize::MAX;
                &mut self.rid
            }
            b"n" => &mut self.samples,
            b"sampling_params" => &mut self.sampling,
            b"text" => text,
            b"input_ids" => input_ids,
            b"prompt" => prompt,
            b"return_logprob" => &mut self.logprobs.return_logprob,
            b"logprob_start_len" => &mut self.logprobs.start,
            b"token_ids_logprob" => &mut self.logprobs.token_ids,
            b"echo" => &mut self.logprobs.echo,
            b"logprobs" => &mut self.logprobs.logprobs,
            _ => return Ok(()),
        };
        *field = value;
        Ok(())
    }

    fn open(&self, body: &Bytes) -> Bytes {
        if self.cuts.is_empty() {
            return body.slice(..self.end);
        }
        let mut open = Vec::with_capacity(self.end);
        let mut at = 0;
        for cut in &self.cuts {
            open.extend_from_slice(body.get(at..cut.start).unwrap_or_default());
            at = cut.end;
        }
        open.extend_from_slice(body.get(at..self.end).unwrap_or_default());
        open.into()
    }

    /// Where the client's request ids stand in what `open` gives.
    fn rid_in(&self, open: &[u8]) -> Range<usize> {
        let Range { start, end } = self.rid_member;
        let before = self.cuts.iter().filter(|cut| cut.end <= start);
        let shift: usize = before.map(ExactSizeIterator::len).sum();
        start - shift..(end - shift).min(open.len())
    }
}

impl LogprobFields {
    /// A start of -1, the default, means none of the prompt.
    fn of_prompt(&self, body: &[u8]) -> bool {
        let asked = any(body, &self.return_logprob, |value| *value == true);
        let start = any(body, &self.start, |value| {
            value.as_i64().is_some_and(|start| start >= 0)
        });
        asked && (start || any(body, &self.token_ids, |value| !value.is_null()))
    }

    fn echoed(&self, body: &[u8]) -> bool {
        any(body, &self.echo, |value| *value == true)
            && any(body, &self.logprobs, |value| !value.is_null())
    }
}

/// Whether a value, or one of a list, is so.
fn any(body: &[u8], at: &Range<usize>, is: impl Fn(&Value) -> bool) -> bool {
    match serde_json::from_slice(body.get(at.clone()).unwrap_or_default()) {
        Ok(Value::Array(list)) => list.iter().any(is),
        Ok(value) => is(&value),
        Err(_) => false,
    }
}

/// Whether a field steers an engine's part in a pair: which prefill worker it asks, in which room,
/// on which rank.
fn steers(name: &[u8]) -> bool {
    name.starts_with(b"bootstrap_")
        || matches!(
            name,
            b"routed_dp_rank"
                | b"data_parallel_rank"
                | b"disagg_prefill_dp_rank"
                | b"decode_tp_size"
        )
}

/// The string, or the strings of a list.
fn names(json: &[u8]) -> Vec<String> {
    match serde_json::from_slice(json) {
        Ok(Value::String(name)) => vec![name],
        Ok(Value::Array(names)) => {
            let names = names.iter().filter_map(Value::as_str);
            names.map(str::to_owned).collect()
        }
        _ => Vec::new(),
    }
}

/// How many prompts a field holds, if it is a list of strings or of lists.
fn prompts(json: &[u8]) -> Option<usize> {
    let mut scanner = Scanner::new(json);
    if !scanner.pass(b'[') || !matches!(scanner.peek(), Some(b'"' | b'[')) {
        return None;
    }
    let mut count = 0;
    while scanner.value(&mut Skip).is_ok() {
        count += 1;
        if !scanner.pass(b',') {
            break;
        }
    }
    Some(count)
}

/// Answers to each prompt by SGLang's sampling parameters, of one prompt or of a list.
fn native_samples(sampling: &[u8]) -> u64 {
    match serde_json::from_slice(sampling) {
        Ok(Value::Array(list)) => list.iter().map(|it| count(&it["n"])).max().unwrap_or(1),
        Ok(value) => count(&value["n"]),
        Err(_) => 1,
    }
}

/// Answers to each prompt by OpenAI's `n`.
fn samples(n: &[u8]) -> u64 {
    let n = serde_json::from_slice(n).ok();
    n.as_ref().map_or(1, count)
}

/// A number as engines read it: they also take `2.0` and `"2"`. One that is not whole is more than
/// any limit.
pub(in crate::proxy) fn count(value: &Value) -> u64 {
    if let Some(count) = value.as_u64() {
        return count;
    }
    let text = value.as_str().and_then(|text| text.trim().parse().ok());
    match value.as_f64().or(text) {
        Some(number) if number > 1.0 => format!("{number}").parse().unwrap_or(u64::MAX),
        _ => 1,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(body: &str) -> OpenBody {
        OpenBody::read(&Bytes::copy_from_slice(body.as_bytes())).unwrap()
    }

    /// What a beginning becomes with a field of the gateway's.
    fn closed(opening: &Opening) -> String {
        let Opening { parts, comma } = opening;
        let fields = String::from_utf8(parts.concat()).unwrap();
        format!("{fields}{comma}\"ours\":1}}")
    }

    fn spliced(body: &str) -> String {
        closed(&read(body).opening())
    }

    #[test]
    fn field_of_the_gateway_stands_behind_the_clients() {
        assert_eq!(
            spliced(r#"{"a":[1,{"b":2}]} "#),
            r#"{"a":[1,{"b":2}],"ours":1}"#
        );
        assert_eq!(spliced("{ }"), r#"{ "ours":1}"#);
        assert_eq!(spliced("{\"a\":1\n}"), "{\"a\":1\n,\"ours\":1}");
    }

    #[test]
    fn body_without_steering_fields_is_not_copied() {
        let body = Bytes::from_static(br#"{"text":"x","stream":true} "#);
        let read = OpenBody::read(&body).unwrap();
        assert_eq!(read.whole.as_ref(), Some(&body));
        assert_eq!(read.open.as_ptr(), body.as_ptr());
        let steered = self::read(r#"{"text":"x","bootstrap_room":7}"#);
        assert_eq!(steered.whole, None);
    }

    #[test]
    fn steering_fields_of_the_client_do_not_pass() {
        for body in [
            r#"{"bootstrap_room":[7],"text":"x"}"#,
            r#"{"text":"x","bootstrap_room":7}"#,
            r#"{"bootstrap_host":"evil","text":"x","bootstrap_port":1, "routed_dp_rank":0}"#,
            r#"{"text":"x","bootstrap\u005froom":7,"disagg_prefill_dp_rank":1}"#,
            r#"{"data_parallel_rank":0,"text":"x","bootstrap_anything":{"a":"}"}}"#,
        ] {
            let spliced: Value = serde_json::from_str(&spliced(body)).unwrap();
            assert_eq!(
                spliced,
                serde_json::json!({"text": "x", "ours": 1}),
                "{body}"
            );
        }
        assert_eq!(spliced(r#"{"bootstrap_room":7}"#), r#"{"ours":1}"#);
    }

    #[test]
    fn prompts_and_samples_are_counted_in_every_form() {
        for (body, prompts, native, samples) in [
            (r#"{"text":"a"}"#, None, 1, 1),
            (
                r#"{"text":["a","b,]"],"sampling_params":{"n":2},"n":5}"#,
                Some(2),
                2,
                5,
            ),
            (r#"{"input_ids":[1,2,3]}"#, None, 1, 1),
            (r#"{"input_ids":[[1],[2,3],[]]}"#, Some(3), 1, 1),
            (r#"{"prompt":["a"],"n":4}"#, Some(1), 1, 4),
            (r#"{"prompt":[],"n":null}"#, None, 1, 1),
            (r#"{"prompt":"a","n":" 3 "}"#, None, 1, 3),
            (r#"{"prompt":"a","n":2.0}"#, None, 1, 2),
            (r#"{"prompt":"a","n":2.5}"#, None, 1, u64::MAX),
            (r#"{"prompt":"a","n":1e300}"#, None, 1, u64::MAX),
            (r#"{"text":"a","sampling_params":{"n":3e0}}"#, None, 3, 1),
            (
                r#"{"text":["a","b"],"sampling_params":[{"n":1},{"n":3}]}"#,
                Some(2),
                3,
                1,
            ),
        ] {
            let source = read(body);
            assert_eq!(
                (source.listed, source.native_samples, source.samples),
                (prompts, native, samples),
                "{body}"
            );
        }
    }

    #[test]
    fn log_probabilities_of_the_prompt_are_asked_for_in_several_ways() {
        for (body, of_prompt, echoed) in [
            (
                r#"{"return_logprob":true,"logprob_start_len":0}"#,
                true,
                false,
            ),
            (
                r#"{"return_logprob":[false,true],"logprob_start_len":[-1,2]}"#,
                true,
                false,
            ),
            (
                r#"{"return_logprob":true,"token_ids_logprob":[1,2]}"#,
                true,
                false,
            ),
            (r#"{"return_logprob":true}"#, false, false),
            (
                r#"{"return_logprob":true,"logprob_start_len":-1}"#,
                false,
                false,
            ),
            (r#"{"logprob_start_len":0}"#, false, false),
            (r#"{"echo":true,"logprobs":1}"#, false, true),
            (r#"{"echo":true,"logprobs":null}"#, false, false),
            (r#"{"logprobs":1}"#, false, false),
        ] {
            let source = read(body);
            let found = (source.prompt_logprobs, source.echoed_logprobs);
            assert_eq!(found, (of_prompt, echoed), "{body}");
        }
    }

    #[test]
    fn request_ids_of_the_client_are_known() {
        assert_eq!(read(r#"{"rid":"a\u0062"}"#).rids, ["ab"]);
        assert_eq!(read(r#"{"rid":["a","b"]}"#).rids, ["a", "b"]);
        assert!(read(r#"{"rid":null}"#).rids.is_empty());
    }

    #[test]
    fn request_ids_of_the_client_can_be_left_out() {
        for body in [
            r#"{"rid":"a","text":"x"}"#,
            r#"{"text":"x" , "rid":["a","b"] }"#,
            r#"{"bootstrap_room":7, "rid":"a", "text":"x"}"#,
            r#"{"routed_dp_rank":0,"text":"x","rid":"a","bootstrap_room":7}"#,
            r#"{"text":"x","rid":"a"}"#,
            r#"{"text":"x","rid":"a","bootstrap_room":7}"#,
            r#"{"text":"x"}"#,
        ] {
            let text = closed(&read(body).opening_without_rids());
            let spliced: Value = serde_json::from_str(&text).unwrap();
            let expected = serde_json::json!({"text": "x", "ours": 1});
            assert_eq!(spliced, expected, "{body}");
        }
    }
}
