//! All controllers together, in real time, on the model server: with a kubelet and a scheduler played by
//! the test.

use std::time::Duration;

use k8s_openapi::api::apps::v1::{Deployment, DeploymentSpec, ReplicaSet};
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{
    ConfigMap, Container, Endpoints, Event, Namespace, NamespaceSpec, Node, NodeCondition, NodeStatus, Pod,
    PodCondition, PodIP, PodSpec, PodStatus, PodTemplateSpec, Service, ServiceAccount, ServicePort,
    ServiceSpec,
};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta};
use serde_json::json;

use super::*;
use crate::object::{self, Key, Labels, Object};
use crate::pods;
use crate::runner::leader::LeaderConfig;
use crate::testing::{Model, Shared, client, held};

fn labels() -> Option<Labels> {
    Some([("app".to_string(), "web".to_string())].into())
}

fn meta(namespace: &str, name: &str) -> ObjectMeta {
    ObjectMeta {
        name: Some(name.into()),
        namespace: Some(namespace.into()).filter(|n: &String| !n.is_empty()),
        labels: labels(),
        ..Default::default()
    }
}

fn template(image: &str) -> PodTemplateSpec {
    PodTemplateSpec {
        metadata: Some(ObjectMeta { labels: labels(), ..Default::default() }),
        spec: Some(PodSpec {
            containers: vec![Container { name: "c".into(), image: Some(image.into()), ..Default::default() }],
            ..Default::default()
        }),
    }
}

/// Places pods, runs them at once, ends those that are deleted. Tells whether there was work.
fn play_nodes(model: &Shared) -> bool {
    let mut model = model.lock();
    let nodes: Vec<String> = model.list::<Node>().iter().map(|n| n.metadata.name.clone().unwrap()).collect();
    let mut moved = false;
    for (n, pod) in model.list::<Pod>().into_iter().enumerate() {
        let name = pod.metadata.name.clone().unwrap();
        if object::is_deleting(&pod) {
            moved = true;
        } else if !pods::is_ready(&held(&pod)) && !nodes.is_empty() && !pods::is_terminal(&held(&pod)) {
            moved = true;
            let now = object::time(Timestamp::now());
            let ip = format!("10.244.0.{}", model.version() % 250 + 1);
            model.edit::<Pod>("demo", &name, |p| {
                p.spec.as_mut().unwrap().node_name = Some(nodes[n % nodes.len()].clone());
                p.status = Some(PodStatus {
                    phase: Some("Running".into()),
                    pod_ips: Some(vec![PodIP { ip }]),
                    conditions: Some(vec![PodCondition {
                        type_: "Ready".into(),
                        status: "True".into(),
                        last_transition_time: Some(now),
                        ..Default::default()
                    }]),
                    ..Default::default()
                });
            });
        }
    }
    model.purge();
    moved
}

/// Plays nodes until `done`, at most 20 seconds.
async fn until(model: &Shared, what: &str, done: impl Fn(&Model) -> bool) {
    let mut progress = model.lock().progress.subscribe();
    let all = async {
        loop {
            play_nodes(model);
            if done(&model.lock()) {
                return;
            }
            // Nothing may happen for a while between retries; the model's next event wakes us.
            let _ = progress.changed().await;
        }
    };
    if tokio::time::timeout(Duration::from_secs(20), all).await.is_err() {
        let model = model.lock();
        for (kind, key, object) in model.everything() {
            eprintln!("{} {key}: {object}", kind.1);
        }
        panic!("timed out: {what}");
    }
}

fn count<K: Object>(model: &Model, namespace: &str) -> usize {
    model.list::<K>().iter().filter(|o| object::namespace(*o) == namespace).count()
}

fn ready_endpoints(model: &Model) -> usize {
    let slices = model.list::<EndpointSlice>();
    let ready = |e: &k8s_openapi::api::discovery::v1::Endpoint| {
        e.conditions.as_ref().and_then(|c| c.ready).unwrap_or(false)
    };
    slices.iter().flat_map(|s| s.endpoints.iter().flatten()).filter(|e| ready(e)).count()
}

fn complete(model: &Model, image: &str) -> bool {
    let Some(d) = model.get::<Deployment>("demo", "web") else { return false };
    let status = d.status.unwrap_or_default();
    let current = model
        .list::<Pod>()
        .iter()
        .all(|p| p.spec.as_ref().unwrap().containers[0].image.as_deref() == Some(image));
    status.updated_replicas == Some(3)
        && status.available_replicas == Some(3)
        && status.replicas == Some(3)
        && status.observed_generation == d.metadata.generation
        && current
}

