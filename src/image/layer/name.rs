//! Names in an archive, and what they may be.
//!
//! A name is only ever a key into the tree that a root file system is made of, so nothing here can reach a file
//! of the host. The rules keep out what no Linux file system could hold and what only an attack would spell.

/// Longest path, as PATH_MAX without its terminator: what is longer could not be opened by its name.
const PATH_MAX: usize = 4095;
/// Longest component, the same on Linux and in EROFS.
const NAME_MAX: usize = 255;
/// Prefix of a name that removes a lower layer's entry (OCI image specification, "Whiteouts").
const WHITEOUT: &[u8] = b".wh.";
/// Prefix of AUFS's own bookkeeping, of which only the opaque marker means anything to others.
const AUFS: &[u8] = b".wh..wh.";
/// Name that hides everything that lower layers put into its folder.
const OPAQUE: &[u8] = b".wh..wh..opq";

/// Why a name is refused.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum NameError {
    /// More `..` than folders to leave.
    #[error("its path leaves the root folder")]
    Escapes,
    /// A zero byte inside.
    #[error("its path holds a zero byte")]
    Nul,
    /// Longer than any path that could be opened.
    #[error("its path is longer than {PATH_MAX} bytes")]
    PathTooLong,
    /// Longer than any file name.
    #[error("a component of its path is longer than {NAME_MAX} bytes")]
    ComponentTooLong,
    /// A whiteout of nothing, of `.` or of `..`.
    #[error("it is a whiteout that names no file")]
    Whiteout,
    /// The root folder as something else.
    #[error("it would make the root folder something that is no folder")]
    Root,
    /// A link that leads nowhere.
    #[error("it is a link with an empty target")]
    EmptyTarget,
}

/// What the last component of a path asks for.
#[derive(Debug, PartialEq, Eq)]
pub enum Meaning {
    /// An entry with this path.
    Entry,
    /// Remove what lower layers have at this path.
    Whiteout(Vec<u8>),
    /// Hide what lower layers have in this folder.
    Opaque(Vec<u8>),
    /// AUFS bookkeeping that is no part of the file system.
    Bookkeeping,
}

/// Brings a path into its one spelling: no leading, doubled or trailing slash, no `.`, no `..`; empty for the root.
///
/// # Errors
///
/// When it leaves the root or is not a path that Linux could have.
pub fn clean(path: &[u8]) -> Result<Vec<u8>, NameError> {
    if path.contains(&0) {
        return Err(NameError::Nul);
    }
    let mut clean: Vec<u8> = Vec::with_capacity(path.len().min(PATH_MAX));
    for component in path.split(|&byte| byte == b'/') {
        match component {
            b"" | b"." => {}
            b".." => {
                if clean.is_empty() {
                    return Err(NameError::Escapes);
                }
                let parent = clean.iter().rposition(|&byte| byte == b'/');
                clean.truncate(parent.unwrap_or(0));
            }
            _ => {
                check_component(component)?;
                if !clean.is_empty() {
                    clean.push(b'/');
                }
                clean.extend_from_slice(component);
                if clean.len() > PATH_MAX {
                    return Err(NameError::PathTooLong);
                }
            }
        }
    }
    Ok(clean)
}

/// Checks one component of a path or of a link's target.
///
/// # Errors
///
/// When no file can have this name.
pub fn check_component(component: &[u8]) -> Result<(), NameError> {
    if component.len() > NAME_MAX {
        return Err(NameError::ComponentTooLong);
    }
    Ok(())
}

/// Checks the target of a symbolic link, which is stored as it is: only the guest will ever follow it.
///
/// # Errors
///
/// When Linux could not have such a link.
pub fn check_target(target: &[u8]) -> Result<(), NameError> {
    if target.is_empty() {
        return Err(NameError::EmptyTarget);
    }
    if target.contains(&0) {
        return Err(NameError::Nul);
    }
    if target.len() > PATH_MAX {
        return Err(NameError::PathTooLong);
    }
    Ok(())
}

