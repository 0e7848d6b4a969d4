//! What operators see: metrics that move, log lines that are safe, no content anywhere.

use super::*;
use crate::guest::{Personalization, StreamInput};
use bytes::Bytes;
use std::sync::{Mutex, OnceLock};
use tracing::Instrument;
use tracing_subscriber::fmt::MakeWriter;

/// Everything logged, as text.
#[derive(Clone, Default)]
struct Logged(Arc<Mutex<Vec<u8>>>);

impl Logged {
    fn text(&self) -> String {
        String::from_utf8(self.0.lock().unwrap().clone()).unwrap()
    }

    async fn wait_for(&self, text: &str) -> String {
        let until = tokio::time::Instant::now() + LONG;
        while !self.text().contains(text) {
            assert!(
                tokio::time::Instant::now() < until,
                "no {text:?} in {}",
                self.text()
            );
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        self.text()
    }
}

impl std::io::Write for Logged {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl MakeWriter<'_> for Logged {
    type Writer = Self;

    fn make_writer(&self) -> Self {
        self.clone()
    }
}

/// Catches what this thread logs: tests with it run on one thread.
fn catch() -> (Logged, tracing::subscriber::DefaultGuard) {
    // While there is only one subscriber, tracing decides by the thread that comes first to a place in the code whether
    // it is ever logged, and threads of other tests have none. A second one that lives for ever prevents that.
    static SECOND: OnceLock<tracing::Dispatch> = OnceLock::new();
    SECOND.get_or_init(|| tracing::Dispatch::new(tracing_subscriber::registry()));
    let logged = Logged::default();
    let subscriber = tracing_subscriber::fmt()
        .with_max_level(tracing::Level::TRACE)
        .with_ansi(false)
        .with_writer(logged.clone())
        .finish();
    (logged, tracing::subscriber::set_default(subscriber))
}

#[tokio::test]
async fn a_call_is_logged_in_its_callers_span_and_content_nowhere() {
    let (logged, _guard) = catch();
    let rig = Rig::new();
    let guest = rig.run(|guest| {
        guest.align();
        let (call, _) = guest.message();
        guest.say(call, Says::ClaimAck(v1::ClaimAck::default()));
        let (call, _) = guest.message();
        guest.say(call, started());
        guest.message();
        guest.say(call, stdout(b"hush-out"));
        guest.say(call, pong());
    });
    let host = rig.connect();
    let what = Personalization {
        env: [("A".to_owned(), "hush-env".to_owned())].into(),
        files: vec![("/f".to_owned(), Bytes::from_static(b"hush-file"), 0)],
        secrets: vec![("s".to_owned(), Bytes::from_static(b"hush-secret"))],
        hostname: String::new(),
    };
    let span = tracing::info_span!("claim", traceparent = "00-abc-def-01");
    let claimed = host.personalize("c", &what, LONG).instrument(span).await;
    claimed.unwrap();
    let stream = host.exec(exec("hush-command")).await.unwrap();
    let data = Bytes::from_static(b"hush-in");
    stream.input.send(StreamInput::Data(data)).await.unwrap();
    failure(&host).await;
    let text = logged.wait_for("guest broke the protocol").await;
    let line = text
        .lines()
        .find(|line| line.contains("guest call"))
        .unwrap();
    assert!(line.contains("00-abc-def-01"), "{line}");
    assert!(
        line.contains(r#"call="personalize""#) && line.contains("took_us="),
        "{line}"
    );
    assert!(text.contains(SANDBOX));
    assert!(!text.contains("hush"), "{text}");
    assert!(!format!("{what:?}").contains("hush"));
    guest.join().unwrap();
}

#[tokio::test]
async fn log_lines_are_split_bounded_and_escaped() {
    let (logged, _guard) = catch();
    let rig = Rig::new();
    // First: a FIFO that nobody has open forgets what was in it.
    let host = rig.connect();
    let guest = rig.run(|guest| {
        guest.log(b"first \x1b[2J line\nsec");
        guest.log(b"ond\n\xff\n\n");
        guest.log(&[b'l'; 3000]);
        guest.log(b"\nlast without end");
    });
    guest.join().unwrap();
    logged.wait_for("lll").await;
    host.close();
    let text = logged.wait_for("last without end").await;
    let lines: Vec<_> = text
        .lines()
        .filter(|line| line.contains("guest log"))
        .collect();
    assert!(lines[0].contains(r"u{1b}[2J line"), "{}", lines[0]);
    assert!(lines[1].contains("second"));
    assert!(lines[2].contains("xff"));
    let long: Vec<_> = lines.iter().filter(|line| line.contains("lll")).collect();
    assert_eq!(long.len(), 3);
    assert!(long.iter().all(|line| line.len() < 1300));
    assert_eq!(lines.len(), 7, "{lines:#?}");
    assert!(lines.iter().all(|line| line.contains(SANDBOX)));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flood_of_log_is_dropped_beyond_its_rate_and_blocks_nothing() {
    let rig = Rig::new();
    let guest = rig.run(|guest| {
        for _ in 0..32 {
            guest.log(&[b'x'; 32 << 10]);
        }
        guest.align();
        serve(guest);
    });
    let host = rig.connect();
    host.ping(LONG).await.unwrap();
    let kept = rig.metric("hearth_guest_log_bytes_total", "kept");
    let dropped = rig.metric("hearth_guest_log_bytes_total", "dropped");
    // What is still in the FIFO counts later.
    assert!(kept > 0.0 && dropped > 100.0 * 1024.0, "{kept} {dropped}");
    rig.over();
    guest.join().unwrap();
}

/// One call of each kind, and one of each thing that goes wrong.
async fn do_everything(rig: &Rig) {
    let guest = rig.run(|guest| {
        guest.raw(b"stale");
        guest.log(&vec![b'x'; 100 << 10]);
        guest.align();
        let eof = || output(v1::Stream::Stdout, b"", true);
        guest.serve(|guest, call, body| match body {
            Hears::Ping(_) => guest.say(call, pong()),
            Hears::Claim(_) => guest.say(call, Says::ClaimAck(v1::ClaimAck::default())),
            Hears::Witness(_) => guest.say(call, Says::Held(v1::Held::default())),
            Hears::Stats(_) => guest.say(call, Says::Stats(v1::GuestStats::default())),
            Hears::Exec(_) => {
                guest.say(call, started());
                guest.say(call, exited(0));
            }
            Hears::ReadFile(_) => {
                guest.say(call, Says::FileInfo(v1::FileInfo::default()));
                guest.say(call, eof());
            }
            Hears::ListFiles(_) => {
                let done = v1::Entries {
                    entries: Vec::new(),
                    done: true,
                };
                guest.say(call, Says::Entries(done));
            }
            Hears::Connect(_) => guest.say(call, Says::Connected(v1::Connected {})),
            _ => {}
        });
    });
    let host = rig.connect();
    host.ping(LONG).await.unwrap();
    let what = Personalization::default();
    host.personalize("c", &what, LONG).await.unwrap();
    host.witness(LONG).await.unwrap();
    host.stats(LONG).await.unwrap();
    host.exec(exec("x")).await.unwrap();
    host.read_file(v1::ReadFile::default()).await.unwrap();
    host.write_file(v1::WriteFile::default()).await.unwrap();
    host.list_files(v1::ListFiles::default()).await.unwrap();
    let _connection = host.connect(1).await.unwrap();
    rig.over();
    guest.join().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn every_metric_moves() {
    let rig = Rig::new();
    do_everything(&rig).await;
    let guest = rig.run(|guest| {
        guest.align();
        guest.say(u64::MAX, pong());
    });
    let host = rig.connect();
    failure(&host).await;
    guest.join().unwrap();
    let families = rig.registry.gather();
    assert_eq!(families.len(), 5);
    for family in &families {
        for metric in family.get_metric() {
            let histogram = metric.get_histogram().get_sample_count();
            let moved = metric.get_counter().get_value() > 0.0 || histogram > 0;
            assert!(
                moved,
                "{} {:?} never moved",
                family.name(),
                metric.get_label()
            );
        }
    }
    let calls = [
        "ping",
        "personalize",
        "witness",
        "stats",
        "exec_start",
        "read_start",
        "write_start",
        "list_start",
        "connect_start",
    ];
    for call in calls {
        let count = rig.metric("hearth_guest_round_trip_seconds", call);
        assert!(count >= 1.0, "{call}");
    }
}
