//! The calls that a place makes.

use super::book::{Refused, Sent};
use super::callers::{Callers, Heard, Place, Stage, duration, name};
use super::hearth::Hearth;
use crate::api;
use crate::api::claims_server::Claims;
use crate::rpc::unguarded::By;

impl Callers {
    pub(super) async fn claim(
        &self,
        place: &Place,
        other_content: bool,
        hearth: &Hearth,
    ) -> Heard<api::ClaimResponse> {
        let mut asked = place.asked.clone();
        asked.epoch = self.epoch(place.allocator);
        if other_content {
            let inside = asked.personalization.get_or_insert_default();
            inside.hostname = "other".to_owned();
        }
        let sent = self.book.claim_sent(&asked, place.ttl_ms, other_content);
        let what = format!("Claim {} of {}", asked.claim_id, asked.pool);
        let request = hearth
            .services
            .asked(By::Allocator(&name(place.allocator)), asked);
        let call = hearth.services.claims.claim(request);
        let judge = |answer: &Result<_, _>| {
            self.book
                .claimed(&sent, answer.as_ref().map_err(Refused::from));
        };
        self.send(what, call, judge).await
    }

    pub(super) async fn renew(&self, number: usize, place: &Place, hearth: &Hearth) {
        let ttl_ms = [0, 5_000, 30_000][self.world.index(3)];
        let claim_id = place.asked.claim_id.clone();
        let epoch = self.epoch(place.allocator);
        let sent = self.book.renewal_sent(&claim_id, epoch, ttl_ms);
        let what = format!("Renew {claim_id} {ttl_ms}");
        let message = api::RenewRequest {
            claim_id,
            epoch,
            ttl: (ttl_ms > 0).then(|| duration(ttl_ms)),
        };
        let request = hearth
            .services
            .asked(By::Allocator(&name(place.allocator)), message);
        let call = hearth.services.claims.renew(request);
        let heard = self
            .send(what, call, |answer| self.book.renewed(&sent, answer))
            .await;
        self.heed(number, place.allocator, &heard).await;
    }

    pub(super) async fn release(&self, number: usize, place: &Place, hearth: &Hearth) {
        let claim_id = place.asked.claim_id.clone();
        let epoch = self.epoch(place.allocator);
        let sent = self.book.release_sent(&claim_id, epoch);
        let what = format!("Release {claim_id}");
        let message = api::ReleaseRequest { claim_id, epoch };
        let request = hearth
            .services
            .asked(By::Allocator(&name(place.allocator)), message);
        let call = hearth.services.claims.release(request);
        let heard = self
            .send(what, call, |answer| self.book.released(&sent, answer))
            .await;
        if let Some(Ok(_)) = heard {
            self.go(number, Stage::Left);
        }
        self.heed(number, place.allocator, &heard).await;
    }

    pub(super) async fn get(&self, number: usize, place: &Place, hearth: &Hearth) {
        let sent = self.book.use_sent(&place.asked.claim_id, 0);
        let heard = self.read(place, sent, hearth).await;
        self.heed(number, place.allocator, &heard).await;
    }

    pub(super) async fn read(
        &self,
        place: &Place,
        sent: Sent,
        hearth: &Hearth,
    ) -> Heard<api::GetClaimResponse> {
        let claim_id = place.asked.claim_id.clone();
        let what = format!("Get {claim_id}");
        let message = api::GetClaimRequest { claim_id };
        let request = hearth
            .services
            .asked(By::Allocator(&name(place.allocator)), message);
        let call = hearth.services.claims.get(request);
        self.send(what, call, |answer| self.book.read(&sent, answer))
            .await
    }

    pub(super) async fn list(&self, hearth: &Hearth) {
        let due = self.book.listing_sent();
        let (mut listed, mut page_token) = (Vec::new(), String::new());
        loop {
            let message = api::ListClaimsRequest {
                page_size: 3,
                page_token,
                ..api::ListClaimsRequest::default()
            };
            let request = hearth.services.asked(By::Allocator("reader"), message);
            let call = hearth.services.claims.list(request);
            let heard = self.send("List".to_owned(), call, |_| {}).await;
            let Some(Ok(page)) = heard else {
                return;
            };
            listed.extend(page.claims);
            page_token = page.next_page_token;
            if page_token.is_empty() {
                break;
            }
        }
        self.book.listed(&due, &listed);
    }

    pub(super) async fn hibernate(&self, number: usize, place: &Place, hearth: &Hearth) {
        let claim_id = place.asked.claim_id.clone();
        let epoch = self.epoch(place.allocator);
        let sent = self.book.use_sent(&claim_id, epoch);
        let tier = [api::Tier::Memory, api::Tier::Disk][self.world.index(2)];
        let what = format!("Hibernate {claim_id} {tier:?}");
        let message = api::HibernateRequest {
            claim_id,
            epoch,
            tier: tier.into(),
            ..api::HibernateRequest::default()
        };
        let request = hearth
            .services
            .asked(By::Allocator(&name(place.allocator)), message);
        let call = hearth.services.claims.hibernate(request);
        let judge = |answer: &_| self.book.slept(&sent, "Hibernated", answer);
        let heard = self.send(what, call, judge).await;
        self.heed(number, place.allocator, &heard).await;
    }

    pub(super) async fn resume(&self, number: usize, place: &Place, hearth: &Hearth) {
        let claim_id = place.asked.claim_id.clone();
        let epoch = self.epoch(place.allocator);
        let sent = self.book.use_sent(&claim_id, epoch);
        let what = format!("Resume {claim_id}");
        let message = api::ResumeRequest { claim_id, epoch };
        let request = hearth
            .services
            .asked(By::Allocator(&name(place.allocator)), message);
        let call = hearth.services.claims.resume(request);
        let judge = |answer: &_| self.book.slept(&sent, "Resumed", answer);
        let heard = self.send(what, call, judge).await;
        self.heed(number, place.allocator, &heard).await;
    }
}
