//! JSON objects where a document says "object" and another "array of objects", or nothing at all.
//!
//! Owns that one tolerance. Knows nothing of what the objects are.

use std::fmt;
use std::marker::PhantomData;

use serde::Deserialize;
use serde::de::{DeserializeSeed, Deserializer, MapAccess, SeqAccess, Visitor, value::MapAccessDeserializer};

/// Hands each object to `take`: a single one, or those in an array. Everything else (null, "", numbers) counts as none.
///
/// # Errors
/// Broken JSON, or an object that is no `T`.
pub(crate) fn each_object<'de, T: Deserialize<'de>, D: Deserializer<'de>>(
    deserializer: D,
    mut take: impl FnMut(T),
) -> Result<(), D::Error> {
    Objects { take: &mut take, of: PhantomData }.deserialize(deserializer)
}

/// The visitor behind `each_object`. Collects nothing by itself, because a job's answer holds thousands of objects.
struct Objects<'f, T, F> {
    take: &'f mut F,
    of: PhantomData<T>,
}

impl<'de, T: Deserialize<'de>, F: FnMut(T)> DeserializeSeed<'de> for Objects<'_, T, F> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de, T: Deserialize<'de>, F: FnMut(T)> Visitor<'de> for Objects<'_, T, F> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("any value")
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<(), A::Error> {
        (self.take)(T::deserialize(MapAccessDeserializer::new(map))?);
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<(), A::Error> {
        while seq.next_element_seed(Objects { take: self.take, of: PhantomData })?.is_some() {}
        Ok(())
    }

    fn visit_str<E>(self, _: &str) -> Result<(), E> {
        Ok(())
    }

    fn visit_u64<E>(self, _: u64) -> Result<(), E> {
        Ok(())
    }

    fn visit_i64<E>(self, _: i64) -> Result<(), E> {
        Ok(())
    }

    fn visit_f64<E>(self, _: f64) -> Result<(), E> {
        Ok(())
    }

    fn visit_bool<E>(self, _: bool) -> Result<(), E> {
        Ok(())
    }

    fn visit_unit<E>(self) -> Result<(), E> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Deserialize)]
    struct Id {
        id: u32,
    }

    #[test]
    fn objects_are_found_alone_in_arrays_and_beside_nonsense() {
        for (json, expected) in [
            (r#"{"id":1}"#, vec![1]),
            (r#"[{"id":1},null,3,"x",[{"id":2}],{"id":3}]"#, vec![1, 2, 3]),
            ("null", vec![]),
            ("\"\"", vec![]),
            ("1.5", vec![]),
            ("[]", vec![]),
        ] {
            let mut deserializer = serde_json::Deserializer::from_str(json);
            let mut found = Vec::new();
            each_object(&mut deserializer, |id: Id| found.push(id.id)).expect("any value will do");
            assert_eq!(found, expected, "{json}");
        }
    }
}
