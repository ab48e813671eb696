//! The Prometheus pages of all workers, merged into one (text format 0.0.4).

use std::collections::HashMap;
use std::fmt::Write;
use std::sync::Arc;

use axum::extract::State;
use bytes::Bytes;
use http::StatusCode;
use http::header::{self, HeaderName};

use super::routes::Routes;
use super::state::{Page, SharedAnswers};
use crate::auth::Access;
use crate::cpu_pool::CpuPool;
use crate::proxy::{FanOut, WorkerAnswer, WorkerQuery};

const PLAIN_TEXT: [(HeaderName, &str); 1] = [(header::CONTENT_TYPE, "text/plain")];

pub(super) fn routes() -> Routes {
    Routes::default().get("/engine_metrics", Access::Info, engine_metrics)
}

/// Every worker's metrics, distinguished by a `worker_addr` label, for all clients that ask within
/// a second.
async fn engine_metrics(
    State(fan_out): State<FanOut>,
    State(pool): State<CpuPool>,
    State(shared): State<Arc<SharedAnswers>>,
) -> Page {
    let page = shared.engine_metrics.get(merged_page(fan_out, pool)).await;
    page.unwrap_or_else(|| failure("Asking the workers failed"))
}

async fn merged_page(fan_out: FanOut, pool: CpuPool) -> Page {
    let asked = fan_out.ask_all(&WorkerQuery::get(&["/metrics"])).await;
    if asked.is_empty() {
        return failure("No available workers");
    }
    let pages: Vec<_> = asked.into_iter().filter_map(page).collect();
    if pages.is_empty() {
        return failure("All backend requests failed");
    }
    // Pages of many engines take long to merge: not on a lane.
    match pool.run(move || merge(&pages)).await {
        Some(merged) => (StatusCode::OK, PLAIN_TEXT, merged.into()),
        None => failure("Merging the metrics failed"),
    }
}

fn failure(why: &'static str) -> Page {
    let page = Bytes::from_static(why.as_bytes());
    (StatusCode::INTERNAL_SERVER_ERROR, PLAIN_TEXT, page)
}

/// A worker's page with the worker's URL, if it gave one.
fn page(asked: WorkerAnswer) -> Option<(String, Bytes)> {
    let answer = asked.answer.ok()?;
    let url = asked.worker.url().to_string();
    answer.status.is_success().then_some((url, answer.body))
}

fn merge(pages: &[(String, Bytes)]) -> String {
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
    comments: Vec<String>,
    samples: Vec<String>,
}

impl Exposition {
    /// Adds a worker's page. Colons in names become underscores, as upstream's dashboards expect.
    fn add(&mut self, page: &str, worker: &str) {
        let mut current = None;
        for line in page.lines().map(str::trim).filter(|line| !line.is_empty()) {
            if let Some(comment) = line.strip_prefix("# ") {
                current = self.comment(comment).or(current);
            } else if !line.starts_with('#')
                && let Some((name, sample)) = label(line, worker)
            {
                let base = current.filter(|&at| self.belongs(at, &name));
                let at = base.unwrap_or_else(|| self.family(&name));
                self.families[at].samples.push(sample);
            }
        }
    }

    /// The merged page.
    fn render(&self) -> String {
        let mut page = String::new();
        for line in self
            .families
            .iter()
            .flat_map(|family| family.comments.iter().chain(&family.samples))
        {
            let _ = writeln!(page, "{line}"); // writing to a String cannot fail
        }
        page
    }

    fn comment(&mut self, comment: &str) -> Option<usize> {
        let mut words = comment.splitn(3, ' ');
        let (kind, name) = (words.next()?, words.next()?.replace(':', "_"));
        if !matches!(kind, "HELP" | "TYPE") {
            return None;
        }
        let at = self.family(&name);
        let start = format!("# {kind} ");
        let comments = &mut self.families[at].comments;
        if !comments.iter().any(|known| known.starts_with(&start)) {
            comments.push(format!(
                "{start}{name} {}",
                words.next().unwrap_or_default()
            ));
        }
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
        let (comments, samples) = (Vec::new(), Vec::new());
        self.families.push(Family {
            name: name.to_owned(),
            comments,
            samples,
        });
        let place = self.families.len() - 1;
        self.places.insert(name.to_owned(), place);
        place
    }
}

/// The sample's name, and the sample with the worker's label first.
fn label(line: &str, worker: &str) -> Option<(String, String)> {
    let end = line.find(['{', ' '])?;
    let name = line[..end].replace(':', "_");
    let worker = worker.replace('\\', "\\\\").replace('"', "\\\"");
    let rest = match line[end..].strip_prefix('{') {
        Some(labels) if labels.starts_with('}') => format!("{{worker_addr=\"{worker}\"{labels}"),
        Some(labels) => format!("{{worker_addr=\"{worker}\",{labels}"),
        None => format!("{{worker_addr=\"{worker}\"}}{}", &line[end..]),
    };
    Some((name.clone(), name + &rest))
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
