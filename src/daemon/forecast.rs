//! What a daemon with these settings would do with the queue from now on: reads it, like any
//! command, and has the plan answer. Writes nothing, sends nothing.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::model::{
    Budget, Crowd, Hold, HoldKind, LaneKind, Order, PowerAction, PowerMix, ServerId, Service,
    Share, Standing, TargetName, UtcMillis,
};
use crate::pace::{ENDED_MAX, Pace, usual_duration};
use crate::plan::forecast::{self, Counted, Forecast, Question, RunningBatch, TargetOutlook};
use crate::plan::guard;
use crate::settings::{Settings, TargetSettings};
use crate::store::client::{AskedFor, LabelCount, ShareRules, TargetLimits};
use crate::store::{QueueClient, StoreError, Unapproved};

/// Requests of a guard that are asked whose they are.
const CROWDS_ASKED_MAX: u64 = 10_000;

/// Calls a minute, where nobody knows what the config says: its default.
const RATE_USUAL: u32 = 50;

/// What is to be forecast.
#[derive(Debug, Clone, Default)]
pub struct ForecastQuery<'a> {
    /// The config; none: what the daemon has noted in the queue has to do.
    pub settings: Option<&'a Settings>,
    /// Which of the requests in the queue.
    pub asked: AskedFor,
    /// Those are taken as approved.
    pub as_approved: bool,
    /// Requests that are not in the queue yet.
    pub new: Vec<NewShare>,
    /// The order that they belong to.
    pub new_order: Option<Order>,
}

/// Requests that are about to be inserted: one for each server, all alike.
#[derive(Debug, Clone)]
pub struct NewShare {
    /// What they have in common.
    pub share: Share,
    /// Who asks for them.
    pub requested_by: Option<String>,
    /// Their label.
    pub label: Option<String>,
    /// The request that all of them wait for.
    pub after_id: Option<i64>,
    /// Their servers.
    pub servers: Vec<String>,
}

/// What will become of the requests.
#[derive(Debug, Clone)]
pub struct Outlook {
    /// When it was asked.
    pub as_of: UtcMillis,
    /// What the plan says.
    pub forecast: Forecast,
    /// What lists have shown of the servers, by target and action.
    pub mixes: Vec<PowerMix>,
    /// A program is asked before each wave but the first.
    pub has_gate: bool,
    /// Limits and windows were not known.
    pub is_without_config: bool,
}

/// Asks the queue and the plan.
///
/// # Errors
/// Those of the store.
pub async fn forecast(
    client: &mut QueueClient,
    query: &ForecastQuery<'_>,
    now: UtcMillis,
) -> Result<Outlook, StoreError> {
    // A request that the daemon moves meanwhile would count twice, or not at all.
    let read = client.as_of_one_moment(async |client| {
        let noted = client.target_limits().await?;
        let mut reading = Reading {
            client,
            query,
            noted,
            now,
        };
        Ok((reading.question().await?, reading.mixes().await?))
    });
    let (question, mixes) = read.await?;
    Ok(Outlook {
        as_of: now,
        forecast: forecast::forecast(&question),
        mixes,
        has_gate: question.has_gate,
        is_without_config: query.settings.is_none(),
    })
}

/// The labels of those that leave now, by target and action, with how many have each.
///
/// # Errors
/// Those of the store.
pub async fn labels_leaving(
    client: &mut QueueClient,
    outlook: &Outlook,
) -> Result<BTreeMap<(TargetName, PowerAction), Vec<LabelCount>>, StoreError> {
    let mut leaving: BTreeMap<(TargetName, PowerAction, i64), u64> = BTreeMap::new();
    for call in outlook.forecast.calls_now(outlook.as_of) {
        let lane = (call.target.clone(), call.action, call.kind.number());
        *leaving.entry(lane).or_default() += call.servers;
    }
    let mut labels: BTreeMap<(TargetName, PowerAction), Vec<LabelCount>> = BTreeMap::new();
    for ((target, action, kind), servers) in leaving {
        let kind = LaneKind::of_number(kind);
        let found = client.first_labels(&target, action, kind, servers).await?;
        let all = labels.entry((target, action)).or_default();
        for count in found {
            match all.iter_mut().find(|other| other.label == count.label) {
                Some(other) => other.requests += count.requests,
                None => all.push(count),
            }
        }
    }
    Ok(labels)
}

