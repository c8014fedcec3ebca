//! Extenders: programs that are asked over HTTP which nodes fit, which are better, who may be sent away, or to bind
//! (`extenders` of KubeSchedulerConfiguration).

mod connection;
#[cfg(test)]
mod tests;
mod wire;

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use k8s_openapi::api::core::v1::{Node, Pod};
use kube::{Api, Client};
use serde_json::{Map, Value, json};

pub use self::connection::{Pem, Tls};

use self::connection::Connection;
use self::wire::{BindingResult, Filtered, HostPriority, Judged, MetaPod};
use crate::framework::Rejection;
use crate::pod::{PodInfo, PodKey};
use crate::preempt::Candidate;
use crate::snapshot::Snapshot;

/// The scale of an extender's scores goes to 10, that of plugins to 100.
const SCALE: i64 = 10;

/// One extender.
#[derive(Clone, Debug, PartialEq)]
pub struct Extender {
    /// Without a slash at its end.
    pub url: String,
    pub tls: Tls,
    pub filter: Option<String>,
    /// With the weight of its scores.
    pub prioritize: Option<(String, i64)>,
    pub preempt: Option<String>,
    pub bind: Option<String>,
    pub timeout: Duration,
    /// Pods are scheduled without it when it does not answer.
    pub ignorable: bool,
    /// It knows the nodes and is told names only (`nodeCacheCapable`).
    pub knows_nodes: bool,
    /// Only pods that ask for one of these are its concern; none: all are.
    pub managed: Vec<String>,
}

/// All extenders of a configuration.
pub struct Extenders {
    list: Vec<(Extender, Connection)>,
    api: Client,
    /// The nodes whole, if an extender is told more than names.
    nodes: Option<Mutex<HashMap<Box<str>, Arc<Node>>>>,
}

/// What extenders said about nodes.
#[derive(Debug, Default)]
pub struct Answers {
    /// Against nodes, by name.
    pub rejected: HashMap<String, Rejection>,
    /// Scores to be added, by name.
    pub scores: HashMap<String, i64>,
}

impl Extenders {
    /// Extenders, and where to read pods from, which they are told whole. Made inside a runtime.
    ///
    /// # Errors
    /// What is wrong with the URL or a certificate of one of them.
    pub fn new(list: Vec<Extender>, api: Client) -> Result<Self, String> {
        let whole = list.iter().any(|extender| !extender.knows_nodes);
        let connected = list.into_iter().map(|extender| {
            let connection = Connection::new(&extender.url, &extender.tls, extender.timeout)?;
            Ok((extender, connection))
        });
        let list = connected.collect::<Result<_, String>>()?;
        Ok(Extenders { list, api, nodes: whole.then(Mutex::default) })
    }

    fn nodes(&self) -> Option<MutexGuard<'_, HashMap<Box<str>, Arc<Node>>>> {
        // An entry is put in, or taken out, at once.
        Some(self.nodes.as_ref()?.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// A node is there, or changed.
    pub fn note_node(&self, node: &Node) {
        if let (Some(mut nodes), Some(name)) = (self.nodes(), node.metadata.name.as_deref()) {
            nodes.insert(name.into(), Arc::new(node.clone()));
        }
    }

    /// A node is gone.
    pub fn forget_node(&self, name: &str) {
        if let Some(mut nodes) = self.nodes() {
            nodes.remove(name);
        }
    }

    fn concerned<'a>(&'a self, pod: &'a PodInfo) -> impl Iterator<Item = (&'a Extender, &'a Connection)> {
        self.list.iter().filter(|(e, _)| e.concerns(pod)).map(|(extender, connection)| (extender, connection))
    }

    /// Whether any extender has a say on where this pod goes.
    pub fn concern(&self, pod: &PodInfo) -> bool {
        self.concerned(pod).any(|(e, _)| e.filter.is_some() || e.prioritize.is_some())
    }

    /// Whether any extender has a say on who has to go for this pod.
    pub fn judge_victims(&self, pod: &PodInfo) -> bool {
        self.concerned(pod).any(|(e, _)| e.preempt.is_some())
    }

