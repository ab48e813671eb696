//! The tokens that a request takes of its key's limit, from the estimate to the count.

use std::sync::LazyLock;

use memchr::memmem;
use routing::Prompt;

use super::events::data_lines;
use super::request::RequestContext;
use crate::auth::TokenShare;
use crate::endpoint::{Inference, Servers};
use crate::error::Error;
use crate::telemetry::Usage;

/// More than a count and its name have, bytes.
const LONGEST_COUNT: usize = 64;

/// More tokens than any request has: such a number is no count.
const MOST_TOKENS: u64 = 1 << 32;

/// How each of several answers counts its tokens.
static COUNT: LazyLock<memmem::Finder<'static>> =
    LazyLock::new(|| memmem::Finder::new(b"\"completion_tokens\":"));

/// What a request has taken of its key's limit. Dropped before a worker has answered, it gives that
/// back; dropped amid the answer, it keeps the prompt and what has come.
#[derive(Debug)]
pub(super) struct TokenCharge {
    share: Option<TokenShare>,
    prompt: u64,
    seen: Seen,
}

/// What has come of the answer.
#[derive(Debug)]
enum Seen {
    Nothing,
    /// Lines of data of a stream.
    Stream(u64),
    /// Tokens that several answers in one reply have counted, and the end of it.
    Whole {
        counted: u64,
        end: Vec<u8>,
    },
}

impl TokenCharge {
    /// Takes what the prompt has, as estimated; `None` where the key has no limit on tokens.
    ///
    /// # Errors
    /// [`Error::KeyLimit`].
    pub(super) fn take(
        context: RequestContext<'_>,
        row: &Inference,
        prompt: &Prompt<'_>,
    ) -> Result<Option<Self>, Error> {
        // No model is asked.
        if row.servers == Servers::Any {
            return Ok(None);
        }
        let prompt = prompt.tokens();
        let share = context.principal.take_tokens(prompt)?;
        Ok(share.map(|share| Self {
            share: Some(share),
            prompt,
            seen: Seen::Nothing,
        }))
    }

    /// A worker answers, with a stream of events if it was asked for one.
    pub(super) fn begin(&mut self, streaming: bool) {
        self.seen = if streaming {
            Seen::Stream(0)
        } else {
            let end = Vec::new();
            Seen::Whole { counted: 0, end }
        };
    }

    /// A piece of the answer has come.
    pub(super) fn pass(&mut self, piece: &[u8]) {
        match &mut self.seen {
            Seen::Nothing => {}
            Seen::Stream(lines) => *lines += data_lines(piece),
            Seen::Whole { counted, end } => {
                end.extend_from_slice(piece);
                let mut read = 0;
                for at in COUNT.find_iter(end) {
                    let digits = at + COUNT.needle().len();
                    if let Some(count) = number(&end[digits..]) {
                        *counted = counted.saturating_add(count);
                        read = digits;
                    }
                }
                let keep = read.max(end.len().saturating_sub(LONGEST_COUNT));
                end.drain(..keep);
            }
        }
    }

    /// The answer is complete, and these are its counts where it has some.
    pub(super) fn finish(mut self, usage: Option<Usage>) {
        let usage = usage.unwrap_or_default();
        let prompt = usage.prompt.unwrap_or(self.prompt);
        let completion = usage.completion.unwrap_or_else(|| self.completion());
        self.settle(prompt.saturating_add(completion));
    }

    /// Tokens of the answer, as far as can be seen: an event of a stream has one at least.
    fn completion(&self) -> u64 {
        match &self.seen {
            Seen::Nothing => 0,
            Seen::Stream(lines) => *lines,
            Seen::Whole { counted, .. } => *counted,
        }
    }

    fn settle(&mut self, tokens: u64) {
        if let Some(share) = self.share.take() {
            share.settle(tokens);
        }
    }
}

impl Drop for TokenCharge {
    fn drop(&mut self) {
        if !matches!(self.seen, Seen::Nothing) {
            self.settle(self.prompt.saturating_add(self.completion()));
        }
    }
}

/// The number that a text begins with.
pub(super) fn number(text: &[u8]) -> Option<u64> {
    let text = text.trim_ascii_start();
    let mut value: u64 = 0;
    for (at, byte) in text.iter().enumerate() {
        if !byte.is_ascii_digit() {
            return (at > 0).then_some(value);
        }
        value = value.checked_mul(10)?.checked_add((byte - b'0').into())?;
        if value > MOST_TOKENS {
            return None;
        }
    }
    // A number at the very end may go on.
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn charge(streaming: bool) -> TokenCharge {
        let mut charge = TokenCharge {
            share: None,
            prompt: 9,
            seen: Seen::Nothing,
        };
        charge.begin(streaming);
        charge
    }

    #[test]
    fn counts_of_several_answers_are_added_however_the_reply_is_cut() {
        let reply = br#"[{"meta_info":{"prompt_tokens":1,"completion_tokens":70}},{"text":"\"completion_tokens\":5","meta_info":{"completion_tokens": 800}},{"meta_info":{"completion_tokens":null}}]"#;
        for size in 1..=reply.len() {
            let mut charge = charge(false);
            reply.chunks(size).for_each(|piece| charge.pass(piece));
            assert_eq!(charge.completion(), 870, "{size}");
        }
    }

    #[test]
    fn events_of_a_stream_stand_for_tokens() {
        let mut charge = charge(true);
        charge.pass(b"data: {}\n\ndata: {");
        charge.pass(b"}\n\n");
        assert_eq!(charge.completion(), 2);
    }

    #[test]
    fn end_of_a_long_reply_is_all_that_is_kept() {
        let mut charge = charge(false);
        charge.pass(&vec![b'x'; 100_000]);
        let Seen::Whole { end, .. } = &charge.seen else {
            panic!("it is not streamed");
        };
        assert_eq!(end.len(), LONGEST_COUNT);
    }
}
