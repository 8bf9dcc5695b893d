//! Registries that are slow, broken, busy or hostile.

use std::{
    fs,
    io::{BufRead, BufReader},
    os::unix::process::ExitStatusExt,
    process::{Child, Stdio},
    sync::Arc,
    thread,
};

use rustix::process::{Pid, Signal, kill_process};

use crate::{
    fixture::{Fixture, Packing, Place, fail, succeed},
    hostile::{Answer, Gate, Hostile, Request},
};

/// Settings with which a test does not wait long.
pub const IMPATIENT: &str =
    "[transfer]\nbackoff-ms = 1\nlongest-wait-ms = 20\nprogress-timeout-ms = 500\nretries = 3\n";

pub fn place() -> Place {
    let place = Place::new();
    fs::write(place.path("registries.toml"), IMPATIENT).unwrap();
    place
}

pub fn image() -> Arc<Fixture> {
    let mut image = Fixture::new("remote", &[Packing::Plain]);
    let manifest = image.manifest.to_string().into_bytes();
    image.put("manifest", manifest);
    Arc::new(image)
}

/// What a registry answers that does everything right.
pub fn good(image: &Fixture, request: &Request) -> Answer {
    let last = request.path.rsplit('/').next().unwrap();
    if request.path.contains("/manifests/") {
        return Answer::ok(image.manifest.to_string().as_bytes()).with(
            "content-type",
            image.manifest["mediaType"].as_str().unwrap(),
        );
    }
    let Some(blob) = image.blobs.get(last) else {
        return Answer::status(404);
    };
    match request.header("range") {
        Some(range) => {
            let from: usize = range
                .trim_start_matches("bytes=")
                .trim_end_matches('-')
                .parse()
                .unwrap();
            let rest = &blob[from..];
            Answer {
                status: 206,
                ..Answer::ok(rest)
            }
            .with(
                "content-range",
                format!("bytes {from}-{}/{}", blob.len() - 1, blob.len()),
            )
        }
        None => Answer::ok(blob),
    }
}

/// Pulls from a registry that is good but for what `fault` changes of its answers.
pub fn pull(
    place: &Place,
    image: &Arc<Fixture>,
    fault: impl Fn(&Request, usize, Answer) -> Answer + Send + Sync + 'static,
) -> (Hostile, std::process::Output) {
    let served = Arc::clone(image);
    let registry =
        Hostile::start(move |request, before| fault(request, before, good(&served, request)));
    let output = place
        .pillbug(&["pull", "-q", &format!("{}/app:1", registry.address)])
        .output()
        .unwrap();
    (registry, output)
}

/// Whether a request is for the layer of the image.
pub fn is_layer(image: &Fixture, request: &Request) -> bool {
    request.path.ends_with(&image.first_layer())
}

fn blob_requests(registry: &Hostile, image: &Fixture) -> Vec<Request> {
    registry
        .requests()
        .into_iter()
        .filter(|request| is_layer(image, request))
        .collect()
}

#[test]
fn a39_a_transfer_that_stalls_goes_on_where_it_stopped() {
    let (place, image) = (place(), image());
    let told = Arc::clone(&image);
    let (registry, output) = pull(&place, &image, move |request, before, answer| Answer {
        stall_after: (is_layer(&told, request) && before < 2).then_some(300),
        ..answer
    });
    succeed(output);
    let requests = blob_requests(&registry, &image);
    let ranges: Vec<_> = requests
        .iter()
        .map(|request| request.header("range"))
        .collect();
    assert_eq!(ranges, [None, Some("bytes=300-"), Some("bytes=600-")]);
    assert_eq!(place.images()[0][2], image.id());
}

/// An image whose layers are larger than what goes through a connection unread.
fn large(layers: usize) -> Arc<Fixture> {
    let mut image = Fixture::new(&"large ".repeat(700_000), &vec![Packing::Plain; layers]);
    image.config["config"]["Labels"]["seed"] = "large".into();
    image.seal();
    Arc::new(image)
}

