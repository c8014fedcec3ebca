//! The edges of LIST and WATCH: revisions, pages, selectors, bookmarks, and who is cut off.

mod common;

use std::sync::Arc;
use std::time::Duration;

use common::{Kit, brief, version};
use hawser_storage::Storage as _;
use hawser_storage::memory::Memory;
use http::Method;
use serde_json::{Value, json};

const MAPS: &str = "/api/v1/namespaces/n/configmaps";
const PODS: &str = "/api/v1/namespaces/n/pods";

fn map(name: &str, label: &str) -> Value {
    json!({"kind": "ConfigMap", "apiVersion": "v1", "metadata": {"name": name, "labels": {"l": label}}})
}

fn pod(name: &str) -> Value {
    json!({"kind": "Pod", "apiVersion": "v1", "metadata": {"name": name},
        "spec": {"containers": [{"name": "c", "image": "registry.test/app:1"}]}})
}

fn names(list: &Value) -> Vec<String> {
    let items = list["items"].as_array().expect("items");
    items.iter().map(|i| i["metadata"]["name"].as_str().expect("a name").to_owned()).collect()
}

async fn kit() -> Kit {
    let kit = Kit::new().await;
    let namespace = json!({"kind": "Namespace", "apiVersion": "v1", "metadata": {"name": "n"}});
    kit.post("/api/v1/namespaces", &namespace).await.expect(201);
    kit
}

#[tokio::test]
async fn pages_show_the_state_of_the_first_one() {
    let kit = kit().await;
    for name in ["a", "b", "c", "d"] {
        kit.post(MAPS, &map(name, "x")).await.expect(201);
    }
    let first = kit.get(&format!("{MAPS}?limit=2")).await.expect(200);
    assert_eq!(names(&first), ["a", "b"]);
    assert_eq!(first["metadata"]["remainingItemCount"], 2);
    kit.delete(&format!("{MAPS}/c")).await.expect(200);
    kit.post(MAPS, &map("cc", "x")).await.expect(201);
    kit.patch(&format!("{MAPS}/d"), "merge", &json!({"data": {"new": "yes"}})).await.expect(200);
    let next = first["metadata"]["continue"].as_str().expect("a token");
    let second = kit.get(&format!("{MAPS}?limit=2&continue={next}")).await.expect(200);
    assert_eq!(names(&second), ["c", "d"]);
    assert!(second["items"][1].get("data").is_none(), "as it was");
    assert!(second["metadata"].get("continue").is_none());
    assert_eq!(second["metadata"]["resourceVersion"], first["metadata"]["resourceVersion"]);
    let with_version = kit.get(&format!("{MAPS}?continue={next}&resourceVersion=5")).await;
    assert_eq!(with_version.code, 400);
}

#[tokio::test]
async fn a_compacted_page_can_go_on_with_a_fresh_token() {
    let storage = Arc::new(Memory::new());
    let kit = Kit::with(storage.clone(), &[]).await;
    for name in ["a", "b", "c"] {
        kit.post("/api/v1/nodes", &json!({"kind": "Node", "apiVersion": "v1", "metadata": {"name": name}}))
            .await
            .expect(201);
    }
    let first = kit.get("/api/v1/nodes?limit=1").await.expect(200);
    let next = first["metadata"]["continue"].as_str().expect("a token");
    kit.delete("/api/v1/nodes/c").await.expect(200);
    // Another server knows neither the events nor, after compaction, the state.
    let other = Kit::with(storage.clone(), &[]).await;
    let page = other.get(&format!("/api/v1/nodes?limit=5&continue={next}")).await.expect(200);
    assert_eq!(names(&page), ["b", "c"], "storage still has it");
    storage.compact(storage.current_revision().await.expect("a revision")).await.expect("compacted");
    let third = Kit::with(storage, &[]).await;
    let gone = third.get(&format!("/api/v1/nodes?limit=5&continue={next}")).await.expect(410);
    assert_eq!(gone["reason"], "Expired");
    let fresh = gone["metadata"]["continue"].as_str().expect("a fresh token");
    let rest = third.get(&format!("/api/v1/nodes?limit=5&continue={fresh}")).await.expect(200);
    assert_eq!(names(&rest), ["b"]);
}

