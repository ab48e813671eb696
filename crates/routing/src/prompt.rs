//! A request's prompt as routing sees it: borrowed bytes, never copied, never decoded.

/// Bytes of text per token, on average; the usual estimate for English and code.
const TEXT: u64 = 4;
/// Bytes per token id written in decimal with its comma.
const IDS: u64 = 6;

/// The bytes a prompt is made of, in the order the engine reads them.
///
/// They are taken from the request's body as they stand, JSON escapes included: equal
/// prompts of one client are equal bytes, which is all that prefix matching needs.
#[derive(Clone, Copy, Debug, Default)]
pub struct Prompt<'a> {
    parts: [&'a [u8]; 3],
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

    /// Its parts; concatenated they are the prompt.
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

    /// So many of its bytes in tokens, estimated.
    pub fn to_tokens(&self, bytes: u64) -> u64 {
        bytes.div_ceil(self.bytes_per_token())
    }

    /// So many of its tokens in bytes, estimated.
    pub fn to_bytes(&self, tokens: u64) -> u64 {
        tokens.saturating_mul(self.bytes_per_token())
    }

    fn bytes_per_token(&self) -> u64 {
        if self.ids { IDS } else { TEXT }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_are_estimated_by_kind() {
        assert_eq!(Prompt::text([b"12345678", b"9", b""]).tokens(), 3);
        assert_eq!(Prompt::ids(b"[128000, 271]").tokens(), 3);
        assert_eq!(Prompt::default().tokens(), 0);
    }
}
