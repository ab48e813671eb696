//! What of a prefill worker's answer belongs into the decode worker's: log probabilities of the
//! prompt, which decode workers do not have. Everything else stays byte for byte.

use std::collections::BTreeSet;
use std::ops::Range;

use bytes::Bytes;

use crate::proxy::body_fields::{OpenBody, elements, member, splice};

/// What of the prefill worker's answer the client asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum PrefillPart {
    /// `meta_info` of `/generate`.
    Generate,
    /// The prompt's entries in `logprobs` of `/v1/completions`.
    Echo,
}

/// Lists of `meta_info` that a decode worker leaves empty.
const OF_PROMPT: [&str; 3] = [
    "input_token_logprobs",
    "input_top_logprobs",
    "input_token_ids_logprobs",
];
/// The one whose first entry it lacks: that token is the prefill worker's.
const OF_OUTPUT: &str = "output_token_ids_logprobs";
/// Lists of `logprobs` with an entry per token.
const PER_TOKEN: [&str; 4] = ["tokens", "token_logprobs", "top_logprobs", "text_offset"];

/// A place in the decode worker's answer, and what stands there instead.
type Splice = (Range<usize>, Vec<u8>);

impl PrefillPart {
    /// What a request to this endpoint asks for.
    pub(super) fn of(source: &OpenBody, label: &str) -> Option<Self> {
        match label {
            "generate" if source.prompt_logprobs => Some(Self::Generate),
            "completions" if source.echoed_logprobs => Some(Self::Echo),
            _ => None,
        }
    }
}

/// The log probabilities of prompts in a prefill worker's answer.
#[derive(Debug)]
pub(super) enum PromptLogprobs {
    /// Of `/generate`.
    Generated(Prompts),
    /// Of `/v1/completions`: of each choice.
    Echoed(Vec<[Option<Bytes>; PER_TOKEN.len()]>),
    /// None: the answer has another form.
    Missing,
}

/// Those of each prompt of a list, or of one prompt.
#[derive(Debug)]
pub(super) enum Prompts {
    Listed(Vec<OfPrompt>),
    One(OfPrompt),
}

impl Prompts {
    fn get(&self, at: usize) -> Option<&OfPrompt> {
        match self {
            Self::Listed(prompts) => prompts.get(at),
            Self::One(prompt) => Some(prompt),
        }
    }
}

/// Those of one prompt, as texts.
#[derive(Debug)]
pub(super) struct OfPrompt {
    lists: [Option<Bytes>; OF_PROMPT.len()],
    first_of_output: Option<Bytes>,
}

impl PromptLogprobs {
    /// Reads the whole answer of a prefill worker.
    pub(super) fn read(part: PrefillPart, answer: &Bytes) -> Self {
        let found = match part {
            PrefillPart::Generate => generated(answer),
            PrefillPart::Echo => echoed(answer),
        };
        found.unwrap_or(Self::Missing)
    }

    /// The decode worker's answer, or one event's data of it, with what belongs into it. It stays
    /// as it is where it is not what the endpoint gives. An echoed prompt comes once, in the first
    /// event of its choice; `done` are those that have had theirs.
    pub(super) fn merge(&self, decode: &[u8], done: &mut BTreeSet<usize>) -> Vec<u8> {
        let splices = match self {
            Self::Generated(prompts) => merge_generated(prompts, decode),
            Self::Echoed(choices) => merge_echoed(choices, decode, done),
            Self::Missing => None,
        };
        splice(decode, splices.unwrap_or_default())
    }
}

/// A part of a JSON text, by its place in the whole.
#[derive(Clone)]
struct Part<'a> {
    whole: &'a [u8],
    at: Range<usize>,
}

impl<'a> Part<'a> {
    fn whole(whole: &'a [u8]) -> Self {
        Self {
            whole,
            at: 0..whole.len(),
        }
    }

    fn text(&self) -> &'a [u8] {
        self.whole.get(self.at.clone()).unwrap_or_default()
    }

    fn inner(&self, range: &Range<usize>) -> Self {
        let start = self.at.start;
        Self {
            whole: self.whole,
            at: start + range.start..start + range.end,
        }
    }

    fn member(&self, name: &str) -> Option<Self> {
        member(self.text(), name).map(|range| self.inner(&range))
    }

    fn elements(&self) -> Option<Vec<Self>> {
        let elements = elements(self.text())?;
        Some(elements.iter().map(|range| self.inner(range)).collect())
    }
}

