//! The JSON body that describes a worker, in the fields of 0.3.2 and of its successors.

use http::HeaderValue;
use routing::PolicyKind;
use serde_json::{Map, Value};

use crate::config::{Feature, Scheme, Secret, WorkerUrl, is_zone, tls_name};
use crate::fleet::{Labels, RegistrationError, Role, UNKNOWN_MODEL, WorkerSpec, model_name};

/// The fields of a request's body.
pub(super) type Fields = Map<String, Value>;

/// The URL, normalised.
pub(super) fn url(fields: &Fields) -> Result<WorkerUrl, RegistrationError> {
    let url = fields.get("url").filter(|url| !url.is_null());
    let url = url.ok_or_else(|| invalid("url", "is missing"))?;
    let url = url
        .as_str()
        .ok_or_else(|| invalid("url", "must be a string"))?;
    WorkerUrl::parse(url).map_err(|why| invalid("url", &format!("{} {why}", WorkerUrl::quote(url))))
}

/// Fields that mean something; others are ignored in a request.
const FIELDS: [&str; 33] = [
    "url",
    "api_key",
    "labels",
    "zone",
    "health",
    "model_id",
    "models",
    "tls_server_name",
    "timeout_secs",
    "health_check_timeout_secs",
    "check_interval_secs",
    "health_check_interval_secs",
    "success_threshold",
    "health_success_threshold",
    "failure_threshold",
    "health_failure_threshold",
    "disable_health_check",
    "worker_type",
    "connection_mode",
    "runtime",
    "runtime_type",
    "priority",
    "max_connection_attempts",
    "kv_block_size",
    "bootstrap_port",
    "cost",
    "tokenizer_path",
    "chat_template",
    "reasoning_parser",
    "tool_parser",
    "kv_connector",
    "kv_role",
    "kv_engine_id",
];

/// Whether a field of a worker means something, or is refused with a reason.
pub(crate) fn has_field(name: &str) -> bool {
    FIELDS.contains(&name) || Feature::of_field(name).is_some()
}

/// The spec of a worker that these fields describe, of which nothing is known yet.
///
/// # Errors
/// The first field that is wrong.
pub(crate) fn read_new(fields: &Fields) -> Result<WorkerSpec, RegistrationError> {
    read(fields, &WorkerSpec::new(url(fields)?), &Labels::new())
}

/// A worker's key, which must fit into a header.
pub(super) fn key(key: &str) -> Result<Secret, RegistrationError> {
    if key.is_empty() || HeaderValue::try_from(key).is_err() {
        return Err(invalid(
            "api_key",
            "must be non-empty and fit into a header",
        ));
    }
    Ok(Secret::from(key.to_owned()))
}

/// The spec that these fields make of the present one. Unknown fields, nulls, and values equal to
/// what the worker reports are ignored: a client may send back what `GET` shows.
pub(super) fn read(
    fields: &Fields,
    current: &WorkerSpec,
    reported: &Labels,
) -> Result<WorkerSpec, RegistrationError> {
    check_names_agree(fields)?;
    let mut spec = current.clone();
    let repeats = |(name, value): &(&String, &Value)| repeats_model(name, value, current, reported);
    for (name, value) in fields.iter().filter(|field| !repeats(field)) {
        refuse_unbuilt(name, value)?;
        match name.as_str() {
            "url" if url(fields)? != spec.url => {
                let why = format!("must be the worker's own, {}", spec.url);
                return Err(invalid("url", &why));
            }
            "api_key" => spec.key = Some(key(text(name, value)?)?),
            "labels" => read_labels(value, &mut spec, reported)?,
            "health" => read_health(value, &mut spec)?,
            "zone" => spec.zone = read_zone(name, value)?,
            "model_id" => {
                let model = non_empty(name, value)?;
                if !fields.contains_key("models") {
                    spec.aliases.clear();
                    spec.extra.remove("models");
                }
                spec.model = Some(model.to_owned());
            }
            "models" => read_models(value, &mut spec)?,
            "tls_server_name" => {
                let known = tls_name(text(name, value)?);
                let known = known.ok_or_else(|| invalid(name, "must be a DNS name"))?;
                if spec.url.scheme() != Scheme::Https {
                    return Err(invalid(name, "is for https:// workers"));
                }
                spec.url = spec.url.clone().with_tls_name(Some(known));
            }
            _ if read_probe(name, value, &mut spec)? => {}
            _ => read_extra(name, value, &mut spec)?,
        }
    }
    Ok(spec)
}

