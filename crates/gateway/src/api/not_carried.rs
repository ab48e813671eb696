//! Routes of `SGLang` that this gateway does not carry: refused by name, with what to do instead.

use super::routes::Routes;
use crate::auth::Access;
use crate::error::Error;

pub(super) fn routes() -> Routes {
    Routes::default()
        .post("/pd_role_switch", Access::Engine, pd_role_switch)
        .get("/metrics", Access::Info, metrics)
        .get("/docs", Access::Info, documents)
        .get("/docs/oauth2-redirect", Access::Info, documents)
        .get("/redoc", Access::Info, documents)
        .get("/openapi.json", Access::Info, documents)
}

async fn pd_role_switch() -> Error {
    Error::NotImplemented("switching roles through the gateway; ask the worker itself")
}

async fn metrics() -> Error {
    Error::NotImplemented(
        "/metrics on this port; the gateway's are on --prometheus-port, the engines' at /engine_metrics",
    )
}

async fn documents() -> Error {
    Error::NotImplemented("SGLang's interactive documentation; see a worker's own /docs")
}
