//! From a seed to a run: the cloud's scenario, the daemon's settings, and how rough the schedule
//! is. Pure.

use std::collections::BTreeSet;
use std::num::NonZeroU32;
use std::path::PathBuf;
use std::time::Duration;

use reqwest::Url;

use super::facts::SLACK;
use super::rng::Rng;
use super::windows::{Calendar, Zone};
use super::{Broken, rules};
use poweryard::model::{Budget, PowerAction, Service, TargetName, UtcMillis};
use poweryard::plan::windows::Windows;
use poweryard::settings::{
    AuthSettings, BatchSettings, QueueSettings, Settings, TargetSettings, WavesSettings,
};
use poweryard::sim::faults::{Fault, FaultKind, Oddity, ServerRef, When};
use poweryard::sim::scenario::{
    BmsScenario, Chance, CloudDcScenario, Latency, MissingShow, ParentOnFailure, Rates, Refusals,
    Span, Unset, clouddc,
};
use poweryard::sim::{Call, Scenario};

pub(super) mod large;

/// A service's target, where a run has it.
fn target_name(service: Service) -> TargetName {
    TargetName(match service {
        Service::Bms => "default".into(),
        Service::CloudDc => "centre".into(),
    })
}

/// A reload makes a settling time longer by no more than this.
pub(super) const SETTLE_MORE: Duration = Duration::from_secs(2);

/// Everything that a run is decided by, beside the order of its steps.
#[derive(Debug, Clone)]
pub(super) struct Plan {
    pub(super) scenario: Scenario,
    pub(super) settings: Settings,
    pub(super) rough: Roughness,
    /// As it was drawn, by target; what the cloud does late goes by it.
    pub(super) settle_times: Vec<Duration>,
    /// The windows of each target.
    pub(super) calendars: Vec<Calendar>,
    /// Where these are.
    pub(super) zone: Zone,
    /// When the run begins.
    pub(super) begin: UtcMillis,
}

impl Plan {
    /// The bounds that the run is held to.
    pub(super) fn limits(&self) -> rules::Limits {
        let flight = |target: &TargetSettings| {
            let answers = target.request_timeout * 20;
            let waits = longest_retry_after(&self.scenario) * 4;
            target.job_time_limit
                + target.look_time_limit * 2
                + target.settle_time
                + answers
                + waits
                + SLACK * 6
        };
        rules::Limits {
            targets: self
                .settings
                .targets
                .iter()
                .zip(&self.calendars)
                .map(|(target, calendar)| (target.name.clone(), limits_of(target, calendar)))
                .collect(),
            gate_interval: Some(self.settings.waves.gate_interval)
                .filter(|_| !self.settings.waves.gate.is_empty()),
            attempts_max: self.settings.batch.attempts_max.get(),
            default_ttl: self.settings.queue.default_ttl,
            flight_max: self
                .settings
                .targets
                .iter()
                .map(flight)
                .max()
                .unwrap_or(SLACK),
            prompt: self
                .settings
                .targets
                .iter()
                .filter_map(|target| self.prompt(target))
                .collect(),
            sights: self
                .settings
                .targets
                .iter()
                .map(|target| (target.name.clone(), self.sight(target)))
                .collect(),
        }
    }

    /// Where nothing disturbs this target, how long a request waits at most that nothing holds.
    fn prompt(&self, target: &TargetSettings) -> Option<(TargetName, Duration)> {
        let rough = &self.rough;
        let strikes = |fault: &&Fault| {
            fault
                .when
                .service
                .is_none_or(|service| service == target.service)
        };
        // A submit that is given up may have arrived, and what is lost makes the target wait.
        let submit = Duration::from_millis(self.scenario.latency.submit_ms.max_ms);
        let way = Duration::from_millis(rough.way_max_ms) * 2;
        let is_quiet = self.scenario.faults.iter().all(|fault| !strikes(&fault))
            && submit + way < target.request_timeout
            && [
                rough.crash,
                rough.crash_in_step,
                rough.lock,
                rough.clock,
                rough.operators,
                rough.meddling,
                rough.staff,
            ] == [0; 7]
            && self.scenario.rates.submits_per_minute == 0
            && self.scenario.rates.lists_per_minute == 0
            && target.budgets.is_empty()
            && target.guards.is_empty()
            && target.windows == Windows::default();
        let calls = u32::try_from(rough.requests).unwrap_or(u32::MAX);
        let most = SLACK * 3 + Duration::from_secs(60) * calls / target.submits_per_minute;
        is_quiet.then(|| (target.name.clone(), most))
    }

    /// True if nothing breaks the row of looks that begins with a call, one of which takes so long.
    fn is_watched(&self, target: &TargetSettings, look: Duration) -> bool {
        let way = Duration::from_millis(self.rough.way_max_ms);
        let submit = Duration::from_millis(self.scenario.latency.submit_ms.max_ms) + way * 2;
        self.rough.lock == 0
            && submit + look < longest_gap(target.settle_time)
            && !self.scenario.faults.iter().any(is_slow)
    }

