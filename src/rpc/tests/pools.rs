//! What a pool's sandboxes use is told to who asks.

use super::*;

#[tokio::test]
async fn usage_is_told_to_who_asks_for_it() {
    let bench = Bench::start().await;
    let mut client = bench.pools().await;
    for usage in [false, true] {
        let request = GetPoolsRequest { usage };
        let pools = client.get_pools(request).await.unwrap().into_inner().pools;
        let told = pools[0].status.as_ref().unwrap().usage;
        let wanted = PoolUsage {
            memory_bytes: 21,
            swap_bytes: 12,
            compressed_bytes: Some(4),
            image_bytes: 3,
        };
        assert_eq!(told, usage.then_some(wanted));
    }
    let (claim_id, _) = bench.claimed().await;
    for host_only in [false, true] {
        let request = StatsRequest {
            claim_id: claim_id.clone(),
            host_only,
        };
        let stats = bench.sandboxes().await.stats(request).await.unwrap();
        let stats = stats.into_inner();
        assert_eq!((stats.swap_bytes, stats.compressed_bytes), (5, Some(1)));
    }
}
