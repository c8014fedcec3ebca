//! Loads the eBPF programs, attaches them, and pins all so that it outlives this process.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use aya::programs::links::FdLink;
use aya::programs::tc::{NlOptions, SchedClassifierLink, TcAttachOptions, TcHandle};
use aya::programs::{
    CgroupAttachMode, CgroupSockAddr, LinkOrder, Program, ProgramError, SchedClassifier, TcAttachType, Xdp,
    XdpMode, tc,
};
use aya::util::KernelVersion;
use aya::{Ebpf, EbpfLoader};
use hawser_ebpf_common::endpoint::{CONFIG_MIGRATING, LAYOUT, NodeConfig};
use hawser_ebpf_common::{flow, map_names as names};
use nix::mount::MsFlags;

use crate::config;
use crate::maps::{KernelMaps, MapError};
use crate::migrate;
use crate::sys;

/// The programs, compiled by build.rs; aligned because the ELF is read in place.
static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/hawser.bpf.o"));

/// Cgroup programs. The first is replaced before the others: it knows the sockets of an older layout too.
const SOCKET_PROGRAMS: [&str; 9] = [
    "sock_release",
    "connect4",
    "sendmsg4",
    "recvmsg4",
    "getpeername4",
    "connect6",
    "sendmsg6",
    "recvmsg6",
    "getpeername6",
];
/// The program of the uplink's XDP hook.
const XDP_PROGRAM: &str = "xdp_uplink";
/// Loaded when they are first asked for: verifying them takes time, and not every node attaches them.
const ON_DEMAND: [&str; 4] = [XDP_PROGRAM, "xdp_pass", "from_tunnel", "to_tunnel"];
/// Priority and handle of our filters: fixed, so that a restart finds them.
const NETLINK_PRIORITY: u16 = 1;
const NETLINK_HANDLE: TcHandle = TcHandle::new(0, 0x68);
/// `BPF_FS_MAGIC`.
const BPF_FS_MAGIC: i64 = 0xcafe_4a11;
/// Mode of directories that only root may enter.
const PRIVATE: u32 = 0o700;