    /// Asks which of these nodes fit, and how well if there is a choice.
    ///
    /// # Errors
    /// If one that cannot be ignored does not answer.
    pub async fn ask(&self, pod: &PodInfo, nodes: Vec<String>) -> Result<Answers, String> {
        let whole = self.whole(&pod.key).await?;
        let mut answers = Answers::default();
        let mut left = nodes;
        for (extender, connection) in self.concerned(pod) {
            let Some(verb) = &extender.filter else { continue };
            if left.is_empty() {
                return Ok(answers);
            }
            let filtered = connection.post(verb, &self.about(extender, &whole, &left)).await;
            left = match filtered.and_then(|filtered| passed(extender, filtered, &left, &mut answers)) {
                Ok(passed) => passed,
                Err(error) if extender.ignorable => {
                    tracing::warn!(%error, extender = %extender.url, "nodes are not filtered");
                    left
                }
                Err(error) => return Err(error),
            };
        }
        if left.len() <= 1 {
            return Ok(answers);
        }
        for (extender, connection) in self.concerned(pod) {
            let Some((verb, weight)) = &extender.prioritize else { continue };
            // Scores are a wish: without an answer the pod goes anyway.
            match connection.post::<Vec<HostPriority>>(verb, &self.about(extender, &whole, &left)).await {
                Ok(list) => {
                    for HostPriority { host, score } in list {
                        let more = score.saturating_mul(*weight).saturating_mul(SCALE);
                        let total = answers.scores.entry(host).or_default();
                        *total = total.saturating_add(more);
                    }
                }
                Err(error) => tracing::warn!(%error, extender = %extender.url, "no scores"),
            }
        }
        Ok(answers)
    }

    /// `ExtenderArgs`.
    fn about(&self, extender: &Extender, pod: &Value, names: &[String]) -> Value {
        if extender.knows_nodes {
            return json!({"Pod": pod, "Nodes": null, "NodeNames": names});
        }
        let known = self.nodes();
        let whole = names.iter().filter_map(|name| known.as_ref()?.get(name.as_str()).cloned());
        let items: Vec<Value> = whole.filter_map(|node| serde_json::to_value(&*node).ok()).collect();
        json!({"Pod": pod, "Nodes": {"metadata": {}, "items": items}, "NodeNames": null})
    }

    /// Asks which of these nodes pods may be sent away from, and which pods.
    ///
    /// # Errors
    /// If one that cannot be ignored does not answer, names a node or a pod that there is not, or nobody to go.
    pub async fn judge(
        &self,
        pod: &PodInfo,
        mut candidates: Vec<Candidate>,
        snapshot: &Snapshot,
    ) -> Result<Vec<Candidate>, String> {
        let whole = self.whole(&pod.key).await?;
        for (extender, connection) in self.concerned(pod) {
            let Some(verb) = &extender.preempt else { continue };
            let mut victims = Map::new();
            for candidate in &candidates {
                let mut pods = Vec::new();
                for victim in &candidate.victims {
                    pods.push(match extender.knows_nodes {
                        true => json!({"UID": *victim.key.uid}),
                        false => self.whole(&victim.key).await?,
                    });
                }
                let told = json!({"Pods": pods, "NumPDBViolations": candidate.violations});
                victims.insert(candidate.node.to_string(), told);
            }
            let (known, other) = match extender.knows_nodes {
                true => ("NodeNameToMetaVictims", "NodeNameToVictims"),
                false => ("NodeNameToVictims", "NodeNameToMetaVictims"),
            };
            let judged = connection.post(verb, &json!({"Pod": whole, known: victims, other: null})).await;
            match judged.and_then(|judged| agreed(extender, judged, snapshot)) {
                Ok(agreed) => candidates = agreed,
                Err(error) if extender.ignorable => {
                    tracing::warn!(%error, extender = %extender.url, "victims are not judged");
                }
                Err(error) => return Err(error),
            }
            if candidates.is_empty() {
                break;
            }
        }
        Ok(candidates)
    }

