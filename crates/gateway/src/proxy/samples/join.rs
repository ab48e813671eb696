//! The answers of several requests for one answer each, as the answer to one request.

use std::iter;
use std::ops::Range;

use bytes::Bytes;
use serde_json::{Map, Value};

use crate::proxy::body_fields::{elements, member, splice};

/// One of the answers to each prompt of a request.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sample {
    pub(super) at: usize,
    /// Answers to each prompt.
    pub(super) of: usize,
}

impl Sample {
    /// The place among all answers: prompt by prompt (`managers/tokenizer_manager.py`).
    fn place(self, prompt: usize) -> usize {
        prompt * self.of + self.at
    }
}

/// What an event of one of the streams is for the joined one.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Event {
    /// A piece of an answer, under its index among all.
    Piece(Vec<u8>),
    /// The tokens of this stream, in an event of its own.
    Usage(Bytes),
    /// The worker has failed.
    Failure,
    /// The end of this stream.
    Done,
}

/// Reads the data of an event. All events of the joined stream carry one `id`: the first.
pub(super) fn event(data: &Bytes, sample: Sample, id: &mut Option<Vec<u8>>) -> Event {
    if data.trim_ascii() == b"[DONE]" {
        return Event::Done;
    }
    let Some(choices) = member(data, "choices") else {
        if member(data, "error").is_some() {
            return Event::Failure;
        }
        return Event::Piece(native_piece(data, sample));
    };
    let each = parts(data, &choices).unwrap_or_default();
    if each.is_empty() && usage_in(data).is_some() {
        return Event::Usage(data.clone());
    }
    let mut splices = Vec::new();
    for choice in each {
        if let Some(at) = member_at(data, &choice, "index") {
            splices.push((at.clone(), placed(data, at, sample)));
        }
    }
    if let Some(at) = member(data, "id") {
        let own = data.get(at.clone()).unwrap_or_default();
        splices.push((at, id.get_or_insert_with(|| own.to_vec()).clone()));
    }
    Event::Piece(splice(data, splices))
}

/// A piece of `/generate`, which names a prompt only where several are asked about.
fn native_piece(data: &[u8], sample: Sample) -> Vec<u8> {
    if let Some(at) = member(data, "index") {
        return splice(data, vec![(at.clone(), placed(data, at, sample))]);
    }
    let text = data.trim_ascii_end();
    let Some(open) = text.strip_suffix(b"}") else {
        return data.to_vec();
    };
    let comma = if open.trim_ascii() == b"{" { "" } else { "," };
    let index = format!("{comma}\"index\":{}}}", sample.place(0));
    [open, index.as_bytes()].concat()
}

/// The index at a place, as it is among all answers.
fn placed(data: &[u8], at: Range<usize>, sample: Sample) -> Vec<u8> {
    sample.place(number(data, at)).to_string().into()
}

/// The answers to a request, as one. `None` where they are none of SGLang's.
pub(super) fn whole(answers: &[Bytes]) -> Option<Vec<u8>> {
    let first = answers.first()?;
    let Some(choices) = member(first, "choices") else {
        return native_whole(answers);
    };
    let mut all = Vec::new();
    for (at, answer) in answers.iter().enumerate() {
        let of = answers.len();
        let sample = Sample { at, of };
        for choice in parts(answer, &member(answer, "choices")?)? {
            let text = answer.get(choice)?;
            let at = member(text, "index")?;
            let place = sample.place(number(text, at.clone()));
            all.push((place, splice(text, vec![(at, place.to_string().into())])));
        }
    }
    all.sort_by_key(|(place, _)| *place);
    let texts: Vec<_> = all.into_iter().map(|(_, text)| text).collect();
    let mut splices = vec![(choices, list(&texts))];
    if let Some(at) = usage_in(first) {
        splices.push((at, usage(answers)?));
    }
    Some(splice(first, splices))
}

/// The answers of `/generate`: a list, prompt by prompt.
fn native_whole(answers: &[Bytes]) -> Option<Vec<u8>> {
    let mut prompts: Vec<Vec<&[u8]>> = Vec::new();
    for answer in answers {
        let single = |text: &Bytes| text.trim_ascii().starts_with(b"{");
        let each = match elements(answer) {
            Some(each) => each,
            None if single(answer) => iter::once(0..answer.len()).collect(),
            None => return None,
        };
        prompts.resize(prompts.len().max(each.len()), Vec::new());
        for (prompt, at) in prompts.iter_mut().zip(each) {
            prompt.push(answer.get(at)?);
        }
    }
    Some(list(&prompts.concat()))
}

