//! Regular expressions as Go's RE2 reads them: `\d`, `\w`, `\s` and `\b` are ASCII, and errors have RE2's words.

use std::sync::OnceLock;

use regex::Regex;

/// A pattern of a schema. It is compiled when it is first asked for, so that schemas nobody uses cost little.
#[derive(Debug, Clone)]
pub struct Pattern {
    text: Box<str>,
    compiled: OnceLock<Option<Regex>>,
}

impl PartialEq for Pattern {
    fn eq(&self, other: &Self) -> bool {
        self.text == other.text
    }
}

impl Pattern {
    /// A pattern that has been validated, or one that then matches nothing.
    pub fn new(text: &str) -> Self {
        Self { text: text.into(), compiled: OnceLock::new() }
    }

    /// As written.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// Whether some part of a text matches.
    pub fn matches(&self, text: &str) -> bool {
        self.compiled.get_or_init(|| compile(&self.text).ok()).as_ref().is_some_and(|r| r.is_match(text))
    }
}

/// Compiles a pattern.
///
/// # Errors
/// With RE2's text: ``error parsing regexp: missing closing ]: `[` ``.
pub fn compile(pattern: &str) -> Result<Regex, String> {
    let translated = to_ascii_classes(pattern);
    Regex::new(&translated).map_err(|e| go_error(pattern, &translated, &e))
}

/// Rewrites Perl's classes, which are Unicode's in the regex crate, to what they are in RE2.
fn to_ascii_classes(pattern: &str) -> String {
    let mut out = String::with_capacity(pattern.len());
    let (mut chars, mut class) = (pattern.chars(), 0_usize);
    while let Some(c) = chars.next() {
        match c {
            '\\' => {
                let Some(next) = chars.next() else {
                    out.push(c);
                    continue;
                };
                let set = match next {
                    'd' => "0-9",
                    'w' => "0-9A-Za-z_",
                    's' => "\\t\\n\\f\\r ",
                    _ => "",
                };
                match next {
                    'd' | 'w' | 's' if class > 0 => out.push_str(set),
                    'd' | 'w' | 's' => out.extend(["[", set, "]"]),
                    'D' => out.push_str("[^0-9]"),
                    'W' => out.push_str("[^0-9A-Za-z_]"),
                    'S' => out.push_str("[^\\t\\n\\f\\r ]"),
                    'b' if class == 0 => out.push_str("(?-u:\\b)"),
                    'B' if class == 0 => out.push_str("(?-u:\\B)"),
                    other => out.extend([c, other]),
                }
            }
            // RE2 knows no sets within sets but the POSIX ones.
            '[' if class > 0 => {
                if chars.as_str().starts_with(':') {
                    class += 1;
                    out.push('[');
                } else {
                    out.push_str("\\[");
                }
            }
            '[' => {
                class = 1;
                out.push('[');
                if chars.as_str().starts_with('^') {
                    chars.next();
                    out.push('^');
                }
                if chars.as_str().starts_with(']') {
                    chars.next();
                    out.push_str("\\]");
                }
            }
            ']' if class > 0 => {
                class -= 1;
                out.push(']');
            }
            // The regex crate's set operators are plain characters in RE2.
            '&' | '~' if class > 0 => out.extend(['\\', c]),
            c => out.push(c),
        }
    }
    out
}

/// RE2's text for what the regex crate did not like.
fn go_error(pattern: &str, translated: &str, error: &regex::Error) -> String {
    let (what, at) = match regex_syntax::Parser::new().parse(translated) {
        Err(regex_syntax::Error::Parse(e)) => {
            use regex_syntax::ast::ErrorKind as K;
            let span = e.span();
            let found = translated.get(span.start.offset..span.end.offset).unwrap_or_default();
            match e.kind() {
                K::ClassUnclosed => {
                    let from = pattern.rfind('[').unwrap_or(0);
                    ("missing closing ]", pattern[from..].to_owned())
                }
                K::GroupUnclosed => ("missing closing )", pattern.to_owned()),
                K::GroupUnopened => ("unexpected )", pattern.to_owned()),
                K::RepetitionMissing => {
                    let rest = translated.get(span.start.offset..).unwrap_or_default();
                    ("missing argument to repetition operator", rest.chars().take(1).collect())
                }
                K::RepetitionCountInvalid | K::RepetitionCountUnclosed => {
                    ("invalid repeat count", found.to_owned())
                }
                K::EscapeUnexpectedEof => ("trailing backslash at end of expression", String::new()),
                K::ClassRangeInvalid => ("invalid character class range", found.to_owned()),
                K::UnsupportedLookAround | K::FlagUnrecognized | K::GroupNameInvalid => {
                    ("invalid or unsupported Perl syntax", found.to_owned())
                }
                K::EscapeUnrecognized | K::UnsupportedBackreference | K::ClassEscapeInvalid => {
                    ("invalid escape sequence", found.to_owned())
                }
                _ => return format!("error parsing regexp: {}", e.kind()),
            }
        }
        Err(regex_syntax::Error::Translate(e)) => return format!("error parsing regexp: {}", e.kind()),
        _ => return format!("error parsing regexp: {error}"),
    };
    format!("error parsing regexp: {what}: `{at}`")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn classes_are_ascii() {
        for (pattern, text, want) in [
            (r"^\d+$", "12", true),
            (r"^\d+$", "\u{0661}", false),
            (r"^[\w-]+$", "a-b_c", true),
            (r"^\w$", "é", false),
            (r"^[[:alpha:]\d]+$", "a1", true),
            (r"^[]a]+$", "a]", true),
            (r"^[^\s]$", " ", false),
            (r"^[a[b]+$", "a[b", true),
            (r"\bfoo\b", "a foo.", true),
            (r"^[a&&b]+$", "a&b", true),
            (r"^\[x\]$", "[x]", true),
            (r"^.$", "é", true),
        ] {
            assert_eq!(Pattern::new(pattern).matches(text), want, "{pattern} {text}");
        }
    }

    #[test]
    fn errors_have_the_words_of_re2() {
        for (pattern, want) in [
            ("[", "error parsing regexp: missing closing ]: `[`"),
            ("a(b", "error parsing regexp: missing closing ): `a(b`"),
            ("a)", "error parsing regexp: unexpected ): `a)`"),
            ("*a", "error parsing regexp: missing argument to repetition operator: `*`"),
            ("a\\", "error parsing regexp: trailing backslash at end of expression: ``"),
            ("[z-a]", "error parsing regexp: invalid character class range: `z-a`"),
            ("(?=a)", "error parsing regexp: invalid or unsupported Perl syntax: `(?=`"),
            ("\\y", "error parsing regexp: invalid escape sequence: `\\y`"),
        ] {
            assert_eq!(compile(pattern).map(|_| ()), Err(want.to_owned()), "{pattern}");
        }
    }
}
