//! What the examples of one page act on: a folder in place of `/etc` and `/var`, a simulated cloud,
//! a daemon, a connection to its queue, and the programs of the system.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use poweryard::sim::{Scenario, SimCloud};
use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection};
use sqlx::{AssertSqlSafe, ConnectOptions, Row};
use tempfile::TempDir;

use super::page::root;
use crate::common::process::{Daemon, poweryard, until};
use crate::common::{PATIENCE, PROJECT};

/// The cloud of the pages: the default one, but in a hurry.
const SCENARIO: &str = "[bms]\noperation_ms = [300, 400]\n[clouddc]\noperation_ms = [300, 400]\n";

/// Folders that the pages take for granted.
const FOLDERS: &[&str] = &[
    "work",
    "etc/poweryard",
    "etc/slurm",
    "usr/local/bin",
    "usr/local/sbin",
    "var/backups/poweryard",
    "var/lib/poweryard",
];

/// Programs that few machines have, or that would leave traces outside of the test's folder.
const STAND_INS: &[(&str, &str)] = &[
    (
        "scontrol",
        "#!/bin/sh\n# show hostnames node1,node2\necho \"$3\" | tr , '\\n'\n",
    ),
    ("logger", "#!/bin/sh\necho \"$@\" >>logged\n"),
];

/// What a program said, and how it ended.
pub(crate) struct Said {
    /// Its standard output, with the paths and addresses as the page has them.
    pub(crate) text: String,
    /// The same with its standard error, for messages of this test.
    pub(crate) all: String,
    pub(crate) code: Option<i32>,
}

pub(crate) struct World {
    folder: TempDir,
    /// What is printed in a page, and what it is here.
    places: Vec<(String, String)>,
    _cloud: SimCloud,
    _daemon: Daemon,
    queue: SqliteConnection,
    background: Vec<Child>,
}

impl World {
    /// `tokens`: the daemon lets in only those who have the token of the page.
    pub(crate) async fn new(tokens: bool) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let here = folder.path().display().to_string();
        let scenario = Scenario::from_toml(SCENARIO).expect("a valid scenario");
        let cloud = SimCloud::start(([127, 0, 0, 1], 0).into(), scenario)
            .await
            .expect("a free port");
        let listen = free_address();
        for made in FOLDERS {
            fs::create_dir_all(folder.path().join(made)).expect("made");
        }
        fs::set_permissions(
            folder.path().join("var/lib/poweryard"),
            fs::Permissions::from_mode(0o3770),
        )
        .expect("set");
        std::os::unix::fs::symlink(root().join("config"), folder.path().join("work/config"))
            .expect("linked");
        crate::common::secret(
            &folder.path().join("etc/poweryard"),
            "access_key",
            "POWERYARDSIMAK",
        );
        crate::common::secret(
            &folder.path().join("etc/poweryard"),
            "secret_key",
            "poweryard-sim-secret-key",
        );
        crate::common::secret(
            &folder.path().join("etc/poweryard"),
            "token-rack-7",
            "a-token-of-32-hexadecimal-digits",
        );
        let listen_table = listen_table(&here, &listen, tokens);
        let config = folder.path().join("etc/poweryard/poweryard.toml");
        fs::write(
            &config,
            config_text(&here, &cloud.base_url(), &listen_table),
        )
        .expect("written");
        for (name, script) in STAND_INS {
            let path = folder.path().join("usr/local/bin").join(name);
            fs::write(&path, script).expect("written");
            fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("set");
        }
        let places = [
            ("cargo run --release -- ", "poweryard "),
            ("/usr/bin/poweryard", env!("CARGO_BIN_EXE_poweryard")),
            ("/etc/", &format!("{here}/etc/")),
            ("/var/", &format!("{here}/var/")),
            ("/usr/local/", &format!("{here}/usr/local/")),
            ("127.0.0.1:8080", &free_address()),
            ("127.0.0.1:9642", &listen),
        ];
        let places = places
            .map(|(printed, is)| (printed.to_owned(), is.to_owned()))
            .to_vec();
        let daemon = Daemon::start(&config);
        let queue = connect(&folder.path().join("var/lib/poweryard/queue.db")).await;
        until("the page can be read", || {
            std::net::TcpStream::connect(&listen).is_ok()
        })
        .await;
        Self {
            folder,
            places,
            _cloud: cloud,
            _daemon: daemon,
            queue,
            background: Vec::new(),
        }
    }

    /// `text` of a page with the paths and addresses that it means here.
    pub(crate) fn here(&self, text: &str) -> String {
        self.places
            .iter()
            .fold(text.to_owned(), |text, (printed, is)| {
                text.replace(printed, is)
            })
    }

    /// `text` of a program with the paths and addresses that a page prints.
    fn as_printed(&self, text: &str) -> String {
        let addresses = self
            .places
            .iter()
            .filter(|(printed, _)| printed.starts_with("127"));
        let text = addresses.fold(text.to_owned(), |text, (printed, is)| {
            text.replace(is, printed)
        });
        text.replace(&self.folder.path().display().to_string(), "")
    }

    /// Where a file of the page is: a name alone is in the folder in which commands run.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.work().join(self.here(name))
    }

    fn work(&self) -> PathBuf {
        self.folder.path().join("work")
    }

    /// Writes a file of the page, executable if it begins with `#!`.
    pub(crate) fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.path(name);
        fs::create_dir_all(path.parent().expect("it is in a folder")).expect("made");
        fs::write(&path, self.here(text)).expect("written");
        if text.starts_with("#!") {
            fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("set");
        }
        path
    }

    /// Runs a program of the system to its end, or for a minute and a half.
    pub(crate) fn run(&self, program: &str, args: &[&str]) -> Said {
        let output = self
            .command("timeout")
            .arg("90")
            .arg(program)
            .args(args)
            .output()
            .expect("it runs");
        let text = self.as_printed(&String::from_utf8_lossy(&output.stdout));
        let all = format!(
            "{text}{}",
            self.as_printed(&String::from_utf8_lossy(&output.stderr))
        );
        Said {
            text,
            all,
            code: output.status.code(),
        }
    }

    /// Starts a shell command that goes on until the page ends, and waits until it has printed its
    /// first line.
    pub(crate) async fn run_in_background(&mut self, script: &str) {
        let output = self.work().join("background");
        let file = fs::File::create(&output).expect("a file");
        // `exec`, so that the child is the program itself.
        let child = self
            .command("sh")
            .arg("-c")
            .arg(format!("exec {script}"))
            .stdout(file)
            .spawn()
            .expect("it starts");
        self.background.push(child);
        until("it prints a line", || {
            fs::read_to_string(&output).is_ok_and(|text| text.contains('\n'))
        })
        .await;
    }

    fn command(&self, program: &str) -> Command {
        let folder = Path::new(env!("CARGO_BIN_EXE_poweryard"))
            .parent()
            .expect("it is in a folder")
            .to_owned();
        let path = std::env::var_os("PATH").unwrap_or_default();
        let own = [folder, self.folder.path().join("usr/local/bin")];
        let path = std::env::join_paths(own.into_iter().chain(std::env::split_paths(&path)))
            .expect("a path");
        let mut command = Command::new(program);
        for (name, _) in poweryard().get_envs() {
            command.env_remove(name);
        }
        command.current_dir(self.work()).stdin(Stdio::null());
        command
            .env("PATH", path)
            .env("USER", "alice")
            .env("LC_ALL", "C.UTF-8")
            .env("PYTHONDONTWRITEBYTECODE", "1");
        command.env(
            "POWERYARD_CONFIG",
            self.path("/etc/poweryard/poweryard.toml"),
        );
        command
    }

    /// Runs SQL as one client that stays connected; the rows as the `sqlite3` program prints them.
    pub(crate) async fn sql(&mut self, text: &str) -> Result<String, sqlx::Error> {
        let rows = sqlx::raw_sql(AssertSqlSafe(text))
            .fetch_all(&mut self.queue)
            .await?;
        let mut printed = String::new();
        for row in rows {
            let fields: Result<Vec<Option<String>>, _> =
                (0..row.len()).map(|at| row.try_get_unchecked(at)).collect();
            let fields: Vec<String> = fields?.into_iter().map(Option::unwrap_or_default).collect();
            printed.push_str(&fields.join("|"));
            printed.push('\n');
        }
        Ok(printed)
    }

    /// How many requests there are.
    pub(crate) async fn requests(&mut self) -> String {
        self.sql("SELECT count(*) FROM power_requests")
            .await
            .expect("readable")
    }
}

