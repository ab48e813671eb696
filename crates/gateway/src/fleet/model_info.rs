//! What a worker reports of itself.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde_json::{Map, Value};

use super::model_card::ModelCard;
use super::role::Role;
use crate::telemetry::ModelMetrics;
pub(crate) use crate::telemetry::UNKNOWN_MODEL;

/// Fields of `/server_info` and `/model_info` that are kept as labels.
const LABELS: [&str; 22] = [
    "model_id",
    "model_path",
    "served_model_name",
    "tokenizer_path",
    "tp_size",
    "dp_size",
    "pp_size",
    "load_balance_method",
    MODE,
    BOOTSTRAP_PORT,
    "version",
    "is_embedding",
    "is_generation",
    "context_length",
    "max_total_tokens",
    "max_total_num_tokens",
    "max_running_requests",
    "weight_version",
    CACHE_REPORT,
    "has_image_understanding",
    "has_audio_understanding",
    "model_type",
];

/// The role of an engine: `null`, `prefill` or `decode`.
const MODE: &str = "disaggregation_mode";
/// Where a prefill engine has its registry of rooms; a decode engine reports a port that it does
/// not use.
const BOOTSTRAP_PORT: &str = "disaggregation_bootstrap_port";
/// That port where nothing else is known: SGLang's default.
const DEFAULT_BOOTSTRAP_PORT: u16 = 8998;

/// Whether replies of other APIs than the engine's own name cached tokens.
const CACHE_REPORT: &str = "enable_cache_report";

/// Most ranks that an endpoint is believed to have.
const MAX_RANKS: usize = 1024;

/// Where a worker publishes its load: the port of the first rank, and the topic.
const LOAD_PORT: &str = "load_publish_port";
const LOAD_TOPIC: &str = "load_publish_topic";
/// The topic where none is named.
const DEFAULT_LOAD_TOPIC: &str = "load";

/// The labels that name the model, the best one first.
const NAMES: [&str; 3] = ["served_model_name", "model_id", "model_path"];

/// What a worker reports of itself, as text.
pub(crate) type Labels = BTreeMap<String, String>;

/// What a worker reports of itself: `/server_info`, `/model_info`, `/v1/models`.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Report {
    pub(crate) labels: Labels,
    pub(crate) cards: Vec<ModelCard>,
}

/// What a worker reports of itself, and the metrics that follow from it.
#[derive(Debug)]
pub(crate) struct ModelInfo {
    /// The model it serves; [`UNKNOWN_MODEL`] until it reports one.
    pub(crate) model: String,
    /// Its part in prefill/decode pairs: the one it reports, or else the one it is registered with.
    pub(crate) role: Role,
    /// Everything it reports.
    pub(crate) report: Report,
    /// Handles for its model.
    pub(crate) metrics: Arc<ModelMetrics>,
    /// Tokens its prefix cache holds, when it reports that.
    pub(crate) cache_tokens: Option<u64>,
    /// Other names of its model: those that it reports, and the path the model is loaded from.
    pub(crate) aliases: Vec<String>,
}

/// Where a worker publishes its load, on its own host. The host that it announces is that of its
/// cache events, and may be another machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct LoadPublisher {
    /// That of the first rank; the others follow.
    pub(super) port: u16,
    pub(super) topic: String,
}

impl ModelInfo {
    /// That of a worker which serves this model. What each change in the fleet reads of all workers
    /// is picked out once.
    pub(super) fn new(
        model: String,
        role: Role,
        report: Report,
        metrics: Arc<ModelMetrics>,
    ) -> Self {
        let tokens = report.labels.get("max_total_num_tokens");
        Self {
            cache_tokens: tokens.and_then(|tokens| tokens.parse().ok()),
            aliases: report
                .names()
                .filter(|name| **name != model)
                .cloned()
                .collect(),
            model,
            role,
            report,
            metrics,
        }
    }

