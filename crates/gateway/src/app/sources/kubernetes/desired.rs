//! The workers that a set of pods means.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use super::misfit::Misfit;
use super::pod::Pod;
use super::pods::Pods;
use super::rules::{Namespace, Rules, model, role, zone};
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
    /// Those that are new are by namespace and name of their pods.
    pub(super) workers: Vec<Listed>,
    /// Pods that cannot be followed, and why.
    pub(super) misfits: BTreeMap<String, Misfit>,
    /// By the uid of pods. Of hundreds of pods, few change at a time.
    made: HashMap<String, Made>,
}

/// What was made of a pod.
#[derive(Debug)]
struct Made {
    pod: Arc<Pod>,
    place: Place,
    workers: Result<Vec<Listed>, Misfit>,
}

/// What a pod is to which group, by its number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Place {
    group: usize,
    role: Role,
}

/// A pod that can serve, and where.
struct Chosen<'a> {
    pod: &'a Arc<Pod>,
    place: Place,
}

impl Desired {
    /// Makes them those of the pods of each namespace that is followed. A pod that is not ready is
    /// listed so: it stays if it is known.
    pub(super) fn update(&mut self, pods: &BTreeMap<Namespace, Pods>, rules: &Rules) {
        let gateways = gateways(pods, rules);
        let mut chosen = chosen(pods, rules);
        chosen.retain(|it| {
            let controller = it.pod.controller.as_deref();
            !gateways.contains(&*it.pod.uid)
                && controller.is_none_or(|controller| !gateways.contains(controller))
        });
        let mut before = std::mem::take(&mut self.made);
        self.made.reserve(chosen.len());
        let (mut workers, mut fresh) = (Vec::with_capacity(chosen.len()), Vec::new());
        self.misfits.clear();
        for it in chosen {
            match before.remove_entry(&it.pod.uid) {
                Some((uid, made)) if made.is_of(&it) => self.keep(uid, made, &mut workers),
                _ => fresh.push(it),
            }
        }
        fresh.sort_unstable_by_key(|it| (&it.pod.namespace, &it.pod.name));
        for it in fresh {
            let made = Made::new(&it, rules);
            self.keep(it.pod.uid.clone(), made, &mut workers);
        }
        self.workers = newest_of_each_url(workers);
    }

    fn keep(&mut self, uid: String, made: Made, workers: &mut Vec<Found>) {
        let created = made.pod.created;
        match &made.workers {
            Ok(of_pod) => workers.extend(of_pod.iter().map(|listed| Found {
                created,
                listed: listed.clone(),
            })),
            Err(why) => {
                let name = format!("{}/{}", made.pod.namespace, made.pod.name);
                self.misfits.insert(name, why.clone());
            }
        }
        self.made.insert(uid, made);
    }
}

/// A worker, and what decides between several at one URL.
struct Found {
    created: i64,
    listed: Listed,
}

impl Found {
    /// The identity keeps two of the same age apart.
    fn age(&self) -> (i64, Option<&str>) {
        (self.created, self.listed.identity.as_deref())
    }
}

impl Made {
    fn new(chosen: &Chosen<'_>, rules: &Rules) -> Self {
        let group = rules.options.groups.get(chosen.place.group);
        let workers = group.map(|group| workers_of(chosen, group, rules));
        Self {
            pod: Arc::clone(chosen.pod),
            place: chosen.place,
            workers: workers.unwrap_or_else(|| Ok(Vec::new())),
        }
    }

    fn is_of(&self, chosen: &Chosen<'_>) -> bool {
        Arc::ptr_eq(&self.pod, chosen.pod) && self.place == chosen.place
    }
}

