//! stub
use crate::auth::Claims;
use crate::cursor::Cursor;
use crate::profile::{Command, Function};
use serde_json::value::RawValue;
use std::borrow::Cow;
#[derive(Debug, Clone, Copy)]
pub struct Writer<'a> {
    pub claims: &'a Claims,
    pub subject: Option<&'a str>,
    pub headers: &'a str,
    pub connection_id: &'a str,
}
#[derive(Debug, Clone, Copy)]
pub enum Given<'a> {
    Nothing,
    Text(&'a str),
    Jsonb(&'a str),
}
#[derive(Debug, Clone)]
pub struct Refused {
    pub code: Cow<'static, str>,
    pub message: Cow<'static, str>,
    pub context: serde_json::Map<String, serde_json::Value>,
}
impl Refused {
    pub fn new(code: impl Into<Cow<'static, str>>, message: impl Into<Cow<'static, str>>) -> Self {
        Self { code: code.into(), message: message.into(), context: Default::default() }
    }
    #[must_use]
    pub fn with(mut self, name: &str, value: serde_json::Value) -> Self {
        self.context.insert(name.into(), value);
        self
    }
}
#[derive(Debug)]
pub enum Outcome {
    Done { data: Box<RawValue>, cursor: Option<Cursor> },
    Refused(Refused),
}
pub struct Commander;
impl Commander {
    pub async fn ask(
        &self,
        _w: Writer<'_>,
        _f: &Function,
        _a: Given<'_>,
    ) -> Result<Box<RawValue>, Refused> {
        Err(Refused::new("UNAVAILABLE", "not yet"))
    }
    pub async fn run(
        &self,
        _w: Writer<'_>,
        _namespace: &str,
        _c: &Command,
        _payload: &RawValue,
    ) -> Outcome {
        Outcome::Refused(Refused::new("UNAVAILABLE", "not yet"))
    }
}