    /// Where it publishes its load, if it does.
    pub(super) fn load_publisher(&self) -> Option<LoadPublisher> {
        let labels = &self.report.labels;
        Some(LoadPublisher {
            port: labels.get(LOAD_PORT)?.parse().ok()?,
            topic: labels.get(LOAD_TOPIC)?.clone(),
        })
    }

    /// The names of the adapters that it has loaded.
    pub(crate) fn adapters(&self) -> impl Iterator<Item = &str> {
        let adapters = self.report.cards.iter().filter(|card| card.is_adapter());
        adapters.map(|card| &*card.id)
    }

    /// Where decode workers find it, unless it is registered with a port.
    pub(crate) fn bootstrap_port(&self) -> u16 {
        let reported = self.report.labels.get(BOOTSTRAP_PORT);
        let port = reported.and_then(|port| port.parse().ok());
        port.unwrap_or(DEFAULT_BOOTSTRAP_PORT)
    }

    /// Its data-parallel ranks.
    pub(super) fn ranks(&self) -> usize {
        let reported = self.report.labels.get("dp_size");
        let ranks = reported.and_then(|ranks| ranks.parse().ok());
        ranks.unwrap_or(1).clamp(1, MAX_RANKS)
    }

    /// Whether it takes a rank by its present name, `routed_dp_rank`, for certain: releases that have
    /// `/ready` do, and report their version.
    pub(crate) fn takes_routed_rank(&self) -> bool {
        let version = self.report.labels.get("version");
        let numbers = version.map(|version| version.split('.').map_while(|it| it.parse().ok()));
        let numbers: Vec<u32> = numbers.into_iter().flatten().collect();
        numbers >= vec![0, 5, 10]
    }

    /// Whether it has reported, and its model is known.
    pub(crate) fn is_complete(&self) -> bool {
        self.is_known() && self.report != Report::default()
    }

    /// Whether it says that its replies name no cached tokens.
    pub(super) fn hides_cached_tokens(&self) -> bool {
        let stated = self.report.labels.get(CACHE_REPORT);
        stated.is_some_and(|stated| stated == "false")
    }

    /// Whether its model is known.
    pub(crate) fn is_known(&self) -> bool {
        self.model != UNKNOWN_MODEL
    }
}

impl Report {
    /// What `/server_info` and `/model_info` say, and the answer to `GET /v1/models`.
    pub(crate) fn new(labels: Labels, models: Option<&Map<String, Value>>) -> Self {
        let cards = models.map(ModelCard::list).unwrap_or_default();
        Self { labels, cards }
    }

    /// The names that it gives the model.
    fn names(&self) -> impl Iterator<Item = &String> {
        let labels = NAMES.iter().filter_map(|name| self.labels.get(*name));
        let cards = self.cards.iter().filter(|card| !card.is_adapter());
        let names = labels.chain(cards.map(|card| &card.id));
        names.filter(|name| !name.is_empty())
    }

    /// Whether both list the same models and adapters.
    pub(super) fn lists_as(&self, other: &Self) -> bool {
        let names = |report: &Self| {
            let cards = report.cards.iter();
            let names = cards.map(|card| (card.id.clone(), card.parent.clone()));
            names.collect::<Vec<_>>()
        };
        names(self) == names(other)
    }

    /// The same of an engine that has another role now.
    pub(crate) fn in_role(mut self, role: Role) -> Self {
        self.labels
            .insert(MODE.to_owned(), role.as_str().to_owned());
        self
    }

    /// Its part in pairs, if it has one.
    pub(super) fn role(&self) -> Option<Role> {
        Role::of_mode(self.labels.get(MODE)?)
    }

    /// The model it names, if it names one.
    pub(super) fn model(&self) -> String {
        let named = model_name(&self.labels);
        let base = self.cards.iter().find(|card| !card.is_adapter());
        match base {
            Some(card) if named == UNKNOWN_MODEL => card.id.clone(),
            _ => named,
        }
    }
}

