//! A prefill and a decode worker, and requests to both.

use sim::{Role, SimOptions, SimWorker};
use testkit::{Client, Reply, posting};

use crate::support::{post, start, until};

/// Two workers; times are short enough to wait for.
pub(crate) struct Pair {
    pub(crate) prefill: SimWorker,
    pub(crate) decode: SimWorker,
}

/// Options of either worker.
pub(crate) fn options(role: Role) -> SimOptions {
    SimOptions {
        disaggregation_mode: role,
        disaggregation_bootstrap_port: 0,
        disconnect_check_s: 0.1,
        ..SimOptions::default()
    }
}

impl Pair {
    pub(crate) fn start() -> Self {
        Self::with(|_| {})
    }

    /// A pair with other options.
    pub(crate) fn with(change: impl Fn(&mut SimOptions)) -> Self {
        let worker = |role| {
            let mut options = options(role);
            change(&mut options);
            start(options)
        };
        Self {
            prefill: worker(Role::Prefill),
            decode: worker(Role::Decode),
        }
    }

    /// The fields that pair two requests.
    pub(crate) fn fields(&self, room: &str) -> String {
        let port = self.prefill.bootstrap_port().expect("a bootstrap server");
        fields(port, room)
    }

    /// The same request to both workers.
    pub(crate) async fn both(&self, path: &str, body: &str) -> Replies {
        let (prefill, decode) = tokio::join!(
            post(&self.prefill, path, body),
            post(&self.decode, path, body)
        );
        Replies { prefill, decode }
    }

    /// Waits until a leg waits on each worker that is named by a `/v1/loads` field.
    pub(crate) async fn until_queued(&self, worker: &SimWorker, queue: &str, legs: u64) {
        testkit::until(|| async {
            let loads = crate::support::get(worker, "/v1/loads").await.json();
            loads["loads"][0]["disaggregation"][queue] == legs
        })
        .await;
    }

    /// A pair of requests without a fault is answered.
    pub(crate) async fn assert_works(&self) {
        let body = generate("works", &self.fields("424242"));
        let Replies { prefill, decode } = self.both("/generate", &body).await;
        assert_eq!((prefill.status, decode.status), (200, 200));
        until(&self.decode, |stats| stats.in_flight == 0).await;
    }
}

pub(crate) struct Replies {
    pub(crate) prefill: Reply,
    pub(crate) decode: Reply,
}

/// The fields that pair two requests.
pub(crate) fn fields(port: u16, room: &str) -> String {
    format!(r#""bootstrap_host":"127.0.0.1","bootstrap_port":{port},"bootstrap_room":{room}"#)
}

/// A `/generate` request for four tokens, with further fields.
pub(crate) fn generate(text: &str, rest: &str) -> String {
    format!(r#"{{"text":"{text}","sampling_params":{{"max_new_tokens":4}},{rest}}}"#)
}

/// A client that has sent a request and waits.
pub(crate) async fn waiting(worker: &SimWorker, path: &str, body: &str) -> Client {
    let mut client = Client::to(worker.addr()).await;
    client.send(&posting(path, "", body)).await;
    client
}
