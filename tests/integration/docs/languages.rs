//! The languages in which producers are written: what runs a file, what only reads its form, and
//! what must be installed.

use std::process::Command;

use super::page::Block;
use super::run::expect_good;
use super::world::{Said, World};

/// A programming language that a producer may be written in.
pub(crate) struct Language {
    pub(crate) name: &'static str,
    extension: &'static str,
    /// Runs a file.
    run: &'static [&'static str],
    /// Looks at its form alone.
    parse: &'static [&'static str],
    /// Succeeds if the library is there that the examples use.
    library: &'static [&'static str],
}

pub(crate) const LANGUAGES: &[Language] = &[
    Language {
        name: "python",
        extension: "py",
        run: &["python3"],
        parse: &["python3", "-m", "py_compile"],
        library: &["python3", "-c", "import sqlite3"],
    },
    Language {
        name: "php",
        extension: "php",
        run: &["php"],
        parse: &["php", "-l"],
        library: &["php", "-r", "exit(extension_loaded('pdo_sqlite') ? 0 : 1);"],
    },
    Language {
        name: "javascript",
        extension: "js",
        run: &["node"],
        parse: &["node", "--check"],
        library: &["node", "-e", "require('better-sqlite3')"],
    },
    Language {
        name: "perl",
        extension: "pl",
        run: &["perl"],
        // Without the module: `-c` carries out what is used.
        parse: &["perl", "-Mstrict; BEGIN { $INC{q(DBI.pm)} = 1 }", "-c"],
        library: &["perl", "-MDBD::SQLite", "-e", "1"],
    },
    Language {
        name: "java",
        extension: "java",
        run: &["java"],
        parse: &["javac", "-proc:none", "-d", "."],
        library: &["javap", "org.sqlite.JDBC"],
    },
];

/// What the program of a block printed; none if what it needs is not installed, and only its form
/// was read, or not even that.
pub(crate) fn run_program(
    language: &Language,
    block: &Block,
    world: &World,
    place: &str,
) -> Option<String> {
    let path = world
        .write(&format!("example.{}", language.extension), &block.text)
        .display()
        .to_string();
    let library = match block.value("with") {
        Some(statement) => vec![language.run[0], "-c", statement],
        None => language.library.to_vec(),
    };
    if is_installed(&library) {
        let said = run_file(language.run, &path, world);
        expect_good(&said, place);
        return Some(said.text);
    }
    println!("{place}: not run, `{}` fails", library.join(" "));
    if is_there(language.parse[0]) {
        expect_good(&run_file(language.parse, &path, world), place);
    }
    None
}

fn run_file(command: &[&str], path: &str, world: &World) -> Said {
    let args: Vec<&str> = command[1..].iter().copied().chain([path]).collect();
    world.run(command[0], &args)
}

/// True if this machine has the program.
pub(crate) fn is_there(program: &str) -> bool {
    is_installed(&[program, "--version"])
}

fn is_installed(check: &[&str]) -> bool {
    Command::new(check[0])
        .args(&check[1..])
        .output()
        .is_ok_and(|output| output.status.success())
}
