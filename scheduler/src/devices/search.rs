//! Finds devices on a node for all claims of a pod that have none: claim by claim, request by request, device by device,
//! the first ones that fit; when it gets no further, the last choice is taken back.
//!
//! Devices of one request are chosen in their order, so that no set of them is tried twice.

use std::collections::HashMap;

use k8s_openapi::api::resource::v1::{AllocationResult, ResourceClaim};

use super::capacity::{self, Taken};
use super::constraint::Constraint;
use super::counters::Left;
use super::outcome::{Chosen, write_down};
use super::pool::{Pool, gather};
use super::request::{Count, Wanted, name_of, requests};
use super::slice::{Device, Slice};
use super::{DeviceId, Inventory};
use crate::snapshot::NodeInfo;

/// Most devices of a claim.
const MAX_DEVICES: usize = 32;
/// A search is given up after so many steps: combinations grow faster than anything can be computed.
const MAX_STEPS: usize = 200_000;

/// Why there is no allocation.
#[derive(Clone, Debug, PartialEq)]
pub enum Failure {
    /// Not on this node; with a text if there is more to say.
    Node(Option<String>),
    /// Something is wrong with a claim, a class or a slice: no node can be right.
    Fatal(String),
}

/// Allocations for the claims, in their order, on a node.
///
/// # Errors
/// Why there are none.
pub fn allocate(
    inventory: &Inventory,
    node: &NodeInfo,
    claims: &[&ResourceClaim],
) -> Result<Vec<AllocationResult>, Failure> {
    let pools = gather(inventory, node);
    let mut search = Search::new(inventory, node, claims, &pools)?;
    match search.device(At::default(), None, 0) {
        Ok(true) => {}
        Ok(false) | Err(Stop::TooMany) if pools.iter().any(|pool| pool.invalid) => {
            return Err(Failure::Node(Some("invalid resource pools were encountered".into())));
        }
        Ok(false) | Err(Stop::TooMany) => return Err(Failure::Node(None)),
        Err(Stop::Failed(text)) => return Err(Failure::Fatal(text)),
    }
    let Search { requests, chosen, .. } = search;
    let results = claims.iter().zip(&requests).zip(chosen);
    let results = results.map(|((claim, wanted), chosen)| write_down(claim, wanted, &chosen, &node.name));
    results.collect::<Result<_, _>>().map_err(Failure::Fatal)
}

/// A device that can be tried, with its slice and the place of its pool.
#[derive(Clone, Copy)]
struct Candidate<'a> {
    pool: usize,
    slice: &'a Slice,
    device: &'a Device,
}

/// Where the search is.
#[derive(Clone, Copy, Default)]
struct At {
    claim: usize,
    request: usize,
    /// How many devices of the request are chosen.
    devices: usize,
}

/// Why the search does not go on here.
enum Stop {
    /// More devices than a claim may have: other devices before do not help, other alternatives may.
    TooMany,
    Failed(String),
}

struct Search<'a> {
    inventory: &'a Inventory,
    node: &'a NodeInfo,
    claims: &'a [&'a ResourceClaim],
    pools: &'a [Pool<'a>],
    candidates: Vec<Candidate<'a>>,
    /// By claim, request, alternative.
    requests: Vec<Vec<Vec<Wanted>>>,
    /// The candidates that are all devices of a request.
    all: HashMap<(usize, usize, usize), Vec<usize>>,
    constraints: Vec<Vec<Constraint>>,
    /// Whether a request selects a candidate.
    selected: HashMap<(usize, usize, usize, usize), bool>,
    /// The claims for which a device is chosen.
    taken: HashMap<&'a DeviceId, Vec<usize>>,
    left: Left,
    /// What is chosen of devices that are shared.
    shares: Taken,
    /// By claim.
    chosen: Vec<Vec<Chosen<'a>>>,
    steps: usize,
}

