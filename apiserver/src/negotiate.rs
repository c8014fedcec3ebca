//! `Accept` and `Content-Type`: in which form an answer is wanted and a body is sent.

use hawser_api::status::{Status, StatusDetails};

/// How bytes are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Encoding {
    /// `application/json`
    Json,
    /// `application/yaml`
    Yaml,
}

impl Encoding {
    /// The `Content-Type` of answers.
    pub fn content_type(self) -> &'static str {
        match self {
            Self::Json => "application/json",
            Self::Yaml => "application/yaml",
        }
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
    /// `;stream=watch` or pretty printing do not change what is sent; `pretty=1` is kept for completeness.
    pub pretty: bool,
}

impl Default for Accepted {
    fn default() -> Self {
        Self { encoding: Encoding::Json, transform: Transform::None, pretty: false }
    }
}

/// One clause of an Accept header.
struct Clause<'a> {
    kind: &'a str,
    subkind: &'a str,
    params: Vec<(&'a str, &'a str)>,
    q: f32,
}

fn clauses(header: &str) -> Vec<Clause<'_>> {
    let mut out: Vec<Clause<'_>> = header
        .split(',')
        .filter_map(|text| {
            let mut parts = text.split(';').map(str::trim);
            let media = parts.next()?;
            let (kind, subkind) = match media {
                "" => return None,
                "*" => ("*", "*"),
                m => m.split_once('/')?,
            };
            let mut q = 1.0;
            let mut params = Vec::new();
            for p in parts {
                if let Some((k, v)) = p.split_once('=') {
                    if k.trim() == "q" {
                        q = v.trim().parse().unwrap_or(1.0);
                    } else {
                        params.push((k.trim(), v.trim()));
                    }
                }
            }
            Some(Clause { kind, subkind, params, q })
        })
        .collect();
    // Stable: equal weights keep the client's order.
    out.sort_by(|a, b| b.q.total_cmp(&a.q));
    out
}

impl Clause<'_> {
    fn param(&self, name: &str) -> &str {
        self.params.iter().find(|(k, _)| *k == name).map_or("", |(_, v)| v)
    }

    fn encoding(&self) -> Option<Encoding> {
        match (self.kind, self.subkind) {
            ("*", "*") | ("application", "*" | "json") => Some(Encoding::Json),
            ("application", "yaml" | "vnd.yaml") => Some(Encoding::Yaml),
            _ => None,
        }
    }
}

/// Negotiates the form of an object's answer. `list` says whether the answer is a list, `transforms` whether
/// Table and PartialObjectMetadata can be had.
///
/// # Errors
/// 406 when nothing that is accepted can be sent.
pub fn accept(header: Option<&str>, list: bool, transforms: bool) -> Result<Accepted, Status> {
    let Some(header) = header.filter(|h| !h.trim().is_empty()) else { return Ok(Accepted::default()) };
    let mut known = false;
    for clause in clauses(header) {
        let Some(encoding) = clause.encoding() else { continue };
        known = true;
        let transform = match clause.param("as") {
            "" => Transform::None,
            target if transforms && clause.param("g") == "meta.k8s.io" => {
                let old = match clause.param("v") {
                    "v1" => false,
                    "v1beta1" => true,
                    _ => continue,
                };
                match (target, list) {
                    ("Table", _) => Transform::Table(old),
                    ("PartialObjectMetadata", false) | ("PartialObjectMetadataList", true) => {
                        Transform::Partial(old)
                    }
                    _ => continue,
                }
            }
            _ => continue,
        };
        return Ok(Accepted { encoding, transform, pretty: false });
    }
    // Kubernetes tells encodings that it does not know from forms that it cannot make.
    Err(if known {
        Status::not_acceptable()
    } else {
        Status::not_acceptable().with_details(StatusDetails::default())
    })
}

/// Whether an Accept header asks for aggregated discovery, and is served by it before by plain discovery.
///
/// # Errors
/// 406 when neither can be sent.
pub fn accept_discovery(header: Option<&str>, aggregated: bool) -> Result<(Encoding, bool), Status> {
    let Some(header) = header.filter(|h| !h.trim().is_empty()) else { return Ok((Encoding::Json, false)) };
    for clause in clauses(header) {
        let Some(encoding) = clause.encoding() else { continue };
        match clause.param("as") {
            "" => return Ok((encoding, false)),
            "APIGroupDiscoveryList"
                if aggregated && clause.param("g") == "apidiscovery.k8s.io" && clause.param("v") == "v2" =>
            {
                return Ok((encoding, true));
            }
            _ => {}
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

    #[test]
    fn object_answers() {
        let table = "application/json;as=Table;v=v1;g=meta.k8s.io";
        for (header, list, want) in [
            (None, false, Some((Encoding::Json, Transform::None))),
            (Some("*/*"), false, Some((Encoding::Json, Transform::None))),
            (Some("application/yaml"), false, Some((Encoding::Yaml, Transform::None))),
            (Some("application/vnd.kubernetes.protobuf"), false, None),
            (
                Some("application/vnd.kubernetes.protobuf,application/json"),
                false,
                Some((Encoding::Json, Transform::None)),
            ),
            (Some(table), true, Some((Encoding::Json, Transform::Table(false)))),
            (
                Some("application/json;as=PartialObjectMetadataList;v=v1;g=meta.k8s.io"),
                true,
                Some((Encoding::Json, Transform::Partial(false))),
            ),
            (Some("application/json;as=PartialObjectMetadataList;v=v1;g=meta.k8s.io"), false, None),
            (Some("application/json;as=Nonsense;v=v1;g=meta.k8s.io"), false, None),
            (Some("text/html"), false, None),
            (Some("text/html;q=0.9,application/yaml;q=0.5"), false, Some((Encoding::Yaml, Transform::None))),
        ] {
            let got = accept(header, list, true).ok().map(|a| (a.encoding, a.transform));
            assert_eq!(got, want, "{header:?}");
        }
    }

    #[test]
    fn discovery_answers() {
        let v2 = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList";
        assert_eq!(accept_discovery(Some(v2), true).ok(), Some((Encoding::Json, true)));
        assert_eq!(accept_discovery(Some(v2), false).ok(), None);
        assert_eq!(
            accept_discovery(Some(&format!("{v2},application/json")), false).ok(),
            Some((Encoding::Json, false))
        );
        assert_eq!(accept_discovery(None, true).ok(), Some((Encoding::Json, false)));
    }

    proptest::proptest! {
        #[test]
        fn never_panics(header in "[ -~]{0,60}") {
            let _ = accept(Some(&header), true, true);
            let _ = accept_discovery(Some(&header), true);
            let _ = content_type(Some(&header));
        }
    }
}