#[tokio::test]
async fn a_cluster_lives_and_dies() {
    let model = Model::shared(Arc::new(Timestamp::now));
    model.lock().graceful = true;
    let manager = ControllerManager {
        config: Config {
            root_ca_pem: Some("PEM".into()),
            leader_election: Some(LeaderConfig::new("kube-controller-manager", "test".into())),
            ..Config::default()
        },
        client: client(model.clone()),
    };
    let stop = CancellationToken::new();
    let running = tokio::spawn(manager.run(stop.clone()));

    let now = object::time(Timestamp::now());
    for name in ["n1", "n2"] {
        let ready = NodeCondition {
            type_: "Ready".into(),
            status: "True".into(),
            last_heartbeat_time: Some(now.clone()),
            ..Default::default()
        };
        let status = Some(NodeStatus { conditions: Some(vec![ready]), ..Default::default() });
        model.lock().put(&Node { metadata: meta("", name), status, ..Default::default() });
    }
    let spec = Some(NamespaceSpec { finalizers: Some(vec!["kubernetes".into()]) });
    model.lock().put(&Namespace { metadata: meta("", "demo"), spec, status: None });
    model.lock().put(&Service {
        metadata: meta("demo", "web"),
        spec: Some(ServiceSpec {
            selector: labels(),
            cluster_ip: Some("10.96.0.9".into()),
            ip_families: Some(vec!["IPv4".into()]),
            ports: Some(vec![ServicePort { port: 80, ..Default::default() }]),
            ..Default::default()
        }),
        status: None,
    });
    model.lock().put(&Deployment {
        metadata: meta("demo", "web"),
        spec: Some(DeploymentSpec {
            replicas: Some(3),
            selector: LabelSelector { match_labels: labels(), match_expressions: None },
            template: template("v1"),
            progress_deadline_seconds: Some(600),
            ..Default::default()
        }),
        status: None,
    });

    until(&model, "first rollout", |m| complete(m, "v1") && ready_endpoints(m) == 3).await;
    until(&model, "defaults", |m| {
        m.get::<ServiceAccount>("demo", "default").is_some()
            && m.get::<ConfigMap>("demo", "kube-root-ca.crt").is_some()
            && m.get::<Endpoints>("demo", "web").is_some()
            && m.get::<Node>("", "n2").unwrap().spec.and_then(|s| s.pod_cidr).is_some()
    })
    .await;
    let holder = model.lock().get::<Lease>("kube-system", "kube-controller-manager").unwrap();
    assert_eq!(holder.spec.unwrap().holder_identity.as_deref(), Some("test"));

    model.lock().edit::<Deployment>("demo", "web", |d| d.spec.as_mut().unwrap().template = template("v2"));
    until(&model, "second rollout", |m| complete(m, "v2") && ready_endpoints(m) == 3).await;
    assert_eq!(count::<ReplicaSet>(&model.lock(), "demo"), 2);

    // At rest nobody writes, but for the leader's lease.
    tokio::time::sleep(Duration::from_millis(300)).await;
    let before = model.lock().version();
    tokio::time::sleep(Duration::from_millis(700)).await;
    let late: Vec<_> = model.lock().log[before as usize..]
        .iter()
        .filter(|e| e.kind.1 != "leases")
        .map(|e| format!("{} {} {}", e.what, e.kind.1, e.object))
        .collect();
    assert!(late.is_empty(), "{late:#?}");

    // A pod that is deleted is replaced.
    let victim = model.lock().list::<Pod>()[0].metadata.clone();
    model.lock().delete_as_user::<Pod>("demo", victim.name.as_deref().unwrap());
    until(&model, "replacement", |m| {
        m.list::<Pod>().iter().all(|p| p.metadata.uid != victim.uid)
            && complete(m, "v2")
            && ready_endpoints(m) == 3
    })
    .await;

    // Foreground: nothing of the Deployment is left before it goes itself.
    let kind = ("apps".to_owned(), "deployments".to_owned());
    let options = json!({"propagationPolicy": "Foreground"});
    model.lock().delete(&kind, &Key::new("demo", "web"), &options).unwrap();
    until(&model, "foreground deletion", |m| m.get::<Deployment>("demo", "web").is_none()).await;
    assert_eq!(count::<ReplicaSet>(&model.lock(), "demo"), 0);
    assert_eq!(count::<Pod>(&model.lock(), "demo"), 0);
    until(&model, "endpoints gone", |m| ready_endpoints(m) == 0).await;

    // The Service's slices go with it, by their owner reference alone.
    model.lock().delete_as_user::<Service>("demo", "web");
    until(&model, "slices collected", |m| count::<EndpointSlice>(m, "demo") == 0).await;

    let events = model.lock().list::<Event>();
    let has = |reason: &str| events.iter().any(|e| e.reason.as_deref() == Some(reason));
    assert!(has("ScalingReplicaSet") && has("SuccessfulCreate") && has("SuccessfulDelete"));

    model.lock().delete_as_user::<Namespace>("", "demo");
    until(&model, "namespace gone", |m| m.get::<Namespace>("", "demo").is_none()).await;
    let left: Vec<String> = model
        .lock()
        .everything()
        .filter(|(_, key, _)| key.namespace == "demo")
        .map(|(kind, key, _)| format!("{} {key}", kind.1))
        .collect();
    assert!(left.is_empty(), "{left:?}");

    stop.cancel();
    assert!(running.await.unwrap().is_ok());
    let lease = model.lock().get::<Lease>("kube-system", "kube-controller-manager").unwrap();
    assert_eq!(lease.spec.unwrap().holder_identity.unwrap_or_default(), "", "released");
}

#[tokio::test]
async fn only_what_is_asked_for_runs() {
    let model = Model::shared(Arc::new(Timestamp::now));
    let config = Config { controllers: vec!["serviceaccount".into()], ..Config::default() };
    let manager = ControllerManager { config, client: client(model.clone()) };
    let stop = CancellationToken::new();
    let running = tokio::spawn(manager.run(stop.clone()));
    model.lock().put(&Namespace { metadata: meta("", "demo"), ..Default::default() });
    until(&model, "account", |m| m.get::<ServiceAccount>("demo", "default").is_some()).await;
    stop.cancel();
    assert!(running.await.unwrap().is_ok());
}

#[tokio::test]
async fn a_bad_configuration_is_refused() {
    let model = Model::shared(Arc::new(Timestamp::now));
    let ca = crate::SigningCa { certificate_pem: "x".into(), key_pem: "y".into() };
    for config in [
        Config { node_cidr_mask_size_v4: 1, ..Config::default() },
        Config { signing_ca: Some(ca), ..Config::default() },
    ] {
        let manager = ControllerManager { config, client: client(model.clone()) };
        assert!(matches!(manager.run(CancellationToken::new()).await, Err(Error::Config(_))));
    }
}