/// A model that is named twice has one name, also where one of the two is what the worker reports.
fn check_names_agree(fields: &Fields) -> Result<(), RegistrationError> {
    let name = fields.get("model_id").and_then(Value::as_str);
    let name = name.filter(|name| *name != UNKNOWN_MODEL);
    let card = fields.get("models").and_then(card_id);
    match name.zip(card) {
        Some((name, card)) if name != card => {
            Err(invalid("model_id", "and models[0].id must be the same"))
        }
        _ => Ok(()),
    }
}

/// Refuses fields of features that are not built, unless they ask for nothing.
fn refuse_unbuilt(name: &str, value: &Value) -> Result<(), RegistrationError> {
    let harmless = match value {
        Value::Bool(on) => !on,
        Value::Object(fields) => fields.is_empty(),
        // One rank is what every worker has.
        Value::Number(_) => name == "dp_size" && *value == 1,
        _ => false,
    };
    match Feature::of_field(name) {
        Some(feature) if !harmless => Err(unbuilt(name, feature)),
        _ => Ok(()),
    }
}

/// Whether a field is empty, or names the model that the worker reports anyway.
fn repeats_model(name: &str, value: &Value, current: &WorkerSpec, reported: &Labels) -> bool {
    let served = model_name(reported);
    let is_reported = |id: &Value| *id == *served && current.model.is_none();
    match name {
        "model_id" => *value == UNKNOWN_MODEL || is_reported(value) || value.is_null(),
        "models" => {
            let cards = value.as_array().map(Vec::as_slice);
            // A card with more on it is kept.
            let bare = cards.and_then(|cards| match cards {
                [Value::Object(card)] if card.len() == 1 => card.get("id"),
                _ => None,
            });
            bare.is_some_and(is_reported) || value.is_null()
        }
        _ => value.is_null(),
    }
}

fn read_labels(
    value: &Value,
    spec: &mut WorkerSpec,
    reported: &Labels,
) -> Result<(), RegistrationError> {
    let labels = value.as_object();
    for (name, value) in labels.ok_or_else(|| invalid("labels", "must be an object"))? {
        let field = format!("labels.{name}");
        let value = text(&field, value)?;
        if name == "policy" {
            let policy = PolicyKind::named(value);
            let unknown = || invalid(&field, &format!("names no policy: {value:?}"));
            spec.policy = Some(policy.ok_or_else(unknown)?);
        }
        if reported.get(name).is_some_and(|reported| reported == value)
            && !spec.labels.contains_key(name)
        {
            continue;
        }
        spec.labels.insert(name.clone(), value.to_owned());
    }
    Ok(())
}

/// An empty text takes a zone away.
fn read_zone(name: &str, value: &Value) -> Result<Option<String>, RegistrationError> {
    let zone = text(name, value)?;
    if !zone.is_empty() && !is_zone(zone) {
        let why = "must be a name of 1 to 63 letters, digits, hyphens, dots or underscores";
        return Err(invalid(name, why));
    }
    Ok(Some(zone.to_owned()).filter(|zone| !zone.is_empty()))
}

fn read_health(value: &Value, spec: &mut WorkerSpec) -> Result<(), RegistrationError> {
    let health = value.as_object();
    let health = health.ok_or_else(|| invalid("health", "must be an object"))?;
    for (name, value) in health.iter().filter(|(_, value)| !value.is_null()) {
        if name == "drain_settle_secs" {
            let why = "is not supported: a worker that leaves finishes what it has (worker_drain_timeout_secs)";
            return Err(invalid("health.drain_settle_secs", why));
        }
        read_probe(name, value, spec)?;
    }
    Ok(())
}

