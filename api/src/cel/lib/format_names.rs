//! Formats that strings can be validated against (`format.dns1123Label().validate(x)`).

use crate::cel::error::EvalError;
use crate::cel::functions::Code;
use crate::cel::value::{Outcome, Value};
use crate::names;

/// A named format.
#[derive(Debug)]
pub struct NamedFormat {
    pub name: &'static str,
    /// What is wrong with a text.
    check: fn(&str) -> Vec<String>,
}

static FORMATS: [NamedFormat; 13] = [
    NamedFormat { name: "dns1123Label", check: names::dns1123_label },
    NamedFormat { name: "dns1123Subdomain", check: names::dns1123_subdomain },
    NamedFormat { name: "dns1035Label", check: names::dns1035_label },
    NamedFormat { name: "qualifiedName", check: names::qualified_name },
    NamedFormat { name: "dns1123LabelPrefix", check: |s| names::dns1123_label(&as_prefix(s)) },
    NamedFormat { name: "dns1123SubdomainPrefix", check: |s| names::dns1123_subdomain(&as_prefix(s)) },
    NamedFormat { name: "dns1035LabelPrefix", check: |s| names::dns1035_label(&as_prefix(s)) },
    NamedFormat { name: "labelValue", check: names::label_value },
    NamedFormat { name: "uri", check: |s| super::url::Url::parse(s).err().into_iter().collect() },
    NamedFormat { name: "uuid", check: |s| wrong(!is_uuid(s), "does not match the UUID format") },
    NamedFormat { name: "byte", check: |s| wrong(!is_base64(s), "invalid base64") },
    NamedFormat { name: "date", check: |s| wrong(!is_date(s), "invalid date") },
    NamedFormat {
        name: "datetime",
        check: |s| wrong(super::time::parse_timestamp(s).is_none(), "invalid datetime"),
    },
];

fn wrong(wrong: bool, message: &str) -> Vec<String> {
    if wrong { vec![message.to_owned()] } else { Vec::new() }
}

/// A prefix may end with a dash: something follows it.
fn as_prefix(s: &str) -> String {
    match s.strip_suffix('-') {
        Some(rest) if !rest.is_empty() => format!("{rest}a"),
        _ => s.to_owned(),
    }
}

fn is_uuid(s: &str) -> bool {
    let hex: String = s.chars().filter(|c| *c != '-').collect();
    let dashes = s.len() == 32 || (s.len() == 36 && [8, 13, 18, 23].iter().all(|i| s.as_bytes()[*i] == b'-'));
    hex.len() == 32 && dashes && hex.bytes().all(|b| b.is_ascii_hexdigit())
}

fn is_base64(s: &str) -> bool {
    use base64::Engine as _;
    base64::engine::general_purpose::STANDARD.decode(s).is_ok()
}

fn is_date(s: &str) -> bool {
    s.len() == 10 && s.parse::<jiff::civil::Date>().is_ok()
}

fn find(name: &str) -> Option<&'static NamedFormat> {
    FORMATS.iter().find(|f| f.name == name)
}

pub fn named<'a>(args: &[Value<'a>]) -> Outcome<'a> {
    match args {
        [Value::String(name)] => {
            Ok(find(name).map_or(Value::Optional(None), |f| Value::some(Value::Format(f))))
        }
        _ => Err(EvalError::NoSuchOverload),
    }
}

/// None when the text is valid, otherwise what is wrong with it.
pub fn validate<'a>(args: &[Value<'a>]) -> Outcome<'a> {
    let [Value::Format(format), Value::String(s)] = args else { return Err(EvalError::NoSuchOverload) };
    let errors = (format.check)(s);
    if errors.is_empty() {
        return Ok(Value::Optional(None));
    }
    Ok(Value::some(Value::list(errors.into_iter().map(Value::string).collect())))
}

/// The function `format.NAME`.
pub fn constant(name: &str) -> Option<Code> {
    /// One function for each format: code is a plain function pointer.
    fn nth<'a, const N: usize>(_: &[Value<'a>]) -> Outcome<'a> {
        Ok(Value::Format(&FORMATS[N]))
    }
    let all: [Code; 13] = [
        nth::<0>, nth::<1>, nth::<2>, nth::<3>, nth::<4>, nth::<5>, nth::<6>, nth::<7>, nth::<8>, nth::<9>,
        nth::<10>, nth::<11>, nth::<12>,
    ];
    let at = FORMATS.iter().position(|f| f.name == name)?;
    all.get(at).copied()
}