    /// What can be seen at this target, whatever the schedule does.
    fn sight(&self, target: &TargetSettings) -> rules::Sight {
        let scenario = &self.scenario;
        let faults = || {
            scenario
                .faults
                .iter()
                .filter(|f| f.when.service.is_none_or(|own| own == target.service))
        };
        let rates = scenario.rates;
        let latest = [
            scenario.latency.job_ms,
            scenario.latency.list_ms,
            scenario.latency.show_ms,
            scenario.latency.token_ms,
        ];
        let slowest = latest
            .iter()
            .map(|span| Duration::from_millis(span.max_ms))
            .max()
            .unwrap_or_default();
        // The client gives a show that hangs less time than this, but by the real clock, which does
        // not move here.
        let hanging = if faults().any(hangs_a_show) {
            target.request_timeout
        } else {
            Duration::ZERO
        };
        let operation = match target.service {
            Service::Bms => scenario.bms.operation_ms,
            Service::CloudDc => scenario.clouddc.operation_ms,
        };
        let longest = longest_seen(target, operation);
        // A look may take a token, a list and shows. In a row, two of them and the wait between fit
        // into the longest gap.
        let look = hanging + slowest * 3 + Duration::from_millis(self.rough.way_max_ms) * 2;
        let keeps_up = look * 2 + target.settle_time / 8 < longest_gap(target.settle_time);
        let can_see = [
            rates.jobs_per_minute,
            rates.lists_per_minute,
            rates.shows_per_minute,
        ] == [0; 3]
            && keeps_up
            && !faults().any(spoils_looks)
            && slowest < target.request_timeout
            && longest < target.look_time_limit
            && longest < target.job_time_limit;
        let (power, reboots) = match target.service {
            Service::Bms => (can_see, can_see && !scenario.bms.sub_jobs_without_id),
            // A call that is accepted although nothing is done with one of its servers looks like
            // one that has not begun. And what was rebooted before shows a reboot only while it
            // lasts.
            Service::CloudDc => {
                let tells = can_see && scenario.clouddc.refusals == clouddc::Refusals::Batch;
                let shows = scenario.clouddc.processing_after_ms.max_ms + 10_000 < operation.min_ms;
                (tells, tells && shows && slowest < Duration::from_secs(4))
            }
        };
        let ids = scenario.server_ids(target.service);
        let hidden = faults()
            .filter(|fault| hides_servers(fault))
            .flat_map(|fault| &fault.when.servers)
            .filter_map(|server| match server {
                ServerRef::Number(number) => ids.get(number.checked_sub(1)?).cloned(),
                ServerRef::Id(id) => Some(id.clone()),
            });
        rules::Sight {
            power,
            reboots: reboots && !faults().any(hides_reboots),
            refused_reboots: target.service == Service::Bms
                && can_see
                && self.is_watched(target, look),
            hidden: hidden.collect(),
            listed: BTreeSet::new(),
        }
    }
}

/// The longest that the cloud asks callers to wait.
fn longest_retry_after(scenario: &Scenario) -> Duration {
    let waits_s = scenario.faults.iter().filter_map(retry_after_s);
    let longest_s = waits_s.max().unwrap_or(0);
    Duration::from_secs(u64::from(longest_s.max(scenario.rates.retry_after_s)))
}

/// How rough the schedule is. Chances are of a thousand.
#[derive(Debug, Clone)]
pub(super) struct Roughness {
    /// A daemon ends between two steps.
    pub(super) crash: u64,
    /// A daemon is set to end before one of its next commits, after a step.
    pub(super) crash_in_step: u64,
    /// A producer takes the write lock for some steps.
    pub(super) lock: u64,
    /// Somebody sets the clock.
    pub(super) clock: u64,
    /// Somebody reloads, stops, prunes or starts another.
    pub(super) operators: u64,
    /// Of a thousand requests, so many name a target that nobody configured.
    pub(super) misspelt: u64,
    /// So many rows each name a target of their own that nobody configured.
    pub(super) flood: u64,
    /// A call is on its way to the cloud for at most so long; always less than the settling time.
    pub(super) way_max_ms: u64,
    /// Requests to insert, at most.
    pub(super) requests: u64,
    /// Of a thousand requests, so many are reboots, whatever else is drawn.
    pub(super) reboots: u64,
    /// Time between two acts of the producers, at most.
    pub(super) act_gap_max_ms: u64,
    /// A producer's act is something other than an insert.
    pub(super) meddling: u64,
    /// When a daemon has ended, somebody copies its queue, or puts an earlier copy back.
    pub(super) copies: u64,
    /// Of a thousand inserts, so many are of an order with waves.
    pub(super) orders: u64,
    /// An act is that of somebody who approves, or pauses, resumes, cancels or retries a label.
    pub(super) staff: u64,
    /// Of a thousand times, the gate says so often that a wave may not go, or nothing in time.
    pub(super) gate_no: u64,
}

/// What the seed decides.
pub(super) fn plan(rng: &mut Rng) -> Result<Plan, Broken> {
    let services: &[Service] = match rng.between(0, 9) {
        0..=4 => &[Service::Bms],
        5..=7 => &[Service::CloudDc],
        _ => &[Service::Bms, Service::CloudDc],
    };
    let mut plan = plan_for(rng, services)?;
    large::add(rng, &mut plan)?;
    Ok(plan)
}

