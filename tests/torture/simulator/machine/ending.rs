//! The end of a run: nothing is left open, no row is lost, and what is worth counting.

use std::time::Duration;

use super::Machine;
use crate::simulator::{Broken, Summary};
use poweryard::model::Evidence;

/// A daemon tries wrong secrets no more than four times within this.
const WRONG_SECRETS_MAX: Duration = Duration::from_secs(6 * 60);

/// What is unfinished, for the trace.
pub(super) async fn describe_queue(machine: &mut Machine<'_>) -> Result<(), Broken> {
    let rows: Vec<String> = sqlx::query_scalar(
            "SELECT 'unfinished: request ' || id || ' is ' || state || ', gate ' || gate || ', eligible_at ' || ifnull(eligible_at, '-')
                 || ', expires_at ' || ifnull(expires_at, '-') || ', retry_at ' || ifnull(retry_at, '-')
             FROM power_requests WHERE gate IS NOT NULL",
        )
        .fetch_all(&mut machine.connection)
        .await?;
    for row in rows {
        machine.say(|| row);
    }
    Ok(())
}

/// After the end nothing is left open, and no row is lost.
pub(super) async fn check_remains(machine: &mut Machine<'_>) -> Result<(), Broken> {
    let (rows, open, attempts, ends): (i64, i64, i64, i64) = sqlx::query_as(
            "SELECT (SELECT count(*) FROM power_requests), (SELECT count(*) FROM power_requests WHERE gate IS NOT NULL),
                    (SELECT count(*) FROM request_attempts WHERE result IS NULL), (SELECT count(*) FROM round_notes)",
        )
        .fetch_one(&mut machine.connection)
        .await?;
    let inserted = (machine.facts.requests.len() - machine.facts.deleted.len()) as i64;
    if (rows, open, attempts) != (inserted, 0, 0) {
        return Err(Broken(format!(
            "{inserted} rows were inserted and not pruned, and {rows} are left; {open} are not ended, {attempts} attempts are open, {ends} ends are not followed"
        )));
    }
    let noted: i64 = sqlx::query_scalar(
        "SELECT ifnull(sum(requests), 0) FROM operator_actions WHERE action = 'override'",
    )
    .fetch_one(&mut machine.connection)
    .await?;
    let overridden = machine.facts.overridden.len() as u64;
    if machine.summary.restores == 0 && noted.unsigned_abs() < overridden {
        return Err(Broken(format!(
            "{overridden} requests left outside their windows for a reason, and {noted} are noted"
        )));
    }
    // A life that ends before it has stored a refusal cannot know of it the next time.
    // And a secret that stays wrong is tried now and then: all a daemon can do is to leave the
    // lock's time between tries.
    let remembers = machine.summary.crashes == 0
        && machine.steps_of_clock == 0
        && machine.wrong_for < WRONG_SECRETS_MAX;
    if remembers && machine.cloud.key_locks() > 0 {
        return Err(Broken(
            "the access key was locked: too many signatures were refused in a row".to_owned(),
        ));
    }
    Ok(())
}

pub(super) fn sum_up(machine: &mut Machine<'_>) -> Summary {
    let mut summary = std::mem::take(&mut machine.summary);
    for request in machine.facts.requests.values() {
        let evidence = request.evidence.map_or("-", Evidence::as_str);
        *summary
            .ends
            .entry(format!("{} {evidence}", request.state))
            .or_default() += 1;
    }
    summary.commits = machine.fuse.commits();
    summary.calls = machine.calls;
    let waved = machine.facts.requests.values();
    summary.waved = waved.filter(|request| request.wave.is_some()).count() as u64;
    summary.overridden = machine.facts.overridden.len() as u64;
    summary.with_evidence = machine.facts.with_evidence();
    summary.digest = machine.facts.digest;
    summary
}
