//! Who has which address of the pools.
//!
//! The claims are what Services' status says; this is the shared memory of them, kept by the cache's changes, with
//! what is being written in between. It is rebuilt from the Services at every start.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::net::IpAddr;

use kube::core::Selector;

use super::pool::{Block, next};
use crate::object::{self, Key, Labels};

/// A pool as it is used.
#[derive(Clone, Debug)]
pub struct Pool {
    /// Its blocks, none overlapping.
    pub blocks: Vec<Block>,
    /// Gives out nothing more.
    pub disabled: bool,
    /// For which Services; `None` for all.
    pub services: Option<Selector>,
    /// For Services of which namespaces; `None` for all.
    pub namespaces: Option<Selector>,
}

/// What a Service asks for.
#[derive(Clone, Debug, Default)]
pub struct Wish {
    /// Labels of the Service.
    pub labels: Option<Labels>,
    /// Labels of its namespace.
    pub namespace_labels: Option<Labels>,
    /// Its families: whether IPv4.
    pub families: Vec<bool>,
    /// Addresses that it asks for.
    pub asked: Vec<IpAddr>,
    /// Addresses that it has.
    pub has: Vec<IpAddr>,
}

/// Why there is no address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Why {
    /// No pool is for this Service and family.
    NoPool,
    /// All addresses are given out.
    Exhausted,
    /// The address that is asked for is another's.
    Taken(IpAddr, Key),
    /// The address that is asked for is in no pool that is for this Service.
    Outside(IpAddr),
}

/// The ledger.
#[derive(Default)]
pub struct Ledger {
    pools: BTreeMap<String, Pool>,
    claims: BTreeMap<IpAddr, BTreeSet<Key>>,
    /// By status.
    has: HashMap<Key, Vec<IpAddr>>,
    /// Offered on the ground of a version of the Service, and not yet seen in the status.
    offered: HashMap<Key, (u64, Vec<IpAddr>)>,
    /// Services that did not get all they want.
    waiting: HashSet<Key>,
    /// By a block's first address: all addresses of the block before this one are given out.
    full_before: HashMap<IpAddr, IpAddr>,
}

impl Ledger {
    fn drop_claim(&mut self, address: IpAddr, key: &Key) {
        let Some(holders) = self.claims.get_mut(&address) else { return };
        holders.remove(key);
        if holders.is_empty() {
            self.claims.remove(&address);
            for block in self.pools.values().flat_map(|p| &p.blocks).filter(|b| b.contains(address)) {
                if let Some(mark) = self.full_before.get_mut(&block.first) {
                    *mark = (*mark).min(address);
                }
            }
        }
    }

    fn claim(&mut self, address: IpAddr, key: &Key) {
        self.claims.entry(address).or_default().insert(key.clone());
    }

    /// Takes in a version of a Service: the addresses of its status. Answers who should look again: those who wait, if
    /// something became free, and whoever has one of the same addresses.
    ///
    /// What was offered on the ground of an older version is settled by it: either it is in this one, or whoever writes
    /// it gets a conflict.
    pub fn saw(&mut self, key: &Key, version: u64, addresses: Vec<IpAddr>) -> Vec<Key> {
        let mut freed = self.has.remove(key).unwrap_or_default();
        if self.offered.get(key).is_some_and(|(ground, _)| *ground < version) {
            freed.extend(self.offered.remove(key).map(|(_, offered)| offered).unwrap_or_default());
        }
        for address in &addresses {
            self.claim(*address, key);
        }
        let offered = self.offered.get(key).map(|(_, offered)| offered.clone()).unwrap_or_default();
        let mut again = HashSet::new();
        for address in freed.iter().filter(|a| !addresses.contains(a) && !offered.contains(a)) {
            self.drop_claim(*address, key);
            again.extend(self.waiting.iter().cloned());
        }
        for address in &addresses {
            let holders = self.claims.get(address).into_iter().flatten();
            again.extend(holders.filter(|k| *k != key).cloned());
        }
        if !addresses.is_empty() {
            self.has.insert(key.clone(), addresses);
        }
        again.into_iter().collect()
    }

    /// A Service is none of ours any more: it waits for nothing.
    pub fn forget(&mut self, key: &Key) {
        self.waiting.remove(key);
    }

    /// Takes in a pool, or that it is gone. Answers who should look again: those who wait, and those who have an address
    /// of it.
    pub fn saw_pool(&mut self, name: &str, pool: Option<Pool>) -> Vec<Key> {
        let before = match pool {
            Some(pool) => self.pools.insert(name.to_owned(), pool),
            None => self.pools.remove(name),
        };
        self.full_before.clear();
        let mut again: HashSet<Key> = self.waiting.iter().cloned().collect();
        for block in before.iter().flat_map(|p| &p.blocks) {
            again.extend(
                self.claims.range(block.first..=block.last).flat_map(|(_, keys)| keys.iter().cloned()),
            );
        }
        again.into_iter().collect()
    }

