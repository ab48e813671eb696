//! Options that ask for features that are not built are refused by name.

use serde_json::Value;

use super::error::ConfigError;
use super::feature::Feature;
use super::objects::ControlPlaneAuth;
use super::options::Options;

/// Refuses the first option that asks for a feature that is not built.
pub(super) fn refuse(options: &Options) -> Result<(), ConfigError> {
    let as_json = |options: &Options| serde_json::to_value(options).unwrap_or_default();
    let (set, unset) = (as_json(options), as_json(&Options::default()));
    for feature in Feature::ALL {
        for name in feature.options() {
            if set[name] != unset[name] && !harmless(name, &set[name]) {
                let field = typed(name, options);
                return Err(ConfigError::unbuilt(field, *feature));
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

/// The name that the user wrote: keys and an issuer are options of their own, from which one
/// object is made.
fn typed(option: &'static str, options: &Options) -> &'static str {
    match &options.control_plane_auth {
        _ if option != "control_plane_auth" => option,
        Some(ControlPlaneAuth { api_keys, .. }) if !api_keys.is_empty() => "control_plane_api_keys",
        Some(ControlPlaneAuth { jwt: Some(_), .. }) => "jwt_issuer",
        _ => option,
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
        let auth = |jwt: Value, keys: Value| json!({"control_plane_auth": {"jwt": jwt, "api_keys": keys, "audit_enabled": true}});
        let jwt = json!({"issuer": "i", "audience": "a", "role_mapping": {}, "role_claim": "r"});
        let key = json!({"id": "i", "name": "n", "key": "s3cret"});
        for (options, name) in [
            (auth(jwt.clone(), json!([key])), "'control_plane_api_keys' "),
            (auth(jwt, json!([])), "'jwt_issuer' "),
            (auth(Value::Null, json!([])), "'control_plane_auth' "),
            (
                json!({"enable_trace": true}),
                "'enable_trace' needs tracing,",
            ),
        ] {
            let error = error(options);
            assert!(
                error.contains(name) && !error.contains("s3cret"),
                "{name}: {error}"
            );
        }
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