/// A pull under way, once it has told of everything in `told`, each with the layer that it is about.
fn begin_pull(place: &Place, registry: &Hostile, told: &[(&str, &str)]) -> Child {
    let mut pull = place
        .pillbug(&["pull", &format!("{}/app:1", registry.address)])
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut missing: Vec<String> = told
        .iter()
        .map(|(digest, words)| format!("{}: {words}", &digest[7..19]))
        .collect();
    let mut lines = BufReader::new(pull.stderr.take().unwrap()).lines();
    while !missing.is_empty() {
        let line = lines.next().expect("the pull has ended").unwrap();
        missing.retain(|wanted| *wanted != line);
    }
    // What it has to say after that is for who looks at a test that fails; a pull that nobody listens to would end.
    thread::spawn(move || {
        for line in lines.map_while(Result::ok) {
            eprintln!("{line}");
        }
    });
    pull
}

#[test]
fn a39_a_transfer_that_trickles_has_stalled() {
    let (place, image) = (place(), image());
    let told = Arc::clone(&image);
    let (registry, output) = pull(&place, &image, move |request, before, answer| Answer {
        trickles: is_layer(&told, request) && before == 0,
        ..answer
    });
    succeed(output);
    let requests = blob_requests(&registry, &image);
    assert_eq!(requests.len(), 2);
    assert!(requests[1].header("range").unwrap().starts_with("bytes="));
}

#[test]
fn a39_ctrl_c_ends_a_pull_at_once_and_the_next_goes_on() {
    // Patient: what stands still here does so until it is interrupted.
    let (place, image) = (Place::new(), large(2));
    let second = image.layers[1]["digest"].as_str().unwrap().to_owned();
    let gate = Arc::new(Gate::default());
    let (served, closed, slow) = (Arc::clone(&image), Arc::clone(&gate), second.clone());
    let registry = Hostile::start(move |request, before| {
        let stands_still = request.path.ends_with(&slow) && before == 0;
        Answer {
            gate: stands_still.then(|| (3 << 20, Arc::clone(&closed))),
            ..good(&served, request)
        }
    });
    let told = [
        (image.first_layer(), "Pull complete"),
        (second.clone(), "Downloading"),
    ];
    let told = told
        .each_ref()
        .map(|(layer, words)| (layer.as_str(), *words));
    let mut interrupted = begin_pull(&place, &registry, &told);
    gate.reached();
    kill_process(Pid::from_child(&interrupted), Signal::INT).unwrap();
    assert_eq!(interrupted.wait().unwrap().signal(), Some(2));
    assert!(place.images().is_empty());

    let name = format!("{}/app:1", registry.address);
    succeed(place.pillbug(&["pull", "-q", &name]).output().unwrap());
    gate.open();
    assert_eq!(blob_requests(&registry, &image).len(), 1);
    let requests = registry.requests();
    let of_second: Vec<_> = requests
        .iter()
        .filter(|request| request.path.ends_with(&second))
        .collect();
    assert_eq!(of_second.len(), 2);
    assert!(of_second[1].header("range").unwrap().starts_with("bytes="));
    assert!(
        !place
            .content()
            .iter()
            .any(|path| path.starts_with("partial"))
    );
}

#[test]
fn what_a_power_cut_has_made_of_a_download_is_fetched_again() {
    let (place, image) = (place(), image());
    place.images();
    let name = image.first_layer().replace(':', "-");
    let size = image.blobs[&image.first_layer()].len();
    for left in [size / 2, size, size + 1] {
        let path = place.state().join("images/partial").join(&name);
        fs::write(path, vec![0; left]).unwrap();
        let (_, output) = pull(&place, &image, |_, _, answer| answer);
        succeed(output);
        succeed(place.pillbug(&["rmi", "-f", &image.id()]).output().unwrap());
        assert_eq!(place.content(), [""; 0]);
    }
}