/// Reads a field about probes, if it is one; both vocabularies.
fn read_probe(name: &str, value: &Value, spec: &mut WorkerSpec) -> Result<bool, RegistrationError> {
    let health = &mut spec.health;
    match name {
        "timeout_secs" | "health_check_timeout_secs" => {
            health.timeout_secs = Some(at_least_one(name, value, u64::MAX)?);
        }
        "check_interval_secs" | "health_check_interval_secs" => {
            health.interval_secs = Some(at_least_one(name, value, u64::MAX)?);
        }
        "success_threshold" | "health_success_threshold" => {
            health.success_threshold = Some(threshold(name, value)?);
        }
        "failure_threshold" | "health_failure_threshold" => {
            health.failure_threshold = Some(threshold(name, value)?);
        }
        "disable_health_check" => {
            let disabled = value.as_bool();
            health.disabled = Some(disabled.ok_or_else(|| invalid(name, "must be true or false"))?);
        }
        _ => return Ok(false),
    }
    Ok(true)
}

fn read_models(value: &Value, spec: &mut WorkerSpec) -> Result<(), RegistrationError> {
    let cards = value.as_array();
    let cards = cards.ok_or_else(|| invalid("models", "must be a list of model cards"))?;
    let Some(card) = cards.first() else {
        return Ok(());
    };
    if cards.len() > 1 {
        return Err(unbuilt("models", Feature::WorkerModels));
    }
    let id = card_id(value).filter(|id| !id.is_empty());
    let id = id.ok_or_else(|| invalid("models[0].id", "must be a non-empty string"))?;
    spec.aliases = read_aliases(card.get("aliases"))?;
    spec.model = Some(id.to_owned());
    spec.extra.insert("models".to_owned(), value.clone());
    Ok(())
}

fn read_aliases(value: Option<&Value>) -> Result<Vec<String>, RegistrationError> {
    let field = "models[0].aliases";
    let aliases = match value {
        None | Some(Value::Null) => return Ok(Vec::new()),
        Some(list) => list.as_array(),
    };
    let aliases = aliases.ok_or_else(|| invalid(field, "must be a list of names"))?;
    let names = aliases.iter().map(|name| {
        let name = name.as_str().filter(|name| !name.is_empty());
        let name = name.ok_or_else(|| invalid(field, "must be non-empty strings"))?;
        Ok(name.to_owned())
    });
    names.collect()
}

fn card_id(models: &Value) -> Option<&str> {
    models.get(0)?.get("id")?.as_str()
}

/// Fields that are kept and shown, or that state what every worker is.
fn read_extra(name: &str, value: &Value, spec: &mut WorkerSpec) -> Result<(), RegistrationError> {
    match name {
        "worker_type" => match text(name, value)? {
            "encode" => return Err(unbuilt(name, Feature::Encode)),
            role => {
                let role = Role::named(role);
                let role = role.ok_or_else(|| invalid(name, "must be regular, prefill or decode"));
                spec.role =
                    Some(role?).filter(|role| *role != Role::Regular || spec.role.is_some());
            }
        },
        "connection_mode" => match text(name, value)?.to_ascii_lowercase().as_str() {
            "http" => {}
            "grpc" => return Err(unbuilt(name, Feature::Grpc)),
            "zmq" => return Err(unbuilt(name, Feature::Zmq)),
            _ => return Err(invalid(name, "must be http")),
        },
        "runtime" | "runtime_type" => match text(name, value)? {
            runtime @ ("unspecified" | "sglang" | "vllm" | "trtllm" | "mlx" | "tokenspeed") => {
                spec.extra.insert("runtime_type".to_owned(), runtime.into());
            }
            "external" => return Err(unbuilt(name, Feature::OpenAi)),
            _ => return Err(invalid(name, "names no runtime")),
        },
        "priority" | "max_connection_attempts" | "kv_block_size" => {
            whole(name, value, u32::MAX.into())?;
            spec.extra.insert(name.to_owned(), value.clone());
        }
        "bootstrap_port" => {
            let port = at_least_one(name, value, u16::MAX.into())?;
            spec.bootstrap_port = u16::try_from(port).ok();
        }
        "cost" => {
            let cost = value.as_f64().filter(|cost| *cost >= 0.0);
            let cost = cost.ok_or_else(|| invalid(name, "must be a number from 0 up"))?;
            spec.extra.insert(name.to_owned(), cost.into());
        }
        "tokenizer_path" | "chat_template" | "reasoning_parser" | "tool_parser"
        | "kv_connector" | "kv_role" | "kv_engine_id" => {
            spec.extra
                .insert(name.to_owned(), text(name, value)?.into());
        }
        _ => {}
    }
    Ok(())
}

