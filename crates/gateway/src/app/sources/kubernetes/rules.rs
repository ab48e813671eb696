//! Which pods are workers, by their labels.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::{self, Display, Formatter};

use super::pod::Pod;
use crate::config::{DiscoveryBy, DiscoverySection, GroupSection, ModelIdFrom, is_zone};
use crate::fleet::Role;

/// Where pods are; `None` is everywhere.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Namespace(pub(super) Option<String>);

impl Display for Namespace {
    fn fmt(&self, out: &mut Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Some(name) => write!(out, "namespace {name}"),
            None => out.write_str("all namespaces"),
        }
    }
}

/// Which pods are workers, and in which role.
#[derive(Clone, Debug)]
pub(super) struct Rules {
    pub(super) options: DiscoverySection,
}

impl Rules {
    /// Where pods are looked for, each once.
    pub(super) fn namespaces(&self) -> BTreeSet<Namespace> {
        let groups = self.options.groups.iter();
        groups
            .map(|group| Namespace(group.namespace.clone()))
            .collect()
    }

    /// Whether several objects may stand for one pod: slices of several services, or what two
    /// watches bring.
    pub(super) fn may_repeat_pods(&self) -> bool {
        self.options.by == DiscoveryBy::EndpointSlices || self.namespaces().len() > 1
    }

    /// A label selector that leaves out no worker: what all selectors of the groups in a namespace
    /// ask for. `None` where they have no label in common.
    pub(super) fn label_selector(&self, namespace: &Namespace) -> Option<String> {
        let groups = self.options.groups.iter();
        let groups = groups.filter(|group| group.namespace == namespace.0);
        let selectors: Vec<_> = groups.flat_map(selectors).map(|(_, it)| it).collect();
        let (first, others) = selectors.split_first()?;
        let terms = first.iter().filter_map(|(key, value)| {
            let others = others.iter().map(|labels| labels.get(key));
            let values: Option<BTreeSet<_>> = others.chain([Some(value)]).collect();
            let values: Vec<_> = values?.into_iter().map(String::as_str).collect();
            Some(match &values[..] {
                [value] => format!("{key}={value}"),
                values => format!("{key} in ({})", values.join(",")),
            })
        });
        let terms: Vec<_> = terms.collect();
        (!terms.is_empty()).then(|| terms.join(","))
    }
}

/// The selectors of a group that are set, in the order in which they count.
fn selectors(group: &GroupSection) -> impl Iterator<Item = (Role, &BTreeMap<String, String>)> {
    let selectors = [
        (Role::Prefill, &group.prefill_selector),
        (Role::Decode, &group.decode_selector),
        (Role::Regular, &group.selector),
    ];
    selectors
        .into_iter()
        .filter(|(_, labels)| !labels.is_empty())
}

/// The role of a pod in a group; `None` for one that no selector matches.
pub(super) fn role(group: &GroupSection, pod: &Pod) -> Option<Role> {
    let matches = |labels: &BTreeMap<String, String>| {
        let mut labels = labels.iter();
        labels.all(|(key, value)| pod.labels.get(key) == Some(value))
    };
    let mut selectors = selectors(group);
    let found = selectors.find(|(_, labels)| matches(labels));
    found.map(|(role, _)| role)
}

/// The model that a group, or the pod's namespace, label or annotation names.
pub(super) fn model(group: &GroupSection, pod: &Pod) -> Option<String> {
    let named = match group.model_id.as_ref()? {
        ModelIdFrom::Group(id) => Some(id),
        ModelIdFrom::Namespace => Some(&pod.namespace),
        ModelIdFrom::Label(key) => pod.labels.get(key),
        ModelIdFrom::Annotation(key) => pod.annotations.get(key),
    };
    named.filter(|name| !name.is_empty()).cloned()
}

/// The zone that a pod's label names.
pub(super) fn zone(options: &DiscoverySection, pod: &Pod) -> Option<String> {
    let named = pod.labels.get(&options.zone_label);
    named.filter(|name| is_zone(name)).cloned()
}
