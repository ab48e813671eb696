//! Which workers a request's `model` names: a model, one of its other names, or an adapter.

use std::collections::{BTreeMap, BTreeSet};

use super::reading::WorkerReading;
use crate::config::ModelMatching;
use crate::fleet::UNKNOWN_MODEL;

/// Most models that are remembered after they have gone.
const MAX_GONE: usize = 1024;

/// The names that requests may give, and what they stand for.
#[derive(Debug, Default)]
pub(super) struct ModelNames {
    matching: ModelMatching,
    /// Every model that is served, or that a worker is registered for.
    models: BTreeSet<String>,
    /// Other names of those models; none that two of them have.
    aliases: BTreeMap<String, String>,
    /// Adapters by name, and by the model that each belongs to.
    adapters: BTreeMap<String, BTreeMap<String, Holders>>,
    /// Models that were served beside others, and are no more: another model must not answer.
    gone: BTreeSet<String>,
    /// Whatever a request names, any worker serves it: true of most fleets.
    any_name: bool,
}

/// Slots of the workers that have an adapter, ascending; `None` when all workers of its model do.
type Holders = Option<Vec<usize>>;

/// What a request's `model` stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Resolved<'a> {
    /// Any worker serves it.
    Any,
    /// The workers of this model.
    Model(&'a str),
    /// Of those workers only the ones that have an adapter.
    Adapter { model: &'a str, name: &'a str },
    /// It names no model, and several are served.
    Missing,
    /// No such model is served.
    Unknown,
}

