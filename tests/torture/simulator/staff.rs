//! Those who order in waves, and those who approve, override, pause, resume, cancel and retry:
//! operators at a shell, over SQL and with the commands' own functions. Owns their SQL.

use std::path::Path;

use sqlx::{Connection, SqliteConnection};

use super::Broken;
use super::draw::large;
use super::facts::{Facts, Moment, Wish};
use super::producer::{self, Producers, insert_row};
use super::rng::Rng;
use poweryard::model::{LetGo, PowerAction, RequestState, TargetName};
use poweryard::store::QueueClient;
use poweryard::store::StoreError;
use poweryard::store::client::{Access, Actor, Approval, Lets, Selection};

/// Requests in one run, with those that operators add.
const REQUESTS_MAX: usize = 200;
const BOB: Actor<'static> = Actor {
    who: "bob",
    reason: None,
};

/// Somebody orders in waves: writes the order, its first requests, both, or more of them.
pub(super) async fn order(
    producers: &mut Producers,
    connection: &mut SqliteConnection,
    facts: &mut Facts,
    rng: &mut Rng,
    (rows, now): (u64, Moment),
) -> Result<String, Broken> {
    let known: Vec<String> = facts.orders.keys().cloned().collect();
    let old = rng.pick(&known).filter(|_| rng.permille(500)).cloned();
    let label = match &old {
        Some(label) => label.clone(),
        None => {
            // One that was pruned keeps its name.
            producers.ordered += 1;
            format!("order-{}", producers.ordered)
        }
    };
    let mut said = format!("order '{label}'");
    let mut tx = connection.begin().await?;
    let order = large::order(rng, now.utc);
    if old.is_none() {
        let waves: Vec<String> = order.waves.iter().map(ToString::to_string).collect();
        let waves = waves.join(if rng.permille(500) { ", " } else { "," });
        said.push_str(&format!(
            ": waves {waves}, failures_max {}, pause {:?}, until {}",
            order.failures_max, order.pause, order.expires_at
        ));
        sqlx::query(
            "INSERT INTO orders (label, waves, failures_max, pause, expires_at) VALUES (?, ?, ?, ?, ?)",
        )
        .bind(&label)
        .bind(waves)
        .bind(order.failures_max.to_string())
        .bind(order.pause.map(|pause| format!("{}s", pause.as_secs())))
        .bind(order.expires_at.to_string())
        .execute(&mut *tx)
        .await?;
        facts.orders.insert(label.clone(), order);
        if rng.permille(200) {
            tx.commit().await?;
            return Ok(said);
        }
    }
    producers.left -= rows;
    let action = producer::action(rng);
    for _ in 0..rows {
        let cycles = rng.permille(200);
        let first = if cycles { PowerAction::Stop } else { action };
        let mut wish = wish(producers, rng, (first, &label), now);
        let same: Vec<i64> = ids(facts, |wish| wish.label.as_deref() == Some(&label));
        if rng.permille(80) {
            wish.after = rng.pick(&same).copied();
        }
        let id = insert_row(&mut tx, rng, &wish, None).await?;
        said.push_str(&format!(" {id}:{} {}", wish.action, wish.server.0));
        facts.inserted(id, wish.clone())?;
        if cycles {
            let second = Wish {
                action: PowerAction::Start,
                after: Some(id),
                not_before: None,
                expires_at: None,
                ..wish
            };
            let id = insert_row(&mut tx, rng, &second, None).await?;
            said.push_str(&format!(" {id}:start"));
            facts.inserted(id, second)?;
        }
    }
    tx.commit().await?;
    Ok(said)
}