/// The pods that can serve, each by the first group that selects it.
fn chosen<'a>(pods: &'a BTreeMap<Namespace, Pods>, rules: &Rules) -> Vec<Chosen<'a>> {
    let all = pods.values().flat_map(Pods::iter);
    // Several objects may stand for a pod, and one of them may be late.
    let ending: HashSet<&str> = all
        .filter(|pod| pod.terminates)
        .map(|pod| &*pod.uid)
        .collect();
    let count = pods.values().flat_map(Pods::iter).count();
    let mut chosen: Vec<Chosen<'a>> = Vec::with_capacity(count);
    let mut at: HashMap<&str, usize> = HashMap::with_capacity(count);
    for (number, group) in rules.options.groups.iter().enumerate() {
        let namespace = Namespace(group.namespace.clone());
        let known = pods.get(&namespace).into_iter().flat_map(Pods::iter);
        let serving = known.filter(|pod| pod.runs && !pod.only_encodes && pod.ip.is_some());
        for pod in serving.filter(|pod| !ending.contains(&*pod.uid)) {
            let Some(role) = role(group, pod) else {
                continue;
            };
            let place = Place {
                group: number,
                role,
            };
            let index = *at.entry(&pod.uid).or_insert(chosen.len());
            match chosen.get_mut(index) {
                None => chosen.push(Chosen { pod, place }),
                Some(known) if known.place.group == number && rank(pod) < rank(known.pod) => {
                    *known = Chosen { pod, place };
                }
                Some(_) => {}
            }
        }
    }
    chosen
}

/// Which of several descriptions of a pod counts: the least. A service may list a pod by two
/// addresses, and for a while twice.
fn rank(pod: &Pod) -> impl Ord {
    (!pod.ready, pod.ip.is_some_and(|ip| ip.is_ipv6()), pod.ip)
}

/// The gateway's own pod, and what controls it: its other replicas are no workers either.
fn gateways<'a>(pods: &'a BTreeMap<Namespace, Pods>, rules: &Rules) -> HashSet<&'a str> {
    let own_ports = &rules.options.own_ports;
    let serves_there = |pod: &Pod, group: &GroupSection| match &group.port {
        PodPort::Number(port) if !pod.annotations.contains_key(WORKER_PORTS) => {
            own_ports.contains(port)
        }
        _ => {
            let ports = ports(pod, group).unwrap_or_default();
            ports.iter().any(|port| own_ports.contains(port))
        }
    };
    let is_own = |pod: &&Arc<Pod>| {
        let mut groups = rules.options.groups.iter();
        pod.is_local && groups.any(|group| serves_there(pod, group))
    };
    let own = pods.values().flat_map(Pods::iter).filter(is_own);
    own.flat_map(|pod| [Some(&*pod.uid), pod.controller.as_deref()])
        .flatten()
        .collect()
}

fn workers_of(
    chosen: &Chosen<'_>,
    group: &GroupSection,
    rules: &Rules,
) -> Result<Vec<Listed>, Misfit> {
    let (pod, role) = (chosen.pod, chosen.place.role);
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
            zone: zone(&rules.options, pod),
            labels: labels(pod),
            ..WorkerSpec::new(url(scheme, ip, *port)?)
        };
        Ok(Listed {
            spec: Arc::new(spec),
            identity: Some(pod.uid.as_str().into()),
            ready: pod.ready,
        })
    });
    workers.collect()
}

/// An address is used again when its pod has ended: the newest one has it, by the time of its
/// creation.
fn newest_of_each_url(found: Vec<Found>) -> Vec<Listed> {
    let mut newest: HashMap<&WorkerUrl, usize> = HashMap::with_capacity(found.len());
    let mut older = Vec::new();
    for (at, it) in found.iter().enumerate() {
        let known = newest.entry(&it.listed.spec.url).or_insert(at);
        if let Some(other) = found.get(*known).filter(|_| *known != at) {
            let is_newer = it.age() > other.age();
            older.push(if is_newer { *known } else { at });
            *known = if is_newer { at } else { *known };
        }
    }
    let found = found.into_iter().enumerate();
    let found = found.filter(|(at, _)| !older.contains(at));
    found.map(|(_, it)| it.listed).collect()
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