/// As `plan`, for these services, each with a target of its own.
pub(super) fn plan_for(rng: &mut Rng, services: &[Service]) -> Result<Plan, Broken> {
    let view = match rng.between(0, 9) {
        0..=4 => View::Foggy,
        5 | 6 => View::Clear,
        7 => View::Smooth,
        _ => View::Late,
    };
    let servers = match rng.between(0, 9) {
        _ if view == View::Late => rng.between(2, 5),
        0 => rng.between(20, 60),
        _ => rng.between(3, 12),
    };
    let mut scenario = scenario(rng, servers as usize);
    let mut settings = settings(rng, services, &scenario)?;
    match view {
        View::Foggy => {}
        View::Clear | View::Smooth => clear(rng, &mut scenario, &mut settings),
        View::Late => delay(rng, &mut scenario, &mut settings),
    }
    let calm = match view {
        View::Foggy | View::Clear => rng.permille(250),
        View::Smooth => true,
        View::Late => rng.permille(750),
    };
    let crashes = if rng.permille(200) { 40 } else { 8 };
    let settle = settings
        .targets
        .iter()
        .map(|target| target.settle_time)
        .min()
        .unwrap_or_default();
    let settle_ms = u64::try_from(settle.as_millis()).unwrap_or(u64::MAX);
    let rough = Roughness {
        crash: if calm { 0 } else { rng.between(0, crashes) },
        crash_in_step: if calm { 0 } else { rng.between(0, crashes) },
        lock: if matches!(view, View::Foggy | View::Clear) && rng.permille(300) {
            rng.between(0, 30)
        } else {
            0
        },
        clock: if !calm && rng.permille(250) {
            rng.between(1, 20)
        } else {
            0
        },
        operators: if !calm && rng.permille(500) {
            rng.between(1, 25)
        } else {
            0
        },
        misspelt: if rng.permille(100) {
            rng.between(1, 100)
        } else {
            0
        },
        flood: if rng.permille(30) {
            rng.between(100, 400)
        } else {
            0
        },
        way_max_ms: rng.between(0, 900).min(match view {
            View::Foggy => settle_ms / 2,
            View::Late => settle_ms / 16,
            View::Clear | View::Smooth => settle_ms / 32,
        }),
        requests: match view {
            View::Late => rng.between(6, 24),
            View::Foggy | View::Clear | View::Smooth => rng.between(1, servers * 2).min(60),
        },
        reboots: if view == View::Late { 800 } else { 0 },
        act_gap_max_ms: *rng.pick(&[50, 2_000, 30_000]).unwrap_or(&2_000),
        meddling: match view {
            View::Foggy | View::Clear => rng.between(0, 400),
            View::Late => rng.between(0, 50),
            View::Smooth => 0,
        },
        copies: if !calm && rng.permille(300) {
            rng.between(200, 900)
        } else {
            0
        },
        orders: 0,
        staff: 0,
        gate_no: 0,
    };
    let delay_max_ms = (settle_ms - rough.way_max_ms) * 4 / 5;
    // A settling time is longer than what a server takes until it shows what it does.
    let shows_after = &mut scenario.clouddc.processing_after_ms;
    shows_after.min_ms = shows_after.min_ms.min(delay_max_ms);
    shows_after.max_ms = shows_after.max_ms.min(delay_max_ms);
    if view == View::Smooth {
        soothe(rng, &mut scenario, &mut settings);
    } else if view == View::Late {
        scenario.faults = late_acts(rng, &mut settings, &mut scenario, delay_max_ms);
    } else {
        let denials = denials(rng, delay_max_ms);
        if !denials.is_empty() {
            show_denied(&mut scenario, &settings);
            // A throttle in disguise is one: the service has not looked at the call.
            scenario
                .faults
                .retain(|fault| !matches!(&fault.kind, FaultKind::Refuse { code, .. } if code == "BMS.0212"));
        }
        scenario.faults.extend(denials);
        scenario.faults.extend(lasting(rng, servers as usize));
    }
    let settle_times = settings
        .targets
        .iter()
        .map(|target| target.settle_time)
        .collect();
    Ok(Plan {
        calendars: vec![Calendar::default(); settings.targets.len()],
        zone: Zone::Utc,
        begin: large::BEGIN,
        scenario,
        settings,
        rough,
        settle_times,
    })
}

/// What a seed shows of the cloud.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum View {
    /// Reads fail by chance, and times are short: much ends `unknown`, and rightly.
    Foggy,
    /// Reads succeed and times are long enough: evidence can be had.
    Clear,
    /// Nothing goes wrong at one target at least: it must be prompt, whatever others do.
    Smooth,
    /// Reboots of few servers in a row. The cloud acts late on what it refused, failed or lost, and
    /// its answers to reads are slow, up to what a row of looks allows: what looks prove is put to
    /// the test.
    Late,
}