/// Why programs could not be loaded or attached.
#[derive(Debug, thiserror::Error)]
pub enum ProgramsError {
    /// A bpffs could not be mounted, or a pin not be written.
    #[error("{path}: {source}")]
    Pin {
        /// The path.
        path: PathBuf,
        /// What went wrong.
        source: io::Error,
    },
    /// The ELF or the maps were refused.
    #[error("loading the eBPF programs: {0}")]
    Load(#[from] Box<aya::EbpfError>),
    /// The kernel refused a program.
    #[error("eBPF program {name}: {source}")]
    Program {
        /// Name of the program.
        name: String,
        /// The kernel's answer, with the verifier's log.
        source: Box<ProgramError>,
    },
    /// A link could not be made.
    #[error("attaching {name} to {target}: {reason}")]
    Attach {
        /// Name of the program.
        name: String,
        /// Interface or cgroup.
        target: String,
        /// What went wrong.
        reason: String,
    },
    /// A map could not be read.
    #[error(transparent)]
    Map(#[from] MapError),
}

/// Where everything is pinned.
#[derive(Debug, Clone)]
pub struct Pins {
    root: PathBuf,
}

impl Pins {
    /// Below a directory that is, or becomes, the mount point of a bpffs.
    pub fn new(root: PathBuf) -> Self {
        Self { root }
    }

    /// Directory of the maps.
    pub fn maps(&self) -> PathBuf {
        self.root.join("maps")
    }

    fn programs(&self) -> PathBuf {
        self.root.join("programs")
    }

    fn links(&self) -> PathBuf {
        self.root.join("links")
    }

    /// Pin of a link; `target` is an interface or "cgroup-ID". A bpffs allows no dot in names, an interface does.
    fn link(&self, program: &str, target: &str) -> PathBuf {
        self.links().join(format!("{program}:{}", target.replace('.', "!")))
    }

    /// Mounts a bpffs where there is none, and makes the directories.
    fn prepare(&self) -> Result<(), ProgramsError> {
        let pin_error = |path: &Path| {
            let path = path.to_path_buf();
            move |source| ProgramsError::Pin { path, source }
        };
        create_private(&self.root).map_err(pin_error(&self.root))?;
        let kind =
            nix::sys::statfs::statfs(&self.root).map_err(io::Error::from).map_err(pin_error(&self.root))?;
        if kind.filesystem_type().0 as i64 != BPF_FS_MAGIC {
            nix::mount::mount(
                Some("bpf"),
                &self.root,
                Some("bpf"),
                MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC,
                Some("mode=0700"),
            )
            .map_err(io::Error::from)
            .map_err(pin_error(&self.root))?;
        }
        for dir in [self.maps(), self.programs(), self.links()] {
            create_private(&dir).map_err(pin_error(&dir))?;
        }
        Ok(())
    }
}

/// Creates a directory that only root may enter, and its parents.
pub(crate) fn create_private(path: &Path) -> io::Result<()> {
    use std::os::unix::fs::DirBuilderExt;
    std::fs::DirBuilder::new().recursive(true).mode(PRIVATE).create(path)
}

pub(crate) fn remove_if_there(path: &Path) -> Result<(), ProgramsError> {
    match std::fs::remove_file(path) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => {
            Err(ProgramsError::Pin { path: path.to_path_buf(), source })
        }
        _ => Ok(()),
    }
}

/// The loaded programs. Dropping them leaves all links in force: they are pinned.
#[derive(Debug)]
pub struct Programs {
    ebpf: Ebpf,
    pins: Pins,
    tcx: bool,
}

impl Programs {
    /// Loads the programs over the pinned maps, which are made when they are missing; those of an older layout hand
    /// their elements on. Attaches nothing. XDP works, but its flow cache has next to no room.
    ///
    /// # Errors
    /// See [`ProgramsError`].
    pub fn load(pins: &Pins) -> Result<Self, ProgramsError> {
        Self::load_sized(pins, &[])
    }

    /// As [`Self::load`], with other sizes, in elements, of maps that are not there yet. To look through a hash map takes
    /// time by its size, however little it holds.
    ///
    /// # Errors
    /// See [`ProgramsError`].
    pub fn load_sized(pins: &Pins, sizes: &[(&str, u32)]) -> Result<Self, ProgramsError> {
        Self::load_with_flows(pins, [1, 1], sizes)
    }

    /// As [`Self::load`], with memory for XDP's flow cache.
    ///
    /// # Errors
    /// See [`ProgramsError`].
    pub fn load_for_xdp(pins: &Pins) -> Result<Self, ProgramsError> {
        let failed = |(path, source): (&str, _)| ProgramsError::Pin { path: path.into(), source };
        let cpus = aya::util::nr_cpus().map_err(failed)?;
        Self::load_with_flows(pins, [flow::chunks4(cpus), flow::chunks6(cpus)], &[])
    }

    /// With so many elements in the maps of the flow cache.
    fn load_with_flows(
        pins: &Pins,
        [chunks4, chunks6]: [u32; 2],
        sizes: &[(&str, u32)],
    ) -> Result<Self, ProgramsError> {
        pins.prepare()?;
        migrate::prepare(pins)?;
        let mut loader = EbpfLoader::new();
        loader.map_max_entries(names::FLOWS, chunks4).override_global("FLOW_CHUNKS4", &chunks4, true);
        loader.map_max_entries(names::FLOWS6, chunks6).override_global("FLOW_CHUNKS6", &chunks6, true);
        for (name, size) in sizes {
            loader.map_max_entries(name, *size);
        }
        let mut ebpf = loader.default_map_pin_directory(pins.maps()).load(OBJECT).map_err(Box::new)?;
        for (name, program) in ebpf.programs_mut() {
            match ON_DEMAND.contains(&name) {
                true => remove_if_there(&pins.programs().join(name))?,
                false => load_and_pin(pins, name, program)?,
            }
        }
        migrate::copy(pins, false)?;
        let mut config = KernelMaps::open(&pins.maps())?;
        let current = config.config()?;
        let migrating = if migrate::under_way(pins)? { CONFIG_MIGRATING } else { 0 };
        let flags = current.flags & !CONFIG_MIGRATING | migrating;
        config.set_config(&NodeConfig { layout: LAYOUT, flags, ..current })?;
        Ok(Self { ebpf, pins: pins.clone(), tcx: has_tcx() })
    }

