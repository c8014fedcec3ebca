//! Asks every kubelet, each at its own moment of the round so that the work is even.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use jiff::Timestamp;
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior};
use tokio_util::sync::CancellationToken;

use super::samples::Scrape;
use super::{Usage, period};
use crate::access::{Change, GroupResource, ObjectReader};

/// How long a kubelet may take.
const TIMEOUT: Duration = Duration::from_secs(10);
/// How many are asked at once.
const AT_ONCE: usize = 32;
/// How finely the moments of a round are told apart.
const TICK: Duration = Duration::from_millis(250);

/// Reads `/metrics/resource` of a kubelet.
#[async_trait::async_trait]
pub trait Kubelets: Send + Sync + 'static {
    /// The text, or why there is none. `node` is the Node as stored.
    async fn resource_metrics(&self, node: &Bytes) -> Result<String, String>;
}

struct Known {
    json: Bytes,
    due: Instant,
    asked: bool,
}

/// The moment of a round at which a node is asked, as a share of it: even over all names.
fn share(name: &str) -> f64 {
    let hash =
        name.bytes().fold(0xcbf2_9ce4_8422_2325u64, |h, b| (h ^ u64::from(b)).wrapping_mul(0x0100_0000_01b3));
    // FNV's upper bits hardly move for names that differ at their end: MurmurHash3's finaliser mixes them.
    let mixed =
        [0xff51_afd7_ed55_8ccd_u64, 0xc4ce_b9fe_1a85_ec53].iter().fold(hash ^ (hash >> 33), |h, k| {
            let h = h.wrapping_mul(*k);
            h ^ (h >> 33)
        });
    f64::from((mixed >> 32) as u32) / f64::from(u32::MAX)
}

/// Keeps `usage` up to date until `stop`.
pub async fn run(
    usage: Arc<Usage>,
    reader: Arc<dyn ObjectReader>,
    kubelets: Arc<dyn Kubelets>,
    stop: CancellationToken,
) {
    let mut changes = match reader.changes(&GroupResource::new("", "nodes")) {
        Ok(changes) => changes,
        Err(error) => {
            tracing::warn!(%error, "the use of nodes is not read");
            return;
        }
    };
    let mut nodes: HashMap<String, Known> = HashMap::new();
    let mut asking: JoinSet<(String, Result<Scrape, String>)> = JoinSet::new();
    let mut tick = tokio::time::interval(TICK);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            change = changes.next() => match change {
                Some(change) => follow(&usage, &mut nodes, change),
                None => return,
            },
            Some(done) = asking.join_next() => {
                // A task that panicked has no name to be marked by; its node is asked again by the next list.
                let Ok((name, answer)) = done else { continue };
                let Some(known) = nodes.get_mut(&name) else { continue };
                known.asked = false;
                match answer {
                    Ok(scrape) => usage.take(&name, scrape),
                    Err(error) => tracing::debug!(node = name, error, "the kubelet does not tell its use"),
                }
            }
            _ = tick.tick() => ask(&mut nodes, &mut asking, &kubelets),
        }
    }
}

fn follow(usage: &Usage, nodes: &mut HashMap<String, Known>, change: Change) {
    let known = |json: Bytes, name: &str, nodes: &mut HashMap<String, Known>| match nodes.get_mut(name) {
        Some(held) => held.json = json,
        None => {
            let due = Instant::now() + super::SHORTEST.mul_f64(share(name));
            nodes.insert(name.to_owned(), Known { json, due, asked: false });
        }
    };
    match change {
        Change::Reset(all) => {
            let gone: Vec<String> =
                nodes.keys().filter(|n| !all.iter().any(|o| *o.name == ***n)).cloned().collect();
            for name in gone {
                nodes.remove(&name);
                usage.forget(&name);
            }
            all.into_iter().for_each(|o| known(o.json, &o.name, nodes));
        }
        Change::Applied(one) => known(one.json, &one.name, nodes),
        Change::Deleted(one) => {
            nodes.remove(&*one.name);
            usage.forget(&one.name);
        }
    }
}

