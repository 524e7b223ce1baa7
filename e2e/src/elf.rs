//! Just enough of the ELF format to tell whether a program is static. The offsets are those of the System V ABI, "Object
//! Files": 64 bits, little endian.

use anyhow::{Context, Result, ensure};

/// The program header that names the dynamic linker: only programs that are not static have it.
const PT_INTERP: u32 = 3;

/// The dynamic linker that a program asks for; none if the program is static.
///
/// # Errors
/// If it is no 64 bit little-endian ELF file, or is cut off.
pub(crate) fn interpreter(program: &[u8]) -> Result<Option<String>> {
    // Magic number, then ELFCLASS64 and ELFDATA2LSB.
    ensure!(program.starts_with(b"\x7fELF\x02\x01"), "not a 64 bit little-endian ELF file");
    let table = number::<8>(program, 32)?;
    let entry_size = number::<2>(program, 54)?;
    for index in 0..number::<2>(program, 56)? {
        let header = index
            .checked_mul(entry_size)
            .and_then(|offset| offset.checked_add(table))
            .context("a program header beyond the end")?;
        let header = program.get(header..).context("a program header beyond the end")?;
        if number::<4>(header, 0)? == PT_INTERP as usize {
            let (offset, length) = (number::<8>(header, 8)?, number::<8>(header, 32)?);
            let name = offset.checked_add(length).and_then(|end| program.get(offset..end));
            let name = name.context("the interpreter's name is beyond the end")?;
            return Ok(Some(String::from_utf8_lossy(name).trim_end_matches('\0').to_owned()));
        }
    }
    Ok(None)
}

/// A number of `BYTES` bytes, 8 at most.
fn number<const BYTES: usize>(bytes: &[u8], offset: usize) -> Result<usize> {
    let field = bytes.get(offset..).and_then(|rest| rest.first_chunk::<BYTES>()).context("cut off")?;
    let number = field.iter().rev().fold(0_u64, |number, byte| number << 8 | u64::from(*byte));
    usize::try_from(number).context("a number beyond this machine's")
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A program with program headers of these types, each of which names `/lib/ld.so`.
    pub(crate) fn program(types: &[u32]) -> Vec<u8> {
        let name = b"/lib/ld.so\0";
        let name_at = 64 + 56 * types.len() as u64;
        let mut file = b"\x7fELF\x02\x01".to_vec();
        file.resize(64, 0);
        file[32..40].copy_from_slice(&64_u64.to_le_bytes());
        file[54..56].copy_from_slice(&56_u16.to_le_bytes());
        file[56..58].copy_from_slice(&(types.len() as u16).to_le_bytes());
        for kind in types {
            let mut header = [0; 56];
            header[..4].copy_from_slice(&kind.to_le_bytes());
            header[8..16].copy_from_slice(&name_at.to_le_bytes());
            header[32..40].copy_from_slice(&(name.len() as u64).to_le_bytes());
            file.extend(header);
        }
        if !types.is_empty() {
            file.extend(name);
        }
        file
    }

    #[test]
    fn a_program_without_an_interpreter_is_static() {
        assert_eq!(interpreter(&program(&[])).unwrap(), None);
        assert_eq!(interpreter(&program(&[1, 2])).unwrap(), None);
    }

    #[test]
    fn the_interpreter_is_found_wherever_it_stands() {
        assert_eq!(interpreter(&program(&[6, 3, 1])).unwrap().as_deref(), Some("/lib/ld.so"));
    }

    #[test]
    fn what_is_no_program_or_cut_off_is_an_error() {
        assert!(interpreter(b"#!/bin/sh").is_err());
        let whole = program(&[6, 3]);
        for length in 0..64 + 56 + 40 {
            assert!(interpreter(&whole[..length]).is_err(), "{length} bytes");
        }
    }
}
