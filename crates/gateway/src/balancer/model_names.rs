//! Which workers a request's `model` names: a model, one of its other names, or an adapter.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crate::config::ModelMatching;
use crate::fleet::{UNKNOWN_MODEL, Worker};

/// Most models that are remembered after they have gone.
const MAX_GONE: usize = 1024;

/// The names that requests may give, and what they stand for.
#[derive(Debug, Default)]
pub(super) struct ModelNames {
    matching: ModelMatching,
    /// Every model that is served, or that a worker is registered for.
    models: BTreeSet<String>,
    /// Other names of those models.
    aliases: BTreeMap<String, String>,
    /// Adapters, and the workers that have each, where not all workers of its model do.
    adapters: BTreeMap<String, Adapter>,
    /// Models that were served beside others, and are no more: another model must not answer.
    gone: BTreeSet<String>,
}

/// A `LoRA` adapter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Adapter {
    pub(super) model: String,
    /// Slots of the workers that have it, ascending; `None` when all workers of the model do.
    pub(super) slots: Option<Vec<usize>>,
}

/// What a request's `model` stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Resolved<'a> {
    /// Any worker serves it.
    Any,
    /// The workers of this model.
    Model(&'a str),
    /// Of those workers only the ones that have the adapter of this name.
    Adapter(&'a str),
    /// It names no model, and several are served.
    Missing,
    /// No such model is served.
    Unknown,
}

impl ModelNames {
    /// The names that these workers give; `before` knows which models were served earlier.
    pub(super) fn new(matching: ModelMatching, workers: &[Arc<Worker>], before: &Self) -> Self {
        let mut names = Self {
            matching,
            ..Self::default()
        };
        let mut servers: BTreeMap<String, Vec<usize>> = BTreeMap::new();
        let mut holders: BTreeMap<String, (String, Vec<usize>)> = BTreeMap::new();
        for worker in workers.iter().filter(|worker| !worker.is_draining()) {
            let info = worker.endpoint.model_info.load();
            let registered = worker.endpoint.config.load().spec.model.is_some();
            if info.model == UNKNOWN_MODEL || !(registered || worker.availability().member) {
                continue;
            }
            let of_model = servers.entry(info.model.clone()).or_default();
            of_model.push(worker.slot);
            for adapter in info.adapters() {
                let new = || (info.model.clone(), Vec::new());
                let holder = holders.entry(adapter.to_owned()).or_insert_with(new);
                holder.1.push(worker.slot);
            }
            let spec = &worker.endpoint.config.load().spec;
            let aliases = info
                .aliases()
                .chain(spec.aliases.iter().map(String::as_str));
            for alias in aliases {
                let model = names.aliases.entry(alias.to_owned());
                model.or_insert_with(|| info.model.clone());
            }
        }
        names.models = servers.keys().cloned().collect();
        // A model's own name is no other model's alias.
        names
            .aliases
            .retain(|alias, _| !servers.contains_key(alias));
        for (name, (model, slots)) in holders {
            let all = servers.get(&model).is_some_and(|all| *all == slots);
            let slots = (!all).then_some(slots);
            names.adapters.insert(name, Adapter { model, slots });
        }
        names.remember(before);
        names
    }

    /// Models that were served beside others and are served no more.
    fn remember(&mut self, before: &Self) {
        self.gone.clone_from(&before.gone);
        if before.models.len() > 1 {
            let left = before.models.difference(&self.models);
            self.gone.extend(left.cloned());
        }
        self.gone.retain(|name| !self.models.contains(name));
        while self.gone.len() > MAX_GONE {
            self.gone.pop_first();
        }
    }

    /// What a request's `model` stands for, and the adapter that it names beside.
    pub(super) fn resolve<'a>(
        &'a self,
        model: Option<&str>,
        adapter: Option<&str>,
    ) -> Resolved<'a> {
        let resolved = self.resolve_model(model);
        let Some(name) = adapter.filter(|_| !self.adapters.is_empty()) else {
            return resolved;
        };
        let found = self.adapters.get_key_value(name);
        let partial = found.filter(|(_, adapter)| adapter.slots.is_some());
        match (resolved, partial) {
            (Resolved::Any, Some((name, _))) => Resolved::Adapter(name),
            (Resolved::Model(model), Some((name, adapter))) if adapter.model == model => {
                Resolved::Adapter(name)
            }
            _ => resolved,
        }
    }

    /// Whether a worker lists an adapter of this name.
    pub(super) fn is_adapter(&self, name: &str) -> bool {
        !self.adapters.is_empty() && self.adapters.contains_key(name)
    }

    fn resolve_model<'a>(&'a self, model: Option<&str>) -> Resolved<'a> {
        if self.matching == ModelMatching::Any {
            return self.known(model).unwrap_or(Resolved::Any);
        }
        let Some(name) = model.filter(|name| !name.is_empty()) else {
            return match self.models.len() {
                0 | 1 => Resolved::Any,
                _ => Resolved::Missing,
            };
        };
        if let Some(resolved) = self.known(Some(name)) {
            return resolved;
        }
        let strict = self.models.len() > 1
            || (self.matching == ModelMatching::Exact && !self.models.is_empty())
            || self.gone.contains(name);
        if strict {
            Resolved::Unknown
        } else {
            Resolved::Any
        }
    }

    /// What a name that is served stands for.
    fn known<'a>(&'a self, name: Option<&str>) -> Option<Resolved<'a>> {
        let name = name?;
        if self.models.len() < 2 && self.adapters.is_empty() {
            let only = self.models.get(name).map(String::as_str);
            return only.map(|_| Resolved::Any);
        }
        // A whole name first: some have a colon of their own.
        self.whole(name).or_else(|| {
            let mut colons = name.match_indices(':').map(|(at, _)| at);
            colons.find_map(|at| {
                let base = self.whole(&name[..at])?;
                let adapter = self.adapters.get_key_value(&name[at + 1..]);
                let subset = adapter.filter(|(_, adapter)| adapter.slots.is_some());
                Some(subset.map_or(base, |(name, _)| Resolved::Adapter(name)))
            })
        })
    }

    fn whole<'a>(&'a self, name: &str) -> Option<Resolved<'a>> {
        let model = |model: &'a str| {
            if self.models.len() > 1 {
                Resolved::Model(model)
            } else {
                Resolved::Any
            }
        };
        if let Some(name) = self.models.get(name) {
            return Some(model(name));
        }
        if let Some((name, adapter)) = self.adapters.get_key_value(name) {
            return Some(match adapter.slots {
                Some(_) => Resolved::Adapter(name),
                None => model(&adapter.model),
            });
        }
        self.aliases.get(name).map(|name| model(name))
    }

    /// The adapters that only some workers of their model have.
    pub(super) fn partial_adapters(&self) -> impl Iterator<Item = (&str, &str, &[usize])> {
        self.adapters.iter().filter_map(|(name, adapter)| {
            let slots = adapter.slots.as_deref()?;
            Some((&**name, &*adapter.model, slots))
        })
    }

    /// Every model that is served, or that a worker is registered for.
    pub(super) fn models(&self) -> &BTreeSet<String> {
        &self.models
    }
}

