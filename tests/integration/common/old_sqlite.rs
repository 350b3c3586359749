//! Runs SQL on SQLite 3.26.0, the oldest library that producers may use. Builds the tool of
//! `tests/old-sqlite` once; knows nothing of the queue.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;

/// The built `old-sqlite` binary. The first call of a test run builds it (a minute, if nothing is
/// there yet).
///
/// # Panics
/// When it cannot be built: without it these tests prove nothing.
pub(crate) fn path() -> &'static Path {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    BUILT.get_or_init(build)
}

/// Runs `sql` on the database file `db`, waiting up to 5 s for a lock: what it printed, or what it
/// complained of.
pub(crate) fn run(db: &Path, sql: &str) -> Result<String, String> {
    let mut child = Command::new(path())
        .arg(db)
        .arg("5000")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|error| format!("{}: {error}", path().display()))?;
    // The tool reads all of its input before it prints; if it has ended early, its own message says
    // more than ours.
    let fed = child
        .stdin
        .take()
        .map(|mut stdin| stdin.write_all(sql.as_bytes()));
    let output = child
        .wait_with_output()
        .map_err(|error| error.to_string())?;
    if !output.status.success() {
        return Err(String::from_utf8_lossy(&output.stderr)
            .trim_end()
            .to_owned());
    }
    fed.transpose().map_err(|error| error.to_string())?;
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Builds under a file lock, so that two runs of the tests wait for one another.
fn build() -> PathBuf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let target = root.join("target/old-sqlite");
    fs::create_dir_all(&target).expect("target/old-sqlite can be made");
    let lock = File::create(target.join(".build-lock")).expect("the build lock can be made");
    lock.lock().expect("the build lock can be taken");
    let status = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| OsString::from("cargo")))
        .args(["build", "--locked", "--quiet", "--manifest-path"])
        .arg(root.join("tests/old-sqlite/Cargo.toml"))
        .arg("--target-dir")
        .arg(&target)
        .env_remove("RUSTFLAGS")
        .status()
        .expect("cargo can be started");
    assert!(status.success(), "tests/old-sqlite did not build: {status}");
    target.join("debug/old-sqlite")
}
