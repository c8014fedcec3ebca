//! Cases and properties of the EndpointSlice controller.

use k8s_openapi::api::core::v1::{
    Container, ContainerPort, Node, Pod, PodCondition, PodIP, PodSpec, PodStatus, ServicePort, ServiceSpec,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use proptest::prelude::*;

use super::*;
use crate::object::Labels;
use crate::testing::{Harness, held, lag};

fn labels(app: &str) -> Option<Labels> {
    Some([("app".to_string(), app.to_string())].into())
}

fn meta(name: &str) -> ObjectMeta {
    ObjectMeta { name: Some(name.into()), namespace: Some("ns".into()), ..Default::default() }
}

fn service() -> Service {
    Service {
        metadata: ObjectMeta { labels: labels("svc"), ..meta("web") },
        spec: Some(ServiceSpec {
            cluster_ip: Some("10.96.0.7".into()),
            ip_families: Some(vec!["IPv4".into()]),
            selector: labels("web"),
            ports: Some(vec![ServicePort {
                name: Some("http".into()),
                port: 80,
                target_port: Some(IntOrString::String("http".into())),
                protocol: Some("TCP".into()),
                ..Default::default()
            }]),
            ..Default::default()
        }),
        status: None,
    }
}

fn node(name: &str) -> Node {
    let mut node = Node::default();
    node.metadata.name = Some(name.into());
    node.metadata.labels = Some([(services::ZONE.to_string(), "z1".to_string())].into());
    node
}

fn status(n: usize, ready: bool) -> PodStatus {
    let ip = format!("10.244.{}.{}", n / 200, n % 200 + 2);
    PodStatus {
        phase: Some("Running".into()),
        pod_ips: Some(vec![PodIP { ip }, PodIP { ip: format!("fd00::{n:x}") }]),
        conditions: Some(vec![PodCondition {
            type_: "Ready".into(),
            status: if ready { "True" } else { "False" }.into(),
            ..Default::default()
        }]),
        ..Default::default()
    }
}

fn pod(n: usize, port: i32, ready: bool) -> Pod {
    Pod {
        metadata: ObjectMeta { labels: labels("web"), ..meta(&format!("p{n}")) },
        spec: Some(PodSpec {
            node_name: Some("n1".into()),
            containers: vec![Container {
                name: "c".into(),
                ports: Some(vec![ContainerPort {
                    name: Some("http".into()),
                    container_port: port,
                    ..Default::default()
                }]),
                ..Default::default()
            }],
            ..Default::default()
        }),
        status: Some(status(n, ready)),
    }
}

fn harness(max: usize) -> Harness<EndpointSlices> {
    let h = Harness::new(|caches, _| EndpointSlices::new(caches, max));
    h.model.lock().put(&node("n1"));
    h
}

fn slices(h: &Harness<EndpointSlices>) -> Vec<EndpointSlice> {
    h.model.lock().list()
}

fn endpoints(slice: &EndpointSlice) -> &[k8s_openapi::api::discovery::v1::Endpoint] {
    slice.endpoints.as_deref().unwrap_or_default()
}

#[tokio::test(start_paused = true)]
async fn an_endpoint_tells_all_about_its_pod() {
    let mut h = harness(100);
    h.model.lock().put(&service());
    let p = h.model.lock().put(&pod(1, 8080, true));
    h.settle(100).await;
    let slices = slices(&h);
    assert_eq!(slices.len(), 1);
    let slice = &slices[0];
    assert_eq!(slice.address_type, "IPv4");
    assert!(slice.metadata.name.as_ref().unwrap().starts_with("web-"));
    let l = slice.metadata.labels.as_ref().unwrap();
    assert_eq!(
        (l[SERVICE_NAME].as_str(), l[MANAGED_BY].as_str(), l["app"].as_str()),
        ("web", MANAGER, "svc")
    );
    let port = &slice.ports.as_ref().unwrap()[0];
    assert_eq!(
        (port.name.as_deref(), port.port, port.protocol.as_deref()),
        (Some("http"), Some(8080), Some("TCP"))
    );
    let e = &endpoints(slice)[0];
    assert_eq!(e.addresses, ["10.244.0.3"]);
    assert_eq!((e.node_name.as_deref(), e.zone.as_deref()), (Some("n1"), Some("z1")));
    assert_eq!(e.target_ref.as_ref().unwrap().uid, p.metadata.uid);
    let c = e.conditions.clone().unwrap();
    assert_eq!((c.ready, c.serving, c.terminating), (Some(true), Some(true), Some(false)));

    h.model.lock().graceful = true;
    h.model.lock().delete_as_user::<Pod>("ns", "p1");
    h.settle(100).await;
    let c = endpoints(&h.model.lock().list::<EndpointSlice>()[0])[0].conditions.clone().unwrap();
    assert_eq!((c.ready, c.serving, c.terminating), (Some(false), Some(true), Some(true)));
    h.model.lock().purge();
    h.settle(100).await;
    let all = self::slices(&h);
    assert_eq!(all.len(), 1, "an empty slice stays as placeholder");
    assert!(endpoints(&all[0]).is_empty());
    assert!(h.plan(&Key::new("ns", "web")).await.is_empty());
}

#[tokio::test(start_paused = true)]
async fn who_is_an_endpoint_and_how() {
    // change of the Service, change of the pod, expected (ready, serving, terminating) or none.
    type Change<T> = fn(&mut T);
    type Case = (&'static str, Change<Service>, Change<Pod>, Option<(bool, bool, bool)>);
    let cases: [Case; 7] = [
        ("ready", |_| {}, |_| {}, Some((true, true, false))),
        ("not ready", |_| {}, |p| p.status = Some(status(1, false)), Some((false, false, false))),
        (
            "published although not ready",
            |s| s.spec.as_mut().unwrap().publish_not_ready_addresses = Some(true),
            |p| p.status = Some(status(1, false)),
            Some((true, false, false)),
        ),
        ("ended", |_| {}, |p| p.status.as_mut().unwrap().phase = Some("Failed".into()), None),
        ("no address", |_| {}, |p| p.status.as_mut().unwrap().pod_ips = None, None),
        ("unknown node", |_| {}, |p| p.spec.as_mut().unwrap().node_name = Some("gone".into()), None),
        ("other labels", |_| {}, |p| p.metadata.labels = labels("db"), None),
    ];
    for (what, change_service, change_pod, want) in cases {
        let mut h = harness(100);
        let (mut s, mut p) = (service(), pod(1, 8080, true));
        change_service(&mut s);
        change_pod(&mut p);
        h.model.lock().put(&s);
        h.model.lock().put(&p);
        h.settle(100).await;
        let all = slices(&h);
        let got = endpoints(&all[0]).first().and_then(|e| e.conditions.clone());
        let got = got.map(|c| (c.ready.unwrap(), c.serving.unwrap(), c.terminating.unwrap()));
        assert_eq!(got, want, "{what}");
    }
}

#[tokio::test(start_paused = true)]
async fn headless_dual_stack_hostnames_and_several_ports() {
    let mut h = harness(100);
    let mut s = service();
    let spec = s.spec.as_mut().unwrap();
    spec.cluster_ip = Some("None".into());
    spec.ip_families = Some(vec!["IPv6".into(), "IPv4".into()]);
    spec.traffic_distribution = Some("PreferClose".into());
    h.model.lock().put(&s);
    let mut p = pod(1, 8080, true);
    p.spec.as_mut().unwrap().hostname = Some("one".into());
    p.spec.as_mut().unwrap().subdomain = Some("web".into());
    h.model.lock().put(&p);
    h.model.lock().put(&pod(2, 9090, true));
    h.settle(100).await;
    let mut all = slices(&h);
    all.sort_by_key(|s| (s.address_type.clone(), s.ports.as_ref().unwrap()[0].port));
    let got: Vec<_> = all
        .iter()
        .map(|s| {
            (
                s.address_type.as_str(),
                s.ports.as_ref().unwrap()[0].port.unwrap(),
                endpoints(s)[0].hostname.as_deref(),
            )
        })
        .collect();
    assert_eq!(
        got,
        [
            ("IPv4", 8080, Some("one")),
            ("IPv4", 9090, None),
            ("IPv6", 8080, Some("one")),
            ("IPv6", 9090, None)
        ]
    );
    assert!(all.iter().all(|s| object::label(&s.metadata, services::HEADLESS) == Some("")));
    let hints = endpoints(&all[0])[0].hints.clone().unwrap();
    assert_eq!(hints.for_zones.unwrap()[0].name, "z1");
    // One family goes: so do its slices.
    h.model
        .lock()
        .edit::<Service>("ns", "web", |s| s.spec.as_mut().unwrap().ip_families = Some(vec!["IPv4".into()]));
    h.settle(100).await;
    assert!(slices(&h).iter().all(|s| s.address_type == "IPv4"));
    // The selector goes: so do all.
    h.model.lock().edit::<Service>("ns", "web", |s| s.spec.as_mut().unwrap().selector = None);
    h.settle(100).await;
    assert!(slices(&h).is_empty());
}

#[tokio::test(start_paused = true)]
async fn one_changed_pod_is_one_write() {
    let mut h = harness(10);
    h.model.lock().put(&service());
    for n in 0..55 {
        h.model.lock().put(&pod(n, 8080, true));
    }
    h.settle(200).await;
    assert_eq!(slices(&h).len(), 6);
    let writes = |h: &Harness<EndpointSlices>| {
        h.model.lock().log.iter().filter(|e| e.kind.1 == "endpointslices").count()
    };
    let before = writes(&h);
    h.model.lock().edit::<Pod>("ns", "p7", |p| p.status = Some(status(7, false)));
    h.settle(100).await;
    assert_eq!(writes(&h) - before, 1);
    // A status that says nothing about endpoints is no work at all.
    h.model.lock().edit::<Pod>("ns", "p8", |p| p.status.as_mut().unwrap().message = Some("x".into()));
    h.deliver();
    assert!(h.queue.is_empty());
    // One goes and one comes: the hole is filled in one write.
    let before = writes(&h);
    h.model.lock().delete_as_user::<Pod>("ns", "p9");
    h.model.lock().put(&pod(100, 8080, true));
    h.settle(100).await;
    assert_eq!(writes(&h) - before, 1);
}

#[tokio::test(start_paused = true)]
async fn foreign_slices_are_left_alone() {
    let mut h = harness(100);
    let mut foreign =
        EndpointSlice { address_type: "IPv4".into(), metadata: meta("mine"), ..Default::default() };
    foreign.metadata.labels = Some([(SERVICE_NAME.to_string(), "web".to_string())].into());
    h.model.lock().put(&foreign);
    h.model.lock().put(&service());
    h.settle(100).await;
    h.model.lock().edit::<Service>("ns", "web", |s| s.spec.as_mut().unwrap().selector = None);
    h.settle(100).await;
    assert_eq!(slices(&h).len(), 1);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    /// Whatever pods come, go and change, and however views lag: in the end each ready or unready pod is
    /// in exactly one slice of its ports, no slice is too full, and a second plan is empty.
    #[test]
    fn slices_hold_each_pod_once(
        ops in proptest::collection::vec((0..30usize, 0..4u8), 1..60), max in 1..6usize, seed in any::<u64>(),
    ) {
        let rt = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
        rt.block_on(async move {
            let mut h = harness(max);
            let mut lagging = lag(seed);
            h.model.lock().put(&service());
            for (i, (n, op)) in ops.iter().enumerate() {
                let name = format!("p{n}");
                let there = h.model.lock().get::<Pod>("ns", &name).is_some();
                {
                let mut model = h.model.lock();
                match (op, there) {
                    (0, true) => model.delete_as_user::<Pod>("ns", &name),
                    (1, true) => model.edit::<Pod>("ns", &name, |p| p.status = Some(status(*n, false))),
                    (_, true) => model.edit::<Pod>("ns", &name, |p| p.status = Some(status(*n, true))),
                    (op, false) => drop(model.put(&pod(*n, 8080 + i32::from(op % 2), true))),
                }
                }
                if i % 5 == 0 {
                    h.settle_lagging(500, &mut lagging).await;
                }
            }
            h.settle(500).await;
            let mut seen = std::collections::BTreeMap::new();
            for slice in slices(&h) {
                prop_assert!(endpoints(&slice).len() <= max);
                for e in endpoints(&slice) {
                    let name = e.target_ref.as_ref().unwrap().name.clone().unwrap();
                    let ready = e.conditions.as_ref().unwrap().ready.unwrap();
                    let port = slice.ports.as_ref().unwrap()[0].port.unwrap();
                    prop_assert!(seen.insert(name, (ready, port)).is_none());
                }
            }
            let want: std::collections::BTreeMap<_, _> = h.model.lock().list::<Pod>().into_iter().map(|p| {
                let port = p.spec.as_ref().unwrap().containers[0].ports.as_ref().unwrap()[0].container_port;
                (p.metadata.name.clone().unwrap(), (pods::is_ready(&held(&p)), port))
            }).collect();
            prop_assert_eq!(seen, want);
            prop_assert!(h.plan(&Key::new("ns", "web")).await.is_empty());
            Ok(())
        })?;
    }
}

#[tokio::test(start_paused = true)]
async fn endpoints_are_shared_out_among_zones() {
    let mut h = harness(100);
    let zoned = |name: &str, zone: &str| -> Node {
        serde_json::from_value(serde_json::json!({
            "metadata": {"name": name, "labels": {services::ZONE: zone}},
            "status": {"allocatable": {"cpu": "2"}, "conditions": [{"type": "Ready", "status": "True"}]}}))
        .expect("a node")
    };
    h.model.lock().put(&zoned("n2", "z2"));
    h.model.lock().edit::<Node>("", "n1", |n| n.status = zoned("", "").status);
    let mut asking = service();
    object::set_annotation(&mut asking.metadata, "service.kubernetes.io/topology-mode", "Auto");
    h.model.lock().put(&asking);
    for n in 0..4 {
        h.model.lock().put(&pod(n, 80, true));
    }
    h.settle(100).await;
    let zones = |h: &Harness<EndpointSlices>| {
        let slices = slices(h);
        let all = slices.iter().flat_map(|s| s.endpoints.iter().flatten());
        let zone = |e: &k8s_openapi::api::discovery::v1::Endpoint| {
            Some(e.hints.as_ref()?.for_zones.as_ref()?.first()?.name.clone())
        };
        let mut zones: Vec<String> = all.filter_map(zone).collect();
        zones.sort();
        zones
    };
    assert_eq!(zones(&h), ["z1", "z1", "z2", "z2"]);
    assert!(h.notes().iter().any(|n| n.starts_with("Normal TopologyAwareHintsEnabled")));
    // A node that does not tell its zone: nobody knows the shares any more.
    h.model.lock().edit::<Node>("", "n2", |n| n.metadata.labels = None);
    h.settle(100).await;
    assert_eq!(zones(&h), Vec::<String>::new());
    assert!(h.notes().iter().any(|n| n.starts_with("Warning TopologyAwareHintsDisabled Insufficient Node")));
}
