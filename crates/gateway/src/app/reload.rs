//! Puts other options in force while the gateway runs: all of them, or none.

use std::sync::Arc;

use routing::Params;
use tokio::sync::mpsc::UnboundedReceiver;
use tokio::task::spawn_blocking;
use tokio::time::{MissedTickBehavior, interval};
use tracing::{error, info};

use super::access::Access;
use super::error::StartError;
use super::sources::{Prepared, Sources};
use crate::api::ApiState;
use crate::balancer::RoleKinds;
use crate::config::{
    AdmissionSection, AuditTo, ConfigError, Configuration, FleetSection, HealthSection, Live,
    Loaded, Options, ReloadError, ReloadRequest, Reloaded,
};
use crate::server::Service;
use crate::telemetry::{Metrics, logging};
use crate::watched_file::{LOOK_INTERVAL, WatchedFile};

/// Options of credentials.
const CREDENTIALS: [&str; 3] = ["api_key", "api_keys_file", "control_plane_auth"];

/// Reads the configuration again when it is asked to, one time after the other.
pub(super) struct Reloader {
    pub(super) configuration: Configuration,
    /// As it was before it was read.
    pub(super) file: Option<WatchedFile>,
    pub(super) requests: UnboundedReceiver<ReloadRequest>,
    pub(super) parts: Parts,
}

/// The parts of a gateway that other options reach.
pub(super) struct Parts {
    pub(super) metrics: Arc<Metrics>,
    pub(super) state: ApiState,
    pub(super) service: Arc<Service>,
    pub(super) access: Access,
    pub(super) sources: Sources,
}

/// All that may fail has been done for these options.
struct Ready {
    loaded: Loaded,
    changed: Vec<&'static str>,
    /// `None` where they stay.
    access: Option<Access>,
    sources: Prepared,
}

impl Reloader {
    /// Runs until dropped.
    pub(super) async fn run(mut self) {
        let mut ticks = interval(LOOK_INTERVAL);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut file = self.file.take();
        loop {
            tokio::select! {
                request = self.requests.recv() => {
                    let Some(ReloadRequest { options, answer }) = request else {
                        return;
                    };
                    let reloaded = self.reload(options).await;
                    answer(reloaded);
                }
                _ = ticks.tick(), if file.is_some() => {
                    file = self.look(file).await;
                }
            }
        }
    }

    fn live(&self) -> &Live {
        &self.parts.state.reloads.live
    }

    /// Reads the file again if it has changed, where that is wanted.
    async fn look(&mut self, file: Option<WatchedFile>) -> Option<WatchedFile> {
        let mut file = file?;
        // A volume that does not answer holds up a thread of its own only.
        let look = spawn_blocking(move || {
            let has_changed = file.has_changed();
            (file, has_changed)
        });
        let (file, has_changed) = look.await.ok()?;
        if has_changed && self.live().in_force().loaded.options().config_watch {
            let _ = self.reload(None).await;
        }
        Some(file)
    }

    /// Puts these options in force, or those of the file; says so in the log and in metrics.
    async fn reload(&mut self, options: Option<Box<Options>>) -> Reloaded {
        let reloaded = match self.prepare(options).await {
            Ok(ready) => self.apply(ready),
            Err(error) => Err(error),
        };
        self.parts.metrics.reloaded(reloaded.is_ok());
        self.parts.state.reloads.ended(&reloaded);
        match &reloaded {
            Ok(changed) => info!(changed = changed.join(","), "configuration reloaded"),
            Err(error) => error!(%error, "configuration not reloaded, the old one stays in force"),
        }
        reloaded
    }

    async fn prepare(&self, options: Option<Box<Options>>) -> Result<Ready, ReloadError> {
        let configuration = match options {
            Some(options) => Configuration::from(&*options),
            None => self.configuration.clone(),
        };
        let loaded = spawn_blocking(move || configuration.load());
        let loaded = loaded.await.map_err(|_| ReloadError::Stopping)??;
        let changed = self.live().changes(&loaded)?;
        let options = loaded.options();
        if AuditTo::new(options) != AuditTo::new(self.live().in_force().loaded.options()) {
            // The thread that writes is started once.
            return Err(ConfigError::Fixed(vec!["control_plane_auth.audit_enabled"]).into());
        }
        let of_sources = (options.clone(), changed.clone());
        let sources = spawn_blocking(move || Prepared::new(&of_sources.0, &of_sources.1));
        let sources = sources.await.map_err(|_| ReloadError::Stopping)?;
        let sources = sources.map_err(refused)?;
        let parts = &self.parts;
        let access = if changed.iter().any(|name| CREDENTIALS.contains(name)) {
            let access = parts
                .access
                .with(options, &parts.metrics, &parts.state.client);
            Some(access.await.map_err(refused)?)
        } else {
            None
        };
        Ok(Ready {
            loaded,
            changed,
            access,
            sources,
        })
    }

    /// Nothing here fails for a reason that lies in the options.
    fn apply(&mut self, ready: Ready) -> Reloaded {
        let Ready {
            loaded,
            changed,
            access,
            sources,
        } = ready;
        let before = self.live().in_force().loaded.options().clone();
        let options = loaded.options().clone();
        self.live().store(loaded);
        let parts = &mut self.parts;
        parts.follow(&before, &options);
        if changed.contains(&"log_level") {
            logging::set_level_of(&options);
        }
        if access.is_some() || changed.contains(&"cors_allowed_origins") {
            if let Some(access) = access {
                access.watch();
                parts.access.retire(&access);
                parts.access = access;
            }
            parts.service.set_rules(parts.access.rules(&options));
        }
        // Last: workers that come are made by the new options.
        let followed = parts.sources.follow(sources);
        followed.map_err(|_| ReloadError::Stopping)?;
        Ok(changed)
    }
}

impl Parts {
    /// Puts in force what is kept as sections of options.
    fn follow(&self, before: &Options, now: &Options) {
        let (fleet, health) = (FleetSection::from(now), HealthSection::from(now));
        if fleet != FleetSection::from(before) || health != HealthSection::from(before) {
            self.state.registry.reconfigure(fleet);
        }
        let admission = AdmissionSection::from(now);
        if admission != AdmissionSection::from(before) {
            // First: a request that is let in now finds the new limits at the workers.
            self.state.balancer.set_limits(&admission);
            self.state.admission.set(&admission);
        }
        let policies = |options: &Options| (RoleKinds::from(options), Params::from(options));
        let (kinds, params) = policies(now);
        if (kinds, params.clone()) != policies(before) {
            self.state.balancer.set_policies(kinds, &params);
        }
    }
}

fn refused(error: StartError) -> ReloadError {
    match error {
        StartError::Config(error) => error.into(),
        error @ StartError::Environment { .. } => ReloadError::Unavailable(error.to_string()),
    }
}
