use super::repair::plan;
use super::*;
use async_trait::async_trait;
use jiff::{SignedDuration, Timestamp};
use parking_lot::Mutex;
use serde_json::json;
use std::collections::BTreeMap;

/// A ledger in memory.
#[derive(Default)]
struct Fake(Mutex<BTreeMap<Claim, Owner>>);

const RANGE: &str = "10.96.0.0/24";

#[async_trait]
impl Ledger for Fake {
    async fn is_taken(&self, claim: Claim) -> Result<bool, Status> {
        Ok(self.0.lock().contains_key(&claim))
    }

    async fn take(&self, claim: Claim, owner: &Owner) -> Result<bool, Status> {
        let mut held = self.0.lock();
        if held.contains_key(&claim) {
            return Ok(false);
        }
        held.insert(claim, owner.clone());
        Ok(true)
    }

    async fn release(&self, claim: Claim, owner: &Owner) -> Result<(), Status> {
        let mut held = self.0.lock();
        if held.get(&claim) == Some(owner) {
            held.remove(&claim);
        }
        Ok(())
    }

    async fn ranges(&self) -> Result<(Vec<Addresses>, Vec<Addresses>), Status> {
        Ok((Vec::new(), Vec::new()))
    }

    async fn all(&self) -> Result<Vec<Held>, Status> {
        let held = self.0.lock();
        Ok(held.iter().map(|(c, o)| Held { claim: *c, owner: Some(o.clone()), since: None }).collect())
    }
}

fn allocators_of(ranges: &[&str]) -> (Allocators, Arc<Fake>) {
    let fake = Arc::new(Fake::default());
    let ranges: Vec<IpNet> = ranges.iter().map(|r| r.parse().expect("a range")).collect();
    (Allocators::new(&ranges, Ports::default(), fake.clone()).expect("ranges"), fake)
}

fn allocators() -> (Allocators, Arc<Fake>) {
    allocators_of(&[RANGE])
}

fn services() -> &'static Kind {
    hawser_api::kinds::find("", "v1", "services").expect("row")
}

fn owner(name: &str) -> Owner {
    Owner { namespace: "n".into(), name: name.into() }
}

fn address(text: &str) -> Claim {
    Claim::Address(text.parse().expect("an address"))
}

#[tokio::test]
async fn addresses_and_ports() {
    let (a, fake) = allocators();
    let mut one = json!({"metadata": {"namespace": "n", "name": "s"}, "spec": {"type": "NodePort", "selector": {"a": "b"}, "ports": [
        {"port": 53, "protocol": "UDP"}, {"port": 53, "protocol": "TCP"}, {"port": 80, "protocol": "TCP"}]}});
    a.create(services(), &mut one, false).await.expect("allocation").commit().await;
    let ports: Vec<i64> = one.items_at("spec.ports").iter().filter_map(|p| p.int_at("nodePort")).collect();
    assert_eq!(ports[0], ports[1]);
    assert_ne!(ports[0], ports[2]);
    assert_eq!(one["spec"]["clusterIPs"][0], one["spec"]["clusterIP"]);
    assert_eq!(fake.0.lock().len(), 3);
    let mut two = one.clone();
    two["metadata"]["name"] = "other".into();
    let error = a.create(services(), &mut two, false).await.err().expect("taken");
    assert_eq!(error.code, 422);
    // What belongs to another stays.
    a.deleted(services(), &two).await;
    assert_eq!(fake.0.lock().len(), 3);
    a.deleted(services(), &one).await;
    a.create(services(), &mut two, false).await.expect("free again").commit().await;
}

#[tokio::test]
async fn what_is_not_written_is_given_back() {
    let (a, fake) = allocators();
    let mut one = json!({"metadata": {"namespace": "n", "name": "s"}, "spec": {"type": "ClusterIP", "clusterIP": "10.96.0.10", "clusterIPs": ["10.96.0.10"]}});
    drop(a.create(services(), &mut one, true).await.expect("dry run"));
    assert!(fake.0.lock().is_empty());
    a.create(services(), &mut one, false).await.expect("allocation").refused().await;
    assert!(fake.0.lock().is_empty());
    // Nobody knows whether it was written: it stays for the repair to judge.
    let mut tried = a.create(services(), &mut one, false).await.expect("allocation");
    tried.trying();
    drop(tried);
    assert!(a.create(services(), &mut one.clone(), false).await.is_err());
    let mut external = json!({"metadata": {"namespace": "n", "name": "s"}, "spec": {"type": "ExternalName"}});
    a.update(services(), "", &mut external, &one, false).await.expect("update").commit().await;
    assert!(fake.0.lock().is_empty());
    let mut renamed = a.create(services(), &mut one, false).await.expect("allocation");
    one["metadata"]["name"] = "t".into();
    renamed.rename(&one).await.expect("renamed");
    renamed.commit().await;
    assert_eq!(fake.0.lock().get(&address("10.96.0.10")), Some(&owner("t")));
}

