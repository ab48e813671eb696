//! Where in a body the fields are that routing reads.

use std::borrow::Cow;
use std::ops::Range;

use memchr::memmem;
use routing::{Cut, Medium, MediumKind};

use super::billing_header;
use super::json::{Scanner, Skip, SyntaxError, check_utf8};
use super::media::{MediaFinder, MediaList};
use crate::endpoint::PromptField;

/// The fields by their place in the body, so that they outlive the thread that read them.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Layout {
    /// The raw JSON of the field `model`.
    pub(super) model: Range<usize>,
    pub(super) stream: bool,
    /// The most tokens to generate.
    pub(super) longest_output: Option<u32>,
    /// The raw JSON of each field.
    fields: [Range<usize>; PromptField::COUNT],
    /// Most bodies have nothing of it, and a layout is moved about.
    rare: Option<Box<Rare>>,
}

/// What few bodies have.
#[derive(Debug, Default, PartialEq, Eq)]
struct Rare {
    /// What of a field is no text; a field has one entry at most.
    cuts: Vec<(PromptField, Vec<Cut>)>,
    /// Billing headers of coding agents; a field has at most one.
    billing_headers: Vec<(PromptField, Range<usize>)>,
    /// Media in fields of their own, by kind.
    media: Vec<Medium>,
    /// Names of what one worker keeps.
    states: Vec<(StateField, Range<usize>)>,
    /// What keeps equal prompts apart in SGLang's cache, by [`CacheLabel`].
    labels: [Range<usize>; CacheLabel::COUNT],
}

impl Rare {
    /// Forgets what an earlier value of a field had.
    fn forget(&mut self, field: PromptField) {
        self.cuts.retain(|(known, _)| *known != field);
        self.billing_headers.retain(|(known, _)| *known != field);
    }
}

/// A field that keeps equal prompts apart in SGLang's cache.
#[derive(Clone, Copy)]
pub(super) enum CacheLabel {
    LoraPath,
    CacheSalt,
    ExtraKey,
}

impl CacheLabel {
    pub(super) const COUNT: usize = Self::ExtraKey as usize + 1;
}

/// A field that names what one worker keeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum StateField {
    PreviousResponse,
    /// Of `/close_session`.
    Session,
    /// An object, whose `id` is that of a session.
    SessionParams,
}

/// What stands before a limit in `sampling_params`.
const LONGEST: &[u8] = b"\"max_new_tokens\":";

/// A field of a body.
enum Field {
    Model,
    Stream,
    Prompt(PromptField),
    Media(MediumKind),
    Label(CacheLabel),
    State(StateField),
    /// The most tokens to generate.
    LongestOutput,
    /// An object that may say that, too.
    SamplingParams,
    Other,
}

impl Field {
    fn named(name: &[u8]) -> Self {
        match name {
            b"model" => Self::Model,
            b"stream" => Self::Stream,
            b"messages" => Self::Prompt(PromptField::Messages),
            b"text" => Self::Prompt(PromptField::Text),
            b"input_ids" => Self::Prompt(PromptField::InputIds),
            b"prompt" => Self::Prompt(PromptField::Prompt),
            b"input" => Self::Prompt(PromptField::Input),
            b"query" => Self::Prompt(PromptField::Query),
            b"documents" => Self::Prompt(PromptField::Documents),
            b"items" => Self::Prompt(PromptField::Items),
            b"instructions" => Self::Prompt(PromptField::Instructions),
            b"system" => Self::Prompt(PromptField::System),
            b"tools" => Self::Prompt(PromptField::Tools),
            b"image_data" | b"images" => Self::Media(MediumKind::Image),
            b"video_data" => Self::Media(MediumKind::Video),
            b"audio_data" => Self::Media(MediumKind::Audio),
            b"lora_path" => Self::Label(CacheLabel::LoraPath),
            b"cache_salt" => Self::Label(CacheLabel::CacheSalt),
            b"extra_key" => Self::Label(CacheLabel::ExtraKey),
            b"previous_response_id" => Self::State(StateField::PreviousResponse),
            b"session_id" => Self::State(StateField::Session),
            b"session_params" => Self::State(StateField::SessionParams),
            b"max_tokens" | b"max_completion_tokens" | b"max_output_tokens" => Self::LongestOutput,
            b"sampling_params" => Self::SamplingParams,
            _ => Self::Other,
        }
    }
}

