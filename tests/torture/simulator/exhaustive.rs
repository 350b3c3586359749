//! One scenario of each kind, with a daemon that dies at every single point of it, one run a point.

use std::time::Duration;

use super::draw::{self, Plan};
use super::machine::Point;
use super::rng::Rng;
use super::{Broken, Failure, Simulator, Summary};
use poweryard::model::Service;
use poweryard::sim::Scenario;

/// The kinds of scenarios: what happens to the first submit calls.
pub(crate) const KINDS: [&str; 12] = [
    "accepted",
    "lost",
    "lost before",
    "refused",
    "vanished",
    "gap",
    "retry",
    "waves",
    "clouddc accepted",
    "clouddc lost",
    "clouddc lost before",
    "clouddc refused",
];

/// How many points a scenario has at which a daemon can die.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Points {
    /// Commits.
    pub(crate) commits: u64,
    /// Calls to the cloud.
    pub(crate) calls: u64,
}

impl Simulator {
    /// Runs the scenario of this kind once undisturbed, and then once for each of its points that
    /// `is_tried` takes by its place, with a daemon that dies there.
    ///
    /// # Errors
    /// The first broken promise; its `what` names the point.
    pub(crate) fn run_every_crash(
        &self,
        kind: &str,
        is_tried: impl Fn(usize) -> bool,
    ) -> Result<Points, Failure> {
        let whole = self.run_kind(kind, None)?;
        let points = Points {
            commits: whole.commits,
            calls: whole.calls,
        };
        let commits = (1..=points.commits).map(Point::Commit);
        let calls = (1..=points.calls).flat_map(|n| [Point::Call(n), Point::Answer(n)]);
        let all = commits.chain(calls).enumerate();
        for (_, point) in all.filter(|(place, _)| is_tried(*place)) {
            self.run_kind(kind, Some(point))?;
        }
        Ok(points)
    }

    fn run_kind(&self, kind: &str, point: Option<Point>) -> Result<Summary, Failure> {
        let named = |failure: Failure| Failure {
            what: Broken(format!("\"{kind}\", ending at {point:?}: {}", failure.what)),
            ..failure
        };
        self.run_with(0, point.is_some(), |seed| {
            plan(kind, seed).map(|(plan, rng)| (plan, rng, point))
        })
        .map_err(named)
    }
}

fn plan(kind: &str, seed: u64) -> Result<(Plan, Rng), Broken> {
    let mut rng = Rng::new(seed);
    let (service, kind) = match kind.strip_prefix("clouddc ") {
        Some(kind) => (Service::CloudDc, kind),
        None => (Service::Bms, kind),
    };
    let mut plan = draw::plan_for(&mut rng, &[service])?;
    for target in &mut plan.settings.targets {
        (target.budgets, target.protected) = (Vec::new(), Vec::new());
        // Few looks, and so few points, prove that nothing was carried out.
        target.settle_time = Duration::from_secs(3);
    }
    let faults = faults(kind).replace("kind =", &format!("service = \"{service}\"\nkind ="));
    // A server that had been rebooted before is looked at closely for a minute: hundreds of points,
    // all of one kind.
    let states = match (service, kind) {
        (Service::CloudDc, "lost" | "lost before" | "refused") => "first_states = [\"none\"]\n",
        _ => "",
    };
    let text = format!("[{service}]\nservers = 4\noperation_ms = [2000, 4000]\n{states}{faults}");
    plan.scenario = Scenario::from_toml(&text).map_err(|error| Broken(error.to_string()))?;
    plan.rough = draw::Roughness {
        crash: 0,
        crash_in_step: 0,
        lock: 0,
        clock: 0,
        operators: 0,
        misspelt: 0,
        flood: 0,
        way_max_ms: 200,
        requests: 6,
        reboots: 0,
        act_gap_max_ms: 1_000,
        meddling: 0,
        copies: 0,
        orders: if kind == "waves" { 1_000 } else { 0 },
        staff: 0,
        gate_no: 0,
    };
    Ok((plan, rng))
}

fn faults(kind: &str) -> &'static str {
    match kind {
        "lost" => "[[faults]]\nkind = \"drop_after\"\non = [\"submit\"]\ncalls = [1, 2]\n",
        "lost before" => "[[faults]]\nkind = \"drop_before\"\non = [\"submit\"]\ncalls = [1, 2]\n",
        "refused" => "[[faults]]\nkind = \"locked\"\nservers = [2]\n",
        "vanished" => "[[faults]]\nkind = \"job_vanishes\"\ncalls = [1, 2]\n",
        "gap" => "[[faults]]\nkind = \"sub_job_left_out\"\nservers = [1, 3]\n",
        "retry" => {
            "[[faults]]\nkind = \"throttle\"\non = [\"submit\"]\ncalls = [1]\n[[faults]]\nkind = \"sub_job_fails\"\ncode = \"BMS.1007\"\ncalls = [2]\n"
        }
        _ => "",
    }
}