fn text<'a>(name: &str, value: &'a Value) -> Result<&'a str, RegistrationError> {
    value
        .as_str()
        .ok_or_else(|| invalid(name, "must be a string"))
}

fn non_empty<'a>(name: &str, value: &'a Value) -> Result<&'a str, RegistrationError> {
    let text = text(name, value)?;
    let text = Some(text).filter(|text| !text.is_empty());
    text.ok_or_else(|| invalid(name, "must not be empty"))
}

fn whole(name: &str, value: &Value, most: u64) -> Result<u64, RegistrationError> {
    let number = value.as_u64().filter(|number| *number <= most);
    number.ok_or_else(|| invalid(name, &format!("must be a whole number up to {most}")))
}

fn at_least_one(name: &str, value: &Value, most: u64) -> Result<u64, RegistrationError> {
    let number = Some(whole(name, value, most)?).filter(|number| *number > 0);
    number.ok_or_else(|| invalid(name, "must be at least 1"))
}

fn threshold(name: &str, value: &Value) -> Result<u32, RegistrationError> {
    Ok(at_least_one(name, value, u32::MAX.into())? as u32)
}

fn invalid(field: &str, why: &str) -> RegistrationError {
    RegistrationError::Invalid(format!("{field}: {why}"))
}

fn unbuilt(field: &str, feature: Feature) -> RegistrationError {
    RegistrationError::Invalid(feature.refuses_field(field))
}

#[cfg(test)]
mod tests {
    use super::super::handlers::refusal;
    use super::*;

    fn said(json: &str) -> Result<WorkerSpec, RegistrationError> {
        let fields: Fields = serde_json::from_str(json).unwrap();
        read(&fields, &WorkerSpec::new(url(&fields)?), &Labels::new())
    }

