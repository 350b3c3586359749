//! What the daemon would send, without sending or changing anything: no lock, no write, no call.
//!
//! It sees the queue as it is: rows that become due are released only by a real daemon.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;

use tracing::info;

use super::DaemonError;
use super::clock_check::now;
use super::guards::Look;
use super::windows;
use crate::model::{Hold, Lane, PowerAction, TargetName, UtcMillis, counted};
use crate::plan::{self, Allowance, Choice, Limits};
use crate::settings::{Settings, TargetSettings};
use crate::store::{SnapshotQuery, Store, StoreError};

/// Unknown targets read at once.
const TARGETS_AT_ONCE: u32 = 1000;

/// Logs the plan, and again whenever the queue changes, until `stop` resolves.
///
/// # Errors
/// When the queue is missing, foreign, of another version, or unreadable.
pub async fn dry_run(
    settings: &Settings,
    stop: impl Future<Output = ()>,
) -> Result<(), DaemonError> {
    let path = settings.queue.database.clone();
    let told = tell_plans(settings, &path, stop).await;
    told.map_err(|source| DaemonError::Store { path, source })
}

async fn tell_plans(
    settings: &Settings,
    path: &Path,
    stop: impl Future<Output = ()>,
) -> Result<(), StoreError> {
    let store = Arc::new(Store::open_to_read(path).await?);
    let mut changes = store.changes();
    let mut stop = std::pin::pin!(stop);
    let mut told = Vec::new();
    loop {
        let lines = lines(&store, settings, now().utc).await?;
        if lines != told {
            lines.iter().for_each(|line| info!("{line}"));
            told = lines;
        }
        tokio::select! {
            () = &mut stop => return Ok(()),
            () = changes.changed() => {}
        }
    }
}

/// The plan as sentences, in the order in which batches would leave.
async fn lines(
    store: &Store,
    settings: &Settings,
    now: UtcMillis,
) -> Result<Vec<String>, StoreError> {
    let targets = settings.targets.iter();
    let targets: Vec<(TargetName, u32)> = targets
        .map(|target| (target.name.clone(), target.batch_servers_max))
        .collect();
    let asked = SnapshotQuery {
        default_ttl: settings.queue.default_ttl,
        targets: &targets,
        except: &BTreeSet::new(),
    };
    let seen = store.peek(&asked, now).await?;
    let mut holds = seen.holds.clone();
    holds.extend(own_holds(store, settings, now).await?);
    let mut lines = Vec::new();
    for target in &settings.targets {
        let lanes = seen.lanes.iter();
        let lanes = lanes.filter(|lane| lane.target == target.name).cloned();
        let (leaving, held) = split(target, lanes.collect(), &holds, now);
        for mut lane in leaving {
            let waiting = lane.ready;
            let most = target.batch_servers_max;
            lane.ready = waiting.min(store.count_free(&lane, most, now).await?);
            if lane.ready > 0 {
                lines.push(line(store, target, &lane, now).await?);
            }
            if lane.ready < waiting {
                let held = counted(waiting - lane.ready, "server");
                lines.push(format!(
                    "held: {} of {held} on target \"{}\": the label is paused, or the order's wave has not come",
                    lane.action, target.name
                ));
            }
        }
        for lane in held {
            let servers = servers(lane.ready);
            let name = &target.name;
            let why = holds.iter().find(|hold| hold.covers(&lane, now));
            let why = why.map(|hold| format!(": {}", hold.reason));
            lines.push(format!(
                "held: {} of {servers} on target \"{name}\"{}",
                lane.action,
                why.unwrap_or_default()
            ));
        }
    }
    lines.extend(unknown_targets(store, settings).await?);
    if lines.is_empty() {
        lines.push("nothing would be sent".to_owned());
    }
    Ok(lines)
}

/// The holds that a daemon with these settings would put at this moment.
async fn own_holds(
    store: &Store,
    settings: &Settings,
    now: UtcMillis,
) -> Result<Vec<Hold>, StoreError> {
    let mut holds = Vec::new();
    for target in &settings.targets {
        for action in PowerAction::ALL {
            let state = target.windows.state(*action, now);
            holds.extend(windows::hold(&target.name, *action, state, now));
        }
        for (action, guard) in &target.guards {
            let look = Look {
                target: &target.name,
                action: *action,
                guard: *guard,
            };
            holds.extend(look.at(store, now).await?);
        }
    }
    Ok(holds)
}

/// The lanes that would leave, in that order, and those that are held.
fn split(
    target: &TargetSettings,
    lanes: Vec<Lane>,
    holds: &[Hold],
    now: UtcMillis,
) -> (Vec<Lane>, Vec<Lane>) {
    let mut leaving = Vec::new();
    let mut rest = lanes;
    while let Choice::Go(lane) = choose(target, &rest, holds, now) {
        rest.retain(|other| *other != lane);
        leaving.push(lane);
    }
    (leaving, rest)
}

async fn unknown_targets(store: &Store, settings: &Settings) -> Result<Vec<String>, StoreError> {
    let mut lines = Vec::new();
    let mut last = String::new();
    loop {
        let used = store.targets_after(&last, TARGETS_AT_ONCE).await?;
        for name in &used {
            if settings.targets.iter().all(|target| target.name != *name) {
                lines.push(format!("held: the config has no [targets.{name}]"));
            }
        }
        match used.last() {
            Some(name) => last.clone_from(&name.0),
            None => return Ok(lines),
        }
    }
}

fn choose(target: &TargetSettings, lanes: &[Lane], holds: &[Hold], now: UtcMillis) -> Choice {
    // Lingering only delays; what would go is told at once.
    let limits = Limits {
        batch_servers_max: target.batch_servers_max,
        linger: std::time::Duration::ZERO,
    };
    plan::choose(
        &plan::open_lanes(&target.name, lanes, holds, now),
        limits,
        now,
    )
}

async fn line(
    store: &Store,
    target: &TargetSettings,
    lane: &Lane,
    now: UtcMillis,
) -> Result<String, StoreError> {
    let carried = servers(lane.ready.min(target.batch_servers_max));
    let what = format!("{} of {carried} on target \"{}\"", lane.action, target.name);
    let more = if lane.ready >= target.batch_servers_max {
        ", and more in further batches"
    } else {
        ""
    };
    let first = lane.head_id;
    let limit = budget_limit(store, target, lane, now).await?;
    let protected = if lane.action.interrupts() && !target.protected.is_empty() {
        let protected = counted(target.protected.len(), "protected server");
        format!("; those for {protected} would be rejected")
    } else {
        String::new()
    };
    Ok(format!(
        "would send: {what}, from request {first} on{more}{limit}{protected}"
    ))
}

/// What the target's budget says of this lane, as the end of a sentence.
async fn budget_limit(
    store: &Store,
    target: &TargetSettings,
    lane: &Lane,
    now: UtcMillis,
) -> Result<String, StoreError> {
    let mut budgets = target.budgets.iter();
    let Some((action, budget)) = budgets.find(|(action, _)| *action == lane.action) else {
        return Ok(String::new());
    };
    let since = now.before(budget.span);
    let mut spent = store.spent(&target.name, *action, since..now).await?;
    for (at, _) in &mut spent {
        *at = (*at).min(now);
    }
    Ok(match plan::allowance(*budget, &spent, now) {
        Allowance::Servers(left) if left >= lane.ready => String::new(),
        Allowance::Servers(left) => format!("; the budget allows {left} of them now"),
        Allowance::NoneUntil(until) => {
            format!("; the budget allows none of them before {until}")
        }
    })
}

fn servers(number: u32) -> String {
    counted(number, "server")
}
