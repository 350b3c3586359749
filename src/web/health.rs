//! `/healthz`: does the daemon's loop make progress? `/readyz`: can the daemon send? Pure except
//! for the clock; does not read the queue.

use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::Response;

use super::{PLAIN, Site, say};
use crate::meter::LoopProgress;

/// An idle loop makes a round every 5 s; with a locked database each statement takes another 5 s.
const STUCK_AFTER: Duration = Duration::from_secs(60);
/// Three rounds of an idle loop.
const READY_WITHIN: Duration = Duration::from_secs(15);

pub(super) async fn moves(State(site): State<Arc<Site>>) -> Response {
    respond(judge_moves(&site.meter.progress(), Instant::now()))
}

pub(super) async fn ready(State(site): State<Arc<Site>>) -> Response {
    respond(judge_ready(&site.meter.progress(), Instant::now()))
}

fn respond(judgement: Result<String, String>) -> Response {
    let (status, sentence) = match judgement {
        Ok(sentence) => (StatusCode::OK, sentence),
        Err(sentence) => (StatusCode::SERVICE_UNAVAILABLE, sentence),
    };
    say(status, PLAIN, sentence + "\n")
}

fn judge_moves(progress: &LoopProgress, now: Instant) -> Result<String, String> {
    let since = now.saturating_duration_since(progress.moved.unwrap_or(progress.began));
    if since < STUCK_AFTER {
        Ok(format!("ok: the loop moved {} s ago", since.as_secs()))
    } else {
        Err(format!("the loop has not moved for {} s", since.as_secs()))
    }
}

/// A hold does not make the daemon unready: other targets continue, and held requests wait as
/// intended.
fn judge_ready(progress: &LoopProgress, now: Instant) -> Result<String, String> {
    let Some(good) = progress.good else {
        return Err("no round has succeeded yet".to_owned());
    };
    let since = now.saturating_duration_since(good).as_secs();
    if progress.trouble {
        return Err(format!(
            "the database fails; the last good round was {since} s ago"
        ));
    }
    if since < READY_WITHIN.as_secs() {
        Ok(format!("ready: the last good round was {since} s ago"))
    } else {
        Err(format!("the last good round was {since} s ago"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ready_needs_a_good_round_and_healthy_only_a_moving_loop() {
        let began = Instant::now();
        let after = |seconds| began + Duration::from_secs(seconds);
        let fresh = LoopProgress {
            began,
            moved: None,
            good: None,
            trouble: false,
            unsaved: 0,
            open_calls: 0,
        };
        assert!(judge_moves(&fresh, after(10)).is_ok() && judge_ready(&fresh, after(10)).is_err());
        assert!(
            judge_moves(&fresh, after(61)).is_err(),
            "it never began to move"
        );
        let good = LoopProgress {
            moved: Some(after(10)),
            good: Some(after(10)),
            ..fresh
        };
        assert!(judge_ready(&good, after(24)).is_ok() && judge_ready(&good, after(25)).is_err());
        let trouble = LoopProgress {
            moved: Some(after(20)),
            trouble: true,
            ..good
        };
        assert!(
            judge_moves(&trouble, after(21)).is_ok() && judge_ready(&trouble, after(21)).is_err()
        );
        assert!(judge_moves(&good, after(71)).is_err() && judge_ready(&good, after(71)).is_err());
    }
}