fn wish(
    producers: &Producers,
    rng: &mut Rng,
    (action, label): (PowerAction, &str),
    now: Moment,
) -> Wish {
    let (target, server) = producers.place(rng);
    let not_before = rng.permille(100).then(|| now.utc + rng.millis(1, 120_000));
    let expires_at = rng.permille(80);
    let from = not_before.unwrap_or(now.utc);
    Wish {
        target,
        server,
        action,
        not_before,
        expires_at: expires_at.then(|| from + rng.millis(1, 240_000)),
        after: None,
        inserted_at: now,
        priority: if rng.permille(300) {
            rng.between(0, 6) as i64 - 3
        } else {
            0
        },
        label: Some(label.to_owned()),
        has_override: rng.permille(60),
        is_approved: false,
        is_moved: false,
    }
}

fn ids(facts: &Facts, is_meant: impl Fn(&Wish) -> bool) -> Vec<i64> {
    let known = facts.requests.iter();
    known
        .filter(|(id, request)| !facts.deleted.contains(id) && is_meant(&request.wish))
        .map(|(id, _)| *id)
        .collect()
}

/// One act of an operator.
pub(super) async fn act(
    (connection, path): (&mut SqliteConnection, &Path),
    facts: &mut Facts,
    rng: &mut Rng,
    now: Moment,
) -> Result<String, Broken> {
    let labels: Vec<String> = facts
        .requests
        .values()
        .filter_map(|request| request.wish.label.clone())
        .collect();
    let label = rng.pick(&labels).cloned();
    let what = rng.between(0, 12);
    match (what, label) {
        (0, label) => approve(connection, facts, rng, label, Some("alice")).await,
        (1 | 2, label) => approve_by_command(path, facts, rng, label).await,
        (3, label) => approve(connection, facts, rng, label, None).await,
        (4, _) => override_windows(connection, facts, rng).await,
        (5 | 6, Some(label)) => {
            let targets: Vec<TargetName> = facts.limits.targets.keys().cloned().collect();
            let target = rng.pick(&targets).filter(|_| rng.permille(250)).cloned();
            let action = rng.permille(250).then(|| producer::action(rng));
            producer::set_hold(connection, facts, (target, action, Some(label)), now).await
        }
        (7, Some(label)) if rng.permille(300) => cancel(connection, &label).await,
        (8 | 9, Some(label)) => let_wave_go(path, facts, &label, LetGo::Wave).await,
        (10, Some(label)) if rng.permille(300) => {
            let_wave_go(path, facts, &label, LetGo::Rest).await
        }
        (11, _) => change_order(connection, facts, rng, now).await,
        (_, Some(label)) => retry(connection, facts, rng, (&label, now)).await,
        (_, None) => Ok("an operator looks at the queue".to_owned()),
    }
}

/// Approves what is queued now of a label, or of a target and action; or takes that back.
async fn approve(
    connection: &mut SqliteConnection,
    facts: &mut Facts,
    rng: &mut Rng,
    label: Option<String>,
    who: Option<&str>,
) -> Result<String, Broken> {
    let targets: Vec<TargetName> = facts.limits.targets.keys().cloned().collect();
    let target = rng.pick(&targets).cloned();
    let action = producer::action(rng);
    let label = label.filter(|_| rng.permille(500));
    let changed: Vec<i64> = sqlx::query_scalar(
        "UPDATE power_requests SET approved_by = ?1 WHERE state = 'queued' AND (approved_by IS NULL) = (?1 IS NOT NULL)
         AND CASE WHEN ?2 IS NULL THEN target = ?3 AND action = ?4 ELSE label = ?2 END RETURNING id",
    )
    .bind(who)
    .bind(&label)
    .bind(target.as_ref().map(|target| &target.0))
    .bind(action.as_str())
    .fetch_all(connection)
    .await?;
    for id in &changed {
        if let Some(request) = facts.requests.get_mut(id) {
            request.wish.is_approved = who.is_some();
        }
    }
    Ok(format!("approved by {who:?}: {changed:?}"))
}