#[cfg(test)]
mod tests {
    use super::Resolved::{Any, Missing, Model, Unknown};
    use super::*;

    fn names(models: &[&str], adapters: &[(&str, &str, Option<Vec<usize>>)]) -> ModelNames {
        let adapter = |(name, model, slots): &(&str, &str, Option<Vec<usize>>)| {
            let (model, slots) = ((*model).to_owned(), slots.clone());
            ((*name).to_owned(), Adapter { model, slots })
        };
        ModelNames {
            models: models.iter().map(|name| (*name).to_owned()).collect(),
            adapters: adapters.iter().map(adapter).collect(),
            ..ModelNames::default()
        }
    }

    #[test]
    fn where_one_model_is_served_any_name_means_it() {
        let names = names(&["m"], &[]);
        for name in [None, Some(""), Some("m"), Some("gpt-4"), Some("m:a")] {
            assert_eq!(names.resolve(name, None), Any, "{name:?}");
        }
        assert_eq!(ModelNames::default().resolve(Some("m"), None), Any);
    }

    #[test]
    fn each_of_three_models_is_itself() {
        let names = names(&["a", "b", "c"], &[]);
        for name in ["a", "b", "c"] {
            assert_eq!(names.resolve(Some(name), None), Model(name));
        }
        assert_eq!(names.resolve(Some("d"), None), Unknown);
    }

