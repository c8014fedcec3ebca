//! The string form of label selectors.

use super::{LabelSelector, Operator, Requirement, SelectorError};
use crate::names;
use crate::status::{FieldError, Path};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Token {
    End,
    Close,
    Comma,
    Not,
    DoubleEquals,
    Equals,
    Greater,
    In,
    Less,
    NotEquals,
    NotIn,
    Open,
    Word,
}

pub(super) struct Parser {
    tokens: Vec<(Token, String)>,
    position: usize,
}

const SPECIAL: &str = "=!(),<>";

fn tokenize(text: &str) -> Vec<(Token, String)> {
    let mut tokens = Vec::new();
    let mut rest = text.trim_start_matches([' ', '\t', '\r', '\n']);
    while let Some(first) = rest.chars().next() {
        let token = if SPECIAL.contains(first) {
            let two = rest.get(..2).unwrap_or("");
            match (two, first) {
                ("==", _) => (Token::DoubleEquals, "=="),
                ("!=", _) => (Token::NotEquals, "!="),
                (_, '=') => (Token::Equals, "="),
                (_, '!') => (Token::Not, "!"),
                (_, '(') => (Token::Open, "("),
                (_, ')') => (Token::Close, ")"),
                (_, ',') => (Token::Comma, ","),
                (_, '<') => (Token::Less, "<"),
                _ => (Token::Greater, ">"),
            }
        } else {
            let end = rest
                .find(|c: char| SPECIAL.contains(c) || matches!(c, ' ' | '\t' | '\r' | '\n'))
                .unwrap_or(rest.len());
            let word = &rest[..end];
            let kind = match word {
                "in" => Token::In,
                "notin" => Token::NotIn,
                _ => Token::Word,
            };
            (kind, word)
        };
        rest = rest[token.1.len()..].trim_start_matches([' ', '\t', '\r', '\n']);
        tokens.push((token.0, token.1.to_owned()));
    }
    tokens
}

impl Parser {
    pub(super) fn new(text: &str) -> Parser {
        Parser { tokens: tokenize(text), position: 0 }
    }

    /// The next token; as a value, `in` and `notin` are words.
    fn peek(&self, values: bool) -> (Token, String) {
        let (token, literal) = self.tokens.get(self.position).cloned().unwrap_or((Token::End, String::new()));
        match token {
            Token::In | Token::NotIn if values => (Token::Word, literal),
            _ => (token, literal),
        }
    }

    fn next(&mut self, values: bool) -> (Token, String) {
        let token = self.peek(values);
        self.position += 1;
        token
    }

    pub(super) fn parse(mut self) -> Result<LabelSelector, SelectorError> {
        let mut requirements = Vec::new();
        loop {
            match self.peek(true) {
                (Token::Word | Token::Not, _) => {
                    requirements.push(self.requirement()?);
                    match self.next(true) {
                        (Token::End, _) => break,
                        (Token::Comma, _) => {
                            let (token, literal) = self.peek(true);
                            if token != Token::Word && token != Token::Not {
                                return Err(SelectorError(format!(
                                    "found '{literal}', expected: identifier after ','"
                                )));
                            }
                        }
                        (_, literal) => {
                            return Err(SelectorError(format!(
                                "found '{literal}', expected: ',' or 'end of string'"
                            )));
                        }
                    }
                }
                (Token::End, _) => break,
                (_, literal) => {
                    return Err(SelectorError(format!(
                        "found '{literal}', expected: !, identifier, or 'end of string'"
                    )));
                }
            }
        }
        Ok(LabelSelector { requirements, nothing: false })
    }

    fn requirement(&mut self) -> Result<Requirement, SelectorError> {
        let fail = |text: String| SelectorError(format!("unable to parse requirement: {text}"));
        let (mut token, mut key) = self.next(true);
        let negated = token == Token::Not;
        if negated {
            (token, key) = self.next(true);
        }
        if token != Token::Word {
            return Err(fail(format!("found '{key}', expected: identifier")));
        }
        let msgs = names::qualified_name(&key);
        if !msgs.is_empty() {
            return Err(fail(FieldError::invalid(Path::ROOT, key, msgs.join("; ")).to_string()));
        }
        if negated {
            return Requirement::checked(key, Operator::DoesNotExist, Vec::new());
        }
        if matches!(self.peek(true).0, Token::End | Token::Comma) {
            return Requirement::checked(key, Operator::Exists, Vec::new());
        }
        let (token, literal) = self.next(false);
        let operator = match token {
            Token::In => Operator::In,
            Token::Equals | Token::DoubleEquals => Operator::Equals,
            Token::Greater => Operator::GreaterThan,
            Token::Less => Operator::LessThan,
            Token::NotIn => Operator::NotIn,
            Token::NotEquals => Operator::NotEquals,
            _ => return Err(fail(format!("found '{literal}', expected: in, notin, =, ==, !=, gt, lt"))),
        };
        let values = match operator {
            Operator::In | Operator::NotIn => self.value_set().map_err(fail)?,
            _ => self.exact_value().map_err(fail)?,
        };
        Requirement::checked(key, operator, values)
    }

    fn exact_value(&mut self) -> Result<Vec<String>, String> {
        if matches!(self.peek(true).0, Token::End | Token::Comma) {
            return Ok(vec![String::new()]);
        }
        match self.next(true) {
            (Token::Word, literal) => Ok(vec![literal]),
            (_, literal) => Err(format!("found '{literal}', expected: identifier")),
        }
    }

    fn value_set(&mut self) -> Result<Vec<String>, String> {
        let (token, literal) = self.next(true);
        if token != Token::Open {
            return Err(format!("found '{literal}' expected: '('"));
        }
        let mut values: Vec<String> = Vec::new();
        match self.peek(true) {
            (Token::Word | Token::Comma, _) => {}
            (Token::Close, _) => {
                // `()` holds the empty value.
                self.position += 1;
                return Ok(vec![String::new()]);
            }
            (_, literal) => return Err(format!("found '{literal}', expected: ',', ')' or identifier")),
        }
        loop {
            match self.next(true) {
                (Token::Word, literal) => {
                    values.push(literal);
                    match self.peek(true) {
                        (Token::Comma, _) => {}
                        (Token::Close, _) => break,
                        (_, literal) => return Err(format!("found '{literal}', expected: ',' or ')'")),
                    }
                }
                (Token::Comma, _) => {
                    if values.is_empty() {
                        values.push(String::new());
                    }
                    match self.peek(true).0 {
                        Token::Close => {
                            values.push(String::new());
                            break;
                        }
                        Token::Comma => {
                            self.position += 1;
                            values.push(String::new());
                        }
                        _ => {}
                    }
                }
                (_, literal) => return Err(format!("found '{literal}', expected: ',', or identifier")),
            }
        }
        match self.next(true) {
            (Token::Close, _) => Ok(values),
            (_, literal) => Err(format!("found '{literal}', expected: ')'")),
        }
    }
}
