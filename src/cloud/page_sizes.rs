//! How many servers a page of a list is asked for: fewer if a page cannot be read, more again
//! later.
//!
//! Pure: told how each page went, it says how large the next one should be. Reads nothing.

/// Servers on a page, largest first. Each size divides the one before it, so that a place in the
/// list that was reached with one size is the beginning of a page of every smaller one.
///
/// Source: BMS API Reference, `limit` is at most 1000; CloudDC API Reference, `limit` is 10 to
/// 1000, smaller ones become 10.
const SIZES: [usize; 5] = [1000, 500, 250, 50, 10];

/// A size that failed this often in one listing is not tried again in it.
const FAILURES_MAX: u32 = 2;

/// After this many listings with small pages the largest is tried again: the cause of the failure
/// may be gone.
const LISTINGS_UNTIL_LARGER: u32 = 16;

/// What is remembered from listing to listing.
#[derive(Debug, Default, Clone, Copy)]
pub(super) struct Remembered {
    /// The largest size worth a try, as an index into `SIZES`.
    largest: usize,
    /// Listings since that was found out.
    listings: u32,
}

/// The sizes of one listing's pages.
#[derive(Debug)]
pub(super) struct PageSizes {
    /// The present size, as an index into `SIZES`.
    at: usize,
    largest: usize,
    /// Entries that have been read or skipped.
    offset: usize,
    failed: [u32; SIZES.len()],
    read: [u32; SIZES.len()],
    /// True once a page of the smallest size has failed.
    smallest_failed: bool,
}

impl PageSizes {
    /// For a new listing.
    pub(super) fn begin(remembered: Remembered) -> Self {
        let largest = if remembered.listings < LISTINGS_UNTIL_LARGER {
            remembered.largest
        } else {
            0
        };
        let none = [0; SIZES.len()];
        Self {
            at: largest,
            largest,
            offset: 0,
            failed: none,
            read: none,
            smallest_failed: false,
        }
    }

    /// Servers to ask the next page for.
    pub(super) fn limit(&self) -> usize {
        SIZES[self.at]
    }

    /// True once a page has been read.
    pub(super) fn has_read(&self) -> bool {
        self.read.iter().any(|pages| *pages > 0)
    }

    /// A page of the present size was read. What failed may have been one entry, so larger pages
    /// follow where they fit.
    pub(super) fn page_read(&mut self) {
        self.read[self.at] += 1;
        self.pass();
    }

    /// A page of the present size cannot be read; true if the same place should be read with a
    /// smaller one.
    pub(super) fn page_failed(&mut self) -> bool {
        self.failed[self.at] += 1;
        if self.at + 1 == SIZES.len() {
            self.smallest_failed = true;
            return false;
        }
        self.at += 1;
        true
    }

    /// The page that failed is left out.
    pub(super) fn page_skipped(&mut self) {
        self.pass();
    }

    fn pass(&mut self) {
        self.offset += self.limit();
        while self.at > self.largest
            && self.offset.is_multiple_of(SIZES[self.at - 1])
            && self.failed[self.at - 1] < FAILURES_MAX
        {
            self.at -= 1;
        }
    }

    /// What the next listing should know.
    ///
    /// The next listing does not begin with a size that failed and never worked. If no size worked,
    /// the list is broken or the cloud is down, which says nothing about sizes. If there was no
    /// time to try them all, the next listing continues.
    pub(super) fn remember(&self, before: Remembered) -> Remembered {
        let worked = |size: &usize| self.failed[*size] == 0 || self.read[*size] > 0;
        let largest = match (self.has_read(), self.smallest_failed) {
            (true, _) => (self.largest..SIZES.len()).find(worked).unwrap_or(self.at),
            (false, true) => 0,
            (false, false) => self.at,
        };
        let as_before = largest == self.largest && self.largest == before.largest;
        Remembered {
            largest,
            listings: if as_before {
                before.listings.saturating_add(1)
            } else {
                0
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Lists `servers` entries at a cloud whose pages `can` be had or not (place, limit); the
    /// calls, and what is remembered.
    fn list(
        before: Remembered,
        servers: usize,
        can: impl Fn(usize, usize) -> bool,
    ) -> (Vec<usize>, Remembered) {
        let mut sizes = PageSizes::begin(before);
        let mut calls = Vec::new();
        let mut skipped = 0;
        while sizes.offset < servers && skipped < 3 {
            calls.push(sizes.limit());
            if can(sizes.offset, sizes.limit()) {
                sizes.page_read();
            } else if !sizes.page_failed() {
                sizes.page_skipped();
                skipped += 1;
            }
        }
        let after = sizes.remember(before);
        (calls, after)
    }

    #[test]
    fn a_size_that_works_is_found_and_begun_with_from_then_on() {
        let small = |_: usize, limit: usize| limit < 300;
        let (calls, after) = list(Remembered::default(), 1000, small);
        assert_eq!(calls, [1000, 500, 250, 250, 500, 250, 250]);
        assert_eq!(list(after, 1000, small).0, [250; 4]);
    }

    #[test]
    fn larger_pages_are_tried_again_after_a_while() {
        let mut memory = list(Remembered::default(), 500, |_, limit| limit < 300).1;
        let mut first = Vec::new();
        for _ in 0..LISTINGS_UNTIL_LARGER + 2 {
            let (calls, after) = list(memory, 500, |_, _| true);
            first.push(calls[0]);
            memory = after;
        }
        assert_eq!(
            first[..LISTINGS_UNTIL_LARGER as usize],
            [250; LISTINGS_UNTIL_LARGER as usize]
        );
        assert_eq!(first[LISTINGS_UNTIL_LARGER as usize..], [1000, 1000]);
    }

    #[test]
    fn one_bad_entry_costs_small_pages_around_it_and_no_more() {
        let bad_at =
            |bad: usize| move |place: usize, limit: usize| !(place..place + limit).contains(&bad);
        let (calls, after) = list(Remembered::default(), 10_000, bad_at(2005));
        assert!(calls.len() < 40, "{calls:?}");
        assert_eq!(calls[..3], [1000; 3]);
        assert_eq!(calls.last(), Some(&1000));
        assert_eq!(list(after, 10_000, bad_at(2005)).0[0], 1000);
    }

    #[test]
    fn a_list_that_fails_at_every_size_teaches_nothing() {
        let (calls, after) = list(Remembered::default(), 20, |_, _| false);
        assert_eq!(calls, [1000, 500, 250, 50, 10, 10]);
        assert_eq!(after.largest, 0);
    }
}
