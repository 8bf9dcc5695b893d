//! The walls of a machine that runs, where those are rules of the firewall's: who takes them down is noticed, and they are
//! put back in the way of a start.
//!
//! Everybody whose machine needs the rules does so. The lock of all networks lets one after the other look, and who finds
//! them as they should be does nothing, so that it ends with the first.

use std::{
    io,
    os::fd::{AsFd, BorrowedFd},
    time::{Duration, Instant},
};

use netlink::{Netlink, Part};

use super::{
    super::{
        error::NetworkError,
        lease::Lease,
        sets::{self, Element},
    },
    Attachment,
};

/// Whom the kernel tells of all changes to tables (linux/netfilter/nfnetlink.h).
const NOTICES: u32 = libc::NFNLGRP_NFTABLES as u32;

/// How long rules are left alone that were just looked at: somebody else who insists on other ones is answered no faster.
const RESPITE: Duration = Duration::from_millis(200);

/// Who waits for changes to the rules.
#[derive(Debug)]
pub struct Watch {
    notices: Netlink,
    /// What the machine needs in our tables.
    own: Vec<Element>,
    /// When to look at the rules again, because somebody changed them.
    due: Option<Instant>,
    /// Until when to leave them alone.
    rest: Instant,
}

impl Watch {
    /// Begins to watch; nobody, where no rules are about these leases.
    ///
    /// # Errors
    ///
    /// Where the kernel tells nothing.
    pub fn start(leases: &[&Lease]) -> io::Result<Option<Self>> {
        if !leases.iter().any(|lease| lease.is_walled()) {
            return Ok(None);
        }
        Ok(Some(Self {
            notices: Netlink::listen(Part::Netfilter, NOTICES)?,
            own: leases.iter().copied().flat_map(sets::elements).collect(),
            due: None,
            rest: Instant::now(),
        }))
    }

    fn hear(&mut self) {
        let mut is_concerned = false;
        let heard = self.notices.hear(|kind, payload| {
            is_concerned |= sets::concerns(&self.own, kind, payload);
        });
        // What was lost could be about anything.
        if is_concerned || heard.is_err() {
            self.due.get_or_insert(self.rest.max(Instant::now()));
        }
    }

    /// Whether it is time to look at the rules, which is done then.
    fn is_due(&mut self, now: Instant) -> bool {
        let is_due = self.due.take_if(|due| *due <= now).is_some();
        if is_due {
            self.rest = now + RESPITE;
        }
        is_due
    }
}

impl Attachment {
    /// What is readable when somebody changed the firewall's rules: see [`hear_rules`](Self::hear_rules).
    #[must_use]
    pub fn rules(&self) -> Option<BorrowedFd<'_>> {
        Some(self.watch.as_ref()?.notices.as_fd())
    }

    /// Takes in what was changed.
    pub fn hear_rules(&mut self) {
        self.watch.iter_mut().for_each(Watch::hear);
    }

    /// When to [`look_after_rules`](Self::look_after_rules).
    #[must_use]
    pub fn rules_due(&self) -> Option<Instant> {
        self.watch.as_ref()?.due
    }

    /// Puts the rules back where they were changed, once that is due.
    ///
    /// # Errors
    ///
    /// Where they cannot be put back now. They are with the next change, or start.
    pub fn look_after_rules(&mut self, now: Instant) -> Result<(), NetworkError> {
        let is_due = |watch: &mut Watch| watch.is_due(now);
        match self.watch.as_mut().is_some_and(is_due) {
            true => self.networks.lock()?.admit(&self.leases()),
            false => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::network::lease;

    #[test]
    fn who_has_no_rules_watches_none() {
        let mut alone = lease::example("alone", "user", [10, 0, 2, 15]);
        alone.tap = String::new();
        assert!(Watch::start(&[&alone]).unwrap().is_none());
    }

    #[test]
    fn rules_are_looked_at_once_and_then_left_alone_for_a_while() {
        let now = Instant::now();
        let mut watch = Watch {
            notices: Netlink::open(Part::Netfilter).unwrap(),
            own: Vec::new(),
            due: Some(now),
            rest: now,
        };
        assert!(watch.is_due(now));
        assert!(!watch.is_due(now));
        watch.hear();
        assert_eq!(watch.due, None);
        watch.due = Some(watch.rest);
        assert!(!watch.is_due(now));
        assert!(watch.is_due(now + RESPITE));
    }
}
