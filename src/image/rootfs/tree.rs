//! The tree that layers add up to.
//!
//! Layers are applied as umoci and containerd unpack them one over the other: entries in order; a folder over a
//! folder keeps what is in it, anything else replaces what was there; symbolic links on the way to an entry
//! lead through the tree itself; whiteouts remove what lower layers brought and nothing that their own did.
//! No file of the host is involved.

use std::collections::BTreeMap;

use crate::image::layer::index::{Change, Content, Entry, Inode, Timestamp};
use crate::image::layer::name::{self, NameError};

/// The root's position among the folders.
pub const ROOT: u32 = 0;
/// Links followed for one path, as in Linux.
const MAX_LINKS: u32 = 40;
/// Components walked for the sake of links, in all: so many at once, and so many more with every entry. Images come
/// nowhere near; a chain of long links under every entry would.
const DETOURS: u64 = 1 << 20;
const DETOURS_PER_ENTRY: u64 = 64;

/// Why an entry does not fit the tree.
#[derive(Debug, thiserror::Error)]
pub enum TreeError {
    /// A component on the way is a file.
    #[error("its path leads through {0}, which is no folder")]
    NotFolder(String),
    /// Too many links on the way.
    #[error("its path leads through more than {MAX_LINKS} symbolic links")]
    Links,
    /// Too many links on all ways.
    #[error("the layers' paths lead through too many symbolic links")]
    Detours,
    /// A folder on the way cannot be made.
    #[error("its path leads through a symbolic link that is no path")]
    Target(#[source] NameError),
    /// A hard link to nothing.
    #[error("it is a hard link to {0}, which is not there")]
    LinkMissing(String),
    /// A hard link to a folder.
    #[error("it is a hard link to {0}, which is a folder")]
    LinkToFolder(String),
    /// The root as something else.
    #[error("it would replace the root folder")]
    Root,
}

/// Something that has a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Node {
    /// A position among the folders.
    Folder(u32),
    /// A position among the files.
    File(u32),
}

/// A folder.
#[derive(Debug)]
pub struct Folder<'a> {
    /// Its own attributes.
    pub inode: Inode<'a>,
    /// The folder it is in; the root is in itself.
    pub parent: u32,
    /// What is in it.
    pub names: BTreeMap<&'a [u8], Name>,
    /// The last layer that had an entry for it or for something below it.
    layer: u32,
    /// The layer for which nothing of lower layers is below it any more.
    cleared: u32,
}

/// A name in a folder.
#[derive(Debug, Clone, Copy)]
pub struct Name {
    /// What it names.
    pub node: Node,
    /// The layer that brought it, unless it names a folder.
    layer: u32,
}

/// A file of any kind but a folder.
#[derive(Debug)]
pub struct Leaf<'a> {
    /// Attributes and content.
    pub inode: Inode<'a>,
    /// Where its layer's data starts, in blocks of the data area.
    pub base: u64,
}

/// The tree.
#[derive(Debug)]
pub struct Tree<'a> {
    /// All folders that ever were, the root first.
    pub folders: Vec<Folder<'a>>,
    /// All other files that ever were.
    pub leaves: Vec<Leaf<'a>>,
    /// Number of the layer being applied, from 1.
    layer: u32,
    /// Where its data starts.
    base: u64,
    detours_left: u64,
}

impl<'a> Tree<'a> {
    /// An empty root folder.
    #[must_use]
    pub fn new() -> Self {
        Self {
            folders: vec![implicit_folder(ROOT, 0)],
            leaves: Vec::new(),
            layer: 0,
            base: 0,
            detours_left: DETOURS,
        }
    }

    /// What is applied from now on belongs to the next layer, whose data starts at block `base` of the data area.
    pub fn start_layer(&mut self, base: u64) {
        self.layer += 1;
        self.base = base;
    }

    /// Applies one entry of the layer that was started last.
    ///
    /// # Errors
    ///
    /// When it does not fit the tree.
    pub fn apply(&mut self, entry: Entry<'a>) -> Result<(), TreeError> {
        self.detours_left += DETOURS_PER_ENTRY;
        let (parent, name) = split(entry.path);
        match entry.change {
            Change::Whiteout => {
                if let Some(parent) = self.existing(parent)? {
                    self.hide(parent, name);
                }
            }
            Change::Opaque => {
                if let Some(folder) = self.existing(entry.path)? {
                    self.clear(folder);
                }
            }
            Change::HardLink(target) => {
                let parent = self.walk(parent, true)?.unwrap_or(ROOT);
                self.folders[parent as usize].names.remove(name);
                let node = self.link_target(target)?;
                self.put(parent, name, node);
            }
            Change::Inode(inode) if entry.path.is_empty() => {
                if inode.content != Content::Directory {
                    return Err(TreeError::Root);
                }
                self.folders[ROOT as usize].inode = inode;
            }
            Change::Inode(inode) => {
                let parent = self.walk(parent, true)?.unwrap_or(ROOT);
                self.put_inode(parent, name, inode);
            }
        }
        Ok(())
    }

    fn put_inode(&mut self, parent: u32, name: &'a [u8], inode: Inode<'a>) {
        if inode.content != Content::Directory {
            let leaf = self.leaves.len() as u32;
            let base = self.base;
            self.leaves.push(Leaf { inode, base });
            self.put(parent, name, Node::File(leaf));
            return;
        }
        let there = self.folders[parent as usize].names.get(name);
        let folder = match there.map(|name| name.node) {
            Some(Node::Folder(folder)) => folder,
            _ => self.new_folder(parent),
        };
        self.folders[folder as usize].inode = inode;
        self.put(parent, name, Node::Folder(folder));
        self.touch(folder);
    }

