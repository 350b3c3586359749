//! What makes large orders safe, drawn beside the rest: guards, windows and freezes around a clock
//! change, orders with waves and their gate. Half of the seeds have none of it.

use std::time::Duration;

use super::{Plan, seconds};
use crate::simulator::Broken;
use crate::simulator::orders::{Amount, OrderFacts};
use crate::simulator::rng::Rng;
use crate::simulator::windows::{Calendar, Zone};
use poweryard::model::{Budget, PowerAction, UtcMillis};
use poweryard::settings::WavesSettings;

/// 2080-01-01: ahead of any machine's clock.
pub(super) const BEGIN: UtcMillis = UtcMillis(3_471_292_800_000);
const HOUR_MS: u64 = 3_600_000;

/// Adds them to a plan.
pub(super) fn add(rng: &mut Rng, plan: &mut Plan) -> Result<(), Broken> {
    if rng.permille(500) {
        return Ok(());
    }
    plan.zone = *rng.pick(&Zone::ALL).unwrap_or(&Zone::Utc);
    plan.begin = begin(rng, plan.zone);
    if rng.permille(750) {
        plan.rough.orders = rng.between(100, 900);
        plan.rough.requests += rng.between(0, 20);
    }
    if rng.permille(700) {
        plan.rough.staff = rng.between(20, 350);
    }
    for target in &mut plan.settings.targets {
        if rng.permille(400) {
            target.guards = guards(rng);
        }
    }
    if rng.permille(400) {
        let index = rng.index(plan.calendars.len());
        set_calendar(rng, plan, index, plan.begin)?;
    }
    if plan.rough.orders > 0 && rng.permille(400) {
        plan.settings.waves = gate(rng);
    }
    plan.rough.gate_no = rng.between(0, 900);
    Ok(())
}

/// Other windows for a target.
pub(in crate::simulator) fn set_calendar(
    rng: &mut Rng,
    plan: &mut Plan,
    index: usize,
    now: UtcMillis,
) -> Result<(), Broken> {
    let calendar = Calendar::drawn(rng, now, plan.zone);
    if let (Some(target), Some(own)) = (
        plan.settings.targets.get_mut(index),
        plan.calendars.get_mut(index),
    ) {
        target.windows = calendar.settings()?;
        *own = calendar;
    }
    Ok(())
}

/// Somebody who decides before each wave.
pub(in crate::simulator) fn gate(rng: &mut Rng) -> WavesSettings {
    WavesSettings {
        gate: vec!["ask-somebody".into()],
        gate_timeout: seconds(rng, 1, 60),
        gate_interval: seconds(rng, 1, 90),
    }
}

/// Near a clock change of the zone, or a midnight of its wall clock, or a plain day.
fn begin(rng: &mut Rng, zone: Zone) -> UtcMillis {
    let before = rng.millis(0, HOUR_MS);
    match rng.pick(zone.changes()) {
        Some((change, _)) if rng.permille(600) => change.before(before),
        _ if rng.permille(400) => zone.midnight_after(BEGIN).before(before),
        _ => BEGIN,
    }
}

fn guards(rng: &mut Rng) -> Vec<(PowerAction, Budget)> {
    let mut guards = Vec::new();
    for action in PowerAction::ALL {
        if rng.permille(600) {
            let span = *rng
                .pick(&[5_000, 60_000, 600_000, HOUR_MS])
                .unwrap_or(&60_000);
            let guard = Budget {
                servers: rng.between(1, 6) as u32,
                span: Duration::from_millis(span),
            };
            guards.push((*action, guard));
        }
    }
    guards
}

/// An order as somebody may write it at `now`.
pub(in crate::simulator) fn order(rng: &mut Rng, now: UtcMillis) -> OrderFacts {
    let sizes = [
        Amount::Servers(1),
        Amount::Servers(1),
        Amount::Servers(2),
        Amount::Servers(3),
        Amount::Permille(125),
        Amount::Permille(200),
        Amount::Permille(340),
        Amount::Permille(500),
        Amount::Permille(1000),
    ];
    let waves = (0..rng.between(1, 3)).filter_map(|_| rng.pick(&sizes).copied());
    let waves = waves.collect();
    let failures = [
        Amount::Servers(0),
        Amount::Servers(0),
        Amount::Servers(1),
        Amount::Servers(2),
        Amount::Permille(100),
        Amount::Permille(500),
        Amount::Permille(1000),
    ];
    let failures_max = *rng.pick(&failures).unwrap_or(&Amount::Servers(0));
    let expires_at = now + rng.millis(60_000, HOUR_MS);
    let mut order = OrderFacts::new(waves, failures_max, expires_at);
    let pauses = [None, None, Some(5), Some(30), Some(120)];
    let pause_s = rng.pick(&pauses).copied().flatten();
    order.pause = pause_s.map(Duration::from_secs);
    order
}
