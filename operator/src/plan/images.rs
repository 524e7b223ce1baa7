//! Which images the workers run: whether those of one version of the pod template run the same.

use std::collections::BTreeMap;

use super::workers::WorkerPod;

/// Fewest hexadecimal digits of a digest: what is shorter names something else.
const FEWEST_DIGITS: usize = 32;

/// The image that a container runs, as its runtime tells.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Image {
    /// What the digest is of.
    pub known_by: KnownBy,
    /// The digest: `sha256:…`.
    pub digest: String,
}

/// What the digest of an image is of. The same image has one of each kind, so that they say nothing about each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum KnownBy {
    /// Its manifest in a registry; of an image for several architectures, the list of them.
    Manifest,
    /// Its own configuration: it was loaded into the node, or the runtime has forgotten where it is from.
    Configuration,
}

impl Image {
    /// Reads the `imageID` of a container's status: `shop/worker@sha256:…` or `sha256:…` with containerd, the same after
    /// `docker-pullable://` and `docker://` with Docker, bare digits for an id with CRI-O. Nothing if it is none of these, or empty, as before
    /// the start.
    pub fn new(image_id: &str) -> Option<Self> {
        let image = image_id.rsplit_once("://").map_or(image_id, |(_, image)| image);
        let (known_by, digest) = match image.rsplit_once('@') {
            Some((_, digest)) => (KnownBy::Manifest, digest),
            None => (KnownBy::Configuration, image),
        };
        let (algorithm, digits) = digest.split_once(':').unwrap_or(("sha256", digest));
        let is_digest =
            digits.len() >= FEWEST_DIGITS && digits.bytes().all(|digit| digit.is_ascii_hexdigit());
        is_digest.then(|| Self { known_by, digest: format!("{algorithm}:{digits}") })
    }
}

/// What differs where workers of one version of the pod template run different images, in words. An image that isn't known differs from
/// none, and those of different versions are to differ.
pub fn difference(pods: &[WorkerPod]) -> Option<String> {
    let mut running: BTreeMap<_, BTreeMap<&str, &str>> = BTreeMap::new();
    for pod in pods.iter().filter(|pod| !pod.terminating) {
        let (Some(version), Some(image)) = (&pod.replica_set, &pod.image) else { continue };
        let same = running.entry((version, image.known_by)).or_default();
        // The first by name: which one is named changes seldom when workers come and go.
        let first = same.entry(&image.digest).or_insert(&pod.name);
        *first = pod.name.as_str().min(first);
    }
    running.into_values().find_map(|images| {
        let mut images = images.into_iter();
        let ((one, its_pod), (other, other_pod)) = (images.next()?, images.next()?);
        Some(format!(
            "workers of one version run different images: `{its_pod}` {one}, `{other_pod}` {other}. Perhaps a tag was moved: name the \
             image by its digest (NAME@sha256:…), or use a new tag"
        ))
    })
}

