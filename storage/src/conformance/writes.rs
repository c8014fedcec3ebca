//! Cases about single writes.

use std::sync::Arc;

use bytes::Bytes;
use futures::future::join_all;

use super::{Fixture, create, list, value};
use crate::{Error, FIRST_REVISION, KeyValue, MAX_KEY_BYTES, MAX_REQUEST_BYTES, Precondition, Storage};

/// An empty store has a revision, no keys, and no errors for what is not there.
pub async fn fresh_store(fixture: &mut dyn Fixture) {
    let store = fixture.store();
    let revision = store.current_revision().await.unwrap();
    assert_eq!(revision, FIRST_REVISION);
    assert_eq!(store.get("nothing").await.unwrap(), (None, revision));
    let all = list(&*store, "").await;
    assert_eq!((all.items.len(), all.revision, all.more, all.remaining), (0, revision, false, 0));
    assert!(matches!(store.delete("nothing", Precondition::None).await, Err(Error::NotFound)));
    assert_eq!(store.current_revision().await.unwrap(), revision, "a refused write is no revision");
    assert_eq!(create(&*store, "a", "1").await, revision + 1);
}

fn conflict(result: Result<impl std::fmt::Debug, Error>) -> Option<KeyValue> {
    match result {
        Err(Error::Conflict { current }) => current,
        other => panic!("a conflict was expected: {other:?}"),
    }
}

/// Every precondition against every state of a key, for both kinds of writes.
pub async fn precondition_matrix(fixture: &mut dyn Fixture) {
    let store = fixture.store();
    let other = create(&*store, "other", "x").await;

    // Put on a missing key.
    assert_eq!(conflict(store.put("k", value("1"), Precondition::ModRevision(other)).await), None);
    assert_eq!(conflict(store.put("k", value("1"), Precondition::ModRevision(0)).await), None);
    let created = store.put("k", value("1"), Precondition::Absent).await.unwrap();
    assert_eq!(created, other + 1);
    let first =
        KeyValue { key: "k".into(), value: value("1"), create_revision: created, mod_revision: created };
    assert_eq!(store.get("k").await.unwrap(), (Some(first.clone()), created));

    // Put on a live key.
    let current = || Some(first.clone());
    assert_eq!(conflict(store.put("k", value("2"), Precondition::Absent).await), current());
    assert_eq!(conflict(store.put("k", value("2"), Precondition::ModRevision(other)).await), current());
    assert_eq!(conflict(store.put("k", value("2"), Precondition::ModRevision(created + 9)).await), current());
    assert_eq!(conflict(store.put("k", value("2"), Precondition::ModRevision(0)).await), current());
    let updated = store.put("k", value("2"), Precondition::ModRevision(created)).await.unwrap();
    assert_eq!(updated, created + 1);
    let overwritten = store.put("k", value("3"), Precondition::None).await.unwrap();
    let third = KeyValue { value: value("3"), mod_revision: overwritten, ..first.clone() };
    assert_eq!(store.get("k").await.unwrap(), (Some(third.clone()), overwritten));
    let conflicting = store.put("k", value("4"), Precondition::ModRevision(updated)).await;
    assert_eq!(conflict(conflicting), Some(third.clone()));

    // Delete a live key.
    let current = || Some(third.clone());
    assert_eq!(conflict(store.delete("k", Precondition::Absent).await), current());
    assert_eq!(conflict(store.delete("k", Precondition::ModRevision(updated)).await), current());
    assert_eq!(conflict(store.delete("k", Precondition::ModRevision(0)).await), current());
    let (gone, deleted) = store.delete("k", Precondition::ModRevision(overwritten)).await.unwrap();
    assert_eq!((gone, deleted), (third, overwritten + 1));

    // Delete a missing key: it is not found, whatever else was asked.
    for precondition in [
        Precondition::None,
        Precondition::Absent,
        Precondition::ModRevision(overwritten),
        Precondition::ModRevision(0),
    ] {
        assert!(matches!(store.delete("k", precondition).await, Err(Error::NotFound)), "{precondition:?}");
    }

    // A key that comes back is a new one.
    assert_eq!(conflict(store.put("k", value("5"), Precondition::ModRevision(overwritten)).await), None);
    let again = store.put("k", value("5"), Precondition::None).await.unwrap();
    let (kv, _) = store.get("k").await.unwrap();
    assert_eq!(kv.unwrap().create_revision, again);
    let (gone, deleted) = store.delete("k", Precondition::None).await.unwrap();
    assert_eq!((gone.mod_revision, deleted), (again, again + 1));
    assert_eq!(store.current_revision().await.unwrap(), deleted, "refused writes are no revisions");
}