    /// When these programs are attached in place of the old ones: lets the maps of an older layout go.
    ///
    /// # Errors
    /// See [`ProgramsError`].
    pub fn finish_migration(&self) -> Result<(), ProgramsError> {
        let mut config = KernelMaps::open(&self.pins.maps())?;
        let current = config.config()?;
        migrate::copy(&self.pins, true)?;
        config.set_config(&NodeConfig { flags: current.flags & !CONFIG_MIGRATING, ..current })?;
        migrate::finish(&self.pins)
    }

    /// Attaches the socket hooks to a cgroup v2, or replaces those that an earlier agent attached. Another
    /// cgroup that an earlier agent was told is let go.
    ///
    /// # Errors
    /// See [`ProgramsError`].
    pub fn attach_cgroup(&mut self, cgroup: &Path) -> Result<(), ProgramsError> {
        let failed = |source| ProgramsError::Pin { path: cgroup.to_path_buf(), source };
        let directory = File::open(cgroup).map_err(failed)?;
        // The inode is the cgroup's id: a cgroup made anew under the same path is another one.
        let target = format!("cgroup-{}", directory.metadata().map_err(failed)?.ino());
        for name in SOCKET_PROGRAMS {
            let pin = self.pins.link(name, &target);
            if self.replace(name, &target, &pin)? {
                continue;
            }
            let failed = attach_error(name, &cgroup.display().to_string());
            let link = self.link_cgroup(name, &directory).map_err(|e| failed(&e))?;
            link.pin(&pin).map_err(|e| failed(&e))?;
        }
        self.release_others(&SOCKET_PROGRAMS, &target)
    }

    fn link_cgroup(&mut self, name: &str, cgroup: &File) -> Result<FdLink, ProgramError> {
        let not_there = || ProgramError::IOError(io::Error::other("the object has no such program"));
        let mode = CgroupAttachMode::Single;
        match self.ebpf.program_mut(name).ok_or_else(not_there)? {
            Program::CgroupSock(program) => {
                let id = program.attach(cgroup, mode)?;
                Ok(program.take_link(id)?.try_into().map_err(io::Error::other)?)
            }
            program => {
                let program: &mut CgroupSockAddr = program.try_into()?;
                let id = program.attach(cgroup, mode)?;
                Ok(program.take_link(id)?.try_into().map_err(io::Error::other)?)
            }
        }
    }

    /// Attaches to a pod's interface, or replaces what is there. By what lives as long as the interface, and needs no pin:
    /// for what the pod sends a TCX program where there is TCX, because a filter costs every packet 65 ns more; for
    /// what the stack sends to the pod, which is little, a filter, because TCX makes the pod wait for an RCU grace period
    /// (13 ms in place of 0.2).
    ///
    /// # Errors
    /// See [`ProgramsError`].
    pub fn attach_pod(&mut self, interface: &str) -> Result<(), ProgramsError> {
        const SENT: &str = "from_pod";
        self.attach_filter("to_pod", interface, TcAttachType::Egress)?;
        if !self.tcx {
            return self.attach_filter(SENT, interface, TcAttachType::Ingress);
        }
        // An earlier agent may have attached a filter: both at once would see packets twice.
        match self.replace_filter(SENT, interface, TcAttachType::Ingress)? {
            true => Ok(()),
            false => self.put_tcx(SENT, interface),
        }
    }

