//! What images are listed, told about, made, searched and removed with, in Docker's words.

use std::{fs, io::Write, process::Stdio};

use serde_json::{Value, json};

use crate::{
    fixture::{Fixture, Packing, Place, archive, fail, succeed},
    hostile::{Answer, Hostile},
    server::{Demand, Registry},
};

fn run(place: &Place, arguments: &[&str]) -> String {
    succeed(place.pillbug(arguments).output().unwrap())
}

/// A place with the images `old:1`, made in 2020 with a label `kind` of `base`, and `team/new:2`, of 2021.
fn place_with_two() -> Place {
    let place = Place::new();
    for (name, created, label) in [
        ("old:1", "2020-01-01T00:00:00Z", "base"),
        ("team/new:2", "2021-01-01T00:00:00Z", "app"),
    ] {
        let mut image = Fixture::new(name, &[Packing::Gzip]).named(name);
        image.config["created"] = json!(created);
        image.config["config"]["Labels"] = json!({"kind": label});
        image.config["history"] =
            json!([{"created": created, "created_by": format!("make {name}\u{1b}[31m")}]);
        image.seal();
        place.load_well(&place.write("image", &image.archive()));
    }
    place
}

fn names(place: &Place, arguments: &[&str]) -> Vec<String> {
    let format = ["images", "--format", "{{.Repository}}:{{.Tag}}"];
    let printed = run(place, &[&format, arguments].concat());
    printed.lines().map(String::from).collect()
}

#[test]
fn images_are_filtered_by_what_they_are() {
    let place = place_with_two();
    let old_and_new = ["old:1", "team/new:2"];
    for (arguments, expected) in [
        (&[][..], &old_and_new[..]),
        (&["-a"], &old_and_new),
        (&["old"], &["old:1"]),
        (&["*/*"], &["team/new:2"]),
        (&["-f", "reference=old:*"], &["old:1"]),
        (
            &["-f", "reference=old", "-f", "reference=team/*"],
            &old_and_new,
        ),
        (&["-f", "label=kind"], &old_and_new),
        (&["-f", "label=kind=app"], &["team/new:2"]),
        (&["-f", "label!=kind=app"], &["old:1"]),
        (&["-f", "before=team/new:2"], &["old:1"]),
        (&["-f", "since=old:1"], &["team/new:2"]),
        (&["-f", "until=2020-06-01"], &["old:1"]),
        (&["-f", "dangling=true"], &[]),
    ] {
        assert_eq!(names(&place, arguments), expected, "{arguments:?}");
    }
    run(&place, &["tag", "old:1", "team/new:2"]);
    assert_eq!(names(&place, &["-f", "dangling=true"]), ["<none>:<none>"]);
    let unknown = place
        .pillbug(&["images", "-f", "colour=red"])
        .output()
        .unwrap();
    assert_eq!(unknown.status.code(), Some(125));
}

#[test]
fn lists_and_objects_are_printed_as_the_format_says() {
    let place = place_with_two();
    let id = run(&place, &["images", "-q", "--no-trunc", "old"]);
    let id = id.trim_end();
    let short = &id[7..19];
    let json: Value =
        serde_json::from_str(&run(&place, &["images", "--format", "json", "old"])).unwrap();
    assert_eq!(json["ID"], short);
    assert_eq!(json["CreatedAt"], "2020-01-01 00:00:00 +0000 UTC");
    assert_eq!(
        run(
            &place,
            &["images", "--format", "table {{.ID}}\\t{{.Tag}}", "old"]
        ),
        format!("IMAGE ID       TAG\n{short}   1\n")
    );
    assert!(run(&place, &["images", "--digests", "old"]).contains("   DIGEST   "));
    assert_eq!(
        run(
            &place,
            &[
                "image",
                "inspect",
                "-f",
                "{{.Id}} {{index .RepoTags 0}}",
                short
            ]
        ),
        format!("{id} old:1\n")
    );
    assert_eq!(
        run(
            &place,
            &[
                "inspect",
                "--type",
                "image",
                "-f",
                "{{json .Config.Labels}}",
                "old:1"
            ]
        ),
        "{\"kind\":\"base\"}\n"
    );
    let all: Value = serde_json::from_str(&run(
        &place,
        &["inspect", "--format", "json", "old:1", "team/new:2"],
    ))
    .unwrap();
    assert_eq!(all.as_array().unwrap().len(), 2);
    // What an image says of itself steers no terminal.
    let history = run(
        &place,
        &["history", "--format", "{{.ID}} {{.CreatedBy}}", "old:1"],
    );
    assert_eq!(history, format!("{short} make old:1\\u{{1b}}[31m\n"));
    assert!(run(&place, &["history", "-H=false", "old:1"]).contains("2020-01-01T00:00:00Z"));
    let wrong = place
        .pillbug(&["images", "--format", "{{.Colour}}"])
        .output()
        .unwrap();
    assert!(fail(&wrong).contains("Colour"));
}

