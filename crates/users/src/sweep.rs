//! Cleaning up behind deleted devices and old transaction ids, in bounded steps.
//!
//! Nothing here is needed for a right answer: what is swept is unreachable already.

use homeserver_storage::{Batch, Durability};

use crate::{
    DeviceNumber, Failure,
    ground::Ground,
    inbox::TRANSACTION_LIFE,
    tables::{
        DEVICE_REMAINS, INBOX, ONE_TIME_KEY_IDS, ONE_TIME_KEYS, TO_DEVICE_TRANSACTIONS,
        TO_DEVICE_TRANSACTIONS_BY_TIME,
    },
};

/// Rows deleted by one batch.
const STEP: usize = 200;

/// Deleted devices swept in one go.
const DEVICES_AT_ONCE: usize = 100;

/// Sweeps what was left behind: devices whose deletion was interrupted, transaction ids older
/// than a day.
pub(crate) async fn all(ground: &Ground) -> Result<(), Failure> {
    loop {
        let remains = ground
            .scan_between(&DEVICE_REMAINS, 0_u64, u64::MAX, DEVICES_AT_ONCE)
            .await?;
        for (device, ()) in &remains {
            remains_of(ground, DeviceNumber(*device)).await?;
        }
        if remains.len() < DEVICES_AT_ONCE {
            break;
        }
    }
    transactions(ground).await
}

/// Sweeps what a deleted device left behind.
pub(crate) async fn remains_of(ground: &Ground, device: DeviceNumber) -> Result<(), Failure> {
    loop {
        let mut batch = Batch::new();
        let mut found = 0;
        for (key, _) in ground.scan_prefix(&INBOX, &device.0, STEP).await? {
            batch.delete(&INBOX, &key);
            found += 1;
        }
        for (key, _) in ground.scan_prefix(&ONE_TIME_KEYS, &device.0, STEP).await? {
            batch.delete(&ONE_TIME_KEYS, &key);
            found += 1;
        }
        for (key, _) in ground
            .scan_prefix(&ONE_TIME_KEY_IDS, &device.0, STEP)
            .await?
        {
            batch.delete(&ONE_TIME_KEY_IDS, &key);
            found += 1;
        }
        for (key, _) in ground
            .scan_prefix(&TO_DEVICE_TRANSACTIONS, &device.0, STEP)
            .await?
        {
            batch.delete(&TO_DEVICE_TRANSACTIONS, &key);
            found += 1;
        }
        if found == 0 {
            batch.delete(&DEVICE_REMAINS, &device.0);
            // Lost, it is only done again.
            drop(ground.store.submit(batch, Durability::Lazy).await?);
            return Ok(());
        }
        ground.store.commit(batch).await?;
    }
}

async fn transactions(ground: &Ground) -> Result<(), Failure> {
    let expired = ground.now().saturating_sub(TRANSACTION_LIFE);
    loop {
        let table = &TO_DEVICE_TRANSACTIONS_BY_TIME;
        let rows = ground.scan_between(table, 0_u64, expired, STEP).await?;
        if rows.is_empty() {
            return Ok(());
        }
        let mut batch = Batch::new();
        for (key, ()) in &rows {
            batch.delete(table, key);
            batch.delete(&TO_DEVICE_TRANSACTIONS, &(key.1, key.2));
        }
        ground.store.commit(batch).await?;
    }
}