#[test]
fn a71_of_a_hundred_pulls_one_is_killed_and_each_layer_is_sent_once() {
    let (place, image) = (place(), large(2));
    let layer = image.first_layer();
    let gate = Arc::new(Gate::default());
    let (served, closed, slow) = (Arc::clone(&image), Arc::clone(&gate), layer.clone());
    let registry = Hostile::start(move |request, before| {
        let stands_still = request.path.ends_with(&slow) && before == 0;
        Answer {
            gate: stands_still.then(|| (3 << 20, Arc::clone(&closed))),
            ..good(&served, request)
        }
    });
    let mut killed = begin_pull(&place, &registry, &[(&layer, "Downloading")]);
    let name = format!("{}/app:1", registry.address);
    let others: Vec<_> = (1..100)
        .map(|_| {
            place
                .pillbug(&["pull", "-q", &name])
                .stdout(Stdio::null())
                .stderr(Stdio::piped())
                .spawn()
                .unwrap()
        })
        .collect();
    gate.reached();
    killed.kill().unwrap();
    killed.wait().unwrap();
    for other in others {
        succeed(other.wait_with_output().unwrap());
    }
    gate.open();
    let ranges = |digest: &str| -> Vec<Option<String>> {
        let requests = registry.requests().into_iter();
        requests
            .filter(|request| request.path.ends_with(digest))
            .map(|request| request.header("range").map(Into::into))
            .collect()
    };
    let first = ranges(&layer);
    assert_eq!(first.len(), 2);
    assert!(first[0].is_none() && first[1].as_deref() != Some("bytes=0-"));
    let second = ranges(image.layers[1]["digest"].as_str().unwrap());
    assert_eq!(second.iter().filter(|range| range.is_none()).count(), 1);
    assert_eq!(place.images()[0][2], image.id());
    let checked = place.pillbug(&["system", "check"]).output().unwrap();
    assert_eq!(succeed(checked), "The image store is sound.\n");
}

#[test]
fn a67_removing_and_pruning_take_nothing_from_a_pull_under_way() {
    let (place, image) = (place(), large(2));
    // The same first layer, in another image.
    let mut base = (*image).clone();
    base.layers.truncate(1);
    let diff_ids = base.config["rootfs"]["diff_ids"].as_array_mut().unwrap();
    diff_ids.truncate(1);
    base.seal();
    place.load_well(&place.write("base", &base.named("base:1").archive()));

    let second = image.layers[1]["digest"].as_str().unwrap().to_owned();
    let gate = Arc::new(Gate::default());
    let (served, closed, slow) = (Arc::clone(&image), Arc::clone(&gate), second.clone());
    let registry = Hostile::start(move |request, _| Answer {
        gate: request
            .path
            .ends_with(&slow)
            .then(|| (1 << 20, Arc::clone(&closed))),
        ..good(&served, request)
    });
    let first = image.first_layer();
    let told = [
        (first.as_str(), "Already exists"),
        (second.as_str(), "Downloading"),
    ];
    let mut pull = begin_pull(&place, &registry, &told);
    for arguments in [&["rmi", "base:1"][..], &["image", "prune", "-a", "-f"]] {
        succeed(place.pillbug(arguments).output().unwrap());
    }
    assert!(place.images().is_empty());
    gate.open();
    assert!(pull.wait().unwrap().success());
    let checked = place.pillbug(&["system", "check"]).output().unwrap();
    assert_eq!(succeed(checked), "The image store is sound.\n");
    assert!(blob_requests(&registry, &image).is_empty());
}

#[test]
fn a28_a_layer_that_expands_without_end_leaves_nothing() {
    let place = place();
    let mut header = tar::Header::new_gnu();
    header.set_path("zeros").unwrap();
    header.set_size(60 << 30);
    header.set_cksum();
    let frame = |bytes: &[u8]| zstd::encode_all(bytes, 1).unwrap();
    let mut bomb = frame(header.as_bytes());
    bomb.extend(frame(&vec![0; 64 << 20]).repeat(17));
    let mut image = Fixture::new("bomb", &[Packing::Zstd]);
    let descriptor = image.put("application/vnd.oci.image.layer.v1.tar+zstd", bomb);
    image.layers = vec![descriptor];
    image.seal();
    let (_, output) = pull(&place, &Arc::new(image), |_, _, answer| answer);
    let error = fail(&output);
    assert!(error.contains("times its size"), "{error}");
    assert_eq!(place.content(), [""; 0]);
}

