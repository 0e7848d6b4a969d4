//! What imported images are called.
//!
//! An archive may name its images in full, by a bare tag, or not at all. Containerd stores the latter two under a prefix
//! made for this import; here they get the name the caller gave.

use std::collections::BTreeSet;

use containerd_client::services::v1::{
    CreateImageRequest, DeleteImageRequest, GetImageRequest, Image, UpdateImageRequest,
};

use super::{
    super::client::{Call, Client, Reason, gone_is_fine},
    content,
    transfer::refused,
};
use crate::runtime::RuntimeError;

const GET: Call = Call::seconds("images.get", 5);
const CREATE: Call = Call::seconds("images.create", 5);
const UPDATE: Call = Call::seconds("images.update", 5);
const DELETE: Call = Call::seconds("images.delete", 10);
/// containerd bounds a key at 255 bytes where it bounds one.
const NAME_BYTES: usize = 255;

/// A reference that is safe in a log line and a metadata key.
///
/// # Errors
/// `Refused`.
pub(super) fn check(name: &str) -> Result<(), RuntimeError> {
    let fits = !name.is_empty() && name.len() <= NAME_BYTES;
    if fits && name.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Ok(());
    }
    Err(refused(&format!(
        "{name:?} is no image reference: 1 to {NAME_BYTES} printable characters without spaces"
    )))
}

/// The caller's name for an image that the archive calls only `rest` (":tag" or "@digest").
fn full(name: &str, rest: &str) -> String {
    let last = name.rsplit('/').next().unwrap_or(name);
    let complete = last.contains(':') || name.contains('@');
    match (complete, rest.starts_with(':')) {
        (true, _) => name.to_owned(),
        (false, true) => format!("{name}{rest}"),
        (false, false) => format!("{name}:latest"),
    }
}

/// Gives every image of an import its final name.
///
/// # Errors
/// `Refused` when an image has no name that anybody gave; those of calls.
pub(super) async fn settle(
    client: &Client,
    saved: Vec<String>,
    prefix: &str,
    name: Option<&str>,
    archive: &str,
) -> Result<Vec<Image>, RuntimeError> {
    let settled = settle_names(client, &saved, prefix, name, archive).await;
    for temporary in saved.iter().filter(|saved| saved.starts_with(prefix)) {
        remove(client, temporary).await?;
    }
    settled
}

async fn settle_names(
    client: &Client,
    saved: &[String],
    prefix: &str,
    name: Option<&str>,
    archive: &str,
) -> Result<Vec<Image>, RuntimeError> {
    let (mut unnamed, mut images) = (Vec::new(), Vec::new());
    let mut all = BTreeSet::new();
    for saved in saved {
        if let Err(error) = check(saved) {
            remove(client, saved).await?;
            return Err(error);
        }
        let image = get(client, saved).await?;
        all.insert(digest(&image).to_owned());
        if saved.starts_with(prefix) {
            unnamed.push(image);
        } else {
            images.push(image);
        }
    }
    let mut chosen: Option<Image> = None;
    for image in unnamed {
        // containerd stores the archive's own index too.
        let target = image.target.clone().unwrap_or_default();
        let lists = content::listed(client, &target).await?;
        if lists.iter().any(|listed| all.contains(listed)) {
            continue;
        }
        if chosen
            .as_ref()
            .is_some_and(|chosen| digest(chosen) != digest(&image))
            && name.is_some()
        {
            return Err(refused(&format!(
                "archive {archive:?} holds several nameless images, and {name:?} can name only one"
            )));
        }
        chosen = Some(image);
    }
    match (chosen, name) {
        (Some(image), Some(name)) => {
            let rest = image.name.strip_prefix(prefix).unwrap_or_default();
            let wanted = Image {
                name: full(name, rest),
                target: image.target,
                ..Image::default()
            };
            put(client, &wanted).await?;
            images.push(wanted);
        }
        (None, _) if images.is_empty() => {
            return Err(refused(&format!("archive {archive:?} holds no image")));
        }
        (Some(_), None) if images.is_empty() => {
            return Err(refused(&format!(
                "archive {archive:?} does not name its image: give it a name"
            )));
        }
        // All have names, or the nameless rest was not asked for.
        (Some(_), None) | (None, _) => {}
    }
    Ok(images)
}

fn digest(image: &Image) -> &str {
    image
        .target
        .as_ref()
        .map_or("", |target| target.digest.as_str())
}

async fn get(client: &Client, name: &str) -> Result<Image, RuntimeError> {
    let request = GetImageRequest {
        name: name.to_owned(),
    };
    let mut images = client.images();
    let answer = client.call(GET, images.get(request)).await?;
    answer
        .image
        .ok_or_else(|| RuntimeError::ImageMissing(name.to_owned()))
}

/// Creates a reference, or points one that is there to the new image.
async fn put(client: &Client, image: &Image) -> Result<(), RuntimeError> {
    let mut images = client.images();
    let request = CreateImageRequest {
        image: Some(image.clone()),
        ..CreateImageRequest::default()
    };
    match client.call(CREATE, images.create(request)).await {
        Ok(_) => Ok(()),
        Err(error) if error.reason == Reason::Exists => {
            let request = UpdateImageRequest {
                image: Some(image.clone()),
                ..UpdateImageRequest::default()
            };
            client.call(UPDATE, images.update(request)).await?;
            Ok(())
        }
        Err(error) => Err(error.into()),
    }
}

async fn remove(client: &Client, name: &str) -> Result<(), RuntimeError> {
    let request = DeleteImageRequest {
        name: name.to_owned(),
        ..DeleteImageRequest::default()
    };
    let mut images = client.images();
    gone_is_fine(client.call(DELETE, images.delete(request)).await)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::{check, full};

    #[test]
    fn names_are_completed_like_docker_does_it() {
        for (name, rest, wanted) in [
            ("hearth.local/python", ":3", "hearth.local/python:3"),
            ("hearth.local/python:4", ":3", "hearth.local/python:4"),
            ("localhost:5000/python", ":3", "localhost:5000/python:3"),
            (
                "hearth.local/python",
                "@sha256:00",
                "hearth.local/python:latest",
            ),
            (
                "hearth.local/python@sha256:11",
                ":3",
                "hearth.local/python@sha256:11",
            ),
        ] {
            assert_eq!(full(name, rest), wanted);
        }
    }

    #[test]
    fn names_that_could_break_a_line_are_refused() {
        assert!(check("hearth.local/python:3").is_ok());
        for wrong in ["", "a b", "a\nb", "ü", &"x".repeat(256)] {
            assert!(check(wrong).is_err(), "{wrong:?}");
        }
    }
}