/// As `approve`, with the number that it shows.
async fn approve_by_command(
    path: &Path,
    facts: &mut Facts,
    rng: &mut Rng,
    label: Option<String>,
) -> Result<String, Broken> {
    let failed = |error: StoreError| Broken(format!("cannot approve: {error}"));
    let targets: Vec<TargetName> = facts.limits.targets.keys().cloned().collect();
    let which = match (label.filter(|_| rng.permille(500)), rng.pick(&targets)) {
        (Some(label), _) => Selection::of_label(label),
        (None, Some(target)) => Selection::of_lane(target.0.clone(), producer::action(rng)),
        (None, None) => return Ok(String::new()),
    };
    let mut client = QueueClient::open(path, Access::Write)
        .await
        .map_err(failed)?;
    let seen = client.unapproved(&which).await.map_err(failed)?;
    let done = client.approve(BOB, &which, &seen).await.map_err(failed)?;
    client.close().await.map_err(failed)?;
    let Approval::Done(done) = done else {
        return Err(Broken(format!(
            "{} requests were seen, and then {done:?}",
            seen.requests()
        )));
    };
    for result in done.results.iter().filter(|result| result.ok) {
        if let Some(request) = facts.requests.get_mut(&result.id) {
            request.wish.is_approved = true;
        }
    }
    Ok(format!("approve {}: {}", which.words(), done.done))
}

async fn override_windows(
    connection: &mut SqliteConnection,
    facts: &mut Facts,
    rng: &mut Rng,
) -> Result<String, Broken> {
    let reason = rng.permille(700).then_some("a leak");
    let queued = facts.requests.iter();
    let queued: Vec<i64> = queued
        .filter(|(_, request)| request.state == RequestState::Queued)
        .map(|(id, _)| *id)
        .collect();
    let Some(&id) = rng.pick(&queued) else {
        return Ok("nothing to override".to_owned());
    };
    sqlx::query("UPDATE power_requests SET override_reason = ? WHERE id = ?")
        .bind(reason)
        .bind(id)
        .execute(connection)
        .await?;
    if let Some(request) = facts.requests.get_mut(&id) {
        request.wish.has_override = reason.is_some();
    }
    Ok(format!("override_reason of {id} = {reason:?}"))
}

async fn cancel(connection: &mut SqliteConnection, label: &str) -> Result<String, Broken> {
    sqlx::query(
        "UPDATE power_requests SET state = 'cancelled' WHERE label = ? AND state = 'queued'",
    )
    .bind(label)
    .execute(connection)
    .await?;
    Ok(format!("cancel --label {label}"))
}

/// As `resume --label`, with or without `--rest`.
async fn let_wave_go(
    path: &Path,
    facts: &mut Facts,
    label: &str,
    what: LetGo,
) -> Result<String, Broken> {
    let failed = |error: StoreError| Broken(format!("cannot resume: {error}"));
    let mut client = QueueClient::open(path, Access::Write)
        .await
        .map_err(failed)?;
    let which = Selection::of_label(label);
    let resumed = client.resume(BOB, &which, what).await.map_err(failed)?;
    client.close().await.map_err(failed)?;
    let pause = (None, None, Some(label.to_owned()));
    let had_pause = facts.held.remove(&pause);
    if had_pause != (resumed.pauses > 0) || had_pause != resumed.lets.is_none() {
        return Err(Broken(format!(
            "resume --label {label}, paused: {had_pause}, says {resumed:?}"
        )));
    }
    let Some(lets) = resumed.lets else {
        return Ok(format!("resume --label {label} ends its pause"));
    };
    let order = facts.orders.get_mut(label);
    let is_plausible = match (&lets, &order) {
        (Lets::NoOrder, order) => order.is_none(),
        (Lets::Done, order) => order.as_ref().is_some_and(|order| order.is_done),
        (Lets::OnItsWay(_) | Lets::Goes(_), order) => {
            order.as_ref().is_some_and(|order| !order.is_done)
        }
    };
    if !is_plausible {
        return Err(Broken(format!("resume --label {label} says {lets:?}")));
    }
    if let (Lets::Goes(_), Some(order)) = (&lets, order)
        && order.let_go != Some(LetGo::Rest)
    {
        order.let_go = Some(what);
    }
    Ok(format!("resume --label {label} ({what}): {lets:?}"))
}

