//! Reads a page: its fenced blocks, the commands in its running text, its links. Runs nothing.

use std::fs;
use std::path::{Path, PathBuf};

/// The comment that begins how a block is tested.
const MARK: &str = "<!-- test:";

/// A fenced block.
#[derive(Debug)]
pub(crate) struct Block {
    /// Of the line with the fence, from 1.
    pub(crate) line: usize,
    /// What follows the backticks: `sh`, `sql`, …
    pub(crate) language: String,
    /// The words of the comment before it, such as `needs root`.
    pub(crate) marks: Vec<String>,
    /// Without the indentation of the fence.
    pub(crate) text: String,
}

impl Block {
    /// True if the comment before the block says exactly this.
    pub(crate) fn says(&self, mark: &str) -> bool {
        self.marks.iter().any(|said| said == mark)
    }

    /// What follows `word` in the comment before the block: `exit 1` has `1` for `exit`.
    pub(crate) fn value(&self, word: &str) -> Option<&str> {
        self.marks
            .iter()
            .find_map(|said| said.strip_prefix(word)?.strip_prefix(' '))
    }
}

/// A Markdown file of the project.
pub(crate) struct Page {
    /// From the root of the project, such as `docs/install.md`.
    pub(crate) name: String,
    pub(crate) blocks: Vec<Block>,
    /// All that is outside of blocks.
    pub(crate) prose: String,
}

impl Page {
    pub(crate) fn read(name: &str) -> Self {
        let text = fs::read_to_string(root().join(name)).expect("the page is there");
        let mut page = Self {
            name: name.to_owned(),
            blocks: Vec::new(),
            prose: String::new(),
        };
        let mut open: Option<(Block, usize)> = None;
        let mut marks = Vec::new();
        for (index, line) in text.lines().enumerate() {
            let trimmed = line.trim_start();
            let indent = line.len() - trimmed.len();
            if let Some((mut block, indent)) = open.take() {
                if trimmed == "```" {
                    page.blocks.push(block);
                } else {
                    block.text.push_str(line.get(indent..).unwrap_or_default());
                    block.text.push('\n');
                    open = Some((block, indent));
                }
                continue;
            }
            if let Some(language) = trimmed.strip_prefix("```") {
                let block = Block {
                    line: index + 1,
                    language: language.to_owned(),
                    marks: std::mem::take(&mut marks),
                    text: String::new(),
                };
                open = Some((block, indent));
                continue;
            }
            if let Some(said) = trimmed.strip_prefix(MARK) {
                let said = said
                    .strip_suffix("-->")
                    .expect("the comment ends on its line");
                marks = said.split(',').map(|mark| mark.trim().to_owned()).collect();
                continue;
            }
            assert!(
                marks.is_empty() || trimmed.is_empty(),
                "{name}:{}: a test comment without a block",
                index + 1
            );
            page.prose.push_str(line);
            page.prose.push('\n');
        }
        assert!(open.is_none(), "{name}: a block does not end");
        page
    }

    /// What stands between single backticks, in order.
    pub(crate) fn code_spans(&self) -> impl Iterator<Item = &str> {
        self.prose
            .lines()
            .flat_map(|line| line.split('`').skip(1).step_by(2))
    }

    /// Where its links lead, apart from those to other sites.
    pub(crate) fn links(&self) -> impl Iterator<Item = &str> {
        let ends = self
            .prose
            .split("](")
            .skip(1)
            .filter_map(|rest| rest.split(')').next());
        ends.filter(|link| !link.starts_with("http"))
    }

    /// The names by which a link can reach its headings, as GitHub makes them.
    pub(crate) fn anchors(&self) -> Vec<String> {
        let headings = self.prose.lines().filter(|line| line.starts_with('#'));
        headings
            .map(|line| anchor(line.trim_start_matches('#').trim()))
            .collect()
    }
}

fn anchor(heading: &str) -> String {
    let kept = heading.to_lowercase().replace(' ', "-");
    kept.chars()
        .filter(|letter| letter.is_alphanumeric() || *letter == '-' || *letter == '_')
        .collect()
}

/// The folder of the project.
pub(crate) fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// README, CONTRIBUTING, and every page of `docs`.
pub(crate) fn names() -> Vec<String> {
    let files = fs::read_dir(root().join("docs")).expect("the folder is there");
    let mut paths: Vec<PathBuf> = files.map(|file| file.expect("readable").path()).collect();
    paths.sort();
    let pages = paths
        .iter()
        .filter(|path| path.extension().is_some_and(|ending| ending == "md"))
        .filter_map(|path| path.file_name())
        .map(|name| format!("docs/{}", name.to_string_lossy()));
    let mut names = vec!["README.md".to_owned(), "CONTRIBUTING.md".to_owned()];
    names.extend(pages);
    names
}
