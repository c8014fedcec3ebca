//! From the bytes of a question to those of its answer.

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::time::Instant;

use hickory_proto::op::{Edns, Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::{DNSClass, Name, RecordType};
use hickory_proto::serialize::binary::{BinEncodable, BinEncoder};
use ipnet::IpNet;
use parking_lot::RwLock;

use crate::answer::{Answer, answer};
use crate::forward::Forward;
use crate::metrics::Metrics;
pub use crate::metrics::Transport;
use crate::records::Index;
use crate::zone::Zone;

/// Bytes of a header (RFC 1035, 4.1.1).
const HEADER: usize = 12;
/// Largest datagram without EDNS (RFC 1035, 4.2.1), and with it: what passes any path unfragmented (DNS flag day 2020).
const DATAGRAM: (u16, u16) = (512, 1232);
/// Aliases that are followed.
const ALIASES: usize = 8;

/// What becomes of a question.
pub enum Reply {
    /// Nothing: it is no question.
    Silence,
    /// This answer.
    Now(Vec<u8>),
    /// Another server is to be asked.
    Later(Box<Pending>),
}

/// Answers questions from an index.
pub struct Responder {
    /// The cluster's records.
    pub index: RwLock<Index>,
    /// Whether the index holds all that the API said.
    pub synced: AtomicBool,
    /// Counters.
    pub metrics: Metrics,
    zone: Zone,
    forward: RwLock<Arc<Forward>>,
    clients: Vec<IpNet>,
    turn: AtomicUsize,
}

/// A question that is being answered.
struct Open {
    message: Message,
    query: Query,
    transport: Transport,
    limit: u16,
    since: Instant,
}

/// An answer that lacks what another server knows.
pub struct Pending {
    open: Open,
    /// The name to ask for: the question's, or what that is an alias of.
    name: Name,
}

impl Responder {
    /// For a zone, with an empty index that is not synced.
    pub fn new(zone: Zone, forward: Forward, clients: Vec<IpNet>) -> Self {
        Responder {
            index: RwLock::default(),
            synced: AtomicBool::new(false),
            metrics: Metrics::default(),
            zone,
            forward: RwLock::new(Arc::new(forward)),
            clients,
            turn: AtomicUsize::new(0),
        }
    }

    /// Puts other upstream servers in place, with an empty cache.
    pub fn set_forward(&self, forward: Forward) {
        *self.forward.write() = Arc::new(forward);
    }

    /// Answers a question.
    pub fn respond(&self, bytes: &[u8], client: IpAddr, transport: Transport) -> Reply {
        let since = Instant::now();
        let Some(header) = bytes.get(..HEADER) else { return Reply::Silence };
        // Answers are not answered, so that no two servers can be made to talk to each other for ever.
        if header[2] & 0x80 != 0 {
            return Reply::Silence;
        }
        let refuse = |code| self.bare(header, code, since);
        let count = |at: usize| u16::from_be_bytes([header[at], header[at + 1]]);
        if OpCode::from_u8((header[2] >> 3) & 0xf) != OpCode::Query {
            return refuse(ResponseCode::NotImp);
        }
        // Looked at before anything is made of it: a question, and at most EDNS and a signature.
        if (count(4), count(6), count(8)) != (1, 0, 0) || count(10) > 2 {
            return refuse(ResponseCode::FormErr);
        }
        let Ok(mut request) = Message::from_vec(bytes) else { return refuse(ResponseCode::FormErr) };
        let Some(query) = request.queries.pop() else { return refuse(ResponseCode::FormErr) };
        self.metrics.request(transport, query.query_type());

        let mut message = Message::response(request.metadata.id, OpCode::Query);
        message.metadata.recursion_desired = request.metadata.recursion_desired;
        message.metadata.recursion_available = true;
        message.add_query(query.clone());
        let mut limit = DATAGRAM.0;
        if let Some(edns) = &request.edns {
            limit = edns.max_payload().clamp(DATAGRAM.0, DATAGRAM.1);
            let mut own = Edns::new();
            own.set_max_payload(DATAGRAM.1);
            message.set_edns(own);
        }
        let mut open = Open { message, query, transport, limit, since };
        if request.edns.is_some_and(|edns| edns.version() > 0) {
            return self.now(open, ResponseCode::BADVERS);
        }
        if !self.clients.iter().any(|net| net.contains(&client.to_canonical())) {
            return self.now(open, ResponseCode::Refused);
        }
        let kind = open.query.query_type();
        // Zones are not handed out, and only the internet's class is served.
        if open.query.query_class() != DNSClass::IN || matches!(kind, RecordType::AXFR | RecordType::IXFR) {
            return self.now(open, ResponseCode::Refused);
        }
        let name = open.query.name().clone();
        match self.cluster(&mut open, name) {
            Ok(code) => self.now(open, code),
            Err(name) => Reply::Later(Box::new(Pending { open, name })),
        }
    }

    /// Adds what the cluster knows of a name and of what that is an alias of; `Err` is a name that it does not.
    fn cluster(&self, open: &mut Open, mut name: Name) -> Result<ResponseCode, Name> {
        let kind = open.query.query_type();
        let index = self.index.read();
        for _ in 0..=ALIASES {
            let turn = self.turn.fetch_add(1, Relaxed);
            let answer = answer(&index, &self.zone, &name, kind, turn);
            if answer != Answer::Elsewhere && !self.synced.load(Relaxed) {
                return Ok(ResponseCode::ServFail);
            }
            let message = &mut open.message;
            match answer {
                Answer::Elsewhere => return Err(name),
                Answer::Alias { record, target } => {
                    message.metadata.authoritative = true;
                    message.add_answer(*record);
                    name = target;
                    continue;
                }
                Answer::Records(answers, additional) => {
                    message.add_answers(answers);
                    message.add_additionals(additional);
                    message.metadata.authoritative = true;
                    return Ok(ResponseCode::NoError);
                }
                Answer::NoData(zone) => {
                    message.metadata.authoritative = true;
                    message.add_authority(self.zone.soa(zone));
                    return Ok(ResponseCode::NoError);
                }
                Answer::NoName(zone) => {
                    message.metadata.authoritative = true;
                    message.add_authority(self.zone.soa(zone));
                    return Ok(ResponseCode::NXDomain);
                }
            }
        }
        Ok(ResponseCode::ServFail)
    }

    /// Asks the servers that know, and answers.
    pub async fn finish(&self, pending: Box<Pending>) -> Vec<u8> {
        let Pending { mut open, name } = *pending;
        self.metrics.forwarded();
        let forward = self.forward.read().clone();
        let mut upstream = forward.ask(&name, open.query.query_type()).await;
        // In the letters of the client, which may be how it tells true answers from false ones.
        for record in upstream.answers.iter_mut().filter(|record| record.name == name) {
            record.name = name.clone();
        }
        open.message.add_answers(upstream.answers);
        open.message.add_authorities(upstream.authorities);
        // Where nobody can be asked at all, an alias is the whole answer.
        let alias_only = open.message.metadata.authoritative && !forward.knows(&name);
        self.encode(open, if alias_only { ResponseCode::NoError } else { upstream.code })
    }

    fn now(&self, open: Open, code: ResponseCode) -> Reply {
        Reply::Now(self.encode(open, code))
    }

    fn encode(&self, open: Open, code: ResponseCode) -> Vec<u8> {
        let Open { mut message, transport, limit, since, .. } = open;
        message.metadata.response_code = code;
        let limit = if transport == Transport::Tcp { u16::MAX } else { limit };
        let bytes = fitting(&mut message, limit);
        self.metrics.response(code, since.elapsed());
        bytes
    }

    /// An answer made of nothing but the question's header.
    fn bare(&self, header: &[u8], code: ResponseCode, since: Instant) -> Reply {
        let opcode = OpCode::from_u8((header[2] >> 3) & 0xf);
        let mut message =
            Message::new(u16::from_be_bytes([header[0], header[1]]), MessageType::Response, opcode);
        message.metadata.response_code = code;
        let bytes = fitting(&mut message, DATAGRAM.0);
        self.metrics.response(code, since.elapsed());
        Reply::Now(bytes)
    }
}

/// Encodes as much as fits. What is left out of the answer is told (TC), so that the client comes again over TCP; what
/// is left out of the additional records is not.
fn fitting(message: &mut Message, limit: u16) -> Vec<u8> {
    let Some(bytes) = encoded(message, limit) else { return Vec::new() };
    let truncated = bytes[2] & 0x02 != 0;
    if !truncated {
        return bytes;
    }
    let count = |at: usize| usize::from(u16::from_be_bytes([bytes[at], bytes[at + 1]]));
    let (answers, additionals) = (count(6), count(10));
    // One record less, so that EDNS' own (11 bytes, and no other is shorter) has a place.
    if answers == message.answers.len() {
        message.additionals.truncate(additionals.saturating_sub(1));
    } else {
        message.answers.truncate(answers.saturating_sub(1));
        message.additionals.clear();
        message.metadata.truncation = true;
    }
    if let Some(bytes) = encoded(message, limit).filter(|bytes| bytes.len() <= usize::from(limit)) {
        return bytes;
    }
    encoded(&message.truncate(), limit).unwrap_or_default()
}

fn encoded(message: &Message, limit: u16) -> Option<Vec<u8>> {
    let mut bytes = Vec::with_capacity(512);
    let mut encoder = BinEncoder::new(&mut bytes);
    encoder.set_max_size(limit);
    let result = message.emit(&mut encoder);
    if let Err(error) = result {
        tracing::warn!(%error, "encoding an answer");
        return None;
    }
    Some(bytes)
}
