//! A crash at every sync: for the state of the disk after each one, alone and with whatever part of the later writes, the
//! journal opens with the records of some batch, no earlier than the last one reported durable.

use super::super::{mark::Mark, store, upgrade};
use super::*;
use redb::StorageBackend;
use std::io;

#[derive(Debug, Clone)]
enum Step {
    Write(u64, Vec<u8>),
    Len(u64),
    Sync,
    /// So many batches were reported durable, under this commit number.
    Durable(usize, u64),
}

/// Storage that remembers what was done to it.
#[derive(Debug, Clone, Default)]
struct Recorder {
    live: Memory,
    log: Arc<Mutex<Vec<Step>>>,
}

impl Recorder {
    fn note(&self, step: Step) {
        self.log.lock().unwrap().push(step);
    }

    fn log(&self) -> Vec<Step> {
        self.log.lock().unwrap().clone()
    }
}

impl StorageBackend for Recorder {
    fn len(&self) -> io::Result<u64> {
        self.live.len()
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.live.read(offset, out)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.note(Step::Len(len));
        self.live.set_len(len)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.note(Step::Sync);
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.note(Step::Write(offset, data.to_vec()));
        self.live.write(offset, data)
    }
}

/// What may be on the disk.
#[derive(Debug, Clone, Copy)]
enum Fate {
    /// Nothing since the last sync.
    Lost,
    /// Everything, in order: the process died, the machine did not.
    Kept,
    /// Each write whole, in part, or not at all.
    Torn,
}

fn write(image: &mut [u8], offset: u64, data: &[u8]) {
    let from = usize::try_from(offset).unwrap();
    // A write beyond the end is of a growth that was lost.
    let room = image.len().saturating_sub(from).min(data.len());
    if room > 0 {
        image[from..from + room].copy_from_slice(&data[..room]);
    }
}

fn apply(image: &mut Vec<u8>, step: &Step) {
    match step {
        Step::Write(offset, data) => write(image, *offset, data),
        Step::Len(len) => image.resize(usize::try_from(*len).unwrap(), 0),
        Step::Sync | Step::Durable(..) => {}
    }
}

/// The disk after `steps`, the last of which are not synced.
fn disk(base: &[u8], steps: &[Step], fate: Fate, random: &mut Random) -> Vec<u8> {
    let synced = steps.iter().rposition(|step| matches!(step, Step::Sync));
    let (safe, open) = steps.split_at(synced.map_or(0, |at| at + 1));
    let mut image = base.to_vec();
    safe.iter().for_each(|step| apply(&mut image, step));
    for step in open {
        match (fate, step) {
            (Fate::Lost, _) => {}
            (Fate::Torn, _) if random.coin() => {}
            (Fate::Torn, Step::Write(offset, data)) if random.coin() => {
                let from = random.index(data.len());
                let to = from + random.index(data.len() - from) + 1;
                write(&mut image, offset + from as u64, &data[from..to]);
            }
            _ => apply(&mut image, step),
        }
    }
    image
}

struct World {
    log: Vec<Step>,
    /// Records after so many batches.
    states: Vec<Records>,
    /// Steps of making the file, which happen under another name.
    made: usize,
    tag: NodeTag,
    dir: tempfile::TempDir,
}

const CLOCKS: (&str, u64, u64) = ("a", 1, 2);

fn open_store(dir: &Path, recorder: &Recorder) -> Result<(store::Store, store::Loaded), OpenError> {
    let (id, boottime, wall) = CLOCKS;
    let mark = Mark::open(dir).unwrap();
    let backend = Arc::new(recorder.clone());
    let path = Path::new("journal.redb");
    store::open(
        backend,
        mark,
        &boot(id, boottime, wall),
        path,
        upgrade::STEPS,
    )
}

