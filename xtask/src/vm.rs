//! `cargo xtask vm-test`: the eBPF programs on an old kernel, Debian 12's 6.1, in a virtual machine under software
//! emulation. The machine boots into a file system in memory with the tests of the dataplane that need nothing but
//! network namespaces; its console is the output.

use std::ffi::OsStr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};

use crate::{output, setup};

/// What is run: a test program of the dataplane, and which of its tests.
const TESTS: &[(&str, &str)] = &[
    ("hawser_proxy", "migrate sweep"),
    ("paths", "every_program announced a_backend direct_server fragments"),
    ("sockets", ""),
];
/// A meta package that depends on the newest cloud kernel of the release.
const KERNEL: &str = "linux-image-cloud-amd64";
/// Beside what [`setup`] installs.
const PACKAGES: &[&str] = &["qemu-system-x86", "cpio"];
/// Modules that the tests need; all else is built in. The last two are how tc programs are attached before TCX (6.6).
const MODULES: &[&str] = &["veth", "sch_ingress", "cls_bpf"];
/// How long the machine may run. A program takes the verifier seconds under emulation.
const TIMEOUT_S: u32 = 900;
const DONE: &str = "VM-TEST-PASSED";

/// Boots the machine and runs the tests in it. Installs qemu and unpacks the kernel's package below the target directory
/// where they are missing.
pub fn test() -> Result<()> {
    setup::install(PACKAGES)?;
    let dir = crate::target_dir().join("vm");
    let kernel = kernel(&dir)?;
    let root = dir.join("root");
    if root.exists() {
        std::fs::remove_dir_all(&root)?;
    }
    fill(&root, &kernel)?;
    let image = dir.join("initrd");
    pack(&root, &image)?;
    let console = boot(&find(&kernel.join("boot"), |name| name.starts_with("vmlinuz"))?, &image)?;
    ensure!(console.lines().any(|line| line.trim() == DONE), "the tests failed: see above");
    Ok(())
}

/// The unpacked kernel package, fetched where it is missing.
fn kernel(dir: &Path) -> Result<PathBuf> {
    let unpacked = dir.join("kernel");
    if unpacked.join("boot").exists() {
        return Ok(unpacked);
    }
    std::fs::create_dir_all(dir)?;
    let depends = output(Command::new("apt-cache").args(["depends", "--important", KERNEL]))?;
    let package = depends.lines().find_map(|line| line.trim().strip_prefix("Depends: "));
    let package = package.with_context(|| format!("{KERNEL} depends on no kernel: {depends}"))?;
    crate::run(Command::new("apt-get").args(["-q", "download", package]).current_dir(dir))?;
    let archive = find(dir, |name| name.starts_with(package) && name.ends_with(".deb"))?;
    crate::run(Command::new("dpkg-deb").arg("-x").arg(archive).arg(&unpacked))?;
    Ok(unpacked)
}

/// Puts the tests, what they are linked against, a shell and modules into a folder.
fn fill(root: &Path, kernel: &Path) -> Result<()> {
    for dir in ["bin", "proc", "sys", "tmp", "dev", "mods"] {
        std::fs::create_dir_all(root.join(dir))?;
    }
    let mut programs =
        vec![(which("busybox")?, "bin/busybox".to_string()), (which("ip")?, "bin/ip".to_string())];
    for (name, _) in TESTS {
        programs.push((test_program(name)?, (*name).to_string()));
    }
    for (from, to) in &programs {
        std::fs::copy(from, root.join(to)).with_context(|| from.display().to_string())?;
        for library in libraries(from)? {
            let to = root.join(library.strip_prefix("/")?);
            std::fs::create_dir_all(to.parent().unwrap_or(root))?;
            std::fs::copy(&library, to)?;
        }
    }
    for module in MODULES {
        let file = format!("{module}.ko");
        let list = output(Command::new("find").arg(kernel.join("lib/modules")).args(["-name", &file]))?;
        let path = list.lines().next().with_context(|| format!("the kernel package has no {file}"))?;
        std::fs::copy(path, root.join("mods").join(&file))?;
    }
    let init = root.join("init");
    std::fs::write(&init, script())?;
    std::fs::set_permissions(&init, std::fs::Permissions::from_mode(0o755))?;
    Ok(())
}

