//! What of a prefill worker's answer belongs into the decode worker's: log probabilities of the
//! prompt, which decode workers do not have. Everything else stays byte for byte.

use std::collections::BTreeSet;
use std::ops::Range;

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

    /// The decode worker's answer, or one event's data of it, with the prefill worker's part. It
    /// stays as it is where either is not what this endpoint gives. An echoed prompt comes once, in
    /// the first event of its choice; `echoed` are those that have had theirs.
    pub(super) fn merge(
        self,
        prefill: &[u8],
        decode: &[u8],
        echoed: &mut BTreeSet<usize>,
    ) -> Vec<u8> {
        let splices = match self {
            Self::Generate => generate(prefill, decode),
            Self::Echo => echo(prefill, decode, echoed),
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

fn generate(prefill: &[u8], decode: &[u8]) -> Option<Vec<Splice>> {
    let (prefill, decode) = (Part::whole(prefill), Part::whole(decode));
    let of_prompts = prefill.elements();
    let answers = match decode.elements() {
        Some(answers) => answers.into_iter().enumerate().collect(),
        None => vec![(index(&decode), decode)],
    };
    let mut splices = Vec::new();
    for (index, answer) in answers {
        let of_prompt = match &of_prompts {
            Some(all) => all.get(index)?.clone(),
            None => prefill.clone(),
        };
        let (from, to) = (of_prompt.member("meta_info")?, answer.member("meta_info")?);
        for name in OF_PROMPT {
            if let (Some(from), Some(to)) = (from.member(name), to.member(name))
                && matches!(to.text(), b"[]" | b"null")
            {
                splices.push((to.at, from.text().to_vec()));
            }
        }
        let first = |info: &Part<'_>| Some(info.member(OF_OUTPUT)?.elements()?.first()?.at.clone());
        if let (Some(from_at), Some(to_at)) = (first(&from), first(&to))
            && to.whole.get(to_at.clone()) == Some(b"null".as_slice())
        {
            let text = from.whole.get(from_at).unwrap_or_default();
            splices.push((to_at, text.to_vec()));
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

fn echo(prefill: &[u8], decode: &[u8], echoed: &mut BTreeSet<usize>) -> Option<Vec<Splice>> {
    let (prefill, decode) = (Part::whole(prefill), Part::whole(decode));
    let of_prompts = prefill.member("choices")?.elements()?;
    let mut splices = Vec::new();
    for choice in &decode.member("choices")?.elements()? {
        let at = index(choice);
        let from = of_prompts.get(at)?.member("logprobs")?;
        let to = choice.member("logprobs")?;
        if !echoed.insert(at) {
            continue;
        }
        for name in PER_TOKEN {
            let (Some(from), Some(to)) = (from.member(name), to.member(name)) else {
                continue;
            };
            let (mut entries, own) = (from.elements()?, to.elements()?);
            // The last one is the first token of the answer, which the decode worker has, too.
            entries.pop();
            let all = entries.iter().chain(&own).map(Part::text);
            let all: Vec<_> = all.collect();
            splices.push((to.at, [b"[", &*all.join(&b","[..]), b"]"].concat()));
        }
    }
    Some(splices)
}

#[cfg(test)]
mod tests {
    use PrefillPart::{Echo, Generate};

    use super::*;

    fn merge(part: PrefillPart, prefill: &str, decode: &str) -> String {
        let merged = part.merge(
            prefill.as_bytes(),
            decode.as_bytes(),
            &mut BTreeSet::default(),
        );
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
        let mut echoed = BTreeSet::default();
        let mut merge = |event: String| {
            let merged = Echo.merge(prefill.as_bytes(), event.as_bytes(), &mut echoed);
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