/// Short settling times, and reads that succeed and take any time up to the longest gap between
/// two looks of a row.
fn delay(rng: &mut Rng, scenario: &mut Scenario, settings: &mut Settings) {
    for target in &mut settings.targets {
        target.settle_time = rng.millis(1_000, 3_000);
        target.first_look = rng.millis(50, 400);
        target.request_timeout = target.request_timeout.max(Duration::from_secs(6));
        target.submits_per_minute = 50;
        target.budgets.clear();
    }
    let settle_times = settings.targets.iter().map(|target| target.settle_time);
    let gap = settle_times.map(longest_gap).min().unwrap_or_default();
    let gap_ms = u64::try_from(gap.as_millis()).unwrap_or(0);
    let slow = span(0, gap_ms * rng.between(0, 11) / 10);
    scenario.latency = Latency {
        submit_ms: span(0, 100),
        job_ms: span(0, 200),
        list_ms: slow,
        show_ms: slow,
        token_ms: span(0, 100),
    };
    scenario.rates = Rates::default();
    scenario.bms.operation_ms = span(500, 4_000);
    scenario.clouddc.operation_ms = span(500, 4_000);
}

/// Two kinds of clouds that act late. One begins what it has refused: only an unbroken row of looks
/// tells. The other goes on with a reboot whose request has ended as failed or unknown: what is
/// seen then may be taken for the next reboot of the same server, whose own call got lost.
fn late_acts(
    rng: &mut Rng,
    settings: &mut Settings,
    scenario: &mut Scenario,
    delay_max_ms: u64,
) -> Vec<Fault> {
    let submit = [Call::Submit];
    let delay_ms = rng.between(delay_max_ms / 2, delay_max_ms);
    let message = || "late by the scenario".to_owned();
    if rng.permille(500) {
        show_denied(scenario, settings);
        let code = *rng.pick(&["BMS.9999", "BMS.0018"]).unwrap_or(&"BMS.9999");
        let refusal = FaultKind::Refuse {
            status: 400,
            code: code.into(),
            message: message(),
        };
        let every = rng.between(1, 2) as usize;
        let mut faults = vec![
            by_chance(refusal, &submit, rng.between(30, 70)),
            by_chance(FaultKind::ActsAnyway { every, delay_ms }, &[], 80),
        ];
        if rng.permille(600) {
            // Quick looks, and now and then one that takes nearly as long as a row allows.
            scenario.latency.list_ms = span(0, 100);
            scenario.latency.show_ms = span(0, 100);
            let settle_times = settings.targets.iter().map(|target| target.settle_time);
            let gap = settle_times.map(longest_gap).min().unwrap_or_default();
            let gap_ms = u64::try_from(gap.as_millis()).unwrap_or(0);
            let delay_ms = gap_ms * rng.between(45, 85) / 100;
            let slow = FaultKind::Slow { delay_ms };
            faults.push(by_chance(slow, &[Call::List, Call::Show], 30));
        }
        return faults;
    }
    let mut faults = vec![by_chance(FaultKind::DropBefore, &submit, 40)];
    if rng.permille(500) {
        show_denied(scenario, settings);
        let fails = FaultKind::SubJobFails {
            code: "BMS.3037".into(),
            message: message(),
            acts_after_ms: Some(delay_ms),
        };
        faults.push(by_chance(fails, &[], 50));
    } else {
        faults.push(by_chance(FaultKind::DropAfter, &submit, 40));
        let limit_ms = rng.between(8_000, 16_000);
        for target in &mut settings.targets {
            target.look_time_limit = Duration::from_millis(limit_ms);
        }
        let operation_ms = span(limit_ms, limit_ms * 9 / 4);
        scenario.bms.operation_ms = operation_ms;
        scenario.clouddc.operation_ms = operation_ms;
    }
    faults
}

/// Keeps faults away from the reads, and gives every operation the time to be seen.
fn clear(rng: &mut Rng, scenario: &mut Scenario, settings: &mut Settings) {
    for fault in scenario
        .faults
        .iter_mut()
        .filter(|fault| is_of_calls(&fault.kind))
    {
        fault.when.on = vec![Call::Submit];
    }
    let short = span(0, *rng.pick(&[0, 100, 900]).unwrap_or(&0));
    let submit_ms = scenario.latency.submit_ms;
    scenario.latency = Latency {
        submit_ms,
        job_ms: short,
        list_ms: short,
        show_ms: short,
        token_ms: short,
    };
    scenario.rates.jobs_per_minute = 0;
    scenario.rates.lists_per_minute = 0;
    scenario.rates.shows_per_minute = 0;
    let operation_ms = *rng
        .pick(&[span(10, 100), span(500, 4_000), span(15_000, 30_000)])
        .unwrap_or(&span(10, 100));
    scenario.bms.operation_ms = operation_ms;
    scenario.clouddc.operation_ms = operation_ms;
    for target in &mut settings.targets {
        let longest = longest_seen(target, operation_ms);
        target.look_time_limit = target
            .look_time_limit
            .max(longest + rng.millis(1_000, 60_000));
        target.job_time_limit = target
            .job_time_limit
            .max(longest + rng.millis(1_000, 60_000));
    }
}

