//! `Accept` and `Content-Type`: in which form an answer is wanted and a body is sent.

use hawser_api::kinds::Kind;
use hawser_api::status::{Status, StatusDetails};

/// How bytes are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Encoding {
    /// `application/json`
    Json,
    /// `application/yaml`
    Yaml,
    /// `application/vnd.kubernetes.protobuf`
    Protobuf,
}

/// In the order in which wildcards take them.
const ENCODINGS: [(Encoding, &str); 3] =
    [(Encoding::Json, "json"), (Encoding::Yaml, "yaml"), (Encoding::Protobuf, "vnd.kubernetes.protobuf")];

impl Encoding {
    /// The `Content-Type` of answers.
    pub fn content_type(self) -> &'static str {
        match self {
            Self::Json => "application/json",
            Self::Yaml => "application/yaml",
            Self::Protobuf => "application/vnd.kubernetes.protobuf",
        }
    }

    /// The `Content-Type` of watches.
    pub fn stream_content_type(self) -> &'static str {
        match self {
            Self::Protobuf => "application/vnd.kubernetes.protobuf;stream=watch",
            other => other.content_type(),
        }
    }

    /// YAML documents have no frames.
    fn streams(self) -> bool {
        self != Self::Yaml
    }
}

/// Into what an object is turned (`as=` of the Accept header).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Transform {
    /// The object itself.
    None,
    /// `Table`; the flag is whether `v1beta1` was asked for.
    Table(bool),
    /// `PartialObjectMetadata` or its list; the flag is whether `v1beta1` was asked for.
    Partial(bool),
}

/// What was negotiated.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Accepted {
    /// How bytes are written.
    pub encoding: Encoding,
    /// Into what the object is turned.
    pub transform: Transform,
    /// JSON with line breaks, for people.
    pub pretty: bool,
}

impl Default for Accepted {
    fn default() -> Self {
        Self { encoding: Encoding::Json, transform: Transform::None, pretty: false }
    }
}

/// What can be had of what is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Offer<'a> {
    /// Of what there are objects, if that can be told.
    pub kind: Option<&'a Kind>,
    /// The answer is a list.
    pub list: bool,
    /// The answer is a stream of events.
    pub watch: bool,
    /// The objects have a protobuf form; objects of kinds defined at run time have none but their metadata has.
    pub protobuf: bool,
    /// The route itself knows what it can produce, as those of built-in kinds do.
    pub routed: bool,
}

/// One clause of an Accept header.
struct Clause<'a> {
    kind: &'a str,
    subkind: &'a str,
    params: Vec<(&'a str, &'a str)>,
    q: f32,
}

/// The clauses of an Accept header, the best first. As Kubernetes' parser has it: a clause that is malformed is
/// skipped, so is a parameter without exactly one `=`, and a weight that is no number is zero.
fn clauses(header: &str) -> Vec<Clause<'_>> {
    let mut out: Vec<Clause<'_>> = header.split(',').filter_map(clause).collect();
    // An insertion sort, since "better" is no order: a weight does not outweigh a wildcard.
    for i in 1..out.len() {
        let mut j = i;
        while j > 0 && better(&out[j], &out[j - 1]) {
            out.swap(j, j - 1);
            j -= 1;
        }
    }
    out
}

fn clause(text: &str) -> Option<Clause<'_>> {
    let mut parts = text.split(';');
    let media = parts.next()?.trim();
    let (kind, subkind) = match media.split_once('/') {
        None if media == "*" => ("*", "*"),
        None => return None,
        Some((_, subkind)) if subkind.is_empty() || subkind.contains('/') => return None,
        Some((kind, subkind)) => (kind.trim(), subkind.trim()),
    };
    let mut found = Clause { kind, subkind, params: Vec::new(), q: 1.0 };
    for (key, value) in parts.filter_map(|p| p.split_once('=')) {
        if value.is_empty() || value.contains('=') {
            continue;
        }
        match key.trim() {
            "q" => found.q = value.parse().unwrap_or(0.0),
            key => found.params.push((key, value.trim())),
        }
    }
    Some(found)
}

fn better(a: &Clause<'_>, b: &Clause<'_>) -> bool {
    a.q > b.q || (a.kind != "*" && b.kind == "*") || (a.subkind != "*" && b.subkind == "*")
}

