//! Images, audio and video in a request's body.

use std::ops::Range;

use routing::{Cut, Medium, MediumKind};

use super::billing_header::MARKER;
use super::json::{Scanner, Visitor};

/// Finds media in a field of messages, and leaves out what means nothing to an engine.
///
/// Media are the strings in the places that the APIs have for them: `image_url`, `video_url`,
/// `audio_url` (a string, or `url` in an object), `data` of `input_audio`, `data` and `url` of
/// Anthropic's `source`, Ollama's `images`, `image`, `video` and `audio` of multimodal embeddings, `file_data`.
pub(super) struct MediaFinder<'a, 'c> {
    body: &'a [u8],
    /// Where the field begins; cuts count from there.
    start: usize,
    cuts: &'c mut Vec<Cut>,
    depth: usize,
    /// The container that media, or none, are expected in.
    special: Option<Container>,
    /// A string begins like a billing header.
    pub(super) billing_header: bool,
}

struct Container {
    depth: usize,
    role: Role,
    /// Cuts before it.
    cuts: usize,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Role {
    /// `image_url` and its like.
    Link(MediumKind),
    InputAudio,
    /// Ollama's list of base64 strings.
    Images,
    /// Anthropic's `source`.
    Source,
    /// Anthropic's `source` of a document in plain text.
    TextSource,
    /// Arguments of tools: the engine reads them as text, whatever they hold.
    Arguments,
    /// Where Anthropic's API ends what it caches. Engines ignore it, and it moves with every turn.
    CacheControl {
        start: usize,
    },
}

impl<'a, 'c> MediaFinder<'a, 'c> {
    /// For the value that the scanner is at.
    pub(super) fn new(scanner: &mut Scanner<'a>, cuts: &'c mut Vec<Cut>) -> Self {
        scanner.peek();
        Self {
            body: scanner.body(),
            start: scanner.at(),
            cuts,
            depth: 0,
            special: None,
            billing_header: false,
        }
    }

    fn enter(&mut self, key: &[u8]) {
        let (depth, cuts) = (self.depth, self.cuts.len());
        self.special = self.role(key).map(|role| Container { depth, role, cuts });
    }

    fn leave(&mut self, end: usize) {
        let left = self.special.take_if(|open| open.depth == self.depth);
        let Some(Container { role, cuts, .. }) = left else {
            return;
        };
        match role {
            Role::TextSource => self.cuts.truncate(cuts),
            Role::CacheControl { start } => {
                let range = start - self.start..end - self.start;
                self.cuts.push(Cut::omitted(range));
            }
            _ => {}
        }
    }

    fn inspect(&mut self, key: &[u8], content: Range<usize>) {
        let bytes = self.body.get(content.clone()).unwrap_or_default();
        self.billing_header |= bytes.starts_with(MARKER);
        if let Some(kind) = self.medium(key).filter(|_| !bytes.is_empty()) {
            let range = content.start - self.start..content.end - self.start;
            let medium = Medium::new(kind, bytes);
            self.cuts.push(Cut::medium(range, medium));
        } else if let (b"type", b"text", Some(container)) = (key, bytes, &mut self.special)
            && container.depth == self.depth
            && container.role == Role::Source
        {
            container.role = Role::TextSource;
        }
    }

    fn role(&self, key: &[u8]) -> Option<Role> {
        Some(match key {
            b"image_url" => Role::Link(MediumKind::Image),
            b"video_url" => Role::Link(MediumKind::Video),
            b"audio_url" => Role::Link(MediumKind::Audio),
            b"input_audio" => Role::InputAudio,
            b"images" => Role::Images,
            b"source" => Role::Source,
            b"input" | b"arguments" => Role::Arguments,
            b"cache_control" => Role::CacheControl {
                start: self.member_start(key)?,
            },
            _ => return None,
        })
    }

    /// Where the member with this name begins, its comma included; `None` for the first of an
    /// object.
    fn member_start(&self, key: &[u8]) -> Option<usize> {
        let name = (key.as_ptr() as usize).checked_sub(self.body.as_ptr() as usize)?;
        let before = self.body.get(..name.checked_sub(1)?)?;
        let before = before.trim_ascii_end().strip_suffix(b",")?;
        Some(before.trim_ascii_end().len())
    }

    /// What a string is in this place, if it is a medium.
    fn medium(&self, key: &[u8]) -> Option<MediumKind> {
        let special = self.special.as_ref();
        let Some(Container { depth, role, .. }) = special else {
            return match key {
                b"image_url" | b"image" | b"file_data" => Some(MediumKind::Image),
                b"video_url" | b"video" => Some(MediumKind::Video),
                b"audio_url" | b"audio" => Some(MediumKind::Audio),
                _ => None,
            };
        };
        match (role, key) {
            _ if *depth != self.depth => None,
            (Role::Link(kind), b"url") => Some(*kind),
            (Role::InputAudio, b"data") => Some(MediumKind::Audio),
            (Role::Images, b"") | (Role::Source, b"data" | b"url") => Some(MediumKind::Image),
            _ => None,
        }
    }
}

/// Most keys are shorter than any that counts here: `role`, `type`, `text`.
const SHORTEST_KEY: usize = "input".len();

impl Visitor for MediaFinder<'_, '_> {
    #[inline]
    fn open(&mut self, key: &[u8]) {
        self.depth += 1;
        if key.len() >= SHORTEST_KEY && self.special.is_none() {
            self.enter(key);
        }
    }

    #[inline]
    fn close(&mut self, end: usize) {
        if self.special.is_some() {
            self.leave(end);
        }
        self.depth -= 1;
    }

    #[inline]
    fn string(&mut self, key: &[u8], content: Range<usize>) {
        let billing_header = self.body.get(content.start) == MARKER.first();
        if billing_header || key.len() >= SHORTEST_KEY || self.special.is_some() {
            self.inspect(key, content);
        }
    }
}

/// Collects media from a field that holds nothing else, such as `image_data`: a string, a list,
/// or lists of them.
pub(super) struct MediaList<'a, 'c> {
    body: &'a [u8],
    kind: MediumKind,
    media: &'c mut Vec<Medium>,
}

impl<'a, 'c> MediaList<'a, 'c> {
    pub(super) fn new(scanner: &Scanner<'a>, kind: MediumKind, media: &'c mut Vec<Medium>) -> Self {
        let body = scanner.body();
        Self { body, kind, media }
    }
}

impl Visitor for MediaList<'_, '_> {
    fn string(&mut self, key: &[u8], content: Range<usize>) {
        let bytes = self.body.get(content).unwrap_or_default();
        if matches!(key, b"" | b"url") && !bytes.is_empty() {
            self.media.push(Medium::new(self.kind, bytes));
        }
    }
}
