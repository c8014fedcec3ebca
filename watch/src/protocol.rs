//! The transports of Services' ports.

use std::fmt;

/// Transport protocol of a port, by its number (IANA's assigned protocol numbers).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
#[repr(u8)]
pub enum Protocol {
    /// TCP.
    Tcp = 6,
    /// UDP.
    Udp = 17,
    /// SCTP.
    Sctp = 132,
}

impl Protocol {
    /// All.
    pub const ALL: [Self; 3] = [Self::Tcp, Self::Udp, Self::Sctp];

    /// From the API's name; an absent protocol means TCP.
    pub fn from_api(name: Option<&str>) -> Option<Self> {
        let name = name.unwrap_or("TCP");
        Self::ALL.into_iter().find(|protocol| protocol.name() == name)
    }

    /// The API's name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Tcp => "TCP",
            Self::Udp => "UDP",
            Self::Sctp => "SCTP",
        }
    }

    /// `IPPROTO_*`.
    pub fn number(self) -> u8 {
        self as u8
    }

    /// From `IPPROTO_*`.
    pub fn from_number(number: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|protocol| protocol.number() == number)
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_numbers_lead_back() {
        for protocol in Protocol::ALL {
            assert_eq!(Protocol::from_api(Some(protocol.name())), Some(protocol));
            assert_eq!(Protocol::from_number(protocol.number()), Some(protocol));
        }
        assert_eq!(Protocol::from_api(None), Some(Protocol::Tcp));
        assert_eq!(Protocol::from_api(Some("tcp")), None, "the API's names are upper case");
        assert_eq!(Protocol::from_number(1), None);
    }
}