    #[test]
    fn where_several_models_are_served_only_their_names_are_known() {
        let mut names = names(&["a", "org/b:8b"], &[("sql", "a", None)]);
        names.aliases.insert("/models/a".to_owned(), "a".to_owned());
        for (name, resolved) in [
            (Some("a"), Model("a")),
            (Some("org/b:8b"), Model("org/b:8b")),
            (Some("a:sql"), Model("a")),
            (Some("a:not-loaded"), Model("a")),
            (Some("org/b:8b:x"), Model("org/b:8b")),
            (Some("sql"), Model("a")),
            (Some("/models/a"), Model("a")),
            (Some("A"), Unknown),
            (Some("org/b"), Unknown),
            (Some("org/b:"), Unknown),
            (Some(""), Missing),
            (None, Missing),
        ] {
            assert_eq!(names.resolve(name, None), resolved, "{name:?}");
        }
    }

    #[test]
    fn adapter_that_some_workers_lack_is_named_also_where_one_model_is_served() {
        let names = names(&["m"], &[("sql", "m", Some(vec![2])), ("all", "m", None)]);
        assert_eq!(names.resolve(Some("sql"), None), Resolved::Adapter("sql"));
        assert_eq!(names.resolve(Some("m:sql"), None), Resolved::Adapter("sql"));
        assert_eq!(names.resolve(Some("m:other"), None), Any);
        assert_eq!(names.resolve(Some("all"), None), Any);
        assert_eq!(names.resolve(Some("gpt-4"), None), Any);
    }

    #[test]
    fn adapter_named_beside_its_model_narrows_the_choice_to_its_holders() {
        let partial = ("sql", "a", Some(vec![2]));
        let one = names(&["a"], &[partial.clone(), ("all", "a", None)]);
        assert_eq!(one.resolve(None, Some("sql")), Resolved::Adapter("sql"));
        assert_eq!(
            one.resolve(Some("a"), Some("sql")),
            Resolved::Adapter("sql")
        );
        assert_eq!(one.resolve(Some("a"), Some("all")), Any);
        assert_eq!(one.resolve(Some("a"), Some("none")), Any);
        let two = names(&["a", "b"], &[partial]);
        assert_eq!(
            two.resolve(Some("a"), Some("sql")),
            Resolved::Adapter("sql")
        );
        assert_eq!(two.resolve(Some("b"), Some("sql")), Model("b"));
        assert_eq!(two.resolve(None, Some("sql")), Missing);
        assert!(two.is_adapter("sql") && !two.is_adapter("a"));
    }

    #[test]
    fn exact_matching_refuses_other_names_also_for_one_model() {
        let names = ModelNames {
            matching: ModelMatching::Exact,
            ..names(&["m"], &[])
        };
        assert_eq!(names.resolve(Some("m"), None), Any);
        assert_eq!(names.resolve(None, None), Any);
        assert_eq!(names.resolve(Some("n"), None), Unknown);
        let empty = ModelNames {
            matching: ModelMatching::Exact,
            ..ModelNames::default()
        };
        assert_eq!(empty.resolve(Some("n"), None), Any);
    }

    #[test]
    fn any_matching_lets_unknown_names_go_to_any_worker() {
        let names = ModelNames {
            matching: ModelMatching::Any,
            ..names(&["a", "b"], &[])
        };
        assert_eq!(names.resolve(Some("a"), None), Model("a"));
        assert_eq!(names.resolve(Some("c"), None), Any);
        assert_eq!(names.resolve(None, None), Any);
    }

    #[test]
    fn model_that_has_gone_is_not_answered_by_the_one_that_is_left() {
        let mut left = names(&["a"], &[]);
        left.remember(&names(&["a", "b"], &[]));
        assert_eq!(left.resolve(Some("b"), None), Unknown);
        assert_eq!(left.resolve(Some("c"), None), Any);
        let mut back = names(&["a", "b"], &[]);
        back.remember(&left);
        assert!(back.gone.is_empty());
        // One model after another: each is what any name means.
        let mut next = names(&["b"], &[]);
        next.remember(&names(&["a"], &[]));
        assert_eq!(next.resolve(Some("a"), None), Any);
    }

    #[test]
    fn memory_of_gone_models_is_bounded() {
        let many: Vec<_> = (0..3 * MAX_GONE).map(|at| format!("m{at}")).collect();
        let many: Vec<_> = many.iter().map(String::as_str).collect();
        let mut left = names(&[], &[]);
        left.remember(&names(&many, &[]));
        assert_eq!(left.gone.len(), MAX_GONE);
    }
}