    /// Attaches to the uplink, or replaces what is there. Another interface that was the uplink of an
    /// earlier agent is let go.
    ///
    /// # Errors
    /// See [`ProgramsError`].
    pub fn attach_uplink(&mut self, interface: &str) -> Result<(), ProgramsError> {
        self.attach_both(["from_uplink", "to_uplink"], interface)
    }

    /// Attaches to the tunnels' interface, or replaces what is there; without one, lets go of what an earlier agent had.
    ///
    /// # Errors
    /// See [`ProgramsError`].
    pub fn attach_tunnel(&mut self, interface: Option<&str>) -> Result<(), ProgramsError> {
        const NAMES: [&str; 2] = ["from_tunnel", "to_tunnel"];
        match interface {
            Some(interface) => self.attach_both(NAMES, interface),
            None => self.release_others(&NAMES, ""),
        }
    }

    /// What comes in and what goes out of an interface, and of no other.
    fn attach_both(&mut self, names: [&str; 2], interface: &str) -> Result<(), ProgramsError> {
        for (name, hook) in names.into_iter().zip([TcAttachType::Ingress, TcAttachType::Egress]) {
            match self.tcx {
                true => self.attach_tcx(name, interface, hook)?,
                false => self.attach_filter(name, interface, hook)?,
            }
        }
        self.release_others(&names, interface)
    }

    /// Attaches XDP to the uplink, or replaces what is there, or takes it away.
    ///
    /// # Errors
    /// See [`ProgramsError`]; with [`config::Xdp::Native`] also a driver that cannot.
    pub fn attach_xdp(
        &mut self,
        interface: &str,
        wanted: config::Xdp,
        is_virtual: bool,
    ) -> Result<(), ProgramsError> {
        let modes = xdp_modes(wanted, is_virtual);
        // The mode is part of the name: a link cannot change it.
        let target = |mode: &XdpMode| format!("{interface}-{mode:?}").to_lowercase();
        let mut last = Ok(());
        for mode in modes {
            let target = target(mode);
            self.release_others(&[XDP_PROGRAM], &target)?;
            last = self.attach_xdp_as(interface, *mode, &target);
            match &last {
                Ok(()) => return Ok(()),
                Err(error) => tracing::info!(%error, "XDP in this mode"),
            }
        }
        self.release_others(&[XDP_PROGRAM], "")?;
        last
    }

    fn attach_xdp_as(&mut self, interface: &str, mode: XdpMode, target: &str) -> Result<(), ProgramsError> {
        let failed = attach_error(XDP_PROGRAM, interface);
        let pin = self.pins.link(XDP_PROGRAM, target);
        let _loaded: &mut Xdp = self.program(XDP_PROGRAM)?;
        if self.replace(XDP_PROGRAM, target, &pin)? {
            return Ok(());
        }
        let program: &mut Xdp = self.program(XDP_PROGRAM)?;
        let id = program.attach(interface, mode).map_err(|e| failed(&e))?;
        let link = program.take_link(id).map_err(|e| failed(&e))?;
        let link = FdLink::try_from(link).map_err(|e| failed(&e))?;
        link.pin(&pin).map(drop).map_err(|e| failed(&e))
    }

    /// The XDP program, for `BPF_PROG_TEST_RUN`.
    ///
    /// # Errors
    /// There is no such program.
    pub fn xdp(&mut self, name: &str) -> Result<&mut Xdp, ProgramsError> {
        self.program(name)
    }

    /// Removes these programs' links to any other target.
    fn release_others(&self, names: &[&str], target: &str) -> Result<(), ProgramsError> {
        let dir = self.pins.links();
        let failed = |source| ProgramsError::Pin { path: dir.clone(), source };
        for entry in std::fs::read_dir(&dir).map_err(failed)? {
            let path = entry.map_err(failed)?.path();
            let pin = path.file_name().unwrap_or_default().to_string_lossy();
            let program = pin.split_once(':').map(|(program, _)| program);
            if program.is_some_and(|name| names.contains(&name) && path != self.pins.link(name, target)) {
                remove_if_there(&path)?;
            }
        }
        Ok(())
    }

