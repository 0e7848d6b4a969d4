//! Golden images on a real node: members that are clones, what two clones do not share, clones that fail.

use crate::hearthd::{Hearth, claim_request, eventually, fresh_id, pool};
use crate::network::{allow, network, node_with, reaches, to};
use crate::outside::{self, Outside};
use crate::residency::cgroup;
use hearth::api::run_code_response::Response as Told;
use hearth::api::{HibernateRequest, OnEmpty, Pool, RunCodeRequest, Source, Tier};
use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::time::{Duration, SystemTime};

/// And leaves a machine id, as images of whole systems do.
const WARM: &str = "import decimal, json, time; time.sleep(1)\nopen('/etc/machine-id', 'w').write('0' * 32 + '\\n')";

fn members(min_warm: u32) -> Pool {
    let mut python = pool("python", min_warm, 12);
    python.max_parallel_refills = 1;
    let template = python.template.as_mut().unwrap();
    template.interpreter = "python".into();
    // Generators that have drawn before the image is taken: what they draw next is in it.
    let preload = "import random, ssl; random.random(); ssl.RAND_bytes(16)";
    template.env = [("HEARTH_PRELOAD".to_owned(), preload.to_owned())].into();
    // What takes its time when a member is made: a clone has it done.
    let warm = ["python3", "-c", WARM];
    template.warm_command = warm.map(str::to_owned).to_vec();
    python
}

async fn start() -> Hearth {
    Hearth::start_with(&[("hibernation.golden_images", "auto")]).await
}

fn figure(hearth: &Hearth, name: &str) -> u64 {
    let (_, metrics) = hearth.admin_page("/metrics");
    let line = metrics
        .lines()
        .find_map(|line| line.strip_prefix(&format!("{name} ")));
    line.unwrap_or_else(|| panic!("{name} is not in\n{metrics}"))
        .parse()
        .unwrap()
}

/// Older than that images are when their clones' clocks are looked at.
const AGE: Duration = Duration::from_secs(5);

/// Sandboxes that were made anew, for this reason.
fn missed(hearth: &Hearth, reason: &str) -> u64 {
    let name = format!("hearth_golden_misses_total{{reason=\"{reason}\"}}");
    figure(hearth, &name)
}

/// Claims from the pool, or what is made where that is dry: the claim, and how its sandbox came.
async fn claim_cold(hearth: &Hearth) -> (String, Source) {
    let mut request = claim_request(&fresh_id(), "python");
    request.on_empty = OnEmpty::Cold.into();
    let claim = request.claim_id.clone();
    let answer = hearth.claims().await.claim(request).await.unwrap();
    (claim, answer.into_inner().source())
}

/// The originals of the images that are in staging memory.
fn originals(hearth: &Hearth) -> Vec<String> {
    let staging = std::fs::read_dir(hearth.path("run/images")).unwrap();
    let names = staging.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let originals = names.filter_map(|name| Some(name.strip_prefix("golden-")?.to_owned()));
    originals.collect()
}

