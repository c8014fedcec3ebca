use super::*;
use hawser_api::kinds::find;
use proptest::prelude::*;
use serde_json::json;

fn cache() -> ResourceCache {
    ResourceCache::new(find("", "v1", "pods").expect("pods").clone())
}

fn entry(cache: &ResourceCache, key: &str, revision: u64, node: &str) -> Arc<Entry> {
    let (ns, name) = key.split_once('/').expect("namespaced");
    let object = json!({"metadata": {"name": name, "namespace": ns}, "spec": {"nodeName": node}});
    let value = cache.head.encode(&object);
    Arc::new(Entry::load(&cache.kind, &cache.head, key.into(), revision, value).expect("entry"))
}

fn live() -> ResourceCache {
    let cache = cache();
    cache.begin_loading();
    cache.finish_loading(Vec::new(), 1);
    cache
}

fn put(cache: &ResourceCache, key: &str, revision: u64, node: &str) {
    cache.apply(Applied::Put(entry(cache, key, revision, node)));
}

fn delete(cache: &ResourceCache, key: &str, revision: u64) {
    cache.apply(Applied::Delete(key.into(), revision));
}

fn keys(cache: &ResourceCache, namespace: Option<&str>, from: Option<&str>) -> Vec<String> {
    let mut out = Vec::new();
    let scanned = cache.scan(namespace, from, |e| {
        out.push(e.key.to_string());
        true
    });
    scanned.expect("a live cache");
    out
}

fn types(ring: &Ring, after: u64) -> Vec<(u64, EventType)> {
    let mut out = Vec::new();
    ring.read(after, usize::MAX, &mut out).expect("in reach");
    out.iter().map(|e| (e.revision, e.kind)).collect()
}

#[test]
fn events_meanwhile_wait_for_the_list() {
    let cache = cache();
    put(&cache, "a/idle", 2, "");
    assert!(!cache.wants_events());
    cache.begin_loading();
    put(&cache, "a/old", 3, "");
    put(&cache, "a/new", 6, "");
    let listed = entry(&cache, "a/old", 3, "");
    let listed = Entry::new(listed.key.clone(), 3, listed.value.clone(), entry::Facts::default());
    cache.finish_loading(vec![listed], 5);
    assert_eq!(keys(&cache, None, None), ["a/new", "a/old"]);
    assert_eq!(types(&cache.ring(&Scope::All, 5), 5), [(6, EventType::Added)]);
    assert_eq!(cache.revision(), 6);
}

#[test]
fn ranges() {
    let cache = live();
    for (n, key) in ["a/1", "a/2", "a.b/1", "b/1"].iter().enumerate() {
        put(&cache, key, n as u64 + 2, "");
    }
    assert_eq!(keys(&cache, Some("a"), None), ["a/1", "a/2"]);
    assert_eq!(keys(&cache, Some("a"), Some("a/2")), ["a/2"]);
    assert_eq!(keys(&cache, Some("a"), Some("zz")), [""; 0]);
    assert_eq!(keys(&cache, Some("a"), Some("")), ["a/1", "a/2"]);
    assert_eq!(keys(&cache, None, Some("a/2")), ["a/2", "b/1"]);
}

#[test]
fn scopes_get_their_events_only() {
    let cache = live();
    put(&cache, "a/1", 2, "n1");
    let node = cache.ring(&Scope::Field("n1".into()), 1);
    let namespace = cache.ring(&Scope::Namespace("b".into()), 1);
    let object = cache.ring(&Scope::Object("a/1".into()), 2);
    put(&cache, "b/1", 3, "n2");
    put(&cache, "a/1", 4, "n2");
    put(&cache, "a/1", 5, "n2");
    delete(&cache, "a/1", 6);
    assert_eq!(types(&node, 1), [(2, EventType::Added), (4, EventType::Modified)]);
    assert_eq!(types(&namespace, 1), [(3, EventType::Added)]);
    assert_eq!(types(&object, 4), [(5, EventType::Modified), (6, EventType::Deleted)]);
    let mut on_node = Vec::new();
    let scanned = cache.scan_scope(&Scope::Field("n2".into()), None, |e| {
        on_node.push(e.key.to_string());
        true
    });
    assert_eq!((scanned, on_node), (Ok(6), vec!["b/1".to_owned()]));
    // Who comes late and asks for what was before gets it.
    assert!(object.read(1, 1, &mut Vec::new()).is_err());
    let earlier = cache.ring(&Scope::Object("a/1".into()), 1);
    assert_eq!(types(&earlier, 1).len(), 4);
    assert!(Arc::ptr_eq(&earlier, &object));
    drop(node);
    put(&cache, "c/1", 7, "n1");
    // The ring waits to be woken, and nothing else keeps it.
    cache.flush();
    cache.trim(Instant::now());
    assert!(cache.scopes.read().fields.is_empty());
}

#[test]
fn a_new_start_cuts_watchers_off() {
    let cache = live();
    let scoped = cache.ring(&Scope::Namespace("a".into()), 1);
    let all = cache.ring(&Scope::All, 1);
    cache.begin_loading();
    assert_eq!(cache.get("a", "1").map(|e| e.is_some()), Err(Reloading));
    for ring in [&scoped, &all] {
        assert!(ring.read(u64::MAX - 1, 1, &mut Vec::new()).is_err());
    }
    cache.finish_loading(Vec::new(), 50);
    for ring in [scoped, all] {
        assert!(ring.read(10, 1, &mut Vec::new()).is_err());
    }
}

proptest! {
    /// Undoing events gives what was there.
    #[test]
    fn earlier_states(ops in proptest::collection::vec((0u8..6, any::<bool>()), 1..60), from in 0u8..7) {
        let cache = live();
        let mut model: BTreeMap<String, u64> = BTreeMap::new();
        let mut history = vec![(1u64, model.clone())];
        for (n, (key, delete_it)) in ops.iter().enumerate() {
            let (revision, key) = (n as u64 + 2, format!("ns/{key}"));
            if *delete_it {
                model.remove(&key);
                delete(&cache, &key, revision);
            } else {
                model.insert(key.clone(), revision);
                put(&cache, &key, revision, "");
            }
            prop_assert_eq!(cache.count(Some("ns")), model.len());
            history.push((revision, model.clone()));
        }
        let from = format!("ns/{from}");
        for (revision, want) in history {
            let mut got = BTreeMap::new();
            let reached = cache.scan_at(revision, Some("ns"), Some(&from), |e| {
                got.insert(e.key.to_string(), e.revision);
                true
            });
            prop_assert_eq!(reached, Ok(Some(())));
            let want: BTreeMap<_, _> = want.into_iter().filter(|(k, _)| *k >= from).collect();
            prop_assert_eq!(got, want);
        }
        prop_assert_eq!(cache.scan_at(0, None, None, |_| true), Ok(None));
    }
}