#[tokio::test]
async fn pages_of_given_up_states_are_gone_even_where_a_cache_knows_them() {
    let kit = kit().await;
    for name in ["a", "b", "c"] {
        kit.post(MAPS, &map(name, "x")).await.expect(201);
    }
    let first = kit.get(&format!("{MAPS}?limit=1")).await.expect(200);
    let next = first["metadata"]["continue"].as_str().expect("a token");
    let feed = &kit.server.registry().feed;
    feed.compact(version(&first)).await.expect("compacted");
    let same = kit.get(&format!("{MAPS}?limit=1&continue={next}")).await.expect(200);
    assert_eq!(names(&same), ["b"], "its own state is the oldest that is left");
    let later = version(&kit.post(MAPS, &map("d", "x")).await.expect(201));
    feed.compact(later).await.expect("compacted");
    let gone = kit.get(&format!("{MAPS}?limit=1&continue={next}")).await.expect(410);
    let fresh = gone["metadata"]["continue"].as_str().expect("a fresh token");
    let rest = kit.get(&format!("{MAPS}?limit=1&continue={fresh}")).await.expect(200);
    assert_eq!(names(&rest), ["b"]);
    assert_eq!(version(&rest), later);
    let exact = format!("{MAPS}?resourceVersion={}&resourceVersionMatch=Exact", version(&first));
    assert_eq!(kit.get(&exact).await.code, 410);
}

#[tokio::test]
async fn lists_at_revisions() {
    let kit = kit().await;
    let one = version(&kit.post(MAPS, &map("a", "x")).await.expect(201));
    let two = version(&kit.post(MAPS, &map("b", "x")).await.expect(201));
    for (query, want) in [
        (format!("resourceVersion={one}&resourceVersionMatch=Exact"), vec!["a"]),
        (format!("resourceVersion={one}&limit=5"), vec!["a"]),
        (format!("resourceVersion={one}&resourceVersionMatch=NotOlderThan"), vec!["a", "b"]),
        (format!("resourceVersion={two}"), vec!["a", "b"]),
        ("resourceVersion=0".into(), vec!["a", "b"]),
        (String::new(), vec!["a", "b"]),
    ] {
        assert_eq!(names(&kit.get(&format!("{MAPS}?{query}")).await.expect(200)), want, "{query}");
    }
    let future = kit.get(&format!("{MAPS}?resourceVersion={}", two + 1_000_000)).await.expect(504);
    assert_eq!(future["details"]["causes"][0]["reason"], "ResourceVersionTooLarge");
}

#[tokio::test]
async fn pages_follow_kubernetes_where_it_surprises() {
    let kit = kit().await;
    for (name, label) in [("a", "x"), ("b", "x"), ("c", "y"), ("d", "y")] {
        kit.post(MAPS, &map(name, label)).await.expect(201);
    }
    assert_eq!(names(&kit.get(MAPS).await.expect(200)).len(), 4, "the cache has come this far");
    // Whoever takes any version gets everything at once.
    let any = kit.get(&format!("{MAPS}?limit=2&resourceVersion=0")).await.expect(200);
    assert_eq!(names(&any), ["a", "b", "c", "d"]);
    assert!(any["metadata"].get("continue").is_none());
    // With a selector anything that follows makes another page, and nobody counts what is left.
    let selected = kit.get(&format!("{MAPS}?limit=2&labelSelector=l%3Dx")).await.expect(200);
    assert_eq!(names(&selected), ["a", "b"]);
    assert!(selected["metadata"].get("remainingItemCount").is_none());
    let next = selected["metadata"]["continue"].as_str().expect("a token");
    let rest = kit.get(&format!("{MAPS}?limit=2&labelSelector=l%3Dx&continue={next}")).await.expect(200);
    assert_eq!(names(&rest), [""; 0]);
    assert!(rest["metadata"].get("continue").is_none());
    let last = kit.get(&format!("{MAPS}?limit=2&labelSelector=l%3Dy")).await.expect(200);
    assert_eq!(names(&last), ["c", "d"]);
    assert!(last["metadata"].get("continue").is_none());
}

