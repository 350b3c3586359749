//! `docs/errors.md` has every error code of our own, and no other.

use std::collections::BTreeSet;

use poweryard::model::OwnCode;

use super::page::Page;

#[test]
fn the_errors_page_has_every_code_of_the_program_and_no_other() {
    let page = Page::read("docs/errors.md");
    let rows = page
        .prose
        .lines()
        .filter_map(|line| line.strip_prefix("| `")?.split_once('`'));
    let told: BTreeSet<&str> = rows
        .map(|(code, _)| code)
        .filter(|code| code.starts_with("poweryard."))
        .collect();
    let ours: BTreeSet<&str> = OwnCode::ALL.iter().map(|code| code.as_str()).collect();
    assert_eq!(told, ours);
}
