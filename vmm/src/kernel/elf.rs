//! What of an ELF file a boot needs: where it starts and which of its bytes go where.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use linux_loader::elf::{
    EI_CLASS, EI_DATA, ELFMAG0, ELFMAG1, ELFMAG2, ELFMAG3, Elf64_Ehdr, Elf64_Phdr, PT_LOAD,
};
use vm_memory::ByteValued;

/// `ELFCLASS64`, `ELFDATA2LSB`, `EM_X86_64`.
const CLASS_64: u8 = 2;
const LITTLE_ENDIAN: u8 = 1;
const X86_64: u16 = 62;
const MAGIC: [u8; 4] = [ELFMAG0, ELFMAG1, ELFMAG2, ELFMAG3];
/// Most program headers; a kernel has five.
const MAX_HEADERS: u16 = 64;

/// Why a file is not a kernel.
#[derive(Debug, thiserror::Error)]
pub enum ElfError {
    /// A header could not be read.
    #[error("its headers cannot be read")]
    Read(#[source] io::Error),
    /// No ELF, or for another machine.
    #[error("it is not an ELF file for x86-64")]
    Format,
    /// Too many program headers, or of another size.
    #[error("its program headers make no sense")]
    Headers,
    /// A segment is outside of the file, larger there than in memory, or beyond all addresses.
    #[error("its segment at {address:#x} makes no sense")]
    Segment {
        /// Physical address.
        address: u64,
    },
}

/// A loadable segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Segment {
    /// Where it begins in the file.
    pub offset: u64,
    /// Where it goes in guest memory.
    pub address: u64,
    /// Bytes from the file, all of them in it.
    pub file_bytes: u64,
    /// Bytes in memory; those that are not from the file are zero. They end below 2⁶⁴.
    pub memory_bytes: u64,
}

/// Reads `file` as far as needed: entry point and segments.
///
/// # Errors
///
/// When it is not what it should be.
pub fn read(file: &File) -> Result<(u64, Vec<Segment>), ElfError> {
    let file_bytes = file.metadata().map_err(ElfError::Read)?.len();
    let header: Elf64_Ehdr = read_object(file, 0)?;
    let identification = header.e_ident;
    if identification[..4] != MAGIC
        || identification[EI_CLASS] != CLASS_64
        || identification[EI_DATA] != LITTLE_ENDIAN
        || header.e_machine != X86_64
    {
        return Err(ElfError::Format);
    }
    let size = size_of::<Elf64_Phdr>() as u64;
    if u64::from(header.e_phentsize) != size || header.e_phnum > MAX_HEADERS {
        return Err(ElfError::Headers);
    }
    let mut segments = Vec::new();
    for index in 0..u64::from(header.e_phnum) {
        let at = header.e_phoff.checked_add(index * size);
        let program: Elf64_Phdr = read_object(file, at.ok_or(ElfError::Headers)?)?;
        if program.p_type != PT_LOAD || program.p_memsz == 0 {
            continue;
        }
        let segment = Segment {
            offset: program.p_offset,
            address: program.p_paddr,
            file_bytes: program.p_filesz,
            memory_bytes: program.p_memsz,
        };
        if !segment.is_valid(file_bytes) {
            let address = segment.address;
            return Err(ElfError::Segment { address });
        }
        segments.push(segment);
    }
    Ok((header.e_entry, segments))
}

impl Segment {
    fn is_valid(&self, file_bytes: u64) -> bool {
        let end = self.offset.checked_add(self.file_bytes);
        end.is_some_and(|end| end <= file_bytes)
            && self.file_bytes <= self.memory_bytes
            && self.address.checked_add(self.memory_bytes).is_some()
    }
}

fn read_object<T: ByteValued + Default>(file: &File, offset: u64) -> Result<T, ElfError> {
    let mut object = T::default();
    match file.read_exact_at(object.as_mut_slice(), offset) {
        Ok(()) => Ok(object),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Err(ElfError::Format),
        Err(error) => Err(ElfError::Read(error)),
    }
}