#[tokio::test]
async fn out_of_range() {
    let (a, fake) = allocators();
    for spec in [
        json!({"clusterIP": "192.168.1.1", "clusterIPs": ["192.168.1.1"]}),
        json!({"clusterIP": "10.96.0.0", "clusterIPs": ["10.96.0.0"]}),
        json!({"clusterIP": "10.96.0.255", "clusterIPs": ["10.96.0.255"]}),
        json!({"type": "NodePort", "ports": [{"port": 1, "nodePort": 80}]}),
        json!({"ipFamilyPolicy": "RequireDualStack"}),
    ] {
        assert!(a.create(services(), &mut json!({"spec": spec}), false).await.is_err(), "{spec}");
    }
    assert!(fake.0.lock().is_empty());
}

#[tokio::test]
async fn a_range_is_given_out_to_its_end() {
    let (a, fake) = allocators();
    for n in 0..254 {
        let mut service = json!({"metadata": {"namespace": "n", "name": format!("s{n}")}, "spec": {}});
        a.create(services(), &mut service, false).await.expect("an address").commit().await;
    }
    assert_eq!(fake.0.lock().len(), 254);
    let mut one_more = json!({"metadata": {"namespace": "n", "name": "more"}, "spec": {}});
    assert_eq!(a.create(services(), &mut one_more, false).await.err().map(|e| e.code), Some(500));
}

#[test]
fn repairs() {
    let now: Timestamp = "2026-01-01T00:10:00Z".parse().expect("a time");
    let held = |claim, name: Option<&str>, age: i64| Held {
        claim,
        owner: name.map(owner),
        since: Some(now - SignedDuration::from_secs(age)),
    };
    let (a, b, c) = (address("10.96.0.1"), address("10.96.0.2"), Claim::Port(30001));
    let has = |pairs: &[(Claim, &str)]| pairs.iter().map(|(c, o)| (*c, owner(o))).collect::<Vec<_>>();
    for (has, held, take, release, twice) in [
        (has(&[(a, "s")]), vec![held(a, Some("s"), 100)], vec![], vec![], vec![]),
        // A store from before there were claims, or a claim that somebody removed.
        (has(&[(a, "s"), (c, "s")]), vec![], vec![(a, "s"), (c, "s")], vec![], vec![]),
        // A crash between the claim and its Service.
        (has(&[]), vec![held(b, Some("s"), 100)], vec![], vec![(b, "s")], vec![]),
        // The Service may be on its way.
        (has(&[]), vec![held(b, Some("s"), 10)], vec![], vec![], vec![]),
        // The Service has moved on.
        (
            has(&[(a, "s")]),
            vec![held(a, Some("s"), 100), held(c, Some("s"), 100)],
            vec![],
            vec![(c, "s")],
            vec![],
        ),
        (has(&[(a, "s"), (a, "t")]), vec![held(a, Some("s"), 100)], vec![], vec![], vec![(a, "t")]),
        // Addresses that are not Services' are nobody's business.
        (has(&[]), vec![held(a, None, 100)], vec![], vec![], vec![]),
    ] {
        let want = |pairs: Vec<(Claim, &str)>| pairs.iter().map(|(c, o)| (*c, owner(o))).collect::<Vec<_>>();
        let got = plan(&has, &held, now);
        assert_eq!((got.take, got.release, got.twice), (want(take), want(release), want(twice)), "{held:?}");
    }
}

#[tokio::test]
async fn both_families() {
    let (a, fake) = allocators_of(&[RANGE, "fd00:96::/112"]);
    let mut one = json!({"metadata": {"namespace": "n", "name": "s"}, "spec": {"type": "ClusterIP",
        "ipFamilyPolicy": "RequireDualStack", "ipFamilies": ["IPv6"]}});
    a.create(services(), &mut one, false).await.expect("allocation").commit().await;
    let ips: Vec<&str> = one.items_at("spec.clusterIPs").iter().filter_map(Value::as_str).collect();
    assert!(ips[0].starts_with("fd00:96::") && ips[1].starts_with("10.96.0."), "{ips:?}");
    assert_eq!(one["spec"]["clusterIP"], ips[0]);
    assert_eq!(fake.0.lock().len(), 2);
    // The second family goes with the policy, and its address with it.
    let mut single = one.clone();
    single["spec"]["ipFamilyPolicy"] = "SingleStack".into();
    a.update(services(), "", &mut single, &one, false).await.expect("update").commit().await;
    assert_eq!(single["spec"]["clusterIPs"], json!([ips[0]]));
    assert_eq!(fake.0.lock().keys().copied().collect::<Vec<_>>(), [address(ips[0])]);
    let mut again = single.clone();
    again["spec"]["ipFamilyPolicy"] = "PreferDualStack".into();
    a.update(services(), "", &mut again, &single, false).await.expect("update").commit().await;
    assert_eq!(again.items_at("spec.clusterIPs").len(), 2);
    assert_eq!(fake.0.lock().len(), 2);
}

