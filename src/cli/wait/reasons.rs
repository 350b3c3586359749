//! Why nothing moves, in a few sentences that do not change while nothing changes. Reads nothing.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::cli::ages::short_span;
use crate::model::UtcMillis;
use crate::store::client::{FollowedBatch, UnsentReason};

/// Different sentences that are shown.
const SHOWN_MAX: usize = 3;
/// A batch that takes this many times as long as usual is worth a sentence.
const LATE_FACTOR: u32 = 2;
/// No batch is called late before this.
const LATE_MIN: Duration = Duration::from_secs(10);

/// Reasons that name one request or time, and how many of them are told together.
const KINDS: [(&str, &str); 4] = [
    (
        "behind request ",
        "behind other requests of the same servers",
    ),
    ("waits for request ", "waits for other requests"),
    ("retry at ", "retry at "),
    ("not due until ", "not due until "),
];

/// What is known when the sentences are made.
#[derive(Debug, Clone, Copy)]
pub(super) struct Situation<'a> {
    /// No daemon runs.
    pub(super) is_without_daemon: bool,
    /// The reasons of the queued requests that were looked at.
    pub(super) waiting: &'a [UnsentReason],
    /// How many requests are queued; more than were looked at if there are very many.
    pub(super) queued: i64,
    /// The batches that carry the others.
    pub(super) batches: &'a [FollowedBatch],
    /// The present time.
    pub(super) now: UtcMillis,
}

impl Situation<'_> {
    /// The sentences; none if all only wait for their turn or for the cloud's usual time.
    pub(super) fn sentences(&self) -> Vec<String> {
        let mut said = Vec::new();
        if self.is_without_daemon {
            said.push("no daemon runs on this queue; nothing is sent until one does".to_owned());
        }
        let reasons = self.told_together();
        for (reason, count) in &reasons {
            said.push(if *count == self.queued {
                format!("not sent yet: {reason}")
            } else {
                format!("{count} not sent yet: {reason}")
            });
        }
        for open in self.batches {
            said.extend(trouble(open, self.now));
        }
        let more = said.len().saturating_sub(SHOWN_MAX);
        said.truncate(SHOWN_MAX);
        if more > 0 {
            said.push(format!(
                "and {more} more reasons; `poweryard status` shows all"
            ));
        }
        said
    }

    /// True if nothing that was looked at only waits for its turn.
    pub(super) fn is_all_held(&self) -> bool {
        !self.waiting.is_empty() && self.waiting.iter().all(|waiting| waiting.reason != "next")
    }

    /// The most frequent first; what only waits for its turn is left out.
    fn told_together(&self) -> Vec<(String, i64)> {
        let mut told: BTreeMap<String, (String, i64)> = BTreeMap::new();
        for waiting in self
            .waiting
            .iter()
            .filter(|waiting| waiting.reason != "next")
        {
            let (key, together) = kind_of(&waiting.reason);
            told.entry(key)
                .and_modify(|(reason, count)| {
                    *count += waiting.count;
                    if *reason != waiting.reason {
                        *reason = match &together {
                            Some(together) => together.clone(),
                            // Times: the first one is told.
                            None => reason.clone().min(waiting.reason.clone()),
                        };
                    }
                })
                .or_insert_with(|| (waiting.reason.clone(), waiting.count));
        }
        let mut told: Vec<(String, i64)> = told.into_values().collect();
        told.sort_by_key(|(_, count)| -count);
        told
    }
}

/// What a reason is counted under, and how several of them are told; none: by the first one.
fn kind_of(reason: &str) -> (String, Option<String>) {
    for (prefix, together) in KINDS {
        if reason.starts_with(prefix) {
            let told = (prefix != together).then(|| together.to_owned());
            return (prefix.to_owned(), told);
        }
    }
    (reason.to_owned(), None)
}

/// What is wrong with a batch on its way.
fn trouble(open: &FollowedBatch, now: UtcMillis) -> Option<String> {
    let batch = &open.batch;
    if let Some(why) = &batch.read_error {
        return Some(format!("batch {}: the last look failed: {why}", batch.id));
    }
    if batch.state == "looking" {
        return Some(format!(
            "batch {}: what became of its call is being looked into, until {} at the latest",
            batch.id,
            batch.look_until.as_deref().unwrap_or("its time limit")
        ));
    }
    let usual = usual(open)?;
    let begun: UtcMillis = batch.intent_at.parse().ok()?;
    let is_late = now.since(begun) > LATE_MIN.max(usual * LATE_FACTOR);
    is_late.then(|| {
        format!(
            "batch {} takes longer than usual ({}): in progress since {}",
            batch.id,
            short_span(usual),
            batch.intent_at
        )
    })
}