#[tokio::test]
async fn pages_from_storage_are_those_of_the_cache() {
    let storage = Arc::new(Memory::new());
    let kit = Kit::with(storage.clone(), &[]).await;
    for n in 0..9 {
        let node = json!({"kind": "Node", "apiVersion": "v1",
            "metadata": {"name": format!("n{n}"), "labels": {"odd": format!("{}", n % 2)}}});
        kit.post("/api/v1/nodes", &node).await.expect(201);
    }
    let from = kit.get("/api/v1/nodes?limit=1").await.expect(200);
    let revision = from["metadata"]["resourceVersion"].as_str().expect("a version").to_owned();
    kit.delete("/api/v1/nodes/n5").await.expect(200);
    // A server that started later has to ask storage.
    let later = Kit::with(storage, &[]).await;
    for selector in ["", "&labelSelector=odd%3D1", "&labelSelector=none"] {
        let (mut path, mut pages) =
            (format!("/api/v1/nodes?limit=2&resourceVersion={revision}{selector}"), 0);
        loop {
            let (one, two) = (kit.get(&path).await.expect(200), later.get(&path).await.expect(200));
            assert_eq!(one, two, "{path}");
            pages += 1;
            let Some(next) = one["metadata"]["continue"].as_str() else { break };
            path = format!("/api/v1/nodes?limit=2{selector}&continue={next}");
        }
        assert!(selector == "&labelSelector=none" || pages > 1);
    }
}

#[tokio::test(start_paused = true)]
async fn revisions_to_come() {
    let kit = kit().await;
    let now = version(&kit.post(MAPS, &map("a", "x")).await.expect(201));
    // Without initial events the watch waits inside: what comes before its revision is not shown.
    let path =
        format!("{MAPS}?watch=1&timeoutSeconds=100&allowWatchBookmarks=true&resourceVersion={}", now + 1);
    let mut events = kit.watch(&path).await;
    kit.post(MAPS, &map("b", "x")).await.expect(201);
    kit.post(MAPS, &map("c", "x")).await.expect(201);
    assert_eq!(events.brief().await.map(|e| e.1).as_deref(), Some("c"));
    // With them a revision that does not come is the only event.
    let initial = "sendInitialEvents=true&resourceVersionMatch=NotOlderThan&allowWatchBookmarks=true";
    let path = format!("{MAPS}?watch=1&{initial}&resourceVersion={}", now + 1_000);
    let mut events = kit.watch(&path).await;
    let error = events.next().await.expect("an event");
    assert_eq!((error["type"].as_str(), error["object"]["code"].as_u64()), (Some("ERROR"), Some(504)));
    assert_eq!(error["object"]["details"]["causes"][0]["reason"], "ResourceVersionTooLarge");
    assert_eq!(error["object"]["details"]["retryAfterSeconds"], 1);
    assert!(events.next().await.is_none());
    for path in [
        format!("{MAPS}/a?resourceVersion={}", now + 1_000),
        format!("{MAPS}?resourceVersion={}", now + 1_000),
    ] {
        let late = kit.get(&path).await;
        assert_eq!(
            (late.code, late.headers.get("retry-after").and_then(|v| v.to_str().ok())),
            (504, Some("1"))
        );
    }
}