impl Layout {
    /// Reads a JSON object.
    pub(super) fn read(body: &[u8]) -> Result<Self, SyntaxError> {
        let mut layout = Self::default();
        layout.fill(body)?;
        Ok(layout)
    }

    pub(super) fn fill(&mut self, body: &[u8]) -> Result<(), SyntaxError> {
        check_utf8(body)?;
        let mut scanner = Scanner::new(body);
        scanner.expect(b'{', "expected '{'")?;
        if !scanner.pass(b'}') {
            loop {
                let name = scanner.key()?;
                let name = decoded(scanner.slice(name));
                self.read_member(&Field::named(&name), &mut scanner)?;
                if !scanner.pass(b',') {
                    break;
                }
            }
            scanner.expect(b'}', "expected ',' or '}'")?;
        }
        scanner.expect_end()
    }

    /// The place of a field's raw JSON, and what of it is no text. The place is empty for a field
    /// that is absent or null.
    pub(super) fn field(&self, field: PromptField) -> (Range<usize>, &[Cut]) {
        let json = self.fields.get(field as usize).cloned();
        let mut cuts = self.rare.iter().flat_map(|rare| &rare.cuts);
        let found = cuts.find(|(its_field, _)| *its_field == field);
        let cuts = found.map_or(&[][..], |(_, cuts)| cuts);
        (json.unwrap_or_default(), cuts)
    }

    /// The place of the billing header that a field begins with.
    pub(super) fn billing_header(&self, field: PromptField) -> Option<Range<usize>> {
        let mut headers = self.rare.iter().flat_map(|rare| &rare.billing_headers);
        let found = headers.find(|(its_field, _)| *its_field == field);
        found.map(|(_, place)| place.clone())
    }

    /// The place of what keeps equal prompts apart; a string's without its quotes.
    pub(super) fn label(&self, label: CacheLabel) -> Range<usize> {
        let labels = self.rare.as_ref().map(|rare| &rare.labels);
        let known = labels.and_then(|labels| labels.get(label as usize));
        known.cloned().unwrap_or_default()
    }

    /// The places of all that keeps equal prompts apart; `None` where nothing does.
    pub(super) fn labels(&self) -> Option<[Range<usize>; CacheLabel::COUNT]> {
        self.rare.as_ref().map(|rare| rare.labels.clone())
    }

    /// Media in fields of their own, by kind.
    pub(super) fn media(&self) -> &[Medium] {
        self.rare.as_ref().map_or(&[], |rare| &rare.media)
    }

    /// Names of what one worker keeps.
    pub(super) fn states(&self) -> &[(StateField, Range<usize>)] {
        self.rare.as_ref().map_or(&[], |rare| &rare.states)
    }

    fn rare(&mut self) -> &mut Rare {
        self.rare.get_or_insert_default()
    }

    /// A field of an unexpected type is the worker's to judge: here it counts as absent.
    /// Of a repeated field the last one counts, as in Python.
    fn read_member(&mut self, field: &Field, scanner: &mut Scanner<'_>) -> Result<(), SyntaxError> {
        match *field {
            Field::Prompt(PromptField::Text | PromptField::InputIds | PromptField::Tools)
            | Field::Model
            | Field::Stream
            | Field::Label(_)
            | Field::State(_)
            | Field::LongestOutput
            | Field::SamplingParams
            | Field::Other => {
                let value = scanner.value(&mut Skip)?;
                self.set(field, scanner.slice(value.clone()), value);
            }
            Field::Prompt(field) => self.read_messages(field, scanner)?,
            Field::Media(kind) => self.read_media(kind, scanner)?,
        }
        Ok(())
    }