/// By when whoever looks has seen an operation end, and the server idle through its settling time.
fn longest_seen(target: &TargetSettings, operation_ms: Span) -> Duration {
    Duration::from_millis(operation_ms.max_ms) + target.settle_time * 2 + Duration::from_secs(60)
}

/// Takes the faults away, but for those of one service where there are two: it hangs, fails or
/// throttles for good.
fn soothe(rng: &mut Rng, scenario: &mut Scenario, settings: &mut Settings) {
    scenario.faults.clear();
    scenario.rates.submits_per_minute = 0;
    let submit = Duration::from_millis(scenario.latency.submit_ms.max_ms);
    for target in &mut settings.targets {
        target.budgets.clear();
        target.request_timeout = target.request_timeout.max(submit + Duration::from_secs(2));
    }
    let [one, _] = settings.targets.as_slice() else {
        return;
    };
    let kind = match rng.between(0, 3) {
        0 => FaultKind::Slow {
            delay_ms: 3_600_000,
        },
        1 => FaultKind::Slow {
            delay_ms: 1_000 * rng.between(1, 15),
        },
        2 => FaultKind::ErrorBefore { status: 500 },
        _ => FaultKind::Throttle {
            retry_after_s: Some(rng.between(1, 259_200) as u32),
            as_date: rng.permille(500),
        },
    };
    let on = if rng.permille(500) {
        vec![Call::Job, Call::List, Call::Show]
    } else {
        Vec::new()
    };
    let chance = Some(Chance::clamped(1.0));
    scenario.faults.push(Fault {
        kind,
        when: When {
            service: Some(one.service),
            on,
            chance,
            ..When::default()
        },
    });
}

fn scenario(rng: &mut Rng, servers: usize) -> Scenario {
    let bms = BmsScenario {
        servers,
        running: Chance::clamped(rng.between(0, 10) as f64 / 10.0),
        operation_ms: *rng
            .pick(&[
                span(10, 100),
                span(500, 4_000),
                span(1_000, 20_000),
                span(30_000, 90_000),
            ])
            .unwrap_or(&span(500, 4_000)),
        init_polls: rng.between(0, 2) as u32,
        refusals: either(rng, Refusals::Batch, Refusals::SubJob),
        parent_on_failure: either(rng, ParentOnFailure::Fail, ParentOnFailure::Success),
        sub_jobs_without_id: rng.permille(300),
        idle_task_state: either(rng, Unset::Omitted, Unset::Null),
        missing_show: *rng
            .pick(&[
                MissingShow::Error,
                MissingShow::NotFound,
                MissingShow::Deleted,
            ])
            .unwrap_or(&MissingShow::Error),
    };
    let latency = Latency {
        submit_ms: latency(rng),
        job_ms: latency(rng),
        list_ms: latency(rng),
        show_ms: latency(rng),
        token_ms: latency(rng),
    };
    let clouddc = clouddc(rng, &bms);
    let mut scenario = Scenario {
        seed: rng.next(),
        latency,
        bms,
        clouddc,
        faults: faults(rng),
        ..Scenario::default()
    };
    scenario.token_lifetime_s = *rng.pick(&[30, 600, 86_400]).unwrap_or(&600);
    if rng.permille(300) {
        scenario.rates.submits_per_minute = rng.between(2, 60) as u32;
        scenario.rates.retry_after_s = rng.between(0, 20) as u32;
        scenario.rates.refused_calls_count = rng.permille(500);
    }
    if rng.permille(200) {
        scenario.rates.jobs_per_minute = rng.between(5, 60) as u32;
        scenario.rates.lists_per_minute = rng.between(5, 60) as u32;
        scenario.rates.shows_per_minute = rng.between(20, 100) as u32;
    }
    scenario
}

fn clouddc(rng: &mut Rng, bms: &BmsScenario) -> CloudDcScenario {
    CloudDcScenario {
        servers: bms.servers,
        running: bms.running,
        operation_ms: bms.operation_ms,
        processing_after_ms: *rng
            .pick(&[span(0, 0), span(0, 0), span(100, 3_000)])
            .unwrap_or(&span(0, 0)),
        transition_words: rng.permille(500),
        refusals: *rng
            .pick(&[
                clouddc::Refusals::Batch,
                clouddc::Refusals::LeftOut,
                clouddc::Refusals::Listed,
            ])
            .unwrap_or(&clouddc::Refusals::Batch),
        refusal_names_server: rng.permille(500),
        already_so: either(
            rng,
            clouddc::AlreadySo::Refused,
            clouddc::AlreadySo::Accepted,
        ),
        next_marker: either(rng, clouddc::NextMarker::Id, clouddc::NextMarker::Url),
        missing_show: either(
            rng,
            clouddc::MissingShow::NotFound,
            clouddc::MissingShow::Error,
        ),
        ..CloudDcScenario::default()
    }
}