struct Reading<'a> {
    client: &'a mut QueueClient,
    query: &'a ForecastQuery<'a>,
    noted: Vec<TargetLimits>,
    now: UtcMillis,
}

/// One guard with its calls.
struct Guarded {
    target: TargetName,
    action: PowerAction,
    counted: Counted,
    batches: Vec<i64>,
}

impl Reading<'_> {
    async fn question(&mut self) -> Result<Question, StoreError> {
        let now = self.now;
        let mut targets = self.targets().await?;
        let guards = self.guards().await?;
        let rules = ShareRules {
            ttl: self.ttl(&targets),
            protected: self.protected(),
            counted: guards
                .iter()
                .flat_map(|guard| guard.batches.clone())
                .collect(),
        };
        let mut shares = self.client.shares(&self.query.asked, &rules, now).await?;
        if self.query.as_approved {
            let asked = shares.iter_mut().filter(|share| share.is_asked);
            asked.for_each(|share| share.kind.is_approved = true);
        }
        if !self.query.new.is_empty() {
            shares.iter_mut().for_each(|share| share.is_asked = false);
        }
        shares.extend(self.new_shares(&rules).await?);
        if self.query.settings.is_none() && self.noted.is_empty() {
            self.take_for_granted(&mut targets, &shares).await?;
        }
        for guarded in guards {
            let counted = self.with_crowds(guarded, &shares).await?;
            if let Some(target) = targets.get_mut(&counted.target) {
                target.guards.insert(counted.action, counted.counted);
            }
        }
        let mut orders = self.client.known_orders(now).await?;
        orders.extend(self.query.new_order.clone());
        Ok(Question {
            now,
            shares,
            running: self.running().await?,
            holds: self.holds(&targets).await?,
            targets,
            orders,
            has_gate: self
                .query
                .settings
                .is_some_and(|settings| !settings.waves.gate.is_empty()),
        })
    }

    fn configured(&self) -> impl Iterator<Item = &TargetSettings> {
        let settings = self.query.settings.iter();
        settings.flat_map(|settings| &settings.targets)
    }

    /// Targets of the config, or those that the daemon has noted; without either, any target that
    /// requests name, since nobody knows better.
    async fn targets(&mut self) -> Result<BTreeMap<TargetName, TargetOutlook>, StoreError> {
        let mut targets = BTreeMap::new();
        let configured: Vec<TargetSettings> = self.configured().cloned().collect();
        if self.query.settings.is_some() {
            for settings in configured {
                let outlook = self.outlook(&settings).await?;
                targets.insert(settings.name, outlook);
            }
            return Ok(targets);
        }
        for noted in self.noted.clone() {
            let name = TargetName(noted.target.clone());
            let service = noted.service.parse().unwrap_or(Service::Bms);
            let limits = Basic {
                batch_servers_max: service.batch_servers_cap(),
                rate: u32::try_from(noted.pace_per_minute).unwrap_or(1).max(1),
            };
            let outlook = self.basic_outlook(&name, limits).await?;
            targets.insert(name, outlook);
        }
        Ok(targets)
    }

    /// No daemon has noted any target yet.
    async fn take_for_granted(
        &mut self,
        targets: &mut BTreeMap<TargetName, TargetOutlook>,
        shares: &[Share],
    ) -> Result<(), StoreError> {
        for share in shares {
            if !targets.contains_key(&share.target) {
                let limits = Basic {
                    batch_servers_max: Service::Bms.batch_servers_cap(),
                    rate: RATE_USUAL,
                };
                let outlook = self.basic_outlook(&share.target, limits).await?;
                targets.insert(share.target.clone(), outlook);
            }
        }
        Ok(())
    }

    async fn outlook(&mut self, settings: &TargetSettings) -> Result<TargetOutlook, StoreError> {
        let limits = Basic {
            batch_servers_max: settings.batch_servers_max,
            rate: settings.submits_per_minute,
        };
        let mut outlook = self.basic_outlook(&settings.name, limits).await?;
        outlook.windows = settings.windows.clone();
        for (action, budget) in &settings.budgets {
            let since = self.now.before(budget.span);
            let calls = self.client.spent(&settings.name, *action, since).await?;
            let counted = Counted {
                budget: *budget,
                calls: not_ahead(calls, self.now),
                crowds: Vec::new(),
            };
            outlook.budgets.insert(*action, counted);
        }
        Ok(outlook)
    }

    /// What is known of a target's calls without its windows, budgets and guards.
    async fn basic_outlook(
        &mut self,
        name: &TargetName,
        limits: Basic,
    ) -> Result<TargetOutlook, StoreError> {
        let calls = self
            .client
            .recent_calls(name, limits.rate, self.now)
            .await?;
        let mut pace = Pace::new(limits.rate, calls, self.now);
        let noted = self.noted.iter().find(|noted| noted.target == name.0);
        let throttles = noted.map_or(0, |noted| u32::try_from(noted.throttles).unwrap_or(0));
        if let Some(noted) = noted {
            let rate = u32::try_from(noted.pace_per_minute).unwrap_or(limits.rate);
            pace.resume(rate, throttles);
        }
        let mut took = BTreeMap::new();
        for action in PowerAction::ALL {
            let history = self.client.job_history(name, *action, ENDED_MAX).await?;
            if let Some(usual) = usual_duration(&history) {
                took.insert(*action, usual);
            }
        }
        Ok(TargetOutlook {
            batch_servers_max: limits.batch_servers_max,
            pace,
            is_probed: throttles > 0,
            budgets: BTreeMap::new(),
            guards: BTreeMap::new(),
            windows: Default::default(),
            took,
        })
    }

    async fn guards(&mut self) -> Result<Vec<Guarded>, StoreError> {
        let configured: Vec<(TargetName, PowerAction, Budget)> = self
            .configured()
            .flat_map(|target| {
                let guards = target.guards.iter();
                guards.map(|(action, guard)| (target.name.clone(), *action, *guard))
            })
            .collect();
        let mut guards = Vec::new();
        for (target, action, budget) in configured {
            let since = self.now.before(budget.span);
            let calls = self.client.unapproved_calls(&target, action, since).await?;
            let times = calls.iter().map(|call| (call.at, call.servers)).collect();
            guards.push(Guarded {
                target,
                action,
                counted: Counted {
                    budget,
                    calls: not_ahead(times, self.now),
                    crowds: Vec::new(),
                },
                batches: calls.iter().map(|call| call.batch.0).collect(),
            });
        }
        Ok(guards)
    }

    /// Whose the requests are, where the guard may hold them.
    async fn with_crowds(
        &mut self,
        mut guarded: Guarded,
        shares: &[Share],
    ) -> Result<Guarded, StoreError> {
        let counted = shares.iter().filter(|share| {
            share.target == guarded.target
                && share.action == guarded.action
                && share.standing.is_due()
                && !share.kind.is_approved
                && !share.is_counted
        });
        let due: u64 = counted.map(|share| share.requests).sum();
        let left = guard::left(guarded.counted.budget, &guarded.counted.calls, self.now);
        if due + left <= u64::from(guarded.counted.budget.servers) {
            return Ok(guarded);
        }
        let wanted = Unapproved {
            target: &guarded.target,
            action: guarded.action,
            counted: &guarded.batches,
        };
        let mut crowds = self.client.crowds(wanted, CROWDS_ASKED_MAX).await?;
        for new in &self.query.new {
            let is_of = new.share.target == guarded.target && new.share.action == guarded.action;
            if is_of && new.share.standing.is_due() {
                crowds.push(Crowd {
                    label: new.label.clone(),
                    requested_by: new.requested_by.clone(),
                    requests: new.share.requests,
                });
            }
        }
        crowds.sort_by_key(|crowd| std::cmp::Reverse(crowd.requests));
        guarded.counted.crowds = crowds;
        Ok(guarded)
    }

    fn ttl(&self, targets: &BTreeMap<TargetName, TargetOutlook>) -> BTreeMap<TargetName, Duration> {
        if let Some(settings) = self.query.settings {
            let ttl = settings.queue.default_ttl;
            let names = targets.keys();
            return names
                .filter_map(|name| Some((name.clone(), ttl?)))
                .collect();
        }
        let noted = self.noted.iter();
        noted
            .filter_map(|noted| {
                let ms = u64::try_from(noted.default_ttl_ms?).ok()?;
                Some((TargetName(noted.target.clone()), Duration::from_millis(ms)))
            })
            .collect()
    }

    fn protected(&self) -> Vec<(TargetName, ServerId)> {
        self.configured()
            .flat_map(|target| {
                let servers = target.protected.iter();
                servers.map(|server| (target.name.clone(), server.clone()))
            })
            .collect()
    }

    /// Those that are protected are counted apart, and so are those whose servers have other
    /// requests before them.
    async fn new_shares(&mut self, rules: &ShareRules) -> Result<Vec<Share>, StoreError> {
        let mut shares = Vec::new();
        for new in &self.query.new {
            let is_protected = |server: &String| {
                let server = ServerId(server.clone());
                let mut protected = rules.protected.iter();
                new.share.action.interrupts()
                    && protected
                        .any(|(target, other)| *target == new.share.target && *other == server)
            };
            let (protected, others): (Vec<String>, Vec<String>) =
                new.servers.iter().cloned().partition(is_protected);
            let behind = if new.share.standing == Standing::Ready {
                self.client
                    .busy_servers(&new.share.target.0, &others)
                    .await?
            } else {
                0
            };
            let usual_end = rules
                .ttl
                .get(&new.share.target)
                .map(|ttl| new.due_at(self.now) + *ttl);
            let expires_at = new.share.expires_at.or(usual_end);
            let whole = Share {
                expires_at,
                ..new.share.clone()
            };
            shares.push(Share {
                requests: protected.len() as u64,
                is_protected: true,
                ..whole.clone()
            });
            shares.push(Share {
                requests: behind,
                standing: Standing::Behind,
                ..whole.clone()
            });
            shares.push(Share {
                requests: (others.len() as u64).saturating_sub(behind),
                ..whole
            });
        }
        shares.retain(|share| share.requests > 0);
        Ok(shares)
    }

    async fn running(&mut self) -> Result<Vec<RunningBatch>, StoreError> {
        let running = self.client.running().await?;
        Ok(running
            .into_iter()
            .filter_map(|batch| {
                Some(RunningBatch {
                    target: TargetName(batch.target),
                    action: batch.action.parse().ok()?,
                    requests: u64::try_from(batch.requests).unwrap_or(0),
                    since: UtcMillis(batch.since_ms),
                })
            })
            .collect())
    }

    /// Where the config is known, it decides itself on windows, guards and budgets.
    async fn holds(
        &mut self,
        targets: &BTreeMap<TargetName, TargetOutlook>,
    ) -> Result<Vec<Hold>, StoreError> {
        let mut holds = self.client.holds_in_force(self.now).await?;
        if self.query.settings.is_some() {
            holds.retain(|hold| {
                let is_decided = matches!(
                    hold.kind,
                    HoldKind::Window | HoldKind::Approval | HoldKind::Budget
                );
                let is_of_target = hold.target.as_ref();
                !(is_decided && is_of_target.is_some_and(|name| targets.contains_key(name)))
            });
        }
        Ok(holds)
    }

    async fn mixes(&mut self) -> Result<Vec<PowerMix>, StoreError> {
        if self.query.new.is_empty() {
            return self.client.power_mix(&self.query.asked).await;
        }
        let mut mixes = Vec::new();
        for new in &self.query.new {
            let share = &new.share;
            let mix = self
                .client
                .power_mix_of(&share.target, share.action, &new.servers)
                .await?;
            mixes.push(mix);
        }
        Ok(mixes)
    }
}

impl NewShare {
    /// When they may go, at the earliest.
    fn due_at(&self, now: UtcMillis) -> UtcMillis {
        match self.share.standing {
            Standing::Later(at) | Standing::Retry(at) => at.max(now),
            _ => now,
        }
    }
}

/// How fast calls follow one another, and how many servers each carries.
#[derive(Clone, Copy)]
struct Basic {
    batch_servers_max: u32,
    rate: u32,
}

/// A clock that was set back must not make calls of the future.
fn not_ahead(mut calls: Vec<(UtcMillis, u32)>, now: UtcMillis) -> Vec<(UtcMillis, u32)> {
    for (at, _) in &mut calls {
        *at = (*at).min(now);
    }
    calls
}