impl Clause<'_> {
    fn param(&self, name: &str) -> Option<&str> {
        self.params.iter().rev().find(|(k, _)| *k == name).map(|(_, v)| *v)
    }

    /// The encodings that the clause names.
    fn encodings(&self) -> impl Iterator<Item = Encoding> {
        ENCODINGS.into_iter().filter_map(move |(encoding, name)| match (self.kind, self.subkind) {
            ("*", "*") | ("application", "*") => Some(encoding),
            ("application", subkind) if subkind == name => Some(encoding),
            _ => None,
        })
    }

    /// Group, version and kind of the transformation; None when none is asked for.
    fn target(&self) -> Option<(&str, &str, &str)> {
        let named = ["g", "v", "as"].map(|name| self.param(name));
        let [group, version, kind] = named.map(Option::unwrap_or_default);
        named.iter().any(Option::is_some).then_some((group, version, kind))
    }

    /// Whether the parameters that every answer knows can be met.
    fn meets(&self, encoding: Encoding) -> bool {
        self.param("stream").is_none_or(|s| s == "watch" && encoding.streams())
            && self.param("sv").is_none_or(|v| v == "v1")
    }

    fn pretty(&self) -> bool {
        self.param("pretty") == Some("1")
    }
}

/// Negotiates the form of an object's answer.
///
/// # Errors
/// 406 when nothing that is accepted can be sent.
pub fn accept(header: Option<&str>, offer: Offer<'_>) -> Result<Accepted, Status> {
    let Some(header) = header.filter(|h| !h.is_empty()) else { return Ok(Accepted::default()) };
    if offer.routed {
        route(header, offer.list || offer.watch)?;
    }
    for clause in clauses(header) {
        for encoding in clause.encodings().filter(|e| clause.meets(*e)) {
            let transform = match clause.target() {
                None if encoding == Encoding::Protobuf && !offer.protobuf => continue,
                None => Transform::None,
                Some(target) => match transform(target, encoding, offer) {
                    Some(transform) => transform,
                    None => match misfit(target, offer) {
                        Some(refused) => return Err(refused),
                        None => continue,
                    },
                },
            };
            if offer.watch && !encoding.streams() {
                return Err(not_acceptable(STREAMS));
            }
            return Ok(Accepted { encoding, transform, pretty: clause.pretty() });
        }
    }
    Err(if offer.watch { not_acceptable(STREAMS) } else { Status::not_acceptable() })
}

/// What kube-apiserver's router asks before anything else: one of the header's types, without its parameters, must be
/// one that the route names, or `*/*`. It knows no `application/*`.
///
/// # Errors
/// 406 in the router's words.
fn route(header: &str, streams: bool) -> Result<(), Status> {
    let produced = || ENCODINGS.into_iter().map(|(encoding, _)| encoding.content_type());
    let mut types = header.split(',').map(|t| t.split(';').next().unwrap_or(t).trim_matches(' '));
    if types.any(|t| t == "*/*" || produced().any(|p| p == t)) {
        return Ok(());
    }
    let mut available: Vec<&str> = produced().collect();
    if streams {
        available.extend(ENCODINGS.iter().filter(|(e, _)| e.streams()).map(|(e, _)| match e {
            Encoding::Protobuf => Encoding::Protobuf.stream_content_type(),
            _ => "application/json;stream=watch",
        }));
    }
    let text = format!("406: Not Acceptable\n\nAvailable representations: {}", available.join(", "));
    Err(Status::failure(406, "NotAcceptable", text).with_details(StatusDetails::default()))
}

/// The encoding of a failure's Status: the first that is accepted for a plain object, else JSON.
pub fn accept_error(header: Option<&str>) -> Encoding {
    let found = clauses(header.unwrap_or_default())
        .into_iter()
        .find_map(|clause| clause.encodings().find(|e| clause.target().is_none() && clause.meets(*e)));
    found.unwrap_or(Encoding::Json)
}

/// The first of some `application/` subtypes that a header accepts; any without a header.
pub fn choose(header: Option<&str>, subtypes: &[&str]) -> Option<usize> {
    let Some(header) = header.filter(|h| !h.is_empty()) else { return Some(0) };
    clauses(header).iter().find_map(|clause| {
        subtypes.iter().position(|subtype| {
            matches!(clause.kind, "application" | "*")
                && (clause.subkind == *subtype || clause.subkind == "*")
        })
    })
}

fn transform(target: (&str, &str, &str), encoding: Encoding, offer: Offer<'_>) -> Option<Transform> {
    let (group, version, kind) = target;
    let beta = match (group, version) {
        ("meta.k8s.io", "v1") => false,
        ("meta.k8s.io", "v1beta1") => true,
        _ => return None,
    };
    match kind {
        // Tables have no protobuf message.
        "Table" if encoding != Encoding::Protobuf => Some(Transform::Table(beta)),
        "PartialObjectMetadata" if !offer.list => Some(Transform::Partial(beta)),
        "PartialObjectMetadataList" if offer.list => Some(Transform::Partial(beta)),
        _ => None,
    }
}

