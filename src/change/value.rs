//! A column's text → JSON, by type.
//!
//! In:     a value in Postgres' text format under pinned output settings, and its [`Type`].
//! Out:    JSON text, equal to what `to_jsonb` gives for that value.
//! Never:  IO; floating-point round trips of numbers.

/// How a column's text becomes JSON.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Type {
    /// `t` or `f`.
    Bool,
    /// `int2`, `int4`, `int8`: the digits are the JSON number.
    Integer,
    /// `numeric`: the digits are the JSON number; `NaN` and infinities are null.
    Numeric,
    /// `float4`, `float8`: shortest form; `NaN` and infinities are null.
    Float,
    /// `json` and `jsonb`: embedded as they are.
    Json,
    /// `\x…`: a string of bare hexadecimal digits.
    Bytea,
    /// `timestamp`: a string with `T` between date and time.
    Timestamp,
    /// `timestamptz`: as `timestamp`, with a complete offset.
    TimestampTz,
    /// A JSON array, nested by dimension.
    Array {
        /// Type of the elements.
        element: Box<Self>,
        /// Between elements: `,`, for `box` `;`.
        delimiter: u8,
    },
    /// `int2vector`, `oidvector`: an array of the numbers between blanks.
    Vector(Box<Self>),
    /// A JSON object of the attributes in order.
    Composite(Box<[(Box<str>, Self)]>),
    /// Everything else: a string of Postgres' text.
    Text,
}