impl ModelNames {
    /// The names that these workers give; `before` knows which models were served earlier.
    pub(super) fn new(matching: ModelMatching, workers: &[WorkerReading], before: &Self) -> Self {
        let mut names = Self {
            matching,
            ..Self::default()
        };
        let mut servers: BTreeMap<String, Vec<usize>> = BTreeMap::new();
        let mut holders: BTreeMap<(String, String), Vec<usize>> = BTreeMap::new();
        // `None` for a name of two models.
        let mut aliases: BTreeMap<String, Option<String>> = BTreeMap::new();
        let staying = workers.iter().filter(|it| !it.availability.draining);
        for WorkerReading {
            worker,
            info,
            config,
            availability,
        } in staying
        {
            let spec = &config.spec;
            let is_known = spec.model.is_some() || availability.member;
            if info.model == UNKNOWN_MODEL || !is_known {
                continue;
            }
            // Hundreds of workers have one model: its name is copied once.
            match servers.get_mut(&info.model) {
                Some(of_model) => of_model.push(worker.slot),
                None => drop(servers.insert(info.model.clone(), vec![worker.slot])),
            }
            for adapter in info.adapters() {
                let adapter = (adapter.to_owned(), info.model.clone());
                holders.entry(adapter).or_default().push(worker.slot);
            }
            for alias in info.aliases.iter().chain(&spec.aliases) {
                match aliases.get_mut(alias) {
                    Some(model) => *model = model.take().filter(|known| *known == info.model),
                    None => drop(aliases.insert(alias.clone(), Some(info.model.clone()))),
                }
            }
        }
        // A model's own name is no other model's alias.
        let own = |alias: &String| servers.contains_key(alias);
        let aliases = aliases.into_iter().filter(|(alias, _)| !own(alias));
        names.aliases = aliases
            .filter_map(|(alias, model)| Some((alias, model?)))
            .collect();
        for ((name, model), slots) in holders {
            let all = servers.get(&model).is_some_and(|all| *all == slots);
            let by_model = names.adapters.entry(name).or_default();
            by_model.insert(model, (!all).then_some(slots));
        }
        names.models = servers.into_keys().collect();
        names.remember(before);
        let lenient = match matching {
            ModelMatching::Any => true,
            ModelMatching::Exact => names.models.is_empty() && names.gone.is_empty(),
            ModelMatching::Auto => names.gone.is_empty(),
        };
        names.any_name = lenient && names.models.len() < 2 && names.adapters.is_empty();
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
        if self.any_name {
            return Resolved::Any;
        }
        let resolved = self.resolve_model(model);
        let found = adapter.and_then(|name| self.adapters.get_key_value(name));
        let Some((name, by_model)) = found else {
            return resolved;
        };
        let holders = match resolved {
            Resolved::Any => only(by_model),
            Resolved::Model(model) => by_model.get_key_value(model),
            _ => None,
        };
        match holders {
            Some((model, Some(_))) => Resolved::Adapter { model, name },
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
                let model = self.base(&name[..at])?;
                let adapter = self.adapters.get_key_value(&name[at + 1..]);
                let holders = adapter.and_then(|(name, of)| Some((name, of.get(model)?)));
                Some(match holders {
                    Some((name, Some(_))) => Resolved::Adapter { model, name },
                    _ => self.all_of(model),
                })
            })
        })
    }

    /// What a name stands for that is a model, another name of one, or an adapter of only one.
    fn whole<'a>(&'a self, name: &str) -> Option<Resolved<'a>> {
        if let Some(model) = self.models.get(name) {
            return Some(self.all_of(model));
        }
        let adapter = self.adapters.get_key_value(name);
        if let Some((name, (model, holders))) =
            adapter.and_then(|(name, by_model)| Some((name, only(by_model)?)))
        {
            return Some(match holders {
                Some(_) => Resolved::Adapter { model, name },
                None => self.all_of(model),
            });
        }
        self.aliases.get(name).map(|model| self.all_of(model))
    }

    /// The model of this name.
    fn base(&self, name: &str) -> Option<&str> {
        let model = self.models.get(name).or_else(|| self.aliases.get(name));
        model.map(String::as_str)
    }

    /// All workers of a model.
    fn all_of<'a>(&self, model: &'a str) -> Resolved<'a> {
        if self.models.len() > 1 {
            Resolved::Model(model)
        } else {
            Resolved::Any
        }
    }

    /// The adapters that an engine may read out of a request's `model`: the whole of it, or what
    /// stands behind a colon.
    pub(super) fn adapters_in<'b>(&self, name: &'b str) -> Vec<&'b str> {
        if self.base(name).is_some() {
            return Vec::new();
        }
        let colons = name.match_indices(':').map(|(at, _)| at);
        let (of_known, others): (Vec<_>, Vec<_>) =
            colons.partition(|at| self.base(&name[..*at]).is_some());
        let colons = if of_known.is_empty() {
            // SGLang takes the first one for the end of its own model's name.
            others.into_iter().take(1).collect()
        } else {
            of_known
        };
        let whole = self.is_adapter(name).then_some(name);
        let behind = colons.into_iter().map(|at| name[at + 1..].trim());
        let named = behind.filter(|adapter| !adapter.is_empty());
        whole.into_iter().chain(named).collect()
    }

    /// Whether a client with these names may use a model: by its own name, by another one of it,
    /// or with an adapter.
    pub(super) fn allows_model(&self, allowed: &BTreeSet<String>, model: &str) -> bool {
        let stands_for = |name: &String| {
            let adapter = self.adapters.get(name);
            self.aliases.get(name).is_some_and(|known| known == model)
                || adapter.is_some_and(|by_model| by_model.contains_key(model))
                || self.adapter_of(name, model).is_some()
        };
        allowed.contains(model) || allowed.iter().any(stands_for)
    }

    /// Whether a client with these names may use an adapter of these models.
    pub(super) fn allows_adapter(
        &self,
        allowed: &BTreeSet<String>,
        adapter: &str,
        models: &BTreeSet<String>,
    ) -> bool {
        let is_it = |name: &String| {
            let mut models = models.iter();
            models.any(|model| self.adapter_of(name, model) == Some(adapter))
        };
        allowed.contains(adapter) || allowed.iter().any(is_it)
    }

    /// The adapter in a name `model:adapter`.
    fn adapter_of<'b>(&self, name: &'b str, model: &str) -> Option<&'b str> {
        let mut colons = name.match_indices(':').map(|(at, _)| at);
        let at = colons.find(|at| self.base(&name[..*at]) == Some(model))?;
        Some(&name[at + 1..])
    }

    /// The adapters that only some workers of their model have: name, model and those workers.
    pub(super) fn partial_adapters(&self) -> impl Iterator<Item = (&str, &str, &[usize])> {
        self.adapters.iter().flat_map(|(name, by_model)| {
            by_model.iter().filter_map(move |(model, holders)| {
                let slots = holders.as_deref()?;
                Some((&**name, &**model, slots))
            })
        })
    }

    /// Every model that is served, or that a worker is registered for.
    pub(super) fn models(&self) -> &BTreeSet<String> {
        &self.models
    }
}

