//! Who is called what. A name is a file that holds an ID; one whose container is gone is free.

use std::{
    fs::{self, File},
    io,
    path::PathBuf,
};

use super::{
    super::{
        name::{self, Id},
        spec::Spec,
    },
    Containers, StateError,
    file::{self, failed, open_lock, read_json, write_json},
};

impl Containers {
    /// The container with this name, ID, or start of an ID that no other has.
    ///
    /// # Errors
    ///
    /// [`StateError::NotFound`], [`StateError::Ambiguous`].
    pub fn find(&self, wanted: &str) -> Result<Id, StateError> {
        let not_found = || StateError::NotFound(wanted.into());
        if name::check(wanted).is_ok()
            && let Some(id) = self.named(wanted)?
        {
            return Ok(id);
        }
        let mut matching = self
            .ids()?
            .into_iter()
            .filter(|id| id.as_str().starts_with(wanted));
        match (matching.next(), matching.next()) {
            (Some(id), None) if !wanted.is_empty() => Ok(id),
            (Some(_), Some(_)) => Err(StateError::Ambiguous {
                prefix: wanted.into(),
            }),
            _ => Err(not_found()),
        }
    }

    /// Gives a container another name.
    ///
    /// # Errors
    ///
    /// As [`create`](Self::create), and where there is no such container.
    pub fn rename(&self, id: &Id, name: &str) -> Result<(), StateError> {
        name::check(name)?;
        let _names = self.lock_names()?;
        self.check_free(name)?;
        let path = self.container_folder(id).join("spec.json");
        let mut spec: Spec = read_json(&path)?;
        let before = std::mem::replace(&mut spec.name, name.to_owned());
        // Cut short between these, it has two names until it is removed.
        file::write(&self.name_file(name), id.as_str().as_bytes(), !spec.remove)?;
        write_json(&path, &spec, !spec.remove)?;
        let old = [("oldName", format!("/{before}"))];
        self.events().record_container(&spec, "rename", &old);
        let before = self.name_file(&before);
        fs::remove_file(&before).map_err(failed("remove", &before))
    }

    /// Changes what a container is, but for its name and ID.
    ///
    /// # Errors
    ///
    /// Where its files cannot be read or written; it is as it was then.
    pub fn change(&self, id: &Id, change: impl FnOnce(&mut Spec)) -> Result<(), StateError> {
        let _names = self.lock_names()?;
        let path = self.container_folder(id).join("spec.json");
        let mut spec: Spec = read_json(&path)?;
        change(&mut spec);
        write_json(&path, &spec, !spec.remove)
    }

    pub(super) fn lock_names(&self) -> Result<File, StateError> {
        let path = self.folder.join("lock");
        let lock = open_lock(&path)?;
        lock.lock().map_err(failed("lock", &path))?;
        Ok(lock)
    }

    pub(super) fn check_free(&self, name: &str) -> Result<(), StateError> {
        match self.named(name)? {
            Some(id) => Err(StateError::NameTaken {
                name: name.into(),
                id: id.short().into(),
            }),
            None => Ok(()),
        }
    }

    pub(super) fn free_name(&self, id: &Id) -> Result<String, StateError> {
        let made_up = name::made_up(id);
        Ok(match self.named(&made_up)? {
            None => made_up,
            Some(_) => format!("{made_up}_{}", &id.as_str()[8..16]),
        })
    }

    /// Who has this name. A name whose container is gone is nobody's.
    pub(super) fn named(&self, name: &str) -> Result<Option<Id>, StateError> {
        let path = self.name_file(name);
        match fs::read_to_string(&path) {
            Ok(text) => Ok(Id::try_from(text)
                .ok()
                .filter(|id| self.container_folder(id).is_dir())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(failed("read", &path)(error)),
        }
    }

    pub(super) fn name_file(&self, name: &str) -> PathBuf {
        self.folder.join("names").join(name)
    }
}
