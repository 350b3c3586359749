//! `docs/errors.md` has every error code of our own, and no other.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use crate::page::{Page, root};

/// How a code is written in Rust and in SQL, and what ends it.
const SPELLINGS: &[(&str, char)] = &[
    ("\"poweryard.", '"'),
    ("'poweryard.", '\''),
    ("our_own(\"", '"'),
];

/// What begins like a code and is a file.
const FILES: &[&str] = &["toml", "service", "bash", "fish", "db"];

#[test]
fn the_errors_page_has_every_code_of_the_program_and_no_other() {
    let mut used = BTreeSet::new();
    for file in sources() {
        let text = fs::read_to_string(&file).expect("readable");
        for (begin, end) in SPELLINGS {
            let words = text
                .split(begin)
                .skip(1)
                .filter_map(|rest| rest.split_once(*end));
            let words = words
                .map(|(word, _)| word)
                .filter(|word| is_word(word) && !FILES.contains(word));
            used.extend(words.map(|word| format!("poweryard.{word}")));
        }
    }
    let page = Page::read("docs/errors.md");
    let rows = page
        .prose
        .lines()
        .filter_map(|line| line.strip_prefix("| `")?.split_once('`'));
    let told: BTreeSet<String> = rows
        .map(|(code, _)| code.to_owned())
        .filter(|code| code.starts_with("poweryard."))
        .collect();
    assert!(used.len() > 10, "{used:?}");
    assert_eq!(told, used);
}

fn is_word(text: &str) -> bool {
    !text.is_empty()
        && text
            .chars()
            .all(|letter| letter.is_ascii_lowercase() || letter == '_')
}

/// The program's own sources and the schema.
fn sources() -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut folders = vec![root().join("src"), root().join("migrations")];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).expect("readable") {
            let path = entry.expect("readable").path();
            if path.is_dir() {
                folders.push(path);
            } else if is_source(&path) {
                found.push(path);
            }
        }
    }
    found
}

fn is_source(path: &Path) -> bool {
    path.extension()
        .is_some_and(|end| end == "rs" || end == "sql")
}
