use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{
    LoadBalancerIngress, LoadBalancerStatus, Node, NodeCondition, NodeStatus, ServiceSpec, ServiceStatus,
};
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointSlice};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta};
use proptest::prelude::*;

use super::pool::{BlockSpec, PoolSpec};
use super::status::PoolStatuses;
use super::*;
use crate::testing::{Harness, lag};

fn meta(namespace: &str, name: &str) -> ObjectMeta {
    let namespace = Some(namespace.to_owned()).filter(|n| !n.is_empty());
    ObjectMeta { name: Some(name.into()), namespace, ..Default::default() }
}

fn pool(name: &str, start: &str, stop: &str) -> LoadBalancerIPPool {
    let block = BlockSpec { cidr: None, start: Some(start.into()), stop: Some(stop.into()) };
    LoadBalancerIPPool {
        api_version: "hawser.io/v1alpha1".into(),
        kind: "LoadBalancerIPPool".into(),
        metadata: meta("", name),
        spec: PoolSpec { blocks: vec![block], ..Default::default() },
        status: None,
    }
}

fn service(name: &str, families: &[&str]) -> Service {
    Service {
        metadata: meta("ns", name),
        spec: Some(ServiceSpec {
            type_: Some("LoadBalancer".into()),
            ip_families: Some(families.iter().map(|f| (*f).to_owned()).collect()),
            ..Default::default()
        }),
        status: None,
    }
}

fn node(name: &str, ready: bool) -> Node {
    let condition = NodeCondition {
        type_: "Ready".into(),
        status: if ready { "True" } else { "False" }.into(),
        ..Default::default()
    };
    let status = NodeStatus { conditions: Some(vec![condition]), ..Default::default() };
    Node { metadata: meta("", name), spec: None, status: Some(status) }
}

fn harness() -> Harness<LoadBalancers> {
    Harness::new(|caches, _| LoadBalancers::new(caches))
}

fn get(h: &Harness<LoadBalancers>, name: &str) -> Option<Service> {
    h.model.lock().get("ns", name)
}

fn ips(h: &Harness<LoadBalancers>, name: &str) -> Vec<String> {
    get(h, name).map(|s| addresses(&s)).unwrap_or_default().iter().map(ToString::to_string).collect()
}

fn by(h: &Harness<LoadBalancers>, name: &str) -> Option<String> {
    object::annotation(&get(h, name)?.metadata, ANNOUNCED_BY).map(str::to_owned)
}

#[tokio::test(start_paused = true)]
async fn addresses_come_and_go() {
    let mut h = harness();
    h.model.lock().put(&node("n1", true));
    h.model.lock().put(&service("a", &["IPv4", "IPv6"]));
    h.settle(100).await;
    // Without pools Services are left alone.
    assert_eq!(get(&h, "a").and_then(|s| s.metadata.finalizers), None);
    assert_eq!(h.notes(), Vec::<String>::new());
    h.model.lock().put(&pool("v4", "192.0.2.10", "192.0.2.11"));
    h.model.lock().put(&pool("v6", "2001:db8::1", "2001:db8::ffff"));
    h.settle(100).await;
    assert_eq!(ips(&h, "a"), ["192.0.2.10", "2001:db8::1"]);
    assert_eq!(by(&h, "a").as_deref(), Some("n1"));
    assert!(h.notes().contains(&"Normal IPAllocated Assigned 192.0.2.10 and 2001:db8::1".to_owned()));
    let mode = get(&h, "a").and_then(|s| s.status?.load_balancer?.ingress?.first()?.ip_mode.clone());
    assert_eq!(mode.as_deref(), Some("VIP"));

    h.model.lock().put(&service("b", &["IPv4"]));
    h.model.lock().put(&service("c", &["IPv4"]));
    h.settle(200).await;
    let (b, c) = (ips(&h, "b"), ips(&h, "c"));
    assert_eq!([b.clone(), c.clone()].concat(), ["192.0.2.11"]);
    assert!(h.notes().iter().any(|n| n.contains("PoolExhausted")));
    // The one that waits gets what another gives up.
    h.model.lock().delete_as_user::<Service>("ns", "a");
    h.settle(300).await;
    assert!(get(&h, "a").is_none());
    assert_eq!([ips(&h, "b"), ips(&h, "c")].concat().len(), 2);
    // Another type: the server wipes the status, the finalizer goes.
    h.model.lock().edit::<Service>("ns", "b", |s| {
        s.spec.get_or_insert_default().type_ = Some("ClusterIP".into());
        s.status = None;
    });
    h.settle(100).await;
    let b = get(&h, "b").expect("a Service");
    assert_eq!((by(&h, "b"), object::has_finalizer(&b.metadata, FINALIZER)), (None, false));
}

