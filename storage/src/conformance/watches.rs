//! Cases about watches.

use std::sync::Arc;

use bytes::Bytes;
use futures::future::join_all;
use tokio::sync::Barrier;

use super::{Fixture, create, events_upto, list, next, value, watch_error};
use crate::{Error, Event, EventKind, Precondition, Revision, WatchItem};

/// What an event says of a creation, an update and a deletion; live and from history.
pub async fn watch_events(fixture: &mut dyn Fixture) {
    let store = fixture.store();
    let start = store.current_revision().await.unwrap();
    let mut live = store.watch("w/", start).await.unwrap();
    let created = create(&*store, "w/k", "1").await;
    let updated = store.put("w/k", value("2"), Precondition::ModRevision(created)).await.unwrap();
    let (_, deleted) = store.delete("w/k", Precondition::None).await.unwrap();
    let again = create(&*store, "w/k", "3").await;
    let mut past = store.watch("w/", start).await.unwrap();
    for watch in [&mut live, &mut past] {
        let events = events_upto(watch, again).await;
        assert_eq!(events.len(), 4);
        let [create, update, delete, recreate] = &events[..] else { panic!("four events") };
        assert!(create.is_create() && create.prev.is_none());
        assert_eq!(
            (create.kind, create.revision(), &create.kv.value),
            (EventKind::Put, created, &value("1"))
        );
        assert!(!update.is_create());
        assert_eq!((update.kv.create_revision, update.kv.mod_revision), (created, updated));
        assert_eq!(update.prev.as_ref(), Some(&create.kv));
        assert_eq!((delete.kind, &*delete.kv.key, delete.revision()), (EventKind::Delete, "w/k", deleted));
        assert_eq!((delete.kv.create_revision, delete.kv.value.len()), (0, 0));
        assert_eq!(delete.prev.as_ref(), Some(&update.kv));
        assert!(recreate.is_create() && recreate.prev.is_none());
    }
}

/// A watch after any revision begins with the next one; one of the future is refused.
pub async fn watch_bounds(fixture: &mut dyn Fixture) {
    let store = fixture.store();
    let start = store.current_revision().await.unwrap();
    for n in 0..5 {
        create(&*store, &format!("w/{n}"), "x").await;
    }
    let last = start + 5;
    for after in start..last {
        let mut watch = store.watch("w/", after).await.unwrap();
        let got: Vec<_> = events_upto(&mut watch, last).await.iter().map(Event::revision).collect();
        assert_eq!(got, (after + 1..=last).collect::<Vec<_>>());
    }
    match watch_error(&*store, "w/", last + 1).await {
        Some(Error::FutureRevision { current }) => assert_eq!(current, last),
        other => panic!("a watch of the future: {other:?}"),
    }
}

/// A watch sees its prefix and nothing else.
pub async fn watch_prefix_isolation(fixture: &mut dyn Fixture) {
    let store = fixture.store();
    let start = store.current_revision().await.unwrap();
    let prefixes = ["", "a", "a/", "a/b", "a/b/", "é/", "z/"];
    let mut watches = Vec::new();
    for prefix in prefixes {
        watches.push(store.watch(prefix, start).await.unwrap());
    }
    let mut written = Vec::new();
    let ends = prefixes.iter().map(|prefix| format!("{prefix}~end"));
    let keys = ["a", "a/b", "a/b/c", "ab/c", "a0", "b/a/", "é/1", "ê/1", "è", "a/é"];
    for key in keys.into_iter().map(str::to_owned).chain(ends) {
        written.push((create(&*store, &key, "x").await, key));
    }
    for (prefix, watch) in prefixes.iter().zip(&mut watches) {
        let want: Vec<_> = written.iter().filter(|(_, key)| key.starts_with(prefix)).cloned().collect();
        let last = want.last().map_or(start, |(revision, _)| *revision);
        let got = events_upto(watch, last).await;
        let got: Vec<_> = got.iter().map(|e| (e.revision(), e.kv.key.to_string())).collect();
        assert_eq!(got, want, "prefix {prefix:?}");
    }
}

