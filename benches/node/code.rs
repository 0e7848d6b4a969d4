//! From the claim call to the first byte of what the user's code prints: by the resident interpreter, by an exec, and beside
//! them `runsc exec` into a sandbox that is claimed already.

use crate::hearthd::{Hearth, claim_request, eventually, fresh_id, pool, tool};
use crate::measure::{Report, Series, millis};
use hearth::api::{
    ExecRequest, ExecStart, RunCodeRequest, exec_request, exec_response, run_code_response,
};
use std::io::Read;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

const POOL: &str = "code";
const MEMBERS: u32 = 4;
const ROUNDS: u32 = 40;
const CODE: &str = "print('x')";

pub async fn section(report: &mut Report) {
    let hearth = Hearth::start_with(&[("log.level", "warn")]).await;
    let mut declared = pool(POOL, MEMBERS, 4 * MEMBERS);
    declared.template.as_mut().unwrap().interpreter = "python".into();
    hearth.set_pools(vec![declared]).await;
    let resident = rounds(&hearth, How::Resident).await;
    let again = rounds(&hearth, How::ResidentAgain).await;
    let exec = rounds(&hearth, How::Exec).await;
    let peer = runsc_exec(&hearth).await;
    report.row("claim → first byte of code, resident", &resident);
    report.row("  code alone, in a context that has run before", &again);
    report.row("claim → first byte of code, exec python", &exec);
    report.row("  peer: runsc exec python, no claim", &peer);
    let p50 = millis(resident.at(50));
    let what = "claim → first byte of code, resident, p50 ms";
    report.goal(what, p50, "≤ 2", p50 <= 2.0);
    let ratio = millis(peer.at(50)) / p50;
    report.rate("  runsc exec python takes", ratio, "times as long");
    hearth.finish().await;
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum How {
    Resident,
    /// The claim and a first run are not measured.
    ResidentAgain,
    Exec,
}

async fn rounds(hearth: &Hearth, how: How) -> Series {
    let mut series = Series::default();
    let mut claims = hearth.claims().await;
    for _ in 0..ROUNDS {
        // The node is quiet: no refill is measured.
        eventually("full and quiet", || async {
            let status = hearth.status(POOL).await;
            status.creating == 0 && status.releasing == 0 && status.warm == MEMBERS
        })
        .await;
        tokio::time::sleep(Duration::from_millis(100)).await;
        let id = fresh_id();
        let mut began = Instant::now();
        claims.claim(claim_request(&id, POOL)).await.unwrap();
        match how {
            How::Exec => exec(hearth, &id).await,
            How::Resident => resident(hearth, &id).await,
            How::ResidentAgain => {
                resident(hearth, &id).await;
                tokio::time::sleep(Duration::from_millis(50)).await;
                began = Instant::now();
                resident(hearth, &id).await;
            }
        }
        series.push(began.elapsed());
        hearth.release(&id).await;
    }
    series
}

async fn resident(hearth: &Hearth, claim: &str) {
    let request = RunCodeRequest {
        claim_id: claim.to_owned(),
        code: CODE.to_owned(),
        ..RunCodeRequest::default()
    };
    let stream = hearth.sandboxes().await.run_code(request).await.unwrap();
    let mut stream = stream.into_inner();
    loop {
        let answer = stream.message().await.unwrap().expect("output");
        if let Some(run_code_response::Response::Stdout(_)) = answer.response {
            return;
        }
    }
}

async fn exec(hearth: &Hearth, claim: &str) {
    let start = ExecStart {
        claim_id: claim.to_owned(),
        command: ["python3", "-c", CODE].map(str::to_owned).into(),
        ..ExecStart::default()
    };
    let request = ExecRequest {
        request: Some(exec_request::Request::Start(start)),
    };
    let requests = tokio_stream::iter([request]);
    let stream = hearth.sandboxes().await.exec(requests).await.unwrap();
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
