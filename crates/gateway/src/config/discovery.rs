//! What pods are workers, as the options say.

use std::collections::{BTreeMap, HashSet};
use std::str::FromStr;

use super::backend::Backend;
use super::discovery_group::{DiscoveryBy, DiscoveryGroup};
use super::error::ConfigError;
use super::options::Options;
use super::secret::Secret;

/// What pods are workers.
#[derive(Clone, Debug)]
pub(crate) struct DiscoverySection {
    pub(crate) by: DiscoveryBy,
    /// In the order in which they count; one where the options name no groups.
    pub(crate) groups: Vec<GroupSection>,
    /// Sent to the workers.
    pub(crate) key: Option<Secret>,
    /// Pod label with the zone of a worker.
    pub(crate) zone_label: String,
    /// Ports of the gateway itself.
    pub(crate) own_ports: Vec<u16>,
}

/// Pods of one kind.
#[derive(Clone, Debug)]
pub(crate) struct GroupSection {
    /// Pod labels of workers; empty selects none.
    pub(crate) selector: BTreeMap<String, String>,
    pub(crate) prefill_selector: BTreeMap<String, String>,
    pub(crate) decode_selector: BTreeMap<String, String>,
    /// Where pods serve that say nothing else.
    pub(crate) port: PodPort,
    /// `None` means all.
    pub(crate) namespace: Option<String>,
    /// Annotation with the bootstrap ports of a prefill pod.
    pub(crate) bootstrap_annotation: String,
    pub(crate) model_id: Option<ModelIdFrom>,
}

/// A port of a pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum PodPort {
    Number(u16),
    /// That of a container or service.
    Name(String),
}

/// Where the model of a pod is named.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum ModelIdFrom {
    /// In the configuration.
    Group(String),
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
        let plain = [DiscoveryGroup::default()];
        let groups = match &options.service_discovery_groups[..] {
            [] => &plain,
            groups => groups,
        };
        let ports = [Some(options.port), options.prometheus_port];
        Self {
            by: options.service_discovery_by,
            groups: groups
                .iter()
                .map(|group| GroupSection::new(group, options))
                .collect(),
            key: options.api_key.clone(),
            zone_label: options.service_discovery_zone_label.clone(),
            own_ports: ports.into_iter().flatten().filter(|it| *it != 0).collect(),
        }
    }
}

impl GroupSection {
    /// What a group says, else the options.
    fn new(group: &DiscoveryGroup, options: &Options) -> Self {
        let labels = |own: &Option<BTreeMap<_, _>>, plain: &BTreeMap<_, _>| {
            own.as_ref().unwrap_or(plain).clone()
        };
        let port = match (group.port, &group.port_name) {
            (_, Some(name)) => PodPort::Name(name.clone()),
            (Some(port), None) => PodPort::Number(port),
            (None, None) => match &options.service_discovery_port_name {
                Some(name) => PodPort::Name(name.clone()),
                None => PodPort::Number(options.service_discovery_port),
            },
        };
        let from = group
            .model_id_from
            .as_ref()
            .or(options.model_id_from.as_ref());
        let model_id = match &group.model_id {
            Some(id) => Some(ModelIdFrom::Group(id.clone())),
            None => from.and_then(|text| text.parse().ok()),
        };
        let annotation = group.bootstrap_port_annotation.as_ref();
        let namespace = group
            .namespace
            .as_ref()
            .or(options.service_discovery_namespace.as_ref());
        Self {
            selector: labels(&group.selector, &options.selector),
            prefill_selector: labels(&group.prefill_selector, &options.prefill_selector),
            decode_selector: labels(&group.decode_selector, &options.decode_selector),
            port,
            namespace: namespace.cloned(),
            bootstrap_annotation: annotation
                .unwrap_or(&options.bootstrap_port_annotation)
                .clone(),
            model_id,
        }
    }
}

const NEEDS_LABELS: &str = "needs pod labels: selector, or prefill_selector and decode_selector";
const NEEDS_PAIRS: &str = "needs pod labels: prefill_selector, decode_selector";
const IS_NO_PORT: &str = "must be a port from 1 up";
const IS_NO_NAMESPACE: &str = "is no name of a namespace";

/// Checks the options of service discovery.
pub(super) fn check_discovery(options: &Options) -> Result<(), ConfigError> {
    if !options.service_discovery {
        return refuse_details(options);
    }
    let invalid = |why| ConfigError::invalid("service_discovery", true, why);
    if options.backend == Backend::Openai {
        return Err(invalid("is for SGLang workers, not for backend openai"));
    }
    let section = DiscoverySection::from(options);
    if options.service_discovery_groups.is_empty() {
        let plain = section.groups.first().map(selects);
        if options.pd_disaggregation && plain != Some(Selects::Pairs) {
            return Err(invalid(NEEDS_PAIRS));
        }
        if plain == Some(Selects::Nothing) {
            return Err(invalid(NEEDS_LABELS));
        }
    }
    check_plain(options)?;
    check_groups(options, &section.groups)
}