impl<'a> Search<'a> {
    fn new(
        inventory: &'a Inventory,
        node: &'a NodeInfo,
        claims: &'a [&'a ResourceClaim],
        pools: &'a [Pool<'a>],
    ) -> Result<Self, Failure> {
        let usable = pools.iter().enumerate().filter(|(_, pool)| !pool.incomplete && !pool.invalid);
        let candidates = usable.flat_map(|(at, pool)| {
            let slices = pool.slices.iter().copied();
            slices.flat_map(move |slice| {
                slice.devices.iter().map(move |device| Candidate { pool: at, slice, device })
            })
        });
        let mut constraints = Vec::new();
        for claim in claims {
            let listed = claim.spec.devices.as_ref().and_then(|d| d.constraints.as_ref());
            let mut of_claim = Vec::new();
            for (at, constraint) in listed.into_iter().flatten().enumerate() {
                let text = || {
                    let what = "empty constraint (unsupported constraint type?)";
                    Failure::Fatal(format!("claim {}, constraint #{at}: {what}", name_of(claim)))
                };
                of_claim.push(Constraint::new(constraint).ok_or_else(text)?);
            }
            constraints.push(of_claim);
        }
        let requests: Result<Vec<_>, String> =
            claims.iter().map(|claim| requests(claim, inventory)).collect();
        let mut search = Search {
            inventory,
            node,
            claims,
            pools,
            candidates: candidates.collect(),
            requests: requests.map_err(Failure::Fatal)?,
            all: HashMap::new(),
            constraints,
            selected: HashMap::new(),
            taken: HashMap::new(),
            left: Left::default(),
            shares: Taken::default(),
            chosen: claims.iter().map(|_| Vec::new()).collect(),
            steps: 0,
        };
        search.measure().map_err(Failure::Fatal)?;
        Ok(search)
    }

    /// Finds how many devices "all" are, and whether the claims ask for too many at once.
    fn measure(&mut self) -> Result<(), String> {
        for claim in 0..self.claims.len() {
            let mut fewest = 0usize;
            for request in 0..self.requests[claim].len() {
                let mut least = usize::MAX;
                for alternative in 0..self.requests[claim][request].len() {
                    let key = (claim, request, alternative);
                    if self.wanted(key).count == Count::All {
                        let all = self.find_all(key)?;
                        self.all.insert(key, all);
                    }
                    least = least.min(self.count(key));
                }
                fewest = fewest.saturating_add(least);
            }
            if fewest > MAX_DEVICES {
                return Err(format!(
                    "claim {}: number of requested devices {fewest} exceeds the claim limit of {MAX_DEVICES}",
                    name_of(self.claims[claim])
                ));
            }
        }
        Ok(())
    }

    fn find_all(&mut self, key: (usize, usize, usize)) -> Result<Vec<usize>, String> {
        if let Some(pool) = self.pools.iter().find(|pool| pool.incomplete || pool.invalid) {
            let state = if pool.incomplete { "being updated" } else { "invalid" };
            return Err(format!(
                "claim {}, request {}: asks for all devices, but resource pool {}/{} is currently {state}",
                name_of(self.claims[key.0]),
                self.wanted(key).own_name,
                pool.id.0,
                pool.id.1,
            ));
        }
        let mut all = Vec::new();
        for candidate in 0..self.candidates.len() {
            if self.selects(key, candidate)? && self.has_capacity(key, candidate) {
                all.push(candidate);
            }
        }
        Ok(all)
    }

    fn wanted(&self, (claim, request, alternative): (usize, usize, usize)) -> &Wanted {
        &self.requests[claim][request][alternative]
    }

    fn count(&self, key: (usize, usize, usize)) -> usize {
        match self.wanted(key).count {
            Count::Exactly(count) => count,
            Count::All => self.all.get(&key).map_or(0, Vec::len),
        }
    }

    /// Finds the next device, and all after it. `alternative` is the one that the request is tried with.
    fn device(&mut self, at: At, alternative: Option<usize>, from: usize) -> Result<bool, Stop> {
        self.steps += 1;
        if self.steps > MAX_STEPS {
            let text = format!("node {}: timed out trying to allocate devices", self.node.name);
            return Err(Stop::Failed(text));
        }
        if at.claim == self.claims.len() {
            return Ok(true);
        }
        let Some(alternatives) = self.requests[at.claim].get(at.request).map(Vec::len) else {
            let next = At { claim: at.claim + 1, ..At::default() };
            // Fewer devices of another claim do not make this one's fewer.
            return match self.device(next, None, 0) {
                Err(Stop::TooMany) => Ok(false),
                other => other,
            };
        };
        let Some(alternative) = alternative else {
            let mut too_many = true;
            for alternative in 0..alternatives {
                match self.device(at, Some(alternative), 0) {
                    Err(Stop::TooMany) => {}
                    Ok(false) => too_many = false,
                    other => return other,
                }
            }
            return if too_many { Err(Stop::TooMany) } else { Ok(false) };
        };
        let key = (at.claim, at.request, alternative);
        let (count, all) = (self.count(key), self.wanted(key).count == Count::All);
        if all && count == 0 {
            return Ok(false);
        }
        if at.devices >= count {
            return self.device(At { request: at.request + 1, devices: 0, ..at }, None, 0);
        }
        if self.chosen[at.claim].len() + count - at.devices > MAX_DEVICES {
            return Err(Stop::TooMany);
        }
        if all {
            let candidate = self.all.get(&key).and_then(|all| all.get(at.devices)).copied();
            let Some(candidate) = candidate else { return Ok(false) };
            return self.choose(at, alternative, candidate, true);
        }
        for candidate in from..self.candidates.len() {
            if self.is_free(key, candidate)
                && self.selects(key, candidate).map_err(Stop::Failed)?
                && self.has_capacity(key, candidate)
                && self.choose(at, alternative, candidate, false)?
            {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Chooses a device and goes on; takes the choice back if that leads nowhere.
    ///
    /// Where a device is passed over, kube-scheduler does not give back what was counted for it before, and neither does
    /// this: with devices that consume counters or are shared it decides what is found.
    fn choose(&mut self, at: At, alternative: usize, index: usize, must: bool) -> Result<bool, Stop> {
        let key = (at.claim, at.request, alternative);
        let Candidate { pool, slice, device } = self.candidates[index];
        if !self.is_free(key, index) {
            return Ok(false);
        }
        let shared_already = device.shared
            && (self.inventory.taken(&device.id).is_some() || self.shares.of(&device.id).is_some());
        if !shared_already && !self.left.take(pool, &self.pools[pool], device, self.inventory) {
            return Ok(false);
        }
        let wanted = &self.requests[at.claim][at.request][alternative];
        if !wanted.tolerates(device) {
            return Ok(false);
        }
        let (name, admin_access) = (wanted.name.clone(), wanted.admin_access);
        let constraints = &mut self.constraints[at.claim];
        if let Some(unmet) = constraints.iter_mut().position(|c| !c.add(&name, device)) {
            constraints[..unmet].iter_mut().for_each(|c| c.remove(&name));
            if must {
                return Err(Stop::Failed(format!(
                    "claim {}, request {}: cannot add device {} because a claim constraint would not be satisfied",
                    name_of(self.claims[at.claim]),
                    self.wanted(key).own_name,
                    device.id
                )));
            }
            return Ok(false);
        }
        // Of "all" devices one may have been shared since they were counted.
        if must && !self.has_capacity(key, index) {
            return Ok(false);
        }
        let share = device.shared.then(|| capacity::taken(&device.capacity, self.wanted(key).asked.as_ref()));
        match &share {
            Some(share) => self.shares.add(device.id.clone(), share),
            None => self.taken.entry(&device.id).or_default().push(at.claim),
        }
        let chosen = Chosen { request: at.request, alternative, admin_access, slice, device, share };
        self.chosen[at.claim].push(chosen);
        let found = self.device(At { devices: at.devices + 1, ..at }, Some(alternative), index + 1);
        if matches!(found, Ok(true)) {
            return found;
        }
        let share = self.chosen[at.claim].pop().and_then(|chosen| chosen.share);
        self.constraints[at.claim].iter_mut().for_each(|c| c.remove(&name));
        match share {
            Some(share) if share.is_empty() => {}
            Some(share) => self.shares.remove(&device.id, &share),
            None => {
                if let Some(claims) = self.taken.get_mut(&device.id) {
                    claims.pop();
                }
                self.left.give_back(pool, device);
            }
        }
        found
    }

    /// Whether a device is large enough for a request, with what is left of it.
    fn has_capacity(&self, key: (usize, usize, usize), index: usize) -> bool {
        let device = self.candidates[index].device;
        let used = [self.inventory.taken(&device.id), self.shares.of(&device.id)];
        capacity::fits(&device.capacity, self.wanted(key).asked.as_ref(), &used)
    }

    /// Whether a device can be had. Administration takes what others use, but once for a claim. Who has a share of a
    /// device does not keep others from theirs.
    fn is_free(&self, key: (usize, usize, usize), index: usize) -> bool {
        let device = &self.candidates[index].device.id;
        let taken = self.taken.get(device).map(Vec::as_slice).unwrap_or_default();
        if self.wanted(key).admin_access {
            return !taken.contains(&key.0);
        }
        taken.is_empty() && !self.inventory.is_in_use(device)
    }

    fn selects(&mut self, key: (usize, usize, usize), index: usize) -> Result<bool, String> {
        let place = (key.0, key.1, key.2, index);
        if let Some(known) = self.selected.get(&place) {
            return Ok(*known);
        }
        let candidate = self.candidates[index];
        let here = candidate.slice.offers(candidate.device, self.node);
        let selects = self.wanted(key).selects(candidate.device)? && here;
        self.selected.insert(place, selects);
        Ok(selects)
    }
}
