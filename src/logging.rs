//! Log lines on stderr: how much, in which form. Exactly one line per event. Knows nothing of what
//! is logged.

use std::env;
use std::fs::File;
use std::io::{self, IsTerminal, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;

use tracing::level_filters::LevelFilter;
use tracing::{Level, Metadata, Subscriber};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::ParseError;
use tracing_subscriber::fmt::MakeWriter;

/// What libraries log below this level does not help an operator.
const QUIET_LIBRARIES: &str =
    "sqlx=warn,hyper=warn,hyper_util=warn,reqwest=warn,rustls=warn,mio=warn";

/// `--log-format`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum LogFormat {
    /// For a person: time, level, message, fields.
    #[default]
    Text,
    /// For a machine: one JSON object per line.
    Json,
}

/// Why logging could not be started.
#[derive(Debug, thiserror::Error)]
pub enum LoggingError {
    /// `RUST_LOG` makes no sense.
    #[error(
        "RUST_LOG={value:?} is not a log filter; use a level (error, warn, info, debug, trace), \
         or module=level pairs joined by commas"
    )]
    Filter {
        /// Its value.
        value: String,
        /// What is wrong with it.
        source: ParseError,
    },
    /// Called a second time.
    #[error("logging is already set up")]
    AlreadySet(#[from] tracing::subscriber::SetGlobalDefaultError),
}

/// Sends log lines to stderr from now on, as `RUST_LOG` and `format` say; without `RUST_LOG` from
/// `level` up.
///
/// # Errors
/// `RUST_LOG` is invalid, or logging has been set up before.
pub fn init(format: LogFormat, level: LevelFilter) -> Result<(), LoggingError> {
    let wanted = env::var_os("RUST_LOG").map(|value| value.to_string_lossy().into_owned());
    let filter = filter(wanted.as_deref(), level)?;
    let style = Style::choose(&Surroundings::look());
    tracing::subscriber::set_global_default(subscriber(format, style, filter, io::stderr))?;
    Ok(())
}

/// Libraries log only warnings, even with `RUST_LOG=debug`, unless it names them.
fn filter(rust_log: Option<&str>, level: LevelFilter) -> Result<EnvFilter, LoggingError> {
    let level = level.to_string();
    let wanted = rust_log
        .map(str::trim)
        .filter(|value| !value.is_empty())
        .unwrap_or(&level);
    let invalid = |source| LoggingError::Filter {
        value: wanted.to_owned(),
        source,
    };
    let filter = EnvFilter::try_new(wanted).map_err(invalid)?;
    if filter.max_level_hint() < Some(LevelFilter::INFO) {
        return Ok(filter);
    }
    // Later directives win, so a library that RUST_LOG names is heard.
    EnvFilter::try_new(format!("{QUIET_LIBRARIES},{wanted}")).map_err(invalid)
}

/// The facts that decide about colours and times.
struct Surroundings {
    stderr_is_terminal: bool,
    no_color: bool,
    /// `$JOURNAL_STREAM`: device and inode of the journal's socket, if systemd started us.
    journal_stream: Option<String>,
    /// The same of stderr.
    stderr_stream: Option<String>,
}

impl Surroundings {
    fn look() -> Self {
        let stderr = io::stderr().as_fd().try_clone_to_owned().map(File::from);
        let stream = stderr
            .and_then(|stderr| stderr.metadata())
            .map(|meta| format!("{}:{}", meta.dev(), meta.ino()));
        Self {
            stderr_is_terminal: io::stderr().is_terminal(),
            no_color: env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty()),
            journal_stream: env::var("JOURNAL_STREAM").ok(),
            stderr_stream: stream.ok(),
        }
    }
}

/// How a text line looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Style {
    colour: bool,
    /// The journal keeps its own times, and takes the priority from a `<6>` in front.
    journal: bool,
}

impl Style {
    fn choose(around: &Surroundings) -> Self {
        let journal =
            around.journal_stream.is_some() && around.journal_stream == around.stderr_stream;
        Self {
            colour: around.stderr_is_terminal && !around.no_color && !journal,
            journal,
        }
    }
}

fn subscriber<W>(
    format: LogFormat,
    style: Style,
    filter: EnvFilter,
    writer: W,
) -> Box<dyn Subscriber + Send + Sync>
where
    W: for<'a> MakeWriter<'a> + Send + Sync + 'static,
{
    let writer = OneLine {
        inner: writer,
        journal: style.journal,
    };
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(style.colour)
        .with_target(false)
        .with_writer(writer);
    match format {
        LogFormat::Json => Box::new(
            builder
                .json()
                .with_target(true)
                .flatten_event(true)
                .finish(),
        ),
        LogFormat::Text if style.journal => Box::new(builder.without_time().finish()),
        LogFormat::Text => Box::new(builder.finish()),
    }
}

/// Keeps an event on one line, even if a cloud's message has line breaks.
struct OneLine<M> {
    inner: M,
    journal: bool,
}

impl<'a, M: MakeWriter<'a>> MakeWriter<'a> for OneLine<M> {
    type Writer = LineWriter<M::Writer>;

    fn make_writer(&'a self) -> Self::Writer {
        LineWriter {
            inner: self.inner.make_writer(),
            prefix: "",
        }
    }

    fn make_writer_for(&'a self, meta: &Metadata<'_>) -> Self::Writer {
        let prefix = if self.journal {
            journal_priority(*meta.level())
        } else {
            ""
        };
        LineWriter {
            inner: self.inner.make_writer_for(meta),
            prefix,
        }
    }
}

