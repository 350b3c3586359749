//! Runs the blocks of a page in order, by their languages and the comments before them.

use poweryard::settings::Settings;
use poweryard::sim::Scenario;
use toml::Table;

use super::languages::{LANGUAGES, is_there, run_program};
use super::page::{Block, Page};
use super::world::{Said, World};

/// What a part of a config is put into.
const SMALLEST: &str = r#"
[targets.default]
service = "bms"
endpoint = "https://bms.eu-de.otc.t-systems.com"
project_id = "bbf1946d374b44a0a2a95533562ba954"
[targets.default.auth]
kind = "aksk"
access_key_file = "access_key"
secret_key_file = "secret_key"
"#;

/// Runs them; panics at the first that does not do what the page says.
pub(crate) async fn every_block(page: &Page, world: &mut World) {
    let mut printed = None;
    let lacking = lacks(page);
    if let Some(tool) = lacking {
        println!("{}: not run, only parsed: there is no {tool}", page.name);
    }
    for block in &page.blocks {
        let place = format!("{}:{}", page.name, block.line);
        for mark in &block.marks {
            assert!(
                is_known(mark, &block.language),
                "{place}: '{mark}' means nothing for a block of {}",
                block.language
            );
        }
        println!("{place}: {} {:?}", block.language, block.marks);
        if let Some(name) = block.value("file") {
            write_file(name, block, world, &place);
        } else if lacking.is_some() || block.says("parse only") || block.says("needs root") {
            parse_block(block, world, &place);
        } else {
            printed = run_block(block, world, &place, printed).await;
        }
    }
}

/// True if this comment can be obeyed for a block of this language.
fn is_known(mark: &str, language: &str) -> bool {
    match mark.split(' ').next().unwrap_or_default() {
        "parse" | "needs" => ["sh", "console"].contains(&language),
        "file" => true,
        "exit" => ["sh", "console"].contains(&language),
        "in" => language == "sh",
        "output" | "picture" => language == "text",
        "refused" => language == "sql",
        "with" => language == "python",
        _ => false,
    }
}

/// Programs that `sh` and `console` blocks use and that not every machine has.
const TOOLS: &[&str] = &["sqlite3", "curl"];

/// The first of [`TOOLS`] that the page uses and this machine does not have.
fn lacks(page: &Page) -> Option<&'static str> {
    let uses = |tool: &&&str| {
        page.blocks
            .iter()
            .any(|block| block.language == "sh" && block.text.contains(**tool))
    };
    TOOLS
        .iter()
        .filter(uses)
        .find(|tool| !is_there(tool))
        .copied()
}

/// Looks only at the form of a block, as far as its language has one.
fn parse_block(block: &Block, world: &World, place: &str) {
    match block.language.as_str() {
        "sh" => expect_good(&world.run("sh", &["-n", "-c", &block.text]), place),
        "console" => {
            for (command, _) in commands(&block.text) {
                expect_good(&world.run("sh", &["-n", "-c", &command]), place);
            }
        }
        _ => {}
    }
}

/// Writes the file that the block is, and checks it as what it is.
fn write_file(name: &str, block: &Block, world: &World, place: &str) {
    let path = world.write(name, &block.text).display().to_string();
    match block.language.as_str() {
        "sh" => parse_block(block, world, place),
        "ini" => run_unit(world, &path, place),
        "toml" if name.contains("scenario") => {
            Scenario::from_toml(&block.text).unwrap_or_else(|error| panic!("{place}: {error}"));
        }
        "text" => {}
        other => panic!("{place}: nothing is known of how a file of '{other}' is tested"),
    }
}

/// Returns what the block printed, none if it could not be run; one that prints nothing leaves
/// `printed` as it was.
async fn run_block(
    block: &Block,
    world: &mut World,
    place: &str,
    printed: Option<String>,
) -> Option<String> {
    match block.language.as_str() {
        "sh" if block.says("in the background") => {
            world
                .run_in_background(world.here(&block.text).trim())
                .await
        }
        "sh" => {
            let said = world.run("sh", &["-e", "-c", &world.here(&block.text)]);
            expect_code(&said, block, place);
            return Some(said.text);
        }
        "console" => run_console(block, world, place),
        "sql" if block.says("refused") => run_refused(block, world, place).await,
        "sql" => {
            return Some(
                world
                    .sql(&block.text)
                    .await
                    .unwrap_or_else(|error| panic!("{place}: {error}")),
            );
        }
        "toml" => read_config(world, &block.text, place),
        "json" => {
            let read: Result<serde_json::Value, _> = serde_json::from_str(&block.text);
            read.unwrap_or_else(|error| panic!("{place}: {error}"));
        }
        "yaml" => check_prometheus(world, &block.text, place),
        "cron" => run_cron(block, world, place).await,
        "text" if block.says("output") => match &printed {
            Some(printed) => expect_printed(printed, &block.text, place),
            None => println!("{place}: not compared"),
        },
        "text" if block.says("picture") => {}
        other => {
            let known = LANGUAGES.iter().find(|language| language.name == other);
            let language = known
                .unwrap_or_else(|| panic!("{place}: nothing is known of how '{other}' is tested"));
            return run_program(language, block, world, place);
        }
    }
    printed
}

pub(crate) fn expect_good(said: &Said, place: &str) {
    assert!(
        said.code == Some(0),
        "{place}: ended with {:?}\n{}",
        said.code,
        said.all
    );
}