/// Some of the kinds there are, each with a chance of its own.
fn faults(rng: &mut Rng) -> Vec<Fault> {
    let heavy = rng.permille(200);
    let mut faults = Vec::new();
    for kind in kinds(rng) {
        if !rng.permille(if heavy { 500 } else { 180 }) {
            continue;
        }
        let chance = rng.between(1, if heavy { 60 } else { 25 }) as f64 / 100.0;
        let on = match rng.between(0, 2) {
            0 => Vec::new(),
            1 => vec![Call::Submit],
            _ => vec![Call::Job, Call::List, Call::Show],
        };
        let on = if is_of_calls(&kind) { on } else { Vec::new() };
        faults.push(Fault {
            kind,
            when: When {
                on,
                chance: Some(Chance::clamped(chance)),
                ..When::default()
            },
        });
    }
    faults
}

/// A cloud that acts although it said otherwise, but not later than a server that is left alone for
/// `settle_time` proves: calls that are refused, fail or are dropped, and sub-jobs that fail or
/// call their own reboot a busy server.
fn denials(rng: &mut Rng, delay_max_ms: u64) -> Vec<Fault> {
    let mut faults = Vec::new();
    if rng.permille(200) {
        let refusal = match rng.between(0, 5) {
            0 => Some(FaultKind::Conflict { message: None }),
            1 => Some(FaultKind::DropBefore),
            2 => Some(FaultKind::ErrorBefore { status: 502 }),
            3 | 4 => {
                let code = *rng
                    .pick(&["BMS.9999", "BMS.0018", "BMS.1006", "Common.9999"])
                    .unwrap_or(&"BMS.9999");
                let message = "refused by the scenario".into();
                Some(FaultKind::Refuse {
                    status: 400,
                    code: code.into(),
                    message,
                })
            }
            _ => None,
        };
        let on = vec![Call::Submit];
        let when = When {
            on,
            chance: small_chance(rng),
            ..When::default()
        };
        faults.extend(refusal.map(|kind| Fault { kind, when }));
        let delay_ms = if rng.permille(300) {
            0
        } else {
            rng.between(0, delay_max_ms)
        };
        let kind = FaultKind::ActsAnyway {
            every: rng.between(1, 3) as usize,
            delay_ms,
        };
        let always = Some(Chance::clamped(rng.between(5, 10) as f64 / 10.0));
        faults.push(Fault {
            kind,
            when: When {
                chance: always,
                ..When::default()
            },
        });
    }
    if rng.permille(120) {
        let code = *rng
            .pick(&["BMS.0037", "BMS.3037", "BMS.1007", "BMS.0036"])
            .unwrap_or(&"BMS.0037");
        let acts_after_ms = Some(rng.between(0, delay_max_ms));
        let message = "failed by the scenario".to_owned();
        let kind = FaultKind::SubJobFails {
            code: code.into(),
            message,
            acts_after_ms,
        };
        faults.push(Fault {
            kind,
            when: When {
                chance: small_chance(rng),
                ..When::default()
            },
        });
    }
    faults
}

/// What is done although it was denied lasts until the next look of a row sees it. Reboots of real
/// servers take minutes.
fn show_denied(scenario: &mut Scenario, settings: &Settings) {
    let gaps = settings
        .targets
        .iter()
        .map(|target| longest_gap(target.settle_time + SETTLE_MORE));
    let least = gaps.max().unwrap_or_default() + Duration::from_secs(1);
    let least_ms = u64::try_from(least.as_millis()).unwrap_or(u64::MAX);
    for operation_ms in [
        &mut scenario.bms.operation_ms,
        &mut scenario.clouddc.operation_ms,
    ] {
        operation_ms.min_ms = operation_ms.min_ms.max(least_ms);
        operation_ms.max_ms = operation_ms.max_ms.max(least_ms);
    }
}

/// The longest that two looks of one row are apart.
fn longest_gap(settle_time: Duration) -> Duration {
    (settle_time / 2).max(Duration::from_secs(2))
}

/// Faults that stay for good: with one server's show, with large or later pages, with the queries
/// of one job.
fn lasting(rng: &mut Rng, servers: usize) -> Vec<Fault> {
    let mut faults = Vec::new();
    let hangs = FaultKind::Slow {
        delay_ms: 3_600_000,
    };
    let kind = |rng: &mut Rng| either(rng, FaultKind::ErrorBefore { status: 500 }, hangs.clone());
    if rng.permille(100) {
        let number = ServerRef::Number(rng.between(1, servers as u64) as usize);
        let when = When {
            on: vec![Call::Show],
            servers: vec![number],
            ..When::default()
        };
        faults.push(Fault {
            kind: kind(rng),
            when,
        });
    }
    if rng.permille(60) {
        faults.push(Fault {
            kind: kind(rng),
            when: When {
                limit_above: Some(100),
                ..When::default()
            },
        });
    }
    if rng.permille(60) {
        let jobs = vec![rng.between(1, 4) as usize];
        faults.push(Fault {
            kind: kind(rng),
            when: When {
                jobs,
                ..When::default()
            },
        });
    }
    if rng.permille(80) {
        let odd = [
            Oddity::BadUtf8,
            Oddity::LoneSurrogate,
            Oddity::DoubledKeys,
            Oddity::Bom,
            Oddity::Gzip,
        ];
        let oddity = *rng.pick(&odd).unwrap_or(&Oddity::Bom);
        let chance = Some(Chance::clamped(rng.between(1, 10) as f64 / 10.0));
        let on = vec![Call::Submit, Call::Job, Call::List, Call::Show];
        faults.push(Fault {
            kind: FaultKind::OddAnswer { oddity },
            when: When {
                on,
                chance,
                ..When::default()
            },
        });
    }
    faults
}