#[tokio::test]
async fn watches_begin_where_they_are_told() {
    let kit = kit().await;
    let one = version(&kit.post(MAPS, &map("a", "x")).await.expect(201));
    kit.post(MAPS, &map("b", "x")).await.expect(201);
    let legacy = "/api/v1/watch/namespaces/n/configmaps";
    let bookmarks = "allowWatchBookmarks=true";
    let with = "sendInitialEvents=true&resourceVersionMatch=NotOlderThan";
    let without = "sendInitialEvents=false&resourceVersionMatch=NotOlderThan";
    for (path, want) in [
        (format!("{MAPS}?watch=1"), vec!["ADDED a", "ADDED b"]),
        // client-go before it asked by itself: the closing bookmark comes all the same.
        (format!("{MAPS}?watch=1&{bookmarks}"), vec!["ADDED a", "ADDED b", "BOOKMARK "]),
        (format!("{MAPS}?watch=1&{bookmarks}&resourceVersion=0"), vec!["ADDED a", "ADDED b", "BOOKMARK "]),
        (
            format!("{MAPS}?watch=1&{with}&resourceVersion={one}&{bookmarks}"),
            vec!["ADDED a", "ADDED b", "BOOKMARK "],
        ),
        (format!("{MAPS}?watch=1&{with}"), vec!["ADDED a", "ADDED b"]),
        (format!("{MAPS}?watch=1&{without}"), vec![]),
        (format!("{MAPS}?watch=1&{without}&resourceVersion=0"), vec![]),
        (format!("{MAPS}?watch=1&{without}&resourceVersion={one}"), vec!["ADDED b"]),
        (format!("{MAPS}?watch=1&resourceVersion={one}"), vec!["ADDED b"]),
        (format!("{legacy}?{bookmarks}"), vec!["ADDED a", "ADDED b"]),
        (format!("{legacy}?watch=1&{bookmarks}"), vec!["ADDED a", "ADDED b", "BOOKMARK "]),
        (format!("{legacy}/b?"), vec!["ADDED b"]),
        (format!("{legacy}/b?fieldSelector=metadata.name%3Db"), vec!["ADDED b"]),
        ("/api/v1/watch/configmaps?fieldSelector=metadata.name%3Da".into(), vec!["ADDED a"]),
    ] {
        let events = kit.watch(&format!("{path}&timeoutSeconds=1")).await.all().await;
        let got: Vec<String> = events.into_iter().map(|(kind, name, _)| format!("{kind} {name}")).collect();
        assert_eq!(got, want, "{path}");
    }
    let other = kit.get(&format!("{legacy}/b?fieldSelector=metadata.name%3Da")).await.expect(400);
    assert_eq!(other["message"], "fieldSelector metadata.name doesn't match requested name");
    let listed = kit.get(&format!("{legacy}?{with}")).await.expect(422);
    assert_eq!(listed["details"]["causes"][0]["field"], "resourceVersionMatch", "checked as a list");
}

/// A client that takes nothing holds nothing: once history no longer reaches back to what it was to begin with, it is
/// cut off.
#[tokio::test]
async fn a_slow_start_is_cut_off() {
    let kit = kit().await;
    let big = "x".repeat(700_000);
    for n in 0..3 {
        let mut object = map(&format!("m{n}"), "x");
        object["data"] = json!({"big": big});
        kit.post(MAPS, &object).await.expect(201);
    }
    let path = format!("{MAPS}?watch=1&allowWatchBookmarks=true");
    let (mut slow, mut quick) = (kit.watch(&path).await, kit.watch(&path).await);
    assert_eq!(slow.brief().await.map(|e| e.1).as_deref(), Some("m0"));
    // More changes than are remembered.
    for n in 0..60 {
        let patch = json!({"data": {"n": n.to_string()}});
        kit.patch(&format!("{MAPS}/m2"), "merge", &patch).await.expect(200);
        if n == 30 {
            // One that reads sees the state as it was at its beginning, whatever has happened since.
            assert_eq!(quick.brief().await.map(|e| e.1).as_deref(), Some("m0"));
            assert_eq!(quick.brief().await.map(|e| e.1).as_deref(), Some("m1"));
            let third = quick.next().await.expect("an event");
            assert_eq!((third["type"].as_str(), third["object"]["data"].get("n")), (Some("ADDED"), None));
        }
    }
    let mut last = slow.next().await.expect("an event");
    while last["type"] == "ADDED" {
        last = slow.next().await.expect("an event");
    }
    assert_eq!((last["type"].as_str(), last["object"]["code"].as_u64()), (Some("ERROR"), Some(410)));
}

