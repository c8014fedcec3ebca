//! Cluster addresses and node ports of Services: never given out twice.
//!
//! What is taken is kept in memory and rebuilt from the Services in the store at start, so a crash loses nothing:
//! an address belongs to whoever's stored object names it. A write takes what it needs first and gives it back
//! unless it is committed.

mod pool;

use std::net::Ipv4Addr;
use std::sync::Arc;

use hawser_api::kinds::Kind;
use hawser_api::object::ObjectExt as _;
use hawser_api::status::{FieldError, Status};
use ipnet::Ipv4Net;
use parking_lot::Mutex;
use serde_json::{Value, json};

use self::pool::Pool;

/// First node port.
const FIRST_PORT: u16 = 30000;
/// Number of node ports.
const PORTS: usize = 2768;
/// What a dry run answers for a port that would be given out (as kube-apiserver: one that never is).
const DRY_RUN_PORT: i64 = FIRST_PORT as i64 + PORTS as i64 + 1;
/// Node ports kept for those that are asked for by number (KEP-3668).
const RESERVED_PORTS: usize = 86;

#[derive(Debug)]
struct Pools {
    addresses: Pool,
    ports: Pool,
}

/// The allocators of a server.
#[derive(Debug, Clone)]
pub struct Allocators {
    cidr: Ipv4Net,
    pools: Arc<Mutex<Pools>>,
}

/// Something given out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Claim {
    Address(usize),
    Port(usize),
}

/// What one write took and gives up. Dropped without [`Allocation::commit`] it gives back what it took.
#[derive(Debug, Default)]
pub struct Allocation {
    pools: Option<Arc<Mutex<Pools>>>,
    taken: Vec<Claim>,
    freed: Vec<Claim>,
}

impl Allocation {
    /// The write has happened: what it took stays taken, what it gave up is free.
    pub fn commit(mut self) {
        self.taken.clear();
        if let Some(pools) = &self.pools {
            let mut pools = pools.lock();
            self.freed.drain(..).for_each(|claim| pools.release(claim));
        }
    }
}

impl Drop for Allocation {
    fn drop(&mut self) {
        if let Some(pools) = &self.pools
            && !self.taken.is_empty()
        {
            let mut pools = pools.lock();
            self.taken.drain(..).for_each(|claim| pools.release(claim));
        }
    }
}

impl Pools {
    fn release(&mut self, claim: Claim) {
        match claim {
            Claim::Address(n) => self.addresses.release(n),
            Claim::Port(n) => self.ports.release(n),
        }
    }

    fn take(&mut self, claim: Claim) -> bool {
        match claim {
            Claim::Address(n) => self.addresses.take(n),
            Claim::Port(n) => self.ports.take(n),
        }
    }
}

fn is_service(kind: &Kind) -> bool {
    kind.group.is_empty() && kind.plural == "services"
}

impl Allocators {
    /// Allocators for a service CIDR, with nothing taken but the network's own addresses.
    pub fn new(cidr: Ipv4Net) -> Self {
        let size = 1usize << (32 - u32::from(cidr.prefix_len())).min(24);
        // The lower band is for addresses that are asked for by number (KEP-3070).
        let reserved = (size / 16).clamp(16, 256);
        let mut addresses = Pool::new(size, reserved);
        addresses.take(0);
        addresses.take(size - 1);
        Self {
            cidr,
            pools: Arc::new(Mutex::new(Pools { addresses, ports: Pool::new(PORTS, RESERVED_PORTS) })),
        }
    }

    /// The first address: that of the `kubernetes` Service.
    pub fn first_address(&self) -> Ipv4Addr {
        Ipv4Addr::from(u32::from(self.cidr.network()) + 1)
    }

    /// The addresses given out.
    pub fn cidr(&self) -> Ipv4Net {
        self.cidr
    }

