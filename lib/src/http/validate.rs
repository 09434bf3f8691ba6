//! Requests are parsed into types that cannot hold bad values; all bad fields are named at once.

use serde_json::{Map, Value};
use uuid::Uuid;

use crate::error::{Error, FieldError, Result};

/// A field's value before it is parsed.
#[derive(Debug, Clone, Copy)]
pub enum Raw<'a> {
    /// A member of a JSON body.
    Json(&'a Value),
    /// A query parameter.
    Text(&'a str),
}

/// Why a value is refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Invalid {
    /// A stable, snake_case reason.
    pub code: &'static str,
    /// One sentence that can be shown.
    pub message: String,
}

impl Invalid {
    /// A refusal.
    pub fn new(code: &'static str, message: impl Into<String>) -> Self {
        Self { code, message: message.into() }
    }

    /// A value that is missing.
    #[must_use]
    pub fn required() -> Self {
        Self::new("required", "Is required.")
    }

    /// A value of the wrong JSON type.
    #[must_use]
    pub fn wrong_type(expected: &str) -> Self {
        Self::new("wrong_type", format!("Must be {expected}."))
    }
}

impl<'a> Raw<'a> {
    /// The text.
    ///
    /// # Errors
    /// When the value is not a string.
    pub fn text(self) -> Result<&'a str, Invalid> {
        match self {
            Self::Json(Value::String(text)) => Ok(text),
            Self::Text(text) => Ok(text),
            Self::Json(_) => Err(Invalid::wrong_type("a string")),
        }
    }

    /// The integer; `1.0` is one, as JSON Schema has it.
    ///
    /// # Errors
    /// When the value is not an integer.
    pub fn integer(self) -> Result<i64, Invalid> {
        let parsed = match self {
            Self::Json(value) => value.as_i64().or_else(|| whole(value.as_f64()?)),
            Self::Text(text) => text.parse().ok(),
        };
        parsed.ok_or_else(|| Invalid::wrong_type("an integer"))
    }

    /// The boolean.
    ///
    /// # Errors
    /// When the value is neither true nor false.
    pub fn boolean(self) -> Result<bool, Invalid> {
        match self {
            Self::Json(Value::Bool(value)) => Ok(*value),
            Self::Text("true") => Ok(true),
            Self::Text("false") => Ok(false),
            _ => Err(Invalid::wrong_type("true or false")),
        }
    }
}

/// A type that a field of a request is parsed into.
pub trait Field: Sized {
    /// Parses a value that is there.
    ///
    /// # Errors
    /// When the value is not acceptable.
    fn parse(raw: Raw<'_>) -> Result<Self, Invalid>;

    /// What a missing field becomes.
    ///
    /// # Errors
    /// When the field is required, which is the default.
    fn missing() -> Result<Self, Invalid> {
        Err(Invalid::required())
    }
}

impl<T: Field> Field for Option<T> {
    fn parse(raw: Raw<'_>) -> Result<Self, Invalid> {
        T::parse(raw).map(Some)
    }

    fn missing() -> Result<Self, Invalid> {
        Ok(None)
    }
}

impl Field for bool {
    fn parse(raw: Raw<'_>) -> Result<Self, Invalid> {
        raw.boolean()
    }
}

impl Field for String {
    fn parse(raw: Raw<'_>) -> Result<Self, Invalid> {
        raw.text().map(str::to_owned)
    }
}

impl Field for Uuid {
    fn parse(raw: Raw<'_>) -> Result<Self, Invalid> {
        Self::try_parse(raw.text()?).map_err(|_| Invalid::new("malformed", "Must be a UUID."))
    }
}

/// Text between two lengths in characters, trimmed.
///
/// # Errors
/// When it is not a string, or its length is outside the bounds.
pub fn bounded_text(raw: Raw<'_>, min: usize, max: usize) -> Result<String, Invalid> {
    let text = raw.text()?.trim();
    match text.chars().count() {
        n if n < min => Err(Invalid::new("too_short", format!("Must have at least {min} characters."))),
        n if n > max => Err(Invalid::new("too_long", format!("Must have at most {max} characters."))),
        _ if text.contains('\0') => Err(Invalid::new("malformed", "Must not contain the NUL character.")),
        _ => Ok(text.to_owned()),
    }
}

/// Where the fields of a request are read from.
pub struct Fields<'a> {
    source: Source<'a>,
    errors: Vec<FieldError>,
}

