//! Tables and keys of a TOML text, read one by one, so that all mistakes are reported at once, each
//! with its line and full key (serde stops at the first, and knows neither). Knows nothing of what
//! a key means.

use std::cell::RefCell;
use std::path::{Path, PathBuf};

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::error::{Mistake, SettingsError};

/// Collects the mistakes of one load.
pub(super) struct Report<'d> {
    file: &'d Path,
    text: &'d str,
    mistakes: RefCell<Vec<Mistake>>,
}

impl<'d> Report<'d> {
    pub(super) fn new(file: &'d Path, text: &'d str) -> Self {
        Self {
            file,
            text,
            mistakes: RefCell::default(),
        }
    }

    /// Parses the text. If it is not TOML, that is the only mistake.
    pub(super) fn document(&self) -> Option<Spanned<DeTable<'d>>> {
        DeTable::parse(self.text)
            .map_err(|error| {
                let at = error.span().map_or(self.text.len(), |span| span.start);
                let message = error.message().replace('\n', " ");
                self.add_at(
                    at,
                    key_near(self.text, at),
                    format!("not valid TOML: {message}"),
                );
            })
            .ok()
    }

    /// Adds a mistake of the config file at a byte offset.
    pub(super) fn add_at(&self, offset: usize, key: String, problem: String) {
        let line = self.line(offset);
        self.add(Mistake {
            file: self.file.to_owned(),
            line,
            key,
            problem,
        });
    }

    pub(super) fn add(&self, mistake: Mistake) {
        self.mistakes.borrow_mut().push(mistake);
    }

    pub(super) fn line(&self, offset: usize) -> usize {
        1 + self
            .text
            .bytes()
            .take(offset)
            .filter(|byte| *byte == b'\n')
            .count()
    }

    /// The finished value, if nothing was wrong.
    pub(super) fn finish<T>(self, value: Option<T>) -> Result<T, SettingsError> {
        let mut mistakes = self.mistakes.into_inner();
        mistakes.sort_by_key(|mistake| (mistake.file != *self.file, mistake.line));
        match value {
            Some(value) if mistakes.is_empty() => Ok(value),
            _ => Err(SettingsError::Mistakes(mistakes)),
        }
    }
}

/// One table of the file. Remembers which keys were read: all others are unknown keys.
pub(super) struct Section<'d> {
    report: &'d Report<'d>,
    name: String,
    /// Where its name is, for mistakes that belong to no single key.
    offset: usize,
    table: Option<&'d DeTable<'d>>,
    known: RefCell<Vec<&'static str>>,
}

impl<'d> Section<'d> {
    pub(super) fn root(report: &'d Report<'d>, table: &'d DeTable<'d>) -> Self {
        Self {
            report,
            name: String::new(),
            offset: 0,
            table: Some(table),
            known: RefCell::default(),
        }
    }

    /// True if the file has this table.
    pub(super) fn is_present(&self) -> bool {
        self.table.is_some()
    }

    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// The table `key` of this one; an absent one reads as empty.
    pub(super) fn section(&self, key: &'static str) -> Self {
        self.known.borrow_mut().push(key);
        self.child(key)
    }

    /// The tables in this one, whatever their names, in the order of the names.
    pub(super) fn children(&self) -> Vec<(&'d str, Self)> {
        let names = self.table.into_iter().flat_map(|table| table.keys());
        names
            .map(|name| (name.get_ref().as_ref(), self.child(name.get_ref())))
            .collect()
    }

    /// The tables of a list that is written as `[[NAME.key]]`, in the order of the file; an absent
    /// one has none.
    pub(super) fn tables(&self, key: &'static str) -> Vec<Self> {
        let list = self.read(key, |value| {
            value.as_array().ok_or_else(|| {
                format!(
                    "must be a list of tables, each written as [[{}]]",
                    self.key(key)
                )
            })
        });
        let mut tables = Vec::new();
        for entry in list.into_iter().flat_map(|list| list.iter()) {
            let offset = entry.span().start;
            let table = entry.get_ref().as_table();
            if table.is_none() {
                let problem = format!("must be a table, written as [[{}]]", self.key(key));
                self.report.add_at(offset, self.key(key), problem);
            }
            tables.push(Self {
                report: self.report,
                name: self.key(key),
                offset,
                table,
                known: RefCell::default(),
            });
        }
        tables
    }

    fn child(&self, key: &str) -> Self {
        let entry = self.entry(key);
        let table = entry.and_then(|(_, value)| {
            let table = value.get_ref().as_table();
            if table.is_none() {
                let problem = format!("must be a table, written as [{}]", self.key(key));
                self.mistake(key, problem);
            }
            table
        });
        let offset = entry.map_or(self.offset, |(offset, _)| offset);
        Self {
            report: self.report,
            name: self.key(key),
            offset,
            table,
            known: RefCell::default(),
        }
    }