    /// Marks what a stored Service has as taken. Answers what another one has too.
    pub fn restore(&self, service: &Value) -> Vec<String> {
        let mut pools = self.pools.lock();
        let claims = self.claims(service);
        claims.into_iter().filter(|c| !pools.take(*c)).map(|c| format!("{c:?}")).collect()
    }

    fn offset(&self, address: &str) -> Option<usize> {
        let address: Ipv4Addr = address.parse().ok()?;
        if !self.cidr.contains(&address) {
            return None;
        }
        usize::try_from(u32::from(address) - u32::from(self.cidr.network())).ok()
    }

    fn address(&self, offset: usize) -> String {
        let base = u32::from(self.cidr.network());
        Ipv4Addr::from(base.saturating_add(u32::try_from(offset).unwrap_or(0))).to_string()
    }

    /// Everything a Service has.
    fn claims(&self, service: &Value) -> Vec<Claim> {
        let mut out: Vec<Claim> = Vec::new();
        out.extend(self.offset(service.str_at("spec.clusterIP")).map(Claim::Address));
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
    pub fn create(&self, kind: &Kind, object: &mut Value, dry_run: bool) -> Result<Allocation, Status> {
        if !is_service(kind) {
            return Ok(Allocation::default());
        }
        self.allocate(object, &[], dry_run)
    }

    /// Fills in what a changed Service needs more, and notes what it gives up.
    ///
    /// # Errors
    /// Those of [`Allocators::create`].
    pub fn update(
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
        let mut allocation = self.allocate(new, &held, dry_run)?;
        let kept = self.claims(new);
        allocation.freed = held.into_iter().filter(|c| !kept.contains(c)).collect();
        Ok(allocation)
    }

    /// A Service is gone: what it had is free.
    pub fn deleted(&self, kind: &Kind, object: &Value) {
        if is_service(kind) {
            let mut pools = self.pools.lock();
            self.claims(object).into_iter().for_each(|claim| pools.release(claim));
        }
    }

    fn allocate(&self, service: &mut Value, held: &[Claim], dry_run: bool) -> Result<Allocation, Status> {
        let mut work = Work {
            allocators: self,
            held,
            dry_run,
            allocation: Allocation { pools: Some(self.pools.clone()), taken: Vec::new(), freed: Vec::new() },
            errors: Vec::new(),
        };
        if service.str_at("spec.type") != "ExternalName" {
            work.families(service);
            work.cluster_ip(service)?;
            work.node_ports(service)?;
            work.health_check(service)?;
        }
        if work.errors.is_empty() {
            return Ok(work.allocation);
        }
        Err(Status::invalid("", "Service", service.name(), &work.errors))
    }
}

fn port_claim(port: i64) -> Option<Claim> {
    let offset = usize::try_from(port - i64::from(FIRST_PORT)).ok()?;
    (offset < PORTS).then_some(Claim::Port(offset))
}

struct Work<'a> {
    allocators: &'a Allocators,
    held: &'a [Claim],
    dry_run: bool,
    allocation: Allocation,
    errors: Vec<FieldError>,
}

