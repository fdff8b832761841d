//! One row image: slices of the batch it came in, nothing copied.
//!
//! In:     the bytes of a batch and, column by column, where each value lies.
//! Out:    [`Tuple`], cheap to clone and to keep.
//! Never:  decoding (`wal/pgoutput.rs`), rendering (`value.rs`).

use bytes::Bytes;

/// One column of a row image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Value<'a> {
    /// SQL null. In a key-only old image: null or not sent.
    Null,
    /// A large value that the update left alone, so the log does not carry it.
    Unchanged,
    /// The value in Postgres' text format, in the server's encoding.
    Text(&'a [u8]),
}

#[derive(Debug, Clone, Copy)]
enum Slot {
    Null,
    Unchanged,
    Text { start: u32, end: u32 },
}

/// One row image. Shares the memory of the batch it was read from.
#[derive(Debug, Clone)]
pub struct Tuple {
    bytes: Bytes,
    slots: Box<[Slot]>,
}

impl Tuple {
    /// Number of columns.
    pub fn len(&self) -> usize {
        self.slots.len()
    }

    /// Whether the table has no columns.
    pub fn is_empty(&self) -> bool {
        self.slots.is_empty()
    }

    /// The value of column `index`; a column beyond the last reads as null.
    pub fn get(&self, index: usize) -> Value<'_> {
        match self.slots.get(index) {
            None | Some(Slot::Null) => Value::Null,
            Some(Slot::Unchanged) => Value::Unchanged,
            Some(&Slot::Text { start, end }) => {
                let range = usize::try_from(start).ok().zip(usize::try_from(end).ok());
                let text = range.and_then(|(start, end)| self.bytes.get(start..end));
                Value::Text(text.expect("the builder took this range from these bytes"))
            }
        }
    }

    /// Every column in order.
    pub fn values(&self) -> impl ExactSizeIterator<Item = Value<'_>> {
        (0..self.len()).map(|index| self.get(index))
    }

    /// Bytes of text in all columns together.
    pub fn text_bytes(&self) -> usize {
        self.values().map(|value| if let Value::Text(text) = value { text.len() } else { 0 }).sum()
    }

    /// This image with each unchanged value taken from `old`, where `old` has it.
    #[must_use]
    pub fn filled_from(&self, old: &Self) -> Self {
        if !self.slots.iter().any(|slot| matches!(slot, Slot::Unchanged)) {
            return self.clone();
        }
        let values = self.values().enumerate().map(|(index, value)| match value {
            Value::Unchanged => old.get(index),
            Value::Null | Value::Text(_) => value,
        });
        Self::copied(values.collect::<Vec<_>>())
    }

    /// The columns at these places, in this order; a place beyond the last reads as unchanged.
    #[must_use]
    pub fn rearranged(&self, places: &[usize]) -> Self {
        let slot = |place: &usize| self.slots.get(*place).copied().unwrap_or(Slot::Unchanged);
        Self { bytes: self.bytes.clone(), slots: places.iter().map(slot).collect() }
    }

    /// A tuple with memory of its own.
    pub fn copied<'a>(values: impl IntoIterator<Item = Value<'a>>) -> Self {
        let mut bytes = Vec::new();
        let mut slots = Vec::new();
        for value in values {
            slots.push(match value {
                Value::Null => Slot::Null,
                Value::Unchanged => Slot::Unchanged,
                Value::Text(text) => {
                    let start = u32::try_from(bytes.len());
                    bytes.extend_from_slice(text);
                    match (start, u32::try_from(bytes.len())) {
                        (Ok(start), Ok(end)) => Slot::Text { start, end },
                        // Two images of more than 4 GiB together: the value is not shown.
                        (Ok(_) | Err(_), _) => Slot::Unchanged,
                    }
                }
            });
        }
        Self { bytes: bytes.into(), slots: slots.into() }
    }
}

/// Builds a [`Tuple`] over the bytes of one message without copying the values.
#[derive(Debug)]
pub struct TupleBuilder {
    bytes: Bytes,
    slots: Vec<Slot>,
}

impl TupleBuilder {
    /// For a tuple of about `columns` columns whose values all lie within `bytes`.
    pub fn new(bytes: Bytes, columns: usize) -> Self {
        Self { bytes, slots: Vec::with_capacity(columns) }
    }

    /// Adds the next column. A text value must be a slice of the builder's bytes; one that is
    /// not (or that lies beyond 4 GiB) is recorded as unchanged, which shows nothing.
    pub fn push(&mut self, value: Value<'_>) {
        self.slots.push(match value {
            Value::Null => Slot::Null,
            Value::Unchanged => Slot::Unchanged,
            Value::Text(text) => self.locate(text).unwrap_or(Slot::Unchanged),
        });
    }

    fn locate(&self, text: &[u8]) -> Option<Slot> {
        let start = text.as_ptr().addr().checked_sub(self.bytes.as_ptr().addr())?;
        let end = start.checked_add(text.len())?;
        if end > self.bytes.len() {
            return None;
        }
        Some(Slot::Text { start: start.try_into().ok()?, end: end.try_into().ok()? })
    }

    /// The finished tuple.
    pub fn build(self) -> Tuple {
        Tuple { bytes: self.bytes, slots: self.slots.into() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_read_back_from_the_shared_bytes() {
        let bytes = Bytes::from_static(b"ab-cde");
        let mut builder = TupleBuilder::new(bytes.clone(), 4);
        builder.push(Value::Text(&bytes[0..2]));
        builder.push(Value::Null);
        builder.push(Value::Unchanged);
        builder.push(Value::Text(&bytes[3..6]));
        let tuple = builder.build();
        let values: Vec<_> = tuple.values().collect();
        assert_eq!(
            values,
            [Value::Text(b"ab"), Value::Null, Value::Unchanged, Value::Text(b"cde")]
        );
        assert_eq!(tuple.text_bytes(), 5);
    }

    #[test]
    fn a_value_from_elsewhere_is_never_shown() {
        let mut builder = TupleBuilder::new(Bytes::from_static(b"ab"), 1);
        builder.push(Value::Text(b"foreign bytes, longer than the builder's own"));
        assert_eq!(builder.build().get(0), Value::Unchanged);
    }

    #[test]
    fn columns_can_be_taken_in_another_order() {
        let tuple = Tuple::copied([Value::Text(b"1"), Value::Null, Value::Text(b"3")]);
        let values = |places: &[usize]| {
            let tuple = tuple.rearranged(places);
            tuple.values().map(|value| format!("{value:?}")).collect::<Vec<_>>()
        };
        assert_eq!(values(&[2, 0, 1]), ["Text([51])", "Text([49])", "Null"]);
        assert_eq!(values(&[1, 9]), ["Null", "Unchanged"]);
    }

    #[test]
    fn unchanged_values_come_from_the_old_image() {
        let new = Tuple::copied([Value::Text(b"1"), Value::Unchanged, Value::Null]);
        let old = Tuple::copied([Value::Text(b"0"), Value::Text(b"big"), Value::Text(b"x")]);
        let filled = new.filled_from(&old);
        let values: Vec<_> = filled.values().collect();
        assert_eq!(values, [Value::Text(b"1"), Value::Text(b"big"), Value::Null]);
    }
}