/// What a group's labels select.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Selects {
    Nothing,
    Regular,
    Pairs,
}

fn selects(group: &GroupSection) -> Selects {
    if !group.prefill_selector.is_empty() || !group.decode_selector.is_empty() {
        Selects::Pairs
    } else if group.selector.is_empty() {
        Selects::Nothing
    } else {
        Selects::Regular
    }
}

/// Checks what the options say beside their groups.
fn check_plain(options: &Options) -> Result<(), ConfigError> {
    if options.service_discovery_port == 0 {
        return Err(ConfigError::invalid(
            "service_discovery_port",
            0,
            IS_NO_PORT,
        ));
    }
    let namespace = options.service_discovery_namespace.as_deref();
    if let Some(name) = namespace.filter(|name| !is_label(name)) {
        let (field, value) = ("service_discovery_namespace", format!("{name:?}"));
        return Err(ConfigError::invalid(field, value, IS_NO_NAMESPACE));
    }
    let Some(text) = &options.model_id_from else {
        return Ok(());
    };
    let parsed: Result<ModelIdFrom, _> = text.parse();
    let invalid = |why| ConfigError::invalid("model_id_from", format!("{text:?}"), why);
    parsed.map(|_| ()).map_err(invalid)
}

/// Checks groups; a mistake is named by its group and field.
fn check_groups(options: &Options, sections: &[GroupSection]) -> Result<(), ConfigError> {
    let groups = &options.service_discovery_groups;
    let mut names = HashSet::new();
    let mut forms_pairs = groups.is_empty();
    for (number, (group, section)) in (1..).zip(groups.iter().zip(sections)) {
        let invalid = |field: &str, why: &str| {
            let name = group.name.as_deref();
            let name = name.map(|name| format!(" ({name:?})")).unwrap_or_default();
            let place = format!("group {number}{name}, {field}");
            Err(ConfigError::invalid("service_discovery_groups", place, why))
        };
        if group.name.as_ref().is_some_and(|name| !names.insert(name)) {
            return invalid("name", "is that of another group");
        }
        if group
            .namespace
            .as_deref()
            .is_some_and(|name| !is_label(name))
        {
            return invalid("namespace", IS_NO_NAMESPACE);
        }
        if group.port == Some(0) {
            return invalid("port", IS_NO_PORT);
        }
        if group.port.is_some() && group.port_name.is_some() {
            return invalid("port_name", "cannot be given with port");
        }
        if group.model_id.is_some() && group.model_id_from.is_some() {
            return invalid("model_id_from", "cannot be given with model_id");
        }
        if group.model_id.as_deref() == Some("") {
            return invalid("model_id", "must not be empty");
        }
        let from = group
            .model_id_from
            .as_deref()
            .map(str::parse::<ModelIdFrom>);
        if let Some(Err(why)) = from {
            return invalid("model_id_from", why);
        }
        match selects(section) {
            Selects::Nothing => return invalid("selector", NEEDS_LABELS),
            Selects::Pairs => forms_pairs = true,
            Selects::Regular => {}
        }
    }
    if options.pd_disaggregation && !forms_pairs {
        let value = format!("{} groups", groups.len());
        return Err(ConfigError::invalid(
            "service_discovery_groups",
            value,
            NEEDS_PAIRS,
        ));
    }
    Ok(())
}

/// Options that say which pods are workers, where none are looked for.
fn refuse_details(options: &Options) -> Result<(), ConfigError> {
    let counts = [
        ("selector", options.selector.len(), "labels"),
        ("prefill_selector", options.prefill_selector.len(), "labels"),
        ("decode_selector", options.decode_selector.len(), "labels"),
        (
            "service_discovery_groups",
            options.service_discovery_groups.len(),
            "groups",
        ),
    ];
    let set = counts.into_iter().find(|(_, count, _)| *count > 0);
    let names = [
        (
            "service_discovery_namespace",
            &options.service_discovery_namespace,
        ),
        (
            "service_discovery_port_name",
            &options.service_discovery_port_name,
        ),
        ("model_id_from", &options.model_id_from),
    ];
    let first = names
        .into_iter()
        .find_map(|(field, name)| Some((field, name.as_ref()?)));
    let why = "needs service_discovery";
    match (set, first) {
        (Some((field, count, of)), _) => {
            let value = format_args!("{count} {of}");
            Err(ConfigError::invalid(field, value, why))
        }
        (_, Some((field, name))) => Err(ConfigError::invalid(field, format!("{name:?}"), why)),
        _ if options.service_discovery_by != DiscoveryBy::default() => Err(ConfigError::invalid(
            "service_discovery_by",
            "endpointslices",
            why,
        )),
        _ => Ok(()),
    }
}