/// The refusal of the metadata of an object where there is a list, or of a list where there is none.
fn misfit((group, version, kind): (&str, &str, &str), offer: Offer<'_>) -> Option<Status> {
    let known = group == "meta.k8s.io" && matches!(version, "v1" | "v1beta1");
    let wants_list = match kind {
        "PartialObjectMetadata" => false,
        "PartialObjectMetadataList" => true,
        _ => return None,
    };
    let of = offer.kind.filter(|_| known && wants_list != offer.list)?;
    let package = match of.group.split('.').next() {
        _ if !of.builtin => "unstructured",
        None | Some("" | "events") => "core",
        Some(first) => first,
    };
    let name = if of.builtin { of.kind.as_str() } else { "Unstructured" };
    let message = if offer.list {
        format!("you requested {kind}, but the requested object is a list (*{package}.{name}List)")
    } else {
        format!("you requested {kind}, but the requested object is not a list (*{package}.{name})")
    };
    Some(Status::failure(406, "NotAcceptable", message))
}

const STREAMS: &str = "application/json;stream=watch, application/vnd.kubernetes.protobuf;stream=watch";

fn not_acceptable(accepted: &str) -> Status {
    let message = format!("only the following media types are accepted: {accepted}");
    Status::failure(406, "NotAcceptable", message)
}

/// Whether JSON is written with line breaks: when `pretty` asks for it, else for browsers, curl and wget.
pub fn pretty(param: Option<&str>, user_agent: Option<&str>) -> bool {
    match param.filter(|p| !p.is_empty()) {
        Some(text) => matches!(text, "1" | "t" | "T" | "true" | "TRUE" | "True"),
        None => user_agent
            .is_some_and(|agent| ["curl", "Wget", "Mozilla/5.0"].iter().any(|name| agent.starts_with(name))),
    }
}

/// In which form discovery is wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DiscoveryForm {
    /// One document per group version.
    Plain,
    /// Everything at once, as `v2`.
    Aggregated,
}

/// Negotiates a discovery document; `aggregated` is whether the path has the aggregated form.
///
/// # Errors
/// 406 when nothing that is accepted can be sent.
pub fn accept_discovery(header: Option<&str>, aggregated: bool) -> Result<(Encoding, DiscoveryForm), Status> {
    let plain = Ok((Encoding::Json, DiscoveryForm::Plain));
    let Some(header) = header.filter(|h| !h.is_empty()) else { return plain };
    route(header, false)?;
    for clause in clauses(header) {
        for encoding in clause.encodings().filter(|e| clause.meets(*e)) {
            match clause.target() {
                None => return Ok((encoding, DiscoveryForm::Plain)),
                // The types of aggregated discovery are not among those with messages here.
                Some(("apidiscovery.k8s.io", "v2", "APIGroupDiscoveryList"))
                    if aggregated && encoding == Encoding::Json =>
                {
                    return Ok((encoding, DiscoveryForm::Aggregated));
                }
                Some(_) => {}
            }
        }
    }
    Err(Status::not_acceptable())
}

/// How a request body is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BodyEncoding {
    /// `application/json`, and no Content-Type at all
    Json,
    /// `application/yaml`
    Yaml,
    /// `application/vnd.kubernetes.protobuf`
    Protobuf,
}

