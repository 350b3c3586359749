//! The daemon's statements, read out of the store's own source, so that none can be forgotten.

const SOURCES: [&str; 15] = [
    include_str!("../../../src/store/sqlite/snapshot.rs"),
    include_str!("../../../src/store/sqlite/gate.rs"),
    include_str!("../../../src/store/sqlite/intake.rs"),
    include_str!("../../../src/store/sqlite/claim.rs"),
    include_str!("../../../src/store/sqlite/record.rs"),
    include_str!("../../../src/store/sqlite/batches.rs"),
    include_str!("../../../src/store/sqlite/holds.rs"),
    include_str!("../../../src/store/sqlite/upkeep.rs"),
    include_str!("../../../src/store/sqlite/epoch.rs"),
    include_str!("../../../src/store/sqlite/guard.rs"),
    include_str!("../../../src/store/sqlite/overrides.rs"),
    include_str!("../../../src/store/sqlite/orders.rs"),
    include_str!("../../../src/store/sqlite/export.rs"),
    // What /metrics, the status page and the hooks read.
    include_str!("../../../src/store/client/overview.rs"),
    include_str!("../../../src/store/client/orders.rs"),
];

/// The string literals of the sources that are SQL; their own tests may do what they like.
pub(crate) fn statements() -> Vec<&'static str> {
    let own = SOURCES
        .iter()
        .map(|source| source.split("#[cfg(test)]").next().unwrap_or_default());
    let literals = own.flat_map(|source| source.split('"').skip(1).step_by(2));
    let sql = |text: &&str| {
        ["SELECT ", "INSERT ", "UPDATE ", "DELETE ", "WITH "]
            .iter()
            .any(|word| text.starts_with(word))
    };
    literals.filter(sql).collect()
}

/// The one statement that contains this.
pub(crate) fn statement(part: &str) -> &'static str {
    let found: Vec<&str> = statements()
        .into_iter()
        .filter(|sql| sql.contains(part))
        .collect();
    assert_eq!(found.len(), 1, "statements with {part}: {found:?}");
    found[0]
}
