use std::sync::atomic::{AtomicUsize, Ordering};

use super::*;
use crate::model::{Activity, CodeClass, Power};

const RUNNING: ServerView = ServerView::of(Power::On, Activity::Idle);

/// A project of `listed` servers, with what fails.
#[derive(Default)]
struct Project {
    listed: usize,
    /// Pages that are larger, or begin later, cannot be had.
    limit_max: Option<usize>,
    breaks_at: Option<usize>,
    list_fault: Option<Fault>,
    /// How a show of a server that is not listed fails; such a server is missing if there is none.
    show_fault: Option<Fault>,
    /// Shows that succeed before the cloud throttles.
    shows_allowed: Option<usize>,
    pages: Mutex<Vec<(usize, usize)>>,
    shows: AtomicUsize,
    is_filtered: bool,
    hangs: Vec<ServerId>,
}

impl Project {
    fn fails(&self, place: usize, limit: usize) -> Option<Fault> {
        let too_large = self.limit_max.is_some_and(|most| limit > most);
        let broken = self.breaks_at.is_some_and(|at| place >= at);
        let fault = self.list_fault.clone();
        fault.or_else(|| (too_large || broken).then_some(Fault::Unavailable))
    }

    fn pages(&self) -> Vec<(usize, usize)> {
        std::mem::take(&mut *self.pages.lock().expect("not poisoned"))
    }

    fn shows(&self) -> usize {
        self.shows.swap(0, Ordering::SeqCst)
    }
}

const SETTLE_TIME: Duration = Duration::from_secs(60);

fn failure(fault: Fault) -> CallError {
    CallError {
        fault,
        status: Some(500),
        code: String::new(),
        message: "no".to_owned(),
        request_id: None,
        retry_after: None,
    }
}

fn server(n: usize) -> ServerId {
    ServerId(format!("server-{n}"))
}

fn servers(range: std::ops::Range<usize>) -> Vec<ServerId> {
    range.map(server).collect()
}

fn listed(n: usize) -> Listed {
    Listed {
        id: server(n),
        view: Some(RUNNING),
        name: format!("name-{n}"),
        status: "ACTIVE".to_owned(),
    }
}

/// Numbered places, as BMS has them.
impl ServerReader for Project {
    type Place = usize;

    fn first_page(&self) -> usize {
        0
    }

    async fn page(&self, place: usize, limit: usize) -> Result<Page<usize>, CallError> {
        self.pages
            .lock()
            .expect("not poisoned")
            .push((place, limit));
        assert_eq!(
            place % limit,
            0,
            "a page begins where pages of this size begin"
        );
        if let Some(fault) = self.fails(place, limit) {
            return Err(failure(fault));
        }
        let end = (place + limit).min(self.listed);
        let servers: Vec<Listed> = (place..end).map(listed).collect();
        Ok(Page {
            next: (servers.len() == limit).then_some(place + limit),
            servers,
            is_filtered: self.is_filtered,
        })
    }

    fn page_after(&self, place: &usize, limit: usize) -> Option<usize> {
        Some(place + limit)
    }

    async fn show(&self, asked: &ServerId) -> Result<Sighting, CallError> {
        let before = self.shows.fetch_add(1, Ordering::SeqCst);
        if self.hangs.contains(asked) {
            std::future::pending::<()>().await;
        }
        if self.shows_allowed.is_some_and(|allowed| before >= allowed) {
            return Err(failure(Fault::Throttled {
                retry_after: None,
                limit: None,
            }));
        }
        if (0..self.listed).any(|n| server(n) == *asked) {
            return Ok(Sighting::Present(RUNNING));
        }
        self.show_fault
            .clone()
            .map_or(Ok(Sighting::Missing), |fault| Err(failure(fault)))
    }
}

#[tokio::test]
async fn servers_that_cannot_be_shown_hide_nobody_else() {
    for fault in [
        Fault::Unavailable,
        Fault::Refused(CodeClass::Other),
        Fault::Permission,
        Fault::Configuration,
    ] {
        let project = Project {
            listed: 48,
            show_fault: Some(fault.clone()),
            ..Project::default()
        };
        let seen = Looking::new(SETTLE_TIME)
            .observe(&project, &servers(0..50))
            .await
            .expect("a look");
        assert_eq!(
            (seen.sightings.len(), seen.failures.len(), seen.ended_by),
            (48, 2, None)
        );
        assert!(seen.failures.values().all(|error| error.fault == fault));
    }
}