    fn put(&mut self, parent: u32, name: &'a [u8], node: Node) {
        let layer = self.layer;
        let names = &mut self.folders[parent as usize].names;
        names.insert(name, Name { node, layer });
        self.touch(parent);
    }

    /// Marks a folder and those above it as belonging to this layer too.
    fn touch(&mut self, mut folder: u32) {
        while self.folders[folder as usize].layer != self.layer {
            self.folders[folder as usize].layer = self.layer;
            folder = self.folders[folder as usize].parent;
        }
    }

    fn is_lower(&self, name: Name) -> bool {
        match name.node {
            Node::Folder(folder) => self.folders[folder as usize].layer != self.layer,
            Node::File(_) => name.layer != self.layer,
        }
    }

    /// Removes what lower layers have under a name.
    fn hide(&mut self, parent: u32, name: &[u8]) {
        let Some(&there) = self.folders[parent as usize].names.get(name) else {
            return;
        };
        if self.is_lower(there) {
            self.folders[parent as usize].names.remove(name);
        } else if let Node::Folder(folder) = there.node {
            self.clear(folder);
        }
    }

    /// Removes what lower layers have anywhere below a folder. A folder is cleared once a layer: more would find
    /// nothing, and would let a layer with many whiteouts take quadratic time.
    fn clear(&mut self, folder: u32) {
        let mut pending = vec![folder];
        while let Some(folder) = pending.pop() {
            let at = folder as usize;
            if self.folders[at].cleared == self.layer {
                continue;
            }
            self.folders[at].cleared = self.layer;
            let mut names = std::mem::take(&mut self.folders[at].names);
            names.retain(|_, name| {
                let kept = !self.is_lower(*name);
                if let (true, Node::Folder(below)) = (kept, name.node) {
                    pending.push(below);
                }
                kept
            });
            self.folders[at].names = names;
        }
    }

    fn link_target(&mut self, target: &'a [u8]) -> Result<Node, TreeError> {
        let (parent, name) = split(target);
        let found = match self.existing(parent)? {
            Some(parent) => self.folders[parent as usize].names.get(name),
            None => None,
        };
        match found.map(|name| name.node) {
            Some(Node::Folder(_)) => Err(TreeError::LinkToFolder(name::shown(target))),
            Some(node) => Ok(node),
            None => Err(TreeError::LinkMissing(name::shown(target))),
        }
    }

    /// The folder at a path, if it is there and is one.
    fn existing(&mut self, path: &'a [u8]) -> Result<Option<u32>, TreeError> {
        match self.walk(path, false) {
            Err(TreeError::NotFolder(_)) => Ok(None),
            found => found,
        }
    }

    /// The folder at a path, links followed; those missing are made where `create` says so.
    fn walk(&mut self, path: &'a [u8], create: bool) -> Result<Option<u32>, TreeError> {
        let mut folder = ROOT;
        let mut links = 0;
        let mut pending = vec![path];
        while let Some(path) = pending.pop() {
            let slash = path.iter().position(|&byte| byte == b'/');
            let component = &path[..slash.unwrap_or(path.len())];
            if let Some(slash) = slash {
                pending.push(&path[slash + 1..]);
            }
            if links > 0 {
                self.detours_left = self.detours_left.checked_sub(1).ok_or(TreeError::Detours)?;
            }
            let there = match component {
                b"" | b"." => continue,
                b".." => Some(Node::Folder(self.folders[folder as usize].parent)),
                name => self.folders[folder as usize]
                    .names
                    .get(name)
                    .map(|name| name.node),
            };
            folder = match there {
                Some(Node::Folder(below)) => below,
                Some(Node::File(leaf)) => {
                    let Content::Symlink(target) = self.leaves[leaf as usize].inode.content else {
                        return Err(TreeError::NotFolder(name::shown(component)));
                    };
                    links += 1;
                    if links > MAX_LINKS {
                        return Err(TreeError::Links);
                    }
                    pending.push(target);
                    if target.starts_with(b"/") {
                        ROOT
                    } else {
                        folder
                    }
                }
                None if create => {
                    name::check_component(component).map_err(TreeError::Target)?;
                    let made = self.new_folder(folder);
                    self.put(folder, component, Node::Folder(made));
                    made
                }
                None => return Ok(None),
            };
        }
        Ok(Some(folder))
    }

    fn new_folder(&mut self, parent: u32) -> u32 {
        self.folders.push(implicit_folder(parent, self.layer));
        self.folders.len() as u32 - 1
    }
}

/// A folder that no entry describes: only what is in it said that it is there.
fn implicit_folder(parent: u32, layer: u32) -> Folder<'static> {
    Folder {
        inode: Inode {
            mode: 0o755,
            uid: 0,
            gid: 0,
            mtime: Timestamp::default(),
            xattrs: Vec::new(),
            content: Content::Directory,
        },
        parent,
        names: BTreeMap::new(),
        layer,
        cleared: layer,
    }
}

fn split(path: &[u8]) -> (&[u8], &[u8]) {
    match path.iter().rposition(|&byte| byte == b'/') {
        Some(slash) => (&path[..slash], &path[slash + 1..]),
        None => (b"", path),
    }
}
