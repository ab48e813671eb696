//! `POST /pd_role_switch`: an engine of a prefill/decode pair takes the other role, once it has
//! nothing more to do in its own.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::{RawQuery, State};
use axum::response::Response;
use http::{Method, StatusCode};
use memchr::memmem;
use serde_json::Value;
use tokio::time::sleep;

use super::answer;
use crate::api::extract::Payload;
use crate::api::routes::Routes;
use crate::api::scope::scope;
use crate::api::state::ApiState;
use crate::auth::Access;
use crate::error::Error;
use crate::fleet::{Role, Withheld, Worker, set_role};
use crate::proxy::{Order, WorkerAnswer};

/// How `SGLang` refuses while it still has requests.
const BUSY: &[u8] = b"not idle";
/// An engine ends its last request a little after the gateway has seen its end.
const ATTEMPTS: u32 = 20;
const PAUSE: Duration = Duration::from_millis(100);

pub(super) fn routes() -> Routes {
    Routes::default().post("/pd_role_switch", Access::Engine, switch)
}

async fn switch(
    State(state): State<ApiState>,
    RawQuery(query): RawQuery,
    Payload(body): Payload,
) -> Result<Response, Error> {
    let workers = scope(&state, query.as_deref())?;
    let [worker] = &workers[..] else {
        let why = format!(
            "a role is switched at one worker: name it by ?worker=, as id or URL; {} match",
            workers.len()
        );
        return Err(Error::WorkerSpec(why));
    };
    let order = Order {
        method: Method::POST,
        path: "/pd_role_switch".to_owned(),
        body,
    };
    let worker = Arc::clone(worker);
    let client = state.client.clone();
    // On the control thread, so that it is done, and what follows from it, when the client leaves.
    let done = client.spawn(async move { carry_out(&state, &order, worker).await });
    // Cancelled only when the gateway ends.
    let answer = done.await.map_err(|_| Error::NoWorkerResponse)?;
    answer
        .map(|answer| answer::of_one(&answer))
        .ok_or(Error::NoWorkerResponse)
}

async fn carry_out(state: &ApiState, order: &Order, worker: Arc<Worker>) -> Option<WorkerAnswer> {
    let withheld = Withheld::begin(&state.fleet, &worker).await;
    let mut answer = None;
    for _ in 0..ATTEMPTS {
        let answers = state.orders.carry_out(order, vec![Arc::clone(&worker)]);
        answer = answers.await.pop();
        let is_busy = answer.as_ref().is_some_and(is_busy);
        if !is_busy {
            break;
        }
        sleep(PAUSE).await;
    }
    let carried_out = answer.as_ref().is_some_and(|answer| {
        let answer = answer.answer.as_ref();
        answer.is_ok_and(|answer| answer.status.is_success())
    });
    if let Some(role) = new_role(order).filter(|_| carried_out) {
        set_role(
            &state.fleet,
            &worker.endpoint,
            role,
            state.registry.metrics(),
        );
    }
    drop(withheld);
    answer
}

fn is_busy(answer: &WorkerAnswer) -> bool {
    answer.answer.as_ref().is_ok_and(|answer| {
        answer.status == StatusCode::BAD_REQUEST && memmem::find(&answer.body, BUSY).is_some()
    })
}

fn new_role(order: &Order) -> Option<Role> {
    let body: Value = serde_json::from_slice(&order.body).ok()?;
    Role::named(body["new_role"].as_str()?)
}
