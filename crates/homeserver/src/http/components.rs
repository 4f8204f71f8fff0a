//! What handlers may ask for with `State<…>`. Each handler names only the parts it uses; nothing
//! but the router assembly sees the whole.

use std::{ops::Deref, sync::Arc, time::Duration};

use axum::extract::FromRef;
use homeserver_federation::{
    Federation, History, Inbound, InboundParts, Memberships, Policies, RemoteUsers, Resident,
};
use homeserver_media::Media;
use homeserver_rooms::Rooms;
use homeserver_runtime::Runtime;
use homeserver_storage::Store;
use homeserver_users::{
    AccountData, Accounts, CrossSigning, DeviceLists, Devices, Filters, Inbox, Keys, Presences,
    Profiles, Receipts, Typing, Users,
};
use ruma::OwnedServerName;

use super::{BodyBudget, TrustedProxies};
use crate::{
    app::{
        authentication::Authenticator,
        closing::Closing,
        interactive::InteractiveSessions,
        invitation::Invitations,
        limits::RateLimits,
        login::BriefTokens,
        operator::OperatorRegistration,
        passwords::Passwords,
        profiles::ProfileChanges,
        push_rules::PushRules,
        pushers::Pushers,
        receipts::RoomMarks,
        registration::Registration,
        remote_media::RemoteMedia,
        reports::Reports,
        rooms::{PublicRooms, RoomChanges, RoomReads, Spaces},
        session::Sessions,
    },
    config::{
        Config, HttpConfig, MediaConfig, ProfilesConfig, RoomsConfig, SessionConfig,
        WellKnownConfig,
    },
    signing_key::KeyPlace,
    sync::SyncEngine,
};

/// All parts, shared: axum clones its state several times for each request.
#[derive(Clone, Debug)]
pub(crate) struct Components {
    parts: Arc<Parts>,
}

impl Deref for Components {
    type Target = Parts;

    fn deref(&self) -> &Parts {
        &self.parts
    }
}

