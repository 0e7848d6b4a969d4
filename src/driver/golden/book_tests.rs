#![allow(clippy::unwrap_used)]

use super::*;
use crate::machine::ids::NodeTag;
use crate::machine::network::NetworkPolicy;
use crate::machine::spec::{OnDataLoss, Readiness, Resources, UpdateStrategy};

const POOL: &str = "python";

fn name(pool: &str) -> PoolName {
    PoolName::parse(pool).unwrap()
}

fn id(number: u64) -> SandboxId {
    SandboxId::new(NodeTag(7), number).unwrap()
}

fn secs(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

/// A pool whose template differs in its warm command only.
fn pool(pool: &str, generation: u64, warm: &str) -> PoolSpec {
    let template = Template {
        image: "image:1".into(),
        runtime_handler: "gvisor".into(),
        runtime_class: String::new(),
        command: Vec::new(),
        env: BTreeMap::new(),
        working_dir: String::new(),
        resources: Resources {
            cpu_millis: 0,
            memory_bytes: 1,
            pids: 1,
            disk_bytes: 1,
            open_files: 1,
        },
        network_policy: NetworkPolicy::default(),
        warm_command: vec![warm.to_owned()],
        readiness: Readiness {
            command: Vec::new(),
            timeout_ms: 1,
        },
        interpreter: String::new(),
        prefork: 0,
        idle_after_ms: 0,
        on_data_loss: OnDataLoss::Fail,
    };
    PoolSpec {
        name: name(pool),
        generation,
        template,
        min_warm: 1,
        max_total: 2,
        update_strategy: UpdateStrategy::OnReplenish,
        max_parallel_refills: 0,
        running: None,
        warm_pool: None,
    }
}

fn member(number: u64, of: &PoolSpec) -> CreateSpec {
    CreateSpec {
        id: id(number),
        pool: of.name.clone(),
        generation: of.generation,
        template: Arc::new(of.template.clone()),
        network: None,
    }
}

/// A book of this pool, with the image of its first member, which took 10 s.
fn with_image(of: &PoolSpec) -> Book {
    let mut book = Book::default();
    assert_eq!(book.declared([of]), []);
    let first = member(1, of);
    assert_eq!(book.way(&first), Err(Miss::NoImage));
    assert!(book.made(&first, secs(10), false));
    assert!(book.taken(&first, Ok(())));
    assert_eq!(book.images(), 1);
    book
}

#[test]
fn clones_are_tried_once_and_stay_while_they_are_faster() {
    let of = pool(POOL, 1, "warm");
    let mut book = with_image(&of);
    let next = member(2, &of);
    assert_eq!(book.way(&next), Ok(id(1)));
    book.cloned(&next, secs(9));
    assert_eq!(book.way(&next), Ok(id(1)));
    book.cloned(&next, secs(11));
    assert_eq!(book.way(&next), Err(Miss::Slower));
    // Made anew it took longer than the clone this time; the image is still there.
    assert!(!book.made(&next, secs(12), false));
    assert_eq!(book.way(&next), Ok(id(1)));
}

#[test]
fn an_image_is_of_one_template_whatever_the_generation() {
    let of = pool(POOL, 1, "warm");
    let mut book = with_image(&of);
    // It grows: what its members are is the same.
    let grown = PoolSpec {
        min_warm: 5,
        ..pool(POOL, 2, "warm")
    };
    assert_eq!(book.declared([&grown]), []);
    assert_eq!(book.way(&member(2, &grown)), Ok(id(1)));
    // Another template goes with its image, also under the same generation and under a lower one.
    for (generation, warm) in [(2, "other"), (1, "third")] {
        let other = pool(POOL, generation, warm);
        let left = book.declared([&other]);
        assert_eq!(left.len(), 1, "{left:?}");
        assert_eq!(book.images(), 0);
        let fresh = member(10 + generation, &other);
        assert_eq!(book.way(&fresh), Err(Miss::NoImage));
        assert!(book.made(&fresh, secs(1), false));
        assert!(book.taken(&fresh, Ok(())));
        assert_eq!(book.way(&member(3, &other)), Ok(fresh.id));
        assert_eq!(book.way(&member(4, &of)), Err(Miss::NoImage), "outdated");
    }
}

#[test]
fn an_image_goes_with_its_pool() {
    let of = pool(POOL, 1, "warm");
    let mut book = with_image(&of);
    let other = pool("other", 1, "warm");
    assert_eq!(book.declared([&of, &other]), []);
    assert_eq!(book.declared([&other]), [(name(POOL), id(1))]);
    assert_eq!(book.images(), 0);
    // What comes late of it changes nothing.
    let late = member(2, &of);
    book.cloned(&late, secs(1));
    assert!(!book.clone_failed(&late, id(1)));
    assert!(!book.made(&late, secs(1), false));
    assert_eq!(book.declared([&of, &other]), []);
    assert_eq!(
        book.way(&late),
        Err(Miss::NoImage),
        "made anew, as the pool"
    );
}

#[test]
fn what_was_taken_of_a_pool_that_went_meanwhile_is_not_kept() {
    let of = pool(POOL, 1, "warm");
    let mut book = Book::default();
    book.declared([&of]);
    let first = member(1, &of);
    assert!(book.made(&first, secs(1), false));
    book.declared([]);
    assert!(!book.taken(&first, Ok(())));
    assert_eq!(book.images(), 0);
}

#[test]
fn none_is_taken_of_a_claims_sandbox_and_one_at_a_time() {
    let of = pool(POOL, 1, "warm");
    let mut book = Book::default();
    book.declared([&of]);
    assert!(!book.made(&member(1, &of), secs(1), true));
    assert!(book.made(&member(2, &of), secs(1), false));
    assert!(!book.made(&member(3, &of), secs(1), false));
    assert_eq!(book.way(&member(4, &of)), Err(Miss::NoImage));
}

#[test]
fn without_room_it_is_tried_again_later_and_a_failure_is_the_end() {
    let of = pool(POOL, 1, "warm");
    let mut book = Book::default();
    book.declared([&of]);
    let mut numbers = 1..;
    let mut made = |book: &mut Book| {
        let spec = member(numbers.next().unwrap(), &of);
        (book.made(&spec, secs(1), false), spec)
    };
    let (wanted, spec) = made(&mut book);
    assert!(wanted);
    let full = CheckpointFailure::NoRoom("full".into());
    assert!(!book.taken(&spec, Err(&full)));
    for _ in 0..REST {
        let (wanted, spec) = made(&mut book);
        assert!(!wanted);
        assert_eq!(book.way(&spec), Err(Miss::NoImage));
    }
    let (wanted, spec) = made(&mut book);
    assert!(wanted);
    let failed = CheckpointFailure::Failed("no".into());
    assert!(!book.taken(&spec, Err(&failed)));
    assert_eq!(book.way(&spec), Err(Miss::GivenUp));
    for _ in 0..=REST {
        assert!(!made(&mut book).0);
    }
}

#[test]
fn an_image_whose_clones_keep_failing_is_given_up_and_one_that_is_lost_is_taken_anew() {
    let of = pool(POOL, 1, "warm");
    let mut book = with_image(&of);
    let next = member(2, &of);
    for _ in 1..FAILURES {
        assert!(!book.clone_failed(&next, id(1)));
    }
    book.cloned(&next, secs(1));
    for _ in 1..FAILURES {
        assert!(!book.clone_failed(&next, id(1)));
    }
    assert!(book.clone_failed(&next, id(1)));
    assert_eq!((book.images(), book.way(&next)), (0, Err(Miss::GivenUp)));

    let mut book = with_image(&of);
    book.lost(&next, id(9));
    assert_eq!(book.way(&next), Ok(id(1)), "that was another one");
    book.lost(&next, id(1));
    assert_eq!((book.images(), book.way(&next)), (0, Err(Miss::NoImage)));
    assert!(book.made(&next, secs(1), false));
    assert!(book.taken(&next, Ok(())));
    assert_eq!(book.way(&member(3, &of)), Ok(id(2)));
}
