//! The JSON Schema of the configuration file.

use schemars::schema_for;
use serde_json::{Value, json};

use super::options::Options;

/// The schema (JSON Schema 2020-12) of the configuration file: every option with its type, its
/// default and its meaning.
pub fn schema() -> Value {
    let mut schema = schema_for!(Options).to_value();
    schema["title"] = json!("Configuration of an SGLang Model Gateway");
    if let Some(options) = schema["properties"].as_object_mut() {
        // It names a file like the one that this describes.
        options.remove("config");
    }
    schema
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn schema_has_every_option_with_type_default_and_meaning() {
        let schema = schema();
        let options = schema["properties"].as_object().unwrap();
        for name in Options::NAMES.iter().filter(|name| **name != "config") {
            let option = &options[*name];
            assert!(option["description"].is_string(), "{name}: {option}");
            assert!(
                !option["default"].is_null() || nullable(option),
                "{name}: {option}"
            );
        }
        assert_eq!(options["port"]["maximum"], 65_535);
        assert_eq!(schema["additionalProperties"], false);
        assert_eq!(options.len(), Options::NAMES.len() - 1);
    }

    fn nullable(option: &Value) -> bool {
        let text = option.to_string();
        text.contains("\"null\"")
    }
}
