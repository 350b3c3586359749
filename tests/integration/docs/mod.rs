//! The examples of README and `docs` are run as they are printed, page by page and from top to
//! bottom, each page against a simulated cloud and a daemon of its own.
//!
//! What a page names is replaced by what stands for it here: `/etc`, `/var` and `/usr/local` are
//! folders of the test, `/usr/bin/poweryard` and `cargo run --release --` are the program that was
//! built, `127.0.0.1:9642` is the daemon's page and `127.0.0.1:8080` a free port. Commands run in a
//! folder of their own that has `config` of the project in it.
//!
//! What is done with a block follows from its language; a language that is not known here fails the
//! test:
//!
//! | language | |
//! | --- | --- |
//! | `sh` | runs, all of it in one shell that stops at the first failure |
//! | `console` | each line after `$` runs; the lines below it are what it prints, with `…` for anything |
//! | `sql` | runs in one connection that lasts as long as the page |
//! | `toml` | a config, or a part that is put into the smallest one: it must be accepted |
//! | `python`, `php`, `javascript`, `perl`, `java` | runs where the language and its SQLite library are installed, else its form is checked, else it is skipped |
//! | `ini` | a unit: `systemd-analyze verify`; what it starts is run |
//! | `cron` | each line's command runs twice, and the second time no request may be added |
//! | `yaml` | `promtool check config`, if it is there |
//! | `json` | must be JSON |
//! | `text` | has to say what it is: `output`, `picture` or `file` |
//!
//! Where `sqlite3` or `curl` is not installed, pages that use it are only parsed.
//!
//! A comment before a block, `<!-- test: … -->`, says what differs:
//!
//! | comment | |
//! | --- | --- |
//! | `parse only` | is read by a parser of its language and not run |
//! | `needs root` | likewise; the life of the package in a container (`tests/nspawn`) has the real thing |
//! | `exit 1` | ends with this code |
//! | `file NAME` | is written to this file; a program is not run |
//! | `in the background` | goes on until the page ends |
//! | `output` | is what the block before it printed, with `…` for anything |
//! | `picture` | is for eyes alone |
//! | `refused` | each line of this `sql` is refused with the sentence behind it |
//! | `with import …` | this `python` runs if this statement does |

mod errors;
mod languages;
mod page;
mod run;
mod world;

use self::page::Page;
use self::world::World;
use clap::{CommandFactory, Parser};
use poweryard::cli::Cli;

async fn run_page(name: &str) {
    let page = Page::read(name);
    let mut world = World::new(name == "docs/api.md").await;
    run::every_block(&page, &mut world).await;
}

macro_rules! pages {
    ($($test:ident: $name:literal),+ $(,)?) => {
        $(
            #[tokio::test(flavor = "multi_thread")]
            async fn $test() {
                run_page($name).await;
            }
        )+

        const TESTED: &[&str] = &[$($name),+];
    };
}

pages! {
    the_readme_does_what_it_says: "README.md",
    contributing_does_what_it_says: "CONTRIBUTING.md",
    api_does_what_it_says: "docs/api.md",
    configure_does_what_it_says: "docs/configure.md",
    errors_does_what_it_says: "docs/errors.md",
    install_does_what_it_says: "docs/install.md",
    monitor_does_what_it_says: "docs/monitor.md",
    operate_does_what_it_says: "docs/operate.md",
    page_does_what_it_says: "docs/page.md",
    performance_does_what_it_says: "docs/performance.md",
    producers_does_what_it_says: "docs/producers.md",
    simulator_does_what_it_says: "docs/simulator.md",
    sources_does_what_it_says: "docs/sources.md",
}

#[test]
fn every_page_is_run_and_the_readme_leads_to_each() {
    let names = page::names();
    assert_eq!(names, TESTED);
    let readme = Page::read("README.md");
    for name in names.iter().filter(|name| name.starts_with("docs/")) {
        assert!(
            readme.links().any(|link| link == name),
            "the README does not lead to {name}"
        );
    }
}

#[test]
fn every_link_leads_to_a_page_and_a_heading_that_are_there() {
    for name in page::names() {
        let page = Page::read(&name);
        let folder = page::root()
            .join(&name)
            .parent()
            .expect("it is in a folder")
            .to_owned();
        for link in page.links() {
            let (file, anchor) = link.split_once('#').unwrap_or((link, ""));
            let path = if file.is_empty() {
                page::root().join(&name)
            } else {
                folder.join(file)
            };
            assert!(path.exists(), "{name} leads to {link}");
            if !anchor.is_empty() {
                let path = path.canonicalize().expect("it is there");
                let target = path
                    .strip_prefix(page::root())
                    .expect("it is of the project")
                    .display()
                    .to_string();
                assert!(
                    Page::read(&target)
                        .anchors()
                        .iter()
                        .any(|heading| heading == anchor),
                    "{name} leads to {link}"
                );
            }
        }
    }
}

/// Running text shortens commands: `poweryard pause [--target T]` has parts in brackets that may be
/// left out.
#[test]
fn every_command_in_running_text_is_one_that_the_program_takes() {
    for name in page::names() {
        let page = Page::read(&name);
        for span in page
            .code_spans()
            .filter(|span| span.starts_with("poweryard ") && !span.contains('_'))
        {
            for command in spelt_out(span) {
                expect_taken(&command, &name);
            }
        }
    }
}

#[test]
fn every_example_of_the_help_is_one_that_the_program_takes() {
    let mut commands = vec![Cli::command()];
    let mut examples = 0;
    while let Some(command) = commands.pop() {
        commands.extend(command.get_subcommands().cloned());
        let help = command
            .get_after_help()
            .map(ToString::to_string)
            .unwrap_or_default();
        for line in help
            .lines()
            .map(|line| line.trim().trim_start_matches("Example: "))
        {
            // Sentences begin with other words.
            if line.starts_with("poweryard ") {
                examples += 1;
                expect_taken(line, command.get_name());
            }
        }
    }
    assert!(examples > 15);
}

/// `ID`, `ACTION` and `A` stand for values.
fn expect_taken(command: &str, place: &str) {
    let line = command.split(" < ").next().unwrap_or_default();
    let mut words = Vec::new();
    for (at, part) in line.split('\'').enumerate() {
        if at % 2 == 1 {
            words.push(part);
        } else {
            words.extend(part.split_whitespace());
        }
    }
    let words = words.into_iter().map(|word| match word {
        "ID" => "1",
        "ACTION" | "A" => "stop",
        word => word,
    });
    if let Err(error) = Cli::try_parse_from(words) {
        panic!("{place}: `{command}`: {error}");
    }
}

/// The command with and without each part that may be left out.
fn spelt_out(command: &str) -> Vec<String> {
    let Some((before, rest)) = command.split_once('[') else {
        return vec![command.replace('…', "")];
    };
    let (optional, after) = rest.split_once(']').expect("a bracket that closes");
    let mut all = spelt_out(&format!("{before}{after}"));
    all.extend(spelt_out(&format!("{before}{optional}{after}")));
    all
}
