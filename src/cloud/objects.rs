//! JSON objects where a document says "object" and another "array of objects", or nothing at all.
//!
//! Owns that one tolerance. Knows nothing of what the objects are.

use std::fmt;
use std::marker::PhantomData;

use serde::Deserialize;
use serde::de::{
    DeserializeSeed, Deserializer, MapAccess, SeqAccess, Visitor, value::MapAccessDeserializer,
};

/// Gives each object to `take`: a single one, or those in an array. Everything else (null, "",
/// numbers) is skipped. Returns how many entries there were, of whatever type.
///
/// # Errors Broken JSON, or an object that is not a `T`.
pub(crate) fn each_object<'de, T: Deserialize<'de>, D: Deserializer<'de>>(
    deserializer: D,
    mut take: impl FnMut(T),
) -> Result<usize, D::Error> {
    Objects {
        take: &mut take,
        of: PhantomData,
    }
    .deserialize(deserializer)
}

/// The first object, where one is expected; an empty one if there is none. For `deserialize_with`.
///
/// # Errors
/// As `each_object`.
pub(crate) fn an_object<'de, T: Deserialize<'de> + Default, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<T, D::Error> {
    let mut first = None;
    each_object(deserializer, |object: T| {
        first.get_or_insert(object);
    })?;
    Ok(first.unwrap_or_default())
}

/// The visitor behind `each_object`. It collects nothing, because a job's answer can have thousands
/// of objects.
struct Objects<'f, T, F> {
    take: &'f mut F,
    of: PhantomData<T>,
}

impl<'de, T: Deserialize<'de>, F: FnMut(T)> DeserializeSeed<'de> for Objects<'_, T, F> {
    type Value = usize;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<usize, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de, T: Deserialize<'de>, F: FnMut(T)> Visitor<'de> for Objects<'_, T, F> {
    type Value = usize;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("any value")
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<usize, A::Error> {
        (self.take)(T::deserialize(MapAccessDeserializer::new(map))?);
        Ok(1)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<usize, A::Error> {
        let mut count = 0;
        while seq
            .next_element_seed(Objects {
                take: self.take,
                of: PhantomData,
            })?
            .is_some()
        {
            count += 1;
        }
        Ok(count)
    }

    fn visit_str<E>(self, _: &str) -> Result<usize, E> {
        Ok(0)
    }

    fn visit_u64<E>(self, _: u64) -> Result<usize, E> {
        Ok(0)
    }

    fn visit_i64<E>(self, _: i64) -> Result<usize, E> {
        Ok(0)
    }

    fn visit_f64<E>(self, _: f64) -> Result<usize, E> {
        Ok(0)
    }

    fn visit_bool<E>(self, _: bool) -> Result<usize, E> {
        Ok(0)
    }

    fn visit_unit<E>(self) -> Result<usize, E> {
        Ok(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Deserialize, Default)]
    struct Id {
        id: u32,
    }

    #[test]
    fn one_object_is_found_and_its_absence_is_an_empty_one() {
        for (json, expected) in [
            (r#"{"id":1}"#, 1),
            (r#"[null,{"id":2},{"id":3}]"#, 2),
            ("null", 0),
            ("\"text\"", 0),
        ] {
            let id: Id = an_object(&mut serde_json::Deserializer::from_str(json))
                .expect("any value will do");
            assert_eq!(id.id, expected, "{json}");
        }
    }

    #[test]
    fn objects_are_found_alone_in_arrays_and_beside_nonsense() {
        for (json, expected) in [
            (r#"{"id":1}"#, vec![1]),
            (
                r#"[{"id":1},null,3,"x",[{"id":2}],{"id":3}]"#,
                vec![1, 2, 3],
            ),
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