/// Changes an order, which works until it has begun.
async fn change_order(
    connection: &mut SqliteConnection,
    facts: &mut Facts,
    rng: &mut Rng,
    now: Moment,
) -> Result<String, Broken> {
    let labels: Vec<String> = facts.orders.keys().cloned().collect();
    let Some(label) = rng.pick(&labels) else {
        return Ok("no order to change".to_owned());
    };
    let new = large::order(rng, now.utc);
    let waves: Vec<String> = new.waves.iter().map(ToString::to_string).collect();
    let changed = sqlx::query(
        "UPDATE orders SET waves = ?2, failures_max = ?3, expires_at = ?4 WHERE label = ?1",
    )
    .bind(label)
    .bind(waves.join(","))
    .bind(new.failures_max.to_string())
    .bind(new.expires_at.to_string())
    .execute(connection)
    .await;
    let Some(order) = facts.orders.get_mut(label) else {
        return Ok(String::new());
    };
    if changed.is_ok() == order.has_begun {
        return Err(Broken(format!(
            "order '{label}' is changed: {changed:?}; begun: {}",
            order.has_begun
        )));
    }
    if changed.is_ok() {
        order.waves = new.waves;
        order.failures_max = new.failures_max;
        order.expires_at = new.expires_at;
    }
    Ok(format!("order '{label}' is changed: {}", changed.is_ok()))
}

/// As `retry --label`: a new request for each that did not succeed and has no later one.
async fn retry(
    connection: &mut SqliteConnection,
    facts: &mut Facts,
    rng: &mut Rng,
    (label, now): (&str, Moment),
) -> Result<String, Broken> {
    use RequestState::{Cancelled, Expired, Failed, Unknown};
    let states = [Failed, Unknown, Cancelled, Expired];
    let most = rng.between(1, 4) as usize;
    let mut again: Vec<Wish> = Vec::new();
    for (id, request) in &facts.requests {
        let place = request.wish.place();
        let mut later = facts.requests.range(id + 1..);
        let has_later = later.any(|(_, later)| later.wish.place() == place);
        if request.wish.label.as_deref() == Some(label)
            && states.contains(&request.state)
            && !has_later
            && again.len() < most
        {
            again.push(request.wish.clone());
        }
    }
    if facts.requests.len() > REQUESTS_MAX {
        again.clear();
    }
    let mut tx = connection.begin().await?;
    let mut said = format!("retry --label {label}:");
    for old in again {
        let wish = Wish {
            not_before: None,
            expires_at: None,
            after: None,
            inserted_at: now,
            has_override: false,
            is_approved: false,
            is_moved: false,
            ..old
        };
        let id = insert_row(&mut tx, rng, &wish, None).await?;
        said.push_str(&format!(" {id}:{} {}", wish.action, wish.server.0));
        facts.inserted(id, wish)?;
    }
    tx.commit().await?;
    Ok(said)
}

/// Everything is approved, and all waves go.
pub(super) async fn let_all_go(
    connection: &mut SqliteConnection,
    path: &Path,
    facts: &mut Facts,
) -> Result<(), Broken> {
    sqlx::query("UPDATE power_requests SET approved_by = 'bob' WHERE state = 'queued'")
        .execute(connection)
        .await?;
    let requests = facts.requests.values_mut();
    for request in requests.filter(|request| request.state == RequestState::Queued) {
        request.wish.is_approved = true;
    }
    let labels: Vec<String> = facts.orders.keys().cloned().collect();
    for label in labels {
        let_wave_go(path, facts, &label, LetGo::Rest).await?;
    }
    Ok(())
}