/// Random batches with restarts in between, growing, and shrinking at the end.
fn history(random: &mut Random) -> World {
    let dir = temp_dir();
    let tag = NodeTag(9);
    let recorder = Recorder::default();
    let (id, boottime, wall) = CLOCKS;
    let clocks = boot(id, boottime, wall);
    let backend = Arc::new(recorder.clone());
    store::create(
        backend,
        Identity { tag },
        &clocks,
        Path::new("journal.redb"),
    )
    .unwrap();
    let made = recorder.log().len();
    let (mut store, _) = open_store(dir.path(), &recorder).unwrap();
    let mut model = MemoryRecords::default();
    let mut states = vec![model.read()];
    let delete = |id: u64| {
        [
            Op::DeleteClaim(claim_id(id)),
            Op::DeleteSandbox(sandbox_id(id)),
        ]
    };
    for round in 0..30 {
        let mut group = Vec::new();
        for _ in 0..=random.below(3) {
            let mut ops = random_ops(random);
            match round {
                // Grow in a few steps, and shrink again.
                5..15 => ops.extend((0..20).map(|n| Op::PutClaim(claim(round * 20 + n, n)))),
                25.. => ops.extend((0..300).flat_map(delete)),
                _ => {}
            }
            ops.iter().for_each(|op| model.apply(op));
            states.push(model.read());
            let ticket = Ticket(states.len() as u64);
            let anchor = Now(ticket.0);
            group.push(Batch {
                ticket,
                anchor,
                ops,
            });
        }
        store.commit(&group).unwrap();
        let mark = Mark::open(dir.path()).unwrap();
        recorder.note(Step::Durable(states.len() - 1, mark.newest(tag)));
        if random.below(10) == 0 {
            drop(store);
            store = open_store(dir.path(), &recorder).unwrap().0;
        }
    }
    World {
        log: recorder.log(),
        states,
        made,
        tag,
        dir,
    }
}

impl World {
    /// Opens what a crash left; `durable` batches must be there. The recorder has the open's own steps.
    fn check(&self, what: &str, image: Vec<u8>, (durable, commit): (usize, u64)) -> Recorder {
        let recorder = Recorder {
            live: Memory::of(image),
            ..Recorder::default()
        };
        let mark = Mark::open(self.dir.path()).unwrap();
        mark.note(self.tag, commit).unwrap();
        let opened = open_store(self.dir.path(), &recorder);
        let (_store, loaded) = opened.unwrap_or_else(|error| panic!("{what}: {error}"));
        let found = self.states[durable..].contains(&loaded.records);
        assert!(
            found,
            "{what}: not the records of a batch from {durable} on"
        );
        recorder
    }
}

#[test]
fn nothing_acknowledged_is_lost() {
    let mut random = Random::new();
    let world = history(&mut random);
    let syncs = |log: &[Step]| {
        let places = log.iter().enumerate();
        let places = places.filter(|(_, step)| matches!(step, Step::Sync));
        places.map(|(at, _)| at + 1).collect::<Vec<_>>()
    };
    let mut cuts = syncs(&world.log);
    cuts.retain(|at| *at >= world.made);
    cuts.push(world.log.len());
    let mut cases = 0;
    for window in cuts.windows(2) {
        let (from, to) = (window[0], window[1]);
        for fate in [Fate::Lost, Fate::Kept, Fate::Torn, Fate::Torn, Fate::Torn] {
            // The last step of the window is the sync that did not happen any more.
            let end = if to == world.log.len() { to } else { to - 1 };
            let cut = match fate {
                Fate::Lost => from,
                Fate::Kept => end,
                Fate::Torn => from + random.index(end - from + 1),
            };
            let before = &world.log[..cut];
            let durable = before.iter().rev().find_map(|step| match step {
                Step::Durable(batches, commit) => Some((*batches, *commit)),
                _ => None,
            });
            let durable = durable.unwrap_or((0, 0));
            let what = format!("step {cut} of {}, {fate:?}", world.log.len());
            let image = disk(&[], before, fate, &mut random);
            let recovery = world.check(&what, image.clone(), durable);
            cases += 1;
            // A second crash, in the middle of the recovery from the first.
            if matches!(fate, Fate::Torn) && random.below(3) == 0 {
                let log = recovery.log();
                let again = random.index(log.len() + 1);
                let image = disk(&image, &log[..again], Fate::Torn, &mut random);
                world.check(
                    &format!("{what}, then step {again} of recovery"),
                    image,
                    durable,
                );
                cases += 1;
            }
        }
    }
    let lens = world
        .log
        .iter()
        .filter(|step| matches!(step, Step::Len(_)))
        .count();
    println!(
        "{} syncs, {lens} changes of length, {cases} crashes",
        cuts.len()
    );
    assert!(cuts.len() > 30 && lens > 3, "the history is too quiet");
}