    /// Reads a key that may be absent. Also none if its value is wrong; that is reported.
    pub(super) fn read<T>(
        &self,
        key: &'static str,
        parse: impl FnOnce(&'d DeValue<'d>) -> Result<T, String>,
    ) -> Option<T> {
        self.known.borrow_mut().push(key);
        let (_, value) = self.entry(key)?;
        parse(value.get_ref())
            .map_err(|problem| self.mistake(key, problem))
            .ok()
    }

    /// Reads a key that must be there; `example` shows how to write it.
    pub(super) fn require<T>(
        &self,
        key: &'static str,
        example: &str,
        parse: impl FnOnce(&'d DeValue<'d>) -> Result<T, String>,
    ) -> Option<T> {
        if self.entry(key).is_none() {
            self.mistake(
                key,
                format!("is missing; write for example {key} = {example}"),
            );
        }
        self.read(key, parse)
    }

    /// Reads a list, entry by entry; each wrong one is reported at its own line. Empty if absent.
    pub(super) fn read_list<T>(
        &self,
        key: &'static str,
        parse: impl Fn(&DeValue<'d>) -> Result<T, String>,
    ) -> Vec<T> {
        let list = self.read(key, |value| {
            value
                .as_array()
                .ok_or_else(|| "must be a list in brackets".to_owned())
        });
        let mut entries = Vec::new();
        for entry in list.into_iter().flat_map(|list| list.iter()) {
            match parse(entry.get_ref()) {
                Ok(entry) => entries.push(entry),
                Err(problem) => self
                    .report
                    .add_at(entry.span().start, self.key(key), problem),
            }
        }
        entries
    }

    /// True if the key is there and is a list without entries.
    pub(super) fn has_empty_list(&self, key: &str) -> bool {
        let list = self
            .entry(key)
            .and_then(|(_, value)| value.get_ref().as_array());
        list.is_some_and(|list| list.is_empty())
    }

    pub(super) fn has(&self, key: &str) -> bool {
        self.entry(key).is_some()
    }

    /// The line of a key, or of the table's name if the key is absent.
    pub(super) fn line(&self, key: &str) -> usize {
        self.report
            .line(self.entry(key).map_or(self.offset, |(offset, _)| offset))
    }

    /// Adds a mistake about `key`, at its line if it is there.
    pub(super) fn mistake(&self, key: &str, problem: String) {
        let offset = self.entry(key).map_or(self.offset, |(offset, _)| offset);
        self.report.add_at(offset, self.key(key), problem);
    }

    /// Adds a mistake about the table itself.
    pub(super) fn own_mistake(&self, problem: String) {
        self.report.add_at(self.offset, self.name.clone(), problem);
    }

    /// Counts `keys` as known without reading them.
    pub(super) fn allow(&self, keys: &[&'static str]) {
        self.known.borrow_mut().extend_from_slice(keys);
    }

    /// Adds a mistake found in another file that `key` names.
    pub(super) fn mistake_in(&self, file: PathBuf, line: usize, key: &str, problem: String) {
        self.report.add(Mistake {
            file,
            line,
            key: self.key(key),
            problem,
        });
    }

    /// Reports every key that was not asked for. `hint` may give a better message than the list of
    /// keys.
    pub(super) fn refuse_unknown(&self, hint: impl Fn(&str) -> Option<String>) {
        let known = self.known.borrow();
        for name in self.table.into_iter().flat_map(|table| table.keys()) {
            let name = name.get_ref().as_ref();
            if !known.contains(&name) {
                let usual = || format!("unknown key; known here: {}", known.join(", "));
                self.mistake(name, hint(name).unwrap_or_else(usual));
            }
        }
    }

    fn key(&self, key: &str) -> String {
        let bare = !key.is_empty()
            && key
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_');
        let key = if bare {
            key.to_owned()
        } else {
            format!("{key:?}")
        };
        if self.name.is_empty() {
            key
        } else {
            format!("{}.{key}", self.name)
        }
    }

    fn entry(&self, key: &str) -> Option<(usize, &'d Spanned<DeValue<'d>>)> {
        let (name, value) = self.table?.iter().find(|(name, _)| name.get_ref() == key)?;
        Some((name.span().start, value))
    }
}

/// The key that the text around `offset` seems to be about: the last table's name and the text left
/// of the `=`.
fn key_near(text: &str, offset: usize) -> String {
    let mut end = offset.min(text.len());
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    let line_start = text[..end].rfind('\n').map_or(0, |at| at + 1);
    let line = text[line_start..].lines().next().unwrap_or_default();
    let mut tables = text[..line_start]
        .lines()
        .rev()
        .filter_map(|line| line.trim_start_matches('\u{feff}').trim().strip_prefix('['));
    let table = tables
        .next()
        .and_then(|rest| rest.split(']').next())
        .map(str::trim);
    let key = line.split_once('=').map(|(key, _)| key.trim());
    match (table, key) {
        _ if line.trim_start().starts_with('[') => line.trim().trim_matches(['[', ']']).to_owned(),
        (Some(table), Some(key)) => format!("{table}.{key}"),
        (Some(only), None) | (None, Some(only)) => only.to_owned(),
        (None, None) => "(no key)".to_owned(),
    }
}
