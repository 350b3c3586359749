//! Comma-separated values as RFC 4180 quotes them, one record per line, with a head.

/// Adds one record.
pub(in crate::cli) fn push_record<'a>(
    text: &mut String,
    fields: impl IntoIterator<Item = &'a str>,
) {
    for (number, field) in fields.into_iter().enumerate() {
        if number > 0 {
            text.push(',');
        }
        if field.contains(['"', ',', '\n', '\r']) {
            text.push_str(&format!("\"{}\"", field.replace('"', "\"\"")));
        } else {
            text.push_str(field);
        }
    }
    text.push('\n');
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_fields_that_need_it_are_quoted() {
        let mut text = String::new();
        push_record(&mut text, ["plain", "", "a,b", "say \"no\"", "two\nlines"]);
        assert_eq!(text, "plain,,\"a,b\",\"say \"\"no\"\"\",\"two\nlines\"\n");
    }
}
