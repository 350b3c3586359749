//! What lists show of a project's servers: the nouns of the inventory.

use super::{CallError, Power, ServerId};

/// A server as a list shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ListedServer {
    /// Its id, in the list's spelling.
    pub id: ServerId,
    /// Its name as the cloud gives it, at most 255 characters; empty if the cloud gives none.
    pub name: String,
    /// Is it running?
    pub power: Power,
    /// The cloud's own word for its state; empty if there is none.
    pub status: String,
    /// Locked servers refuse power actions.
    pub locked: bool,
}

/// What a list showed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listing {
    /// In the order of the list; one that moved from page to page may be there twice.
    pub servers: Vec<ListedServer>,
    /// How far the list was read.
    pub extent: Extent,
}

/// How far a list was read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Extent {
    /// To its end: a server that it lacks does not exist any more.
    Whole,
    /// To its end, but the cloud leaves servers out that this key may not list.
    Filtered,
    /// As far as was wanted.
    Part,
    /// Something ended it before.
    CutShort(Box<CallError>),
}

impl Extent {
    /// True if the list was read to its end.
    pub fn is_full(&self) -> bool {
        match self {
            Self::Whole | Self::Filtered => true,
            Self::Part | Self::CutShort(_) => false,
        }
    }
}

impl Power {
    /// As the table `servers` has it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::On => "on",
            Self::Off => "off",
            Self::Faulty | Self::Unclear => "unclear",
        }
    }
}