#[tokio::test]
async fn a_watch_tells_what_happened_after_its_revision() {
    let kit = kit().await;
    let from = version(&kit.post(MAPS, &map("a", "x")).await.expect(201));
    kit.post(MAPS, &map("b", "y")).await.expect(201);
    kit.patch(&format!("{MAPS}/a"), "merge", &json!({"metadata": {"labels": {"l": "y"}}})).await.expect(200);
    kit.patch(&format!("{MAPS}/a"), "merge", &json!({"metadata": {"labels": {"l": "x"}}})).await.expect(200);
    kit.delete(&format!("{MAPS}/a")).await.expect(200);
    let all = |query: &str| format!("{MAPS}?watch=1&timeoutSeconds=1&resourceVersion={from}{query}");
    let types = |events: Vec<(String, String, String)>| -> Vec<String> {
        events.into_iter().map(|(kind, name, _)| format!("{kind} {name}")).collect()
    };
    let events = kit.watch(&all("")).await.all().await;
    assert_eq!(types(events), ["ADDED b", "MODIFIED a", "MODIFIED a", "DELETED a"]);
    let events = kit.watch(&all("&labelSelector=l%3Dx")).await.all().await;
    assert_eq!(types(events), ["DELETED a", "ADDED a", "DELETED a"]);
    let mut selected = kit.watch(&all("&labelSelector=l%3Dx")).await;
    let left = selected.next().await.expect("an event");
    assert_eq!(
        left["object"]["metadata"]["labels"]["l"], "x",
        "a DELETED carries the last state that matched"
    );
    assert!(version(&left["object"]) > from, "with the revision of the change");
    let events = kit.watch(&all("&fieldSelector=metadata.name%3Db")).await.all().await;
    assert_eq!(types(events), ["ADDED b"]);
}

#[tokio::test]
async fn initial_events_end_with_a_bookmark() {
    let kit = kit().await;
    kit.post(MAPS, &map("a", "x")).await.expect(201);
    let path = format!(
        "{MAPS}?watch=1&timeoutSeconds=2&sendInitialEvents=true&resourceVersionMatch=NotOlderThan&allowWatchBookmarks=true"
    );
    let mut events = kit.watch(&path).await;
    assert_eq!(events.brief().await.map(|e| e.0).as_deref(), Some("ADDED"));
    let bookmark = events.next().await.expect("a bookmark");
    assert_eq!(bookmark["type"], "BOOKMARK");
    assert_eq!(bookmark["object"]["metadata"]["annotations"]["k8s.io/initial-events-end"], "true");
    let made = kit.post(MAPS, &map("b", "x")).await.expect(201);
    let event = events.next().await.expect("an event");
    assert_eq!((event["type"].as_str(), &event["object"]), (Some("ADDED"), &made));
    assert!(version(&bookmark["object"]) < version(&made));
    // From the bookmark on nothing is missed.
    let from = version(&bookmark["object"]);
    let path = format!("{MAPS}?watch=1&timeoutSeconds=1&resourceVersion={from}");
    assert_eq!(kit.watch(&path).await.all().await.len(), 1);
}

#[tokio::test(start_paused = true)]
async fn quiet_watches_get_bookmarks_that_move() {
    let kit = kit().await;
    let path = format!("{MAPS}?watch=1&resourceVersion=0&allowWatchBookmarks=true&timeoutSeconds=300");
    let mut events = kit.watch(&path).await;
    let closing = events.next().await.expect("the end of the initial events");
    assert_eq!(closing["object"]["metadata"]["annotations"]["k8s.io/initial-events-end"], "true");
    let made = version(&kit.post(PODS, &pod("other")).await.expect(201));
    tokio::time::advance(Duration::from_secs(61)).await;
    let bookmark = events.next().await.expect("a bookmark");
    assert_eq!(bookmark["type"], "BOOKMARK");
    assert_eq!(bookmark["object"]["kind"], "ConfigMap");
    assert!(version(&bookmark["object"]) >= made, "what happens elsewhere moves it too");
}