/// Declares [`Parts`] and lets axum hand out each of its fields by type.
macro_rules! components {
    ($($(#[$doc:meta])* $name:ident: $type:ty,)*) => {
        /// The parts that handlers are given.
        #[derive(Debug)]
        pub(crate) struct Parts {
            $($(#[$doc])* pub(crate) $name: $type,)*
        }

        $(impl FromRef<Components> for $type {
            fn from_ref(components: &Components) -> Self {
                components.$name.clone()
            }
        })*
    };
}

components! {
    /// Clock, randomness, tasks, pools.
    runtime: Runtime,
    /// The domain in user ids.
    server_name: OwnedServerName,
    /// What the configuration says of connections.
    http_config: Arc<HttpConfig>,
    /// What the configuration says of profiles.
    profiles_config: Arc<ProfilesConfig>,
    /// What the configuration says of tokens.
    session_config: Arc<SessionConfig>,
    /// What the configuration says of new rooms.
    rooms_config: Arc<RoomsConfig>,
    /// What the configuration says of uploads.
    media_config: Arc<MediaConfig>,
    /// What `/.well-known/matrix/` says.
    well_known: Arc<WellKnownConfig>,
    /// Whose `X-Forwarded-For` is believed.
    proxies: TrustedProxies,
    /// Token buckets.
    limits: RateLimits,
    /// What may be held of request bodies.
    bodies: BodyBudget,
    /// The database, for its journal.
    store: Store,
    /// Where the signing keys are kept.
    key_place: KeyPlace,
    /// Other servers.
    federation: Federation,
    /// Takes what they send.
    inbound: Inbound,
    /// Users of other servers.
    remote_users: RemoteUsers,
    /// All rooms.
    rooms: Arc<Rooms>,
    /// What other servers read of rooms.
    history: History,
    /// Memberships of other servers' users in rooms of this one.
    resident: Resident,
    /// Memberships of our users elsewhere.
    memberships: Memberships,
    /// Uploads and their thumbnails.
    media: Media,
    /// Media of other servers.
    remote_media: RemoteMedia,
    /// All that belongs to users, by number; prefer the part you need.
    users: Users,
    /// Accounts.
    accounts: Accounts,
    /// Devices.
    devices: Devices,
    /// Profiles.
    profiles: Profiles,
    /// Account data, tags, push rules.
    account_data: AccountData,
    /// Stored filters.
    filters: Filters,
    /// Read receipts.
    receipts: Receipts,
    /// Who is typing.
    typing: Typing,
    /// Who is online.
    presence: Presences,
    /// Keys of devices.
    keys: Keys,
    /// Cross-signing keys and signatures.
    cross_signing: CrossSigning,
    /// Which device lists changed.
    device_lists: DeviceLists,
    /// Messages to devices.
    inbox: Inbox,
    /// Password hashes.
    passwords: Passwords,
    /// Access tokens.
    sessions: Sessions,
    /// Registration tokens.
    invitations: Invitations,
    /// Checks passwords and stages of user-interactive authentication.
    authenticator: Authenticator,
    /// Makes accounts.
    registration: Registration,
    /// Login and `OpenID` tokens.
    brief_tokens: BriefTokens,
    /// Closes accounts.
    closing: Closing,
    /// Nonces of the operators' registration endpoint.
    operator: OperatorRegistration,
    /// What changed for a device.
    sync: SyncEngine,
    /// Push rules.
    push_rules: PushRules,
    /// Pushers.
    pushers: Pushers,
    /// Profiles, and the rooms that are told of them.
    profile_changes: ProfileChanges,
    /// Receipts, read markers, typing.
    room_marks: RoomMarks,
    /// Changes in rooms.
    room_changes: RoomChanges,
    /// Reads of rooms.
    room_reads: RoomReads,
    /// The directory of rooms.
    public_rooms: PublicRooms,
    /// Trees of rooms.
    spaces: Spaces,
    /// Reports by users.
    reports: Reports,
}

/// What has to be opened before the parts can be put together.
#[derive(Debug)]
pub(crate) struct Foundation {
    pub(crate) runtime: Runtime,
    pub(crate) store: Store,
    pub(crate) federation: Federation,
    pub(crate) rooms: Arc<Rooms>,
    pub(crate) users: Users,
    pub(crate) media: Media,
    pub(crate) passwords: Passwords,
    pub(crate) key_place: KeyPlace,
}

/// The parts that speak with other servers, or for them.
struct Elsewhere {
    remote_users: RemoteUsers,
    resident: Resident,
    memberships: Memberships,
    inbound: Inbound,
    history: History,
    policies: Policies,
}

impl Foundation {
    fn elsewhere(&self) -> Elsewhere {
        let (rooms, federation) = (&self.rooms, &self.federation);
        let own = federation.own_keys.server().to_owned();
        let remote_users = RemoteUsers::start(
            own.clone(),
            (&self.store, rooms, &self.users),
            &federation.peers,
            &self.runtime,
        );
        let policies = Policies::new(Arc::clone(rooms), federation.peers.clone());
        let runtime = self.runtime.clone();
        let memberships = Memberships::new(federation, Arc::clone(rooms), runtime);
        Elsewhere {
            resident: Resident::new(federation, Arc::clone(rooms), self.runtime.clone()),
            inbound: Inbound::new(InboundParts {
                own: own.clone(),
                rooms: Arc::clone(rooms),
                store: self.store.clone(),
                runtime: self.runtime.clone(),
                fetcher: federation.fetcher.clone(),
                verifier: federation.verifier.clone(),
                policies: policies.clone(),
                edus: Arc::new(remote_users.clone()),
                outside: Arc::new(memberships.clone()),
            }),
            history: History::new(own, Arc::clone(rooms), self.runtime.clone()),
            policies,
            memberships,
            remote_users,
        }
    }

    fn room_reads(&self, inbound: &Inbound) -> RoomReads {
        RoomReads::new(
            Arc::clone(&self.rooms),
            self.runtime.clone(),
            &self.users,
            inbound.clone(),
        )
    }

    fn spaces(&self, reads: &RoomReads) -> Spaces {
        Spaces::new(
            reads.clone(),
            Arc::clone(&self.rooms),
            self.federation.peers.clone(),
            Arc::clone(&self.runtime.clock),
        )
    }

    fn remote_media(&self) -> RemoteMedia {
        RemoteMedia::new(
            self.media.clone(),
            self.federation.peers.clone(),
            self.runtime.tasks.clone(),
        )
    }

    fn public_rooms(&self, config: &Config) -> PublicRooms {
        PublicRooms::new(
            Arc::clone(&self.rooms),
            config.server_name.clone(),
            self.federation.peers.clone(),
        )
    }

    fn invitations(&self, config: &Config) -> Invitations {
        Invitations::new(
            self.runtime.clone(),
            self.store.clone(),
            self.users.accounts.clone(),
            config.registration.clone(),
        )
    }

    fn sessions(&self, config: &Config) -> Sessions {
        Sessions::new(
            self.runtime.clone(),
            self.store.clone(),
            self.users.accounts.clone(),
            self.users.devices.clone(),
            Duration::from_secs(config.sessions.access_token_lifetime),
        )
    }

    fn authenticator(&self, limits: &RateLimits, invitations: &Invitations) -> Authenticator {
        Authenticator {
            server_name: self.federation.own_keys.server().to_owned(),
            accounts: self.users.accounts.clone(),
            passwords: self.passwords.clone(),
            interactive: InteractiveSessions::new(self.runtime.clone()),
            invitations: invitations.clone(),
            limits: limits.clone(),
        }
    }

    fn brief_tokens(&self) -> BriefTokens {
        BriefTokens {
            runtime: self.runtime.clone(),
            store: self.store.clone(),
            accounts: self.users.accounts.clone(),
        }
    }

    fn registration(&self, config: &Config, invitations: &Invitations) -> Registration {
        Registration {
            runtime: self.runtime.clone(),
            server_name: config.server_name.clone(),
            accounts: self.users.accounts.clone(),
            passwords: self.passwords.clone(),
            invitations: invitations.clone(),
        }
    }
}

impl Components {
    /// Puts the parts together over an open store.
    pub(crate) fn assemble(config: &Config, foundation: Foundation) -> Self {
        let Elsewhere {
            remote_users,
            resident,
            memberships,
            inbound,
            history,
            policies,
        } = foundation.elsewhere();
        let invitations = foundation.invitations(config);
        let sessions = foundation.sessions(config);
        let room_reads = foundation.room_reads(&inbound);
        let (spaces, remote_media) = (foundation.spaces(&room_reads), foundation.remote_media());
        let public_rooms = foundation.public_rooms(config);
        let registration = foundation.registration(config, &invitations);
        let clock = Arc::clone(&foundation.runtime.clock);
        let limits = RateLimits::new(config.rate_limits.clone(), clock);
        let authenticator = foundation.authenticator(&limits, &invitations);
        let brief_tokens = foundation.brief_tokens();
        let Foundation {
            runtime,
            store,
            federation,
            rooms,
            users,
            media,
            passwords,
            key_place,
        } = foundation;
        let push_rules = PushRules::new(users.clone());
        let server_name = config.server_name.clone();
        let parts = Parts {
            http_config: Arc::new(config.http.clone()),
            profiles_config: Arc::new(config.profiles.clone()),
            session_config: Arc::new(config.sessions.clone()),
            rooms_config: Arc::new(config.rooms.clone()),
            media_config: Arc::new(config.media.clone()),
            well_known: Arc::new(config.well_known.clone()),
            proxies: TrustedProxies::new(&config.http.trusted_proxies),
            closing: Closing::new(
                (&runtime, &store),
                &users,
                &sessions,
                (&rooms, &memberships),
            ),
            sessions,
            authenticator,
            registration,
            brief_tokens,
            operator: OperatorRegistration::new(runtime.clone()),
            room_changes: RoomChanges::new(
                Arc::clone(&rooms),
                (resident.clone(), memberships.clone(), policies),
                (remote_users.clone(), federation.identity.clone()),
                &users,
            ),
            spaces,
            room_reads,
            public_rooms,
            remote_media,
            reports: Reports::new(store.clone(), runtime.clone()),
            accounts: users.accounts.clone(),
            devices: users.devices.clone(),
            profiles: users.profiles.clone(),
            account_data: users.account_data.clone(),
            filters: users.filters.clone(),
            receipts: users.receipts.clone(),
            typing: users.typing.clone(),
            presence: users.presence.clone(),
            keys: users.keys.clone(),
            cross_signing: users.cross_signing.clone(),
            device_lists: users.device_lists.clone(),
            inbox: users.inbox.clone(),
            sync: SyncEngine::start(&store, &rooms, &users, &push_rules, &runtime),
            pushers: Pushers::new(store.clone()),
            profile_changes: ProfileChanges::start(&store, &rooms, &users, &runtime),
            room_marks: RoomMarks::new(Arc::clone(&rooms), users.clone(), runtime.clone()),
            push_rules,
            history,
            inbound,
            resident,
            memberships,
            federation,
            remote_users,
            media,
            rooms,
            runtime,
            server_name,
            limits,
            bodies: BodyBudget::default(),
            store,
            users,
            passwords,
            key_place,
            invitations,
        };
        Self {
            parts: Arc::new(parts),
        }
    }
}