    /// A loaded tc program, for `BPF_PROG_TEST_RUN`.
    ///
    /// # Errors
    /// There is no such program.
    pub fn classifier(&mut self, name: &str) -> Result<&mut SchedClassifier, ProgramsError> {
        self.program(name)
    }

    fn program<'a, P>(&'a mut self, name: &str) -> Result<&'a mut P, ProgramsError>
    where
        &'a mut P: TryFrom<&'a mut Program, Error = ProgramError>,
    {
        let missing = || ProgramsError::Attach {
            name: name.to_string(),
            target: "the kernel".to_string(),
            reason: "no such program in the object".to_string(),
        };
        let program = self.ebpf.program_mut(name).ok_or_else(missing)?;
        if program.fd().is_err() {
            load_and_pin(&self.pins, name, program)?;
        }
        program
            .try_into()
            .map_err(|source| ProgramsError::Program { name: name.to_string(), source: Box::new(source) })
    }

    /// Puts our program into a link that is pinned. `false` when there is no such link, or when what
    /// it was attached to is gone; its pin is then removed.
    fn replace(&mut self, name: &str, target: &str, pin: &Path) -> Result<bool, ProgramsError> {
        let failed = attach_error(name, target);
        let link = match sys::object_get(pin) {
            Ok(link) => link,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
            Err(error) => return Err(failed(&error)),
        };
        let Some(program) = self.ebpf.program(name) else { return Ok(false) };
        let fd = program.fd().map_err(|e| failed(&e))?;
        match sys::link_update(link.as_fd(), fd.as_fd()) {
            Ok(()) => Ok(true),
            Err(error) if error.raw_os_error() == Some(libc::ENOLINK) => {
                remove_if_there(pin)?;
                Ok(false)
            }
            Err(error) => Err(failed(&error)),
        }
    }

    fn attach_tcx(&mut self, name: &str, interface: &str, hook: TcAttachType) -> Result<(), ProgramsError> {
        let failed = attach_error(name, interface);
        let pin = self.pins.link(name, interface);
        let _loaded: &mut SchedClassifier = self.program(name)?;
        if self.replace(name, interface, &pin)? {
            return Ok(());
        }
        let program: &mut SchedClassifier = self.program(name)?;
        let options = TcAttachOptions::TcxOrder(LinkOrder::default());
        let id = program.attach_with_options(interface, hook, options).map_err(|e| failed(&e))?;
        let link = program.take_link(id).map_err(|e| failed(&e))?;
        let link = FdLink::try_from(link).map_err(|e| failed(&e))?;
        link.pin(&pin).map(drop).map_err(|e| failed(&e))
    }

    /// The only TCX program for what comes in from an interface. It stays with the interface, so there is nothing to pin.
    fn put_tcx(&mut self, name: &str, interface: &str) -> Result<(), ProgramsError> {
        let failed = attach_error(name, interface);
        let (_, there) =
            SchedClassifier::query_tcx(interface, TcAttachType::Ingress).map_err(|e| failed(&e))?;
        let program: &mut SchedClassifier = self.program(name)?;
        let id = program.info().map_err(|e| failed(&e))?.id();
        let old = match there.first() {
            Some(old) if old.id() == id => return Ok(()),
            Some(old) => Some(old.fd().map_err(|e| failed(&e))?),
            None => None,
        };
        let index = nix::net::if_::if_nametoindex(interface).map_err(|e| failed(&e))?;
        let fd = program.fd().map_err(|e| failed(&e))?;
        sys::tcx_attach(index, fd.as_fd(), old.as_ref().map(AsFd::as_fd)).map_err(|e| failed(&e))
    }