/// The labels in what a worker reports; later answers add to earlier ones. Of the role the last
/// answer counts: `/server_info` has that of the start, `/model_info` the present one.
pub(super) fn labels(answers: &[Map<String, Value>]) -> Labels {
    let mut labels = BTreeMap::new();
    for answer in answers {
        for name in LABELS {
            let text = match answer.get(name) {
                Some(Value::String(text)) => text.clone(),
                Some(value @ (Value::Number(_) | Value::Bool(_))) => value.to_string(),
                _ => continue,
            };
            let known = labels.entry(name.to_owned());
            if name == MODE {
                known.insert_entry(text);
            } else {
                known.or_insert(text);
            }
        }
    }
    for publisher in answers.iter().filter_map(|answer| answer.get("kv_events")) {
        add_publisher(publisher, &mut labels);
    }
    labels
}

/// Adds where a worker publishes its load, if it does.
fn add_publisher(announced: &Value, labels: &mut Labels) {
    let port = announced.get("load_endpoint_port_base");
    let Some(port) = port.and_then(Value::as_u64) else {
        return;
    };
    labels.insert(LOAD_PORT.to_owned(), port.to_string());
    let topic = announced.get("load_topic").and_then(Value::as_str);
    let topic = topic.unwrap_or(DEFAULT_LOAD_TOPIC);
    labels.insert(LOAD_TOPIC.to_owned(), topic.to_owned());
}

/// The role that an answer to `/model_info` names.
pub(super) fn role_in(answer: &Map<String, Value>) -> Option<Role> {
    Role::of_mode(answer.get(MODE)?.as_str()?)
}

/// The model a worker serves, by its labels.
pub(crate) fn model_name(labels: &Labels) -> String {
    NAMES
        .iter()
        .filter_map(|name| labels.get(*name))
        .find(|name| !name.is_empty())
        .map_or_else(|| UNKNOWN_MODEL.to_owned(), Clone::clone)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels_of(json: &str) -> BTreeMap<String, String> {
        labels(&[serde_json::from_str(json).unwrap()])
    }

    #[test]
    fn the_served_name_wins_over_the_path() {
        let labels = labels_of(r#"{"model_path":"/m","served_model_name":"llama","tp_size":2}"#);
        assert_eq!(model_name(&labels), "llama");
        assert_eq!(labels["tp_size"], "2");
        assert_eq!(
            model_name(&labels_of(
                r#"{"model_path":"/m","served_model_name":null}"#
            )),
            "/m"
        );
    }

    #[test]
    fn a_worker_that_reports_no_model_serves_an_unknown_model() {
        assert_eq!(model_name(&labels_of("{}")), UNKNOWN_MODEL);
    }

    #[test]
    fn publisher_of_loads_is_read_where_one_is_announced() {
        let publisher = |kv_events: &str| {
            let labels = labels_of(&format!(r#"{{"kv_events":{kv_events}}}"#));
            let of = |name: &str| labels.get(name).cloned();
            of(LOAD_PORT).zip(of(LOAD_TOPIC))
        };
        let found = |port: &str, topic: &str| Some((port.to_owned(), topic.to_owned()));
        let announced = r#"{"publisher":"zmq","endpoint_host":"events","endpoint_port_base":5557,"topic":"kv","block_size":1,"dp_size":2,"load_endpoint_port_base":5559,"load_topic":"gauge"}"#;
        assert_eq!(publisher(announced), found("5559", "gauge"));
        let without_topic = r#"{"load_endpoint_port_base":5600}"#;
        assert_eq!(publisher(without_topic), found("5600", DEFAULT_LOAD_TOPIC));
        for nothing in [r#"{"endpoint_port_base":1,"topic":"kv"}"#, "null"] {
            assert_eq!(publisher(nothing), None, "{nothing}");
        }
    }
}
