//! The keys of a secret, from the Kubernetes API or from the directory that it is mounted as.

use crate::uri::{AddressError, IoError};
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

/// Texts by key.
#[derive(Clone, Default)]
pub(crate) struct Fields(BTreeMap<String, String>);

impl Fields {
    /// Takes all keys whose values are text, without the line break that files tend to end in.
    pub(crate) fn new<K: AsRef<str>, V: AsRef<[u8]>>(
        fields: impl IntoIterator<Item = (K, V)>,
        wanted: &[&str],
    ) -> Result<Self, AddressError> {
        let mut texts = BTreeMap::new();
        for (key, value) in fields {
            let key = key.as_ref().to_owned();
            match std::str::from_utf8(value.as_ref()) {
                Ok(text) => {
                    texts.insert(key, text.trim_end_matches(['\r', '\n']).to_owned());
                }
                Err(_) if wanted.contains(&key.as_str()) => return Err(AddressError::NotText(key)),
                // Some other use's key store, say.
                Err(_) => {}
            }
        }
        Ok(Self(texts))
    }

    /// Reads one file for each key.
    pub(crate) fn read(directory: &Path, wanted: &[&str]) -> Result<Self, AddressError> {
        let failed = |path: &Path| {
            let path = path.to_owned();
            |source: std::io::Error| AddressError::Directory { path, source: Arc::new(IoError::from(source)) }
        };
        let mut fields = Vec::new();
        for entry in std::fs::read_dir(directory).map_err(failed(directory))? {
            let path = entry.map_err(failed(directory))?.path();
            let name = path.file_name().and_then(|name| name.to_str()).map(str::to_owned);
            // Kubernetes keeps what it mounted last in `..data`.
            let Some(name) = name.filter(|name| !name.starts_with('.')) else { continue };
            if path.is_file() {
                let value = std::fs::read(&path).map_err(failed(&path))?;
                fields.push((name, value));
            }
        }
        Self::new(fields, wanted)
    }

    /// The value of the first of these keys that has one.
    pub(crate) fn get(&self, keys: &[&str]) -> Option<&str> {
        keys.iter().find_map(|key| self.0.get(*key)).map(String::as_str).filter(|value| !value.is_empty())
    }

    pub(crate) fn missing(&self, expected: &'static str) -> AddressError {
        let names: Vec<&str> = self.0.keys().map(String::as_str).collect();
        let found = if names.is_empty() { "no keys".to_owned() } else { names.join(", ") };
        AddressError::NoKeys { expected, found }
    }
}