/// The last event of tokens for all streams, of those that they gave.
pub(super) fn usage_event(events: &[Bytes], id: Option<&Vec<u8>>) -> Option<Vec<u8>> {
    let first = events.first()?;
    let mut splices = vec![(usage_in(first)?, usage(events)?)];
    if let (Some(at), Some(id)) = (member(first, "id"), id) {
        splices.push((at, id.clone()));
    }
    Some(splice(first, splices))
}

/// Where the tokens of an answer stand, if it counts them.
fn usage_in(answer: &[u8]) -> Option<Range<usize>> {
    member(answer, "usage").filter(|at| answer.get(at.start) == Some(&b'{'))
}

/// The tokens of all answers: prompts are counted once (`openai/usage_processor.py`).
fn usage(answers: &[Bytes]) -> Option<Vec<u8>> {
    let each = answers.iter().map(|answer| {
        let text = answer.get(usage_in(answer)?)?;
        serde_json::from_slice::<Map<String, Value>>(text).ok()
    });
    let mut each = each.collect::<Option<Vec<_>>>()?.into_iter();
    let mut sum = each.next()?;
    for other in each {
        for name in ["completion_tokens", "reasoning_tokens"] {
            add(&mut sum, &other, name);
        }
        let details = (
            sum.get_mut("completion_tokens_details"),
            other.get("completion_tokens_details"),
        );
        if let (Some(Value::Object(sum)), Some(Value::Object(other))) = details {
            for name in other.keys() {
                add(sum, other, name);
            }
        }
    }
    let tokens = |name| sum.get(name).and_then(Value::as_u64).unwrap_or_default();
    let total = tokens("prompt_tokens") + tokens("completion_tokens");
    if let Some(known) = sum.get_mut("total_tokens") {
        *known = total.into();
    }
    serde_json::to_vec(&sum).ok()
}

fn add(sum: &mut Map<String, Value>, other: &Map<String, Value>, name: &str) {
    let number = |of: &Map<String, Value>| of.get(name).and_then(Value::as_u64);
    if let Some(more) = number(other) {
        let before = number(sum).unwrap_or_default();
        sum.insert(name.to_owned(), (before + more).into());
    }
}

fn list(texts: &[impl AsRef<[u8]>]) -> Vec<u8> {
    let mut list = vec![b'['];
    for (at, text) in texts.iter().enumerate() {
        if at > 0 {
            list.push(b',');
        }
        list.extend_from_slice(text.as_ref());
    }
    list.push(b']');
    list
}

/// The places of the elements of the list at a place, if it is one.
fn parts(data: &[u8], list: &Range<usize>) -> Option<Vec<Range<usize>>> {
    let each = elements(data.get(list.clone())?)?.into_iter();
    let each = each.map(|it| list.start + it.start..list.start + it.end);
    Some(each.collect())
}

/// The place of a member of the object at a place.
fn member_at(data: &[u8], object: &Range<usize>, name: &str) -> Option<Range<usize>> {
    let found = member(data.get(object.clone())?, name)?;
    Some(object.start + found.start..object.start + found.end)
}