/// The only entry.
fn only(by_model: &BTreeMap<String, Holders>) -> Option<(&String, &Holders)> {
    by_model.first_key_value().filter(|_| by_model.len() == 1)
}

#[cfg(test)]
mod tests {
    use super::Resolved::{Any, Missing, Model, Unknown};
    use super::*;

    const SQL_OF_M: Resolved<'_> = Resolved::Adapter {
        model: "m",
        name: "sql",
    };
    const SQL_OF_A: Resolved<'_> = Resolved::Adapter {
        model: "a",
        name: "sql",
    };

    fn names(models: &[&str], adapters: &[(&str, &str, Option<Vec<usize>>)]) -> ModelNames {
        let mut names = ModelNames {
            models: models.iter().map(|name| (*name).to_owned()).collect(),
            ..ModelNames::default()
        };
        for (name, model, slots) in adapters {
            let by_model = names.adapters.entry((*name).to_owned()).or_default();
            by_model.insert((*model).to_owned(), slots.clone());
        }
        names
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
        assert_eq!(names.resolve(Some("sql"), None), SQL_OF_M);
        assert_eq!(names.resolve(Some("m:sql"), None), SQL_OF_M);
        assert_eq!(names.resolve(Some("m:other"), None), Any);
        assert_eq!(names.resolve(Some("all"), None), Any);
        assert_eq!(names.resolve(Some("gpt-4"), None), Any);
    }

    #[test]
    fn adapter_named_beside_its_model_narrows_the_choice_to_its_holders() {
        let partial = ("sql", "a", Some(vec![2]));
        let one = names(&["a"], &[partial.clone(), ("all", "a", None)]);
        assert_eq!(one.resolve(None, Some("sql")), SQL_OF_A);
        assert_eq!(one.resolve(Some("a"), Some("sql")), SQL_OF_A);
        assert_eq!(one.resolve(Some("a"), Some("all")), Any);
        assert_eq!(one.resolve(Some("a"), Some("none")), Any);
        let two = names(&["a", "b"], &[partial]);
        assert_eq!(two.resolve(Some("a"), Some("sql")), SQL_OF_A);
        assert_eq!(two.resolve(Some("b"), Some("sql")), Model("b"));
        assert_eq!(two.resolve(None, Some("sql")), Missing);
        assert!(two.is_adapter("sql") && !two.is_adapter("a"));
    }

    #[test]
    fn adapter_of_two_models_is_that_of_the_model_that_is_named() {
        let holders = |slot| Some(vec![slot]);
        let two = names(
            &["a", "b", "c"],
            &[("sql", "a", holders(0)), ("sql", "b", None)],
        );
        assert_eq!(two.resolve(Some("a:sql"), None), SQL_OF_A);
        assert_eq!(two.resolve(Some("a"), Some("sql")), SQL_OF_A);
        assert_eq!(two.resolve(Some("b:sql"), None), Model("b"));
        assert_eq!(two.resolve(Some("b"), Some("sql")), Model("b"));
        assert_eq!(two.resolve(Some("c:sql"), None), Model("c"));
        // Either could be meant.
        assert_eq!(two.resolve(Some("sql"), None), Unknown);
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