/// What the machine does: mounts, tests, one line that says whether all passed, and off.
fn script() -> String {
    let tests =
        TESTS.iter().map(|(name, filter)| format!("/{name} --test-threads 1 {filter} || passed=no\n"));
    format!(
        "#!/bin/busybox sh\n\
         /bin/busybox --install -s /bin\n\
         export PATH=/bin RUST_BACKTRACE=0\n\
         mount -t proc none /proc; mount -t sysfs none /sys; mount -t devtmpfs none /dev; mount -t tmpfs none /tmp\n\
         mount -t cgroup2 none /sys/fs/cgroup\n\
         for module in /mods/*; do insmod $module; done\n\
         ip link set lo up; uname -r; passed=yes\n\
         {}[ $passed = yes ] && echo {DONE}\n\
         poweroff -f\n",
        tests.collect::<String>()
    )
}

fn pack(root: &Path, image: &Path) -> Result<()> {
    let mut find = Command::new("find").arg(".").current_dir(root).stdout(Stdio::piped()).spawn()?;
    let names = find.stdout.take().context("find has an output")?;
    let image = std::fs::File::create(image)?;
    let mut cpio = Command::new("cpio");
    cpio.args(["--quiet", "-o", "-H", "newc"]).current_dir(root).stdin(names).stdout(image);
    let status = cpio.status().context("running cpio")?;
    ensure!(status.success() & find.wait()?.success(), "cpio failed");
    Ok(())
}

fn boot(kernel: &Path, image: &Path) -> Result<String> {
    let mut machine = Command::new("timeout");
    machine.arg(TIMEOUT_S.to_string()).arg("qemu-system-x86_64");
    machine.args(["-m", "2048", "-smp", "2", "-nographic", "-no-reboot", "-nic", "none"]);
    machine.arg("-kernel").arg(kernel).arg("-initrd").arg(image);
    machine.args(["-append", "console=ttyS0 quiet panic=-1 rdinit=/init"]);
    let console = machine.stdin(Stdio::null()).output().context("running qemu")?;
    let text = String::from_utf8_lossy(&console.stdout).into_owned();
    println!("{text}");
    Ok(text)
}

/// The newest test program of the dataplane with a name, built where it is out of date.
fn test_program(name: &str) -> Result<PathBuf> {
    let kind = if name == "hawser_proxy" { vec!["--lib"] } else { vec!["--test", name] };
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.args(["test", "-q", "-p", "hawser-proxy", "--no-run", "--message-format", "json"]).args(kind);
    let messages = output(&mut cargo)?;
    let executables =
        messages.lines().filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok());
    let executable = executables
        .filter(|message| {
            message["target"]["name"].as_str().is_some_and(|target| target.replace('-', "_") == name)
        })
        .find_map(|message| message["executable"].as_str().map(PathBuf::from));
    executable.with_context(|| format!("cargo built no test program {name}"))
}

/// The shared libraries of a program; none of a static one.
fn libraries(program: &Path) -> Result<Vec<PathBuf>> {
    let list = Command::new("ldd").arg(program).output().context("running ldd")?;
    let text = String::from_utf8_lossy(&list.stdout).into_owned();
    Ok(text.split_whitespace().filter(|word| word.starts_with('/')).map(PathBuf::from).collect())
}

fn which(program: &str) -> Result<PathBuf> {
    let path = output(Command::new("which").arg(program))?;
    Ok(PathBuf::from(path.trim()))
}

fn find(dir: &Path, is_it: impl Fn(&str) -> bool) -> Result<PathBuf> {
    for entry in std::fs::read_dir(dir).with_context(|| dir.display().to_string())? {
        let path = entry?.path();
        if path.file_name().and_then(OsStr::to_str).is_some_and(&is_it) {
            return Ok(path);
        }
    }
    anyhow::bail!("{}: not there", dir.display())
}
