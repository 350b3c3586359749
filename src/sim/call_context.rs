//! What belongs to a call while it is handled: its servers, its number, its faults and its chance.
//! Decides nothing.

use super::faults::{FaultKind, FaultPlan};
use super::late::LateAct;
use super::record::{Call, LedgerEntry};
use super::rng::Rng;
use crate::model::{PowerAction, ServerId, Service, UtcMillis};

/// What a call is about, for its record and its faults.
#[derive(Debug, Clone, Copy)]
pub(super) struct About<'a> {
    /// `None`: the identity service.
    pub(super) service: Option<Service>,
    pub(super) call: Call,
    pub(super) action: Option<PowerAction>,
    pub(super) servers: &'a [ServerId],
    /// The page that a list call asks for.
    pub(super) page: Option<PageAsked>,
    /// The number of the job that is asked for, from 1, if there is one.
    pub(super) job: Option<usize>,
}

/// A page of a list, as it is asked for.
#[derive(Debug, Clone, Copy)]
pub(super) struct PageAsked {
    /// Its number, from 1.
    pub(super) number: usize,
    /// Servers a page.
    pub(super) limit: usize,
}

impl<'a> About<'a> {
    /// A call that switches nothing.
    pub(super) fn read(service: Option<Service>, call: Call, servers: &'a [ServerId]) -> Self {
        Self {
            service,
            call,
            action: None,
            servers,
            page: None,
            job: None,
        }
    }

    pub(super) fn submit(service: Service, action: PowerAction, servers: &'a [ServerId]) -> Self {
        Self {
            service: Some(service),
            call: Call::Submit,
            action: Some(action),
            servers,
            page: None,
            job: None,
        }
    }
}

/// What the code that carries out a call gets.
pub(super) struct CallContext<'a> {
    pub(super) now: UtcMillis,
    /// Its number among those of its kind and service, from 1.
    pub(super) nth: u64,
    /// The faults that struck it.
    pub(super) struck: &'a [FaultKind],
    pub(super) request_id: &'a str,
}

/// What a submit needs of the world around it.
pub(super) struct Surroundings<'a> {
    pub(super) now: UtcMillis,
    /// The number of this submit, from 1.
    pub(super) nth: u64,
    pub(super) faults: &'a FaultPlan,
    /// The faults that struck this call.
    pub(super) struck: &'a [FaultKind],
    pub(super) request_id: &'a str,
    pub(super) rng: &'a mut Rng,
    pub(super) ledger: &'a mut Vec<LedgerEntry>,
    /// What will begin later.
    pub(super) late: &'a mut Vec<LateAct>,
}

/// Chance, in a stream of its own for CloudDC, so that its calls change nothing for the others.
#[derive(Debug, Clone)]
pub(super) struct Chances {
    pub(super) clouddc: Rng,
    pub(super) others: Rng,
}

impl Chances {
    pub(super) fn new(seed: u64) -> Self {
        Self {
            clouddc: Rng::new(seed, "clouddc calls"),
            others: Rng::new(seed, "calls"),
        }
    }

    pub(super) fn of(&mut self, service: Option<Service>) -> &mut Rng {
        match service {
            Some(Service::CloudDc) => &mut self.clouddc,
            Some(Service::Bms) | None => &mut self.others,
        }
    }
}

impl CallContext<'_> {
    /// For a submit, together with the parts of the world that it needs.
    pub(super) fn surroundings<'b>(
        &'b self,
        faults: &'b FaultPlan,
        rng: &'b mut Rng,
        ledger: &'b mut Vec<LedgerEntry>,
        late: &'b mut Vec<LateAct>,
    ) -> Surroundings<'b> {
        let CallContext {
            now,
            nth,
            struck,
            request_id,
        } = *self;
        Surroundings {
            now,
            nth,
            faults,
            struck,
            request_id,
            rng,
            ledger,
            late,
        }
    }
}
