//! `/metrics`: the daemon's counters, and what the queue, the disk and the secret files show at
//! present.
//!
//! The queue is read over a connection of its own, at a cost that depends on the unfinished
//! requests only; the files' metadata is read by path, and they are never opened. Targets that are
//! not in the config share one label, because producers could invent any number of them.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::Response;
use prometheus_client::encoding::text::encode_registry;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

use super::glance::now;
use super::{Site, prometheus_text, say};
use crate::meter::TargetFacts;
use crate::model::{HoldKind, OrderState, PowerAction, RequestState, TargetName, UtcMillis};
use crate::settings::SecretStamp;
use crate::store::client::{Access, HoldRecord, OldestReady, OrderRecord, OverviewCount};
use crate::store::{ExportNote, QueueClient, StoreError, beside, folder_of};

/// The label of a hold on everything; no target can have this name.
const ALL: &str = "(all)";
/// The label of targets that are not in the config.
const UNKNOWN: &str = "(unknown)";

type Labels = Vec<(&'static str, String)>;

/// What the queue says.
pub(super) struct Reading {
    overview: Vec<OverviewCount>,
    ready: Vec<OldestReady>,
    holds: Vec<HoldRecord>,
    orders: Vec<OrderRecord>,
    export: ExportNote,
}

pub(super) async fn answer(State(site): State<Arc<Site>>) -> Response {
    let database = site.database.clone();
    let reading = site
        .reading
        .get(async move { Reading::take(&database).await })
        .await;
    let mut text = site.meter.text();
    let mut sheet = Sheet(Registry::with_prefix("poweryard"));
    let targets = site.meter.targets();
    sheet.process(&site);
    sheet.targets(&targets);
    sheet.secrets(&site);
    sheet.certificate(&site);
    sheet.files(&site.database);
    sheet.readable(reading.is_ok());
    if let Ok(reading) = reading {
        sheet.queue(&reading, &targets, now());
    }
    // Writing to a String cannot fail.
    let _ = encode_registry(&mut text, &sheet.0);
    say(
        StatusCode::OK,
        prometheus_text::MEDIA_TYPE,
        prometheus_text::from_open_metrics(&text),
    )
}

impl Reading {
    async fn take(database: &Path) -> Result<Self, StoreError> {
        let mut client = QueueClient::open(database, Access::Read).await?;
        let holds = client.holds(now()).await?;
        let ready = client.oldest_ready().await?;
        let overview = client.overview().await?;
        let orders = client.open_orders().await?;
        let export = client.export_note().await?;
        client.close().await?;
        Ok(Self {
            overview,
            ready,
            holds,
            orders,
            export,
        })
    }
}

/// The gauges of one answer.
struct Sheet(Registry);

impl Sheet {
    fn counts(&mut self, name: &str, help: &str, values: impl IntoIterator<Item = (Labels, i64)>) {
        let gauges: Family<Labels, Gauge> = Family::default();
        for (labels, value) in values {
            gauges.get_or_create(&labels).inc_by(value);
        }
        self.0.register(name, help, gauges);
    }

    fn fractions(
        &mut self,
        name: &str,
        help: &str,
        values: impl IntoIterator<Item = (Labels, f64)>,
    ) {
        let gauges: Family<Labels, Gauge<f64, AtomicU64>> = Family::default();
        for (labels, value) in values {
            gauges.get_or_create(&labels).set(value);
        }
        self.0.register(name, help, gauges);
    }

    fn process(&mut self, site: &Site) {
        let progress = site.meter.progress();
        let began = SystemTime::now() - progress.began.elapsed();
        let began = began
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default()
            .as_secs_f64();
        self.counts(
            "build_info",
            "Always 1",
            [(label("version", env!("CARGO_PKG_VERSION")), 1)],
        );
        self.fractions(
            "start_time_seconds",
            "When the daemon started, in seconds since 1970",
            [(vec![], began)],
        );
        let last_good = progress.good.unwrap_or(progress.began);
        let age = last_good.elapsed().as_secs_f64();
        let help = "Time since the last round in which the database worked, or since the start; an idle loop makes a round every 5 s";
        self.fractions("last_good_round_age_seconds", help, [(vec![], age)]);
        let help = "1 while the database fails: nothing is sent, and answers wait in memory";
        self.counts(
            "database_trouble",
            help,
            [(vec![], progress.trouble.into())],
        );
        self.counts(
            "unsaved_answers",
            "Answers of the cloud that are not yet stored in the database",
            [(vec![], whole(progress.unsaved))],
        );
        self.counts(
            "open_calls",
            "Batches whose call or look is in progress",
            [(vec![], whole(progress.open_calls))],
        );
    }

    fn targets(&mut self, targets: &BTreeMap<TargetName, TargetFacts>) {
        let help =
            "Submit calls a second allowed at present: 429s lower it, quiet time raises it again";
        self.fractions(
            "pace_calls_per_second",
            help,
            each_target(targets, |facts| f64::from(facts.pace) / 60.0),
        );
        let help = "Submit calls a second allowed by submits_per_minute";
        self.fractions(
            "pace_configured_calls_per_second",
            help,
            each_target(targets, |facts| f64::from(facts.configured) / 60.0),
        );
        let help = "1 from a throttled or failed submit call until one is answered";
        self.counts(
            "breaker_open",
            help,
            each_target(targets, |facts| facts.breaker.into()),
        );
        let help = "How often in a row the cloud refused the key of this target; after more than five it locks the key";
        self.counts(
            "credentials_refusals",
            help,
            each_target(targets, |facts| facts.refusals.into()),
        );
    }

    fn secrets(&mut self, site: &Site) {
        let targets = site.targets.lock().unwrap_or_else(PoisonError::into_inner);
        let ages: Vec<(Labels, f64)> = targets
            .0
            .iter()
            .filter_map(|of| {
                Some((
                    target(&of.name.0),
                    seconds_since(SecretStamp::take(of, &targets.1).modified()?),
                ))
            })
            .collect();
        let help = "Time since the newest of the target's secret files changed; systemd writes its copies at every start";
        self.fractions("credentials_age_seconds", help, ages);
    }

    fn certificate(&mut self, site: &Site) {
        let entrance = site.entrance();
        let ends_at = entrance.and_then(|entrance| entrance.certificate_ends_at());
        // The difference of two times in milliseconds is exact as a fraction.
        let left = ends_at.map(|at| (vec![], (at.0 - now().0) as f64 / 1000.0));
        let help = "Time until the certificate of [listen] ends; negative once it has ended";
        self.fractions("certificate_remaining_seconds", help, left);
    }

    /// By path: a handle of our own on the database would drop SQLite's locks when closed.
    fn files(&mut self, database: &Path) {
        self.counts(
            "database_size_bytes",
            "Size of the queue's file",
            [(vec![], file_size(database))],
        );
        let help = "Size of the queue's -wal; up to 64 MiB is usual";
        self.counts(
            "wal_size_bytes",
            help,
            [(vec![], file_size(&beside(database, "-wal")))],
        );
        let folder = folder_of(database);
        if let Ok(disk) = rustix::fs::statvfs(folder) {
            let bytes = |blocks: u64| {
                i64::try_from(blocks.saturating_mul(disk.f_frsize)).unwrap_or(i64::MAX)
            };
            let help = "Free space on the queue's disk that the daemon can use";
            self.counts("disk_free_bytes", help, [(vec![], bytes(disk.f_bavail))]);
            self.counts(
                "disk_size_bytes",
                "Size of the queue's disk",
                [(vec![], bytes(disk.f_blocks))],
            );
        }
    }

    fn readable(&mut self, readable: bool) {
        let help =
            "0 while the queue's numbers are missing here because it could not be read in time";
        self.counts("database_readable", help, [(vec![], readable.into())]);
    }

    fn queue(
        &mut self,
        reading: &Reading,
        targets: &BTreeMap<TargetName, TargetFacts>,
        now: UtcMillis,
    ) {
        let named = |name: &str| {
            if targets.contains_key(&TargetName(name.to_owned())) {
                name.to_owned()
            } else {
                UNKNOWN.to_owned()
            }
        };
        let unfinished = [RequestState::Queued, RequestState::Running];
        let none = targets.keys().flat_map(|name| {
            PowerAction::ALL
                .iter()
                .map(move |action| (name.0.clone(), action.as_str()))
        });
        let none: BTreeSet<(String, &str)> = none.collect();

        let zeros = none.iter().flat_map(|(name, action)| {
            unfinished
                .iter()
                .map(move |state| (lane(name, action).and("state", state.as_str()), 0))
        });
        let counts = reading.overview.iter().map(|row| {
            (
                lane(&named(&row.target), &row.action).and("state", &row.state),
                row.count,
            )
        });
        self.counts(
            "requests",
            "Unfinished requests by state",
            zeros.chain(counts),
        );

        let mut oldest: BTreeMap<(String, &str), f64> =
            none.iter().map(|lane| (lane.clone(), 0.0)).collect();
        for ready in &reading.ready {
            if !reading
                .holds
                .iter()
                .any(|hold| hold.covers(&ready.target, &ready.action))
            {
                let age = oldest
                    .entry((named(&ready.target), &ready.action))
                    .or_default();
                *age = age.max(waited(ready, now).as_secs_f64());
            }
        }
        let help = "Age of the oldest request that could be sent now; 0 if there is none. Held requests do not count";
        let ages = oldest
            .iter()
            .map(|((name, action), age)| (lane(name, action), *age));
        self.fractions("oldest_ready_age_seconds", help, ages);

        let kinds = HoldKind::ALL.iter().map(|kind| kind.as_str());
        let zeros = kinds.flat_map(|kind| {
            targets
                .keys()
                .map(move |name| (target(&name.0).and("kind", kind), 0))
        });
        let holds = reading.holds.iter().map(|hold| {
            let name = hold.target.as_deref().map_or(ALL.to_owned(), named);
            let known = HoldKind::ALL.iter().any(|kind| kind.as_str() == hold.kind);
            (
                target(&name).and("kind", if known { &hold.kind } else { "other" }),
                1,
            )
        });
        self.counts(
            "holds",
            "Holds: reasons why requests are not sent, by kind",
            zeros.chain(holds),
        );
        self.orders(&reading.orders);
        let help = "1: old requests are not deleted, because they cannot be written down first (queue.export_before_prune)";
        let failed = reading.export.error.is_some();
        self.counts("export_failed", help, [(vec![], failed.into())]);
    }

    fn orders(&mut self, orders: &[OrderRecord]) {
        let states = [OrderState::Open, OrderState::Held];
        let zeros = states.map(|state| (label("state", state.as_str()), 0));
        let counts = orders.iter().filter_map(|order| {
            let state: OrderState = order.state.parse().ok()?;
            Some((label("state", state.as_str()), 1))
        });
        self.counts(
            "orders",
            "Orders with waves that are not done, by state",
            zeros.into_iter().chain(counts),
        );
    }
}

fn waited(ready: &OldestReady, now: UtcMillis) -> Duration {
    let since = ready.eligible_at.as_ref().unwrap_or(&ready.created_at);
    since
        .parse()
        .map_or(Duration::ZERO, |since| now.since(since))
}

fn label(name: &'static str, value: &str) -> Labels {
    vec![(name, value.to_owned())]
}

fn each_target<T>(
    targets: &BTreeMap<TargetName, TargetFacts>,
    value: fn(&TargetFacts) -> T,
) -> impl Iterator<Item = (Labels, T)> {
    targets
        .iter()
        .map(move |(name, facts)| (target(&name.0), value(facts)))
}

fn target(name: &str) -> Labels {
    label("target", name)
}

fn lane(name: &str, action: &str) -> Labels {
    target(name).and("action", action)
}

trait And {
    /// With one label more.
    fn and(self, name: &'static str, value: &str) -> Self;
}

impl And for Labels {
    fn and(mut self, name: &'static str, value: &str) -> Self {
        self.push((name, value.to_owned()));
        self
    }
}

fn whole(number: usize) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

fn seconds_since(time: SystemTime) -> f64 {
    SystemTime::now()
        .duration_since(time)
        .unwrap_or_default()
        .as_secs_f64()
}

/// In bytes; 0 if the file cannot be found.
fn file_size(path: &Path) -> i64 {
    std::fs::metadata(path).map_or(0, |meta| i64::try_from(meta.len()).unwrap_or(i64::MAX))
}