#[tokio::test]
async fn too_old_revisions_end_in_an_error_event() {
    let storage = Arc::new(Memory::new());
    let kit = Kit::with(storage.clone(), &[]).await;
    let node = |name: &str| json!({"kind": "Node", "apiVersion": "v1", "metadata": {"name": name}});
    let old = version(&kit.post("/api/v1/nodes", &node("a")).await.expect(201));
    kit.post("/api/v1/nodes", &node("b")).await.expect(201);
    let later = Kit::with(storage, &[]).await;
    let path = format!("/api/v1/nodes?watch=1&resourceVersion={old}&timeoutSeconds=5");
    let mut events = later.watch(&path).await;
    let error = events.next().await.expect("an event");
    assert_eq!((error["type"].as_str(), error["object"]["code"].as_u64()), (Some("ERROR"), Some(410)));
    assert_eq!(error["object"]["reason"], "Expired");
    assert!(events.next().await.is_none());
}

#[tokio::test]
async fn watchers_of_a_node_see_its_pods() {
    let kit = kit().await;
    kit.post(PODS, &pod("p1")).await.expect(201);
    kit.post(PODS, &pod("p2")).await.expect(201);
    let path = "/api/v1/pods?watch=1&timeoutSeconds=20&fieldSelector=spec.nodeName%3Dworker";
    let mut events = kit.watch(path).await;
    let bind = |pod: &str, node: &str| json!({"kind": "Binding", "apiVersion": "v1", "metadata": {"name": pod}, "target": {"kind": "Node", "name": node}});
    kit.post(&format!("{PODS}/p1/binding"), &bind("p1", "elsewhere")).await.expect(201);
    kit.post(&format!("{PODS}/p2/binding"), &bind("p2", "worker")).await.expect(201);
    let twice = kit.post(&format!("{PODS}/p2/binding"), &bind("p2", "other")).await;
    assert_eq!(twice.code, 409);
    let (kind, name, _) = events.brief().await.expect("an event");
    assert_eq!((kind.as_str(), name.as_str()), ("ADDED", "p2"));
    let bound = kit.get(&format!("{PODS}/p2")).await.expect(200);
    assert_eq!(bound["spec"]["nodeName"], "worker");
    assert_eq!(bound["status"]["conditions"][0]["type"], "PodScheduled");
    // Graceful: marked first, gone when asked again without grace.
    let marked = kit.delete(&format!("{PODS}/p2")).await.expect(200);
    assert_eq!(marked["metadata"]["deletionGracePeriodSeconds"], 30);
    assert_eq!(events.brief().await.map(|e| e.0).as_deref(), Some("MODIFIED"));
    kit.delete(&format!("{PODS}/p2?gracePeriodSeconds=0")).await.expect(200);
    let mut last = events.brief().await;
    while last.as_ref().is_some_and(|e| e.0 == "MODIFIED") {
        last = events.brief().await;
    }
    assert_eq!(last.map(|e| e.0).as_deref(), Some("DELETED"));
}

#[tokio::test]
async fn other_forms_of_watches() {
    let kit = kit().await;
    kit.post(MAPS, &map("a", "x")).await.expect(201);
    let path = format!("{MAPS}?watch=1&timeoutSeconds=1");
    for (accept, kind) in [
        ("application/json;as=Table;v=v1;g=meta.k8s.io", "Table"),
        ("application/json;as=PartialObjectMetadata;v=v1;g=meta.k8s.io", "PartialObjectMetadata"),
    ] {
        let response = kit.raw(Method::GET, &path, &[("accept", accept)], None).await;
        let bytes = response.into_body().collect(1 << 20).await.expect("events");
        let line = bytes.split(|b| *b == b'\n').next().expect("a line");
        let event: Value = serde_json::from_slice(line).expect("an event");
        assert_eq!(event["object"]["kind"], kind);
    }
    let yaml = kit.raw(Method::GET, &path, &[("accept", "application/yaml")], None).await;
    assert_eq!(yaml.status(), 406);
}

