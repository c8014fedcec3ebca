//! Cases about lists.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use super::{Fixture, at, create, list, pairs, value};
use crate::{Error, ListOptions, Precondition, Revision};

/// A list at a revision is what the store was then.
pub async fn list_at_revision(fixture: &mut dyn Fixture) {
    let store = fixture.store();
    let mut want: Vec<(Revision, Vec<(String, String)>)> = Vec::new();
    for n in 0..12 {
        let key = format!("p/{}", n % 4);
        let revision = if n % 5 == 4 {
            match store.delete(&key, Precondition::None).await {
                Ok((_, revision)) => revision,
                Err(Error::NotFound) => continue,
                Err(other) => panic!("{other}"),
            }
        } else {
            store.put(&key, value(&n.to_string()), Precondition::None).await.unwrap()
        };
        want.push((revision, pairs(&list(&*store, "p/").await)));
        // Neighbours of the prefix are not in it.
        create(&*store, &format!("p{n}"), "x").await;
        create(&*store, &format!("p0/{n}"), "x").await;
    }
    for (revision, want) in want {
        let got = store.list("p/", at(revision)).await.unwrap();
        assert_eq!((got.revision, pairs(&got)), (revision, want));
    }
    let current = store.current_revision().await.unwrap();
    for revision in [None, Some(0), Some(current)] {
        let got = store.list("p/", ListOptions { revision, ..ListOptions::default() }).await.unwrap();
        assert_eq!(got.revision, current);
    }
    match store.list("p/", at(current + 1)).await {
        Err(Error::FutureRevision { current: told }) => assert_eq!(told, current),
        other => panic!("a revision of the future was listed: {other:?}"),
    }
}

/// Limits, continuation and the counts of what remains.
pub async fn list_pages(fixture: &mut dyn Fixture) {
    let store = fixture.store();
    for n in 0..10 {
        create(&*store, &format!("p/{n}"), "x").await;
        create(&*store, &format!("q/{n}"), "x").await;
    }
    for (start_after, limit, first, count, remaining) in [
        (None, 0, "p/0", 10, 0),
        (None, 3, "p/0", 3, 7),
        (None, 10, "p/0", 10, 0),
        (None, 11, "p/0", 10, 0),
        (Some("p/2"), 3, "p/3", 3, 4),
        (Some("p/2x"), 7, "p/3", 7, 0),
        (Some("p/8"), 0, "p/9", 1, 0),
        (Some("a"), 1, "p/0", 1, 9),
    ] {
        let options = ListOptions { start_after: start_after.map(str::to_owned), limit, revision: None };
        let page = store.list("p/", options).await.unwrap();
        let got = (&*page.items[0].key, page.items.len(), page.remaining, page.more);
        assert_eq!(got, (first, count, remaining, remaining > 0), "{start_after:?} {limit}");
    }
    for beyond in ["p/9", "p/z", "q", "z"] {
        let options = ListOptions { start_after: Some(beyond.to_owned()), ..ListOptions::default() };
        let page = store.list("p/", options).await.unwrap();
        assert_eq!((page.items.len(), page.more), (0, false), "{beyond}");
    }
    assert_eq!(list(&*store, "").await.items.len(), 20);
}

/// Pages taken at one revision add up to that revision, whatever is written in between.
pub async fn paging_while_writing(fixture: &mut dyn Fixture) {
    let store = fixture.store();
    for n in 0..60 {
        create(&*store, &format!("p/{:02}", (n * 37) % 60), &n.to_string()).await;
    }
    let stop = Arc::new(AtomicBool::new(false));
    let writers: Vec<_> = (0..4)
        .map(|w| {
            let (store, stop) = (store.clone(), stop.clone());
            tokio::spawn(async move {
                let mut n = w;
                while !stop.load(Ordering::Relaxed) {
                    let key = format!("p/{:02}", (n * 17) % 80);
                    if n % 3 == 0 {
                        let result = store.delete(&key, Precondition::None).await;
                        assert!(matches!(result, Ok(_) | Err(Error::NotFound)));
                    } else {
                        store.put(&key, value("changed"), Precondition::None).await.unwrap();
                    }
                    n += 4;
                }
            })
        })
        .collect();
    for _ in 0..5 {
        let whole = list(&*store, "p/").await;
        let mut paged = Vec::new();
        let mut start_after = None;
        loop {
            let options = ListOptions { start_after, limit: 7, revision: Some(whole.revision) };
            let page = store.list("p/", options).await.unwrap();
            assert_eq!(page.revision, whole.revision);
            paged.extend(page.items);
            assert_eq!(paged.len() as u64 + page.remaining, whole.items.len() as u64);
            if !page.more {
                break;
            }
            start_after = paged.last().map(|kv| kv.key.to_string());
        }
        assert_eq!(paged, whole.items);
    }
    stop.store(true, Ordering::Relaxed);
    for writer in writers {
        writer.await.expect("the writer runs");
    }
}