fn number(data: &[u8], at: Range<usize>) -> usize {
    let text = data.get(at).and_then(|text| std::str::from_utf8(text).ok());
    text.and_then(|text| text.parse().ok()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND_OF_TWO: Sample = Sample { at: 1, of: 2 };

    fn bytes(text: &str) -> Bytes {
        Bytes::copy_from_slice(text.as_bytes())
    }

    fn piece(data: &str) -> String {
        let mut id = Some(br#""first""#.to_vec());
        match event(&bytes(data), SECOND_OF_TWO, &mut id) {
            Event::Piece(piece) => String::from_utf8(piece).unwrap(),
            other => panic!("{other:?}"),
        }
    }

    fn joined(answers: &[&str]) -> Option<String> {
        let answers: Vec<_> = answers.iter().map(|it| bytes(it)).collect();
        whole(&answers).map(|joined| String::from_utf8(joined).unwrap())
    }

    #[test]
    fn index_and_id_of_a_piece_are_those_of_the_joined_stream_and_all_else_stays() {
        assert_eq!(
            piece(
                r#"{"id":"own", "choices":[{"index":0,"delta":{"index":0,"content":"\u00e9"}}],"x":1e2}"#
            ),
            r#"{"id":"first", "choices":[{"index":1,"delta":{"index":0,"content":"\u00e9"}}],"x":1e2}"#
        );
        // Of a list of prompts.
        assert_eq!(
            piece(r#"{"choices":[{"index": 3}],"usage":null}"#),
            r#"{"choices":[{"index": 7}],"usage":null}"#
        );
    }

    #[test]
    fn piece_of_generate_gets_an_index_or_a_new_one() {
        assert_eq!(piece(r#"{"text":"a"}"#), r#"{"text":"a","index":1}"#);
        assert_eq!(piece("{} "), r#"{"index":1}"#);
        assert_eq!(
            piece(r#"{"index":2,"text":"a"}"#),
            r#"{"index":5,"text":"a"}"#
        );
        assert_eq!(piece("no JSON"), "no JSON");
    }

    #[test]
    fn first_id_is_that_of_all() {
        let mut id = None;
        event(&bytes(r#"{"id":"a","choices":[]}"#), SECOND_OF_TWO, &mut id);
        assert_eq!(id.as_deref(), Some(br#""a""#.as_slice()));
    }

    #[test]
    fn end_tokens_and_failure_are_told_from_pieces() {
        let of = |data: &str| event(&bytes(data), SECOND_OF_TWO, &mut None);
        assert_eq!(of("[DONE]"), Event::Done);
        assert_eq!(of(r#"{"error":{"message":"x"}}"#), Event::Failure);
        let usage = r#"{"choices":[],"usage":{"total_tokens":1}}"#;
        assert_eq!(of(usage), Event::Usage(bytes(usage)));
        assert!(matches!(
            of(r#"{"choices":[],"usage":null}"#),
            Event::Piece(_)
        ));
    }

    #[test]
    fn choices_of_all_answers_stand_in_one_list_prompt_by_prompt() {
        let answer = |text: &str, tokens: u64| {
            format!(
                r#"{{"id":"{text}","choices":[{{"text":"{text}0","index":0}},{{"index":1,"text":"{text}1"}}],"usage":{{"prompt_tokens":4,"completion_tokens":{tokens},"total_tokens":{}}}}}"#,
                4 + tokens
            )
        };
        let expected = r#"{"id":"a","choices":[{"text":"a0","index":0},{"text":"b0","index":1},{"index":2,"text":"a1"},{"index":3,"text":"b1"}],"usage":{"completion_tokens":5,"prompt_tokens":4,"total_tokens":9}}"#;
        assert_eq!(
            joined(&[&answer("a", 2), &answer("b", 3)]).unwrap(),
            expected
        );
    }

    #[test]
    fn tokens_of_prompts_count_once_and_details_of_answers_are_added() {
        let usage = |cached: u64, reasoning: u64| {
            let text = format!(
                r#"{{"usage":{{"prompt_tokens":4,"completion_tokens":2,"reasoning_tokens":{reasoning},"total_tokens":6,"prompt_tokens_details":{{"cached_tokens":{cached}}},"completion_tokens_details":{{"reasoning_tokens":{reasoning}}}}}}}"#
            );
            bytes(&text)
        };
        let sum = usage_of(&[usage(0, 1), usage(3, 2), usage(3, 0)]);
        assert_eq!(sum["prompt_tokens_details"]["cached_tokens"], 0);
        assert_eq!(sum["completion_tokens_details"]["reasoning_tokens"], 3);
        let numbers = [
            "prompt_tokens",
            "completion_tokens",
            "reasoning_tokens",
            "total_tokens",
        ];
        assert_eq!(
            numbers.map(|name| sum[name].as_u64().unwrap()),
            [4, 6, 3, 10]
        );
    }

    fn usage_of(answers: &[Bytes]) -> Value {
        serde_json::from_slice(&usage(answers).unwrap()).unwrap()
    }

    #[test]
    fn answers_of_generate_are_a_list_prompt_by_prompt() {
        assert_eq!(
            joined(&[r#"{"text":"a"}"#, r#"{"text":"b"}"#]).unwrap(),
            r#"[{"text":"a"},{"text":"b"}]"#
        );
        assert_eq!(joined(&["[1,2]", "[3, 4]"]).unwrap(), "[1,3,2,4]");
    }

    #[test]
    fn answer_of_another_form_is_not_joined() {
        for other in ["x", "", r#"{"choices":{}"#, r#"{"choices":[{}]}"#] {
            assert_eq!(joined(&[r#"{"choices":[{"index":0}]}"#, other]), None);
        }
        assert_eq!(joined(&[r#"{"text":"a"}"#, "x"]), None);
        assert_eq!(joined(&[]), None);
    }
}