fn kinds(rng: &mut Rng) -> Vec<FaultKind> {
    let refusals = [
        "BMS.0212",
        "BMS.0018",
        "BMS.0006",
        "BMS.1007",
        "BMS.1006",
        "BMS.0037",
        "Common.0021",
    ];
    let sub_jobs = [
        "BMS.3037",
        "BMS.1007",
        "BMS.0006",
        "BMS.0035",
        "BMS.0040",
        "Common.9999",
    ];
    let (refusal, sub_job) = (pick_code(rng, &refusals), pick_code(rng, &sub_jobs));
    let (before, after) = (any_5xx(rng), any_5xx(rng));
    let longest_s = *rng.pick(&[90, 90, 90, 3_600, 259_200]).unwrap_or(&90);
    let retry_after_s = rng.permille(500).then(|| rng.between(1, longest_s) as u32);
    let token = pick_code(rng, &["APIGW.0301", "APIGW.0307"]);
    vec![
        FaultKind::Throttle {
            retry_after_s,
            as_date: rng.permille(300),
        },
        FaultKind::ErrorBefore { status: before },
        FaultKind::ErrorAfter { status: after },
        FaultKind::DropBefore,
        FaultKind::DropAfter,
        FaultKind::Refuse {
            status: 400,
            code: refusal,
            message: "refused by the scenario".into(),
        },
        FaultKind::ExpiredToken { code: token },
        FaultKind::Redirect { status: 302 },
        FaultKind::MalformedBody,
        FaultKind::HtmlBody,
        FaultKind::TruncatedBody,
        FaultKind::OversizedBody {
            bytes: if rng.permille(500) { 1_000 } else { 1 << 25 },
        },
        FaultKind::Slow {
            delay_ms: rng.between(100, 40_000),
        },
        FaultKind::JobVanishes,
        FaultKind::JobNeverEnds,
        FaultKind::SubJobFails {
            code: sub_job,
            message: "failed by the scenario".into(),
            acts_after_ms: None,
        },
        FaultKind::SubJobWithoutId,
        FaultKind::SubJobLeftOut,
        FaultKind::OperationFails {
            code: "CloudDC.0006".into(),
            message: "failed by the scenario".into(),
            acts_after_ms: None,
        },
        FaultKind::OperationNeverEnds,
        FaultKind::Missing,
        FaultKind::Locked,
    ]
}

fn is_of_calls(kind: &FaultKind) -> bool {
    !matches!(
        kind,
        FaultKind::JobVanishes
            | FaultKind::JobNeverEnds
            | FaultKind::SubJobFails { .. }
            | FaultKind::SubJobWithoutId
            | FaultKind::SubJobLeftOut
            | FaultKind::OperationFails { .. }
            | FaultKind::OperationNeverEnds
            | FaultKind::Missing
            | FaultKind::Locked
    )
}

fn settings(rng: &mut Rng, services: &[Service], scenario: &Scenario) -> Result<Settings, Broken> {
    let auth = auth(rng)?;
    let mut targets = Vec::new();
    for service in services {
        targets.push(target(rng, *service, &auth, scenario)?);
    }
    let retention = rng.permille(200).then(|| rng.millis(1_000, 600_000));
    let default_ttl = rng.permille(900).then(|| rng.millis(120_000, 3_600_000));
    Ok(Settings {
        queue: QueueSettings {
            database: PathBuf::new(),
            default_ttl,
            retention,
            export_before_prune: None,
        },
        batch: BatchSettings {
            linger: rng.millis(0, 300),
            attempts_max: NonZeroU32::new(rng.between(1, 4) as u32).unwrap_or(NonZeroU32::MIN),
        },
        targets,
        listen: None,
        waves: WavesSettings::default(),
        notify: None,
    })
}

fn auth(rng: &mut Rng) -> Result<AuthSettings, Broken> {
    Ok(match rng.permille(500) {
        true => AuthSettings::AkSk {
            access_key_file: PathBuf::from("access-key"),
            secret_key_file: PathBuf::from("secret-key"),
            security_token_file: None,
        },
        false => AuthSettings::Token {
            iam_endpoint: url("http://iam.simulated.invalid")?,
            domain: "sim".into(),
            username: "sim".into(),
            password_file: PathBuf::from("password"),
        },
    })
}