#[tokio::test(start_paused = true)]
async fn what_is_asked_for() {
    let mut h = harness();
    let mut red = pool("red", "192.0.2.10", "192.0.2.19");
    let labels = [("team".to_owned(), "red".to_owned())];
    red.spec.service_selector =
        Some(LabelSelector { match_labels: Some(labels.clone().into()), ..Default::default() });
    h.model.lock().put(&red);
    h.model.lock().put(&pool("rest", "198.51.100.1", "198.51.100.9"));
    let mut one = service("one", &["IPv4"]);
    one.spec.get_or_insert_default().load_balancer_ip = Some("192.0.2.15".into());
    h.model.lock().put(&one);
    let mut two = one.clone();
    two.metadata.name = Some("two".into());
    two.metadata.labels = Some(labels.into());
    h.model.lock().put(&two);
    let mut three = service("three", &["IPv4"]);
    object::set_annotation(&mut three.metadata, ASKED, "2001:db8::1, 198.51.100.7");
    h.model.lock().put(&three);
    let mut other = service("other", &["IPv4"]);
    other.spec.get_or_insert_default().load_balancer_class = Some("example.com/x".into());
    h.model.lock().put(&other);
    h.settle(200).await;
    assert_eq!(ips(&h, "one"), Vec::<String>::new());
    assert_eq!(ips(&h, "two"), ["192.0.2.15"]);
    assert_eq!(ips(&h, "three"), ["198.51.100.7"]);
    assert_eq!(get(&h, "other").and_then(|s| s.metadata.finalizers), None);
    assert!(h.notes().iter().any(|n| n.contains("192.0.2.15 is in no pool")));
    h.model.lock().edit::<Service>("ns", "two", |s| {
        s.spec.get_or_insert_default().load_balancer_ip = Some("192.0.2.16".into());
    });
    h.settle(100).await;
    assert_eq!(ips(&h, "two"), ["192.0.2.16"]);
    // A disabled pool keeps what it gave; a pool that is gone takes it back.
    h.model.lock().edit::<LoadBalancerIPPool>("", "rest", |p| p.spec.disabled = true);
    h.settle(100).await;
    assert_eq!(ips(&h, "three"), ["198.51.100.7"]);
    h.model.lock().delete_as_user::<LoadBalancerIPPool>("", "rest");
    h.settle(100).await;
    assert_eq!(ips(&h, "three"), Vec::<String>::new());
}

#[tokio::test(start_paused = true)]
async fn the_node_moves_only_when_it_must() {
    let mut h = harness();
    h.model.lock().put(&pool("p", "192.0.2.1", "192.0.2.9"));
    for n in ["n1", "n2", "n3"] {
        h.model.lock().put(&node(n, n != "n3"));
    }
    h.model.lock().put(&service("a", &["IPv4"]));
    h.settle(100).await;
    let first = by(&h, "a").expect("a node");
    let second = if first == "n1" { "n2" } else { "n1" };
    h.model.lock().edit::<Node>("", "n3", |n| n.status = node("n3", true).status);
    h.settle(100).await;
    assert_eq!(by(&h, "a"), Some(first.clone()), "a new node takes nothing");
    h.model.lock().edit::<Node>("", "n3", |n| {
        let label = ("node.kubernetes.io/exclude-from-external-load-balancers".to_owned(), String::new());
        n.metadata.labels = Some([label].into());
    });
    h.model.lock().edit::<Node>("", &first, |n| n.status = node("", false).status);
    h.settle(100).await;
    assert_eq!(by(&h, "a").as_deref(), Some(second));
    // Only nodes with an endpoint answer for a Service whose traffic stays where it arrives.
    let endpoint =
        Endpoint { addresses: vec!["10.0.0.1".into()], node_name: Some(first.clone()), ..Default::default() };
    let labels = [("kubernetes.io/service-name".to_owned(), "a".to_owned())];
    let mut slice =
        EndpointSlice { metadata: meta("ns", "a-1"), endpoints: Some(vec![endpoint]), ..Default::default() };
    slice.metadata.labels = Some(labels.into());
    h.model.lock().put(&slice);
    h.model.lock().edit::<Service>("ns", "a", |s| {
        s.spec.get_or_insert_default().external_traffic_policy = Some("Local".into());
    });
    h.settle(100).await;
    assert_eq!(by(&h, "a"), None, "its node is not ready");
    h.model.lock().edit::<Node>("", &first, |n| n.status = node("", true).status);
    h.settle(100).await;
    assert_eq!(by(&h, "a"), Some(first));
}

#[tokio::test(start_paused = true)]
async fn pools_tell_how_full_they_are() {
    let mut h = Harness::new(|caches, _| PoolStatuses::new(caches));
    h.model.lock().put(&pool("p", "192.0.2.1", "192.0.2.9"));
    let mut taken = service("a", &["IPv4"]);
    let ingress = LoadBalancerIngress { ip: Some("192.0.2.4".into()), ..Default::default() };
    taken.status = Some(ServiceStatus {
        load_balancer: Some(LoadBalancerStatus { ingress: Some(vec![ingress]) }),
        ..Default::default()
    });
    h.model.lock().put(&taken);
    h.settle(100).await;
    tokio::time::advance(std::time::Duration::from_secs(1)).await;
    h.settle(100).await;
    let status = |h: &Harness<PoolStatuses>| {
        let pool: LoadBalancerIPPool = h.model.lock().get("", "p").expect("a pool");
        pool.status.map(|s| (s.total, s.used, s.available)).expect("a status")
    };
    assert_eq!(status(&h), ("9".into(), "1".into(), "8".into()));
    h.model.lock().delete_as_user::<Service>("ns", "a");
    h.settle(100).await;
    tokio::time::advance(std::time::Duration::from_secs(1)).await;
    h.settle(100).await;
    assert_eq!(status(&h), ("9".into(), "0".into(), "9".into()));
}

