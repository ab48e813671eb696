//! Merges pages of metrics (Prometheus text format 0.0.4).

use std::collections::HashMap;
use std::fmt::Write;

use bytes::Bytes;

/// The label that says which worker a sample is of.
const WORKER: &str = "worker_addr";

/// One page of several workers' pages, each with the worker's URL, which becomes a label. Lines
/// that are no metrics are left out: one of them would spoil the page for every worker.
pub(super) fn merge(pages: &[(String, Bytes)]) -> String {
    let mut merged = Exposition::default();
    for (url, page) in pages {
        merged.add(&String::from_utf8_lossy(page), url);
    }
    merged.render()
}

/// Metric families in order of appearance; each has one `HELP` and one `TYPE`.
#[derive(Debug, Default)]
struct Exposition {
    families: Vec<Family>,
    /// By name, where each stands in `families`.
    places: HashMap<String, usize>,
}

#[derive(Debug)]
struct Family {
    name: String,
    help: Option<String>,
    kind: Option<String>,
    samples: Vec<String>,
}

impl Exposition {
    /// Adds a worker's page. Colons in names become underscores, as upstream's dashboards expect.
    fn add(&mut self, page: &str, worker: &str) {
        let worker = worker.replace('\\', "\\\\").replace('"', "\\\"");
        let mut current = None;
        for line in page.lines().map(str::trim) {
            if let Some(comment) = line.strip_prefix('#') {
                current = self.comment(comment.trim_start()).or(current);
            } else if let Some(sample) = Sample::read(line) {
                let name = sample.name.replace(':', "_");
                let base = current.filter(|&at| self.belongs(at, &name));
                let at = base.unwrap_or_else(|| self.family(&name));
                let line = sample.labelled(&name, &worker);
                self.families[at].samples.push(line);
            }
        }
    }

    /// The merged page.
    fn render(&self) -> String {
        let mut page = String::new();
        // Writing to a String cannot fail.
        for family in &self.families {
            let name = &family.name;
            if let Some(help) = &family.help {
                let _ = writeln!(page, "# HELP {name} {help}");
            }
            if let Some(kind) = &family.kind {
                let _ = writeln!(page, "# TYPE {name} {kind}");
            }
            for sample in &family.samples {
                let _ = writeln!(page, "{sample}");
            }
        }
        page
    }

    /// Reads a `HELP` or a `TYPE`; returns the family it is about.
    fn comment(&mut self, comment: &str) -> Option<usize> {
        let (word, rest) = comment.split_once([' ', '\t'])?;
        let rest = rest.trim_start();
        let (name, text) = rest.split_once([' ', '\t']).unwrap_or((rest, ""));
        let text = text.trim();
        let kinds = ["counter", "gauge", "histogram", "summary", "untyped"];
        let known = match word {
            "HELP" => true,
            "TYPE" => kinds.contains(&text),
            _ => false,
        };
        if !known || name_length(name) != name.len() || name.is_empty() {
            return None;
        }
        let at = self.family(&name.replace(':', "_"));
        let family = &mut self.families[at];
        let place = if word == "HELP" {
            &mut family.help
        } else {
            &mut family.kind
        };
        place.get_or_insert_with(|| text.to_owned());
        Some(at)
    }

    /// Histograms and summaries name their samples after the family, with a suffix.
    fn belongs(&self, at: usize, sample: &str) -> bool {
        let rest = sample.strip_prefix(&self.families[at].name);
        matches!(
            rest,
            Some("" | "_bucket" | "_sum" | "_count" | "_total" | "_created")
        )
    }

    fn family(&mut self, name: &str) -> usize {
        if let Some(&known) = self.places.get(name) {
            return known;
        }
        self.families.push(Family {
            name: name.to_owned(),
            help: None,
            kind: None,
            samples: Vec::new(),
        });
        let place = self.families.len() - 1;
        self.places.insert(name.to_owned(), place);
        place
    }
}

/// A line with a value.
struct Sample<'a> {
    name: &'a str,
    labels: Labels<'a>,
    /// The value, and perhaps a time stamp.
    value: &'a str,
}

/// What stands between the braces.
#[derive(Default)]
struct Labels<'a> {
    text: &'a str,
    /// Where in it a label is that has the name of the worker's.
    worker: Option<usize>,
}

