//! Requests that run code.

use super::{Fields, bounds, value};
use crate::api::{InterruptCodeRequest, RunCodeRequest};
use crate::driver::guest_v1;
use crate::machine::ids::ClaimId;
use crate::machine::refusal::Refusal;

/// The context of a request that names none.
const DEFAULT_CONTEXT: &str = "default";

/// A checked RunCodeRequest.
#[derive(Debug)]
pub struct StartCode {
    /// The claim.
    pub claim: ClaimId,
    /// For the guest.
    pub run: guest_v1::RunCode,
}

/// RunCode.
pub fn run_code(request: RunCodeRequest) -> Result<StartCode, Refusal> {
    let mut fields = Fields::default();
    let claim = value::claim_id(&mut fields, "claim_id", &request.claim_id);
    let context = context(&mut fields, request.context);
    let most = bounds::CODE_BYTES;
    fields.need(
        (1..=most).contains(&request.code.len()),
        "code",
        format!("must be 1 to {most} bytes"),
    );
    let timeout_ms = match request.timeout {
        None => Some(0),
        Some(timeout) => {
            let most = bounds::EXEC_TIMEOUT_MAX_MS;
            let timeout = value::millis(&mut fields, "timeout", timeout, most);
            fields.need(
                timeout != Some(0),
                "timeout",
                "must be positive; leave it out for none",
            );
            timeout
        }
    };
    let output_bytes = value::amount(
        &mut fields,
        "output_bytes",
        request.output_bytes,
        bounds::CODE_OUTPUT_BYTES,
    );
    let run = timeout_ms.map(|timeout_ms| guest_v1::RunCode {
        context,
        code: request.code,
        timeout_ms,
        output_bytes,
    });
    fields.give(claim.zip(run).map(|(claim, run)| StartCode { claim, run }))
}

/// A checked InterruptCodeRequest.
#[derive(Debug)]
pub struct StopCode {
    /// The claim.
    pub claim: ClaimId,
    /// For the guest.
    pub interrupt: guest_v1::Interrupt,
}

/// InterruptCode.
pub fn interrupt_code(request: InterruptCodeRequest) -> Result<StopCode, Refusal> {
    let mut fields = Fields::default();
    let claim = value::claim_id(&mut fields, "claim_id", &request.claim_id);
    let interrupt = guest_v1::Interrupt {
        context: context(&mut fields, request.context),
        end: request.end_context,
    };
    fields.give(claim.map(|claim| StopCode { claim, interrupt }))
}

fn context(fields: &mut Fields, name: String) -> String {
    if name.is_empty() {
        return DEFAULT_CONTEXT.to_owned();
    }
    let most = bounds::CONTEXT_BYTES;
    let what = format!("must be at most {most} letters, digits, \".\", \"_\" or \"-\"");
    fields.need(value::is_plain_name(&name, most), "context", what);
    name
}