enum Source<'a> {
    Body(&'a Map<String, Value>),
    Query(&'a [(String, String)]),
}

impl<'a> Fields<'a> {
    /// Fields of a JSON object.
    #[must_use]
    pub fn body(object: &'a Map<String, Value>) -> Self {
        Self { source: Source::Body(object), errors: Vec::new() }
    }

    /// Query parameters; the last of repeated ones counts.
    #[must_use]
    pub fn query(pairs: &'a [(String, String)]) -> Self {
        Self { source: Source::Query(pairs), errors: Vec::new() }
    }

    /// Reads one field by its camelCase or snake_case name; a null counts as missing.
    pub fn read<T: Field>(&mut self, name: &str) -> Option<T> {
        let key = camel_case(name);
        let raw = match &self.source {
            Source::Body(object) => object.get(&key).filter(|value| !value.is_null()).map(Raw::Json),
            Source::Query(pairs) => {
                pairs.iter().rev().find(|(found, _)| *found == key).map(|(_, value)| Raw::Text(value))
            }
        };
        let parsed = raw.map_or_else(T::missing, T::parse);
        parsed.map_err(|invalid| self.refuse(name, invalid)).ok()
    }

    /// Notes a bad field, by the same name.
    pub fn refuse(&mut self, name: &str, invalid: Invalid) {
        self.errors.push(FieldError { field: camel_case(name), code: invalid.code, message: invalid.message });
    }

    /// The request, if every field was good.
    ///
    /// # Errors
    /// A 400 that names every bad field.
    #[track_caller]
    pub fn finish<T>(self, parsed: Option<T>) -> Result<T> {
        match parsed {
            Some(parsed) if self.errors.is_empty() => Ok(parsed),
            _ => Err(Error::validation(self.errors)),
        }
    }
}

/// Two parts of a request, such as its query and its body, or the bad fields of both. What cannot be read at all, such
/// as a body that is no JSON, is told alone: its fields are not known.
///
/// # Errors
/// A 400 that names every bad field of both, or the error that is not about fields.
#[track_caller]
pub fn both<A, B>(a: Result<A>, b: Result<B>) -> Result<(A, B)> {
    match (a, b) {
        (Ok(a), Ok(b)) => Ok((a, b)),
        (Err(a), Err(b)) => Err(match (a.fields(), b.fields()) {
            ([], _) => a,
            (_, []) => b,
            (bad, others) => Error::validation([bad, others].concat()),
        }),
        (Err(error), Ok(_)) | (Ok(_), Err(error)) => Err(error),
    }
}

fn camel_case(name: &str) -> String {
    let mut out = String::with_capacity(name.len());
    let mut upper = false;
    for c in name.chars() {
        match c {
            '_' => upper = true,
            c if upper => {
                out.extend(c.to_uppercase());
                upper = false;
            }
            c => out.push(c),
        }
    }
    out
}

/// A type that is read from the fields of a request.
pub trait FromFields: Sized {
    /// Reads all fields, noting every bad one; `None` when there was one.
    fn from_fields(fields: &mut Fields<'_>) -> Option<Self>;
}

/// Declares a request type: a struct whose fields are read by name (`snake_case` here, `camelCase` there).
#[macro_export]
macro_rules! request {
    ($(#[$meta:meta])* $vis:vis struct $name:ident { $($(#[$field_meta:meta])* $field:ident: $type:ty),* $(,)? }) => {
        $(#[$meta])*
        $vis struct $name { $($(#[$field_meta])* $field: $type),* }

        impl $crate::http::validate::FromFields for $name {
            fn from_fields(fields: &mut $crate::http::validate::Fields<'_>) -> Option<Self> {
                $(let $field = fields.read::<$type>(stringify!($field));)*
                Some(Self { $($field: $field?),* })
            }
        }
    };
}

/// The integer that a float stands for, where every integer still has a float of its own.
fn whole(number: f64) -> Option<i64> {
    const EXACT: f64 = 9_007_199_254_740_992.0;
    (number.fract() == 0.0 && number.abs() <= EXACT).then(|| format!("{number:.0}").parse().ok())?
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Code;
    use serde_json::json;

    crate::request! {
        #[derive(Debug)]
        struct Example { conversation_id: Uuid, stream: Option<bool>, title: String }
    }

    fn parse(body: Value) -> Result<Example> {
        let mut fields = Fields::body(body.as_object().unwrap());
        let parsed = Example::from_fields(&mut fields);
        fields.finish(parsed)
    }

    #[test]
    fn names_every_bad_field_at_once() {
        let error = parse(json!({"conversationId": "x", "stream": 1})).unwrap_err();
        let named: Vec<_> = error.fields().iter().map(|f| (f.field.as_str(), f.code)).collect();
        assert_eq!(named, [("conversationId", "malformed"), ("stream", "wrong_type"), ("title", "required")]);
    }

    #[test]
    fn parts_of_a_request_are_named_together() {
        let bad = |field: &str| Err::<(), _>(Error::invalid_field(field, "malformed", "Is bad."));
        let named = |error: Error| error.fields().iter().map(|f| f.field.clone()).collect::<Vec<_>>();
        assert_eq!(both(Ok(1), Ok(2)).unwrap(), (1, 2));
        assert_eq!(named(both(bad("a"), Ok(())).unwrap_err()), ["a"]);
        assert_eq!(named(both(Ok(()), bad("b")).unwrap_err()), ["b"]);
        assert_eq!(named(both(both(bad("a"), bad("b")), bad("c")).unwrap_err()), ["a", "b", "c"]);
        let unread = || Err::<(), _>(Error::new(Code::InvalidJson, "Is no JSON."));
        assert_eq!(both(bad("a"), unread()).unwrap_err().code(), Code::InvalidJson);
        assert_eq!(both(unread(), bad("b")).unwrap_err().code(), Code::InvalidJson);
    }

    #[test]
    fn null_is_missing_and_unknown_fields_are_ignored() {
        let id = Uuid::now_v7();
        let example = parse(json!({"conversationId": id, "stream": null, "title": "t", "extra": 1})).unwrap();
        assert_eq!((example.conversation_id, example.stream, example.title.as_str()), (id, None, "t"));
    }

    #[test]
    fn the_last_of_repeated_parameters_counts() {
        let pairs = [("limit".to_owned(), "1".to_owned()), ("limit".to_owned(), "2".to_owned())];
        assert_eq!(Fields::query(&pairs).read::<String>("limit").as_deref(), Some("2"));
    }

    #[test]
    fn an_integer_may_be_written_as_a_float() {
        assert_eq!(
            [json!(1), json!(1.0), json!(-2e3)].map(|value| Raw::Json(&value).integer().ok()),
            [Some(1), Some(1), Some(-2000)]
        );
        assert!([json!(1.5), json!(1e300), json!("1")].iter().all(|value| Raw::Json(value).integer().is_err()));
    }
}