/// Of many that try the same, one wins; and the loser is told what is there.
pub async fn races(fixture: &mut dyn Fixture) {
    const RACERS: usize = 16;
    let store = fixture.store();
    for round in 0..10 {
        let key = format!("race/{round}");
        let puts = |precondition: Precondition| {
            join_all((0..RACERS).map(|n| {
                let (store, key) = (store.clone(), key.clone());
                let put = async move { store.put(&key, value(&n.to_string()), precondition).await };
                async move { tokio::spawn(put).await.expect("the task runs") }
            }))
        };
        let won = one_winner(puts(Precondition::Absent).await);
        let updated = one_winner(puts(Precondition::ModRevision(won)).await);
        assert!(updated > won);

        // Deletions and updates of the same revision: one of all.
        let mut tasks = Vec::new();
        for n in 0..RACERS {
            let (store, key) = (store.clone(), key.clone());
            tasks.push(tokio::spawn(async move {
                let precondition = Precondition::ModRevision(updated);
                if n % 2 == 0 {
                    store.delete(&key, precondition).await.map(|(_, revision)| revision)
                } else {
                    store.put(&key, value("late"), precondition).await
                }
            }));
        }
        let results = join_all(tasks).await.into_iter().map(|r| r.expect("the task runs")).collect();
        let last = one_winner(results);
        let (kv, _) = store.get(&key).await.unwrap();
        assert!(kv.is_none_or(|kv| kv.mod_revision == last));
    }
    counter(store).await;
}

fn one_winner(results: Vec<Result<u64, Error>>) -> u64 {
    let mut winner = None;
    for result in results {
        match result {
            Ok(revision) => assert_eq!(winner.replace(revision), None, "two have won"),
            Err(Error::Conflict { .. } | Error::NotFound) => {}
            Err(other) => panic!("unexpected: {other}"),
        }
    }
    winner.expect("one has won")
}

/// Compare-and-swap loops lose no increment.
async fn counter(store: Arc<dyn Storage>) {
    const TASKS: u64 = 8;
    const INCREMENTS: u64 = 20;
    create(&*store, "counter", "0").await;
    let tasks = (0..TASKS).map(|_| {
        let store = store.clone();
        tokio::spawn(async move {
            for _ in 0..INCREMENTS {
                let (mut kv, _) = store.get("counter").await.unwrap();
                loop {
                    let now = kv.expect("the counter exists");
                    let n: u64 = String::from_utf8_lossy(&now.value).parse().unwrap();
                    let precondition = Precondition::ModRevision(now.mod_revision);
                    match store.put("counter", value(&(n + 1).to_string()), precondition).await {
                        Ok(_) => break,
                        Err(Error::Conflict { current }) => kv = current,
                        Err(other) => panic!("unexpected: {other}"),
                    }
                }
            }
        })
    });
    for task in join_all(tasks).await {
        task.expect("the task runs");
    }
    let (kv, _) = store.get("counter").await.unwrap();
    assert_eq!(kv.unwrap().value, value(&(TASKS * INCREMENTS).to_string()));
}

/// What is too large or no key is refused as such; everything else comes back byte by byte.
pub async fn limits(fixture: &mut dyn Fixture) {
    let store = fixture.store();
    let huge = Bytes::from(vec![7; MAX_REQUEST_BYTES]);
    assert!(matches!(store.put("huge", huge, Precondition::None).await, Err(Error::TooLarge { .. })));
    for key in ["", "a\0b", &"k".repeat(MAX_KEY_BYTES + 1)] {
        let is_refused = |r: Result<(), Error>| matches!(r, Err(Error::InvalidKey { .. }));
        assert!(is_refused(store.put(key, value("x"), Precondition::None).await.map(drop)));
        assert!(is_refused(store.delete(key, Precondition::None).await.map(drop)));
        assert!(is_refused(store.get(key).await.map(drop)));
    }
    assert_eq!(store.current_revision().await.unwrap(), FIRST_REVISION);

    let large = Bytes::from((0..1 << 20).map(|n| ((n * 31) >> 3) as u8).collect::<Vec<_>>());
    let values = [
        ("empty", Bytes::new()),
        ("bytes", Bytes::from((0..=255).collect::<Vec<u8>>())),
        ("large", large),
        ("größe/ключ/鍵", value("unicode")),
        (&"k".repeat(MAX_KEY_BYTES), value("long")),
    ];
    for (key, value) in &values {
        store.put(key, value.clone(), Precondition::Absent).await.unwrap();
    }
    for (key, value) in &values {
        assert_eq!(store.get(key).await.unwrap().0.unwrap().value, value);
    }
    let mut keys: Vec<_> = values.iter().map(|(k, _)| (*k).to_owned()).collect();
    keys.sort();
    let listed: Vec<_> = list(&*store, "").await.items.iter().map(|kv| kv.key.to_string()).collect();
    assert_eq!(listed, keys, "keys are ordered by their bytes");
}
