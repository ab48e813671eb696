//! A call to engines: which workers it goes to, and what follows from it.

use axum::extract::{RawQuery, State};
use axum::response::Response;
use serde_json::Value;
use url::form_urlencoded;

use super::answer;
use super::table::{ENGINE, Effect};
use crate::api::extract::Payload;
use crate::api::routes::Routes;
use crate::api::scope::{SCOPE, scope};
use crate::api::state::ApiState;
use crate::auth::Access;
use crate::error::Error;
use crate::fleet::{invalidate_cache, mark_paused, mark_running, read_adapters};
use crate::proxy::{Order, WorkerAnswer};

pub(super) fn routes() -> Routes {
    let rows = ENGINE.iter().flat_map(|row| {
        let methods = row.methods.iter();
        methods.map(move |method| (method, row))
    });
    rows.fold(Routes::default(), |routes, (method, row)| {
        let handler = move |state: State<ApiState>, query: RawQuery, body: Payload| async move {
            let order = Order {
                method: method.clone(),
                path: path(row.path, query.0.as_deref()),
                body: body.0,
            };
            call(state.0, query.0.as_deref(), order, row.effect).await
        };
        routes.any(method, row.path, Access::Engine, handler)
    })
}

/// Has every worker, or the ones that the query names, carry a call out.
async fn call(
    state: ApiState,
    query: Option<&str>,
    order: Order,
    effect: Effect,
) -> Result<Response, Error> {
    let workers = scope(&state, query)?;
    let effect = effect_of(effect, &order);
    let client = state.client.clone();
    // On the control thread, so that it is done, and what follows from it, when the client leaves.
    let done = client.spawn(async move {
        let answers = state.orders.carry_out(&order, workers).await;
        for answer in &answers {
            follow(&state, answer, effect).await;
        }
        answers
    });
    // Cancelled only when the gateway ends.
    let answers = done.await.map_err(|_| Error::NoWorkerResponse)?;
    Ok(match &answers[..] {
        [one] => answer::of_one(one),
        all => answer::of_all(all),
    })
}

/// The path at the workers: with the query, less what is the gateway's.
fn path(path: &str, query: Option<&str>) -> String {
    let pairs = form_urlencoded::parse(query.unwrap_or_default().as_bytes());
    let mut passed = form_urlencoded::Serializer::new(String::new());
    passed.extend_pairs(pairs.filter(|(name, _)| !SCOPE.contains(&&**name)));
    match passed.finish() {
        query if query.is_empty() => path.to_owned(),
        query => format!("{path}?{query}"),
    }
}

/// What a call does, as its body says.
fn effect_of(effect: Effect, order: &Order) -> Effect {
    if effect != Effect::FlushesUnlessKept {
        return effect;
    }
    let body = serde_json::from_slice::<Value>(&order.body);
    if body.is_ok_and(|body| body["flush_cache"] == false) {
        Effect::Nothing
    } else {
        Effect::Flushes
    }
}

/// What follows from a worker's answer.
async fn follow(state: &ApiState, answer: &WorkerAnswer, effect: Effect) {
    let worker = &answer.worker;
    let refused = answer
        .answer
        .as_ref()
        .is_ok_and(|answer| !answer.status.is_success());
    if refused {
        return;
    }
    // Without an answer it may have happened all the same.
    match effect {
        Effect::Flushes => invalidate_cache(&state.fleet, worker),
        Effect::ChangesAdapters => {
            let metrics = state.registry.metrics();
            read_adapters(&state.fleet, &worker.endpoint, &state.client, metrics).await;
        }
        Effect::Pauses => mark_paused(&state.fleet, &worker.endpoint),
        Effect::Continues => mark_running(&state.fleet, &worker.endpoint),
        Effect::Nothing | Effect::FlushesUnlessKept => {}
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use http::Method;

    use super::*;

    #[test]
    fn query_passes_less_what_names_workers() {
        assert_eq!(path("/p", None), "/p");
        assert_eq!(path("/p", Some("model=m&worker=http%3A%2F%2Fw")), "/p");
        assert_eq!(
            path("/p", Some("rank=0&model=m&a=b%20c")),
            "/p?rank=0&a=b+c"
        );
    }

    #[test]
    fn weights_flush_the_cache_unless_the_call_says_otherwise() {
        let of = |effect, body: &'static str| {
            let order = Order {
                method: Method::POST,
                path: "/p".to_owned(),
                body: Bytes::from(body),
            };
            effect_of(effect, &order)
        };
        let kept = r#"{"flush_cache":false}"#;
        assert_eq!(of(Effect::FlushesUnlessKept, kept), Effect::Nothing);
        assert_eq!(of(Effect::Flushes, kept), Effect::Flushes);
        for body in ["", "{}", "no json", r#"{"flush_cache":true}"#] {
            assert_eq!(
                of(Effect::FlushesUnlessKept, body),
                Effect::Flushes,
                "{body}"
            );
            assert_eq!(of(Effect::Pauses, body), Effect::Pauses, "{body}");
        }
    }
}
