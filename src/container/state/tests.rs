//! Containers on disk: found, held, named, removed, and put right after a crash.

use std::{fs, time::SystemTime};

use super::{
    super::{
        spec::example,
        status::{Exited, ORPHANED, Running},
    },
    *,
};

fn describe(remove: bool) -> impl Fn(Id, String) -> Result<Spec, ProcessError> {
    move |id, name| {
        Ok(Spec {
            id,
            remove,
            ..example(&name)
        })
    }
}

const CREATED: Status = Status::Created { error: None };

fn state() -> (tempfile::TempDir, Containers) {
    let root = tempfile::tempdir().unwrap();
    let containers = Containers::open(root.path()).unwrap();
    (root, containers)
}

fn statuses(containers: &Containers) -> Vec<Status> {
    containers
        .list()
        .unwrap()
        .into_iter()
        .map(|record| record.status)
        .collect()
}

#[test]
fn a_container_is_found_by_name_id_and_prefix_until_it_is_removed() {
    let (_root, containers) = state();
    let container = containers
        .create(Some("web"), &CREATED, describe(false))
        .unwrap();
    let id = container.spec().id.clone();

    assert_eq!(containers.find("web").unwrap(), id);
    assert_eq!(containers.find(id.as_str()).unwrap(), id);
    assert_eq!(containers.find(id.short()).unwrap(), id);
    assert!(matches!(
        containers.find("../x"),
        Err(StateError::NotFound(_))
    ));
    assert!(matches!(containers.find(""), Err(StateError::NotFound(_))));

    containers.remove_held(container).unwrap();
    assert!(matches!(
        containers.find("web"),
        Err(StateError::NotFound(_))
    ));
    assert_eq!(
        fs::read_dir(containers.folder.join("names"))
            .unwrap()
            .count(),
        0
    );
    assert_eq!(
        fs::read_dir(containers.folder.join("by-id"))
            .unwrap()
            .count(),
        0
    );
}

#[test]
fn a62_of_two_who_want_a_name_one_gets_it() {
    let (_root, containers) = state();
    let created: Vec<_> = std::thread::scope(|scope| {
        let one = || containers.create(Some("web"), &CREATED, describe(false));
        let threads: Vec<_> = (0..8).map(|_| scope.spawn(one)).collect();
        threads
            .into_iter()
            .map(|thread| thread.join().unwrap())
            .collect()
    });
    assert_eq!(created.iter().filter(|result| result.is_ok()).count(), 1);
    assert!(
        created
            .iter()
            .flat_map(|result| result.as_ref().err())
            .all(|error| { matches!(error, StateError::NameTaken { .. }) })
    );
    assert!(matches!(
        containers.create(Some("../x"), &CREATED, describe(false)),
        Err(StateError::Name(_))
    ));
}

#[test]
fn a51_an_orphan_gets_an_end_and_a_transient_one_goes() {
    let (_root, containers) = state();
    let running = Status::Running(Running {
        since: SystemTime::now(),
        supervisor_pid: 1,
        vmm_pid: 1,
        restarts: 0,
        paused: false,
    });
    let kept = containers.create(None, &CREATED, describe(false)).unwrap();
    let transient = containers.create(None, &CREATED, describe(true)).unwrap();
    kept.set_status(&running).unwrap();
    transient.set_status(&running).unwrap();
    assert_eq!(statuses(&containers), [running.clone(), running]);

    // As the kernel does for a killed process.
    drop((kept, transient));
    assert!(matches!(
        statuses(&containers)[..],
        [Status::Exited(Exited { code: ORPHANED, .. })]
    ));
}

#[test]
fn a51_what_a_killed_process_left_half_made_is_swept() {
    let (_root, containers) = state();
    let id = Id::random().unwrap();
    fs::create_dir(containers.folder.join(format!("new-{id}"))).unwrap();
    fs::create_dir(containers.folder.join(format!("old-{id}"))).unwrap();
    fs::write(containers.name_file("web"), id.as_str()).unwrap();

    containers.sweep().unwrap();
    assert_eq!(fs::read_dir(&containers.folder).unwrap().count(), 3);
    containers
        .create(Some("web"), &CREATED, describe(false))
        .unwrap();
}

#[test]
fn a_held_container_is_not_removed() {
    let (_root, containers) = state();
    let container = containers.create(None, &CREATED, describe(false)).unwrap();
    let id = container.spec().id.clone();
    assert!(matches!(containers.remove(&id), Err(StateError::Busy(_))));
    let running = Status::Running(Running {
        since: SystemTime::now(),
        supervisor_pid: 1,
        vmm_pid: 1,
        restarts: 0,
        paused: false,
    });
    container.set_status(&running).unwrap();
    assert!(matches!(
        containers.remove(&id),
        Err(StateError::Running(_))
    ));
    drop(container);
    containers.remove(&id).unwrap();
}

#[test]
fn a51_what_run_was_about_to_start_goes_and_what_was_created_stays() {
    let (_root, containers) = state();
    let starting = containers.create(None, &Status::Starting, describe(false));
    let created = containers.create(None, &CREATED, describe(true));
    drop((starting, created));
    assert_eq!(statuses(&containers), [CREATED]);
}

#[test]
fn a62_a_container_can_be_renamed_to_what_nobody_has() {
    let (_root, containers) = state();
    let one = containers
        .create(Some("one"), &CREATED, describe(false))
        .unwrap();
    let id = one.spec().id.clone();
    let other = containers.create(Some("other"), &CREATED, describe(false));
    assert!(matches!(
        containers.rename(&id, "other"),
        Err(StateError::NameTaken { .. })
    ));
    assert!(matches!(
        containers.rename(&id, "-x"),
        Err(StateError::Name(_))
    ));
    containers.rename(&id, "first").unwrap();
    assert_eq!(containers.find("first").unwrap(), id);
    assert!(containers.find("one").is_err());
    // Its holder does not know of it.
    containers.remove_held(one).unwrap();
    assert!(containers.find("first").is_err());
    drop(other);
}
