//! One file per Kafka API. Every handler is
//! `pub(crate) async fn handle(broker: &Arc<Broker>, ctx: &RequestContext, request: XRequest) -> XResponse`
//! with kafka_wire's types, and is listed in the table of [`crate::dispatch`]. Produce and Fetch differ: the
//! one starts at once and is answered later, the other answers with chunks of the log.

pub(crate) mod alter_configs;
pub(crate) mod alter_partition_reassignments;
pub(crate) mod api_versions;
pub(crate) mod archive_flush;
pub(crate) mod create_partitions;
pub(crate) mod create_topics;
#[cfg(test)]
mod data_tests;
pub(crate) mod delete_groups;
pub(crate) mod delete_records;
pub(crate) mod delete_topics;
pub(crate) mod describe_acls;
pub(crate) mod describe_client_quotas;
pub(crate) mod describe_cluster;
pub(crate) mod describe_configs;
pub(crate) mod describe_groups;
pub(crate) mod describe_log_dirs;
pub(crate) mod describe_producers;
pub(crate) mod describe_topic_partitions;
pub(crate) mod elect_leaders;
pub(crate) mod fetch;
pub(crate) mod find_coordinator;
pub(crate) mod heartbeat;
pub(crate) mod incremental_alter_configs;
pub(crate) mod init_producer_id;
pub(crate) mod join_group;
pub(crate) mod leave_group;
pub(crate) mod list_groups;
pub(crate) mod list_offsets;
pub(crate) mod list_partition_reassignments;
pub(crate) mod metadata;
pub(crate) mod offset_commit;
pub(crate) mod offset_delete;
pub(crate) mod offset_fetch;
pub(crate) mod offset_for_leader_epoch;
pub(crate) mod peer_ping;
pub(crate) mod produce;
pub(crate) mod sync_group;
