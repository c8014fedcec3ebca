//! What holds of every controller, whatever it is for: it comes to rest on caches that lag, repeat themselves and end with
//! the process; at rest it wants nothing more; and it deletes nothing but what it may. `world` is what they find, `everyone`
//! the table of controllers that are put to it.

mod everyone;
mod world;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};

use super::harness::{Harness, lag};
use super::model::Kind;
use crate::cache::Caches;
use crate::object::Key;
use crate::runner::Controller;

/// Longer than what any controller that looks at its objects from time to time waits.
const PERIOD: Duration = Duration::from_secs(20);

/// One object to begin with.
#[derive(Clone)]
pub struct Given {
    /// Group and plural.
    pub kind: Kind,
    /// The object.
    pub object: Value,
}

/// An object of a kind, given as `group/plural`.
pub fn given(kind: &str, object: Value) -> Given {
    let (group, plural) = kind.split_once('/').unwrap_or(("", kind));
    Given { kind: (group.to_owned(), plural.to_owned()), object }
}

/// What one controller is put to.
pub struct Case<'a> {
    /// The controller's name.
    pub name: &'a str,
    /// Whatever is there, in any order.
    pub objects: Vec<Given>,
    /// Plural of the kind whose names are the controller's keys.
    pub keys: &'a str,
    /// Names of what it may delete besides what objects of that kind control.
    pub may_delete: Vec<String>,
}

fn name_of(object: &Value) -> Key {
    let text = |field: &str| object["metadata"][field].as_str().unwrap_or_default();
    Key::new(text("namespace"), text("name"))
}

/// Checks the laws with one seed.
pub async fn hold<C: Controller>(
    make: impl Fn(&Arc<Caches>, &kube::Client) -> C,
    case: &Case<'_>,
    seed: u64,
) {
    let mut random = lag(seed);
    let mut h = Harness::new(&make);
    assert_eq!(h.controller.name(), case.name);
    let mut left = case.objects.clone();
    while !left.is_empty() {
        let next = left.remove(random(left.len()));
        let namespace = name_of(&next.object).namespace;
        let made = h.model.lock().create(&next.kind, &namespace, next.object);
        // What the controller itself makes may be there before.
        if let Err(refusal) = made.map(drop)
            && refusal.1 != "AlreadyExists"
        {
            panic!("{refusal:?}");
        }
        h.work_some(random(3), |n| random(n + 1)).await;
    }
    // The process ends in the midst of it and another begins.
    if random(2) == 0 {
        h.restart(&make);
    }
    h.settle_lagging(400, |n| random(n + 1)).await;
    // Everything once more, as after a list made anew.
    h.again();
    h.settle(400).await;
    // What comes by itself from time to time has come.
    tokio::time::advance(PERIOD).await;
    h.settle(400).await;
    let keys: Vec<Key> = h
        .model
        .lock()
        .everything()
        .filter(|(kind, ..)| kind.1 == case.keys)
        .map(|(_, key, _)| key.clone())
        .collect();
    for key in keys {
        let plan = h.plan(&key).await;
        assert_eq!(plan.acts().count(), 0, "seed {seed}: at rest {key} is not left alone: {plan:?}");
    }
    let may: BTreeSet<&str> = case.may_delete.iter().map(String::as_str).collect();
    let model = h.model.lock();
    let uid = |object: &Value| object["uid"].as_str().unwrap_or_default().to_owned();
    let owners = model.log.iter().filter(|event| event.kind.1 == case.keys);
    let owners: BTreeSet<String> = owners.map(|event| uid(&event.object["metadata"])).collect();
    for event in &model.log {
        let meta = &event.object["metadata"];
        let gone = event.what == "DELETED" || meta["deletionTimestamp"] != json!(null);
        let mut above = meta["ownerReferences"].as_array().into_iter().flatten();
        let own = above.any(|owner| owner["controller"] == json!(true) && owners.contains(&uid(owner)));
        let name = name_of(&event.object).name;
        assert!(
            !gone || own || may.contains(name.as_str()),
            "seed {seed}: {} {name} was deleted",
            event.kind.1
        );
    }
}
