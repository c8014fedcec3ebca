//! `cargo xtask deps`: the arrows between the crates, read from `cargo metadata`.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result, bail};
use cargo_metadata::{DependencyKind, MetadataCommand};

use crate::root;

/// A crate of ours and the crates of ours that it may import. `None`: everything.
const ARROWS: &[(&str, Option<&[&str]>)] = &[
    ("hawser-api", Some(&[])),
    ("hawser-storage", Some(&["hawser-api"])),
    ("hawser-apiserver", Some(&["hawser-api", "hawser-storage"])),
    ("hawser-controllers", Some(&["hawser-api", "hawser-watch"])),
    ("hawser-scheduler", Some(&["hawser-api", "hawser-watch"])),
    ("hawser-kubelet", Some(&["hawser-api"])),
    ("hawser-runtime", Some(&[])),
    ("hawser-ebpf-common", Some(&[])),
    ("hawser-watch", Some(&[])),
    ("hawser-proxy", Some(&["hawser-api", "hawser-ebpf-common", "hawser-watch"])),
    ("hawser-proxy-model", Some(&[])),
    ("hawser-dns", Some(&["hawser-api", "hawser-watch"])),
    ("hawser-cli", Some(&["hawser-api"])),
    ("hawser", None),
    ("xtask", Some(&[])),
    ("hawser-tests", None),
    ("hawser-fuzz", Some(&["hawser-apiserver", "hawser-storage"])),
];

/// Arrows that only a crate's own tests may use.
const TEST_ARROWS: &[(&str, &str)] = &[("hawser-proxy", "hawser-proxy-model")];

/// Crates from outside that only some of ours may use: (dependency, who may).
const OUTSIDE: &[(&str, &[&str])] = &[
    ("redb", &["hawser-storage"]),
    ("etcd-client", &["hawser-storage", "hawser-tests"]),
    ("aya", &["hawser-proxy", "hawser-ebpf-common"]),
    ("hickory-resolver", &["hawser-dns"]),
    (
        "kube",
        &[
            "hawser-controllers",
            "hawser-scheduler",
            "hawser-kubelet",
            "hawser-proxy",
            "hawser-watch",
            "hawser-dns",
            "hawser-cli",
            "hawser",
            "hawser-tests",
        ],
    ),
];

/// Fails with every arrow that is not in the table.
pub fn check() -> Result<()> {
    let metadata =
        MetadataCommand::new().current_dir(root()).no_deps().exec().context("reading `cargo metadata`")?;
    let arrows: BTreeMap<&str, Option<&[&str]>> = ARROWS.iter().copied().collect();
    let ours: BTreeSet<String> = metadata.packages.iter().map(|p| p.name.to_string()).collect();
    let mut wrong = Vec::new();
    for package in &metadata.packages {
        let name = package.name.as_str();
        let Some(allowed) = arrows.get(name) else {
            wrong.push(format!("{name}: not in the table of arrows (xtask/src/deps.rs)"));
            continue;
        };
        for dependency in &package.dependencies {
            let to = dependency.name.as_str();
            let in_tests = dependency.kind == DependencyKind::Development;
            if ours.contains(to) {
                let listed = to == name
                    || allowed.is_none_or(|list| list.contains(&to))
                    || (in_tests && TEST_ARROWS.contains(&(name, to)));
                if !listed {
                    wrong.push(format!("{name} must not import {to}"));
                }
            } else if let Some((_, who)) = OUTSIDE.iter().find(|(crate_name, _)| *crate_name == to)
                && !who.contains(&name)
                && !in_tests
            {
                wrong.push(format!("{name} must not import {to}"));
            }
        }
    }
    if !wrong.is_empty() {
        bail!("the crates' arrows are broken:\n  {}", wrong.join("\n  "));
    }
    println!("deps: {} crates keep to the arrows", metadata.packages.len());
    Ok(())
}
