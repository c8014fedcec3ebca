//! Capability names and the sets a container gets (`capabilities(7)`; the default set is the one Docker and
//! containerd document). Pure.

use crate::spec::CapabilitySets;

/// Names by number, as in `linux/capability.h`.
const NAMES: [&str; 41] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "DAC_READ_SEARCH",
    "FOWNER",
    "FSETID",
    "KILL",
    "SETGID",
    "SETUID",
    "SETPCAP",
    "LINUX_IMMUTABLE",
    "NET_BIND_SERVICE",
    "NET_BROADCAST",
    "NET_ADMIN",
    "NET_RAW",
    "IPC_LOCK",
    "IPC_OWNER",
    "SYS_MODULE",
    "SYS_RAWIO",
    "SYS_CHROOT",
    "SYS_PTRACE",
    "SYS_PACCT",
    "SYS_ADMIN",
    "SYS_BOOT",
    "SYS_NICE",
    "SYS_RESOURCE",
    "SYS_TIME",
    "SYS_TTY_CONFIG",
    "MKNOD",
    "LEASE",
    "AUDIT_WRITE",
    "AUDIT_CONTROL",
    "SETFCAP",
    "MAC_OVERRIDE",
    "MAC_ADMIN",
    "SYSLOG",
    "WAKE_ALARM",
    "BLOCK_SUSPEND",
    "AUDIT_READ",
    "PERFMON",
    "BPF",
    "CHECKPOINT_RESTORE",
];

const DEFAULT: [&str; 14] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "FSETID",
    "FOWNER",
    "MKNOD",
    "NET_RAW",
    "SETGID",
    "SETUID",
    "SETFCAP",
    "SETPCAP",
    "NET_BIND_SERVICE",
    "SYS_CHROOT",
    "KILL",
    "AUDIT_WRITE",
];

/// Every capability this runtime knows.
pub const ALL: u64 = (1 << NAMES.len()) - 1;

/// A name that is no capability.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("unknown capability {0:?}")]
pub struct UnknownCapability(pub String);

/// The bit of a capability by name, with or without `CAP_`, in any case.
///
/// # Errors
/// [`UnknownCapability`].
pub fn bit(name: &str) -> Result<u64, UnknownCapability> {
    let upper = name.to_ascii_uppercase();
    let short = upper.strip_prefix("CAP_").unwrap_or(&upper);
    let number = NAMES.iter().position(|n| *n == short).ok_or_else(|| UnknownCapability(name.to_owned()))?;
    Ok(1 << number)
}

/// Names (`CAP_…`) of the set bits.
pub fn names(mask: u64) -> Vec<String> {
    NAMES.iter().enumerate().filter(|(n, _)| mask & (1 << n) != 0).map(|(_, s)| format!("CAP_{s}")).collect()
}

fn mask<'a>(names: impl IntoIterator<Item = &'a str>) -> Result<u64, UnknownCapability> {
    names.into_iter().try_fold(0, |m, n| Ok(m | if n.eq_ignore_ascii_case("ALL") { ALL } else { bit(n)? }))
}

/// The sets of a container: the default set, plus `add`, minus `drop` (`ALL` works in both; a capability named
/// in both by name is kept when everything is dropped and removed otherwise, as CRI runtimes do), or everything
/// when privileged. Ambient ones are always in the others too.
///
/// # Errors
/// [`UnknownCapability`].
pub fn sets(
    privileged: bool,
    add: &[String],
    drop: &[String],
    ambient: &[String],
) -> Result<CapabilitySets, UnknownCapability> {
    let default = mask(DEFAULT)?;
    let is_all = |s: &&String| s.eq_ignore_ascii_case("ALL");
    let base = match (add.iter().any(|s| is_all(&s)), drop.iter().any(|s| is_all(&s))) {
        (true, _) => ALL,
        (false, true) => 0,
        (false, false) => default,
    };
    let added = mask(add.iter().filter(|s| !is_all(s)).map(String::as_str))?;
    let dropped = mask(drop.iter().filter(|s| !is_all(s)).map(String::as_str))?;
    let ambient = mask(ambient.iter().map(String::as_str))?;
    let permitted = if privileged { ALL } else { ((base | added) & !dropped) | ambient };
    Ok(CapabilitySets { permitted, ambient })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn strings(list: &[&str]) -> Vec<String> {
        list.iter().map(|s| (*s).to_owned()).collect()
    }

    #[test]
    fn sets_follow_add_and_drop() {
        let net = bit("NET_ADMIN").unwrap_or_default();
        let raw = bit("cap_net_raw").unwrap_or_default();
        let default = mask(DEFAULT).unwrap_or_default();
        let cases: &[(&[&str], &[&str], u64)] = &[
            (&[], &[], default),
            (&["NET_ADMIN"], &[], default | net),
            (&[], &["CAP_NET_RAW"], default & !raw),
            (&["NET_ADMIN"], &["ALL"], net),
            (&["ALL"], &["NET_RAW"], ALL & !raw),
            (&["NET_RAW"], &["NET_RAW"], default & !raw),
        ];
        for (add, drop, want) in cases {
            let got = sets(false, &strings(add), &strings(drop), &[]).map(|s| s.permitted);
            assert_eq!(got, Ok(*want), "add {add:?} drop {drop:?}");
        }
        assert_eq!(sets(true, &[], &strings(&["ALL"]), &[]).map(|s| s.permitted), Ok(ALL));
        assert!(sets(false, &strings(&["NO_SUCH"]), &[], &[]).is_err());
        assert_eq!(names(raw), ["CAP_NET_RAW"]);
    }
}
