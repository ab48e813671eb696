//! Which pods are workers, by their labels.

use std::collections::{BTreeMap, BTreeSet};

use super::pod::Pod;
use crate::config::{DiscoverySection, ModelIdFrom};
use crate::fleet::Role;

/// Which pods are workers, and in which role.
#[derive(Clone, Debug)]
pub(super) struct Rules {
    pub(super) options: DiscoverySection,
}

impl Rules {
    /// The selectors that are set, in the order in which they count.
    fn selectors(&self) -> impl Iterator<Item = (Role, &BTreeMap<String, String>)> {
        let selectors = [
            (Role::Prefill, &self.options.prefill_selector),
            (Role::Decode, &self.options.decode_selector),
            (Role::Regular, &self.options.selector),
        ];
        selectors
            .into_iter()
            .filter(|(_, labels)| !labels.is_empty())
    }

    /// The role of a pod; `None` for one that no selector matches.
    pub(super) fn role(&self, pod: &Pod) -> Option<Role> {
        let matches = |labels: &BTreeMap<String, String>| {
            let mut labels = labels.iter();
            labels.all(|(key, value)| pod.labels.get(key) == Some(value))
        };
        let mut selectors = self.selectors();
        selectors
            .find(|(_, labels)| matches(labels))
            .map(|(role, _)| role)
    }

    /// A label selector that leaves out no worker: what all selectors ask for. `None` where they
    /// have no label in common.
    pub(super) fn label_selector(&self) -> Option<String> {
        let selectors: Vec<_> = self.selectors().map(|(_, labels)| labels).collect();
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

    /// The model that the pod's namespace, label or annotation names.
    pub(super) fn model(&self, pod: &Pod) -> Option<String> {
        let named = match self.options.model_id.as_ref()? {
            ModelIdFrom::Namespace => Some(&pod.namespace),
            ModelIdFrom::Label(key) => pod.labels.get(key),
            ModelIdFrom::Annotation(key) => pod.annotations.get(key),
        };
        named.filter(|name| !name.is_empty()).cloned()
    }
}