fn ask(
    nodes: &mut HashMap<String, Known>,
    asking: &mut JoinSet<(String, Result<Scrape, String>)>,
    kubelets: &Arc<dyn Kubelets>,
) {
    let (now, round) = (Instant::now(), period(nodes.len()));
    for (name, known) in nodes.iter_mut().filter(|(_, k)| !k.asked && k.due <= now) {
        if asking.len() >= AT_ONCE {
            return;
        }
        known.asked = true;
        known.due = now + round;
        let (kubelets, node, name) = (kubelets.clone(), known.json.clone(), name.clone());
        asking.spawn(async move {
            let answer = tokio::time::timeout(TIMEOUT, kubelets.resource_metrics(&node)).await;
            let answer = answer.unwrap_or_else(|_| Err("timed out".to_owned()));
            (name, answer.map(|text| Scrape::parse(&text, Timestamp::now())))
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::access::{ObjectRef, ReadError};
    use futures::stream::BoxStream;
    use parking_lot::Mutex;

    struct Nodes(Mutex<Option<tokio::sync::mpsc::UnboundedReceiver<Change>>>);

    #[async_trait::async_trait]
    impl ObjectReader for Nodes {
        async fn get(
            &self,
            _: &GroupResource,
            _: &str,
            _: &str,
            _: bool,
        ) -> Result<Option<ObjectRef>, ReadError> {
            Ok(None)
        }
        async fn list(
            &self,
            _: &GroupResource,
            _: Option<&str>,
            _: bool,
        ) -> Result<Vec<ObjectRef>, ReadError> {
            Ok(Vec::new())
        }
        fn changes(&self, _: &GroupResource) -> Result<BoxStream<'static, Change>, ReadError> {
            let changes = self.0.lock().take().expect("asked once");
            Ok(futures::stream::unfold(changes, |mut c| async { c.recv().await.map(|x| (x, c)) }).boxed())
        }
    }

    /// A kubelet whose node uses more CPU with every question; node `down` never answers.
    #[derive(Default)]
    struct Counting(Mutex<HashMap<String, u32>>);

    #[async_trait::async_trait]
    impl Kubelets for Counting {
        async fn resource_metrics(&self, node: &Bytes) -> Result<String, String> {
            let name = String::from_utf8_lossy(node).into_owned();
            let n = {
                let mut asked = self.0.lock();
                let n = asked.entry(name.clone()).or_default();
                *n += 1;
                *n
            };
            if name == "down" {
                return Err("connection refused".to_owned());
            }
            Ok(format!("node_cpu_usage_seconds_total {n}\nnode_memory_working_set_bytes 5\n"))
        }
    }

    #[tokio::test(start_paused = true)]
    async fn every_node_is_asked_in_its_turn_and_forgotten_with_it() {
        let (tx, rx) = tokio::sync::mpsc::unbounded_channel();
        let node = |name: &str| ObjectRef {
            namespace: "".into(),
            name: name.into(),
            resource_version: 1,
            json: Bytes::copy_from_slice(name.as_bytes()),
        };
        let (usage, kubelets, stop) =
            (Arc::new(Usage::default()), Arc::new(Counting::default()), CancellationToken::new());
        let reader = Arc::new(Nodes(Mutex::new(Some(rx))));
        let running = tokio::spawn(run(usage.clone(), reader, kubelets.clone(), stop.clone()));
        tx.send(Change::Reset(vec![node("a"), node("down")])).expect("sent");
        tx.send(Change::Applied(node("b"))).expect("sent");
        tokio::time::sleep(Duration::from_secs(46)).await;
        let asked = |name: &str| kubelets.0.lock().get(name).copied().unwrap_or(0);
        for name in ["a", "b", "down"] {
            // Once in each of three rounds, wherever in the round its moment is.
            assert!((3..=4).contains(&asked(name)), "{name}: {}", asked(name));
        }
        let now = Timestamp::now();
        assert!(usage.of("a", now).expect("known").node.is_some_and(|u| u.memory == 5));
        assert!(usage.of("down", now).is_none());
        tx.send(Change::Deleted(node("a"))).expect("sent");
        tokio::time::sleep(Duration::from_secs(20)).await;
        assert!(usage.of("a", now).is_none() && usage.of("b", now).is_some());
        stop.cancel();
        running.await.expect("ends");
    }

    #[test]
    fn moments_are_spread() {
        let mut buckets = [0; 10];
        (0..1000).for_each(|n| buckets[(share(&format!("node-{n}")) * 9.999) as usize] += 1);
        assert!(buckets.iter().all(|n| *n > 50), "{buckets:?}");
    }
}