/// A step of a history.
#[derive(Clone, Debug)]
enum Op {
    Add(usize, bool),
    Remove(usize),
    Ask(usize, u8),
    Retype(usize),
    Disable(bool),
    /// The process ends and another one starts with what the store has.
    Crash,
    /// The next status writes fail, or land although the writer is told that they failed.
    Refuse(u8),
}

fn ops() -> impl Strategy<Value = Vec<Op>> {
    let op = prop_oneof![
        6 => (0..7usize, any::<bool>()).prop_map(|(n, dual)| Op::Add(n, dual)),
        3 => (0..7usize).prop_map(Op::Remove),
        2 => (0..7usize, 0..6u8).prop_map(|(n, a)| Op::Ask(n, a)),
        2 => (0..7usize).prop_map(Op::Retype),
        1 => any::<bool>().prop_map(Op::Disable),
        2 => Just(Op::Crash),
        1 => (1..4u8).prop_map(Op::Refuse),
    ];
    proptest::collection::vec(op, 1..40)
}

fn nobody_shares(h: &Harness<LoadBalancers>) -> Result<(), TestCaseError> {
    let mut seen: BTreeMap<IpAddr, String> = BTreeMap::new();
    for service in h.model.lock().list::<Service>() {
        for address in addresses(&service) {
            let name = object::name(&service).to_owned();
            let other = seen.insert(address, name.clone());
            prop_assert!(other.is_none(), "{address} is that of {name} and of {other:?}");
        }
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    /// No address is ever that of two Services, whatever lags, fails or crashes; in the end whoever can have one does.
    #[test]
    fn no_address_is_given_twice(history in ops(), seed: u64) {
        let rt = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().expect("a runtime");
        rt.block_on(async move {
            let mut h = harness();
            let mut slow = lag(seed);
            h.model.lock().put(&node("n1", true));
            h.model.lock().put(&pool("v4", "192.0.2.1", "192.0.2.4"));
            h.model.lock().put(&pool("v6", "2001:db8::1", "2001:db8::3"));
            for op in history {
                match op {
                    Op::Add(n, dual) => {
                        let name = format!("s{n}");
                        if get(&h, &name).is_none() {
                            let families: &[&str] = if dual { &["IPv4", "IPv6"] } else { &["IPv4"] };
                            h.model.lock().put(&service(&name, families));
                        }
                    }
                    Op::Remove(n) => {
                        let name = format!("s{n}");
                        if get(&h, &name).is_some_and(|s| !object::is_deleting(&s)) {
                            h.model.lock().delete_as_user::<Service>("ns", &name);
                        }
                    }
                    Op::Ask(n, last) => {
                        let name = format!("s{n}");
                        if get(&h, &name).is_some() {
                            h.model.lock().edit::<Service>("ns", &name, |s| {
                                s.spec.get_or_insert_default().load_balancer_ip = (last > 0).then(|| format!("192.0.2.{last}"));
                            });
                        }
                    }
                    Op::Retype(n) => {
                        let name = format!("s{n}");
                        if let Some(now) = get(&h, &name) {
                            h.model.lock().edit::<Service>("ns", &name, |s| {
                                let to = if is_balancer(&now) { "ClusterIP" } else { "LoadBalancer" };
                                s.spec.get_or_insert_default().type_ = Some(to.into());
                                s.status = None;
                            });
                        }
                    }
                    Op::Disable(to) => h.model.lock().edit::<LoadBalancerIPPool>("", "v4", |p| p.spec.disabled = to),
                    Op::Crash => h.restart(|caches, _| LoadBalancers::new(caches)),
                    Op::Refuse(times) => h.model.lock().faults.push(crate::testing::Fault {
                        verb: "patch", plural: "services", times: usize::from(times), code: 500, reason: "InternalError",
                    }),
                }
                h.work_some(3, &mut slow).await;
                nobody_shares(&h)?;
            }
            h.model.lock().faults.clear();
            h.model.lock().edit::<LoadBalancerIPPool>("", "v4", |p| p.spec.disabled = false);
            h.settle(3000).await;
            nobody_shares(&h)?;
            let all = h.model.lock().list::<Service>();
            let free = 4 - all.iter().flat_map(addresses).filter(IpAddr::is_ipv4).count();
            for s in all.iter().filter(|s| wanted(s)) {
                let has = addresses(s).iter().any(IpAddr::is_ipv4);
                let asks = asked(s);
                prop_assert!(has || free == 0 || !asks.is_empty(), "{} has none and {free} are free", object::name(s));
            }
            for s in all.iter().filter(|s| !is_balancer(s)) {
                prop_assert!(!object::has_finalizer(&s.metadata, FINALIZER));
            }
            Ok(())
        })?;
    }
}