/// Tells whiteouts from entries by the last component of a clean path.
///
/// # Errors
///
/// When it is a whiteout of no file.
pub fn meaning(path: &[u8]) -> Result<Meaning, NameError> {
    if path.split(|&byte| byte == b'/').any(is_bookkeeping) {
        return Ok(Meaning::Bookkeeping);
    }
    let (parent, name) = match path.iter().rposition(|&byte| byte == b'/') {
        Some(slash) => (&path[..slash], &path[slash + 1..]),
        None => (&b""[..], path),
    };
    if name == OPAQUE {
        return Ok(Meaning::Opaque(parent.to_vec()));
    }
    let Some(hidden) = name.strip_prefix(WHITEOUT) else {
        return Ok(Meaning::Entry);
    };
    if matches!(hidden, b"" | b"." | b"..") {
        return Err(NameError::Whiteout);
    }
    let mut target = parent.to_vec();
    if !target.is_empty() {
        target.push(b'/');
    }
    target.extend_from_slice(hidden);
    Ok(Meaning::Whiteout(target))
}

fn is_bookkeeping(component: &[u8]) -> bool {
    component.starts_with(AUFS) && component != OPAQUE
}

/// A hostile name made fit for a message: printable, one line, not long.
#[must_use]
pub fn shown(name: &[u8]) -> String {
    let cut = &name[..name.len().min(160)];
    let more = if cut.len() < name.len() { "..." } else { "" };
    format!("\"{}{more}\"", cut.escape_ascii())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a23_names_are_confined() {
        let good: [(&[u8], &[u8]); 9] = [
            (b"/etc/passwd", b"etc/passwd"),
            (b"./a//b/./c/", b"a/b/c"),
            (b"a/../b", b"b"),
            (b"a/b/../../c", b"c"),
            (b"/.", b""),
            (b"./", b""),
            (b"", b""),
            (b"...", b"..."),
            (b"\xff\n", b"\xff\n"),
        ];
        for (path, expected) in good {
            assert_eq!(clean(path).unwrap(), expected);
        }
        for path in [&b".."[..], b"../x", b"a/../../x", b"/../x", b"./.."] {
            assert_eq!(clean(path), Err(NameError::Escapes), "{}", shown(path));
        }
        assert_eq!(clean(b"a\0b"), Err(NameError::Nul));
    }

    #[test]
    fn a29_over_long_names_are_refused() {
        assert_eq!(clean(&[b'x'; 256]), Err(NameError::ComponentTooLong));
        assert!(clean(&[b'x'; 255]).is_ok());
        assert_eq!(clean(&b"d/".repeat(4000)), Err(NameError::PathTooLong));
        assert!(clean(&b"d/".repeat(2048)).is_ok());
    }

    #[test]
    fn whiteouts_are_recognised() {
        let cases: [(&[u8], Meaning); 6] = [
            (b"a/.wh.b", Meaning::Whiteout(b"a/b".to_vec())),
            (b".wh.b", Meaning::Whiteout(b"b".to_vec())),
            (b"a/.wh..wh..opq", Meaning::Opaque(b"a".to_vec())),
            (b".wh..wh..opq", Meaning::Opaque(b"".to_vec())),
            (b".wh..wh.plnk/12.34", Meaning::Bookkeeping),
            (b"a.wh.b", Meaning::Entry),
        ];
        for (path, expected) in cases {
            assert_eq!(meaning(path).unwrap(), expected);
        }
        for path in [&b".wh."[..], b"a/.wh..", b".wh..."] {
            assert_eq!(meaning(path), Err(NameError::Whiteout));
        }
    }

    proptest! {
        #[test]
        fn a23_clean_paths_have_plain_components(path: Vec<u8>) {
            if let Ok(path) = clean(&path) {
                prop_assert_eq!(clean(&path).unwrap(), path.clone());
                for component in path.split(|&byte| byte == b'/') {
                    prop_assert!(path.is_empty() || !matches!(component, b"" | b"." | b".."));
                }
            }
        }
    }
}
