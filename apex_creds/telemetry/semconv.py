"""Every name that apex-creds gives to spans, metrics and their attributes.

Guarantee: names here are stable: dashboards and queries may rely on them. What follows
another convention (``gen_ai.*``, ``error.type``) has that convention's name.
"""

from __future__ import annotations

from typing import Final

# -- spans -------------------------------------------------------------------------

INVOKE: Final = "apex_creds.invoke"
LEASE: Final = "apex_creds.lease"
CONSENT: Final = "apex_creds.consent"
REDEEM: Final = "apex_creds.redeem"
ROTATE: Final = "apex_creds.rotate"
REENCRYPT: Final = "apex_creds.reencrypt"
UNSEAL: Final = "apex_creds.unseal"
MIGRATE: Final = "apex_creds.migrate"
CHECKPOINT: Final = "apex_creds.checkpoint"

SPANS: Final = (
    INVOKE,
    LEASE,
    CONSENT,
    REDEEM,
    ROTATE,
    REENCRYPT,
    UNSEAL,
    MIGRATE,
    CHECKPOINT,
)

# -- attributes --------------------------------------------------------------------

PLUGIN: Final = "apex_creds.plugin"
PLUGIN_VERSION: Final = "apex_creds.plugin.version"
CREDENTIAL: Final = "apex_creds.credential"
LEASE_ID: Final = "apex_creds.lease.id"
PARENT_LEASE: Final = "apex_creds.lease.parent"
LEASE_EXPIRED: Final = "apex_creds.lease.expired"
METHOD: Final = "apex_creds.method"
STALE_MS: Final = "apex_creds.stale_ms"
REASON: Final = "apex_creds.reason"
OUTCOME: Final = "apex_creds.outcome"
WHERE: Final = "apex_creds.where"
VAULT: Final = "apex_creds.vault.id"
KEY_ID: Final = "apex_creds.key.id"
KEY_VERSION: Final = "apex_creds.key.version"
KEY_LEVEL: Final = "apex_creds.key.level"
KEY_STATE: Final = "apex_creds.key.state"
TRIGGER: Final = "apex_creds.trigger"
RECORDS: Final = "apex_creds.records"
SECTION: Final = "apex_creds.section"
FORMAT: Final = "apex_creds.format"
DESTINATION: Final = "apex_creds.audit.destination"
AUDIT_SIZE: Final = "apex_creds.audit.size"
AUDIT_ROOT: Final = "apex_creds.audit.root"
AUDIT_KIND: Final = "apex_creds.audit.kind"

CONNECTION_STATE: Final = "apex_creds.connection.state"
ROTATION_STATE: Final = "apex_creds.rotation.state"

ERROR_TYPE: Final = "error.type"
GEN_AI_OPERATION: Final = "gen_ai.operation.name"
GEN_AI_TOOL: Final = "gen_ai.tool.name"
EXECUTE_TOOL: Final = "execute_tool"

# -- metrics -----------------------------------------------------------------------

REDEEMS: Final = "apex_creds.redeems"
DENIALS: Final = "apex_creds.denials"
LEAKS: Final = "apex_creds.leaks"
LEASES: Final = "apex_creds.leases"
LEASE_AGE: Final = "apex_creds.lease.age"
LEASE_DURATION: Final = "apex_creds.lease.duration"
REDEEM_DURATION: Final = "apex_creds.redeem.duration"
INVOKE_DURATION: Final = "apex_creds.invoke.duration"
ROTATION_DURATION: Final = "apex_creds.rotation.duration"
KEY_AGE: Final = "apex_creds.key.age"
RECORDS_LEFT: Final = "apex_creds.records.left"
CONNECTIONS: Final = "apex_creds.connections"
ROTATIONS: Final = "apex_creds.rotations"
AUDIT_QUEUE: Final = "apex_creds.audit.queue"
AUDIT_DROPS: Final = "apex_creds.audit.drops"
AUDIT_EVENTS: Final = "apex_creds.audit.events"
AUDIT_INTACT: Final = "apex_creds.audit.intact"
AUDIT_CHECK_AGE: Final = "apex_creds.audit.check.age"
KEY_VERSIONS: Final = "apex_creds.key.versions"
ROTATION_DUE: Final = "apex_creds.rotation.due"
WORKER_PROBLEMS: Final = "apex_creds.worker.problems"

METRICS: Final = (
    REDEEMS,
    DENIALS,
    LEAKS,
    LEASES,
    LEASE_AGE,
    LEASE_DURATION,
    REDEEM_DURATION,
    INVOKE_DURATION,
    ROTATION_DURATION,
    KEY_AGE,
    RECORDS_LEFT,
    CONNECTIONS,
    ROTATIONS,
    AUDIT_QUEUE,
    AUDIT_DROPS,
    AUDIT_EVENTS,
    AUDIT_INTACT,
    AUDIT_CHECK_AGE,
    KEY_VERSIONS,
    ROTATION_DUE,
    WORKER_PROBLEMS,
)

# -- closed sets ---------------------------------------------------------------------

WHERES: Final = ("result", "chunk", "exception", "log", "span", "name", "response")
"""Where secrets are redacted from."""
