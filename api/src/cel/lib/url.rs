//! URLs: absolute ones and absolute paths, as Go's `url.ParseRequestURI` takes them (RFC 3986).

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::cel::error::EvalError;
use crate::cel::value::{Key, Outcome, Str, Value};

/// A parsed URL.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Url {
    text: String,
    scheme: String,
    /// With the port, without the user.
    host: String,
    path: String,
    query: String,
}

impl Url {
    /// As it was written.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// Parses a text.
    ///
    /// # Errors
    /// What is wrong with it, in Go's words.
    pub fn parse(text: &str) -> Result<Self, String> {
        Self::split(text).map_err(|why| format!("parse {text:?}: {why}"))
    }

    fn split(text: &str) -> Result<Self, String> {
        if text.is_empty() {
            return Err("empty url".into());
        }
        if text.bytes().any(|b| b < 0x20 || b == 0x7f) {
            return Err("net/url: invalid control character in URL".into());
        }
        let (scheme, rest) = scheme_of(text)?;
        let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
        let mut url = Self {
            text: text.to_owned(),
            scheme: scheme.to_ascii_lowercase(),
            host: String::new(),
            path: String::new(),
            query: query.to_owned(),
        };
        if !rest.starts_with('/') {
            return if scheme.is_empty() { Err("invalid URI for request".into()) } else { Ok(url) };
        }
        let path = match rest.strip_prefix("//").filter(|_| !scheme.is_empty()) {
            Some(after) => {
                let end = after.find('/').unwrap_or(after.len());
                url.host = host_of(&after[..end])?;
                &after[end..]
            }
            None => rest,
        };
        check_escapes(path)?;
        url.path = escaped(path);
        Ok(url)
    }

    fn hostname(&self) -> &str {
        let host = self.without_port();
        host.strip_prefix('[').and_then(|h| h.strip_suffix(']')).unwrap_or(host)
    }

    fn without_port(&self) -> &str {
        match self.host.rfind(':') {
            Some(colon) if self.host[colon..].find(']').is_none() => &self.host[..colon],
            _ => &self.host,
        }
    }

    fn port(&self) -> &str {
        self.host[self.without_port().len()..].trim_start_matches(':')
    }
}

/// The scheme and what follows its colon; an empty scheme when there is none.
fn scheme_of(text: &str) -> Result<(&str, &str), String> {
    for (i, c) in text.char_indices() {
        match c {
            'a'..='z' | 'A'..='Z' => {}
            '0'..='9' | '+' | '-' | '.' if i > 0 => {}
            ':' if i == 0 => return Err("missing protocol scheme".into()),
            ':' => return Ok((&text[..i], &text[i + 1..])),
            _ => break,
        }
    }
    Ok(("", text))
}

/// Checks an authority and takes the user off.
fn host_of(authority: &str) -> Result<String, String> {
    let host = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
    let port = if let Some(inner) = host.strip_prefix('[') {
        let (_, after) = inner.split_once(']').ok_or("missing ']' in host")?;
        after
    } else {
        host.rfind(':').map_or("", |colon| &host[colon..])
    };
    let valid =
        port.is_empty() || port.strip_prefix(':').is_some_and(|p| p.bytes().all(|b| b.is_ascii_digit()));
    if !valid {
        return Err(format!("invalid port {port:?} after host"));
    }
    if let Some(c) =
        host.chars().find(|c| matches!(c, ' ' | '"' | '<' | '>' | '\\' | '^' | '`' | '{' | '|' | '}'))
    {
        return Err(format!("invalid character {c:?} in host name"));
    }
    check_escapes(host)?;
    Ok(host.to_owned())
}

fn check_escapes(text: &str) -> Result<(), String> {
    let mut rest = text;
    while let Some(at) = rest.find('%') {
        let digits = rest.as_bytes().get(at + 1..at + 3);
        if !digits.is_some_and(|d| d.iter().all(u8::is_ascii_hexdigit)) {
            let shown: String = rest[at..].chars().take(3).collect();
            return Err(format!("invalid URL escape {shown:?}"));
        }
        rest = &rest[at + 3..];
    }
    Ok(())
}

/// A path with what may not stand there in percent form.
fn escaped(path: &str) -> String {
    let mut out = String::with_capacity(path.len());
    for b in path.bytes() {
        match b {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' => out.push(char::from(b)),
            b'-' | b'.' | b'_' | b'~' | b'!' | b'$' | b'&' | b'\'' | b'(' | b')' | b'*' | b'+' | b','
            | b';' | b'=' | b':' | b'@' | b'/' | b'%' | b'[' | b']' => out.push(char::from(b)),
            b => out.push_str(&format!("%{b:02X}")),
        }
    }
    out
}

/// Takes the percent form off; None where it is broken.
fn unescape(text: &str) -> Option<String> {
    let mut out = Vec::with_capacity(text.len());
    let bytes = text.as_bytes();
    let mut at = 0;
    while let Some(&b) = bytes.get(at) {
        match b {
            b'%' => {
                let digits = std::str::from_utf8(bytes.get(at + 1..at + 3)?).ok()?;
                out.push(u8::from_str_radix(digits, 16).ok()?);
                at += 2;
            }
            b'+' => out.push(b' '),
            b => out.push(b),
        }
        at += 1;
    }
    Some(String::from_utf8_lossy(&out).into_owned())
}

pub fn url<'a>(args: &[Value<'a>]) -> Outcome<'a> {
    match args {
        [Value::String(s)] => Url::parse(s)
            .map(|u| Value::Url(Arc::new(u)))
            .map_err(|e| EvalError::value(format!("URL parse error during conversion from string: {e}"))),
        _ => Err(EvalError::NoSuchOverload),
    }
}

pub fn is_url<'a>(args: &[Value<'a>]) -> Outcome<'a> {
    match args {
        [Value::String(s)] => Ok(Value::Bool(Url::parse(s).is_ok())),
        _ => Err(EvalError::NoSuchOverload),
    }
}

fn part<'a>(args: &[Value<'a>], of: impl Fn(&Url) -> &str) -> Outcome<'a> {
    match args {
        [Value::Url(u)] => Ok(Value::string(of(u))),
        _ => Err(EvalError::NoSuchOverload),
    }
}

pub fn scheme<'a>(args: &[Value<'a>]) -> Outcome<'a> {
    part(args, |u| &u.scheme)
}
pub fn host<'a>(args: &[Value<'a>]) -> Outcome<'a> {
    part(args, |u| &u.host)
}
pub fn hostname<'a>(args: &[Value<'a>]) -> Outcome<'a> {
    part(args, Url::hostname)
}
pub fn port<'a>(args: &[Value<'a>]) -> Outcome<'a> {
    part(args, Url::port)
}
pub fn escaped_path<'a>(args: &[Value<'a>]) -> Outcome<'a> {
    part(args, |u| &u.path)
}

/// The query's parameters; those that are broken are left out.
pub fn query<'a>(args: &[Value<'a>]) -> Outcome<'a> {
    let [Value::Url(url)] = args else { return Err(EvalError::NoSuchOverload) };
    let mut found: BTreeMap<String, Vec<Value<'a>>> = BTreeMap::new();
    for pair in url.query.split('&').filter(|p| !p.is_empty() && !p.contains(';')) {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        if let (Some(key), Some(value)) = (unescape(key), unescape(value)) {
            found.entry(key).or_default().push(Value::string(value));
        }
    }
    let entry = |(k, v): (String, Vec<Value<'a>>)| (Key::String(Str::Shared(k.into())), Value::list(v));
    Ok(Value::map(found.into_iter().map(entry).collect()))
}