impl<'a> Sample<'a> {
    /// Reads a line; `None` if it is no sample.
    fn read(line: &'a str) -> Option<Self> {
        let (name, rest) = line.split_at(name_length(line));
        let rest = rest.trim_start();
        let (labels, value) = match rest.strip_prefix('{') {
            Some(inner) => {
                let labels = labels(inner)?;
                let after = labels.text.len() + 1;
                (labels, &inner[after..])
            }
            None => (Labels::default(), rest),
        };
        let mut words = value.split_ascii_whitespace();
        let is_value = words.next()?.parse::<f64>().is_ok();
        let is_time = words.next().is_none_or(|time| time.parse::<i64>().is_ok());
        let whole = is_value && is_time && words.next().is_none() && !name.is_empty();
        let value = value.trim();
        whole.then_some(Self {
            name,
            labels,
            value,
        })
    }

    /// The line under another name, with the worker's label first. A label of that name that is
    /// there already, as behind another gateway, gets the prefix that Prometheus gives it.
    fn labelled(&self, name: &str, worker: &str) -> String {
        let (text, value) = (self.labels.text, self.value);
        let (before, after) = text.split_at(self.labels.worker.unwrap_or(text.len()));
        let exported = if after.is_empty() { "" } else { "exported_" };
        let comma = if text.trim().is_empty() { "" } else { "," };
        format!("{name}{{{WORKER}=\"{worker}\"{comma}{before}{exported}{after}}} {value}")
    }
}

/// The length of the name that `text` begins with.
fn name_length(text: &str) -> usize {
    let part = |at: usize, byte: u8| {
        byte.is_ascii_alphabetic() || b"_:".contains(&byte) || (at > 0 && byte.is_ascii_digit())
    };
    let mut bytes = text.bytes().enumerate();
    bytes
        .find(|&(at, byte)| !part(at, byte))
        .map_or(text.len(), |(at, _)| at)
}

/// The labels that `text` begins with, up to the closing brace; `None` if they are malformed.
fn labels(text: &str) -> Option<Labels<'_>> {
    let mut rest = text.trim_start();
    let mut names: Vec<&str> = Vec::new();
    while !rest.starts_with('}') {
        let name = &rest[..name_length(rest)];
        if name.is_empty() || name.contains(':') || names.contains(&name) {
            return None;
        }
        names.push(name);
        let value = rest[name.len()..].trim_start().strip_prefix('=')?;
        let value = value.trim_start().strip_prefix('"')?;
        rest = value[quoted_length(value)? + 1..].trim_start();
        match rest.strip_prefix(',') {
            Some(more) => rest = more.trim_start(),
            None if rest.starts_with('}') => {}
            None => return None,
        }
    }
    let length = text.len() - rest.len();
    let worker = names.iter().find(|name| **name == WORKER);
    let worker = worker.map(|name| name.as_ptr() as usize - text.as_ptr() as usize);
    Some(Labels {
        text: &text[..length],
        worker,
    })
}

/// The length of the quoted text that `text` begins with, up to the closing quote.
fn quoted_length(text: &str) -> Option<usize> {
    let mut escaped = false;
    text.bytes().position(|byte| {
        let closes = byte == b'"' && !escaped;
        escaped = byte == b'\\' && !escaped;
        closes
    })
}

#[cfg(any(test, fuzzing))]
pub(super) mod properties {
    //! What holds for every page of metrics.

    use std::collections::HashSet;

    use bytes::Bytes;

    use super::{Sample, merge};

