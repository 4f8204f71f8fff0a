//! Ordered key-value store with atomic asserted batches, the journal and blobs; and its engines.
