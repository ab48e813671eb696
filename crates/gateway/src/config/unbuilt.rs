//! Options that ask for features that are not built are refused by name.

use serde_json::Value;

use super::error::ConfigError;
use super::feature::Feature;
use super::options::Options;

/// Refuses the first option that asks for a feature that is not built.
pub(super) fn refuse(options: &Options) -> Result<(), ConfigError> {
    let as_json = |options: &Options| serde_json::to_value(options).unwrap_or_default();
    let (set, unset) = (as_json(options), as_json(&Options::default()));
    for feature in Feature::missing() {
        for name in feature.options() {
            if set[name] != unset[name] && !harmless(name, &set[name]) {
                return Err(ConfigError::unbuilt(name, feature));
            }
        }
    }
    Ok(())
}

/// Values that ask for nothing, so that refusing them would only get in the way.
fn harmless(option: &str, value: &Value) -> bool {
    match value {
        Value::Null => true,
        // No history is kept in any case.
        Value::String(word) => option == "history_backend" && word == "none",
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn error(options: Value) -> String {
        let options: Options = serde_json::from_value(options).unwrap();
        refuse(&options).unwrap_err().to_string()
    }

    #[test]
    fn every_refused_name_is_an_option_and_has_one_feature() {
        let mut seen = Vec::new();
        for name in Feature::ALL.iter().flat_map(|feature| feature.options()) {
            assert!(Options::NAMES.contains(name), "{name}");
            assert!(!seen.contains(&name), "{name}");
            seen.push(name);
        }
    }

    #[test]
    fn defaults_are_never_refused() {
        refuse(&Options::default()).unwrap();
    }

    #[test]
    fn refusal_names_the_option_and_the_feature() {
        assert_eq!(
            error(json!({"model_path": "m"})),
            "Configuration error: option 'model_path' needs tokenizers, which this build does not have"
        );
        assert_eq!(
            Feature::WorkerPools.refuses_field("http_pool"),
            "field 'http_pool' needs connection pools per worker, which this build does not have: \
             the gateway's own options are for all workers"
        );
    }

    #[test]
    fn refusal_names_the_option_that_the_user_wrote() {
        let error = error(json!({"enable_wasm": true}));
        let name = "'enable_wasm' needs WASM middleware,";
        assert!(error.contains(name), "{error}");
    }

    #[test]
    fn option_that_asks_for_nothing_is_accepted() {
        for options in [
            json!({"service_discovery": false}),
            json!({"history_backend": "none"}),
        ] {
            refuse(&serde_json::from_value(options).unwrap()).unwrap();
        }
        assert!(error(json!({"history_backend": "redis"})).contains("'history_backend'"));
    }
}
