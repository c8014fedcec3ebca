//! Cluster addresses and node ports of Services: never given out twice, by however many API servers.
//!
//! Whatever is given out has a claim in the store that is made with compare-and-swap before the Service is written:
//! an address is an `IPAddress` object of that name (KEP-1880), a port is a key of its own. Nothing is kept in memory.
//! A write takes what it needs first and gives it back if it fails. What a crash leaves behind between the two writes
//! is put right by [`repair`].

mod claims;
pub mod repair;
#[cfg(test)]
mod tests;
mod work;

use std::net::Ipv4Addr;
use std::sync::Arc;

use hawser_api::kinds::Kind;
use hawser_api::object::ObjectExt as _;
use hawser_api::status::Status;
use ipnet::Ipv4Net;
use serde_json::Value;

pub use self::claims::{Held, Ledger, Stored};
use self::work::Work;

/// First node port.
const FIRST_PORT: u16 = 30000;
/// Number of node ports.
const PORTS: u16 = 2768;
/// What a dry run answers for a port that would be given out (as kube-apiserver: one that never is).
const DRY_RUN_PORT: i64 = FIRST_PORT as i64 + PORTS as i64 + 1;
/// Node ports kept for those that are asked for by number (KEP-3668).
const RESERVED_PORTS: u16 = 86;

/// Something given out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Claim {
    /// An address of the Services' range.
    Address(Ipv4Addr),
    /// A node port.
    Port(u16),
}

/// The Service that has something.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct Owner {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
}

impl Owner {
    /// The owner that an object is.
    pub fn of(service: &Value) -> Self {
        Self { namespace: service.namespace().to_owned(), name: service.name().to_owned() }
    }
}

/// The allocators of a server.
#[derive(Clone)]
pub struct Allocators {
    cidr: Ipv4Net,
    ledger: Arc<dyn Ledger>,
}

/// What one write took and gives up. Dropped before the write was tried it gives back what it took.
#[derive(Default)]
pub struct Allocation {
    ledger: Option<Arc<dyn Ledger>>,
    owner: Owner,
    taken: Vec<Claim>,
    freed: Vec<Claim>,
    /// The write may have happened: what was taken must stay taken until somebody has looked.
    tried: bool,
}

impl Allocation {
    fn new(ledger: Arc<dyn Ledger>, owner: Owner) -> Self {
        let mut allocation = Self::default();
        allocation.ledger = Some(ledger);
        allocation.owner = owner;
        allocation
    }

    /// From now on nobody can say whether the write happens.
    pub fn trying(&mut self) {
        self.tried = true;
    }

    /// The write has happened: what it took stays taken, what it gave up is free.
    pub async fn commit(mut self) {
        self.taken.clear();
        let freed = std::mem::take(&mut self.freed);
        if let Some(ledger) = self.ledger.take() {
            release(&*ledger, &self.owner, freed).await;
        }
    }

    /// The write has not happened.
    pub async fn refused(mut self) {
        self.give_back().await;
    }

    /// The write has not happened and is tried again with another name.
    ///
    /// # Errors
    /// When somebody else was quicker in between.
    pub async fn rename(&mut self, service: &Value) -> Result<(), Status> {
        let wanted = self.taken.clone();
        self.give_back().await;
        self.owner = Owner::of(service);
        let Some(ledger) = self.ledger.clone() else { return Ok(()) };
        for claim in wanted {
            if !ledger.take(claim, &self.owner).await? {
                return Err(Status::internal("what was allocated for the Service was taken meanwhile"));
            }
            self.taken.push(claim);
        }
        Ok(())
    }

    async fn give_back(&mut self) {
        self.tried = false;
        let taken = std::mem::take(&mut self.taken);
        if let Some(ledger) = self.ledger.clone() {
            release(&*ledger, &self.owner, taken).await;
        }
    }
}

impl Drop for Allocation {
    fn drop(&mut self) {
        if self.tried || self.taken.is_empty() {
            return;
        }
        // Without a runtime the process is ending, and the repair of the next start gives back.
        if let (Some(ledger), Ok(runtime)) = (self.ledger.take(), tokio::runtime::Handle::try_current()) {
            let (owner, taken) = (std::mem::take(&mut self.owner), std::mem::take(&mut self.taken));
            runtime.spawn(async move { release(&*ledger, &owner, taken).await });
        }
    }
}

/// Gives claims back. What cannot be given back now is found by the repair.
async fn release(ledger: &dyn Ledger, owner: &Owner, claims: Vec<Claim>) {
    for claim in claims {
        if let Err(e) = ledger.release(claim, owner).await {
            tracing::warn!(?claim, error = %e.message, "not given back");
        }
    }
}

fn is_service(kind: &Kind) -> bool {
    kind.group.is_empty() && kind.plural == "services"
}

impl Allocators {
    /// Allocators for a service CIDR over a ledger.
    pub fn new(cidr: Ipv4Net, ledger: Arc<dyn Ledger>) -> Self {
        Self { cidr, ledger }
    }

    /// The first address: that of the `kubernetes` Service.
    pub fn first_address(&self) -> Ipv4Addr {
        Ipv4Addr::from(u32::from(self.cidr.network()) + 1)
    }

    /// Everything a Service has.
    pub fn claims(&self, service: &Value) -> Vec<Claim> {
        let mut out: Vec<Claim> = Vec::new();
        let address = service.str_at("spec.clusterIP").parse().ok();
        out.extend(address.filter(|a| self.cidr.contains(a)).map(Claim::Address));
        let ports = service.items_at("spec.ports").iter().filter_map(|p| p.int_at("nodePort"));
        for port in ports.chain(service.int_at("spec.healthCheckNodePort")) {
            if let Some(claim) = port_claim(port)
                && !out.contains(&claim)
            {
                out.push(claim);
            }
        }
        out
    }

    /// Fills in what a new Service needs. Other kinds pass.
    ///
    /// # Errors
    /// 422 for what is taken or out of range, 500 when nothing is left.
    pub async fn create(&self, kind: &Kind, object: &mut Value, dry_run: bool) -> Result<Allocation, Status> {
        if !is_service(kind) {
            return Ok(Allocation::default());
        }
        let wrong = hawser_api::validation::service_addresses(object);
        if !wrong.is_empty() {
            return Err(Status::invalid("", "Service", object.name(), &wrong));
        }
        Work::allocate(self, object, &[], dry_run).await
    }

    /// Fills in what a changed Service needs more, and notes what it gives up.
    ///
    /// # Errors
    /// Those of [`Allocators::create`].
    pub async fn update(
        &self,
        kind: &Kind,
        subresource: &str,
        new: &mut Value,
        old: &Value,
        dry_run: bool,
    ) -> Result<Allocation, Status> {
        if !is_service(kind) || !subresource.is_empty() {
            return Ok(Allocation::default());
        }
        let held = self.claims(old);
        let mut allocation = Work::allocate(self, new, &held, dry_run).await?;
        let kept = self.claims(new);
        allocation.freed = held.into_iter().filter(|c| !kept.contains(c)).collect();
        Ok(allocation)
    }

    /// A Service is gone: what it had is free.
    pub async fn deleted(&self, kind: &Kind, object: &Value) {
        if is_service(kind) {
            release(&*self.ledger, &Owner::of(object), self.claims(object)).await;
        }
    }
}

fn port_claim(port: i64) -> Option<Claim> {
    let port = u16::try_from(port).ok()?;
    (FIRST_PORT..FIRST_PORT + PORTS).contains(&port).then_some(Claim::Port(port))
}
