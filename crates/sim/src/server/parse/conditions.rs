//! What the engine keeps apart besides the prompt: adapters and sessions.

use serde::Deserialize;

use super::sampling::OneOrMany;
use super::text::Text;

/// The fields of a body that name an adapter or a session.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Conditions<'a> {
    #[serde(borrow)]
    model: Option<Text<'a>>,
    lora_path: Option<OneOrMany<Option<String>>>,
    session_params: Option<OneOrMany<SessionParams>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct SessionParams {
    id: Option<String>,
}

impl Conditions<'_> {
    /// The adapter of each prompt, or one for all: the one in `model` (`base:adapter`) before the
    /// one in `lora_path`.
    pub(crate) fn adapters(&self, served_model: &str) -> Vec<Option<String>> {
        let model = self.model.as_ref().map_or("", Text::as_str);
        match adapter_of(model, served_model) {
            Some(adapter) => vec![Some(adapter.to_owned())],
            None => self
                .lora_path
                .clone()
                .map_or(vec![None], OneOrMany::into_vec),
        }
    }

    /// The session that the request goes on with.
    pub(crate) fn session(&self) -> Option<&str> {
        match self.session_params.as_ref()? {
            OneOrMany::One(one) => one.id.as_deref(),
            OneOrMany::Many(many) => many.first()?.id.as_deref(),
        }
    }
}

/// The adapter in a model's name. The name of the served model may itself have colons.
fn adapter_of<'m>(model: &'m str, served_model: &str) -> Option<&'m str> {
    if model == served_model {
        return None;
    }
    let after = model
        .strip_prefix(served_model)
        .and_then(|rest| rest.strip_prefix(':'));
    let adapter = after.or_else(|| model.split_once(':').map(|(_, adapter)| adapter))?;
    Some(adapter.trim()).filter(|adapter| !adapter.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn adapter_is_what_follows_the_models_name() {
        assert_eq!(adapter_of("base:a", "base"), Some("a"));
        assert_eq!(adapter_of("other: a", "base"), Some("a"));
        assert_eq!(adapter_of("s3://x", "s3://x"), None);
        assert_eq!(adapter_of("s3://x:a", "s3://x"), Some("a"));
        assert_eq!(adapter_of("base", "base"), None);
        assert_eq!(adapter_of("base:", "base"), None);
    }

    #[test]
    fn adapter_in_the_model_goes_before_the_one_in_lora_path() {
        let read = |json| {
            let conditions: Conditions<'_> = serde_json::from_str(json).unwrap();
            conditions.adapters("base")
        };
        assert_eq!(read("{}"), [None]);
        assert_eq!(read(r#"{"lora_path":"a"}"#), [Some("a".to_owned())]);
        assert_eq!(
            read(r#"{"lora_path":["a",null]}"#),
            [Some("a".to_owned()), None]
        );
        let both = r#"{"model":"base:b","lora_path":"a"}"#;
        assert_eq!(read(both), [Some("b".to_owned())]);
    }
}
