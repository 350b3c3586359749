//! Words that name servers, and the ids they stand for: ids, names and globs. What the order of
//! reading is, `store::client` knows; here are the sentences.

use std::collections::BTreeSet;

use super::Failure;
use super::output::{self, visible};
use crate::model::ServerId;
use crate::store::QueueClient;
use crate::store::client::{Meaning, ServerRecord, ambiguous_name, is_glob, unknown_name};

/// Servers that are named one by one in a sentence.
const NAMED_MAX: usize = 3;

/// A word that names servers, and where it was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Word {
    text: String,
    /// `FILE:LINE: `; empty for an argument.
    place: String,
}

impl Word {
    /// An argument of the command line.
    pub(super) fn argument(text: &str) -> Self {
        Self {
            text: text.to_owned(),
            place: String::new(),
        }
    }

    /// A line of a file, counted from 1.
    pub(super) fn line(text: &str, file: &str, number: usize) -> Self {
        Self {
            text: text.to_owned(),
            place: format!("{file}:{number}: "),
        }
    }

    fn mistake(&self, what: &str) -> Failure {
        Failure::Usage(format!(
            "{}'{}' {what}",
            self.place,
            visible(self.text.trim())
        ))
    }
}

/// How words are read.
#[derive(Debug, Clone, Copy)]
pub(super) struct Reading<'a> {
    /// Whose servers.
    pub(super) target: &'a str,
    /// `--ids`: as ids, whatever the inventory says.
    pub(super) only_ids: bool,
}

/// The ids that the words stand for, each once, in the order in which they were written.
///
/// # Errors
/// A word that stands for nothing, or for one of several servers, or for one that was named before.
pub(super) async fn ids(
    client: &mut QueueClient,
    words: &[Word],
    reading: Reading<'_>,
) -> Result<Vec<String>, Failure> {
    if let Some(empty) = words.iter().find(|word| word.text.trim().is_empty()) {
        return Err(empty.mistake("is empty and names no server"));
    }
    if reading.only_ids || !client.knows_servers(Some(reading.target)).await? {
        return as_ids(words, reading);
    }
    let texts: Vec<String> = words.iter().map(|word| word.text.clone()).collect();
    let meanings = client.meanings(Some(reading.target), &texts).await?;
    let named = words.iter().zip(meanings);
    let mut chosen = Chosen::default();
    let mut doubts = Doubts::default();
    for (word, meaning) in named {
        doubts.note(&meaning);
        match meaning {
            Meaning::Id(server) | Meaning::Name(server) => chosen.add(server.server_id, word)?,
            Meaning::UnlistedId(id) => chosen.add(id, word)?,
            Meaning::Glob(servers) if !servers.is_empty() => chosen.add_all(servers),
            Meaning::Glob(_) => {
                let what = format!("matches no server of target {}", visible(reading.target));
                return Err(word.mistake(&what));
            }
            Meaning::Ambiguous(servers) => return Err(word.mistake(&ambiguous_name(&servers))),
            Meaning::Nothing => {
                let hints = client.hints(Some(reading.target), &word.text).await?;
                return Err(word.mistake(&unknown_name(Some(reading.target), &hints)));
            }
        }
    }
    doubts.say(reading.target);
    Ok(chosen.ids)
}

/// The servers that a filter stands for, within one target or in all: an id that only requests
/// know is one, too.
///
/// # Errors
/// As `ids`.
pub(super) async fn filter(
    client: &mut QueueClient,
    word: &str,
    target: Option<&str>,
    only_ids: bool,
) -> Result<Vec<String>, Failure> {
    if only_ids || !client.knows_servers(target).await? {
        return Ok(vec![ServerId::as_stored(word)]);
    }
    let found = matching(client, &[word.to_owned()], target, true).await?;
    Ok(found.into_iter().map(|server| server.server_id).collect())
}

/// The servers that the words stand for, as the inventory knows them. With `with_unlisted`, ids
/// that only requests know are among them.
///
/// # Errors
/// As `ids`.
pub(super) async fn matching(
    client: &mut QueueClient,
    words: &[String],
    target: Option<&str>,
    with_unlisted: bool,
) -> Result<Vec<ServerRecord>, Failure> {
    let mut servers = Vec::new();
    for (word, meaning) in words.iter().zip(client.meanings(target, words).await?) {
        let written = Word::argument(word);
        if word.trim().is_empty() {
            return Err(written.mistake("is empty and names no server"));
        }
        match meaning {
            Meaning::Id(server) | Meaning::Name(server) => servers.push(server),
            Meaning::Glob(found) if !found.is_empty() => servers.extend(found),
            Meaning::Glob(_) => return Err(written.mistake("matches no server")),
            Meaning::Ambiguous(found) => return Err(written.mistake(&ambiguous_name(&found))),
            Meaning::UnlistedId(_) | Meaning::Nothing => {
                let id = ServerId::as_stored(word);
                if !with_unlisted || !client.has_requests_for(&id).await? {
                    let hints = client.hints(target, word).await?;
                    return Err(written.mistake(&unknown_name(target, &hints)));
                }
                servers.push(ServerRecord {
                    server_id: id,
                    ..ServerRecord::default()
                });
            }
        }
    }
    Ok(servers)
}

