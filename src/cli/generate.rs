//! `generate`: man pages and shell completions, for packagers. Knows nothing of queues.

use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use clap::CommandFactory;
use clap_complete::env::{Bash, EnvCompleter, Fish, Zsh};

use super::{Cli, Exit, Failure, complete};

/// What the first page says beyond the options.
const FIRST_PAGE_END: &str = r#".SH "EXIT STATUS"
0: done. 1: some request did not succeed. 2: wrong usage, or a mistake in the request itself. 3: database.
4: timed out waiting. 5: another daemon is running. 78: bad configuration.
.SH FILES
.TP
\fI/etc/poweryard/poweryard.toml\fR
The config; it lists every key with its default.
.TP
\fI/var/lib/poweryard/queue.db\fR
The queue, an SQLite file into which producers insert rows.
.SH EXAMPLES
.nf
sqlite3 \-cmd '.timeout 5000' /var/lib/poweryard/queue.db \\
    "INSERT INTO power_requests (server_id, action) VALUES ('SERVER', 'stop')"
poweryard enqueue stop SERVER \-\-wait
poweryard status
.fi
.SH "SEE ALSO"
\fI/usr/share/doc/poweryard/README.md\fR, \fI/usr/share/doc/poweryard/docs/\fR, \fBsqlite3\fR(1), \fBsystemctl\fR(1)
"#;

/// Write man pages and shell completions into a folder: man/, bash/, zsh/ and fish/.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example: poweryard generate target/release/pages")]
pub(super) struct GenerateArgs {
    /// The folder to write to; created if it does not exist.
    #[arg(value_name = "DIR")]
    dir: PathBuf,
}

pub(super) fn run(args: &GenerateArgs) -> Result<Exit, Failure> {
    let written = write_all(&args.dir);
    written.map_err(|source| Failure::File {
        what: format!("write to {}", args.dir.display()),
        source,
    })?;
    Ok(Exit::Done)
}

fn write_all(dir: &Path) -> io::Result<()> {
    for (folder, file, shell) in [
        ("bash", "poweryard.bash", &Bash as &dyn EnvCompleter),
        ("zsh", "_poweryard", &Zsh),
        ("fish", "poweryard.fish", &Fish),
    ] {
        let folder = dir.join(folder);
        fs::create_dir_all(&folder)?;
        fs::write(folder.join(file), script(shell)?)?;
    }
    let folder = dir.join("man");
    fs::create_dir_all(&folder)?;
    clap_mangen::generate_to(Cli::command(), &folder)?;
    let mut first = OpenOptions::new()
        .append(true)
        .open(folder.join("poweryard.1"))?;
    first.write_all(FIRST_PAGE_END.as_bytes())
}

/// A script that asks the program for completions, so that it knows the queue.
fn script(shell: &dyn EnvCompleter) -> io::Result<String> {
    let mut script = Vec::new();
    shell.write_registration(
        complete::VARIABLE,
        "poweryard",
        "poweryard",
        "poweryard",
        &mut script,
    )?;
    let script = String::from_utf8(script).map_err(io::Error::other)?;
    Ok(match shell.name() {
        // Where nothing fits, file names do not either.
        "bash" => script.replace(" -o bashdefault", ""),
        // Read for the first time because somebody has pressed the key: that is to be answered, too.
        "zsh" => format!(
            "{script}if [ \"$funcstack[1]\" = _poweryard ]; then\n    _clap_dynamic_completer_poweryard \"$@\"\nfi\n"
        ),
        _ => script,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_command_that_is_shown_has_a_page_and_every_shell_its_file() {
        let dir = tempfile::tempdir().expect("a folder");
        write_all(dir.path()).expect("written");
        for file in [
            "bash/poweryard.bash",
            "zsh/_poweryard",
            "fish/poweryard.fish",
        ] {
            let text = fs::read_to_string(dir.path().join(file)).expect(file);
            assert!(text.contains(complete::VARIABLE), "{file}");
            assert!(!text.contains("default"), "{file} offers file names");
        }
        for page in ["poweryard", "poweryard-serve", "poweryard-db-migrate"] {
            assert!(dir.path().join(format!("man/{page}.1")).exists(), "{page}");
        }
        assert!(!dir.path().join("man/poweryard-generate.1").exists());
        let first = fs::read_to_string(dir.path().join("man/poweryard.1")).expect("read");
        assert!(
            first.contains(".SH \"EXIT STATUS\"") && first.contains("poweryard\\-serve(1)"),
            "{first}"
        );
    }
}