/// How long these batches will take, if they take as long as usual; none if that is not known of
/// one of them.
pub(super) fn left_of(batches: &[FollowedBatch], now: UtcMillis) -> Option<Duration> {
    let mut longest = Duration::ZERO;
    for open in batches {
        let begun: UtcMillis = open.batch.intent_at.parse().ok()?;
        longest = longest.max(usual(open)?.saturating_sub(now.since(begun)));
    }
    (!batches.is_empty()).then_some(longest)
}

/// How long such a batch usually takes.
fn usual(open: &FollowedBatch) -> Option<Duration> {
    let ms = u64::try_from(open.usual_ms?).ok()?;
    Some(Duration::from_millis(ms))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::client::BatchRecord;

    fn waiting(reason: &str, count: i64) -> UnsentReason {
        UnsentReason {
            reason: reason.to_owned(),
            target: "default".to_owned(),
            action: "stop".to_owned(),
            count,
        }
    }

    fn situation<'a>(waiting: &'a [UnsentReason], batches: &'a [FollowedBatch]) -> Situation<'a> {
        Situation {
            is_without_daemon: false,
            waiting,
            queued: waiting.iter().map(|waiting| waiting.count).sum(),
            batches,
            now: "2026-01-31T22:10:00.000Z".parse().expect("a time"),
        }
    }

    #[test]
    fn reasons_are_counted_and_those_of_one_kind_told_together() {
        let reasons = [
            waiting("held: paused by bob", 3),
            waiting("behind request 7", 1),
            waiting("behind request 8", 1),
            waiting("retry at 2026-01-31T22:20:00.000Z", 1),
            waiting("retry at 2026-01-31T22:15:00.000Z", 4),
        ];
        assert_eq!(
            situation(&reasons, &[]).sentences(),
            [
                "5 not sent yet: retry at 2026-01-31T22:15:00.000Z",
                "3 not sent yet: held: paused by bob",
                "2 not sent yet: behind other requests of the same servers",
            ]
        );
    }

    #[test]
    fn one_reason_for_all_needs_no_count_and_a_turn_is_no_reason() {
        assert_eq!(
            situation(&[waiting("behind request 7", 1)], &[]).sentences(),
            ["not sent yet: behind request 7"]
        );
        let next = [waiting("next", 5)];
        assert!(situation(&next, &[]).sentences().is_empty());
        assert!(!situation(&next, &[]).is_all_held());
    }

    #[test]
    fn a_batch_in_trouble_is_named_and_a_usual_one_is_not() {
        let open = |since: &str, read_error: Option<&str>| FollowedBatch {
            batch: BatchRecord {
                id: 12,
                state: "tracking".to_owned(),
                intent_at: format!("2026-01-31T22:{since}.000Z"),
                read_error: read_error.map(str::to_owned),
                ..BatchRecord::default()
            },
            usual_ms: Some(40_000),
        };
        let said = |open: FollowedBatch| situation(&[], &[open]).sentences();
        assert_eq!(
            said(open("05:00", None)),
            ["batch 12 takes longer than usual (40s): in progress since 2026-01-31T22:05:00.000Z"]
        );
        assert_eq!(
            said(open("05:00", Some("HTTP 403"))),
            ["batch 12: the last look failed: HTTP 403"]
        );
        assert!(said(open("09:30", None)).is_empty());
    }

    #[test]
    fn what_is_left_is_that_of_the_slowest_batch() {
        let now: UtcMillis = "2026-01-31T22:00:30.000Z".parse().expect("a time");
        let open = |second: u32, usual_ms: Option<i64>| FollowedBatch {
            batch: BatchRecord {
                intent_at: format!("2026-01-31T22:00:{second:02}.000Z"),
                ..BatchRecord::default()
            },
            usual_ms,
        };
        let usual = [open(0, Some(40_000)), open(20, Some(40_000))];
        assert_eq!(left_of(&usual, now), Some(Duration::from_secs(30)));
        assert_eq!(left_of(&[open(0, Some(5_000))], now), Some(Duration::ZERO));
        assert_eq!(left_of(&[open(0, Some(5_000)), open(0, None)], now), None);
        assert_eq!(left_of(&[], now), None);
    }

    #[test]
    fn many_reasons_are_cut_and_say_so() {
        let reasons: Vec<_> = (0..9)
            .map(|number| waiting(&format!("held: reason {number}"), 1))
            .collect();
        let said = situation(&reasons, &[]).sentences();
        assert_eq!(said.len(), SHOWN_MAX + 1);
        assert!(
            said[SHOWN_MAX].starts_with("and 6 more reasons"),
            "{said:?}"
        );
    }
}
