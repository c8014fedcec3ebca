//! Cluster addresses and node ports of Services: never given out twice, by however many API servers.
//!
//! Whatever is given out has a claim in the store that is made with compare-and-swap before the Service is written:
//! an address is an `IPAddress` object of that name (KEP-1880), a port is a key of its own. Nothing is kept in memory.
//! A write takes what it needs first and gives it back if it fails. What a crash leaves behind between the two writes
//! is put right by [`repair`].

mod claims;
mod range;
pub mod repair;
#[cfg(test)]
mod tests;
mod work;

use std::net::IpAddr;
use std::sync::Arc;

use hawser_api::kinds::Kind;
use hawser_api::object::ObjectExt as _;
use hawser_api::status::Status;
use ipnet::IpNet;
use serde_json::Value;

pub use self::claims::{Held, Ledger, Stored};
pub use self::range::{Addresses, Ports};
use self::work::Work;

/// What a dry run answers for the first port that would be given out (as kube-apiserver).
const DRY_RUN_PORT: i64 = 32769;

/// Something given out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Claim {
    /// An address of a Service.
    Address(IpAddr),
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
    /// The ranges that the cluster was set up with, one per family, that of the default family first.
    cidrs: Vec<Addresses>,
    ports: Ports,
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

/// Why settings cannot be taken.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No range, or more than two, or two of one family.
    #[error("one range of addresses is needed, or two of which one is IPv4 and one IPv6")]
    Families,
    /// A range is too small or too large.
    #[error("range {0}: IPv4 needs a /8 to /29, IPv6 a /64 to /125")]
    Size(IpNet),
}

impl Allocators {
    /// Allocators over a ledger. `cidrs` are the Services' ranges, one per family, that of the default family first;
    /// further ranges come as `ServiceCIDR` objects.
    ///
    /// # Errors
    /// When the ranges are not of that form.
    pub fn new(cidrs: &[IpNet], ports: Ports, ledger: Arc<dyn Ledger>) -> Result<Self, Error> {
        Ok(Self { cidrs: checked(cidrs)?, ports, ledger })
    }

    /// The first address: that of the `kubernetes` Service.
    pub fn first_address(&self) -> IpAddr {
        self.cidrs[0].first()
    }

    /// The families that the cluster has, the default one first.
    pub fn families(&self) -> Vec<&'static str> {
        self.cidrs.iter().map(|r| r.family()).collect()
    }

    /// The ranges that addresses are given out from now: those of the `ServiceCIDR` objects that are ready, and the
    /// cluster's own.
    async fn ranges(&self) -> Result<Vec<Addresses>, Status> {
        let (mut open, closed) = self.ledger.ranges().await?;
        for own in self.cidrs.iter().rev() {
            if !open.contains(own) && !closed.contains(own) {
                open.insert(0, *own);
            }
        }
        Ok(open)
    }

    /// Everything a Service has.
    pub fn claims(&self, service: &Value) -> Vec<Claim> {
        let mut out: Vec<Claim> = Vec::new();
        if service.str_at("spec.type") != "ExternalName" {
            let addresses = service.items_at("spec.clusterIPs").iter().filter_map(Value::as_str);
            let one = Some(service.str_at("spec.clusterIP"));
            for address in addresses.chain(one).filter_map(ip).map(Claim::Address) {
                if !out.contains(&address) {
                    out.push(address);
                }
            }
        }
        let ports = service.items_at("spec.ports").iter().filter_map(|p| p.int_at("nodePort"));
        let health = service.int_at("spec.healthCheckNodePort").filter(|_| needs_health_check(service));
        for claim in ports.chain(health).filter_map(port_claim) {
            if !out.contains(&claim) {
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
        Work::allocate(self, object, None, &[], dry_run).await
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
        let mut allocation = Work::allocate(self, new, Some(old), &held, dry_run).await?;
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

/// The ranges as they can be used.
fn checked(cidrs: &[IpNet]) -> Result<Vec<Addresses>, Error> {
    let mut out: Vec<Addresses> = Vec::new();
    for cidr in cidrs {
        let sized = match cidr {
            IpNet::V4(net) => (8..=29).contains(&net.prefix_len()),
            IpNet::V6(net) => (range::SHORTEST_V6..=125).contains(&net.prefix_len()),
        };
        let range = Addresses::new(*cidr).filter(|_| sized).ok_or(Error::Size(*cidr))?;
        if out.iter().any(|o| o.family() == range.family()) {
            return Err(Error::Families);
        }
        out.push(range);
    }
    if out.is_empty() { Err(Error::Families) } else { Ok(out) }
}

/// The address that a text means.
fn ip(text: &str) -> Option<IpAddr> {
    hawser_api::validation::sloppy_ip(text)
}

fn needs_health_check(service: &Value) -> bool {
    service.str_at("spec.type") == "LoadBalancer" && service.str_at("spec.externalTrafficPolicy") == "Local"
}

fn port_claim(port: i64) -> Option<Claim> {
    u16::try_from(port).ok().filter(|p| *p > 0).map(Claim::Port)
}
