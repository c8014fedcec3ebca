//! What types and fields are for, in the words of the published `k8s-openapi` crate.
//!
//! The build collects the texts (`build.rs`); they are unpacked when a document is made and dropped with it.

use std::collections::HashMap;
use std::io::Read as _;

static PACKED: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptions.z"));

/// All descriptions, unpacked.
#[derive(Debug, Default)]
pub(super) struct Descriptions {
    text: String,
    /// Where a type's lines begin, by OpenAPI name.
    types: HashMap<Box<str>, usize>,
}

impl Descriptions {
    /// Unpacks the texts. They are made by the build, so that nothing can be wrong with them; if something were,
    /// documents would be without descriptions.
    pub(super) fn unpack() -> Self {
        let mut text = String::new();
        if flate2::read::ZlibDecoder::new(PACKED).read_to_string(&mut text).is_err() {
            tracing::error!("the descriptions of types cannot be unpacked");
            return Self::default();
        }
        let mut types = HashMap::new();
        let mut at = 0;
        for line in text.split_inclusive('\n') {
            if !line.starts_with(' ')
                && let Some((name, _)) = line.split_once('\t')
            {
                types.insert(name.into(), at);
            }
            at += line.len();
        }
        Self { text, types }
    }

    /// The texts of a type: its own under the empty name, then those of its fields.
    pub(super) fn of(&self, name: &str) -> TypeTexts<'_> {
        let lines = self.types.get(name).and_then(|at| self.text.get(*at..)).unwrap_or_default();
        let mut fields = HashMap::new();
        for (n, line) in lines.lines().enumerate() {
            let Some((key, text)) = line.split_once('\t') else { break };
            match key.strip_prefix(' ') {
                Some(field) => fields.insert(field, text),
                None if n == 0 => fields.insert("", text),
                None => break,
            };
        }
        TypeTexts(fields)
    }
}

/// The descriptions of one type.
pub(super) struct TypeTexts<'a>(HashMap<&'a str, &'a str>);

impl TypeTexts<'_> {
    /// The description of a field, or of the type itself for the empty name.
    pub(super) fn get(&self, field: &str) -> Option<String> {
        self.0.get(field).filter(|text| !text.is_empty()).map(|text| text.replace('\u{b}', "\n"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use hawser_api::schema;

    #[test]
    fn every_type_and_field_is_described() {
        let all = Descriptions::unpack();
        let mut without = Vec::new();
        for ty in schema::all() {
            let texts = all.of(&ty.openapi_name());
            if texts.get("").is_none() {
                without.push(ty.name.to_owned());
            }
            without.extend(
                ty.fields
                    .iter()
                    .filter(|f| texts.get(f.name).is_none())
                    .map(|f| format!("{}.{}", ty.name, f.name)),
            );
        }
        // What the crate has no type for, or upstream no words.
        without.retain(|name| {
            !UNDESCRIBED.iter().any(|known| name == known || name.starts_with(&format!("{known}.")))
        });
        assert!(without.is_empty(), "{without:?}");
    }

    /// Version information is no type of the crate, and a watch event there is an enum.
    const UNDESCRIBED: &[&str] = &[
        "io.k8s.apimachinery.pkg.version.Info",
        "meta.v1.WatchEvent",
        "admissionregistration.v1alpha1.MatchCondition",
        "apiextensions.v1.ExternalDocumentation",
        "apiextensions.v1.JSONSchemaProps",
        "certificates.v1.CertificateSigningRequest.metadata",
        "meta.v1.GroupResource",
        "networking.v1.IngressRule.http",
    ];

    #[test]
    fn texts_are_upstreams() {
        let all = Descriptions::unpack();
        let pod = all.of("io.k8s.api.core.v1.Pod");
        assert!(pod.get("").is_some_and(|t| t.starts_with("Pod is a collection of containers")));
        assert!(pod.get("spec").is_some_and(|t| t.contains("desired behavior of the pod")));
        assert_eq!(all.of("no.such.Type").get(""), None);
    }
}
