//! Every request a caller may send, for the fuzzers in fuzz/: decoded and checked, and refusals turned into statuses.
//! Nothing panics, nothing is our own bug, and what is told of it is bounded.

use super::{bounds, check, content, key::NodeKey, status};
use crate::api;
use crate::machine::handler::Handler;
use crate::machine::refusal::Refusal;
use prost::Message;

/// Message → what is done with it.
type Check = fn(&[u8]);

/// Each request message of the API. The test below fails when one is missing.
const REQUESTS: &[(&str, Check)] = &[
    ("ClaimRequest", |data| with(data, claim)),
    ("ClaimBatchRequest", |data| {
        with(data, |request: api::ClaimBatchRequest| {
            check::batch(&request)?;
            request.claims.into_iter().try_for_each(claim)
        });
    }),
    ("ReleaseRequest", |data| with(data, |r| check::release(&r))),
    ("RenewRequest", |data| with(data, |r| check::renew(&r))),
    ("GetClaimRequest", |data| {
        with(data, |r: api::GetClaimRequest| check::claim_id(&r.claim_id));
    }),
    ("ListClaimsRequest", |data| {
        with(data, |r| check::listing(&r, |_, _| None));
    }),
    ("WatchClaimsRequest", |data| with(data, check::watch)),
    ("SetPoolsRequest", |data| {
        with(data, |r| {
            check::set_pools(r, &[Handler::named("gvisor", true)])
        });
    }),
    ("ExecRequest", |data| {
        with(data, |r: api::ExecRequest| match r.request {
            Some(api::exec_request::Request::Start(start)) => check::exec_start(start).map(drop),
            Some(api::exec_request::Request::Attach(it)) => check::exec_attach(it).map(drop),
            _ => [false, true]
                .into_iter()
                .try_for_each(|is| check::exec_input(r.clone(), rules(is)).map(drop)),
        });
    }),
    ("ReadFileRequest", |data| with(data, check::read_file)),
    ("WriteFileRequest", |data| {
        with(data, |r: api::WriteFileRequest| match r.request {
            Some(api::write_file_request::Request::Start(start)) => {
                check::write_file(start).map(drop)
            }
            Some(api::write_file_request::Request::Chunk(chunk)) => {
                check::piece("chunk", chunk).map(drop)
            }
            _ => Ok(()),
        });
    }),
    ("ListFilesRequest", |data| with(data, check::list_files)),
    ("ConnectRequest", |data| {
        with(data, |r: api::ConnectRequest| match r.request {
            Some(api::connect_request::Request::Start(start)) => check::connect(&start).map(drop),
            Some(api::connect_request::Request::Data(data)) => check::piece("data", data).map(drop),
            _ => Ok(()),
        });
    }),
    ("StatsRequest", |data| with(data, |r| check::stats(&r))),
    ("GetNetworkRequest", |data| {
        with(data, |r: api::GetNetworkRequest| {
            check::claim_id(&r.claim_id)
        });
    }),
    ("OrphansRequest", |data| {
        with(data, |r: api::OrphansRequest| check::orphans(&r.destroy));
    }),
    ("ImportImageRequest", |data| {
        with(data, |r: api::ImportImageRequest| {
            check::archive_name(&r.name)
        });
    }),
    ("PullImageRequest", |data| {
        with(data, |r: api::PullImageRequest| check::image(&r.name));
    }),
    ("RemoveImageRequest", |data| {
        with(data, |r: api::RemoveImageRequest| check::image(&r.name));
    }),
    ("HibernateRequest", |data| {
        with(data, |r| check::hibernate(&r));
    }),
    ("ResumeRequest", |data| with(data, |r| check::resume(&r))),
    ("RunCodeRequest", |data| with(data, check::run_code)),
    ("InterruptCodeRequest", |data| {
        with(data, check::interrupt_code)
    }),
    ("InfoRequest", decoded::<api::InfoRequest>),
    ("DrainRequest", |data| with(data, |r| check::drain(&r))),
    ("UndrainRequest", decoded::<api::UndrainRequest>),
    ("ListImagesRequest", decoded::<api::ListImagesRequest>),
    ("GetPoolsRequest", decoded::<api::GetPoolsRequest>),
    ("WatchPoolsRequest", decoded::<api::WatchPoolsRequest>),
];

/// The first byte says which request the rest is.
pub fn request(data: &[u8]) {
    if let Some((which, rest)) = data.split_first()
        && let Some((_, check)) = REQUESTS.get(usize::from(*which) % REQUESTS.len())
    {
        check(rest);
    }
}

fn rules(allowed: bool) -> check::ExecRules {
    check::ExecRules {
        stdin: allowed,
        tty: allowed,
        attached: false,
    }
}

fn claim(request: api::ClaimRequest) -> Result<(), Refusal> {
    let claim = check::claim(request)?;
    let _digest = content::digest(&NodeKey::new(&[7; 32]), &claim);
    Ok(())
}

fn decoded<M: Message + Default>(data: &[u8]) {
    with(data, |_: M| Ok(()));
}

fn with<M: Message + Default, T>(data: &[u8], check: impl FnOnce(M) -> Result<T, Refusal>) {
    let Ok(message) = M::decode(data) else {
        return;
    };
    let Err(refusal) = check(message) else {
        return;
    };
    assert!(!matches!(refusal, Refusal::Internal { .. }), "{refusal:?}");
    let status = status::status(&refusal);
    assert!(status.message().len() <= bounds::MESSAGE_BYTES);
    // Trailers: HTTP/2 peers take 16 KiB of them by default.
    assert!(
        status.details().len() <= 12 << 10,
        "{}",
        status.details().len()
    );
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn every_request_is_fuzzed() {
        let set = prost_types::FileDescriptorSet::decode(api::FILE_DESCRIPTOR_SET).unwrap();
        let files = set.file.iter().filter(|file| file.package() == "hearth.v1");
        let services = files.flat_map(|file| &file.service);
        let methods = services.flat_map(|service| &service.method);
        let asked: BTreeSet<_> = methods
            .map(|method| method.input_type().rsplit('.').next().unwrap())
            .collect();
        let fuzzed: BTreeSet<_> = REQUESTS.iter().map(|(name, _)| *name).collect();
        assert_eq!(asked, fuzzed, "add what is missing to REQUESTS");
    }

    #[test]
    fn any_byte_is_a_request_of_some_kind() {
        for which in 0..=u8::MAX {
            request(&[which]);
            request(&[which, 0x0a, 0x01, b'x']);
        }
    }
}
