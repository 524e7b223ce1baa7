//! Compression, by the names that kombu gives the kinds: each is undone in bounded memory.

use super::ContentError;
use brotli_decompressor::Decompressor;
use bzip2::read::BzDecoder;
use flate2::read::ZlibDecoder;
use lzma_rust2::XzReader;
use ruzstd::decoding::StreamingDecoder;
use std::io::{self, Read};

/// zlib, Celery's `gzip`. Not gzip, whatever its name says: the stream has zlib's own header.
pub(super) const ZLIB: &str = "application/x-gzip";
const BZIP2: &str = "application/x-bz2";
const XZ: &str = "application/x-lzma";
const BROTLI: &str = "application/x-brotli";
const ZSTD: &str = "application/zstd";

/// What a dictionary of xz may take, in KiB: at its highest level it has 64 MiB, and a header may ask for 4 GiB.
const XZ_MEMORY_KIB: u32 = 65 << 10;

/// The window of zstd, in bytes, that every decoder should allow by its standard, RFC 8878.
const ZSTD_WINDOW: usize = 8 << 20;

/// Undoes a compression, up to a limit in bytes.
pub(crate) fn expand(name: &str, compressed: &[u8], limit: usize) -> Result<Vec<u8>, ContentError> {
    match name {
        ZLIB => read(ZlibDecoder::new(compressed), limit),
        BZIP2 => read(BzDecoder::new(compressed), limit),
        XZ => read(XzReader::new_mem_limit(compressed, false, XZ_MEMORY_KIB), limit),
        BROTLI if has_large_window(compressed) => {
            Err(ContentError::Damaged("a window of brotli beyond 16 MiB".to_owned()))
        }
        BROTLI => read(Decompressor::new(compressed, 4096), limit),
        ZSTD => {
            // The window of what was compressed in one go is all of it.
            let window = u64::try_from(limit.max(ZSTD_WINDOW)).unwrap_or(u64::MAX);
            let decoder = StreamingDecoder::new_with_max_window_size(compressed, window);
            read(decoder.map_err(|error| ContentError::Damaged(error.to_string()))?, limit)
        }
        other => Err(ContentError::Compression(other.to_owned())),
    }
}

/// The extension of brotli for windows of up to 1 GiB: the standard, RFC 7932, leaves this beginning unused.
fn has_large_window(compressed: &[u8]) -> bool {
    compressed.first().is_some_and(|byte| byte & 0x7f == 0x11)
}

fn read(expanded: impl Read, limit: usize) -> Result<Vec<u8>, ContentError> {
    let mut bytes = Vec::new();
    let one_more = u64::try_from(limit).unwrap_or(u64::MAX).saturating_add(1);
    expanded.take(one_more).read_to_end(&mut bytes).map_err(damaged)?;
    if bytes.len() > limit { Err(ContentError::TooLarge(limit)) } else { Ok(bytes) }
}

fn damaged(error: io::Error) -> ContentError {
    ContentError::Damaged(error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// `[[1, 2], {"text": "abcdefghabcdefgh…"}, {}]`, as kombu 5.7 compresses it.
    const COMPRESSED: [(&str, &str); 5] = [
        (ZLIB, "789c8b8e36d451308ad551a8562a49ad2851b252504a4c4a4e494d4bcf18a5c9a3956a81a1591b0b00e20084ef"),
        (
            BZIP2,
            "425a6839314159265359172b0ad60000079b8050043010000a3fc0044a200050a6134d01a62054a8d3400322b49ed2f6d37f\
         b8cf7c72e2ba490af223a11d88f0475e88b08b88fb6cbc636fc5dc914e142405cac2b580",
        ),
        (
            XZ,
            "fd377a585a000004e6d6b4460200210116000000742fe5a3e00159002a5d002de0c0582115cd9a2c4f0f8ae89d59711dcf25\
         52801e2fdb4c9fa09a0f134a99a4074d84645001dea800000000275d3f207e93b152000146da02000000df921873b1c467fb\
         020000000004595a",
        ),
        (
            BROTLI,
            "1b5901f88dd463ad30dac95647e4cb4961a44df0dd03de14200d8324b20ca81c5881664ce20eae1c8ac8ea73df572ccd3a",
        ),
        (
            ZSTD,
            "28b52ffd605a0055010024025b5b312c20325d2c207b2274657874223a20226162636465666768227d2c207b7d5d0100d74c\
         2d63",
        ),
    ];

    fn bytes(hex: &str) -> Vec<u8> {
        let digit = |byte: &u8| char::from(*byte).to_digit(16).unwrap() as u8;
        hex.as_bytes().chunks(2).map(|pair| digit(&pair[0]) << 4 | digit(&pair[1])).collect()
    }

    fn text() -> Vec<u8> {
        format!("[[1, 2], {{\"text\": \"{}\"}}, {{}}]", "abcdefgh".repeat(40)).into_bytes()
    }

    #[test]
    fn each_kind_that_kombu_has_is_undone_up_to_the_limit() {
        let length = text().len();
        for (name, hex) in COMPRESSED {
            let compressed = bytes(hex);
            assert_eq!(expand(name, &compressed, length), Ok(text()), "{name}");
            assert_eq!(
                expand(name, &compressed, length - 1),
                Err(ContentError::TooLarge(length - 1)),
                "{name}"
            );
            let cut = expand(name, &compressed[..compressed.len() / 2], length);
            assert!(matches!(cut, Err(ContentError::Damaged(_))), "{name}: {cut:?}");
            assert!(matches!(expand(name, b"", length), Err(ContentError::Damaged(_))), "{name}");
        }
    }

    #[test]
    fn a_header_can_not_ask_for_much_memory() {
        for (name, hex) in [
            // A dictionary of 256 MiB; a window of 128 MiB, and one of brotli's extension.
            (
                XZ,
                "fd377a585a000004e6d6b44602002101200000000988a5760100015b5d00000053b6ee89a2ec2e2800011a02dc2ea57e1fb6f37d010000000004595a",
            ),
            (ZSTD, "28b52ffd0088450000105b5d0100790e0b"),
            (BROTLI, "111e"),
        ] {
            let refused = expand(name, &bytes(hex), 1 << 20);
            assert!(matches!(refused, Err(ContentError::Damaged(_))), "{name}: {refused:?}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 2000, ..ProptestConfig::default() })]

        #[test]
        fn whatever_it_is_it_comes_to_an_end(
            kind in 0..COMPRESSED.len(),
            changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..6),
            length in any::<prop::sample::Index>(),
        ) {
            let (name, hex) = COMPRESSED[kind];
            let mut compressed = bytes(hex);
            for (index, byte) in changes {
                let at = index.index(compressed.len());
                compressed[at] = byte;
            }
            compressed.truncate(compressed.len() - length.index(compressed.len()) / 4);
            prop_assert!(expand(name, &compressed, 1 << 20).map_or(0, |text| text.len()) <= 1 << 20);
        }
    }
}
