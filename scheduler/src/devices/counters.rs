//! Counters that devices of a pool share (KEP-4815): what is left of them.

use std::collections::HashMap;

use super::Inventory;
use super::pool::Pool;
use super::slice::{Counters, Device};

/// What is left in each pool, by its place; worked out for the first device that consumes something.
#[derive(Default)]
pub struct Left(HashMap<usize, Counters>);

impl Left {
    /// Takes what a device consumes, if that much is left.
    pub fn take(&mut self, at: usize, pool: &Pool<'_>, device: &Device, inventory: &Inventory) -> bool {
        if device.consumes.is_empty() {
            return true;
        }
        let left = self.0.entry(at).or_insert_with(|| {
            let mut left = pool.counters.clone();
            let devices = pool.all.iter().flat_map(|slice| &slice.devices);
            for used in devices.filter(|device| inventory.is_held(&device.id)) {
                change(&mut left, used, false);
            }
            left
        });
        change(left, device, false);
        let short = left.values().flat_map(|amounts| amounts.values()).any(|amount| amount.is_negative());
        if short {
            change(left, device, true);
        }
        !short
    }

    /// Gives it back.
    pub fn give_back(&mut self, at: usize, device: &Device) {
        if let Some(left) = self.0.get_mut(&at) {
            change(left, device, true);
        }
    }
}

fn change(left: &mut Counters, device: &Device, more: bool) {
    for (set, amounts) in &device.consumes {
        let Some(of_set) = left.get_mut(set) else { continue };
        for (name, amount) in amounts {
            if let Some(rest) = of_set.get_mut(name) {
                *rest = if more { *rest + *amount } else { *rest - *amount };
            }
        }
    }
}
