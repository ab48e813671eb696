//! The workers that a set of pods means.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::net::{IpAddr, SocketAddr};

use super::misfit::Misfit;
use super::pod::Pod;
use super::pods::Pods;
use super::rules::{Namespace, Rules, model, role};
use crate::config::{GroupSection, PodPort, WorkerUrl};
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

/// A pod, and what it is to its group.
struct Chosen<'a> {
    pod: &'a Pod,
    group: &'a GroupSection,
    role: Role,
}

impl Desired {
    /// The workers among the pods of each namespace that is followed. A pod that is not ready is
    /// listed so: it stays if it is known.
    pub(super) fn new(pods: &BTreeMap<Namespace, Pods>, rules: &Rules) -> Self {
        let gateways = gateways(pods, rules);
        let mut chosen = chosen(pods, rules);
        chosen.retain(|it| {
            let controller = it.pod.controller.as_deref();
            !gateways.contains(&*it.pod.uid)
                && controller.is_none_or(|controller| !gateways.contains(controller))
        });
        chosen.sort_unstable_by_key(|it| (&it.pod.namespace, &it.pod.name, &it.pod.uid));
        let (mut found, mut misfits) = (Vec::new(), BTreeMap::new());
        for it in chosen {
            match workers_of(&it, rules) {
                Ok(workers) => found.extend(workers),
                Err(why) => {
                    misfits.insert(format!("{}/{}", it.pod.namespace, it.pod.name), why);
                }
            }
        }
        let workers = newest_of_each_url(found);
        Self { workers, misfits }
    }
}

/// The pods that can serve, each by the first group that selects it.
fn chosen<'a>(pods: &'a BTreeMap<Namespace, Pods>, rules: &'a Rules) -> Vec<Chosen<'a>> {
    let all = pods.values().flat_map(Pods::iter);
    // Several objects may stand for a pod, and one of them may be late.
    let ending: HashSet<&str> = all
        .filter(|pod| pod.terminates)
        .map(|pod| &*pod.uid)
        .collect();
    let mut chosen: HashMap<&str, Chosen<'a>> = HashMap::new();
    for group in &rules.options.groups {
        let namespace = Namespace(group.namespace.clone());
        let known = pods.get(&namespace).into_iter().flat_map(Pods::iter);
        let serving = known.filter(|pod| pod.runs && !pod.only_encodes && pod.ip.is_some());
        for pod in serving.filter(|pod| !ending.contains(&*pod.uid)) {
            let Some(role) = role(group, pod) else {
                continue;
            };
            let new = Chosen { pod, group, role };
            let known = chosen.entry(&pod.uid).or_insert(new);
            if std::ptr::eq(known.group, group) && rank(pod) < rank(known.pod) {
                *known = Chosen { pod, group, role };
            }
        }
    }
    chosen.into_values().collect()
}

/// Which of several descriptions of a pod counts: the least. A service may list a pod by two
/// addresses, and for a while twice.
fn rank(pod: &Pod) -> impl Ord {
    (!pod.ready, pod.ip.is_some_and(|ip| ip.is_ipv6()), pod.ip)
}

/// The gateway's own pod, and what controls it: its other replicas are no workers either.
fn gateways<'a>(pods: &'a BTreeMap<Namespace, Pods>, rules: &Rules) -> HashSet<&'a str> {
    let own_ports = &rules.options.own_ports;
    let is_own = |pod: &&Pod| {
        let ports = |group| ports(pod, group).unwrap_or_default();
        let mut ports = rules.options.groups.iter().flat_map(ports);
        pod.is_local && ports.any(|port| own_ports.contains(&port))
    };
    let own = pods.values().flat_map(Pods::iter).filter(is_own);
    own.flat_map(|pod| [Some(&*pod.uid), pod.controller.as_deref()])
        .flatten()
        .collect()
}

fn workers_of(chosen: &Chosen<'_>, rules: &Rules) -> Result<Vec<Found>, Misfit> {
    let Chosen { pod, group, role } = *chosen;
    let Some(ip) = pod.ip else {
        return Ok(Vec::new());
    };
    let ports = ports(pod, group)?;
    let bootstrap_ports = match role {
        Role::Prefill => bootstrap_ports(pod, group, ports.len())?,
        Role::Regular | Role::Decode => vec![None; ports.len()],
    };
    let scheme = scheme(pod)?;
    let workers = ports.iter().zip(bootstrap_ports);
    let workers = workers.map(|(port, bootstrap_port)| {
        let spec = WorkerSpec {
            key: rules.options.key.clone(),
            role: Some(role),
            bootstrap_port,
            model: model(group, pod),
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

fn ports(pod: &Pod, group: &GroupSection) -> Result<Vec<u16>, Misfit> {
    if let Some(text) = pod.annotations.get(WORKER_PORTS) {
        return read_ports(WORKER_PORTS, text);
    }
    match &group.port {
        PodPort::Number(port) => Ok(vec![*port]),
        PodPort::Name(name) => {
            let port = pod.ports.get(name).ok_or(Misfit::NoPort(name.clone()))?;
            Ok(vec![*port])
        }
    }
}

/// One for all workers of the pod, or as many as these.
fn bootstrap_ports(
    pod: &Pod,
    group: &GroupSection,
    workers: usize,
) -> Result<Vec<Option<u16>>, Misfit> {
    let annotation = &group.bootstrap_annotation;
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
