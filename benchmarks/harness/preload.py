"""Loaded once by the process that the servers are forked from."""

import lerobot.policies.act.modeling_act  # noqa: F401

import async_delta_inference.server_adapter.lerobot
import async_delta_inference.server_adapter.upstream
import async_delta_inference.transport.grpc  # noqa: F401
from async_delta_inference.server_adapter.lerobot_internals import load_policy_server_module

load_policy_server_module()