#[test]
fn an_image_is_made_of_a_root_file_system() {
    let place = Place::new();
    let tar = archive(&[("etc/motd".into(), b"hello".to_vec())]);
    let path = place.write("root.tar", &tar);
    let packed = place.write("root.tar.zst", &Packing::Zstd.pack(&tar));
    let id = run(
        &place,
        &[
            "import",
            "-c",
            "CMD [\"cat\", \"/etc/motd\"]",
            "-c",
            "ENV A=1",
            "-m",
            "by hand",
            path.to_str().unwrap(),
            "mine:1",
        ],
    );
    let object: Value = serde_json::from_str(&run(&place, &["inspect", "mine:1"])).unwrap();
    assert_eq!(object[0]["Id"], id.trim_end());
    assert_eq!(object[0]["Config"]["Cmd"], json!(["cat", "/etc/motd"]));
    assert_eq!(object[0]["Config"]["Env"], json!(["A=1"]));
    assert_eq!(
        run(&place, &["history", "--format", "{{.Comment}}", "mine:1"]),
        "by hand\n"
    );

    // The same layer, from a pipe.
    let mut piped = place
        .pillbug(&["import", "-", "piped"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    piped
        .stdin
        .take()
        .unwrap()
        .write_all(&fs::read(packed).unwrap())
        .unwrap();
    succeed(piped.wait_with_output().unwrap());
    let layers = |name: &str| run(&place, &["inspect", "-f", "{{json .RootFS.Layers}}", name]);
    assert_eq!(layers("mine:1"), layers("piped"));

    // In the middle of the content: that what follows it is missing is nothing.
    let broken = place.write("broken.tar", &tar[..514]);
    let before = place.content();
    let refused = place
        .pillbug(&["import", broken.to_str().unwrap(), "bad"])
        .output()
        .unwrap();
    assert!(fail(&refused).contains("cannot import the archive"));
    let change = place
        .pillbug(&["import", "-c", "RUN rm", path.to_str().unwrap()])
        .output()
        .unwrap();
    assert_eq!(change.status.code(), Some(125));
    assert_eq!(place.content(), before);
}

#[test]
fn a_registry_is_searched_by_its_catalog() {
    let registry = Registry::start(Demand::Nothing);
    let place = place_with_two();
    for name in ["tools/curl", "tools/jq", "web"] {
        let name = format!("{}/{name}:1", registry.address);
        run(&place, &["tag", "old:1", &name]);
        run(&place, &["push", "-q", &name]);
    }
    let search = |more: &[&str]| {
        let printed = run(
            &place,
            &[&["search", "--format", "{{.Name}}"], more].concat(),
        );
        printed
            .lines()
            .map(|line| line.replace(&registry.address, "R"))
            .collect::<Vec<_>>()
    };
    assert_eq!(
        search(&[&format!("{}/tools", registry.address)]),
        ["R/tools/curl", "R/tools/jq"]
    );
    assert_eq!(
        search(&[&format!("{}/", registry.address), "--limit", "2"]).len(),
        2
    );
    assert_eq!(search(&[&format!("{}/nothing", registry.address)]).len(), 0);
}

#[test]
fn a_search_is_answered_in_dockers_words_or_declined() {
    let place = Place::new();
    let hub = Hostile::start(|request, _| {
        if !request.path.starts_with("/v1/search?q=we%20b&n=") {
            return Answer::status(404);
        }
        let results = json!({"results": [
            {"name": "web", "description": "a\nserver \u{1b}[2J", "star_count": 7, "is_official": true},
            {"name": "me/web", "description": "x".repeat(100), "star_count": 1},
        ]});
        Answer::ok(results.to_string().as_bytes())
    });
    let term = format!("{}/we b", hub.address);
    let printed = run(&place, &["search", &term]);
    assert!(
        printed.contains("a server \\u{1b}[2J") && printed.contains("[OK]"),
        "{printed}"
    );
    let stars = run(
        &place,
        &[
            "search",
            "-f",
            "stars=5",
            "--format",
            "{{.StarCount}}",
            &term,
        ],
    );
    assert_eq!(stars, "7\n");

    for status in [401, 403, 404] {
        let closed = Hostile::start(move |_, _| {
            Answer::status(status).with("www-authenticate", "Basic realm=\"x\"")
        });
        let declined = place
            .pillbug(&["search", &format!("{}/web", closed.address)])
            .output()
            .unwrap();
        let error = fail(&declined);
        assert!(error.contains("offers no search"), "{error}");
    }
    let liar = Hostile::start(|_, _| Answer::ok(b"{\"results\": 3}"));
    fail(
        &place
            .pillbug(&["search", &format!("{}/web", liar.address)])
            .output()
            .unwrap(),
    );
}

#[test]
fn disk_is_accounted_for_and_given_back() {
    let place = place_with_two();
    let df = |format: &str| run(&place, &["system", "df", "--format", format]);
    assert_eq!(
        df("{{.Type}} {{.TotalCount}} {{.Active}}"),
        "Images 2 0\nContainers 0 0\nLocal Volumes 0 0\n"
    );
    run(&place, &["tag", "old:1", "old:2"]);
    let one_more = run(
        &place,
        &[
            "system",
            "df",
            "-v",
            "--format",
            "{{range .Images}}{{.SharedSize}} {{end}}",
        ],
    );
    assert_eq!(one_more.trim(), "0B 0B");
    assert!(run(&place, &["system", "df"]).starts_with("TYPE            TOTAL   ACTIVE   SIZE"));

    run(&place, &["tag", "team/new:2", "old:1"]);
    run(&place, &["tag", "team/new:2", "old:2"]);
    let kept = run(
        &place,
        &["image", "prune", "-f", "--filter", "label=kind=app"],
    );
    assert_eq!(kept, "Total reclaimed space: 0B\n");
    let pruned = run(&place, &["image", "prune", "-f"]);
    assert!(
        pruned.starts_with("Deleted Images:\ndeleted: sha256:") && !pruned.ends_with(" 0B\n"),
        "{pruned}"
    );
    assert_eq!(names(&place, &[]).len(), 3);
    let mut asked = place
        .pillbug(&["system", "prune", "-a"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    asked.stdin.take().unwrap().write_all(b"n\n").unwrap();
    assert!(succeed(asked.wait_with_output().unwrap()).contains("WARNING!"));
    assert_eq!(names(&place, &[]).len(), 3);
    run(&place, &["system", "prune", "-a", "-f"]);
    assert!(place.content().is_empty(), "{:?}", place.content());
}

#[test]
fn names_and_images_are_removed_by_name_and_id() {
    let place = place_with_two();
    let id = run(&place, &["images", "-q", "--no-trunc", "old"]);
    let id = id.trim_end();
    run(&place, &["tag", "old:1", "older:1"]);
    assert_eq!(run(&place, &["rmi", "older:1"]), "Untagged: older:1\n");
    run(&place, &["tag", "old:1", "older:1"]);
    let several = place.pillbug(&["rmi", &id[7..15]]).output().unwrap();
    assert_eq!(several.status.code(), Some(1));
    let removed = run(&place, &["image", "rm", "-f", &id[7..15]]);
    assert_eq!(
        removed,
        format!("Untagged: old:1\nUntagged: older:1\nDeleted: {id}\n")
    );
    assert_eq!(names(&place, &[]), ["team/new:2"]);
}