/// What one API server does with a Service.
#[derive(Debug, Clone)]
enum Deed {
    Create,
    Delete,
    /// The process ends between the claims and the write.
    Crash,
    /// The write is refused.
    Refuse,
}

proptest::proptest! {
    /// However many servers write at once, crash or are refused: no address and no port is that of two Services, and the
    /// repair leaves exactly what they have.
    #[test]
    fn nothing_is_given_out_twice(deeds in proptest::collection::vec((0..6usize, proptest::prelude::prop_oneof![
        4 => proptest::prelude::Just(Deed::Create), 2 => proptest::prelude::Just(Deed::Delete),
        1 => proptest::prelude::Just(Deed::Crash), 1 => proptest::prelude::Just(Deed::Refuse)]), 1..40))
    {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(3).build().expect("a runtime");
        runtime.block_on(async move {
            let fake = Arc::new(Fake::default());
            let ranges: Vec<IpNet> = ["10.96.0.0/28", "fd00:96::/124"].iter().map(|r| r.parse().expect("a range")).collect();
            let written: Arc<Mutex<BTreeMap<String, Value>>> = Arc::default();
            let mut servers = Vec::new();
            for server in 0..3 {
                let ports = Ports::new(30000, 30011).expect("ports");
                let a = Allocators::new(&ranges, ports, fake.clone()).expect("ranges");
                let (deeds, written) = (deeds.clone(), written.clone());
                servers.push(tokio::spawn(async move {
                    for (n, deed) in deeds {
                        // Each server has names of its own: the store lets only one write win otherwise.
                        let name = format!("s{server}-{n}");
                        let held = written.lock().get(&name).cloned();
                        match (deed, held) {
                            (Deed::Delete, Some(service)) => {
                                written.lock().remove(&name);
                                a.deleted(services(), &service).await;
                            }
                            (Deed::Delete, None) | (_, Some(_)) => {}
                            (deed, None) => {
                                let mut service = json!({"metadata": {"namespace": "n", "name": name}, "spec": {
                                    "type": "NodePort", "ipFamilyPolicy": "PreferDualStack", "selector": {"a": "b"},
                                    "ports": [{"port": 80, "protocol": "TCP"}]}});
                                // Full ranges refuse; that is not what is looked at here.
                                let Ok(mut allocation) = a.create(services(), &mut service, false).await else { continue };
                                tokio::task::yield_now().await;
                                match deed {
                                    Deed::Crash => {
                                        allocation.trying();
                                        drop(allocation);
                                    }
                                    Deed::Refuse => allocation.refused().await,
                                    _ => {
                                        written.lock().insert(name, service);
                                        allocation.commit().await;
                                    }
                                }
                            }
                        }
                    }
                }));
            }
            for server in servers {
                server.await.expect("no panic");
            }
            let a = Allocators::new(&ranges, Ports::default(), fake.clone()).expect("ranges");
            let has: Vec<(Claim, Owner)> = written.lock().values()
                .flat_map(|s| a.claims(s).into_iter().map(|c| (c, Owner::of(s))).collect::<Vec<_>>()).collect();
            let mut claims: Vec<Claim> = has.iter().map(|(c, _)| *c).collect();
            claims.sort();
            claims.dedup();
            proptest::prop_assert_eq!(claims.len(), has.len(), "given out twice: {:?}", has);
            let now: Timestamp = "2026-01-01T00:10:00Z".parse().expect("a time");
            let repair = plan(&has, &fake.all().await.expect("claims"), now);
            proptest::prop_assert!(repair.twice.is_empty() && repair.take.is_empty(), "{:?}", repair);
            for (claim, owner) in repair.release {
                fake.release(claim, &owner).await.expect("released");
            }
            let left: Vec<Claim> = fake.0.lock().keys().copied().collect();
            proptest::prop_assert_eq!(left, claims);
            Ok(())
        })?;
    }
}
