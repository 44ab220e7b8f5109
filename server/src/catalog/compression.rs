//! Compression of text files.

/// Compression of a whole text file. Not the internal compression of Parquet and Arrow.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Compression {
    /// None.
    #[default]
    None,
    /// `.gz`
    Gzip,
    /// `.bz2`
    Bzip2,
    /// `.xz`
    Xz,
    /// `.zst`
    Zstd,
}

impl Compression {
    /// A name without its compression's extension, and the compression.
    pub(super) fn of_name(name: &str) -> (&str, Compression) {
        if let Some((rest, extension)) = name.rsplit_once('.') {
            let compression = match extension.to_ascii_lowercase().as_str() {
                "gz" => Compression::Gzip,
                "bz2" => Compression::Bzip2,
                "xz" => Compression::Xz,
                "zst" => Compression::Zstd,
                _ => Compression::None,
            };
            if compression != Compression::None && !rest.is_empty() {
                return (rest, compression);
            }
        }
        (name, Compression::None)
    }
}