#[tokio::test]
async fn a_lone_server_that_cannot_be_shown_says_nothing_of_the_cloud() {
    let project = Project {
        listed: 5,
        show_fault: Some(Fault::Unavailable),
        ..Project::default()
    };
    let looking = Looking::new(SETTLE_TIME);
    for (pages, shows) in [(1, 1), (1, 1)] {
        let seen = looking
            .observe(&project, &servers(7..8))
            .await
            .expect("the list can be read");
        assert_eq!((seen.sightings.len(), seen.failures.len()), (0, 1));
        assert_eq!((project.pages().len(), project.shows()), (pages, shows));
    }
}

#[tokio::test]
async fn a_cloud_that_reads_nothing_at_all_fails_the_look() {
    let unavailable = Some(Fault::Unavailable);
    let away = Project {
        list_fault: unavailable.clone(),
        show_fault: unavailable,
        ..Project::default()
    };
    for asked in [servers(0..1), servers(0..50)] {
        let looked = Looking::new(SETTLE_TIME).observe(&away, &asked).await;
        assert_eq!(looked.expect_err("nothing").fault, Fault::Unavailable);
        assert!(away.shows() <= SHOWS_FAILED_ALONE_MAX && away.pages().len() <= 8);
    }
    for fault in [
        Fault::Credentials,
        Fault::Unreachable,
        Fault::Throttled {
            retry_after: None,
            limit: None,
        },
    ] {
        let refused = Project {
            list_fault: Some(fault.clone()),
            ..Project::default()
        };
        let looked = Looking::new(SETTLE_TIME)
            .observe(&refused, &servers(0..50))
            .await;
        assert_eq!(looked.expect_err("nothing").fault, fault);
        assert_eq!(
            (refused.pages().len(), refused.shows()),
            (1, 0),
            "not asked again"
        );
    }
}

#[tokio::test]
async fn a_page_that_cannot_be_had_is_read_in_smaller_ones() {
    let project = Project {
        listed: 600,
        limit_max: Some(299),
        ..Project::default()
    };
    let looking = Looking::new(SETTLE_TIME);
    for first in [1000, 250] {
        let seen = looking
            .observe(&project, &servers(0..600))
            .await
            .expect("a look");
        assert_eq!((seen.sightings.len(), project.shows()), (600, 0));
        assert_eq!(project.pages()[0], (0, first));
    }
}

#[tokio::test]
async fn what_a_broken_list_has_shown_counts() {
    let project = Project {
        listed: 4000,
        breaks_at: Some(2000),
        ..Project::default()
    };
    let looking = Looking::new(SETTLE_TIME);
    let asked: Vec<ServerId> = servers(0..20)
        .into_iter()
        .chain(servers(3000..3020))
        .collect();
    let seen = looking.observe(&project, &asked).await.expect("a look");
    assert_eq!(
        (seen.sightings.len(), seen.failures.len()),
        (40, 0),
        "the others were shown one by one"
    );
    assert_eq!(project.shows(), 20);
}

#[tokio::test]
async fn without_a_list_everyone_is_shown_within_a_few_looks() {
    let project = Project {
        listed: 120,
        list_fault: Some(Fault::Unavailable),
        ..Project::default()
    };
    let looking = Looking::new(SETTLE_TIME);
    let mut seen = HashSet::new();
    for _ in 0..3 {
        let look = looking
            .observe(&project, &servers(0..120))
            .await
            .expect("a look");
        assert_eq!(look.sightings.len() + look.failures.len(), 120);
        assert!(project.shows() <= SHOWS_WITHOUT_LIST_MAX);
        seen.extend(look.sightings.into_keys());
    }
    assert_eq!(seen.len(), 120);
}

#[tokio::test]
async fn throttled_shows_end_the_look_and_keep_what_was_seen() {
    let project = Project {
        listed: 10,
        shows_allowed: Some(3),
        ..Project::default()
    };
    let seen = Looking::new(SETTLE_TIME)
        .observe(&project, &servers(0..30))
        .await
        .expect("a look");
    assert_eq!(
        seen.sightings.len(),
        13,
        "ten in the list, three are missing"
    );
    assert!(matches!(
        seen.ended_by,
        Some(CallError {
            fault: Fault::Throttled { .. },
            ..
        })
    ));
    assert!(project.shows() < 10 && seen.failures.len() == 17);
}

