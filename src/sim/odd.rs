//! Complete answers, in bytes that only a tolerant reader accepts. Does not choose them; see
//! `faults`.

use super::answer::Answer;
use super::faults::Oddity;

/// The keys of the cloud's own texts, in the order of trying.
const TEXTS: [&[u8]; 4] = [
    br#""fail_reason":""#,
    br#""name":""#,
    br#""message":""#,
    br#""error_msg":""#,
];
/// Words that decide something, in the order of trying.
const WORDS: [&[u8]; 4] = [
    br#""status":""#,
    br#""power_state":""#,
    br#""job_id":""#,
    br#""code":""#,
];
/// The longest piece of a compressed body that is stored as it is.
const PIECE_BYTES_MAX: usize = 65_535;

/// The same answer with this oddity.
pub(super) fn made_odd(mut answer: Answer, oddity: Oddity) -> Answer {
    match oddity {
        Oddity::BadUtf8 => put_into_text(&mut answer.body, b"\xff\xc3\x28"),
        Oddity::LoneSurrogate => put_into_text(&mut answer.body, br"\ud83d"),
        Oddity::DoubledKeys => double_key(&mut answer.body),
        Oddity::Bom => insert(&mut answer.body, 0, b"\xef\xbb\xbf"),
        Oddity::Gzip => {
            answer.body = compressed(&answer.body);
            return answer.with_header("Content-Encoding", "gzip");
        }
    }
    answer
}

/// Puts `bytes` at the beginning of the first text; where there is none, into a key of its own.
fn put_into_text(body: &mut Vec<u8>, bytes: &[u8]) {
    match TEXTS
        .iter()
        .find_map(|key| Some(find(body, key)? + key.len()))
    {
        Some(at) => insert(body, at, bytes),
        None if body.starts_with(b"{\"") => {
            insert(body, 1, &[br#""note":""#, bytes, br#"","#].concat());
        }
        None => {}
    }
}

/// Repeats the first word that decides something: first with a wrong value, then with its own.
fn double_key(body: &mut Vec<u8>) {
    let found = WORDS.iter().find_map(|key| Some((find(body, key)?, *key)));
    if let Some((at, key)) = found {
        insert(body, at, &[key, br#"doubled","#].concat());
    }
}

fn find(body: &[u8], what: &[u8]) -> Option<usize> {
    body.windows(what.len()).position(|window| window == what)
}

fn insert(body: &mut Vec<u8>, at: usize, bytes: &[u8]) {
    body.splice(at..at, bytes.iter().copied());
}

/// A gzip file that holds `body` in pieces as they are: a valid one, though not a shorter one.
/// Source: RFC 1951 and 1952.
fn compressed(body: &[u8]) -> Vec<u8> {
    let mut file = vec![0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 0xff];
    let mut pieces = body.chunks(PIECE_BYTES_MAX).peekable();
    if pieces.peek().is_none() {
        file.extend([1, 0, 0, 0xff, 0xff]);
    }
    while let Some(piece) = pieces.next() {
        let length = u16::try_from(piece.len()).unwrap_or(u16::MAX);
        file.push(u8::from(pieces.peek().is_none()));
        file.extend(length.to_le_bytes());
        file.extend((!length).to_le_bytes());
        file.extend(piece);
    }
    file.extend(checksum(body).to_le_bytes());
    file.extend((body.len() as u32).to_le_bytes());
    file
}

/// CRC-32, bit by bit.
fn checksum(bytes: &[u8]) -> u32 {
    let mut sum = u32::MAX;
    for byte in bytes {
        sum ^= u32::from(*byte);
        for _ in 0..8 {
            sum = if sum & 1 == 1 {
                (sum >> 1) ^ 0xedb8_8320
            } else {
                sum >> 1
            };
        }
    }
    !sum
}

#[cfg(test)]
mod tests {
    use super::*;

    fn odd(text: &str, oddity: Oddity) -> Vec<u8> {
        made_odd(Answer::json_text(200, text.to_owned()), oddity).body
    }

    #[test]
    fn an_odd_text_stands_in_a_name_or_in_a_key_of_its_own() {
        let list = r#"{"servers":[{"id":"1","name":"a"}]}"#;
        assert_eq!(
            odd(list, Oddity::LoneSurrogate),
            br#"{"servers":[{"id":"1","name":"\ud83da"}]}"#
        );
        assert!(String::from_utf8(odd(list, Oddity::BadUtf8)).is_err());
        assert_eq!(
            odd(r#"{"id":"1"}"#, Oddity::LoneSurrogate),
            br#"{"note":"\ud83d","id":"1"}"#
        );
        assert_eq!(odd("[]", Oddity::LoneSurrogate), b"[]");
    }

    #[test]
    fn a_doubled_key_has_its_true_value_last() {
        let body = odd(r#"{"status":"SUCCESS"}"#, Oddity::DoubledKeys);
        assert_eq!(body, br#"{"status":"doubled","status":"SUCCESS"}"#);
        let read: serde_json::Value = serde_json::from_slice(&body).expect("still JSON");
        assert_eq!(read["status"], "SUCCESS");
    }

    #[test]
    fn a_compressed_answer_says_so_and_carries_the_sum_of_its_body() {
        let answer = made_odd(Answer::text(200, "123456789"), Oddity::Gzip);
        assert!(
            answer
                .headers
                .contains(&("Content-Encoding", "gzip".to_owned()))
        );
        assert_eq!(answer.body[10..15], [1, 9, 0, 0xf6, 0xff]);
        assert_eq!(answer.body[15..24], *b"123456789");
        assert_eq!(
            answer.body[24..28],
            0xcbf4_3926_u32.to_le_bytes(),
            "the check value of CRC-32"
        );
        assert_eq!(answer.body[28..], 9_u32.to_le_bytes());
    }
}