/// Watches begun before, during and after concurrent writes see exactly the acknowledged ones.
pub async fn watch_under_concurrent_writes(fixture: &mut dyn Fixture) {
    const WRITERS: usize = 8;
    const WRITES: usize = 60;
    let store = fixture.store();
    let start = store.current_revision().await.unwrap();
    let half = Arc::new(Barrier::new(WRITERS + 1));
    let early = store.watch("w/", start).await.unwrap();
    let writers: Vec<_> = (0..WRITERS)
        .map(|w| {
            let (store, half) = (store.clone(), half.clone());
            tokio::spawn(async move {
                let mut acknowledged = Vec::new();
                for n in 0..WRITES {
                    if n == WRITES / 2 {
                        half.wait().await;
                    }
                    let key = format!("w/{}/{}", n % 2, (w + n) % 5);
                    let revision = if n % 4 == 3 {
                        match store.delete(&key, Precondition::None).await {
                            Ok((_, revision)) => revision,
                            Err(Error::NotFound) => continue,
                            Err(other) => panic!("{other}"),
                        }
                    } else {
                        store.put(&key, value(&format!("{w}.{n}")), Precondition::None).await.unwrap()
                    };
                    acknowledged.push((revision, key));
                }
                acknowledged
            })
        })
        .collect();
    half.wait().await;
    // Begun while writes are under way, at once and from a list.
    let mut watches = vec![("w/", start, early)];
    for prefix in ["w/", "w/0/", "w/1/3"] {
        watches.push((prefix, start, store.watch(prefix, start).await.unwrap()));
        let listed = list(&*store, prefix).await.revision;
        watches.push((prefix, listed, store.watch(prefix, listed).await.unwrap()));
    }
    let mut acknowledged = Vec::new();
    for writer in join_all(writers).await {
        acknowledged.extend(writer.expect("the writer runs"));
    }
    acknowledged.sort();
    let middle = acknowledged[acknowledged.len() / 2].0;
    watches.push(("w/", middle, store.watch("w/", middle).await.unwrap()));
    for (prefix, after, mut watch) in watches {
        let want: Vec<_> =
            acknowledged.iter().filter(|(r, key)| *r > after && key.starts_with(prefix)).cloned().collect();
        let Some((last, _)) = want.last() else { continue };
        let got = events_upto(&mut watch, *last).await;
        let got: Vec<_> = got.iter().map(|e| (e.revision(), e.kv.key.to_string())).collect();
        assert_eq!(got, want, "prefix {prefix:?} after {after}");
    }
    let revisions: Vec<_> = acknowledged.iter().map(|(r, _)| *r).collect();
    assert_eq!(revisions, (start + 1..=start + revisions.len() as Revision).collect::<Vec<_>>());
}

/// A watch that nobody reads loses nothing: it goes on where it was, or says that it cannot.
pub async fn slow_watch_is_cut_off(fixture: &mut dyn Fixture) {
    const WRITERS: usize = 32;
    const WRITES: usize = 200;
    let store = fixture.store();
    let start = store.current_revision().await.unwrap();
    let mut slow = store.watch("w/", start).await.unwrap();
    let payload = Bytes::from(vec![b'x'; 2048]);
    let writers = (0..WRITERS).map(|w| {
        let (store, payload) = (store.clone(), payload.clone());
        tokio::spawn(async move {
            for n in 0..WRITES {
                store.put(&format!("w/{w}/{}", n % 10), payload.clone(), Precondition::None).await.unwrap();
            }
        })
    });
    for writer in join_all(writers).await {
        writer.expect("the writer runs");
    }
    let last = store.current_revision().await.unwrap();
    store.compact(last).await.unwrap();
    let mut expected = start + 1;
    while expected <= last {
        match next(&mut slow).await {
            Some(Ok(WatchItem::Events(events))) => {
                for event in events {
                    assert_eq!(event.revision(), expected, "an event was lost without a word");
                    expected += 1;
                }
            }
            Some(Ok(WatchItem::Progress(revision))) => assert!(revision < expected),
            Some(Err(Error::Compacted { .. })) => {
                assert!(next(&mut slow).await.is_none(), "an error is the last item");
                return;
            }
            other => panic!("unexpected: {other:?}"),
        }
    }
}

/// Progress is given when asked for, and never ahead of events.
pub async fn progress_on_request(fixture: &mut dyn Fixture) {
    let store = fixture.store();
    let start = store.current_revision().await.unwrap();
    let mut watch = store.watch("w/", start).await.unwrap();
    let progress = watch.progress_handle();
    for round in 0..20 {
        let mut want = Vec::new();
        for n in 0..round % 4 {
            want.push(create(&*store, &format!("w/{round}/{n}"), "x").await);
        }
        let other = create(&*store, &format!("other/{round}"), "x").await;
        progress.request();
        let mut got = Vec::new();
        loop {
            match next(&mut watch).await {
                Some(Ok(WatchItem::Events(events))) => got.extend(events.iter().map(Event::revision)),
                Some(Ok(WatchItem::Progress(revision))) if revision >= other => break,
                Some(Ok(WatchItem::Progress(_))) => {}
                unexpected => panic!("{unexpected:?}"),
            }
        }
        assert_eq!(got, want, "all events come before the progress");
    }
}
