//! The pods' addresses on disk, one file per pod, named by its first address: a crash at any moment leaves each address
//! with one owner or none.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::net::IpAddr;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::types::Protocol;

/// Ending of a file that is not yet complete.
const PART: &str = "part";

/// A port of the node that leads to a pod.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PortMapping {
    /// The node's address; all of those of node ports when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host_ip: Option<IpAddr>,
    /// The node's port.
    pub host_port: u16,
    /// The pod's port.
    pub container_port: u16,
    /// Protocol.
    pub protocol: Protocol,
}

/// A pod's network, as it was or is to be set up.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// The pod's sandbox.
    pub sandbox_id: String,
    /// Namespace of the pod.
    pub namespace: String,
    /// Name of the pod.
    pub name: String,
    /// UID of the pod.
    pub uid: String,
    /// The pod's address; of the node's first family when there are two.
    pub address: IpAddr,
    /// Its address of the other family.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub second: Option<IpAddr>,
    /// The node's end of the veth pair.
    pub interface: String,
    /// The pod's network namespace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub netns: Option<PathBuf>,
    /// Ports of the node that lead to the pod.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub host_ports: Vec<PortMapping>,
    /// Seconds since the epoch when the pod went away.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub released_at: Option<u64>,
}

impl Record {
    /// The pod's addresses, the first one first.
    pub fn addresses(&self) -> impl Iterator<Item = IpAddr> + use<> {
        std::iter::once(self.address).chain(self.second)
    }
}

/// A directory of records.
#[derive(Debug)]
pub struct Store {
    dir: PathBuf,
}

impl Store {
    /// Opens the directory and reads all records. Files that were never completed are removed.
    ///
    /// # Errors
    /// The directory cannot be read, or a record is damaged: then nothing may be given out.
    pub fn open(dir: PathBuf) -> io::Result<(Self, Vec<Record>)> {
        crate::programs::create_private(&dir)?;
        let mut records = Vec::new();
        for entry in std::fs::read_dir(&dir)? {
            let path = entry?.path();
            if path.extension().is_some_and(|extension| extension == PART) {
                std::fs::remove_file(&path)?;
                continue;
            }
            let damaged = |error: serde_json::Error| {
                io::Error::new(io::ErrorKind::InvalidData, format!("{}: {error}", path.display()))
            };
            records.push(serde_json::from_slice(&std::fs::read(&path)?).map_err(damaged)?);
        }
        Ok((Self { dir }, records))
    }

    /// Writes a record in place of the address' old one. Durable when this returns.
    ///
    /// # Errors
    /// The record may or may not have been written.
    pub fn put(&self, record: &Record) -> io::Result<()> {
        let path = self.dir.join(format!("{}.json", record.address));
        let part = path.with_extension(PART);
        let mut file = OpenOptions::new().create(true).truncate(true).write(true).mode(0o600).open(&part)?;
        file.write_all(&serde_json::to_vec(record)?)?;
        file.sync_all()?;
        std::fs::rename(&part, &path)?;
        sync_dir(&self.dir)
    }
}

fn sync_dir(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(last: u8) -> Record {
        Record {
            sandbox_id: format!("s{last}"),
            namespace: "default".into(),
            name: "web".into(),
            uid: "u".into(),
            address: [10, 0, 0, last].into(),
            second: None,
            interface: "hws0".into(),
            netns: None,
            host_ports: Vec::new(),
            released_at: None,
        }
    }

    #[test]
    fn survives_a_crash_between_any_two_steps() {
        let dir = tempfile::tempdir().expect("a directory");
        let (store, records) = Store::open(dir.path().join("pods")).expect("opens");
        assert!(records.is_empty());
        store.put(&record(2)).expect("writes");
        store.put(&Record { released_at: Some(7), ..record(2) }).expect("replaces");
        let mapping =
            PortMapping { host_ip: None, host_port: 80, container_port: 8080, protocol: Protocol::Sctp };
        let sixth = Some([0xfd00, 0, 0, 0, 0, 0, 0, 3].into());
        let third = Record { host_ports: vec![mapping], second: sixth, ..record(3) };
        store.put(&third).expect("writes");
        std::fs::write(dir.path().join("pods/10.0.0.4.part"), b"{").expect("half a record");
        let (_, mut records) = Store::open(dir.path().join("pods")).expect("opens");
        records.sort_by_key(|record| record.address);
        assert_eq!(records, [Record { released_at: Some(7), ..record(2) }, third]);
        assert!(!dir.path().join("pods/10.0.0.4.part").exists());
        std::fs::write(dir.path().join("pods/10.0.0.5.json"), b"{").expect("damage");
        assert_eq!(
            Store::open(dir.path().join("pods")).err().map(|e| e.kind()),
            Some(io::ErrorKind::InvalidData)
        );
    }
}
