//! The tree as the list of inodes that a file system is written from.
//!
//! Level by level, so that a folder's files lie together: who lists a folder finds their inodes in few blocks.

use crate::image::erofs::{self, Body, Dirent};
use crate::image::layer::index::{Content, Inode};

use super::tree::{Node, ROOT, Tree};

const FIFO: u16 = 0o010_000;
const CHAR_DEVICE: u16 = 0o020_000;
const DIRECTORY: u16 = 0o040_000;
const BLOCK_DEVICE: u16 = 0o060_000;
const REGULAR: u16 = 0o100_000;
const SYMLINK: u16 = 0o120_000;

/// Numbers everything that has a name, the root first.
#[must_use]
pub fn flatten<'a>(tree: &'a Tree<'a>) -> Vec<erofs::Inode<'a>> {
    let mut flat = Flat {
        tree,
        inodes: Vec::new(),
        numbers: vec![None; tree.leaves.len()],
        folders: Vec::new(),
    };
    flat.add_folder(ROOT, 0);
    let mut next = 0;
    while let Some(&(folder, number, parent)) = flat.folders.get(next) {
        flat.fill_folder(folder, number, parent);
        next += 1;
    }
    flat.inodes
}

struct Flat<'a> {
    tree: &'a Tree<'a>,
    inodes: Vec<erofs::Inode<'a>>,
    /// Numbers of the leaves that have one.
    numbers: Vec<Option<u32>>,
    /// Folders in order, with their own number and their parent's.
    folders: Vec<(u32, u32, u32)>,
}

impl<'a> Flat<'a> {
    fn add_folder(&mut self, folder: u32, parent: u32) -> u32 {
        let inode = &self.tree.folders[folder as usize].inode;
        let number = self.add(inode, DIRECTORY, Body::Directory(Vec::new()));
        // Its name and its own "."; every folder in it adds a "..".
        self.inodes[number as usize].nlink = 2;
        self.folders.push((folder, number, parent));
        number
    }

    fn fill_folder(&mut self, folder: u32, number: u32, parent: u32) {
        let names = &self.tree.folders[folder as usize].names;
        let mut entries = Vec::with_capacity(names.len() + 2);
        for (&name, entry) in names {
            let inode = match entry.node {
                Node::Folder(below) => {
                    self.inodes[number as usize].nlink += 1;
                    self.add_folder(below, number)
                }
                Node::File(leaf) => self.add_leaf(leaf),
            };
            entries.push(Dirent { name, inode });
        }
        for (name, inode) in [(&b"."[..], number), (b"..", parent)] {
            let at = entries.partition_point(|entry| entry.name < name);
            entries.insert(at, Dirent { name, inode });
        }
        self.inodes[number as usize].body = Body::Directory(entries);
    }

    fn add_leaf(&mut self, leaf: u32) -> u32 {
        if let Some(number) = self.numbers[leaf as usize] {
            self.inodes[number as usize].nlink += 1;
            return number;
        }
        let leaf_of = &self.tree.leaves[leaf as usize];
        let base = leaf_of.base;
        let (kind, body) = match &leaf_of.inode.content {
            Content::Directory => (DIRECTORY, Body::Directory(Vec::new())),
            Content::Inline(bytes) => (REGULAR, Body::Inline(bytes)),
            Content::Extent { block, size } => {
                let block = base + u64::from(*block);
                (REGULAR, Body::Extent { block, size: *size })
            }
            Content::Sparse {
                size,
                chunk_bits,
                runs,
            } => {
                let (size, bits) = (*size, *chunk_bits);
                (
                    REGULAR,
                    Body::Chunks {
                        size,
                        bits,
                        runs,
                        base,
                    },
                )
            }
            Content::Symlink(target) => (SYMLINK, Body::Inline(target)),
            Content::CharDevice(device) => (
                CHAR_DEVICE,
                Body::Node(erofs::device(device.major, device.minor)),
            ),
            Content::BlockDevice(device) => (
                BLOCK_DEVICE,
                Body::Node(erofs::device(device.major, device.minor)),
            ),
            Content::Fifo => (FIFO, Body::Node(0)),
        };
        let number = self.add(&leaf_of.inode, kind, body);
        self.numbers[leaf as usize] = Some(number);
        number
    }

    fn add(&mut self, inode: &'a Inode<'a>, kind: u16, body: Body<'a>) -> u32 {
        let number = self.inodes.len() as u32;
        self.inodes.push(erofs::Inode {
            mode: kind | if kind == SYMLINK { 0o777 } else { inode.mode },
            uid: inode.uid,
            gid: inode.gid,
            mtime: inode.mtime,
            nlink: 1,
            xattrs: &inode.xattrs,
            body,
        });
        number
    }
}