#[test]
fn a39_a_transfer_that_is_cut_goes_on_also_in_the_next_pull() {
    let (place, image) = (place(), image());
    let told = Arc::clone(&image);
    let (_, output) = pull(&place, &image, move |request, _, answer| {
        let first = is_layer(&told, request) && request.header("range").is_none();
        let cut_after = is_layer(&told, request).then_some(if first { 700 } else { 0 });
        Answer {
            cut_after,
            ..answer
        }
    });
    assert!(fail(&output).contains(&image.first_layer()));

    let (registry, output) = pull(&place, &image, |_, _, answer| answer);
    succeed(output);
    assert_eq!(
        blob_requests(&registry, &image)[0].header("range"),
        Some("bytes=700-")
    );
}

#[test]
fn a_registry_without_ranges_is_read_from_the_beginning() {
    let (place, image) = (place(), image());
    let (told, whole) = (Arc::clone(&image), Arc::clone(&image));
    let (_, output) = pull(&place, &image, move |request, before, answer| {
        if !is_layer(&told, request) {
            return answer;
        }
        let blob = &whole.blobs[&whole.first_layer()];
        Answer {
            cut_after: (before == 0).then_some(100),
            ..Answer::ok(blob)
        }
    });
    succeed(output);
}

#[test]
fn a30_wrong_content_is_refused_and_not_kept() {
    let (place, image) = (place(), image());
    let told = Arc::clone(&image);
    let (_, output) = pull(&place, &image, move |request, _, mut answer| {
        if is_layer(&told, request) {
            answer.body[600] ^= 1;
        }
        answer
    });
    assert!(fail(&output).contains("other content"));
    assert_eq!(place.content(), [""; 0]);
}

#[test]
fn a30_more_content_than_announced_is_refused() {
    let (place, image) = (place(), image());
    let told = Arc::clone(&image);
    let (_, output) = pull(&place, &image, move |request, _, mut answer| {
        if is_layer(&told, request) {
            answer.body.extend([0; 4096]);
        }
        answer
    });
    assert!(fail(&output).contains("has more"));
    assert_eq!(place.content(), [""; 0]);
}

#[test]
fn a30_another_manifest_than_the_digest_is_refused() {
    let (place, image) = (place(), image());
    let served = Arc::clone(&image);
    let registry = Hostile::start(move |request, _| good(&served, request));
    let name = format!("{}/app@{}", registry.address, image.first_layer());
    let error = fail(&place.pillbug(&["pull", &name]).output().unwrap());
    assert!(error.contains("another image at the registry"), "{error}");
}

#[test]
fn a_manifest_without_end_is_refused() {
    let (place, image) = (place(), image());
    let (_, output) = pull(&place, &image, |request, _, answer| {
        if request.path.contains("/manifests/") {
            Answer::ok(&vec![b' '; 5 << 20])
        } else {
            answer
        }
    });
    assert!(fail(&output).contains("larger than the 4194304 bytes allowed"));
}

#[test]
fn a41_a_busy_registry_is_asked_again_but_not_for_ever() {
    for status in [429, 503, 500] {
        let (place, image) = (place(), image());
        let (registry, output) = pull(&place, &image, move |_, before, answer| {
            if before < 2 {
                Answer::status(status).with("retry-after", "1000000000")
            } else {
                answer
            }
        });
        succeed(output);
        assert!(registry.requests().len() >= 9, "{status}");

        let (registry, output) = pull(&place, &image, move |_, _, _| Answer::status(status));
        let error = fail(&output);
        assert!(
            error.contains(if status == 429 {
                "limiting requests"
            } else {
                "answered 50"
            }),
            "{error}"
        );
        assert_eq!(registry.requests().len(), 4, "{error}");
    }
}

#[test]
fn an_error_says_what_the_registry_says() {
    let (place, image) = (place(), image());
    let (_, output) = pull(&place, &image, |_, _, _| Answer {
        body: br#"{"errors":[{"code":"X","message":"because \u001b[31mred"}]}"#.to_vec(),
        ..Answer::status(418)
    });
    let error = fail(&output);
    assert!(
        error.contains("answered 418") && error.contains("because \\u{1b}[31mred"),
        "{error}"
    );
}

#[test]
fn a_registry_that_is_not_reached_is_named() {
    let place = place();
    // Bound and closed again: nobody listens.
    let address = std::net::TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap();
    let error = fail(
        &place
            .pillbug(&["pull", &format!("{address}/app")])
            .output()
            .unwrap(),
    );
    assert!(
        error.contains(&format!("cannot reach {address}")),
        "{error}"
    );
}
