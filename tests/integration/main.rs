//! All tests of the whole, in one program: it compiles and links in a third of the time that one for
//! each file takes.

mod answers;
mod api;
mod bms_wire;
mod clouddc;
mod clouddc_wire;
mod commands;
mod common;
mod crash;
mod credentials;
mod daemon;
mod disk;
mod docs;
mod growth;
mod guard;
mod hooks;
mod inventory;
mod keeping;
mod limits;
mod mishaps;
mod monitoring;
mod neighbours;
mod old_sqlite;
mod orders_cli;
mod outages;
mod packaging;
mod page;
mod pairs;
mod plan;
mod query_plans;
mod queue_sql;
mod service;
mod terminal;
mod waves;
mod windows;

#[test]
fn every_file_is_run() {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/integration");
    let here = include_str!("main.rs");
    for entry in std::fs::read_dir(folder).expect("a folder") {
        let path = entry.expect("an entry").path();
        let name = path.file_stem().expect("a name").to_string_lossy();
        let is_module = path.is_dir() || path.extension().is_some_and(|kind| kind == "rs");
        assert!(
            !is_module || name == "main" || here.contains(&format!("\nmod {name};\n")),
            "{name} is no part of tests/integration/main.rs, so nothing runs it"
        );
    }
}