fn expect_code(said: &Said, block: &Block, place: &str) {
    let wanted = block
        .value("exit")
        .map_or(0, |code| code.parse().expect("an exit code"));
    assert!(
        said.code == Some(wanted),
        "{place}: ended with {:?}, not with {wanted}\n{}",
        said.code,
        said.all
    );
}

/// `wanted` may leave things out with `…`.
fn expect_printed(printed: &str, wanted: &str, place: &str) {
    let lines = |text: &str| {
        text.trim_end()
            .lines()
            .map(str::trim_end)
            .collect::<Vec<_>>()
            .join("\n")
    };
    let (printed, wanted) = (lines(printed), lines(wanted));
    assert!(
        is_like(&printed, &wanted),
        "{place}: printed\n{printed}\nand not\n{wanted}"
    );
}

fn is_like(printed: &str, wanted: &str) -> bool {
    let parts: Vec<_> = wanted.split('…').collect();
    let [first, middle @ .., last] = parts.as_slice() else {
        return printed == wanted;
    };
    let Some(mut rest) = printed.strip_prefix(first) else {
        return false;
    };
    for part in middle {
        let Some((_, after)) = rest.split_once(part) else {
            return false;
        };
        rest = after;
    }
    rest.ends_with(last)
}

/// The commands of a `console` block, each with what it prints.
fn commands(text: &str) -> Vec<(String, String)> {
    let mut found: Vec<(String, String)> = Vec::new();
    for line in text.lines() {
        match (line.strip_prefix("$ "), found.last_mut()) {
            (Some(command), _) => found.push((command.to_owned(), String::new())),
            (None, Some((_, printed))) => printed.push_str(&format!("{line}\n")),
            (None, None) => panic!("output before the first command: {line}"),
        }
    }
    found
}

fn run_console(block: &Block, world: &World, place: &str) {
    let all = commands(&block.text);
    for (at, (command, wanted)) in all.iter().enumerate() {
        let said = world.run("sh", &["-c", &world.here(command)]);
        if at + 1 == all.len() {
            expect_code(&said, block, place);
        } else {
            expect_good(&said, place);
        }
        expect_printed(&said.text, wanted, place);
    }
}

/// Each statement is one line.
async fn run_refused(block: &Block, world: &mut World, place: &str) {
    for statement in block.text.lines().filter(|line| !line.is_empty()) {
        let (statement, sentence) = statement
            .split_once("-- ")
            .unwrap_or_else(|| panic!("{place}: no sentence"));
        let refused = world.sql(statement).await.expect_err(statement).to_string();
        assert!(
            refused.contains(sentence.trim()),
            "{place}: {statement} is refused with {refused}"
        );
    }
}

/// A whole config, or tables that are put into the smallest one.
fn read_config(world: &World, text: &str, place: &str) {
    let parse = |text: &str| {
        text.parse::<Table>()
            .unwrap_or_else(|error| panic!("{place}: {error}"))
    };
    let mut whole = parse(SMALLEST);
    merge(&mut whole, parse(&world.here(text)));
    let path = world.write("example.toml", &whole.to_string());
    if let Err(error) = Settings::load(&path) {
        panic!("{place}: {error}");
    }
}

/// Tables are merged, but for `auth`: its keys belong together.
fn merge(whole: &mut Table, part: Table) {
    for (key, value) in part {
        match (whole.get_mut(&key), value) {
            (Some(toml::Value::Table(old)), toml::Value::Table(new)) if key != "auth" => {
                merge(old, new)
            }
            (_, value) => drop(whole.insert(key, value)),
        }
    }
}

fn run_unit(world: &World, unit: &str, place: &str) {
    if is_there("systemd-analyze") {
        let said = world.run("systemd-analyze", &["verify", "--man=no", unit]);
        assert!(
            said.code == Some(0) && !said.all.contains("Unknown"),
            "{place}: {}",
            said.all
        );
    }
    let text = std::fs::read_to_string(unit).expect("it was written");
    for command in text
        .lines()
        .filter_map(|line| line.strip_prefix("ExecStart="))
    {
        // As systemd reads it.
        let command = command.replace("%%", "%").replace("$$", "$");
        expect_good(&world.run("sh", &["-c", &command]), place);
    }
}

async fn run_cron(block: &Block, world: &mut World, place: &str) {
    for line in block.text.lines().filter(|line| !line.starts_with('#')) {
        // Five fields of time, then the command, in which cron wants `%` escaped.
        let command = line
            .split_whitespace()
            .skip(5)
            .collect::<Vec<_>>()
            .join(" ")
            .replace("\\%", "%");
        let command = world.here(&command);
        let before = world.requests().await;
        expect_good(&world.run("sh", &["-c", &command]), place);
        let once = world.requests().await;
        assert!(before != once, "{place}: no request was added");
        expect_good(&world.run("sh", &["-c", &command]), place);
        assert_eq!(
            world.requests().await,
            once,
            "{place}: the second run added a request"
        );
    }
}

fn check_prometheus(world: &World, text: &str, place: &str) {
    if !is_there("promtool") {
        println!("{place}: skipped, there is no promtool");
        return;
    }
    let rules =
        std::fs::read_to_string(super::page::root().join("config/alerts.yml")).expect("readable");
    world.write("/etc/prometheus/poweryard-alerts.yml", &rules);
    let path = world.write("prometheus.yml", text);
    expect_good(
        &world.run(
            "promtool",
            &["check", "config", &path.display().to_string()],
        ),
        place,
    );
}