impl Drop for World {
    fn drop(&mut self) {
        for child in &mut self.background {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

fn listen_table(here: &str, listen: &str, tokens: bool) -> String {
    let mut table = format!("[listen]\naddress = \"{listen}\"\n");
    if tokens {
        table.push_str(&format!(
            "[[listen.tokens]]\nname = \"rack-7\"\nrole = \"operator\"\ntoken_file = \"{here}/etc/poweryard/token-rack-7\"\n"
        ));
    }
    table
}

/// A config such as the pages', for the simulated cloud.
fn config_text(here: &str, endpoint: &str, listen_table: &str) -> String {
    let mut text =
        format!("[queue]\ndatabase = \"{here}/var/lib/poweryard/queue.db\"\n{listen_table}");
    for service in ["bms", "clouddc"] {
        let name = if service == "bms" { "default" } else { service };
        text.push_str(&format!(
            "[targets.{name}]\nservice = \"{service}\"\nendpoint = \"{endpoint}\"\nproject_id = \"{PROJECT}\"\n\
             allow_http = true\nsubmits_per_minute = 6000\nfirst_look = \"20ms\"\nlook_interval_max = \"100ms\"\n\
             settle_time = \"1s\"\n[targets.{name}.auth]\nkind = \"aksk\"\n\
             access_key_file = \"{here}/etc/poweryard/access_key\"\nsecret_key_file = \"{here}/etc/poweryard/secret_key\"\n"
        ));
    }
    text
}

/// A loopback address that nobody has at this moment.
fn free_address() -> String {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
    listener.local_addr().expect("an address").to_string()
}

async fn connect(queue: &Path) -> SqliteConnection {
    // The daemon makes the file and then its tables.
    until("the queue is there", || {
        fs::metadata(queue).is_ok_and(|file| file.len() > 0)
    })
    .await;
    let options = SqliteConnectOptions::new()
        .filename(queue)
        .busy_timeout(PATIENCE)
        .disable_statement_logging();
    let ends = Instant::now() + PATIENCE;
    while Instant::now() < ends {
        if let Ok(mut connection) = options.connect().await
            && sqlx::query("SELECT 1 FROM power_requests")
                .fetch_optional(&mut connection)
                .await
                .is_ok()
        {
            return connection;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("the daemon did not make its queue");
}
