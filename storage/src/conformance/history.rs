//! Cases about compaction, restarts and the end.

use super::{Fixture, at, create, events_upto, list, next, pairs, value, watch_error};
use crate::{Error, Event, ListOptions, Precondition};

/// After a compaction, what is gone is said to be gone, and what is left is all there.
pub async fn compaction(fixture: &mut dyn Fixture) {
    let store = fixture.store();
    let start = store.current_revision().await.unwrap();
    let first = create(&*store, "c/kept", "1").await;
    let gone = create(&*store, "c/gone", "1").await;
    for n in 2..10 {
        store.put("c/changed", value(&n.to_string()), Precondition::None).await.unwrap();
    }
    let (_, deleted) = store.delete("c/gone", Precondition::None).await.unwrap();
    let compacted = store.put("c/changed", value("then"), Precondition::None).await.unwrap();
    let then = list(&*store, "c/").await;
    let last = store.put("c/changed", value("now"), Precondition::None).await.unwrap();
    let mut begun = store.watch("c/", compacted).await.unwrap();

    assert!(matches!(store.compact(last + 1).await, Err(Error::FutureRevision { .. })));
    store.list("c/", at(first)).await.expect("a refused compaction compacts nothing");
    store.compact(compacted).await.unwrap();
    store.compact(compacted).await.expect("again");
    store.compact(first).await.expect("an older one");

    for revision in [start, first, gone, deleted] {
        match store.list("c/", at(revision)).await {
            Err(Error::Compacted { compacted: told }) => assert!(told > revision && told <= compacted),
            other => panic!("listed at {revision}: {other:?}"),
        }
        let paged = ListOptions { limit: 1, ..at(revision) };
        assert!(
            matches!(store.list("none/", paged).await, Err(Error::Compacted { .. })),
            "not an empty list"
        );
    }
    for after in [start, first, gone, deleted - 1] {
        let error = watch_error(&*store, "c/", after).await;
        assert!(matches!(error, Some(Error::Compacted { .. })), "watched after {after}: {error:?}");
    }
    let again = store.list("c/", at(compacted)).await.unwrap();
    assert_eq!(pairs(&again), pairs(&then));
    let now = list(&*store, "c/").await;
    let want = [("c/changed", "now"), ("c/kept", "1")].map(|(k, v)| (k.to_owned(), v.to_owned()));
    assert_eq!(pairs(&now), want);
    let events = events_upto(&mut begun, last).await;
    assert_eq!(events.len(), 1);
    let mut watch = store.watch("c/", compacted).await.unwrap();
    assert_eq!(events_upto(&mut watch, last).await.len(), 1);
    // A key whose deletion is compacted is a key that never was.
    let again = create(&*store, "c/gone", "2").await;
    assert_eq!(again, last + 1);
    let events = events_upto(&mut begun, again).await;
    assert!(events[0].is_create() && events[0].prev.is_none());
    // Everything up to now can go; a watch from now on works.
    store.compact(again).await.unwrap();
    let mut watch = store.watch("c/", again).await.unwrap();
    let (old, deleted) = store.delete("c/kept", Precondition::ModRevision(first)).await.unwrap();
    let events = events_upto(&mut watch, deleted).await;
    assert_eq!(events[0].prev.as_ref(), Some(&old));
}

/// After a restart everything is as before, history included, and revisions go on.
pub async fn restart(fixture: &mut dyn Fixture) {
    let store = fixture.store();
    for n in 0..20 {
        store.put(&format!("r/{}", n % 7), value(&n.to_string()), Precondition::None).await.unwrap();
    }
    let compacted = store.current_revision().await.unwrap();
    store.compact(compacted).await.unwrap();
    let middle = create(&*store, "r/new", "1").await;
    let (_, last) = store.delete("r/3", Precondition::None).await.unwrap();
    let (now, then) = (list(&*store, "").await, store.list("", at(middle)).await.unwrap());
    let mut watch = store.watch("r/", compacted).await.unwrap();
    let events = events_upto(&mut watch, last).await;
    drop((watch, store));
    for round in 1..=3 {
        if !fixture.restart().await {
            return;
        }
        let store = fixture.store();
        assert_eq!(store.current_revision().await.unwrap(), last + round - 1);
        assert_eq!(store.list("r/", ListOptions::default()).await.unwrap().items, now.items);
        assert_eq!(store.list("r/", at(middle)).await.unwrap(), then);
        assert!(matches!(store.list("r/", at(compacted - 1)).await, Err(Error::Compacted { .. })));
        let mut watch = store.watch("r/", compacted).await.unwrap();
        assert_eq!(events_upto(&mut watch, last).await, events);
        assert_eq!(create(&*store, &format!("s/{round}"), "x").await, last + round);
        let got = list(&*store, "s/").await;
        assert_eq!(got.items.len() as u64, round);
    }
    let store = fixture.store();
    let mut watch = store.watch("s/", last).await.unwrap();
    let got: Vec<_> = events_upto(&mut watch, last + 3).await.iter().map(Event::revision).collect();
    assert_eq!(got, [last + 1, last + 2, last + 3]);
}

/// A closed store answers errors, never nothing.
pub async fn closed_store_answers_errors(fixture: &mut dyn Fixture) {
    let store = fixture.store();
    let revision = create(&*store, "k", "1").await;
    let mut watch = store.watch("", revision).await.unwrap();
    store.close().await.unwrap();
    store.close().await.expect("again");
    assert!(matches!(next(&mut watch).await, Some(Err(Error::Closed))));
    assert!(next(&mut watch).await.is_none());
    assert!(matches!(store.get("k").await, Err(Error::Closed)));
    assert!(matches!(store.list("", ListOptions::default()).await, Err(Error::Closed)));
    assert!(matches!(store.list("none", at(revision)).await, Err(Error::Closed)));
    assert!(matches!(store.put("k", value("2"), Precondition::None).await, Err(Error::Closed)));
    assert!(matches!(store.delete("k", Precondition::None).await, Err(Error::Closed)));
    assert!(matches!(store.watch("", revision).await, Err(Error::Closed)));
    assert!(matches!(store.current_revision().await, Err(Error::Closed)));
    assert!(matches!(store.compact(revision).await, Err(Error::Closed)));
}
