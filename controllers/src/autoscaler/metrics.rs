//! Reads metrics: `metrics.k8s.io`, `custom.metrics.k8s.io`, `external.metrics.k8s.io`.

use std::time::Duration;

use hawser_api::quantity::Quantity;
use jiff::Timestamp;
use k8s_openapi::api::autoscaling::v2::{CrossVersionObjectReference, MetricSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use kube::Client;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::replicas::{Sample, Samples};
use super::target::Kinds;

/// The window of a custom metric that tells none.
const WINDOW: Duration = Duration::from_secs(60);

/// What was read for one metric of an autoscaler.
#[derive(Clone, Debug, PartialEq)]
pub enum Reading {
    /// One value per pod.
    Pods(Samples),
    /// Values that are one together.
    Whole(Vec<i64>),
}

#[derive(Deserialize)]
struct List<T> {
    items: Vec<T>,
}

#[derive(Deserialize)]
struct PodMetrics {
    metadata: Meta,
    timestamp: Timestamp,
    window: String,
    #[serde(default)]
    containers: Vec<ContainerMetrics>,
}

#[derive(Deserialize)]
struct Meta {
    name: String,
}

#[derive(Deserialize)]
struct ContainerMetrics {
    name: String,
    #[serde(default)]
    usage: std::collections::BTreeMap<String, String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct MetricValue {
    described_object: Option<Meta>,
    timestamp: Timestamp,
    window_seconds: Option<u64>,
    value: String,
}

fn milli(text: &str) -> Option<i64> {
    Some(Quantity::parse(text).ok()?.milli_value())
}

/// What the containers use together (or one of them does); nothing if one of them has no sample.
fn usage(pod: &PodMetrics, resource: &str, only: Option<&str>) -> Option<i64> {
    if let Some(only) = only {
        let container = pod.containers.iter().find(|c| c.name == only)?;
        return milli(container.usage.get(resource)?);
    }
    if pod.containers.is_empty() {
        return None;
    }
    pod.containers.iter().try_fold(0i64, |sum, c| Some(sum.saturating_add(milli(c.usage.get(resource)?)?)))
}

fn samples_of(pods: &[PodMetrics], resource: &str, only: Option<&str>) -> Samples {
    let sample = |pod: &PodMetrics| {
        let window = hawser_api::time::parse_go_duration(&pod.window).and_then(|ns| u64::try_from(ns).ok());
        let window = window.map_or(WINDOW, Duration::from_nanos);
        let value = usage(pod, resource, only)?;
        Some((pod.metadata.name.clone(), Sample { value, at: pod.timestamp, window }))
    };
    pods.iter().filter_map(sample).collect()
}

fn encoded(pairs: &[(&str, &str)]) -> String {
    let mut query = url::form_urlencoded::Serializer::new(String::new());
    pairs.iter().filter(|(_, value)| !value.is_empty()).for_each(|(name, value)| {
        query.append_pair(name, value);
    });
    query.finish()
}

/// A name as a part of a path.
fn segment(text: &str) -> String {
    url::form_urlencoded::byte_serialize(text.as_bytes()).collect::<String>().replace('+', "%20")
}

/// What a refused request is told as; `what` is `RESOURCE.GROUP`.
fn refusal(error: &kube::Error, what: &str) -> String {
    match error {
        kube::Error::Api(status) if status.code == 404 && status.details.is_none() => {
            format!("the server could not find the requested resource (get {what})")
        }
        kube::Error::Api(status) => status.message.clone(),
        other => other.to_string(),
    }
}

async fn get<T: DeserializeOwned>(
    client: &Client,
    path: &str,
    query: &[(&str, &str)],
    what: &str,
) -> Result<T, String> {
    let query = encoded(query);
    let uri = if query.is_empty() { path.to_owned() } else { format!("{path}?{query}") };
    let request = http::Request::get(uri).body(Vec::new()).map_err(|e| e.to_string())?;
    client.request(request).await.map_err(|e| refusal(&e, what))
}

/// The string form of a metric's selector. None selects everything.
fn metric_selector(selector: Option<&LabelSelector>) -> Result<String, String> {
    let Some(selector) = selector else { return Ok(String::new()) };
    let value: Value = serde_json::to_value(selector).unwrap_or_default();
    let parsed = hawser_api::selector::LabelSelector::from_object(Some(&value)).map_err(|e| e.to_string())?;
    Ok(parsed.to_string())
}

/// Reads one metric of pods in `namespace` that `pods` selects.
///
/// # Errors
/// Why there is none, in Kubernetes' words as far as the reading goes.
pub async fn read(
    (client, kinds): (&Client, &Kinds),
    spec: &MetricSpec,
    namespace: &str,
    pods: &str,
) -> Result<Reading, String> {
    let resource = spec.resource.as_ref().map(|r| (r.name.as_str(), None));
    let of_container =
        spec.container_resource.as_ref().map(|r| (r.name.as_str(), Some(r.container.as_str())));
    if let Some((name, container)) = resource.or(of_container) {
        return resource_metric(client, namespace, pods, name, container).await.map(Reading::Pods);
    }
    if let Some(metric) = &spec.pods {
        let selector = metric_selector(metric.metric.selector.as_ref())?;
        return pods_metric((client, kinds), namespace, pods, (&metric.metric.name, &selector))
            .await
            .map(Reading::Pods);
    }
    if let Some(metric) = &spec.object {
        let selector = metric_selector(metric.metric.selector.as_ref())?;
        let value = object_metric(
            (client, kinds),
            namespace,
            &metric.described_object,
            (&metric.metric.name, &selector),
        );
        return value.await.map(|value| Reading::Whole(vec![value]));
    }
    if let Some(metric) = &spec.external {
        let selector = metric_selector(metric.metric.selector.as_ref())?;
        return external_metric(client, namespace, (&metric.metric.name, &selector))
            .await
            .map(Reading::Whole);
    }
    Err("the metric has no source".to_owned())
}

async fn resource_metric(
    client: &Client,
    namespace: &str,
    pods: &str,
    resource: &str,
    container: Option<&str>,
) -> Result<Samples, String> {
    let path = format!("/apis/metrics.k8s.io/v1beta1/namespaces/{}/pods", segment(namespace));
    let list: Result<List<PodMetrics>, _> =
        get(client, &path, &[("labelSelector", pods)], "pods.metrics.k8s.io").await;
    let list = list.map_err(|e| format!("unable to fetch metrics from resource metrics API: {e}"))?;
    if list.items.is_empty() {
        return Err("no metrics returned from resource metrics API".to_owned());
    }
    Ok(samples_of(&list.items, resource, container))
}

/// `/apis/custom.metrics.k8s.io/VERSION`, if some API server serves it.
async fn custom_root((client, kinds): (&Client, &Kinds)) -> Result<String, String> {
    let group = "custom.metrics.k8s.io";
    match kinds.version(client, group).await? {
        Some(version) => Ok(format!("/apis/{group}/{version}")),
        None => Err(format!("no custom metrics API ({group}) registered")),
    }
}

async fn pods_metric(
    from: (&Client, &Kinds),
    namespace: &str,
    pods: &str,
    (metric, selector): (&str, &str),
) -> Result<Samples, String> {
    let list = async {
        let root = custom_root(from).await?;
        let path = format!("{root}/namespaces/{}/pods/*/{}", segment(namespace), segment(metric));
        let query = [("labelSelector", pods), ("metricLabelSelector", selector)];
        get::<List<MetricValue>>(from.0, &path, &query, "pods.custom.metrics.k8s.io").await
    };
    let list = list.await.map_err(|e| format!("unable to fetch metrics from custom metrics API: {e}"))?;
    if list.items.is_empty() {
        return Err("no metrics returned from custom metrics API".to_owned());
    }
    let sample = |item: MetricValue| {
        let window = item.window_seconds.map_or(WINDOW, Duration::from_secs);
        let value = milli(&item.value)?;
        Some((item.described_object?.name, Sample { value, at: item.timestamp, window }))
    };
    Ok(list.items.into_iter().filter_map(sample).collect())
}

async fn object_metric(
    from: (&Client, &Kinds),
    namespace: &str,
    object: &CrossVersionObjectReference,
    (metric, selector): (&str, &str),
) -> Result<i64, String> {
    let value = async {
        let root = custom_root(from).await?;
        let api_version = object.api_version.as_deref().unwrap_or_default();
        let (group, _) = hawser_api::object::split_api_version(api_version);
        let path = if object.kind == "Namespace" && group.is_empty() {
            // An autoscaler sees no namespace but its own, whatever name it gives.
            format!("{root}/namespaces/{}/metrics/{}", segment(namespace), segment(metric))
        } else {
            let resource = kinds_of(from, group, &object.kind).await?;
            let name = segment(&object.name);
            format!("{root}/namespaces/{}/{resource}/{name}/{}", segment(namespace), segment(metric))
        };
        let query = [("metricLabelSelector", selector)];
        get::<List<MetricValue>>(from.0, &path, &query, "custom.metrics.k8s.io").await
    };
    let list = value.await.map_err(|e| format!("unable to fetch metrics from custom metrics API: {e}"))?;
    let [value] = list.items.as_slice() else {
        let count = list.items.len();
        return Err(format!(
            "unable to fetch metrics from custom metrics API: the custom metrics API server returned {count} results \
             when we asked for exactly one"
        ));
    };
    milli(&value.value).ok_or_else(|| format!("the custom metrics API answered {:?}", value.value))
}

/// `PLURAL.GROUP` of a kind.
async fn kinds_of((client, kinds): (&Client, &Kinds), group: &str, kind: &str) -> Result<String, String> {
    let found = kinds.find(client, group, kind).await?;
    let Some(api) = found.first() else {
        return Err(format!("no matches for kind {kind:?} in group {group:?}"));
    };
    Ok(if group.is_empty() { api.plural.clone() } else { format!("{}.{group}", api.plural) })
}

async fn external_metric(
    client: &Client,
    namespace: &str,
    (metric, selector): (&str, &str),
) -> Result<Vec<i64>, String> {
    let path = format!(
        "/apis/external.metrics.k8s.io/v1beta1/namespaces/{}/{}",
        segment(namespace),
        segment(metric)
    );
    let what = format!("{metric}.external.metrics.k8s.io");
    let list: Result<List<MetricValue>, _> = get(client, &path, &[("labelSelector", selector)], &what).await;
    let list = list.map_err(|e| format!("unable to fetch metrics from external metrics API: {e}"))?;
    if list.items.is_empty() {
        return Err("no metrics returned from external metrics API".to_owned());
    }
    Ok(list.items.iter().filter_map(|item| milli(&item.value)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_pods_usage_is_that_of_all_containers_or_of_one() {
        let list: List<PodMetrics> = serde_json::from_value(json!({"items": [
            {"metadata": {"name": "a"}, "timestamp": "2026-01-01T00:00:00Z", "window": "15.5s", "containers": [
                {"name": "x", "usage": {"cpu": "250m", "memory": "1Mi"}},
                {"name": "y", "usage": {"cpu": "1500000n"}}]},
            {"metadata": {"name": "b"}, "timestamp": "2026-01-01T00:00:00Z", "window": "15s"},
        ]}))
        .unwrap();
        let cpu = samples_of(&list.items, "cpu", None);
        // Thousandths are rounded up.
        assert_eq!(cpu["a"].value, 252);
        assert_eq!(cpu["a"].window, Duration::from_millis(15_500));
        assert!(!cpu.contains_key("b"));
        assert!(samples_of(&list.items, "memory", None).is_empty(), "one container has no sample");
        assert_eq!(samples_of(&list.items, "memory", Some("x"))["a"].value, 1_048_576_000);
        assert!(samples_of(&list.items, "cpu", Some("z")).is_empty());
    }

    #[test]
    fn what_is_not_served_is_told() {
        let status = |code, details| {
            let mut status = kube::core::Status::failure("page", "NotFound").with_code(code);
            status.details = details;
            kube::Error::Api(Box::new(status))
        };
        let text = refusal(&status(404, None), "pods.metrics.k8s.io");
        assert_eq!(text, "the server could not find the requested resource (get pods.metrics.k8s.io)");
        assert_eq!(refusal(&status(403, None), "x"), "page");
    }
}