    #[test]
    fn both_vocabularies_say_the_same() {
        let old = said(
            r#"{"url":"gpu:1","model_id":"m","health_check_timeout_secs":3,"health_check_interval_secs":4,
               "health_success_threshold":1,"health_failure_threshold":2,"disable_health_check":true,
               "runtime":"vllm","dp_aware":false,"nonsense":[1]}"#,
        );
        let new = said(
            r#"{"url":"http://gpu:1/","models":[{"id":"m"}],"runtime_type":"vllm","resilience":{},
               "health":{"timeout_secs":3,"check_interval_secs":4,"success_threshold":1,
                         "failure_threshold":2,"disable_health_check":true}}"#,
        );
        let (old, mut new) = (old.unwrap(), new.unwrap());
        assert!(new.extra.remove("models").is_some());
        assert_eq!(old, new);
        assert_eq!(old.url.as_str(), "http://gpu:1");
        assert_eq!(old.model.as_deref(), Some("m"));
        assert_eq!(old.health.interval_secs, Some(4));
    }

    #[test]
    fn a_bad_field_is_named() {
        for (fields, named) in [
            (r#""worker_type":"encode""#, "worker_type"),
            (r#""bootstrap_port":0"#, "bootstrap_port"),
            (r#""worker_type":"odd""#, "worker_type"),
            (r#""connection_mode":"grpc""#, "connection_mode"),
            (r#""connection_mode":"zmq""#, "connection_mode"),
            (r#""dp_aware":true"#, "dp_aware"),
            (r#""dp_size":2"#, "dp_size"),
            (r#""dp_rank":0"#, "dp_rank"),
            (r#""resilience":{"max_retries":1}"#, "resilience"),
            (r#""http_pool":{"timeout_secs":1}"#, "http_pool"),
            (r#""runtime":"external""#, "runtime"),
            (r#""provider":"xai""#, "provider"),
            (r#""priority":-1"#, "priority"),
            (r#""cost":"high""#, "cost"),
            (r#""bootstrap_port":70000"#, "bootstrap_port"),
            (r#""labels":{"a":1}"#, "labels.a"),
            (r#""labels":{"policy":"fastest"}"#, "labels.policy"),
            (r#""labels":[]"#, "labels"),
            (r#""health":{"timeout_secs":0}"#, "timeout_secs"),
            (r#""health":{"drain_settle_secs":5}"#, "drain_settle_secs"),
            (
                r#""health_success_threshold":0"#,
                "health_success_threshold",
            ),
            (r#""disable_health_check":"no""#, "disable_health_check"),
            (r#""api_key":"""#, "api_key"),
            (r#""api_key":"a\nb""#, "api_key"),
            (r#""models":[{"id":"a"},{"id":"b"}]"#, "models"),
            (
                r#""models":[{"id":"a","aliases":["b",7]}]"#,
                "models[0].aliases",
            ),
            (r#""models":[{}]"#, "models[0].id"),
            (r#""model_id":"a","models":[{"id":"b"}]"#, "model_id"),
            (r#""model_id":"""#, "model_id"),
        ] {
            let error = said(&format!(r#"{{"url":"gpu:1",{fields}}}"#)).unwrap_err();
            assert!(error.to_string().contains(named), "{fields}: {error}");
            let error = refusal(error);
            assert_eq!(
                (error.status().as_u16(), error.code()),
                (400, "BAD_REQUEST")
            );
        }
    }

    #[test]
    fn a_later_registration_adds_to_the_earlier_one() {
        let before = said(r#"{"url":"gpu:1","api_key":"k","labels":{"a":"1","b":"2"},"cost":2}"#);
        let later: Fields = serde_json::from_str(
            r#"{"labels":{"b":"3","policy":"leastload"},"priority":9,"cost":null}"#,
        )
        .unwrap();
        let after = read(&later, &before.unwrap(), &Labels::new()).unwrap();
        assert_eq!((&*after.labels["a"], &*after.labels["b"]), ("1", "3"));
        assert_eq!(after.policy, Some(PolicyKind::LeastLoad));
        assert_eq!(
            (&after.extra["cost"], &after.extra["priority"]),
            (&2.0.into(), &9.into())
        );
        assert!(after.key.is_some());
    }

    #[test]
    fn fields_of_a_worker_view_are_accepted_in_a_registration() {
        let spec = said(r#"{"url":"gpu:1","model_id":"unknown","models":[]}"#).unwrap();
        assert_eq!(spec, said(r#"{"url":"gpu:1"}"#).unwrap());
        let reported = Labels::from([
            ("model_id".into(), "m".into()),
            ("tp_size".into(), "2".into()),
        ]);
        let later = |json: &str| {
            let fields: Fields = serde_json::from_str(json).unwrap();
            read(&fields, &spec, &reported).unwrap()
        };
        let shown =
            r#"{"model_id":"m","models":[{"id":"m"}],"labels":{"model_id":"m","tp_size":"2"}}"#;
        assert_eq!(later(shown), spec);
        let differs = serde_json::from_str(r#"{"model_id":"m","models":[{"id":"n"}]}"#).unwrap();
        assert!(read(&differs, &spec, &reported).is_err());
        let said = later(r#"{"model_id":"n","labels":{"tp_size":"4","rack":"r1"}}"#);
        assert_eq!(said.model.as_deref(), Some("n"));
        assert_eq!((&*said.labels["tp_size"], said.labels.len()), ("4", 2));
        let card = later(r#"{"models":[{"id":"m","context_length":1}]}"#);
        assert_eq!(card.model.as_deref(), Some("m"));
    }
}
