//! JSON objects where a document says "object" and another "array of objects", or nothing at all.
//!
//! Owns that one tolerance. Knows nothing of what the objects are.

use std::fmt;
use std::marker::PhantomData;

use serde::Deserialize;
use serde::de::{DeserializeSeed, Deserializer, MapAccess, SeqAccess, Visitor, value::MapAccessDeserializer};

/// Reads an object as one `T`, an array as the `T`s in it, and everything else (null, "", numbers) as none.
pub(crate) struct Objects<T>(PhantomData<T>);

impl<T> Objects<T> {
    /// Where serde asks for a value.
    pub(crate) fn read<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<T>, D::Error>
    where
        T: Deserialize<'de>,
    {
        Self(PhantomData).deserialize(deserializer)
    }
}

impl<'de, T: Deserialize<'de>> DeserializeSeed<'de> for Objects<T> {
    type Value = Vec<T>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de, T: Deserialize<'de>> Visitor<'de> for Objects<T> {
    type Value = Vec<T>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("any value")
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Self::Value, A::Error> {
        Ok(vec![T::deserialize(MapAccessDeserializer::new(map))?])
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Self::Value, A::Error> {
        let mut found = Vec::new();
        while let Some(element) = seq.next_element_seed(Self(PhantomData))? {
            found.extend(element);
        }
        Ok(found)
    }

    fn visit_str<E>(self, _: &str) -> Result<Self::Value, E> {
        Ok(Vec::new())
    }

    fn visit_u64<E>(self, _: u64) -> Result<Self::Value, E> {
        Ok(Vec::new())
    }

    fn visit_i64<E>(self, _: i64) -> Result<Self::Value, E> {
        Ok(Vec::new())
    }

    fn visit_f64<E>(self, _: f64) -> Result<Self::Value, E> {
        Ok(Vec::new())
    }

    fn visit_bool<E>(self, _: bool) -> Result<Self::Value, E> {
        Ok(Vec::new())
    }

    fn visit_unit<E>(self) -> Result<Self::Value, E> {
        Ok(Vec::new())
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
            let found = Objects::<Id>::read(&mut deserializer).expect("any value will do");
            assert_eq!(found.iter().map(|id| id.id).collect::<Vec<_>>(), expected, "{json}");
        }
    }
}
