//! Cycles: a pod, or a gang, gets a node, or is told why it gets none.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Instant;

use jiff::Timestamp;

use super::Scheduler;
use crate::cycle::{FitError, told};
use crate::events::Notice;
use crate::extender::Answers;
use crate::framework::Rejection;
use crate::plugins::group_of;
use crate::pod::PodInfo;
use crate::preempt::{Outcome, Preemption, search};
use crate::report::{self, Report};
use crate::snapshot::Slot;

/// When extenders left none of the nodes on which room could be made.
const NO_CANDIDATE: &str = "no candidate node for preemption";

/// A node, or why there is none; with what preemption found if it was tried.
type Choice = Result<Slot, (FitError, Option<Option<Preemption>>)>;

impl Scheduler {
    pub(super) async fn cycle(&mut self) {
        let now = Instant::now();
        let Some(pod) = self.queue.pop(now) else { return };
        self.cache.objects().now = Timestamp::now();
        let Some(profile) = self.profile(&pod) else { return };
        if let Some(group) = group_of(&pod)
            && self.cache.view().objects.groups.get(group.as_str()).is_some_and(|g| g.min_count.is_some())
        {
            self.cycle_group(&group, pod, now).await;
            return;
        }
        match self.choose(profile, &pod, true).await {
            Ok(Ok(slot)) => {
                let Some(node) = self.cache.view().at(slot).map(|node| node.name.clone()) else { return };
                match self.reserve(profile, &pod, &node) {
                    Ok(()) => {
                        self.wake_next(&pod, now);
                        self.ask_permission(profile, pod, node, None, now);
                        self.ask_held(now);
                    }
                    Err(rejection) => {
                        self.rejected(pod, FitError::of_chosen(&rejection), None, now);
                    }
                }
            }
            Ok(Err((error, room))) => {
                let nominated =
                    room.as_ref().map(|room| room.as_ref().map_or(String::new(), |r| r.node.to_string()));
                if matches!(room, Some(None)) {
                    self.cache.denominate(&pod.key.uid);
                }
                self.rejected(pod.clone(), error, nominated, now);
                if let Some(Some(room)) = room {
                    self.make_room(&pod, room);
                    self.wake_next(&pod, now);
                }
            }
            Err(error) => {
                self.queue.failed(&pod.key, now);
                self.reports.add(Report::Failed {
                    pod,
                    reason: "SchedulerError",
                    message: error,
                    nominated: None,
                });
            }
        }
    }

    /// Chooses a node. If none fits: why, and, if preemption was tried, whether there will be room.
    ///
    /// # Errors
    /// If an extender fails.
    pub(super) async fn choose(
        &mut self,
        profile: usize,
        pod: &PodInfo,
        may_preempt: bool,
    ) -> Result<Choice, String> {
        let framework = &self.profiles[profile];
        let snapshot = self.cache.snapshot();
        let mut attempt = self.engine.attempt(framework, pod, snapshot);
        let mut further: HashMap<Slot, i64> = HashMap::new();
        if !attempt.feasible().is_empty() && self.extenders.concern(pod) {
            let names = attempt.feasible().iter().filter_map(|slot| snapshot.at(*slot));
            let names: Vec<String> = names.map(|node| node.name.to_string()).collect();
            let answered = self.extenders.ask(pod, names).await;
            let Answers { rejected, scores } = match answered {
                Ok(answers) => answers,
                Err(error) => {
                    self.engine.keep(attempt);
                    return Err(error);
                }
            };
            attempt.retain(|slot| {
                let rejection = snapshot.at(slot).and_then(|node| rejected.get(&*node.name));
                rejection.map_or(Ok(()), |r| Err(Rejection { plugin: "Extender", ..r.clone() }))
            });
            let slots = scores.iter().filter_map(|(name, score)| Some((snapshot.node(name)?.slot, *score)));
            further = slots.collect();
        }
        if let Some(failure) = attempt.failure() {
            self.engine.keep(attempt);
            return Err(failure);
        }
        let mut writes = Vec::new();
        let choice = match attempt.choose(&further, &mut rand::rng()) {
            Some(slot) => Ok(slot),
            None => {
                let mut error = attempt.error();
                let mut remedies = if may_preempt { attempt.remedies() } else { Vec::new() };
                writes.extend(remedies.iter_mut().filter_map(|remedy| remedy.write.take()));
                let mut room = None;
                if let Some(args) = attempt.preemption().filter(|_| may_preempt) {
                    let asked = self.extenders.judge_victims(pod);
                    let outcome = match search(&mut attempt, args, asked, &mut rand::rng()) {
                        Err(text) => Outcome::NotEligible(text),
                        Ok(mut found) if asked && !found.candidates.is_empty() => {
                            let candidates = std::mem::take(&mut found.candidates);
                            match self.extenders.judge(pod, candidates, snapshot).await {
                                Ok(left) if left.is_empty() => Outcome::NoUse(NO_CANDIDATE.into()),
                                Ok(left) => {
                                    found.candidates = left;
                                    found.outcome()
                                }
                                Err(failure) => {
                                    self.engine.keep(attempt);
                                    return Err(failure);
                                }
                            }
                        }
                        Ok(found) => found.outcome(),
                    };
                    match outcome {
                        Outcome::Room(found) => room = Some(Some(found)),
                        Outcome::NotEligible(text) => error.preemption = told(&remedies, text),
                        Outcome::NoUse(text) => {
                            error.preemption = told(&remedies, &text);
                            room = Some(None);
                        }
                    }
                }
                Err((error, room))
            }
        };
        self.engine.keep(attempt);
        self.write_aside(&pod.key, writes);
        Ok(choice)
    }

