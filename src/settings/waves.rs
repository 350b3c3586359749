//! `[waves]`: the gate that is asked before an order's next wave. Runs nothing.

use std::time::Duration;

use super::WavesSettings;
use super::document::Section;
use super::notify;
use super::parse;

const LEAST: Duration = Duration::from_millis(100);
const TIMEOUT_MOST: Duration = Duration::from_secs(3600);
const INTERVAL_MOST: Duration = Duration::from_secs(86_400);
const MINUTE: Duration = Duration::from_secs(60);

impl Default for WavesSettings {
    fn default() -> Self {
        Self {
            gate: Vec::new(),
            gate_timeout: MINUTE,
            gate_interval: MINUTE,
        }
    }
}

/// Reads the table; an absent one means that there is no gate.
pub(super) fn read(root: &Section<'_>) -> WavesSettings {
    let section = root.section("waves");
    let usual = WavesSettings::default();
    let settings = WavesSettings {
        gate: notify::program(&section, "gate", "[\"/usr/local/bin/fleet-is-healthy\"]"),
        gate_timeout: section
            .read("gate_timeout", parse::duration(LEAST..=TIMEOUT_MOST))
            .unwrap_or(usual.gate_timeout),
        gate_interval: section
            .read("gate_interval", parse::duration(LEAST..=INTERVAL_MOST))
            .unwrap_or(usual.gate_interval),
    };
    if section.is_present() && !section.has("gate") {
        section.own_mistake(
            "has no gate; write gate = [\"/usr/local/bin/fleet-is-healthy\"]".to_owned(),
        );
    }
    section.refuse_unknown(|_| None);
    settings
}