    /// Two workers' pages merge into one in which every line parses, no family is described
    /// twice, and no sample is lost. The pages stand in `data` with a zero byte between.
    ///
    /// # Panics
    /// If they do not.
    pub fn exposition(data: &[u8]) {
        let mut pages: Vec<_> = data.splitn(2, |&byte| byte == 0).collect();
        pages.resize(2, b"");
        let named = [("http://a:1", pages[0]), ("http://b\\\"", pages[1])];
        let named = named.map(|(worker, page)| (worker.to_owned(), Bytes::copy_from_slice(page)));
        let merged = merge(&named);
        let samples = |page: &str| {
            let lines = page.lines().map(str::trim);
            lines.filter(|line| Sample::read(line).is_some()).count()
        };
        let before: usize = pages
            .iter()
            .map(|page| samples(&String::from_utf8_lossy(page)))
            .sum();
        assert_eq!(samples(&merged), before);
        let mut described = HashSet::new();
        for line in merged.lines() {
            if line.starts_with('#') {
                let words: Vec<_> = line.splitn(4, ' ').take(3).collect();
                assert!(described.insert(words.clone()), "{words:?} twice");
            } else {
                let sample = Sample::read(line);
                assert!(
                    sample.is_some_and(|sample| !sample.name.contains(':')),
                    "{line}"
                );
                assert!(line.contains("{worker_addr=\""), "{line}");
            }
        }
        // The lines of a merged page are as they would be written anew.
        let again = merge(&[("c".to_owned(), merged.clone().into())]);
        assert_eq!(again.lines().count(), merged.lines().count());
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use rustix::time::{ClockId, clock_gettime};

    use super::*;

    #[test]
    fn families_are_merged_and_keep_a_label_per_worker() {
        let page =
            "# HELP sglang:reqs running\n# TYPE sglang:reqs gauge\nsglang:reqs{model=\"m\"} 3\n";
        let mut merged = Exposition::default();
        merged.add(page, "http://a:1");
        merged.add(page, "http://b:1");
        assert_eq!(
            merged.render(),
            "# HELP sglang_reqs running\n# TYPE sglang_reqs gauge\n\
             sglang_reqs{worker_addr=\"http://a:1\",model=\"m\"} 3\n\
             sglang_reqs{worker_addr=\"http://b:1\",model=\"m\"} 3\n"
        );
    }

    #[test]
    fn histogram_samples_stay_with_their_family() {
        let page =
            "# TYPE t histogram\nt_bucket{le=\"1\"} 1\nt_sum 1\nt_count 1\nplain 2\nempty{} 1\n";
        let mut merged = Exposition::default();
        merged.add(page, "w");
        assert_eq!(merged.families.len(), 3);
        assert_eq!(
            merged.families[0].samples[0],
            "t_bucket{worker_addr=\"w\",le=\"1\"} 1"
        );
        assert_eq!(merged.families[2].samples[0], "empty{worker_addr=\"w\"} 1");
    }

    #[test]
    fn lines_that_prometheus_would_refuse_are_left_out_and_the_others_kept() {
        let merged = |page: &str| merge(&[("w".to_owned(), page.to_owned().into())]);
        for (line, kept) in [
            ("a 1", "a{worker_addr=\"w\"} 1\n"),
            (
                "a\t1\t1700000000000",
                "a{worker_addr=\"w\"} 1\t1700000000000\n",
            ),
            (
                "a {b=\"}\\\"\",} NaN",
                "a{worker_addr=\"w\",b=\"}\\\"\",} NaN\n",
            ),
            (
                "a{worker_addr=\"x\"} 1",
                "a{worker_addr=\"w\",exported_worker_addr=\"x\"} 1\n",
            ),
            ("<html> 1", ""),
            ("a", ""),
            ("a one", ""),
            ("a 1 2 3", ""),
            ("a{b=\"x\" 1", ""),
            ("a{b=x} 1", ""),
            ("a{b=\"x\",b=\"y\"} 1", ""),
            ("a{1=\"x\"} 1", ""),
            ("1a 1", ""),
            ("# TYPE a speed", ""),
            ("# HELP <a> x", ""),
        ] {
            assert_eq!(merged(line), kept, "{line}");
            assert_eq!(
                merged(&format!("{line}\nz 1\n")),
                format!("{kept}z{{worker_addr=\"w\"}} 1\n")
            );
        }
    }

    /// Time that this thread has worked.
    fn worked() -> Duration {
        let spent = clock_gettime(ClockId::ThreadCPUTime);
        Duration::new(
            spent.tv_sec.try_into().unwrap(),
            spent.tv_nsec.try_into().unwrap(),
        )
    }

    #[test]
    fn large_pages_are_merged_in_linear_time() {
        let families =
            (0..20_000).map(|at| format!("# HELP f{at} x\n# TYPE f{at} gauge\nf{at} 1\n"));
        let page = Bytes::from(families.collect::<Vec<_>>().concat());
        let pages: Vec<_> = ["a", "b", "c", "d"]
            .map(|worker| (worker.to_owned(), page.clone()))
            .into();
        let before = worked();
        let merged = merge(&pages);
        let took = worked().saturating_sub(before);
        assert_eq!(merged.lines().count(), 20_000 * (2 + pages.len()));
        // Unoptimised it takes 0.3 s, with a search through all families 9 s.
        assert!(took < Duration::from_secs(2), "{took:?}");
    }
}
