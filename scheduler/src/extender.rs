//! Extenders: programs that are asked over HTTP which nodes fit, which are better, or to bind
//! (`extenders` of KubeSchedulerConfiguration). They are asked with names of nodes only (`nodeCacheCapable`).

use std::collections::HashMap;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full, Limited};
use hyper_util::client::legacy::Client as HttpClient;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use k8s_openapi::api::core::v1::Pod;
use kube::{Api, Client};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use crate::framework::Rejection;
use crate::pod::PodInfo;

/// The longest answer that is read, in bytes.
const MAX_ANSWER: usize = 16 * 1024 * 1024;
/// The scale of an extender's scores goes to 10, that of plugins to 100.
const SCALE: i64 = 10;

/// One extender.
#[derive(Clone, Debug, PartialEq)]
pub struct Extender {
    /// Without a slash at its end.
    pub url: String,
    pub filter: Option<String>,
    /// With the weight of its scores.
    pub prioritize: Option<(String, i64)>,
    pub bind: Option<String>,
    pub timeout: Duration,
    /// Pods are scheduled without it when it does not answer.
    pub ignorable: bool,
    /// Only pods that ask for one of these are its concern; none: all are.
    pub managed: Vec<String>,
}

/// All extenders of a configuration.
pub struct Extenders {
    list: Vec<Extender>,
    http: HttpClient<HttpConnector, Full<Bytes>>,
    api: Client,
}

/// What an extender said about nodes.
#[derive(Default)]
pub struct Answers {
    /// Against nodes, by name.
    pub rejected: HashMap<String, Rejection>,
    /// Scores to be added, by name.
    pub scores: HashMap<String, i64>,
}

#[derive(Deserialize)]
struct Filtered {
    #[serde(alias = "NodeNames", alias = "nodenames", rename = "nodeNames")]
    names: Option<Vec<String>>,
    #[serde(alias = "FailedNodes", alias = "failednodes", rename = "failedNodes", default)]
    failed: Option<HashMap<String, String>>,
    #[serde(alias = "FailedAndUnresolvableNodes", rename = "failedAndUnresolvableNodes", default)]
    unresolvable: Option<HashMap<String, String>>,
    #[serde(alias = "Error", default)]
    error: String,
}

#[derive(Deserialize)]
struct HostPriority {
    #[serde(alias = "Host")]
    host: String,
    #[serde(alias = "Score")]
    score: i64,
}

#[derive(Deserialize)]
struct BindingResult {
    #[serde(alias = "Error", default)]
    error: String,
}

impl Extenders {
    /// Extenders, and where to read pods from, which they are told whole.
    pub fn new(list: Vec<Extender>, api: Client) -> Self {
        let http = HttpClient::builder(TokioExecutor::new()).build_http();
        Extenders { list, http, api }
    }

    /// Whether any extender has a say on where this pod goes.
    pub fn concern(&self, pod: &PodInfo) -> bool {
        self.list.iter().any(|e| e.concerns(pod) && (e.filter.is_some() || e.prioritize.is_some()))
    }

    /// Asks which of these nodes fit, and how well.
    ///
    /// # Errors
    /// If one that cannot be ignored does not answer.
    pub async fn ask(&self, pod: &PodInfo, nodes: Vec<String>) -> Result<Answers, String> {
        let pods: Api<Pod> = Api::namespaced(self.api.clone(), &pod.key.namespace);
        let whole = pods.get(&pod.key.name).await.map_err(|e| e.to_string())?;
        let whole = serde_json::to_value(whole).map_err(|e| e.to_string())?;
        let mut answers = Answers::default();
        let mut left = nodes;
        for extender in self.list.iter().filter(|e| e.concerns(pod)) {
            let Some(verb) = &extender.filter else { continue };
            if left.is_empty() {
                return Ok(answers);
            }
            let asked = json!({"Pod": whole, "Nodes": null, "NodeNames": left});
            let filtered: Result<Filtered, String> = self.post(extender, verb, &asked).await;
            let filtered = match filtered {
                Ok(f) if f.error.is_empty() => f,
                Ok(_) | Err(_) if extender.ignorable => continue,
                Ok(f) => return Err(f.error),
                Err(error) => return Err(error),
            };
            for (name, text) in filtered.failed.unwrap_or_default() {
                answers.rejected.insert(name, Rejection::resolvable(text));
            }
            for (name, text) in filtered.unresolvable.unwrap_or_default() {
                answers.rejected.insert(name, Rejection::lasting(text));
            }
            let kept = filtered.names.unwrap_or_default();
            for name in left.iter().filter(|name| !kept.contains(name)) {
                let silent = || Rejection::resolvable("");
                answers.rejected.entry(name.clone()).or_insert_with(silent).plugin = "Extender";
            }
            left = kept;
        }
        for extender in self.list.iter().filter(|e| e.concerns(pod)) {
            let Some((verb, weight)) = &extender.prioritize else { continue };
            let asked = json!({"Pod": whole, "Nodes": null, "NodeNames": left});
            // Scores are a wish: without an answer the pod goes anyway.
            match self.post::<Vec<HostPriority>>(extender, verb, &asked).await {
                Ok(list) => {
                    for HostPriority { host, score } in list {
                        *answers.scores.entry(host).or_default() += score * weight * SCALE;
                    }
                }
                Err(error) => tracing::warn!(%error, extender = %extender.url, "no scores"),
            }
        }
        Ok(answers)
    }

    /// Has an extender bind the pod; `None`: none of them binds it.
    pub async fn bind(&self, pod: &PodInfo, node: &str) -> Option<Result<(), String>> {
        for extender in self.list.iter().filter(|e| e.concerns(pod)) {
            let Some(verb) = &extender.bind else { continue };
            let asked = json!({"PodName": *pod.key.name, "PodNamespace": *pod.key.namespace,
                "PodUID": *pod.key.uid, "Node": node});
            match self.post::<BindingResult>(extender, verb, &asked).await {
                Ok(result) if result.error.is_empty() => return Some(Ok(())),
                Ok(_) | Err(_) if extender.ignorable => {}
                Ok(result) => return Some(Err(result.error)),
                Err(error) => return Some(Err(error)),
            }
        }
        None
    }

    async fn post<T: DeserializeOwned>(
        &self,
        extender: &Extender,
        verb: &str,
        body: &Value,
    ) -> Result<T, String> {
        let url = format!("{}/{verb}", extender.url);
        let body = serde_json::to_vec(body).map_err(|e| e.to_string())?;
        let request = http::Request::post(&url)
            .header("Content-Type", "application/json")
            .body(Full::new(Bytes::from(body)))
            .map_err(|e| e.to_string())?;
        let call = async {
            let answer = self.http.request(request).await.map_err(|e| e.to_string())?;
            if answer.status() != http::StatusCode::OK {
                return Err(format!(
                    "failed {verb} with extender at URL {url}, code {}",
                    answer.status().as_u16()
                ));
            }
            let body =
                Limited::new(answer.into_body(), MAX_ANSWER).collect().await.map_err(|e| e.to_string())?;
            serde_json::from_slice(&body.to_bytes()).map_err(|e| e.to_string())
        };
        let timed = tokio::time::timeout(extender.timeout, call).await;
        timed.unwrap_or_else(|_| Err(format!("extender at URL {url} did not answer in time")))
    }
}

impl Extender {
    fn concerns(&self, pod: &PodInfo) -> bool {
        let asked = &pod.class.amounts.requests.scalar;
        self.managed.is_empty() || self.managed.iter().any(|name| asked.contains_key(name.as_str()))
    }
}
