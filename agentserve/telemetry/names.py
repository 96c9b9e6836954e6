"""What are spans and their attributes called? The OpenTelemetry GenAI names in use, and our own.

The GenAI semantic conventions are in development: they are written here and nowhere else.
"""

from typing import Final

SCOPE: Final = "agentserve"

INVOKE_WORKFLOW: Final = "invoke_workflow"
INVOKE_AGENT: Final = "invoke_agent"
EXECUTE_TOOL: Final = "execute_tool"
CHAT: Final = "chat"

OPERATION: Final = "gen_ai.operation.name"
PROVIDER: Final = "gen_ai.provider.name"
REQUEST_MODEL: Final = "gen_ai.request.model"
INPUT_TOKENS: Final = "gen_ai.usage.input_tokens"
OUTPUT_TOKENS: Final = "gen_ai.usage.output_tokens"
CACHED_TOKENS: Final = "gen_ai.usage.cache_read.input_tokens"
CONVERSATION: Final = "gen_ai.conversation.id"
AGENT_NAME: Final = "gen_ai.agent.name"
TOOL_NAME: Final = "gen_ai.tool.name"
WORKFLOW_NAME: Final = "gen_ai.workflow.name"
ERROR_TYPE: Final = "error.type"

RUN_ID: Final = "agentserve.run.id"
STEP_ID: Final = "agentserve.step.id"
STEP_PARENTS: Final = "agentserve.step.parents"
REQUEST_ID: Final = "agentserve.request.id"
STREAM: Final = "agentserve.request.stream"
SLO_S: Final = "agentserve.slo_s"
DEADLINE: Final = "agentserve.deadline_unix_s"
TARGET_DEADLINE: Final = "agentserve.target_deadline_unix_s"
LATEST_DEADLINE: Final = "agentserve.latest_deadline_unix_s"
SLACK_S: Final = "agentserve.slack_s"
PREDICTED_S: Final = "agentserve.predicted_s"
DOWNSTREAM_S: Final = "agentserve.downstream_s"
ATTAINED: Final = "agentserve.attained"
OUTCOME: Final = "agentserve.outcome"
INCOMPLETE: Final = "agentserve.incomplete"

TTFT_S: Final = "agentserve.ttft_s"
TPOT_S: Final = "agentserve.tpot_s"
E2E_S: Final = "agentserve.e2e_s"

LENGTH_P10: Final = "agentserve.length.predicted_p10_tokens"
LENGTH_P50: Final = "agentserve.length.predicted_p50_tokens"
LENGTH_P90: Final = "agentserve.length.predicted_p90_tokens"
LENGTH_ACTUAL: Final = "agentserve.length.actual_tokens"
LENGTH_SOURCE: Final = "agentserve.length.source"

POLICY: Final = "agentserve.policy"
RULE: Final = "agentserve.rule"
PREFILL_INSTANCE: Final = "agentserve.instance.prefill"
DECODE_INSTANCE: Final = "agentserve.instance.decode"
INSTANCE: Final = "agentserve.instance"
ATTEMPT: Final = "agentserve.attempt"
ATTEMPTS: Final = "agentserve.attempts"
MIGRATIONS: Final = "agentserve.migrations"
SPLIT: Final = "agentserve.split"
PRIORITY: Final = "agentserve.priority"
MIGRATION_SOURCE: Final = "agentserve.migration.source"
MIGRATION_TARGET: Final = "agentserve.migration.target"
MIGRATION_CAUSE: Final = "agentserve.migration.cause"
REPLAYED_TOKENS: Final = "agentserve.migration.replayed_tokens"

DECISION_EVENT: Final = "agentserve.decision"
DECISION: Final = "agentserve.decision.type"
CANDIDATES: Final = "agentserve.decision.candidates"
"""One JSON object per weighed placement, the chosen one first, each with its verdict."""
CANDIDATES_TOTAL: Final = "agentserve.decision.candidates_total"
GAIN_S: Final = "agentserve.decision.predicted_gain_s"
COST_S: Final = "agentserve.decision.predicted_cost_s"
MESSAGE: Final = "agentserve.decision.message"

FIRST_TOKEN_EVENT: Final = "agentserve.first_token"  # noqa: S105 - a token of text, no secret
ATTEMPT_FAILED_EVENT: Final = "agentserve.attempt_failed"
REFUSED_EVENT: Final = "agentserve.migration_refused"
