//! Where everything in the metadata goes: inodes first, with what is small right behind them, then whole blocks.

use super::{BLOCK, Body, Inode, directory, inode, superblock, xattr};

/// Gaps that are remembered to be filled later.
const GAPS: usize = 32;

/// Where one inode and its content lie.
#[derive(Debug, Clone, Copy, Default)]
pub struct Place {
    /// Of the inode, in bytes.
    pub offset: u64,
    /// First metadata block of its content.
    pub block: u64,
    /// Metadata blocks of its content.
    pub blocks: u64,
    /// Whether the end of its content, or all of it, lies behind the inode.
    pub inline: bool,
    /// Bytes of its content.
    pub size: u64,
}

/// The places of all inodes.
#[derive(Debug)]
pub struct Layout {
    /// Place of each inode, in the order of the inodes.
    pub places: Vec<Place>,
    /// The inodes in the order of their offsets.
    pub order: Vec<u32>,
    /// Metadata blocks in all.
    pub blocks: u64,
}

impl Layout {
    /// Finds a place for every inode, the first one within reach of the superblock's 16-bit number.
    #[must_use]
    pub fn plan(inodes: &[Inode<'_>]) -> Self {
        let mut slots = Slots {
            end: (superblock::OFFSET + superblock::SIZE) as u64,
            gaps: Vec::with_capacity(GAPS),
        };
        let mut places: Vec<Place> = inodes
            .iter()
            .map(|inode| place(inode, &mut slots))
            .collect();
        let mut order: Vec<u32> = (0..inodes.len() as u32).collect();
        order.sort_unstable_by_key(|&number| places[number as usize].offset);
        let mut block = slots.end.div_ceil(BLOCK);
        for &number in &order {
            let place = &mut places[number as usize];
            if place.blocks > 0 {
                place.block = block;
                block += place.blocks;
            }
        }
        Self {
            places,
            order,
            blocks: block,
        }
    }

    /// The number by which folders refer to an inode.
    #[must_use]
    pub fn nid(&self, inode: u32) -> u64 {
        self.places[inode as usize].offset / inode::SLOT
    }
}

fn place(inode: &Inode<'_>, slots: &mut Slots) -> Place {
    let mut place = Place::default();
    let mut behind = 0;
    match &inode.body {
        Body::Directory(entries) => {
            for group in directory::groups(entries) {
                place.blocks += 1;
                behind = directory::size(group) as u64;
            }
            place.size = (place.blocks - 1) * BLOCK + behind;
        }
        Body::Inline(bytes) => {
            place.size = bytes.len() as u64;
            place.blocks = place.size.div_ceil(BLOCK);
            behind = place.size % BLOCK;
        }
        Body::Extent { size, .. } => place.size = *size,
        Body::Chunks { size, .. } => place.size = *size,
        Body::Node(_) => {}
    }
    let mut bytes = inode::SIZE + xattr::size(inode.xattrs) as u64;
    // Content behind an inode may not cross the end of a block.
    if behind > 0 && bytes + behind <= BLOCK {
        place.inline = true;
        place.blocks -= 1;
        bytes += behind;
    }
    if let Body::Chunks { size, bits, .. } = inode.body {
        bytes += 4 * inode::chunks(size, bits);
    }
    place.offset = slots.take(bytes);
    place
}

/// Hands out room for inodes from the start of the metadata on.
struct Slots {
    end: u64,
    gaps: Vec<(u64, u64)>,
}

impl Slots {
    /// Room that starts at a slot and, if it fits into a block, lies in one.
    fn take(&mut self, bytes: u64) -> u64 {
        let bytes = bytes.next_multiple_of(inode::SLOT);
        let fitting = |gap: &&mut (u64, u64)| gap.1 - gap.0 >= bytes;
        if let Some(gap) = self.gaps.iter_mut().find(fitting) {
            let start = gap.0;
            gap.0 += bytes;
            return start;
        }
        let left = self.end.next_multiple_of(BLOCK) - self.end;
        if left > 0 && left < bytes {
            self.forget_a_gap();
            self.gaps.push((self.end, self.end + left));
            self.end += left;
        }
        let start = self.end;
        self.end += bytes;
        start
    }

    fn forget_a_gap(&mut self) {
        self.gaps.retain(|gap| gap.1 - gap.0 >= inode::SIZE);
        if self.gaps.len() == GAPS {
            let smallest = (0..GAPS).min_by_key(|&at| self.gaps[at].1 - self.gaps[at].0);
            self.gaps.swap_remove(smallest.unwrap_or(0));
        }
    }
}