/// The encoding of a request body.
///
/// # Errors
/// 415 for what cannot be read.
pub fn content_type(header: Option<&str>) -> Result<BodyEncoding, Status> {
    let media = header.unwrap_or("").split(';').next().unwrap_or("").trim();
    match media.to_ascii_lowercase().as_str() {
        "" | "application/json" => Ok(BodyEncoding::Json),
        "application/yaml" | "application/vnd.yaml" => Ok(BodyEncoding::Yaml),
        "application/vnd.kubernetes.protobuf" => Ok(BodyEncoding::Protobuf),
        _ => Err(Status::unsupported_media_type("")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn offer(list: bool) -> Offer<'static> {
        Offer { kind: None, list, watch: false, protobuf: true, routed: false }
    }

    #[test]
    fn object_answers() {
        use Encoding::{Json, Protobuf, Yaml};
        let meta =
            |encoding: &str, kind: &str| format!("application/{encoding};as={kind};v=v1;g=meta.k8s.io");
        let partial = meta("json", "PartialObjectMetadataList");
        let informers = "application/vnd.kubernetes.protobuf, application/json";
        for (header, list, want) in [
            ("", false, Some((Json, Transform::None))),
            ("*/*", false, Some((Json, Transform::None))),
            ("application/*", false, Some((Json, Transform::None))),
            ("*", false, Some((Json, Transform::None))),
            ("application/yaml", false, Some((Yaml, Transform::None))),
            ("application/vnd.kubernetes.protobuf", false, Some((Protobuf, Transform::None))),
            (informers, true, Some((Protobuf, Transform::None))),
            ("application/cbor, application/json;q=0.8", true, Some((Json, Transform::None))),
            ("application/cbor", true, None),
            (&meta("json", "Table"), true, Some((Json, Transform::Table(false)))),
            (&meta("yaml", "Table"), true, Some((Yaml, Transform::Table(false)))),
            (&meta("vnd.kubernetes.protobuf", "Table"), true, None),
            (&partial, true, Some((Json, Transform::Partial(false)))),
            (&partial, false, None),
            (&meta("json", "Nonsense"), false, None),
            ("text/html", false, None),
            ("application/json;stream=watch", false, Some((Json, Transform::None))),
            ("application/json;stream=other", false, None),
            ("application/json;sv=v2", false, None),
            ("text/html;q=0.9,application/yaml;q=0.5", false, Some((Yaml, Transform::None))),
            ("application/json;q=0.1, application/yaml;q=0.5", false, Some((Yaml, Transform::None))),
            ("*/*;q=0.9, application/yaml;q=0.1", false, Some((Yaml, Transform::None))),
        ] {
            let got = accept(Some(header), offer(list)).ok().map(|a| (a.encoding, a.transform));
            assert_eq!(got, want, "{header:?}");
        }
    }

    #[test]
    fn watches_and_kinds_without_messages() {
        let watch = Offer { watch: true, ..offer(false) };
        let refused = accept(Some("application/yaml"), watch).expect_err("YAML has no frames");
        assert!(refused.message.contains("stream=watch"), "{}", refused.message);
        let defined = Offer { protobuf: false, ..offer(true) };
        let protobuf = "application/vnd.kubernetes.protobuf";
        assert!(accept(Some(protobuf), defined).is_err());
        let metadata = format!("{protobuf};as=PartialObjectMetadataList;v=v1;g=meta.k8s.io");
        assert_eq!(accept(Some(&metadata), defined).expect("metadata").encoding, Encoding::Protobuf);
    }

    #[test]
    fn the_router_looks_at_types_alone() {
        let routed = Offer { routed: true, ..offer(true) };
        for (header, want) in [
            ("application/xml", false),
            ("application/*", false),
            ("application/xml, */*;q=0.1", true),
            ("application/yaml ;q=0.1", true),
            ("application/json;as=Odd;v=v1;g=meta.k8s.io", true),
        ] {
            let passed = !accept(Some(header), routed).is_err_and(|s| s.message.starts_with("406: "));
            assert_eq!(passed, want, "{header}");
        }
        let refused = accept(Some("text/html"), routed).expect_err("nothing of it is produced");
        assert!(
            refused.message.ends_with("application/vnd.kubernetes.protobuf;stream=watch"),
            "{}",
            refused.message
        );
        assert!(refused.details.is_some());
    }

    #[test]
    fn people_get_line_breaks() {
        for (param, agent, want) in [
            (None, Some("curl/8.5.0"), true),
            (None, Some("kubectl/v1.36.0"), false),
            (Some("false"), Some("curl/8.5.0"), false),
            (Some("true"), None, true),
            (Some(""), Some("Mozilla/5.0 (X11)"), true),
            (Some("odd"), Some("curl"), false),
        ] {
            assert_eq!(pretty(param, agent), want, "{param:?} {agent:?}");
        }
    }

    #[test]
    fn discovery_answers() {
        use DiscoveryForm::{Aggregated, Plain};
        let form = |version: &str| {
            format!("application/json;g=apidiscovery.k8s.io;v={version};as=APIGroupDiscoveryList")
        };
        let both = format!("{},{},application/json", form("v2"), form("v2beta1"));
        for (header, aggregated, want) in [
            (Some(form("v2")), true, Some(Aggregated)),
            (Some(form("v2beta1")), true, None),
            (Some(form("v3")), true, None),
            (Some(form("v2")), false, None),
            (Some(both.clone()), true, Some(Aggregated)),
            (Some(both), false, Some(Plain)),
            (None, true, Some(Plain)),
        ] {
            let got = accept_discovery(header.as_deref(), aggregated).ok().map(|(_, form)| form);
            assert_eq!(got, want, "{header:?}");
        }
    }

    proptest::proptest! {
        #[test]
        fn never_panics(header in "[ -~]{0,60}") {
            let _ = accept(Some(&header), offer(true));
            let _ = accept_discovery(Some(&header), true);
            let _ = content_type(Some(&header));
        }
    }
}
