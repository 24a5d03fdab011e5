//! Small files that are mounted into the pod: CA bundles, tokens, key sets.

use std::fs::File;
use std::io::{self, Read as _};
use std::path::Path;

use zeroize::Zeroizing;

/// Why a file was not read.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// The kernel says why.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// A directory, a pipe, a device.
    #[error("not a regular file")]
    NotRegular,
    /// Longer than this number of bytes.
    #[error("longer than {0} bytes")]
    TooLong(usize),
}

/// A bounded regular file. The buffer does not move and is wiped, because it may hold a token.
///
/// # Errors
/// Where it is missing, no regular file, or too long.
pub fn read(path: &Path, max: usize) -> Result<Zeroizing<Vec<u8>>, FileError> {
    let file = File::open(path)?;
    if !file.metadata()?.is_file() {
        return Err(FileError::NotRegular);
    }
    let mut bytes = Zeroizing::new(Vec::with_capacity(max + 1));
    file.take(max as u64 + 1).read_to_end(&mut bytes)?;
    if bytes.len() > max {
        return Err(FileError::TooLong(max));
    }
    Ok(bytes)
}