fn target(
    rng: &mut Rng,
    service: Service,
    auth: &AuthSettings,
    scenario: &Scenario,
) -> Result<TargetSettings, Broken> {
    let mut budgets = Vec::new();
    for action in PowerAction::ALL {
        if rng.permille(80) {
            budgets.push((*action, budget(rng)));
        }
    }
    let servers = scenario.server_ids(service);
    let protected = if rng.permille(150) {
        rng.pick(&servers).cloned().into_iter().collect()
    } else {
        Vec::new()
    };
    Ok(TargetSettings {
        name: target_name(service),
        service,
        endpoint: url(&format!("http://{service}.simulated.invalid"))?,
        project_id: Scenario::default().credentials.project_id,
        submits_per_minute: rng.between(3, 50) as u32,
        submits_open_max: rng.between(1, 16) as u32,
        batch_servers_max: rng.between(1, 20) as u32,
        job_time_limit: seconds(rng, 30, 240),
        look_time_limit: seconds(rng, 20, 180),
        settle_time: rng.millis(1_000, 20_000),
        first_look: rng.millis(50, 4_000),
        look_interval_max: seconds(rng, 4, 30),
        inventory_interval: None,
        connect_timeout: Duration::from_secs(5),
        request_timeout: seconds(rng, 2, 20),
        ca_file: None,
        proxy: None,
        proxy_password_file: None,
        allow_http: true,
        auth: auth.clone(),
        budgets,
        guards: Vec::new(),
        windows: Windows::default(),
        protected,
    })
}

fn url(text: &str) -> Result<Url, Broken> {
    Url::parse(text).map_err(|error| Broken(format!("{text}: {error}")))
}

fn span(min_ms: u64, max_ms: u64) -> Span {
    Span { min_ms, max_ms }
}

fn either<T>(rng: &mut Rng, one: T, other: T) -> T {
    if rng.permille(500) { one } else { other }
}

fn limits_of(target: &TargetSettings, calendar: &Calendar) -> rules::TargetLimits {
    rules::TargetLimits {
        submits_per_minute: target.submits_per_minute,
        batch_servers_max: target.batch_servers_max,
        budgets: target.budgets.clone(),
        protected: target.protected.clone(),
        guards: target.guards.clone(),
        calendar: calendar.clone(),
    }
}

fn is_slow(fault: &Fault) -> bool {
    matches!(fault.kind, FaultKind::Slow { .. })
}

fn concerns_reads(fault: &Fault) -> bool {
    let on = &fault.when.on;
    let mut reads = on
        .iter()
        .filter(|call| matches!(call, Call::Job | Call::List | Call::Show));
    on.is_empty() || reads.next().is_some()
}

fn strikes_by_chance(fault: &Fault) -> bool {
    fault.when.chance.is_some() || fault.when.servers.is_empty()
}

/// True if looks may fail by it.
fn spoils_looks(fault: &Fault) -> bool {
    match fault.kind {
        FaultKind::OddAnswer { .. } | FaultKind::ActsAnyway { .. } => false,
        FaultKind::OperationNeverEnds => true,
        ref kind => {
            is_of_calls(kind)
                && concerns_reads(fault)
                && strikes_by_chance(fault)
                && fault.when.limit_above.is_none()
        }
    }
}

fn hides_reboots(fault: &Fault) -> bool {
    matches!(
        fault.kind,
        FaultKind::JobVanishes
            | FaultKind::JobNeverEnds
            | FaultKind::SubJobLeftOut
            | FaultKind::SubJobWithoutId
            | FaultKind::SubJobFails { .. }
            | FaultKind::OperationFails { .. }
    ) || !fault.when.jobs.is_empty()
}

/// True if it strikes the reads of some servers every time.
fn hides_servers(fault: &Fault) -> bool {
    is_of_calls(&fault.kind) && concerns_reads(fault) && !strikes_by_chance(fault)
}

fn hangs_a_show(fault: &Fault) -> bool {
    is_slow(fault) && fault.when.on.contains(&Call::Show)
}

fn retry_after_s(fault: &Fault) -> Option<u32> {
    match fault.kind {
        FaultKind::Throttle { retry_after_s, .. } => retry_after_s,
        _ => None,
    }
}

fn by_chance(kind: FaultKind, on: &[Call], percent: u64) -> Fault {
    Fault {
        kind,
        when: When {
            on: on.to_vec(),
            chance: Some(Chance::clamped(percent as f64 / 100.0)),
            ..When::default()
        },
    }
}

fn latency(rng: &mut Rng) -> Span {
    span(0, *rng.pick(&[0, 100, 3_000, 12_000]).unwrap_or(&0))
}

fn small_chance(rng: &mut Rng) -> Option<Chance> {
    Some(Chance::clamped(rng.between(5, 40) as f64 / 100.0))
}

fn pick_code(rng: &mut Rng, among: &[&str]) -> String {
    (*rng.pick(among).unwrap_or(&"BMS.0212")).to_owned()
}

fn any_5xx(rng: &mut Rng) -> u16 {
    *rng.pick(&[500, 502, 503, 504]).unwrap_or(&502)
}

fn seconds(rng: &mut Rng, low: u64, high: u64) -> Duration {
    rng.millis(low * 1000, high * 1000)
}

fn budget(rng: &mut Rng) -> Budget {
    Budget {
        servers: rng.between(1, 6) as u32,
        span: rng.millis(5_000, 90_000),
    }
}
