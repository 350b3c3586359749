//! What may be in a secret file: one line, and nothing that no key, token or password has. Pure:
//! bytes in, the secret or its flaw out.

/// What a file should contain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum SecretKind {
    /// An access key or a secret key.
    Key,
    /// The security token of temporary keys.
    Token,
    /// Chosen by a person, so nearly every character is possible.
    Password,
}

impl SecretKind {
    /// The kind of secret that a key of the config names; `key` without its tables.
    pub(super) fn of(key: &str) -> Self {
        match key {
            "access_key_file" | "secret_key_file" => Self::Key,
            "security_token_file" => Self::Token,
            _ => Self::Password,
        }
    }
}

const NOT_ONE_LINE: &str = "is not one line of text; write only the secret into it";
const BYTE_ORDER_MARK: &str = "begins with a byte order mark, which some editors add; save it as plain UTF-8 or ASCII without one";
const QUOTED: &str = "has quotes around the secret; write it without them";
const ASSIGNMENT: &str = "contains NAME=value; write only the value into it";
const JSON: &str = "contains JSON; write only the value of the key into it";
const BLANKS: &str =
    "has blanks in or around the secret, which no key has; write only the secret into it";
const NOT_ASCII: &str = "contains a character that is not ASCII, which no key has; it may be invisible; write or copy the secret again";
const ODD_CHARACTER: &str = "contains punctuation that no key has; write only the secret into it";

/// The secret in the bytes of a file, or what is wrong with them; empty if there is nothing but
/// white space.
pub(super) fn judge(bytes: &[u8], kind: SecretKind) -> Result<&str, &'static str> {
    if bytes.starts_with(b"\xef\xbb\xbf")
        || bytes.starts_with(b"\xff\xfe")
        || bytes.starts_with(b"\xfe\xff")
    {
        return Err(BYTE_ORDER_MARK);
    }
    let text = std::str::from_utf8(bytes).map_err(|_| NOT_ONE_LINE)?;
    if text.trim().is_empty() {
        return Ok("");
    }
    let line = without_line_end(text);
    match kind {
        SecretKind::Password if line.chars().any(char::is_control) => Err(NOT_ONE_LINE),
        SecretKind::Password => Ok(line),
        SecretKind::Token => judge_token(line),
        SecretKind::Key => judge_key(line),
    }
}

/// Without line ends at the end: editors add one or several, and they are invisible.
fn without_line_end(text: &str) -> &str {
    let mut text = text;
    while let Some(shorter) = text
        .strip_suffix("\r\n")
        .or_else(|| text.strip_suffix('\n'))
    {
        text = shorter;
    }
    text
}

/// A token is long and its alphabet is not documented, but it travels in an HTTP header.
fn judge_token(line: &str) -> Result<&str, &'static str> {
    if line.starts_with(['{', '[']) {
        return Err(JSON);
    }
    if line.chars().any(|c| c.is_control() && c != '\t') {
        return Err(NOT_ONE_LINE);
    }
    if !line.is_ascii() {
        return Err(NOT_ASCII);
    }
    if is_assignment(line) {
        return Err(ASSIGNMENT);
    }
    if line.contains('\t') || line.trim() != line {
        return Err(BLANKS);
    }
    if is_quoted(line) {
        return Err(QUOTED);
    }
    Ok(line)
}

fn judge_key(line: &str) -> Result<&str, &'static str> {
    let token = judge_token(line)?;
    if token.contains(' ') {
        return Err(BLANKS);
    }
    if token.contains([
        '"', '\'', '`', '{', '}', '[', ']', '(', ')', '<', '>', ',', ';', '\\', '$',
    ]) {
        return Err(ODD_CHARACTER);
    }
    Ok(token)
}

/// Such as `HW_ACCESS_KEY=AK…`, also with `export` before it or blanks around the sign. The `=` at
/// the end of a base64 text is not an assignment.
fn is_assignment(line: &str) -> bool {
    let line = line.trim_start();
    if line.starts_with("export ") || line.starts_with("set ") {
        return true;
    }
    let Some((name, value)) = line.split_once('=') else {
        return false;
    };
    let name = name.trim_end();
    let is_name = name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
        && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
    is_name && !value.trim_matches('=').is_empty()
}

fn is_quoted(line: &str) -> bool {
    const QUOTES: [char; 3] = ['"', '\'', '`'];
    line.starts_with(QUOTES) || line.ends_with(QUOTES)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_no_key_can_be_is_refused_and_a_line_end_is_cut() {
        let cases: [(&[u8], &str); 20] = [
            (b"\xef\xbb\xbfAKID\r\n", BYTE_ORDER_MARK),
            (b"\xff\xfeA\0K\0", BYTE_ORDER_MARK),
            (b"\"AKID\"\n", QUOTED),
            (b"'AKID'", QUOTED),
            (b"AKID\"", QUOTED),
            (b"HW_ACCESS_KEY=AKID\n", ASSIGNMENT),
            (b"export HW_ACCESS_KEY=AKID\n", ASSIGNMENT),
            (b"access_key = \"AKID\"\n", ASSIGNMENT),
            (b" AKID\n", BLANKS),
            (b"AKID \n", BLANKS),
            (b"AK ID", BLANKS),
            (b"\tAKID", BLANKS),
            ("AK\u{200b}ID".as_bytes(), NOT_ASCII),
            ("AKID\u{a0}\n".as_bytes(), NOT_ASCII),
            ("\u{201c}AKID\u{201d}".as_bytes(), NOT_ASCII),
            (b"AKID\nSECRET\n", NOT_ONE_LINE),
            (b"AK\xffID", NOT_ONE_LINE),
            (b"{\"access\": \"AKID\"}", JSON),
            (b"user,AKID,SECRET", ODD_CHARACTER),
            (b"<your-key>", ODD_CHARACTER),
        ];
        for (content, flaw) in cases {
            assert_eq!(
                judge(content, SecretKind::Key),
                Err(flaw),
                "{}",
                String::from_utf8_lossy(content)
            );
        }
        for content in ["AKID", "AKID\n", "AKID\r\n", "AKID\n\n"] {
            assert_eq!(judge(content.as_bytes(), SecretKind::Key), Ok("AKID"));
        }
        assert_eq!(judge(b"a+b/c_d-e==\n", SecretKind::Key), Ok("a+b/c_d-e=="));
        assert_eq!(
            judge(b"QUJD==\n", SecretKind::Key),
            Ok("QUJD=="),
            "the end of a base64 text is no assignment"
        );
        assert_eq!(judge(b" \r\n", SecretKind::Key), Ok(""));
    }

    #[test]
    fn a_security_token_is_one_line_of_printable_ascii() {
        let token = "gQpjbi1ub3J0aC00(x);{}y+/==";
        assert_eq!(
            judge(format!("{token}\n").as_bytes(), SecretKind::Token),
            Ok(token)
        );
        for (content, flaw) in [
            ("gQpj\u{200b}bi", NOT_ASCII),
            ("gQpj\nbi", NOT_ONE_LINE),
            ("TOKEN=gQpj", ASSIGNMENT),
            ("\"gQpj\"", QUOTED),
            ("gQpj ", BLANKS),
        ] {
            assert_eq!(judge(content.as_bytes(), SecretKind::Token), Err(flaw));
        }
    }
}