/// Whether workers of different versions of the pod template are there: those of the older one have not all gone yet.
pub fn is_rolling_out(pods: &[WorkerPod]) -> bool {
    let mut versions = pods.iter().filter(|pod| !pod.terminating).filter_map(|pod| pod.replica_set.as_ref());
    versions.next().is_some_and(|first| versions.any(|version| version != first))
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::api::core::v1::Pod;
    use serde_json::json;

    const ONE: &str = "sha256:da9c94bec1da829ebd52431a84502ec471c8e548ffb2cedbf36260fd9bd1d4d3";
    const TWO: &str = "sha256:37d841299325c23b56e5951176ce8ef317d537447c0f1b2d2437dddbb1f51165";

    /// A pod of a ReplicaSet, as a kubelet reports it.
    fn pod(name: &str, replica_set: &str, image_id: &str) -> WorkerPod {
        let pod: Pod = serde_json::from_value(json!({
            "metadata": {"name": name, "uid": name, "ownerReferences": [{
                "apiVersion": "apps/v1", "kind": "ReplicaSet", "name": replica_set, "uid": replica_set, "controller": true,
            }]},
            "spec": {"nodeName": "n", "containers": [{"name": "worker", "image": "registry.example.com/shop:1.4"}]},
            "status": {
                "phase": "Running",
                "conditions": [{"type": "Ready", "status": "True"}],
                "containerStatuses": [
                    {"name": "a-sidecar", "image": "sidecar:1", "imageID": format!("sidecar@{name}"), "ready": true, "restartCount": 0},
                    {"name": "worker", "image": "registry.example.com/shop:1.4", "imageID": image_id, "ready": true, "started": true,
                        "restartCount": 0, "state": {"running": {}}},
                ],
            },
        }))
        .unwrap();
        WorkerPod::new(&pod).unwrap()
    }

    fn pulled(digest: &str) -> String {
        format!("registry.example.com/shop@{digest}")
    }

    #[test]
    fn one_image_is_read_from_what_each_runtime_says() {
        let bare = ONE.trim_start_matches("sha256:");
        for (said, known_by) in [
            (pulled(ONE), KnownBy::Manifest),
            (format!("registry.example.com:5000/shop@{ONE}"), KnownBy::Manifest),
            (format!("docker-pullable://registry.example.com/shop@{ONE}"), KnownBy::Manifest),
            (ONE.to_owned(), KnownBy::Configuration),
            (format!("docker://{ONE}"), KnownBy::Configuration),
            (bare.to_owned(), KnownBy::Configuration),
        ] {
            assert_eq!(Image::new(&said), Some(Image { known_by, digest: ONE.to_owned() }), "{said}");
        }
    }

    #[test]
    fn what_is_no_digest_is_not_known() {
        for said in ["", "registry.example.com/shop:1.4", "shop@", "sha256:", "sha256:short", "docker://"] {
            assert_eq!(Image::new(said), None, "{said}");
        }
    }

    #[test]
    fn workers_of_one_version_with_different_images_are_named() {
        let pods = [
            pod("red-c", "new", &pulled(ONE)),
            pod("red-b", "new", &pulled(TWO)),
            pod("red-a", "new", &pulled(ONE)),
        ];
        let said = difference(&pods).unwrap();
        for part in [ONE, TWO, "`red-a`", "`red-b`", "by its digest"] {
            assert!(said.contains(part), "{part} in: {said}");
        }
        let mut turned = pods;
        turned.reverse();
        assert_eq!(difference(&turned), Some(said), "the order of the pods is no news");
    }

    #[test]
    fn one_image_from_two_registries_is_one() {
        let pods =
            [pod("a", "new", &pulled(ONE)), pod("b", "new", &format!("mirror.example.com/shop@{ONE}"))];
        assert_eq!(difference(&pods), None);
    }

    #[test]
    fn what_is_not_known_or_cannot_be_compared_is_no_difference() {
        for said in ["", "registry.example.com/shop:1.4", TWO] {
            assert_eq!(difference(&[pod("a", "new", &pulled(ONE)), pod("b", "new", said)]), None, "{said}");
        }
        assert!(difference(&[pod("a", "new", ONE), pod("b", "new", TWO)]).is_some(), "loaded into the nodes");
    }

    #[test]
    fn different_versions_are_a_rollout_and_no_difference() {
        let pods = [pod("a", "old", &pulled(ONE)), pod("b", "new", &pulled(TWO))];
        assert_eq!(difference(&pods), None);
        assert!(is_rolling_out(&pods) && !is_rolling_out(&pods[1..]) && !is_rolling_out(&[]));
    }

    #[test]
    fn workers_that_are_about_to_go_count_for_neither() {
        let leaving = |version| WorkerPod { terminating: true, ..pod("a", version, &pulled(ONE)) };
        assert_eq!(difference(&[leaving("new"), pod("b", "new", &pulled(TWO))]), None);
        assert!(!is_rolling_out(&[leaving("old"), pod("b", "new", &pulled(TWO))]));
    }
}
