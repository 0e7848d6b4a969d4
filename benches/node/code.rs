//! From the claim call to the first byte of what the user's code prints: by the resident interpreter, by an exec that a
//! waiting worker serves, by one that starts python, and beside them `runsc exec` into a sandbox that is claimed already.

use crate::hearthd::{Hearth, claim_request, eventually, fresh_id, pool, tool};
use crate::measure::{Report, Series, millis};
use hearth::api::{
    ExecRequest, ExecStart, RunCodeRequest, exec_request, exec_response, run_code_response,
    sandboxes_client::SandboxesClient,
};
use hearth::cgroup::CgroupTree;
use std::io::Read;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};
use tonic::transport::Channel;

const POOL: &str = "code";
/// The same with a worker in each member.
const PREFORKED: &str = "preforked";
const MEMBERS: u32 = 4;
const ROUNDS: u32 = 25;
const CODE: &str = "print('x')";

pub async fn section(report: &mut Report) {
    let hearth = Hearth::start_with(&[("log.level", "warn")]).await;
    let declared = [(POOL, 0), (PREFORKED, 1)].map(|(name, workers)| {
        let mut declared = pool(name, MEMBERS, 4 * MEMBERS);
        let template = declared.template.as_mut().unwrap();
        template.interpreter = "python".into();
        template.prefork = workers;
        declared
    });
    hearth.set_pools(declared.into()).await;
    let (resident, claim) = rounds(&hearth, How::Resident).await;
    let (again, _) = rounds(&hearth, How::ResidentAgain).await;
    let (preforked, _) = rounds(&hearth, How::Preforked).await;
    let (exec, _) = rounds(&hearth, How::Exec).await;
    let peer = runsc_exec(&hearth).await;
    report.row("claim → first byte of code, resident", &resident);
    report.row("  of it: the claim", &claim);
    report.row("  code alone, in a context that has run before", &again);
    report.row(
        "claim → first byte of code, exec python, pre-forked",
        &preforked,
    );
    report.row("claim → first byte of code, exec python", &exec);
    report.row("  peer: runsc exec python, no claim", &peer);
    let p50 = millis(resident.at(50));
    let what = "claim → first byte of code, resident, p50 ms";
    report.goal(what, p50, "≤ 2", p50 <= 2.0);
    let preforked = millis(preforked.at(50));
    let what = "claim → first byte of code, pre-forked, p50 ms";
    report.goal(what, preforked, "≤ 15", preforked <= 15.0);
    let ratio = millis(peer.at(50)) / p50;
    report.rate("  runsc exec python takes", ratio, "times as long");
    let [without, with] = [POOL, PREFORKED].map(|pool| resident_megabytes(&hearth, pool));
    report.rate("  RAM of a running member, no worker", without, "MB");
    report.rate("  RAM of a running member, one worker", with, "MB");
    hearth.finish().await;
}

/// Mean of its sandboxes' cgroups.
fn resident_megabytes(hearth: &Hearth, pool: &str) -> f64 {
    let tree = CgroupTree::detect("/sys/fs/cgroup").unwrap();
    let parent = hearth.cgroup_parent();
    let found = tree.list(&parent).unwrap().into_iter();
    let bytes: Vec<_> = found
        .filter(|found| found.pool == pool)
        .filter_map(|found| tree.sandbox(&parent, pool, &found.id).ok()?.usage().ok())
        .map(|usage| usage.memory_bytes as f64)
        .collect();
    bytes.iter().sum::<f64>() / bytes.len() as f64 / f64::from(1 << 20)
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum How {
    Resident,
    /// The claim and a first run are not measured.
    ResidentAgain,
    Preforked,
    Exec,
}

impl How {
    fn pool(self) -> &'static str {
        match self {
            Self::Preforked => PREFORKED,
            Self::Resident | Self::ResidentAgain | Self::Exec => POOL,
        }
    }
}

/// Whole, and the claim alone.
async fn rounds(hearth: &Hearth, how: How) -> (Series, Series) {
    let (mut series, mut claim_alone) = (Series::default(), Series::default());
    let (mut claims, mut sandboxes) = (hearth.claims().await, hearth.sandboxes().await);
    for _ in 0..ROUNDS {
        // The node is quiet: no refill is measured.
        eventually("full and quiet", || async {
            for name in [POOL, PREFORKED] {
                let status = hearth.status(name).await;
                if status.creating != 0 || status.releasing != 0 || status.warm != MEMBERS {
                    return false;
                }
            }
            true
        })
        .await;
        tokio::time::sleep(Duration::from_millis(100)).await;
        let id = fresh_id();
        let mut began = Instant::now();
        claims.claim(claim_request(&id, how.pool())).await.unwrap();
        claim_alone.push(began.elapsed());
        match how {
            How::Preforked | How::Exec => exec(&mut sandboxes, &id).await,
            How::Resident => resident(&mut sandboxes, &id).await,
            How::ResidentAgain => {
                resident(&mut sandboxes, &id).await;
                tokio::time::sleep(Duration::from_millis(50)).await;
                began = Instant::now();
                resident(&mut sandboxes, &id).await;
            }
        }
        series.push(began.elapsed());
        hearth.release(&id).await;
    }
    (series, claim_alone)
}

async fn resident(sandboxes: &mut SandboxesClient<Channel>, claim: &str) {
    let request = RunCodeRequest {
        claim_id: claim.to_owned(),
        code: CODE.to_owned(),
        ..RunCodeRequest::default()
    };
    let stream = sandboxes.run_code(request).await.unwrap();
    let mut stream = stream.into_inner();
    loop {
        let answer = stream.message().await.unwrap().expect("output");
        if let Some(run_code_response::Response::Stdout(_)) = answer.response {
            return;
        }
    }
}

async fn exec(sandboxes: &mut SandboxesClient<Channel>, claim: &str) {
    let start = ExecStart {
        claim_id: claim.to_owned(),
        command: ["python3", "-c", CODE].map(str::to_owned).into(),
        ..ExecStart::default()
    };
    let request = ExecRequest {
        request: Some(exec_request::Request::Start(start)),
    };
    let requests = tokio_stream::iter([request]);
    let stream = sandboxes.exec(requests).await.unwrap();
    let mut stream = stream.into_inner();
    loop {
        let answer = stream.message().await.unwrap().expect("output");
        if let Some(exec_response::Response::Stdout(_)) = answer.response {
            return;
        }
    }
}

/// `runsc exec` of python into a claimed sandbox, until its first byte.
async fn runsc_exec(hearth: &Hearth) -> Series {
    let (claim, answer) = hearth.claim(POOL).await;
    let mut series = Series::default();
    for _ in 0..10 {
        let mut command = Command::new(tool("runsc"));
        command
            .arg(format!(
                "--root={}",
                hearth.path("run/runsc/hearth").display()
            ))
            .args(["exec", &answer.sandbox_id, "python3", "-c", CODE])
            .stdin(Stdio::null())
            .stderr(Stdio::null())
            .stdout(Stdio::piped());
        let began = Instant::now();
        let mut child = command.spawn().unwrap();
        child.stdout.as_mut().unwrap().read_exact(&mut [0]).unwrap();
        series.push(began.elapsed());
        child.wait().unwrap();
    }
    hearth.release(&claim).await;
    series
}
