//! Cuts SQL text into statements, minding quotes, comments and the bodies of triggers. Runs nothing.

/// The statements of `sql`, in order, each with what stood around it; pieces without any SQL are left out.
pub fn statements(sql: &str) -> Vec<String> {
    let mut done = Vec::new();
    let mut text = String::new();
    let mut in_trigger = false;
    for (piece, bare) in pieces(sql) {
        let words: Vec<String> = bare.split_whitespace().take(3).map(str::to_lowercase).collect();
        if text.is_empty() {
            in_trigger = starts_trigger(&words);
        }
        text.push_str(piece);
        if in_trigger && words != ["end"] {
            continue;
        }
        if !words.is_empty() {
            done.push(std::mem::take(&mut text));
        }
        text.clear();
    }
    if !text.trim().is_empty() {
        done.push(text);
    }
    done
}

fn starts_trigger(words: &[String]) -> bool {
    match words {
        [create, second, ..] if create == "create" && second == "trigger" => true,
        [create, temp, third] => create == "create" && (temp == "temp" || temp == "temporary") && third == "trigger",
        _ => false,
    }
}

/// Stretches that end with a semicolon, each beside itself without comments and that semicolon.
fn pieces(sql: &str) -> Vec<(&str, String)> {
    let mut found = Vec::new();
    let mut bare = String::new();
    let (mut start, mut at) = (0, 0);
    while at < sql.len() {
        let rest = &sql[at..];
        let length = token_length(rest);
        let token = &rest[..length];
        at += length;
        if token == ";" {
            found.push((&sql[start..at], std::mem::take(&mut bare)));
            start = at;
        } else if token.starts_with("--") || token.starts_with("/*") {
            bare.push(' ');
        } else {
            bare.push_str(token);
        }
    }
    if start < sql.len() {
        found.push((&sql[start..], bare));
    }
    found
}

/// How long the quoted text, comment or single character is that `rest` begins with; never 0.
fn token_length(rest: &str) -> usize {
    let until = |from: usize, end: &str| rest[from..].find(end).map_or(rest.len(), |at| from + at + end.len());
    match rest.as_bytes() {
        [b'-', b'-', ..] => until(2, "\n"),
        [b'/', b'*', ..] => until(2, "*/"),
        [b'\'', ..] => until(1, "'"),
        [b'"', ..] => until(1, "\""),
        [b'`', ..] => until(1, "`"),
        [b'[', ..] => until(1, "]"),
        _ => rest.chars().next().map_or(1, char::len_utf8),
    }
}

#[cfg(test)]
mod tests {
    use super::statements;

    #[test]
    fn semicolons_in_quotes_and_comments_do_not_end_a_statement() {
        let sql = "SELECT 'a;''b;' -- c;\n, \"x;y\"; /* ; */ SELECT 2;";
        assert_eq!(statements(sql), ["SELECT 'a;''b;' -- c;\n, \"x;y\";", " /* ; */ SELECT 2;"]);
    }

    #[test]
    fn a_trigger_is_one_statement() {
        let trigger =
            "CREATE TEMP TRIGGER t AFTER INSERT ON x BEGIN SELECT CASE WHEN 1 THEN 2 END; SELECT 1; -- so\nEND;";
        let sql = format!("{trigger} SELECT 2");
        assert_eq!(statements(&sql), [trigger, " SELECT 2"]);
    }

    #[test]
    fn nothing_is_no_statement() {
        assert!(statements(" ;; -- only a remark;\n").is_empty());
    }
}
