//! A request for several answers to a prompt, as requests for one answer each.

use std::iter;
use std::ops::Range;

use bytes::Bytes;
use serde_json::Value;

use super::join::Sample;
use crate::endpoint::Samples;
use crate::proxy::body_fields::{count, elements, member, splice};

/// Most answers to a prompt: the limit of OpenAI's API.
pub(super) const MAX_SAMPLES: usize = 128;

/// The bodies of requests for one answer.
#[derive(Debug)]
pub(super) struct Split {
    /// The client's body with a count of 1.
    body: Bytes,
    /// Where the client's request ids stand in it.
    rid: Option<(Range<usize>, Value)>,
}

impl Split {
    /// Reads a body whose answers are counted there. `None` where the counts of a list differ, as
    /// engines refuse them.
    pub(super) fn read(body: &Bytes, counted: Samples) -> Option<Self> {
        let at = match counted {
            Samples::One => Vec::new(),
            Samples::N => member(body, "n").into_iter().collect(),
            Samples::SamplingParams => native_counts(body),
        };
        let number = |at: &Range<usize>| {
            let value = serde_json::from_slice(body.get(at.clone())?).ok()?;
            Some(count(&value))
        };
        let counts: Option<Vec<u64>> = at.iter().map(number).collect();
        let counts = counts?;
        if counts.windows(2).any(|two| two.first() != two.last()) {
            return None;
        }
        let ones = at.into_iter().map(|at| (at, b"1".to_vec())).collect();
        let body = Bytes::from(splice(body, ones));
        let rid = member(&body, "rid").and_then(|at| {
            let rid: Value = serde_json::from_slice(body.get(at.clone())?).ok()?;
            (!rid.is_null()).then_some((at, rid))
        });
        Some(Self { body, rid })
    }

    /// How many bytes each body takes that it does not share with the others, about.
    pub(super) fn added_by_body(&self) -> u64 {
        self.rid.as_ref().map_or(0, |_| self.body.len() as u64)
    }

    /// The body of one of them. Engines take a request id once, and abort by its beginning.
    pub(super) fn body(&self, sample: Sample) -> Bytes {
        let Some((at, rid)) = &self.rid else {
            return self.body.clone();
        };
        let counted = |rid: &Value| match rid {
            // No id may begin with another.
            Value::String(rid) => Value::from(format!("{rid}_{:03}", sample.at)),
            other => other.clone(),
        };
        let rid = match rid {
            Value::Array(rids) => Value::Array(rids.iter().map(counted).collect()),
            rid => counted(rid),
        };
        splice(&self.body, vec![(at.clone(), rid.to_string().into())]).into()
    }
}

/// Where the counts stand in the sampling parameters, of one prompt or of a list.
fn native_counts(body: &[u8]) -> Vec<Range<usize>> {
    let Some(sampling) = member(body, "sampling_params") else {
        return Vec::new();
    };
    let text = body.get(sampling.clone()).unwrap_or_default();
    let each = elements(text).unwrap_or_else(|| iter::once(0..text.len()).collect());
    let within = |outer: usize, inner: Range<usize>| outer + inner.start..outer + inner.end;
    let counts = each.into_iter().filter_map(|one| {
        let found = member(text.get(one.clone())?, "n")?;
        Some(within(sampling.start, within(one.start, found)))
    });
    counts.collect()
}

#[cfg(test)]
mod tests {
    use Samples::{N, SamplingParams};

    use super::*;

    fn split(body: &str, counted: Samples, at: usize) -> Option<String> {
        let split = Split::read(&Bytes::copy_from_slice(body.as_bytes()), counted)?;
        let body = split.body(Sample { at, of: 3 });
        Some(String::from_utf8(body.to_vec()).unwrap())
    }

    #[test]
    fn count_becomes_one_and_all_else_stays() {
        for (counted, body, one) in [
            (N, r#"{"n" : 3,"x":1e2 }"#, r#"{"n" : 1,"x":1e2 }"#),
            (N, r#"{"\u006e":"3"}"#, r#"{"\u006e":1}"#),
            (N, r#"{"n":5,"n":3}"#, r#"{"n":5,"n":1}"#),
            (
                SamplingParams,
                r#"{"n":9,"sampling_params":{"a":[{"n":7}],"n":3.0}}"#,
                r#"{"n":9,"sampling_params":{"a":[{"n":7}],"n":1}}"#,
            ),
            (
                SamplingParams,
                r#"{"text":["a","b"],"sampling_params":[{"n":3}, {"n":3}]}"#,
                r#"{"text":["a","b"],"sampling_params":[{"n":1}, {"n":1}]}"#,
            ),
        ] {
            assert_eq!(split(body, counted, 2).as_deref(), Some(one));
        }
    }

    #[test]
    fn counts_of_a_list_that_differ_cannot_be_split() {
        let body = r#"{"sampling_params":[{"n":3},{"n":2}]}"#;
        assert_eq!(split(body, SamplingParams, 0), None);
    }

    #[test]
    fn request_ids_are_counted() {
        let body = r#"{"rid":"a","n":3}"#;
        assert_eq!(split(body, N, 2).unwrap(), r#"{"rid":"a_002","n":1}"#);
        let body = r#"{"n":3,"rid":["a","b"]}"#;
        let counted = r#"{"n":1,"rid":["a_001","b_001"]}"#;
        assert_eq!(split(body, N, 1).unwrap(), counted);
        let body = r#"{"n":3,"rid":null}"#;
        assert_eq!(split(body, N, 1).unwrap(), r#"{"n":1,"rid":null}"#);
    }
}
