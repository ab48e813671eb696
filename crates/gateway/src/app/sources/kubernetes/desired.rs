//! The workers that a set of pods means.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::net::{IpAddr, SocketAddr};

use super::misfit::Misfit;
use super::pod::Pod;
use super::rules::Rules;
use crate::config::WorkerUrl;
use crate::fleet::{Listed, Role, WorkerSpec};

/// Ports of the engines in a pod that has several, separated by commas.
const WORKER_PORTS: &str = "smg.ai/worker-ports";
/// `https` for a pod that serves over TLS.
const SCHEME: &str = "smg.ai/worker-scheme";
/// Pods of one group form pairs among themselves.
const TRANSFER_GROUP: &str = "transfer_group";

/// The workers that pods mean.
#[derive(Debug, Default)]
pub(super) struct Desired {
    /// By namespace and name of their pods.
    pub(super) workers: Vec<Listed>,
    /// Pods whose annotations cannot be followed, and why.
    pub(super) misfits: BTreeMap<String, Misfit>,
}

/// A worker, and what decides between several at one URL.
struct Found {
    created: i64,
    listed: Listed,
}

impl Desired {
    /// The workers among these pods. A pod that is not ready is listed so: it stays if it is known.
    pub(super) fn new<'a>(pods: impl Iterator<Item = &'a Pod> + Clone, rules: &Rules) -> Self {
        let gateways = gateways(pods.clone(), rules);
        let serving = |pod: &&Pod| {
            pod.runs && !pod.terminates && !pod.only_encodes && !gateways.contains(&*pod.uid)
        };
        let controlled = |pod: &&Pod| {
            let controller = pod.controller.as_deref();
            controller.is_none_or(|controller| !gateways.contains(controller))
        };
        let mut serving: Vec<_> = pods.filter(serving).filter(controlled).collect();
        serving.sort_unstable_by_key(|pod| (&pod.namespace, &pod.name, &pod.uid));
        let (mut found, mut misfits) = (Vec::new(), BTreeMap::new());
        for pod in serving {
            match workers_of(pod, rules) {
                Ok(workers) => found.extend(workers),
                Err(why) => {
                    misfits.insert(format!("{}/{}", pod.namespace, pod.name), why);
                }
            }
        }
        let workers = newest_of_each_url(found);
        Self { workers, misfits }
    }
}

/// The gateway's own pod, and what controls it: its other replicas are no workers either.
fn gateways<'a>(pods: impl Iterator<Item = &'a Pod>, rules: &Rules) -> HashSet<&'a str> {
    let own_ports = &rules.options.own_ports;
    let is_own = |pod: &&Pod| {
        let ports = ports(pod, rules).unwrap_or_default();
        pod.is_local && ports.iter().any(|port| own_ports.contains(port))
    };
    let own = pods.filter(is_own);
    own.flat_map(|pod| [Some(&*pod.uid), pod.controller.as_deref()])
        .flatten()
        .collect()
}

fn workers_of(pod: &Pod, rules: &Rules) -> Result<Vec<Found>, Misfit> {
    let (Some(role), Some(ip)) = (rules.role(pod), pod.ip) else {
        return Ok(Vec::new());
    };
    let ports = ports(pod, rules)?;
    let bootstrap_ports = match role {
        Role::Prefill => bootstrap_ports(pod, rules, ports.len())?,
        Role::Regular | Role::Decode => vec![None; ports.len()],
    };
    let scheme = scheme(pod)?;
    let workers = ports.iter().zip(bootstrap_ports);
    let workers = workers.map(|(port, bootstrap_port)| {
        let spec = WorkerSpec {
            key: rules.options.key.clone(),
            role: Some(role),
            bootstrap_port,
            model: rules.model(pod),
            labels: labels(pod),
            ..WorkerSpec::new(url(scheme, ip, *port)?)
        };
        let listed = Listed {
            spec,
            identity: Some(pod.uid.clone()),
            ready: pod.ready,
        };
        let created = pod.created;
        Ok(Found { created, listed })
    });
    workers.collect()
}

/// An address is used again when its pod has ended: the newest one has it.
fn newest_of_each_url(found: Vec<Found>) -> Vec<Listed> {
    let mut newest: HashMap<WorkerUrl, i64> = HashMap::new();
    for it in &found {
        let created = newest
            .entry(it.listed.spec.url.clone())
            .or_insert(it.created);
        *created = it.created.max(*created);
    }
    let mut found = found;
    // Removing it keeps the second one of the same age out.
    found.retain(|it| match newest.get(&it.listed.spec.url) {
        Some(created) if *created == it.created => {
            newest.remove(&it.listed.spec.url);
            true
        }
        _ => false,
    });
    found.into_iter().map(|it| it.listed).collect()
}

fn ports(pod: &Pod, rules: &Rules) -> Result<Vec<u16>, Misfit> {
    match pod.annotations.get(WORKER_PORTS) {
        Some(text) => read_ports(WORKER_PORTS, text),
        None => Ok(vec![rules.options.port]),
    }
}

/// One for all workers of the pod, or as many as these.
fn bootstrap_ports(pod: &Pod, rules: &Rules, workers: usize) -> Result<Vec<Option<u16>>, Misfit> {
    let annotation = &rules.options.bootstrap_annotation;
    let Some(text) = pod.annotations.get(annotation) else {
        return Ok(vec![None; workers]);
    };
    match &read_ports(annotation, text)?[..] {
        [port] => Ok(vec![Some(*port); workers]),
        ports if ports.len() == workers => Ok(ports.iter().copied().map(Some).collect()),
        ports => Err(Misfit::BootstrapPorts {
            annotation: annotation.clone(),
            ports: ports.len(),
            workers,
        }),
    }
}

fn read_ports(annotation: &str, text: &str) -> Result<Vec<u16>, Misfit> {
    let ports = text.split(',').map(|port| port.trim().parse());
    let ports: Vec<u16> = ports.collect::<Result<_, _>>().unwrap_or_default();
    let distinct: HashSet<_> = ports.iter().collect();
    if ports.is_empty() || ports.contains(&0) || distinct.len() < ports.len() {
        let (annotation, text) = (annotation.to_owned(), text.to_owned());
        return Err(Misfit::Ports { annotation, text });
    }
    Ok(ports)
}

fn scheme(pod: &Pod) -> Result<&str, Misfit> {
    match pod.annotations.get(SCHEME).map(String::as_str) {
        None => Ok("http"),
        Some(scheme @ ("http" | "https")) => Ok(scheme),
        Some(other) => Err(Misfit::Scheme {
            annotation: SCHEME,
            text: other.to_owned(),
        }),
    }
}

fn url(scheme: &str, ip: IpAddr, port: u16) -> Result<WorkerUrl, Misfit> {
    let url = format!("{scheme}://{}", SocketAddr::new(ip, port));
    WorkerUrl::parse(&url).map_err(|why| Misfit::Url { url, why })
}

fn labels(pod: &Pod) -> BTreeMap<String, String> {
    let labels = [
        ("smg.ai/pod-name", &pod.name),
        ("smg.ai/pod-namespace", &pod.namespace),
        ("smg.ai/pod-uid", &pod.uid),
    ];
    let labels = labels.map(|(name, value)| (name.to_owned(), value.clone()));
    let group = pod.labels.get_key_value(TRANSFER_GROUP);
    let group = group.map(|(name, value)| (name.clone(), value.clone()));
    labels.into_iter().chain(group).collect()
}