/// Words that are ids, as the queue stores them.
fn as_ids(words: &[Word], reading: Reading<'_>) -> Result<Vec<String>, Failure> {
    let mut chosen = Chosen::default();
    for word in words {
        if !ServerId::is_valid(&word.text) {
            let why = if reading.only_ids || !is_glob(&word.text) {
                String::new()
            } else {
                format!(
                    "; target {} has no inventory yet in which names could be found",
                    visible(reading.target)
                )
            };
            return Err(word.mistake(&format!(
                "is not a server id; use 1 to 64 characters of A-Z a-z 0-9 and -{why}"
            )));
        }
        chosen.add(ServerId::as_stored(&word.text), word)?;
    }
    Ok(chosen.ids)
}

/// The ids so far.
#[derive(Default)]
struct Chosen {
    ids: Vec<String>,
    /// All of them.
    seen: BTreeSet<ServerId>,
    /// Those that were named one by one.
    named: BTreeSet<ServerId>,
}

impl Chosen {
    fn add(&mut self, id: String, word: &Word) -> Result<(), Failure> {
        if !self.named.insert(ServerId(id.clone())) {
            return Err(Failure::Usage(format!(
                "{}server {} is named twice; one call inserts one request per server",
                word.place,
                visible(&id)
            )));
        }
        self.push(id);
        Ok(())
    }

    /// What a glob finds may have been named before.
    fn add_all(&mut self, servers: Vec<ServerRecord>) {
        for server in servers {
            self.push(server.server_id);
        }
    }

    fn push(&mut self, id: String) {
        if self.seen.insert(ServerId(id.clone())) {
            self.ids.push(id);
        }
    }
}

/// What is worth a warning.
#[derive(Default)]
struct Doubts {
    unlisted: Vec<String>,
    gone: Vec<String>,
}

impl Doubts {
    fn note(&mut self, meaning: &Meaning) {
        match meaning {
            Meaning::UnlistedId(id) => self.unlisted.push(id.clone()),
            Meaning::Id(server) if server.gone_at.is_some() => {
                self.gone.push(server.server_id.clone());
            }
            _ => {}
        }
    }

    fn say(&self, target: &str) {
        let target = visible(target);
        for (ids, what) in [
            (&self.unlisted, "no list of target"),
            (&self.gone, "the newest list of target"),
        ] {
            let Some(named) = some_of(ids) else {
                continue;
            };
            let has = if ids == &self.gone { "lacks" } else { "shows" };
            output::note(&format!("warning: {what} {target} {has} server {named}"));
        }
    }
}

/// The first few, and how many more.
fn some_of(ids: &[String]) -> Option<String> {
    let named: Vec<&str> = ids.iter().take(NAMED_MAX).map(String::as_str).collect();
    match ids.len() {
        0 => None,
        count if count > NAMED_MAX => Some(format!(
            "{} and {} more",
            named.join(", "),
            count - NAMED_MAX
        )),
        _ => Some(named.join(", ")),
    }
}

/// A server for a sentence: its id, and its name if it has one.
pub(super) fn shown(id: &str, name: Option<&str>) -> String {
    match name {
        Some(name) if !name.is_empty() => format!("{id} ({name})"),
        _ => id.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(words: &[Word], only_ids: bool) -> Result<Vec<String>, String> {
        let reading = Reading {
            target: "default",
            only_ids,
        };
        as_ids(words, reading).map_err(|failure| failure.to_string())
    }

    #[test]
    fn a_bad_line_is_named_by_file_and_number() {
        let words = [
            Word::line("server-1", "rack.txt", 1),
            Word::line("server 2", "rack.txt", 2),
        ];
        let error = read(&words, true).expect_err("a blank inside");
        assert!(
            error.starts_with("rack.txt:2: 'server 2' is not a server id"),
            "{error}"
        );
    }

    #[test]
    fn ids_are_taken_as_the_queue_stores_them_and_each_once() {
        let uuid = "616fb98f46ca475e917e2563e5a8cd19";
        let ids = read(&[Word::argument(uuid)], true);
        assert_eq!(
            ids,
            Ok(vec!["616fb98f-46ca-475e-917e-2563e5a8cd19".to_owned()])
        );
        let twice = [Word::argument("a"), Word::argument("A")];
        assert!(read(&twice, true).is_err_and(|error| error.contains("named twice")));
    }

    #[test]
    fn a_glob_without_an_inventory_says_what_is_missing() {
        let error = read(&[Word::argument("gpu-*")], false).expect_err("no id");
        assert!(error.contains("has no inventory yet"), "{error}");
    }
}