/// Whether a name is one of a namespace (RFC 1123): it becomes part of a path.
fn is_label(name: &str) -> bool {
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
            (
                json!({"service_discovery_groups": [{"selector": {"a": "b"}}]}),
                "'service_discovery_groups'",
            ),
            (
                json!({"service_discovery_by": "endpointslices"}),
                "'service_discovery_by'",
            ),
            (
                json!({"service_discovery_port_name": "http"}),
                "'service_discovery_port_name'",
            ),
        ] {
            let error = check(&options(refused)).unwrap_err().to_string();
            assert!(error.contains(field), "{field}: {error}");
        }
    }

    #[test]
    fn mistake_in_a_group_is_named_by_group_and_field() {
        let good = json!({"selector": {"a": "b"}});
        for (bad, place) in [
            (json!({"selector": {}}), "group 2, selector"),
            (
                json!({"name": "x", "namespace": "A", "selector": {"a": "b"}}),
                "group 2 (\"x\"), namespace",
            ),
            (json!({"port": 0, "selector": {"a": "b"}}), "group 2, port"),
            (
                json!({"port": 1, "port_name": "http", "selector": {"a": "b"}}),
                "group 2, port_name",
            ),
            (
                json!({"model_id_from": "pod", "selector": {"a": "b"}}),
                "group 2, model_id_from",
            ),
            (
                json!({"model_id_from": "namespace", "model_id": "m", "selector": {"a": "b"}}),
                "group 2, model_id_from",
            ),
            (
                json!({"model_id": "", "selector": {"a": "b"}}),
                "group 2, model_id ",
            ),
        ] {
            let groups =
                json!({"service_discovery": true, "service_discovery_groups": [good, bad]});
            let error = check(&options(groups)).unwrap_err().to_string();
            assert!(error.contains(place), "{place}: {error}");
        }
        let named = json!({"name": "x", "selector": {"a": "b"}});
        let twice = json!({"service_discovery": true, "service_discovery_groups": [named, named]});
        let error = check(&options(twice)).unwrap_err().to_string();
        assert!(error.contains("group 2 (\"x\"), name"), "{error}");
        let single = json!({
            "service_discovery": true, "pd_disaggregation": true, "service_discovery_groups": [good],
        });
        let error = check(&options(single)).unwrap_err().to_string();
        assert!(error.contains(NEEDS_PAIRS), "{error}");
    }

    #[test]
    fn group_takes_what_it_does_not_say_from_the_options() {
        let options = options(json!({
            "service_discovery": true, "selector": {"a": "b"}, "service_discovery_port": 30000,
            "service_discovery_namespace": "ns", "bootstrap_port_annotation": "b/p", "model_id_from": "label:m",
            "service_discovery_groups": [
                {"decode_selector": {"role": "d"}},
                {"selector": {}, "decode_selector": {"c": "d"}, "namespace": "other", "port": 1, "model_id": "m-1"},
                {"port_name": "http"},
            ],
        }));
        check(&options).unwrap();
        let section = DiscoverySection::from(&options);
        let [first, second, third] = &section.groups[..] else {
            panic!("{section:?}");
        };
        assert_eq!(first.selector["a"], "b");
        assert_eq!(first.decode_selector["role"], "d");
        assert_eq!(first.port, PodPort::Number(30000));
        assert_eq!(first.namespace.as_deref(), Some("ns"));
        assert_eq!(first.bootstrap_annotation, "b/p");
        assert_eq!(first.model_id, Some(ModelIdFrom::Label("m".to_owned())));
        assert!(second.selector.is_empty());
        assert_eq!(second.port, PodPort::Number(1));
        assert_eq!(second.namespace.as_deref(), Some("other"));
        assert_eq!(second.model_id, Some(ModelIdFrom::Group("m-1".to_owned())));
        assert_eq!(third.port, PodPort::Name("http".to_owned()));
    }

    #[test]
    fn unknown_field_of_a_group_is_refused() {
        let groups = json!({"service_discovery_groups": [{"selektor": {"a": "b"}}]});
        let error = serde_json::from_value::<Options>(groups).unwrap_err();
        assert!(error.to_string().contains("`selektor`"), "{error}");
    }

    #[test]
    fn selectors_of_single_workers_and_of_pairs_are_accepted() {
        for accepted in [
            json!({"service_discovery": true, "selector": {"a": "b", "c": "d"}}),
            json!({"service_discovery": true, "pd_disaggregation": true, "prefill_selector": {"a": "b"}}),
            json!({"service_discovery": true, "decode_selector": {"a": "b"}, "model_id_from": "label:m/x"}),
            json!({"service_discovery": true, "pd_disaggregation": true, "service_discovery_groups": [
                {"selector": {"a": "b"}}, {"prefill_selector": {"a": "b"}},
            ]}),
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