fn generated(answer: &Bytes) -> Option<PromptLogprobs> {
    let whole = Part::whole(answer);
    let of_prompt = |prompt: &Part<'_>| {
        let info = prompt.member("meta_info")?;
        let text = |part: Part<'_>| answer.slice(part.at);
        let first = || info.member(OF_OUTPUT)?.elements()?.into_iter().next();
        Some(OfPrompt {
            lists: OF_PROMPT.map(|name| info.member(name).map(text)),
            first_of_output: first().map(text),
        })
    };
    let prompts = match whole.elements() {
        Some(all) => Prompts::Listed(all.iter().map(of_prompt).collect::<Option<_>>()?),
        None => Prompts::One(of_prompt(&whole)?),
    };
    Some(PromptLogprobs::Generated(prompts))
}

fn merge_generated(prompts: &Prompts, decode: &[u8]) -> Option<Vec<Splice>> {
    let decode = Part::whole(decode);
    let answers = match decode.elements() {
        Some(answers) => answers.into_iter().enumerate().collect(),
        None => vec![(index(&decode), decode)],
    };
    let mut splices = Vec::new();
    for (index, answer) in answers {
        let from = prompts.get(index)?;
        let to = answer.member("meta_info")?;
        for (name, list) in OF_PROMPT.iter().zip(&from.lists) {
            if let (Some(list), Some(to)) = (list, to.member(name))
                && matches!(to.text(), b"[]" | b"null")
            {
                splices.push((to.at, list.to_vec()));
            }
        }
        let first = || to.member(OF_OUTPUT)?.elements()?.into_iter().next();
        if let (Some(text), Some(to)) = (&from.first_of_output, first())
            && to.text() == b"null"
        {
            splices.push((to.at, text.to_vec()));
        }
    }
    Some(splices)
}

/// Which prompt of a batch an event is about.
fn index(event: &Part<'_>) -> usize {
    let index = event.member("index");
    let index = index.and_then(|index| std::str::from_utf8(index.text()).ok()?.parse().ok());
    index.unwrap_or_default()
}

/// The entries of prompts: the last one of each list is the first token of the answer, which the
/// decode worker has, too.
fn echoed(answer: &Bytes) -> Option<PromptLogprobs> {
    let choices = Part::whole(answer).member("choices")?.elements()?;
    let of_choice = |choice: &Part<'_>| {
        let logprobs = choice.member("logprobs");
        PER_TOKEN.map(|name| {
            let entries = logprobs.as_ref()?.member(name)?.elements()?;
            match entries.as_slice() {
                [first, .., before_last, _] => {
                    Some(answer.slice(first.at.start..before_last.at.end))
                }
                [first, _] => Some(answer.slice(first.at.clone())),
                _ => Some(Bytes::new()),
            }
        })
    };
    Some(PromptLogprobs::Echoed(
        choices.iter().map(of_choice).collect(),
    ))
}

fn merge_echoed(
    choices: &[[Option<Bytes>; PER_TOKEN.len()]],
    decode: &[u8],
    done: &mut BTreeSet<usize>,
) -> Option<Vec<Splice>> {
    let mut splices = Vec::new();
    for choice in &Part::whole(decode).member("choices")?.elements()? {
        let at = index(choice);
        let from = choices.get(at)?;
        let to = choice.member("logprobs")?;
        if !done.insert(at) {
            continue;
        }
        for (name, entries) in PER_TOKEN.iter().zip(from) {
            let (Some(entries), Some(to)) = (entries, to.member(name)) else {
                continue;
            };
            let own = to.text().strip_prefix(b"[")?;
            let is_first = entries.is_empty() || own.trim_ascii() == b"]";
            let comma: &[u8] = if is_first { b"" } else { b"," };
            splices.push((to.at.clone(), [b"[", &**entries, comma, own].concat()));
        }
    }
    Some(splices)
}

#[cfg(test)]
mod tests {
    use PrefillPart::{Echo, Generate};

