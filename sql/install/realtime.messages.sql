-- realtime.messages: broadcasts from the database, and the place for channel policies.
-- shape:  what applications and Studio know; one partition a day, by UTC date
create table realtime.messages (
    topic text not null,
    extension text not null,
    payload jsonb,
    event text,
    private boolean default false,
    updated_at timestamp not null default pg_catalog.timezone('utc', pg_catalog.now()),
    inserted_at timestamp not null default pg_catalog.timezone('utc', pg_catalog.now()),
    id uuid not null default pg_catalog.gen_random_uuid(),
    binary_payload bytea,
    constraint messages_one_payload check (payload is null or binary_payload is null),
    primary key (id, inserted_at)
) partition by range (inserted_at);
alter table realtime.messages enable row level security;
create index messages_inserted_at_topic_index
    on realtime.messages (inserted_at desc, topic)
    where extension = 'broadcast' and private;
revoke all on table realtime.messages from public;
