//! What pods are workers, as the options say.

use std::collections::BTreeMap;
use std::str::FromStr;

use super::error::ConfigError;
use super::options::{Backend, Options};
use super::secret::Secret;

/// What pods are workers.
#[derive(Clone, Debug)]
pub(crate) struct DiscoverySection {
    /// Pod labels of workers; empty selects none.
    pub(crate) selector: BTreeMap<String, String>,
    pub(crate) prefill_selector: BTreeMap<String, String>,
    pub(crate) decode_selector: BTreeMap<String, String>,
    /// Where pods serve that say nothing else.
    pub(crate) port: u16,
    /// `None` means all.
    pub(crate) namespace: Option<String>,
    /// Annotation with the bootstrap ports of a prefill pod.
    pub(crate) bootstrap_annotation: String,
    pub(crate) model_id: Option<ModelIdFrom>,
    /// Sent to the workers.
    pub(crate) key: Option<Secret>,
    /// Ports of the gateway itself.
    pub(crate) own_ports: Vec<u16>,
}

/// Where the model of a pod is named.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum ModelIdFrom {
    Namespace,
    Label(String),
    Annotation(String),
}

impl FromStr for ModelIdFrom {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.split_once(':') {
            None if text == "namespace" => Ok(Self::Namespace),
            Some(("label", key)) if !key.is_empty() => Ok(Self::Label(key.to_owned())),
            Some(("annotation", key)) if !key.is_empty() => Ok(Self::Annotation(key.to_owned())),
            _ => Err("must be namespace, label:KEY or annotation:KEY"),
        }
    }
}

impl From<&Options> for DiscoverySection {
    fn from(options: &Options) -> Self {
        let model_id = options.model_id_from.as_deref().map(str::parse);
        let ports = [Some(options.port), options.prometheus_port];
        Self {
            selector: options.selector.clone(),
            prefill_selector: options.prefill_selector.clone(),
            decode_selector: options.decode_selector.clone(),
            port: options.service_discovery_port,
            namespace: options.service_discovery_namespace.clone(),
            bootstrap_annotation: options.bootstrap_port_annotation.clone(),
            model_id: model_id.and_then(Result::ok),
            key: options.api_key.clone(),
            own_ports: ports.into_iter().flatten().filter(|it| *it != 0).collect(),
        }
    }
}

/// Checks the options of service discovery.
pub(super) fn check_discovery(options: &Options) -> Result<(), ConfigError> {
    if !options.service_discovery {
        return refuse_details(options);
    }
    if options.backend == Backend::Openai {
        let why = "is for SGLang workers, not for backend openai";
        return Err(ConfigError::invalid("service_discovery", true, why));
    }
    let pairs = !options.prefill_selector.is_empty() || !options.decode_selector.is_empty();
    if options.pd_disaggregation && !pairs {
        let why = "needs pod labels: prefill_selector, decode_selector";
        return Err(ConfigError::invalid("service_discovery", true, why));
    }
    if !pairs && options.selector.is_empty() {
        let why = "needs pod labels: selector, or prefill_selector and decode_selector";
        return Err(ConfigError::invalid("service_discovery", true, why));
    }
    if options.service_discovery_port == 0 {
        let why = "must be a port from 1 up";
        return Err(ConfigError::invalid("service_discovery_port", 0, why));
    }
    let namespace = options.service_discovery_namespace.as_deref();
    if let Some(name) = namespace.filter(|name| !is_namespace(name)) {
        let (value, why) = (format!("{name:?}"), "is no name of a namespace");
        return Err(ConfigError::invalid(
            "service_discovery_namespace",
            value,
            why,
        ));
    }
    let Some(text) = &options.model_id_from else {
        return Ok(());
    };
    let parsed: Result<ModelIdFrom, _> = text.parse();
    let invalid = |why| ConfigError::invalid("model_id_from", format!("{text:?}"), why);
    parsed.map(|_| ()).map_err(invalid)
}

/// Options that say which pods are workers, where none are looked for.
fn refuse_details(options: &Options) -> Result<(), ConfigError> {
    let selectors = [
        ("selector", &options.selector),
        ("prefill_selector", &options.prefill_selector),
        ("decode_selector", &options.decode_selector),
    ];
    let selectors = selectors.map(|(field, labels)| (field, labels.len()));
    let set = selectors.into_iter().find(|(_, labels)| *labels > 0);
    let names = [
        (
            "service_discovery_namespace",
            &options.service_discovery_namespace,
        ),
        ("model_id_from", &options.model_id_from),
    ];
    let first = names
        .into_iter()
        .find_map(|(field, name)| Some((field, name.as_ref()?)));
    let why = "needs service_discovery";
    match (set, first) {
        (Some((field, labels)), _) => {
            let value = format_args!("{labels} labels");
            Err(ConfigError::invalid(field, value, why))
        }
        (_, Some((field, name))) => Err(ConfigError::invalid(field, format!("{name:?}"), why)),
        _ => Ok(()),
    }
}

/// Whether a name is one of a namespace (RFC 1123): it becomes part of a path.
fn is_namespace(name: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    !name.is_empty() && name.len() <= 63 && name.bytes().all(plain)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::config::check;

    fn options(options: Value) -> Options {
        serde_json::from_value(options).unwrap()
    }

    #[test]
    fn discovery_needs_labels_that_select_pods() {
        for (refused, field) in [
            (json!({"service_discovery": true}), "'service_discovery'"),
            (
                json!({"service_discovery": true, "pd_disaggregation": true, "selector": {"a": "b"}}),
                "'service_discovery'",
            ),
            (
                json!({"service_discovery": true, "selector": {"a": "b"}, "service_discovery_port": 0}),
                "'service_discovery_port'",
            ),
            (
                json!({"service_discovery": true, "selector": {"a": "b"}, "service_discovery_namespace": "a/b"}),
                "'service_discovery_namespace'",
            ),
            (
                json!({"service_discovery": true, "selector": {"a": "b"}, "model_id_from": "label"}),
                "'model_id_from'",
            ),
            (json!({"selector": {"a": "b"}}), "'selector'"),
            (json!({"decode_selector": {"a": "b"}}), "'decode_selector'"),
            (json!({"model_id_from": "namespace"}), "'model_id_from'"),
        ] {
            let error = check(&options(refused)).unwrap_err().to_string();
            assert!(error.contains(field), "{field}: {error}");
        }
    }

    #[test]
    fn selectors_of_single_workers_and_of_pairs_are_accepted() {
        for accepted in [
            json!({"service_discovery": true, "selector": {"a": "b", "c": "d"}}),
            json!({"service_discovery": true, "pd_disaggregation": true, "prefill_selector": {"a": "b"}}),
            json!({"service_discovery": true, "decode_selector": {"a": "b"}, "model_id_from": "label:m/x"}),
        ] {
            check(&options(accepted)).unwrap();
        }
    }

    #[test]
    fn model_id_comes_from_the_namespace_a_label_or_an_annotation() {
        let parsed = |text: &str| text.parse::<ModelIdFrom>();
        assert_eq!(parsed("namespace"), Ok(ModelIdFrom::Namespace));
        assert_eq!(
            parsed("label:a/b"),
            Ok(ModelIdFrom::Label("a/b".to_owned()))
        );
        assert_eq!(
            parsed("annotation:m:x"),
            Ok(ModelIdFrom::Annotation("m:x".to_owned()))
        );
        for wrong in ["", "label", "label:", "pod", "namespace:x"] {
            assert!(parsed(wrong).is_err(), "{wrong}");
        }
    }
}