    use super::*;

    fn merge(part: PrefillPart, prefill: &str, decode: &str) -> String {
        let logprobs = PromptLogprobs::read(part, &Bytes::copy_from_slice(prefill.as_bytes()));
        let merged = logprobs.merge(decode.as_bytes(), &mut BTreeSet::default());
        String::from_utf8(merged).unwrap()
    }

    #[test]
    fn prompts_log_probabilities_come_from_prefill_and_all_else_stays() {
        let prefill = r#"{"text":"a","meta_info":{"input_token_logprobs":[[null,1],[-2.50,7]],"input_top_logprobs":[[1]],"output_token_ids_logprobs":[[9]]}}"#;
        let decode = r#"{"text":"ab", "meta_info":{"x":1e3,"input_token_logprobs":[],"input_top_logprobs":null,"output_token_ids_logprobs":[null,[8]]}}"#;
        let merged = r#"{"text":"ab", "meta_info":{"x":1e3,"input_token_logprobs":[[null,1],[-2.50,7]],"input_top_logprobs":[[1]],"output_token_ids_logprobs":[[9],[8]]}}"#;
        assert_eq!(merge(Generate, prefill, decode), merged);
    }

    #[test]
    fn each_prompt_of_a_batch_and_each_event_gets_its_own() {
        let of = |list: &str| format!(r#"{{"meta_info":{{"input_token_logprobs":{list}}}}}"#);
        let prefill = format!("[{},{}]", of("[1]"), of("[2]"));
        let decode = format!("[{}, {}]", of("[]"), of("[]"));
        let merged = format!("[{}, {}]", of("[1]"), of("[2]"));
        assert_eq!(merge(Generate, &prefill, &decode), merged);
        let event = r#"{"index":1,"meta_info":{"input_token_logprobs":[]}}"#;
        let merged = r#"{"index":1,"meta_info":{"input_token_logprobs":[2]}}"#;
        assert_eq!(merge(Generate, &prefill, event), merged);
    }

    #[test]
    fn echoed_prompt_stands_before_the_answer() {
        let prefill =
            r#"{"choices":[{"logprobs":{"tokens":["P","Q","a"],"token_logprobs":[null,-1,-2]}}]}"#;
        let decode = r#"{"choices":[{"text":"PQab","logprobs":{"tokens":["a","b"],"token_logprobs":[-2,-3]}}]}"#;
        let merged = r#"{"choices":[{"text":"PQab","logprobs":{"tokens":["P","Q","a","b"],"token_logprobs":[null,-1,-2,-3]}}]}"#;
        assert_eq!(merge(Echo, prefill, decode), merged);
    }

    #[test]
    fn echoed_prompt_comes_once_and_to_its_own_choice() {
        let choice = |index, token: &str| {
            format!(r#"{{"choices":[{{"index":{index},"logprobs":{{"tokens":{token}}}}}]}}"#)
        };
        let prefill = r#"{"choices":[{"index":0,"logprobs":{"tokens":["P","a"]}},{"index":1,"logprobs":{"tokens":["Q","b"]}}]}"#;
        let logprobs = PromptLogprobs::read(Echo, &Bytes::from_static(prefill.as_bytes()));
        let mut echoed = BTreeSet::default();
        let mut merge = |event: String| {
            let merged = logprobs.merge(event.as_bytes(), &mut echoed);
            String::from_utf8(merged).unwrap()
        };
        assert_eq!(merge(choice(1, r#"["b"]"#)), choice(1, r#"["Q","b"]"#));
        assert_eq!(merge(choice(0, r#"["a"]"#)), choice(0, r#"["P","a"]"#));
        assert_eq!(merge(choice(1, r#"["c"]"#)), choice(1, r#"["c"]"#));
    }

    #[test]
    fn answer_of_another_shape_stays_as_it_is() {
        for (prefill, decode) in [
            ("{}", r#"{"error":1}"#),
            ("x", "[DONE]"),
            ("[]", "[{}]"),
            ("{}", ""),
        ] {
            assert_eq!(merge(Generate, prefill, decode), decode);
            assert_eq!(merge(Echo, prefill, decode), decode);
        }
    }
}
