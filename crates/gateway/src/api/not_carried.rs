//! Routes of `SGLang` that this gateway does not carry: refused by name, with what to do instead.

use super::routes::Routes;
use crate::auth::Access;
use crate::error::Error;

pub(super) fn routes() -> Routes {
    Routes::default()
        .get("/metrics", Access::Info, metrics)
        .get("/docs", Access::Info, documents)
        .get("/docs/oauth2-redirect", Access::Info, documents)
        .get("/redoc", Access::Info, documents)
        .get("/openapi.json", Access::Info, documents)
}

async fn metrics() -> Error {
    Error::NotImplemented(
        "/metrics on this port; the gateway's are on --prometheus-port, the engines' at /engine_metrics",
    )
}

async fn documents() -> Error {
    Error::NotImplemented("SGLang's interactive documentation; see a worker's own /docs")
}