/// The syslog priority as systemd reads it at a line's beginning (sd-daemon(3)).
fn journal_priority(level: Level) -> &'static str {
    match level {
        Level::ERROR => "<3>",
        Level::WARN => "<4>",
        Level::INFO => "<6>",
        _ => "<7>",
    }
}

/// Gets a whole event in one `write` from the formatter, and passes it on in one.
struct LineWriter<W> {
    inner: W,
    prefix: &'static str,
}

impl<W: Write> Write for LineWriter<W> {
    fn write(&mut self, event: &[u8]) -> io::Result<usize> {
        let body = event.strip_suffix(b"\n").unwrap_or(event);
        let mut line = Vec::with_capacity(self.prefix.len() + event.len() + 8);
        line.extend_from_slice(self.prefix.as_bytes());
        for byte in body {
            match byte {
                b'\n' => line.extend_from_slice(b"\\n"),
                b'\r' => line.extend_from_slice(b"\\r"),
                other => line.push(*other),
            }
        }
        line.push(b'\n');
        self.inner.write_all(&line)?;
        Ok(event.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test may fail by a panic")]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;

    const PLAIN: Style = Style {
        colour: false,
        journal: false,
    };
    const JOURNAL: Style = Style {
        colour: false,
        journal: true,
    };

    #[derive(Clone, Default)]
    struct Captured(Arc<Mutex<Vec<u8>>>);

    impl Write for Captured {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn logged(
        format: LogFormat,
        style: Style,
        rust_log: Option<&str>,
        log: impl FnOnce(),
    ) -> String {
        let captured = Captured::default();
        let writer = captured.clone();
        let subscriber = subscriber(
            format,
            style,
            filter(rust_log, LevelFilter::INFO).unwrap(),
            move || writer.clone(),
        );
        tracing::subscriber::with_default(subscriber, log);
        String::from_utf8(captured.0.lock().unwrap().clone()).unwrap()
    }

    #[test]
    fn an_event_is_one_line_whatever_it_holds() {
        let lines = || tracing::warn!(job.id = "a\r\nb", "first\nsecond {}", "third\n");
        for format in [LogFormat::Text, LogFormat::Json] {
            let text = logged(format, PLAIN, None, lines);
            assert_eq!(text.matches('\n').count(), 1, "{text:?}");
            assert!(
                text.ends_with('\n') && text.contains("WARN") && text.contains("second"),
                "{text:?}"
            );
        }
    }

    #[test]
    fn json_lines_are_objects_with_level_message_and_fields() {
        let text = logged(LogFormat::Json, JOURNAL, None, || {
            tracing::info!(batch.servers = 3, "sent")
        });
        let object: serde_json::Value =
            serde_json::from_str(text.strip_prefix("<6>").unwrap()).unwrap();
        assert_eq!(
            (&object["level"], &object["message"]),
            (&"INFO".into(), &"sent".into())
        );
        assert_eq!(object["batch.servers"], 3);
        assert!(object["timestamp"].is_string());
    }

    #[test]
    fn the_journal_gets_priorities_and_no_times() {
        let text = logged(LogFormat::Text, JOURNAL, None, || {
            tracing::error!("disk full")
        });
        assert_eq!(text, "<3>ERROR disk full\n");
    }

    #[test]
    fn libraries_are_quiet_unless_they_are_named() {
        let log = || {
            tracing::info!(target: "sqlx::query", "from sqlx");
            tracing::debug!("from us");
        };
        assert_eq!(logged(LogFormat::Text, JOURNAL, None, log), "");
        assert_eq!(logged(LogFormat::Text, JOURNAL, Some(""), log), "");
        assert_eq!(
            logged(LogFormat::Text, JOURNAL, Some("debug"), log),
            "<7>DEBUG from us\n"
        );
        assert_eq!(
            logged(LogFormat::Text, JOURNAL, Some("info,sqlx=info"), log),
            "<6> INFO from sqlx\n"
        );
        assert_eq!(
            logged(LogFormat::Text, JOURNAL, Some("off"), || tracing::error!(
                "x"
            )),
            ""
        );
    }

    #[test]
    fn an_invalid_filter_is_a_sentence() {
        let error = filter(Some("poweryard=loud"), LevelFilter::INFO).unwrap_err();
        assert_eq!(
            error.to_string(),
            "RUST_LOG=\"poweryard=loud\" is not a log filter; use a level (error, warn, info, debug, trace), \
             or module=level pairs joined by commas"
        );
    }

    #[test]
    fn colour_is_for_terminals_only_and_the_journal_must_be_ours() {
        let around = |terminal, no_color, journal: Option<&str>| Surroundings {
            stderr_is_terminal: terminal,
            no_color,
            journal_stream: journal.map(str::to_owned),
            stderr_stream: Some("8:77".to_owned()),
        };
        assert_eq!(
            Style::choose(&around(true, false, None)),
            Style {
                colour: true,
                journal: false
            }
        );
        assert_eq!(Style::choose(&around(true, true, None)), PLAIN);
        assert_eq!(Style::choose(&around(false, false, None)), PLAIN);
        assert_eq!(Style::choose(&around(false, false, Some("8:77"))), JOURNAL);
        assert_eq!(Style::choose(&around(false, false, Some("8:1"))), PLAIN);
    }
}
