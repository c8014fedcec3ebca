//! Desired state and maps together: events in, map operations out.
//!
//! After a fault nothing is assumed about the maps: they are read back, and everything is compared
//! (update, delete, prune). Between faults an event costs what it changed.

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;

use ipnet::IpNet;

use crate::desired::{Desired, Local, Touched};
use crate::diff::{Cut, Table};
use crate::maps::{MapError, Maps, Op};
use crate::types::{L4Addr, PrefixSpec};

/// How many operations on new frontends are put together.
const FILL: usize = 16_384;

/// Cookie of this thread's network namespace, by which the programs tell the node's own sockets from pods';
/// 0 where the kernel does not say.
pub fn node_netns_cookie() -> u64 {
    crate::sys::netns_cookie().unwrap_or_else(|error| {
        tracing::warn!(%error, "the network namespace has no cookie; node ports stay closed on loopback");
        0
    })
}

/// The load balancer and the ipcache of one node.
#[derive(Debug)]
pub struct Dataplane<M> {
    desired: Desired,
    table: Table,
    prefixes: HashMap<IpNet, PrefixSpec>,
    announced: HashSet<IpAddr>,
    /// Addresses whose announcement began or ended.
    changed: Vec<(IpAddr, bool)>,
    cuts: Vec<Cut>,
    maps: M,
    /// The maps are as `table` and `prefixes` say.
    in_sync: bool,
}

impl<M: Maps> Dataplane<M> {
    /// Does not touch the maps before the first [`Self::reconcile`].
    pub fn new(local: Local, maps: M) -> Self {
        Self {
            desired: Desired::new(local),
            table: Table::default(),
            prefixes: HashMap::new(),
            announced: HashSet::new(),
            changed: Vec::new(),
            cuts: Vec::new(),
            maps,
            in_sync: false,
        }
    }

    /// The desired state, for events. Pass what they return to [`Self::apply`].
    pub fn desired(&mut self) -> &mut Desired {
        &mut self.desired
    }

    /// The maps.
    pub fn maps(&self) -> &M {
        &self.maps
    }

    /// Whether the maps hold what they should, as far as is known.
    pub fn in_sync(&self) -> bool {
        self.in_sync
    }

    /// What has to be cut since the last call.
    pub fn take_cuts(&mut self) -> Vec<Cut> {
        let mut cuts = std::mem::take(&mut self.cuts);
        cuts.extend(self.table.take_cuts());
        cuts
    }

    /// Addresses that this node began (`true`) or ceased to answer for since the last call.
    pub fn take_announced(&mut self) -> Vec<(IpAddr, bool)> {
        std::mem::take(&mut self.changed)
    }

    /// Brings the maps to the desired state where an event touched it. Does nothing while a full
    /// reconcile is due.
    ///
    /// # Errors
    /// A map operation failed; a full reconcile is due.
    pub fn apply(&mut self, touched: &Touched) -> Result<(), MapError> {
        self.note_departed(touched);
        if !self.in_sync {
            return Ok(());
        }
        let result = self.apply_touched(touched);
        self.in_sync = result.is_ok();
        result
    }

    /// Reads the maps back and brings them to the desired state: update, delete, prune.
    ///
    /// # Errors
    /// A map operation failed; call again.
    pub fn reconcile(&mut self) -> Result<(), MapError> {
        self.in_sync = false;
        let snapshot = self.maps.snapshot()?;
        let (table, stale) = Table::adopt(&snapshot);
        self.table = table;
        self.prefixes = snapshot.prefixes.iter().copied().collect();
        self.announced = snapshot.announced.iter().copied().collect();
        self.run(&stale)?;
        // Before any id is given away again.
        self.maps.forget_sockets()?;
        let frontends: Vec<L4Addr> = self.desired.frontends().map(|(frontend, _)| *frontend).collect();
        let gone: Vec<L4Addr> = self
            .table
            .frontends()
            .filter(|frontend| self.desired.frontend(frontend).is_none())
            .copied()
            .collect();
        let prefixes = self.desired.prefixes().map(|(prefix, _)| *prefix);
        let prefixes = prefixes.chain(self.prefixes.keys().copied()).collect();
        let announced = self.desired.announced().chain(&self.announced).copied().collect();
        let frontends = [frontends, gone].concat();
        self.apply_touched(&Touched { frontends, prefixes, announced, ..Touched::default() })?;
        let unused = self.table.sweep();
        self.run(&unused)?;
        self.in_sync = true;
        Ok(())
    }

    /// Endpoints that left, by the frontends of their Service.
    fn note_departed(&mut self, touched: &Touched) {
        for (service, backend) in &touched.departed {
            let frontends = self.desired.frontends_of(service).iter();
            let ids = frontends.filter(|frontend| frontend.protocol == backend.protocol);
            let ids = ids.filter_map(|frontend| self.table.rev_nat_id(frontend));
            self.cuts.extend(ids.map(|rev_nat_id| Cut { rev_nat_id, backend: *backend }));
        }
    }

    fn apply_touched(&mut self, touched: &Touched) -> Result<(), MapError> {
        let mut filling = Vec::new();
        for frontend in &touched.frontends {
            let spec = self.desired.frontend(frontend);
            let is_new = spec.is_some() && !self.table.holds(frontend);
            if !is_new || filling.len() >= FILL {
                // What comes next may use backends that are not written yet.
                self.maps.fill(&filling)?;
                filling.clear();
            }
            let mut ops = self.table.plan(frontend, spec);
            match is_new {
                true => filling.append(&mut ops),
                false => self.run(&ops)?,
            }
        }
        self.maps.fill(&filling)?;
        for prefix in &touched.prefixes {
            let op = match (self.desired.prefix(prefix), self.prefixes.get(prefix)) {
                (Some(wanted), Some(held)) if wanted == held => continue,
                (Some(wanted), _) => Op::PutPrefix { prefix: *prefix, value: *wanted },
                (None, Some(_)) => Op::DeletePrefix { prefix: *prefix },
                (None, None) => continue,
            };
            self.maps.apply(&op)?;
            match op {
                Op::PutPrefix { prefix, value } => drop(self.prefixes.insert(prefix, value)),
                _ => drop(self.prefixes.remove(prefix)),
            }
        }
        // Last: who is told where an address is finds its Service.
        for address in &touched.announced {
            self.announce(*address)?;
        }
        Ok(())
    }

    fn announce(&mut self, address: IpAddr) -> Result<(), MapError> {
        let wanted = self.desired.announces(&address);
        if wanted == self.announced.contains(&address) {
            return Ok(());
        }
        match wanted {
            true => {
                self.maps.apply(&Op::PutAnnounced { address })?;
                self.announced.insert(address);
            }
            false => {
                self.maps.apply(&Op::DeleteAnnounced { address })?;
                self.announced.remove(&address);
            }
        }
        self.changed.push((address, wanted));
        Ok(())
    }

    fn run(&mut self, ops: &[Op]) -> Result<(), MapError> {
        ops.iter().try_for_each(|op| self.maps.apply(op))
    }
}