    /// How many addresses of a block are given out.
    pub fn used(&self, block: &Block) -> usize {
        self.claims.range(block.first..=block.last).count()
    }

    /// The pools that an address is of.
    pub fn pools_of(&self, address: IpAddr) -> impl Iterator<Item = &String> {
        let has = move |p: &&Pool| p.blocks.iter().any(|b| b.contains(address));
        self.pools.iter().filter(move |(_, p)| has(p)).map(|(name, _)| name)
    }

    /// Whether there is any pool.
    pub fn has_pools(&self) -> bool {
        !self.pools.is_empty()
    }

    /// Another Service with this address.
    pub fn other(&self, address: IpAddr, key: &Key) -> Option<&Key> {
        self.claims.get(&address)?.iter().find(|k| *k != key)
    }

    /// What a Service of a version gets, per family in its order. What is answered is held for it until a later version
    /// is seen. `loses` tells whether the Service has to give an address up to another one that has it too.
    pub fn offer(
        &mut self,
        key: &Key,
        version: u64,
        wish: &Wish,
        loses: impl Fn(&Key) -> bool,
    ) -> Vec<Result<IpAddr, Why>> {
        let (ground, mine) = self.offered.remove(key).unwrap_or_default();
        let mut offers = Vec::new();
        for v4 in &wish.families {
            offers.push(self.one(key, wish, *v4, &mine, &loses));
        }
        let mut held: Vec<IpAddr> = offers.iter().flatten().copied().collect();
        // What was offered on the same ground may be on its way to the store still.
        let (same, old): (Vec<IpAddr>, Vec<IpAddr>) = mine.into_iter().partition(|_| ground >= version);
        held.extend(same);
        let has = self.has.get(key).cloned().unwrap_or_default();
        for address in old.into_iter().filter(|a| !held.contains(a) && !has.contains(a)) {
            self.drop_claim(address, key);
        }
        held.iter().for_each(|a| self.claim(*a, key));
        self.offered.insert(key.clone(), (version.max(ground), held));
        if offers.iter().any(Result::is_err) {
            self.waiting.insert(key.clone());
        } else {
            self.waiting.remove(key);
        }
        offers
    }

    fn one(
        &mut self,
        key: &Key,
        wish: &Wish,
        v4: bool,
        mine: &[IpAddr],
        loses: impl Fn(&Key) -> bool,
    ) -> Result<IpAddr, Why> {
        let suits = |pool: &&Pool| {
            let fits = |s: &Option<Selector>, labels| s.as_ref().is_none_or(|s| object::matches(s, labels));
            fits(&pool.services, &wish.labels) && fits(&pool.namespaces, &wish.namespace_labels)
        };
        let inside = |pool: &Pool, a: IpAddr| pool.blocks.iter().any(|b| b.contains(a));
        let kept = |a: &IpAddr| self.pools.values().filter(suits).any(|p| inside(p, *a));
        let open = |a: &IpAddr| self.pools.values().filter(suits).any(|p| !p.disabled && inside(p, *a));
        if let Some(asked) = wish.asked.iter().find(|a| a.is_ipv4() == v4) {
            let has = wish.has.contains(asked);
            return match self.other(*asked, key) {
                Some(other) if !has || loses(other) => Err(Why::Taken(*asked, other.clone())),
                _ if open(asked) || has && kept(asked) => Ok(*asked),
                _ => Err(Why::Outside(*asked)),
            };
        }
        for held in wish.has.iter().filter(|a| a.is_ipv4() == v4) {
            if kept(held) && !self.other(*held, key).is_some_and(&loses) {
                return Ok(*held);
            }
        }
        if let Some(held) =
            mine.iter().find(|a| a.is_ipv4() == v4 && open(a) && self.other(**a, key).is_none())
        {
            return Ok(*held);
        }
        let blocks: Vec<Block> = self
            .pools
            .values()
            .filter(|p| !p.disabled)
            .filter(suits)
            .flat_map(|p| &p.blocks)
            .filter(|b| b.first.is_ipv4() == v4)
            .copied()
            .collect();
        if blocks.is_empty() {
            return Err(Why::NoPool);
        }
        blocks.iter().find_map(|b| self.first_free(b)).ok_or(Why::Exhausted)
    }

    /// The first address of a block that nobody has.
    fn first_free(&mut self, block: &Block) -> Option<IpAddr> {
        let mut free = Some(*self.full_before.get(&block.first).unwrap_or(&block.first));
        if let Some(from) = free.filter(|f| block.contains(*f)) {
            for (taken, _) in self.claims.range(from..=block.last) {
                if Some(*taken) != free {
                    break;
                }
                free = next(*taken);
            }
        }
        if let Some(mark) = free {
            self.full_before.insert(block.first, mark);
        }
        free.filter(|f| block.contains(*f))
    }
}
