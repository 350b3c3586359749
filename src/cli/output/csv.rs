//! Comma-separated values by RFC 4180, with a head.

/// Adds one record. A spreadsheet takes a text that begins like a formula for one, and anybody may have
/// written it: it gets an apostrophe in front.
pub(in crate::cli) fn push_record(
    text: &mut String,
    fields: impl IntoIterator<Item = impl AsRef<str>>,
) {
    for (number, field) in fields.into_iter().enumerate() {
        if number > 0 {
            text.push(',');
        }
        push_field(text, field.as_ref());
    }
    text.push_str("\r\n");
}

fn push_field(text: &mut String, field: &str) {
    let guard = if is_like_a_formula(field) { "'" } else { "" };
    if field.contains(['"', ',', '\r', '\n']) {
        text.push_str(&format!("\"{guard}{}\"", field.replace('"', "\"\"")));
    } else {
        text.push_str(guard);
        text.push_str(field);
    }
}

fn is_like_a_formula(field: &str) -> bool {
    field.starts_with(['=', '+', '-', '@', '\t', '\r']) && field.parse::<i64>().is_err()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(fields: &[&str]) -> String {
        let mut text = String::new();
        push_record(&mut text, fields);
        text
    }

    #[test]
    fn only_fields_that_need_it_are_quoted() {
        assert_eq!(
            record(&["plain", "", "a,b", "say \"no\"", "two\nlines"]),
            "plain,,\"a,b\",\"say \"\"no\"\"\",\"two\nlines\"\r\n"
        );
    }

    #[test]
    fn a_spreadsheet_runs_nothing_and_numbers_stay_numbers() {
        assert_eq!(
            record(&["=HYPERLINK(1)", "@x,y", "-5", "-x"]),
            "'=HYPERLINK(1),\"'@x,y\",-5,'-x\r\n"
        );
    }
}
