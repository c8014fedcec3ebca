//! `cargo xtask setup`: installs Debian packages and bpf-linker where they are missing.
//!
//! Needs root for the packages. Does nothing, and does not touch the network, when all is there.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};

/// Debian packages, and why each is needed.
const PACKAGES: &[(&str, &str)] = &[
    ("protobuf-compiler", "etcd-client's and our own gRPC definitions"),
    ("libprotobuf-dev", "the well-known protobuf types"),
    ("llvm-22-dev", "bpf-linker links against LLVM"),
    ("libpolly-22-dev", "llvm-config of llvm-22-dev names it"),
    ("libzstd-dev", "LLVM's own dependency, linked by bpf-linker"),
    ("zlib1g-dev", "LLVM's own dependency, linked by bpf-linker"),
    ("iproute2", "the sandbox's namespaces and links"),
    ("util-linux", "nsenter and unshare"),
    ("busybox-static", "demo image"),
    ("nginx", "demo image"),
    ("etcd-server", "storage tests over etcd"),
    ("docker-registry", "image pull tests"),
    ("curl", "demo image"),
    ("ethtool", "tests of XDP on virtual interfaces"),
    ("iptables", "what Services are measured beside, in namespaces of the bench's own"),
    ("nftables", "what Services are measured beside, in namespaces of the bench's own"),
];

/// Needed only where rustup has no nightly with rust-src.
const EBPF_FALLBACK: &[(&str, &str)] = &[
    ("rustc-web", "compiles the eBPF programs where there is no nightly with rust-src"),
    ("libstd-rust-web-dev-bpf", "a ready-made core for the bpfel target"),
];

const BPF_LINKER_VERSION: &str = "0.13.0";
const LLVM_PREFIX: &str = "/usr/lib/llvm-22";

/// Installs what is missing.
pub fn run() -> Result<()> {
    let mut wanted: Vec<&str> = PACKAGES.iter().map(|(name, _)| *name).collect();
    if !nightly_has_rust_src() {
        wanted.extend(EBPF_FALLBACK.iter().map(|(name, _)| *name));
    }
    install(&wanted)?;
    if !bpf_linker_is_current() {
        install_bpf_linker()?;
    }
    Ok(())
}

/// Installs those of some packages that are missing.
pub fn install(packages: &[&str]) -> Result<()> {
    let missing: Vec<&str> = packages.iter().copied().filter(|name| !is_installed(name)).collect();
    if missing.is_empty() { Ok(()) } else { install_packages(&missing) }
}

/// Whether rustup's nightly can build `core` itself (`-Z build-std`).
pub fn nightly_has_rust_src() -> bool {
    let output = Command::new("rustc").args(["+nightly", "--print", "sysroot"]).output();
    match output {
        Ok(out) if out.status.success() => {
            let sysroot = PathBuf::from(String::from_utf8_lossy(&out.stdout).trim());
            sysroot.join("lib/rustlib/src/rust/library/core/Cargo.toml").exists()
        }
        _ => false,
    }
}

fn is_installed(package: &str) -> bool {
    Command::new("dpkg-query")
        .args(["-W", "-f=${db:Status-Status}", package])
        .output()
        .is_ok_and(|out| out.status.success() && out.stdout == b"installed")
}

fn install_packages(packages: &[&str]) -> Result<()> {
    ensure!(
        nix::unistd::geteuid().is_root(),
        "packages are missing and only root can install them: apt-get install {}",
        packages.join(" ")
    );
    eprintln!("installing {}", packages.join(" "));
    // Services of these packages must not start: tests run their own instances.
    let policy = Path::new("/usr/sbin/policy-rc.d");
    let ours = !policy.exists();
    if ours {
        std::fs::write(policy, "#!/bin/sh\nexit 101\n").context("writing policy-rc.d")?;
        set_executable(policy)?;
    }
    let result = apt(&["update"]).and_then(|()| {
        let mut args = vec!["install", "-y", "--no-install-recommends"];
        args.extend(packages);
        apt(&args)
    });
    if ours {
        std::fs::remove_file(policy).context("removing policy-rc.d")?;
    }
    result
}

fn set_executable(path: &Path) -> Result<()> {
    use std::os::unix::fs::PermissionsExt;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755))?;
    Ok(())
}

fn apt(args: &[&str]) -> Result<()> {
    let output = Command::new("apt-get")
        .env("DEBIAN_FRONTEND", "noninteractive")
        .arg("-q")
        .args(args)
        .output()
        .context("running apt-get: is this Debian?")?;
    if !output.status.success() {
        eprint!("{}", String::from_utf8_lossy(&output.stderr));
        bail!("apt-get {} failed", args.join(" "));
    }
    Ok(())
}

fn bpf_linker_is_current() -> bool {
    Command::new("bpf-linker")
        .arg("--version")
        .output()
        .is_ok_and(|out| String::from_utf8_lossy(&out.stdout).contains(BPF_LINKER_VERSION))
}

fn install_bpf_linker() -> Result<()> {
    eprintln!("installing bpf-linker {BPF_LINKER_VERSION}");
    let status = Command::new("cargo")
        .args(["install", "bpf-linker", "--version", BPF_LINKER_VERSION, "--locked", "--force"])
        .args(["--no-default-features", "--features", "llvm-22"])
        .env("LLVM_PREFIX", LLVM_PREFIX)
        .env("LIBRARY_PATH", format!("{LLVM_PREFIX}/lib"))
        .env_remove("CARGO_TARGET_DIR")
        .status()
        .context("running cargo install")?;
    ensure!(status.success(), "bpf-linker did not build: see above");
    Ok(())
}
