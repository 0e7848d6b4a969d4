//! Leaving containerd for good: nothing of hearth's namespace stays.

use containerd_client::services::v1::{
    DeleteImageRequest, DeleteNamespaceRequest, DeleteRequest, ListImagesRequest, ListRequest,
};

use super::{
    client::{Call, CallError, Client, Reason, gone_is_fine},
    link::Link,
    outbox::Outbox,
};
use crate::runtime::{NAMESPACE, RuntimeError, RuntimeMetrics};
use std::{path::Path, sync::Arc, time::Duration};

const IMAGES: Call = Call::seconds("images.list", 10);
const LEASES: Call = Call::seconds("leases.list", 10);
/// The call waits for the garbage collection that takes layers and content away.
const COLLECT: Call = Call::seconds("images.delete", 120);
const UNLEASE: Call = Call::seconds("leases.delete", 30);
const NAMESPACE_GONE: Call = Call::seconds("namespaces.delete", 10);
/// A collection under way may have begun before our deletions: the namespace counts as used until the next one has run.
const TRIES: u32 = 60;
const PAUSE: Duration = Duration::from_millis(500);

/// Removes images, leases, what only they kept, and the namespace. Called by `app` when hearth leaves the node, after the
/// last sandbox has gone; doing it again changes nothing.
///
/// # Errors
/// `Refused` where a container is left, whoever made it: nothing was removed then. Those of calls.
pub async fn leave(socket: &Path, metrics: RuntimeMetrics) -> Result<(), RuntimeError> {
    let link = Arc::new(Link::new(Arc::new(Outbox::default())));
    let client = Client::new(socket, link, metrics);
    let mut containers = 0;
    client
        .each_container(Vec::new(), |_| containers += 1)
        .await?;
    if containers > 0 {
        return Err(RuntimeError::Refused {
            what: "leaving containerd",
            detail: format!("{containers} containers are left in namespace {NAMESPACE}"),
        });
    }
    end_leases(&client).await?;
    let mut images = client.images();
    let listed = images.list(ListImagesRequest::default());
    for image in client.call(IMAGES, listed).await?.images {
        let request = DeleteImageRequest {
            name: image.name,
            sync: true,
            ..DeleteImageRequest::default()
        };
        let mut images = client.images();
        gone_is_fine(client.call(COLLECT, images.delete(request)).await)?;
    }
    Ok(remove_namespace(&client).await?)
}

/// Those of views and pulls that a dead hearthd left; they would end by themselves in ten minutes.
async fn end_leases(client: &Client) -> Result<(), CallError> {
    let mut leases = client.leases();
    let listed = leases.list(ListRequest::default());
    for lease in client.call(LEASES, listed).await?.leases {
        let request = DeleteRequest {
            id: lease.id,
            sync: true,
        };
        let mut leases = client.leases();
        gone_is_fine(client.call(UNLEASE, leases.delete(request)).await)?;
    }
    Ok(())
}

async fn remove_namespace(client: &Client) -> Result<(), CallError> {
    let mut tries = TRIES;
    loop {
        let request = DeleteNamespaceRequest {
            name: NAMESPACE.to_owned(),
        };
        let mut namespaces = client.namespaces();
        let removed = client
            .call(NAMESPACE_GONE, namespaces.delete(request))
            .await;
        tries -= 1;
        match gone_is_fine(removed) {
            Err(error) if error.reason == Reason::Precondition && tries > 0 => {
                tokio::time::sleep(PAUSE).await;
            }
            ended => return ended,
        }
    }
}