#[tokio::test]
async fn a_stopped_server_ends_its_watches() {
    let kit = kit().await;
    let mut events = kit.watch(&format!("{MAPS}?watch=1")).await;
    let stop = tokio_util::sync::CancellationToken::new();
    stop.cancel();
    let Kit { server, .. } = kit;
    server.run(stop).await.expect("a clean end");
    assert_eq!(events.next().await.map(|e| brief(&e)), None);
}

#[tokio::test]
async fn writers_never_lose_an_update() {
    let kit = Arc::new(kit().await);
    kit.post(MAPS, &map("counter", "x")).await.expect(201);
    let mut tasks = tokio::task::JoinSet::new();
    for writer in 0..8 {
        let kit = kit.clone();
        tasks.spawn(async move {
            for n in 0..20 {
                let patch = json!({"data": {format!("w{writer}-{n}"): "x"}});
                kit.patch(&format!("{MAPS}/counter"), "merge", &patch).await.expect(200);
            }
        });
    }
    while let Some(done) = tasks.join_next().await {
        done.expect("a writer");
    }
    let held = kit.get(&format!("{MAPS}/counter")).await.expect(200);
    assert_eq!(held["data"].as_object().expect("data").len(), 160);
}

#[tokio::test]
async fn services_get_addresses_once() {
    let storage = Arc::new(Memory::new());
    let kit = Kit::with(storage.clone(), &[]).await;
    let service = |name: &str| {
        json!({"kind": "Service", "apiVersion": "v1", "metadata": {"name": name, "namespace": "default"},
        "spec": {"type": "NodePort", "ports": [{"port": 80}]}})
    };
    let path = "/api/v1/namespaces/default/services";
    let made = kit.post(path, &service("a")).await.expect(201);
    // A server that starts later knows what is taken.
    let other = Kit::with(storage, &[]).await;
    let mut same = service("b");
    same["spec"]["clusterIP"] = made["spec"]["clusterIP"].clone();
    assert_eq!(other.post(path, &same).await.code, 422);
    let mut same = service("b");
    same["spec"]["ports"][0]["nodePort"] = made["spec"]["ports"][0]["nodePort"].clone();
    assert_eq!(other.post(path, &same).await.code, 422);
    other.delete(&format!("{path}/a")).await.expect(200);
    other.post(path, &same).await.expect(201);
    let own = other.get(&format!("{path}/kubernetes")).await.expect(200);
    assert_eq!(own["spec"]["clusterIP"], "10.96.0.1");
}

#[tokio::test]
async fn old_events_go() {
    let kit = kit().await;
    let event = |name: &str, at: &str| {
        json!({"kind": "Event", "apiVersion": "v1", "metadata": {"name": name, "namespace": "n"},
            "involvedObject": {"kind": "Pod", "name": "p", "namespace": "n"}, "reason": "Tested", "type": "Normal",
            "lastTimestamp": at})
    };
    for (name, at) in [("old", "2020-01-01T00:00:00Z"), ("new", "2020-01-01T00:00:00Z")] {
        kit.post("/api/v1/namespaces/n/events", &event(name, at)).await.expect(201);
    }
    // Both were just created: nothing is old yet; two hours later both are.
    let now = jiff::Timestamp::now();
    let registry = kit.server.registry();
    assert_eq!(hawser_apiserver::housekeeping::expire_events(&registry, now).await, 0);
    let later = now + jiff::SignedDuration::from_hours(2);
    assert_eq!(hawser_apiserver::housekeeping::expire_events(&registry, later).await, 2);
    assert_eq!(names(&kit.get("/api/v1/events").await.expect(200)), [""; 0]);
}
