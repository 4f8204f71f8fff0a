//! What belongs to a user, without HTTP: accounts, devices, keys, profiles, receipts, account data.