    fn set(&mut self, field: &Field, json: &[u8], value: Range<usize>) {
        match *field {
            Field::Model => self.model = value,
            Field::Stream => self.stream = matches!(json, b"true" | b"1"),
            Field::Prompt(field) => self.set_prompt(field, json, value),
            Field::Label(label) => {
                if let Some(known) = self.rare().labels.get_mut(label as usize) {
                    *known = match json {
                        b"null" => 0..0,
                        // Without quotes, for an empty string is no label.
                        [b'"', ..] => value.start + 1..value.end - 1,
                        _ => value,
                    };
                }
            }
            Field::State(field) => {
                let states = &mut self.rare().states;
                states.retain(|(known, _)| *known != field);
                states.push((field, value));
            }
            Field::LongestOutput => self.longest_output = whole_number(json),
            Field::SamplingParams => {
                let found = memmem::find(json, LONGEST).map(|at| &json[at + LONGEST.len()..]);
                self.longest_output = found.and_then(whole_number);
            }
            Field::Media(_) | Field::Other => {}
        }
    }

    /// A field without cuts.
    fn set_prompt(&mut self, field: PromptField, json: &[u8], value: Range<usize>) {
        if let Some(known) = self.fields.get_mut(field as usize) {
            *known = if json == b"null" { 0..0 } else { value };
        }
        if let Some(rare) = &mut self.rare {
            rare.forget(field);
        }
    }

    /// Reads a field that may have media in it.
    fn read_messages(
        &mut self,
        field: PromptField,
        scanner: &mut Scanner<'_>,
    ) -> Result<(), SyntaxError> {
        let mut cuts = Vec::new();
        let mut finder = MediaFinder::new(scanner, &mut cuts);
        let value = scanner.value(&mut finder)?;
        let billing_header = finder.billing_header;
        let json = scanner.slice(value.clone());
        let start = value.start;
        self.set_prompt(field, json, value);
        if billing_header {
            let found = match field {
                PromptField::Messages | PromptField::Input => billing_header::in_messages(json),
                _ => billing_header::in_system(json),
            };
            if let Some(found) = found {
                let place = start + found.start..start + found.end;
                self.rare().billing_headers.push((field, place));
                omit(&mut cuts, found);
            }
        }
        if !cuts.is_empty() {
            self.rare().cuts.push((field, cuts));
        }
        Ok(())
    }

    /// Reads a field that holds only media. Whatever it holds, its content distinguishes it.
    fn read_media(
        &mut self,
        kind: MediumKind,
        scanner: &mut Scanner<'_>,
    ) -> Result<(), SyntaxError> {
        let media = &mut self.rare().media;
        media.retain(|medium| medium.kind() != kind);
        let known = media.len();
        let mut list = MediaList::new(scanner, kind, media);
        let value = scanner.value(&mut list)?;
        let json = scanner.slice(value);
        let is_empty = matches!(json, b"null" | b"[]" | b"{}" | b"\"\"");
        if media.len() == known && !is_empty {
            media.push(Medium::new(kind, json));
        }
        media.sort_by_key(Medium::kind);
        Ok(())
    }
}

/// The number that JSON begins with.
fn whole_number(json: &[u8]) -> Option<u32> {
    let json = json.trim_ascii_start();
    let digits = json.iter().take_while(|byte| byte.is_ascii_digit()).count();
    std::str::from_utf8(&json[..digits]).ok()?.parse().ok()
}

/// Leaves `omitted` out, and the cuts that are within it.
fn omit(cuts: &mut Vec<Cut>, omitted: Range<usize>) {
    cuts.retain(|cut| !omitted.contains(&cut.range().start));
    let at = cuts.partition_point(|cut| cut.range().start < omitted.start);
    cuts.insert(at, Cut::omitted(omitted));
}

/// A member's name without escapes.
pub(super) fn decoded(name: &[u8]) -> Cow<'_, [u8]> {
    if !name.contains(&b'\\') {
        return Cow::Borrowed(name);
    }
    let quoted = [b"\"", name, b"\""].concat();
    let name = serde_json::from_slice::<String>(&quoted);
    // A name with half a surrogate pair is none that is sought.
    Cow::Owned(name.unwrap_or_default().into_bytes())
}