impl Work<'_> {
    /// Whether the claim is held already, or could be taken now.
    fn claim(&mut self, claim: Claim) -> bool {
        if self.held.contains(&claim) || self.allocation.taken.contains(&claim) {
            return true;
        }
        let taken = self.allocators.pools.lock().take(claim);
        if taken {
            self.allocation.taken.push(claim);
        }
        taken
    }

    fn any_port(&mut self) -> Result<i64, Status> {
        if self.dry_run {
            return Ok(DRY_RUN_PORT);
        }
        let port = self.allocators.pools.lock().ports.take_any();
        match port {
            Some(n) => {
                self.allocation.taken.push(Claim::Port(n));
                Ok(i64::from(FIRST_PORT) + i64::try_from(n).unwrap_or(0))
            }
            None => Err(Status::internal("failed to allocate a nodePort: range is full")),
        }
    }

    fn families(&mut self, service: &mut Value) {
        let headless = service.str_at("spec.clusterIP") == "None";
        let selectorless =
            service.at("spec.selector").and_then(Value::as_object).is_none_or(|s| s.is_empty());
        let dual = headless && selectorless;
        if service.str_at("spec.ipFamilyPolicy").is_empty() {
            let policy = if dual { "RequireDualStack" } else { "SingleStack" };
            service.set_path(&["spec", "ipFamilyPolicy"], json!(policy));
        }
        if service.items_at("spec.ipFamilies").is_empty() {
            let families = if dual { json!(["IPv4", "IPv6"]) } else { json!(["IPv4"]) };
            service.set_path(&["spec", "ipFamilies"], families);
        }
        let policy = service.str_at("spec.ipFamilyPolicy");
        if !headless && policy == "RequireDualStack" {
            let field = "spec.ipFamilyPolicy";
            let why = "this cluster is not configured for dual-stack services";
            self.errors.push(FieldError::invalid(field, policy, why));
        }
        if !headless
            && let Some(family) =
                service.items_at("spec.ipFamilies").iter().find(|f| f.as_str() != Some("IPv4"))
        {
            let why = "not configured on this cluster";
            self.errors.push(FieldError::invalid("spec.ipFamilies[0]", family.clone(), why));
        }
    }

    fn cluster_ip(&mut self, service: &mut Value) -> Result<(), Status> {
        let address = service.str_at("spec.clusterIP").to_owned();
        if address == "None" || !self.errors.is_empty() {
            return Ok(());
        }
        if address.is_empty() {
            let offset = self.allocators.pools.lock().addresses.take_any();
            let Some(offset) = offset else {
                return Err(Status::internal("failed to allocate a serviceIP: range is full"));
            };
            self.allocation.taken.push(Claim::Address(offset));
            let address = self.allocators.address(offset);
            service.set_path(&["spec", "clusterIP"], json!(address));
            service.set_path(&["spec", "clusterIPs"], json!([address]));
            return Ok(());
        }
        let why = match self.allocators.offset(&address) {
            None => {
                let cidr = self.allocators.cidr;
                format!(
                    "failed to allocate IP {address}: the provided IP ({address}) is not in the valid range. The \
                     range of valid IPs is {cidr}"
                )
            }
            Some(offset) if !self.claim(Claim::Address(offset)) => {
                format!("failed to allocate IP {address}: provided IP is already allocated")
            }
            Some(_) => return Ok(()),
        };
        self.errors.push(FieldError::invalid("spec.clusterIPs", json!([address]), why));
        Ok(())
    }

    fn node_ports(&mut self, service: &mut Value) -> Result<(), Status> {
        let wanted = match service.str_at("spec.type") {
            "NodePort" => true,
            "LoadBalancer" => service.bool_at("spec.allocateLoadBalancerNodePorts") != Some(false),
            _ => false,
        };
        let has_type = matches!(service.str_at("spec.type"), "NodePort" | "LoadBalancer");
        let mut ports = service.items_at("spec.ports").to_vec();
        // Ports that differ in protocol only share a node port.
        let mut given: Vec<(i64, String, i64)> = Vec::new();
        for (n, port) in ports.iter().enumerate() {
            let Some(node_port) = port.int_at("nodePort").filter(|p| *p > 0) else { continue };
            if !has_type {
                continue;
            }
            let why = match port_claim(node_port) {
                None => format!(
                    "provided port is not in the valid range. The range of valid ports is {FIRST_PORT}-{}",
                    usize::from(FIRST_PORT) + PORTS - 1
                ),
                Some(claim) if !self.claim(claim) => "provided port is already allocated".to_owned(),
                Some(_) => {
                    let protocol = port.str_at("protocol").to_owned();
                    given.push((port.int_at("port").unwrap_or(0), protocol, node_port));
                    continue;
                }
            };
            self.errors.push(FieldError::invalid(format!("spec.ports[{n}].nodePort"), node_port, why));
        }
        if !wanted || !self.errors.is_empty() {
            return Ok(());
        }
        for port in &mut ports {
            if port.int_at("nodePort").is_some_and(|p| p > 0) {
                continue;
            }
            let (number, protocol) = (port.int_at("port").unwrap_or(0), port.str_at("protocol").to_owned());
            let shared = given.iter().find(|(p, other, node)| {
                *p == number
                    && *other != protocol
                    && !given.iter().any(|(_, o, n)| n == node && *o == protocol)
            });
            let node_port = match shared {
                Some((_, _, node)) => *node,
                None => self.any_port()?,
            };
            given.push((number, protocol, node_port));
            port.set_path(&["nodePort"], json!(node_port));
        }
        service.set_path(&["spec", "ports"], Value::Array(ports));
        Ok(())
    }

    fn health_check(&mut self, service: &mut Value) -> Result<(), Status> {
        let needed = service.str_at("spec.type") == "LoadBalancer"
            && service.str_at("spec.externalTrafficPolicy") == "Local";
        if !needed || !self.errors.is_empty() {
            return Ok(());
        }
        match service.int_at("spec.healthCheckNodePort").filter(|p| *p > 0) {
            None => {
                let port = self.any_port()?;
                service.set_path(&["spec", "healthCheckNodePort"], json!(port));
            }
            Some(port) => {
                if !port_claim(port).is_some_and(|claim| self.claim(claim)) {
                    let why = "provided port is already allocated";
                    self.errors.push(FieldError::invalid("spec.healthCheckNodePort", port, why));
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn allocators() -> Allocators {
        Allocators::new("10.96.0.0/12".parse().expect("cidr"))
    }

    fn services() -> &'static Kind {
        hawser_api::kinds::find("", "v1", "services").expect("row")
    }

    #[test]
    fn addresses_and_ports() {
        let a = allocators();
        let mut one = json!({"metadata": {"name": "s"}, "spec": {"type": "NodePort", "selector": {"a": "b"}, "ports": [
            {"port": 53, "protocol": "UDP"}, {"port": 53, "protocol": "TCP"}, {"port": 80, "protocol": "TCP"}]}});
        a.create(services(), &mut one, false).expect("allocation").commit();
        let ports: Vec<i64> =
            one.items_at("spec.ports").iter().filter_map(|p| p.int_at("nodePort")).collect();
        assert_eq!(ports[0], ports[1]);
        assert_ne!(ports[0], ports[2]);
        assert_eq!(one["spec"]["clusterIPs"][0], one["spec"]["clusterIP"]);
        let mut two = one.clone();
        let error = a.create(services(), &mut two, false).expect_err("taken");
        assert_eq!(error.code, 422);
        a.deleted(services(), &one);
        a.create(services(), &mut two, false).expect("free again").commit();
    }

    #[test]
    fn what_is_not_committed_is_given_back() {
        let a = allocators();
        let mut one = json!({"spec": {"type": "ClusterIP", "clusterIP": "10.96.0.10"}});
        drop(a.create(services(), &mut one, true).expect("allocation"));
        a.create(services(), &mut one, false).expect("allocation").commit();
        assert!(a.create(services(), &mut one.clone(), false).is_err());
        let mut external = json!({"spec": {"type": "ExternalName"}});
        a.update(services(), "", &mut external, &one, false).expect("update").commit();
        a.create(services(), &mut one, false).expect("free again").commit();
        let rebuilt = allocators();
        assert!(rebuilt.restore(&one).is_empty());
        assert_eq!(rebuilt.restore(&one).len(), 1);
    }

    #[test]
    fn out_of_range() {
        let a = allocators();
        for spec in [
            json!({"clusterIP": "192.168.1.1"}),
            json!({"type": "NodePort", "ports": [{"port": 1, "nodePort": 80}]}),
            json!({"ipFamilyPolicy": "RequireDualStack"}),
        ] {
            assert!(a.create(services(), &mut json!({"spec": spec}), false).is_err());
        }
    }
}