    /// Has an extender bind the pod; `None`: none of them binds it.
    pub async fn bind(&self, pod: &PodInfo, node: &str) -> Option<Result<(), String>> {
        let (extender, connection) = self.concerned(pod).find(|(extender, _)| extender.bind.is_some())?;
        let asked = json!({"PodName": *pod.key.name, "PodNamespace": *pod.key.namespace,
            "PodUID": *pod.key.uid, "Node": node});
        let result = connection.post::<BindingResult>(extender.bind.as_deref()?, &asked).await;
        let bound = result.and_then(|r| if r.error.is_empty() { Ok(()) } else { Err(r.error) });
        match bound {
            Err(error) if extender.ignorable => {
                tracing::warn!(%error, extender = %extender.url, "not bound by the extender");
                None
            }
            bound => Some(bound),
        }
    }

    /// The pod as the API has it.
    async fn whole(&self, key: &PodKey) -> Result<Value, String> {
        let pods: Api<Pod> = Api::namespaced(self.api.clone(), &key.namespace);
        let whole = pods.get(&key.name).await.map_err(|e| e.to_string())?;
        serde_json::to_value(whole).map_err(|e| e.to_string())
    }
}

impl Extender {
    fn concerns(&self, pod: &PodInfo) -> bool {
        let asked = &pod.class.amounts.requests.scalar;
        self.managed.is_empty() || self.managed.iter().any(|name| asked.contains_key(name.as_str()))
    }
}

/// The nodes that an extender lets pass, in its order; what it has against the others is noted.
fn passed(
    extender: &Extender,
    filtered: Filtered,
    asked: &[String],
    answers: &mut Answers,
) -> Result<Vec<String>, String> {
    if !filtered.error.is_empty() {
        return Err(filtered.error);
    }
    let passed: Vec<String> = match (filtered.names.filter(|_| extender.knows_nodes), filtered.nodes) {
        (Some(names), _) => names,
        (None, Some(nodes)) => nodes.items.into_iter().flatten().map(|node| node.metadata.name).collect(),
        (None, None) => Vec::new(),
    };
    let known: HashSet<&str> = asked.iter().map(String::as_str).collect();
    if let Some(name) = passed.iter().find(|name| !known.contains(name.as_str())) {
        return Err(format!(
            "extender {:?} claims a filtered node {name:?} which is not found in the input node list",
            extender.url
        ));
    }
    for (name, text) in filtered.failed.unwrap_or_default() {
        answers.rejected.insert(name, Rejection::resolvable(text));
    }
    // These go before the others.
    for (name, text) in filtered.unresolvable.unwrap_or_default() {
        answers.rejected.insert(name, Rejection::lasting(text));
    }
    let kept: HashSet<&str> = passed.iter().map(String::as_str).collect();
    for name in asked.iter().filter(|name| !kept.contains(name.as_str())) {
        answers.rejected.entry(name.clone()).or_insert_with(|| Rejection::resolvable(""));
    }
    Ok(passed)
}

/// What an extender left of the candidates.
fn agreed(extender: &Extender, judged: Judged, snapshot: &Snapshot) -> Result<Vec<Candidate>, String> {
    let mut candidates = Vec::new();
    for (name, victims) in judged.victims.unwrap_or_default() {
        let node =
            snapshot.node(&name).ok_or_else(|| format!("nodeinfo not found for node name {name:?}"))?;
        let find = |MetaPod { uid }: MetaPod| {
            let found = node.residents().iter().find(|pod| *pod.key.uid == *uid).cloned();
            found.ok_or_else(|| {
                let url = &extender.url;
                format!(
                    "extender: {url} claims to preempt pod (UID: {uid}) on node: {name}, but the pod is not found on \
                     that node"
                )
            })
        };
        let pods = victims.pods.into_iter().flatten().map(find).collect::<Result<Vec<_>, String>>()?;
        if pods.is_empty() {
            if extender.ignorable {
                continue;
            }
            return Err(format!("expected at least one victim pod on node {name:?}"));
        }
        let violations = usize::try_from(victims.violations).unwrap_or(0);
        candidates.push(Candidate { node: node.name.clone(), victims: pods, violations });
    }
    Ok(candidates)
}