/// What the resident interpreter prints.
async fn code(hearth: &Hearth, claim: &str, code: &str) -> String {
    let request = RunCodeRequest {
        claim_id: claim.into(),
        code: code.into(),
        ..RunCodeRequest::default()
    };
    let answer = hearth.sandboxes().await.run_code(request).await.unwrap();
    let mut stream = answer.into_inner();
    let mut text = String::new();
    while let Some(answer) = stream.message().await.unwrap() {
        if let Some(Told::Stdout(data)) = answer.response {
            text.push_str(&String::from_utf8_lossy(&data));
        }
    }
    text.trim().to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn clones_are_ready_and_share_no_randomness_and_no_name() {
    const DRAWN: &str = "import os,random,uuid,secrets,ssl\nprint(os.urandom(16).hex(), random.random(), uuid.uuid4(), secrets.token_hex(8), ssl.RAND_bytes(16).hex())";
    let hearth = start().await;
    hearth.set_pools(vec![members(4)]).await;
    hearth.warm("python", 4).await;
    assert_eq!(figure(&hearth, "hearth_golden_images"), 1);
    let clones = figure(&hearth, "hearth_clone_duration_seconds_count");
    assert!(clones >= 1, "nobody was cloned");
    assert_eq!(figure(&hearth, "hearth_clone_failures_total"), 0);
    println!("{clones} clones of 4 members");

    let (mut drawn, mut names) = (BTreeSet::new(), BTreeSet::new());
    for _ in 0..4 {
        let (claim, answer) = hearth.claim("python").await;
        let resident = code(&hearth, &claim, DRAWN).await;
        let (status, fresh) = hearth.run(&claim, &["python3", "-c", DRAWN]).await;
        assert_eq!(status, 0);
        let words = resident.split_whitespace().chain(fresh.split_whitespace());
        for word in words {
            assert!(drawn.insert(word.to_owned()), "{word} was drawn twice");
        }
        let (_, name) = hearth.run(&claim, &["busybox", "hostname"]).await;
        assert_eq!(name.trim(), answer.sandbox_id);
        assert!(names.insert(name));
        let (_, machine) = hearth.run(&claim, &["cat", "/etc/machine-id"]).await;
        let made = machine.len() == 33 && machine.trim().chars().all(|c| c.is_ascii_hexdigit());
        assert!(made && !machine.starts_with("0000000000"), "{machine}");
        assert!(drawn.insert(machine), "two machines have the same id");
    }
    assert_eq!(drawn.len(), 4 * (2 * 5 + 1));
    hearth.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dry_pool_serves_a_clone_and_one_that_fails_is_made_anew() {
    let hearth = start().await;
    hearth.set_pools(vec![members(1)]).await;
    hearth.warm("python", 1).await;
    assert_eq!(missed(&hearth, "no_image"), 1);
    let mut sources = Vec::new();
    tokio::time::sleep(AGE).await;
    let mut clone = String::new();
    for _ in 0..2 {
        let (claim, source) = claim_cold(&hearth).await;
        sources.push(source);
        clone = claim;
    }
    assert_eq!(sources, [Source::Warm, Source::Cloned]);
    // One that went on with its original's clock would be behind by the image's age.
    let now = || {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        now.unwrap().as_secs()
    };
    let before = now();
    let (_, told) = hearth.run(&clone, &["busybox", "date", "+%s"]).await;
    let (told, after) = (told.trim().parse::<u64>().unwrap(), now());
    let right = before - 1..=after + 1;
    assert!(right.contains(&told), "{told} is not in {right:?}");

    // The image is damaged: as with any restore that fails, the claim is served all the same.
    let original = originals(&hearth).pop().expect("a golden image");
    let image = hearth.path("run/images").join(format!("golden-{original}"));
    std::fs::write(image.join("checkpoint.img"), "junk").unwrap();
    eventually("a refill met it, or is over", || async {
        let status = hearth.status("python").await;
        status.creating == 0 && status.warm == 1
    })
    .await;
    for _ in 0..2 {
        sources.push(claim_cold(&hearth).await.1);
    }
    assert!(figure(&hearth, "hearth_clone_failures_total") >= 1);
    eventually("each that failed was made anew", || async {
        missed(&hearth, "failed") == figure(&hearth, "hearth_clone_failures_total")
    })
    .await;
    assert!(sources.contains(&Source::Cold), "{sources:?}");
    hearth.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_golden_image_makes_way_for_a_sandbox_that_goes_to_the_disk_and_is_taken_anew() {
    const STAGING_MIB: u64 = 224;
    let staging = (STAGING_MIB << 20).to_string();
    let settings = [
        ("hibernation.golden_images", "auto"),
        ("hibernation.staging_bytes", &staging),
    ];
    let hearth = Hearth::start_with(&settings).await;
    hearth.set_pools(vec![members(1)]).await;
    hearth.warm("python", 1).await;
    assert_eq!(figure(&hearth, "hearth_golden_images"), 1);
    // The image's pages are charged to the first one: its own image would seem bigger than it is.
    let (_original, _) = hearth.claim("python").await;
    hearth.warm("python", 1).await;
    let (claim, answer) = hearth.claim("python").await;
    hearth.warm("python", 1).await;
    // So much that both images have no room at once: half a golden image less than all.
    let cgroup = cgroup(&hearth, &answer.sandbox_id);
    let mib = cgroup.usage().unwrap().memory_bytes >> 20;
    hearth.hold(&claim, STAGING_MIB - 40 - mib).await;
    let request = HibernateRequest {
        claim_id: claim.clone(),
        epoch: 1,
        tier: Tier::Disk.into(),
        ..HibernateRequest::default()
    };
    hearth.claims().await.hibernate(request).await.unwrap();
    let told = hearth.log_text();
    assert!(told.contains("makes way"), "there was room for both");
    // So it does when the sandbox comes back, if it was taken anew meanwhile; the pool goes on either way.
    assert_eq!(hearth.run(&claim, &["test", "-e", "/tmp/held"]).await.0, 0);
    hearth.release(&claim).await;
    hearth.claim("python").await;
    hearth.warm("python", 1).await;
    eventually("it is taken anew", || async {
        let taken = hearth.log_text().matches("golden image taken").count();
        if taken < 2 {
            hearth.serve_one("python").await;
        }
        taken >= 2
    })
    .await;
    assert_eq!(figure(&hearth, "hearth_clone_failures_total"), 0);
    hearth.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn no_image_is_taken_of_what_is_made_for_a_claim() {
    let hearth = start().await;
    hearth.set_pools(vec![members(0)]).await;
    for round in 1..=2 {
        assert_eq!(claim_cold(&hearth).await.1, Source::Cold, "round {round}");
        assert_eq!(missed(&hearth, "no_image"), round);
    }
    assert_eq!(figure(&hearth, "hearth_golden_images"), 0);
    assert_eq!(originals(&hearth), [""; 0]);
    hearth.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pool_that_is_made_anew_has_nothing_of_the_one_before() {
    let hearth = start().await;
    let mut clones = 0;
    // A pool that is there again begins at any generation.
    for (generation, word) in [(7, "first"), (7, "second"), (3, "third")] {
        let mut python = members(2);
        python.generation = generation;
        let warm = format!("import time; time.sleep(1); open('/root/word', 'w').write('{word}')");
        let warm = ["python3", "-c", &warm].map(str::to_owned);
        python.template.as_mut().unwrap().warm_command = warm.to_vec();
        hearth.set_pools(vec![python]).await;
        hearth.warm("python", 2).await;
        assert_eq!(figure(&hearth, "hearth_golden_images"), 1, "{word}");
        let now = figure(&hearth, "hearth_clone_duration_seconds_count");
        assert!(now > clones, "nobody was cloned: {word}");
        clones = now;
        for _ in 0..2 {
            let (claim, _) = hearth.claim("python").await;
            let (_, found) = hearth.run(&claim, &["cat", "/root/word"]).await;
            assert_eq!(found, word);
            hearth.release(&claim).await;
        }
        hearth.set_pools(Vec::new()).await;
        eventually("its image and its staging memory are gone", || async {
            figure(&hearth, "hearth_golden_images") == 0 && originals(&hearth).is_empty()
        })
        .await;
    }
    hearth.finish().await;
}

/// Opens a connection to the outside and keeps it; what becomes of it is told in a file.
const TALKS: &str = "import os, socket, time
if os.fork():
    while not os.path.exists('/root/talks'):
        time.sleep(0.05)
    time.sleep(3)
    os._exit(0)
os.setsid()
null = os.open('/dev/null', os.O_RDWR)
for fd in (0, 1, 2):
    os.dup2(null, fd)
talk = socket.create_connection(('11.1.1.1', 90), 20)
talk.sendall(b'original')
talk.settimeout(None)
open('/root/talks', 'w').close()
try:
    told = 'heard %r' % talk.recv(16)
except OSError as error:
    told = 'failed: %s' % error
open('/root/told.new', 'w').write(told)
os.rename('/root/told.new', '/root/told')
time.sleep(1000000)";

/// Its own address, and how many of its TCP connections stand.
const WIRED: &str = "import socket
probe = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
probe.connect(('11.1.1.1', 80))
lines = open('/proc/net/tcp').read().splitlines()[1:]
print(probe.getsockname()[0], sum(line.split()[3] == '01' for line in lines))";

#[tokio::test(flavor = "multi_thread")]
async fn clones_have_addresses_of_their_own_and_no_connection_of_their_original() {
    let outside = Outside::new();
    let listener = outside.listen(outside::PUBLIC, 90);
    let hearth = node_with(&outside, &[("hibernation.golden_images", "auto")]).await;
    let mut python = members(3);
    let template = python.template.as_mut().unwrap();
    template.network_policy = Some(allow(to(outside::PUBLIC)));
    template.warm_command = ["python3", "-c", TALKS].map(str::to_owned).to_vec();
    hearth.set_pools(vec![python]).await;
    hearth.warm("python", 3).await;
    assert_eq!(figure(&hearth, "hearth_clone_failures_total"), 0);
    assert_eq!(figure(&hearth, "hearth_clone_duration_seconds_count"), 2);
    let [original] = &originals(&hearth)[..] else {
        panic!("one image");
    };

    // One connection, the original's, and nobody has opened another.
    let (mut talk, _) = listener.accept().unwrap();
    let others = listener.accept().map_err(|error| error.kind());
    assert!(others.is_err_and(|kind| kind == std::io::ErrorKind::WouldBlock));
    talk.set_nonblocking(false).unwrap();
    talk.set_read_timeout(Some(Duration::from_secs(10)))
        .unwrap();
    let mut said = [0; 8];
    talk.read_exact(&mut said).unwrap();
    assert_eq!(&said, b"original");
    // Whoever had inherited it would hear this.
    let _reset = talk.write_all(b"for the original");

    let mut addresses = BTreeSet::new();
    for _ in 0..3 {
        let (claim, answer) = hearth.claim("python").await;
        let told = network(&hearth, &claim).await.addresses[0].clone();
        assert!(addresses.insert(told.clone()), "{told} is two sandboxes'");
        let (_, wired) = hearth.run(&claim, &["python3", "-c", WIRED]).await;
        let (address, standing) = wired.trim().split_once(' ').unwrap();
        assert_eq!(address, told);
        assert!(reaches(&hearth, &claim, outside::PUBLIC, 80).await);
        assert!(!reaches(&hearth, &claim, outside::OTHER, 80).await);
        let (_, heard) = hearth
            .run(&claim, &["sh", "-c", "cat /root/told; true"])
            .await;
        let clone = answer.sandbox_id != *original;
        println!("clone: {clone}, {standing} connections stand, told {heard:?}");
        if clone {
            assert_eq!(standing, "0", "inherited");
            assert!(!heard.contains("for the original"), "{heard}");
            eventually("what waited on the connection knows", || async {
                let (_, heard) = hearth
                    .run(&claim, &["sh", "-c", "cat /root/told; true"])
                    .await;
                heard.starts_with("failed") || heard == "heard b''"
            })
            .await;
        }
    }
    hearth.finish().await;
}