#[tokio::test]
async fn servers_that_never_answer_keep_a_look_within_what_proofs_allow() {
    let settle_time = Duration::from_secs(2);
    for (listed, wanted) in [(48, 50), (0, 3)] {
        let hangs = vec![server(wanted - 1), server(wanted - 2)];
        let project = Project {
            listed,
            hangs: hangs.clone(),
            ..Project::default()
        };
        let looking = Looking::new(settle_time);
        looking
            .observe(&project, &servers(0..wanted))
            .await
            .expect("a look");
        let began = Instant::now();
        let seen = looking
            .observe(&project, &servers(0..wanted))
            .await
            .expect("a look");
        assert!(began.elapsed() < settle_time / 2, "{:?}", began.elapsed());
        assert_eq!((seen.sightings.len(), seen.failures.len()), (wanted - 2, 2));
        assert!(
            hangs
                .iter()
                .all(|server| seen.failures.contains_key(server))
        );
    }
}

async fn read_list(project: &Project, pages_max: usize) -> Result<Listing, CallError> {
    Looking::new(SETTLE_TIME)
        .read_list(project, pages_max)
        .await
}

#[tokio::test]
async fn a_list_of_ten_pages_is_read_to_its_end_and_no_further() {
    for (servers, pages) in [(0, 1), (999, 1), (1000, 2), (9_999, 10)] {
        let project = Project {
            listed: servers,
            ..Project::default()
        };
        let listing = read_list(&project, PAGES_MAX).await.expect("readable");
        assert_eq!(listing.servers.len(), servers);
        assert_eq!(listing.extent, Extent::Whole);
        assert_eq!(project.pages().len(), pages);
        assert_eq!(project.shows(), 0);
    }
}

#[tokio::test]
async fn a_list_that_was_not_read_in_full_says_so() {
    let broken = Project {
        listed: 3_000,
        breaks_at: Some(2_000),
        ..Project::default()
    };
    let listing = read_list(&broken, PAGES_MAX).await.expect("two pages");
    assert_eq!(listing.servers.len(), 2_000);
    assert!(
        matches!(&listing.extent, Extent::CutShort(error) if error.fault == Fault::Unavailable)
    );
    let large = Project {
        listed: 3_000,
        ..Project::default()
    };
    let listing = read_list(&large, 1).await.expect("one page");
    assert_eq!(
        (listing.servers.len(), listing.extent),
        (1_000, Extent::Part)
    );
    let small_pages = Project {
        listed: 3_000,
        limit_max: Some(300),
        ..Project::default()
    };
    let listing = read_list(&small_pages, 1).await.expect("one page");
    assert_eq!((listing.servers.len(), listing.extent), (250, Extent::Part));
    let endless = Project {
        listed: usize::MAX,
        ..Project::default()
    };
    let listing = read_list(&endless, PAGES_MAX).await.expect("many pages");
    assert!(matches!(listing.extent, Extent::CutShort(_)));
    let filtered = Project {
        listed: 3,
        is_filtered: true,
        ..Project::default()
    };
    let listing = read_list(&filtered, PAGES_MAX).await.expect("one page");
    assert_eq!(listing.extent, Extent::Filtered);
    let dead = Project {
        list_fault: Some(Fault::Unreachable),
        ..Project::default()
    };
    assert!(read_list(&dead, PAGES_MAX).await.is_err());
}

#[tokio::test]
async fn a_look_shows_what_its_list_had_on_it() {
    let project = Project {
        listed: 1_500,
        ..Project::default()
    };
    let looking = Looking::new(SETTLE_TIME);
    for (wanted, seen, extent) in [
        (0..5, 1_000, Extent::Part),
        (1_400..1_405, 1_500, Extent::Whole),
    ] {
        let observed = looking.observe(&project, &servers(wanted)).await;
        let listing = observed.expect("readable").listing.expect("listed");
        assert_eq!((listing.servers.len(), listing.extent), (seen, extent));
        assert_eq!(listing.servers[7].name, "name-7");
    }
    let shown = looking.observe(&project, &servers(0..1)).await;
    assert_eq!(shown.expect("readable").listing, None);
}
