//! A request's prompt: borrowed bytes, never copied, never decoded.

/// Bytes of text per token, on average; the usual estimate for English and code.
const BYTES_PER_TEXT_TOKEN: u64 = 4;
/// Bytes per token id in decimal, with its comma.
const BYTES_PER_TOKEN_ID: u64 = 6;

/// The bytes of a prompt, in the order in which the engine reads them.
///
/// They are taken from the request's body unchanged, JSON escapes included. Equal prompts of one
/// client are equal bytes, and prefix matching needs no more.
#[derive(Clone, Copy, Debug, Default)]
pub struct Prompt<'a> {
    parts: [&'a [u8]; 3],
    /// Token ids instead of text.
    ids: bool,
}

impl<'a> Prompt<'a> {
    /// Text, in up to three parts.
    pub fn text(parts: [&'a [u8]; 3]) -> Self {
        Self { parts, ids: false }
    }

    /// Token ids as JSON lists.
    pub fn ids(list: &'a [u8]) -> Self {
        Self {
            parts: [list, b"", b""],
            ids: true,
        }
    }

    /// The parts; concatenated they are the prompt.
    pub fn parts(&self) -> [&'a [u8]; 3] {
        self.parts
    }

    /// Length in bytes.
    pub fn bytes(&self) -> u64 {
        self.parts.iter().map(|part| part.len() as u64).sum()
    }

    /// Length in tokens, estimated; 0 only for an empty prompt.
    pub fn tokens(&self) -> u64 {
        self.to_tokens(self.bytes())
    }

    /// The number of tokens in so many bytes of this prompt, estimated.
    pub fn to_tokens(&self, bytes: u64) -> u64 {
        bytes.div_ceil(self.bytes_per_token())
    }

    /// The number of bytes in so many tokens of this prompt, estimated.
    pub fn to_bytes(&self, tokens: u64) -> u64 {
        tokens.saturating_mul(self.bytes_per_token())
    }

    fn bytes_per_token(&self) -> u64 {
        if self.ids {
            BYTES_PER_TOKEN_ID
        } else {
            BYTES_PER_TEXT_TOKEN
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_are_estimated_by_kind_of_prompt() {
        assert_eq!(Prompt::text([b"12345678", b"9", b""]).tokens(), 3);
        assert_eq!(Prompt::ids(b"[128000, 271]").tokens(), 3);
        assert_eq!(Prompt::default().tokens(), 0);
    }
}
