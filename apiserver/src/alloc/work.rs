//! One Service's way to its addresses and ports: what it asks for by number is taken or refused, what it leaves open is
//! chosen at random. The order of steps, and so which refusal is told, is kube-apiserver's.

use std::net::IpAddr;

use hawser_api::object::ObjectExt as _;
use hawser_api::status::{FieldError, Status};
use hawser_api::strategy::service_families;
use rand::SeedableRng as _;
use rand::rngs::StdRng;
use serde_json::{Value, json};

use super::range::Addresses;
use super::{Allocation, Allocators, Claim, DRY_RUN_PORT, Owner, ip, needs_health_check, port_claim};

/// Why a port cannot be had.
const TAKEN: &str = "provided port is already allocated";

pub(super) struct Work<'a> {
    allocators: &'a Allocators,
    name: String,
    held: &'a [Claim],
    dry_run: bool,
    allocation: Allocation,
    /// Ports that a dry run would have taken.
    pretended: Vec<i64>,
    /// Ranges that addresses come from now.
    ranges: Vec<Addresses>,
}

impl Work<'_> {
    /// Takes what a Service needs. `old` is it before the update, and `held` what it has.
    pub(super) async fn allocate(
        allocators: &Allocators,
        service: &mut Value,
        old: Option<&Value>,
        held: &[Claim],
        dry_run: bool,
    ) -> Result<Allocation, Status> {
        let mut work = Work {
            allocators,
            name: service.name().to_owned(),
            held,
            dry_run,
            allocation: Allocation::new(allocators.ledger.clone(), Owner::of(service)),
            pretended: Vec::new(),
            ranges: Vec::new(),
        };
        match work.all(service, old).await {
            Ok(()) => Ok(work.allocation),
            Err(status) => {
                work.allocation.refused().await;
                Err(status)
            }
        }
    }

    async fn all(&mut self, service: &mut Value, old: Option<&Value>) -> Result<(), Status> {
        let families = self.allocators.families();
        let settled = service_families(service, old, &families);
        settled.map_err(|wrong| Status::invalid("", "Service", &self.name, &wrong))?;
        self.cluster_ips(service, old).await?;
        if matches!(service.str_at("spec.type"), "NodePort" | "LoadBalancer") {
            match old {
                None => self.node_ports(service).await?,
                Some(_) => self.changed_node_ports(service).await?,
            }
        }
        if needs_health_check(service) && !old.is_some_and(needs_health_check) {
            self.health_check(service).await?;
        }
        Ok(())
    }

    fn refusal(&self, field: impl Into<String>, value: Value, why: impl Into<String>) -> Status {
        let error = FieldError::invalid(field.into(), value, why.into());
        Status::invalid("", "Service", &self.name, &[error])
    }

    /// Takes something that the Service does not have yet.
    async fn take(&mut self, claim: Claim) -> Result<bool, Status> {
        if self.held.contains(&claim) || self.allocation.taken.contains(&claim) {
            return Ok(false);
        }
        let ledger = &self.allocators.ledger;
        if ledger.is_taken(claim).await? {
            return Ok(false);
        }
        if self.dry_run {
            return Ok(true);
        }
        // Noted first: when this is given up half-way, what may have been taken is given back.
        self.allocation.taken.push(claim);
        let taken = ledger.take(claim, &self.allocation.owner).await?;
        if !taken {
            self.allocation.taken.pop();
        }
        Ok(taken)
    }

    /// The addresses of the families that have none yet.
    async fn cluster_ips(&mut self, service: &mut Value, old: Option<&Value>) -> Result<(), Status> {
        let none = |o: &Value| o.items_at("spec.clusterIPs").first().is_some_and(|ip| ip == "None");
        if service.str_at("spec.type") == "ExternalName" || none(service) || old.is_some_and(none) {
            return Ok(());
        }
        let families = service.items_at("spec.ipFamilies").to_vec();
        let mut ips = service.items_at("spec.clusterIPs").to_vec();
        while ips.len() < families.len() {
            ips.push(json!(""));
        }
        // A service that had addresses can only get its second one; what else has changed is for validation to say.
        let first = match old {
            Some(old) if old.str_at("spec.type") != "ExternalName" => {
                let before = old.items_at("spec.ipFamilies").len();
                if before != 1 || families.len() != 2 {
                    return Ok(());
                }
                1
            }
            _ => 0,
        };
        self.ranges = self.allocators.ranges().await?;
        for n in first..families.len() {
            let family = families[n].as_str().unwrap_or_default();
            match ips[n].as_str().unwrap_or_default() {
                "" => ips[n] = json!(self.any_address(family).await?.to_string()),
                wanted => {
                    if let Err(why) = self.address(wanted).await? {
                        let why = format!("failed to allocate IP {wanted}: {why}");
                        return Err(self.refusal("spec.clusterIPs", Value::Array(ips), why));
                    }
                }
            }
        }
        if let Some(first) = ips.first() {
            service.set_path(&["spec", "clusterIP"], first.clone());
            service.set_path(&["spec", "clusterIPs"], Value::Array(ips));
        }
        Ok(())
    }

    /// Takes an address that is asked for, or says why not.
    async fn address(&mut self, text: &str) -> Result<Result<(), &'static str>, Status> {
        let Some(address) = ip(text) else { return Ok(Err("not an IP address")) };
        if !self.ranges.iter().any(|r| r.contains(address)) {
            return Ok(Err("the provided network does not match the current range"));
        }
        let taken = self.take(Claim::Address(address)).await?;
        Ok(if taken { Ok(()) } else { Err("provided IP is already allocated") })
    }

    async fn any_address(&mut self, family: &str) -> Result<IpAddr, Status> {
        for range in self.ranges.clone() {
            if range.family() != family {
                continue;
            }
            if self.dry_run {
                // One that is never given out (as kube-apiserver).
                return Ok(range.net().network());
            }
            let mut rng = StdRng::from_os_rng();
            for address in range.order(&mut rng) {
                if self.take(Claim::Address(address)).await? {
                    return Ok(address);
                }
            }
        }
        let why = format!("failed to allocate a serviceIP for Service {:?}: range is full", self.name);
        Err(Status::internal(why))
    }

    /// Takes a port that is asked for, or says why not.
    async fn port(&mut self, port: i64) -> Result<Result<(), String>, Status> {
        let ports = &self.allocators.ports;
        if self.dry_run && !u16::try_from(port).is_ok_and(|p| ports.contains(p)) {
            // As in kube-apiserver, where a dry run looks only at what is taken.
            if self.pretended.contains(&port) {
                return Ok(Err(TAKEN.to_owned()));
            }
            self.pretended.push(port);
            return Ok(Ok(()));
        }
        let Some(claim) = port_claim(port).filter(|c| matches!(c, Claim::Port(p) if ports.contains(*p)))
        else {
            let why = format!("provided port is not in the valid range. The range of valid ports is {ports}");
            return Ok(Err(why));
        };
        if self.pretended.contains(&port) || !self.take(claim).await? {
            return Ok(Err(TAKEN.to_owned()));
        }
        if self.dry_run {
            self.pretended.push(port);
        }
        Ok(Ok(()))
    }

    async fn any_port(&mut self) -> Result<Option<i64>, Status> {
        if self.dry_run {
            let port = self.pretended.iter().max().map_or(DRY_RUN_PORT, |p| p + 1);
            self.pretended.push(port);
            return Ok(Some(port));
        }
        let mut rng = StdRng::from_os_rng();
        for port in self.allocators.ports.order(&mut rng) {
            if self.take(Claim::Port(port)).await? {
                return Ok(Some(port.into()));
            }
        }
        Ok(None)
    }

    async fn some_port(&mut self) -> Result<i64, Status> {
        let port = self.any_port().await?;
        port.ok_or_else(|| Status::internal("failed to allocate a nodePort: range is full"))
    }

    /// The node ports of a new Service. Ports of one number, which differ in protocol, share a node port.
    async fn node_ports(&mut self, service: &mut Value) -> Result<(), Status> {
        let wanted = allocates_node_ports(service);
        let mut ports = service.items_at("spec.ports").to_vec();
        let mut given: Vec<(Option<i64>, i64)> = Vec::new();
        for n in 0..ports.len() {
            let own = ports[n].int_at("nodePort").unwrap_or(0);
            if own == 0 && !wanted {
                continue;
            }
            let number = ports[n].int_at("port");
            let shared = given.iter().find(|(p, _)| *p == number).map(|(_, node)| *node);
            let node = match shared {
                Some(node) if own == 0 || own == node => node,
                Some(_) => {
                    self.asked(n, own).await?;
                    own
                }
                None => {
                    let asked = ports.iter().filter(|p| p.int_at("port") == number);
                    let node = match asked.filter_map(|p| p.int_at("nodePort")).find(|p| *p != 0) {
                        Some(node) => {
                            self.asked(n, node).await?;
                            node
                        }
                        None => self.some_port().await?,
                    };
                    given.push((number, node));
                    node
                }
            };
            ports[n].set_path(&["nodePort"], json!(node));
        }
        set_ports(service, ports);
        Ok(())
    }

    /// Takes the node port that the port at `n` asks for.
    async fn asked(&mut self, n: usize, node: i64) -> Result<(), Status> {
        let taken = self.port(node).await?;
        taken.map_err(|why| self.refusal(format!("spec.ports[{n}].nodePort"), json!(node), why))
    }

    /// The node ports that a changed Service needs more.
    async fn changed_node_ports(&mut self, service: &mut Value) -> Result<(), Status> {
        let wanted = allocates_node_ports(service);
        let mut ports = service.items_at("spec.ports").to_vec();
        let mut asked = Vec::new();
        let mut seen = Vec::new();
        for (n, port) in ports.iter_mut().enumerate() {
            if port.int_at("nodePort").unwrap_or(0) == 0 && !wanted {
                continue;
            }
            match port.int_at("nodePort").unwrap_or(0) {
                0 => {
                    let node = self.some_port().await?;
                    port.set_path(&["nodePort"], json!(node));
                }
                node => {
                    let held = port_claim(node).is_some_and(|c| self.held.contains(&c));
                    if !held && !asked.contains(&node) {
                        self.asked(n, node).await?;
                        asked.push(node);
                    }
                }
            }
            let pair = (port.str_at("protocol").to_owned(), port.int_at("nodePort").unwrap_or(0));
            if seen.contains(&pair) {
                return Err(Status::plain_error(format!("duplicate nodePort: {{{} {}}}", pair.0, pair.1)));
            }
            seen.push(pair);
        }
        set_ports(service, ports);
        Ok(())
    }

    async fn health_check(&mut self, service: &mut Value) -> Result<(), Status> {
        let Some(asked) = service.int_at("spec.healthCheckNodePort").filter(|p| *p != 0) else {
            let port = self.any_port().await?;
            let full = "failed to allocate a HealthCheck NodePort 0: range is full";
            let port = port.ok_or_else(|| Status::internal(full))?;
            service.set_path(&["spec", "healthCheckNodePort"], json!(port));
            return Ok(());
        };
        let taken = self.port(asked).await?;
        taken.map_err(|why| {
            Status::internal(format!("failed to allocate requested HealthCheck NodePort {asked}: {why}"))
        })
    }
}

/// Whether ports that name no node port get one.
fn allocates_node_ports(service: &Value) -> bool {
    match service.str_at("spec.type") {
        "NodePort" => true,
        "LoadBalancer" => service.bool_at("spec.allocateLoadBalancerNodePorts") != Some(false),
        _ => false,
    }
}

fn set_ports(service: &mut Value, ports: Vec<Value>) {
    if !ports.is_empty() {
        service.set_path(&["spec", "ports"], Value::Array(ports));
    }
}
