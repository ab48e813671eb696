//! What can be configured: the source of truth for names, types and defaults.
//!
//! A new option is one line in `options.rs` and one line in `router_args.py`; a test in
//! `py_test/unit` proves that flags, `RouterArgs`, `Router` keywords and this struct agree.

mod auth;
mod backend;
mod check;
mod configuration;
mod configured_worker;
#[cfg(feature = "kubernetes")]
mod discovery;
mod discovery_group;
mod error;
mod fairness;
mod feature;
pub(crate) mod file;
mod issuer_url;
mod live;
mod load_push;
mod mapped;
mod objects;
mod options;
mod origin;
mod plain_words;
mod queue_order;
mod record;
mod reloads;
mod schema;
mod secret;
mod sections;
mod shared_state;
mod shared_state_url;
mod tls;
mod traces;
mod unbuilt;
mod worker_name;
mod worker_url;
mod zone;

pub(crate) use auth::{AuditTo, AuthSection, is_sendable};
pub use backend::{Backend, HistoryBackend};
pub use check::check;
pub use configuration::{Configuration, Loaded};
pub(crate) use configured_worker::{ConfiguredWorker, WorkerList, configured_workers};
#[cfg(feature = "kubernetes")]
pub(crate) use discovery::{DiscoverySection, GroupSection, ModelIdFrom, PodPort};
pub use discovery_group::{DiscoveryBy, DiscoveryGroup};
pub use error::ConfigError;
pub use feature::Feature;
pub use file::{FileError, Origin, Place, Problem};
pub(crate) use issuer_url::IssuerUrl;
pub(crate) use live::{Live, LiveSection};
pub use load_push::LoadPush;
pub(crate) use mapped::{Mapped, mapped};
pub use objects::{
    ApiKeyEntry, ControlPlaneAuth, JwtConfig, OracleConfig, PostgresConfig, RedisConfig, Role,
};
pub use options::{EngineControl, FleetPage, LogLevel, ModelMatching, Options, PdMetadata};
pub(crate) use origin::AllowedOrigin;
pub use plain_words::plain_words;
pub use queue_order::QueueOrder;
pub(crate) use record::RecordSection;
pub use reloads::ReloadError;
pub(crate) use reloads::{ReloadRequest, Reloaded, Reloads};
pub use schema::schema;
pub use secret::Secret;
pub(crate) use sections::{
    AdmissionSection, ClientSection, ConnectionSection, FleetSection, HealthSection, LoadSection,
    ProxySection, ServerSection, WorkerNames, seconds,
};
pub use shared_state::SharedStateOnFailure;
pub(crate) use shared_state_url::{HasTls, Login, Sentinels, SharedStateUrl};
pub(crate) use tls::{
    PairFiles, PemFile, ServerTlsSection, Verification, WorkerTlsSection, tls_name,
};
pub(crate) use traces::{Collector, Otlp, TraceSection};
pub(crate) use worker_name::{Lookup, WorkerName};
pub(crate) use worker_url::Scheme;
pub use worker_url::WorkerUrl;
pub(crate) use zone::{ZoneSection, configured_zone, is_zone};
