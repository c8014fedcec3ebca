//! One Service's way to its addresses and ports: what it asks for by number is taken or refused, what it leaves open is
//! chosen at random.

use std::net::Ipv4Addr;

use hawser_api::object::ObjectExt as _;
use hawser_api::status::{FieldError, Status};
use rand::Rng as _;
use serde_json::{Value, json};

use super::{
    Allocation, Allocators, Claim, DRY_RUN_PORT, FIRST_PORT, Owner, PORTS, RESERVED_PORTS, port_claim,
};

/// Random choices before all that is left is looked through.
const GUESSES: usize = 16;

pub(super) struct Work<'a> {
    allocators: &'a Allocators,
    held: &'a [Claim],
    dry_run: bool,
    allocation: Allocation,
    errors: Vec<FieldError>,
}

impl Work<'_> {
    /// Takes what a Service needs; `held` is what it has.
    pub(super) async fn allocate(
        allocators: &Allocators,
        service: &mut Value,
        held: &[Claim],
        dry_run: bool,
    ) -> Result<Allocation, Status> {
        let mut work = Work {
            allocators,
            held,
            dry_run,
            allocation: Allocation::new(allocators.ledger.clone(), Owner::of(service)),
            errors: Vec::new(),
        };
        if service.str_at("spec.type") != "ExternalName" {
            work.families(service);
            work.cluster_ip(service).await?;
            work.node_ports(service).await?;
            work.health_check(service).await?;
        }
        if work.errors.is_empty() {
            return Ok(work.allocation);
        }
        work.allocation.refused().await;
        Err(Status::invalid("", "Service", service.name(), &work.errors))
    }

    /// Whether the claim is held already, or could be taken now.
    async fn claim(&mut self, claim: Claim) -> Result<bool, Status> {
        if self.held.contains(&claim) || self.allocation.taken.contains(&claim) {
            return Ok(true);
        }
        let ledger = &self.allocators.ledger;
        if self.dry_run {
            return Ok(!ledger.is_taken(claim).await?);
        }
        // Noted first: when this is given up half-way, what may have been taken is given back.
        self.allocation.taken.push(claim);
        let taken = ledger.take(claim, &self.allocation.owner).await?;
        if !taken {
            self.allocation.taken.pop();
        }
        Ok(taken)
    }

    async fn any_port(&mut self) -> Result<i64, Status> {
        if self.dry_run {
            return Ok(DRY_RUN_PORT);
        }
        for _ in 0..GUESSES {
            let port = FIRST_PORT + rand::rng().random_range(RESERVED_PORTS..PORTS);
            if self.claim_new(Claim::Port(port)).await? {
                return Ok(port.into());
            }
        }
        let held = self.allocators.ledger.all().await?;
        let taken = |port: u16| held.iter().any(|h| h.claim == Claim::Port(port));
        // Reserved ones come last.
        for port in (RESERVED_PORTS..PORTS).chain(0..RESERVED_PORTS).map(|n| FIRST_PORT + n) {
            if !taken(port) && self.claim_new(Claim::Port(port)).await? {
                return Ok(port.into());
            }
        }
        Err(Status::internal("failed to allocate a nodePort: range is full"))
    }

    async fn any_address(&mut self) -> Result<Ipv4Addr, Status> {
        let cidr = self.allocators.cidr;
        let base = u32::from(cidr.network());
        let size = 1u32 << (32 - u32::from(cidr.prefix_len())).min(24);
        // The lower band is for addresses that are asked for by number (KEP-3070).
        let reserved = (size / 16).clamp(16, 256).min(size - 1);
        let last = size - 1;
        for _ in 0..GUESSES {
            let address = Ipv4Addr::from(base + rand::rng().random_range(reserved..last.max(reserved + 1)));
            if self.claim_new(Claim::Address(address)).await? {
                return Ok(address);
            }
        }
        for address in (reserved..last).chain(1..reserved).map(|n| Ipv4Addr::from(base + n)) {
            if self.claim_new(Claim::Address(address)).await? {
                return Ok(address);
            }
        }
        Err(Status::internal("failed to allocate a serviceIP: range is full"))
    }

    /// Takes what the Service does not have yet.
    async fn claim_new(&mut self, claim: Claim) -> Result<bool, Status> {
        let own = self.held.contains(&claim) || self.allocation.taken.contains(&claim);
        if own || self.allocators.ledger.is_taken(claim).await? {
            return Ok(false);
        }
        self.claim(claim).await
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

    async fn cluster_ip(&mut self, service: &mut Value) -> Result<(), Status> {
        let address = service.str_at("spec.clusterIP").to_owned();
        if address == "None" || !self.errors.is_empty() {
            return Ok(());
        }
        if address.is_empty() {
            let address = self.any_address().await?.to_string();
            service.set_path(&["spec", "clusterIP"], json!(address));
            service.set_path(&["spec", "clusterIPs"], json!([address]));
            return Ok(());
        }
        let cidr = self.allocators.cidr;
        let bounds = [cidr.network(), cidr.broadcast()];
        let wanted = address.parse::<Ipv4Addr>().ok().filter(|a| cidr.contains(a) && !bounds.contains(a));
        let why = match wanted {
            None => format!(
                "failed to allocate IP {address}: the provided IP ({address}) is not in the valid range. The \
                 range of valid IPs is {cidr}"
            ),
            Some(wanted) if !self.claim(Claim::Address(wanted)).await? => {
                format!("failed to allocate IP {address}: provided IP is already allocated")
            }
            Some(_) => return Ok(()),
        };
        self.errors.push(FieldError::invalid("spec.clusterIPs", json!([address]), why));
        Ok(())
    }

    async fn node_ports(&mut self, service: &mut Value) -> Result<(), Status> {
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
                    FIRST_PORT + PORTS - 1
                ),
                Some(claim) if !self.claim(claim).await? => "provided port is already allocated".to_owned(),
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
                None => self.any_port().await?,
            };
            given.push((number, protocol, node_port));
            port.set_path(&["nodePort"], json!(node_port));
        }
        service.set_path(&["spec", "ports"], Value::Array(ports));
        Ok(())
    }

    async fn health_check(&mut self, service: &mut Value) -> Result<(), Status> {
        let needed = service.str_at("spec.type") == "LoadBalancer"
            && service.str_at("spec.externalTrafficPolicy") == "Local";
        if !needed || !self.errors.is_empty() {
            return Ok(());
        }
        match service.int_at("spec.healthCheckNodePort").filter(|p| *p > 0) {
            None => {
                let port = self.any_port().await?;
                service.set_path(&["spec", "healthCheckNodePort"], json!(port));
            }
            Some(port) => {
                let taken = match port_claim(port) {
                    Some(claim) => self.claim(claim).await?,
                    None => false,
                };
                if !taken {
                    let why = "provided port is already allocated";
                    self.errors.push(FieldError::invalid("spec.healthCheckNodePort", port, why));
                }
            }
        }
        Ok(())
    }
}