    /// Chooses nodes for all pods of a gang that have none. If there are enough, they are bound; otherwise none is.
    pub(super) async fn cycle_group(&mut self, group: &str, first: Arc<PodInfo>, now: Instant) {
        let mut pods = vec![first];
        pods.extend(self.queue.take_group(group, now));
        let mut chosen: Vec<(usize, Arc<PodInfo>, Arc<str>)> = Vec::new();
        let mut failed: Vec<(Arc<PodInfo>, FitError)> = Vec::new();
        for pod in pods {
            let Some(profile) = self.profile(&pod) else { continue };
            let error = match self.choose(profile, &pod, false).await {
                Ok(Ok(slot)) => {
                    let Some(node) = self.cache.view().at(slot).map(|node| node.name.clone()) else {
                        continue;
                    };
                    match self.reserve(profile, &pod, &node) {
                        Ok(()) => {
                            chosen.push((profile, pod, node));
                            continue;
                        }
                        Err(rejection) => FitError::of_chosen(&rejection),
                    }
                }
                Ok(Err((error, _))) => error,
                Err(error) => FitError { nodes: 1, at_once: Some(error), ..FitError::default() },
            };
            failed.push((pod, error));
        }
        let objects = &self.cache.view().objects;
        let wanted = objects.groups.get(group).and_then(|g| g.min_count).unwrap_or(0);
        if objects.members(group).1 >= wanted {
            for (profile, pod, node) in chosen {
                self.ask_permission(profile, pod, node, None, now);
            }
            for (pod, error) in failed {
                self.rejected(pod, error, None, now);
            }
            self.ask_held(now);
            return;
        }
        // What helps one of them helps all.
        let mut plugins: Vec<&'static str> = failed.iter().flat_map(|(_, e)| e.plugins.clone()).collect();
        plugins.sort_unstable();
        plugins.dedup();
        for (_, pod, node) in chosen.into_iter().rev() {
            self.give_back(&pod, &node);
            self.queue.unschedulable(&pod.key, &plugins, now);
            let message = "pod group is unschedulable".to_owned();
            self.reports.add(Report::Failed { pod, reason: "Unschedulable", message, nominated: None });
        }
        for (pod, error) in failed {
            self.rejected(pod, FitError { plugins: plugins.clone(), ..error }, None, now);
        }
    }

    /// What helped a pod may help the next one like it.
    fn wake_next(&mut self, pod: &PodInfo, now: Instant) {
        let cache = &self.cache;
        self.queue.placed(pod, |uid| cache.nominated_node(uid).is_some(), now);
    }

    /// The pod goes back to the queue and is told why.
    pub(super) fn rejected(
        &mut self,
        pod: Arc<PodInfo>,
        error: FitError,
        nominated: Option<String>,
        now: Instant,
    ) {
        self.queue.unschedulable(&pod.key, &error.plugins, now);
        self.reports.add(Report::Failed {
            pod,
            reason: "Unschedulable",
            message: error.to_string(),
            nominated,
        });
    }

    /// Sends the victims away. The pod is tried again when they have left, and the room is its own until then.
    pub(super) fn make_room(&mut self, pod: &Arc<PodInfo>, room: Preemption) {
        let mut displaced = Vec::new();
        for other in self.cache.nominated_below(&room.node, pod.priority) {
            self.cache.denominate(&other.key.uid);
            displaced.push(other.key.clone());
        }
        self.cache.nominate(pod.clone(), &room.node);
        let now = Instant::now();
        let mut leaving = Vec::new();
        for victim in &room.victims {
            // One that is not bound yet only has to give up its reservation.
            if let Some(held) = self.held.remove(&victim.key.uid) {
                self.give_back(&held.pod, &held.node);
                self.queue.failed(&held.pod.key, now);
            } else if !victim.deleting {
                leaving.push(victim.key.clone());
            }
        }
        let (client, recorder, pod) = (self.client.clone(), self.recorder.clone(), pod.clone());
        self.evictions.spawn(async move {
            for other in displaced {
                if let Err(error) = report::clear_nomination(client.clone(), &other).await {
                    tracing::debug!(%error, namespace = %other.namespace, pod = %other.name, "nomination not cleared");
                }
            }
            for victim in leaving {
                match report::evict(client.clone(), &victim, &pod.scheduler_name, Timestamp::now()).await {
                    Ok(()) => {
                        let notice = Notice::preempted(&pod.key, &room.node);
                        recorder.publish(notice, &pod.scheduler_name, &victim).await;
                    }
                    Err(error) => {
                        tracing::warn!(%error, namespace = %victim.namespace, pod = %victim.name, "not preempted");
                    }
                }
            }
        });
    }
}
