//! What start, stop and reboot are: the questions that other rooms ask about an action, each
//! answered for every one of them. No room compares an action with one of its variants.

use super::{Activity, Power, PowerAction};

impl PowerAction {
    /// True where a server looks the same before and after, so that its power cannot tell whether
    /// the call was carried out, and a second call would do harm.
    pub const fn leaves_no_mark(self) -> bool {
        match self {
            Self::Start | Self::Stop => false,
            Self::Reboot => true,
        }
    }

    /// The power of a server once the action is done.
    pub const fn wished_power(self) -> Power {
        match self {
            Self::Start | Self::Reboot => Power::On,
            Self::Stop => Power::Off,
        }
    }

    /// What a server is doing while the action is carried out.
    pub const fn transition(self) -> Activity {
        match self {
            Self::Start => Activity::PoweringOn,
            Self::Stop => Activity::PoweringOff,
            Self::Reboot => Activity::Rebooting,
        }
    }

    /// True if it ends what runs on the server: protected servers are kept from it.
    pub const fn interrupts(self) -> bool {
        match self {
            Self::Start => false,
            Self::Stop | Self::Reboot => true,
        }
    }

    /// True if a stopped server refuses it. Source: user guide, "Restarting a BMS".
    pub const fn needs_a_running_server(self) -> bool {
        match self {
            Self::Start | Self::Stop => false,
            Self::Reboot => true,
        }
    }

    /// The actions of which `holds` is true, in the order of declaration.
    pub fn those(holds: fn(Self) -> bool) -> impl Iterator<Item = Self> {
        Self::ALL
            .iter()
            .copied()
            .filter(move |action| holds(*action))
    }
}