    /// A filter on clsact, in place of the one that is there. It stays with the interface, so there is nothing to pin.
    fn attach_filter(
        &mut self,
        name: &str,
        interface: &str,
        hook: TcAttachType,
    ) -> Result<(), ProgramsError> {
        if self.replace_filter(name, interface, hook)? {
            return Ok(());
        }
        let failed = attach_error(name, interface);
        match tc::qdisc_add_clsact(interface) {
            Ok(()) | Err(tc::TcError::AlreadyAttached) => {}
            // The qdisc is there from an earlier life; if it is not, attaching says so.
            Err(error) => tracing::debug!(interface, %error, "adding clsact"),
        }
        let program: &mut SchedClassifier = self.program(name)?;
        let options = NlOptions { priority: NETLINK_PRIORITY, handle: NETLINK_HANDLE, classid: None };
        let id = program
            .attach_with_options(interface, hook, TcAttachOptions::Netlink(options))
            .map_err(|e| failed(&e))?;
        // Dropping the link would remove the filter.
        std::mem::forget(program.take_link(id).map_err(|e| failed(&e))?);
        Ok(())
    }

    /// Puts our program into the filter that an earlier agent attached. `false` when there is none.
    fn replace_filter(
        &mut self,
        name: &str,
        interface: &str,
        hook: TcAttachType,
    ) -> Result<bool, ProgramsError> {
        let failed = attach_error(name, interface);
        let old = SchedClassifierLink::attached(interface, hook, NETLINK_PRIORITY, NETLINK_HANDLE, None)
            .map_err(|e| failed(&e))?;
        let program: &mut SchedClassifier = self.program(name)?;
        let Ok(id) = program.attach_to_link(old) else { return Ok(false) };
        // Dropping the link would remove the filter.
        std::mem::forget(program.take_link(id).map_err(|e| failed(&e))?);
        Ok(true)
    }
}

/// In which modes XDP is tried, one after the other; none when it is not wanted.
pub(crate) fn xdp_modes(wanted: config::Xdp, is_virtual: bool) -> &'static [XdpMode] {
    match wanted {
        config::Xdp::Off => &[],
        config::Xdp::Auto if is_virtual => &[],
        config::Xdp::Auto => &[XdpMode::Driver, XdpMode::Skb],
        config::Xdp::Native => &[XdpMode::Driver],
        config::Xdp::Generic => &[XdpMode::Skb],
    }
}

/// Has the kernel verify a program, and pins it.
fn load_and_pin(pins: &Pins, name: &str, program: &mut Program) -> Result<(), ProgramsError> {
    let failed = |source| ProgramsError::Program { name: name.to_string(), source: Box::new(source) };
    match program {
        Program::CgroupSockAddr(program) => program.load().map_err(failed)?,
        Program::CgroupSock(program) => program.load().map_err(failed)?,
        Program::SchedClassifier(program) => program.load().map_err(failed)?,
        Program::Xdp(program) => program.load().map_err(failed)?,
        _ => return Ok(()),
    }
    let pin = pins.programs().join(name);
    remove_if_there(&pin)?;
    program.pin(&pin).map_err(|error| ProgramsError::Pin { path: pin, source: io::Error::other(error) })
}

/// Whether tc programs can be attached by links (since 6.6).
fn has_tcx() -> bool {
    KernelVersion::current().is_ok_and(|version| version >= KernelVersion::new(6, 6, 0))
}

fn attach_error(name: &str, target: &str) -> impl Fn(&dyn std::error::Error) -> ProgramsError + use<> {
    let (name, target) = (name.to_string(), target.to_string());
    move |error| {
        let mut reason = error.to_string();
        let mut source = error.source();
        while let Some(cause) = source {
            reason = format!("{reason}: {cause}");
            source = cause.source();
        }
        ProgramsError::Attach { name: name.clone(), target: target.clone(), reason }
    }
}
